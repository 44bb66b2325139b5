//! A table of the files in an image archive, for reading them in place.
//!
//! Archives are gigabytes; unpacking one to mount it would cost more than the mount saves. All headers are read once,
//! each with a small read, and file bodies are skipped. This is not the reader of layers: an image archive holds a few
//! regular files and links, and its content is checked by digests afterwards. As when unpacking, the last entry of a
//! name wins.

use std::collections::HashMap;

use super::SourceError;
use super::local::Piece;

/// The files of one tar, by name without leading `./` or `/`.
pub(super) struct TarFile {
    whole: Piece,
    members: HashMap<String, Member>,
}

enum Member {
    File {
        start: u64,
        len: u64,
    },
    /// A link to another name in the archive, relative to its root.
    Link(String),
}

impl TarFile {
    /// Reads all headers of an uncompressed tar.
    ///
    /// # Errors
    /// [`SourceError::Unsupported`] if it is truncated or damaged.
    pub(super) fn read(whole: Piece) -> Result<Self, SourceError> {
        let mut members = HashMap::new();
        let mut at = 0;
        let mut next = Overrides::default();
        let mut block = [0; BLOCK];
        while at < whole.len() {
            let broken = |why: &str| broken(&whole, at, why);
            if whole.len() - at < BLOCK as u64 {
                return Err(broken("is cut short"));
            }
            whole.read_at(at, &mut block)?;
            if block == [0; BLOCK] {
                break;
            }
            let header = Header(&block);
            if !header.checksum_holds() {
                return Err(broken("has a wrong checksum"));
            }
            let own_len = header.len().ok_or_else(|| broken("has an invalid size"))?;
            let special = matches!(header.kind(), b'x' | b'g' | b'L' | b'K');
            let len = if special { own_len } else { next.len.unwrap_or(own_len) };
            let len = if header.has_body() { len } else { 0 };
            let start = at + BLOCK as u64;
            let body = whole.part(start, len).ok_or_else(|| broken("is cut short"))?;

            match header.kind() {
                b'x' => next.take_pax(&body.read_whole(EXTENSION_LIMIT)?).ok_or_else(|| broken("is malformed"))?,
                b'g' => {}
                b'L' => next.name = Some(text_of(&body.read_whole(EXTENSION_LIMIT)?)),
                b'K' => next.link = Some(text_of(&body.read_whole(EXTENSION_LIMIT)?)),
                b'S' => return Err(broken("is a sparse file")),
                kind => {
                    let Overrides { name, link, sparse, .. } = std::mem::take(&mut next);
                    if sparse {
                        return Err(broken("is a sparse file"));
                    }
                    let name = clean("", &name.unwrap_or_else(|| header.name()));
                    let link = || link.unwrap_or_else(|| header.link());
                    let member = match kind {
                        b'0' | 0 | b'7' => Some(Member::File { start, len }),
                        b'1' => clean("", &link()).map(Member::Link),
                        b'2' => name.as_deref().and_then(|name| clean(parent(name), &link())).map(Member::Link),
                        _ => None,
                    };
                    if let (Some(name), Some(member)) = (name, member) {
                        members.insert(name, member);
                    }
                    if members.len() > MEMBERS_LIMIT {
                        return Err(broken("exceeds the limit of 100000 entries"));
                    }
                }
            }
            at = start + len.div_ceil(BLOCK as u64) * BLOCK as u64;
        }
        Ok(Self { whole, members })
    }

