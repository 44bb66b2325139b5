//! Verifiers: programs that decide whether an image may be used, with the interface of containerd's `bindir` image
//! verifier (containerd, docs/image-verification.md).
//!
//! Each program of a directory is started with `-name`, `-digest` and `-stdin-media-type`, reads the image's descriptor
//! from stdin, and allows the image by exit status 0; its output is the reason. All of them must allow it. An empty directory
//! refuses nothing, nor does the usual one ([`DEFAULT_DIR`]) if it is missing.
//!
//! Artifacts with indexes of layers are asked about in the same way ([`IndexVerifiers`]), of verifiers of their own: they are made
//! by others than images are. There, a directory without a verifier allows nothing, since without an index a layer is read
//! as any other.
//!
//! containerd skips programs beyond its limit; here too many programs are an error. So is a program that other users
//! can write to, and a missing directory that was named: containerd allows all images then, and a mistyped name would
//! switch the verifiers off without a sign.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::process;
use super::spec::Access;
use crate::content::{ArtifactCheck, Refusal};
use crate::descriptor::Descriptor;
use crate::image::Network;
use crate::process_group::ProcessGroup;
use crate::source::BoxFuture;
use crate::sync::lock;

/// The default directory.
pub const DEFAULT_DIR: &str = "/etc/peelfs/verifiers";

/// The default directory for artifacts with indexes.
pub const DEFAULT_INDEX_DIR: &str = "/etc/peelfs/index-verifiers";

/// Limits for verifiers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of verifiers.
    pub count: usize,
    /// Time for each.
    pub time: Duration,
}

impl Default for Limits {
    /// The defaults of containerd.
    fn default() -> Self {
        Self { count: 10, time: Duration::from_secs(10) }
    }
}

/// Why an image is not used.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// A verifier refused it.
    #[error("verifier `{}` refused {name}: {reason}", verifier.display())]
    Refused {
        /// The program.
        verifier: PathBuf,
        /// The image.
        name: String,
        /// Its output, or how it ended.
        reason: String,
    },
    /// A verifier did not answer.
    #[error("verifier `{}` gave no answer about {name} within {} s", verifier.display(), limit.as_secs_f32())]
    Late {
        /// The program.
        verifier: PathBuf,
        /// The image.
        name: String,
        /// The time limit.
        limit: Duration,
    },
    /// A verifier cannot be run.
    #[error("cannot run the verifier `{}`", verifier.display())]
    CannotRun {
        /// The program.
        verifier: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file in the directory is not a program.
    #[error("`{}` is not a verifier: it is not an executable program", path.display())]
    NotAProgram {
        /// The file.
        path: PathBuf,
    },
    /// Other users can write to a verifier.
    #[error("`{}` decides whether images are used, and {who}", path.display())]
    Unsafe {
        /// The file or directory.
        path: PathBuf,
        /// The user.
        who: String,
    },
    /// There is none, and one is needed.
    #[error("`{}` has no verifier, so no artifact with indexes is allowed", directory.display())]
    None {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory that was named does not exist.
    #[error("there is no directory `{}` of verifiers", directory.display())]
    NoDirectory {
        /// The directory.
        directory: PathBuf,
    },
    /// There are too many.
    #[error("`{}` has {count} verifiers; at most {limit} are allowed", directory.display())]
    TooMany {
        /// The directory.
        directory: PathBuf,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The directory or something in it cannot be read.
    #[error("cannot read the verifiers in `{}`", path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// An image to verify.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The image, by its full name.
    pub name: &'a str,
    /// What the name resolves to: an image index or a manifest.
    pub root: &'a Descriptor,
    /// How to reach it, for verifiers that are peelfs itself.
    pub access: &'a Access,
}

/// Asks all verifiers of `directory` about an image. A positive answer is cached in this process until a program
/// changes.
///
/// # Errors
/// [`VerifierError`]: the image must not be used.
pub async fn ask(directory: &Path, question: &Question<'_>, limits: &Limits) -> Result<(), VerifierError> {
    if directory.as_os_str().is_empty() {
        return Ok(());
    }
    let Some((verifiers, state)) = list(directory, limits)? else {
        // Only the usual directory need not be there.
        let is_usual = directory == Path::new(DEFAULT_DIR);
        return if is_usual { Ok(()) } else { Err(VerifierError::NoDirectory { directory: directory.to_owned() }) };
    };
    if verifiers.is_empty() {
        return Ok(());
    }
    ask_all(directory, question, limits, &verifiers, &state).await
}

/// Verifiers of artifacts with indexes.
#[derive(Clone, Debug)]
pub struct IndexVerifiers {
    /// Their directory.
    pub directory: PathBuf,
    /// How to reach the image, for verifiers that are peelfs itself.
    pub access: Access,
}

impl ArtifactCheck for IndexVerifiers {
    fn check<'a>(&'a self, name: &'a str, artifact: &'a Descriptor) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            let question = Question { name, root: artifact, access: &self.access };
            let answer = ask_some(&self.directory, &question, &Limits::default()).await;
            answer.map_err(|error| Refusal {
                why: crate::image::chain(&error).into(),
                others_may_be: matches!(error, VerifierError::Refused { .. }),
            })
        })
    }
}

