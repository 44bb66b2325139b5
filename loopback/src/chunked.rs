//! Layers that bring a table of contents along, as containers/storage and stargz-snapshotter write them; and such as no tool
//! writes.

use std::io::Write as _;

use base64::Engine as _;
use bytes::Bytes;
use peelfs::digest::{Algorithm, Digest};
use serde_json::{Value, json};

use super::image::{Image, Layer, Packing};
use super::tar::{Entry, EntryKind, append_end};

/// How such a layer is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TocFormat {
    /// zstd:chunked of containers/storage: a frame for each piece of a file, and frames for what lies between.
    ZstdChunked,
    /// That of stargz-snapshotter: a frame for each piece and what follows it in the tar.
    StargzZstd,
    /// eStargz: the same in gzip members, and the table is the last file of the tar.
    EStargz,
}

impl TocFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ZstdChunked, Self::StargzZstd, Self::EStargz];
}

/// Collects what such a layer holds.
pub struct ChunkedBuilder {
    entries: Vec<Entry>,
    format: TocFormat,
    piece: usize,
    member: usize,
    edits: Vec<Edit>,
    json: Vec<EditText>,
    footer: Vec<EditBytes>,
    split: Option<EditText>,
    elsewhere: bool,
}

type Edit = Box<dyn FnOnce(&mut Value)>;
type EditText = Box<dyn FnOnce(&mut String)>;
type EditBytes = Box<dyn FnOnce(&mut Vec<u8>)>;

/// Such a layer, and what the manifest has to say of it.
pub struct Chunked {
    /// The layer.
    pub layer: Layer,
    /// Its annotations.
    pub annotations: Value,
    /// The table, where it is a file of the layer.
    pub toc: Option<Entry>,
    /// The table as a layer of another image, where it is one.
    pub elsewhere: Option<Bytes>,
}

impl ChunkedBuilder {
    /// A layer of these entries, whose files are in pieces of 64 KiB.
    pub fn of(entries: impl IntoIterator<Item = Entry>) -> Self {
        Self {
            entries: entries.into_iter().collect(),
            format: TocFormat::ZstdChunked,
            piece: 64 << 10,
            member: 0,
            edits: Vec::new(),
            json: Vec::new(),
            footer: Vec::new(),
            split: None,
            elsewhere: false,
        }
    }

    /// Writes another format.
    #[must_use]
    pub fn format(self, format: TocFormat) -> Self {
        Self { format, ..self }
    }

    /// Cuts files into pieces of so many bytes.
    #[must_use]
    pub fn pieces_of(self, piece: usize) -> Self {
        Self { piece, ..self }
    }

    /// Puts pieces into one member or frame until that has so many bytes, as `--estargz-min-chunk-size`; not of
    /// [`TocFormat::ZstdChunked`].
    #[must_use]
    pub fn members_of(self, member: usize) -> Self {
        Self { member, ..self }
    }

    /// Changes the table before it is written.
    #[must_use]
    pub fn edit_toc(mut self, edit: impl FnOnce(&mut Value) + 'static) -> Self {
        self.edits.push(Box::new(edit));
        self
    }

    /// Changes the table's text before it is written.
    #[must_use]
    pub fn edit_json(mut self, edit: impl FnOnce(&mut String) + 'static) -> Self {
        self.json.push(Box::new(edit));
        self
    }

    /// Adds tar-split data to a layer of [`TocFormat::ZstdChunked`], after `edit` has changed them.
    #[must_use]
    pub fn tar_split(self, edit: impl FnOnce(&mut String) + 'static) -> Self {
        Self { split: Some(Box::new(edit)), ..self }
    }

    /// Makes the table of [`TocFormat::EStargz`] a layer of another image, as `--estargz-external-toc`.
    #[must_use]
    pub fn toc_elsewhere(self) -> Self {
        Self { elsewhere: true, ..self }
    }

    /// Changes what the blob ends with.
    #[must_use]
    pub fn edit_footer(mut self, edit: impl FnOnce(&mut Vec<u8>) + 'static) -> Self {
        self.footer.push(Box::new(edit));
        self
    }

