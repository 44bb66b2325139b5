//! Finds entries by directory and name while the tree grows.
//!
//! A map with owned keys would take more memory than the entries. This table holds entry ids only; the keys stay in the
//! entries, and hashing is keyed against crafted collisions.

use std::hash::{BuildHasher, Hasher, RandomState};

const EMPTY: u32 = u32::MAX;
const REMOVED: u32 = u32::MAX - 1;
/// Ids are below this.
pub(super) const ID_LIMIT: u32 = REMOVED;

/// Open addressing with linear probing, at most three quarters full.
#[derive(Debug, Default)]
pub(super) struct NameTable {
    slots: Vec<u32>,
    /// Slots that are not `EMPTY`.
    used: usize,
    live: usize,
    hash: RandomState,
}

impl NameTable {
    /// The hash of a name in a directory.
    pub(super) fn hash(&self, parent: u32, name: &[u8]) -> u64 {
        let mut hasher = self.hash.build_hasher();
        hasher.write_u32(parent);
        hasher.write(name);
        hasher.finish()
    }

    /// The id with this hash that satisfies `is`.
    pub(super) fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        self.slot(hash, &mut is).map(|slot| self.slots[slot])
    }

    /// Adds an id that is not in the table; `rehash` returns the hash of any id in it.
    pub(super) fn insert(&mut self, hash: u64, id: u32, rehash: impl Fn(&Self, u32) -> u64) {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            let size = ((self.live + 1) * 2).next_power_of_two().max(16);
            let old = std::mem::replace(&mut self.slots, vec![EMPTY; size]);
            self.used = 0;
            self.live = 0;
            for id in old.into_iter().filter(|id| *id < ID_LIMIT) {
                let hash = rehash(self, id);
                self.fill(hash, id);
            }
        }
        self.fill(hash, id);
    }

    /// Removes an id.
    pub(super) fn remove(&mut self, hash: u64, id: u32) {
        if let Some(slot) = self.slot(hash, &mut |other| other == id) {
            self.slots[slot] = REMOVED;
            self.live -= 1;
        }
    }

    fn fill(&mut self, hash: u64, id: u32) {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        while self.slots[slot] != EMPTY {
            slot = (slot + 1) & mask;
        }
        self.slots[slot] = id;
        self.used += 1;
        self.live += 1;
    }

    fn slot(&self, hash: u64, is: &mut impl FnMut(u32) -> bool) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut slot = hash as usize & mask;
        loop {
            match self.slots[slot] {
                EMPTY => return None,
                id if id != REMOVED && is(id) => return Some(slot),
                _ => slot = (slot + 1) & mask,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_agrees_with_a_set_under_inserts_and_removals() {
        let mut table = NameTable::default();
        let mut model = std::collections::BTreeSet::new();
        let mut state = 1_u64;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = (state >> 33) as u32 % 500;
            let hash = table.hash(id % 7, &id.to_le_bytes());
            assert_eq!(table.find(hash, |other| other == id).is_some(), model.contains(&id));
            if model.insert(id) {
                table.insert(hash, id, |table, id| table.hash(id % 7, &id.to_le_bytes()));
            } else {
                model.remove(&id);
                table.remove(hash, id);
            }
        }
    }
}
