//! `peelfs index` and `peelfs profile`: what one cache knows, carried to another.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::args::CarryCommand;
use super::report::{Code, Report};
use super::{mount, open, text};
use crate::content::{self, Profile};
use crate::digest::Digest;

pub(super) fn index(command: &CarryCommand) -> Result<(), Report> {
    match command {
        CarryCommand::Export { image, file } => {
            let opened = mount::runtime()?.block_on(open::open(image))?;
            let mut out = BufWriter::new(create(file)?);
            let written =
                content::export_indexes(&opened.store, &layers(&opened), &mut out).and_then(|()| Ok(out.flush()?));
            written.map_err(|error| {
                // Half a file is none.
                if !is_standard(file) {
                    let _ = std::fs::remove_file(file);
                }
                let report = Report::from(error);
                Report { message: format!("cannot export to `{}`: {}", file.display(), report.message), ..report }
            })
        }
        CarryCommand::Import { file, cache } => {
            let store = open::store(cache)?;
            let imported = content::import_indexes(&store, &mut BufReader::new(open_file(file)?)).map_err(|error| {
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
            let opened = mount::runtime()?.block_on(open::open(image))?;
            let known: Vec<Profile> =
                layers(&opened).iter().filter_map(|layer| Profile::load(&opened.store, layer)).collect();
            if known.is_empty() {
                let message = format!("no run of {} has been recorded", opened.reference);
                return Err(Report::new(Code::NotFound, message)
                    .hint("mount it, run what it is for, and unmount it; that records what was read"));
            }
            let text =
                serde_json::to_vec(&Profiles { peelfs_profiles: 1, layers: known }).expect("digests and numbers");
            create(file)?.write_all(&text).map_err(|error| file_trouble("write", file, &error))
        }
        CarryCommand::Import { file, cache } => {
            let store = open::store(cache)?;
            let mut bytes = Vec::new();
            let read = open_file(file)?.take(PROFILES_LIMIT).read_to_end(&mut bytes);
            read.map_err(|error| file_trouble("read", file, &error))?;
            let profiles: Profiles = serde_json::from_slice(&bytes).map_err(|error| {
                Report::new(Code::Verification, format!("`{}` holds no profiles of peelfs: {error}", file.display()))
            })?;
            if profiles.peelfs_profiles != 1 {
                let message = format!("`{}` holds profiles of another version", file.display());
                return Err(Report::new(Code::Verification, message));
            }
            let count = text::count(profiles.layers.len() as u64, "layer");
            for profile in profiles.layers {
                profile.in_order().keep(&store)?;
            }
            say(&format!("imported the profiles of {count}"))
        }
    }
}

/// A file of exported profiles.
#[derive(Deserialize, Serialize)]
struct Profiles {
    /// The version.
    peelfs_profiles: u32,
    layers: Vec<Profile>,
}

/// The layers of an image, each once.
fn layers(opened: &open::Opened) -> Vec<Digest> {
    let mut layers = Vec::new();
    for layer in &opened.plan.layers {
        if !layers.contains(&layer.blob.digest) {
            layers.push(layer.blob.digest.clone());
        }
    }
    layers
}

/// `-` is standard output or input, as everywhere.
fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn create(path: &Path) -> Result<Box<dyn io::Write>, Report> {
    if is_standard(path) {
        return Ok(Box::new(io::stdout()));
    }
    let file = File::create(path).map_err(|error| file_trouble("write", path, &error))?;
    Ok(Box::new(file))
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

/// Larger than the profiles of any image, in bytes.
const PROFILES_LIMIT: u64 = 64 << 20;
