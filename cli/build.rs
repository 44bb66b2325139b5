//! Says of which commit the program is: of `PEELFS_COMMIT`, else of the file that cargo puts into a package, else of the
//! repository around it, read without git. A build that finds none has none.
//!
//! Builds of the profile `dev` do not look at the repository: they would be made anew after every commit.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PEELFS_COMMIT");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let own = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let is_release = variable("PROFILE") == "release";
    let given = Some(variable("PEELFS_COMMIT")).filter(|given| !given.is_empty());
    let commit = given.or_else(|| packaged(&own)).or_else(|| if is_release { checked_out(&own) } else { None });
    let commit = commit.filter(|commit| commit.len() >= 7 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()));
    println!("cargo::rustc-env=PEELFS_COMMIT={}", commit.unwrap_or_default());
    println!("cargo::rustc-env=PEELFS_TARGET={}", variable("TARGET"));
    println!("cargo::rustc-env=PEELFS_PROFILE={}", variable("PROFILE"));
}

/// `"sha1": "…"` in the file of a package from a registry.
fn packaged(own: &Path) -> Option<String> {
    let text = std::fs::read_to_string(own.join(".cargo_vcs_info.json")).ok()?;
    let rest = text.split_once("\"sha1\"")?.1;
    Some(rest.split('"').nth(1)?.to_owned())
}

/// What `HEAD` of the repository names (gitrepository-layout(5)).
fn checked_out(own: &Path) -> Option<String> {
    let git = own.parent()?.join(".git");
    // In a work tree, a file that names the directory.
    let directory = match std::fs::read_to_string(&git) {
        Ok(text) => git.parent()?.join(text.trim().strip_prefix("gitdir: ")?),
        Err(_) => git,
    };
    let common = match std::fs::read_to_string(directory.join("commondir")) {
        Ok(text) => directory.join(text.trim()),
        Err(_) => directory.clone(),
    };
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).ok()?;
        println!("cargo::rerun-if-changed={}", path.display());
        Some(text)
    };
    let head = read(directory.join("HEAD"))?;
    let Some(name) = head.trim().strip_prefix("ref: ") else { return Some(head.trim().to_owned()) };
    if let Some(commit) = read(common.join(name)) {
        return Some(commit.trim().to_owned());
    }
    let packed = read(common.join("packed-refs"))?;
    packed.lines().find_map(|line| line.strip_suffix(name)?.strip_suffix(' ')).map(str::to_owned)
}
