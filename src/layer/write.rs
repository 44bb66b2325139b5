//! Writes a layer index: one pass over the tree, one page in memory.

use std::io::{self, Write};

use crate::codec::StartKind;
use crate::offsets::DecodedOffset;

use super::entry::{EntryId, Flags, Kind, Record};
use super::footer::{EXTENT_BYTES, Footer, Place, SECTION_ALIGN, SECTIONS, Section};
use super::index::Contents;
use super::paged::{CHECK, PAGE};
use super::proof::{IndexedLayer, Proof, Stream};
use super::spans::{Span, SpanSource};
use super::tree::LayerTree;

/// Why an index cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output cannot be written.
    #[error("the layer index cannot be written")]
    Io {
        /// The system's reason.
        #[from]
        cause: io::Error,
    },
    /// The names take more than 4 GiB.
    #[error("the layer's names do not fit an index")]
    Names,
    /// A span cannot be stored: its window is out of range, or it does not follow the previous span.
    #[error("span {span} does not fit an index")]
    Span {
        /// Its number.
        span: usize,
    },
}

/// Writes the index of `layer` with `proof`: its tree, its spans in decoded order, and their windows.
///
/// # Errors
/// [`WriteError`]; the output is unusable then.
pub fn write_index(
    tree: &LayerTree,
    spans: &[Span],
    windows: &[u8],
    layer: &IndexedLayer,
    proof: &Proof,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    write_index_of(Stream::Tar, tree, spans, windows, layer, proof, out)
}

/// As [`write_index`], of a layer whose decoded stream is `stream`, but no [`Stream::Bodies`].
///
/// # Errors
/// [`WriteError`]; the output is unusable then.
pub fn write_index_of(
    stream: Stream,
    tree: &LayerTree,
    spans: &[Span],
    windows: &[u8],
    layer: &IndexedLayer,
    proof: &Proof,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    write(tree, spans, windows, (layer, stream), proof, out)
}

/// As [`write_index`], of a layer whose decoded stream is that of its [bodies](Stream::Bodies); `sources` says for each
/// span what it is decoded from.
///
/// # Errors
/// [`WriteError`]; what was written so far is then of no use.
pub fn write_index_of_bodies(
    tree: &LayerTree,
    spans: &[Span],
    sources: &[SpanSource],
    layer: &IndexedLayer,
    proof: &Proof,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    if let Some(span) = (sources.len() != spans.len()).then_some(sources.len()) {
        return Err(WriteError::Span { span });
    }
    let sources: Vec<u8> = sources.iter().flat_map(|source| source.to_bytes()).collect();
    write(tree, spans, &sources, (layer, Stream::Bodies), proof, out)
}

fn write(
    tree: &LayerTree,
    spans: &[Span],
    windows: &[u8],
    (layer, stream): (&IndexedLayer, Stream),
    proof: &Proof,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    check_spans(spans, windows)?;
    let children = sorted_children(tree);
    let implied: Vec<u32> = tree.implied_roots().map(|id| id.0).collect();
    let lower_links: Vec<u32> = tree.lower_links().map(|id| id.0).collect();

    let mut layout = Layout::default();
    layout.add(Section::Entries, u64::from(tree.len()));
    layout.add(Section::Children, children.len() as u64);
    layout.add(Section::Implied, implied.len() as u64);
    layout.add(Section::LowerLinks, lower_links.len() as u64);
    layout.add(Section::Extents, tree.extents.len() as u64);
    layout.add(Section::Spans, spans.len() as u64);
    layout.add(Section::XattrSets, tree.xattrs.sets.len() as u64);
    let names = Names::lay_out(tree, &children, layout.next())?;
    layout.add(Section::Names, names.len);
    layout.add(Section::Xattrs, tree.xattrs.bytes.len() as u64);
    layout.add(Section::Windows, windows.len() as u64);

    let mut body = PageWriter::new(out);
    let contents = entries(tree, &names, &mut body)?;
    for list in [&children, &implied, &lower_links] {
        body.align()?;
        for id in list {
            body.put(&id.to_le_bytes())?;
        }
    }
    body.align()?;
    for run in &tree.extents {
        let mut raw = [0; EXTENT_BYTES];
        raw[0..8].copy_from_slice(&run.file.0.to_le_bytes());
        raw[8..16].copy_from_slice(&run.decoded.0.to_le_bytes());
        raw[16..24].copy_from_slice(&run.len.to_le_bytes());
        body.put(&raw)?;
    }
    body.align()?;
    for (number, span) in spans.iter().enumerate() {
        body.put(&span.to_bytes().ok_or(WriteError::Span { span: number })?)?;
    }
    body.align()?;
    for (start, len) in &tree.xattrs.sets {
        body.put(&start.to_le_bytes())?;
        body.put(&len.to_le_bytes())?;
    }
    body.align()?;
    names.write(tree, &mut body)?;
    body.align()?;
    body.put(&tree.xattrs.bytes)?;
    body.align()?;
    body.put(windows)?;
    let (layer, proof) = (layer.clone(), proof.clone());
    let mut checks = spans.iter().fold(0, |kinds, span| kinds | 1 << span.check.kind()) & !1;
    for (kind, bit) in [(StartKind::Block, Footer::BLOCKS), (StartKind::InsideBlock, Footer::INSIDE_BLOCKS)] {
        if spans.iter().any(|span| span.kind == kind) {
            checks |= bit;
        }
    }
    body.finish(Footer { contents, body: layout.end, places: layout.places, layer, stream, proof, checks })
}

