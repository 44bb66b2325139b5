//! The mount service: what is asked for, one mount's life, which process keeps it alive, hand-over, status.
//!
//! Front ends say what they want as a [`MountSpec`](spec::MountSpec); nothing in here knows a terminal, an argument or,
//! but for the place of the run state, the environment.
//!
//! Which process is which:
//!
//! | process | module | started by |
//! |---|---|---|
//! | the command | [`background`] asks, and waits until the mount is ready | the user |
//! | the keeper | [`keeper`] holds the connections and starts servers | the command |
//! | the server | [`server`] has the mounts, each with one [life](mount) | the keeper |
//! | none | [`kernel`] shows the image by itself | the command |
//! | all in one | [`alone`], for `--foreground --no-keeper` and service managers | the user, systemd |

pub mod alone;
pub mod background;
pub mod channel;
mod child;
pub mod cover;
mod ending;
pub mod error;
pub mod failures;
pub mod handover;
pub mod image_store;
pub mod inherited;
pub mod keeper;
pub mod kernel;
mod mount;
pub mod mount_point;
pub mod open;
pub mod piped;
pub mod probe;
pub mod process;
pub mod report;
mod requests;
mod room;
pub mod rootfs;
pub mod server;
pub mod signature_policy;
pub mod signed;
pub mod size;
pub mod spec;
pub mod status;
pub mod subids;
mod supervisor;
mod systemd;
pub mod upgrade;
pub mod verifiers;
pub mod whole_file;
pub mod wire;
pub mod writable;

/// Where a front end shows what is going on while a mount is made.
pub trait Progress: Send {
    /// The first passes have read `done` of `total` bytes.
    fn show(&mut self, total: u64, done: u64);

    /// Something the user may want to know.
    fn note(&mut self, note: &str);

    /// There is nothing more to show.
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
