//! Image layouts: `oci-layout`, `index.json` and `blobs/ALGORITHM/HEX` (image-spec, image-layout.md).
//!
//! Layouts come as directories and as tars, so both are read through [`Files`].
//!
//! `index.json` is not the image itself: it lists the images of the layout. A name selects the entry with that
//! `org.opencontainers.image.ref.name`, or with the name that containerd and BuildKit add. Without name or digest the
//! layout must hold one image, or only unnamed entries, which are then the platforms of one image.

use bytes::Bytes;

use super::local::{Blobs, LocalSource, Piece, listed, unusable};
use super::tree::Tree;
use super::{MANIFEST_LIMIT, SourceError};
use crate::descriptor::{Descriptor, MediaType};
use crate::digest::{Algorithm, Digest};
use crate::documents::{Document, Index, IndexEntry};
use crate::reference::{LocalName, Pick, RegistryName};

/// Opens a layout in a directory.
///
/// # Errors
/// [`SourceError`] if there is no layout, or it lacks the image that `local` names.
pub(super) fn open(name: String, local: &LocalName) -> Result<LocalSource, SourceError> {
    let reading = local.reading(|path| path.symlink_metadata().is_ok());
    let metadata = std::fs::metadata(&reading.path)
        .map_err(|cause| SourceError::Io { path: reading.path.display().to_string(), cause })?;
    if !metadata.is_dir() {
        return Err(SourceError::Unsupported {
            place: format!("`{}`", reading.path.display()),
            why: "an image layout is a directory".to_owned(),
            hint: Some(format!("for a tar of a layout write `oci-archive:{}`", reading.path.display())),
        });
    }
    open_files(name, &reading.pick, local.digest(), Tree::open(&reading.path)?)
}

/// Access to files by their name in a layout.
pub(super) trait Files: Send + Sync {
    /// The file, if there is one. May block on the disk.
    fn find(&self, name: &str) -> Result<Option<Piece>, SourceError>;

    /// The hint to give if this is not a layout.
    fn no_layout_hint(&self) -> Option<String>;
}

impl Files for Tree {
    fn find(&self, name: &str) -> Result<Option<Piece>, SourceError> {
        Self::find(self, name)
    }

    fn no_layout_hint(&self) -> Option<String> {
        let path = self.path();
        let here = |name: &str| path.join(name).symlink_metadata().is_ok();
        Some(match below(path) {
            _ if here("manifest.json") && here("version") => format!("try `dir:{}`", path.display()),
            _ if here("manifest.json") => {
                format!(
                    "if `docker save` wrote it, try `docker-archive:` with the tar that `{}` is from",
                    path.display()
                )
            }
            Some(below) => format!("try `oci:{}`", below.display()),
            None => format!(
                "a layout has `oci-layout`, `index.json` and `blobs`; `skopeo copy docker://NAME oci:{}:TAG` writes one",
                path.display()
            ),
        })
    }
}

/// The only layout in a directory of this one, if there is one.
fn below(path: &std::path::Path) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(path).ok()?.take(LOOKED_AT).flatten();
    let mut layouts = entries.map(|entry| entry.path()).filter(|path| path.join("oci-layout").is_file());
    layouts.next().filter(|_| layouts.next().is_none())
}

struct LayoutBlobs<F>(F);

impl<F: Files> Blobs for LayoutBlobs<F> {
    fn open(&self, blob: &Descriptor) -> Result<Option<Piece>, SourceError> {
        self.0.find(&blob_path(&blob.digest))
    }
}

