//! The command line as users and scripts meet it.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod clock;
mod commands;
mod complete;
mod doctor;
mod interrupt;
mod look;
mod names;
mod progress;
mod top;
mod user;
