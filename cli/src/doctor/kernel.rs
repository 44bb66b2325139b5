//! What the kernel offers, and settings of it that end or slow mounts.

use std::path::Path;

use super::check::Check;
use peelfs::erofs;
use peelfs::fuse::{MountError, Offers};

pub(super) fn checks(offers: Option<&Offers>) -> Vec<Check> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let mut checks = vec![Check::ok("Linux", &release)];
    match offers {
        Some(offers) => checks.extend([take_over(offers), passthrough(offers), owners(offers)]),
        None => checks.push(Check::missing("FUSE features", "unknown, as nothing can be mounted")),
    }
    checks.push(kernel_mounts(&release));
    checks.extend(settings(Path::new("/proc/sys")));
    checks
}

fn take_over(offers: &Offers) -> Check {
    let name = "take-over";
    match offers.resends {
        true => Check::ok(name, "a mount survives the death of its process"),
        false => Check::missing(name, "the kernel does not resend requests")
            .costs("a mount ends with its process, and `peelfs upgrade` does not work")
            .remedy("Linux 6.9 or later"),
    }
}

fn passthrough(offers: &Offers) -> Check {
    let name = "passthrough";
    let costs = "`--passthrough`: large files are read through the serving process";
    match &offers.passthrough {
        Some(Ok(())) => Check::ok(name, "the kernel can read large files directly"),
        None => Check::missing(name, "not tried, as the cache has no room for a file").costs(costs),
        Some(Err(MountError::NoPassthrough)) => {
            Check::missing(name, MountError::NoPassthrough).costs(costs).remedy("Linux 6.9 or later")
        }
        Some(Err(MountError::RefusedPassthrough(cause))) if cause.kind() == std::io::ErrorKind::PermissionDenied => {
            Check::missing(name, "only root outside of containers may use it").costs(costs).remedy("mount as root")
        }
        Some(Err(MountError::RefusedPassthrough(cause))) => {
            Check::missing(name, format!("refused: {cause}")).costs(costs).remedy(
                "put the cache on a disk file system with `--cache-dir`; overlayfs and other stacked ones do not do",
            )
        }
        Some(Err(error)) => Check::broken(name, error).costs(costs),
    }
}

fn owners(offers: &Offers) -> Check {
    let name = "idmapped mounts";
    match offers.idmap {
        true => Check::ok(name, "owners can be mapped in clones of a mount"),
        false => Check::missing(name, "not for FUSE")
            .costs("programs that map owners of a mount, such as `podman run --userns` and Kubernetes' user namespaces")
            .remedy("Linux 6.12 or later"),
    }
}

fn kernel_mounts(release: &str) -> Check {
    let name = "EROFS from files";
    let costs = "`--kernel`: a process serves the mount";
    match erofs::is_possible() {
        Err(error @ erofs::AttachError::NotAllowed) => {
            Check::missing(name, peelfs::image::chain(&error)).costs(costs).remedy("mount as root")
        }
        Err(error) => Check::missing(name, peelfs::image::chain(&error))
            .costs(costs)
            .remedy("`modprobe erofs`, or a kernel with CONFIG_EROFS_FS"),
        Ok(()) if !is_at_least(release, (6, 12)) => Check::missing(name, "the kernel mounts EROFS from devices only")
            .costs(costs)
            .remedy("Linux 6.12 or later, with CONFIG_EROFS_FS_BACKED_BY_FILE"),
        Ok(()) => Check::ok(name, "the kernel can mount images that are cached"),
    }
}

/// Whether a release such as `6.12.5-amd64` is this version or a later one. One that is unknown is.
fn is_at_least(release: &str, (major, minor): (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(own_major), Some(own_minor)) => (own_major, own_minor) >= (major, minor),
        _ => true,
    }
}