/// Spans must be contiguous, or lookups by offset would be wrong.
fn check_spans(spans: &[Span], windows: &[u8]) -> Result<(), WriteError> {
    let mut end = DecodedOffset(0);
    for (number, span) in spans.iter().enumerate() {
        let inside = span.window.is_none_or(|window| {
            window.start.checked_add(u64::from(window.len)).is_some_and(|end| end <= windows.len() as u64)
        });
        let length = span.decoded.end.0.checked_sub(span.decoded.start.0);
        if span.decoded.start < end || length.is_none_or(|length| length > Span::MAX) || !inside {
            return Err(WriteError::Span { span: number });
        }
        end = span.decoded.end;
    }
    Ok(())
}

/// The children of every directory, by directory id, sorted by name.
fn sorted_children(tree: &LayerTree) -> Vec<u32> {
    let mut children = Vec::new();
    for directory in 0..tree.len() {
        let start = children.len();
        children.extend(tree.children(EntryId(directory)).map(|id| id.0));
        children[start..].sort_unstable_by(|left, right| tree.name(EntryId(*left)).cmp(tree.name(EntryId(*right))));
    }
    children
}

fn entries(tree: &LayerTree, names: &Names, body: &mut PageWriter<impl Write>) -> Result<Contents, WriteError> {
    let mut contents = Contents::default();
    let mut first_child = 0;
    for id in 0..tree.len() {
        let entry = tree.entry(EntryId(id));
        let mut record: Record = entry.record;
        record.name_at = names.at[id as usize];
        match record.kind {
            Kind::Directory => {
                record.b = first_child;
                first_child += record.a;
            }
            Kind::Symlink | Kind::LowerLink => record.b = u64::from(names.target(record.inode)),
            _ => {}
        }
        body.put(&record.to_bytes())?;
        if entry.is(Flags::DETACHED) {
            continue;
        }
        if record.xattrs != 0 {
            contents.0 |= Contents::XATTRS.0;
        }
        if record.flags.has(Flags::IMPLIED) && id != 0 {
            contents.0 |= Contents::IMPLIED.0;
        }
        if record.kind == Kind::LowerLink {
            contents.0 |= Contents::LOWER_LINKS.0;
        }
        if record.kind == Kind::Whiteout || record.flags.has(Flags::OPAQUE) || record.flags.has(Flags::HIDES_LOWER) {
            contents.0 |= Contents::WHITEOUTS.0;
        }
    }
    Ok(contents)
}

/// Placement of names and targets. Names are in the order of the children, so that a search within one directory
/// accesses few pages.
struct Names {
    order: Vec<u32>,
    /// By entry id.
    at: Vec<u32>,
    /// Inode and place, by inode.
    targets: Vec<(u32, u32)>,
    len: u64,
}

