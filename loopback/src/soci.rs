//! Layers and zTOCs that describe them, as soci-snapshotter has them; and such as no tool writes.

use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, VOffsetT, WIPOffset};
use flate2::{Compress, Compression, FlushCompress};
use peelfs::digest::{Algorithm, Digest};
use serde_json::json;

use super::image::{ArtifactBuilder, Image, ImageBuilder, Layer, Packing};
use super::tar::{Entry, EntryKind, append_end};

/// The annotation of a manifest with the digest of the index that it binds.
pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
/// Type of an index that refers to its image.
pub const V1: &str = "application/vnd.amazon.soci.index.v1+json";
/// Type of an index that the image's manifest binds.
pub const V2: &str = "application/vnd.amazon.soci.index.v2+json";
/// The empty configuration of all indexes.
const CONFIG: &str = "{}";
/// Bytes before a place to start from.
const WINDOW: usize = 32 << 10;
/// A gzip header without a name.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Collects what such a layer holds.
pub struct SociBuilder {
    entries: Vec<Entry>,
    span: usize,
    member: Option<usize>,
}

/// A layer and its zTOC.
#[derive(Clone, Debug)]
pub struct Soci {
    /// The layer.
    pub layer: Layer,
    /// What its zTOC says.
    pub ztoc: Ztoc,
}

/// What a zTOC says.
#[derive(Clone, Debug)]
pub struct Ztoc {
    /// Version of the format.
    pub version: String,
    /// Bytes of the blob.
    pub compressed: i64,
    /// Bytes of the tar.
    pub uncompressed: i64,
    /// 1 for gzip, 2 for a plain tar.
    pub algorithm: i8,
    /// Number of the last span.
    pub last_span: i32,
    /// Digests of spans, as text.
    pub digests: Vec<String>,
    /// How many checkpoints there are, says their list.
    pub have: i32,
    /// The checkpoints.
    pub checkpoints: Vec<Checkpoint>,
    /// What stands in the place of checkpoints, as for a plain tar.
    pub other_checkpoints: Option<Vec<u8>>,
    /// The files.
    pub files: Vec<File>,
}

/// A place to start from.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The first whole byte of the blob.
    pub whole: i64,
    /// The first decoded byte.
    pub decoded: i64,
    /// Bits of the byte before.
    pub bits: u8,
    /// The bytes before, 32 KiB.
    pub window: Vec<u8>,
}

/// A file of a zTOC.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// Its path.
    pub name: Vec<u8>,
    /// Its type.
    pub kind: String,
    /// Where its bytes are in the tar.
    pub at: i64,
    /// How many bytes it has.
    pub size: i64,
    /// What it links to.
    pub target: Vec<u8>,
    /// Permissions.
    pub mode: i64,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Time (RFC 3339).
    pub mtime: String,
    /// Device numbers.
    pub device: (i64, i64),
    /// PAX records.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl SociBuilder {
    /// A gzip layer of these entries in one member, with spans of 16 KiB.
    pub fn of(entries: impl IntoIterator<Item = Entry>) -> Self {
        Self { entries: entries.into_iter().collect(), span: 16 << 10, member: None }
    }

    /// Spans of so many decoded bytes.
    #[must_use]
    pub fn spans_of(self, span: usize) -> Self {
        Self { span, ..self }
    }

    /// Members of so many decoded bytes.
    #[must_use]
    pub fn members_of(self, member: usize) -> Self {
        Self { member: Some(member), ..self }
    }

    /// A gzip layer.
    pub fn build(self) -> Soci {
        let (tar, files) = written(&self.entries);
        let (blob, checkpoints) = packed(&tar, self.span, self.member.unwrap_or(usize::MAX));
        let mut ztoc = Ztoc {
            version: "0.9".to_owned(),
            compressed: blob.len() as i64,
            uncompressed: tar.len() as i64,
            algorithm: 1,
            last_span: checkpoints.len() as i32 - 1,
            digests: Vec::new(),
            have: checkpoints.len() as i32,
            checkpoints,
            other_checkpoints: None,
            files,
        };
        ztoc.digest(&blob);
        Soci { layer: Layer::of(tar, blob, Packing::GZIP), ztoc }
    }

    /// A plain tar.
    pub fn build_stored(self) -> Soci {
        let (tar, files) = written(&self.entries);
        let mut info = FlatBufferBuilder::new();
        let table = info.start_table();
        info.push_slot_always::<i32>(4, 2);
        info.push_slot_always::<i64>(6, self.span as i64);
        info.push_slot_always::<i64>(8, tar.len() as i64);
        let table = info.end_table(table);
        info.finish_minimal(table);
        let digests: Vec<_> =
            tar.chunks(self.span).map(|span| Digest::of(Algorithm::Sha256, span).to_string()).collect();
        let ztoc = Ztoc {
            version: "0.9".to_owned(),
            compressed: tar.len() as i64,
            uncompressed: tar.len() as i64,
            algorithm: 2,
            last_span: digests.len() as i32 - 1,
            digests,
            have: 0,
            checkpoints: Vec::new(),
            other_checkpoints: Some(info.finished_data().to_vec()),
            files,
        };
        Soci { layer: Layer::of(tar.clone(), tar, Packing::Stored), ztoc }
    }
}

