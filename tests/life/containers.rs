//! Containers: bundles for runc and crun, writable mounts, and `peelfs run`.

use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use peelfs::fuse::mounts;
use peelfs::host::spec::Writable;
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};

use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::Entry;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::sandbox::{MountPoint, Sandbox, cannot_mount, is_missing, said};

/// A small system: busybox with what it needs, and two users.
pub(super) fn system() -> Option<Vec<Entry>> {
    if is_missing("ldd") {
        return None;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let Some(busybox) = busybox else {
        eprintln!("skipped: needs busybox");
        return None;
    };
    let mut entries = vec![
        Entry::dir("bin"),
        Entry::dir("etc"),
        Entry::file("bin/busybox", std::fs::read(busybox).unwrap()).mode(0o755),
        Entry::file("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"),
        Entry::file("etc/group", "root:x:0:\nstaff:x:50:app\napp:x:1001:\n"),
    ];
    for applet in [
        "sh", "id", "cat", "touch", "ls", "sleep", "true", "env", "kill", "stat", "mount", "hostname", "readlink",
        "grep", "sed",
    ] {
        entries.push(Entry::symlink(format!("bin/{applet}"), "busybox"));
    }
    // Of a static one it says that there are none.
    let needed = Command::new("ldd").arg(busybox).output().unwrap();
    let needed = String::from_utf8(needed.stdout).unwrap();
    let needed = needed.split_whitespace().filter(|word| word.starts_with('/'));
    entries.extend(needed.map(|path| Entry::file(&path[1..], std::fs::read(path).unwrap()).mode(0o755)));
    Some(entries)
}

/// The system, with a configuration.
pub(super) fn image(config: Value) -> Option<Image> {
    Some(ImageBuilder::new().layer(LayerBuilder::of(&system()?)).config(config).build())
}

/// An image in a layout of the sandbox.
pub(super) fn layout(sandbox: &Sandbox, image: &Image) -> String {
    let path = sandbox.path().join("layout");
    image.write_layout(&path, "1").unwrap();
    format!("oci:{}:1", path.display())
}

/// Runtimes that are installed.
pub(super) fn runtimes() -> Vec<&'static str> {
    let found: Vec<_> = ["runc", "crun"].into_iter().filter(|name| !is_missing(name)).collect();
    if found.is_empty() {
        eprintln!("skipped: needs runc or crun");
    }
    found
}

/// A command in a mount namespace where crun works: it refuses to where control groups of both versions are mounted.
pub(super) fn for_crun(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("unshare");
    let script = "if [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi; exec \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(program);
    command
}

/// A bundle; unmounted when dropped, even after a failure.
struct Bundle<'a> {
    sandbox: &'a Sandbox,
    path: PathBuf,
}

impl<'a> Bundle<'a> {
    fn make(sandbox: &'a Sandbox, reference: &str, name: &str, more: &[&str]) -> (Self, Output) {
        let path = sandbox.path().join("mnt").join(name);
        let output = sandbox.peelfs(["bundle"]).args(more).arg(reference).arg(&path).output().unwrap();
        (Self { sandbox, path }, output)
    }

    fn made(sandbox: &'a Sandbox, reference: &str, name: &str, more: &[&str]) -> Self {
        let (bundle, output) = Self::make(sandbox, reference, name, more);
        assert!(output.status.success(), "{}", said(&output));
        bundle
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path.join("config.json")).unwrap()).unwrap()
    }

    /// Changes the configuration.
    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let mut config = self.config();
        edit(&mut config);
        std::fs::write(self.path.join("config.json"), config.to_string()).unwrap();
    }

    fn run_by(&self, runtime: &str) -> Output {
        let mut command = for_crun(runtime);
        let state = self.sandbox.path().join("state");
        command.arg("--root").arg(state).args(["run", "--bundle"]).arg(&self.path);
        command.arg(format!("test-{}", self.sandbox.path().file_name().unwrap().to_str().unwrap().trim_matches('.')));
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn unmount(&self) -> Output {
        self.sandbox.peelfs(["umount"]).arg(&self.path).output().unwrap()
    }
}

impl Drop for Bundle<'_> {
    fn drop(&mut self) {
        let _ = self.sandbox.peelfs(["umount", "--lazy"]).arg(&self.path).output();
        let rootfs = self.path.join("rootfs");
        while mounts::at(&rootfs).is_some() && peelfs::fuse::unmount(&rootfs, peelfs::fuse::OpenFiles::Keep).is_ok() {}
    }
}

pub(super) fn printed(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap().trim_end()
}

