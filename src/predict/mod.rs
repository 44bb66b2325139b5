//! Prediction: which spans will be read next, decided without I/O.
//!
//! Everything that is fetched before it is read costs bytes and delays the reads that wait: a link carries one byte at
//! a time. So a predictor only answers events with wishes, and the scheduler of [`crate::content`] runs them under the
//! mount's budget. In order of confidence:
//!
//! | predictor | learns from | wishes for |
//! |---|---|---|
//! | [`profile`] | the image's earlier runs | what they read in their first minute, in that order |
//! | [`readahead`], windows and streams | a reader that continues where it was | what follows in the tar, or in the file |
//! | [`programs`], [`elf`] | the head of a program that is loaded | the libraries that it names, and theirs |
//! | [`siblings`] | a second file with one suffix in a directory | more files with that suffix |
//! | [`readahead`], neighbours | a read that continues nothing | up to five following spans, then the two before |
//!
//! The last three are *speculation*, which `--prefetch none` turns off; programs and siblings also rest in a layer that
//! a profile covers. What was tried and dropped is told in `docs/benchmarks.md`.
//!
//! Nothing here waits, locks or asks the store; the state of a predictor is plain data that its owner guards.

pub mod elf;
mod event;
mod layout;
pub mod pace;
pub mod profile;
pub mod programs;
pub mod readahead;
pub mod replay;
pub mod siblings;

pub use event::{Event, Found, Piece, PlaceInFile, Priority, Speculation, StreamId, Urgency, Wish};
pub use layout::{Layout, REQUEST};
pub use pace::Pace;
pub use profile::{Profile, ProfileRun};
pub use readahead::ReadAhead;
pub use replay::Replay;
pub use siblings::{Group, Siblings};
