//! The layer index on disk: a layer's tree and spans.
//!
//! One file, written once: `body | page checksums | footer`. The body consists of consecutive sections, each at a
//! multiple of 64 bytes; all numbers are little-endian:
//!
//! | section | a record |
//! |---|---|
//! | entries | 64 bytes, by id; `super::entry::Record` has the layout |
//! | children | entry id u32; a directory's are contiguous and sorted by name |
//! | implied | entry id u32 of each topmost implied directory |
//! | lower links | entry id u32 of each hard link into a lower layer |
//! | extents | offset in file u64, decoded offset u64, length u64, 8 bytes 0 |
//! | spans | 64 bytes; `super::spans::Span` has the layout |
//! | attribute sets | start u32 and length u32 in the next but one section |
//! | names | bytes; names and link targets, none across a page boundary |
//! | attributes | bytes; `super::xattrs` has the layout |
//! | windows | bytes; decoder windows as the codec stored them. Where these are in a blob of their own, `super::windows` has the layout. Where the decoded stream is that of the bodies of files, 16 bytes for each span; `super::spans::SpanSource` has the layout |
//!
//! Pages are 64 KiB and verified with blake3 on first access; a blake3 in the footer's last 32 bytes covers the
//! checksum table and the footer, and is verified when the index is opened. So opening takes two small reads, a damaged
//! index yields an error, and a malicious index with valid checksums is still checked for bounds everywhere.

mod error;
mod restore;
mod tree;

pub use error::IndexError;

use crate::digest::{Algorithm, Digest};
use crate::offsets::DecodedOffset;
use crate::span::SpanId;
use error::unread;

use crate::layer::entry::{le32, le64};
use crate::layer::file::stream_of_blob;
use crate::layer::footer::{FOOTER, FOOTER_CHECKED, Footer, MAGIC, Place, Section, TAIL, VERSIONS};
use crate::layer::paged::{CHECK, PAGE, Paged, ReadAt};
use crate::layer::proof::{IndexedLayer, Proof, Stream};
use crate::layer::spans::{Span, SpanSource};

/// Features that occur in a layer, so that lookups can be skipped.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Contents(pub(super) u32);

impl Contents {
    /// Some entry has extended attributes.
    pub const XATTRS: Self = Self(1);
    /// Some directory is implied.
    pub const IMPLIED: Self = Self(2);
    /// Some hard link leads into a lower layer.
    pub const LOWER_LINKS: Self = Self(4);
    /// Lower layers are hidden by a whiteout or an opaque directory.
    pub const WHITEOUTS: Self = Self(8);

    /// Whether the layer has all features of `other`.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A written layer index.
pub struct LayerIndex {
    pub(super) pages: Paged,
    pub(super) footer: Footer,
    /// What its decoded stream is known by, where that is not proven to be the tar: a digest of all of the index but for its
    /// end, or of the blob.
    stream_name: Option<Digest>,
}

impl std::fmt::Debug for LayerIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerIndex").field("footer", &self.footer).finish_non_exhaustive()
    }
}

