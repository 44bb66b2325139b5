//! Layers: what one blob of an image says about files, and how to get any of their bytes.
//!
//! Whatever format a layer has, it becomes two tables when it is first opened: entries (what the
//! tree looks like) and spans (how to decode any part of the stream). Modules above these tables
//! know no formats; modules below them know no files.
//!
//! - [`tar`] walks a decoded stream as it is pushed, and says what its headers mean.
//! - [`tree`] makes the layer's tree of it, and answers questions while it grows.
//! - [`index`] is the same tree on disk, together with the spans: opened in no time, checked page by
//!   page as it is touched.
//!
//! Nothing here opens files or waits; an index is read through [`ReadAt`].

mod check;
mod entry;
mod extents;
mod footer;
pub mod index;
mod names;
mod paged;
mod pax;
mod proof;
mod ranges;
mod spans;
mod sparse;
pub mod tar;
#[cfg(test)]
mod testing;
pub mod tree;
mod write;
mod xattrs;

pub use check::Check;
pub use entry::{DataExtent, Device, Entry, EntryId, Extent, Flags, Kind, Timestamp};
pub use index::{Contents, IndexError, LayerIndex};
pub use paged::ReadAt;
pub use pax::Xattr;
pub use proof::{Format, IndexedLayer, Proof};
pub use spans::{Span, WindowAt};
pub use tar::{TarEntry, TarKind, TarSink, TarSummary, TarWalker};
pub use tree::{LayerTree, Limits, TreeError, is_hidden};
pub use write::{WriteError, write_index};