    /// Writes the layer.
    pub fn build(self) -> Chunked {
        let Self { entries, format, piece: piece_size, member, edits, json: texts, footer: footers, split, elsewhere } =
            self;
        let (mut tar, mut toc) = (Vec::new(), Vec::new());
        let mut blob = Blob { format, bytes: Vec::new(), open: Vec::new() };
        let mut bodies = Vec::new();
        for entry in &entries {
            let start = tar.len();
            entry.write(&mut tar);
            let content: &[u8] = if let EntryKind::File(content) = &entry.kind { content } else { b"" };
            let body = tar.len() - content.len().next_multiple_of(512);
            blob.open.extend_from_slice(&tar[start..body]);
            bodies.push((text(&entry.path), body..body + content.len()));
            let mut record = record(entry, format);
            if content.is_empty() {
                toc.push(record);
                continue;
            }
            record["size"] = json!(content.len());
            record["digest"] = json!(Digest::of(Algorithm::Sha256, content));
            let mut records = vec![record];
            let pieces = content.len().div_ceil(piece_size);
            for (number, piece) in content.chunks(piece_size).enumerate() {
                if number > 0 {
                    records.push(json!({ "type": "chunk", "name": records[0]["name"] }));
                }
                let record = &mut records[number];
                if blob.open.len() >= member || blob.bytes.is_empty() {
                    blob.end_member();
                }
                record["offset"] = json!(blob.bytes.len());
                if !blob.open.is_empty() {
                    record["innerOffset"] = json!(blob.open.len());
                }
                let is_last = number + 1 == pieces;
                if number > 0 || (pieces > 1 && format == TocFormat::ZstdChunked) {
                    record["chunkOffset"] = json!(number * piece_size);
                }
                if pieces > 1 && (!is_last || format == TocFormat::ZstdChunked) {
                    record["chunkSize"] = json!(piece.len());
                }
                if pieces > 1 || format != TocFormat::ZstdChunked {
                    record["chunkDigest"] = json!(Digest::of(Algorithm::Sha256, piece));
                }
                if pieces > 1 && format == TocFormat::ZstdChunked && piece.iter().all(|byte| *byte == 0) {
                    record["chunkType"] = json!("zeros");
                }
                blob.open.extend_from_slice(piece);
                if format == TocFormat::ZstdChunked {
                    blob.end_member();
                }
            }
            if format == TocFormat::ZstdChunked {
                records[0]["endOffset"] = json!(blob.bytes.len());
            }
            toc.extend(records);
            blob.open.extend_from_slice(&tar[body + content.len()..]);
        }
        if format == TocFormat::ZstdChunked {
            let end = tar.len();
            append_end(&mut tar);
            blob.open.extend_from_slice(&tar[end..]);
        }
        blob.end_member();

        let mut toc = json!({ "version": 1, "entries": toc });
        let split = split.map(|edit| {
            let mut text = tar_split(&tar, &bodies);
            edit(&mut text);
            (frame(text.as_bytes()), text.len())
        });
        if let Some((packed, _)) = &split {
            toc["tarSplitDigest"] = json!(Digest::of(Algorithm::Sha256, packed));
        }
        edits.into_iter().for_each(|edit| edit(&mut toc));
        let mut text = toc.to_string();
        texts.into_iter().for_each(|edit| edit(&mut text));
        let own =
            (format == TocFormat::EStargz).then(|| Entry::file("stargz.index.json", text.clone()).mode(0).mtime(0, 0));
        let (own, elsewhere) = match own {
            Some(own) if elsewhere => (None, Some(toc_layer(&own))),
            own => (own, None),
        };
        let (mut footer, mut annotations) = blob.push_toc(&text, own.as_ref(), &mut tar);
        if let Some((packed, decoded)) = split {
            let at = blob.bytes.len() + SKIPPABLE_HEADER;
            push_skipped(&mut blob.bytes, &packed);
            let position = format!("{at}:{}:{decoded}", packed.len());
            annotations["io.github.containers.zstd-chunked.tarsplit-position"] = json!(position);
        }
        footers.into_iter().for_each(|edit| edit(&mut footer));
        let mut blob = blob.bytes;
        match format {
            TocFormat::ZstdChunked | TocFormat::StargzZstd => push_skipped(&mut blob, &footer),
            TocFormat::EStargz => blob.extend_from_slice(&footer),
        }
        let packing = if format == TocFormat::EStargz { Packing::GZIP } else { Packing::ZSTD };
        let layer = Layer::of(tar, blob, packing);
        Chunked { layer, annotations, toc: own, elsewhere }
    }
}

