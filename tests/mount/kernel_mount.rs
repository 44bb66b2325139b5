//! `peelfs mount --kernel`: mounts without a process, once the image is completely cached.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;

use super::*;
use peelfs::store::{NoVerity, is_verified_by_kernel};
use support::sandbox::content_file;

const ALWAYS: &[&str] = &["--kernel", "always", "--allow-other"];
const AUTO: &[&str] = &["--kernel", "auto", "--allow-other"];

fn layers() -> Vec<Vec<Entry>> {
    let mut random = Random::new(11);
    let base = vec![
        Entry::dir("bin"),
        Entry::file("bin/true", std::fs::read("/bin/true").unwrap()).mode(0o755),
        Entry::file("large", random.bytes(3 << 20)),
        Entry::file("small", "small"),
        Entry::file("gone", "removed above"),
    ];
    vec![base, vec![Entry::whiteout("gone"), Entry::file("top", random.bytes(100_000)), Entry::dir("d")]]
}

/// The image of [`layers`] at a registry, and what it should look like.
fn image() -> (Image, Registry) {
    let image = packed(&layers(), &[Packing::GZIP], Family::Oci);
    let registry = serve(&image);
    (image, registry)
}

fn reference(registry: &Registry) -> String {
    registry.reference("library/image", "1")
}

fn kind(at: &MountPoint<'_>) -> String {
    peelfs::fuse::mounts::at(&at.path).unwrap().kind
}

fn status(sandbox: &Sandbox, at: &MountPoint<'_>) -> serde_json::Value {
    let output = sandbox.run([OsStr::new("status"), OsStr::new("--json"), at.path.as_os_str()]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)))
}

fn mount<'a>(sandbox: &'a Sandbox, registry: &Registry, name: &str, how: &[&str]) -> MountPoint<'a> {
    let at = sandbox.mount_point(name);
    let output = at.try_mount(&reference(registry), how);
    assert!(output.status.success(), "mount: {}", said(&output));
    at
}

/// Files of a mount's content, as paths of this process lead to them.
fn content_files(sandbox: &Sandbox, image: &Image) -> Vec<std::path::PathBuf> {
    image.layers().iter().map(|layer| content_file(&sandbox.cache(), layer, "data")).collect()
}

#[test]
fn an_image_is_shown_by_the_kernel_once_it_is_whole() {
    if cannot_mount() {
        return;
    }
    let (_, registry) = image();
    let sandbox = Sandbox::new();
    let at = mount(&sandbox, &registry, "always", ALWAYS);
    assert_eq!(kind(&at), "erofs");
    assert_same("by the kernel", &tree_of(&layers()), &at.path, Compare::Exactly);
    let told = status(&sandbox, &at);
    assert_eq!((&told["by_kernel"], &told["served"]), (&true.into(), &true.into()), "{told}");
    assert_eq!(told["reference"], reference(&registry).as_str());
    assert!(told["content_layers"] == 2 && told["content_bytes"].as_u64().unwrap() > 3 << 20, "{told}");
    let shown = sandbox.run([OsStr::new("status"), at.path.as_os_str()]);
    assert!(said(&shown).contains("content  2 layers in files of 3."), "{}", said(&shown));
    assert!(told["pid"].is_null() && at.state().is_none(), "no process serves it: {told}");
    assert!(told["manifest"].as_str().unwrap().starts_with("sha256:") && told["since"].as_u64().unwrap() > 0, "{told}");
    let again = at.try_mount(&reference(&registry), ALWAYS);
    assert!(!again.status.success() && said(&again).contains("already a peelfs mount"), "{}", said(&again));
    let upgraded = sandbox.run([OsStr::new("upgrade"), at.path.as_os_str()]);
    assert!(upgraded.status.success() && said(&upgraded).contains("nothing to upgrade"), "{}", said(&upgraded));
    at.unmount();

    // The next one fetches nothing.
    registry.clear();
    let at = mount(&sandbox, &registry, "again", ALWAYS);
    assert_same("again", &tree_of(&layers()), &at.path, Compare::Exactly);
    assert_eq!(registry.blob_bytes(), 0);
    let output = sandbox.unmount_all();
    assert!(output.status.success() && !at.is_mounted(), "{}", said(&output));
}

