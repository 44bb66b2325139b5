//! Sets of extended attributes, deduplicated.
//!
//! A layer has few distinct sets (one capability, one SELinux label per kind of file), so an entry has a number and
//! each set is stored once. A set has the same format in memory and on disk: `name length u16, value length u32, name,
//! value` for each attribute, sorted by name.

use std::collections::HashMap;

use super::pax::Xattr;

/// Limit for a value on Linux (`XATTR_SIZE_MAX`), in bytes.
pub(super) const VALUE_LIMIT: usize = 65_536;
/// Limit for a name on Linux (`XATTR_NAME_MAX`), in bytes.
pub(super) const NAME_LIMIT: usize = 255;
const HEAD: usize = 6;

/// The distinct sets of one layer.
#[derive(Debug, Default)]
pub(super) struct XattrSets {
    pub(super) bytes: Vec<u8>,
    /// Start and length of each set.
    pub(super) sets: Vec<(u32, u32)>,
    known: HashMap<[u8; 32], u32>,
}

impl XattrSets {
    /// The number (from 1) of the set with these attributes, sorted by name; `None` if all sets together would exceed
    /// `limit` bytes.
    pub(super) fn intern(&mut self, xattrs: &[Xattr], limit: usize) -> Option<u32> {
        if xattrs.is_empty() {
            return Some(0);
        }
        let mut raw = Vec::new();
        for Xattr { name, value } in xattrs {
            raw.extend_from_slice(&u16::try_from(name.len()).ok()?.to_le_bytes());
            raw.extend_from_slice(&u32::try_from(value.len()).ok()?.to_le_bytes());
            raw.extend_from_slice(name);
            raw.extend_from_slice(value);
        }
        self.intern_raw(&raw, limit)
    }

    pub(super) fn intern_raw(&mut self, raw: &[u8], limit: usize) -> Option<u32> {
        let key = *blake3::hash(raw).as_bytes();
        if let Some(&number) = self.known.get(&key) {
            return Some(number);
        }
        // A set's table row, hash and number count, too: many tiny sets also take memory.
        if self.taken() + raw.len() > limit {
            return None;
        }
        let start = u32::try_from(self.bytes.len()).ok()?;
        let len = u32::try_from(raw.len()).ok()?;
        self.bytes.extend_from_slice(raw);
        self.sets.push((start, len));
        let number = u32::try_from(self.sets.len()).ok()?;
        self.known.insert(key, number);
        Some(number)
    }

    /// Memory taken by all sets, in bytes.
    pub(super) fn taken(&self) -> usize {
        self.bytes.len() + 64 * self.sets.len()
    }

    /// The stored form of the set with this number; empty for 0.
    pub(super) fn raw(&self, number: u32) -> &[u8] {
        let Some(place) = (number as usize).checked_sub(1) else { return &[] };
        let (start, len) = self.sets[place];
        &self.bytes[start as usize..][..len as usize]
    }
}

/// The attributes of a set in its stored form; ends with `None` if the form is invalid.
pub(super) fn parse(mut raw: &[u8]) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    std::iter::from_fn(move || {
        if raw.is_empty() {
            return None;
        }
        let parsed = split(raw);
        raw = parsed.map_or(&[], |(_, _, rest)| rest);
        Some(parsed.map(|(name, value, _)| (name, value)))
    })
}

fn split(raw: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (head, rest) = raw.split_at_checked(HEAD)?;
    let name_len = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let value_len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
    let (name, rest) = rest.split_at_checked(name_len)?;
    let (value, rest) = rest.split_at_checked(value_len)?;
    Some((name, value, rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr { name: name.into(), value: value.into() }
    }

    #[test]
    fn equal_sets_are_kept_once() {
        let mut sets = XattrSets::default();
        let first = [xattr("security.capability", b"\x01\0\0"), xattr("user.a", b"")];
        let second = [xattr("user.a", b"x")];
        assert_eq!(sets.intern(&first, 1 << 20), Some(1));
        assert_eq!(sets.intern(&second, 1 << 20), Some(2));
        assert_eq!(sets.intern(&first, 1 << 20), Some(1));
        assert_eq!(sets.intern(&[], 1 << 20), Some(0));
        let back: Vec<_> = parse(sets.raw(1)).map(Option::unwrap).collect();
        assert_eq!(back, [(&b"security.capability"[..], &b"\x01\0\0"[..]), (b"user.a", b"")]);
        assert_eq!(sets.raw(0), b"");
    }

    #[test]
    fn sets_beyond_the_limit_are_refused() {
        let mut sets = XattrSets::default();
        assert_eq!(sets.intern(&[xattr("user.a", &[0; 100])], 100), None);
    }

    #[test]
    fn broken_set_ends_with_none() {
        let mut sets = XattrSets::default();
        sets.intern(&[xattr("a", b"b"), xattr("c", b"d")], 1 << 20).unwrap();
        let raw = &sets.raw(1)[..sets.raw(1).len() - 1];
        let back: Vec<_> = parse(raw).collect();
        assert_eq!(back, [Some((&b"a"[..], &b"b"[..])), None]);
    }
}
