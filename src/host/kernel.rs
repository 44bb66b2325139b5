//! Kernel mounts: the kernel mounts an image as EROFS, over the content files of its layers, without a process.
//!
//! All of the image must be cached and verified before, since the kernel verifies nothing. Seals beside the files
//! record what was verified, so mounting the image again reads none of it. The kernel holds the files: the cache may be
//! pruned, moved or deleted, and every process of peelfs may end.

use std::io;
use std::sync::Arc;

use rustix::mount::UnmountFlags;

use super::error::HostError;
use super::open::{self, Opened};
use super::spec::MountSpec;
use super::writable::{self, Overlay};
use super::{Progress, mount, mount_point, status};
use crate::content::{LayerRef, SealError};
use crate::digest::{Algorithm, Digest};
use crate::erofs::{self, AttachError, EncodeError, Files, Terms};
use crate::fuse::{self, MountError, Target, mounts};
use crate::image::{Eagerness, ImageFs, Prefetch, Verify};
use crate::overlay::LayerNo;
use crate::store::{LayerName, NewFile, Store};

/// Why the kernel cannot mount an image.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel would admit other users, which this mount must not.
    #[error("the kernel lets other users in where the image's files let them")]
    OpenToOthers,
    /// A single layer, with marks for overlayfs.
    #[error("one layer alone is served by a process")]
    OneLayer,
    /// Not all of it is cached.
    #[error("not all of the image is cached")]
    NotWhole,
    /// Its content cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// It cannot be written as EROFS.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The kernel refuses.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// The result of a kernel mount where FUSE is the alternative.
#[derive(Debug)]
pub enum Outcome {
    /// It is made.
    Mounted,
    /// It is not, and why.
    Not(KernelError),
}

/// Makes a kernel mount of an image, once all of it is cached and verified.
///
/// # Errors
/// [`HostError`]; nothing is mounted then.
pub fn mount(spec: &MountSpec, progress: &mut dyn Progress) -> Result<(), HostError> {
    let target = hold(spec)?;
    for again in [true, false] {
        match try_mount(spec, &target, Some(progress)) {
            // Damaged parts were removed; the next try fetches them.
            Err(HostError::Kernel(
                KernelError::Seal(SealError::Missing(_)) | KernelError::Encode(EncodeError::Missing(_)),
            )) if again => {}
            made => return made,
        }
    }
    Err(KernelError::NotWhole.into())
}

/// Makes a kernel mount of an image if all of it is cached.
///
/// # Errors
/// [`HostError`], if FUSE would fail as well.
pub fn mount_if_whole(spec: &MountSpec) -> Result<Outcome, HostError> {
    outcome(hold(spec).and_then(|target| try_mount(spec, &target, None)))
}

/// Makes a kernel mount of an opened image if all of it is cached. Must be called within a tokio runtime. There is no
/// record of a mount in a namespace of its own, which ends with that.
///
/// # Errors
/// [`HostError`], if FUSE would fail as well.
pub async fn mount_opened_if_whole(
    spec: &MountSpec,
    opened: &Opened,
    in_own_namespace: bool,
) -> Result<Outcome, HostError> {
    outcome(async { mount_opened(spec, &hold(spec)?, opened, None, !in_own_namespace).await }.await)
}

fn outcome(mounted: Result<(), HostError>) -> Result<Outcome, HostError> {
    match mounted {
        Ok(()) => Ok(Outcome::Mounted),
        Err(HostError::Kernel(why)) => Ok(Outcome::Not(why)),
        Err(error) => Err(error),
    }
}

/// Makes a kernel mount. Missing data is fetched if there is a `progress` to show it; otherwise missing data is an
/// error.
fn try_mount(spec: &MountSpec, target: &Target, fetching: Option<&mut dyn Progress>) -> Result<(), HostError> {
    mount::in_runtime(async {
        let opened = open::open(&spec.image, &open::shared_layers(&spec.image.cache)?).await?;
        mount_opened(spec, target, &opened, fetching, true).await
    })
}

async fn mount_opened(
    spec: &MountSpec,
    target: &Target,
    opened: &Opened,
    fetching: Option<&mut dyn Progress>,
    is_recorded: bool,
) -> Result<(), HostError> {
    let mut files = find(opened, fetching).await?;
    let made = match attach(spec, target, opened, &files) {
        Err(HostError::Kernel(KernelError::Attach(AttachError::Refused { .. }))) if drops_damaged_images(opened) => {
            files = find(opened, None).await?;
            attach(spec, target, opened, &files)
        }
        made => made,
    };
    let made = made?;
    if let Some(made) = made.filter(|_| is_recorded) {
        status::note_kernel_mount(&made, opened, &files);
    }
    Ok(())
}

/// Compares the EROFS images, which were verified before; returns whether one was damaged, and is gone.
fn drops_damaged_images(opened: &Opened) -> bool {
    let damaged = opened.store.check_kernel_images().map(|found| found.damaged).unwrap_or_default();
    for what in &damaged {
        tracing::warn!(what, "a file of the cache was damaged; it is made again");
    }
    !damaged.is_empty()
}

