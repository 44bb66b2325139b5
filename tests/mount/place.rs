//! Mount points, and what a mount must not hide.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use peelfs::fuse::mounts;
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{ImageBuilder, LayerBuilder};
use rustix::mount::UnmountFlags;

use super::{run, serve, small};
use support::sandbox::{Sandbox, cannot_mount, said};

/// What is mounted below a directory, uppermost first.
fn mounted_below(dir: &Path) -> Vec<PathBuf> {
    mounts::all().into_iter().rev().map(|mount| mount.path).filter(|path| path.starts_with(dir)).collect()
}

/// Unmounts what a test has mounted itself.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        // Processes that hang there end with it.
        let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH | UnmountFlags::FORCE;
        let _ = rustix::mount::unmount(&self.0, flags);
    }
}

fn bind(from: &Path, to: &Path) -> Unmount {
    run(Command::new("mount").arg("--bind").args([from, to]));
    Unmount(to.to_owned())
}

/// A layout with [`small`] in a directory of its own.
fn layout(sandbox: &Sandbox, name: &str) -> String {
    let path = sandbox.path().join(name);
    small().write_layout(&path, "1").unwrap();
    format!("oci:{}:1", path.display())
}

#[test]
fn a_mount_point_exchanged_meanwhile_mounts_nowhere() {
    if cannot_mount() {
        return;
    }
    for how in [&[][..], &["--share"]] {
        let registry = serve(&small());
        let reference = registry.reference("library/image", "1");
        let sandbox = Sandbox::new();
        let at = sandbox.mount_point("a");
        let (moved, victim) = (at.path.with_file_name("moved"), sandbox.path().join("victim"));
        std::fs::create_dir(&victim).unwrap();
        let gate = Gate::new();
        registry.faults().add(Rule::new(Target::Manifests, Fault::Hang(gate.clone())));
        let output = std::thread::scope(|scope| {
            let mounting = scope.spawn(|| at.try_mount(&reference, how));
            assert!(registry.wait_until(|requests| !requests.is_empty()));
            std::fs::rename(&at.path, &moved).unwrap();
            symlink(&victim, &at.path).unwrap();
            gate.open();
            mounting.join().unwrap()
        });
        assert_eq!(output.status.code(), Some(1), "{how:?}: {}", said(&output));
        assert!(said(&output).contains("was moved or replaced"), "{how:?}: {}", said(&output));
        assert_eq!(mounted_below(sandbox.path()), [] as [PathBuf; 0], "{how:?}");
    }
}

/// A mount on `at` that must be refused because of `what`, for a reason that a user understands.
fn assert_refused(sandbox: &Sandbox, at: &Path, reference: &str, more: &[&str], what: &str) {
    for how in [&[][..], &["--share"], &["--foreground"]] {
        let output = sandbox.peelfs(["mount", reference]).arg(at).args(more).args(how).output().unwrap();
        let case = format!("{} {more:?} {how:?}: {}", at.display(), said(&output));
        if how == ["--foreground"] && more.contains(&"--log-file") {
            continue; // which is refused for another reason
        }
        assert_eq!(output.status.code(), Some(2), "{case}");
        assert!(said(&output).contains(&format!("cannot mount on `{}`", at.display())), "{case}");
        assert!(said(&output).contains(what) && said(&output).contains("hint: mount on another directory"), "{case}");
        assert!(!mounts::all().iter().any(|mount| mount.path == at && mount.is_peelfs()), "{case}");
    }
}