#[test]
fn auto_is_fuse_until_the_image_is_whole_and_says_so() {
    if cannot_mount() {
        return;
    }
    let (image, registry) = image();
    let sandbox = Sandbox::new();
    let at = mount(&sandbox, &registry, "one", &[AUTO, &["--wait"]].concat());
    assert_eq!(kind(&at), "fuse.peelfs");
    assert_eq!(status(&sandbox, &at)["by_fuse"], "not all of the image is cached");
    let shown = sandbox.run([OsStr::new("status"), at.path.as_os_str()]);
    assert!(said(&shown).contains("not used: not all of the image is cached"), "{}", said(&shown));
    at.unmount();
    let at = mount(&sandbox, &registry, "two", AUTO);
    assert_eq!(kind(&at), "erofs");
    at.unmount();
    // With a missing span, the image is no longer complete.
    sandbox.drop_content();
    assert!(content_files(&sandbox, &image).iter().all(|file| !file.exists()));
    let at = mount(&sandbox, &registry, "three", AUTO);
    assert_eq!(kind(&at), "fuse.peelfs");
    at.unmount();
    let at = mount(&sandbox, &registry, "four", &["--kernel", "auto"]);
    assert!(status(&sandbox, &at)["by_fuse"].as_str().unwrap().contains("lets other users in"));
    at.unmount();
}

#[test]
fn a_kernel_mount_can_be_written_to() {
    if cannot_mount() {
        return;
    }
    let (_, registry) = image();
    let sandbox = Sandbox::new();
    for how in [ALWAYS, AUTO] {
        let at = mount(&sandbox, &registry, "kept", &[how, &["--writable"]].concat());
        assert_eq!(kind(&at), "overlay");
        assert_eq!(status(&sandbox, &at)["by_kernel"], true);
        let before = std::fs::read_to_string(at.join("small")).unwrap();
        assert_eq!(before, if how == ALWAYS { "small" } else { "written" }, "changes are kept for the next mount");
        std::fs::write(at.join("small"), "written").unwrap();
        let upper = format!("--writable={}.upper", at.path.display());
        let other = sandbox.mount_point("other");
        let output = other.try_mount(&reference(&registry), &[how, &[&upper]].concat());
        assert!(!output.status.success() && said(&output).contains("is in use by another"), "{}", said(&output));
        assert!(!other.is_mounted(), "without its overlay");
        at.unmount();
        assert!(!at.is_mounted());
    }
    let at = mount(&sandbox, &registry, "memory", &[ALWAYS, &["--ephemeral"]].concat());
    std::fs::write(at.join("new"), "1").unwrap();
    let output = sandbox.unmount_all();
    assert!(output.status.success() && !at.is_mounted(), "{}", said(&output));
}

#[test]
fn other_users_are_let_in_only_if_that_was_said() {
    if cannot_mount() {
        return;
    }
    let (_, registry) = image();
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&reference(&registry), &["--kernel", "always"]);
    assert!(
        said(&output).contains("lets other users in") && said(&output).contains("--allow-other"),
        "{}",
        said(&output)
    );
    let output = at.try_mount(&reference(&registry), &["--kernel", "always", "--allow-other", "-f"]);
    assert!(said(&output).contains("foreground"), "{}", said(&output));
    assert!(!at.is_mounted());
    let at = mount(&sandbox, &registry, "b", &["-o", "kernel=always,allow_other"]);
    assert_eq!(kind(&at), "erofs");
}

