//! Faults around peelfs: registries that misbehave or are away, full disks.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod full_disk;
mod mirrors;
mod outage;
mod registry;
