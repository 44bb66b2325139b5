//! What a mount does, told by the process that serves it: what was fetched and why, who waits for how long.
//!
//! Each mount has a socket for such questions beside the one for its [status](super::status); a conversation there is one
//! of the versioned [`wire`](super::wire). A question is answered from counters and a look at some pages of indexes, so
//! asking once a second costs less than 1 % of a CPU.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::channel::{AsyncChannel, Channel, ChannelError, Listener};
use super::wire::v1::activity::{
    FileActivity, LayerActivity, LayerState, MountActivity, Question, RegistryActivity, Told, WaitingRequest,
};
use super::wire::{self, WirePath};
use crate::fuse::{PendingRequest, RequestCounts, Requests};
use crate::image::{FileReport, ImageActivity, ImageFs, LayerProgress, LayerReport};
use crate::overlay::NodeId;
use crate::source::BlobSource as _;
use crate::source::registry::RegistrySource;

/// The activity of one mount.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activity {
    /// As a whole.
    pub mount: MountActivity,
    /// Its layers, base first.
    pub layers: Vec<LayerActivity>,
    /// The files that were active last, the last one first.
    pub files: Vec<FileActivity>,
    /// The requests that wait now, the longest first.
    pub waiting: Vec<WaitingRequest>,
}

/// Why a mount's activity is not known.
#[derive(Debug, thiserror::Error)]
pub enum ActivityError {
    /// A release before there was this question serves the mount.
    #[error("an older release of peelfs serves it; `peelfs upgrade` lets this one do so")]
    Old,
    /// It could not be asked.
    #[error("the process that serves it cannot be asked")]
    Channel(#[source] ChannelError),
    /// It answers with something else.
    #[error("the process that serves it does not know the answer: {why}")]
    Refused {
        /// What it said.
        why: String,
    },
}

impl<E: Into<ChannelError>> From<E> for ActivityError {
    fn from(cause: E) -> Self {
        Self::Channel(cause.into())
    }
}

impl Activity {
    /// Asks at the socket of a mount, if it has one.
    pub(super) fn ask(socket: Option<&Path>, files: u32) -> Result<Self, ActivityError> {
        let channel = Channel::connect(socket.ok_or(ActivityError::Old)?)?;
        channel.set_timeout(ANSWER_WITHIN)?;
        channel.offer()?;
        channel.send(&Question::Activity { files }, None)?;
        let mut all = Self::default();
        loop {
            let (text, _) = channel.receive()?.ok_or(ChannelError::Gone)?;
            match wire::parse::<Told>(&text).map_err(ChannelError::Wire)? {
                Told::Mount(mount) => all.mount = *mount,
                Told::Layers(layers) => all.layers.extend(layers),
                Told::Files(some) => all.files.extend(some),
                Told::Waiting(some) => all.waiting.extend(some),
                Told::End => return Ok(all),
                Told::Refused { why } => return Err(ActivityError::Refused { why }),
            }
        }
    }

    /// Of an image that this process shows.
    pub(super) fn of(fs: &ImageFs, registry: Option<&RegistrySource>, requests: &Requests, files: u32) -> Self {
        let seen = fs.activity();
        let mount = MountActivity { image_bytes: fs.size(), ..mount(registry, requests) };
        Self::new(mount, seen, files).waiting_for(requests, |node| fs.path_of(node))
    }

    /// With the layers and `most` files of an image.
    pub(super) fn new(mount: MountActivity, seen: ImageActivity, most: u32) -> Self {
        let ImageActivity { layers, mut files } = seen;
        files.sort_by_key(|file| file.idle);
        let files = files.iter().take(most as usize).map(FileActivity::from).collect();
        Self { mount, layers: layers.iter().map(LayerActivity::from).collect(), files, waiting: Vec::new() }
    }

    /// With the requests that wait. `path` knows nodes.
    pub(super) fn waiting_for(self, requests: &Requests, path: impl Fn(NodeId) -> Option<Vec<u8>>) -> Self {
        let pending = requests.pending();
        let waiting = pending.iter().take(MOST_WAITING).map(|request| waiting(request, path(request.node))).collect();
        Self { mount: MountActivity { waiting: pending.len() as u64, ..self.mount }, waiting, ..self }
    }

