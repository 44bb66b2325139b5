//! FSE tables (RFC 8878, 4.1): how they are described, and what decodes by them.

use super::Unreadable;
use super::bits::ForwardBits;

/// The shares of an alphabet's symbols in a table; −1 stands for less than one.
pub(super) struct Shares {
    pub(super) log: u32,
    pub(super) counts: Vec<i16>,
}

impl Shares {
    /// Reads a description of symbols up to `last`, in a table of at most 2^`most` states; also its length in bytes.
    pub(super) fn read(bytes: &[u8], last: usize, most: u32) -> Result<(Self, usize), Unreadable> {
        let mut bits = ForwardBits::new(bytes);
        let log = bits.take(4) + 5;
        if log > most {
            return Err(Unreadable("an FSE table that is too large"));
        }
        let (mut remaining, mut threshold, mut width) = ((1 << log) + 1_i32, 1_i32 << log, log + 1);
        let mut counts = Vec::with_capacity(last + 1);
        while remaining > 1 {
            if counts.len() > last {
                return Err(Unreadable("an FSE table of too many symbols"));
            }
            let largest = 2 * threshold - 1 - remaining;
            let value = bits.peek(width) as i32;
            let count = if (value & (threshold - 1)) < largest {
                bits.skip(width - 1);
                value & (threshold - 1)
            } else {
                bits.skip(width);
                if value >= threshold { value - largest } else { value }
            } - 1;
            remaining -= count.abs();
            counts.push(count as i16);
            if count == 0 {
                loop {
                    let zeros = bits.take(2);
                    counts.resize((counts.len() + zeros as usize).min(last + 2), 0);
                    if zeros < 3 {
                        break;
                    }
                    if counts.len() > last {
                        return Err(Unreadable("an FSE table of too many symbols"));
                    }
                }
            }
            while remaining < threshold {
                width -= 1;
                threshold >>= 1;
            }
        }
        if remaining != 1 || counts.len() > last + 1 {
            return Err(Unreadable("an FSE table whose shares do not add up"));
        }
        let used = bits.used().ok_or(Unreadable("a block that ends within a table"))?;
        Ok((Self { log, counts }, used))
    }

    /// Calls `each` with state, symbol, the bits that lead on from there, and what is added to them.
    pub(super) fn states(&self, mut each: impl FnMut(usize, u8, u8, u16)) {
        let size = 1_usize << self.log;
        let mut symbols = [0_u8; 1 << MOST];
        let mut next = [0_u16; 256];
        let mut high = size;
        for (symbol, &count) in self.counts.iter().enumerate() {
            next[symbol] = count.unsigned_abs();
            if count < 0 {
                high -= 1;
                symbols[high] = symbol as u8;
            }
        }
        let step = (size >> 1) + (size >> 3) + 3;
        let mut at = 0;
        for (symbol, &count) in self.counts.iter().enumerate() {
            for _ in 0..count.max(0) {
                symbols[at] = symbol as u8;
                at = (at + step) & (size - 1);
                while at >= high {
                    at = (at + step) & (size - 1);
                }
            }
        }
        for (state, &symbol) in symbols[..size].iter().enumerate() {
            let number = next[usize::from(symbol)];
            next[usize::from(symbol)] += 1;
            let bits = self.log - number.ilog2();
            each(state, symbol, bits as u8, (number << bits) - size as u16);
        }
    }
}

/// The largest table has 2^9 states.
pub(super) const MOST: u32 = 9;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_description_is_read_as_the_specification_says() {
        let shares = |bytes: &[u8]| Shares::read(bytes, 3, 9).map(|(shares, used)| (shares.log, shares.counts, used));
        // Log 5, so 33 remain, and values have five bits up to 29: 33, for all 32 states, has six, and is 30 more.
        let word = 63_u16 << 4;
        assert_eq!(shares(&word.to_le_bytes()).unwrap(), (5, vec![32], 2));
        assert!(shares(&[0x05, 0]).is_err(), "2^10 states");
        assert!(shares(&[]).is_err());
    }

    #[test]
    fn every_state_leads_to_all_states() {
        let shares = Shares { log: 5, counts: vec![20, -1, 0, 9, 2] };
        let mut states = [0; 5];
        shares.states(|state, symbol, bits, base| {
            states[usize::from(symbol)] += 1;
            assert!(state < 32 && usize::from(base) + (1 << bits) <= 32);
        });
        assert_eq!(states, [20, 1, 0, 9, 2]);
    }
}