/// Readers, a mapping and a program on a mount, while the cache is pruned, damaged, renamed and deleted.
#[test]
fn a_kernel_mount_outlives_its_cache() {
    if cannot_mount() {
        return;
    }
    let (image, registry) = image();
    let sandbox = Sandbox::new();
    let at = mount(&sandbox, &registry, "a", ALWAYS);
    let wanted = tree_of(&layers());
    let open = File::open(at.join("large")).unwrap();
    let mut mapping = Mapping::of(&at.join("large"), &std::fs::read(at.join("large")).unwrap());
    let mut check = |when: &str| {
        assert_same(when, &wanted, &at.path, Compare::Exactly);
        assert!(Command::new(at.join("bin/true")).status().unwrap().success(), "{when}");
        let mut some = [0; 4096];
        open.read_exact_at(&mut some, 1 << 20).unwrap();
        if let Some(mapping) = &mut mapping {
            mapping.check(when);
        }
        // Drop the page cache.
        rustix::fs::sync();
        std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    };
    check("at first");
    for (what, args) in [
        ("verify", &["cache", "verify"][..]),
        ("dropped", &["cache", "drop", "--content", "--all"]),
        ("prune", &["cache", "prune"]),
    ] {
        let output = sandbox.run(args);
        assert!(output.status.success(), "{what}: {}", said(&output));
        check(what);
    }
    assert!(content_files(&sandbox, &image).iter().all(|file| !file.exists()), "their names are gone");
    // The image is mounted once more: new files, and the mount before keeps its own.
    let other = mount(&sandbox, &registry, "b", ALWAYS);
    assert_same("another", &wanted, &other.path, Compare::Exactly);
    let output = sandbox.run(["cache", "prune", "--all"]);
    assert!(output.status.success(), "{}", said(&output));
    check("pruned");
    std::fs::rename(sandbox.cache(), sandbox.path().join("elsewhere")).unwrap();
    check("renamed");
    std::fs::remove_dir_all(sandbox.path().join("elsewhere")).unwrap();
    check("deleted");
    assert_same("another", &wanted, &other.path, Compare::Exactly);
    drop((open, mapping));
    other.unmount();
    at.unmount();
}

/// An image for the kernel is of no use without the content that it names, and goes with it.
#[test]
fn an_image_for_the_kernel_is_dropped_with_its_layers() {
    if cannot_mount() {
        return;
    }
    let (image, registry) = image();
    let sandbox = Sandbox::new();
    let images = || sandbox.bucket("erofs-v1").len();
    let reference = reference(&registry);
    for drop in [&["drop", &reference[..]][..], &["drop", "--content", &reference]] {
        mount(&sandbox, &registry, "m", ALWAYS).unmount();
        assert!(images() > 0, "there was one");
        let kept = sandbox.run(["cache", "prune"]);
        assert!(kept.status.success() && images() > 0, "what is of use stays: {}", said(&kept));
        let output = sandbox.peelfs(["cache"]).args(drop).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(images(), 0, "{drop:?}: {}", said(&output));
    }
    mount(&sandbox, &registry, "m", ALWAYS).unmount();
    content_files(&sandbox, &image).iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let pruned = sandbox.run(["cache", "prune"]);
    assert_eq!(images(), 0, "{}", said(&pruned));
    assert!(!said(&pruned).contains("freed 0 B"), "{}", said(&pruned));
}

/// A process that has mapped a file, and looks at all of it whenever it is asked to.
struct Mapping(std::process::Child);

impl Mapping {
    /// `None` without Python.
    fn of(file: &Path, wanted: &[u8]) -> Option<Self> {
        if is_missing("python3") {
            return None;
        }
        let digest = peelfs::digest::Digest::of(peelfs::digest::Algorithm::Sha256, wanted);
        let script = "import hashlib, mmap, sys\n\
            with open(sys.argv[1], 'rb') as file: seen = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n\
            for _ in sys.stdin: print(hashlib.sha256(seen).hexdigest() == sys.argv[2], flush=True)";
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(file).arg(digest.hex());
        let child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn();
        Some(Self(child.unwrap()))
    }

