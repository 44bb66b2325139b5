//! Layers that bring a table of contents along, as containers/storage writes zstd:chunked; and such as no tool writes.

use base64::Engine as _;
use peelfs::digest::{Algorithm, Digest};
use serde_json::{Value, json};

use super::image::{Layer, Packing};
use super::tar::{Entry, EntryKind, append_end};

/// Collects what such a layer holds.
pub struct ChunkedBuilder {
    entries: Vec<Entry>,
    piece: usize,
    edits: Vec<Edit>,
}

type Edit = Box<dyn FnOnce(&mut Value)>;

/// Such a layer, and what the manifest has to say of it.
pub struct Chunked {
    /// The layer.
    pub layer: Layer,
    /// Its annotations.
    pub annotations: Value,
}

impl ChunkedBuilder {
    /// A layer of these entries, whose files are in pieces of 64 KiB.
    pub fn of(entries: impl IntoIterator<Item = Entry>) -> Self {
        Self { entries: entries.into_iter().collect(), piece: 64 << 10, edits: Vec::new() }
    }

    /// Cuts files into pieces of so many bytes.
    #[must_use]
    pub fn pieces_of(self, piece: usize) -> Self {
        Self { piece, ..self }
    }

    /// Changes the table before it is written.
    #[must_use]
    pub fn edit_toc(mut self, edit: impl FnOnce(&mut Value) + 'static) -> Self {
        self.edits.push(Box::new(edit));
        self
    }

    /// Writes the layer, a frame for each piece and a frame for what lies between.
    pub fn build(self) -> Chunked {
        let (mut tar, mut blob, mut between) = (Vec::new(), Vec::new(), Vec::new());
        let mut toc = Vec::new();
        for entry in &self.entries {
            let start = tar.len();
            entry.write(&mut tar);
            let content: &[u8] = if let EntryKind::File(content) = &entry.kind { content } else { b"" };
            let body = tar.len() - content.len().next_multiple_of(512);
            between.extend_from_slice(&tar[start..body]);
            let mut record = record(entry);
            if content.is_empty() {
                toc.push(record);
                continue;
            }
            push_frame(&mut blob, &std::mem::take(&mut between));
            record["size"] = json!(content.len());
            record["digest"] = json!(Digest::of(Algorithm::Sha256, content));
            let mut records = vec![record];
            let several = content.len() > self.piece;
            for (number, piece) in content.chunks(self.piece).enumerate() {
                if number > 0 {
                    records.push(json!({ "type": "chunk", "name": records[0]["name"] }));
                }
                let record = &mut records[number];
                record["offset"] = json!(blob.len());
                if several {
                    record["chunkOffset"] = json!(number * self.piece);
                    record["chunkSize"] = json!(piece.len());
                    record["chunkDigest"] = json!(Digest::of(Algorithm::Sha256, piece));
                    if piece.iter().all(|byte| *byte == 0) {
                        record["chunkType"] = json!("zeros");
                    }
                }
                push_frame(&mut blob, piece);
            }
            records[0]["endOffset"] = json!(blob.len());
            toc.extend(records);
            between.extend_from_slice(&tar[body + content.len()..]);
        }
        let end = tar.len();
        append_end(&mut tar);
        between.extend_from_slice(&tar[end..]);
        push_frame(&mut blob, &between);

        let mut toc = json!({ "version": 1, "entries": toc });
        self.edits.into_iter().for_each(|edit| edit(&mut toc));
        let json = toc.to_string();
        let packed = zstd::bulk::compress(json.as_bytes(), 3).expect("packing memory into memory needs no I/O");
        let at = blob.len() + 8;
        push_skipped(&mut blob, &packed);
        let numbers = [at as u64, packed.len() as u64, json.len() as u64, 1, 0, 0, 0];
        let footer: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).chain(*b"GNUlInUx").collect();
        push_skipped(&mut blob, &footer);
        let annotations = json!({
            "io.github.containers.zstd-chunked.manifest-checksum": Digest::of(Algorithm::Sha256, &packed),
            "io.github.containers.zstd-chunked.manifest-position": format!("{at}:{}:{}:1", packed.len(), json.len()),
        });
        let layer = Layer::of(tar, blob, Packing::ZSTD);
        Chunked { layer, annotations }
    }
}

/// What a table says of an entry, but for a file's bytes. As JSON holds no other text, what is none is replaced.
fn record(entry: &Entry) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut record = json!({
        "name": text(&entry.path),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
    });
    let time = jiff::Timestamp::new(entry.mtime.seconds, 0).expect("a time that tests use");
    let time = time + jiff::SignedDuration::from_nanos(entry.mtime.nanos.into());
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

fn push_frame(blob: &mut Vec<u8>, bytes: &[u8]) {
    blob.extend(zstd::bulk::compress(bytes, 3).expect("packing memory into memory needs no I/O"));
}

/// A frame that decoders skip (RFC 8878, 3.1.2).
fn push_skipped(blob: &mut Vec<u8>, bytes: &[u8]) {
    blob.extend_from_slice(&0x184d_2a50_u32.to_le_bytes());
    blob.extend_from_slice(&u32::try_from(bytes.len()).expect("a small table").to_le_bytes());
    blob.extend_from_slice(bytes);
}
