//! The buffer decoders write to: history in front, new bytes behind it.
//!
//! An inflater copies matches out of what it wrote up to 32 KiB ago, so that history must lie directly
//! before the place it writes to. And what it wrote goes to another thread to be hashed and stored. So a
//! full buffer is handed over whole, and the last 32 KiB are copied in front of the next one: 3 % of a
//! mebibyte, where a ring buffer would have to be copied out entirely.

use std::ops::Deref;

use super::inflate::{OVERRUN, Target};
use super::window::Window;
use crate::offsets::DecodedOffset;

/// Where a decoder puts decoded bytes; keeps the history it needs across [`OutputBuffer::hand_over`].
///
/// One buffer goes with one decoder: the decoder's first call takes hold of it.
#[derive(Debug)]
pub struct OutputBuffer {
    /// `Window::MAX` bytes of history, `capacity` new bytes, `OVERRUN` bytes of room for words and matches.
    bytes: Vec<u8>,
    /// Index past the last decoded byte.
    end: usize,
    capacity: usize,
    /// What the index `Window::MAX` is on the decoded ruler.
    at: DecodedOffset,
}

/// Decoded bytes handed over; dereferences to them. Give it back to [`OutputBuffer::hand_over`] to have its
/// memory used again.
#[derive(Debug)]
pub struct Filled {
    bytes: Vec<u8>,
    end: usize,
    at: DecodedOffset,
}

impl OutputBuffer {
    /// The capacity that measured best: larger ones outgrow the processor's second-level cache.
    pub const CAPACITY: usize = 1 << 20;

    /// A buffer that is full once it holds `capacity` (at least one) bytes; a match may take it up to 257 bytes
    /// past that.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            bytes: vec![0; Window::MAX + capacity + OVERRUN],
            end: Window::MAX,
            capacity,
            at: DecodedOffset::default(),
        }
    }

    /// What was decoded since the last [`OutputBuffer::hand_over`] or [`OutputBuffer::discard`].
    pub fn decoded(&self) -> &[u8] {
        &self.bytes[Window::MAX..self.end]
    }

    /// Where [`OutputBuffer::decoded`] begins in the layer.
    pub fn start(&self) -> DecodedOffset {
        self.at
    }

    /// Where the next decoded byte will lie in the layer.
    pub fn end(&self) -> DecodedOffset {
        self.at + self.decoded().len() as u64
    }

    /// Whether the capacity is reached.
    pub fn is_full(&self) -> bool {
        self.end >= self.until()
    }

    /// Hands the decoded bytes over and goes on in `recycled`, or in new memory.
    pub fn hand_over(&mut self, recycled: Option<Filled>) -> Filled {
        let mut next = recycled.map_or_else(Vec::new, |filled| filled.bytes);
        next.resize(self.bytes.len(), 0);
        next[..Window::MAX].copy_from_slice(self.history());
        let filled = Filled { end: self.end, at: self.at, bytes: std::mem::replace(&mut self.bytes, next) };
        self.at = self.end();
        self.end = Window::MAX;
        filled
    }

    /// Forgets the decoded bytes: those before what a reader wants.
    pub fn discard(&mut self) {
        let end = self.end();
        self.bytes.copy_within(self.end - Window::MAX..self.end, 0);
        self.end = Window::MAX;
        self.at = end;
    }

    /// Takes the buffer for a decoder that begins at `at` with this before it. False, and nothing done, if
    /// there are decoded bytes in it that were not taken yet.
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

    /// Room for an inflater, up to a decoded offset or the capacity; matches begin no earlier than `floor`.
    pub(super) fn target(&mut self, until: DecodedOffset, floor: DecodedOffset) -> Target<'_> {
        let until = self.index(until).unwrap_or(0).min(self.until());
        let floor = self.index(floor).unwrap_or(0);
        Target { at: self.end, until, floor, bytes: &mut self.bytes }
    }

    /// Tells the buffer how far its target was filled.
    pub(super) fn filled_to(&mut self, index: usize) {
        self.end = index;
    }

    /// The room up to the capacity.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let until = self.until();
        self.bytes.get_mut(self.end..until).unwrap_or_default()
    }

    /// Tells the buffer how much of [`OutputBuffer::room`] was filled.
    pub(super) fn fill(&mut self, bytes: usize) {
        debug_assert!(self.end + bytes <= self.until());
        self.end += bytes;
    }

    fn until(&self) -> usize {
        Window::MAX + self.capacity
    }
}

impl Filled {
    /// Where the bytes begin in the layer.
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