/// The tar of some entries, and what a zTOC says of each.
fn written(entries: &[Entry]) -> (Vec<u8>, Vec<File>) {
    let (mut tar, mut files) = (Vec::new(), Vec::new());
    for entry in entries {
        entry.write(&mut tar);
        let size = if let EntryKind::File(content) = &entry.kind { content.len() } else { 0 };
        files.push(file(entry, (tar.len() - size.next_multiple_of(512)) as i64, size as i64));
    }
    append_end(&mut tar);
    (tar, files)
}

/// What a zTOC says of an entry whose bytes are at `at`.
fn file(entry: &Entry, at: i64, size: i64) -> File {
    let time = jiff::Timestamp::new(entry.mtime.seconds, 0).expect("a time that tests use");
    let time = time + jiff::SignedDuration::from_nanos(entry.mtime.nanos.into());
    let (mut name, mut target, mut device) = (entry.path.clone(), Vec::new(), (0, 0));
    let kind = match &entry.kind {
        EntryKind::File(_) => "reg",
        EntryKind::Dir => {
            name.push(b'/');
            "dir"
        }
        EntryKind::Symlink(to) => {
            target.clone_from(to);
            "symlink"
        }
        EntryKind::HardLink(to) => {
            target.clone_from(to);
            "hardlink"
        }
        EntryKind::Fifo => "fifo",
        EntryKind::CharDevice { major, minor } => {
            device = ((*major).into(), (*minor).into());
            "char"
        }
        EntryKind::BlockDevice { major, minor } => {
            device = ((*major).into(), (*minor).into());
            "block"
        }
    };
    let record = |(key, value): &(Vec<u8>, Vec<u8>)| ([b"SCHILY.xattr.", &key[..]].concat(), value.clone());
    File {
        name,
        kind: kind.to_owned(),
        at,
        size,
        target,
        mode: entry.mode.into(),
        owner: (entry.uid as u32, entry.gid as u32),
        mtime: time.to_string(),
        device,
        records: entry.xattrs.iter().map(record).chain([(b"comment".to_vec(), b"any".to_vec())]).collect(),
    }
}

/// Compresses `tar`, and notes where decoding can start: each `span` bytes, where the compressor has been made to end a block
/// and the byte with it. Members end each `member` bytes.
fn packed(tar: &[u8], span: usize, member: usize) -> (Vec<u8>, Vec<Checkpoint>) {
    let mut places = vec![(HEADER.len(), 0)];
    let (mut blob, mut at) = (Vec::new(), 0);
    for content in tar.chunks(member.min(tar.len())) {
        blob.extend_from_slice(&HEADER);
        let mut deflate = Compress::new(Compression::default(), false);
        let mut rest = content;
        while !rest.is_empty() {
            let due = places[places.len() - 1].1 + span;
            let (now, later) = rest.split_at(rest.len().min(due - at));
            let flush = if later.is_empty() { FlushCompress::Finish } else { FlushCompress::Sync };
            let mut room = Vec::with_capacity(now.len() * 2 + 1024);
            deflate.compress_vec(now, &mut room, flush).expect("compressing in memory needs no I/O");
            blob.extend_from_slice(&room);
            at += now.len();
            rest = later;
            if !later.is_empty() {
                places.push((blob.len(), at));
            }
        }
        let mut crc = flate2::Crc::new();
        crc.update(content);
        blob.extend([crc.sum().to_le_bytes(), (content.len() as u32).to_le_bytes()].concat());
        // Between members nothing starts; the next place is within the next one.
        if at - places[places.len() - 1].1 >= span {
            places.push((blob.len() + HEADER.len(), at));
        }
    }
    places.retain(|(_, decoded)| *decoded < tar.len());
    let checkpoint = |(whole, decoded): &(usize, usize)| {
        let mut window = vec![0; WINDOW];
        let known = (*decoded).min(WINDOW);
        window[WINDOW - known..].copy_from_slice(&tar[decoded - known..*decoded]);
        Checkpoint { whole: *whole as i64, decoded: *decoded as i64, bits: 0, window }
    };
    let checkpoints = places.iter().map(checkpoint).collect();
    (blob, checkpoints)
}

impl Ztoc {
    /// Computes the digests of the spans in `blob`.
    pub fn digest(&mut self, blob: &[u8]) {
        let start = |at: &Checkpoint| (at.whole - i64::from(at.bits != 0)) as usize;
        let ends = self.checkpoints.iter().skip(1).map(|next| next.whole as usize).chain([blob.len()]);
        let spans = self.checkpoints.iter().zip(ends).map(|(place, end)| &blob[start(place)..end]);
        self.digests = spans.map(|span| Digest::of(Algorithm::Sha256, span).to_string()).collect();
    }

    /// The file of a name.
    pub fn file(&mut self, name: &str) -> &mut File {
        self.files.iter_mut().find(|file| file.name == name.as_bytes()).expect("a name of a test")
    }