/// The files of an image, all of which is cached, or fetched if there is a `progress` to show it.
async fn find(opened: &Opened, fetching: Option<&mut dyn Progress>) -> Result<Files, HostError> {
    if let Some(files) = known(&opened.store, &opened.plan.layers) {
        return Ok(files);
    }
    // All of it has to be cached, as tars: a table of contents would save nothing.
    let fs = |eagerness| opened.files_of_tars(eagerness, Verify::BeforeShowing);
    let fs = match fetching {
        Some(progress) => {
            let fs = fs(Eagerness::Background);
            fetch_all(&fs, progress).await?;
            fs
        }
        None => {
            let fs = fs(Eagerness::OnDemand);
            if !is_whole(&fs) {
                return Err(KernelError::NotWhole.into());
            }
            fs
        }
    };
    files(opened, &fs).await
}

/// The directory to mount on. Problems with it are reported before anything is fetched.
fn hold(spec: &MountSpec) -> Result<Target, HostError> {
    erofs::is_possible().map_err(KernelError::from)?;
    if spec.image.layer.is_some() {
        return Err(KernelError::OneLayer.into());
    }
    if !spec.kernel.allow_other {
        return Err(KernelError::OpenToOthers.into());
    }
    mount_point::hold(spec, &spec.at)
}

/// Waits until all of the image is cached.
async fn fetch_all(fs: &Arc<ImageFs>, progress: &mut dyn Progress) -> Result<(), HostError> {
    {
        let all = fs.all_known();
        tokio::pin!(all);
        let mut ticks = tokio::time::interval(mount::TICK);
        loop {
            tokio::select! {
                known = &mut all => break known?,
                _ = ticks.tick() => {
                    let (total, done) = fs.progress();
                    progress.show(total, done);
                }
            }
        }
    }
    progress.end();
    if !is_whole(fs) {
        fs.prefetch(Prefetch::All).await;
    }
    if is_whole(fs) {
        return Ok(());
    }
    let failed = layers(fs).find_map(|number| fs.layer(number)?.last_error());
    Err(failed.map_or_else(|| KernelError::NotWhole.into(), |error| crate::image::FsError::from(error).into()))
}

fn layers(fs: &ImageFs) -> impl Iterator<Item = LayerNo> + use<> {
    (0..fs.layer_count()).map(LayerNo)
}

fn is_whole(fs: &ImageFs) -> bool {
    layers(fs).all(|number| fs.layer(number).is_some_and(|layer| layer.layer().is_whole()))
}

/// The files of an image that was mounted before, if they have not been written to since.
fn known(store: &Store, layers: &[LayerRef]) -> Option<Files> {
    let image = store.kernel_image(&chain(layers, |_, layer| layer.stream_name().to_string()))?;
    let found = |layer: &LayerRef| {
        let name = LayerName { blob: &layer.blob.digest, diff_id: &layer.stream_name() };
        store.verified_content_for_mount(name)
    };
    Some(Files { image, devices: devices(layers).into_iter().map(found).collect::<Option<_>>()? })
}

/// The files of a cached image: verifies the content, and writes the EROFS image if it is missing.
async fn files(opened: &Opened, fs: &Arc<ImageFs>) -> Result<Files, HostError> {
    // A layer is visible as soon as those below are indexed.
    fs.all_known().await?;
    let (store, fs, layers) = (Arc::clone(&opened.store), Arc::clone(fs), opened.plan.layers.clone());
    let made = tokio::task::spawn_blocking(move || {
        let chain = chain(&layers, |number, layer| stream(&fs, number, layer));
        let devices = seal(&fs, &layers)?;
        let image = match store.kernel_image(&chain) {
            Some(image) => image,
            None => make(&store, &chain, &fs)?,
        };
        Ok::<_, HostError>(Files { image, devices })
    });
    made.await.map_err(|error| HostError::system("make the image for the kernel")(io::Error::other(error)))?
}