/// Both runtimes run an unedited bundle, though the image has none of the directories that they mount on.
#[test]
fn a_bundle_is_run_by_runc_and_crun() {
    let config = json!({
        "Cmd": ["sh", "-c", "id; pwd; echo $HOME $A; cat /proc/self/mountinfo; touch /x"], "Env": ["PATH=/bin", "A=b"],
        "User": "app", "WorkingDir": "/srv/work", "Volumes": { "/var/data": {} }, "Labels": { "l": "m" },
    });
    let Some(image) = image(config).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let bundle = Bundle::made(&sandbox, &layout(&sandbox, &image), "b", &[]);
    assert_eq!(std::fs::metadata(&bundle.path).unwrap().mode() & 0o777, 0o700, "there may be set-user-id programs");
    assert_eq!(bundle.config()["annotations"]["l"], "m");
    for runtime in runtimes() {
        let output = bundle.run_by(runtime);
        let lines: Vec<_> = printed(&output).lines().collect();
        assert_eq!(
            lines.get(..3),
            Some(&["uid=1000(app) gid=1001(app) groups=50(staff)", "/srv/work", "/home/app b"][..]),
            "{}",
            said(&output)
        );
        assert!(lines.iter().any(|line| line.contains(" /var/data ") && line.contains("tmpfs")), "{}", said(&output));
        assert_eq!(output.status.code(), Some(1), "the root file system cannot be written to: {}", said(&output));
    }
    assert!(bundle.unmount().status.success());
    assert!(!bundle.path.exists(), "all that was made is gone");
}

#[test]
fn a_writable_bundle_keeps_what_its_container_writes() {
    let Some(image) = image(json!({ "Cmd": ["sh", "-c", "echo new >> /etc/new; cat /etc/new"] })) else { return };
    let Some(runtime) = runtimes().into_iter().next().filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    for (option, wanted) in [("--writable", "new\nnew\nnew"), ("--ephemeral", "new")] {
        let bundle = Bundle::made(&sandbox, &reference, option.trim_matches('-'), &[option]);
        assert_eq!(printed(&bundle.run_by(runtime)), "new");
        std::fs::write(bundle.path.join("rootfs/etc/from-outside"), "1").unwrap();
        assert!(bundle.unmount().status.success());
        let upper = bundle.path.join("upper/diff/etc/new");
        assert_eq!(upper.exists(), option == "--writable", "what was written is not peelfs's to remove");
        if upper.exists() {
            let (_, refused) = Bundle::make(&sandbox, &reference, "writable", &[]);
            assert!(said(&refused).contains("`--writable` takes them up"), "{}", said(&refused));
            let bundle = Bundle::made(&sandbox, &reference, "writable", &[option]);
            let status = sandbox.peelfs(["status"]).arg(&bundle.path).output().unwrap();
            assert!(printed(&status).contains("writable/rootfs\n"), "{}", said(&status));
            assert_eq!(printed(&bundle.run_by(runtime)), "new\nnew", "its own changes are taken up");
            assert!(bundle.unmount().status.success());
            std::fs::rename(bundle.path.join("upper"), sandbox.path().join("kept")).unwrap();
        }
        let again = format!("--writable={}", sandbox.path().join("kept").display());
        let more = if option == "--writable" { &again[..] } else { option };
        let bundle = Bundle::made(&sandbox, &reference, "again", &[more]);
        assert_eq!(printed(&bundle.run_by(runtime)), wanted, "{option}");
        assert!(bundle.unmount().status.success());
    }
}

