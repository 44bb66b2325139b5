//! Inode numbers and change times, which programs use to distinguish files, as real programs use them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use peelfs_loopback::image::{Family, Image, Packing};
use peelfs_loopback::tar::Entry;
use rustix::fs::{Dir, Mode, OFlags};

use super::{everything, packed, run, serve, with_mounted};
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};

/// Layers in which the same places hold hard links to other files.
fn linked() -> Vec<Vec<Entry>> {
    let layer = |name: &str| {
        let file = |number: u32| format!("{name}/{number}");
        let mut entries = vec![Entry::dir(name)];
        for number in 0..4 {
            entries.push(Entry::file(file(number), format!("{name}{number}").repeat(50)).mtime(0, 0));
            entries.push(Entry::hard_link(format!("{name}/link{number}"), file(number)));
        }
        entries
    };
    vec![layer("a"), layer("b"), layer("c")]
}

/// Two images of the same names, sizes and times, of which one file and a directory's names differ.
fn twins() -> [Image; 2] {
    ["1", "2"].map(|version| {
        let base = vec![Entry::dir("base"), Entry::file("base/same", "the same").mtime(0, 0)];
        let app = vec![
            Entry::dir("app"),
            Entry::file("app/setting", format!("setting v{version}")).mtime(0, 0),
            Entry::file(format!("app/only{version}"), "").mtime(0, 0),
            // Borg keeps in mind what is older than the newest of all.
            Entry::file("newer", "").mtime(1_000_000, 0),
        ];
        packed(&[base, app], &[Packing::GZIP], Family::Oci)
    })
}

/// Every path below a mount with what `stat` says of its identity; listings and `stat` must agree.
fn identities(root: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let own = std::fs::symlink_metadata(&dir).unwrap();
        let fd = rustix::fs::open(&dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for entry in Dir::read_from(&fd).unwrap() {
            let entry = entry.unwrap();
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            let path = dir.join(&name);
            let stat = if name == ".." && dir == root {
                own.clone() // the root lies in itself
            } else {
                std::fs::symlink_metadata(&path).unwrap()
            };
            assert_eq!(entry.ino(), stat.ino(), "{} as it is listed", path.display());
            if name == "." || name == ".." {
                continue;
            }
            if stat.is_dir() {
                pending.push(path.clone());
            }
            let path = path.strip_prefix(root).unwrap().to_owned();
            found.insert(path, (stat.ino(), stat.ctime(), stat.ctime_nsec()));
        }
        let path = dir.strip_prefix(root).unwrap().to_owned();
        found.insert(path, (own.ino(), own.ctime(), own.ctime_nsec()));
    }
    found
}

#[test]
fn inode_numbers_are_small_and_agree_with_listings() {
    if cannot_mount() {
        return;
    }
    for layers in [everything(), linked()] {
        let entries: usize = layers.iter().map(|layer| layer.len() + 10).max().unwrap();
        with_mounted(&packed(&layers, &[Packing::GZIP], Family::Oci), |at| {
            let all = identities(at);
            let largest = all.values().map(|(inode, ..)| *inode).max().unwrap();
            assert!(largest <= (entries * layers.len()) as u64, "{largest}");
            let root = &all[Path::new("")];
            assert_eq!(root.0, 1);
            // The kernel has these cached; a separate lookup gives the same.
            assert_eq!(all, identities(at));
        });
    }
}

#[test]
fn hard_links_and_only_they_share_a_number() {
    if cannot_mount() {
        return;
    }
    with_mounted(&packed(&linked(), &[Packing::GZIP], Family::Oci), |at| {
        let all = identities(at);
        let numbers: BTreeSet<u64> = all.values().map(|(inode, ..)| *inode).collect();
        assert_eq!(numbers.len(), all.len() - 12, "twelve files have two names");
        for (layer, number) in ["a", "b", "c"].into_iter().flat_map(|layer| (0..4).map(move |number| (layer, number))) {
            let [file, link] = [format!("{layer}/{number}"), format!("{layer}/link{number}")];
            assert_eq!(all[Path::new(&file)], all[Path::new(&link)]);
        }
    });
}

