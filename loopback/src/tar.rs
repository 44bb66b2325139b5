//! Writing tar archives, good ones and odd ones.
//!
//! The `tar` crate refuses to write much of what real layers hold and a reader must survive: names that
//! are not UTF-8, times before 1970 and with nanoseconds, extended attributes, records in any order,
//! raw bytes between them, archives without an end. So the writer is our own. It writes ustar and adds
//! a PAX extended header (POSIX.1-2001, pax, "pax Extended Header") only where ustar cannot say it.

use bytes::Bytes;

/// One thing in a layer, in the order and under the name in which it stands in the archive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The name as written, without the closing slash of directories.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// The owner.
    pub uid: u64,
    /// The group.
    pub gid: u64,
    /// The modification time.
    pub mtime: Mtime,
    /// Extended attributes (`SCHILY.xattr.*`), names without that prefix.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EntryKind {
    /// A regular file with this content.
    File(Bytes),
    /// A directory.
    Dir,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// Another name of this entry.
    HardLink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice {
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
}

/// A time: seconds since 1970, which may be negative, and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mtime {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds, less than 10⁹.
    pub nanos: u32,
}

impl Entry {
    /// A regular file, 0644.
    pub fn file(path: impl Into<Vec<u8>>, content: impl Into<Bytes>) -> Self {
        Self::new(path, EntryKind::File(content.into()), 0o644)
    }

    /// A directory, 0755.
    pub fn dir(path: impl Into<Vec<u8>>) -> Self {
        Self::new(path, EntryKind::Dir, 0o755)
    }

    /// A symbolic link, 0777.
    pub fn symlink(path: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) -> Self {
        Self::new(path, EntryKind::Symlink(target.into()), 0o777)
    }

    /// A hard link; unpackers give its metadata to the file it names.
    pub fn hard_link(path: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) -> Self {
        Self::new(path, EntryKind::HardLink(target.into()), 0o644)
    }

    /// A named pipe, 0644.
    pub fn fifo(path: impl Into<Vec<u8>>) -> Self {
        Self::new(path, EntryKind::Fifo, 0o644)
    }

    /// A character device, 0644.
    pub fn char_device(path: impl Into<Vec<u8>>, major: u32, minor: u32) -> Self {
        Self::new(path, EntryKind::CharDevice { major, minor }, 0o644)
    }

    /// A block device, 0644.
    pub fn block_device(path: impl Into<Vec<u8>>, major: u32, minor: u32) -> Self {
        Self::new(path, EntryKind::BlockDevice { major, minor }, 0o644)
    }

    /// The whiteout of `path` (image-spec, layer.md, "Whiteouts").
    pub fn whiteout(path: impl AsRef<[u8]>) -> Self {
        let (parent, name) = split_name(path.as_ref());
        Self::file([parent, b".wh.", name].concat(), "")
    }

    /// The opaque whiteout in the directory `path` (image-spec, layer.md, "Opaque Whiteout").
    pub fn opaque(path: impl AsRef<[u8]>) -> Self {
        let parent = path.as_ref();
        let slash: &[u8] = if parent.is_empty() { b"" } else { b"/" };
        Self::file([parent, slash, b".wh..wh..opq"].concat(), "")
    }

    fn new(path: impl Into<Vec<u8>>, kind: EntryKind, mode: u32) -> Self {
        let mtime = Mtime { seconds: 1_700_000_000, nanos: 0 };
        Self { path: path.into(), kind, mode, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
    }

    /// Other permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Another owner and group.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Another time; `nanos` count upwards from `seconds` also before 1970.
    #[must_use]
    pub fn mtime(mut self, seconds: i64, nanos: u32) -> Self {
        self.mtime = Mtime { seconds, nanos };
        self
    }

    /// One more extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.into(), value.into()));
        self
    }

