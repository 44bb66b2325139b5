//! One read of a file: which bytes of which layer it needs, and which of them are missing.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::content::{self, LayerReader, PartialLayer, ReadError};
use crate::layer::Extent;
use crate::offsets::{DecodedOffset, FileOffset};
use crate::overlay::{LayerNo, NodeId};
use crate::predict::PlaceInFile;

/// Result of a read that may not wait.
#[derive(Debug)]
pub enum Local {
    /// The number of bytes read; nothing is missing.
    Bytes(usize),
    /// Some bytes must be fetched.
    Missing(MissingBytes),
}

/// A read that has to wait, with its plan and the bytes read so far.
pub struct MissingBytes {
    pub(super) plan: ReadPlan,
    /// The bytes of the piece read so far.
    buf: Vec<u8>,
    /// Extents not read yet, and what is missing of them.
    parts: Vec<(Extent, MissingPart)>,
}

impl std::fmt::Debug for MissingBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MissingBytes").field("node", &self.plan.node).field("at", &self.plan.at).finish_non_exhaustive()
    }
}

enum MissingPart {
    Layer(Arc<LayerReader>, content::Missing),
    Partial(Arc<PartialLayer>, DecodedOffset),
}

/// The bytes of a layer that make up a piece of a file.
pub(super) struct ReadPlan {
    pub(super) layer: LayerNo,
    pub(super) node: NodeId,
    pub(super) at: FileOffset,
    pub(super) bytes: DecodedBytes,
    pub(super) extents: Vec<Extent>,
    pub(super) length: usize,
    pub(super) place: PlaceInFile,
}

/// The source of a layer's decoded bytes.
pub(super) enum DecodedBytes {
    Layer(Arc<LayerReader>),
    Partial(Arc<PartialLayer>),
}

pub(super) enum Unfilled {
    Failed(ReadError),
    Closed,
}

impl ReadPlan {
    /// Reads the cached bytes of the piece.
    pub(super) fn read_now(self, buf: &mut [u8], before_wait: &mut dyn FnMut()) -> Result<Local, ReadError> {
        let mut parts = Vec::new();
        for extent in &self.extents {
            let place = &mut buf[self.place_of(extent)];
            let Some(from) = extent.decoded else {
                place.fill(0);
                continue;
            };
            match &self.bytes {
                DecodedBytes::Layer(content) => {
                    let local = content.read_now(from, place, self.place, before_wait)?;
                    if let content::Local::Missing(missing) = local {
                        parts.push((extent.clone(), MissingPart::Layer(Arc::clone(content), missing)));
                    }
                }
                DecodedBytes::Partial(partial) => {
                    before_wait();
                    if !partial.read_now(from, place).unwrap_or(false) {
                        parts.push((extent.clone(), MissingPart::Partial(Arc::clone(partial), from)));
                    }
                }
            }
        }
        if parts.is_empty() {
            return Ok(Local::Bytes(self.length));
        }
        // Usually nothing was read.
        let all = self.extents.len() == parts.len();
        let buf = if all { vec![0; self.length] } else { buf[..self.length].to_vec() };
        Ok(Local::Missing(MissingBytes { plan: self, buf, parts }))
    }

    /// The range of an extent in the piece.
    fn place_of(&self, extent: &Extent) -> Range<usize> {
        (extent.file.start - self.at) as usize..(extent.file.end - self.at) as usize
    }
}

impl MissingBytes {
    /// The piece, once it is complete.
    pub(super) async fn wait(self) -> Result<Bytes, Unfilled> {
        let Self { plan, mut buf, parts } = self;
        for (extent, part) in parts {
            let place = &mut buf[plan.place_of(&extent)];
            match part {
                MissingPart::Layer(content, missing) => {
                    content.read_missing(missing, place).await.map_err(Unfilled::Failed)?;
                }
                MissingPart::Partial(partial, from) => {
                    partial.read(from, place).await.map_err(|_| Unfilled::Closed)?;
                }
            }
        }
        Ok(buf.into())
    }
}
