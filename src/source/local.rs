//! Local sources: images in files on this machine, read in place.
//!
//! Layouts, archives, directories and the stores of engines differ only in how a digest maps to a piece of a file, or to a
//! tar that is rebuilt. That mapping is `Blobs`; everything that reads is shared here.
//!
//! A path may be a FIFO or a device, which would block or worse. So files are opened without blocking and only regular
//! files are read; a pipe that the user named is spooled. A file shorter than its descriptor says, or truncated while
//! it is read, yields an error.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::docker::{self, DockerAt};
use super::rebuilt::{InOrder, RebuiltTar};
use super::spool::Spool;
use super::storage::Around;
use super::{
    BlobSource, BoxFuture, ByteStream, MANIFEST_LIMIT, Rebuilt, SourceError, archive, blob_name, directory, layout,
    storage,
};
use crate::descriptor::{Descriptor, MediaType};
use crate::digest::Digest;
use crate::documents::DocumentError;
use crate::offsets::BlobOffset;
use crate::reference::{Place, Reference};
use crate::trust::Untrusted;

/// An image in files on this machine.
pub struct LocalSource {
    name: String,
    root: Descriptor,
    root_document: Option<Bytes>,
    blobs: Arc<dyn Blobs>,
    rebuilt: Option<Rebuilt>,
}

impl LocalSource {
    /// Opens the image of `reference`; `None` if it names a registry. `spool` receives images that cannot be read in
    /// place.
    ///
    /// # Errors
    /// [`SourceError`] if it does not exist, or does not match its transport.
    pub async fn open(reference: &Reference, spool: &Spool) -> Option<Result<Self, SourceError>> {
        if let Place::Registry(_) = reference.place() {
            return None;
        }
        if let Place::DockerDaemon(wanted) = reference.place() {
            let found = docker::find(wanted, &DockerAt::of_process(), spool).await;
            let (name, spool) = (reference.to_string(), spool.clone());
            return Some(match found {
                Ok(found) => blocking(move || found.into_source(name, &spool)).await,
                Err(error) => Err(error),
            });
        }
        let (reference, spool) = (reference.clone(), spool.clone());
        let open = move || {
            let name = reference.to_string();
            match reference.place() {
                Place::Registry(_) | Place::DockerDaemon(_) => unreachable!("these were sorted out above"),
                Place::Layout(local) => layout::open(name, local),
                Place::OciArchive(local) => archive::open_oci(name, local, &spool),
                Place::DockerArchive(local) => archive::open_docker(name, local, &spool),
                Place::Directory(path) => directory::open(name, path),
                Place::ContainersStorage(wanted) => storage::open(name, wanted, &Around::of_process(), &spool),
            }
        };
        Some(blocking(open).await)
    }

    /// The directories in which an engine's image is looked for.
    pub fn storages(reference: &Reference) -> Vec<PathBuf> {
        match reference.place() {
            Place::ContainersStorage(wanted) => Around::of_process().directories(wanted.store.as_ref()),
            Place::DockerDaemon(_) => DockerAt::of_process().directories(),
            _ => Vec::new(),
        }
    }

    /// What the Docker daemon sends, if `reference` names an image of Docker that cannot be read in place: such an image is
    /// sent only once.
    ///
    /// # Errors
    /// [`SourceError`] if Docker does not have the image.
    pub async fn sent(reference: &Reference, spool: &Spool) -> Result<Option<File>, SourceError> {
        let Place::DockerDaemon(wanted) = reference.place() else { return Ok(None) };
        match docker::find(wanted, &DockerAt::of_process(), spool).await? {
            docker::Found::Unpacked(_) => Ok(None),
            docker::Found::Sent(piece) => Ok(piece.into_file()),
        }
    }

    /// An image whose root document is `root`: `document`, or else a blob.
    pub(super) fn new(name: String, root: Descriptor, document: Option<Bytes>, blobs: impl Blobs + 'static) -> Self {
        Self { name, root, root_document: document, blobs: Arc::new(blobs), rebuilt: None }
    }