    fn messages(self) -> Vec<Told> {
        let Self { mount, layers, files, waiting } = self;
        let mut messages = vec![Told::Mount(Box::new(mount))];
        messages.extend(packed(layers).map(Told::Layers));
        messages.extend(packed(files).map(Told::Files));
        messages.extend(packed(waiting).map(Told::Waiting));
        messages.push(Told::End);
        messages
    }
}

/// What requests of the kernel and to the registry add to the activity of a mount.
pub(super) fn mount<'a>(
    registries: impl IntoIterator<Item = &'a RegistrySource>,
    requests: &Requests,
) -> MountActivity {
    let RequestCounts { received, failed, waits, waited_us } = requests.counts();
    let registry = registries.into_iter().map(registry).reduce(|sum, one| RegistryActivity {
        requests: sum.requests + one.requests,
        received_bytes: sum.received_bytes + one.received_bytes,
        retries: sum.retries + one.retries,
        resumptions: sum.resumptions + one.resumptions,
        logins: sum.logins + one.logins,
        failing: sum.failing + one.failing,
        failing_s: sum.failing_s.max(one.failing_s),
    });
    MountActivity { registry, requests: received, failed, waits: waits.into(), waited_us, ..MountActivity::default() }
}

fn registry(registry: &RegistrySource) -> RegistryActivity {
    let stats = registry.stats();
    let failing = registry.outages().map(|outages| outages.status()).unwrap_or_default();
    RegistryActivity {
        requests: stats.requests,
        received_bytes: stats.bytes_received,
        retries: stats.retries,
        resumptions: stats.resumptions,
        logins: stats.renewals,
        failing: failing.len() as u64,
        failing_s: failing.iter().map(|wait| wait.seconds).max().unwrap_or(0),
    }
}

impl From<&LayerReport> for LayerActivity {
    fn from(report: &LayerReport) -> Self {
        let LayerReport { number, digest, size, state, decoded_size, cached_bytes, counts, stats } = report;
        Self {
            number: u32::from(number.0) + 1,
            digest: digest.to_string(),
            size: *size,
            state: match state {
                LayerProgress::Waiting | LayerProgress::Other => LayerState::Waiting,
                LayerProgress::Reading => LayerState::Reading,
                LayerProgress::Ready => LayerState::Ready,
                LayerProgress::Failed => LayerState::Failed,
            },
            decoded_size: *decoded_size,
            cached_bytes: *cached_bytes,
            fetched: counts.bytes.into(),
            fetches: counts.requests.into(),
            reads: counts.reads,
            read_bytes: counts.read_bytes,
            waits: counts.waits,
            waited_us: counts.waited_us,
            failed: counts.failures,
            damaged_spans: stats.damaged_spans,
            repeated_spans: stats.repeated_spans,
            unkept_spans: stats.unkept_spans,
        }
    }
}

impl From<&FileReport> for FileActivity {
    fn from(report: &FileReport) -> Self {
        let FileReport { layer, path, size, bytes, waits, waited, longest, idle } = report;
        Self {
            layer: u32::from(layer.0) + 1,
            path: from_root(path),
            size: *size,
            fetched: (*bytes).into(),
            waits: *waits,
            waited_us: us(*waited),
            longest_us: us(*longest),
            idle_ms: us(*idle) / 1000,
        }
    }
}

fn waiting(request: &PendingRequest, path: Option<Vec<u8>>) -> WaitingRequest {
    let PendingRequest { thread, operation, name, waits, .. } = request;
    let pid = process_of(*thread);
    let command = pid.and_then(|pid| std::fs::read(format!("/proc/{pid}/comm")).ok());
    let path = path.map(|mut path| {
        if let Some(name) = name {
            path.extend((!path.is_empty()).then_some(b'/'));
            path.extend(name);
        }
        from_root(&path)
    });
    WaitingRequest {
        pid,
        command: command.map(|name| String::from_utf8_lossy(name.trim_ascii_end()).into_owned()),
        operation: (*operation).to_owned(),
        path,
        waits_us: us(*waits),
    }
}

/// The process of a thread.
fn process_of(thread: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok().filter(|_| thread > 0)?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

/// A path of an image as a person writes it.
fn from_root(path: &[u8]) -> WirePath {
    let shown = &path[..path.len().min(LONGEST_PATH)];
    let whole = [b"/", shown].concat();
    WirePath::from(Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&whole)))
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// As many of `all` as fit into each message.
fn packed<T: Serialize>(all: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut all = all.into_iter().peekable();
    std::iter::from_fn(move || {
        let (mut some, mut size) = (Vec::new(), 0);
        while let Some(next) = all.peek() {
            size += serde_json::to_vec(next).map_or(0, |text| text.len() + 1);
            if size > MESSAGE && !some.is_empty() {
                break;
            }
            some.extend(all.next());
        }
        (!some.is_empty()).then_some(some)
    })
}

