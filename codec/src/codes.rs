//! Prefix codes of deflate: from code lengths to a table that yields a symbol per lookup.
//!
//! Codes are looked up in a primary table whose long codes lead to subtables. A table entry is one `u32`
//! that holds everything a symbol needs:
//!
//! ```text
//!  bit 31      a literal; its byte is in bits 16..24
//!  bits 16..31 base of a length or distance; for a pointer, where the subtable begins
//!  bit 15      exceptional: bit 14 a pointer, bit 13 end of block, neither an invalid code
//!  bits 8..12  length of the code itself; for a pointer, log2 of the subtable's size
//!  bits 0..6   bits to drop: the code and its extra bits
//! ```

/// Which incomplete codes are accepted, as in zlib.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Incomplete {
    Never,
    /// No code at all, or one of one bit: encoders write these if a block uses at most one distance.
    OneCode,
}

#[derive(Debug)]
pub(super) struct Unbuildable;

/// Fills `table` for the canonical code with these code lengths (at most 15 each).
pub(super) fn build(
    table: &mut [u32],
    primary: u32,
    lengths: &[u8],
    incomplete: Incomplete,
    symbol: impl Fn(usize) -> u32,
) -> Result<(), Unbuildable> {
    let mut count = [0_u16; 16];
    for &length in lengths {
        count[usize::from(length & 15)] += 1;
    }
    count[0] = 0;
    let longest = count.iter().rposition(|&n| n > 0).unwrap_or(0) as u32;

    let mut first = [0_u16; 17];
    let mut room = 1_i32;
    for length in 1..16 {
        room = 2 * room - i32::from(count[length]);
        if room < 0 {
            return Err(Unbuildable);
        }
        first[length + 1] = first[length] + count[length];
    }
    if room > 0 && (incomplete == Incomplete::Never || longest > 1) {
        return Err(Unbuildable);
    }
    let mut sorted = [0_u16; 288];
    for (symbol, &length) in lengths.iter().enumerate() {
        if length > 0 {
            let place = &mut first[usize::from(length & 15)];
            sorted[usize::from(*place)] = symbol as u16;
            *place += 1;
        }
    }

    // Codes are filled in by length; the table holds those up to the current length and doubles with it. `code` is
    // bit-reversed, as deflate sends codes from the top bit.
    let mut sorted = sorted.iter().map(|&s| symbol(usize::from(s)));
    let mut code = 0_usize;
    let mut filled = 1_usize;
    table[0] = INVALID;
    for length in 1..=primary.min(longest.max(1)) {
        table.copy_within(..filled, filled);
        filled *= 2;
        for _ in 0..count[length as usize] {
            table[code] = sorted.next().expect("counted") + length * ONE_BIT;
            code = next_code(code, length);
        }
        if room > 0 {
            table[code..2].fill(INVALID);
        }
    }
    while filled < 1 << primary {
        table.copy_within(..filled, filled);
        filled *= 2;
    }

    let mut prefix = usize::MAX;
    let (mut subtable, mut subtable_bits) = (0, 0);
    for length in primary + 1..=longest {
        for done in 0..count[length as usize] {
            if code & (filled - 1) != prefix {
                prefix = code & (filled - 1);
                subtable += if subtable == 0 { filled } else { 1 << subtable_bits };
                // While later codes leave room in the subtable, some are longer.
                subtable_bits = length - primary;
                let mut used = u32::from(count[length as usize] - done);
                while used < 1 << subtable_bits {
                    subtable_bits += 1;
                    used = 2 * used + u32::from(count[(primary + subtable_bits) as usize]);
                }
                table[prefix] =
                    (subtable as u32) << BASE_SHIFT | EXCEPTIONAL | POINTER | subtable_bits << CODE_SHIFT | primary;
            }
            let entry = sorted.next().expect("counted") + (length - primary) * ONE_BIT;
            let slots = &mut table[subtable..subtable + (1 << subtable_bits)];
            for slot in slots.iter_mut().skip(code >> primary).step_by(1 << (length - primary)) {
                *slot = entry;
            }
            code = next_code(code, length);
        }
    }
    Ok(())
}

/// The bit-reversed successor of a bit-reversed code; all ones stay all ones.
fn next_code(code: usize, length: u32) -> usize {
    let zeros = !code & ((1 << length) - 1);
    if zeros == 0 {
        return code;
    }
    let carry = 1 << zeros.ilog2();
    code & (carry - 1) | carry
}

/// The entry of the code at the start of `buf`, and the number of bits that led to its subtable.
pub(super) fn look_up(table: &[u32], primary: u32, buf: u64) -> (u32, u32) {
    let entry = table[(buf & mask(primary)) as usize];
    if entry & POINTER == 0 {
        return (entry, 0);
    }
    (table[pointed(entry, buf >> primary)], primary)
}

#[inline(always)]
pub(super) fn pointed(entry: u32, buf: u64) -> usize {
    ((entry >> BASE_SHIFT) as usize) + (buf & mask((entry >> CODE_SHIFT) & 15)) as usize
}

/// The value of the extra bits after an entry's code.
#[inline(always)]
pub(super) fn extra(entry: u32, buf: u64) -> usize {
    ((buf & mask(entry & 63)) >> ((entry >> CODE_SHIFT) & 15)) as usize
}

#[inline(always)]
pub(super) fn mask(bits: u32) -> u64 {
    (1 << (bits & 63)) - 1
}

pub(super) const LITERAL: u32 = 1 << 31;
pub(super) const EXCEPTIONAL: u32 = 1 << 15;
pub(super) const POINTER: u32 = 1 << 14;
pub(super) const END_OF_BLOCK: u32 = 1 << 13;
pub(super) const BASE_SHIFT: u32 = 16;
const CODE_SHIFT: u32 = 8;
pub(super) const DROP: u32 = 63;
/// A code's length is in an entry twice.
const ONE_BIT: u32 = 1 << CODE_SHIFT | 1;
/// No code: one bit long, so that it is not reported before a bit is available.
const INVALID: u32 = EXCEPTIONAL | ONE_BIT;

/// Properties of each literal/length symbol that do not depend on its code.
pub(super) static LITERAL_SYMBOLS: [u32; 288] = {
    let mut symbols = [EXCEPTIONAL; 288];
    let mut s = 0;
    while s < 256 {
        symbols[s] = LITERAL | (s as u32) << BASE_SHIFT;
        s += 1;
    }
    symbols[256] = EXCEPTIONAL | END_OF_BLOCK;
    let mut base = 3;
    s = 257;
    while s < 285 {
        let extra = if s < 265 { 0 } else { (s as u32 - 261) / 4 };
        symbols[s] = base << BASE_SHIFT | extra;
        base += 1 << extra;
        s += 1;
    }
    symbols[285] = 258 << BASE_SHIFT;
    symbols
};

/// Properties of each distance symbol that do not depend on its code.
pub(super) static DISTANCE_SYMBOLS: [u32; 32] = {
    let mut symbols = [EXCEPTIONAL; 32];
    let mut base = 1;
    let mut s = 0;
    while s < 30 {
        let extra = if s < 4 { 0 } else { s as u32 / 2 - 1 };
        symbols[s] = base << BASE_SHIFT | extra;
        base += 1 << extra;
        s += 1;
    }
    symbols
};
