//! A disk that stops at a chosen point, and what a loss of power makes of its files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use peelfs::store::{Disk, Effect};

use super::random::Random;

/// The fate of bytes and names that were not yet on disk at the crash.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Loss {
    /// The process was killed: all before the point is there, but a write may have got only so far.
    Kill,
    /// The power went: files that were never synced are empty.
    Empty,
    /// They are cut somewhere.
    Cut,
    /// They are as long as they were, and zeros.
    Zeros,
    /// Some of their pages are zeros.
    Torn,
    /// Some of their writes are undone.
    Old,
    /// The last names that were given and taken are as they were before.
    Names,
}

impl Loss {
    pub const ALL: [Self; 7] = [Self::Kill, Self::Empty, Self::Cut, Self::Zeros, Self::Torn, Self::Old, Self::Names];
}

/// A disk on which nothing happens any more from a point on.
#[derive(Debug)]
pub struct Doomed {
    dies_at: u64,
    count: AtomicU64,
    random: Mutex<Random>,
    /// Where removed names are kept, so that they can reappear; `None` keeps nothing.
    attic: Option<PathBuf>,
    history: Mutex<Vec<Done>>,
}

/// An effect that can be undone.
#[derive(Debug)]
enum Done {
    Wrote { inode: u64, at: u64, before: Vec<u8> },
    Synced { inode: u64 },
    Named { from: PathBuf, to: PathBuf, replaced: Option<PathBuf> },
    Removed { path: PathBuf, kept: PathBuf },
}

impl Doomed {
    /// A disk that does `dies_at` things less one; `attic` is a directory of the same file system.
    pub fn new(dies_at: u64, seed: u64, attic: Option<&Path>) -> Arc<Self> {
        Arc::new(Self {
            dies_at,
            count: AtomicU64::new(0),
            random: Mutex::new(Random::new(seed)),
            attic: attic.map(Path::to_owned),
            history: Mutex::default(),
        })
    }

    /// Things done and tried so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    pub fn is_dead(&self) -> bool {
        self.count() >= self.dies_at
    }

    fn keep(&self, path: &Path) -> Option<PathBuf> {
        let kept = self.attic.as_ref()?.join(self.history.lock().unwrap().len().to_string());
        std::fs::hard_link(path, &kept).ok().map(|()| kept)
    }

    fn remember(&self, effect: Effect<'_>) {
        let inode = |file: &File| file.metadata().unwrap().ino();
        let done = match effect {
            Effect::Write(file, _, at, bytes) => {
                let mut before = vec![0; bytes.len()];
                let _ = file.read_exact_at(&mut before, at);
                Done::Wrote { inode: inode(file), at, before }
            }
            Effect::Punch(file, _, at, length) => {
                let mut before = vec![0; length as usize];
                let _ = file.read_exact_at(&mut before, at);
                Done::Wrote { inode: inode(file), at, before }
            }
            Effect::Sync(file, _) => Done::Synced { inode: inode(file) },
            Effect::Rename(from, to) => {
                Done::Named { from: from.to_owned(), to: to.to_owned(), replaced: self.keep(to) }
            }
            Effect::Remove(path) => match self.keep(path) {
                Some(kept) => Done::Removed { path: path.to_owned(), kept },
                None => return,
            },
            _ => return,
        };
        self.history.lock().unwrap().push(done);
    }

    /// Lets a loss of power do what it may do to the files below `root`, once they are no longer used.
    pub fn lose(&self, loss: Loss, root: &Path) {
        let mut random = self.random.lock().unwrap().clone();
        let history = self.history.lock().unwrap();
        let synced =
            |wanted: u64| history.iter().any(|done| matches!(done, Done::Synced { inode } if *inode == wanted));
        let mut files = BTreeMap::new();
        let mut pending = vec![root.to_owned()];
        while let Some(path) = pending.pop() {
            if path.is_dir() {
                pending.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else if let Ok(found) = std::fs::metadata(&path) {
                files.insert(found.ino(), path);
            }
        }
        files.retain(|inode, _| !synced(*inode));
        let open = |path: &Path| File::options().write(true).open(path).unwrap();
        match loss {
            Loss::Kill => {}
            Loss::Old => {
                for done in history.iter().rev() {
                    if let Done::Wrote { inode, at, before } = done
                        && let Some(path) = files.get(inode)
                        && random.chance(30)
                    {
                        open(path).write_all_at(before, *at).unwrap();
                    }
                }
            }
            Loss::Names => {
                let undone = 1 + random.below(4);
                let names =
                    history.iter().rev().filter(|done| !matches!(done, Done::Wrote { .. } | Done::Synced { .. }));
                for done in names.take(undone) {
                    match done {
                        Done::Named { from, to, replaced } => {
                            // What was named is not always there any more.
                            let _ = std::fs::rename(to, from);
                            replaced.iter().for_each(|kept| drop(std::fs::rename(kept, to)));
                        }
                        Done::Removed { path, kept } => drop(std::fs::rename(kept, path)),
                        Done::Wrote { .. } | Done::Synced { .. } => unreachable!("left out"),
                    }
                }
            }
            Loss::Empty | Loss::Cut | Loss::Zeros | Loss::Torn => {
                for path in files.values() {
                    if random.chance(40) {
                        continue; // this one got through
                    }
                    let (file, length) = (open(path), std::fs::metadata(path).unwrap().len());
                    match loss {
                        Loss::Empty => file.set_len(0).unwrap(),
                        Loss::Cut => file.set_len(random.below(1 + length as usize) as u64).unwrap(),
                        Loss::Zeros => file.set_len(0).and_then(|()| file.set_len(length)).unwrap(),
                        _ => {
                            for page in 0..length.div_ceil(PAGE) {
                                if random.chance(10) {
                                    let rest = (length - page * PAGE).min(PAGE);
                                    file.write_all_at(&vec![0; rest as usize], page * PAGE).unwrap();
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Disk for Doomed {
    fn before(&self, effect: Effect<'_>) -> io::Result<()> {
        let number = 1 + self.count.fetch_add(1, Ordering::SeqCst);
        if number < self.dies_at {
            if self.attic.is_some() {
                self.remember(effect);
            }
            return Ok(());
        }
        if number == self.dies_at
            && let Effect::Write(file, _, at, bytes) = effect
        {
            let torn = self.random.lock().unwrap().below(1 + bytes.len());
            file.write_all_at(&bytes[..torn], at)?;
        }
        Err(io::Error::other("the machine is off"))
    }
}

const PAGE: u64 = 4096;
