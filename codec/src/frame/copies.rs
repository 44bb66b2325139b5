//! The copies of a block from before a checkpoint: what a first pass over a zstd frame does beside libzstd, for each
//! sequence.
//!
//! The loop is compiled a second time for processors with BMI2, whose shifts take their count from any register.

use super::block::{Block, Carried};
use super::{BLOCK, Unreadable};

/// A match whose source is before the checkpoint, as far as it is.
#[derive(Clone, Copy, Default)]
pub(super) struct Copied {
    /// Where the copy lies behind the checkpoint.
    pub(super) at: u32,
    /// Distance of its source before the checkpoint.
    pub(super) back: u32,
    pub(super) length: u32,
}

/// The copies of one block, in order.
#[derive(Default)]
pub(super) struct Copies {
    /// Those from `count` on are of no meaning.
    all: Vec<Copied>,
    next: usize,
    count: usize,
}

impl Copies {
    /// Takes the copies of a block that begins `begin` bytes behind the checkpoint; returns the length of its output.
    pub(super) fn of_block(&mut self, carried: &mut Carried, block: &Block<'_>, begin: u32) -> Result<u64, Unreadable> {
        self.clear();
        if self.all.len() <= block.sequences {
            self.all.resize(block.sequences + 1, Copied::default());
        }
        let noted = note(&mut self.all, carried, block, begin)?;
        let all = block.literals.len() as u64;
        // At most 2^17 sequences of 2^17 bytes each.
        let copied = noted.length.wrapping_sub(noted.literals);
        if noted.literals > all || copied + all > BLOCK as u64 {
            return Err(Unreadable("a block of too many bytes"));
        }
        self.count = noted.count;
        Ok(copied + all)
    }

    pub(super) fn clear(&mut self) {
        (self.next, self.count) = (0, 0);
    }

    pub(super) fn first(&mut self) -> Option<&mut Copied> {
        self.all[..self.count].get_mut(self.next)
    }

    pub(super) fn drop_first(&mut self) {
        self.next += 1;
    }
}

/// What was noted of a block.
struct Noted {
    /// Copies from before the checkpoint.
    count: usize,
    /// Literals before the last match.
    literals: u64,
    /// Those and what is copied.
    length: u64,
}

fn note(copies: &mut [Copied], carried: &mut Carried, block: &Block<'_>, begin: u32) -> Result<Noted, Unreadable> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor has the only feature that the function needs.
        #[allow(unsafe_code)] // calling a function that is compiled for other processors has no safe form
        return unsafe { note_by_bmi2(copies, carried, block, begin) };
    }
    note_by_any(copies, carried, block, begin)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi2")]
fn note_by_bmi2(
    copies: &mut [Copied],
    carried: &mut Carried,
    block: &Block<'_>,
    begin: u32,
) -> Result<Noted, Unreadable> {
    note_by_any(copies, carried, block, begin)
}

#[inline(always)]
fn note_by_any(
    copies: &mut [Copied],
    carried: &mut Carried,
    block: &Block<'_>,
    begin: u32,
) -> Result<Noted, Unreadable> {
    let (mut count, mut literals) = (0, 0);
    let begin = u64::from(begin);
    let mut end = begin;
    carried.sequences(block, |sequence| {
        let at = end + u64::from(sequence.literals);
        let (offset, length) = (u64::from(sequence.offset), sequence.length);
        // Without a branch, which would often be mispredicted: the place is taken if this counts.
        if let Some(place) = copies.get_mut(count) {
            let back = offset.wrapping_sub(at) as u32;
            *place = Copied { at: at as u32, back, length: length.min(back) };
        }
        count += usize::from(offset > at);
        end = at + u64::from(length);
        literals += u64::from(sequence.literals);
    })?;
    Ok(Noted { count, literals, length: end - begin })
}
