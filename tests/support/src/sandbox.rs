//! A place to run peelfs in: directories of its own, real mounts, and nothing left behind.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use peelfs::store::{Freed, Keep, Store};
use peelfs_loopback::image::Layer;
use rustix::process::{Pid, Signal, kill_process};

/// Why this machine cannot mount, if it cannot; said on stderr for those who read test logs.
pub fn cannot_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    let device = File::options().read(true).write(true).open("/dev/fuse");
    match (root, device) {
        (true, Ok(_)) => false,
        (false, _) => {
            eprintln!("skipped: only root may mount and see all owners here");
            true
        }
        (true, Err(error)) => {
            eprintln!("skipped: cannot open /dev/fuse: {error}");
            true
        }
    }
}

/// The program that is tested, as cargo built it beside the tests.
pub fn program() -> PathBuf {
    assert_cmd::cargo::cargo_bin("peelfs")
}

/// Whether a program is there; said on stderr if it is not.
pub fn is_missing(program: &str) -> bool {
    let missing = Command::new(program).arg("--version").output().is_err();
    if missing {
        eprintln!("skipped: needs {program}");
    }
    missing
}

/// Makes a call that waits with a time limit, and makes it again when a signal to this process breaks it off: the kernel
/// does not start such a call again (signal(7)).
///
/// # Errors
/// Those of the call.
pub fn uninterrupted<T, E: Into<io::Error>>(mut call: impl FnMut() -> Result<T, E>) -> io::Result<T> {
    loop {
        match call().map_err(Into::into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// What a person sees of a line of arguments of the program, in the environment and directory of `plain`.
pub fn on_terminal(plain: &Command, line: &str) -> Output {
    terminal(plain, line).output().unwrap()
}

/// A terminal with the program on it, which prints what a person sees; by script(1).
pub fn terminal(plain: &Command, line: &str) -> Command {
    let mut script = Command::new("script");
    script.args(["-qec", &format!("'{}' {line}", program().display()), "/dev/null"]).env_clear();
    script.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    plain.get_current_dir().map(|directory| script.current_dir(directory));
    script.env("SHELL", "/bin/sh").env("TERM", "xterm").env("NO_COLOR", "1").stdin(Stdio::null());
    script
}

/// A cache, a runtime directory and mount points.
pub struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["home", "run", "mnt"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn cache(&self) -> PathBuf {
        self.path().join("home/cache")
    }

    /// The cache, opened as another process would.
    pub fn store(&self) -> Arc<Store> {
        Arc::new(Store::open(&self.cache(), None).unwrap())
    }

    /// Drops cached content; indexes stay. Nothing may be mounted.
    pub fn drop_content(&self) -> Freed {
        let begun = Instant::now();
        loop {
            let freed = self.store().prune(Keep::Indexes).unwrap();
            if freed.held == 0 {
                return freed;
            }
            // Another test that starts a program has this one's open files until the program runs.
            assert!(begun.elapsed().as_secs() < 10, "a layer was still in use");
            super::pause();
        }
    }

    /// The files of a bucket of the cache, by path.
    pub fn bucket(&self, bucket: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut pending = vec![self.cache().join(bucket)];
        while let Some(dir) = pending.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { pending.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        files
    }

    /// A command line of peelfs that sees nothing of this machine's user.
    pub fn peelfs(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(program());
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.path().join("home")).env("XDG_RUNTIME_DIR", self.path().join("run"));
        command.env("PEELFS_CACHE_DIR", self.cache());
        command
    }

    pub fn run(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        self.peelfs(args).output().unwrap()
    }

    /// A fresh mount point.
    pub fn mount_point(&self, name: &str) -> MountPoint<'_> {
        let path = self.path().join("mnt").join(name);
        std::fs::create_dir_all(&path).unwrap();
        MountPoint { sandbox: self, path }
    }

    /// Mounts in the background; every layer is verified when this returns.
    pub fn mount(&self, reference: &str, name: &str) -> MountPoint<'_> {
        self.mount_with(reference, name, &[])
    }

    /// As [`Sandbox::mount`], with more options.
    pub fn mount_with(&self, reference: &str, name: &str, more: &[&str]) -> MountPoint<'_> {
        let at = self.mount_point(name);
        let output = at.try_mount(reference, &[&["--wait"], more].concat());
        assert!(output.status.success(), "mount: {}", said(&output));
        at
    }

    /// `umount --all`, again while something is busy: another test that starts a program has this one's open files until
    /// the program runs.
    pub fn unmount_all(&self) -> Output {
        let begun = Instant::now();
        loop {
            let output = self.run(["umount", "--all"]);
            let busy = said(&output).contains("files on it are open");
            if output.status.success() || !busy || begun.elapsed().as_secs() > 10 {
                return output;
            }
            super::pause();
        }
    }

    /// What the logs of background processes say.
    pub fn logs(&self) -> String {
        let run = self.path().join("run/peelfs");
        let logs = std::fs::read_dir(run).into_iter().flatten().map(|entry| entry.unwrap().path());
        let logs = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect()
    }
}