impl Names {
    /// `base` is the start of the section in the body.
    fn lay_out(tree: &LayerTree, children: &[u32], base: u64) -> Result<Self, WriteError> {
        let mut order = children.to_vec();
        let mut placed = vec![false; tree.len() as usize];
        placed[0] = true;
        children.iter().for_each(|id| placed[*id as usize] = true);
        order.extend((0..tree.len()).filter(|id| !placed[*id as usize]));
        let mut end = 0_u64;
        let mut place = |len: usize| {
            let left = PAGE as u64 - (base + end) % PAGE as u64;
            if len as u64 > left {
                end += left;
            }
            let at = u32::try_from(end).map_err(|_| WriteError::Names)?;
            end += len as u64;
            Ok::<_, WriteError>(at)
        };
        let mut at = vec![0; tree.len() as usize];
        for id in &order {
            at[*id as usize] = place(tree.name(EntryId(*id)).len())?;
        }
        let mut targets = Vec::new();
        for id in 0..tree.len() {
            if let Some(target) = own_target(tree, id) {
                targets.push((id, place(target.len())?));
            }
        }
        Ok(Self { order, at, targets, len: end })
    }

    fn target(&self, inode: u32) -> u32 {
        let found = self.targets.binary_search_by_key(&inode, |target| target.0);
        self.targets[found.expect("every inode with a target was placed")].1
    }

    fn write(&self, tree: &LayerTree, body: &mut PageWriter<impl Write>) -> Result<(), WriteError> {
        let base = body.position;
        let names = self.order.iter().map(|id| (self.at[*id as usize], tree.name(EntryId(*id))));
        let targets = self.targets.iter().map(|(id, at)| (*at, own_target(tree, *id).expect("it was placed")));
        for (at, bytes) in names.chain(targets) {
            body.pad_to(base + u64::from(at))?;
            body.put(bytes)?;
        }
        Ok(())
    }
}

/// The target that an inode carries itself.
fn own_target(tree: &LayerTree, id: u32) -> Option<&[u8]> {
    let id = EntryId(id);
    if tree.entry(id).inode() != id {
        return None;
    }
    tree.symlink_target(id).or_else(|| tree.link_target(id))
}

#[derive(Default)]
struct Layout {
    places: [Place; SECTIONS.len()],
    end: u64,
}

impl Layout {
    /// Start of the next section.
    fn next(&self) -> u64 {
        self.end.next_multiple_of(SECTION_ALIGN)
    }

    fn add(&mut self, section: Section, count: u64) {
        let start = self.next();
        self.places[section as usize] = Place { start, count };
        self.end = start + count * section.record();
    }
}

/// Splits the body into pages and records their checksums.
pub(super) struct PageWriter<'a, W> {
    out: &'a mut W,
    page: Vec<u8>,
    checks: Vec<u8>,
    pub(super) position: u64,
}

impl<'a, W: Write> PageWriter<'a, W> {
    pub(super) fn new(out: &'a mut W) -> Self {
        Self { out, page: Vec::with_capacity(PAGE), checks: Vec::new(), position: 0 }
    }

    pub(super) fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        while !bytes.is_empty() {
            let take = bytes.len().min(PAGE - self.page.len());
            self.page.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.page.len() == PAGE {
                self.flush()?;
            }
        }
        Ok(())
    }

    pub(super) fn pad_to(&mut self, position: u64) -> io::Result<()> {
        let zeros = [0; 256];
        while self.position < position {
            let take = (position - self.position).min(zeros.len() as u64) as usize;
            self.put(&zeros[..take])?;
        }
        debug_assert_eq!(self.position, position, "sections are written where they were laid out");
        Ok(())
    }

    fn align(&mut self) -> io::Result<()> {
        self.pad_to(self.position.next_multiple_of(SECTION_ALIGN))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.checks.extend_from_slice(blake3::hash(&self.page).as_bytes());
        self.out.write_all(&self.page)?;
        self.page.clear();
        Ok(())
    }

    pub(super) fn finish(mut self, footer: Footer) -> Result<(), WriteError> {
        if !self.page.is_empty() {
            self.flush()?;
        }
        debug_assert_eq!(self.position, footer.body, "sections are written where they were laid out");
        debug_assert_eq!(footer.pages() * CHECK as u64, self.checks.len() as u64);
        self.out.write_all(&self.checks)?;
        self.out.write_all(&footer.sealed(&self.checks))?;
        Ok(())
    }
}
