//! What is fuzzed: one function a target, each of which takes any bytes and panics on a broken promise.
//!
//! The same functions stand behind cargo-fuzz (`fuzz/fuzz_targets`) and behind a plain test
//! (`tests/library/fuzz_corpus.rs`), which runs them over a corpus and its mutations with every `cargo test`.
//! Formats with checksums are sealed again here, or every mutation would fail the checksum.

use std::collections::BTreeMap;
use std::io::Read as _;

use peelfs::codec::tar_split::{self, TarSplitError};
use peelfs::codec::{LayerDecoder, Limits as CodecLimits, Mark, OutputBuffer, StartKind, Status, Window};
use peelfs::descriptor::{Compression, Descriptor, MediaType};
use peelfs::digest::{Algorithm, Digest};
use peelfs::documents::{
    Document, INDEX_ARTIFACT, ImageConfig, IndexArtifact, SociIndex, SociPrefetch, referrers, resolve_step,
};
use peelfs::layer::foreign::{Bounds, ForeignLayer, estargz as stargz, soci, zstd_chunked};
use peelfs::layer::{
    Entry, EntryId, IndexedLayer, Kind, LayerIndex, LayerTree, Limits, Proof, TarWalker, write_index,
    write_index_of_bodies, write_with_windows,
};
use peelfs::offsets::{BlobOffset, DecodedOffset, FileOffset};
use peelfs::platform::Platform;
use peelfs::reference::{Place, Reference};
use peelfs::span::SpanId;

/// A fuzz target: takes any bytes, panics on a broken promise.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Target); 13] = [
    ("tar", tar),
    ("index", index),
    ("gzip", gzip),
    ("zstd", zstd),
    ("checkpoint", checkpoint),
    ("documents", documents),
    ("pushed", pushed),
    ("reference", reference),
    ("platform", platform),
    ("wire", wire),
    ("toc", toc),
    ("estargz", estargz),
    ("ztoc", ztoc),
];

/// A tar becomes a tree or an error, the same however it is cut; the tree's index says what the tree says.
///
/// The first byte says how the rest is cut, and whether the headers' checksums are put right first.
pub fn tar(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else { return };
    let mut data = data.to_vec();
    if how & 1 == 1 {
        seal_tar(&mut data);
    }
    let whole = walk(&data, data.len().max(1));
    let pieces = walk(&data, 1 + usize::from(how >> 1) * 7);
    match (whole, pieces) {
        (Ok(tree), Ok(other)) => {
            let index = written(&tree, data.len() as u64);
            index.check_all().expect("it was just written");
            same(&tree, &index);
            same(&other, &index);
        }
        (Err(one), Err(other)) => assert_eq!(one, other, "how a tar is cut decides what is wrong with it"),
        (one, other) => panic!("how a tar is cut decides whether it is good: {:?} {:?}", one.err(), other.err()),
    }
}

/// The manifest of pushed indexes, and a list of referrers: what is read is within bounds, and is the same when it is written
/// and read again.
pub fn pushed(data: &[u8]) {
    let found = referrers([data, data], INDEX_ARTIFACT);
    assert!(found.len() <= 8);
    let subject = Digest::of(Algorithm::Sha256, b"image");
    let _ = (SociIndex::parse(data, None), SociIndex::parse(data, Some(&subject)), SociPrefetch::parse(data));
    let Ok(artifact) = IndexArtifact::parse(data, &subject) else { return };
    assert!(artifact.layers.len() <= 2001);
    let subject = Descriptor::new(MediaType::OciManifest, subject, 5);
    let written = artifact.manifest(&subject, "2026-01-01T00:00:00Z");
    assert_eq!(IndexArtifact::parse(&written, &subject.digest).as_ref(), Ok(&artifact));
}