/// Opens a layout stored in `files`.
pub(super) fn open_files(
    name: String,
    pick: &Pick,
    digest: Option<&Digest>,
    files: impl Files + 'static,
) -> Result<LocalSource, SourceError> {
    check_version(&name, &files)?;
    let Some(index) = files.find("index.json")? else {
        return Err(no_layout(&name, "it has no `index.json`", &files));
    };
    let bytes = index.read_whole(MANIFEST_LIMIT)?;
    let index = match Document::parse(&bytes, Some(&MediaType::OciIndex)) {
        Ok(Document::Index(index)) => index,
        Ok(Document::Manifest(_) | Document::Artifact(_)) => {
            unreachable!("a document declared as an index is read as one or refused")
        }
        Err(error) => return Err(unusable(&name, "`index.json`", &error)),
    };
    let (root, document) = match digest {
        Some(digest) => by_digest(&name, &index, digest, &files)?,
        None => match choose(&name, &index, pick)? {
            Chosen::Entry(entry) => described(entry),
            Chosen::Whole => (whole(&index, &bytes), Some(bytes)),
        },
    };
    Ok(LocalSource::new(name, root, document, LayoutBlobs(files)))
}

enum Chosen<'a> {
    Entry(&'a IndexEntry),
    /// The entries are the platforms of one image, and `index.json` is its image index.
    Whole,
}

fn choose<'a>(name: &str, index: &'a Index, pick: &Pick) -> Result<Chosen<'a>, SourceError> {
    let (what, found): (_, Vec<_>) = match pick {
        Pick::Named(wanted) => {
            (format!("image `{wanted}`"), index.entries.iter().filter(|entry| is_named(entry, wanted)).collect())
        }
        Pick::Only => {
            let images: Vec<_> = index.entries.iter().filter(|entry| entry.may_be_image()).collect();
            let artifacts = || index.entries.iter().filter(|entry| entry.may_be_artifact()).collect();
            ("an image".to_owned(), if images.is_empty() { artifacts() } else { images })
        }
        Pick::Position(at) => (format!("image @{at}"), index.entries.get(*at).into_iter().collect()),
    };
    let same = found.windows(2).all(|pair| pair[0].descriptor.digest == pair[1].descriptor.digest);
    match found.first() {
        Some(entry) if same => Ok(Chosen::Entry(entry)),
        Some(_) if *pick == Pick::Only && found.iter().all(|entry| names(entry).next().is_none()) => Ok(Chosen::Whole),
        Some(_) => {
            let digests: Vec<_> = found.iter().map(|entry| entry.descriptor.digest.to_string()).collect();
            let hint = match pick {
                Pick::Only => format!("add one of {} after `:`", listed(index.entries.iter().flat_map(names))),
                Pick::Named(_) | Pick::Position(_) => {
                    format!("add one of {} after `@`", listed(digests.iter().map(String::as_str)))
                }
            };
            let why = format!("it holds {} images that this could mean", found.len());
            Err(SourceError::Unsupported { place: name.to_owned(), why, hint: Some(hint) })
        }
        None => {
            let of = listed(index.entries.iter().flat_map(names));
            let said = if of.is_empty() { "no image in it has a name".to_owned() } else { format!("it has {of}") };
            Err(SourceError::NotFound { what, place: name.to_owned(), said: Some(said), hint: None })
        }
    }
}

fn names(entry: &IndexEntry) -> impl Iterator<Item = &str> {
    let annotations = &entry.descriptor.annotations;
    NAMES.iter().filter_map(|key| annotations.get(*key)).map(String::as_str).filter(|name| !name.is_empty())
}

/// Whether an entry carries this name, literally or as the same registry reference.
fn is_named(entry: &IndexEntry, wanted: &str) -> bool {
    let full = |name: &str| name.parse::<RegistryName>().ok();
    names(entry).any(|name| name == wanted)
        || names(entry).any(|name| name.contains('/') && full(name).is_some_and(|name| Some(name) == full(wanted)))
}

/// An entry's descriptor, and the document if it is inlined there.
fn described(entry: &IndexEntry) -> (Descriptor, Option<Bytes>) {
    (entry.descriptor.clone(), entry.descriptor.data.clone())
}

