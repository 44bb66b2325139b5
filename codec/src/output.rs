//! The output buffer of decoders: history first, then new bytes.
//!
//! An inflater copies matches from up to 32 KiB back, so the history must lie directly before the output. The output
//! goes to another thread for hashing and storing. So a full buffer is handed over whole, and its last 32 KiB are
//! copied to the next one: 3 % of a mebibyte, whereas a ring buffer would be copied out entirely.

use std::ops::Deref;

use super::inflate::{OVERRUN, Target};
use super::window::Window;
use crate::offsets::DecodedOffset;

/// The output of a decoder; keeps the history across [`OutputBuffer::hand_over`].
///
/// A buffer serves one decoder, which takes it with its first call.
#[derive(Debug)]
pub struct OutputBuffer {
    /// `Window::MAX` bytes of history, `capacity` new bytes, `OVERRUN` bytes of room for words and matches.
    bytes: Vec<u8>,
    /// Index after the last decoded byte.
    end: usize,
    capacity: usize,
    /// Decoded offset of the index `Window::MAX`.
    at: DecodedOffset,
}

/// Decoded bytes handed over; dereferences to them. Pass it back to [`OutputBuffer::hand_over`] to reuse its memory.
#[derive(Debug)]
pub struct Filled {
    bytes: Vec<u8>,
    end: usize,
    at: DecodedOffset,
}

impl OutputBuffer {
    /// The fastest capacity measured: larger ones exceed the processor's second-level cache.
    pub const CAPACITY: usize = 1 << 20;

    /// A buffer that is full at `capacity` (at least one) bytes; a match may exceed it by up to 257 bytes.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            bytes: vec![0; Window::MAX + capacity + OVERRUN],
            end: Window::MAX,
            capacity,
            at: DecodedOffset::default(),
        }
    }

    /// The bytes decoded since the last [`OutputBuffer::hand_over`] or [`OutputBuffer::discard`].
    pub fn decoded(&self) -> &[u8] {
        &self.bytes[Window::MAX..self.end]
    }

    /// Offset of [`OutputBuffer::decoded`] in the layer.
    pub fn start(&self) -> DecodedOffset {
        self.at
    }

    /// Offset of the next decoded byte in the layer.
    pub fn end(&self) -> DecodedOffset {
        self.at + self.decoded().len() as u64
    }

    /// Whether the capacity is reached.
    pub fn is_full(&self) -> bool {
        self.end >= self.until()
    }

    /// Hands over the decoded bytes and continues in `recycled`, or in new memory.
    pub fn hand_over(&mut self, recycled: Option<Filled>) -> Filled {
        let length = self.bytes.len();
        // New memory is zeroed by the allocator, which costs nothing where the kernel provides it.
        let mut next = recycled.map_or_else(|| vec![0; length], |filled| filled.bytes);
        next.resize(length, 0);
        next[..Window::MAX].copy_from_slice(self.history());
        let filled = Filled { end: self.end, at: self.at, bytes: std::mem::replace(&mut self.bytes, next) };
        self.at = self.end();
        self.end = Window::MAX;
        filled
    }

    /// Drops the decoded bytes, if no reader needs them.
    pub fn discard(&mut self) {
        let end = self.end();
        self.bytes.copy_within(self.end - Window::MAX..self.end, 0);
        self.end = Window::MAX;
        self.at = end;
    }

    /// Prepares the buffer for a decoder that starts at `at` after `window`. `false`, without effect, if it holds
    /// decoded bytes that were not taken.
    pub(super) fn begin(&mut self, at: DecodedOffset, window: &[u8]) -> bool {
        if self.end != Window::MAX {
            return false;
        }
        self.bytes[Window::MAX - window.len()..Window::MAX].copy_from_slice(window);
        self.at = at;
        true
    }

    /// The last 32 KiB.
    pub(super) fn history(&self) -> &[u8; Window::MAX] {
        self.bytes[..self.end].last_chunk().expect("history lies in front")
    }

    /// The index of a decoded offset, if it is not before the history.
    pub(super) fn index(&self, offset: DecodedOffset) -> Option<usize> {
        (Window::MAX as u64 + offset.0).checked_sub(self.at.0).map(|index| index as usize)
    }

    /// Space for an inflater, up to a decoded offset or the capacity; matches begin at or after `floor`.
    pub(super) fn target(&mut self, until: DecodedOffset, floor: DecodedOffset) -> Target<'_> {
        let until = self.index(until).unwrap_or(0).min(self.until());
        let floor = self.index(floor).unwrap_or(0);
        Target { at: self.end, until, floor, bytes: &mut self.bytes }
    }

    /// Sets the end of the bytes written to the target.
    pub(super) fn filled_to(&mut self, index: usize) {
        self.end = index;
    }

    /// Space up to the capacity.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let until = self.until();
        self.bytes.get_mut(self.end..until).unwrap_or_default()
    }

    /// Adds bytes written to [`OutputBuffer::room`].
    pub(super) fn fill(&mut self, bytes: usize) {
        debug_assert!(self.end + bytes <= self.until());
        self.end += bytes;
    }

    fn until(&self) -> usize {
        Window::MAX + self.capacity
    }
}

impl Filled {
    /// Offset of the bytes in the layer.
    pub fn start(&self) -> DecodedOffset {
        self.at
    }
}

impl Deref for Filled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[Window::MAX..self.end]
    }
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handing_over_keeps_the_history_and_the_place() {
        let mut out = OutputBuffer::new(4);
        assert!(out.begin(DecodedOffset(100), b"xy"));
        out.room().copy_from_slice(b"abcd");
        out.fill(4);
        assert!(out.is_full());
        let first = out.hand_over(None);
        assert_eq!((&*first, first.start()), (&b"abcd"[..], DecodedOffset(100)));
        assert!(out.history().ends_with(b"xyabcd"));
        out.room()[..1].copy_from_slice(b"e");
        out.fill(1);
        let second = out.hand_over(Some(first));
        assert_eq!((&*second, second.start()), (&b"e"[..], DecodedOffset(104)));
        assert!(out.history().ends_with(b"xyabcde"));
        assert_eq!(out.decoded(), b"");
    }

    #[test]
    fn discarding_keeps_the_history_and_the_place() {
        let mut out = OutputBuffer::new(4);
        out.room()[..3].copy_from_slice(b"abc");
        out.fill(3);
        out.discard();
        assert!(out.history().ends_with(b"abc"));
        assert_eq!((out.start(), out.decoded()), (DecodedOffset(3), &b""[..]));
    }
}
