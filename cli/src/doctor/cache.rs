//! The cache directory: whose it is, on what file system, with how much room, in what state.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::Access;

use super::cache_dir;
use super::check::Check;
use crate::args::CacheDirArgs;
use crate::text;
use peelfs::content::glance_at_layer;
use peelfs::erofs;
use peelfs::fuse::mounts;
use peelfs::host::report::Report;
use peelfs::store::{NoVerity, Store, StoreError, is_verified_by_kernel};

pub(super) fn checks(args: &CacheDirArgs) -> Vec<Check> {
    let dir = match cache_dir(args) {
        Ok(dir) => dir,
        Err(report) => return vec![Check::failed(NAME, report).costs("nothing can be mounted").needed()],
    };
    let store = match Store::open_existing(&dir, args.cache_size) {
        Ok(store) => store,
        Err(error) => return vec![unusable(&dir, error)],
    };
    // What it would be made in.
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if let Some(kind) = kind_of(there).filter(|kind| NO_FILES.contains(&&**kind)) {
        let found =
            format!("{} cannot be made: {} is of type {kind}, where no files can be", dir.display(), there.display());
        return vec![unwritable(found)];
    }
    let mut checks = vec![writable(&dir, there)];
    checks.extend(file_system(there));
    checks.extend(verity(there));
    checks.extend(room(there, args.cache_size));
    checks.extend(formats(&store));
    checks.push(damage(&store));
    checks
}

fn unusable(dir: &Path, error: StoreError) -> Check {
    let others_may_write = matches!(error, StoreError::Unsafe { .. });
    let check = Check::failed(NAME, Report::from(error)).costs("nothing can be mounted").needed();
    let shown = dir.display();
    match others_may_write {
        true => check.remedy(format!("`chmod go-w {shown}` if it is yours, or choose another one with `--cache-dir`")),
        false => check,
    }
}

fn writable(dir: &Path, there: &Path) -> Check {
    let shown = dir.display();
    match rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if there == dir => Check::ok(NAME, format!("{shown}, writable")),
        Ok(()) => Check::ok(NAME, format!("{shown}, made when it is needed")),
        Err(errno) => unwritable(format!("{shown} cannot be written to: {errno}")),
    }
}

fn unwritable(found: String) -> Check {
    Check::broken(NAME, found)
        .costs("nothing is cached: each mount reads its layers again")
        .remedy("choose another one with `--cache-dir`")
}

/// The type of the file system at `there`.
fn kind_of(there: &Path) -> Option<String> {
    let real = there.canonicalize().ok()?;
    let mounted = mounts::all().into_iter().rev().filter(|mount| real.starts_with(&mount.path));
    Some(mounted.max_by_key(|mount| mount.path.components().count())?.kind.to_string())
}

fn file_system(there: &Path) -> Option<Check> {
    let name = "file system";
    let kind = kind_of(there)?;
    let opened = File::open(there).ok();
    let costs = match (&*kind, opened.as_ref().and_then(erofs::file_system_without_read_folio)) {
        ("tmpfs", _) => "the cache is gone after a restart and takes memory, and `--kernel` does not work",
        (_, Some(_)) => "`--kernel` and `--passthrough` do not work",
        ("nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "ceph", _) => {
            "reads wait for another machine, and its locks decide whether a layer is read twice"
        }
        (fuse, _) if fuse.starts_with("fuse") => {
            "reads pass through another process; `--kernel` and `--passthrough` may not work"
        }
        _ => return Some(Check::ok(name, kind)),
    };
    Some(Check::broken(name, kind).costs(costs).remedy("put the cache on a local disk with `--cache-dir`"))
}

/// Whether the kernel can verify files there.
fn verity(there: &Path) -> Option<Check> {
    let name = "fs-verity";
    match is_verified_by_kernel(&File::open(there).ok()?) {
        Ok(()) | Err(NoVerity::NotEnabled | NoVerity::Busy) => {
            Some(Check::ok(name, "the kernel can verify what it reads in mounts by the kernel"))
        }
        Err(error @ (NoVerity::Unsupported | NoVerity::Refused(_))) => Some(
            Check::missing(name, peelfs::image::chain(&error))
                .costs("`--kernel`: all content is compared again after a restart, and a disk that returns wrong bytes later is not noticed")
                .remedy("`tune2fs -O verity` for ext4, on a kernel with CONFIG_FS_VERITY; Btrfs has it"),
        ),
    }
}

fn room(there: &Path, limit: Option<u64>) -> Option<Check> {
    let found = rustix::fs::statvfs(there).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let of = limit.map_or("no limit".to_owned(), |limit| format!("limit {}", text::size(limit)));
    let check = match free {
        LEAST_ROOM.. => Check::ok("room", format!("{} free; {of}", text::size(free))),
        _ => Check::broken("room", format!("{} free", text::size(free)))
            .costs("layers that do not fit are read again by each mount")
            .remedy("`peelfs cache prune --content`, or another disk with `--cache-dir`"),
    };
    // Some file systems have no fixed number of inodes.
    let few = found.f_files > 0 && found.f_favail < LEAST_INODES;
    Some(match few {
        true => Check::broken("room", format!("{} inodes free", found.f_favail))
            .costs("layers that do not fit are read again by each mount")
            .remedy("remove small files from that disk, or choose another one with `--cache-dir`"),
        false => check,
    })
}

fn formats(store: &Store) -> Option<Check> {
    let others = store.other_formats().ok().filter(|others| !others.is_empty())?;
    let names: Vec<_> = others.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    let check = Check::broken("format", format!("{} of another release", names.join(", ")));
    Some(check.costs("disk space; this release does not read it").remedy("`peelfs cache prune` removes it"))
}

/// Looks at the footers of indexes, for a second at most.
fn damage(store: &Store) -> Check {
    let (name, begun) = ("content", Instant::now());
    let usage = match store.usage() {
        Ok(usage) => usage,
        Err(error) => return Check::failed(name, error.into()).costs("what cannot be read is fetched again"),
    };
    let layers = usage.layers.len();
    let (mut seen, mut damaged) = (0, Vec::new());
    for layer in usage.layers.iter().take_while(|_| begun.elapsed() < PATIENCE) {
        seen += 1;
        damaged
            .extend(glance_at_layer(store, &layer.digest).map(|why| format!("layer {}: {why}", layer.digest.short())));
    }
    let all = format!("{}, {}", text::count(layers as u64, "layer"), text::size(usage.layer_bytes()));
    match damaged.first() {
        None if seen == layers => Check::ok(name, all),
        None => Check::ok(name, format!("{all}; {seen} looked at")),
        Some(first) => Check::broken(name, format!("{} of {all} damaged: {first}", damaged.len()))
            .costs("damaged layers are read again")
            .remedy("`peelfs cache verify` finds and removes all damage"),
    }
}

const NAME: &str = "directory";
/// File systems of the kernel's own.
const NO_FILES: [&str; 12] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "devpts",
    "debugfs",
    "tracefs",
    "securityfs",
    "bpf",
    "mqueue",
    "configfs",
    "pstore",
];
/// In bytes; a small image.
const LEAST_ROOM: u64 = 1 << 30;
const LEAST_INODES: u64 = 1000;
const PATIENCE: Duration = Duration::from_secs(1);
