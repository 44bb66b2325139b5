//! Prefetches what programs name: walks the image as [`crate::predict::programs`] directs.
//!
//! All of it is speculation on bytes that are cached or fetched for it; see [`LayerReader::speculate`].

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::apart::briefly;
use super::fs::{ImageFs, NotNow, Now, ReadObserver};
use crate::content::{Cause, LayerReader, Reason};
use crate::documents::Command;
use crate::layer::{EntryId, Kind};
use crate::offsets::{DecodedOffset, FileOffset};
use crate::overlay::{Last, NodeAttr, NodeId};
use crate::predict::Priority;
use crate::predict::elf::{HEAD, Program};
use crate::predict::programs::{self, LOADER_READS, LoaderDirectories, MOST_PROGRAMS, Seen};
use crate::sync::lock;

/// The programs of an image that are loaded, from now on.
pub struct Programs {
    fs: Arc<ImageFs>,
    seen: mpsc::Receiver<(NodeId, Seen)>,
    noted: Noted,
}

/// Queue of programs that were found.
#[derive(Clone)]
struct Noted(mpsc::Sender<(NodeId, Seen)>);

impl Noted {
    fn note(&self, program: NodeId, seen: Seen) {
        // If the queue is full, skip the program.
        let _ = self.0.try_send((program, seen));
    }
}

impl ReadObserver for Noted {
    fn read(&self, node: NodeId, at: FileOffset, bytes: &[u8]) {
        if at.0 == 0 && programs::is_load(bytes) {
            self.note(node, Seen::Loading);
        }
    }
}

impl Programs {
    /// Observes the reads of an image; only the first observer takes effect.
    pub fn observe(fs: &Arc<ImageFs>) -> Self {
        let (sender, seen) = mpsc::channel(MOST_WAITING);
        let noted = Noted(sender);
        fs.observe(Box::new(noted.clone()));
        Self { fs: Arc::clone(fs), seen, noted }
    }

    /// Examines loaded programs, and with the first one those that `command` starts, and prefetches what they name;
    /// until dropped, or until that has cost [`CPU_TIME`].
    pub async fn prefetch(mut self, command: &Command) {
        let looks = Looks { fs: self.fs, noted: self.noted, loaders: Arc::default() };
        let left = Arc::new(Mutex::new(CPU_TIME));
        let (mut known, mut looking) = (HashSet::new(), JoinSet::new());
        while known.len() < MOST_PROGRAMS {
            tokio::select! {
                Some((program, seen)) = self.seen.recv(), if looking.len() < MOST_AT_ONCE => {
                    if known.is_empty() {
                        looks.note_started(command);
                    }
                    if known.insert(program) {
                        let (looks, left) = (looks.clone(), Arc::clone(&left));
                        looking.spawn(async move { metered(&left, looks.look_at(program, seen)).await });
                    }
                }
                Some(looked) = looking.join_next() => {
                    if matches!(looked, Ok(None)) {
                        return tracing::debug!("program prediction has used up its CPU time");
                    }
                }
            }
        }
        looking.join_all().await;
    }
}

/// Examines programs, each at most once.
#[derive(Clone)]
struct Looks {
    fs: Arc<ImageFs>,
    noted: Noted,
    loaders: Arc<Mutex<LoaderDirectories>>,
}

/// A file stored contiguously in a layer.
struct File {
    content: Arc<LayerReader>,
    entry: EntryId,
    bytes: Range<DecodedOffset>,
    /// Its directory; ends with a slash.
    directory: Vec<u8>,
}

impl Looks {
    /// Queues the programs that `command` starts.
    fn note_started(&self, command: &Command) {
        for program in &command.programs {
            command.paths_of(program).any(|path| self.note_at(path.as_bytes()));
        }
    }

    /// Queues the program at this path, if there is one.
    fn note_at(&self, path: &[u8]) -> bool {
        let found = self.walk(path);
        if let Ok(found) = &found {
            self.noted.note(found.node, Seen::Named);
        }
        found.is_ok()
    }

    /// The node at a path, if its layers are available and the lookup is short.
    fn walk(&self, path: &[u8]) -> Now<NodeAttr> {
        briefly(|| self.fs.walk(path, Last::Follow))
    }

    /// Prefetches what a loader of `program` will read, and queues what it names.
    async fn look_at(&self, program: NodeId, seen: Seen) {
        let Ok(Some(file)) = self.file(program) else { return };
        if !file.content.may_speculate() || file.content.layer().has(file.bytes.clone()) {
            return;
        }
        if file.content.is_one_request(file.bytes.clone()) {
            file.speculate(0..file.length(), Priority::High).await;
        }
        let beside = async {
            if let Some(end) = programs::beside_head(file.length(), seen) {
                file.speculate(end, Priority::High).await;
            }
        };
        let (Some(head), ()) = tokio::join!(file.part(0..HEAD as u64), beside) else { return };
        if let Some(interpreter) = programs::interpreter(&head) {
            let relative = [&file.directory, interpreter].concat();
            self.note_at(if interpreter.starts_with(b"/") { interpreter } else { &relative });
            return;
        }
        let Some(program) = Program::parse(&head) else { return };
        let is_started = self.note_loader(&file, &program).await;
        let loader_reads = async {
            if is_started {
                self.prefetch_loader_reads().await;
            }
        };
        let names = async {
            if let Some(section) = programs::dynamic(&program) {
                file.speculate(programs::around(&section), Priority::High).await;
                self.note_libraries(&file, &program, section).await;
            }
        };
        let rest = async {
            for (part, priority) in programs::beside_dynamic(&program, file.length()) {
                file.speculate(part, priority).await;
            }
        };
        tokio::join!(names, rest, loader_reads);
    }