/// The document with this digest, listed in `index.json` or in a nested image index.
fn by_digest(
    name: &str,
    index: &Index,
    digest: &Digest,
    files: &impl Files,
) -> Result<(Descriptor, Option<Bytes>), SourceError> {
    if let Some(entry) = index.entries.iter().find(|entry| entry.descriptor.digest == *digest) {
        return Ok(described(entry));
    }
    let Some(piece) = files.find(&blob_path(digest))? else {
        return Err(SourceError::NotFound {
            what: format!("manifest {digest}"),
            place: name.to_owned(),
            said: None,
            hint: None,
        });
    };
    let bytes = piece.read_whole(MANIFEST_LIMIT)?;
    let document = Document::parse(&bytes, None).map_err(|error| unusable(name, &format!("blob {digest}"), &error))?;
    Ok((Descriptor::new(document.media_type().clone(), digest.clone(), piece.len()), None))
}

fn whole(index: &Index, bytes: &Bytes) -> Descriptor {
    Descriptor::new(index.media_type.clone(), Digest::of(Algorithm::Sha256, bytes), bytes.len() as u64)
}

fn check_version(name: &str, files: &impl Files) -> Result<(), SourceError> {
    #[derive(serde::Deserialize)]
    struct Layout {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    let Some(marker) = files.find("oci-layout")? else {
        return Err(no_layout(name, "it has no `oci-layout`", files));
    };
    let marker = marker.read_whole(MARKER_LIMIT)?;
    match serde_json::from_slice(&marker) {
        Ok(Layout { version }) if version.starts_with("1.") => Ok(()),
        Ok(Layout { version }) => {
            let version: String = version.chars().take(32).flat_map(char::escape_debug).collect();
            Err(no_layout(name, &format!("its layout version is `{version}`, not 1.0.0"), files))
        }
        Err(_) => Err(no_layout(name, "its `oci-layout` has no version", files)),
    }
}

fn no_layout(name: &str, why: &str, files: &impl Files) -> SourceError {
    SourceError::Unsupported {
        place: name.to_owned(),
        why: format!("{why}, so it is not an image layout"),
        hint: files.no_layout_hint(),
    }
}

/// A [`Digest`] is validated, so this path cannot leave the layout.
fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
const MARKER_LIMIT: u64 = 4096;
/// Entries of a directory in which a layout is looked for.
const LOOKED_AT: usize = 256;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::BlobSource;
    use super::super::local::made::{Layout, layers, open, told};

    #[tokio::test]
    async fn the_only_image_needs_no_name() {
        let mut layout = Layout::new();
        layout.image(b"layer", None);
        let source = open(&format!("oci:{}", layout.path().display())).await.unwrap();
        assert_eq!(layers(&source).await, [b"layer"]);
    }

    #[tokio::test]
    async fn names_and_digests_pick_among_several() {
        let mut layout = Layout::new();
        layout.image(b"one", Some("v1"));
        let two = layout.image(b"two", Some("docker.io/library/app:v2"));
        let at = layout.path().display();
        for (picked, expected) in [
            (":v1".to_owned(), b"one"),
            (":docker.io/library/app:v2".to_owned(), b"two"),
            (":app:v2".to_owned(), b"two"),
            (":@1".to_owned(), b"two"),
            (format!("@{two}"), b"two"),
            (format!(":v1@{two}"), b"two"),
        ] {
            let source = open(&format!("oci:{at}{picked}")).await.unwrap();
            assert_eq!(layers(&source).await, [expected], "{picked}");
        }
    }

    #[tokio::test]
    async fn a_digest_below_the_index_is_found() {
        let mut layout = Layout::new();
        let hidden = layout.image(b"hidden", None);
        let mut other = Layout::new();
        other.image(b"shown", None);
        std::fs::copy(other.path().join("index.json"), layout.path().join("index.json")).unwrap();
        let source = open(&format!("oci:{}@{hidden}", layout.path().display())).await.unwrap();
        assert_eq!(layers(&source).await, [b"hidden"]);
    }

    #[tokio::test]
    async fn unnamed_entries_are_the_platforms_of_one_image() {
        let mut layout = Layout::new();
        layout.image(b"one", None);
        layout.image(b"two", None);
        let source = open(&format!("oci:{}", layout.path().display())).await.unwrap();
        let (descriptor, bytes) = source.root().await.unwrap();
        assert!(descriptor.media_type.is_index());
        assert!(bytes.verify(&descriptor.digest, descriptor.size).is_ok());
    }

    #[tokio::test]
    async fn missing_images_are_reported_with_those_present() {
        let mut layout = Layout::new();
        layout.image(b"one", Some("v1"));
        layout.image(b"two", Some("v2"));
        layout.image(b"three", Some("v2"));
        let empty = tempfile::tempdir_in(layout.path()).unwrap();
        let at = layout.path().display();
        std::fs::write(empty.path().join("file"), "").unwrap();
        let absent = format!("@{}", crate::digest::Digest::of(crate::digest::Algorithm::Sha256, b""));
        let mut all = String::new();
        for name in [
            format!("oci:{at}"),
            format!("oci:{at}:v3"),
            format!("oci:{at}:v2"),
            format!("oci:{at}:@3"),
            format!("oci:{at}{absent}"),
            format!("oci:{at}/no"),
            format!("oci:{}", empty.path().display()),
            format!("oci:{}", empty.path().join("file").display()),
        ] {
            let error = open(&name).await.err().unwrap();
            let text =
                told(&error, layout.path()).replace(&empty.path().file_name().unwrap().display().to_string(), "EMPTY");
            all.push_str(&format!("{text}\n"));
        }
        insta::assert_snapshot!(all, @r#"
        oci:TMP cannot be used: it holds 3 images that this could mean | add one of `v1`, `v2` after `:`
        image `v3` not found in oci:TMP:v3 | it has `v1`, `v2`
        oci:TMP:v2 cannot be used: it holds 2 images that this could mean | add one of `sha256:2d6aea52b3993935baf3d11dc7785cbfc137652d3ac3ac91a09012a206d121ae`, `sha256:bf7e8bab99cbd3e4610f58e74a375d010af105c7e33d17b8ed9207217e0ee184` after `@`
        image @3 not found in oci:TMP:@3 | it has `v1`, `v2`
        manifest sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 not found in oci:TMP@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
        cannot read TMP/no: No such file or directory (os error 2)
        oci:TMP/EMPTY cannot be used: it has no `oci-layout`, so it is not an image layout | a layout has `oci-layout`, `index.json` and `blobs`; `skopeo copy docker://NAME oci:TMP/EMPTY:TAG` writes one
        `TMP/EMPTY/file` cannot be used: an image layout is a directory | for a tar of a layout write `oci-archive:TMP/EMPTY/file`
        "#);
    }

    #[tokio::test]
    async fn broken_layouts_are_refused() {
        let layout = Layout::new();
        let name = format!("oci:{}", layout.path().display());
        let mut all = String::new();
        for (file, content) in [
            ("index.json", "{"),
            ("index.json", r#"{"schemaVersion":2,"manifests":[]}"#),
            ("index.json", r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#),
            ("oci-layout", "{}"),
            ("oci-layout", r#"{"imageLayoutVersion":"2.0.0\u001b"}"#),
        ] {
            std::fs::write(layout.path().join(file), content).unwrap();
            let error = open(&name).await.err().unwrap();
            all.push_str(&format!("{}\n", told(&error, layout.path())));
        }
        insta::assert_snapshot!(all, @r#"
        oci:TMP cannot be used: `index.json`: the document is malformed: EOF while parsing an object at line 1 column 1
        an image not found in oci:TMP | no image in it has a name
        oci:TMP cannot be used: `index.json`: the document is ambiguous: it has both `manifests` and `layers`
        oci:TMP cannot be used: its `oci-layout` has no version, so it is not an image layout | a layout has `oci-layout`, `index.json` and `blobs`; `skopeo copy docker://NAME oci:TMP:TAG` writes one
        oci:TMP cannot be used: its layout version is `2.0.0\u{1b}`, not 1.0.0, so it is not an image layout | a layout has `oci-layout`, `index.json` and `blobs`; `skopeo copy docker://NAME oci:TMP:TAG` writes one
        "#);
    }
}