/// As [`ask`], but without a verifier nothing is allowed.
async fn ask_some(directory: &Path, question: &Question<'_>, limits: &Limits) -> Result<(), VerifierError> {
    let Some((verifiers, state)) = list(directory, limits)? else {
        return Err(VerifierError::NoDirectory { directory: directory.to_owned() });
    };
    if verifiers.is_empty() {
        return Err(VerifierError::None { directory: directory.to_owned() });
    }
    ask_all(directory, question, limits, &verifiers, &state).await
}

/// Asks these verifiers, in the present `state` of their directory.
async fn ask_all(
    directory: &Path,
    question: &Question<'_>,
    limits: &Limits,
    verifiers: &[PathBuf],
    state: &str,
) -> Result<(), VerifierError> {
    let answered = format!("{}\0{}\0{}\0{state}", directory.display(), question.name, question.root.digest);
    if lock(&ALLOWED).contains(&answered) {
        return Ok(());
    }
    for verifier in verifiers {
        run(verifier, question, limits.time).await?;
    }
    let mut allowed = lock(&ALLOWED);
    if allowed.len() >= ALLOWED_LIMIT {
        allowed.clear();
    }
    allowed.insert(answered);
    Ok(())
}

/// The programs in order of their names, and a fingerprint that changes if one is replaced; `None` if there is no such directory.
fn list(directory: &Path, limits: &Limits) -> Result<Option<(Vec<PathBuf>, String)>, VerifierError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |cause| VerifierError::Unreadable { path, cause }
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(directory)(error)),
    };
    check_writers(directory)?;
    let mut verifiers = Vec::new();
    for entry in entries {
        verifiers.push(entry.map_err(unreadable(directory))?.path());
        if verifiers.len() > MANY {
            break;
        }
    }
    if verifiers.len() > limits.count {
        let (directory, count) = (directory.to_owned(), verifiers.len());
        return Err(VerifierError::TooMany { directory, count, limit: limits.count });
    }
    verifiers.sort();
    let mut state = String::new();
    for path in &verifiers {
        check_writers(path)?;
        let metadata = std::fs::metadata(path).map_err(unreadable(path))?;
        if !metadata.is_file() || metadata.mode() & 0o111 == 0 {
            return Err(VerifierError::NotAProgram { path: path.clone() });
        }
        let (device, inode, size) = (metadata.dev(), metadata.ino(), metadata.size());
        let (changed, changed_nanos) = (metadata.ctime(), metadata.ctime_nsec());
        write!(state, "{}\0{device} {inode} {size} {changed}.{changed_nanos}\0", path.display())
            .expect("writing to a string cannot fail");
    }
    Ok(Some((verifiers, state)))
}