    /// The flatbuffer, with its parts in the order in which soci-snapshotter has them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = FlatBufferBuilder::new();
        let version = out.create_string(&self.version);
        let tool = out.create_string("a test");
        let mut files: Vec<_> = self.files.iter().rev().map(|file| file.write(&mut out)).collect();
        files.reverse();
        let files = out.create_vector(&files);
        let toc = out.start_table();
        out.push_slot_always(4, files);
        let toc = out.end_table(toc);
        let checkpoints = match &self.other_checkpoints {
            Some(other) => out.create_vector(other),
            None => out.create_vector(&self.packed_checkpoints()),
        };
        let digests: Vec<_> = self.digests.iter().map(|digest| out.create_string(digest)).collect();
        let digests = out.create_vector(&digests);
        let info = out.start_table();
        out.push_slot::<i8>(4, self.algorithm, 1);
        out.push_slot::<i32>(6, self.last_span, 0);
        out.push_slot_always(8, digests);
        out.push_slot_always(10, checkpoints);
        let info = out.end_table(info);
        let root = out.start_table();
        out.push_slot_always(4, version);
        out.push_slot_always(6, tool);
        out.push_slot::<i64>(8, self.compressed, 0);
        out.push_slot::<i64>(10, self.uncompressed, 0);
        out.push_slot_always(12, toc);
        out.push_slot_always(14, info);
        let root = out.end_table(root);
        out.finish_minimal(root);
        out.finished_data().to_vec()
    }

    fn packed_checkpoints(&self) -> Vec<u8> {
        let mut bytes = [&self.have.to_le_bytes()[..], &(4_i64 << 20).to_le_bytes()].concat();
        for Checkpoint { whole, decoded, bits, window } in &self.checkpoints {
            bytes.extend([&whole.to_le_bytes()[..], &decoded.to_le_bytes(), &[*bits], window].concat());
        }
        bytes
    }
}

impl File {
    fn write(&self, out: &mut FlatBufferBuilder<'_>) -> WIPOffset<TableFinishedWIPOffset> {
        let texts = [&self.name, self.kind.as_bytes(), &self.target, b"", b"", self.mtime.as_bytes()];
        let [name, kind, target, user, group, mtime] = texts.map(|text| out.create_byte_string(text));
        let mut records = Vec::new();
        for (key, value) in &self.records {
            let (key, value) = (out.create_byte_string(key), out.create_byte_string(value));
            let record = out.start_table();
            out.push_slot_always(4, key);
            out.push_slot_always(6, value);
            records.push(out.end_table(record));
        }
        let records = out.create_vector(&records);
        let table = out.start_table();
        for (place, text) in [(4, name), (6, kind), (12, target), (20, user), (22, group), (24, mtime)] {
            out.push_slot_always(place as VOffsetT, text);
        }
        for (place, number) in
            [(8, self.at), (10, self.size), (14, self.mode), (26, self.device.0), (28, self.device.1)]
        {
            out.push_slot::<i64>(place as VOffsetT, number, 0);
        }
        out.push_slot::<u32>(16, self.owner.0, 0);
        out.push_slot::<u32>(18, self.owner.1, 0);
        out.push_slot_always(30, records);
        out.end_table(table)
    }
}

/// Collects an index: the zTOC of each layer, by the layer's blob.
pub fn index<'a>(kind: &str, ztocs: impl IntoIterator<Item = (&'a Digest, Vec<u8>)>) -> ArtifactBuilder {
    // No `artifactType`: the configuration says it.
    let index = ArtifactBuilder::new(kind).config(kind, CONFIG);
    let index = index.edit(|manifest| drop(manifest.as_object_mut().expect("an object").remove("artifactType")));
    ztocs.into_iter().fold(index, |index, (layer, ztoc)| {
        let annotations = [
            ("com.amazon.soci.image-layer-digest", &*layer.to_string()),
            ("com.amazon.soci.image-layer-mediaType", "application/vnd.oci.image.layer.v1.tar+gzip"),
            ("com.amazon.soci.span-size", "4194304"),
        ];
        index.layer("application/octet-stream", ztoc, &annotations)
    })
}

/// Adds to an index what of a layer should be fetched when a container starts: spans, first and last of each range.
#[must_use]
pub fn prefetched(index: ArtifactBuilder, layer: &Digest, ranges: &[(u32, u32)]) -> ArtifactBuilder {
    let ranges: Vec<_> = ranges.iter().map(|(first, last)| json!({ "start_span": first, "end_span": last })).collect();
    let list = json!({ "version": "1.0", "prefetch_spans": ranges }).to_string();
    let annotations = [("com.amazon.soci.image-layer-digest", &*layer.to_string())];
    index.layer("application/vnd.amazon.soci.prefetch.v1+json", list, &annotations)
}

/// An image whose manifest binds `index`, which comes with it.
pub fn bound(image: ImageBuilder, index: &Image) -> Image {
    let digest = index.root().digest.to_string();
    image.edit_manifest(move |manifest| manifest["annotations"][INDEX_DIGEST] = json!(digest)).build().with_image(index)
}
