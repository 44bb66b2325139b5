//! The mount service: requests, a mount's life, the processes behind it, hand-over, status.
//!
//! Front ends describe a mount by a [`MountSpec`](spec::MountSpec); nothing in here depends on a terminal, arguments
//! or, except for the runtime directory, the environment.
//!
//! The processes:
//!
//! | process | module | started by |
//! |---|---|---|
//! | the command | [`background`] sends the request, and waits until the mount is ready | the user |
//! | the keeper | [`keeper`] holds the connections and starts servers | the command |
//! | the server | [`server`] has the mounts, each a [`mount`] | the keeper |
//! | the guard | [`guard`] unmounts an image store whose keeper and server were killed | the keeper |
//! | none | [`kernel`] mounts | the command |
//! | all in one | [`alone`], for `--foreground --no-keeper` and service managers | the user, systemd |

pub mod activity;
pub mod alone;
pub mod ask;
pub mod background;
pub mod channel;
mod child;
pub mod control_group;
pub mod cover;
mod ending;
pub mod endpoint;
pub mod error;
pub mod failures;
pub mod guard;
pub mod handover;
pub mod http;
pub mod image_store;
pub mod inherited;
pub mod keeper;
pub mod kernel;
pub mod metrics;
mod mount;
pub mod mount_point;
mod nearest_tag;
pub mod open;
pub mod piped;
pub mod probe;
pub mod process;
pub mod push;
pub mod reach;
pub mod report;
mod requests;
mod room;
pub mod rootfs;
pub mod server;
pub mod short_name;
pub mod sign;
pub mod signature_policy;
pub mod signed;
pub mod size;
pub mod spec;
pub mod status;
pub mod subids;
mod supervisor;
mod systemd;
pub mod target;
pub mod upgrade;
pub mod verifiers;
pub mod whole_file;
pub mod wire;
pub mod writable;

/// How a front end shows the progress of a mount.
pub trait Progress: Send {
    /// The first passes have read `done` of `total` bytes.
    fn show(&mut self, total: u64, done: u64);

    /// A note for the user.
    fn note(&mut self, note: &str);

    /// No more progress follows.
    fn end(&mut self);
}

/// Shows nothing; notes go to the log.
pub struct Silent;

impl Progress for Silent {
    fn show(&mut self, _: u64, _: u64) {}

    fn note(&mut self, note: &str) {
        tracing::info!("{note}");
    }

    fn end(&mut self) {}
}
