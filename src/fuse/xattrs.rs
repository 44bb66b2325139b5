//! Extended attributes, which the kernel does not cache: frequent questions are answered without looking the node up.
//!
//! With ENOSYS the kernel would stop asking and answer EOPNOTSUPP itself. But only ENODATA says that a file lacks an
//! attribute: with EOPNOTSUPP programs refuse to copy, or leave directories out, and a list has to be empty. File
//! systems without access control lists or SELinux labels answer EOPNOTSUPP for these, and so do images without any.
//! `ls -l` asks for both for each file, and stops asking after that answer.

use std::collections::BTreeSet;
use std::iter;

use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::Adapter;
use super::device::Reply;
use super::wire::XattrSize;
use crate::image::briefly;
use crate::overlay::NodeId;

/// The extended attributes that occur in a tree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Attributes {
    any: bool,
    acls: bool,
    labels: bool,
}

impl Attributes {
    /// Those of a tree with these names; `None` if there are too many.
    fn of(names: Option<&BTreeSet<Vec<u8>>>) -> Self {
        let some = |test: fn(&[u8]) -> bool| names.is_none_or(|names| names.iter().any(|name| test(name)));
        Self { any: some(|_| true), acls: some(is_acl), labels: some(is_label) }
    }

    /// The answer for `name`, if no file has it.
    fn absent(self, name: &[u8]) -> Option<Errno> {
        if is_acl(name) && !self.acls || is_label(name) && !self.labels {
            return Some(Errno::OPNOTSUPP);
        }
        (!self.any).then_some(Errno::NODATA)
    }
}

fn is_acl(name: &[u8]) -> bool {
    matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default")
}

fn is_label(name: &[u8]) -> bool {
    name == b"security.selinux"
}

impl Adapter {
    pub(super) fn xattr(&self, node: NodeId, name: &[u8], size: u32, reply: Reply) {
        if let Some(errno) = self.attributes().and_then(|attributes| attributes.absent(name)) {
            return reply.error(errno);
        }
        let name = name.to_vec();
        self.answer(
            reply,
            move |tree| tree.xattr(node, &name),
            move |reply, value| match value {
                Some(value) => send(reply, &value, size),
                None => reply.error(Errno::NODATA),
            },
        );
    }

    pub(super) fn xattr_names(&self, node: NodeId, size: u32, reply: Reply) {
        if self.attributes().is_some_and(|attributes| !attributes.any) {
            return send(reply, &[], size);
        }
        self.answer(
            reply,
            move |tree| tree.xattr_names(node),
            move |reply, names| {
                let list: Vec<u8> = names.into_iter().flat_map(|name| name.into_iter().chain(iter::once(0))).collect();
                send(reply, &list, size);
            },
        );
    }

    /// What the tree has, once that is known.
    fn attributes(&self) -> Option<Attributes> {
        if let Some(known) = self.attributes.get() {
            return Some(*known);
        }
        let names = briefly(|| self.tree.all_xattr_names()).ok()?;
        Some(*self.attributes.get_or_init(|| Attributes::of(names.as_ref())))
    }
}

fn send(reply: Reply, value: &[u8], size: u32) {
    if size == 0 {
        reply.bytes(XattrSize { size: value.len() as u32, padding: 0 }.as_bytes());
    } else if value.len() > size as usize {
        reply.error(Errno::RANGE);
    } else {
        reply.bytes(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_attribute_is_answered_by_its_kind() {
        let names = |names: &[&str]| Some(names.iter().map(|name| name.as_bytes().to_vec()).collect::<BTreeSet<_>>());
        let acl: &[u8] = b"system.posix_acl_access";
        let (label, other): (&[u8], &[u8]) = (b"security.selinux", b"user.other");
        let table = [
            (names(&[]), [Some(Errno::OPNOTSUPP), Some(Errno::OPNOTSUPP), Some(Errno::NODATA)]),
            (names(&["security.capability"]), [Some(Errno::OPNOTSUPP), Some(Errno::OPNOTSUPP), None]),
            (names(&["system.posix_acl_default"]), [None, Some(Errno::OPNOTSUPP), None]),
            (names(&["security.selinux"]), [Some(Errno::OPNOTSUPP), None, None]),
            (None, [None, None, None]),
        ];
        for (names, wanted) in table {
            let attributes = Attributes::of(names.as_ref());
            assert_eq!([acl, label, other].map(|name| attributes.absent(name)), wanted, "{names:?}");
        }
    }
}