#[test]
fn a_bundle_needs_an_empty_directory_a_user_and_a_command() {
    let Some(image) = image(json!({ "User": "app" })).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    let (none, output) = Bundle::make(&sandbox, &reference, "none", &[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("the image has no command"), "{}", said(&output));
    assert!(said(&output).contains("hint: name a program with `--entrypoint`"), "{}", said(&output));
    assert!(!none.path.exists(), "what was made is taken away again");
    assert!(mounts::at(&none.path.join("rootfs")).is_none());

    let (unknown, output) = Bundle::make(&sandbox, &reference, "none", &["--entrypoint=true", "--user=missing"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("user `missing` is not in the image's /etc/passwd"), "{}", said(&output));
    assert!(!unknown.path.exists());

    let full = sandbox.path().join("mnt/full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("config.json"), "mine").unwrap();
    let (bundle, output) = Bundle::make(&sandbox, &reference, "full", &["--entrypoint=true"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("it is not empty"), "{}", said(&output));
    assert!(!bundle.unmount().status.success(), "there is nothing to take away");
    assert_eq!(std::fs::read(full.join("config.json")).unwrap(), b"mine");
}

/// Only what was made is removed: an edited configuration and foreign files are kept.
#[test]
fn unmounting_a_bundle_leaves_what_is_not_its_own() {
    let Some(image) = image(json!({ "Cmd": ["true"] })).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let bundle = Bundle::made(&sandbox, &layout(&sandbox, &image), "b", &[]);
    bundle.edit(|config| config["hostname"] = "edited".into());
    std::fs::write(bundle.path.join("mine"), "1").unwrap();
    let output = bundle.unmount();
    assert!(output.status.success() && said(&output).contains("was edited and is kept"), "{}", said(&output));
    let mut left: Vec<_> = std::fs::read_dir(&bundle.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["config.json", "mine"]);
    assert!(!bundle.unmount().status.success(), "there is no bundle any more");
}

/// Where the image has symlinks, mount points are made where they lead to, and nowhere outside.
#[test]
fn stubs_lie_where_the_image_s_symlinks_lead() {
    let mut entries = vec![
        Entry::symlink("etc/resolv.conf", "../run/resolve/resolv.conf"),
        Entry::symlink("var", "/data/../real-var"),
        Entry::symlink("loop", "loop"),
        Entry::file("sys", "a file"),
        Entry::symlink("up", "../../../../tmp/peelfs-stub"),
    ];
    entries.splice(0..0, [Entry::dir("etc"), Entry::dir("data").mode(0o711)]);
    let config = json!({ "Cmd": ["x"], "Volumes": { "/var/lib": {}, "/loop/x": {}, "/up/deep": {}, "/data": {} } });
    let image = ImageBuilder::new().layer(LayerBuilder::of(&entries)).config(config).build();
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let bundle = Bundle::made(&sandbox, &layout(&sandbox, &image), "b", &[]);
    let rootfs = bundle.path.join("rootfs");
    for (path, mode) in [
        ("run/resolve/resolv.conf", 0o100_644),
        ("etc/hostname", 0o100_644),
        ("real-var/lib", 0o040_755),
        ("tmp/peelfs-stub/deep", 0o040_755),
        ("proc", 0o040_755),
        ("data", 0o040_711),
        ("sys", 0o100_644),
    ] {
        let found = std::fs::symlink_metadata(rootfs.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(found.mode(), mode, "{path}");
    }
    assert_eq!(std::fs::read(rootfs.join("sys")).unwrap(), b"a file", "what the image has wins");
    assert!(!Path::new("/tmp/peelfs-stub").exists());
}

/// An image cannot control the overlay on it.
#[test]
fn attributes_for_overlayfs_are_not_shown_below_one() {
    let entries = [
        Entry::dir("hidden").xattr("trusted.overlay.redirect", "/secret"),
        Entry::dir("secret"),
        Entry::file("secret/file", "1"),
        Entry::file("plain", "1").xattr("user.overlay.x", "1").xattr("user.other", "2"),
    ];
    let image = ImageBuilder::new().layer(LayerBuilder::of(&entries)).config(json!({ "Cmd": ["x"] })).build();
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    let at = sandbox.mount_with(&reference, "m", &["--ephemeral"]);
    assert_eq!(std::fs::read_dir(at.join("hidden")).unwrap().count(), 0);
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(at.join("plain"), "user.other", &mut value), Ok(1));
    std::fs::write(at.join("hidden/new"), "1").unwrap();
    let output = sandbox.run(["umount".as_ref(), at.path.as_os_str()]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn what_is_written_is_not_kept_below_the_mount() {
    let Some(image) = image(json!({})).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let (reference, at) = (layout(&sandbox, &image), sandbox.mount_point("m"));
    for below in ["", "/upper", "/missing/upper"] {
        let refused = at.try_mount(&reference, &[&format!("--writable={}{below}", at.path.display())]);
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        assert!(said(&refused).contains(", or below it"), "{}", said(&refused));
        assert!(!at.is_mounted());
        assert_eq!(std::fs::read_dir(&at.path).unwrap().count(), 0, "nothing is left behind");
    }
    // Neither is what is written to a bundle, below its root file system.
    let bundle = sandbox.path().join("bundle");
    let upper = format!("--writable={}", bundle.join("rootfs/upper").display());
    let refused = sandbox.peelfs(["bundle", "--entrypoint=true", &upper, &reference]).arg(&bundle).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains(", or below it"), "{}", said(&refused));
    assert!(!bundle.exists(), "nothing is left behind");
}

/// A mount that waits for its image, with a directory for changes that was made for it.
fn waiting_writable<'a>(
    sandbox: &'a Sandbox,
    gate: &Gate,
    more: &[&str],
) -> (Registry, Child, MountPoint<'a>, PathBuf) {
    let image = ImageBuilder::new().layer(LayerBuilder::new().file("f", "1")).build();
    let registry = Registry::start(Catalog::new().image("team/app", "1", &image)).unwrap();
    let layer = Target::Blob(image.layers()[0].digest.clone());
    registry.faults().add(Rule::new(layer, Fault::Hang(gate.clone())));
    let (upper, at) = (sandbox.path().join("made/upper"), sandbox.mount_point("m"));
    let reference = registry.reference("team/app", "1");
    let mut mount = sandbox.peelfs(["mount", &format!("--writable={}", upper.display()), &reference]);
    let mount = mount.arg(&at.path).args(more).stderr(Stdio::piped()).spawn().unwrap();
    let published = sandbox.path().join("run/peelfs");
    while !upper.join("image").exists() || !published.exists() || at.state().is_none() {
        support::pause();
    }
    (registry, mount, at, upper)
}

#[test]
fn a_writable_mount_that_is_ended_early_leaves_nothing() {
    if cannot_mount() {
        return;
    }
    for more in [&[][..], &["--wait"], &["--foreground"], &["--foreground", "--no-keeper"]] {
        for signal in [Signal::TERM, Signal::INT] {
            let (sandbox, gate) = (Sandbox::new(), Gate::new());
            let (_registry, mount, at, upper) = waiting_writable(&sandbox, &gate, more);
            kill_process(Pid::from_raw(mount.id().cast_signed()).unwrap(), signal).unwrap();
            mount.wait_with_output().unwrap();
            while at.is_mounted() || upper.parent().unwrap().exists() {
                support::pause();
            }
        }
    }
}

/// Then nothing could be removed; it is no claim of that image to the directory.
#[test]
fn a_killed_mount_leaves_no_claim_to_its_changes() {
    if cannot_mount() {
        return;
    }
    let (sandbox, gate) = (Sandbox::new(), Gate::new());
    let (_registry, mut mount, at, upper) = waiting_writable(&sandbox, &gate, &[]);
    let keeper = at.state().unwrap()["keeper"]["pid"].as_i64().unwrap() as i32;
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    at.signal(Signal::KILL);
    mount.wait().unwrap();
    assert!(upper.join("image").exists());
    while at.state().is_some() {
        support::pause();
    }
    let other = ImageBuilder::new().layer(LayerBuilder::new().file("other", "2")).build();
    let reference = layout(&sandbox, &other);
    let mounted = at.try_mount(&reference, &[&format!("--writable={}", upper.display())]);
    assert!(mounted.status.success(), "{}", said(&mounted));
    assert_eq!(std::fs::read(at.join("other")).unwrap(), b"2");
}

#[test]
fn a_writable_mount_keeps_what_is_written() {
    let Some(image) = image(json!({})).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    let at = sandbox.mount_with(&reference, "m", &["--writable"]);
    let root = std::fs::metadata(&at.path).unwrap();
    std::fs::write(at.join("etc/passwd"), "changed").unwrap();
    std::fs::remove_file(at.join("etc/group")).unwrap();
    // One mount to the user.
    let status = sandbox.run(["status", "--json"]);
    assert_eq!(printed(&status).lines().filter(|line| line.contains(at.path.to_str().unwrap())).count(), 1);
    let again = at.try_mount(&reference, &[]);
    assert!(said(&again).contains("is already a peelfs mount"), "{}", said(&again));
    let other = sandbox.mount_point("other");
    let upper = format!("--writable={}.upper", at.path.display());
    let in_use = other.try_mount(&reference, &[&upper]);
    assert!(said(&in_use).contains("is in use by another mount"), "{}", said(&in_use));
    assert!(!other.is_mounted());
    at.unmount();

    let other = sandbox.mount_with(&reference, "other", &[&upper]);
    assert_eq!(std::fs::read(other.join("etc/passwd")).unwrap(), b"changed");
    assert!(!other.join("etc/group").exists());
    let found = std::fs::metadata(&other.path).unwrap();
    assert_eq!((found.mode(), found.uid()), (root.mode(), root.uid()));
    other.unmount();

    let image = ImageBuilder::new().layer(LayerBuilder::new().file("other", "1")).build();
    let path = sandbox.path().join("other-layout");
    image.write_layout(&path, "1").unwrap();
    let refused = other.try_mount(&format!("oci:{}:1", path.display()), &[&upper]);
    assert!(said(&refused).contains("belong to another image"), "{}", said(&refused));
    assert!(!other.is_mounted());
}

/// The directory of changes of a command that is refused, and that of the container or mount it was for.
#[test]
fn a_refused_command_leaves_no_directory_of_changes() {
    let Some(image) = image(json!({})).filter(|_| !cannot_mount()) else { return };
    let Some(runtime) = runtimes().into_iter().next() else { return };
    let sandbox = Sandbox::new();
    let good = layout(&sandbox, &image);
    let path = sandbox.path().join("damaged");
    let content = LayerBuilder::new().file("f", support::random::Random::new(1).bytes(50_000));
    ImageBuilder::new().layer(content).build().write_layout(&path, "1").unwrap();
    let blobs = std::fs::read_dir(path.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let layer = blobs.max_by_key(|blob| std::fs::metadata(blob).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&layer).unwrap();
    bytes[20_000..].fill(0);
    std::fs::write(&layer, bytes).unwrap();
    let layer = format!("layer sha256:{}", layer.file_name().unwrap().display());
    let bad = format!("oci:{}:1", path.display());
    let at = sandbox.mount_point("m");
    let upper = at.path.with_extension("upper");
    let elsewhere = sandbox.path().join("new/one");
    let keep = format!("--keep={}", elsewhere.display());
    let writable = format!("--writable={}", elsewhere.display());
    let bundle = sandbox.path().join("bundle");
    let refused = [
        at.try_mount(&bad, &["--writable"]),
        at.try_mount(&bad, &["--ephemeral"]),
        at.try_mount(&bad, &[&writable]),
        run(&sandbox, runtime, &[&keep, &bad, "true"]).output().unwrap(),
        sandbox.peelfs(["bundle", "--entrypoint=true", "--writable", &bad]).arg(&bundle).output().unwrap(),
        sandbox.peelfs(["bundle", "--entrypoint=true", &writable, &bad]).arg(&bundle).output().unwrap(),
    ];
    for output in &refused {
        assert!(!output.status.success() && said(output).contains(&layer), "{}", said(output));
    }
    for left in [&upper, elsewhere.parent().unwrap(), &bundle] {
        assert!(!left.exists(), "{} was left", left.display());
    }
    assert!(!at.is_mounted());

    // What was there stays, and does not come to belong to another image.
    std::fs::create_dir_all(upper.join("diff")).unwrap();
    std::fs::write(upper.join("diff/mine"), "1").unwrap();
    assert!(!at.try_mount(&bad, &["--writable"]).status.success());
    let names: Vec<_> = std::fs::read_dir(&upper).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["diff"]);
    let mounted = at.try_mount(&good, &["--writable"]);
    assert!(mounted.status.success(), "{}", said(&mounted));
    assert_eq!(std::fs::read(at.join("mine")).unwrap(), b"1");
    at.unmount();

    // The kernel refuses changes on an overlay; a full disk has no room for them.
    let below = sandbox.path().join("overlay");
    for name in ["lower", "upper", "work", "on"] {
        std::fs::create_dir_all(below.join(name)).unwrap();
    }
    let shown = below.display();
    let options = format!("lowerdir={shown}/lower,upperdir={shown}/upper,workdir={shown}/work");
    let overlay = Mounted::new("overlay", below.join("on"), &options);
    let small = Mounted::new("tmpfs", sandbox.path().join("small"), "size=4k,nr_inodes=2");
    for place in [&overlay, &small].into_iter().filter_map(Option::as_ref) {
        let output = at.try_mount(&good, &[&format!("--writable={}/up", place.0.display())]);
        assert!(!output.status.success(), "{}", said(&output));
        assert_eq!(std::fs::read_dir(&place.0).unwrap().count(), 0, "{} was left", place.0.display());
        assert!(!at.is_mounted());
    }
}

/// A file system that the test mounts.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, at: PathBuf, options: &str) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        let made = rustix::mount::mount(kind, &at, kind, rustix::mount::MountFlags::empty(), Some(options.as_c_str()));
        made.map_err(|error| eprintln!("skipped: cannot mount {kind}: {error}")).ok().map(|()| Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

#[test]
fn an_ephemeral_mount_forgets_what_is_written() {
    let Some(image) = image(json!({})).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    for foreground in [false, true] {
        let at = sandbox.mount_point("m");
        let mut serving = None;
        if foreground {
            let mut command = sandbox.peelfs(["mount", "--foreground", "--ephemeral", &reference]);
            serving = Some(command.arg(&at.path).stderr(Stdio::null()).spawn().unwrap());
            until(|| mounts::at(&at.path).is_some_and(|mount| mount.kind == "overlay"));
        } else {
            assert!(at.try_mount(&reference, &["--ephemeral"]).status.success());
        }
        assert!(!at.join("new").exists());
        std::fs::write(at.join("new"), "1").unwrap();
        match serving {
            // What ends a mount in the foreground takes the overlay with it.
            Some(mut serving) => {
                kill_process(Pid::from_child(&serving), Signal::INT).unwrap();
                serving.wait().unwrap();
                assert!(!at.is_mounted());
            }
            None => at.unmount(),
        }
    }
}

/// The overlay and its readers survive a killed server; if the keeper is killed as well, the mount can be cleared and
/// made again.
#[test]
fn a_writable_mount_outlives_its_server() {
    let Some(image) = image(json!({})).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    let at = sandbox.mount_with(&reference, "m", &["--writable"]);
    std::fs::write(at.join("new"), "1").unwrap();
    at.kill_server();
    assert!(at.join("bin/busybox").exists() && at.join("new").exists());
    let keeper = at.state().unwrap()["keeper"]["pid"].as_i64().unwrap() as i32;
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    at.signal(Signal::KILL);
    until(|| at.state().is_none());
    let mounted = at.try_mount(&reference, &["--writable"]);
    assert!(mounted.status.success(), "{}", said(&mounted));
    assert!(said(&mounted).contains("whose process is gone"), "{}", said(&mounted));
    assert!(at.join("bin/busybox").exists() && at.join("new").exists());
    at.unmount();
}

pub(super) fn until(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A command line of `peelfs run` with one of the runtimes.
pub(super) fn run(sandbox: &Sandbox, runtime: &str, line: &[&str]) -> Command {
    let known = sandbox.peelfs(["run", "--runtime", runtime]);
    let mut command = for_crun(known.get_program());
    command.args(known.get_args()).args(line).stdin(Stdio::null());
    command.env_clear();
    for (name, value) in known.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
}

/// Processes, directories and control groups of the sandbox's containers.
fn left(sandbox: &Sandbox) -> Vec<String> {
    let run = sandbox.path().join("run/peelfs");
    let files = std::fs::read_dir(&run).into_iter().flatten().map(|entry| entry.unwrap().path().display().to_string());
    let cache = format!("PEELFS_CACHE_DIR={}\0", sandbox.cache().display());
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let environment = std::fs::read(path.join("environ")).ok()?;
        let own = String::from_utf8_lossy(&environment).contains(&cache);
        let command = || String::from_utf8_lossy(&std::fs::read(path.join("cmdline")).unwrap_or_default()).into_owned();
        own.then(command)
    });
    files.chain(processes).collect()
}

/// Who keeps something of the sandbox: processes that see its mounts, in whatever namespace, and its own processes, with
/// what their threads wait for; and what was logged.
fn kept_by(sandbox: &Sandbox) -> Vec<String> {
    let text = |path: PathBuf| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let own = sandbox.path().to_str().unwrap();
    let entries =
        |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let processes = entries("/proc".into()).filter_map(|path| {
        let mounts = text(path.join("mountinfo"));
        let seen: Vec<_> = mounts.lines().filter(|line| line.contains(own)).collect();
        let is_own = text(path.join("environ")).contains(own);
        let waits: Vec<_> = entries(path.join("task")).map(|thread| text(thread.join("wchan"))).collect();
        let said = || format!("{} {} {waits:?} sees {seen:?}", path.display(), text(path.join("cmdline")));
        (is_own || !seen.is_empty()).then(said)
    });
    let logs = entries(sandbox.path().join("run/peelfs")).filter(|path| path.extension().is_some_and(|is| is == "log"));
    processes.chain(logs.map(text)).collect()
}

/// Nothing is left of the sandbox's containers, at once or very soon: what served the image ends by itself.
pub(super) fn assert_nothing_left(sandbox: &Sandbox) {
    let begun = Instant::now();
    while !left(sandbox).is_empty() {
        let is_late = begun.elapsed() > Duration::from_secs(20);
        assert!(!is_late, "left behind: {:?}, kept by {:#?}", left(sandbox), kept_by(sandbox));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(mounts::all().iter().all(|mount| !mount.path.starts_with(sandbox.path())), "something stays mounted");
}

#[test]
fn a_container_s_output_and_status_are_passed_on() {
    let Some(image) = image(json!({ "Entrypoint": ["sh", "-c"], "Cmd": ["echo usual"] })).filter(|_| !cannot_mount())
    else {
        return;
    };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    for runtime in runtimes() {
        let ended = |line: &[&str]| {
            let output = run(&sandbox, runtime, line).output().unwrap();
            (printed(&output).to_owned(), output.status.code().unwrap())
        };
        assert_eq!(ended(&[&reference]), ("usual".to_owned(), 0));
        assert_eq!(ended(&["--rm", &reference, "echo other; exit 7"]), ("other".to_owned(), 7));
        // All arguments after the image belong to the container.
        assert_eq!(ended(&["--entrypoint", "ls", &reference, "-d", "--", "/bin"]), ("/bin".to_owned(), 0));
        assert_eq!(ended(&[&reference, "sh -c 'kill -9 $$'; exit $?"]), (String::new(), 137));
        let mut piped = run(&sandbox, runtime, &["-i", "--entrypoint", "cat", &reference]);
        let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        piped.stdin.take().unwrap().write_all(b"through").unwrap();
        assert_eq!(printed(&piped.wait_with_output().unwrap()), "through");
        assert_nothing_left(&sandbox);
    }
}

#[test]
fn a_container_is_as_its_options_say() {
    let config = json!({ "Cmd": ["true"], "Env": ["PATH=/bin", "A=image"], "WorkingDir": "/srv" });
    let Some(image) = image(config).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    let data = sandbox.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("here"), "from outside").unwrap();
    let volume = |more: &str| format!("{}:/deep/data{more}", data.display());
    for runtime in runtimes() {
        let says = |options: &[&str], script: &str| {
            let line = [options, &[&reference[..], "sh", "-c", script]].concat();
            let output = run(&sandbox, runtime, &line).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
            printed(&output).to_owned()
        };
        assert_eq!(says(&["-e", "A=1", "-e", "B=2"], "echo $A $B $PATH; pwd"), "1 2 /bin\n/srv");
        assert_eq!(
            says(&["-u", "app", "-w", "/tmp"], "id; pwd; echo $HOME"),
            "uid=1000(app) gid=1001(app) groups=50(staff)\n/tmp\n/home/app"
        );
        assert_eq!(says(&["-u", "7:8"], "id -u; id -g"), "7\n8");
        assert_eq!(says(&["--network=none", "--name=web"], "hostname; ls /sys/class/net"), "web\nlo");
        assert_eq!(says(&["-v", &volume("")], "cat /deep/data/here; echo new > /deep/data/new"), "from outside");
        assert_eq!(std::fs::read(data.join("new")).unwrap(), b"new\n");
        std::fs::remove_file(data.join("new")).unwrap();
        assert_eq!(
            says(&["--read-only", "-v", &volume(":ro")], "touch /x || touch /deep/data/x || cat /deep/data/here"),
            "from outside"
        );
        assert_eq!(
            says(&[], "test -e /etc/new || touch /etc/new; echo $(ls /etc/new)"),
            "/etc/new",
            "a fresh one each time"
        );
    }
    assert_nothing_left(&sandbox);
}

#[test]
fn what_a_container_writes_can_be_kept() {
    let Some(image) = image(json!({ "Cmd": ["sh", "-c", "cat /etc/new; echo x >> /etc/new"] })) else { return };
    let Some(runtime) = runtimes().into_iter().next().filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    let keep = sandbox.path().join("keep");
    for before in ["", "x", "x\nx"] {
        let output = run(&sandbox, runtime, &["--keep", keep.to_str().unwrap(), &reference]).output().unwrap();
        assert_eq!(printed(&output), before);
    }
    assert_eq!(std::fs::read(keep.join("diff/etc/new")).unwrap(), b"x\nx\nx\n");
    let manifest = std::fs::read_to_string(keep.join("image")).unwrap().trim().parse().unwrap();
    let writable = Writable::Directory(keep.clone());
    let held = peelfs::host::writable::take(Some(&writable), &sandbox.path().join("mnt"), &manifest);
    let output = run(&sandbox, runtime, &["--keep", keep.to_str().unwrap(), &reference]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(said(&output).contains("is in use by another mount or container"), "{}", said(&output));
    drop(held);
    assert_nothing_left(&sandbox);
}

/// Signals are forwarded to the container; only SIGKILL ends the command itself.
#[test]
fn signals_are_passed_on_to_the_container() {
    let Some(image) = image(json!({})).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    for runtime in runtimes() {
        let script = "trap 'echo caught; exit 9' TERM; trap 'echo used' USR1; echo ready; while :; do sleep 0.01; done";
        let mut running = Running::start(&sandbox, runtime, &[&reference, "sh", "-c", script]);
        assert_eq!(running.line(), "ready");
        running.signal(Signal::USR1);
        assert_eq!(running.line(), "used");
        running.signal(Signal::TERM);
        assert_eq!(running.line(), "caught");
        assert_eq!(running.process.wait().unwrap().code(), Some(9));
        // The first process of a container does not die of what it does not handle; the third time it is killed.
        let mut stubborn = Running::start(&sandbox, runtime, &[&reference, "sh", "-c", "echo ready; exec sleep 1000"]);
        assert_eq!(stubborn.line(), "ready");
        let begun = Instant::now();
        while stubborn.process.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(60) {
            stubborn.signal(Signal::INT);
            std::thread::sleep(Duration::from_millis(5));
        }
        // Two that come before the runtime has noted that the program runs end the container as well, and crun ends by one that
        // comes before it listens to signals.
        assert!(matches!(stubborn.process.wait().unwrap().code(), Some(137 | 130)));
        assert_nothing_left(&sandbox);
    }
}

/// A runtime that hangs before the program runs, and what it would end with by a signal.
#[test]
fn a_signal_before_the_program_runs_ends_the_container() {
    let Some(image) = image(json!({ "Cmd": ["true"] })).filter(|_| !cannot_mount()) else { return };
    let Some(real) = runtimes().into_iter().next() else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    let runtime = sandbox.path().join("runtime");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *delete*) exec {real} \"$@\";; esac\ntrap 'exit 2' INT TERM\necho starts\nread forever < {}\n",
        sandbox.path().join("never").display()
    );
    std::fs::write(&runtime, script).unwrap();
    std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
    let made = Command::new("mkfifo").arg(sandbox.path().join("never")).status().unwrap();
    assert!(made.success());
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut hanging = Running::start(&sandbox, runtime.to_str().unwrap(), &[&reference]);
        assert_eq!(hanging.line(), "starts");
        let begun = Instant::now();
        while hanging.process.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(60) {
            hanging.signal(signal);
            support::pause();
        }
        assert_eq!(hanging.process.wait().unwrap().code(), Some(status));
    }
    assert_nothing_left(&sandbox);
}

#[test]
fn nothing_is_left_where_the_command_is_killed() {
    let Some(image) = image(json!({})).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    for runtime in runtimes() {
        let mut running = Running::start(&sandbox, runtime, &[&reference, "sh", "-c", "echo ready; exec sleep 1000"]);
        assert_eq!(running.line(), "ready");
        running.signal(Signal::KILL);
        running.process.wait().unwrap();
        assert_nothing_left(&sandbox);
    }
}

/// As a runtime does that cannot remove a control group.
#[test]
fn nothing_is_left_where_the_runtime_deletes_nothing() {
    let Some(image) = image(json!({})).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    for runtime in runtimes() {
        let failing = sandbox.path().join(format!("failing-{runtime}"));
        let text = format!("#!/bin/sh\ncase \" $* \" in *' delete '*) exit 1 ;; esac\nexec {runtime} \"$@\"\n");
        std::fs::write(&failing, text).unwrap();
        std::fs::set_permissions(&failing, std::fs::Permissions::from_mode(0o755)).unwrap();
        let line = [&reference, "sh", "-c", "sleep 1000 & echo ready; exec sleep 1000"];
        let mut running = Running::start(&sandbox, failing.to_str().unwrap(), &line);
        assert_eq!(running.line(), "ready");
        running.signal(Signal::KILL);
        running.process.wait().unwrap();
        assert_nothing_left(&sandbox);
    }
}

#[test]
fn a_container_of_a_cached_image_needs_no_server() {
    let Some(image) = image(json!({})).filter(|_| !cannot_mount()) else { return };
    let Some(runtime) = runtimes().into_iter().next() else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    sandbox.mount_with(&reference, "m", &[]).unmount();
    let mut running = Running::start(&sandbox, runtime, &[&reference, "sh", "-c", "echo ready; exec sleep 1000"]);
    assert_eq!(running.line(), "ready");
    let own = left(&sandbox);
    assert!(!own.iter().any(|process| process.contains("host\0server")), "the kernel serves it: {own:?}");
    running.signal(Signal::KILL);
    running.process.wait().unwrap();
    assert_nothing_left(&sandbox);
    // Bundles as well; a mount that outlives the command is on record for `umount --all`.
    let bundle = sandbox.path().join("bundle");
    let made = sandbox.peelfs(["bundle", "--entrypoint=true", &reference]).arg(&bundle).output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
    let kinds = || mounts::all().into_iter().filter(|mount| mount.path.starts_with(&bundle)).map(|mount| mount.kind);
    assert_eq!(kinds().collect::<Vec<_>>(), ["erofs", "overlay"]);
    let unmounted = sandbox.unmount_all();
    assert!(unmounted.status.success(), "{}", said(&unmounted));
    assert_eq!(kinds().count(), 0);
    // If that is not wanted.
    let again = ["bundle", "--kernel", "never", "--entrypoint=true", &reference];
    let made = sandbox.peelfs(again).arg(sandbox.path().join("again")).output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
    assert!(left(&sandbox).iter().any(|process| process.contains("host\0server")), "a process serves it");
    let unmounted = sandbox.unmount_all();
    assert!(unmounted.status.success(), "{}", said(&unmounted));
}

#[test]
fn containers_of_one_image_run_side_by_side() {
    let Some(image) = image(json!({ "Cmd": ["sh", "-c", "echo $$ > /etc/own; cat /etc/own"] })) else { return };
    let Some(runtime) = runtimes().into_iter().next().filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    let start = || run(&sandbox, runtime, &[&reference]).stdout(Stdio::piped()).spawn().unwrap();
    let running: Vec<_> = (0..4).map(|_| start()).collect();
    for process in running {
        assert_eq!(printed(&process.wait_with_output().unwrap()), "1");
    }
    assert_nothing_left(&sandbox);
}

#[test]
fn a_cached_image_runs_while_its_registry_is_away() {
    let Some(image) = image(json!({ "Cmd": ["cat", "/etc/group"], "Env": ["PATH=/bin"] })) else { return };
    let Some(runtime) = runtimes().into_iter().next().filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::default()).unwrap();
    registry.push("library/image", "1", &image);
    let reference = registry.reference("library/image", "1");
    let never_seen = run(&sandbox, runtime, &[&reference]).output().unwrap();
    assert!(never_seen.status.success(), "{}", said(&never_seen));
    drop(registry);
    let cached = run(&sandbox, runtime, &["--offline", &reference]).output().unwrap();
    assert!(cached.status.success(), "{}", said(&cached));
    assert_eq!(printed(&cached), printed(&never_seen));
    assert_nothing_left(&sandbox);
}

#[test]
fn what_cannot_run_is_said_and_leaves_nothing() {
    let Some(image) = image(json!({ "User": "missing" })).filter(|_| !cannot_mount()) else { return };
    let Some(runtime) = runtimes().into_iter().next() else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    for (line, wanted) in [
        (&[&reference[..], "true"][..], "user `missing` is not in the image's /etc/passwd"),
        (&["-u", "0", &reference], "the image has no command"),
        (&["-t", &reference, "true"], "stdin is not a terminal"),
        (&["-v", "nothing:/x", &reference, "true"], "`nothing` is a named volume"),
        (&["-v", "./nothing:/x", &reference, "true"], "cannot use `./nothing` as a volume"),
        (&["-u", "0", "-w", "etc", &reference, "true"], "`etc` is not an absolute path in the container"),
        (&["--tmpfs", "/proc", &reference, "true"], "cannot mount on `/proc`: /proc is the kernel's"),
        (&["-v", "/etc:/proc/1", &reference, "true"], "cannot mount on `/proc/1`: /proc is the kernel's"),
        (&["-v", "/etc:/", &reference, "true"], "cannot mount on `/`: it is the container's root file system"),
        (&["--hostname", "a b", &reference, "true"], "`a b` is not a host name"),
        (&["--hostname", &"n".repeat(65), &reference, "true"], "names have up to 64 letters"),
        (&["-p", "80:80", &reference, "true"], "`peelfs run` does not have `-p`"),
        (&["--no-such-option", &reference, "true"], "unexpected argument '--no-such-option'"),
        (&["--platform", "linux/s390x", &reference, "true"], "there is no image for linux/s390x"),
    ] {
        let output = run(&sandbox, runtime, line).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{}", said(&output));
        assert!(said(&output).contains(wanted), "{wanted}: {}", said(&output));
    }
    let output = sandbox.run(["run", "--runtime", "runc-2", &reference, "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(said(&output).contains("no such container runtime: `runc-2`"), "{}", said(&output));
    for (silent, status) in [("true", 0), ("false", 1)] {
        let keep = sandbox.path().join("keep");
        let keeping = ["--runtime", silent, "--user=0", "--keep", keep.to_str().unwrap()];
        let output = sandbox.peelfs(["run"]).args(keeping).args([&reference, "true"]).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{}", said(&output));
        let wanted = format!("{silent} has not started the container, and ended with status {status}");
        assert!(said(&output).contains(&wanted), "{}", said(&output));
        assert!(!keep.exists(), "what a refused command has made is taken away again");
    }
    let mut without = sandbox.peelfs(["run", &reference, "true"]);
    let output = without.env("PATH", sandbox.path()).output().unwrap();
    if !["runc", "crun"].iter().any(|name| Path::new("/usr/sbin").join(name).exists()) {
        assert!(said(&output).contains("hint: install one, as with `apt install crun`"), "{}", said(&output));
    }
    assert_nothing_left(&sandbox);
}

/// A container that runs, and what it prints.
struct Running {
    process: Child,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(sandbox: &Sandbox, runtime: &str, line: &[&str]) -> Self {
        let mut process = run(sandbox, runtime, line).stdout(Stdio::piped()).spawn().unwrap();
        let lines = std::io::BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.process), signal);
    }
}
