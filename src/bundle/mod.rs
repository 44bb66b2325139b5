//! Bundles: the configuration of a container runtime for an image (runtime-spec, config.md; image-spec, conversion.md).
//!
//! Everything here is a pure function of an image's configuration, its `/etc/passwd` and `/etc/group`, and the user's
//! options. The front ends read those files, mount and run.
//!
//! The result is a JSON value. The types of `oci-spec` would add five crates of procedural macros for a document that
//! is only written, in one place.

mod config;
mod image;
mod users;

pub use config::{
    BundleOptions, Identity, Limit, Network, Tmpfs, Volume, VolumePolicy, config, destinations, is_known_version,
    mount_point,
};
pub use image::Configured;
pub use users::{User, group_names, resolve_user, user_names};

/// Why no bundle can be made of an image.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BundleError {
    /// The configuration has a field of the wrong type.
    #[error("the image's configuration cannot be used: {why}")]
    Configuration {
        /// What is wrong.
        why: String,
    },
    /// Neither the image nor the user gives a command.
    #[error("the image has no command: neither Entrypoint nor Cmd")]
    NoCommand,
    /// `Env` has an entry that is not a variable.
    #[error("`{entry}` is not an environment variable")]
    Variable {
        /// As written.
        entry: String,
    },
    /// A string for the runtime has a zero byte.
    #[error("{what} has a zero byte")]
    Zero {
        /// Which string.
        what: &'static str,
    },
    /// A path within the container is relative or leads out of it.
    #[error("`{path}` is not an absolute path in the container")]
    Path {
        /// As it was written.
        path: String,
    },
    /// A mount would replace the root file system.
    #[error("cannot mount on `{path}`: it is the container's root file system")]
    OnRoot {
        /// As it was written.
        path: String,
    },
    /// A mount would replace what the kernel shows of processes, which runtimes refuse.
    #[error("cannot mount on `{path}`: /proc is the kernel's, and only some of its files can be replaced")]
    InProc {
        /// As it was written.
        path: String,
    },
    /// The user is not in `/etc/passwd`.
    #[error("user `{name}` is not in the image's /etc/passwd")]
    NoUser {
        /// As it was written.
        name: String,
    },
    /// The group is not in `/etc/group`.
    #[error("group `{name}` is not in the image's /etc/group")]
    NoGroup {
        /// As it was written.
        name: String,
    },
    /// A number that is out of range for users and groups.
    #[error("`{number}` is not a user or group number: the largest is 2147483647")]
    Number {
        /// As it was written.
        number: String,
    },
}
