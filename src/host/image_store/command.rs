//! Commands on the images of a store.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::records::{Listed, Record, Records};
use super::server::Notice;
use super::{ImageStoreError, StoreSpec, records_of};
use crate::fuse::{Target, mounts};
use crate::host::channel::{Channel, ChannelError};
use crate::host::cover::{self, Need};
use crate::host::error::HostError;
use crate::host::process::{self, Purpose};
use crate::host::spec::ImageSpec;
use crate::host::{Progress, background, keeper, mount_point, open};
use crate::image::View;
use crate::image_store::{Stored, empty};
use crate::reference::{Place, Reference};

/// Serves the store until it is unmounted or a signal comes: by another process, which is replaced when it dies.
///
/// # Errors
/// [`HostError`]
pub fn serve(spec: &StoreSpec, mut progress: Box<dyn Progress>) -> Result<(), HostError> {
    if !spec.at.exists() && mounts::peelfs_at(&spec.at).is_none() {
        std::fs::create_dir_all(&spec.at).map_err(ImageStoreError::file(&spec.at))?;
    }
    // Records are made only beside what can be a store.
    if mounts::peelfs_at(&spec.at).is_none() {
        let at = mount_point::find(&spec.at, progress.as_mut())?;
        if empty::is_foreign(&at).map_err(ImageStoreError::file(&at))? {
            return Err(ImageStoreError::Foreign { at }.into());
        }
    }
    let records = Records::open(&spec.at)?;
    // Held until the end.
    let _serving = records.serve().map_err(|error| match error {
        ImageStoreError::Served { at } if mounts::peelfs_at(&at).is_none() => ImageStoreError::InUse { at },
        error => error,
    })?;
    let at = mount_point::find(&spec.at, progress.as_mut())?;
    if empty::is_foreign(&at).map_err(ImageStoreError::file(&at))? {
        return Err(ImageStoreError::Foreign { at }.into());
    }
    empty::make(&at).map_err(ImageStoreError::file(&at))?;
    cover::check(&Target::open(&at)?, &spec.at, &[Need::Cache(spec.cache.dir.clone())])?;
    keeper::keep_in_foreground(spec.clone().into(), progress)
}

/// The result of adding an image.
#[derive(Debug)]
pub struct Added {
    /// The image.
    pub image: Listed,
    /// Whether the store is being served, so that engines see the image now.
    pub served: bool,
    /// Names that other images had before.
    pub moved: Vec<String>,
}

/// Adds an image to the store `at`, under these names or its own. Returns when engines see it; with `wait`, when all of
/// its layers are verified.
///
/// # Errors
/// [`HostError`]; the store is unchanged then.
pub fn add(
    at: &Path,
    image: &ImageSpec,
    names: &[String],
    wait: bool,
    progress: &mut dyn Progress,
) -> Result<Added, HostError> {
    let names = match names {
        [] => vec![own_name(&image.reference)],
        names => names.iter().map(|name| full_name(name)).collect::<Result<_, _>>()?,
    };
    let runtime = process::runtime(Purpose::Starting)?;
    let image = &ImageSpec { view: View::Image, ..image.clone() };
    let opened = runtime.block_on(open::open_alone(image))?;
    runtime.shutdown_background();
    Stored::new(&opened.plan, Vec::new(), "").ok_or(ImageStoreError::Documents)?;
    let mut record = Record::new(image, &opened.plan, names);
    drop(opened.plan);

    let records = Records::open(at)?;
    let locked = records.lock()?;
    let before = records.all()?;
    let (mut changed, mut moved) = (Vec::new(), Vec::new());
    for (hex, other) in &before {
        if hex == record.config.hex() {
            let known = other.names.iter().filter(|name| !record.names.contains(name)).cloned().collect::<Vec<_>>();
            record.names.extend(known);
            record.added.clone_from(&other.added);
            continue;
        }
        let (gone, left): (Vec<_>, Vec<_>) = other.names.iter().cloned().partition(|name| record.names.contains(name));
        if !gone.is_empty() {
            moved.extend(gone);
            changed.push(other.named(left));
        }
    }
    let hex = record.config.hex().to_owned();
    let write_all = || -> Result<(), ImageStoreError> {
        records.write(&record)?;
        for other in &changed {
            match other.names.is_empty() {
                true => records.remove(other.config.hex())?,
                false => records.write(other)?,
            }
        }
        Ok(())
    };
    let told = write_all()
        .map_err(HostError::from)
        .and_then(|()| tell(&records, &Notice::Changed { added: Some(hex.clone()), wait }, progress));
    let served = match told {
        Ok(served) => served,
        Err(error) => {
            // What went wrong first is the reason, whatever goes wrong after it.
            if let Err(error) = restore(&records, &before, &hex) {
                tracing::error!(error = crate::image::chain(&error), "the records of the store are not as before");
            }
            let _ = tell(&records, &Notice::Changed { added: None, wait: false }, progress);
            return Err(error);
        }
    };
    drop(locked);
    Ok(Added { image: record.listed(), served, moved })
}

