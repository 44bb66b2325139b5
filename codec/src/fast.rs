//! The inner loop of inflate, for the middle of a block: nearly all of the time of a first pass is spent here.
//!
//! Its variables fit into the registers of x86-64: the output is one slice, which begins at the first byte that a match
//! may refer to and ends behind the last one that a word may touch, so that neither end is a variable of its own; both
//! tables are reached from one pointer; what is seldom needed is a call. The loop is compiled a second time for
//! processors with BMI2, whose shifts take their count from any register.

use super::codes::{BASE_SHIFT, END_OF_BLOCK, EXCEPTIONAL, LITERAL, POINTER, extra, mask, pointed};
use super::inflate::{
    Alphabet, Bits, DISTANCE_BITS, DISTANCE_TABLE, InflateError, LITERAL_BITS, LITERAL_TABLE, OVERRUN, Tables, Target,
};
use super::window::Watch;

/// Decodes symbols while there is plenty of input, of which there must be [`FAST_INPUT`] bytes, and of room, of which
/// there must be three bytes before [`Target::until`]; `true` at the end of the block.
pub(super) fn symbols(
    tables: &Tables,
    bits: &mut Bits,
    input: &mut &[u8],
    target: &mut Target<'_>,
    watch: &mut impl Watch,
) -> Result<bool, InflateError> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor has the only feature that the function needs.
        #[allow(unsafe_code)] // calling a function that is compiled for other processors has no safe form
        return unsafe { symbols_by_bmi2(tables, bits, input, target, watch) };
    }
    symbols_by_any(tables, bits, input, target, watch)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi2")]
fn symbols_by_bmi2(
    tables: &Tables,
    bits: &mut Bits,
    input: &mut &[u8],
    target: &mut Target<'_>,
    watch: &mut impl Watch,
) -> Result<bool, InflateError> {
    symbols_by_any(tables, bits, input, target, watch)
}

#[inline(always)]
fn symbols_by_any(
    tables: &Tables,
    bits: &mut Bits,
    input: &mut &[u8],
    target: &mut Target<'_>,
    watch: &mut impl Watch,
) -> Result<bool, InflateError> {
    let floor = target.floor;
    let out = &mut target.bytes[floor..target.until + OVERRUN];
    let mut at = target.at - floor;
    let mut rest = *input;
    let mut buf = bits.buf;
    // Only the low byte counts: `count -= entry` then needs no mask.
    let mut count = bits.count;

    macro_rules! refill {
        () => {
            let word = rest.first_chunk::<8>().expect("two refills fit in FAST_INPUT");
            buf |= u64::from_le_bytes(*word) << (count & 63);
            rest = &rest[7 - ((count >> 3) & 7) as usize..];
            count |= 56;
        };
    }
    macro_rules! drop_bits {
        ($entry:expr) => {
            buf >>= $entry & 63;
            count = count.wrapping_sub($entry);
        };
    }
    // Two literals and a match begin before `target.until` if the iteration begins two bytes earlier: runs end where
    // the careful loop would end, so marks do not depend on how the input was split.
    macro_rules! done {
        () => {
            at + (2 + OVERRUN) >= out.len() || rest.len() < FAST_INPUT
        };
    }
    macro_rules! literal_entry {
        () => {
            tables.literal[(buf & mask(LITERAL_BITS)) as usize]
        };
    }

    let mut ended = false;
    refill!();
    let mut entry = literal_entry!();
    // An iteration begins with at least 56 bits and the next symbol's entry: three literals of the primary table, or two
    // of them and any length, need no more.
    loop {
        if entry & LITERAL != 0 {
            out[at] = (entry >> BASE_SHIFT) as u8;
            at += 1;
            drop_bits!(entry);
            entry = literal_entry!();
            if entry & LITERAL != 0 {
                out[at] = (entry >> BASE_SHIFT) as u8;
                at += 1;
                drop_bits!(entry);
                entry = literal_entry!();
                if entry & LITERAL != 0 {
                    out[at] = (entry >> BASE_SHIFT) as u8;
                    at += 1;
                    drop_bits!(entry);
                    if done!() {
                        break;
                    }
                    refill!();
                    entry = literal_entry!();
                    continue;
                }
            }
        }
        if entry & EXCEPTIONAL != 0 {
            if entry & POINTER != 0 {
                buf >>= LITERAL_BITS;
                count = count.wrapping_sub(LITERAL_BITS);
                entry = tables.literal[pointed(entry, buf) & (LITERAL_TABLE - 1)];
                if entry & LITERAL != 0 {
                    out[at] = (entry >> BASE_SHIFT) as u8;
                    at += 1;
                    drop_bits!(entry);
                    if done!() {
                        break;
                    }
                    refill!();
                    entry = literal_entry!();
                    continue;
                }
            }
            if entry & EXCEPTIONAL != 0 {
                if entry & END_OF_BLOCK == 0 {
                    return Err(InflateError::Symbol(Alphabet::Literal));
                }
                drop_bits!(entry);
                ended = true;
                break;
            }
        }
        let length = (entry >> BASE_SHIFT) as usize + extra(entry, buf);
        drop_bits!(entry);
        // Seldom: after two literals, or a long code.
        if (count & 63) < DISTANCE_MOST {
            refill!();
        }
        let mut entry_d = tables.distance[(buf & mask(DISTANCE_BITS)) as usize];
        if entry_d & EXCEPTIONAL != 0 {
            if entry_d & POINTER != 0 {
                buf >>= DISTANCE_BITS;
                count = count.wrapping_sub(DISTANCE_BITS);
                entry_d = tables.distance[pointed(entry_d, buf) & (DISTANCE_TABLE - 1)];
            }
            if entry_d & EXCEPTIONAL != 0 {
                return Err(InflateError::Symbol(Alphabet::Distance));
            }
        }
        let distance = (entry_d >> BASE_SHIFT) as usize + extra(entry_d, buf);
        drop_bits!(entry_d);
        if distance > at {
            return Err(InflateError::Distance { distance, reach: at });
        }
        watch.note(floor + at - distance, length);
        let from = at;
        at += length;
        if done!() {
            copy_match(out, from, distance, length);
            break;
        }
        refill!();
        entry = literal_entry!();
        if distance >= WORD && length <= 2 * WORD {
            // One word after the other: the second may begin with bytes of the first.
            let region = &mut out[from - distance..from + 2 * WORD];
            copy_word(region, 0, distance);
            copy_word(region, WORD, distance);
        } else {
            copy_match(out, from, distance, length);
        }
    }
    let count = count & 63;
    *bits = Bits { buf: buf & mask(count), count };
    *input = rest;
    target.at = floor + at;
    Ok(ended)
}