/// Refuses a file or directory that users other than root and this one can change.
///
/// # Errors
/// [`VerifierError::Unsafe`], [`VerifierError::Unreadable`]
pub fn check_writers(path: &Path) -> Result<(), VerifierError> {
    let metadata =
        std::fs::metadata(path).map_err(|cause| VerifierError::Unreadable { path: path.to_owned(), cause })?;
    let refused = |who: String| Err(VerifierError::Unsafe { path: path.to_owned(), who });
    let owner = metadata.uid();
    let trusted = owner == 0
        || owner == rustix::process::geteuid().as_raw()
        // In a user namespace, files of an unmapped root belong to the overflow user.
        || (owner == OVERFLOW_USER && process::is_in_user_namespace());
    if !trusted {
        return refused(format!("belongs to user {owner}"));
    }
    if metadata.mode() & 0o022 != 0 {
        return refused(format!("others may write to it (mode {:04o})", metadata.mode() & 0o7777));
    }
    Ok(())
}

/// Runs one verifier.
async fn run(verifier: &Path, question: &Question<'_>, limit: Duration) -> Result<(), VerifierError> {
    let failed = |cause| VerifierError::CannotRun { verifier: verifier.to_owned(), cause };
    // Dropping the group at the time limit kills the verifier and what it has started.
    let mut group = start(verifier, question).map_err(failed)?;
    let Ok(output) = tokio::time::timeout(limit, talk(&mut group, &described(question.root))).await else {
        let (verifier, name) = (verifier.to_owned(), question.name.to_owned());
        return Err(VerifierError::Late { verifier, name, limit });
    };
    let VerifierOutput { status, stdout, stderr } = output.map_err(failed)?;
    let program = verifier.display();
    if !stderr.is_empty() {
        tracing::debug!(verifier = %program, "{stderr}");
    }
    if status.success() {
        tracing::debug!(verifier = %program, image = question.name, "allowed: {stdout}");
        return Ok(());
    }
    let spoken = [stdout, stderr].into_iter().find(|text| !text.is_empty());
    let reason = spoken.unwrap_or_else(|| format!("it gave no reason ({status})"));
    Err(VerifierError::Refused { verifier: verifier.to_owned(), name: question.name.to_owned(), reason })
}

/// The output of a verifier.
struct VerifierOutput {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

fn start(verifier: &Path, question: &Question<'_>) -> io::Result<ProcessGroup> {
    let mut command = Command::new(verifier);
    command.args(["-name", question.name, "-digest", &question.root.digest.to_string()]);
    command.args(["-stdin-media-type", DESCRIPTOR]);
    tell(&mut command, question.access);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    ProcessGroup::spawn(&mut command)
}

/// Writes the descriptor, and waits until the verifier has ended.
async fn talk(group: &mut ProcessGroup, descriptor: &str) -> io::Result<VerifierOutput> {
    let child = &mut group.child;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A verifier that needs only its arguments need not read it.
            let _ = stdin.write_all(descriptor.as_bytes()).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(write, text(stdout), text(stderr));
    let status = group.wait().await?;
    Ok(VerifierOutput { status, stdout: stdout?, stderr: stderr? })
}

/// The environment for a verifier that is peelfs itself, so that it reaches the registry in the same way. podman's
/// programs read the first variable, too.
fn tell(command: &mut Command, access: &Access) {
    command.envs(access.authfile.as_ref().map(|path| ("REGISTRY_AUTH_FILE", path)));
    command.envs(access.insecure.then_some(("PEELFS_INSECURE", "true")));
    command.envs((access.network == Network::Offline).then_some(("PEELFS_OFFLINE", "true")));
    let certificates = std::env::join_paths(&access.ca).ok().filter(|_| !access.ca.is_empty());
    command.envs(certificates.map(|paths| ("PEELFS_CA", paths)));
}

/// The beginning of the output, as one line; the rest is read and dropped, so that the program can write it.
async fn text(from: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut from) = from else { return Ok(String::new()) };
    let mut first = Vec::new();
    (&mut from).take(OUTPUT_LIMIT).read_to_end(&mut first).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    let text = String::from_utf8_lossy(&first);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut shown: String = words.chars().take(SHOWN).collect();
    if words.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    Ok(shown)
}

/// The descriptor, as JSON.
fn described(root: &Descriptor) -> String {
    let mut text = serde_json::json!({
        "mediaType": root.media_type.as_str(),
        "digest": root.digest.to_string(),
        "size": root.size,
    });
    if !root.annotations.is_empty() {
        text["annotations"] = serde_json::json!(root.annotations);
    }
    text.to_string()
}