/// Restores the records.
fn restore(records: &Records, before: &BTreeMap<String, Record>, added: &str) -> Result<(), ImageStoreError> {
    if !before.contains_key(added) {
        // It may not have been written.
        match records.remove(added) {
            Err(ImageStoreError::File { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    before.values().try_for_each(|record| records.write(record))
}

/// Removes a name from an image of the store `at`, and with its last name the image; or the image, by its id.
///
/// # Errors
/// [`HostError`]
pub fn remove(at: &Path, names: &[String], progress: &mut dyn Progress) -> Result<Vec<Listed>, HostError> {
    let records = Records::open(at)?;
    let _locked = records.lock()?;
    let mut removed = Vec::new();
    // All or none.
    let mut all = records.all()?;
    let mut changed = std::collections::BTreeSet::new();
    for name in names {
        let (hex, by_name) = find(at, &all, name)?;
        let record = all.get_mut(&hex).expect("it was found");
        match by_name {
            Some(name) if record.names.len() > 1 => {
                record.names.retain(|own| *own != name);
            }
            _ => record.names.clear(),
        }
        changed.insert(hex);
    }
    for hex in changed {
        let record = &all[&hex];
        match record.names.is_empty() {
            true => records.remove(&hex)?,
            false => records.write(record)?,
        }
        removed.push(record.listed());
    }
    tell(&records, &Notice::Changed { added: None, wait: false }, progress)?;
    Ok(removed)
}

/// The image, and the name if it was found by one.
fn find(at: &Path, all: &BTreeMap<String, Record>, typed: &str) -> Result<(String, Option<String>), ImageStoreError> {
    let full = full_name(typed).ok();
    let candidates = [Some(typed.to_owned()), full, Some(format!("localhost/{typed}"))];
    for name in candidates.into_iter().flatten() {
        if let Some((hex, _)) = all.iter().find(|(_, record)| record.names.contains(&name)) {
            return Ok((hex.clone(), Some(name)));
        }
    }
    let id = typed.strip_prefix("sha256:").unwrap_or(typed);
    let mut by_id = all.keys().filter(|hex| id.len() >= SHORTEST_ID && hex.starts_with(id));
    match (by_id.next(), by_id.next()) {
        (Some(hex), None) => Ok((hex.clone(), None)),
        (Some(_), Some(_)) => Err(ImageStoreError::Ambiguous { at: at.to_owned(), name: typed.to_owned() }),
        (None, _) => Err(ImageStoreError::NoImage { at: at.to_owned(), name: typed.to_owned() }),
    }
}

/// The images of the store `at`.
///
/// # Errors
/// [`HostError`]
pub fn list(at: &Path) -> Result<Vec<Listed>, HostError> {
    // Do not create a store.
    if !records_of(at).is_dir() {
        return Ok(Vec::new());
    }
    Ok(Records::open(at)?.all()?.values().map(Record::listed).collect())
}

/// Notifies the serving process of changed records; `false` if there is none. If it dies, the next one reads them when it
/// takes over.
fn tell(records: &Records, what: &Notice, progress: &mut dyn Progress) -> Result<bool, HostError> {
    let failed = |cause| HostError::Channel { peer: "process that serves the store", cause };
    let begun = Instant::now();
    loop {
        let told = match Channel::connect(&records.socket()) {
            Ok(channel) => ask(&channel, what, progress),
            Err(_) => Err(ChannelError::Gone),
        };
        match told {
            Ok(outcome) => return outcome.map(|()| true),
            Err(ChannelError::Gone) if !records.is_served() => return Ok(false),
            Err(ChannelError::Gone) if begun.elapsed() < ANSWERS_WITHIN => std::thread::sleep(LOOK),
            Err(cause) => return Err(failed(cause)),
        }
    }
}

fn ask(channel: &Channel, what: &Notice, progress: &mut dyn Progress) -> Result<Result<(), HostError>, ChannelError> {
    channel.set_timeout(ANSWERS_WITHIN)?;
    channel.offer()?;
    channel.send(what, None)?;
    background::outcome(channel, progress)
}

/// The default name of an image.
fn own_name(reference: &Reference) -> String {
    if let Place::Registry(name) = reference.place() {
        let repository = format!("{}/{}", name.authority(), name.repository());
        return match (name.tag(), name.digest()) {
            (_, Some(digest)) => format!("{repository}@{digest}"),
            (tag, None) => format!("{repository}:{}", tag.unwrap_or("latest")),
        };
    }
    // `oci:/path/to/app:1.0` is `localhost/app:1.0`.
    let typed = reference.to_string();
    let path = typed.split_once(':').map_or(typed.as_str(), |(_, path)| path);
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    let (name, tag) = last.split_once(':').unwrap_or((last, "latest"));
    let fit = |text: &str, keep: fn(char) -> bool| -> String {
        let text: String = text.chars().map(|char| if keep(char) { char } else { '-' }).collect();
        text.trim_matches(|char: char| !char.is_ascii_alphanumeric()).to_owned()
    };
    let name = name.trim_end_matches(".tar").to_ascii_lowercase();
    let name = fit(&name, |char| char.is_ascii_lowercase() || char.is_ascii_digit());
    let tag = fit(tag.rsplit(':').next().unwrap_or(tag), |char| char.is_ascii_alphanumeric() || "._-".contains(char));
    let (name, tag) = (if name.is_empty() { "image" } else { &name }, if tag.is_empty() { "latest" } else { &tag });
    full_name(&format!("localhost/{name}:{tag}")).unwrap_or_else(|_| "localhost/image:latest".to_owned())
}

/// A full name, as engines use it.
fn full_name(typed: &str) -> Result<String, ImageStoreError> {
    let wrong = || ImageStoreError::Name { name: typed.to_owned() };
    let reference: Reference = typed.parse().map_err(|_| wrong())?;
    match reference.place() {
        Place::Registry(name) if name.digest().is_none() => Ok(own_name(&reference)),
        _ => Err(wrong()),
    }
}

/// Digits of the shortest prefix of an id.
const SHORTEST_ID: usize = 4;
/// Time limit for an answer of the serving process.
const ANSWERS_WITHIN: Duration = Duration::from_secs(120);
/// How soon a process that takes over is looked for again.
const LOOK: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_image_is_named_as_engines_name_it() {
        for (reference, name) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("docker://quay.io/a/b:1", "quay.io/a/b:1"),
            ("127.0.0.1:5000/app:v2", "127.0.0.1:5000/app:v2"),
            ("oci:/var/My Layout:1.0", "localhost/my-layout:1.0"),
            ("oci:/var/layout", "localhost/layout:latest"),
            ("oci:/var/layout/", "localhost/layout:latest"),
            ("docker-archive:/tmp/app.tar", "localhost/app:latest"),
        ] {
            assert_eq!(own_name(&reference.parse().unwrap()), name, "{reference}");
        }
    }

    #[test]
    fn names_that_no_engine_takes_are_refused() {
        assert_eq!(full_name("app").unwrap(), "docker.io/library/app:latest");
        for wrong in ["oci:/tmp/layout", "UPPER/case", "", "a b"] {
            assert!(full_name(wrong).is_err(), "{wrong}");
        }
    }
}