    /// The same, where layers are rebuilt.
    pub(super) fn rebuilt(self, of: Rebuilt) -> Self {
        Self { rebuilt: Some(of), ..self }
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Untrusted<Bytes>, SourceError> {
        if let Some(document) = self.root_document.as_ref().filter(|_| self.root.digest == descriptor.digest) {
            return Ok(Untrusted::new(document.clone()));
        }
        let what = blob_name(&descriptor.digest);
        if descriptor.size > MANIFEST_LIMIT {
            let why =
                format!("a manifest of {} bytes is larger than the {MANIFEST_LIMIT} that are read", descriptor.size);
            return Err(SourceError::Protocol { what, place: self.name.clone(), why });
        }
        let piece = self.piece(descriptor).await?;
        blocking(move || piece.read_whole(MANIFEST_LIMIT)).await.map(Untrusted::new)
    }

    async fn piece_of_any_size(&self, blob: &Descriptor) -> Result<Piece, SourceError> {
        let (blobs, wanted) = (Arc::clone(&self.blobs), blob.clone());
        let piece = blocking(move || blobs.open(&wanted)).await?;
        piece.ok_or_else(|| SourceError::NotFound {
            what: blob_name(&blob.digest),
            place: self.name.clone(),
            said: None,
            hint: None,
        })
    }

    /// The piece of a file that holds this blob, if its size matches.
    async fn piece(&self, blob: &Descriptor) -> Result<Piece, SourceError> {
        let piece = self.piece_of_any_size(blob).await?;
        if piece.len != blob.size {
            let (what, place) = (blob_name(&blob.digest), self.name.clone());
            return Err(SourceError::WrongSize { what, place, expected: blob.size, actual: piece.len });
        }
        Ok(piece)
    }
}

impl BlobSource for LocalSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn rebuilt_from(&self) -> Option<&Rebuilt> {
        self.rebuilt.as_ref()
    }

    fn head(&self) -> BoxFuture<'_, Result<Descriptor, SourceError>> {
        Box::pin(async { Ok(self.root.clone()) })
    }

    fn root(&self) -> BoxFuture<'_, Result<(Descriptor, Untrusted<Bytes>), SourceError>> {
        Box::pin(async { Ok((self.root.clone(), self.document(&self.root).await?)) })
    }

    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        Box::pin(self.document(descriptor))
    }

    fn manifest_by_digest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        Box::pin(async move {
            let piece = self.piece_of_any_size(&Descriptor::new(MediaType::OciManifest, digest.clone(), 0)).await?;
            blocking(move || piece.read_whole(MANIFEST_LIMIT)).await.map(Untrusted::new)
        })
    }

    fn explain<'a>(&'a self, blob: &'a Descriptor, range: Range<BlobOffset>) -> BoxFuture<'a, Option<SourceError>> {
        Box::pin(async move {
            let piece = self.piece(blob).await.ok()?;
            blocking(move || Ok(piece.changed(range))).await.ok()?
        })
    }

    fn stream<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(async move {
            if range.start > range.end || range.end.0 > blob.size {
                let why = format!("bytes {} to {} are not within its {} bytes", range.start, range.end, blob.size);
                return Err(SourceError::Protocol { what: blob_name(&blob.digest), place: self.name.clone(), why });
            }
            Ok(self.piece(blob).await?.stream(range))
        })
    }
}

/// Maps a descriptor to a piece of a file.
pub(super) trait Blobs: Send + Sync {
    /// The piece that should hold this blob, if there is one. May block on the disk.
    fn open(&self, blob: &Descriptor) -> Result<Option<Piece>, SourceError>;
}

/// A regular file or a part of one; or a tar that is rebuilt.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    bytes: Stored,
    path: Arc<str>,
    start: u64,
    len: u64,
}

#[derive(Clone, Debug)]
enum Stored {
    File(Arc<File>),
    Memory(Bytes),
    Rebuilt(Arc<RebuiltTar>),
}

