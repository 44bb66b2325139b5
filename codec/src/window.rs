//! Windows: the bytes before a checkpoint that are referenced after it.
//!
//! A deflate match reaches up to 32 KiB back, so decoding from the middle of a stream needs the 32 KiB before. Stored
//! completely they would take an eighth of a layer with one checkpoint per 256 KiB. But only matches in the first 32
//! KiB after the checkpoint can reach across it, and they touch about a tenth of the window. The first pass records
//! which bytes these are; the others are zeroed and compress to almost nothing.

use std::borrow::Cow;

use zstd::zstd_safe::{self, CCtx};

use super::block_state::{self, BlockState};
use super::frame::Checkpoint;
use super::start::StartKind;

/// What decoding from the middle of a stream needs of what is before.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Window(Form);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Form {
    /// The bytes before a deflate block; unreferenced bytes are zero.
    Deflate(Box<[u8]>),
    /// The state of a deflate block, and the bytes before a place inside it, likewise.
    InsideBlock(Box<BlockState>, Box<[u8]>),
    /// The bytes before a zstd block that are referenced, and the state of its frame.
    Zstd(Box<Checkpoint>),
}

impl Window {
    /// Maximum distance of a deflate match, in bytes.
    pub const MAX: usize = 32 << 10;

    /// The window of a deflate block with these bytes before it, however many of them it refers to; `None` for more than
    /// [`Window::MAX`].
    pub fn of_history(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= Self::MAX).then(|| Self(Form::Deflate(bytes.into())))
    }

    /// A window of a zstd block.
    pub(super) fn of_block(checkpoint: Checkpoint) -> Self {
        Self(Form::Zstd(Box::new(checkpoint)))
    }

    /// The bytes that end at the checkpoint at a deflate block; at most [`Window::MAX`].
    pub fn of_deflate(&self) -> Option<&[u8]> {
        match &self.0 {
            Form::Deflate(bytes) => Some(bytes),
            Form::InsideBlock(..) | Form::Zstd(_) => None,
        }
    }

    /// The state of the block that a checkpoint lies in, and the bytes that end there.
    pub(super) fn inside_block(&self) -> Option<(&BlockState, &[u8])> {
        match &self.0 {
            Form::InsideBlock(state, bytes) => Some((state, bytes)),
            Form::Deflate(_) | Form::Zstd(_) => None,
        }
    }

    /// The checkpoint in a zstd frame.
    pub(super) fn of_zstd(&self) -> Option<&Checkpoint> {
        match &self.0 {
            Form::Deflate(_) | Form::InsideBlock(..) => None,
            Form::Zstd(checkpoint) => Some(checkpoint),
        }
    }

    /// The stored form: nothing for an empty window at a deflate block, otherwise one zstd frame.
    pub fn to_bytes(&self) -> Vec<u8> {
        WindowPacker::new().pack(self)
    }

    /// Parses the output of [`Window::to_bytes`] for a mark of this kind.
    ///
    /// # Errors
    /// [`WindowError`] for anything but a zstd frame of at most [`Window::MAX`] bytes, inside a deflate block behind the
    /// state of that, or, of a zstd block, of a checkpoint.
    pub fn from_bytes(kind: StartKind, packed: &[u8]) -> Result<Self, WindowError> {
        let unpack = |most: usize| {
            let mut bytes = vec![0; most];
            let length = zstd_safe::decompress(&mut bytes[..], packed)
                .map_err(|code| WindowError(zstd_safe::get_error_name(code)))?;
            bytes.truncate(length);
            Ok(bytes)
        };
        if kind == StartKind::Block {
            // A frame says how long it is; memory is reserved only for what can come of it.
            let said = zstd_safe::get_frame_content_size(packed).ok().flatten().unwrap_or(0);
            let most = said.min(MOST_OF_BLOCK) as usize;
            let checkpoint = Checkpoint::from_bytes(&unpack(most)?).ok_or(WindowError("no checkpoint"))?;
            return Ok(Self::of_block(checkpoint));
        }
        if kind == StartKind::InsideBlock {
            let bytes = unpack(block_state::MOST_BYTES + Self::MAX)?;
            let mut rest = &bytes[..];
            let state = BlockState::take(&mut rest).ok_or(WindowError("no state of a block"))?;
            if rest.len() > Self::MAX {
                return Err(WindowError("too long"));
            }
            return Ok(Self(Form::InsideBlock(state.into(), rest.into())));
        }
        if packed.is_empty() {
            return Ok(Self(Form::Deflate(Box::default())));
        }
        Ok(Self(Form::Deflate(unpack(Self::MAX)?.into())))
    }
}

