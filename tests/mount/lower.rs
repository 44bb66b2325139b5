//! Mounts as the lower directory of an overlay that users lay over them: an image cannot steer it, and its options work.

use std::path::Path;
use std::process::{Command, Output};

use super::*;

/// The ways in which a mount comes to be.
const WAYS: [&[&str]; 3] = [&[], &["--kernel=always", "--allow-other"], &["--layer=1"]];

/// Runs a script in a mount namespace of its own: nothing that it mounts is left. `$1` is the mount of the image.
fn script(sandbox: &Sandbox, text: &str, at: &Path, more: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", text, "sh"]).arg(at).args(more).current_dir(sandbox.path());
    command.output().unwrap()
}

/// Every attribute by which overlayfs is told of something, in both of its name spaces; below the image lies a directory
/// of the machine.
#[test]
fn an_image_does_not_steer_an_overlay_that_lies_on_it() {
    let told = |entry: Entry, name: &str, value: &str| {
        let both = entry.xattr(format!("trusted.overlay.{name}"), value);
        both.xattr(format!("user.overlay.{name}"), value)
    };
    let entries = [
        told(Entry::dir("opaque"), "opaque", "y"),
        Entry::file("opaque/own", ""),
        told(Entry::dir("moved"), "redirect", "/secret"),
        told(told(Entry::file("data", "own"), "metacopy", ""), "redirect", "/secret/file"),
        told(Entry::dir("whiteouts"), "opaque", "x"),
        told(Entry::file("whiteouts/gone", ""), "whiteout", "y"),
        told(Entry::file("escaped", "own"), "overlay.opaque", "y").xattr("user.other", "1"),
    ];
    if cannot_mount() || is_missing("getfattr") {
        return;
    }
    let registry = serve(&packed(&[entries.to_vec()], &[Packing::GZIP], Family::Oci));
    let sandbox = Sandbox::new();
    let below = sandbox.path().join("below");
    for (path, text) in [("opaque/below", ""), ("secret/file", "not for the image"), ("whiteouts/below", "")] {
        std::fs::create_dir_all(below.join(path).parent().unwrap()).unwrap();
        std::fs::write(below.join(path), text).unwrap();
    }
    let wanted = "below own \nown\nbelow gone \nuser.other\n";
    for way in WAYS {
        let at = sandbox.mount_with(&registry.reference("library/image", "1"), "m", way);
        for options in ["metacopy=on,redirect_dir=on", "userxattr"] {
            let text = r#"
                mkdir -p upper; mount -t tmpfs tmpfs upper; mkdir upper/d upper/w upper/m
                mount -t overlay overlay -o "lowerdir=$1:below,upperdir=upper/d,workdir=upper/w,$2" upper/m
                cd upper/m
                ls opaque | tr '\n' ' '; echo
                ls moved
                cat data; echo
                ls whiteouts | tr '\n' ' '; echo
                getfattr -m - escaped | grep overlay || getfattr -m - escaped | grep user
            "#;
            let output = script(&sandbox, text, &at.path, &[options]);
            assert_eq!(String::from_utf8_lossy(&output.stdout), wanted, "{way:?} {options}: {}", said(&output));
        }
        at.unmount();
    }
}

/// Reads, writes, copies up, renames and removes with each option; what was written is there when the image and the overlay
/// are mounted anew.
#[test]
fn options_of_overlayfs_work_over_a_mount() {
    if cannot_mount() {
        return;
    }
    let entries = [
        Entry::dir("d"),
        Entry::file("d/f", "one\n"),
        Entry::hard_link("d/g", "d/f"),
        Entry::dir("e"),
        Entry::file("e/h", "two\n"),
    ];
    let registry = serve(&packed(&[entries.to_vec()], &[Packing::GZIP], Family::Oci));
    let sandbox = Sandbox::new();
    let uppers = sandbox.path().join("uppers");
    std::fs::create_dir(&uppers).unwrap();
    let mount = |at: &Path, number: usize, options: &str, work: &str| {
        let text = format!(
            "mkdir -p uppers/$2/d uppers/$2/w uppers/$2/m
            mount -t overlay overlay -o \"lowerdir=$1,upperdir=uppers/$2/d,workdir=uppers/$2/w,$3\" uppers/$2/m
            cd uppers/$2/m\n{work}"
        );
        script(&sandbox, &text, at, &[&number.to_string(), options])
    };
    let options = [
        "redirect_dir=nofollow",
        "index=on",
        "index=on,nfs_export=on",
        "metacopy=on",
        "metacopy=on,verity=on",
        "redirect_dir=on",
        "xino=on",
        "xino=auto",
        "uuid=null",
        "userxattr",
        "volatile",
    ];
    let mut number = 0;
    for way in WAYS {
        for options in options {
            number += 1;
            let at = sandbox.mount_with(&registry.reference("library/image", "1"), "m", way);
            let work = "cat d/f; echo more >> d/f; chmod 600 e/h; cat e/h; mv e moved; rm d/g; stat -c %a moved/h";
            let output = mount(&at.path, number, options, work);
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                "one\ntwo\n600\n",
                "{way:?} {options}: {}",
                said(&output)
            );
            at.unmount();
            let at = sandbox.mount_with(&registry.reference("library/image", "1"), "m", way);
            let again = mount(&at.path, number, options, "cat d/f moved/h; ls . d | tr '\\n' ' '");
            if options == "volatile" {
                assert!(!again.status.success(), "the kernel refuses it, as over any lower directory");
            } else {
                let wanted = "one\nmore\ntwo\n.: d moved  d: f ";
                assert_eq!(String::from_utf8_lossy(&again.stdout), wanted, "{way:?} {options}: {}", said(&again));
            }
            at.unmount();
        }
    }
}