/// The content files of the image's devices, verified.
fn seal(fs: &ImageFs, layers: &[LayerRef]) -> Result<Vec<std::fs::File>, KernelError> {
    let devices = devices(layers);
    let is_device = |layer: &LayerRef| devices.iter().any(|device| std::ptr::eq(*device, layer));
    let (mut files, mut damaged) = (Vec::new(), None);
    for (number, _) in self::layers(fs).zip(layers).filter(|(_, layer)| is_device(layer)) {
        match fs.layer(number).ok_or(EncodeError::Missing(number))?.layer().seal() {
            Ok(file) => files.push(file),
            // Verify the others as well, so that all damaged data is fetched again at once.
            Err(error @ SealError::Missing(_)) => damaged = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    damaged.map_or(Ok(files), |error| Err(error.into()))
}

/// Writes the EROFS image.
fn make(store: &Store, chain: &Digest, fs: &ImageFs) -> Result<std::fs::File, HostError> {
    let mut new = Output(store.new_kernel_image(chain)?);
    let encoded = erofs::encode(fs, &mut new).map_err(KernelError::from)?;
    let devices = encoded.devices.iter().filter_map(|number| Some(fs.layer(*number)?.index().stream_name().clone()));
    Ok(store.publish_kernel_image(new.0, &devices.collect::<Vec<_>>())?)
}

struct Output(NewFile);

impl erofs::Output for Output {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn finish(&mut self, size: u64) -> io::Result<()> {
        self.0.set_len(size).map_err(io::Error::other)
    }
}

/// Mounts the files, with an overlay if the mount can be written to; returns the mount.
fn attach(
    spec: &MountSpec,
    target: &Target,
    opened: &Opened,
    files: &Files,
) -> Result<Option<mounts::MountPoint>, HostError> {
    let kernel = spec.kernel;
    let terms = Terms {
        reference: spec.image.reference.to_string(),
        suid: kernel.suid,
        dev: kernel.dev,
        noexec: kernel.noexec,
    };
    // Until the overlay is in the table of mounts, which says that its directory is in use.
    let mut upper_lock = writable::take(spec.writable.as_ref(), &spec.at, &opened.plan.manifest.digest)?;
    // No other process mounts between the two checks of what is mounted there.
    let _claimed = fuse::claim(target);
    if let Some(taken) = mounts::at(target.path()).filter(mounts::MountPoint::is_peelfs) {
        let reference = taken.reference().to_owned();
        return Err(MountError::Taken { at: spec.at.clone(), reference }.into());
    }
    if !target.is_in_place() {
        return Err(MountError::Moved { at: spec.at.clone() }.into());
    }
    erofs::attach(target, files, &terms).map_err(KernelError::from)?;
    let made = mounts::at(target.path()).filter(mounts::MountPoint::is_shown_by_kernel);
    if spec.writable.is_some() {
        let source = spec.image.reference.to_string();
        let overlay = Overlay { upper: spec.writable.as_ref(), below: None, kernel, source: &source };
        if let Err(error) = writable::cover(target.path(), &overlay) {
            if let Err(errno) = rustix::mount::unmount(target.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                tracing::error!(%errno, at = %target.path().display(), "an image without its overlay stays mounted");
            }
            return Err(error.into());
        }
    }
    upper_lock.iter_mut().for_each(writable::UpperLock::keep);
    Ok(made)
}

/// One layer for each device of the image; a repeated layer counts once.
fn devices(layers: &[LayerRef]) -> Vec<&LayerRef> {
    let mut all: Vec<&LayerRef> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for layer in layers {
        if seen.insert((&layer.blob.digest, layer.stream_name())) {
            all.push(layer);
        }
    }
    all
}

/// The identity of an EROFS image: its layers, and the version of its form.
fn chain(layers: &[LayerRef], stream: impl Fn(LayerNo, &LayerRef) -> String) -> Digest {
    let mut text = String::from("3\n");
    for (number, layer) in (0..).map(LayerNo).zip(layers) {
        text.push_str(&format!("{} {}\n", layer.blob.digest, stream(number, layer)));
        // The names of a tar are in its stream.
        if let Some(file) = layer.file() {
            text.push_str(&format!("{file}\n"));
        }
    }
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

/// What the decoded stream of a layer is known by. An image over another stream of the same layer has other offsets, so
/// it must have another name; so must one that shows what another maker says of the layer: it is for mounts that trust that maker.
fn stream(fs: &ImageFs, number: LayerNo, layer: &LayerRef) -> String {
    let reader = fs.layer(number);
    let stream = match &reader {
        Some(reader) if reader.index().stream_name() != &reader.index().layer().diff_id => {
            reader.index().stream_name().clone()
        }
        _ => layer.stream_name().into_owned(),
    };
    match reader.as_ref().and_then(|reader| reader.index().proof().vouched_by()) {
        Some(by) => format!("{stream} by {by:?}"),
        None => stream.to_string(),
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::content::Payload;
    use crate::descriptor::{Compression, Descriptor, MediaType};

    #[test]
    fn images_over_different_streams_of_a_layer_have_two_names() {
        let of = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        let layer = |name: &str| LayerRef {
            blob: Descriptor::new(MediaType::OciManifest, of(name), 1),
            diff_id: Some(of("the tar")),
            payload: Payload::Tar(Compression::Gzip),
            soci: None,
        };
        let layers = [layer("a"), layer("b")];
        let over_tars = chain(&layers, |_, layer| layer.content().to_string());
        assert_eq!(chain(&layers, |_, _| of("the tar").to_string()), over_tars);
        for opened_by_table in [LayerNo(0), LayerNo(1)] {
            let stream = |number| of(if number == opened_by_table { "bodies alone" } else { "the tar" }).to_string();
            assert_ne!(chain(&layers, |number, _| stream(number)), over_tars);
        }
        let swapped = [layer("b"), layer("a")];
        assert_ne!(chain(&swapped, |_, layer| layer.content().to_string()), over_tars);
    }
}