/// Makes the stored form of many windows: setting up libzstd takes as long as packing one.
pub struct WindowPacker(CCtx<'static>);

impl WindowPacker {
    /// No window yet.
    pub fn new() -> Self {
        Self(CCtx::create())
    }

    /// [`Window::to_bytes`] of this window.
    pub fn pack(&mut self, window: &Window) -> Vec<u8> {
        let bytes = match &window.0 {
            Form::Deflate(bytes) if bytes.is_empty() => return Vec::new(),
            Form::Deflate(bytes) => Cow::Borrowed(&bytes[..]),
            Form::InsideBlock(state, bytes) => {
                let mut all = Vec::with_capacity(block_state::MOST_BYTES + bytes.len());
                state.put(&mut all);
                all.extend_from_slice(bytes);
                Cow::Owned(all)
            }
            Form::Zstd(checkpoint) => Cow::Owned(checkpoint.to_bytes()),
        };
        let mut packed = vec![0; zstd_safe::compress_bound(bytes.len())];
        let length = self.0.compress(&mut packed[..], &bytes, LEVEL).expect("the bound leaves room");
        packed.truncate(length);
        packed
    }
}

impl Default for WindowPacker {
    fn default() -> Self {
        Self::new()
    }
}

/// The most bytes of a zstd block's checkpoint: 64 MiB before it, two numbers for each run of them, and tables.
const MOST_OF_BLOCK: u64 = 256 << 20;
/// Windows of blocks in zstd frames, of which an index mostly consists, take 1.08 to 1.15 times the bytes at level 1. At level 5
/// they take 0.97, and a pass a quarter more CPU time.
const LEVEL: i32 = 3;

/// A stored window that cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unreadable window of a checkpoint: {0}")]
pub struct WindowError(&'static str);

/// Observes the matches that an inflater copies.
pub(super) trait Watch {
    /// A match of `length` (at most 258) bytes from index `from` of the output.
    fn note(&mut self, from: usize, length: usize);
}

/// Observes nothing, while no window is recorded.
pub(super) struct Unwatched;

impl Watch for Unwatched {
    #[inline(always)]
    fn note(&mut self, _from: usize, _length: usize) {}
}

/// Records references across some marks.
pub(super) struct Watched<'a>(pub(super) Vec<&'a mut References>);

impl Watch for Watched<'_> {
    #[inline(always)]
    fn note(&mut self, from: usize, length: usize) {
        for references in &mut self.0 {
            if from < references.mark {
                references.note(from + Window::MAX - references.mark, length);
            }
        }
    }
}

/// A window being recorded: the bytes before a mark, and which of them were referenced.
pub(super) struct References {
    /// Index of the mark in the output; matches come from at most [`Window::MAX`] before it.
    pub(super) mark: usize,
    history: Box<[u8; Window::MAX]>,
    used: Box<[u64; Window::MAX / 64]>,
}

impl References {
    pub(super) fn new() -> Self {
        let history = vec![0; Window::MAX].into_boxed_slice().try_into().expect("made with this size");
        Self { mark: 0, history, used: Box::new([0; Window::MAX / 64]) }
    }

    /// Starts recording at a mark with this history before it.
    pub(super) fn begin(&mut self, history: &[u8; Window::MAX]) {
        self.history.copy_from_slice(history);
        self.used.fill(0);
    }

    /// Records a match of `length` bytes from the window's byte `start`, as far as it lies in the window.
    fn note(&mut self, mut start: usize, length: usize) {
        let end = Window::MAX.min(start + length);
        while start < end {
            let bits = (64 - start % 64).min(end - start);
            self.used[start / 64] |= (u64::MAX >> (64 - bits)) << (start % 64);
            start += bits;
        }
    }

    /// How many bytes of the window are not zero: about what it takes, packed.
    pub(super) fn weight(&self) -> usize {
        self.bytes().iter().filter(|byte| **byte != 0).count()
    }

    /// The window, with the state of the block that the mark lies in, if it lies in one.
    pub(super) fn window(&self, inside: Option<BlockState>) -> Window {
        Window(match inside {
            Some(state) => Form::InsideBlock(state.into(), self.bytes()),
            None => Form::Deflate(self.bytes()),
        })
    }