/// An index with right checksums and any content answers every question, if only with an error.
///
/// The last byte says whether the checksums are put right first.
pub fn index(data: &[u8]) {
    let Some((&how, data)) = data.split_last() else { return };
    let data = if how & 1 == 1 { sealed_index(data) } else { data.to_vec() };
    let Ok(index) = LayerIndex::open(data) else { return };
    let _ = index.check_all();
    let _ = (index.layer(), index.proof(), index.contents(), index.is_empty(), index.resident_bytes());
    let _ = index.implied_roots().take(ASKED).find(Result::is_err);
    let _ = index.lower_links().take(ASKED).find(Result::is_err);
    for id in (0..=index.len()).take(ASKED).map(EntryId) {
        let _ = (index.name(id), index.symlink_target(id), index.link_target(id), index.path(id));
        let _ = (index.xattr(id, b"user.a"), index.xattr_names(id), index.child(id, b"name"));
        let _ = (index.child_count(id), index.child_at(id, 1));
        if let Ok(children) = index.children(id) {
            for child in children.take(ASKED) {
                let Ok(child) = child else { break };
                let _ = index.entry(child).map(all_of);
            }
        }
        let Ok(entry) = index.entry(id) else { continue };
        all_of(entry);
        for range in [0..u64::MAX, 1..2, entry.size() / 2..entry.size()] {
            let Ok(extents) = index.extents(id, FileOffset(range.start)..FileOffset(range.end)) else { continue };
            let mut end = FileOffset(range.start);
            for extent in extents {
                assert!(extent.file.start == end && extent.file.end > end, "extents leave no gaps");
                end = extent.file.end;
            }
            assert!(end.0 <= entry.size().max(range.start), "extents end with the file");
        }
    }
    let blob = index.windows_blob();
    if let Ok(Some(blob)) = &blob {
        let _ = index.check_windows_within(blob.size);
        // None of its windows is right.
        let _ = write_with_windows(&index, |_, _| Ok(()), &mut std::io::sink());
    }
    for id in (0..=index.span_count()).take(ASKED).map(SpanId) {
        let is_window = index.is_window(id, b"window");
        assert!(is_window.is_err() || !matches!(blob, Ok(None)), "windows are in the index or elsewhere");
        if let Ok(Some(window)) = index.window(id) {
            let kind = index.span(id).expect("it has a window").kind;
            let _ = Window::from_bytes(kind, &window);
        }
        if let Ok(span) = index.span(id) {
            let length = span.decoded.end - span.decoded.start;
            assert!(length <= index.layer().decoded_size, "a span is no longer than its layer");
            let _ = index.span_at(span.decoded.start);
        }
    }
    let _ = index.span_at(DecodedOffset(u64::MAX));
}

/// A gzip layer decodes to what flate2 makes of it, and from every mark to the same bytes again.
pub fn gzip(data: &[u8]) {
    let ours = decode(Compression::Gzip, data);
    let mut theirs = Vec::new();
    let good = flate2::read::MultiGzDecoder::new(data).take(DECODED_LIMIT + 1).read_to_end(&mut theirs).is_ok();
    if good
        && theirs.len() as u64 <= DECODED_LIMIT
        && let Some(ours) = &ours
    {
        assert!(*ours == theirs, "flate2 decodes this to something else");
    }
}

/// A zstd layer decodes to what libzstd makes of it, and from every mark to the same bytes again.
pub fn zstd(data: &[u8]) {
    let ours = decode(Compression::Zstd, data);
    let Ok(decoder) = ::zstd::stream::read::Decoder::new(data) else { return };
    let mut theirs = Vec::new();
    let good = decoder.take(DECODED_LIMIT + 1).read_to_end(&mut theirs).is_ok();
    if good
        && theirs.len() as u64 <= DECODED_LIMIT
        && let Some(ours) = &ours
    {
        assert!(*ours == theirs, "libzstd decodes this to something else");
    }
}

/// From any checkpoint inside a zstd frame or a deflate block, any bytes decode to bytes or to an error.
///
/// Two bytes say how long the checkpoint is, which is packed here, and by their highest bit that it lies in a deflate block;
/// then a byte with the bit where that goes on follows it. The rest is what is decoded.
pub fn checkpoint(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let length = u16::from_le_bytes(*length);
    let (compression, kind) = match length >> 15 {
        0 => (Compression::Zstd, StartKind::Block),
        _ => (Compression::Gzip, StartKind::InsideBlock),
    };
    let (checkpoint, mut rest) = rest.split_at(usize::from(length & 0x7fff).min(rest.len()));
    let packed = ::zstd::bulk::compress(checkpoint, 1).expect("there is memory");
    let Ok(window) = Window::from_bytes(kind, &packed) else { return };
    assert!(Window::from_bytes(kind, &window.to_bytes()).as_ref() == Ok(&window), "it is stored as it is");
    let mut bit = 0;
    if kind == StartKind::InsideBlock {
        let Some((&first, after)) = rest.split_first() else { return };
        (bit, rest) = (first, after);
    }
    let mark = Mark { blob: BlobOffset(9), bit, decoded: DecodedOffset(40_000), kind };
    let Ok(mut decoder) = LayerDecoder::resume(compression, CODEC_LIMITS, &mark, Some(&window)) else { return };
    let mut out = OutputBuffer::new(64 << 10);
    while decoder.decode(&mut rest, &mut out) == Ok(Status::OutputFull) {
        out.discard();
    }
}