    fn check(&mut self, when: &str) {
        use std::io::{Read as _, Write as _};
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut said = [0; 5];
        self.0.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"True\n", "what is mapped, {when}");
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A content file that was written to is verified again, and damaged parts are fetched again.
#[test]
fn what_was_written_to_is_compared_before_it_is_mounted() {
    if cannot_mount() {
        return;
    }
    let (image, registry) = image();
    let sandbox = Sandbox::new();
    mount(&sandbox, &registry, "a", ALWAYS).unmount();
    for file in content_files(&sandbox, &image) {
        let sealed = std::fs::metadata(&file).unwrap();
        assert_eq!(sealed.mode() & 0o777, 0o400);
        let content = File::options().write(true).open(&file).unwrap();
        content.write_all_at(b"damaged", sealed.len() / 2).unwrap();
        // With an old mtime; the change time still shows the write.
        content.set_modified(sealed.modified().unwrap()).unwrap();
    }
    let at = mount(&sandbox, &registry, "b", ALWAYS);
    assert_same("after damage", &tree_of(&layers()), &at.path, Compare::Exactly);
    at.unmount();
    // The image itself, too.
    for file in sandbox.bucket("erofs-v1").iter().filter(|file| file.extension().is_none()) {
        File::options().write(true).open(file).unwrap().write_all_at(&[0xff; 64], 2048).unwrap();
    }
    let at = mount(&sandbox, &registry, "c", ALWAYS);
    assert_same("after damage of the image", &tree_of(&layers()), &at.path, Compare::Exactly);
    at.unmount();
    for file in sandbox.bucket("erofs-v1").iter().filter(|file| file.extension().is_none()) {
        File::options().write(true).open(file).unwrap().write_all_at(&[0xff; 64], 2048).unwrap();
    }
    let output = sandbox.run(["cache", "verify"]);
    assert!(said(&output).contains("for the kernel"), "{}", said(&output));
}

/// A process that serves the same layers by FUSE evicts and drops them: the kernel's files stay as they are.
#[test]
fn what_the_kernel_shows_is_never_punched_by_a_server() {
    if cannot_mount() {
        return;
    }
    let (image, registry) = image();
    let sandbox = Sandbox::new();
    let by_fuse = sandbox.mount_with(&reference(&registry), "fuse", &["--allow-other"]);
    let wanted = tree_of(&layers());
    assert_same("by FUSE", &wanted, &by_fuse.path, Compare::Exactly);
    let by_kernel = mount(&sandbox, &registry, "kernel", ALWAYS);
    let output = sandbox.run(["cache", "drop", "--content", "--all"]);
    assert!(output.status.success(), "{}", said(&output));
    // Its server has begun new files, for what is read from now on.
    let taken = |file: &std::path::PathBuf| std::fs::metadata(file).map_or(0, |found| found.blocks());
    assert_eq!(content_files(&sandbox, &image).iter().map(taken).sum::<u64>(), 0);
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_same("by the kernel", &wanted, &by_kernel.path, Compare::Exactly);
    assert_same("by FUSE", &wanted, &by_fuse.path, Compare::Exactly);
    by_fuse.unmount();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_same("by the kernel alone", &wanted, &by_kernel.path, Compare::Exactly);
    by_kernel.unmount();
}

/// With a cache that is too small for it, the image is refused, and nothing is left mounted.
#[test]
fn an_image_that_the_cache_cannot_hold_is_refused() {
    if cannot_mount() {
        return;
    }
    let (_, registry) = image();
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&reference(&registry), &[ALWAYS, &["--cache-size", "1M"]].concat());
    assert!(!output.status.success() && said(&output).contains("--cache-size"), "{}", said(&output));
    assert!(!at.is_mounted());
}