/// Settings below `sysctls`, which is `/proc/sys`.
fn settings(sysctls: &Path) -> Vec<Check> {
    let number = |name: &str| -> Option<u64> {
        std::fs::read_to_string(sysctls.join(name.replace('.', "/"))).ok()?.trim().parse().ok()
    };
    let mut checks = Vec::new();
    let (default, most) = (number(DEFAULT_TIMEOUT).unwrap_or(0), number(MAX_TIMEOUT).unwrap_or(0));
    // The kernel takes the smaller one, and either alone.
    checks.push(match [default, most].into_iter().filter(|seconds| *seconds > 0).min() {
        None => Check::ok("request timeout", "none"),
        Some(seconds) => Check::broken("request timeout", format!("{seconds} s ({DEFAULT_TIMEOUT}, {MAX_TIMEOUT})"))
            .costs(format!("the kernel ends a mount in which a read waits for a registry for {seconds} s"))
            .remedy(format!("as root, `sysctl -w {DEFAULT_TIMEOUT}=0 {MAX_TIMEOUT}=0`")),
    });
    if let Some(pages) = number(PAGES).filter(|pages| *pages < USUAL_PAGES) {
        checks.push(
            Check::broken("request size", format!("{pages} pages ({PAGES})"))
                .costs("large reads take more requests")
                .remedy(format!("as root, `sysctl -w {PAGES}={USUAL_PAGES}`")),
        );
    }
    if let Some(files) = number(OPEN_FILES).filter(|files| *files < LEAST_OPEN_FILES) {
        checks.push(
            Check::broken("files of a process", format!("{files} ({OPEN_FILES})"))
                .costs("mounts of images with many layers open and close files all the time")
                .remedy(format!("as root, `sysctl -w {OPEN_FILES}=1048576`")),
        );
    }
    checks
}

const DEFAULT_TIMEOUT: &str = "fs.fuse.default_request_timeout";
const MAX_TIMEOUT: &str = "fs.fuse.max_request_timeout";
const PAGES: &str = "fs.fuse.max_pages_limit";
/// The kernel's default.
const USUAL_PAGES: u64 = 256;
const OPEN_FILES: &str = "fs.nr_open";
const LEAST_OPEN_FILES: u64 = 4096;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::check::State;
    use super::*;

    fn with(values: &[(&str, u64)]) -> Vec<(String, State, Option<String>)> {
        let root = tempfile::tempdir().unwrap();
        for (name, value) in values {
            let path = root.path().join(name.replace('.', "/"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{value}\n")).unwrap();
        }
        settings(root.path()).into_iter().map(|check| (check.name, check.state, check.costs)).collect()
    }

    #[test]
    fn either_timeout_ends_mounts_and_the_smaller_one_counts() {
        let none = [("request timeout".to_owned(), State::Ok, None)];
        assert_eq!(with(&[]), none, "an older kernel");
        assert_eq!(with(&[(DEFAULT_TIMEOUT, 0), (MAX_TIMEOUT, 0), (PAGES, 256), (OPEN_FILES, 1 << 20)]), none);
        for (default, most, seconds) in [(40, 0, 40), (0, 50, 50), (40, 50, 40), (60, 50, 50)] {
            let found = with(&[(DEFAULT_TIMEOUT, default), (MAX_TIMEOUT, most)]);
            assert_eq!(found[0].1, State::Broken);
            assert!(found[0].2.as_ref().unwrap().ends_with(&format!("for {seconds} s")), "{found:?}");
        }
    }

    #[test]
    fn small_limits_of_the_machine_are_told() {
        let found = with(&[(PAGES, 32), (OPEN_FILES, 1024)]);
        assert!(found.len() == 3 && found[1..].iter().all(|(_, state, _)| *state == State::Broken), "{found:?}");
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert!(
            is_at_least("6.12.0", (6, 12)) && is_at_least("6.18.44-fc", (6, 12)) && is_at_least("7.0-rc1", (6, 12))
        );
        assert!(!is_at_least("6.9.1", (6, 12)) && !is_at_least("5.15.0-1-amd64", (6, 12)));
        assert!(is_at_least("unknown", (6, 12)));
    }
}