/// A blob that is being written.
struct Blob {
    format: TocFormat,
    bytes: Vec<u8>,
    /// What the next member or frame decodes to.
    open: Vec<u8>,
}

impl Blob {
    fn end_member(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let open = std::mem::take(&mut self.open);
        match self.format {
            TocFormat::ZstdChunked | TocFormat::StargzZstd => self.bytes.extend(frame(&open)),
            TocFormat::EStargz => push_member(&mut self.bytes, &open),
        }
    }

    /// Appends the table; returns what says where it is in the blob and in the manifest.
    fn push_toc(&mut self, json: &str, own: Option<&Entry>, tar: &mut Vec<u8>) -> (Vec<u8>, Value) {
        let digest = Digest::of(Algorithm::Sha256, json.as_bytes());
        let mut annotations = match self.format {
            TocFormat::ZstdChunked => json!({}),
            TocFormat::StargzZstd | TocFormat::EStargz => json!({ TOC_DIGEST: digest }),
        };
        if let Some(own) = own {
            let (at, start) = (self.bytes.len(), tar.len());
            own.write(tar);
            append_end(tar);
            push_member(&mut self.bytes, &tar[start..]);
            return (stargz_footer(at as u64), annotations);
        }
        if self.format == TocFormat::EStargz {
            let start = tar.len();
            append_end(tar);
            push_member(&mut self.bytes, &tar[start..]);
            return (last_member(b"STARGZEXTERNALTOC"), annotations);
        }
        let packed = frame(json.as_bytes());
        let at = self.bytes.len() + SKIPPABLE_HEADER;
        push_skipped(&mut self.bytes, &packed);
        let numbers = [at as u64, packed.len() as u64, json.len() as u64, 1];
        let split: &[u64] = if self.format == TocFormat::ZstdChunked { &[0; 3] } else { &[] };
        let numbers = numbers.iter().chain(split).flat_map(|number| number.to_le_bytes());
        let family = match self.format {
            TocFormat::ZstdChunked => "io.github.containers.zstd-chunked",
            _ => "io.containers.zstd-chunked",
        };
        annotations[format!("{family}.manifest-checksum")] = json!(Digest::of(Algorithm::Sha256, &packed));
        annotations[format!("{family}.manifest-position")] = json!(format!("{at}:{}:{}:1", packed.len(), json.len()));
        (numbers.chain(*b"GNUlInUx").collect(), annotations)
    }
}

/// What makes the tar again, with these bodies of entries (vbatts/tar-split).
fn tar_split(tar: &[u8], bodies: &[(String, std::ops::Range<usize>)]) -> String {
    let (mut lines, mut done) = (Vec::new(), 0);
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    for (name, body) in bodies {
        lines.push(json!({ "type": 2, "payload": base64(&tar[done..body.start]), "position": lines.len() }));
        let sum = if body.is_empty() { Value::Null } else { json!(base64(&[0; 8])) };
        lines.push(json!({ "type": 1, "name": name, "size": body.len(), "payload": sum, "position": lines.len() }));
        done = body.end;
    }
    lines.push(json!({ "type": 2, "payload": base64(&tar[done..]), "position": lines.len() }));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The empty member that an eStargz layer ends with, whose table begins at `at`.
pub fn stargz_footer(at: u64) -> Vec<u8> {
    last_member(format!("{at:016x}STARGZ").as_bytes())
}

/// An empty member with this subfield of its extra field.
fn last_member(field: &[u8]) -> Vec<u8> {
    let length = field.len() as u8;
    let start = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, length + 4, 0, b'S', b'G', length, 0];
    let end = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    [&start[..], field, &end[..]].concat()
}