/// Containers with user namespaces want the same files with other owners.
#[test]
fn a_kernel_mount_can_be_shown_with_other_owners() {
    if cannot_mount() || is_missing("python3") || is_missing("unshare") {
        return;
    }
    let (_, registry) = image();
    let sandbox = Sandbox::new();
    let at = mount(&sandbox, &registry, "a", ALWAYS);
    let moved = sandbox.mount_point("moved");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/mount/idmap.py");
    let output = Command::new("python3").arg(script).args([&at.path, &moved.path]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let owner = moved.join("small").metadata().map(|found| (found.uid(), found.gid()));
    let content = std::fs::read(moved.join("small"));
    drop(moved);
    assert_eq!((owner.unwrap(), content.unwrap()), ((100_000, 100_000), b"small".to_vec()));
    at.unmount();
}

/// The kernel gives numbers of mounts and devices to others once they are free: what one session has recorded of a mount that
/// has ended may fit another's.
#[test]
fn a_record_of_an_ended_mount_is_not_taken_for_another() {
    if cannot_mount() {
        return;
    }
    let (_, registry) = image();
    let (sandbox, other) = (Sandbox::new(), Sandbox::new());
    let at = mount(&sandbox, &registry, "a", ALWAYS);
    let recorded = |sandbox: &Sandbox| {
        let all = std::fs::read_dir(sandbox.path().join("run/peelfs")).into_iter().flatten();
        all.map(|entry| entry.unwrap().path()).find(|path| path.extension().is_some_and(|name| name == "kernel"))
    };
    let record = recorded(&sandbox).unwrap();
    let mut ended: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let unique = ended["unique_id"].as_u64();
    (ended["path"], ended["unique_id"]) = ("/ended".into(), unique.map(|id| id - 1).into());
    // Makes the directory, too.
    let own = mount(&other, &registry, "b", ALWAYS);
    own.unmount();
    std::fs::write(other.path().join("run/peelfs").join(record.file_name().unwrap()), ended.to_string()).unwrap();
    let output = other.unmount_all();
    assert!(output.status.success() && at.is_mounted(), "{}", said(&output));
    assert_eq!(recorded(&other), None, "of a mount that has ended");
    assert_eq!(std::fs::read(at.join("small")).unwrap(), b"small");
    // Moved, it is still the one that was recorded, where the kernel can tell.
    if unique.is_some() && !is_missing("mount") {
        let moved = sandbox.mount_point("moved");
        let output = Command::new("mount").arg("--move").args([&at.path, &moved.path]).output().unwrap();
        if output.status.success() {
            assert!(sandbox.unmount_all().status.success() && !moved.is_mounted());
            return;
        }
    }
    assert!(sandbox.unmount_all().status.success() && !at.is_mounted());
}

/// An image that EROFS does not support is served by a process with `auto`.
#[test]
fn an_image_that_erofs_cannot_hold_is_served_by_fuse() {
    if cannot_mount() {
        return;
    }
    let layers = [vec![Entry::file("f", "x").xattr("com.apple.quarantine", "x")]];
    let registry = serve(&packed(&layers, &[Packing::GZIP], Family::Oci));
    let sandbox = Sandbox::new();
    mount(&sandbox, &registry, "a", &["--wait"]).unmount();
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&reference(&registry), ALWAYS);
    assert!(!output.status.success() && said(&output).contains("`com.apple.quarantine`"), "{}", said(&output));
    let at = mount(&sandbox, &registry, "b", AUTO);
    assert_eq!(kind(&at), "fuse.peelfs");
    assert!(status(&sandbox, &at)["by_fuse"].as_str().unwrap().contains("com.apple.quarantine"));
    at.unmount();
}

