//! Extended attributes: each distinct name and value is stored once, and inodes refer to it.

use std::collections::HashMap;

use zerocopy::IntoBytes as _;
use zerocopy::little_endian::{U16, U32};

use super::EncodeError;
use super::format::{XATTR_UNIT, XattrHead, XattrHeader};

/// What is already in the image, by the hash of its bytes.
#[derive(Default)]
pub(super) struct Shared {
    places: HashMap<[u8; 32], u32>,
}

/// The attributes of one inode.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    shared: Vec<u32>,
    /// Those beyond 255, which an inode cannot refer to.
    own: Vec<u8>,
}

impl Shared {
    /// The attributes `name` and `value` of one inode; `place` adds a new one to the image, and returns its position.
    pub(super) fn attributes<'a>(
        &mut self,
        xattrs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        mut place: impl FnMut(&[u8]) -> Result<u64, EncodeError>,
    ) -> Result<Attributes, EncodeError> {
        let mut all = Attributes::default();
        for (name, value) in xattrs {
            let entry = encode(name, value)?;
            if all.shared.len() == SHARED_MAX {
                all.own.extend_from_slice(&entry);
                continue;
            }
            let key = *blake3::hash(&entry).as_bytes();
            let number = match self.places.get(&key) {
                Some(number) => *number,
                None => {
                    let number = u32::try_from(place(&entry)? / XATTR_UNIT).map_err(|_| EncodeError::TooLarge)?;
                    self.places.insert(key, number);
                    number
                }
            };
            all.shared.push(number);
        }
        match all.size() / 4 {
            size if size > usize::from(u16::MAX) => Err(unsupported("xattrs", "they take more than 256 KiB")),
            _ => Ok(all),
        }
    }
}

impl Attributes {
    /// Bytes after the inode.
    pub(super) fn size(&self) -> usize {
        if self.shared.is_empty() { 0 } else { size_of::<XattrHeader>() + 4 * self.shared.len() + self.own.len() }
    }

    /// The size field of the inode.
    pub(super) fn count(&self) -> U16 {
        // One for the header, and one for each four bytes after it.
        U16::new(if self.shared.is_empty() { 0 } else { (self.size() - size_of::<XattrHeader>()) / 4 + 1 } as u16)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        if self.shared.is_empty() {
            return;
        }
        let header = XattrHeader { filter: U32::new(0), shared: self.shared.len() as u8, rest: [0; 7] };
        out.extend_from_slice(header.as_bytes());
        self.shared.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        out.extend_from_slice(&self.own);
    }
}

/// One attribute as stored in the image.
fn encode(name: &[u8], value: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let (prefix, rest) = split(name).ok_or_else(|| unsupported(name, "EROFS does not support the name"))?;
    let value_size =
        u16::try_from(value.len()).map_err(|_| unsupported(name, "its value has more than 65,535 bytes"))?;
    if matches!(prefix, ACL_ACCESS | ACL_DEFAULT) && !is_acl(value) {
        return Err(unsupported(name, "it is not an access control list"));
    }
    let head = XattrHead { name_len: rest.len() as u8, prefix, value_size: U16::new(value_size) };
    let mut out = head.as_bytes().to_vec();
    out.extend_from_slice(rest);
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(XATTR_UNIT as usize), 0);
    Ok(out)
}

/// The number of a name's prefix, and the rest.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    if let Some((_, number)) = WHOLE_NAMES.iter().find(|(whole, _)| *whole == name) {
        return Some((*number, b""));
    }
    PREFIXES.iter().find_map(|(prefix, number)| {
        name.strip_prefix(*prefix).filter(|rest| !rest.is_empty()).map(|rest| (*number, rest))
    })
}

/// Whether the kernel accepts `value` as an access control list; any other would deny access to every process.
fn is_acl(value: &[u8]) -> bool {
    let Some((version, entries)) = value.split_first_chunk::<4>() else { return false };
    let known = |entry: &[u8]| matches!(u16::from_le_bytes([entry[0], entry[1]]), 1 | 2 | 4 | 8 | 0x10 | 0x20);
    u32::from_le_bytes(*version) == 2 && entries.len() % 8 == 0 && entries.chunks(8).all(known)
}

fn unsupported(name: impl AsRef<[u8]>, why: &'static str) -> EncodeError {
    EncodeError::Xattr { name: name.as_ref().escape_ascii().to_string(), why }
}

const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;
const WHOLE_NAMES: [(&[u8], u8); 2] =
    [(b"system.posix_acl_access", ACL_ACCESS), (b"system.posix_acl_default", ACL_DEFAULT)];
const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
/// Limit of attributes that an inode can refer to.
const SHARED_MAX: usize = u8::MAX as usize;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn equal_attributes_are_put_into_the_image_once() {
        let (mut shared, mut image) = (Shared::default(), Vec::new());
        let mut place = |bytes: &[u8]| {
            image.extend_from_slice(bytes);
            Ok((image.len() - bytes.len()) as u64)
        };
        let (capability, note) = ((&b"security.capability"[..], &b"\x01\0"[..]), (&b"user.a"[..], &b"note"[..]));
        let one = shared.attributes([capability, note], &mut place).unwrap();
        let two = shared.attributes([note], &mut place).unwrap();
        assert_eq!((one.shared, two.shared), (vec![0, 4], vec![4]));
        assert_eq!(image, b"\x0a\x06\x02\0capability\x01\0\x01\x01\x04\0anote\0\0\0");
    }

    #[test]
    fn more_attributes_than_can_be_named_follow_the_inode() {
        let names: Vec<_> = (0..300).map(|n| format!("user.{n}")).collect();
        let mut shared = Shared::default();
        let all = shared.attributes(names.iter().map(|name| (name.as_bytes(), &b"x"[..])), |_| Ok(0)).unwrap();
        let mut out = Vec::new();
        all.encode(&mut out);
        assert_eq!((out.len(), out[4]), (all.size(), 255));
        assert_eq!(all.size(), 12 + 4 * (usize::from(all.count().get()) - 1));
        assert!(out.ends_with(b"\x03\x01\x01\x00299x") || out.ends_with(b"299x"));
    }

    #[test]
    fn what_the_kernel_would_not_show_is_refused() {
        let refused = |name: &[u8], value: &[u8]| {
            let mut shared = Shared::default();
            matches!(shared.attributes([(name, value)], |_| Ok(0)), Err(EncodeError::Xattr { .. }))
        };
        assert!(refused(b"com.apple.quarantine", b"x") && refused(b"user.", b"x") && refused(b"system.nfs4_acl", b"x"));
        assert!(refused(b"user.a", &vec![0; 65_536]) && !refused(b"user.a", &vec![0; 65_535]));
        let acl = [2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff];
        assert!(!refused(b"system.posix_acl_access", &acl) && refused(b"system.posix_acl_access", &acl[..9]));
        assert!(refused(b"system.posix_acl_default", b"") && !refused(b"trusted.overlay.opaque", b"y"));
    }
}
