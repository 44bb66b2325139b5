//! Bundles: what a container runtime is told of an image (runtime-spec, config.md; image-spec, conversion.md).
//!
//! Everything here is a pure function: of an image's configuration, of its `/etc/passwd` and `/etc/group`, and of what the
//! user wants otherwise. Reading those files, mounting and running is the work of the front ends.
//!
//! The result is a JSON value. The types of `oci-spec` would bring five crates of procedural macros for a document that is
//! written in one place and read by none.

mod config;
mod image;
mod users;

pub use config::{
    BundleOptions, Identity, Limit, Network, Volume, VolumePolicy, config, destinations, is_known_version,
};
pub use image::Configured;
pub use users::{User, resolve_user};

/// Why there can be no bundle of an image.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BundleError {
    /// The configuration has a field of another kind than the specification says.
    #[error("the image's configuration cannot be used: {why}")]
    Configuration {
        /// What is wrong.
        why: String,
    },
    /// Neither the image nor the user says what to run.
    #[error("the image has no command: neither Entrypoint nor Cmd")]
    NoCommand,
    /// `Env` has something that is no variable.
    #[error("`{entry}` is not an environment variable")]
    Variable {
        /// As it is there.
        entry: String,
    },
    /// A text that a runtime takes for a C string has a zero byte.
    #[error("{what} has a zero byte")]
    Zero {
        /// What it is.
        what: &'static str,
    },
    /// A path within the container is relative or leads out of it.
    #[error("`{path}` is not an absolute path in the container")]
    Path {
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
    /// A number that no user or group can have.
    #[error("`{number}` is not a user or group number: they go to 2147483647")]
    Number {
        /// As it was written.
        number: String,
    },
}
