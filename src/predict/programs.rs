//! Program prediction: fetches the libraries that a program names before its loader reads them.
//!
//! A loader reads the program, then the libraries that it names, then those that they name: one round trip after
//! another, although the first file already has the names. So for each program or library that is loaded, the names in
//! its dynamic section are looked up and fetched slightly ahead of the loader. The first program loaded in a mount also
//! triggers the one that the image's configuration names.
//!
//! - The first read distinguishes a *load* from a *copy*: a loader first reads a few bytes, for which the kernel reads
//!   less than 128 KiB; a copy reads the maximum at once. Copying files predicts nothing.
//! - A program of up to 8 MiB is fetched completely, as the kernel reads mapped files; of a larger one, the dynamic
//!   section, the symbols, and the start of writable segments.
//! - Nothing in the file is trusted: a wrong name or offset costs bytes, and all counts are limited.
//!
//! This module decides what to fetch and where to look; the caller walks the image.

use std::ops::Range;

use super::elf::{FAULT, MAGIC, Program};
use super::event::Priority;

/// How a program was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Seen {
    /// A loader has started to read it.
    Loading,
    /// Another program, or the image's configuration, names it.
    Named,
}

/// Whether a file whose first read returned `bytes` is a program being loaded, and not copied.
pub fn is_load(bytes: &[u8]) -> bool {
    bytes.len() < COPIED && bytes.starts_with(MAGIC)
}

/// Whether a program of this length is fetched completely.
pub fn is_fetched_whole(length: u64) -> bool {
    length <= WHOLE
}

/// What to fetch of a program while its head is read: the dynamic section is usually near the end.
pub fn beside_head(length: u64, seen: Seen) -> Option<Range<u64>> {
    (seen == Seen::Named && is_fetched_whole(length)).then(|| length.saturating_sub(FAULT)..length)
}

/// What to fetch of a program once its head is known, besides its dynamic section.
pub fn beside_dynamic(program: &Program, length: u64) -> Vec<(Range<u64>, Priority)> {
    if is_fetched_whole(length) {
        return vec![(0..length, Priority::Low)];
    }
    let around = |table: Range<u64>| (table.start.saturating_sub(FAULT)..table.end, Priority::High);
    program.tables().map(around).collect()
}

/// The dynamic section, up to a limit.
pub fn dynamic(program: &Program) -> Option<Range<u64>> {
    let Range { start, end } = program.dynamic;
    (start < end).then(|| start..end.min(start.saturating_add(MOST_DYNAMIC)))
}

/// What the kernel reads when `section` of a mapped file is accessed.
pub fn around(section: &Range<u64>) -> Range<u64> {
    section.start.saturating_sub(FAULT)..section.end.saturating_add(FAULT)
}

/// The range of a name, or of directory names, that starts at `start`.
pub fn name_at(start: u64) -> Range<u64> {
    start..start.saturating_add(NAME)
}

/// A name, up to the first zero.
pub fn name(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The interpreter of a script, if it names one.
pub fn interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    line.split(|byte| byte.is_ascii_whitespace()).find(|word| !word.is_empty())
}

/// Directories of the image's loaders; they hold other libraries, too.
#[derive(Clone, Debug, Default)]
pub struct LoaderDirectories(Vec<Vec<u8>>);

impl LoaderDirectories {
    /// Records the directory of a loader.
    pub fn note(&mut self, directory: Vec<u8>) {
        if self.0.len() < MOST_LOADERS && !self.0.contains(&directory) {
            self.0.push(directory);
        }
    }

    /// The library search path of a program in the directory `own`, in order. `named` are the directories that it
    /// names, separated by colons.
    pub fn search_path(&self, own: &[u8], named: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let named = named.iter().flat_map(|text| text.split(|byte| *byte == b':'));
        let mut path: Vec<_> = named.take(MOST_DIRECTORIES).map(|directory| expanded(directory, own)).collect();
        path.extend(self.0.iter().cloned());
        path.extend(USUAL.iter().map(|directory| directory.as_bytes().to_vec()));
        path
    }
}

/// Expands a directory named by a program in `own`.
fn expanded(directory: &[u8], own: &[u8]) -> Vec<u8> {
    for origin in [b"$ORIGIN".as_slice(), b"${ORIGIN}"] {
        if let Some(rest) = directory.strip_prefix(origin) {
            return [own, b".".as_slice(), rest].concat();
        }
    }
    directory.to_vec()
}

/// Files that a loader reads besides programs and libraries.
pub const LOADER_READS: &[&str] = &["/etc/ld.so.cache"];
/// Limit for programs per mount.
pub const MOST_PROGRAMS: usize = 1 << 12;
/// A program or library up to this size is fetched completely: most are mapped, and the kernel reads 512 KiB for each
/// page accessed. Of the 57 above 150 KB that Python and Node.js load, 55 are read to 80 % or more.
const WHOLE: u64 = 8 << 20;
/// A first read of at least this many bytes is a copy.
const COPIED: usize = 128 << 10;
/// Default library directories.
const USUAL: &[&str] = &["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"];
/// Limit for library directories of a program.
const MOST_DIRECTORIES: usize = 32;
/// Limit for directories of loaders.
const MOST_LOADERS: usize = 4;
/// Limit for a dynamic section, in bytes.
const MOST_DYNAMIC: u64 = 64 << 10;
/// Limit for a name, or for directory names, in bytes.
const NAME: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_names_its_interpreter() {
        for (head, program) in [
            (b"#!/bin/sh\nset -e\n".as_slice(), Some(b"/bin/sh".as_slice())),
            (b"#! /usr/bin/env python3\n", Some(b"/usr/bin/env")),
            (b"#!\n", None),
            (b"set -e\n", None),
        ] {
            assert_eq!(interpreter(head), program);
        }
    }

    #[test]
    fn a_load_begins_with_a_few_bytes_of_a_program() {
        let program = |length| [MAGIC, &vec![0; length]].concat();
        assert!(is_load(&program(4096)));
        assert!(!is_load(&program(COPIED)), "it is copied");
        assert!(!is_load(b"#!/bin/sh\n"));
    }

    #[test]
    fn libraries_are_searched_where_the_program_says_first() {
        let mut loaders = LoaderDirectories::default();
        (0..10).for_each(|number| loaders.note(format!("/loader{number}/").into_bytes()));
        let path = loaders.search_path(b"/opt/bin/", &[b"$ORIGIN/../lib:/opt/lib".to_vec(), b"${ORIGIN}".to_vec()]);
        let path: Vec<_> = path.iter().map(|directory| String::from_utf8_lossy(directory)).collect();
        assert_eq!(path[..5], ["/opt/bin/./../lib", "/opt/lib", "/opt/bin/.", "/loader0/", "/loader1/"]);
        assert_eq!(path.len(), 3 + MOST_LOADERS + USUAL.len());
        let many = LoaderDirectories::default().search_path(b"/", &[vec![b':'; 1000]]);
        assert_eq!(many.len(), MOST_DIRECTORIES + USUAL.len());
    }

    #[test]
    fn only_small_programs_are_fetched_whole() {
        let program = Program::default();
        assert_eq!(beside_dynamic(&program, WHOLE), [(0..WHOLE, Priority::Low)]);
        assert_eq!(beside_dynamic(&program, WHOLE + 1), []);
        assert_eq!(beside_head(WHOLE, Seen::Named), Some(WHOLE - FAULT..WHOLE));
        assert_eq!(beside_head(WHOLE, Seen::Loading), None);
    }
}