impl LayerIndex {
    /// Opens an index: reads and verifies only its footer and page table.
    ///
    /// # Errors
    /// [`IndexError`] if it is not an index, damaged at its end, or of another version.
    pub fn open(source: impl ReadAt + 'static) -> Result<Self, IndexError> {
        let size = source.size().map_err(unread)?;
        let footer_at = size.checked_sub(FOOTER as u64).ok_or(IndexError::NotAnIndex)?;
        // Most page tables are read along with the footer.
        let tail_at = size.saturating_sub(TAIL as u64);
        let mut tail = [0; TAIL];
        let tail = &mut tail[..(size - tail_at) as usize];
        source.read_exact_at(tail, tail_at).map_err(unread)?;
        let (before, raw) = tail.split_at(tail.len() - FOOTER);
        if &raw[..8] != MAGIC {
            return Err(IndexError::NotAnIndex);
        }
        // Another version may have another footer, so check the version before the checksum.
        let version = le32(raw, 8);
        if !VERSIONS.contains(&version) {
            return Err(IndexError::Version { found: version });
        }
        let (body, name) = (le64(raw, 16), Footer::name_bytes(raw));
        let table =
            footer_at.checked_sub(name as u64).and_then(|end| end.checked_sub(body)).ok_or(IndexError::NotAnIndex)?;
        if table != body.div_ceil(PAGE as u64) * CHECK as u64 {
            return Err(IndexError::NotAnIndex);
        }
        let table = usize::try_from(table).map_err(|_| IndexError::NotAnIndex)?;
        let mut more;
        let end = match before.len().checked_sub(table + name) {
            Some(at) => &before[at..],
            None => {
                more = vec![0; table + name];
                source.read_exact_at(&mut more, body).map_err(unread)?;
                &more
            }
        };
        let (checks, name) = end.split_at(table);
        let mut hasher = blake3::Hasher::new();
        hasher.update(end);
        hasher.update(&raw[..FOOTER_CHECKED]);
        if hasher.finalize().as_bytes() != &raw[FOOTER_CHECKED..] {
            return Err(IndexError::NotAnIndex);
        }
        let footer = Footer::from_bytes(raw, name)?;
        let stream_name = match footer.stream {
            // Nothing proves that it is the tar, so it is none other's content.
            Stream::Tar if footer.checks_blob() => Some(Digest::of(Algorithm::Sha256, checks)),
            Stream::Tar => None,
            Stream::Bodies => Some(Digest::of(Algorithm::Sha256, checks)),
            Stream::Blob => Some(stream_of_blob(&footer.layer.blob)),
        };
        let checks = checks.chunks_exact(CHECK).map(|check| check.try_into().expect("exact chunks")).collect();
        Ok(Self { pages: Paged::new(Box::new(source), body, checks), footer, stream_name })
    }

    /// Calls `then` whenever a page turns out damaged after the index was opened, so that the owner can rebuild the
    /// index.
    #[must_use]
    pub fn on_damage(self, then: impl Fn() + Send + Sync + 'static) -> Self {
        Self { pages: self.pages.on_damage(Box::new(then)), ..self }
    }

    /// Whether a page was found damaged, and the index was not mended since.
    pub fn is_damaged(&self) -> bool {
        self.pages.is_damaged()
    }

    /// Reads pages that are not in memory from `anew`'s source from now on; `false` if `anew` is another index.
    ///
    /// Indexes are deterministic: a rebuilt index has the same pages as the damaged one.
    pub fn mend(&self, anew: &Self) -> bool {
        self.footer.is_same_but_for_proof(&anew.footer) && self.pages.mend(&anew.pages)
    }

    /// The end of the file with another proof, and its offset; everything before it stays.
    pub fn end_with(&self, proof: Proof) -> (u64, Vec<u8>) {
        let footer = Footer { proof, ..self.footer.clone() };
        let checks = self.pages.checks().concat();
        (footer.body + checks.len() as u64, footer.sealed(&checks))
    }

    /// Reads and verifies the whole index, without keeping it in memory.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] for the first damaged page.
    pub fn check_all(&self) -> Result<(), IndexError> {
        self.pages.check_all()
    }

    /// The layer of the index.
    pub fn layer(&self) -> &IndexedLayer {
        &self.footer.layer
    }

    /// What its decoded stream consists of.
    pub fn stream(&self) -> Stream {
        self.footer.stream
    }

    /// What its decoded stream is known by: the diff_id if it is proven to be the tar. A stream of bodies, or one whose spans
    /// have digests of the blob's bytes, is another one for each index that cuts it otherwise.
    pub fn stream_name(&self) -> &Digest {
        self.stream_name.as_ref().unwrap_or(&self.footer.layer.diff_id)
    }

    /// Whether its spans have digests of the blob's bytes, and none of what they decode to.
    pub fn checks_blob(&self) -> bool {
        self.footer.checks_blob()
    }

    /// The version of its format, as it is written.
    pub fn version(&self) -> u32 {
        self.footer.version()
    }

    /// Whether an index of this version can be read.
    pub fn reads(version: u32) -> bool {
        VERSIONS.contains(&version)
    }

    /// Why the index is trusted.
    pub fn proof(&self) -> &Proof {
        &self.footer.proof
    }

    /// The features that occur in the layer.
    pub fn contents(&self) -> Contents {
        self.footer.contents
    }

    /// Number of entries, including detached ones; ids are below this.
    pub fn len(&self) -> u32 {
        self.place(Section::Entries).count as u32
    }

