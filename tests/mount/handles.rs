//! File handles, as used by NFS servers and overlays with `nfs_export`, and idmapped mounts.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use peelfs_loopback::image::{Family, Image, Packing};
use peelfs_loopback::tar::Entry;

use super::{packed, serve, with_mounted};
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};

fn image(version: &str) -> Image {
    let base = vec![
        Entry::dir("a"),
        Entry::dir("a/b"),
        Entry::file("a/b/file", "of the base"),
        Entry::hard_link("a/link", "a/b/file"),
        Entry::file("a/replaced", "below"),
        Entry::file("a/gone", "below"),
    ];
    let upper = vec![
        Entry::dir("a"),
        Entry::file("a/replaced", format!("above, {version}")),
        Entry::whiteout("a/gone"),
        Entry::whiteout("a/b/file"),
        Entry::dir("a/b/c"),
        Entry::file("a/b/c/deep", "deep"),
    ];
    packed(&[base, upper], &[Packing::GZIP], Family::Oci)
}

const SHOWN: [&str; 7] = ["", "a", "a/b", "a/b/c", "a/b/c/deep", "a/link", "a/replaced"];

/// Handles of paths below a mount, one a line.
fn handles(at: &Path, paths: &[&str]) -> Vec<String> {
    let paths = paths.iter().map(|path| at.join(path).into_os_string());
    let output = Command::new("python3").args(["-c", HANDLES, "name"]).args(paths).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The result of opening a handle on a mount: `path: content`, or the error's name.
fn opened(at: &Path, handles: &[String]) -> Vec<String> {
    let mut child = Command::new("python3");
    let child = child.args(["-c", HANDLES, "open"]).arg(at);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    handles.iter().for_each(|handle| writeln!(stdin, "{handle}").unwrap());
    drop(stdin);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(child.wait().unwrap().success());
    lines
}

/// `name PATH...` writes handles, `open MOUNT` opens those that it reads.
const HANDLES: &str = r#"
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "handle")
    return result
if sys.argv[1] == "name":
    for path in sys.argv[2:]:
        handle, mount = Handle(bytes=128), ctypes.c_int()
        checked(libc.name_to_handle_at(-100, path.encode(), ctypes.byref(handle), ctypes.byref(mount), 0))
        print(handle.type, bytes(handle.data[:handle.bytes]).hex())
else:
    mount = os.open(sys.argv[2], os.O_RDONLY)
    for line in sys.stdin:
        kind, data = line.split()
        data = bytes.fromhex(data)
        handle = Handle(bytes=len(data), type=int(kind))
        handle.data[:len(data)] = data
        try:
            fd = checked(libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY))
            content = sorted(os.listdir(fd)) if os.path.isdir(f"/proc/self/fd/{fd}") else os.read(fd, 100).decode()
            path = os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), sys.argv[2])
            # A file that was opened by its handle alone need not have a path.
            print(f"{path}: {content}" if isinstance(content, list) else content)
        except OSError as error:
            print(errno.errorcode[error.errno])
"#;

/// A new mount resolves handles of the previous one, as after the kernel has dropped the inodes.
#[test]
fn file_handles_open_on_another_mount_of_the_image() {
    if cannot_mount() || is_missing("python3") {
        return;
    }
    let registry = serve(&image("1"));
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    let at = sandbox.mount(&reference, "a");
    let known = handles(&at.path, &SHOWN);
    let wanted = [
        ".: ['a']",
        "a: ['b', 'link', 'replaced']",
        "a/b: ['c']",
        "a/b/c: ['deep']",
        "deep",
        "of the base",
        "above, 1",
    ];
    assert_eq!(opened(&at.path, &known), wanted);
    at.unmount();
    for (name, more) in [("a", &[][..]), ("b", &["--share"]), ("c", &["--passthrough"])] {
        for taken_over in [false, true] {
            let again = sandbox.mount_with(&reference, name, more);
            if taken_over {
                again.kill_server();
            }
            // The deepest first, so that no parent is in the kernel's cache.
            let reversed: Vec<String> = known.iter().rev().cloned().collect();
            let mut found = opened(&again.path, &reversed);
            found.reverse();
            assert_eq!(found, wanted, "{more:?}, taken over: {taken_over}");
            // Handles by path are the same, though the nodes are known by another way now.
            assert_eq!(handles(&again.path, &SHOWN), known);
            again.unmount();
        }
    }
}

