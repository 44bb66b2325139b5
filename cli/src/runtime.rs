//! The container runtime: choice of one, and its errors when it cannot start a container.
//!
//! A runtime ends with status 1 both where the program did so and where it could not be started. Only the latter is an error
//! in the runtime's log.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ChildStderr;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;

use peelfs::host::open;
use peelfs::host::report::{Code, Report};

/// The requested container runtime, or an installed one.
pub(super) fn find(typed: Option<&Path>) -> Result<PathBuf, Report> {
    let is_program = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    let directories: Vec<_> = directories.filter(|directory| directory.is_absolute()).collect();
    let find = |name: &Path| match name.components().count() {
        1 if name.is_relative() => {
            directories.iter().map(|directory| directory.join(name)).find(|path| is_program(path))
        }
        _ => Some(open::absolute(name)).filter(|path| is_program(path)),
    };
    let found = match typed {
        Some(typed) => find(typed),
        None => usual().into_iter().find_map(|name| find(Path::new(name))),
    };
    found.ok_or_else(|| {
        let what = match typed {
            Some(typed) => format!("no such container runtime: `{}`", typed.display()),
            None => "no container runtime found: neither crun nor runc".to_owned(),
        };
        let package = typed.and_then(Path::to_str).filter(|name| *name == "runc").unwrap_or("crun");
        Report::new(Code::Failure, what).hint(format!("install one, as with `apt install {package}`"))
    })
}

/// The fastest first; crun refuses to work where control groups of both versions are mounted.
fn usual() -> [&'static str; 2] {
    let exists = |path: &str| Path::new("/sys/fs/cgroup").join(path).exists();
    if exists("unified") && !exists("cgroup.controllers") { ["runc", "crun"] } else { ["crun", "runc"] }
}

/// Why a runtime did not start the program of a container.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// The program is not in the container.
    NotFound,
    /// It exists, but cannot be run.
    NotRunnable,
    /// Something else failed.
    Other(String),
    /// It has ended with this status, and has not said why.
    Silent(u8),
}

impl Refusal {
    /// The error in a runtime's log; `None` if the program was started.
    pub(super) fn in_log(log: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line {
            level: String,
            msg: String,
        }
        let failed = log.lines().filter_map(|line| match serde_json::from_str::<Line>(line) {
            Ok(line) => matches!(line.level.as_str(), "error" | "fatal" | "panic").then(|| Self::said(&line.msg)),
            // crun writes its errors alone, as they are.
            Err(_) => (!line.trim().is_empty()).then(|| Self::said(line)),
        });
        // Later errors are consequences.
        failed.min_by_key(|refusal| matches!(refusal, Self::Other(_)))
    }

    fn said(message: &str) -> Self {
        let message = message.trim();
        let is_of_program =
            ["exec: \"", "exec /", "executable", "exec container process"].iter().any(|words| message.contains(words));
        let lower = message.to_ascii_lowercase();
        let says = |words: &[&str]| is_of_program && words.iter().any(|word| lower.contains(word));
        if says(&["permission denied", "operation not permitted", "is a directory"]) {
            Self::NotRunnable
        } else if says(&["not found in", "no such file or directory", "not a directory"]) {
            Self::NotFound
        } else {
            Self::Other(message.to_owned())
        }
    }

    /// The exit status, as of podman and docker.
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::NotFound => 127,
            Self::NotRunnable => 126,
            Self::Other(_) | Self::Silent(_) => FAILED,
        }
    }

    /// The error message for `runtime` and `program`.
    pub(super) fn report(&self, runtime: &Path, program: &str) -> Report {
        let report = |message| Report::new(Code::Failure, message);
        let name = runtime.file_name().unwrap_or(runtime.as_os_str()).to_string_lossy();
        match self {
            Self::NotFound if program.starts_with('-') => report(format!("the container has no program `{program}`"))
                .hint("options of `peelfs run` come before the image"),
            Self::NotFound if program.contains(char::is_whitespace) => {
                report(format!("the container has no program `{program}`"))
                    .hint("write its arguments as separate words, or run a shell: `sh -c '…'`")
            }
            Self::NotFound => report(format!("the container has no program `{program}`"))
                .hint("`peelfs ls IMAGE /bin` shows what is in the image"),
            Self::NotRunnable => {
                report(format!("the container cannot run `{program}`: it is not a file that its user may execute"))
            }
            Self::Other(message) => report(format!("{name} cannot start the container: {message}")),
            Self::Silent(status) => {
                report(format!("{name} has not started the container, and ended with status {status}"))
                    .hint("name a container runtime with `--runtime`, as runc or crun")
            }
        }
    }
}

