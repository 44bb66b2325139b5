//! The files that a server reads while its mount is there; see [`cover`](super::cover).

use std::path::Path;

use super::cover::Need;
use super::spec::{ImageSpec, MountSpec};
use super::status;
use crate::image::Network;
use crate::reference::{Place, Reference};
use crate::source::registry::RegistryOptions;

/// All that a mount needs, and those that are there beside it.
pub(super) fn of(spec: &MountSpec) -> Vec<Need> {
    let ImageSpec { reference, access, cache, .. } = &spec.image;
    let mut needs = of_cache(&cache.dir);
    needs.extend(spec.log.clone().map(Need::Log));
    // Where there is no directory for it, no mount tells of itself.
    let runtime = status::directory().ok();
    needs.extend(runtime.clone().map(Need::Runtime));
    needs.extend(of_source(reference));
    if matches!(reference.place(), Place::Registry(_)) && access.network == Network::Allowed {
        needs.extend(access.surroundings.login_files(access.authfile.as_deref()).into_iter().map(Need::Logins));
        let certs = RegistryOptions::new(access.surroundings.clone()).certs_dirs;
        needs.extend(access.ca.iter().cloned().chain(certs).map(Need::Certificates));
    }
    needs.extend(runtime.iter().flat_map(|runtime| of_other_mounts(runtime, &spec.at)));
    needs
}

/// The files that the image itself is in.
fn of_source(reference: &Reference) -> Vec<Need> {
    let exists = |path: &Path| path.exists();
    match reference.place() {
        Place::Registry(_) => Vec::new(),
        Place::Layout(name) => {
            let layout = name.reading(exists).path;
            // Each of these may be a symlink.
            let parts = ["index.json", "blobs", "blobs/sha256", "blobs/sha512"].map(|part| layout.join(part));
            let parts = parts.into_iter().filter(|part| exists(part));
            std::iter::once(layout.clone()).chain(parts).map(Need::Layout).collect()
        }
        Place::Directory(directory) => vec![Need::Layout(directory.clone())],
        Place::OciArchive(name) | Place::DockerArchive(name) => vec![Need::Archive(name.reading(exists).path)],
    }
}

/// The cache, and parts of it that are elsewhere.
fn of_cache(cache: &Path) -> Vec<Need> {
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    std::iter::once(cache.to_owned()).chain(links.map(|entry| entry.path())).map(Need::Cache).collect()
}

/// What the mounts that tell of themselves in `directory` need, except one at `at`.
fn of_other_mounts(directory: &Path, at: &Path) -> Vec<Need> {
    let mut needs = Vec::new();
    for state in status::all(directory).into_iter().filter(|state| state.at != at) {
        let source = state.reference.parse().map(|reference| of_source(&reference)).unwrap_or_default();
        let own = source.into_iter().chain([Need::Cache(state.cache)]).chain(state.log.map(Need::Log));
        needs.extend(own.map(|need| Need::OfMount(Box::new(need), state.at.clone())));
    }
    needs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::cover;
    use super::*;
    use crate::fuse::Target;

    #[test]
    fn a_directory_of_a_layout_without_blobs_may_be_mounted_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("a")).unwrap();
        std::fs::create_dir_all(path("b/blobs/sha256")).unwrap();
        std::fs::create_dir_all(path("b/mnt")).unwrap();
        let reference: Reference = format!("oci:{}:1", path("b").display()).parse().unwrap();
        let refused = |at: &str| {
            let at = path(at);
            cover::check(&Target::open(&at).unwrap(), &at, &of_source(&reference)).is_err()
        };
        assert!(!refused("b/mnt") && !refused("a"));
        assert!(refused("b") && refused("b/blobs") && refused("b/blobs/sha256") && refused("."));
    }
}
