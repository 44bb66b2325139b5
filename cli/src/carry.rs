//! `peelfs index` and `peelfs profile`: export and import of indexes and profiles.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::args::{AccessArgs, CarryCommand, ImageArgs, IndexCommand, MirrorArg, ProfileCommand, PushedFormat};
use super::progress::{Counted, Meter, above};
use super::{specs, text};
use peelfs::content::{self, ImportError, Imported, Profiles, TransferError};
use peelfs::host::push::{self, Pushed, Step, Ztocs};
use peelfs::host::report::{Code, Report};
use peelfs::host::{open, process, sign};
use peelfs::image::LayerRef;
use peelfs::reference::RegistryName;
use peelfs::signature::PrivateKey;

pub(super) fn index(command: &IndexCommand) -> Result<(), Report> {
    match command {
        IndexCommand::Push { image, to, format, sign_key, min_layer_size, span_size } => {
            // Before anything is sent, and anything takes long.
            let key = sign_key.as_deref().map(sign::private_key).transpose()?;
            match format {
                PushedFormat::Peelfs => push(image, to.as_ref(), key.as_ref()),
                PushedFormat::Soci => {
                    let ztocs = Ztocs { min_layer_size: *min_layer_size, span_size: *span_size };
                    push_soci(image, to.as_ref(), (ztocs, key.as_ref()))
                }
            }?;
            match key {
                Some(key) => say(&format!("signed with the key {}", key.public().fingerprint())),
                None => Ok(()),
            }
        }
        IndexCommand::Carry(command) => index_file(command),
    }
}

/// Pushes what this machine knows of an image to a registry.
fn push(image: &ImageArgs, to: Option<&RegistryName>, key: Option<&PrivateKey>) -> Result<(), Report> {
    let meter = Meter::start("pushing indexes", image.opening.quiet.into());
    let tell = |step| match step {
        Step::Reading { number, count, size, progress } => {
            above(|| eprintln!("note: layer {number} of {count} has no index of this machine: reading all of it"));
            meter.begin("reading layers", Some(size));
            meter.follow(move || progress.received.load(Ordering::Relaxed));
        }
        Step::Describing { .. } => {}
        Step::Sending { size } => meter.begin("pushing indexes", Some(size)),
    };
    let image = specs::image(image)?;
    let pushed = process::runtime(process::Purpose::Reading)?.block_on(push::push(&image, to, key, tell))?;
    drop(meter);
    let Pushed { place, artifact, layers, left_out, sent, sent_bytes, index_bytes, window_bytes, layer_bytes, .. } =
        pushed;
    note_left_out(left_out);
    let (indexes, profiles) =
        (text::count(layers as u64, "layer"), if pushed.profiles { ", and its profiles" } else { "" });
    if pushed.was_there {
        return say(&format!("{place} has the indexes of {indexes}{profiles} already: {artifact}"));
    }
    let share = 100.0 * index_bytes as f64 / layer_bytes.max(1) as f64;
    let (sent, sent_bytes, index_bytes) =
        (text::count(sent as u64, "blob"), text::size(sent_bytes), text::size(index_bytes));
    let windows = match window_bytes {
        0 => String::new(),
        bytes => format!(", and {} of decoder windows, fetched where they are needed", text::size(bytes)),
    };
    say(&format!("pushed the indexes of {indexes}{profiles} to {place}: {artifact}"))?;
    say(&format!("{index_bytes}, {share:.2} % of its layers{windows}; {sent} sent, {sent_bytes}"))
}

