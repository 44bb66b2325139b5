//! `peelfs IMAGE DIR -o OPTIONS`: how mount.fuse(8) calls a file system, and so `mount -t fuse.peelfs`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::error::{ContextKind, ErrorKind};

/// Adds the missing command `mount` to the command line, if `error` says that its first word is no command and the rest
/// fits a mount.
pub(super) fn with_mount(line: &[OsString], error: &clap::Error) -> Option<Vec<OsString>> {
    let [program, image, at, options @ ..] = line else { return None };
    if error.kind() != ErrorKind::InvalidSubcommand || starts_with_hyphen(image) || starts_with_hyphen(at) {
        return None;
    }
    let has_options = options.iter().any(|word| word.as_encoded_bytes().starts_with(b"-o"));
    // A misspelt command, followed by a directory.
    let may_be_misspelt = error.get(ContextKind::SuggestedSubcommand).is_some()
        && !image.as_encoded_bytes().iter().any(|byte| b":/.@".contains(byte));
    if !has_options && (may_be_misspelt || !Path::new(at).is_dir()) {
        return None;
    }
    let words = [program, OsStr::new("mount"), image, at].map(OsStr::to_owned);
    Some(words.into_iter().chain(options.iter().cloned()).collect())
}

fn starts_with_hyphen(word: &OsStr) -> bool {
    word.as_encoded_bytes().starts_with(b"-")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser as _;

    use super::super::args::{Args, Command};
    use super::*;

    /// The image to mount, if the line is a mount.
    fn image(line: &str) -> Option<String> {
        let line: Vec<OsString> = line.split(' ').map(Into::into).collect();
        let error = Args::try_parse_from(&line).unwrap_err();
        match Args::try_parse_from(with_mount(&line, &error)?).unwrap().command {
            Command::Mount(args) => Some(args.image.reference),
            command => panic!("{command:?}"),
        }
    }

    #[test]
    fn a_line_of_mount_fuse_mounts() {
        assert_eq!(image("peelfs oci:lay:b /tmp -o rw,dev,suid").as_deref(), Some("oci:lay:b"));
        assert_eq!(image("peelfs alpine /tmp").as_deref(), Some("alpine"));
        assert_eq!(image("peelfs quay.io/a/b:1 /tmp --wait").as_deref(), Some("quay.io/a/b:1"));
        // The mount itself reports what is no directory.
        assert_eq!(image("peelfs alpine /nonexistent -o ro").as_deref(), Some("alpine"));
    }

    #[test]
    fn a_misspelt_command_stays_one() {
        for line in
            ["peelfs mout /tmp", "peelfs statsu /tmp", "peelfs alpine /nonexistent", "peelfs alpine", "peelfs -x /tmp"]
        {
            assert_eq!(image(line), None, "{line}");
        }
    }
}
