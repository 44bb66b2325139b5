//! What a layer may not contain.

use super::{DEPTH_MAX, NAME_MAX, TARGET_MAX};

/// Why an entry cannot be added to the tree.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TreeError {
    /// A path component is longer than Linux allows.
    #[error("the name `{}…` has {len} bytes, the limit is {NAME_MAX}", .start.escape_ascii())]
    NameTooLong {
        /// Its first bytes.
        start: Vec<u8>,
        /// Its length in bytes.
        len: usize,
    },
    /// A path is too long.
    #[error("a path has {len} bytes, the limit is {limit}")]
    PathTooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A symlink's target is empty or too long.
    #[error("the target of symlink `{}` has {len} bytes, 1 to {TARGET_MAX} are possible", .path.escape_ascii())]
    TargetLength {
        /// The symlink.
        path: Vec<u8>,
        /// Length of its target in bytes.
        len: usize,
    },
    /// A name has a NUL in it.
    #[error("the path `{}` contains a NUL byte", .path.escape_ascii())]
    Nul {
        /// The path, at most 256 bytes of it.
        path: Vec<u8>,
    },
    /// A path continues below an entry that is not a directory.
    #[error("`{}` leads through `{}`, which is not a directory", .path.escape_ascii(), .at.escape_ascii())]
    NotADirectory {
        /// The path, at most 256 bytes of it.
        path: Vec<u8>,
        /// The component.
        at: Vec<u8>,
    },
    /// A path leads through too many symlinks, or all paths together do.
    #[error("`{}` leads through too many symbolic links", .path.escape_ascii())]
    TooManyLinks {
        /// The path, at most 256 bytes of it.
        path: Vec<u8>,
    },
    /// A path is too deep.
    #[error("`{}` leads more than {DEPTH_MAX} directories down", .path.escape_ascii())]
    TooDeep {
        /// The path, at most 256 bytes of it.
        path: Vec<u8>,
    },
    /// A hard link to a directory.
    #[error("`{}` is a hard link to the directory `{}`", .path.escape_ascii(), .target.escape_ascii())]
    LinkToDirectory {
        /// The link, at most 256 bytes of it.
        path: Vec<u8>,
        /// Its target, at most 256 bytes of it.
        target: Vec<u8>,
    },
    /// A whiteout without a name, or of `.` or `..`.
    #[error("the whiteout `{}` names no file", .path.escape_ascii())]
    Whiteout {
        /// The whiteout's path, at most 256 bytes of it.
        path: Vec<u8>,
    },
    /// An extended attribute beyond the limits of Linux.
    #[error("`{}` has an extended attribute with a name of {name} and a value of {value} bytes", .path.escape_ascii())]
    Xattr {
        /// The entry, at most 256 bytes of it.
        path: Vec<u8>,
        /// Length of the name; 1 to 255 are allowed.
        name: usize,
        /// Length of the value; up to 65,536 are allowed.
        value: usize,
    },
    /// The layer is larger than [`Limits`] allow.
    #[error("the layer has more than {limit} {what}")]
    TooMany {
        /// What exceeds the limit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The index of the layer would be far larger than its blob.
    #[error("names and directories take more than {limit} bytes, which is out of proportion to the size of the layer")]
    OutOfProportion {
        /// The limit.
        limit: u64,
    },
    /// A graft would move a directory into itself.
    #[error("`{}` cannot be moved below itself", .path.escape_ascii())]
    GraftIntoItself {
        /// The path, at most 256 bytes of it.
        path: Vec<u8>,
    },
}

pub(super) fn too_long(name: &[u8]) -> TreeError {
    TreeError::NameTooLong { start: name[..name.len().min(32)].to_vec(), len: name.len() }
}

pub(super) fn too_many(what: &'static str, limit: u64) -> TreeError {
    TreeError::TooMany { what, limit }
}