/// What answers questions about a mount; the number is how many files are told at most. May block for a short time.
pub(super) type Tell = Arc<dyn Fn(u32) -> Activity + Send + Sync>;

/// Answers questions at `path` until the task is aborted.
pub(super) fn listen(path: &Path, tell: Tell) -> io::Result<AbortHandle> {
    // Left by a process with the same number that was killed.
    let _ = std::fs::remove_file(path);
    let listener = Listener::bind(path)?;
    let answering = tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(ANSWERED_AT_ONCE));
        loop {
            let Ok(room) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok(asker) => {
                    let tell = Arc::clone(&tell);
                    tokio::spawn(async move {
                        if let Ok(Err(error)) = timeout(ANSWER_WITHIN, answer(&asker, tell)).await {
                            tracing::debug!(%error, "a question about a mount was not answered");
                        }
                        drop(room);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    });
    Ok(answering.abort_handle())
}

async fn answer(asker: &AsyncChannel, tell: Tell) -> Result<(), ChannelError> {
    asker.accept(ANSWER_WITHIN).await?;
    let Some((text, _)) = asker.receive().await? else { return Ok(()) };
    let files = match wire::parse::<Question>(&text) {
        Ok(Question::Activity { files }) => files.min(MOST_FILES),
        Err(error) => return asker.deliver(&Told::Refused { why: error.to_string() }, None).await,
    };
    // It looks at files.
    let told = tokio::task::spawn_blocking(move || tell(files).messages()).await;
    for message in told.map_err(|_| ChannelError::Gone)? {
        asker.deliver(&message, None).await?;
    }
    Ok(())
}

/// Limit of files in an answer.
pub const MOST_FILES: u32 = 4096;
/// Limit of waiting requests in an answer.
const MOST_WAITING: usize = 256;
/// Bytes of a message that is not filled further. One item has less than half of [`wire::LARGEST`]: a path may take six
/// bytes for each of its own.
const MESSAGE: usize = 24 << 10;
/// Bytes of a path that are told.
const LONGEST_PATH: usize = 4096;
/// Limit of questions answered at the same time; further ones wait.
const ANSWERED_AT_ONCE: usize = 16;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const BREATH: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::image::FileReport;
    use crate::overlay::LayerNo;

    fn file(path: &[u8]) -> FileActivity {
        let none = Duration::ZERO;
        let path = path.to_vec();
        let report = FileReport {
            layer: LayerNo(0),
            path,
            size: u64::MAX,
            bytes: [u64::MAX; 7],
            waits: 1,
            waited: none,
            longest: none,
            idle: none,
        };
        (&report).into()
    }

    #[test]
    fn a_name_that_is_looked_up_stands_behind_its_directory() {
        let request = |name: Option<&[u8]>| PendingRequest {
            thread: 0,
            node: NodeId::ROOT,
            operation: "lookup",
            name: name.map(<[u8]>::to_vec),
            waits: Duration::from_millis(2),
        };
        let told = |name, path: &[u8]| waiting(&request(name), Some(path.to_vec())).path;
        let text = |path: &str| Some(WirePath::Text(path.to_owned()));
        assert_eq!(told(Some(b"bin"), b"usr"), text("/usr/bin"));
        assert_eq!(told(Some(b"usr"), b""), text("/usr"));
        assert_eq!(told(None, b"usr/bin"), text("/usr/bin"));
        let unknown = waiting(&request(Some(b"bin")), None);
        assert_eq!((unknown.path, unknown.pid, unknown.waits_us), (None, None, 2000));
    }

    /// Paths of an image may be long and of any bytes.
    #[test]
    fn every_answer_fits_into_messages() {
        let long = [vec![1; 70_000], vec![0xff; 70_000], b"\"".repeat(5000)].map(|path| file(&path));
        let files: Vec<_> = (0..500).map(|number| file(format!("usr/{number}").as_bytes())).chain(long).collect();
        let all = Activity { files: files.clone(), ..Activity::default() };
        let mut received = Vec::new();
        for message in all.messages() {
            let text = wire::text(&message).unwrap();
            if let Told::Files(some) = wire::parse(&text).unwrap() {
                received.extend(some);
            }
        }
        assert_eq!(received, files);
    }
}
