//! Other programs: container runtimes, and engines that take images from peelfs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::check::Check;
use crate::runtime;

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![match runtime::find(None) {
        Ok(path) => Check::ok("container runtime", path.display()),
        Err(report) => Check::missing("container runtime", report.message)
            .costs("`peelfs run` does not work, and bundles have no program to run them")
            .remedy(install("crun", "crun")),
    }];
    for (engine, how) in ENGINES {
        // Not having an engine costs nothing.
        checks.extend(find(engine).map(|path| Check::ok(engine, format!("{}; {how}", path.display()))));
    }
    checks
}

/// Where a program is: in PATH, or where only root's PATH looks.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    directories.filter(|directory| directory.is_absolute()).map(|directory| directory.join(program)).find(is_program)
}

/// How packages are installed here, by their names in Debian and in Fedora.
pub(super) fn install(debian: &str, fedora: &str) -> String {
    let has = |program: &str| Path::new("/usr/bin").join(program).exists();
    match (has("apt-get"), has("dnf")) {
        (true, _) => format!("`apt install {debian}`"),
        (false, true) => format!("`dnf install {fedora}`"),
        (false, false) => format!("install {fedora} (Debian: `apt install {debian}`; Fedora: `dnf install {fedora}`)"),
    }
}

/// Engines, and how they use peelfs.
const ENGINES: [(&str, &str); 5] = [
    ("podman", "takes images from `peelfs store`"),
    ("buildah", "takes images from `peelfs store`"),
    ("crio", "takes images from `peelfs store`"),
    ("containerd", "takes images from `peelfs snapshotter`"),
    ("kubelet", "mounts volumes of `peelfs csi`"),
];
