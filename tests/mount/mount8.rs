//! mount(8): with the helpers that `make install` installs, and with mount.fuse(8) without them.

use std::path::Path;
use std::process::{Command, Output};

use super::{run, serve, small};
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};

/// Runs a script in a mount namespace of its own; `$1` and so on are `words`.
fn in_namespace(sandbox: &Sandbox, script: &str, words: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"]).args(words);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", sandbox.path().join("home")).env("XDG_RUNTIME_DIR", sandbox.path().join("run"));
    command.env("PEELFS_CACHE_DIR", sandbox.cache()).output().unwrap()
}

/// Installs below a directory of its own; returns that.
fn install(sandbox: &Sandbox, prefix: &str) -> std::path::PathBuf {
    let (built, stage) = (sandbox.path().join("built"), sandbox.path().join("stage"));
    for name in ["release", "man", "completions"] {
        std::fs::create_dir_all(built.join(name)).unwrap();
    }
    std::fs::copy(support::sandbox::program(), built.join("release/peelfs")).unwrap();
    for name in ["man/peelfs.1", "completions/bash", "completions/zsh", "completions/fish"] {
        std::fs::write(built.join(name), "").unwrap();
    }
    make("install", &built, &stage, prefix);
    stage
}

/// As `make` does it, but for the building.
fn make(what: &str, built: &Path, stage: &Path, prefix: &str) {
    let mut command = Command::new("make");
    command
        .args(["-s", "-o", "man", what])
        .arg(format!("PREFIX={prefix}"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.arg(format!("TARGET={}", built.display())).arg(format!("DESTDIR={}", stage.display()));
    run(command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL"));
}

fn files(dir: &Path) -> Vec<String> {
    let found =
        Command::new("find").arg(dir).args(["(", "-type", "f", "-o", "-type", "l", ")", "-printf", "%P\\n"]).output();
    let mut names: Vec<_> = String::from_utf8(found.unwrap().stdout).unwrap().lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn helpers_are_installed_where_mount_looks_and_uninstalled() {
    if is_missing("make") {
        return;
    }
    let sandbox = Sandbox::new();
    let stage = install(&sandbox, "/opt/peelfs");
    let wanted = [
        "opt/peelfs/bin/peelfs",
        "opt/peelfs/lib/systemd/system/peelfs-snapshotter.service",
        "opt/peelfs/lib/systemd/system/peelfs-snapshotter.socket",
        "opt/peelfs/sbin/mount.fuse.peelfs",
        "opt/peelfs/sbin/mount.peelfs",
        "opt/peelfs/share/bash-completion/completions/peelfs",
        "opt/peelfs/share/fish/vendor_completions.d/peelfs.fish",
        "opt/peelfs/share/man/man1/peelfs.1",
        "opt/peelfs/share/zsh/site-functions/_peelfs",
        "sbin/mount.fuse.peelfs",
        "sbin/mount.peelfs",
    ];
    assert_eq!(files(&stage), wanted);
    for name in ["mount.peelfs", "mount.fuse.peelfs"] {
        let link = std::fs::read_link(stage.join("sbin").join(name)).unwrap();
        assert_eq!(link, Path::new("/opt/peelfs/sbin/mount.peelfs"));
    }
    let script = std::fs::read_to_string(stage.join("opt/peelfs/sbin/mount.peelfs")).unwrap();
    assert!(script.contains("bin=/opt/peelfs/bin"), "{script}");
    // A helper of another installation is kept.
    std::fs::remove_file(stage.join("sbin/mount.peelfs")).unwrap();
    std::os::unix::fs::symlink("/usr/sbin/mount.peelfs", stage.join("sbin/mount.peelfs")).unwrap();
    make("uninstall", &sandbox.path().join("built"), &stage, "/opt/peelfs");
    assert_eq!(files(&stage), ["sbin/mount.peelfs"]);
}

/// What is installed lies over this machine's directories, in a namespace of its own.
const INSTALLED: &str = r#"
    stage=$1 image=$2 at=$3
    mount -t overlay none -o "lowerdir=$stage/sbin:$(realpath /sbin)" "$(realpath /sbin)"
    mkdir -p /usr/local
    mount --bind "$stage/usr/local" /usr/local
"#;

#[test]
fn mount_takes_both_types_and_answers_a_remount_in_one_line() {
    if cannot_mount() || is_missing("unshare") || is_missing("make") {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), serve(&small()));
    let (stage, at) = (install(&sandbox, "/usr/local"), sandbox.mount_point("a"));
    let script = format!(
        "{INSTALLED}{}",
        r#"
        for type in peelfs fuse.peelfs; do
            # As mount(8) is called by systemd: with no PATH that leads to the program.
            env PATH=/usr/sbin:/usr/bin:/sbin:/bin mount -t $type "$image" "$at" -o noatime,x-test,wait
            cat "$at/d/f"
            findmnt -n -o FSTYPE,SOURCE "$at"
            for options in remount remount,ro remount,rw; do
                echo "-- $options"
                mount -o $options "$at" 2>&1 && echo 'it was remounted' || echo "-- exit $?"
            done
            umount "$at"
        done
        echo "$image $at peelfs ro,wait 0 0" > "$stage/fstab"
        mount -T "$stage/fstab" "$at"
        cat "$at/d/f"
        umount "$at"
        echo "$image $at peelfs rw,writable=$stage/upper 0 0" > "$stage/fstab"
        mount -T "$stage/fstab" "$at"
        printf ' changed' > "$at/d/f"
        umount "$at" && umount "$at"
        mount -T "$stage/fstab" "$at"
        cat "$at/d/f"
        umount "$at" && umount "$at"
        mount -t peelfs "$image" "$at" -o ephemeral
        printf ' changed' > "$at/d/f"
        umount "$at"
        cat "$at/d/f"
        umount "$at"
        mount -f -t peelfs "$image" "$at"
        mountpoint -q "$at" || echo ' not in a rehearsal'
        "#
    );
    let image = registry.reference("library/image", "1");
    let output = in_namespace(&sandbox, &script, &[stage.to_str().unwrap(), &image, at.path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let told = String::from_utf8(output.stdout).unwrap();
    let refused =
        "error: a mount of an image is read-only and cannot be remounted: unmount it, and mount it with other options";
    let remounts: String =
        ["remount", "remount,ro", "remount,rw"].map(|how| format!("-- {how}\n{refused}\n-- exit 2\n")).concat();
    let each = format!("contentfuse.peelfs {image}\n{remounts}");
    assert_eq!(told, format!("{each}{each}content changedcontent not in a rehearsal\n"));
}

/// mount.fuse(8) calls `peelfs IMAGE DIR -o OPTIONS`.
#[test]
fn mount_needs_no_helper_where_mount_fuse_is() {
    if cannot_mount() || is_missing("unshare") || is_missing("make") || is_missing("mount.fuse3") {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), serve(&small()));
    let at = sandbox.mount_point("a");
    let stage = install(&sandbox, "/usr/local");
    let script = r#"
        mkdir -p /usr/local
        mount --bind "$1/usr/local" /usr/local
        mount -t fuse.peelfs "$2" "$3" -o ro,noexec
        cat "$3/d/f"
        mount -o remount,rw "$3" 2>&1 || echo "-- exit $?"
        umount "$3"
        peelfs "$2" "$3"
        cat "$3/d/f"
        umount "$3"
    "#;
    let image = registry.reference("library/image", "1");
    let output = in_namespace(&sandbox, script, &[stage.to_str().unwrap(), &image, at.path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(told.matches("content").count(), 2, "{told}");
    assert_eq!(told.matches("cannot be remounted").count(), 1, "{told}");
}