/// A container's root file system is an overlay, and `/tmp` often a tmpfs: the kernel mounts from files of neither.
#[test]
fn the_file_system_of_the_cache_is_named_as_the_reason() {
    if cannot_mount() {
        return;
    }
    let (_, registry) = image();
    for (kind, file_system) in [("overlay", "overlayfs"), ("tmpfs", "tmpfs")] {
        let sandbox = Sandbox::new();
        let path = |name: &str| sandbox.path().join(name).display().to_string();
        for name in ["lower", "upper", "work", "home/cache"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let options = match file_system {
            "overlayfs" => format!("lowerdir={},upperdir={},workdir={}", path("lower"), path("upper"), path("work")),
            _ => "mode=700".to_owned(),
        };
        let output =
            Command::new("mount").args(["-t", kind, kind, "-o", &options, &path("home/cache")]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let _unmounted = kernel::Unmount(&sandbox.cache());
        std::fs::set_permissions(sandbox.cache(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let reason = format!("files of {file_system}");
        let at = sandbox.mount_point("a");
        let output = at.try_mount(&reference(&registry), ALWAYS);
        // This differs between kernels from 6.12 on.
        if output.status.success() {
            continue;
        }
        assert!(said(&output).contains(&reason) && said(&output).contains("--cache-dir"), "{}", said(&output));
        let at = mount(&sandbox, &registry, "b", AUTO);
        assert!(status(&sandbox, &at)["by_fuse"].as_str().unwrap().contains(&reason));
        at.unmount();
    }
}

/// As containers use it.
#[test]
fn a_kernel_mount_is_the_lower_of_an_overlay() {
    if cannot_mount() {
        return;
    }
    let (_, registry) = image();
    let sandbox = Sandbox::new();
    let at = mount(&sandbox, &registry, "a", ALWAYS);
    for name in ["upper", "work", "merged"] {
        std::fs::create_dir(sandbox.path().join(name)).unwrap();
    }
    let path = |name: &str| sandbox.path().join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", at.path.display(), path("upper"), path("work"));
    let output =
        Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options, &path("merged")]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let merged = sandbox.path().join("merged");
    let changed = std::fs::write(merged.join("small"), "changed").and_then(|()| std::fs::read(merged.join("small")));
    let read = std::fs::read(merged.join("large"));
    fuse::unmount(&merged, fuse::OpenFiles::Keep).unwrap();
    assert_eq!(changed.unwrap(), b"changed");
    assert_eq!(read.unwrap(), std::fs::read(at.join("large")).unwrap());
    assert_eq!(std::fs::read(at.join("small")).unwrap(), b"small");
    at.unmount();
}

/// Another image takes the room that the cache may have: content that the kernel shows goes, and its mount does not notice.
#[test]
fn eviction_leaves_what_the_kernel_shows_alone() {
    if cannot_mount() {
        return;
    }
    let (image, registry) = image();
    let more = [vec![Entry::file("more", Random::new(12).bytes(4 << 20))]];
    registry.push("library/more", "1", &packed(&more, &[Packing::GZIP], Family::Oci));
    let sandbox = Sandbox::new();
    let at = mount(&sandbox, &registry, "kernel", ALWAYS);
    let open = File::open(at.join("large")).unwrap();
    let size = ["--allow-other", "--cache-size", "5MiB"];
    let other = sandbox.mount_with(&registry.reference("library/more", "1"), "more", &size);
    assert_same("the other", &tree_of(&more), &other.path, Compare::Exactly);
    assert!(!content_files(&sandbox, &image)[0].exists(), "the large layer is evicted");
    assert_eq!(sandbox.bucket("erofs-v1"), [] as [std::path::PathBuf; 0], "the image, too");
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_same("after eviction", &tree_of(&layers()), &at.path, Compare::Exactly);
    let mut some = [0; 4096];
    open.read_exact_at(&mut some, 1 << 20).unwrap();
    // It is fetched anew for the next one, and takes the room of the other then.
    other.unmount();
    registry.clear();
    let again = mount(&sandbox, &registry, "again", &[ALWAYS, &["--cache-size", "5MiB"]].concat());
    assert!(registry.blob_bytes() > 0);
    for at in [&at, &again] {
        assert_same("both", &tree_of(&layers()), &at.path, Compare::Exactly);
    }
    drop(open);
    again.unmount();
    at.unmount();
}

/// What is known of an image is carried to another cache and back while the kernel shows it.
#[test]
fn indexes_and_profiles_are_carried_past_sealed_content() {
    if cannot_mount() {
        return;
    }
    let (image, registry) = image();
    let (here, there) = (Sandbox::new(), Sandbox::new());
    // A run that is recorded.
    let at = mount(&here, &registry, "fuse", &["--wait"]);
    std::fs::read(at.join("large")).unwrap();
    at.unmount();
    let at = mount(&here, &registry, "kernel", ALWAYS);
    let stamp = |file: &std::path::PathBuf| {
        let found = std::fs::metadata(file).unwrap();
        (found.ino(), found.ctime(), found.ctime_nsec(), found.mode())
    };
    let stamps = || content_files(&here, &image).iter().map(stamp).collect::<Vec<_>>();
    let before = stamps();
    for what in ["index", "profile"] {
        let file = here.path().join(what).display().to_string();
        for (sandbox, args) in [
            (&here, &[what, "export", &reference(&registry), &file][..]),
            (&here, &[what, "import", &file]),
            (&there, &[what, "import", &file]),
        ] {
            let output = sandbox.run(args);
            assert!(output.status.success(), "{args:?}: {}", said(&output));
        }
    }
    assert_eq!(stamps(), before, "nothing was written to what the kernel shows");
    assert_same("here", &tree_of(&layers()), &at.path, Compare::Exactly);
    registry.clear();
    mount(&here, &registry, "again", ALWAYS).unmount();
    assert_eq!(registry.blob_bytes(), 0, "and it counts as compared");
    let imported = mount(&there, &registry, "there", ALWAYS);
    assert_same("there", &tree_of(&layers()), &imported.path, Compare::Exactly);
    imported.unmount();
    at.unmount();
}

/// What was made of a pushed index is not shown where no such index is believed.
#[test]
fn an_image_by_a_pushed_index_is_for_those_who_believe_it() {
    if cannot_mount() {
        return;
    }
    let image = packed(&layers(), &[Packing::GZIP], Family::Oci);
    let catalog = Catalog::new().image("library/image", "1", &image).listing_referrers().taking_pushes();
    let registry = Registry::start(catalog).unwrap();
    let (here, there) = (Sandbox::new(), Sandbox::new());
    let pushed = here.run(["index", "push", &reference(&registry)]);
    assert!(pushed.status.success(), "{}", said(&pushed));
    let believing = [ALWAYS, &["--index-from", "referrers"]].concat();
    mount(&there, &registry, "a", &believing).unmount();
    registry.clear();
    mount(&there, &registry, "a", &believing).unmount();
    assert_eq!(registry.blob_bytes(), 0, "it is all there");
    let own = mount(&there, &registry, "a", ALWAYS);
    let sizes = image.layers().iter().map(|layer| layer.blob.len() as u64).sum::<u64>();
    assert!(registry.blob_bytes() >= sizes, "{} of {sizes} bytes: the layers are read", registry.blob_bytes());
    assert_same("own", &tree_of(&layers()), &own.path, Compare::Exactly);
    own.unmount();
}

/// Metadata, content and link counts, on an image with everything and on random ones.
#[test]
fn a_kernel_mount_shows_what_umoci_unpacks() {
    if cannot_mount() || is_missing("umoci") {
        return;
    }
    // umoci 0.4 knows no zstd.
    let packings = [Packing::GZIP, Packing::Stored, Packing::Gzip { level: 6, member: Some(50_000) }];
    let shape = Shape { packings: packings.to_vec(), large: 200_000, ..Shape::default() };
    let whiteouts = Shape { packings: packings.to_vec(), ..Shape::whiteouts() };
    let mut images = vec![("everything".to_owned(), packed(&everything(), &packings, Family::Oci))];
    for seed in 0..super::seeds(4) {
        let random = random::image(seed, if seed % 2 == 0 { &shape } else { &whiteouts });
        images.push((format!("seed {seed}"), random.image));
    }
    for (what, image) in images {
        let sandbox = Sandbox::new();
        let (layout, bundle) = (sandbox.path().join("layout"), sandbox.path().join("bundle"));
        image.write_layout(&layout, "1").unwrap();
        run(Command::new("umoci").args(["unpack", "--image", &format!("{}:1", layout.display())]).arg(&bundle));
        let unpacked = walk::without_hidden(walk::seen(&bundle.join("rootfs")).unwrap());
        let at = sandbox.mount_point("a");
        let output = at.try_mount(&format!("oci:{}:1", layout.display()), ALWAYS);
        assert!(output.status.success(), "{what}: {}", said(&output));
        assert_eq!(kind(&at), "erofs");
        assert_same(&what, &unpacked, &at.path, Compare::AsUnpacked);
        at.unmount();
    }
}

/// Whatever else lies in the cache may be damaged under a mount; what it shows is not touched by that, nor by its repair.
#[test]
fn a_kernel_mount_stands_a_damaged_cache() {
    if cannot_mount() {
        return;
    }
    let (image, registry) = image();
    let sandbox = Sandbox::new();
    let at = mount(&sandbox, &registry, "a", ALWAYS);
    let wanted = tree_of(&layers());
    let shown = content_files(&sandbox, &image);
    let mut random = Random::new(5);
    for round in 0..4 {
        let buckets = ["index-v2", "content-v2", "document-v1", "tag-v1", "erofs-v1", "lock-v1"];
        let files = buckets.iter().flat_map(|bucket| sandbox.bucket(bucket));
        // The image and the content are what is shown: they are damaged as other files of their names.
        for file in files {
            let is_shown =
                shown.contains(&file) || (file.extension().is_none() && file.to_string_lossy().contains("erofs"));
            let bytes = random.bytes(200);
            if is_shown || random.below(4) == 0 {
                std::fs::remove_file(&file).unwrap();
            }
            if round > 0 || !is_shown {
                std::fs::write(&file, bytes).unwrap();
            }
        }
        rustix::fs::sync();
        std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        assert_same("after damage", &wanted, &at.path, Compare::Exactly);
        assert!(Command::new(at.join("bin/true")).status().unwrap().success());
        // It is found, and what was lost is fetched anew.
        let output = sandbox.run(["cache", "verify"]);
        assert!(matches!(output.status.code(), Some(0 | 5)), "round {round}: {}", said(&output));
        let another = mount(&sandbox, &registry, "b", ALWAYS);
        assert_same("made anew", &wanted, &another.path, Compare::Exactly);
        assert_same("the one before", &wanted, &at.path, Compare::Exactly);
        another.unmount();
    }
    at.unmount();
}

/// `make verity-check` has the same after real restarts, and with damage on the disk.
#[test]
fn the_kernel_verifies_files_where_it_can() {
    if cannot_mount() {
        return;
    }
    let (image, registry) = image();
    let sandbox = Sandbox::new();
    let at = mount(&sandbox, &registry, "a", ALWAYS);
    let told = status(&sandbox, &at);
    let shown = said(&sandbox.run([OsStr::new("status"), at.path.as_os_str()]));
    let files = || {
        let images = sandbox.bucket("erofs-v1").into_iter().filter(|file| file.extension().is_none());
        content_files(&sandbox, &image).into_iter().chain(images)
    };
    let verified = |file: &Path| is_verified_by_kernel(&File::open(file).unwrap());
    if told["fs_verity"] == false {
        let why = told["no_fs_verity"].as_str().unwrap();
        assert!(shown.contains(&format!("verifies nothing that it reads: {why}")), "{shown}");
        assert!(files().any(|file| verified(&file).is_err()));
        assert!(matches!(verified(sandbox.path()), Err(NoVerity::Unsupported | NoVerity::Refused(_))), "{why}");
        return eprintln!("skipped: {why}");
    }
    assert!(shown.contains("verifies each page that it reads") && told["no_fs_verity"].is_null(), "{shown}");
    assert!(files().all(|file| verified(&file).is_ok() && File::options().write(true).open(&file).is_err()));
    at.unmount();

    // As after a restart: nothing is read of the content.
    for seal in files().map(|file| format!("{}.seal", file.display())) {
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&seal).unwrap()).unwrap();
        json["boot"] = "another".into();
        json["stamp"]["inode"] = 1.into();
        std::fs::write(&seal, json.to_string()).unwrap();
    }
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let at = mount(&sandbox, &registry, "b", ALWAYS);
    let large = File::open(&content_files(&sandbox, &image)[0]).unwrap();
    let mut bytes = [0; 100];
    let parts = &mut [std::io::IoSliceMut::new(&mut bytes)];
    let in_memory = rustix::io::preadv2(&large, parts, 1 << 20, rustix::io::ReadWriteFlags::NOWAIT);
    assert_eq!(in_memory, Err(rustix::io::Errno::AGAIN));
    assert_same("by the kernel", &tree_of(&layers()), &at.path, Compare::Exactly);
    let output = sandbox.run(["cache", "verify"]);
    assert!(output.status.success(), "{}", said(&output));
    at.unmount();
    // By FUSE, too; and it goes as other content.
    let by_fuse = sandbox.mount_with(&reference(&registry), "fuse", &[]);
    assert_same("by FUSE", &tree_of(&layers()), &by_fuse.path, Compare::Exactly);
    let output = sandbox.run(["cache", "drop", "--content", "--all"]);
    assert!(output.status.success() && !files().any(|file| file.exists() && verified(&file).is_ok()));
    assert_same("fetched again", &tree_of(&layers()), &by_fuse.path, Compare::Exactly);
}