    /// The file of this name, following links within the archive.
    pub(super) fn find(&self, name: &str) -> Option<Piece> {
        let mut name = clean("", name)?;
        for _ in 0..LINKS_LIMIT {
            match self.members.get(&name)? {
                Member::File { start, len } => return self.whole.part(*start, *len),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    /// Whether the archive has this file.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The archive's own path.
    pub(super) fn path(&self) -> &str {
        self.whole.path()
    }
}

/// What extension records set for the next entry.
#[derive(Default)]
struct Overrides {
    name: Option<String>,
    link: Option<String>,
    len: Option<u64>,
    sparse: bool,
}

impl Overrides {
    /// Records of the form `LENGTH KEY=VALUE\n` (POSIX pax, "pax Extended Header").
    fn take_pax(&mut self, mut records: &[u8]) -> Option<()> {
        while !records.is_empty() {
            let space = records.iter().take(20).position(|b| *b == b' ')?;
            let len: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
            let record = records.get(space + 1..len)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|b| *b == b'=')?;
            let value = std::str::from_utf8(&record[equals + 1..]);
            match &record[..equals] {
                b"path" => self.name = Some(value.ok()?.to_owned()),
                b"linkpath" => self.link = Some(value.ok()?.to_owned()),
                b"size" => self.len = Some(value.ok()?.parse().ok()?),
                key => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
            records = &records[len..];
        }
        Some(())
    }
}

/// One 512-byte header (POSIX pax, "ustar Interchange Format", and GNU's).
struct Header<'a>(&'a [u8; BLOCK]);

impl Header<'_> {
    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn has_body(&self) -> bool {
        !matches!(self.kind(), b'1'..=b'6')
    }

    fn name(&self) -> String {
        let name = text_of(&self.0[..100]);
        let prefix = if &self.0[257..263] == b"ustar\0" { text_of(&self.0[345..500]) } else { String::new() };
        if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
    }

    fn link(&self) -> String {
        text_of(&self.0[157..257])
    }

    /// Octal digits, or a big-endian number if the first bit is set; `None` if negative or too large.
    fn len(&self) -> Option<u64> {
        let field = &self.0[124..136];
        if field[0] & 0x80 == 0 {
            return octal(field);
        }
        let (high, low) = field.split_at(4);
        (high == [0x80, 0, 0, 0]).then(|| low.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    /// Some old tars summed the bytes as signed numbers.
    fn checksum_holds(&self) -> bool {
        let summed = || self.0.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { b' ' } else { *b });
        let unsigned: u64 = summed().map(u64::from).sum();
        let signed: i64 = summed().map(|b| i64::from(b.cast_signed())).sum();
        octal(&self.0[148..156]).is_some_and(|sum| sum == unsigned || i64::try_from(sum) == Ok(signed))
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// Text up to the first NUL; names that are not UTF-8 match nothing.
fn text_of(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// `name` relative to `directory`, without `.`, `..` and empty parts; `None` if it leaves the archive.
fn clean(directory: &str, name: &str) -> Option<String> {
    let directory = if name.starts_with('/') { "" } else { directory };
    let mut parts = Vec::new();
    for part in directory.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn broken(whole: &Piece, at: u64, why: &str) -> SourceError {
    SourceError::Unsupported {
        place: format!("`{}`", whole.path()),
        why: format!("it is not a valid tar: the entry at byte {at} {why}"),
        hint: None,
    }
}

const BLOCK: usize = 512;
const EXTENSION_LIMIT: u64 = 1 << 20;
const MEMBERS_LIMIT: usize = 100_000;
const LINKS_LIMIT: usize = 8;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn open(bytes: &[u8]) -> Result<TarFile, SourceError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        TarFile::read(Piece::of(file.reopen().unwrap(), "it").unwrap())
    }

    fn content(tar: &TarFile, name: &str) -> Option<Vec<u8>> {
        Some(tar.find(name)?.read_whole(1 << 20).unwrap().to_vec())
    }

    fn header(kind: u8, name: &str, size: &[u8]) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..124 + size.len()].copy_from_slice(size);
        header[156] = kind;
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }

    fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.resize(bytes.len().div_ceil(BLOCK) * BLOCK, 0);
        bytes
    }

    #[test]
    fn names_of_any_length_and_spelling_are_found() {
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in [("./a/b", "1"), ("c", "old"), (&*long, "3"), ("c", "new")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes.as_bytes()).unwrap();
        }
        let tar = open(&tar.into_inner().unwrap()).unwrap();
        assert_eq!(content(&tar, "a/b").unwrap(), b"1");
        assert_eq!(content(&tar, "/a/./b").unwrap(), b"1");
        assert_eq!(content(&tar, &long).unwrap(), b"3");
        assert_eq!(content(&tar, "c").unwrap(), b"new");
        assert!(!tar.has("b"));
        assert!(!tar.has("../c"));
    }

    #[test]
    fn pax_records_win_over_the_header() {
        let records = b"17 path=p/longer\n9 size=5\n".to_vec();
        let records_len = format!("{:011o}", records.len());
        let mut bytes = header(b'x', "pax", records_len.as_bytes());
        bytes.extend(padded(records));
        bytes.extend(header(b'0', "short", b"00000000000"));
        bytes.extend(padded(b"hello".to_vec()));
        bytes.extend(header(b'0', "after", b"00000000002"));
        bytes.extend(padded(b"ok".to_vec()));
        let tar = open(&bytes).unwrap();
        assert_eq!(content(&tar, "p/longer").unwrap(), b"hello");
        assert_eq!(content(&tar, "after").unwrap(), b"ok");
        assert!(!tar.has("short"));
    }

    #[test]
    fn base_256_sizes_are_read_and_absurd_ones_refused() {
        let mut bytes = header(b'0', "a", &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        bytes.extend(padded(b"abc".to_vec()));
        assert_eq!(content(&open(&bytes).unwrap(), "a").unwrap(), b"abc");
        for size in [[0xff; 12], [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]] {
            assert!(open(&header(b'0', "a", &size)).is_err());
        }
        assert!(open(&header(b'0', "a", b"zzz")).is_err());
    }

    #[test]
    fn an_extension_without_end_is_refused() {
        let mut bytes = header(b'L', "x", b"00010000000");
        bytes.resize(4 << 20, b'a');
        assert!(matches!(open(&bytes), Err(SourceError::Unsupported { .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_damage_to_an_archive_panics(at in 0_usize..2048, bytes in proptest::collection::vec(0_u8.., 1..16)) {
            let mut tar = header(b'x', "pax", b"00000000032");
            tar.extend(padded(b"17 path=p/longer\n9 size=5\n".to_vec()));
            tar.extend(header(b'0', "short", b"00000000005"));
            tar.extend(padded(b"hello".to_vec()));
            let at = at.min(tar.len() - bytes.len());
            tar[at..at + bytes.len()].copy_from_slice(&bytes);
            let _ = open(&tar);
        }
    }
}
