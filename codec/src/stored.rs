//! Stored layers: a plain tar is its own decoded stream, and decoding can start at any byte.

use super::marks::{FirstPass, Mark};
use super::output::OutputBuffer;
use super::start::StartKind;
use super::{Feed, Status};

/// Copies until the input is used up or the output is full.
pub(super) fn decode(feed: &mut Feed<'_, '_>, out: &mut OutputBuffer, mut pass: Option<&mut FirstPass>) -> Status {
    loop {
        if out.is_full() {
            return Status::OutputFull;
        }
        if feed.rest.is_empty() {
            return Status::NeedInput;
        }
        let mut step = out.room().len().min(feed.rest.len());
        if let Some(pass) = &mut pass {
            let at = out.end();
            if pass.start_wanted(at) {
                pass.offer(Mark { blob: feed.at(), bit: 0, decoded: at, kind: StartKind::Stored });
                pass.decoded(at + 1);
            }
            step = step.min((pass.next_start() - at) as usize);
        }
        let (now, later) = feed.rest.split_at(step);
        out.room()[..step].copy_from_slice(now);
        out.fill(step);
        *feed.rest = later;
    }
}
