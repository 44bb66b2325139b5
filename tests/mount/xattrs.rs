//! Extended attributes of images in which no file has one.

use std::path::Path;
use std::process::Command;

use peelfs_loopback::image::{Family, Packing};
use peelfs_loopback::tar::Entry;
use rustix::io::Errno;

use super::{packed, serve};
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};

fn plain() -> Vec<Vec<Entry>> {
    let base = vec![
        Entry::dir("d"),
        Entry::file("d/f", "content"),
        Entry::symlink("link", "d/f"),
        Entry::fifo("pipe"),
        Entry::char_device("null", 1, 3),
    ];
    vec![base, vec![Entry::file("d/g", "more")]]
}

/// What a mount says to `getxattr`, with enough room and with none.
fn xattr(at: &Path, path: &str, name: &str) -> Result<usize, Errno> {
    let path = at.join(path);
    let (known, size) =
        (rustix::fs::lgetxattr(&path, name, &mut [0; 64][..]), rustix::fs::lgetxattr_query(&path, name));
    assert_eq!(known, size, "{}: {name}", path.display());
    known
}

fn xattr_names(at: &Path, path: &str) -> Vec<u8> {
    let mut names = vec![0; 256];
    let path = at.join(path);
    let len = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
    assert_eq!(rustix::fs::llistxattr_query(&path), Ok(len), "{}", path.display());
    names.truncate(len);
    names
}

const OTHERS: [&str; 4] = ["user.any", "security.capability", "trusted.overlay.opaque", "user.overlay.opaque"];
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
const LABEL: &str = "security.selinux";

/// Only ENODATA means that a file has no such attribute; EOPNOTSUPP makes some programs fail, and others leave out files.
#[test]
fn without_attributes_a_list_is_empty_and_a_value_absent() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&packed(&plain(), &[Packing::GZIP], Family::Oci));
    let sandbox = Sandbox::new();
    for more in [&[][..], &["--share"]] {
        let at = sandbox.mount_with(&registry.reference("library/image", "1"), "a", more);
        for path in ["", "d", "d/f", "d/g", "link", "null"] {
            assert_eq!(xattr_names(&at.path, path), b"", "{path}");
            // The kernel has those of users for files and directories alone.
            let user = |name: &&str| ["link", "null"].contains(&path) && name.starts_with("user.");
            for name in OTHERS.into_iter().filter(|name| !user(name)) {
                assert_eq!(xattr(&at.path, path, name), Err(Errno::NODATA), "{path}: {name}");
            }
            // As file systems do that have neither, so that `ls -l` asks once.
            for name in ACLS.into_iter().chain([LABEL]) {
                assert_eq!(xattr(&at.path, path, name), Err(Errno::OPNOTSUPP), "{path}: {name}");
            }
        }
        at.unmount();
    }
}

/// An image that has some access control list or label has them, and files that have none say so.
#[test]
fn what_an_image_has_is_absent_where_it_is_not() {
    if cannot_mount() {
        return;
    }
    // Version 2; the owner, a user 1000, the group, the mask and others, each a tag, permissions and an id.
    let entries: [(u16, u16, u32); 5] = [(1, 6, !0), (2, 4, 1000), (4, 4, !0), (0x10, 4, !0), (0x20, 0, !0)];
    let fields = |(tag, permissions, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let acl = [vec![2, 0, 0, 0], entries.into_iter().flat_map(fields).collect()].concat();
    let table: [(&str, Vec<u8>, [Errno; 2]); 3] = [
        (ACLS[0], acl, [Errno::NODATA, Errno::OPNOTSUPP]),
        (LABEL, b"system_u:object_r:etc_t:s0\0".to_vec(), [Errno::OPNOTSUPP, Errno::NODATA]),
        ("user.any", b"value".to_vec(), [Errno::OPNOTSUPP, Errno::OPNOTSUPP]),
    ];
    for (name, value, [acl, label]) in table {
        let mut layers = plain();
        let size = value.len();
        layers[0].push(Entry::file("with", "").mode(0o640).xattr(name, value));
        let registry = serve(&packed(&layers, &[Packing::GZIP], Family::Oci));
        let sandbox = Sandbox::new();
        let at = sandbox.mount(&registry.reference("library/image", "1"), "a");
        assert_eq!(xattr_names(&at.path, "with"), [name.as_bytes(), b"\0"].concat());
        assert_eq!(rustix::fs::lgetxattr(at.join("with"), name, &mut [0; 64][..]), Ok(size), "{name}");
        for path in ["d", "d/f", "d/g"] {
            assert_eq!(xattr_names(&at.path, path), b"", "{name}: {path}");
            assert_eq!(xattr(&at.path, path, OTHERS[1]), Err(Errno::NODATA), "{name}: {path}");
            assert_eq!(xattr(&at.path, path, ACLS[0]), Err(acl), "{name}: {path}");
            assert_eq!(xattr(&at.path, path, LABEL), Err(label), "{name}: {path}");
        }
        at.unmount();
    }
}

#[test]
fn programs_that_copy_attributes_go_without() {
    if cannot_mount() || ["getfattr", "tar"].into_iter().any(is_missing) {
        return;
    }
    let registry = serve(&packed(&plain(), &[Packing::GZIP], Family::Oci));
    let sandbox = Sandbox::new();
    let at = sandbox.mount(&registry.reference("library/image", "1"), "a");
    let quietly = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{command:?}: {}", said(&output));
    };
    let to = |name: &str| sandbox.path().join(name);
    quietly(Command::new("getfattr").args(["-d", "-m-", "-R", "-P"]).arg(&at.path));
    let options = ["--xattrs", "--xattrs-include=*", "--acls", "--selinux"];
    quietly(Command::new("tar").args(options).arg("-C").arg(&at.path).arg("-cf").arg(to("tar")).arg("."));
    quietly(Command::new("cp").args(["-a", "--preserve=all"]).args([&at.path, &to("copy")]));
    if Path::new("/usr/bin/mkfs.erofs").exists() {
        let output = Command::new("mkfs.erofs").args([&to("erofs"), &at.path]).output().unwrap();
        assert!(output.status.success() && !said(&output).contains("failed"), "{}", said(&output));
    } else {
        eprintln!("without mkfs.erofs: needs erofs-utils");
    }
    at.unmount();
}
