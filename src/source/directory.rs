//! Directories that `skopeo copy … dir:DIR` writes: `manifest.json`, and blobs named by the hex of their digests.
//!
//! A blob's file is called `HEX` for sha256 and `ALGORITHM-HEX` for others; the manifests that an image
//! index lists are called `HEX.manifest.json` (containers-transports(5); `directory` in containers/image).

use std::path::Path;

use super::local::{Blobs, LocalSource, Piece};
use super::tree::Tree;
use super::{MANIFEST_LIMIT, SourceError};
use crate::descriptor::{Descriptor, MediaType};
use crate::digest::{Algorithm, Digest};
use crate::documents::Document;

/// Opens such a directory.
///
/// # Errors
/// [`SourceError`] if there is no `manifest.json` in it.
pub(super) fn open(name: String, path: &Path) -> Result<LocalSource, SourceError> {
    let tree = Tree::open(path)?;
    let Some(manifest) = tree.find("manifest.json")? else {
        let layout = path.join("oci-layout").symlink_metadata().is_ok();
        return Err(SourceError::Unsupported {
            place: name,
            why: "it has no `manifest.json`".to_owned(),
            hint: layout.then(|| format!("it is an image layout: write `oci:{}`", path.display())),
        });
    };
    let bytes = manifest.read_whole(MANIFEST_LIMIT)?;
    // A document that does not parse is refused, with the reason, when it is read next.
    let media_type = match Document::parse(&bytes, None) {
        Ok(document) => document.media_type().clone(),
        Err(_) => MediaType::parse("application/json"),
    };
    let root = Descriptor::new(media_type, Digest::of(Algorithm::Sha256, &bytes), bytes.len() as u64);
    Ok(LocalSource::new(name, root, Some(bytes), Directory(tree)))
}

struct Directory(Tree);

impl Blobs for Directory {
    fn open(&self, blob: &Descriptor) -> Result<Option<Piece>, SourceError> {
        let stem = match blob.digest.algorithm() {
            Algorithm::Sha256 => blob.digest.hex().to_owned(),
            other => format!("{}-{}", other.name(), blob.digest.hex()),
        };
        let listed = format!("{stem}.manifest.json");
        if (blob.media_type.is_manifest() || blob.media_type.is_index())
            && let Some(piece) = self.0.find(&listed)?
        {
            return Ok(Some(piece));
        }
        self.0.find(&stem)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::super::BlobSource;
    use super::super::local::made::{Layout, layers, open, told};
    use crate::descriptor::Descriptor;

    #[tokio::test]
    async fn blobs_lie_beside_the_manifest() {
        let mut layout = Layout::new();
        let digest = layout.image(b"layer", None);
        let dir = tempfile::tempdir().unwrap();
        for blob in fs::read_dir(layout.path().join("blobs/sha256")).unwrap() {
            let blob = blob.unwrap();
            fs::copy(blob.path(), dir.path().join(blob.file_name())).unwrap();
        }
        fs::rename(dir.path().join(digest.hex()), dir.path().join("manifest.json")).unwrap();
        let source = open(&format!("dir:{}", dir.path().display())).await.unwrap();
        assert_eq!(layers(&source).await, [b"layer"]);
    }

    #[tokio::test]
    async fn manifests_of_an_index_have_names_of_their_own() {
        let mut layout = Layout::new();
        let digest = layout.image(b"layer", None);
        let dir = tempfile::tempdir().unwrap();
        let listed = layout.blob_path(&digest);
        fs::copy(&listed, dir.path().join(format!("{}.manifest.json", digest.hex()))).unwrap();
        fs::copy(layout.path().join("index.json"), dir.path().join("manifest.json")).unwrap();
        let source = open(&format!("dir:{}", dir.path().display())).await.unwrap();
        let root = source.head().await.unwrap();
        assert!(root.media_type.is_index());
        let size = fs::metadata(&listed).unwrap().len();
        let media_type = crate::descriptor::MediaType::OciManifest;
        let read = source.manifest(&Descriptor::new(media_type, digest.clone(), size)).await.unwrap();
        assert!(read.verify(&digest, size).is_ok());
    }

    #[tokio::test]
    async fn another_kind_of_directory_is_named() {
        let layout = Layout::new();
        let error = open(&format!("dir:{}", layout.path().display())).await.err().unwrap();
        assert_eq!(
            told(&error, layout.path()),
            "dir:TMP cannot be used: it has no `manifest.json` | it is an image layout: write `oci:TMP`"
        );
        assert!(open("dir:/nonexistent").await.is_err());
    }
}