/// Pushes a SOCI index of an image.
fn push_soci(image: &ImageArgs, to: Option<&RegistryName>, how: (Ztocs, Option<&PrivateKey>)) -> Result<(), Report> {
    let meter = Meter::start("pushing a SOCI index", image.opening.quiet.into());
    let tell = |step| match step {
        Step::Describing { size, progress, .. } | Step::Reading { size, progress, .. } => {
            meter.begin("reading layers", Some(size));
            meter.follow(move || progress.received.load(Ordering::Relaxed));
        }
        Step::Sending { size } => meter.begin("pushing zTOCs", Some(size)),
    };
    let image = specs::image(image)?;
    let pushed = process::runtime(process::Purpose::Reading)?.block_on(push::push_soci(&image, to, how, tell))?;
    drop(meter);
    let Pushed { place, artifact, layers, left_out, sent, sent_bytes, index_bytes, layer_bytes, .. } = pushed;
    if left_out > 0 {
        let layers = text::count(left_out as u64, "layer");
        eprintln!("note: {layers} left out: small, no gzip, or with what a zTOC cannot describe");
    }
    let share = 100.0 * index_bytes as f64 / layer_bytes.max(1) as f64;
    let (sent, sent_bytes, index_bytes) =
        (text::count(sent as u64, "blob"), text::size(sent_bytes), text::size(index_bytes));
    say(&format!("pushed the SOCI index of {} to {place}: {artifact}", text::count(layers as u64, "layer")))?;
    say(&format!("{index_bytes}, {share:.2} % of its layers; {sent} sent, {sent_bytes}"))
}

/// Notes that layers have tables of contents, which are not carried.
fn note_left_out(layers: usize) {
    if layers > 0 {
        let layers = text::count(layers as u64, "layer");
        eprintln!("note: {layers} left out: other machines read the tables of contents that layers bring along");
    }
}

fn index_file(command: &CarryCommand) -> Result<(), Report> {
    match command {
        CarryCommand::Export { image, file } => {
            let image = specs::image(image)?;
            let (opened, layers) = process::runtime(process::Purpose::Reading)?.block_on(async {
                let opened = open::open_alone(&image).await?;
                let layers = layers(&opened);
                let windows = opened.pushed.as_ref().and_then(|pushed| pushed.window_source());
                content::complete_indexes(&opened.store, &layers, windows.as_ref()).await?;
                Ok::<_, Report>((opened, layers))
            })?;
            export(file, |out| {
                let left_out = content::export_indexes(&opened.store, &layers, out)?;
                note_left_out(left_out);
                Ok(())
            })
        }
        CarryCommand::Import { file, quiet, cache } => {
            let store = open::store(&specs::cache(cache)?)?;
            let by = if is_standard(file) {
                "standard input".to_owned()
            } else {
                open::absolute(file).display().to_string()
            };
            let meter = Meter::start("importing indexes", (*quiet).into());
            let size = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file).map(|found| found.len());
            meter.begin("importing indexes", size);
            let mut indexes = BufReader::new(Counted(open_file(file)?, &meter));
            let imported = content::import_indexes(&store, &mut indexes, &by);
            drop(indexes);
            drop(meter);
            let imported = imported.map_err(|error| not_imported(file, error))?;
            let (new, known) = (text::count(imported.new.into(), "layer"), imported.known);
            let rest = if known > 0 { format!("; {known} known already") } else { String::new() };
            say(&format!("imported the indexes of {new}{rest}"))
        }
    }
}

/// An import that has failed, with what was taken all the same.
fn not_imported(file: &Path, ImportError { imported, of, cause }: ImportError) -> Report {
    let Imported { new, known } = imported;
    let (all, taken) = match of {
        0 => ("", String::new()),
        of => {
            let left = of.saturating_sub(new.saturating_add(known));
            ("all of ", format!("; of its {of} indexes, {new} imported, {known} known already, {left} not taken"))
        }
    };
    let report = Report::from(*cause);
    Report { message: format!("cannot import {all}`{}`: {}{taken}", file.display(), report.message), ..report }
}

pub(super) fn profile(command: &ProfileCommand) -> Result<(), Report> {
    match command {
        ProfileCommand::Forget { image } => forget(image),
        ProfileCommand::Carry(command) => profile_file(command),
    }
}

/// Removes the runs of an image, as the cache knows it: no registry is asked.
fn forget(image: &ImageArgs) -> Result<(), Report> {
    let access = AccessArgs { offline: true, mirror: vec![MirrorArg::None], ..image.access.clone() };
    let image = specs::image(&ImageArgs { access, ..image.clone() })?;
    let runtime = process::runtime(process::Purpose::Reading)?;
    let opened = runtime.block_on(open::open_in_cache(&image, &open::shared_layers(&image.cache)?));
    let opened = opened.map_err(Report::from).map_err(|report| match report.code {
        Code::NotFound => report.hint("name it as it was mounted; a profile is of the image that its tag named then"),
        _ => report,
    })?;
    let forgotten = content::forget_profiles(&opened.store, &opened.plan.manifest.digest, &opened.plan.layers)?;
    match forgotten {
        0 => say(&format!("no run of {} has been recorded", opened.reference)),
        layers => say(&format!("forgot the profiles of {}", text::count(layers as u64, "layer"))),
    }
}

