//! Foresight: a program says what it will want, and an image which program it is for.
//!
//! Before a program does anything, its loader reads it, then the libraries that it names, then those that they name:
//! one wait after another, for files whose names could have been read in the first one. So they are: from every program
//! and library that somebody begins to load, and, once somebody does, from the one that the image's configuration names,
//! what it names is looked up and fetched, a little ahead of the loader. All of it is a guess, made of bytes that are
//! here; see [`LayerReader::speculate`]. Who looks around in an image, or copies files out of it, loads nothing.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::fs::{ImageFs, NotNow, Now};
use crate::content::LayerReader;
use crate::documents::Command;
use crate::layer::Kind;
use crate::offsets::DecodedOffset;
use crate::overlay::{Last, NodeId};
use crate::predict::Priority;
use crate::predict::elf::{FAULT, HEAD, MAGIC, Program};
use crate::sync::lock;

/// Programs that were seen and not looked at yet.
pub(super) struct SeenPrograms {
    sender: mpsc::Sender<(NodeId, By)>,
    receiver: Mutex<Option<mpsc::Receiver<(NodeId, By)>>>,
}

/// How a program was seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum By {
    /// Somebody reads it.
    Reading,
    /// Something that is here says that it will be wanted.
    Name,
}

impl SeenPrograms {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(MOST_UNSEEN);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }

    /// `node` is read from `at` on, and `bytes` are there.
    pub(super) fn read(&self, node: NodeId, at: u64, bytes: &[u8]) {
        // Loaders begin with a few bytes, for which the kernel reads a few pages.
        if at == 0 && bytes.len() < COPIED && bytes.starts_with(MAGIC) {
            self.program(node, By::Reading);
        }
    }

    fn program(&self, node: NodeId, by: By) {
        // If many wait, one less is looked at.
        let _ = self.sender.try_send((node, by));
    }
}

/// A file's bytes, all in one piece of a layer.
struct File {
    content: Arc<LayerReader>,
    bytes: Range<DecodedOffset>,
    /// Where it lies, without its name; ends in a slash.
    directory: Vec<u8>,
}

impl ImageFs {
    /// Looks at the programs that are loaded, and with the first one at those that `command` starts, and fetches what they
    /// name; until dropped, or until that has cost [`CPU_TIME`].
    pub async fn prefetch_programs(self: &Arc<Self>, command: &Command) {
        let Some(mut programs) = lock(&self.programs.receiver).take() else { return };
        let places = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let left = Arc::new(Mutex::new(CPU_TIME));
        let (mut known, mut looking) = (HashSet::new(), JoinSet::new());
        while known.len() < MOST_PROGRAMS {
            tokio::select! {
                Some((program, by)) = programs.recv(), if looking.len() < MOST_AT_ONCE => {
                    if known.is_empty() {
                        self.look_for(command);
                    }
                    if known.insert(program) {
                        let (fs, places, left) = (Arc::clone(self), Arc::clone(&places), Arc::clone(&left));
                        looking.spawn(async move { metered(&left, fs.look_at(program, by, &places)).await });
                    }
                }
                Some(looked) = looking.join_next() => {
                    if matches!(looked, Ok(None)) {
                        return tracing::debug!("programs name so much that no more is fetched ahead of them");
                    }
                }
            }
        }
        looking.join_all().await;
    }

    /// Has the programs looked at that `command` starts.
    fn look_for(&self, command: &Command) {
        for program in &command.programs {
            let mut paths = command.paths_of(program);
            if let Some(found) = paths.find_map(|path| self.walk(path.as_bytes(), Last::Follow).ok()) {
                self.programs.program(found.node, By::Name);
            }
        }
    }

