//! What goes wrong around peelfs: registries that misbehave or are away, disks that are full.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod full_disk;
mod outage;
mod registry;