/// The stderr of a runtime, which is that of its container as well, and is passed on.
///
/// A runtime that cannot start a program writes why to its log and to stderr. The latter is kept back, as the log is what is
/// reported: the program writes nothing before it runs, and then `started` exists.
pub(super) struct Stderr(JoinHandle<Vec<u8>>);

impl Stderr {
    /// Passes on what comes from now on.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(super) fn pass_on(from: ChildStderr, started: PathBuf) -> io::Result<Self> {
        std::thread::Builder::new().name("stderr".into()).spawn(move || relay(from, &started)).map(Self)
    }

    /// What was kept back, after the runtime has ended.
    pub(super) fn end(self) -> Vec<u8> {
        self.0.join().unwrap_or_default()
    }
}

fn relay(mut from: ChildStderr, started: &Path) -> Vec<u8> {
    let (mut kept_back, mut piece) = (Vec::new(), vec![0; PIECE]);
    let mut is_passed_on = false;
    loop {
        if !is_passed_on && !kept_back.is_empty() {
            let ready = poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&LOOK));
            if started.exists() || kept_back.len() > LARGEST_MESSAGE {
                is_passed_on = true;
                if io::stderr().write_all(&kept_back).is_err() {
                    return Vec::new();
                }
                kept_back.clear();
            }
            if ready == Ok(0) {
                continue;
            }
        }
        let read = match from.read(&mut piece) {
            Ok(0) => return kept_back,
            Ok(count) => &piece[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return kept_back,
        };
        match is_passed_on {
            // The container notices that its reader is gone as well.
            true if io::stderr().write_all(read).is_err() => return Vec::new(),
            true => {}
            false => kept_back.extend_from_slice(read),
        }
    }
}

const PIECE: usize = 64 << 10;
const LARGEST_MESSAGE: usize = 64 << 10;
/// How soon it is noticed that a program that has written at once does run.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: Duration::from_millis(10).as_nanos() as i64 };

/// The exit status where a container was not started, as of podman and docker.
pub(super) const FAILED: u8 = 125;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_say_of_a_program_is_understood() {
        for (log, wanted) in [
            ("", None),
            (r#"{"level":"warning","msg":"exec: \"x\": permission denied"}"#, None),
            ("\n", None),
            ("mount `tmpfs` to `x`: Invalid argument", Some(125)),
            ("open executable: Operation not permitted", Some(126)),
            (
                r#"{"level":"error","msg":"runc run failed: unable to start container process: exec: \"nope\": executable file not found in $PATH\n","time":"t"}"#,
                Some(127),
            ),
            (
                r#"{"msg":"executable file `nope` not found in $PATH: No such file or directory","level":"error"}"#,
                Some(127),
            ),
            (
                r#"{"level":"error","msg":"runc run failed: unable to start container process: exec: \"/etc/passwd\": permission denied\n"}"#,
                Some(126),
            ),
            (r#"{"msg":"open executable: Permission denied","level":"error"}"#, Some(126)),
            (r#"{"level":"error","msg":"mkdir /x: permission denied"}"#, Some(125)),
            (r#"{"level":"error","msg":"error mounting \"/none\": no such file or directory"}"#, Some(125)),
        ] {
            assert_eq!(Refusal::in_log(log).map(|refusal| refusal.status()), wanted, "{log}");
        }
    }
}