    /// Fetches what whoever starts `program` will read of it, and has what it names looked at. `places` are the
    /// directories where libraries were found.
    async fn look_at(&self, program: NodeId, by: By, places: &Mutex<Vec<Vec<u8>>>) {
        let Ok(Some(file)) = self.file(program) else { return };
        if !file.content.may_speculate() || file.content.layer().has(file.bytes.clone()) {
            return;
        }
        let little = file.content.is_one_request(file.bytes.clone());
        if little {
            file.speculate(0..u64::MAX, Priority::High).await;
        }
        // Mostly the dynamic section is near its end.
        let end = async {
            if by == By::Name && file.length() <= WHOLE {
                file.speculate(file.length().saturating_sub(FAULT)..u64::MAX, Priority::High).await;
            }
        };
        let (Some(head), ()) = tokio::join!(file.part(0..HEAD as u64), end) else { return };
        if let Some(interpreter) = script(&head) {
            return self.find(&file.directory, [interpreter]);
        }
        let Some(program) = Program::parse(&head) else { return };
        if let Some(loader) = program.loader.clone()
            && let Some(path) = file.part(loader.start..loader.end.min(loader.start.saturating_add(NAME))).await
            && let Ok(found) = self.walk(until_zero(&path), Last::Follow)
        {
            // Where it is other libraries are, too.
            if let Ok(Some(loader)) = self.file(found.node) {
                note(places, loader.directory);
            }
            self.programs.program(found.node, By::Name);
        }
        let beside = async {
            if program.loader.is_some() {
                self.prefetch_loader_files(LOADER_READS).await;
            }
        };
        let section = section_of(&program);
        let around = section.start.saturating_sub(FAULT)..section.end.saturating_add(FAULT);
        let names = async {
            if program.dynamic.is_empty() {
                return;
            }
            file.speculate(around, Priority::High).await;
            self.look_at_named(&file, &program, places).await;
        };
        let rest = async {
            if file.length() <= WHOLE {
                file.speculate(0..u64::MAX, Priority::Low).await;
            } else {
                for table in program.tables() {
                    let around = table.start.saturating_sub(FAULT)..table.end;
                    file.speculate(around, Priority::High).await;
                }
            }
        };
        tokio::join!(names, rest, beside);
    }

    /// Has the libraries looked at that the dynamic section of `program` names.
    async fn look_at_named(&self, file: &File, program: &Program, places: &Mutex<Vec<Vec<u8>>>) {
        let Some(dynamic) = file.part(section_of(program)).await else { return };
        let names = program.names(&dynamic);
        let mut directories = Vec::new();
        for at in names.directories {
            let Some(text) = file.part(at..at.saturating_add(NAME)).await else { continue };
            directories.extend(until_zero(&text).split(|byte| *byte == b':').map(|path| file.expanded(path)));
        }
        directories.truncate(MOST_DIRECTORIES);
        directories.extend(lock(places).iter().cloned());
        directories.extend(PLACES.iter().map(|place| place.as_bytes().to_vec()));
        let mut needed = Vec::new();
        for at in names.needed {
            needed.extend(file.part(at..at.saturating_add(NAME)).await.map(|name| until_zero(&name).to_vec()));
        }
        for name in needed {
            for directory in &directories {
                let found = self.walk(&[directory, b"/".as_slice(), &name].concat(), Last::Follow);
                // Others have something to do as well, and the time that this takes is looked at.
                tokio::task::yield_now().await;
                if let Ok(found) = found {
                    self.programs.program(found.node, By::Name);
                    break;
                }
            }
        }
    }

    /// Has what these paths name looked at; they may begin in `directory`.
    fn find<'a>(&self, directory: &[u8], paths: impl IntoIterator<Item = &'a [u8]>) {
        for path in paths {
            let path = if path.starts_with(b"/") { path.to_vec() } else { [directory, path].concat() };
            if let Ok(found) = self.walk(&path, Last::Follow) {
                self.programs.program(found.node, By::Name);
            }
        }
    }

    async fn prefetch_loader_files(&self, paths: &[&str]) {
        for path in paths {
            if let Ok(found) = self.walk(path.as_bytes(), Last::Follow)
                && let Ok(Some(file)) = self.file(found.node)
                && file.length() <= WHOLE
            {
                file.speculate(0..u64::MAX, Priority::High).await;
            }
        }
    }

    /// The bytes of a file; `None` if it is none, or has holes.
    fn file(&self, node: NodeId) -> Now<Option<File>> {
        let Ok((number, entry)) = self.carrier(node, Kind::File) else { return Ok(None) };
        let Some(content) = self.known_content(number) else { return Ok(None) };
        let unusable = |_| NotNow::Needs(number);
        let known = content.index().entry(entry).map_err(unusable)?;
        let Some(data) = known.data() else { return Ok(None) };
        let mut directory = content.index().path(entry).map_err(unusable)?;
        directory.truncate(directory.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1));
        directory.insert(0, b'/');
        Ok(Some(File { bytes: data..data + known.size(), content, directory }))
    }
}