impl Piece {
    /// All of an open regular file; `shown` is its name in messages.
    pub(super) fn of(file: File, shown: &str) -> Result<Self, SourceError> {
        let failed = |cause| SourceError::Io { path: shown.to_owned(), cause };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("not a regular file")));
        }
        Ok(Self { bytes: Stored::File(Arc::new(file)), path: shown.into(), start: 0, len: metadata.len() })
    }

    /// The file itself.
    fn into_file(self) -> Option<File> {
        match self.bytes {
            Stored::File(file) => Arc::into_inner(file),
            Stored::Memory(_) | Stored::Rebuilt(_) => None,
        }
    }

    /// Bytes in memory.
    pub(super) fn bytes(bytes: &Bytes, shown: &str) -> Self {
        Self { bytes: Stored::Memory(bytes.clone()), path: shown.into(), start: 0, len: bytes.len() as u64 }
    }

    /// All of a tar.
    pub(super) fn rebuilt(tar: Arc<RebuiltTar>) -> Self {
        Self { path: tar.shown().into(), start: 0, len: tar.size(), bytes: Stored::Rebuilt(tar) }
    }

    /// The `len` bytes from `start`; `None` if they are out of range.
    pub(super) fn part(&self, start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self { start: self.start + start, len, ..self.clone() })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Fills `buffer` from offset `at`.
    pub(super) fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let within = at.checked_add(buffer.len() as u64).is_some_and(|end| end <= self.len);
        let read = match &self.bytes {
            _ if !within => Err(io::ErrorKind::UnexpectedEof.into()),
            Stored::File(file) => file.read_exact_at(buffer, self.start + at),
            Stored::Memory(bytes) => {
                let at = usize::try_from(self.start + at).expect("within the bytes");
                buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
                Ok(())
            }
            Stored::Rebuilt(tar) => return tar.read_at(self.start + at, buffer),
        };
        read.map_err(|cause| SourceError::Io { path: self.path.to_string(), cause })
    }

    /// All bytes, if there are at most `limit`.
    pub(super) fn read_whole(&self, limit: u64) -> Result<Bytes, SourceError> {
        if self.len > limit {
            let why = format!("a document of {} bytes is larger than the {limit} that are read", self.len);
            return Err(SourceError::Unsupported { place: self.path.to_string(), why, hint: None });
        }
        let mut all = vec![0; usize::try_from(self.len).expect("limits of documents fit into memory")];
        self.read_at(0, &mut all)?;
        Ok(all.into())
    }

    /// A sequential reader of its bytes.
    pub(super) fn reader(&self) -> impl io::Read + use<> {
        Reading { piece: self.clone(), at: 0 }
    }

    /// Which file of a rebuilt tar was changed, if one was that has bytes of `range`.
    fn changed(&self, range: Range<BlobOffset>) -> Option<SourceError> {
        match &self.bytes {
            Stored::Rebuilt(tar) => tar.changed_in(self.start + range.start.0..self.start + range.end.0),
            Stored::File(_) | Stored::Memory(_) => None,
        }
    }

    /// The bytes of `range`, read one buffer ahead.
    fn stream(self, range: Range<BlobOffset>) -> ByteStream {
        if let Stored::Rebuilt(tar) = &self.bytes {
            let from = InOrder::new(Arc::clone(tar), self.start + range.start.0);
            return in_order(from, range.end.0 - range.start.0);
        }
        let offsets = (range.start.0..range.end.0).step_by(READ_BYTES);
        let reads = stream::iter(offsets).map(move |at| {
            let piece = self.clone();
            let len = (range.end.0 - at).min(READ_BYTES as u64);
            blocking(move || {
                let mut buffer = vec![0; usize::try_from(len).expect("at most READ_BYTES")];
                piece.read_at(at, &mut buffer)?;
                Ok(Bytes::from(buffer))
            })
        });
        ByteStream::new(reads.buffered(2))
    }
}

/// The next `len` bytes of a rebuilt tar.
fn in_order(from: InOrder, len: u64) -> ByteStream {
    ByteStream::new(stream::try_unfold((from, len), |(mut from, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let len = left.min(READ_BYTES as u64);
        let read = move || {
            let mut buffer = vec![0; usize::try_from(len).expect("at most READ_BYTES")];
            from.read(&mut buffer)?;
            Ok((Bytes::from(buffer), from))
        };
        let (bytes, from) = blocking(read).await?;
        Ok(Some((bytes, (from, left - len))))
    }))
}

/// Sequential reader of a piece.
struct Reading {
    piece: Piece,
    at: u64,
}

impl io::Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.piece.len - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let got = match &self.piece.bytes {
            Stored::File(file) => file.read_at(&mut buffer[..most], self.piece.start + self.at)?,
            Stored::Memory(_) | Stored::Rebuilt(_) => {
                self.piece.read_at(self.at, &mut buffer[..most]).map(|()| most).map_err(io::Error::other)?
            }
        };
        self.at += got as u64;
        Ok(got)
    }
}

/// Runs work that blocks on the disk in a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(SourceError::Io { path: "the disk".to_owned(), cause: io::ErrorKind::Interrupted.into() }),
        },
    }
}

/// A document that cannot be used makes its place unusable.
pub(super) fn unusable(place: &str, what: &str, error: &DocumentError) -> SourceError {
    SourceError::Unsupported { place: place.to_owned(), why: format!("{what}: {error}"), hint: error.hint() }
}