/// Copies a match word-wise, which may write up to 15 bytes past its end.
#[inline(never)]
pub(super) fn copy_match(out: &mut [u8], at: usize, distance: usize, length: usize) {
    // From the match's source to the last byte that a word may touch: one bounds check for all.
    let region = &mut out[at - distance..at + length + WORD];
    let mut done = 0;
    if distance >= WORD {
        while done < length {
            copy_word(region, done, distance);
            done += WORD;
        }
        return;
    }
    if distance == 1 {
        let byte = region[0];
        region[1..=length].fill(byte);
        return;
    }
    // The first `distance` bytes of each word are right, up to its size.
    let step = distance.min(8);
    while done < length {
        let word: [u8; 8] = *region[done..].first_chunk().expect("within the region");
        *region[done + distance..].first_chunk_mut().expect("within the region") = word;
        done += step;
    }
}

/// Copies a word from index `from` to `distance` bytes behind it.
#[inline(always)]
fn copy_word(region: &mut [u8], from: usize, distance: usize) {
    let word: [u8; WORD] = *region[from..].first_chunk().expect("within the region");
    *region[from + distance..].first_chunk_mut().expect("within the region") = word;
}

/// Two refills: the first takes at most 7 bytes, the second looks at 8.
pub(super) const FAST_INPUT: usize = 16;
/// Most matches are no longer than two of these, and come from further back.
const WORD: usize = 16;
/// A distance's code and its extra bits.
const DISTANCE_MOST: u32 = 15 + 13;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::inflate::Inflate;
    use super::super::samples::{Kind, Random, sample};
    use super::super::window::Unwatched;
    use super::*;

    #[test]
    fn the_loop_of_other_processors_decodes_alike() {
        let mut random = Random::new(31);
        let tables = Inflate::fixed_tables();
        let (mut ended, mut failed) = (0, 0);
        for _ in 0..2000 {
            let noise = sample(Kind::Random, 2000, &mut random);
            let (floor, until) = (random.below(40), 300 + random.below(3000));
            let run = |loop_: fn(&Tables, &mut Bits, &mut &[u8], &mut Target<'_>, &mut Unwatched) -> _| {
                let mut bytes = vec![7; until + OVERRUN];
                let (mut bits, mut input) = (Bits::default(), &noise[..]);
                let mut target = Target { at: 40 + floor, until, floor, bytes: &mut bytes };
                let ended: Result<bool, InflateError> =
                    loop_(&tables, &mut bits, &mut input, &mut target, &mut Unwatched);
                let at = target.at;
                bytes.truncate(at);
                (ended, bits.buf, bits.count, input.len(), bytes)
            };
            let expected = run(symbols_by_any);
            assert!(run(symbols) == expected);
            ended += usize::from(expected.0 == Ok(true));
            failed += usize::from(expected.0.is_err());
        }
        assert!(ended > 50 && failed > 100, "{ended} {failed}");
    }
}
