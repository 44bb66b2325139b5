//! Prediction: which spans will be read next, decided without I/O.
//!
//! Prefetched bytes cost bandwidth and delay reads that wait. So predictors only return suggestions, and the scheduler
//! of [`crate::content`] runs them within the mount's budget. In order of confidence:
//!
//! | predictor | learns from | suggests |
//! |---|---|---|
//! | [`profile`] | earlier runs of the image | what they read in the first minute, in that order |
//! | [`readahead`], windows and streams | a sequential reader | what follows in the tar, or in the file |
//! | `coverage` | a reader that jumps about in a large file | the rest of the file, once enough was read |
//! | [`programs`], [`elf`] | the head of a program that is loaded | the libraries that it names, and theirs |
//! | [`siblings`] | a second file with the same suffix in a directory | more files with that suffix |
//! | [`readahead`], neighbours | a random read | up to five following spans, then the two before |
//!
//! The last four are *speculation*, which `--prefetch none` turns off; programs and siblings are also off in a layer
//! with a profile. What neighbours brought in a large file is kept account of (`coverage`). Discarded alternatives are in `docs/benchmarks.md`.
//!
//! Predictors do no I/O, never wait and take no locks; their state is plain data that its owner guards.

mod coverage;
pub mod elf;
mod event;
mod layout;
pub mod pace;
pub mod profile;
pub mod programs;
pub mod readahead;
pub mod replay;
pub mod siblings;
#[cfg(test)]
mod trial;

pub use event::{Event, Found, Piece, PlaceInFile, Priority, Speculation, StreamId, Suggestion, Urgency};
pub use layout::{Layout, REQUEST};
pub use pace::Pace;
pub use profile::{Lesson, Profile, ProfileRun};
pub use readahead::ReadAhead;
pub use replay::Replay;
pub use siblings::{Group, Siblings};
