//! Confirming a table of contents: what it says is compared with the layer's tar, once all files of the layer are cached.
//!
//! A table of zstd:chunked may name tar-split data, which with the bodies of the files give the tar. If that has the diff_id,
//! its headers are the layer's, and the names that a table says are the layer's if they are those of the headers. If it has
//! not, or has other names, the table is refuted: all of the layer is read.

use std::sync::Arc;

use super::error::ReadError;
use super::open_layer::{Cached, OpenLayer};
use super::reader::LayerReader;
use crate::codec::StartKind;
use crate::codec::tar_split::{self, Next, TarSplitError};
use crate::descriptor::Descriptor;
use crate::digest::{Digest, Hasher};
use crate::layer::foreign::tar_split::tar_split_of;
use crate::layer::foreign::{Toc, TocError};
use crate::layer::tar::WalkError;
use crate::layer::{
    Check, EntryId, Format, IndexError, IndexedLayer, LayerIndex, LayerTree, Limits, Proof, Span, TarWalker, TreeError,
    WriteError, write_index,
};
use crate::offsets::{BlobOffset, DecodedOffset, FileOffset};
use crate::source::SourceError;
use crate::store::{IndexName, StoreError};

/// Compares the table of contents that a layer was opened by with the layer's tar. Nothing is done for layers that were
/// opened otherwise, or whose table is confirmed already.
pub(super) async fn confirm(reader: &Arc<LayerReader>) {
    let layer = &reader.layer;
    let is_open_by_toc = matches!(layer.index.proof(), Proof::Vouched { format: Format::ZstdChunked, .. });
    // Without a diff_id in the image's configuration, nothing says what the tar is.
    let has_diff_id = layer.index.layer().diff_id != *layer.blob();
    if !is_open_by_toc || !has_diff_id || layer.is_confirmed() || layer.is_refuted() {
        return;
    }
    let split = match fetched(reader).await {
        Ok(Some(split)) => split,
        Ok(None) => return,
        Err(why) => return unconfirmed(layer, &why),
    };
    let checked = {
        let layer = Arc::clone(layer);
        tokio::task::spawn_blocking(move || compare(&layer, &split)).await
    };
    match checked {
        Ok(Ok(())) => {
            tracing::debug!(layer = %layer.blob(), "the table of contents is that of the layer's tar");
            layer.set_confirmed();
            if let Err(error) = keep_confirmed(layer) {
                layer.store.cannot_keep("that an index is confirmed", &error);
            }
        }
        Ok(Err(why)) if why.is_contradiction() => drop(layer.refute(&why)),
        Ok(Err(why)) => unconfirmed(layer, &why),
        // The process is ending.
        Err(_) => {}
    }
}

fn unconfirmed(layer: &OpenLayer, why: &Unconfirmed) {
    let error = why as &dyn std::error::Error;
    tracing::warn!(layer = %layer.blob(), error, "the table of contents cannot be compared with the layer's tar");
}

