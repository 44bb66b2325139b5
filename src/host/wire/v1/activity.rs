//! Questions to a process that serves a mount, and what it tells: what was fetched and why, and who waits.
//!
//! These types are only for the wire, and front ends show them as they are. One message is told after another, the end
//! last; each is far smaller than a message may be, whatever paths an image has.

use serde::{Deserialize, Serialize};

use super::super::WirePath;
use crate::content;

/// To a process that serves a mount.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// What has it fetched? [`Told`] is the answer.
    Activity {
        /// How many files at most, those that were active last.
        files: u32,
    },
}

/// A part of the answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Told {
    /// The mount as a whole; first.
    Mount(Box<MountActivity>),
    /// Some of its layers, base first.
    Layers(Vec<LayerActivity>),
    /// Some of its files, the last active ones first.
    Files(Vec<FileActivity>),
    /// Some of the requests that wait, the longest first.
    Waiting(Vec<WaitingRequest>),
    /// There is no more.
    End,
    /// The question was not understood.
    Refused {
        /// Why.
        why: String,
    },
}

/// The activity of a mount as a whole, since this process serves it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MountActivity {
    /// How many images an image store shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u64>,
    /// Bytes of all layers' blobs.
    pub image_bytes: u64,
    /// Of the registry, if it comes from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistryActivity>,
    /// Requests of the kernel.
    pub requests: u64,
    /// Those that were answered with EIO.
    pub failed: u64,
    /// Those that had to wait, by how long they waited: the bounds are [`fuse::WAIT_BOUNDS`](crate::fuse::WAIT_BOUNDS), and the
    /// last number is of those that waited longer.
    pub waits: Vec<u64>,
    /// How long they waited, all together.
    pub waited_us: u64,
    /// Requests that wait now; as many are told as fit.
    pub waiting: u64,
}

/// What was received from a registry.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryActivity {
    /// Requests sent.
    pub requests: u64,
    /// Bytes of bodies received.
    pub received_bytes: u64,
    /// Requests sent again.
    pub retries: u64,
    /// Truncated bodies that were resumed.
    pub resumptions: u64,
    /// Logins and renewals of tokens.
    pub logins: u64,
    /// Requests that keep failing now.
    pub failing: u64,
    /// Seconds for which the oldest of them does.
    pub failing_s: u64,
}

/// The activity in one layer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LayerActivity {
    /// Its number in the image; the lowest is 1.
    pub number: u32,
    /// The digest of its blob.
    pub digest: String,
    /// Bytes of its blob.
    pub size: u64,
    /// Its state.
    pub state: LayerState,
    /// Bytes of its decoded stream, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoded_size: Option<u64>,
    /// Bytes of its decoded stream in the cache.
    pub cached_bytes: u64,
    /// Blob bytes fetched by this mount.
    pub fetched: ByReason,
    /// Requests for these, without those of first passes.
    pub fetches: ByReason,
    /// Reads of pieces of files.
    pub reads: u64,
    /// Bytes of these.
    pub read_bytes: u64,
    /// Reads that had to wait for bytes.
    pub waits: u64,
    /// How long they waited, all together.
    pub waited_us: u64,
    /// Reads that failed.
    pub failed: u64,
    /// Cached spans that were found damaged and fetched again.
    pub damaged_spans: u64,
    /// Spans that were fetched although they were cached on arrival.
    pub repeated_spans: u64,
    /// Spans that the cache had no room for.
    pub unkept_spans: u64,
}

/// The state of a layer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerState {
    /// Not needed yet, or queued.
    Waiting,
    /// The first pass is running.
    Reading,
    /// It is verified.
    Ready,
    /// It cannot be shown.
    Failed,
}

/// The activity of one file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileActivity {
    /// The number of its layer; the lowest is 1.
    pub layer: u32,
    /// Its path, from the root; the end of one that is too long is left out.
    pub path: WirePath,
    /// Its size in bytes.
    pub size: u64,
    /// Blob bytes fetched for it.
    pub fetched: ByReason,
    /// Reads that had to wait.
    pub waits: u64,
    /// How long they waited, all together.
    pub waited_us: u64,
    /// The longest of them.
    pub longest_us: u64,
    /// How long ago something of it was last fetched or waited for.
    pub idle_ms: u64,
}

/// A request that waits.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WaitingRequest {
    /// The process that waits, if its number is known here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The name of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// What it does, as `read`.
    pub operation: String,
    /// With what, from the root, if that is known without waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<WirePath>,
    /// For how long.
    pub waits_us: u64,
}

/// A number for each reason for which bytes are fetched.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ByReason {
    /// A reader waits for them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub demand: u64,
    /// They follow what a reader has read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub readahead: u64,
    /// They are near what a program reads.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub siblings: u64,
    /// A program that is loaded names them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub program: u64,
    /// Earlier runs have read them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub profile: u64,
    /// Everything is fetched.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fill: u64,
    /// The layer was not known yet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_pass: u64,
}

impl ByReason {
    /// The names of all reasons, in the order of [`ByReason::numbers`].
    pub const NAMES: [&str; 7] = ["demand", "readahead", "siblings", "program", "profile", "fill", "first_pass"];

    /// The number for each reason.
    pub fn numbers(&self) -> [u64; 7] {
        let Self { demand, readahead, siblings, program, profile, fill, first_pass } = *self;
        [demand, readahead, siblings, program, profile, fill, first_pass]
    }

    /// All together.
    pub fn sum(&self) -> u64 {
        self.numbers().iter().sum()
    }
}

impl From<content::ByReason> for ByReason {
    fn from([demand, readahead, siblings, program, profile, fill, first_pass]: content::ByReason) -> Self {
        Self { demand, readahead, siblings, program, profile, fill, first_pass }
    }
}

impl std::ops::AddAssign for ByReason {
    fn add_assign(&mut self, other: Self) {
        let (own, other) = (self.numbers(), other.numbers());
        *self = std::array::from_fn(|reason| own[reason] + other[reason]).into();
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks in this way")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_same_names_everywhere() {
        let mut each = content::ByReason::default();
        for (number, reason) in content::Reason::ALL.into_iter().enumerate() {
            each[number] = 1 + number as u64;
            assert_eq!(ByReason::NAMES[number], reason.name());
        }
        let wire = ByReason::from(each);
        assert_eq!(wire.numbers(), each);
        let text = serde_json::to_value(wire).expect("plain data");
        for (number, name) in ByReason::NAMES.into_iter().enumerate() {
            assert_eq!(text[name], 1 + number as u64);
        }
    }
}