/// Alone, in the process of shared mounts, and after another process has taken over, which then answers everything.
#[test]
fn an_image_has_the_same_identities_in_every_process() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&packed(&everything(), &[Packing::GZIP, Packing::ZSTD], Family::Oci));
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    let first = sandbox.mount(&reference, "a");
    let wanted = identities(&first.path);
    first.unmount();
    for (name, more) in [("b", &[][..]), ("c", &["--share"]), ("d", &["--passthrough"])] {
        for taken_over in [false, true] {
            let at = sandbox.mount_with(&reference, name, more);
            if taken_over {
                at.kill_server();
            }
            assert_eq!(identities(&at.path), wanted, "{more:?}, taken over: {taken_over}");
            at.unmount();
        }
    }
}

#[test]
fn a_program_of_32_bits_stats_and_lists() {
    if cannot_mount() || is_missing("gcc") {
        return;
    }
    let sandbox = Sandbox::new();
    let (source, program) = (sandbox.path().join("small.c"), sandbox.path().join("small"));
    std::fs::write(&source, SMALL).unwrap();
    let built = Command::new("gcc").arg("-m32").arg("-o").args([&program, &source]).output().unwrap();
    if !built.status.success()
        || !Command::new(&program).arg("/proc/self").output().is_ok_and(|ran| ran.status.success())
    {
        eprintln!("skipped: needs gcc-multilib, and a kernel that runs programs of 32 bits: {}", said(&built));
        return;
    }
    with_mounted(&packed(&linked(), &[Packing::GZIP], Family::Oci), |at| {
        for dir in [at.to_owned(), at.join("a"), at.join("c")] {
            let output = Command::new(&program).arg(&dir).output().unwrap();
            assert!(output.status.success(), "{}: {}", dir.display(), said(&output));
            let wanted = std::fs::read_dir(&dir).unwrap().count() + 2;
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), wanted.to_string());
        }
    });
}

/// Looks at every name of a directory without large-file support.
const SMALL: &str = r#"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct stat st;
    struct dirent *entry;
    int names = 0;
    if (argc != 2 || chdir(argv[1]) != 0) return 2;
    DIR *dir = opendir(".");
    if (!dir) return perror("opendir"), 1;
    while (errno = 0, (entry = readdir(dir))) {
        if (lstat(entry->d_name, &st) != 0) return perror(entry->d_name), 1;
        names++;
    }
    if (errno) return perror("readdir"), 1;
    printf("%d\n", names);
    return 0;
}
"#;

/// Old formats store at most 32 bits of an inode number, and link files with equal numbers.
#[test]
fn cpio_archives_keep_hard_links_apart() {
    if cannot_mount() || is_missing("cpio") {
        return;
    }
    with_mounted(&packed(&linked(), &[Packing::GZIP], Family::Oci), |at| {
        for format in ["newc", "crc", "odc"] {
            let copy = tempfile::tempdir().unwrap();
            let script = "cd \"$1\" && find . -depth | cpio --quiet -o -H \"$3\" | (cd \"$2\" && cpio --quiet -id)";
            run(Command::new("sh").args(["-c", script, "sh"]).args([at, copy.path()]).arg(format));
            run(Command::new("diff").arg("-r").args([at, copy.path()]));
            for layer in ["a", "b", "c"] {
                for number in 0..4 {
                    let stat = |name: String| std::fs::metadata(copy.path().join(name)).unwrap();
                    let [file, link] = [stat(format!("{layer}/{number}")), stat(format!("{layer}/link{number}"))];
                    assert_eq!((file.ino(), file.nlink()), (link.ino(), 2), "{format}: {layer}/{number}");
                }
            }
        }
    });
}

/// Mounts one image after the other on the same place and calls `look` with the mount point and 1 or 2.
fn one_after_the_other(sandbox: &Sandbox, mut look: impl FnMut(&Path, usize)) {
    for (number, image) in (1..).zip(twins()) {
        let registry = serve(&image);
        let at = sandbox.mount(&registry.reference("library/image", "1"), "a");
        look(&at.path, number);
        at.unmount();
    }
}

