//! Bit streams of zstd blocks (RFC 8878, 4.1): those of coded data are read from their end.

use super::Unreadable;

/// A bit stream that is read backwards. Before its first byte, it continues with zeros: bits read there are counted, and
/// [`BackwardBits::overrun`] says so.
#[derive(Clone, Copy)]
pub(super) struct BackwardBits<'a> {
    bytes: &'a [u8],
    /// The eight bytes before `end`.
    word: u64,
    /// The byte behind `word`; not positive where the stream has ended.
    end: isize,
    /// The lowest bits of `word` that are still to be read: at least 57 after [`BackwardBits::refill`].
    left: u32,
}

impl<'a> BackwardBits<'a> {
    /// A stream whose last byte holds the mark of its end: its highest bit that is set.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let last = bytes.last().copied().unwrap_or(0);
        if last == 0 {
            return Err(Unreadable("a bit stream without an end"));
        }
        let mut bits = Self { bytes, word: 0, end: bytes.len() as isize, left: 64 - last.leading_zeros() - 1 };
        bits.refill();
        Ok(bits)
    }

    /// Makes at least 57 bits available.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        let read = 64 - self.left;
        self.end -= (read >> 3) as isize;
        self.left = 64 - (read & 7);
        self.word = match self.bytes.get((self.end - 8) as usize..).and_then(<[u8]>::first_chunk::<8>) {
            Some(word) => u64::from_le_bytes(*word),
            None => self.first_word(),
        };
    }

    /// The word that ends at a byte before the eighth.
    #[cold]
    fn first_word(&self) -> u64 {
        let end = self.end.clamp(0, 7) as usize;
        let mut word = [0; 8];
        if let Some(bytes) = self.bytes.get(..end) {
            word[8 - end..].copy_from_slice(bytes);
        }
        u64::from_le_bytes(word)
    }

    /// The next `count` bits, below 64; at most those made available.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u32) -> u64 {
        let taken = self.peek(count);
        self.skip(count);
        taken
    }

    /// As [`BackwardBits::take`], and leaves them.
    #[inline(always)]
    pub(super) fn peek(&self, count: u32) -> u64 {
        self.word.wrapping_shr(self.left.wrapping_sub(count)) & ((1_u64 << (count & 63)) - 1)
    }

    /// Drops the next `count` bits, below 64.
    #[inline(always)]
    pub(super) fn skip(&mut self, count: u32) {
        self.left = self.left.wrapping_sub(count);
    }

    fn all_left(&self) -> i64 {
        8 * self.end as i64 - 64 + i64::from(self.left)
    }

    /// Whether `count` bits are left.
    pub(super) fn has(&self, count: u32) -> bool {
        self.all_left() >= i64::from(count)
    }

    /// Whether more bits were read than there were.
    pub(super) fn overrun(&self) -> bool {
        self.all_left() < 0
    }
}

/// A bit stream that is read forwards, as descriptions of tables are. Behind its end, it continues with zeros.
pub(super) struct ForwardBits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> ForwardBits<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next `count` bits, at most 16.
    pub(super) fn peek(&self, count: u32) -> u32 {
        let byte = |at: usize| u32::from(self.bytes.get(at).copied().unwrap_or(0));
        let first = self.at / 8;
        let word = byte(first) | byte(first + 1) << 8 | byte(first + 2) << 16;
        word >> (self.at % 8) & ((1 << count) - 1)
    }

    pub(super) fn skip(&mut self, count: u32) {
        self.at += count as usize;
    }

    pub(super) fn take(&mut self, count: u32) -> u32 {
        let taken = self.peek(count);
        self.skip(count);
        taken
    }

    /// The whole bytes read; `None` if there are fewer.
    pub(super) fn used(&self) -> Option<usize> {
        let used = self.at.div_ceil(8);
        (used <= self.bytes.len()).then_some(used)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn bits_come_from_the_end() {
        // From the top of the last byte: the mark, then 01, 0110_1001, …
        let mut bytes = vec![0xff; 20];
        bytes.extend([0b0110_1001, 0b0000_0101]);
        let mut bits = BackwardBits::new(&bytes).unwrap();
        assert_eq!((bits.take(2), bits.take(0), bits.take(8), bits.take(40)), (0b01, 0, 0b0110_1001, (1 << 40) - 1));
        bits.refill();
        assert_eq!(bits.take(57), (1 << 57) - 1);
        bits.refill();
        assert_eq!(bits.take(57), (1 << 57) - 1);
        bits.refill();
        assert!(bits.has(6) && !bits.has(7) && !bits.overrun());
        assert_eq!(bits.take(8), 0b1111_1100, "zeros follow");
        assert!(bits.overrun());
        bits.refill();
        assert_eq!(bits.take(57), 0);
        assert!(BackwardBits::new(&[1, 0]).is_err() && BackwardBits::new(&[]).is_err());
    }

    #[test]
    fn forward_bits_come_from_the_lowest() {
        let mut bits = ForwardBits::new(&[0b1010_0101, 0b11]);
        assert_eq!((bits.take(4), bits.take(6)), (0b0101, 0b11_1010));
        assert_eq!(bits.used(), Some(2));
        assert_eq!(bits.take(7), 0);
        assert_eq!(bits.used(), None);
    }
}