/// Documents are read or refused; what was read can be asked for a platform.
pub fn documents(data: &[u8]) {
    let declared = ["", "application/json", OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];
    for declared in declared {
        let declared = (!declared.is_empty()).then(|| MediaType::parse(declared));
        match Document::parse(data, declared.as_ref()) {
            Ok(document) => {
                assert!(document.media_type().is_index() || document.media_type().is_manifest());
                for depth in [0, 3] {
                    let _ = resolve_step(document.clone(), depth, &Platform::new("linux", "arm", Some("v7")));
                }
            }
            Err(error) => drop((error.to_string(), error.hint())),
        }
    }
    for layers in [0, 1, 3] {
        if let Ok(config) = ImageConfig::parse(data, layers) {
            assert_eq!(config.diff_ids.len(), layers);
            let _ = config.require(&Platform::host());
        }
    }
}

/// An accepted reference is displayed in a form that can be parsed again.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Reference>() {
        Ok(reference) => {
            let shown = reference.to_string();
            assert_eq!(shown.parse::<Reference>().as_ref(), Ok(&reference), "`{shown}` was typed as `{text}`");
            let _ = reference.notes();
            match reference.place() {
                Place::Registry(name) => {
                    let canonical = reference.canonical();
                    let again = canonical.parse::<Reference>().expect("canonical references can be typed");
                    assert_eq!(again.canonical(), canonical);
                    assert!(!name.repository().split('/').any(|part| part.is_empty() || part.starts_with('.')));
                }
                _ => drop(reference.canonical()),
            }
        }
        Err(error) => drop((error.to_string(), error.hint())),
    }
    let _ = text.parse::<Digest>().map(|digest| assert_eq!(digest.to_string().parse(), Ok(digest)));
}

/// A platform that is taken runs its own images, and is written as it can be typed again, unless it is so long
/// that it is shown cut.
pub fn platform(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Platform>() {
        Ok(platform) => {
            if text.len() <= 64 {
                assert_eq!(platform.to_string().parse::<Platform>().as_ref(), Ok(&platform), "typed as `{text}`");
            }
            assert!(platform.is_unknown() || platform.runs(&platform), "`{platform}` does not run its own images");
        }
        Err(error) => drop((error.to_string(), error.hint())),
    }
}

/// Input from the kernel is parsed or refused; a request with a wrong length field is refused.
///
/// The first byte says whether the length is put right first.
pub fn wire(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else { return };
    let mut data = data.to_vec();
    let length = data.len() as u32;
    if how & 1 == 1 && data.len() >= 4 {
        data[..4].copy_from_slice(&length.to_ne_bytes());
    }
    if peelfs::fuse::is_request(&data) {
        assert!(data[..4] == length.to_ne_bytes(), "a request was taken that is not as long as it says");
    }
}