/// The mount point is, contains, or is within the cache, by any path.
#[test]
fn a_mount_over_its_own_cache_is_refused_in_words() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, "layout");
    let path = |name: &str| sandbox.path().join(name);
    for name in ["c/cache/deep", "c/other", "bound", "whole", "part"] {
        std::fs::create_dir_all(path(name)).unwrap();
    }
    symlink("c", path("link")).unwrap();
    let _bound = [
        bind(&path("c/cache"), &path("bound")),
        bind(&path("c"), &path("whole")),
        bind(&path("c/cache/deep"), &path("part")),
    ];
    let cache = path("c/cache");
    let cache = cache.to_str().unwrap();
    for at in ["c/cache", "bound", "link/cache", "whole/cache", "c/other/../cache"] {
        assert_refused(&sandbox, &path(at), &reference, &["--cache-dir", cache], "it is the cache directory");
    }
    for at in ["c", "link", "whole", "."] {
        assert_refused(&sandbox, &path(at), &reference, &["--cache-dir", cache], "below it is the cache directory");
    }
    for at in ["c/cache/deep", "part", "whole/cache/deep"] {
        assert_refused(&sandbox, &path(at), &reference, &["--cache-dir", cache], "it is within the cache directory");
    }
    // One that is yet to be made, and one that is named by another way in.
    let new = path("c/new/cache");
    assert_refused(&sandbox, &path("c"), &reference, &["--cache-dir", new.to_str().unwrap()], "below it is the cache");
    let through = path("link/cache");
    assert_refused(&sandbox, Path::new(cache), &reference, &["--cache-dir", through.to_str().unwrap()], "the cache");
    // Beside it, the mount works.
    let output = sandbox.peelfs(["mount", &reference, "--cache-dir", cache]).arg(path("c/other")).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(sandbox.peelfs(["umount"]).arg(path("c/other")).status().unwrap().success());
}

#[test]
fn a_mount_over_its_image_log_or_logins_is_refused() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let remote = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    let path = |name: &str| sandbox.path().join(name);
    let local = layout(&sandbox, "images/layout");
    assert_refused(&sandbox, &path("images/layout"), &local, &[], "it is the image itself");
    assert_refused(&sandbox, &path("images"), &local, &[], "below it is the image itself");
    assert_refused(&sandbox, &path("images/layout/blobs"), &local, &[], "it is the image itself");

    std::fs::create_dir(path("archives")).unwrap();
    std::fs::rename(path("images/layout"), path("unpacked")).unwrap();
    run(Command::new("tar").arg("-C").arg(path("unpacked")).arg("-cf").arg(path("archives/a.tar")).arg("."));
    let archive = format!("oci-archive:{}", path("archives/a.tar").display());
    assert_refused(&sandbox, &path("archives"), &archive, &[], "below it is the archive");

    std::fs::create_dir(path("logs")).unwrap();
    let log = path("logs/log");
    let log = ["--no-keeper", "--log-file", log.to_str().unwrap()];
    let output = sandbox.peelfs(["mount", &remote]).arg(path("logs")).args(log).output().unwrap();
    assert!(output.status.code() == Some(2) && said(&output).contains("below it is its log"), "{}", said(&output));

    assert_refused(&sandbox, &path("run"), &remote, &[], "the directory of published mounts");
    assert_refused(&sandbox, &path("home"), &remote, &["--cache-dir", "/nonexistent/cache"], "a login file");
    std::fs::create_dir_all(path("keys")).unwrap();
    std::fs::write(path("keys/auth.json"), "{}").unwrap();
    let named = path("keys/auth.json");
    assert_refused(&sandbox, &path("keys"), &remote, &["--authfile", named.to_str().unwrap()], "a login file");
    std::fs::write(path("keys/ca.pem"), "").unwrap();
    let ca = path("keys/ca.pem");
    assert_refused(&sandbox, &path("keys"), &remote, &["--ca", ca.to_str().unwrap()], "a certificate directory");
}

/// Also by a mount that needs nothing of it.
#[test]
fn the_cache_and_image_of_another_mount_are_not_covered() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let path = |name: &str| sandbox.path().join(name);
    let (one, two) = (layout(&sandbox, "one/layout"), layout(&sandbox, "two"));
    let first = sandbox.mount_with(&one, "first", &["--cache-dir", path("caches/one").to_str().unwrap()]);
    let first_at = format!("of the mount on `{}`", first.path.display());
    for at in ["one", "caches", "caches/one"] {
        assert_refused(&sandbox, &path(at), &two, &[], &first_at);
    }
    first.unmount();
    let second = sandbox.peelfs(["mount", &two]).arg(path("one")).output().unwrap();
    assert!(second.status.success(), "{}", said(&second));
    assert!(sandbox.peelfs(["umount"]).arg(path("one")).status().unwrap().success());
}

