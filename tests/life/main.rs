//! How a mount and its cache live and die: servers that are killed, exchanged or handed to a service manager, processes
//! that end at any instant, caches that are damaged or too small.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod containerd;
mod containers;
mod crash;
mod csi;
mod damaged_cache;
mod image_store;
mod killed;
mod metrics;
mod prepared;
mod run;
mod service;
mod soak;
mod store_faults;
mod takeover;
mod user;
