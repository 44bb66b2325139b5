//! The kernel's table of mounts, from `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// The used fields of a line of mountinfo (proc(5)).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MountPoint {
    /// The kernel's number of this mount, which it keeps when it is moved.
    pub id: u64,
    /// The number of the mount below it.
    pub parent: u64,
    /// The directory of the file system that is mounted; for a bind mount, usually not its root.
    pub root: PathBuf,
    /// `major:minor` of the mounted file system.
    pub device: String,
    /// The mount point.
    pub path: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// The source; for peelfs, the reference.
    pub source: String,
    /// The options of the file system, as it reports them.
    pub options: String,
}

impl MountPoint {
    /// Whether peelfs mounted it.
    pub fn is_peelfs(&self) -> bool {
        self.kind == "fuse.peelfs" || self.is_shown_by_kernel()
    }

    /// Whether it is a kernel mount of peelfs.
    pub fn is_shown_by_kernel(&self) -> bool {
        self.kind == "erofs" && self.source.starts_with(KERNEL_SOURCE)
    }

    /// The number of the topmost mount on this path that no other mount gets until the machine is restarted; `None` before
    /// Linux 6.8. Asks the mount.
    pub fn unique_id(&self) -> Option<u64> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let found = statx(CWD, &self.path, flags, StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE)).ok()?;
        (found.stx_mask & STATX_MNT_ID_UNIQUE != 0).then_some(found.stx_mnt_id)
    }

    /// The reference that peelfs mounted.
    pub fn reference(&self) -> &str {
        self.source.strip_prefix(KERNEL_SOURCE).filter(|_| self.is_shown_by_kernel()).unwrap_or(&self.source)
    }

    /// Whether it is an overlay that peelfs mounted over the mount `below`.
    pub fn covers(&self, below: &Self) -> bool {
        self.parent == below.id && self.path == below.path && self.kind == "overlay" && self.source.starts_with(COVER)
    }

    /// The upper directory of an overlay.
    pub fn upper(&self) -> Option<PathBuf> {
        let overlay = self.kind == "overlay";
        let upper = self.options.split(',').find_map(|option| option.strip_prefix("upperdir=")).filter(|_| overlay);
        upper.map(PathBuf::from)
    }
}

/// The prefix of the source of an overlay that peelfs has mounted over an image.
pub const COVER: &str = "peelfs:";

/// The overlay that peelfs has mounted over `mount`, if any.
pub fn cover_of(mount: &MountPoint) -> Option<MountPoint> {
    all().into_iter().rev().find(|other| other.covers(mount))
}

/// The mount of peelfs at `path`, with or without an overlay over it.
pub fn peelfs_at(path: &Path) -> Option<MountPoint> {
    let all = all();
    let top = all.iter().rev().find(|mount| mount.path == path)?;
    if top.is_peelfs() {
        return Some(top.clone());
    }
    all.iter().find(|below| below.is_peelfs() && top.covers(below)).cloned()
}

/// All mounts visible to this process, in the order in which they were made.
pub fn all() -> Vec<MountPoint> {
    match std::fs::read("/proc/self/mountinfo") {
        Ok(text) => parse(&text),
        Err(error) => {
            tracing::warn!(%error, "cannot read /proc/self/mountinfo");
            Vec::new()
        }
    }
}

/// The uppermost mount whose mount point is exactly `path`, compared as text.
pub fn at(path: &Path) -> Option<MountPoint> {
    all().into_iter().rev().find(|mount| mount.path == path)
}

/// Whether a process serves the mount at `path`.
///
/// It calls statfs, which the kernel forwards each time; attributes could come from the kernel's cache long after the
/// process is gone.
///
/// An overlay answers statfs from its upper layer; there, a name that does not exist and was not looked up before is
/// looked up.
pub fn is_served(path: &Path) -> bool {
    let answered = match rustix::fs::statfs(path) {
        Ok(found) if found.f_type as u64 == OVERLAYFS => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
            rustix::fs::lstat(path.join(format!(".peelfs-{}-{now}", std::process::id()))).map(drop)
        }
        answered => answered.map(drop),
    };
    !matches!(answered, Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED))
}

/// `OVERLAYFS_SUPER_MAGIC`, the type of file system that statfs(2) tells.
pub const OVERLAYFS: u64 = 0x794c_7630;

fn parse(text: &[u8]) -> Vec<MountPoint> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
    let device = text(fields.next()?);
    let (root, path) = (path(fields.next()?), path(fields.next()?));
    let mut behind = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source) = (text(behind.next()?), text(&unescape(behind.next()?)));
    let options = text(&unescape(behind.next().unwrap_or_default()));
    Some(MountPoint { id, parent, root, device, path, kind, source, options })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Blanks, tabs, newlines and backslashes are escaped as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if *byte == b'\\' => {
                out.push(code);
                rest = &after[3..];
            }
            _ => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

/// The absolute path of a mount point, without accessing the mount: a mount whose server is gone or slow must not block
/// an unmount. Only the parent directory is accessed.
///
/// # Errors
/// If the parent does not exist.
pub fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize()?.join(OsString::from_vec(name.as_bytes().to_vec())))
        }
        _ => path.canonicalize(),
    }
}

/// As [`absolute`], but follows a symlink as the last name.
///
/// # Errors
/// As [`absolute`], and for a loop of symlinks.
pub fn followed(path: &Path) -> std::io::Result<PathBuf> {
    let mut at = absolute(path)?;
    for _ in 0..SYMLINKS {
        // A symlink is no mount point, so this accesses no mount.
        let Ok(target) = std::fs::read_link(&at) else { return Ok(at) };
        at = absolute(&at.parent().unwrap_or(Path::new("/")).join(target))?;
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// The prefix of the sources of kernel mounts; other EROFS mounts have other sources.
pub const KERNEL_SOURCE: &str = "peelfs:";
/// The kernel's limit.
const SYMLINKS: usize = 40;
/// statx(2).
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mount_point_with_a_blank_is_read() {
        let text = b"22 1 254:0 / / rw - ext4 /dev/root rw\n\
            61 22 0:47 / /tmp/my\\040image ro,nosuid shared:7 - fuse.peelfs python:3.12 ro,user_id=0\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        assert!(!found[0].is_peelfs());
        assert_eq!(
            found[1],
            MountPoint {
                id: 61,
                parent: 22,
                root: "/".into(),
                device: "0:47".into(),
                path: "/tmp/my image".into(),
                kind: "fuse.peelfs".into(),
                source: "python:3.12".into(),
                options: "ro,user_id=0".into()
            }
        );
        assert!(found[1].is_peelfs());
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(at(Path::new("/")).is_some());
    }
}