/// Makes the checksums of what look like headers right.
pub fn seal_tar(data: &mut [u8]) {
    for block in data.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// Makes the last 512 bytes the footer of an index whose body is the rest, with right checksums.
pub fn sealed_index(data: &[u8]) -> Vec<u8> {
    const FOOTER: usize = 512;
    const PAGE: usize = 64 << 10;
    let Some(body) = data.len().checked_sub(FOOTER) else { return data.to_vec() };
    let (body, footer) = data.split_at(body);
    let mut out = body.to_vec();
    let mut hasher = blake3::Hasher::new();
    for page in body.chunks(PAGE) {
        let check = blake3::hash(page);
        hasher.update(check.as_bytes());
        out.extend_from_slice(check.as_bytes());
    }
    let mut footer: [u8; FOOTER] = footer.try_into().expect("it was cut to this length");
    footer[..8].copy_from_slice(b"PEELIDX\n");
    footer[8..12].copy_from_slice(&LayerIndex::VERSION_WITHOUT_WINDOWS.to_le_bytes());
    // No name stands before it.
    footer[474..476].fill(0);
    footer[16..24].copy_from_slice(&(body.len() as u64).to_le_bytes());
    hasher.update(&footer[..FOOTER - 32]);
    footer[FOOTER - 32..].copy_from_slice(hasher.finalize().as_bytes());
    out.extend_from_slice(&footer);
    out
}

/// The body and footer of an index, without the table of checksums that [`sealed_index`] puts between them.
pub fn unsealed_index(file: &[u8]) -> Vec<u8> {
    let footer = &file[file.len() - 512..];
    let body = u64::from_le_bytes(footer[16..24].try_into().expect("eight bytes")) as usize;
    [&file[..body], footer].concat()
}

/// The JSON of a table of contents becomes tree and spans or an error; the index of both says the same, and no span lies
/// outside the layer or in another.
///
/// The first byte says of which format the rest is; or it is tar-split data, which are read or not.
pub fn toc(data: &[u8]) {
    let Some((&how, json)) = data.split_first() else { return };
    let place = BlobOffset(TOC_AT)..BlobOffset(TOC_AT + 100);
    let read = match how & 3 {
        3 => {
            let _ = tar_split::read(json, |_| Ok::<_, TarSplitError>(()));
            return;
        }
        1 => zstd_chunked::parse(json, place.start, BOUNDS),
        _ => stargz::parse(json, None, &place, BOUNDS),
    };
    if let Ok(layer) = read {
        usable(&layer, place.end.0);
    }
}

/// The end of an eStargz layer says where its table is, or not; what lies there is read, or not.
pub fn estargz(data: &[u8]) {
    let Some((&cut, blob)) = data.split_first() else { return };
    // The digest is compared after the table is decoded; any other ends there.
    let table = blob.get(..usize::from(cut)).unwrap_or_default();
    let toc = stargz::Toc { digest: Digest::of(Algorithm::Sha256, table), blob_size: blob.len() as u64 };
    let Ok(place) = toc.place(blob) else { return };
    let members = match &place {
        stargz::Place::Here(range) => &blob[range.start.0 as usize..range.end.0 as usize],
        // Wherever it is.
        stargz::Place::Elsewhere => blob,
    };
    if let Ok(layer) = toc.read(&place, members, BOUNDS) {
        usable(&layer, blob.len() as u64);
    }
}

/// A zTOC becomes tree and spans or an error; the index of both says the same, and spans follow one another to the end.
///
/// The first byte says how the layer is compressed, and four bytes how long it is.
pub fn ztoc(data: &[u8]) {
    let Some((&[how, ref size @ ..], ztoc)) = data.split_first_chunk::<5>() else { return };
    let compression = if how & 1 == 1 { Compression::Stored } else { Compression::Gzip };
    let size = u64::from(u32::from_le_bytes(*size));
    let digest = Digest::of(Algorithm::Sha256, b"");
    let (media_type, annotations) = (MediaType::OciManifest, BTreeMap::new());
    let blob = Descriptor { media_type, digest: digest.clone(), size, data: None, annotations };
    let Ok(read) = soci::parse(ztoc, &blob, compression, BOUNDS) else { return };
    let of = IndexedLayer { blob: digest.clone(), blob_size: size, diff_id: digest, decoded_size: read.decoded_size };
    let mut file = Vec::new();
    write_index(&read.tree, &read.spans, &read.windows, &of, &Proof::Built, &mut file)
        .expect("a zTOC is held to limits");
    let index = LayerIndex::open(file).expect("it was just written");
    index.check_all().expect("it was just written");
    same(&read.tree, &index);
    let (mut blob_end, mut decoded_end) = (BlobOffset(0), DecodedOffset(0));
    for id in index.spans().iter() {
        let (span, range) = (index.span(id).expect("it was just written"), index.blob_range(id, id));
        let range = range.expect("spans lie within the layer");
        assert!(range.start < range.end && range.end.0 <= size, "{range:?}");
        assert!(range.start.0 + 1 >= blob_end.0 && span.decoded.start == decoded_end, "{span:?}");
        let window = index.window(id).expect("it was just written").unwrap_or_default();
        Window::from_bytes(span.kind, &window).expect("it was just packed");
        (blob_end, decoded_end) = (range.end, span.decoded.end);
    }
    assert_eq!(decoded_end.0, read.decoded_size);
    files_have_spans(&index);
}

/// The index of a layer that was read from its table says what the table says.
fn usable(layer: &ForeignLayer, blob_size: u64) {
    let ForeignLayer { tree, spans, sources, decoded_size } = layer;
    let digest = Digest::of(Algorithm::Sha256, b"");
    let of = IndexedLayer { blob: digest.clone(), blob_size, diff_id: digest, decoded_size: *decoded_size };
    let mut file = Vec::new();
    write_index_of_bodies(tree, spans, sources, &of, &Proof::Built, &mut file).expect("a table is held to limits");
    let index = LayerIndex::open(file).expect("it was just written");
    index.check_all().expect("it was just written");
    same(tree, &index);
    assert!(*decoded_size <= BOUNDS.decoded + 512);
    let mut end = BlobOffset(0);
    for span in index.spans().iter() {
        let range = index.blob_range(span, span).expect("spans lie within the layer");
        let skip = index.source_of(span).expect("it was just written").expect("spans stand alone").skip;
        assert!(range.start < range.end && range.end.0 <= blob_size, "{range:?}");
        assert!(range.start >= end || skip > 0, "spans overlap");
        end = range.end;
    }
    files_have_spans(&index);
}

fn files_have_spans(index: &LayerIndex) {
    for id in (0..index.len()).map(EntryId) {
        let entry = index.entry(id).expect("it was just written");
        for extent in index.extents(id, FileOffset(0)..FileOffset(entry.size())).expect("it was just written") {
            let Some(at) = extent.decoded else { continue };
            index.spans_of(at..at + (extent.file.end - extent.file.start)).expect("a file's bytes have spans");
        }
    }
}

/// Where the table of a layer begins, and what layers are held to.
const TOC_AT: u64 = 1 << 20;
const BOUNDS: Bounds = Bounds { tree: LIMITS, decoded: 1 << 30 };

fn walk(data: &[u8], piece: usize) -> Result<LayerTree, String> {
    let mut tree = LayerTree::new(LIMITS);
    let mut walker = TarWalker::new();
    for piece in data.chunks(piece) {
        walker.push(piece, &mut tree).map_err(|error| format!("{error:?}"))?;
    }
    walker.finish().map_err(|error| format!("{error:?}"))?;
    Ok(tree)
}

fn written(tree: &LayerTree, decoded_size: u64) -> LayerIndex {
    let digest = Digest::of(Algorithm::Sha256, b"");
    let of = IndexedLayer { blob: digest.clone(), blob_size: 0, diff_id: digest, decoded_size };
    let mut file = Vec::new();
    write_index(tree, &[], &[], &of, &Proof::Built, &mut file).expect("the tree is within its limits");
    LayerIndex::open(file).expect("it was just written")
}

/// The tree and its index answer alike.
fn same(tree: &LayerTree, index: &LayerIndex) {
    assert_eq!(tree.len(), index.len());
    let ok = "it was just written";
    for id in (0..tree.len()).map(EntryId) {
        let (ours, kept) = (tree.entry(id), index.entry(id).expect(ok));
        assert_eq!(all_of(ours), all_of(kept));
        assert_eq!(tree.name(id), index.name(id).expect(ok));
        assert_eq!(tree.symlink_target(id), index.symlink_target(id).expect(ok));
        assert_eq!(tree.link_target(id), index.link_target(id).expect(ok));
        assert_eq!(tree.path(id), index.path(id).expect(ok));
        let names: Vec<_> = tree.xattrs(id).map(|(name, _)| name.to_vec()).collect();
        assert_eq!(names, index.xattr_names(id).expect(ok));
        for (name, value) in tree.xattrs(id) {
            assert_eq!(Some(value), index.xattr(id, name).expect(ok).as_deref());
        }
        let all = FileOffset(0)..FileOffset(u64::MAX);
        // A file whose bytes would lie beyond the end of the stream cannot have been walked over.
        assert_eq!(tree.extents(id, all.clone()), index.extents(id, all).expect(ok));
        if ours.kind() != Kind::Directory {
            continue;
        }
        let own: BTreeMap<_, _> = tree.children(id).map(|child| (tree.name(child).to_vec(), child)).collect();
        let kept: Vec<_> = index.children(id).expect(ok).map(|child| child.expect(ok)).collect();
        assert!(own.values().copied().eq(kept), "children in order of names");
        for (name, child) in own {
            assert_eq!(tree.child(id, &name), Some(child));
            assert_eq!(index.child(id, &name).expect(ok), Some(child));
        }
    }
}

fn all_of(entry: Entry) -> impl PartialEq + std::fmt::Debug {
    let times = (entry.mtime(), entry.size(), entry.device(), entry.inode(), entry.nlink());
    (entry.parent(), entry.kind(), entry.flags(), entry.mode(), entry.uid(), entry.gid(), times, entry.has_xattrs())
}

/// Decodes, and then decodes again from every mark that is a start; `None` if the blob is refused.
fn decode(compression: Compression, blob: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = LayerDecoder::first_pass(compression, CODEC_LIMITS).expect("there is memory");
    let mut windows = BTreeMap::new();
    let mut marks = decoder.take_marks();
    let whole = run(&mut decoder, blob, |decoder| {
        marks.extend(decoder.take_marks());
        windows.extend(decoder.take_windows());
    })?;
    decoder.finish().ok()?;
    // Of a frame that the recorder gave up, blocks are no starts.
    let followed =
        marks.iter().enumerate().all(|(number, mark)| mark.kind != StartKind::Block || windows.contains_key(&number));
    for (number, mark) in marks.iter().enumerate().filter(|(_, mark)| mark.kind.is_start()) {
        let Mark { blob: from, decoded, kind, .. } = *mark;
        if kind == StartKind::Block && !followed {
            continue;
        }
        // From a block on, only what is before the next one can be decoded.
        let end = marks[number + 1..].iter().find(|next| kind == StartKind::Block && next.kind == kind);
        let (blob_end, end) =
            end.map_or((blob.len(), whole.len()), |end| (end.blob.0 as usize, end.decoded.0 as usize));
        let kept = windows.get(&number).map(|window: &Window| window.to_bytes()).unwrap_or_default();
        let window = Window::from_bytes(kind, &kept).expect("it was just packed");
        let mut decoder = LayerDecoder::resume(compression, CodecLimits::of_known(u64::MAX), mark, Some(&window))
            .expect("the mark is a start");
        let rest = run(&mut decoder, &blob[from.0 as usize..blob_end], |_| {}).expect("it was decoded once");
        assert!(rest == whole[decoded.0 as usize..end], "from {mark:?} on, other bytes come");
    }
    Some(whole)
}

fn run(decoder: &mut LayerDecoder, blob: &[u8], mut each: impl FnMut(&mut LayerDecoder)) -> Option<Vec<u8>> {
    let mut out = OutputBuffer::new(64 << 10);
    let mut all = Vec::new();
    for piece in blob.chunks(997) {
        let mut input = piece;
        loop {
            let status = decoder.decode(&mut input, &mut out).map_err(|error| error.to_string()).ok()?;
            each(decoder);
            all.extend_from_slice(out.decoded());
            out.discard();
            if status != Status::OutputFull {
                break;
            }
        }
    }
    each(decoder);
    Some(all)
}

/// Small enough for fast fuzzing.
const LIMITS: Limits = Limits {
    entries: 100_000,
    path: 64 << 10,
    names: 16 << 20,
    xattrs: 1 << 20,
    extents: 1 << 16,
    link_steps: 100_000,
    index: 64 << 20,
    index_at_least: 64 << 20,
};
const DECODED_LIMIT: u64 = 8 << 20;
const CODEC_LIMITS: CodecLimits = CodecLimits {
    decoded: DECODED_LIMIT,
    zstd_window_log: 23,
    zstd_ratio: 2000,
    ratio_free: 1 << 20,
    zstd_spacing: 64,
    deflate_spacing: 64,
};
/// So many of each kind of thing in an index are asked about.
const ASKED: usize = 500;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