/// Names for a message: escaped, in backticks, limited in number.
pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted = |name: &str| format!("`{}`", name.chars().take(128).flat_map(char::escape_debug).collect::<String>());
    let mut names: Vec<_> = names.into_iter().map(quoted).collect();
    names.sort_unstable();
    names.dedup();
    let more = names.len().saturating_sub(NAMES_SHOWN);
    names.truncate(NAMES_SHOWN);
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} and {more} more") }
}

const READ_BYTES: usize = 256 << 10;
const NAMES_SHOWN: usize = 20;

/// Small images on disk, for the tests of all local sources.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod made {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::digest::{Algorithm, Digest};

    /// A directory with an image layout in it.
    pub(in super::super) struct Layout {
        pub(in super::super) dir: tempfile::TempDir,
        entries: Vec<serde_json::Value>,
    }

    impl Layout {
        pub(in super::super) fn new() -> Self {
            let layout = Self { dir: tempfile::tempdir().unwrap(), entries: Vec::new() };
            fs::create_dir_all(layout.dir.path().join("blobs/sha256")).unwrap();
            fs::write(layout.dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
            layout
        }

        pub(in super::super) fn path(&self) -> &Path {
            self.dir.path()
        }

        pub(in super::super) fn blob_path(&self, digest: &Digest) -> std::path::PathBuf {
            self.path().join("blobs/sha256").join(digest.hex())
        }

        pub(in super::super) fn blob(&self, bytes: &[u8]) -> Digest {
            let digest = Digest::of(Algorithm::Sha256, bytes);
            fs::write(self.blob_path(&digest), bytes).unwrap();
            digest
        }

        /// An image of one layer with these bytes, listed in `index.json` under `name`.
        pub(in super::super) fn image(&mut self, layer: &[u8], name: Option<&str>) -> Digest {
            let config = config(&[layer]);
            let manifest = serde_json::json!({
                "schemaVersion": 2,
                "config": { "mediaType": CONFIG, "digest": self.blob(&config), "size": config.len() },
                "layers": [{ "mediaType": LAYER, "digest": self.blob(layer), "size": layer.len() }],
            });
            let manifest = manifest.to_string();
            let digest = self.blob(manifest.as_bytes());
            let mut entry = serde_json::json!({ "mediaType": MANIFEST, "digest": digest, "size": manifest.len() });
            if let Some(name) = name {
                entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": name });
            }
            self.entries.push(entry);
            self.write_index();
            digest
        }

        pub(in super::super) fn write_index(&self) {
            let index = serde_json::json!({ "schemaVersion": 2, "manifests": self.entries });
            fs::write(self.path().join("index.json"), index.to_string()).unwrap();
        }
    }

    pub(in super::super) fn config(layers: &[&[u8]]) -> Vec<u8> {
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(Algorithm::Sha256, layer)).collect();
        let rootfs = serde_json::json!({ "type": "layers", "diff_ids": diff_ids });
        serde_json::json!({ "os": "linux", "architecture": "amd64", "rootfs": rootfs }).to_string().into()
    }

    /// A spool for archives that cannot be read in place.
    pub(in super::super) fn spool() -> Spool {
        Spool::new(None, tempfile::tempfile)
    }

    pub(in super::super) async fn open(reference: &str) -> Result<LocalSource, SourceError> {
        LocalSource::open(&reference.parse().unwrap(), &spool()).await.unwrap()
    }

    /// Reads root, configuration and all layers as a user of the source would; the layers' bytes.
    pub(in super::super) async fn layers(source: &LocalSource) -> Vec<Vec<u8>> {
        use crate::documents::{Document, ImageConfig};
        let (descriptor, bytes) = source.root().await.unwrap();
        assert_eq!(source.head().await.unwrap(), descriptor);
        let bytes = bytes.verify(&descriptor.digest, descriptor.size).unwrap();
        let Document::Manifest(manifest) = Document::parse(&bytes, Some(&descriptor.media_type)).unwrap() else {
            panic!("an index")
        };
        let all = |descriptor: &Descriptor| BlobOffset(0)..BlobOffset(descriptor.size);
        let config = source.read_at(&manifest.config, all(&manifest.config)).await.unwrap();
        let config = config.verify(&manifest.config.digest, manifest.config.size).unwrap();
        ImageConfig::parse(&config, manifest.layers.len()).unwrap();
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            let bytes = source.read_at(layer, all(layer)).await.unwrap();
            layers.push(bytes.verify(&layer.digest, layer.size).unwrap().to_vec());
        }
        layers
    }

    /// Error and hint as a user would see them.
    pub(in super::super) fn told(error: &SourceError, temporary: &Path) -> String {
        let hint = match error {
            SourceError::Unsupported { hint, .. } => hint.clone(),
            SourceError::NotFound { said, .. } => said.clone(),
            _ => None,
        };
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let hint = hint.map(|hint| format!(" | {hint}")).unwrap_or_default();
        format!("{error}{cause}{hint}").replace(&temporary.display().to_string(), "TMP")
    }

    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::made::{Layout, open, told};
    use super::*;
    use crate::descriptor::MediaType;
    use crate::digest::{Algorithm, Digest};

    fn blob(digest: Digest, size: u64) -> Descriptor {
        Descriptor::new(MediaType::parse(""), digest, size)
    }

    #[tokio::test]
    async fn any_range_is_the_same_slice_of_the_blob() {
        let mut layout = Layout::new();
        let bytes: Vec<u8> = (0..700_000_u32).map(|n| ((n * 7) >> 3) as u8).collect();
        layout.image(&bytes, None);
        let source = open(&format!("oci:{}", layout.path().display())).await.unwrap();
        let blob = blob(Digest::of(Algorithm::Sha256, &bytes), bytes.len() as u64);
        for (start, end) in [(0, 700_000), (0, 0), (700_000, 700_000), (1, 2), (262_143, 262_145), (100, 600_000)] {
            let range = BlobOffset(start as u64)..BlobOffset(end as u64);
            let read = source.read_at(&blob, range).await.unwrap().into_unverified();
            assert_eq!(read, &bytes[start..end], "{start}..{end}");
        }
        for (start, end) in [(0, 700_001), (5, 4), (u64::MAX, u64::MAX)] {
            assert!(source.read_at(&blob, BlobOffset(start)..BlobOffset(end)).await.is_err(), "{start}..{end}");
        }
    }

    #[tokio::test]
    async fn no_regular_file_of_the_right_size_is_an_error_and_no_hang() {
        let mut layout = Layout::new();
        layout.image(b"layer", None);
        let name = format!("oci:{}", layout.path().display());
        let digest = |n: u8| Digest::of(Algorithm::Sha256, &[n]);
        let fifo = layout.blob_path(&digest(1));
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", layout.blob_path(&digest(2))).unwrap();
        std::fs::create_dir(layout.blob_path(&digest(3))).unwrap();
        std::fs::write(layout.blob_path(&digest(4)), b"four").unwrap();
        let source = open(&name).await.unwrap();
        let mut all = String::new();
        for n in 1..=5 {
            let blob = blob(digest(n), 5);
            let error = source.read_at(&blob, BlobOffset(0)..BlobOffset(5)).await.unwrap_err();
            all.push_str(&format!("{}\n", told(&error, layout.path()).replace(digest(n).hex(), "HEX")));
        }
        insta::assert_snapshot!(all, @r#"
        cannot read TMP/blobs/sha256/HEX: not a regular file
        `TMP/blobs/sha256/HEX` cannot be used: it is a symbolic link that leads out of `TMP` | copy it with what its links lead to, as with `cp -rL TMP COPY`
        cannot read TMP/blobs/sha256/HEX: not a regular file
        blob sha256:HEX in oci:TMP has 4 bytes, and its descriptor says 5
        blob sha256:HEX not found in oci:TMP
        "#);
    }

    #[tokio::test]
    async fn a_manifest_beyond_the_limit_is_not_read() {
        let mut layout = Layout::new();
        layout.image(b"layer", None);
        let source = open(&format!("oci:{}", layout.path().display())).await.unwrap();
        let huge = blob(Digest::of(Algorithm::Sha256, b"layer"), u64::MAX);
        assert!(matches!(source.manifest(&huge).await, Err(SourceError::Protocol { .. })));
    }

    #[tokio::test]
    async fn a_file_that_shrinks_while_it_is_read_ends_in_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(600_000).unwrap();
        let piece = Piece::of(std::fs::File::open(file.path()).unwrap(), "it").unwrap();
        file.as_file().set_len(300_000).unwrap();
        let mut stream = piece.stream(BlobOffset(0)..BlobOffset(600_000));
        assert!(stream.next().await.unwrap().is_ok());
        assert!(stream.next().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_registry_reference_is_left_to_the_registry() {
        assert!(LocalSource::open(&"python".parse().unwrap(), &super::made::spool()).await.is_none());
    }
}
