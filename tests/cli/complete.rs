//! Completion at the prompt of real shells, and what the program says of itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output};

use peelfs_loopback::registry::{Catalog, Registry};
use support::sandbox::{Sandbox, cannot_mount, is_missing, program, said};

use crate::commands::small;
use crate::look::{collect, documented_fields};

/// A shell in a directory, whose PATH leads to the program first.
fn shell(sandbox: &Sandbox, name: &str, at: &Path, line: &str) -> Output {
    let plain = sandbox.peelfs([""; 0]);
    let mut path = OsString::from(program().parent().unwrap());
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(name);
    command.args(["-c", line]).current_dir(at).env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("PATH", path).output().unwrap()
}

/// What bash makes of the last of these words.
fn in_bash(sandbox: &Sandbox, at: &Path, words: &[&str]) -> Vec<String> {
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!(
        r#"source <(peelfs completions bash)
        COMP_WORDS=({}) COMP_CWORD={} COMP_TYPE=9
        _clap_complete_peelfs peelfs '{}' x
        printf '%s\n' "${{COMPREPLY[@]}}""#,
        quoted.join(" "),
        words.len() - 1,
        words.last().unwrap()
    );
    let output = shell(sandbox, "bash", at, &line);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn commands_and_options_are_completed() {
    let sandbox = Sandbox::new();
    let here = sandbox.path();
    assert_eq!(in_bash(&sandbox, here, &["peelfs", "umo"]), ["umount"]);
    assert_eq!(in_bash(&sandbox, here, &["peelfs", "umount", "--la"]), ["--lazy"]);
    assert_eq!(in_bash(&sandbox, here, &["peelfs", "mount", "--kernel", "al"]), ["always"]);
    std::fs::create_dir(here.join("directory")).unwrap();
    assert_eq!(in_bash(&sandbox, here, &["peelfs", "mount", "alpine", "dire"]), ["directory/"]);
}

#[test]
fn images_that_were_used_are_completed() {
    let registry = Registry::start(Catalog::new().image("library/app", "1", &small())).unwrap();
    let (sandbox, reference) = (Sandbox::new(), registry.reference("library/app", "1"));
    assert!(sandbox.run(["ls", &reference]).status.success());
    let here = sandbox.path();
    for words in [&["peelfs", "mount", "127.0"][..], &["peelfs", "ls", "-l", "127.0"], &["peelfs", "doctor", "127"]] {
        assert_eq!(in_bash(&sandbox, here, words), [&*reference], "{words:?}");
    }
    assert_eq!(in_bash(&sandbox, here, &["peelfs", "profile", "fo"]), ["forget"]);
    std::fs::write(here.join("ca.pem"), "").unwrap();
    assert_eq!(in_bash(&sandbox, here, &["peelfs", "ls", "--ca", "ca."]), ["ca.pem"]);
}

#[test]
fn mount_points_are_completed() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let layout = sandbox.path().join("layout");
    small().write_layout(&layout, "1").unwrap();
    let reference = format!("oci:{}:1", layout.display());
    let (a, b) = (sandbox.mount(&reference, "one"), sandbox.mount(&reference, "other"));
    sandbox.mount_point("no-mount");
    let here = sandbox.path().join("mnt");
    for command in ["umount", "status", "upgrade"] {
        // Other tests mount elsewhere.
        let found = in_bash(&sandbox, &here, &["peelfs", command, ""]);
        let own: Vec<_> = found.iter().filter(|found| !found.starts_with('/')).collect();
        assert!(own.contains(&&"one".to_owned()) && own.contains(&&"other".to_owned()), "{command}: {found:?}");
        assert!(!own.contains(&&"no-mount".to_owned()), "{command}: {found:?}");
    }
    assert_eq!(in_bash(&sandbox, &here, &["peelfs", "umount", "./ot"]), ["./other"]);
    let absolute = a.path.to_str().unwrap();
    assert_eq!(in_bash(&sandbox, Path::new("/"), &["peelfs", "status", absolute]), [absolute]);
    if !is_missing("fish") {
        let output = shell(&sandbox, "fish", &here, "peelfs completions fish | source; complete -C 'peelfs umount o'");
        let said = said(&output);
        assert!(said.contains("\none\t") && said.contains("\nother\t") && said.contains(&reference), "{said}");
    }
    drop((a, b));
}

/// In an interactive zsh, which loads the script at the first TAB.
#[test]
fn zsh_completes_at_the_first_try() {
    if is_missing("zsh") {
        return;
    }
    let sandbox = Sandbox::new();
    let line = r#"
        mkdir functions && peelfs completions zsh > functions/_peelfs && zsh -n functions/_peelfs || exit
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "fpath=($PWD/functions \$fpath); autoload -Uz compinit; compinit -D -u; PS1='re''ady> '"
        zpty -r shell shown '*ready> *'
        zpty -n -w shell $'peelfs umou\t'
        zpty -r shell shown '*umount *'
        zpty -d shell
        print -r -- $shown"#;
    let output = shell(&sandbox, "zsh", sandbox.path(), line);
    assert!(output.status.success() && said(&output).contains("umount "), "{}", said(&output));
}

#[test]
fn the_version_tells_how_it_was_built() {
    let sandbox = Sandbox::new();
    let output = |line: &[&str]| String::from_utf8(sandbox.run(line).stdout).unwrap();
    let short = output(&["--version"]);
    assert_eq!(short, format!("peelfs {}\n", env!("CARGO_PKG_VERSION")));
    let long = output(&["version"]);
    assert!(long.starts_with(&short) && long.contains("FUSE passthrough (Linux 6.9)"), "{long}");
    let json: serde_json::Value = serde_json::from_str(&output(&["version", "--json"])).unwrap();
    if let Some(commit) = json["commit"].as_str() {
        assert!(commit.len() >= 7 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()), "{commit}");
    }
    let mut fields = BTreeSet::from(["commit".to_owned()]);
    collect("", &json, &mut fields);
    assert_eq!(documented_fields()["version"], fields);
}