fn with_directory() -> peelfs_loopback::image::Image {
    ImageBuilder::new().layer(LayerBuilder::new().dir("opt").file("opt/f", "outer").file("top", "outer")).build()
}

/// The mount point is in a read-only tree that another process serves.
#[test]
fn a_mount_below_another_mount_works_and_is_unmounted_first() {
    if cannot_mount() {
        return;
    }
    for how in [&[][..], &["--share"]] {
        let registry = serve(&with_directory());
        registry.push("library/inner", "1", &small());
        let sandbox = Sandbox::new();
        let outer = sandbox.mount_with(&registry.reference("library/image", "1"), "outer", how);
        let at = outer.join("opt");
        let mount = || {
            let inner = registry.reference("library/inner", "1");
            let output = sandbox.peelfs(["mount", "--wait", &inner]).arg(&at).args(how).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
        };
        mount();
        assert_eq!(std::fs::read(at.join("d/f")).unwrap(), b"content");
        let status = sandbox.run(["status"]);
        let told = String::from_utf8_lossy(&status.stdout);
        assert_eq!(told.matches("1 of 1 ready").count(), 2, "{told}");

        let refused = sandbox.peelfs(["umount"]).arg(&outer.path).output().unwrap();
        let (shown, below) = (outer.path.display(), at.display());
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        let message = format!("error: cannot unmount `{shown}`: `{below}` is mounted below it\n");
        let hint = format!("hint: unmount that first: `peelfs umount {below}`\n");
        assert_eq!(String::from_utf8_lossy(&refused.stderr), message + &hint);

        assert!(sandbox.peelfs(["umount"]).arg(&at).status().unwrap().success());
        assert_eq!(std::fs::read(at.join("f")).unwrap(), b"outer");
        mount();
        let both = sandbox.unmount_all();
        assert!(both.status.success() && mounted_below(sandbox.path()).is_empty(), "{}", said(&both));
    }
}

/// The layout is in the image of another mount.
#[test]
fn a_layout_within_a_mount_is_read_by_another_process_only() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let unpacked = sandbox.path().join("unpacked");
    small().write_layout(&unpacked, "1").unwrap();
    let mut layer = LayerBuilder::new().dir("layout");
    let (mut left, mut found) = (vec![unpacked.clone()], Vec::new());
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    for path in found {
        let name = format!("layout/{}", path.strip_prefix(&unpacked).unwrap().display());
        layer = if path.is_dir() { layer.dir(&name) } else { layer.file(&name, std::fs::read(&path).unwrap()) };
    }
    let registry = serve(&ImageBuilder::new().layer(layer).build());
    for (how, own) in [(&[][..], &[][..]), (&["--share"], &[]), (&["--share"], &["--share"])] {
        let outer = sandbox.mount_with(&registry.reference("library/image", "1"), "outer", how);
        let inner = sandbox.mount_point("inner");
        let output =
            inner.try_mount(&format!("oci:{}:1", outer.join("layout").display()), &[&["--wait"], own].concat());
        if own.is_empty() {
            assert!(output.status.success(), "{}", said(&output));
            assert_eq!(std::fs::read(inner.join("d/f")).unwrap(), b"content");
            inner.unmount();
        } else {
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            assert!(said(&output).contains("hint: it is in a mount of the same process"), "{}", said(&output));
        }
        outer.unmount();
    }
}

