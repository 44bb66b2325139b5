//! Program prediction: the libraries that a program names are fetched before its loader asks for them.
//!
//! A loader reads the program, then the libraries that it names, then those that they name: one round trip after
//! another, for files whose names were in the first one. So from each program or library that begins to load, the
//! names in its dynamic section are looked up and fetched a little ahead of the loader. With the first program of a
//! mount that is loaded, the one that the image's configuration names is included.
//!
//! - A *load* is told from a *copy* by its first read: loaders begin with a few bytes, for which the kernel reads less
//!   than 128 KiB, programs that copy with as much as fits. Copying files out of an image predicts nothing.
//! - A program of up to 8 MiB is fetched as a whole, which is how the kernel reads what is mapped; of a larger one the
//!   dynamic section, the symbols, and where written segments begin.
//! - Nothing in the file is believed: a wrong name or place costs bytes, and all counts are bounded.
//!
//! Here is what to fetch and where to look; walking the image is the caller's.

use std::ops::Range;

use super::elf::{FAULT, MAGIC, Program};
use super::event::Priority;

/// How a program was seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Seen {
    /// A loader has begun to read it.
    Loading,
    /// Another program, or the image's configuration, names it.
    Named,
}

/// Whether a file whose first `bytes` are read at once is a program that is loaded, and not copied.
pub fn is_load(bytes: &[u8]) -> bool {
    bytes.len() < COPIED && bytes.starts_with(MAGIC)
}

/// Whether a program of this length is fetched as a whole.
pub fn is_fetched_whole(length: u64) -> bool {
    length <= WHOLE
}

/// What to fetch of a program while its head is still read: mostly the dynamic section is near its end.
pub fn beside_head(length: u64, seen: Seen) -> Option<Range<u64>> {
    (seen == Seen::Named && is_fetched_whole(length)).then(|| length.saturating_sub(FAULT)..length)
}

/// What to fetch of a program of this length once its head is known, beside its dynamic section.
pub fn beside_dynamic(program: &Program, length: u64) -> Vec<(Range<u64>, Priority)> {
    if is_fetched_whole(length) {
        return vec![(0..length, Priority::Low)];
    }
    let around = |table: Range<u64>| (table.start.saturating_sub(FAULT)..table.end, Priority::High);
    program.tables().map(around).collect()
}

/// The dynamic section, as far as it is looked at.
pub fn dynamic(program: &Program) -> Option<Range<u64>> {
    let Range { start, end } = program.dynamic;
    (start < end).then(|| start..end.min(start.saturating_add(MOST_DYNAMIC)))
}

/// What the kernel reads when `section` of a mapped file is touched.
pub fn around(section: &Range<u64>) -> Range<u64> {
    section.start.saturating_sub(FAULT)..section.end.saturating_add(FAULT)
}

/// Where a name, or the names of some directories, are written that begin at `start`.
pub fn name_at(start: u64) -> Range<u64> {
    start..start.saturating_add(NAME)
}

/// A name, which ends with the first zero.
pub fn name(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Which program reads a script, if it is one that says so.
pub fn interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    line.split(|byte| byte.is_ascii_whitespace()).find(|word| !word.is_empty())
}

/// Directories in which loaders of the image were found: other libraries are there, too.
#[derive(Clone, Debug, Default)]
pub struct LoaderDirectories(Vec<Vec<u8>>);

impl LoaderDirectories {
    /// A loader was found there.
    pub fn note(&mut self, directory: Vec<u8>) {
        if self.0.len() < MOST_LOADERS && !self.0.contains(&directory) {
            self.0.push(directory);
        }
    }

    /// Where the libraries of a program that lies in `own` are looked for, in order. `named` are the directories that
    /// it names, separated by colons.
    pub fn search_path(&self, own: &[u8], named: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let named = named.iter().flat_map(|text| text.split(|byte| *byte == b':'));
        let mut path: Vec<_> = named.take(MOST_DIRECTORIES).map(|directory| expanded(directory, own)).collect();
        path.extend(self.0.iter().cloned());
        path.extend(USUAL.iter().map(|directory| directory.as_bytes().to_vec()));
        path
    }
}

/// A directory that a program in `own` names.
fn expanded(directory: &[u8], own: &[u8]) -> Vec<u8> {
    for origin in [b"$ORIGIN".as_slice(), b"${ORIGIN}"] {
        if let Some(rest) = directory.strip_prefix(origin) {
            return [own, b".".as_slice(), rest].concat();
        }
    }
    directory.to_vec()
}

/// What a loader reads besides programs and libraries.
pub const LOADER_READS: &[&str] = &["/etc/ld.so.cache"];
/// Programs that are looked at in a mount.
pub const MOST_PROGRAMS: usize = 1 << 12;
/// A program or library of up to this many bytes is read as a whole: all but the largest are mapped, and for each page
/// that is touched the kernel reads half a MiB. Of 57 above 150 KB that Python and Node.js load, 55 are, to 0.8 and more.
const WHOLE: u64 = 8 << 20;
/// A first piece of this many bytes is read to copy the file.
const COPIED: usize = 128 << 10;
/// Where libraries are if the program does not say.
const USUAL: &[&str] = &["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"];
/// Directories that a program names in which its libraries are looked for.
const MOST_DIRECTORIES: usize = 32;
/// Directories of loaders that are remembered.
const MOST_LOADERS: usize = 4;
/// Bytes of a dynamic section that are looked at.
const MOST_DYNAMIC: u64 = 64 << 10;
/// Bytes in which a name, or the names of some directories, should end.
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
    fn libraries_are_looked_for_where_the_program_says_first() {
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