    /// Appends the records of this entry: extended header if needed, header, content, padding.
    pub fn write(&self, out: &mut Vec<u8>) {
        let content: &[u8] = if let EntryKind::File(content) = &self.kind { content } else { b"" };
        let mut name = self.path.clone();
        if self.kind == EntryKind::Dir {
            name.push(b'/');
        }
        let target: &[u8] = match &self.kind {
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => target,
            _ => b"",
        };
        let pax = self.pax_records(&name, target, content.len() as u64);
        if !pax.is_empty() {
            let header =
                Header { name: b"PaxHeader", kind: b'x', size: pax.len() as u64, mode: 0o644, ..Header::EMPTY };
            header.write(out);
            append_padded(out, &pax);
        }
        let (kind, (major, minor)) = match self.kind {
            EntryKind::File(_) => (b'0', (0, 0)),
            EntryKind::HardLink(_) => (b'1', (0, 0)),
            EntryKind::Symlink(_) => (b'2', (0, 0)),
            EntryKind::CharDevice { major, minor } => (b'3', (major, minor)),
            EntryKind::BlockDevice { major, minor } => (b'4', (major, minor)),
            EntryKind::Dir => (b'5', (0, 0)),
            EntryKind::Fifo => (b'6', (0, 0)),
        };
        Header {
            name: &name,
            kind,
            size: content.len() as u64,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: u64::try_from(self.mtime.seconds).unwrap_or(0),
            target,
            major,
            minor,
        }
        .write(out);
        append_padded(out, content);
    }

    /// What ustar cannot say about this entry.
    fn pax_records(&self, name: &[u8], target: &[u8], size: u64) -> Vec<u8> {
        let mut records = Vec::new();
        if name.len() > 100 || !name.is_ascii() {
            append_pax(&mut records, b"path", name);
        }
        if target.len() > 100 || !target.is_ascii() {
            append_pax(&mut records, b"linkpath", target);
        }
        for (key, value) in [("uid", self.uid), ("gid", self.gid)] {
            if value > OCTAL_7 {
                append_pax(&mut records, key.as_bytes(), value.to_string().as_bytes());
            }
        }
        if size > OCTAL_11 {
            append_pax(&mut records, b"size", size.to_string().as_bytes());
        }
        if self.mtime.nanos != 0 || u64::try_from(self.mtime.seconds).map_or(true, |seconds| seconds > OCTAL_11) {
            append_pax(&mut records, b"mtime", self.mtime.decimal().as_bytes());
        }
        for (name, value) in &self.xattrs {
            append_pax(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        records
    }
}

impl Mtime {
    /// As PAX writes it: a decimal number, whose sign stands before the fraction too.
    fn decimal(self) -> String {
        let nanos = i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanos);
        let sign = if nanos < 0 { "-" } else { "" };
        let (whole, fraction) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
        match fraction {
            0 => format!("{sign}{whole}"),
            _ => format!("{sign}{whole}.{fraction:09}"),
        }
    }
}

/// A ustar header, field by field; for records that [`Entry`] does not write.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// The name, cut at 100 bytes.
    pub name: &'a [u8],
    /// The type flag.
    pub kind: u8,
    /// The size of the content.
    pub size: u64,
    /// The permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u64,
    /// The group.
    pub gid: u64,
    /// The time in seconds.
    pub mtime: u64,
    /// The link target, cut at 100 bytes.
    pub target: &'a [u8],
    /// The major device number.
    pub major: u32,
    /// The minor device number.
    pub minor: u32,
}

impl Header<'_> {
    /// A header with nothing in it.
    pub const EMPTY: Header<'static> =
        Header { name: b"", kind: b'0', size: 0, mode: 0, uid: 0, gid: 0, mtime: 0, target: b"", major: 0, minor: 0 };

    /// Appends the 512 bytes, checksum included; numbers too large for their field become 0.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut block = [0u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode & 0o7777).as_bytes());
        for (at, value) in [(108, self.uid), (116, self.gid), (329, self.major.into()), (337, self.minor.into())] {
            put(at, format!("{:07o}", if value > OCTAL_7 { 0 } else { value }).as_bytes());
        }
        for (at, value) in [(124, self.size), (136, self.mtime)] {
            put(at, format!("{:011o}", if value > OCTAL_11 { 0 } else { value }).as_bytes());
        }
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.target[..self.target.len().min(100)]);
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend_from_slice(&block);
    }
}