/// A directory to mount on; unmounted when dropped, whatever happened.
pub struct MountPoint<'a> {
    sandbox: &'a Sandbox,
    pub path: PathBuf,
}

impl MountPoint<'_> {
    pub fn try_mount(&self, reference: &str, more: &[&str]) -> Output {
        let mut command = self.sandbox.peelfs(["mount", reference]);
        command.arg(&self.path).args(more).output().unwrap()
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }

    /// Whether anything is mounted here.
    pub fn is_mounted(&self) -> bool {
        peelfs::fuse::mounts::at(&self.path).is_some()
    }

    /// Unmounts and waits for the serving process to end.
    pub fn unmount(&self) {
        let begun = Instant::now();
        loop {
            let output = self.sandbox.peelfs(["umount"]).arg(&self.path).output().unwrap();
            if output.status.success() {
                break;
            }
            // Another test that starts a program has this one's open files until the program runs.
            let busy = said(&output).contains("files on it are open");
            assert!(busy && begun.elapsed().as_secs() < 10, "umount: {}", said(&output));
            super::pause();
        }
        assert!(!self.is_mounted());
    }

    /// The process that serves this mount.
    pub fn server(&self) -> i32 {
        let begun = Instant::now();
        loop {
            if let Some(state) = self.state() {
                return state["pid"].as_i64().unwrap() as i32;
            }
            // A listing of the directory may miss a file that is being replaced.
            assert!(begun.elapsed().as_secs() < 10, "no process serves {}", self.path.display());
            super::pause();
        }
    }

    /// Sends a signal to the process that serves this mount. One that is to stop has stopped when this returns.
    pub fn signal(&self, signal: Signal) {
        let server = self.server();
        kill_process(Pid::from_raw(server).unwrap(), signal).unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{server}/status")).unwrap();
        while signal == Signal::STOP && !state().contains("\nState:\tT") {
            super::pause();
        }
    }

    /// Kills the process that serves this mount and waits until another one does.
    pub fn kill_server(&self) {
        let before = self.server();
        self.signal(Signal::KILL);
        self.until_served_by_another(before);
    }

    /// Has the process that serves this mount exchanged, as `peelfs upgrade` does; returns what that says.
    pub fn upgrade(&self) -> String {
        let before = self.server();
        let output = self.sandbox.peelfs(["upgrade"]).arg(&self.path).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        self.until_served_by_another(before);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until another process than `before` serves this mount.
    pub fn until_served_by_another(&self, before: i32) {
        while self.state().is_none_or(|state| state["pid"] == before) {
            super::pause();
        }
    }

    /// What a living process tells of this mount, if one does.
    pub fn state(&self) -> Option<serde_json::Value> {
        let run = self.sandbox.path().join("run/peelfs");
        for entry in std::fs::read_dir(run).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            // It may just be written, or removed.
            let Ok(text) = std::fs::read(path) else { continue };
            let Ok(state) = serde_json::from_slice::<serde_json::Value>(&text) else { continue };
            let alive = std::fs::read_to_string(format!("/proc/{}/stat", state["pid"]))
                .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']));
            if alive && state["at"] == *self.path.to_str().unwrap() {
                return Some(state);
            }
        }
        None
    }
}

impl Drop for MountPoint<'_> {
    fn drop(&mut self) {
        while self.is_mounted() {
            if peelfs::fuse::unmount(&self.path, peelfs::fuse::OpenFiles::Keep).is_err() {
                break;
            }
        }
    }
}

/// One of the two files that a cache has of a layer's content, `data` or `map`.
pub fn content_file(cache: &Path, layer: &Layer, extension: &str) -> PathBuf {
    let name = format!("{}.{}.{extension}", layer.digest.hex(), &layer.diff_id.hex()[..32]);
    cache.join("content-v2/sha256").join(name)
}

/// Everything a command said, for messages.
pub fn said(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
