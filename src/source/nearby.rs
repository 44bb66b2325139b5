//! Finds images in files on this machine that were named without a transport.
//!
//! As for podman and skopeo, `app` names an image on Docker Hub even if a directory `app` holds an image layout. A user
//! who meant the layout gets an error about a missing image, or another image; so this looks for such a file and yields
//! a hint.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::local::Piece;
use super::tarfile::TarFile;

/// An image in a file or directory whose path was typed as a registry reference.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nearby {
    /// The file or directory.
    path: String,
    /// What may follow it in a reference: `:` and a name, or nothing.
    pick: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Layout,
    Directory,
    OciArchive,
    DockerArchive,
    Compressed,
}

impl Nearby {
    /// The image at the path `typed`, with or without a name or tag after it.
    pub fn find(typed: &str) -> Option<Self> {
        let whole = Some((typed, ""));
        let tagged = typed.rfind(':').map(|at| typed.split_at(at));
        let found = |(path, pick): (&str, &str)| {
            let kind = kind(Path::new(path))?;
            Some(Self { path: path.to_owned(), pick: pick.to_owned(), kind })
        };
        whole.into_iter().chain(tagged).filter(|(path, _)| !path.is_empty()).find_map(found)
    }

    /// A hint with its kind and its full name.
    pub fn hint(&self) -> String {
        let Self { path, pick, kind } = self;
        match kind {
            Kind::Layout => format!("`{path}` here is an image layout: name it `oci:{path}{pick}`"),
            Kind::Directory => format!("`{path}` here is a directory with an image: name it `dir:{path}`"),
            Kind::OciArchive => format!("`{path}` here is an archive of an image: name it `oci-archive:{path}{pick}`"),
            Kind::DockerArchive => {
                format!("`{path}` here is an archive of an image: name it `docker-archive:{path}{pick}`")
            }
            Kind::Compressed => format!(
                "`{path}` here is a compressed file: an archive of an image is named `oci-archive:{path}{pick}` or `docker-archive:{path}{pick}`"
            ),
        }
    }
}

fn kind(path: &Path) -> Option<Kind> {
    let found = std::fs::metadata(path).ok()?;
    if found.is_dir() {
        let has = |name: &str| path.join(name).is_file();
        let kinds = [(has("oci-layout"), Kind::Layout), (has("manifest.json") && has("version"), Kind::Directory)];
        return kinds.into_iter().find_map(|(fits, kind)| fits.then_some(kind));
    }
    if !found.is_file() {
        return None;
    }
    let mut begin = Vec::new();
    File::open(path).ok()?.take(8).read_to_end(&mut begin).ok()?;
    if COMPRESSED.iter().any(|magic| begin.starts_with(magic)) {
        return Some(Kind::Compressed);
    }
    let shown = path.to_string_lossy();
    let tar = TarFile::read(Piece::of(File::open(path).ok()?, &shown).ok()?).ok()?;
    // `docker save` often writes both; image names are those of its `manifest.json`.
    let kinds = [(tar.has("manifest.json"), Kind::DockerArchive), (tar.has("oci-layout"), Kind::OciArchive)];
    kinds.into_iter().find_map(|(fits, kind)| fits.then_some(kind))
}

/// Magic bytes of gzip, zstd, xz and bzip2.
const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh"];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use super::*;

    /// A tar with empty files of these names.
    fn tar(path: &Path, names: &[&str]) {
        let mut tar = tar::Builder::new(File::create(path).unwrap());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, &[][..]).unwrap();
        }
        tar.finish().unwrap();
    }

    #[test]
    fn images_that_are_here_are_known_by_what_they_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf { dir.path().join(name) };
        for (directory, files) in
            [("layout", &["oci-layout"][..]), ("dir", &["manifest.json", "version"]), ("code", &["a"])]
        {
            std::fs::create_dir(path(directory)).unwrap();
            files.iter().for_each(|name| std::fs::write(path(directory).join(name), "").unwrap());
        }
        tar(&path("oci.tar"), &["blobs/sha256/aa", "oci-layout", "index.json"]);
        tar(&path("docker.tar"), &["manifest.json", "aa/layer.tar"]);
        tar(&path("both.tar"), &["oci-layout", "manifest.json"]);
        tar(&path("code.tar"), &["main.c"]);
        std::fs::write(path("some.tar.gz"), b"\x1f\x8b\x08\0").unwrap();
        std::fs::write(path("text"), "text").unwrap();
        let named = |typed: &str| Nearby::find(path(typed).to_str().unwrap()).map(|nearby| nearby.hint());
        for (typed, wanted) in [
            ("layout", "oci:@/layout`"),
            ("layout:v1", "oci:@/layout:v1`"),
            ("dir", "dir:@/dir`"),
            ("oci.tar:v1", "oci-archive:@/oci.tar:v1`"),
            ("docker.tar", "docker-archive:@/docker.tar`"),
            ("both.tar", "docker-archive:@/both.tar`"),
            ("some.tar.gz", "docker-archive:@/some.tar.gz`"),
        ] {
            let wanted = wanted.replace('@', dir.path().to_str().unwrap());
            assert!(named(typed).is_some_and(|hint| hint.ends_with(&wanted)), "{typed}: {:?}", named(typed));
        }
        for nothing in ["code", "code.tar", "text", "none", "none:v1", ""] {
            assert_eq!(named(nothing), None, "{nothing}");
        }
    }
}