/// Appends one PAX record, `LENGTH KEY=VALUE\n`, whose length counts itself.
pub fn append_pax(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Appends content and zeros up to the next block.
pub fn append_padded(out: &mut Vec<u8>, content: &[u8]) {
    out.extend_from_slice(content);
    out.resize(out.len() + content.len().next_multiple_of(BLOCK) - content.len(), 0);
}

/// Appends the two zero blocks that end an archive.
pub fn append_end(out: &mut Vec<u8>) {
    out.resize(out.len() + 2 * BLOCK, 0);
}

/// The part up to and including the last slash, and the rest.
fn split_name(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1))
}

/// The size of a tar block.
const BLOCK: usize = 512;
/// The largest number that 7 octal digits hold.
const OCTAL_7: u64 = 0o7_777_777;
/// The largest number that 11 octal digits hold.
const OCTAL_11: u64 = 0o77_777_777_777;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use super::*;

    fn archive(entries: &[Entry]) -> Vec<u8> {
        let mut out = Vec::new();
        entries.iter().for_each(|entry| entry.write(&mut out));
        append_end(&mut out);
        out
    }

    #[test]
    fn another_reader_sees_what_was_written() {
        let long = "d/".repeat(80) + "file";
        let entries = [
            Entry::dir("d").owner(3, 4).mode(0o1777),
            Entry::file(long.clone(), "content").mtime(1_600_000_000, 0).owner(5_000_000, 6),
            Entry::symlink("s", "t".repeat(150)),
            Entry::hard_link("h", long.clone()),
            Entry::char_device("c", 5, 1),
            Entry::block_device("b", 8, 0),
            Entry::fifo("p"),
            Entry::file(b"\xff\xfe".to_vec(), vec![7; 513]),
        ];
        let bytes = archive(&entries);
        let mut reader = tar::Archive::new(bytes.as_slice());
        let mut seen = Vec::new();
        for entry in reader.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let path = entry.path_bytes().into_owned();
            let target = entry.link_name_bytes().map(|name| name.into_owned());
            let header = entry.header();
            seen.push((path, header.entry_type(), header.mode().unwrap(), target, content));
        }
        use tar::EntryType as Type;
        let long = long.into_bytes();
        assert_eq!(seen[0], (b"d/".to_vec(), Type::Directory, 0o1777, None, vec![]));
        assert_eq!(seen[1], (long.clone(), Type::Regular, 0o644, None, b"content".to_vec()));
        assert_eq!(seen[2], (b"s".to_vec(), Type::Symlink, 0o777, Some(b"t".repeat(150)), vec![]));
        assert_eq!(seen[3], (b"h".to_vec(), Type::Link, 0o644, Some(long), vec![]));
        assert_eq!(seen[4].1, Type::Char);
        assert_eq!(seen[5].1, Type::Block);
        assert_eq!(seen[6].1, Type::Fifo);
        assert_eq!(seen[7], (b"\xff\xfe".to_vec(), Type::Regular, 0o644, None, vec![7; 513]));
    }

    #[test]
    fn a_pax_record_counts_its_own_length() {
        for size in 0..1200 {
            let mut out = Vec::new();
            append_pax(&mut out, b"k", &vec![b'v'; size]);
            let text = String::from_utf8(out.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), out.len());
        }
    }

    #[test]
    fn times_are_written_as_decimals() {
        let table = [((0, 0), "0"), ((1, 5), "1.000000005"), ((-1, 0), "-1"), ((-1, 500_000_000), "-0.500000000")];
        for ((seconds, nanos), wanted) in table {
            assert_eq!(Mtime { seconds, nanos }.decimal(), wanted);
        }
    }

    #[test]
    fn whiteouts_stand_beside_what_they_hide() {
        assert_eq!(Entry::whiteout("a/b").path, b"a/.wh.b");
        assert_eq!(Entry::whiteout("b").path, b".wh.b");
        assert_eq!(Entry::opaque("a").path, b"a/.wh..wh..opq");
        assert_eq!(Entry::opaque("").path, b".wh..wh..opq");
    }
}
