//! Layers: the files in one blob of an image, and how to decode any part of them.
//!
//! A layer of any format becomes two tables when it is first opened: entries (the tree) and spans (how to decode any
//! part of the stream). Modules above these tables do not depend on formats; modules below them do not handle files.
//!
//! - [`tar`] walks a decoded stream in pieces and interprets its headers.
//! - [`tree`] builds the layer's tree, and serves lookups while it grows.
//! - [`index`] is the same tree on disk, with the spans: opened quickly, and verified page by page on access.
//! - `windows` takes the windows of an index apart, for a blob of their own.
//! - [`foreign`] makes tree and spans of a table of contents that a layer brings along.
//!
//! Nothing here opens files or waits; indexes are read through [`ReadAt`].

mod at;
mod check;
mod entry;
mod extents;
mod file;
mod footer;
pub mod foreign;
pub mod index;
mod names;
mod paged;
mod pax;
mod proof;
mod ranges;
mod same;
mod spans;
mod sparse;
pub mod tar;
#[cfg(test)]
mod testing;
pub mod tree;
mod windows;
mod write;
mod xattrs;

pub use check::Check;
pub use entry::{DataExtent, Device, Entry, EntryId, Extent, Flags, Kind, Timestamp};
pub use file::{NameError, NamedFile, stream_of_blob, tree_of_blob};
pub use index::{Contents, IndexError, LayerIndex};
pub use paged::ReadAt;
pub use pax::Xattr;
pub use proof::{Format, IndexedLayer, Proof, Stream};
pub use spans::{Span, SpanSource, WindowAt};
pub use tar::{TarEntry, TarError, TarKind, TarSink, TarSummary, TarWalker, WalkError};
pub use tree::{LayerTree, Limits, TreeError, is_hidden};
pub use windows::{TakeApartError, WindowsBlob, write_with_windows, write_without_windows};
pub use write::{WriteError, write_index, write_index_of, write_index_of_bodies};
