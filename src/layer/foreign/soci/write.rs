//! Writes zTOCs of gzip layers, with the parts of the flatbuffer in the order of soci-snapshotter (`ztoc_marshaler.go`).

use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, WIPOffset};

use super::{GZIP, VERSION, XATTR};
use crate::codec::{BlockStart, Window};
use crate::digest::Digest;
use crate::layer::entry::Timestamp;
use crate::layer::tar::{TarEntry, TarKind, TarSink};

/// Why no zTOC can be written of a layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoZtoc {
    /// It has no place for the map of a sparse file.
    #[error("the layer has sparse files, which a zTOC cannot describe")]
    Sparse,
    /// It has no text for a time.
    #[error("the layer has a time that a zTOC cannot hold")]
    Time,
    /// A flatbuffer has at most 2 GiB.
    #[error("the layer has too many entries or spans for a zTOC")]
    TooLarge,
}

/// A zTOC, of which the entries come first, in the order of the tar.
pub struct ZtocWriter {
    out: FlatBufferBuilder<'static>,
    files: Vec<WIPOffset<TableFinishedWIPOffset>>,
}

/// What a zTOC says beside the entries.
pub struct ZtocSpans<'a> {
    /// Bytes of the blob.
    pub blob_size: u64,
    /// Bytes of the tar.
    pub decoded_size: u64,
    /// How long spans should be.
    pub spacing: u64,
    /// Where they begin.
    pub starts: &'a [BlockStart],
    /// The digest of the blob's bytes of each.
    pub digests: &'a [Digest],
}

impl Default for ZtocWriter {
    fn default() -> Self {
        Self { out: FlatBufferBuilder::new(), files: Vec::new() }
    }
}

impl TarSink for ZtocWriter {
    type Error = NoZtoc;

    fn accept(&mut self, entry: &TarEntry<'_>) -> Result<(), NoZtoc> {
        let (mut size, mut data, mut target, mut device) = (0, entry.at + BLOCK, &[][..], None);
        let kind = match &entry.kind {
            TarKind::File { extents: Some(_), .. } => return Err(NoZtoc::Sparse),
            TarKind::File { size: bytes, data: at, extents: None } => {
                (size, data) = (*bytes, *at);
                "reg"
            }
            TarKind::Directory => "dir",
            TarKind::Symlink(to) => {
                target = to;
                "symlink"
            }
            TarKind::HardLink(to) => {
                target = to;
                "hardlink"
            }
            TarKind::CharDevice(of) => {
                device = Some(*of);
                "char"
            }
            TarKind::BlockDevice(of) => {
                device = Some(*of);
                "block"
            }
            TarKind::Fifo => "fifo",
        };
        let time = text(entry.mtime).ok_or(NoZtoc::Time)?;
        let texts = [entry.path, kind.as_bytes(), target, b"", b"", time.as_bytes()];
        let room: usize = texts.iter().map(|text| text.len() + 8).sum();
        if self.out.unfinished_data().len() + room > MOST {
            return Err(NoZtoc::TooLarge);
        }
        let out = &mut self.out;
        let [name, kind, target, user, group, time] = texts.map(|text| out.create_byte_string(text));
        let mut records = Vec::new();
        for xattr in entry.xattrs {
            let (key, value) =
                (out.create_byte_string(&[XATTR, &xattr.name].concat()), out.create_byte_string(&xattr.value));
            let record = out.start_table();
            out.push_slot_always(4, key);
            out.push_slot_always(6, value);
            records.push(out.end_table(record));
        }
        let records = out.create_vector(&records);
        let file = out.start_table();
        out.push_slot_always(4, name);
        out.push_slot_always(6, kind);
        out.push_slot::<i64>(8, data.0 as i64, 0);
        out.push_slot::<i64>(10, size as i64, 0);
        out.push_slot_always(12, target);
        out.push_slot::<i64>(14, entry.mode.into(), 0);
        out.push_slot::<u32>(16, entry.uid, 0);
        out.push_slot::<u32>(18, entry.gid, 0);
        out.push_slot_always(20, user);
        out.push_slot_always(22, group);
        out.push_slot_always(24, time);
        out.push_slot::<i64>(26, device.map_or(0, |device| device.major.into()), 0);
        out.push_slot::<i64>(28, device.map_or(0, |device| device.minor.into()), 0);
        out.push_slot_always(30, records);
        self.files.push(out.end_table(file));
        Ok(())
    }
}

impl ZtocWriter {
    /// The zTOC of the entries so far.
    ///
    /// # Errors
    /// [`NoZtoc::TooLarge`]
    pub fn finish(mut self, spans: &ZtocSpans<'_>) -> Result<Vec<u8>, NoZtoc> {
        let out = &mut self.out;
        let checkpoints = packed(spans).ok_or(NoZtoc::TooLarge)?;
        if out.unfinished_data().len() + checkpoints.len() + self.files.len() * 8 > MOST {
            return Err(NoZtoc::TooLarge);
        }
        let files = out.create_vector(&self.files);
        let toc = out.start_table();
        out.push_slot_always(4, files);
        let toc = out.end_table(toc);
        let (version, tool) = (out.create_byte_string(VERSION), out.create_string(TOOL));
        let checkpoints = out.create_vector(&checkpoints);
        let digests: Vec<_> = spans.digests.iter().map(|digest| out.create_string(&digest.to_string())).collect();
        let digests = out.create_vector(&digests);
        let info = out.start_table();
        out.push_slot::<i32>(6, spans.starts.len() as i32 - 1, 0);
        out.push_slot_always(8, digests);
        out.push_slot_always(10, checkpoints);
        out.push_slot::<i8>(4, GZIP, GZIP);
        let info = out.end_table(info);
        let root = out.start_table();
        out.push_slot_always(4, version);
        out.push_slot_always(6, tool);
        out.push_slot_always(12, toc);
        out.push_slot::<i64>(8, spans.blob_size as i64, 0);
        out.push_slot::<i64>(10, spans.decoded_size as i64, 0);
        out.push_slot_always(14, info);
        let root = out.end_table(root);
        out.finish_minimal(root);
        Ok(out.finished_data().to_vec())
    }
}

/// The places to start from, as `gzip_zinfo.c` packs them in version 2.
fn packed(spans: &ZtocSpans<'_>) -> Option<Vec<u8>> {
    let have = i32::try_from(spans.starts.len()).ok()?;
    let mut bytes = [&have.to_le_bytes()[..], &(spans.spacing as i64).to_le_bytes()].concat();
    for BlockStart { mark, history } in spans.starts {
        let (whole, bits) = if mark.bit == 0 { (mark.blob.0, 0) } else { (mark.blob.0 + 1, 8 - mark.bit) };
        bytes.extend_from_slice(&(whole as i64).to_le_bytes());
        bytes.extend_from_slice(&(mark.decoded.0 as i64).to_le_bytes());
        bytes.push(bits);
        bytes.resize(bytes.len() + Window::MAX - history.len(), 0);
        bytes.extend_from_slice(history);
    }
    (bytes.len() <= MOST).then_some(bytes)
}

/// A time of RFC 3339, as Go writes it.
fn text(time: Timestamp) -> Option<String> {
    let nanos = i128::from(time.seconds) * super::SECOND + i128::from(time.nanos);
    let text = jiff::Timestamp::from_nanosecond(nanos).ok()?.to_string();
    // Go has no years but of four digits.
    (!text.starts_with(['-', '+'])).then_some(text)
}

/// Who has written it.
const TOOL: &str = "peelfs";
const BLOCK: u64 = 512;
/// The most bytes of a flatbuffer.
const MOST: usize = 1 << 30;