fn profile_file(command: &CarryCommand) -> Result<(), Report> {
    match command {
        CarryCommand::Export { image, file } => {
            let opened =
                process::runtime(process::Purpose::Reading)?.block_on(open::open_alone(&specs::image(image)?))?;
            let image = &opened.plan.manifest.digest;
            let known = Profiles::of(&opened.store, image, &opened.plan.layers);
            if known.layers.is_empty() {
                let message = format!("no run of {} has been recorded", opened.reference);
                return Err(Report::new(Code::NotFound, message)
                    .hint("mount it, run its program and unmount it: that records what was read"));
            }
            export(file, |out| Ok(out.write_all(&known.to_text())?))
        }
        CarryCommand::Import { file, quiet: _, cache } => {
            let store = open::store(&specs::cache(cache)?)?;
            let mut bytes = Vec::new();
            let read = open_file(file)?.take(Profiles::LIMIT).read_to_end(&mut bytes);
            read.map_err(|error| file_trouble("read", file, &error))?;
            let profiles = Profiles::parse(&bytes)
                .map_err(|why| Report::new(Code::Verification, format!("`{}` holds {why}", file.display())))?;
            let count = text::count(profiles.layers.len() as u64, "layer");
            for profile in profiles.layers {
                content::keep_profile(&store, profile)?;
            }
            say(&format!("imported the profiles of {count}"))
        }
    }
}

/// The layers of an image, each once.
fn layers(opened: &open::Opened) -> Vec<LayerRef> {
    let mut layers: Vec<LayerRef> = Vec::new();
    for layer in &opened.plan.layers {
        if !layers
            .iter()
            .any(|known| known.blob.digest == layer.blob.digest && known.stream_name() == layer.stream_name())
        {
            layers.push(layer.clone());
        }
    }
    layers
}

/// `-` means standard output or input.
fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Writes a file completely or not at all; a pipe or a device is written directly.
fn export(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<Box<dyn io::Write>>) -> Result<(), TransferError>,
) -> Result<(), Report> {
    let trouble = |error: TransferError| {
        let report = Report::from(error);
        Report { message: format!("cannot export to `{}`: {}", path.display(), report.message), ..report }
    };
    let whole = |out: Box<dyn io::Write>| {
        let mut out = BufWriter::new(out);
        write(&mut out).and_then(|()| Ok(out.flush()?))
    };
    if is_standard(path) {
        return match whole(Box::new(io::stdout())) {
            Err(TransferError::Io(error)) => text::output_ended(&error),
            done => done.map_err(trouble),
        };
    }
    let cannot_write = |error| file_trouble("write", path, &error);
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return whole(Box::new(File::create(path).map_err(cannot_write)?)).map_err(trouble);
    }
    // Keeps a symlink.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut beside = target.clone().into_os_string();
    beside.push(format!(".{}.part", std::process::id()));
    let beside = PathBuf::from(beside);
    let file = File::create_new(&beside).map_err(cannot_write)?;
    let done = whole(Box::new(file)).and_then(|()| Ok(std::fs::rename(&beside, &target)?));
    done.map_err(|error| {
        let _ = std::fs::remove_file(&beside);
        trouble(error)
    })
}

fn open_file(path: &Path) -> Result<Box<dyn io::Read>, Report> {
    if is_standard(path) {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path).map_err(|error| file_trouble("read", path, &error))?;
    Ok(Box::new(file))
}

fn file_trouble(doing: &str, path: &Path, error: &io::Error) -> Report {
    let code = if error.kind() == io::ErrorKind::NotFound { Code::NotFound } else { Code::Failure };
    Report::new(code, format!("cannot {doing} `{}`: {error}", path.display()))
}

fn say(line: &str) -> Result<(), Report> {
    writeln!(io::stdout(), "{line}").or_else(|error| text::output_ended(&error))
}
