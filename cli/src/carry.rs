//! `peelfs index` and `peelfs profile`: export and import of indexes and profiles.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::args::CarryCommand;
use super::{specs, text};
use peelfs::content::{self, TransferError};
use peelfs::host::report::{Code, Report};
use peelfs::host::{open, process};
use peelfs::image::LayerRef;
use peelfs::predict::Profile;
use peelfs::store::LayerName;

pub(super) fn index(command: &CarryCommand) -> Result<(), Report> {
    match command {
        CarryCommand::Export { image, file } => {
            let opened =
                process::runtime(process::Purpose::Reading)?.block_on(open::open_alone(&specs::image(image)?))?;
            export(file, |out| content::export_indexes(&opened.store, &layers(&opened), out))
        }
        CarryCommand::Import { file, cache } => {
            let store = open::store(&specs::cache(cache)?)?;
            let by = if is_standard(file) {
                "standard input".to_owned()
            } else {
                open::absolute(file).display().to_string()
            };
            let mut indexes = BufReader::new(open_file(file)?);
            let imported = content::import_indexes(&store, &mut indexes, &by).map_err(|error| {
                let report = Report::from(error);
                Report { message: format!("cannot import `{}`: {}", file.display(), report.message), ..report }
            })?;
            let (new, known) = (text::count(imported.new.into(), "layer"), imported.known);
            let rest = if known > 0 { format!("; {known} known already") } else { String::new() };
            say(&format!("imported the indexes of {new}{rest}"))
        }
    }
}

pub(super) fn profile(command: &CarryCommand) -> Result<(), Report> {
    match command {
        CarryCommand::Export { image, file } => {
            let opened =
                process::runtime(process::Purpose::Reading)?.block_on(open::open_alone(&specs::image(image)?))?;
            let image = &opened.plan.manifest.digest;
            let mut known: Vec<Profile> = Vec::new();
            for layer in &opened.plan.layers {
                let layer = LayerName { blob: &layer.blob.digest, diff_id: &layer.stream_name() };
                let profile = content::load_profile(&opened.store, layer);
                let run = profile.as_ref().and_then(|profile| profile.of(image));
                let profile = run.map(|run| Profile::new(layer.blob, layer.diff_id, vec![run.clone()]));
                known.extend(profile.filter(|profile| !known.contains(profile)));
            }
            if known.is_empty() {
                let message = format!("no run of {} has been recorded", opened.reference);
                return Err(Report::new(Code::NotFound, message)
                    .hint("mount it, run its program and unmount it: that records what was read"));
            }
            let text =
                serde_json::to_vec(&Profiles { peelfs_profiles: VERSION, layers: known }).expect("digests and numbers");
            export(file, |out| Ok(out.write_all(&text)?))
        }
        CarryCommand::Import { file, cache } => {
            let store = open::store(&specs::cache(cache)?)?;
            let mut bytes = Vec::new();
            let read = open_file(file)?.take(PROFILES_LIMIT).read_to_end(&mut bytes);
            read.map_err(|error| file_trouble("read", file, &error))?;
            let refused = |why: String| Report::new(Code::Verification, format!("`{}` holds {why}", file.display()));
            let no_profiles = |error| refused(format!("no profiles of peelfs: {error}"));
            let Version { peelfs_profiles } = serde_json::from_slice(&bytes).map_err(no_profiles)?;
            if peelfs_profiles != VERSION {
                return Err(refused("profiles of another version".to_owned()));
            }
            let profiles: Profiles = serde_json::from_slice(&bytes).map_err(no_profiles)?;
            let count = text::count(profiles.layers.len() as u64, "layer");
            for profile in profiles.layers {
                content::keep_profile(&store, profile)?;
            }
            say(&format!("imported the profiles of {count}"))
        }
    }
}

/// The version field, which exported profiles of all versions have.
#[derive(Deserialize)]
struct Version {
    peelfs_profiles: u32,
}

/// A file of exported profiles.
#[derive(Deserialize, Serialize)]
struct Profiles {
    /// The version.
    peelfs_profiles: u32,
    layers: Vec<Profile>,
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

/// The version of exported profiles.
const VERSION: u32 = 2;
/// A bound in bytes; profiles are smaller.
const PROFILES_LIMIT: u64 = 64 << 20;