/// A layer with this table alone.
fn toc_layer(own: &Entry) -> Bytes {
    let (mut tar, mut blob) = (Vec::new(), Vec::new());
    own.write(&mut tar);
    append_end(&mut tar);
    push_member(&mut blob, &tar);
    blob.into()
}

/// The image of the tables of layers, each with the digest of its layer; its tag is the image's with `-esgztoc` behind it.
pub fn toc_image<'a>(tables: impl IntoIterator<Item = (&'a Digest, &'a Bytes)>) -> Image {
    let config = Bytes::from_static(br#"{"architecture":"","os":"","config":{},"rootfs":{"type":"","diff_ids":null}}"#);
    let mut layers = Vec::new();
    let mut blobs = vec![config.clone()];
    for (layer, table) in tables {
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": Digest::of(Algorithm::Sha256, table),
            "size": table.len(),
            "annotations": { "containerd.io/snapshot/stargz/layer.digest": layer },
        }));
        blobs.push(table.clone());
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(Algorithm::Sha256, &config),
            "size": config.len(),
        },
        "layers": layers,
    });
    let image = Image::from_document("application/vnd.oci.image.manifest.v1+json", manifest.to_string());
    blobs.into_iter().fold(image, Image::with_blob)
}

/// What a table says of an entry, but for a file's bytes. As JSON holds no other text, what is none is replaced.
fn record(entry: &Entry, format: TocFormat) -> Value {
    let mut record = json!({
        "name": text(&entry.path),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
    });
    let time = jiff::Timestamp::new(entry.mtime.seconds, 0).expect("a time that tests use");
    let nanos = if format == TocFormat::ZstdChunked { entry.mtime.nanos } else { 0 };
    let time = time + jiff::SignedDuration::from_nanos(nanos.into());
    record["modtime"] = json!(time.to_string());
    if !entry.xattrs.is_empty() {
        let value = |value: &[u8]| base64::engine::general_purpose::STANDARD.encode(value);
        record["xattrs"] = entry.xattrs.iter().map(|(name, bytes)| (text(name), json!(value(bytes)))).collect();
    }
    let mut device = |kind, major: u32, minor: u32| {
        (record["devMajor"], record["devMinor"]) = (json!(major), json!(minor));
        kind
    };
    let kind = match &entry.kind {
        EntryKind::File(_) => "reg",
        EntryKind::Dir => "dir",
        EntryKind::Symlink(_) => "symlink",
        EntryKind::HardLink(_) => "hardlink",
        EntryKind::Fifo => "fifo",
        EntryKind::CharDevice { major, minor } => device("char", *major, *minor),
        EntryKind::BlockDevice { major, minor } => device("block", *major, *minor),
    };
    record["type"] = json!(kind);
    match &entry.kind {
        EntryKind::Dir => record["name"] = json!(text(&entry.path) + "/"),
        EntryKind::Symlink(target) | EntryKind::HardLink(target) => record["linkName"] = json!(text(target)),
        _ => {}
    }
    record
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).expect("packing memory into memory needs no I/O")
}

fn push_member(blob: &mut Vec<u8>, bytes: &[u8]) {
    let mut encoder = flate2::write::GzEncoder::new(blob, flate2::Compression::new(6));
    let packed = encoder.write_all(bytes).and_then(|()| encoder.finish().map(drop));
    packed.expect("packing memory into memory needs no I/O");
}

/// A frame that decoders skip (RFC 8878, 3.1.2).
fn push_skipped(blob: &mut Vec<u8>, bytes: &[u8]) {
    blob.extend_from_slice(&0x184d_2a50_u32.to_le_bytes());
    blob.extend_from_slice(&u32::try_from(bytes.len()).expect("a small table").to_le_bytes());
    blob.extend_from_slice(bytes);
}

/// The annotation of stargz-snapshotter with the digest of the table's JSON.
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Magic number and length of a frame that decoders skip.
const SKIPPABLE_HEADER: usize = 8;