/// The file at the same position of another image is another file.
#[test]
fn a_file_handle_of_another_image_is_stale() {
    if cannot_mount() || is_missing("python3") {
        return;
    }
    let sandbox = Sandbox::new();
    let mut known = Vec::new();
    for version in ["1", "2"] {
        let registry = serve(&image(version));
        let at = sandbox.mount(&registry.reference("library/image", "1"), "a");
        if known.is_empty() {
            known = handles(&at.path, &SHOWN[1..]);
        } else {
            assert_eq!(opened(&at.path, &known), ["ESTALE"; SHOWN.len() - 1]);
        }
        at.unmount();
    }
}

#[test]
fn a_made_up_file_handle_shows_nothing_that_is_hidden() {
    if cannot_mount() || is_missing("python3") {
        return;
    }
    with_mounted(&image("1"), |at| {
        let sample = handles(at, &["a/link"]).remove(0);
        let (kind, data) = sample.split_once(' ').unwrap();
        // Two halves of a node's number, which is (layer + 1, entry), and the generation.
        let shown = |text: &str| u32::from_ne_bytes(hex(text).try_into().unwrap());
        let (layer, generation) = (shown(&data[..8]), &data[16..]);
        assert_eq!(layer, 1, "of the base");
        let made_up: Vec<String> = (0..5_u32)
            .flat_map(|layer| (0..20_u32).map(move |entry| (layer, entry)))
            .map(|(layer, entry)| format!("{kind} {}{}{generation}", text(layer), text(entry)))
            .collect();
        let mut found = opened(at, &made_up);
        found.retain(|found| found != "ESTALE");
        found.sort();
        let wanted =
            ["a/b/c: ['deep']", "a/b: ['c']", "a: ['b', 'link', 'replaced']", "above, 1", "deep", "of the base"];
        assert_eq!(found, wanted);
    });
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn text(number: u32) -> String {
    number.to_ne_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As for containers in user namespaces, by the system calls that `mount --map-users` makes.
#[test]
fn a_clone_of_a_mount_can_show_other_owners() {
    if cannot_mount() || ["python3", "unshare"].into_iter().any(is_missing) {
        return;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u32>().unwrap();
    let mut parts = release.split('.').map(number);
    if (parts.next(), parts.next()) < (Some(6), Some(12)) {
        eprintln!("skipped: needs Linux 6.12");
        return;
    }
    let layer = vec![
        Entry::file("root", "root's").mode(0o600),
        Entry::file("user", "a user's").owner(1000, 1000).mode(0o640),
        Entry::file("outside", "of an owner that is not mapped").owner(70_000, 70_000),
    ];
    let registry = serve(&packed(&[layer], &[Packing::GZIP], Family::Oci));
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    for (name, more) in [("a", &["--allow-other"][..]), ("b", &[]), ("c", &["--passthrough"])] {
        let at = sandbox.mount_with(&reference, name, more);
        for taken_over in [false, true] {
            if taken_over {
                at.kill_server();
            }
            let mut command = Command::new("unshare");
            command.args(["--mount", "python3", "-c", SHIFTED]).args([&at.path, &sandbox.mount_point("clone").path]);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{more:?}: {}", said(&output));
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                "root 100000 100000 root's\nuser 101000 101000 a user's\noutside 65534 65534 of an owner that is not mapped\n"
            );
        }
        assert_eq!(std::fs::metadata(at.join("user")).unwrap().uid(), 1000, "the mount itself is as it was");
        at.unmount();
    }
}

/// Clones a mount with owners 100,000 higher and looks at it.
const SHIFTED: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, OPEN_TREE_CLONE, EMPTY_PATH, IDMAP = 0x10000000, 1, 0x1000, 0x100000
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
def call(number, *args):
    result = libc.syscall(number, *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result
class Attr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]
ready, done = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.write(ready[1], b"x" if libc.unshare(CLONE_NEWUSER) == 0 else b"-")
    os.read(done[0], 1)
    os._exit(0)
if os.read(ready[0], 1) != b"x":
    sys.exit("no user namespace can be had")
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{child}/{name}", "w") as file:
        file.write("0 100000 65536")
userns = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
os.write(done[1], b"x")
os.waitpid(child, 0)
tree = call(OPEN_TREE, -100, sys.argv[1].encode(), OPEN_TREE_CLONE)
attr = Attr(set=IDMAP, userns=userns)
call(MOUNT_SETATTR, tree, b"", EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr))
call(MOVE_MOUNT, tree, b"", -100, sys.argv[2].encode(), 4)
for name in ("root", "user", "outside"):
    path = os.path.join(sys.argv[2], name)
    stat = os.stat(path)
    print(name, stat.st_uid, stat.st_gid, open(path).read())
"#;