    /// Always `false`: there is a root.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The same index with no page in memory. An index keeps every page that is read.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self { pages: self.pages.afresh(), footer: self.footer.clone(), stream_name: self.stream_name.clone() }
    }

    /// Bytes of the index held in memory.
    pub fn resident_bytes(&self) -> usize {
        self.pages.resident()
    }

    /// Number of spans; ids are below this.
    pub fn span_count(&self) -> u32 {
        u32::try_from(self.place(Section::Spans).count).unwrap_or(u32::MAX)
    }

    /// A span.
    ///
    /// # Errors
    /// [`IndexError::NoSpan`], or the index is damaged.
    pub fn span(&self, id: SpanId) -> Result<Span, IndexError> {
        let Place { start, count } = self.place(Section::Spans);
        if u64::from(id.0) >= count {
            return Err(IndexError::NoSpan { what: u64::from(id.0) });
        }
        let raw = self.pages.array(start + u64::from(id.0) * Span::BYTES as u64)?;
        let span = Span::from_bytes(raw).ok_or(IndexError::Malformed { what: "a span's kind is unknown" })?;
        let IndexedLayer { blob_size, decoded_size, .. } = self.footer.layer;
        if span.decoded.end.0 > decoded_size || span.blob.0 > blob_size {
            return Err(IndexError::Malformed { what: "a span lies outside its layer" });
        }
        if span.decoded.end - span.decoded.start > Span::MAX {
            return Err(IndexError::Malformed { what: "a span is too long" });
        }
        Ok(span)
    }

    /// The span that covers a decoded byte.
    ///
    /// # Errors
    /// [`IndexError::NoSpan`] if none does, or the index is damaged.
    pub fn span_at(&self, at: DecodedOffset) -> Result<SpanId, IndexError> {
        let (mut low, mut high) = (0, self.span_count());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.span(SpanId(middle))?.decoded.end <= at { low = middle + 1 } else { high = middle }
        }
        if low < self.span_count() && self.span(SpanId(low))?.decoded.contains(&at) {
            return Ok(SpanId(low));
        }
        Err(IndexError::NoSpan { what: at.0 })
    }

    /// A span's window as stored; `None` if it needs none.
    ///
    /// # Errors
    /// [`IndexError::NoSpan`]; the windows are in a [blob of their own](LayerIndex::windows_blob); or the index is damaged.
    pub fn window(&self, id: SpanId) -> Result<Option<Vec<u8>>, IndexError> {
        let Some(window) = self.span(id)?.window else { return Ok(None) };
        if self.footer.has_windows_blob() {
            return Err(IndexError::Malformed { what: "its windows are in a blob of their own" });
        }
        let Place { start, count } = self.place(Section::Windows);
        if window.start + u64::from(window.len) > count {
            return Err(IndexError::Malformed { what: "a window lies outside" });
        }
        self.pages.copy(start + window.start, window.len as usize).map(Some)
    }

    /// What a span is decoded from, where it stands alone.
    ///
    /// # Errors
    /// [`IndexError::NoSpan`], or the index is damaged.
    pub fn source_of(&self, id: SpanId) -> Result<Option<SpanSource>, IndexError> {
        if self.footer.stream != Stream::Bodies {
            return Ok(None);
        }
        let Place { start, count } = self.place(Section::Windows);
        let at = u64::from(id.0) * SpanSource::BYTES as u64;
        if at + SpanSource::BYTES as u64 > count {
            return Err(IndexError::NoSpan { what: u64::from(id.0) });
        }
        let source = SpanSource::from_bytes(self.pages.array(start + at)?);
        if source.end.0 > self.footer.layer.blob_size || source.skip > Span::MAX {
            return Err(IndexError::Malformed { what: "a span lies outside its layer" });
        }
        Ok(Some(source))
    }

    pub(super) fn place(&self, section: Section) -> Place {
        self.footer.places[section as usize]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::check::Check;
    use super::super::proof::Format;
    use super::super::spans::WindowAt;
    use super::super::testing::{Dice, Tar, everything, layer, render, render_index, tree, written};
    use super::super::write::{WriteError, write_index};
    use super::*;
    use crate::codec::StartKind;
    use crate::layer::entry::EntryId;
    use crate::layer::tree::LayerTree;
    use crate::offsets::BlobOffset;

    fn open(bytes: &[u8]) -> Result<LayerIndex, IndexError> {
        LayerIndex::open(bytes.to_vec())
    }

    fn spans() -> (Vec<Span>, Vec<u8>) {
        let windows: Vec<u8> = (0..200_000_u32).map(|at| (at / 7) as u8).collect();
        let spans = (0..4_u8).map(|number| Span {
            decoded: DecodedOffset(u64::from(number) * 1000)..DecodedOffset(u64::from(number) * 1000 + 1000),
            blob: BlobOffset(u64::from(number) * 300),
            bit: number,
            kind: StartKind::Checkpoint,
            check: Check::Blake3([number; 32]),
            window: (number > 0).then_some(WindowAt { start: u64::from(number) * 40_000, len: 60_000 }),
        });
        (spans.collect(), windows)
    }

    /// Gives a modified index valid checksums.
    fn resign(bytes: &mut [u8]) {
        let footer_at = bytes.len() - FOOTER;
        let body = le64(&bytes[footer_at..], 16) as usize;
        let mut at = body;
        for page in 0..body.div_ceil(PAGE) {
            let end = body.min((page + 1) * PAGE);
            let check = *blake3::hash(&bytes[page * PAGE..end]).as_bytes();
            bytes[at..at + CHECK].copy_from_slice(&check);
            at += CHECK;
        }
        let check_at = bytes.len() - CHECK;
        let check = *blake3::hash(&bytes[body..check_at]).as_bytes();
        bytes[check_at..].copy_from_slice(&check);
    }

    #[test]
    fn written_index_is_the_tree() {
        let mut tree = tree(&everything()).unwrap();
        for _ in 0..2 {
            let index = open(&written(&tree)).unwrap();
            assert_eq!(render_index(&index).unwrap(), render(&tree));
            assert_eq!(index.len(), tree.len());
            assert_eq!((index.layer(), index.proof()), (&layer(), &Proof::Built));
            let implied: Vec<EntryId> = index.implied_roots().map(Result::unwrap).collect();
            assert_eq!(implied, tree.implied_roots().collect::<Vec<_>>());
            let links: Vec<EntryId> = index.lower_links().map(Result::unwrap).collect();
            assert_eq!(links, tree.lower_links().collect::<Vec<_>>());
            index.check_all().unwrap();
            // And again through a tree restored from it.
            let again = LayerTree::from_index(&index).unwrap();
            assert_eq!(render(&again), render(&tree));
            tree = again;
        }
    }

    #[test]
    fn contents_say_what_a_layer_has() {
        let contents = |tar: Tar| open(&written(&tree(&tar.end()).unwrap())).unwrap().contents();
        assert_eq!(contents(Tar::default().file("a", b"")), Contents(0));
        assert_eq!(contents(Tar::default().file("d/a", b"")), Contents::IMPLIED);
        assert_eq!(contents(Tar::default().hard("a", "b")), Contents::LOWER_LINKS);
        assert_eq!(contents(Tar::default().file(".wh.a", b"")), Contents::WHITEOUTS);
        assert_eq!(contents(Tar::default().file(".wh..wh..opq", b"")), Contents::WHITEOUTS);
        assert_eq!(contents(Tar::default().pax(&[("SCHILY.xattr.user.a", b"")]).file("a", b"")), Contents::XATTRS);
    }

    #[test]
    fn names_of_attributes_are_gathered_within_a_limit() {
        let mut tar = Tar::default();
        for number in 0..100 {
            let value = format!("{number:03}");
            tar = tar.pax(&[("SCHILY.xattr.user.a", value.as_bytes()), ("SCHILY.xattr.user.b", b"")]);
            tar = tar.file(&value, b"");
        }
        let index = open(&written(&tree(&tar.end()).unwrap())).unwrap();
        let mut left = 10_000;
        let names = index.all_xattr_names(&mut left).unwrap().unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), [b"user.a", b"user.b"]);
        assert!((5_000..9_000).contains(&left), "{left}");
        assert_eq!(index.all_xattr_names(&mut 1000).unwrap(), None);
        assert_eq!(index.all_xattr_names(&mut left).unwrap().map(|names| names.len()), Some(2));
    }

    #[test]
    fn children_are_sorted_and_found() {
        let mut tar = Tar::default();
        for number in 0..3000 {
            tar = tar.file(&format!("d/{}", number * 7919 % 3001), b"");
        }
        let index = open(&written(&tree(&tar.end()).unwrap())).unwrap();
        let directory = index.child(EntryId::ROOT, b"d").unwrap().unwrap();
        assert_eq!(index.child_count(directory).unwrap(), 3000);
        let mut last = Vec::new();
        for position in 0..3000 {
            let id = index.child_at(directory, position).unwrap().unwrap();
            let name = index.name(id).unwrap().to_vec();
            assert!(last < name);
            assert_eq!(index.child(directory, &name).unwrap(), Some(id));
            last = name;
        }
        assert_eq!(index.child_at(directory, 3000).unwrap(), None);
        assert_eq!(index.child(directory, b"nothing").unwrap(), None);
        let file = index.child_at(directory, 0).unwrap().unwrap();
        assert_eq!(index.child(file, b"x").unwrap(), None);
        assert!(matches!(index.entry(EntryId(index.len())), Err(IndexError::NoEntry { .. })));
    }

    #[test]
    fn spans_and_windows_come_back() {
        let (spans, windows) = spans();
        let mut bytes = Vec::new();
        write_index(&tree(&everything()).unwrap(), &spans, &windows, &layer(), &Proof::Built, &mut bytes).unwrap();
        let index = open(&bytes).unwrap();
        assert_eq!(index.span_count(), 4);
        for (number, span) in spans.iter().enumerate() {
            let id = SpanId(number as u32);
            assert_eq!(&index.span(id).unwrap(), span);
            assert_eq!(index.span_at(span.decoded.start).unwrap(), id);
            assert_eq!(index.span_at(DecodedOffset(span.decoded.end.0 - 1)).unwrap(), id);
            let wanted = span.window.map(|at| windows[at.start as usize..][..at.len as usize].to_vec());
            assert_eq!(index.window(id).unwrap(), wanted);
        }
        assert!(matches!(index.span_at(DecodedOffset(4000)), Err(IndexError::NoSpan { what: 4000 })));
        assert!(matches!(index.span(SpanId(4)), Err(IndexError::NoSpan { what: 4 })));
        assert!(index.resident_bytes() <= 2 * PAGE, "windows are not kept in memory");
    }

    #[test]
    fn spans_that_overlap_or_miss_their_window_are_not_written() {
        let (spans, windows) = spans();
        let tree = LayerTree::default();
        let mut reversed = spans.clone();
        reversed.reverse();
        for (spans, windows) in [(reversed, &windows[..]), (spans, &windows[..1000])] {
            let result = write_index(&tree, &spans, windows, &layer(), &Proof::Built, &mut Vec::new());
            assert!(matches!(result, Err(WriteError::Span { span: 1 })), "{result:?}");
        }
    }

    #[test]
    fn spans_beyond_their_layer_or_too_long_are_refused() {
        let (mut spans, windows) = spans();
        let reach = spans.last().unwrap().decoded.end;
        let tree = LayerTree::default();
        let mut bytes = Vec::new();
        write_index(
            &tree,
            &spans,
            &windows,
            &IndexedLayer { decoded_size: reach.0 - 1, ..layer() },
            &Proof::Built,
            &mut bytes,
        )
        .unwrap();
        let index = open(&bytes).unwrap();
        assert!(index.span(SpanId(2)).is_ok());
        assert!(matches!(index.span(SpanId(3)), Err(IndexError::Malformed { .. })));
        spans.last_mut().unwrap().decoded.end = reach + Span::MAX;
        let result = write_index(&tree, &spans, &windows, &layer(), &Proof::Built, &mut Vec::new());
        assert!(matches!(result, Err(WriteError::Span { span: 3 })), "{result:?}");
    }

    #[test]
    fn every_flipped_byte_is_an_error_or_changes_nothing() {
        let tree = tree(&everything()).unwrap();
        let bytes = written(&tree);
        let wanted = render(&tree);
        let mut noticed = 0;
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            match open(&damaged).and_then(|index| render_index(&index)) {
                Ok(lines) => assert_eq!(lines, wanted, "byte {at}"),
                Err(_) => noticed += 1,
            }
        }
        assert_eq!(noticed, bytes.len());
    }

    #[test]
    fn every_cut_is_an_error() {
        let bytes = written(&tree(&everything()).unwrap());
        for len in (0..bytes.len()).step_by(13) {
            assert!(matches!(open(&bytes[..len]), Err(IndexError::NotAnIndex)), "{len}");
        }
        let mut longer = bytes.clone();
        longer.insert(0, 0);
        assert!(open(&longer).is_err());
    }

    #[test]
    fn damage_after_opening_is_found_on_touch() {
        let mut tar = Tar::default();
        for number in 0..3000 {
            tar = tar.file(&format!("f{number}"), b"");
        }
        let mut bytes = written(&tree(&tar.end()).unwrap());
        bytes[PAGE + 10] ^= 1;
        let index = open(&bytes).unwrap();
        assert!(index.entry(EntryId(0)).is_ok(), "page 0 is whole");
        assert!(matches!(index.entry(EntryId(1025)), Err(IndexError::Damaged { page: 1 })));
        assert!(matches!(index.check_all(), Err(IndexError::Damaged { page: 1 })));
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = written(&LayerTree::default());
        let at = bytes.len() - FOOTER + 8;
        bytes[at] = 9;
        assert!(matches!(open(&bytes), Err(IndexError::Version { found: 9 })));
    }

    /// Releases that support no other version read the result of a first pass.
    #[test]
    fn an_index_says_the_lowest_version_that_has_what_it_needs() {
        let (mut spans, windows) = spans();
        let tree = tree(&everything()).unwrap();
        let version = |spans: &[Span], proof: &Proof| {
            let mut bytes = Vec::new();
            write_index(&tree, spans, &windows, &layer(), proof, &mut bytes).unwrap();
            let index = open(&bytes).unwrap();
            assert_eq!(index.proof(), proof);
            let read: Vec<Span> = index.spans().iter().map(|id| index.span(id).unwrap()).collect();
            assert_eq!(read, spans);
            le32(&bytes, bytes.len() - FOOTER + 8)
        };
        assert_eq!(version(&spans, &Proof::Built), 2);
        assert_eq!(version(&spans, &Proof::Unproven), 3);
        for by in ["", "/indexes/app", &"é".repeat(512)] {
            assert_eq!(version(&spans, &Proof::vouched(Format::Exported, by)), 3);
        }
        let plain = spans[2].clone();
        spans[2].check = Check::sha256(b"bytes");
        assert_eq!(version(&spans, &Proof::Built), 3);
        // Releases that know no such spans find a kind that they do not know.
        for kind in [StartKind::Block, StartKind::InsideBlock] {
            spans[2] = Span { kind, bit: 0, ..plain.clone() };
            assert_eq!(version(&spans, &Proof::Built), 3);
        }
    }

    #[test]
    fn an_index_with_another_proof_is_the_same_but_for_its_end() {
        let bytes = written(&tree(&everything()).unwrap());
        let index = open(&bytes).unwrap();
        assert_eq!(index.end_with(Proof::Built).1, bytes[index.end_with(Proof::Built).0 as usize..]);
        let vouched = Proof::vouched(Format::Exported, &"é".repeat(600));
        assert!(matches!(&vouched, Proof::Vouched { by, .. } if by.len() == Proof::BY));
        let (at, end) = index.end_with(vouched.clone());
        let marked = open(&[&bytes[..at as usize], &end].concat()).unwrap();
        assert_eq!((marked.proof(), marked.layer()), (&vouched, index.layer()));
        assert_eq!(render_index(&marked).unwrap(), render_index(&index).unwrap());
        assert!(marked.mend(&index), "one that was built has what it has lost");
        assert_eq!(marked.end_with(Proof::Built), index.end_with(Proof::Built));
    }

    #[test]
    fn kinds_of_later_versions_are_named_and_nothing_is_read() {
        let (spans, windows) = spans();
        let mut bytes = Vec::new();
        write_index(&tree(&everything()).unwrap(), &spans, &windows, &layer(), &Proof::Built, &mut bytes).unwrap();
        let footer = bytes.len() - FOOTER;
        for (at, value, wanted) in [(472, 200, "proof"), (473, 3, "stream"), (476, 8, "check"), (479, 0x10, "check")] {
            let mut later = bytes.clone();
            later[footer + at] = value;
            resign(&mut later);
            let error = open(&later).unwrap_err();
            assert!(error.is_of_another_version() && error.to_string().contains(wanted), "{error}");
        }
        // A span with a check that the footer does not declare.
        let mut hostile = bytes.clone();
        let spans_at = le64(&bytes[footer..], 40 + 16 * Section::Spans as usize) as usize;
        hostile[spans_at + 23] = 3;
        resign(&mut hostile);
        assert!(matches!(open(&hostile).unwrap().span(SpanId(0)), Err(IndexError::Malformed { .. })));
    }

    #[test]
    fn directories_in_each_other_are_found_after_a_few_steps() {
        let mut tar = Tar::default();
        (0..4000).for_each(|number| tar = std::mem::take(&mut tar).file(&format!("f{number}"), b""));
        let bytes = written(&tree(&tar.end()).unwrap());
        for (length, before) in [(1, 0), (2, 0), (2, 50), (1000, 0), (3000, 900)] {
            // Entry after entry, and from the last one back to one of them.
            let mut hostile = bytes.clone();
            for id in 1..=before + length {
                let parent = if id == before + length { before + 1 } else { id + 1 };
                hostile[id * 64..id * 64 + 4].copy_from_slice(&(parent as u32).to_le_bytes());
            }
            resign(&mut hostile);
            let index = open(&hostile).unwrap();
            let path = index.path(EntryId(1)).unwrap_err().to_string();
            assert!(path.contains("in itself"), "{path}");
            assert_eq!(index.path_within(EntryId(1), 1).unwrap(), None, "no further than asked");
        }
        let index = open(&bytes).unwrap();
        assert_eq!(index.path_within(EntryId(7), 2).unwrap().unwrap(), b"f6");
        assert_eq!(index.path_within(EntryId(7), 1).unwrap(), None);
    }

    #[test]
    fn hostile_indexes_with_right_checksums_never_panic() {
        let (spans, windows) = spans();
        let mut bytes = Vec::new();
        write_index(&tree(&everything()).unwrap(), &spans, &windows[..180_000], &layer(), &Proof::Built, &mut bytes)
            .unwrap();
        // The body's last part is windows, which have no structure.
        let structure = bytes.len() - 180_000 - FOOTER - 4 * CHECK;
        let mut dice = Dice(3);
        let (mut good, mut bad) = (0, 0);
        for round in 0..8000 {
            let mut hostile = bytes.clone();
            for _ in 0..1 + dice.roll(3) {
                let at = if round % 4 == 0 { bytes.len() - FOOTER + 40 + dice.roll(160) } else { dice.roll(structure) };
                hostile[at] = [0, 1, 0xff, 0x7f, dice.roll(256) as u8][dice.roll(5)];
            }
            resign(&mut hostile);
            let Ok(index) = open(&hostile) else {
                bad += 1;
                continue;
            };
            for span in 0..index.span_count().min(10) {
                let _ = (index.span_at(DecodedOffset(u64::from(span) * 900)), index.window(SpanId(span)));
            }
            match (render_index(&index), LayerTree::from_index(&index)) {
                (Ok(_), Ok(tree)) => {
                    good += 1;
                    render(&tree);
                }
                _ => bad += 1,
            }
        }
        assert!(good > 500 && bad > 500, "{good} {bad}");
    }

    #[test]
    fn mutated_tars_that_pass_make_true_indexes() {
        let whole = everything();
        let mut dice = Dice(5);
        let mut checked = 0;
        for _ in 0..1500 {
            let mut tar = whole.clone();
            let block = dice.roll(tar.len() / 512) * 512;
            tar[block + dice.roll(345)] = b"/.awh01\0"[dice.roll(8)];
            tar[block + 148..block + 156].fill(b' ');
            let sum: u32 = tar[block..block + 512].iter().map(|&byte| u32::from(byte)).sum();
            tar[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            if let Ok(tree) = tree(&tar) {
                let index = open(&written(&tree)).unwrap();
                assert_eq!(render_index(&index).unwrap(), render(&tree));
                checked += 1;
            }
        }
        assert!(checked > 100, "{checked}");
    }

    #[test]
    fn grafted_tree_can_be_written_and_opened() {
        let tar = Tar::default().file("bin/sh", b"sh").hard("usr/link", "usr/bin/sh");
        let index = open(&written(&tree(&tar.end()).unwrap())).unwrap();
        let mut tree = LayerTree::from_index(&index).unwrap();
        let bin = index.implied_roots().next().unwrap().unwrap();
        tree.graft(bin, b"usr/bin").unwrap();
        tree.join_lower_links().unwrap();
        let index = open(&written(&tree)).unwrap();
        assert_eq!(render_index(&index).unwrap(), render(&tree));
        assert_eq!(index.child(EntryId::ROOT, b"bin").unwrap(), None);
        assert_eq!(index.contents(), Contents::IMPLIED);
    }
}