#[test]
fn a_cache_within_another_mount_is_read_only_and_serves() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&with_directory());
    let sandbox = Sandbox::new();
    let outer = sandbox.mount(&registry.reference("library/image", "1"), "outer");
    let cache = outer.join("opt");
    let inner = sandbox.mount_point("inner");
    let output = inner.try_mount(&layout(&sandbox, "layout"), &["--wait", "--cache-dir", cache.to_str().unwrap()]);
    assert!(output.status.success() && said(&output).contains("Read-only file system"), "{}", said(&output));
    assert_eq!(std::fs::read(inner.join("d/f")).unwrap(), b"content");
    inner.unmount();
    outer.unmount();
}

/// By the kernel's number for it: the table of mounts has another path for it then.
#[test]
fn a_mount_that_was_moved_is_still_known() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let reference = registry.reference("library/image", "1");
    for how in [&[][..], &["--share"]] {
        let sandbox = Sandbox::new();
        let space = sandbox.path().join("space");
        std::fs::create_dir(&space).unwrap();
        // Out of a shared mount, nothing may be moved.
        run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&space));
        let _space = Unmount(space.clone());
        run(Command::new("mount").arg("--make-private").arg(&space));
        let (from, to) = (space.join("from"), space.join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        let mount = || -> Output {
            let output = sandbox.peelfs(["mount", "--wait", &reference]).arg(&from).args(how).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
            run(Command::new("mount").arg("--move").args([&from, &to]));
            let status = sandbox.peelfs(["status", "--json"]).arg(&to).output().unwrap();
            assert!(status.status.success(), "{}", said(&status));
            status
        };
        let state: serde_json::Value = serde_json::from_slice(&mount().stdout).unwrap();
        assert_eq!(state["at"], *to.to_str().unwrap());
        let server = state["pid"].as_i64().unwrap_or_else(|| panic!("its process is not known: {state}"));
        let unmounted = sandbox.peelfs(["umount"]).arg(&to).output().unwrap();
        assert!(unmounted.status.success(), "{}", said(&unmounted));
        if how.is_empty() {
            assert!(!Path::new(&format!("/proc/{server}/fd/0")).exists(), "its process has ended");
        }
        // Ending the server ends the mount, wherever it is.
        mount();
        assert!(sandbox.unmount_all().status.success());
        let state: serde_json::Value = serde_json::from_slice(&mount().stdout).unwrap();
        let server = rustix::process::Pid::from_raw(state["pid"].as_i64().unwrap() as i32).unwrap();
        rustix::process::kill_process(server, rustix::process::Signal::TERM).unwrap();
        super::wait_for(|| !mounts::all().iter().any(|mount| mount.path == to));
    }
}

/// The mount hides its own cache while its first layer is downloaded: from then on the server accesses itself.
#[test]
fn a_mount_bound_over_its_own_cache_hangs_no_reader() {
    if cannot_mount() {
        return;
    }
    for how in [&[][..], &["--share"]] {
        let image = small();
        let registry = serve(&image);
        let sandbox = Sandbox::new();
        let at = sandbox.mount_point("a");
        let (gate, blob) = (Gate::new(), image.layers()[0].digest.clone());
        registry.faults().add(Rule::new(Target::Blob(blob.clone()), Fault::Stall { after: 0, gate: gate.clone() }));
        let output = at.try_mount(&registry.reference("library/image", "1"), how);
        assert!(output.status.success(), "{}", said(&output));
        assert!(
            registry.wait_until(|requests| requests.iter().any(|request| request.request.path.ends_with(blob.hex())))
        );
        let covered = bind(&at.path, &sandbox.cache());
        let file = at.join("d/f");
        let mut reader = Command::new("cat").arg(file).stdout(Stdio::piped()).spawn().unwrap();
        gate.open();
        super::wait_for(|| reader.try_wait().unwrap().is_some());
        let output = reader.wait_with_output().unwrap();
        assert!(output.stdout == b"content" || !output.status.success(), "{how:?}: {}", said(&output));
        run(Command::new("umount").arg("-l").arg(sandbox.cache()));
        drop(covered);
        at.unmount();
    }
}