/// Images that were allowed, with the verifiers.
static ALLOWED: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
const ALLOWED_LIMIT: usize = 1024;
/// The media type of the data on a verifier's stdin.
const DESCRIPTOR: &str = "application/vnd.oci.descriptor.v1+json";
/// The owner of files without a user in this namespace (`/proc/sys/kernel/overflowuid`).
const OVERFLOW_USER: u32 = 65_534;
/// Limit of a verifier's output in bytes, as in containerd.
const OUTPUT_LIMIT: u64 = 32 << 10;
/// Limit of characters shown in an error.
const SHOWN: usize = 500;
/// Limit of files counted in a directory.
const MANY: usize = 1000;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;
    use crate::descriptor::MediaType;
    use crate::digest::{Algorithm, Digest};
    use crate::host::spec::ImageSpec;

    /// A directory with shell scripts.
    fn scripts(scripts: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, script) in scripts {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    async fn asked_within(dir: &Path, limits: &Limits) -> Result<(), VerifierError> {
        let digest = Digest::of(Algorithm::Sha256, dir.as_os_str().as_encoded_bytes());
        let root = Descriptor::new(MediaType::OciIndex, digest, 7);
        let access = ImageSpec::new("a/b".parse().unwrap(), "/nonexistent").access;
        // Another test may be starting a process that holds the script open for writing.
        loop {
            match ask(dir, &Question { name: "docker.io/a/b:1", root: &root, access: &access }, limits).await {
                Err(VerifierError::CannotRun { cause, .. }) if cause.raw_os_error() == Some(26) => {}
                answer => return answer,
            }
        }
    }

    async fn asked(dir: &Path) -> Result<(), VerifierError> {
        asked_within(dir, &Limits::default()).await
    }

    #[tokio::test]
    async fn all_have_to_allow_the_image_and_are_asked_once() {
        let none = asked(Path::new("/nonexistent/verifiers")).await.unwrap_err();
        assert_eq!(none.to_string(), "there is no directory `/nonexistent/verifiers` of verifiers");
        assert!(asked(scripts(&[]).path()).await.is_ok());
        let asked_with = r#"echo "$@" >> "$0.log.$(basename $0)"; cat >> "$0.log.$(basename $0)""#;
        let logs = tempfile::tempdir().unwrap();
        let script = asked_with.replace("$0.log.", &format!("{}/", logs.path().display()));
        let dir = scripts(&[("a", &script), ("b", "echo fine; exit 0")]);
        for _ in 0..2 {
            asked(dir.path()).await.unwrap();
        }
        let log = std::fs::read_to_string(logs.path().join("a")).unwrap();
        assert_eq!(log.matches("-name docker.io/a/b:1 -digest sha256:").count(), 1, "{log}");
        assert!(log.contains(" -stdin-media-type application/vnd.oci.descriptor.v1+json\n"), "{log}");
        let descriptor: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!(descriptor["size"], 7);
        assert_eq!(descriptor["mediaType"], "application/vnd.oci.image.index.v1+json");
        // Another program gives another answer.
        std::fs::write(dir.path().join("b"), "#!/bin/sh\necho no longer; exit 3").unwrap();
        assert!(asked(dir.path()).await.unwrap_err().to_string().ends_with("/b` refused docker.io/a/b:1: no longer"));
    }

    #[tokio::test]
    async fn an_index_needs_a_verifier_that_allows_it() {
        let check = async |dir: &Path| {
            let (directory, access) = (dir.to_owned(), ImageSpec::new("a/b".parse().unwrap(), "/nonexistent").access);
            let digest = Digest::of(Algorithm::Sha256, dir.as_os_str().as_encoded_bytes());
            let artifact = Descriptor::new(MediaType::OciManifest, digest, 7);
            let verifiers = IndexVerifiers { directory, access };
            loop {
                match verifiers.check("r.example/a@sha256:1", &artifact).await {
                    // Another test may be starting a process that holds the script open for writing.
                    Err(refusal) if refusal.why.contains("Text file busy") => {}
                    answer => return answer,
                }
            }
        };
        let (missing, empty) = (Path::new("/nonexistent/verifiers"), scripts(&[]));
        for (none, why) in [(missing, "there is no directory"), (empty.path(), "has no verifier")] {
            let refusal = check(none).await.unwrap_err();
            assert!(refusal.why.contains(why) && !refusal.others_may_be, "{refusal:?}");
        }
        let refusal = check(scripts(&[("a", "exit 0"), ("v", "echo not ours; exit 1")]).path()).await.unwrap_err();
        assert!(
            refusal.why.ends_with("/v` refused r.example/a@sha256:1: not ours") && refusal.others_may_be,
            "{refusal:?}"
        );
        let dir = scripts(&[("v", "exit 0")]);
        check(dir.path()).await.unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let refusal = check(dir.path()).await.unwrap_err();
        assert!(refusal.why.contains("others may write to it") && !refusal.others_may_be, "{refusal:?}");
    }

    #[tokio::test]
    async fn a_refusal_gives_the_reason_whatever_is_printed() {
        for (script, wanted) in [
            ("echo '  not\nsigned  '; exit 1", "refused docker.io/a/b:1: not signed"),
            ("echo told >&2; exit 255", "refused docker.io/a/b:1: told"),
            ("exit 9", "refused docker.io/a/b:1: it gave no reason (exit status: 9)"),
            ("kill -9 $$", "it gave no reason (signal: 9 (SIGKILL))"),
            ("head -c 3000000 /dev/zero | tr '\\0' x; exit 1", "x…"),
        ] {
            let error = asked(scripts(&[("v", script)]).path()).await.unwrap_err().to_string();
            assert!(error.contains(wanted), "{script}: {error}");
            assert!(error.len() < 1000);
        }
        // A verifier that allows may print as much, and read nothing.
        asked(scripts(&[("v", "head -c 3000000 /dev/zero; exec <&-")]).path()).await.unwrap();
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended_with_all_it_started() {
        let mark = tempfile::tempdir().unwrap();
        let path = mark.path().join("pid");
        // The second one holds the pipe.
        for script in ["sleep 1000".to_owned(), format!("sleep 1000 & echo $! > {}; exit 0", path.display())] {
            let (dir, begun) = (scripts(&[("v", &script)]), Instant::now());
            let limits = Limits { time: Duration::from_millis(300), ..Limits::default() };
            let error = asked_within(dir.path(), &limits).await.unwrap_err();
            assert!(error.to_string().ends_with("gave no answer about docker.io/a/b:1 within 0.3 s"), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(100));
        }
        let left = std::fs::read_to_string(&path).unwrap();
        let alive = || match std::fs::read_to_string(format!("/proc/{}/stat", left.trim())) {
            Ok(stat) => !stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X']),
            Err(_) => false,
        };
        while alive() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_others_may_write_to_decides_nothing() {
        let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        let dir = scripts(&[("v", "exit 0")]);
        let program = dir.path().join("v");
        for (path, writable, usual) in [(dir.path(), 0o777, 0o755), (&*program, 0o775, 0o755)] {
            mode(path, writable);
            let error = asked(dir.path()).await.unwrap_err().to_string();
            assert!(error.contains("others may write to it") && error.contains(&*path.to_string_lossy()), "{error}");
            mode(path, usual);
        }
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&program, Some(12_345), None).unwrap();
            assert!(asked(dir.path()).await.unwrap_err().to_string().ends_with("belongs to user 12345"));
            std::os::unix::fs::chown(&program, Some(0), None).unwrap();
        }
        asked(dir.path()).await.unwrap();
        mode(&program, 0o644);
        assert!(matches!(asked(dir.path()).await, Err(VerifierError::NotAProgram { .. })));
        std::fs::remove_file(&program).unwrap();
        std::os::unix::fs::symlink("/nonexistent", &program).unwrap();
        assert!(matches!(asked(dir.path()).await, Err(VerifierError::Unreadable { .. })), "a dangling link");
        let many: Vec<_> = (0..11).map(|n| (format!("v{n}"), "exit 0")).collect();
        let many: Vec<_> = many.iter().map(|(name, script)| (&name[..], *script)).collect();
        assert!(matches!(asked(scripts(&many).path()).await, Err(VerifierError::TooMany { count: 11, .. })));
    }
}