    /// Queues the loader that a program names; returns whether it names one, as executables do.
    async fn note_loader(&self, file: &File, program: &Program) -> bool {
        let Some(path) = program.loader.clone() else { return false };
        if let Some(path) = file.part(path.start..path.end.min(programs::name_at(path.start).end)).await
            && let Ok(found) = self.walk(programs::name(&path))
        {
            if let Ok(Some(loader)) = self.file(found.node) {
                lock(&self.loaders).note(loader.directory);
            }
            self.noted.note(found.node, Seen::Named);
        }
        true
    }

    /// Queues the libraries named in a program's dynamic section.
    async fn note_libraries(&self, file: &File, program: &Program, section: Range<u64>) {
        let Some(dynamic) = file.part(section).await else { return };
        let names = program.names(&dynamic);
        let directories = file.names(names.directories).await;
        let needed = file.names(names.needed).await;
        let directories = lock(&self.loaders).search_path(&file.directory, &directories);
        for name in needed {
            for directory in &directories {
                let found = self.note_at(&[directory, b"/".as_slice(), &name].concat());
                // Give other tasks a turn; this is also where the CPU time is checked.
                tokio::task::yield_now().await;
                if found {
                    break;
                }
            }
        }
    }

    async fn prefetch_loader_reads(&self) {
        for path in LOADER_READS {
            if let Ok(found) = self.walk(path.as_bytes())
                && let Ok(Some(file)) = self.file(found.node)
                && programs::is_fetched_whole(file.length())
            {
                file.speculate(0..file.length(), Priority::High).await;
            }
        }
    }

    /// The bytes of a file; `None` if it is not a file, or has holes.
    fn file(&self, node: NodeId) -> Now<Option<File>> {
        let Ok((number, entry)) = self.fs.carrier(node, Kind::File) else { return Ok(None) };
        let Some(content) = self.fs.known_content(number) else { return Ok(None) };
        let unusable = |_| NotNow::Needs(number);
        let known = content.index().entry(entry).map_err(unusable)?;
        let Some(data) = known.data() else { return Ok(None) };
        let mut directory = content.index().path(entry).map_err(unusable)?;
        directory.truncate(directory.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1));
        directory.insert(0, b'/');
        Ok(Some(File { bytes: data..data + known.size(), content, entry, directory }))
    }
}

impl File {
    fn length(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// The decoded range of a part.
    fn place(&self, part: Range<u64>) -> Range<DecodedOffset> {
        let end = self.bytes.start + part.end.min(self.length());
        (self.bytes.start + part.start.min(self.length())).min(end)..end
    }

    fn cause(&self) -> Cause {
        Cause::of(Reason::Program, self.entry)
    }

    async fn speculate(&self, part: Range<u64>, priority: Priority) {
        self.content.speculate(self.place(part), priority, self.cause()).await;
    }

    /// A part of the file, fetched if necessary; `None` on failure.
    async fn part(&self, part: Range<u64>) -> Option<Vec<u8>> {
        let place = self.place(part);
        self.content.speculate(place.clone(), Priority::High, self.cause()).await;
        let mut bytes = vec![0; usize::try_from(place.end - place.start).ok()?];
        self.content.peek(place.start, &mut bytes).ok()?.then_some(bytes)
    }

    /// The names at these offsets.
    async fn names(&self, places: Vec<u64>) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        for at in places {
            names.extend(self.part(programs::name_at(at)).await.map(|bytes| programs::name(&bytes).to_vec()));
        }
        names
    }
}

/// Runs `work` and subtracts its CPU time from `left`; `None` once that is used up.
async fn metered<T>(left: &Mutex<Duration>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        if lock(left).is_zero() {
            return Poll::Ready(None);
        }
        let before = cpu_time();
        let polled = work.as_mut().poll(context).map(Some);
        let mut left = lock(left);
        *left = left.saturating_sub(cpu_time().saturating_sub(before));
        polled
    })
    .await
}

/// CPU time used by this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Limit for programs examined at a time: each may hold a few hundred KiB.
const MOST_AT_ONCE: usize = 128;
/// CPU time per mount for examining programs; four that depend on each other take a thousandth of it.
const CPU_TIME: Duration = Duration::from_secs(1);
/// Limit for queued programs.
const MOST_WAITING: usize = 256;