    /// The bytes before the mark, from the first used one on.
    fn bytes(&self) -> Box<[u8]> {
        let Some(first) = self.used.iter().position(|&word| word != 0) else {
            return Box::default();
        };
        // Few bytes are used, in runs: the others are zero already.
        let history = &self.history[first * 64..];
        let mut bytes = vec![0; history.len()];
        for (at, &used) in (0..).step_by(64).zip(&self.used[first..]) {
            let (mut start, mut used) = (at, used);
            while used != 0 {
                let skipped = used.trailing_zeros();
                let run = (used >> skipped).trailing_ones();
                start += skipped as usize;
                bytes[start..start + run as usize].copy_from_slice(&history[start..start + run as usize]);
                start += run as usize;
                used = used.checked_shr(skipped + run).unwrap_or(0);
            }
        }
        bytes.drain(..self.used[first].trailing_zeros() as usize);
        bytes.into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::block_state::BlockKind;
    use super::*;

    #[test]
    fn a_window_holds_referenced_bytes_and_zeros() {
        let mut references = References::new();
        references.begin(&[7; Window::MAX]);
        let mark = 100_000;
        references.mark = mark;
        let mut later = References::new();
        later.begin(&[8; Window::MAX]);
        later.mark = mark + 1000;
        let mut watched = Watched(vec![&mut references, &mut later]);
        watched.note(mark - 200, 70);
        watched.note(mark - 2, 258);
        watched.note(mark, 258);
        assert_eq!(later.window(None).of_deflate().unwrap()[..70], [8; 70], "of each mark");
        assert_eq!(references.weight(), 72);
        let mut expected = vec![0; 200];
        expected[..70].fill(7);
        expected[198..].fill(7);
        assert_eq!(references.window(None).of_deflate().unwrap(), expected);
    }

    #[test]
    fn a_window_reaches_all_of_32_kib() {
        let mut references = References::new();
        references.begin(&[7; Window::MAX]);
        references.note(0, 258);
        assert_eq!(references.window(None).of_deflate().unwrap().len(), Window::MAX);
        references.begin(&[7; Window::MAX]);
        assert_eq!(references.window(None).of_deflate().unwrap(), b"", "nothing is left of the mark before");
    }

    #[test]
    fn windows_survive_being_kept() {
        let mut packer = WindowPacker::new();
        for bytes in [vec![], vec![0], vec![9; 100], (0..Window::MAX).map(|i| (i * i) as u8).collect()] {
            let window = Window(Form::Deflate(bytes.into()));
            assert_eq!(Window::from_bytes(StartKind::Checkpoint, &window.to_bytes()).unwrap(), window);
            assert_eq!(packer.pack(&window), window.to_bytes(), "whatever was packed before");
        }
    }

    #[test]
    fn windows_inside_blocks_survive_being_kept() {
        for length in [0, 1, 100, Window::MAX] {
            let state = BlockState { last: true, kind: BlockKind::Stored { left: 700 } };
            let window = Window(Form::InsideBlock(state.into(), vec![9; length].into()));
            let packed = window.to_bytes();
            assert_eq!(Window::from_bytes(StartKind::InsideBlock, &packed).unwrap(), window);
            assert!(window.of_deflate().is_none() && window.of_zstd().is_none());
            for cut in 0..packed.len() {
                assert!(Window::from_bytes(StartKind::InsideBlock, &packed[..cut]).is_err());
            }
        }
        let state = BlockState { last: false, kind: BlockKind::Fixed };
        let long = Window(Form::InsideBlock(state.into(), vec![1; Window::MAX + 1].into()));
        assert!(Window::from_bytes(StartKind::InsideBlock, &long.to_bytes()).is_err());
    }

    #[test]
    fn kept_windows_that_are_damaged_or_too_long_are_refused() {
        assert!(Window::from_bytes(StartKind::Checkpoint, b"no window").is_err());
        let long = Window(Form::Deflate(vec![1; Window::MAX + 1].into()));
        assert!(Window::from_bytes(StartKind::Checkpoint, &long.to_bytes()).is_err());
        let packed = Window(Form::Deflate(vec![9; 100].into())).to_bytes();
        for cut in 1..packed.len() {
            assert!(Window::from_bytes(StartKind::Checkpoint, &packed[..cut]).is_err());
        }
    }
}