impl File {
    fn length(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Where in the layer a part of it is.
    fn place(&self, part: Range<u64>) -> Range<DecodedOffset> {
        let end = self.bytes.start + part.end.min(self.length());
        (self.bytes.start + part.start.min(self.length())).min(end)..end
    }

    async fn speculate(&self, part: Range<u64>, priority: Priority) {
        self.content.speculate(self.place(part), priority).await;
    }

    /// A part of it, fetched if need be; `None` if it cannot be had.
    async fn part(&self, part: Range<u64>) -> Option<Vec<u8>> {
        let place = self.place(part);
        self.content.speculate(place.clone(), Priority::High).await;
        let mut bytes = vec![0; usize::try_from(place.end - place.start).ok()?];
        self.content.peek(place.start, &mut bytes).ok()?.then_some(bytes)
    }

    /// A directory as a program that lies here names it.
    fn expanded(&self, path: &[u8]) -> Vec<u8> {
        for origin in [b"$ORIGIN".as_slice(), b"${ORIGIN}"] {
            if let Some(rest) = path.strip_prefix(origin) {
                return [&self.directory, b".".as_slice(), rest].concat();
            }
        }
        path.to_vec()
    }
}

/// Does `work`, and takes the CPU time that it needs from what is `left`; `None` once nothing is.
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

/// What this thread has used of a CPU.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn note(places: &Mutex<Vec<Vec<u8>>>, directory: Vec<u8>) {
    let mut places = lock(places);
    if places.len() < MOST_PLACES && !places.contains(&directory) {
        places.push(directory);
    }
}

/// Which program reads a script, if it is one that says so.
fn script(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    line.split(|byte| byte.is_ascii_whitespace()).find(|word| !word.is_empty())
}

/// The dynamic section, as far as it is looked at.
fn section_of(program: &Program) -> Range<u64> {
    let Range { start, end } = program.dynamic;
    start..end.min(start.saturating_add(MOST_DYNAMIC))
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A program or library of so many bytes is read as a whole: all but the largest are mapped, and for each page that is
/// touched the kernel reads half a MiB. Of 57 above 150 KB that Python and Node.js load, 55 are, to 0.8 and more.
const WHOLE: u64 = 8 << 20;
/// A first piece of so many bytes is for somebody who copies the file.
const COPIED: usize = 128 << 10;
/// What a loader reads besides.
const LOADER_READS: &[&str] = &["/etc/ld.so.cache"];
/// Where libraries are if nobody says so.
const PLACES: &[&str] = &["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"];
/// Directories that a program names in which others are looked for.
const MOST_DIRECTORIES: usize = 32;
/// Directories of loaders that are remembered.
const MOST_PLACES: usize = 4;
/// Programs that are looked at in a mount.
const MOST_PROGRAMS: usize = 1 << 12;
/// Programs that are looked at at a time: each may hold a few hundred KiB.
const MOST_AT_ONCE: usize = 128;
/// What looking at programs may take of a CPU in a mount; four that need one another take a thousandth of it.
const CPU_TIME: Duration = Duration::from_secs(1);
/// Programs that wait to be looked at.
const MOST_UNSEEN: usize = 256;
/// Bytes of a dynamic section that are looked at.
const MOST_DYNAMIC: u64 = 64 << 10;
/// Bytes in which a name, or the names of some directories, should end.
const NAME: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_names_its_interpreter() {
        for (head, program) in [
            (b"#!/bin/sh\nset -e\n".as_slice(), Some(b"/bin/sh".as_slice())),
            (b"#! /usr/bin/env python3\n", Some(b"/usr/bin/env")),
            (b"#!\n", None),
            (b"set -e\n", None),
        ] {
            assert_eq!(script(head), program);
        }
    }
}
