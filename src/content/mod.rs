//! Content: fetches the bytes of a layer, verifies them and caches them on this machine.
//!
//! | file | idea |
//! |---|---|
//! | [`opening`], `toc`, `layer_ref`, `origin` | the identity of a layer, the origin of its index and the proof for it |
//! | [`pass`], `pass_output`, `pass_schedule`, `partial` | the first pass: reads a new layer once, end to end |
//! | `shared`, `open_layer`, `spans` | state of a layer shared by all mounts of a process: cached and verified spans |
//! | `scope`, `budget` | state of one mount: tasks, a clock, and limits on prefetch |
//! | `activity` | what a mount has fetched, why, and how long its readers waited |
//! | `fetch`, `apart`, `compared`, `in_flight` | requests each missing span once and delivers it to all readers that wait |
//! | `reader` | a read: one look at the store, then cached bytes, or requests and a wait |
//! | `demand`, `schedule`, `prefetch`, `profiles` | prefetch, as [`crate::predict`] suggests |
//! | `confirm` | compares a table of contents with the tar, once all of its files are cached |
//! | `passthrough_copy`, `sealed` | copies of large files, and whole layers, for the kernel |
//! | [`fsck`], `evict_content`, `superseded`, `transfer` | upkeep: check, evict, drop what an index has left, export and import |
//! | `pushed`, `pushed_error`, `referrer` | indexes that other machines have pushed to a registry |
//! | `windows` | the decoder windows of such an index, fetched where they are needed |
//! | `soci`, `soci_referrers`, `soci_error`, `ztoc` | zTOCs: indexes that SOCI has made of a layer, and making them for it |
//!
//! Files import each other by name, and in one direction only (`tests/layering.rs`).

mod activity;
mod apart;
mod artifact_check;
mod beat;
mod block_sums;
mod budget;
mod compared;
mod confirm;
mod demand;
mod error;
mod evict_content;
mod explain;
mod fetch;
pub mod fsck;
mod in_flight;
mod index_file;
mod layer_ref;
mod open_layer;
pub mod opening;
mod origin;
mod pack;
mod partial;
pub mod pass;
mod pass_output;
mod pass_schedule;
mod pass_wait;
mod passthrough_copy;
mod peek;
mod prefetch;
mod profiles;
mod pushed;
mod pushed_error;
mod reader;
mod referrer;
mod schedule;
mod scope;
mod sealed;
mod shared;
mod soci;
mod soci_error;
mod soci_referrers;
mod spans;
mod superseded;
mod toc;
mod transfer;
mod windows;
mod ztoc;

pub use activity::{Activity, ByReason, Cause, FileActivity, LayerActivity, LayerCounts, Reason};
pub use artifact_check::{ArtifactCheck, Refusal};
pub use budget::Prefetch;
pub use error::ReadError;
pub use evict_content::evict_content;
pub use explain::{Considered, explain};
pub use fsck::{CheckedLayer, check_layer, glance_at_layer};
pub use layer_ref::{LayerRef, Payload};
pub use open_layer::{ContentStats, OpenLayer};
pub use opening::{Opened, Origin};
pub use origin::{FromRegistry, IndexChoice, NotOpened, NotStored, PassedOver, open_stored};
pub use pack::{PackedIndex, pack, pack_index};
pub use partial::{Closed, PartialLayer, ShownSpan};
pub use pass::{FirstPass, Means, Others, PassError, PassProgress};
pub use pass_schedule::{PassScheduler, ScheduledPass, passes_at_once};
pub use passthrough_copy::PassthroughCopyError;
pub use prefetch::{keep_profiles, prefetch};
pub use profiles::{Profiles, forget_profiles, keep_profile, load_profile};
pub use pushed::PushedIndexes;
pub use pushed_error::PushedError;
pub use reader::{LayerReader, Local, Missing};
pub use referrer::candidates as referring_artifacts;
pub use scope::MountScope;
pub use sealed::SealError;
pub use shared::{SharedLayer, SharedLayers};
pub use soci::BoundSoci;
pub use soci_error::{NoIndex, SociError};
pub use superseded::{drop_superseded, tidy};
pub use transfer::{ImportError, Imported, TransferError, complete_indexes, export_indexes, import_indexes};
pub use windows::{WindowSource, WindowsError};
pub use ztoc::{ZtocError, make_ztoc};
