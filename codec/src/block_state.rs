//! What decoding from inside a deflate block needs besides a window.
//!
//! Most compressors end a block every few ten kilobytes, and a checkpoint between two of them needs no more than the
//! bytes before it. Some never end theirs: `igzip -0` and level 1 of zlib-ng write a whole layer as one block. In it a
//! checkpoint has the code lengths that the block began with. They take 160 bytes, where the window beside them takes
//! about two thousand. The block's header is no alternative: it lies anywhere before, and each read would ask for it
//! first.

use super::inflate::{MOST_DISTANCES, MOST_LITERALS};

/// The block that a place lies in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct BlockState {
    /// Whether it is the stream's last one.
    pub(super) last: bool,
    pub(super) kind: BlockKind,
}

/// How it is coded (RFC 1951, 3.2.3).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum BlockKind {
    /// Not at all, with this many bytes left, at least one.
    Stored {
        left: u16,
    },
    Fixed,
    /// By codes of these lengths: 257 to [`MOST_LITERALS`], and one to [`MOST_DISTANCES`], each of at most 15 bits.
    Dynamic {
        literals: Box<[u8]>,
        distances: Box<[u8]>,
    },
}

impl BlockState {
    /// Appends the bytes that stand before the window in its stored form; `docs/formats.md` has the layout.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let last = if self.last { LAST } else { 0 };
        match &self.kind {
            BlockKind::Stored { left } => {
                out.push(STORED | last);
                out.extend(left.to_le_bytes());
            }
            BlockKind::Fixed => out.push(FIXED | last),
            BlockKind::Dynamic { literals, distances } => {
                out.extend([DYNAMIC | last, (literals.len() - FEWEST_LITERALS) as u8, (distances.len() - 1) as u8]);
                let lengths = [&literals[..], distances].concat();
                out.extend(lengths.chunks(2).map(|pair| pair[0] | pair.get(1).unwrap_or(&0) << 4));
            }
        }
    }

    /// Takes the bytes that [`BlockState::put`] appends, and nothing else. Whether the lengths make codes is found when they
    /// are used.
    pub(super) fn take(rest: &mut &[u8]) -> Option<Self> {
        let (&first, after) = rest.split_first()?;
        *rest = after;
        let kind = match first & !LAST {
            STORED => {
                let left = u16::from_le_bytes(cut(rest, 2)?.try_into().ok()?);
                BlockKind::Stored { left: Some(left).filter(|left| *left > 0)? }
            }
            FIXED => BlockKind::Fixed,
            DYNAMIC => {
                let counts = cut(rest, 2)?;
                let (literals, distances) = (FEWEST_LITERALS + usize::from(counts[0]), 1 + usize::from(counts[1]));
                if literals > MOST_LITERALS || distances > MOST_DISTANCES {
                    return None;
                }
                let packed = cut(rest, (literals + distances).div_ceil(2))?;
                let mut lengths: Vec<u8> = packed.iter().flat_map(|pair| [pair & 15, pair >> 4]).collect();
                let unused = lengths.split_off(literals + distances);
                let distances = lengths.split_off(literals).into();
                unused.iter().all(|length| *length == 0).then_some(())?;
                BlockKind::Dynamic { literals: lengths.into(), distances }
            }
            _ => return None,
        };
        Some(Self { last: first & LAST != 0, kind })
    }
}

fn cut<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

/// Limit for the stored form.
pub(super) const MOST_BYTES: usize = 3 + (MOST_LITERALS + MOST_DISTANCES).div_ceil(2);
/// The end of the block has a code, so there are at least so many.
const FEWEST_LITERALS: usize = 257;
/// As in a block's header.
const STORED: u8 = 0;
const FIXED: u8 = 1;
const DYNAMIC: u8 = 2;
const LAST: u8 = 4;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn states() -> Vec<BlockState> {
        let lengths = |count: usize| (0..count).map(|at| (at * 7 % 16) as u8).collect::<Box<[u8]>>();
        let dynamic =
            |literals, distances| BlockKind::Dynamic { literals: lengths(literals), distances: lengths(distances) };
        let kinds = [
            BlockKind::Stored { left: 1 },
            BlockKind::Stored { left: u16::MAX },
            BlockKind::Fixed,
            dynamic(FEWEST_LITERALS, 1),
            dynamic(MOST_LITERALS, 1),
            dynamic(MOST_LITERALS, MOST_DISTANCES),
        ];
        kinds.into_iter().flat_map(|kind| [false, true].map(|last| BlockState { last, kind: kind.clone() })).collect()
    }

    #[test]
    fn a_state_survives_being_stored() {
        for state in states() {
            let mut bytes = Vec::new();
            state.put(&mut bytes);
            assert!(bytes.len() <= MOST_BYTES);
            for cut in 0..bytes.len() {
                assert_eq!(BlockState::take(&mut &bytes[..cut]), None, "{state:?} cut at {cut}");
            }
            bytes.extend(b"window");
            let mut rest = &bytes[..];
            assert_eq!(BlockState::take(&mut rest), Some(state));
            assert_eq!(rest, b"window");
        }
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let zeros = [0; 200];
        let with = |first: &[u8]| [first, &zeros[..]].concat();
        for (bytes, why) in [
            (with(&[3]), "a reserved kind"),
            (with(&[8 | FIXED]), "an unknown flag"),
            (with(&[STORED, 0, 0]), "nothing is left"),
            (with(&[DYNAMIC, 30, 0]), "287 codes"),
            (with(&[DYNAMIC, 0, 30]), "31 distances"),
            ([&[DYNAMIC, 0, 1][..], &[0; 129], &[0x10]].concat(), "a length behind the last"),
        ] {
            assert_eq!(BlockState::take(&mut &bytes[..]), None, "{why}");
        }
    }
}