/// The ctime of a file that may differ changes in seconds and nanoseconds, and is shortly after its mtime.
#[test]
fn another_image_on_a_mount_point_looks_changed() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut seen: Vec<BTreeMap<PathBuf, (u64, i64, i64)>> = Vec::new();
    one_after_the_other(&sandbox, |at, _| {
        let all = identities(at);
        for path in all.keys() {
            let stat = std::fs::symlink_metadata(at.join(path)).unwrap();
            let after = stat.ctime() - stat.mtime();
            assert!((1..86_400).contains(&after), "{}: {after} s after its mtime", path.display());
        }
        seen.push(all);
    });
    let [one, two] = &seen[..] else { unreachable!() };
    let of = |path: &str| (one[Path::new(path)], two[Path::new(path)]);
    let (before, after) = of("base/same");
    assert_eq!(before, after, "its layer is the same");
    for path in ["app/setting", "app", "base", ""] {
        let (before, after) = of(path);
        assert_eq!(before.0, after.0, "{path}: the number alone does not tell");
        assert!(before.1 != after.1 && before.2 != after.2, "{path}: {before:?}, {after:?}");
    }
}

fn outcome(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Without nanoseconds, as git is built.
#[test]
fn git_sees_what_another_image_has_changed() {
    if cannot_mount() || is_missing("git") {
        return;
    }
    let sandbox = Sandbox::new();
    let git = |at: &Path, args: &[&str]| {
        let mut command = Command::new("git");
        command.env("HOME", sandbox.path()).env("GIT_CONFIG_NOSYSTEM", "1").args(["-c", "safe.directory=*"]);
        command.arg("--git-dir").arg(sandbox.path().join("git")).arg("--work-tree").arg(at).args(args);
        outcome(&command.current_dir(at).output().unwrap())
    };
    one_after_the_other(&sandbox, |at, number| {
        if number == 1 {
            git(at, &["init", "-q"]);
            git(at, &["add", "."]);
            assert!(!git(at, &["status", "--porcelain"]).contains(" M"));
        } else {
            let status = git(at, &["status", "--porcelain"]);
            let changed: Vec<&str> = status.lines().filter(|line| line.as_bytes()[1] != b' ').collect();
            assert_eq!(changed, ["AD app/only1", "AM app/setting", "?? app/only2"]);
        }
    });
}

#[test]
fn restic_backs_up_what_another_image_has_changed() {
    if cannot_mount() || is_restic_missing() {
        return;
    }
    let sandbox = Sandbox::new();
    let restic = |args: &[&str]| {
        let mut command = Command::new("restic");
        command.env("HOME", sandbox.path()).env("RESTIC_PASSWORD", "x").arg("--repo").arg(sandbox.path().join("repo"));
        outcome(&command.args(args).output().unwrap())
    };
    restic(&["init"]);
    one_after_the_other(&sandbox, |at, number| {
        let at = at.to_str().unwrap();
        restic(&["backup", at]);
        let dumped = restic(&["dump", "latest", &format!("{at}/app/setting")]);
        assert_eq!(dumped, format!("setting v{number}"));
    });
}

/// It has no `--version`.
fn is_restic_missing() -> bool {
    let missing = Command::new("restic").arg("version").output().is_err();
    if missing {
        eprintln!("skipped: needs restic");
    }
    missing
}

#[test]
fn borg_backs_up_what_another_image_has_changed() {
    if cannot_mount() || is_missing("borg") {
        return;
    }
    let sandbox = Sandbox::new();
    let borg = |args: &[&str]| {
        let mut command = Command::new("borg");
        command.env("HOME", sandbox.path()).env("BORG_REPO", sandbox.path().join("repo"));
        command.env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes").args(args);
        outcome(&command.current_dir(sandbox.path()).output().unwrap())
    };
    borg(&["init", "--encryption=none"]);
    one_after_the_other(&sandbox, |at, number| {
        let (archive, at) = (format!("::{number}"), at.to_str().unwrap());
        borg(&["create", &archive, at]);
        let setting = format!("{at}/app/setting");
        let extracted = borg(&["extract", "--stdout", &archive, setting.trim_start_matches('/')]);
        assert_eq!(extracted, format!("setting v{number}"));
    });
}