/// Why a table of contents is not confirmed.
#[derive(Debug, thiserror::Error)]
enum Unconfirmed {
    #[error("the table or its tar-split data cannot be fetched")]
    Source(#[from] SourceError),
    #[error(transparent)]
    Toc(#[from] TocError),
    #[error("its tar-split data are malformed")]
    Split(#[from] TarSplitError),
    #[error("the cached files cannot be read")]
    Read(#[source] ReadError),
    #[error("files are not cached any more")]
    Evicted,
    #[error("`{}` has a body of another size in the tar", .name.escape_ascii())]
    Body { name: Vec<u8> },
    #[error("the names of the tar cannot be written down")]
    Write(#[from] WriteError),
    #[error("the index is damaged")]
    Index(#[from] IndexError),
    #[error("the tar that its tar-split data make is none")]
    Tar(#[source] WalkError<TreeError>),
    #[error("the tar has the digest {actual}, and the image says {expected}")]
    OtherTar { expected: Digest, actual: Digest },
    #[error("the tar has other entries than the table: `{}`", .name.escape_ascii())]
    OtherNames { name: Vec<u8> },
}

impl Unconfirmed {
    /// Whether the table, or what is bound to it, is not of the layer.
    fn is_contradiction(&self) -> bool {
        match self {
            Self::Body { .. } | Self::Tar(_) | Self::OtherTar { .. } | Self::OtherNames { .. } => true,
            Self::Source(_)
            | Self::Toc(_)
            | Self::Split(_)
            | Self::Read(_)
            | Self::Evicted
            | Self::Write(_)
            | Self::Index(_) => false,
        }
    }
}

/// The tar-split data of a layer, decoded, if its table names any.
async fn fetched(reader: &LayerReader) -> Result<Option<Vec<u8>>, Unconfirmed> {
    let blob = reader.blob();
    let Ok(Some(Toc::ZstdChunked(toc))) = Toc::of(blob, Format::ZstdChunked) else { return Ok(None) };
    let source = reader.fetcher.source();
    let fetch = async |blob: &Descriptor, packed: &crate::layer::foreign::zstd_chunked::Packed| {
        let bytes = source.read_at(blob, packed.range()).await?.into_unverified();
        Ok::<_, Unconfirmed>(packed.unpack(&bytes)?)
    };
    let json = fetch(blob, &toc.packed).await?;
    let Some(split) = tar_split_of(blob, &json)? else { return Ok(None) };
    fetch(blob, &split).await.map(Some)
}

/// Makes the tar of a layer whose files are cached, and compares its digest and its names.
fn compare(layer: &OpenLayer, split: &[u8]) -> Result<(), Unconfirmed> {
    let index = &layer.index;
    let expected = index.layer().diff_id.clone();
    let mut tar = Rebuilt {
        layer,
        hasher: Hasher::new(expected.algorithm()),
        walker: TarWalker::new(),
        // As many names as the index has, with some room for what is different.
        tree: LayerTree::new(Limits::default()),
        body_of: None,
        size: 0,
    };
    tar_split::read(split, |next| tar.push(next))?;
    let Rebuilt { hasher, walker, tree, size, .. } = tar;
    walker.finish().map_err(|cause| Unconfirmed::Tar(cause.into()))?;
    let actual = hasher.finish();
    if actual != expected {
        return Err(Unconfirmed::OtherTar { expected, actual });
    }
    let names = names_of(&tree, size, index)?;
    match index.first_difference(&names)? {
        None => Ok(()),
        Some(id) => Err(Unconfirmed::OtherNames { name: index.path(id).or_else(|_| names.path(id))? }),
    }
}

/// A tar that is made again.
struct Rebuilt<'a> {
    layer: &'a OpenLayer,
    hasher: Hasher,
    walker: TarWalker,
    tree: LayerTree,
    /// The file whose body may come, and its size.
    body_of: Option<EntryId>,
    size: u64,
}

impl Rebuilt<'_> {
    fn push(&mut self, next: Next<'_>) -> Result<(), Unconfirmed> {
        match next {
            Next::Literal(bytes) => {
                let before = self.tree.len();
                self.bytes(bytes)?;
                // The header that has come last is that of the entry that has come last.
                self.body_of = (self.tree.len() > before).then(|| EntryId(self.tree.len() - 1));
                Ok(())
            }
            Next::File { size, .. } => {
                let id = self.body_of.take().filter(|id| id.0 < self.layer.index.len());
                let path = |id| self.layer.index.path(id);
                let id = id.ok_or(Unconfirmed::OtherNames { name: Vec::new() })?;
                if path(id)? != self.tree.path(id) {
                    return Err(Unconfirmed::OtherNames { name: self.tree.path(id) });
                }
                if self.layer.index.entry(id)?.size() != size {
                    return Err(Unconfirmed::Body { name: path(id)? });
                }
                self.body(id, size)
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Unconfirmed> {
        self.size += bytes.len() as u64;
        self.hasher.update(bytes);
        self.walker.push(bytes, &mut self.tree).map_err(Unconfirmed::Tar)
    }

    fn body(&mut self, id: EntryId, size: u64) -> Result<(), Unconfirmed> {
        let mut buffer = vec![0; READ.min(size) as usize];
        let layer = self.layer;
        for extent in layer.index.extents(id, FileOffset(0)..FileOffset(size))? {
            let (mut left, mut at) = (extent.file.end - extent.file.start, extent.decoded);
            while left > 0 {
                let buffer = &mut buffer[..READ.min(left) as usize];
                match at {
                    None => buffer.fill(0),
                    Some(from) => {
                        if layer.read_cached(from, buffer, &mut || ()).map_err(Unconfirmed::Read)? != Cached::Bytes {
                            return Err(Unconfirmed::Evicted);
                        }
                        at = Some(from + buffer.len() as u64);
                    }
                }
                self.bytes(buffer)?;
                left -= buffer.len() as u64;
            }
        }
        Ok(())
    }
}

/// The names of the tar, to be compared with those of `index`.
fn names_of(tree: &LayerTree, size: u64, index: &LayerIndex) -> Result<LayerIndex, Unconfirmed> {
    let layer = IndexedLayer { decoded_size: size, ..index.layer().clone() };
    // None of its bytes are read.
    let span = |start: u64| Span {
        decoded: DecodedOffset(start)..DecodedOffset(size.min(start + Span::MAX)),
        blob: BlobOffset(0),
        bit: 0,
        kind: StartKind::Frame,
        check: Check::sha256(b""),
        window: None,
    };
    let spans: Vec<_> = (0..size.div_ceil(Span::MAX)).map(|number| span(number * Span::MAX)).collect();
    let mut bytes = Vec::new();
    write_index(tree, &spans, &[], &layer, &Proof::Unproven, &mut bytes)?;
    Ok(LayerIndex::open(bytes)?)
}

/// Stores the index with what is known of it now, where the store has it.
fn keep_confirmed(layer: &OpenLayer) -> Result<(), StoreError> {
    let index = &layer.index;
    // Another process may have replaced it.
    let is_same = |stored: LayerIndex| stored.end_with(index.proof().clone()) == index.end_with(index.proof().clone());
    let mut names = IndexName::from(layer.blob()).alternatives();
    let is_there =
        |name: &IndexName<'_>| layer.store.index(*name).is_some_and(|file| LayerIndex::open(file).is_ok_and(is_same));
    let Some(name) = names.find(is_there) else { return Ok(()) };
    let Some((proof, file)) = index.proof().confirmed().zip(layer.store.index(name)) else { return Ok(()) };
    let (end_at, end) = index.end_with(proof);
    let mut copy = layer.store.new_index(name)?;
    let (mut at, mut buffer) = (0, vec![0; 1 << 20]);
    while at < end_at {
        let piece = &mut buffer[..(end_at - at).min(1 << 20) as usize];
        // Damage of the copy is found when it is read, as damage of the original would be.
        if file.read_exact_at(piece, at).is_err() {
            return Ok(());
        }
        copy.write_all(piece)?;
        at += piece.len() as u64;
    }
    copy.write_all(&end)?;
    copy.publish()
}

/// Bytes of a body that are read at once.
const READ: u64 = 256 << 10;
