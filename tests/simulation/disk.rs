//! The disk of one simulated process: a real directory, and everything that can be wrong with it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use peelfs::store::{Disk, Effect};

use support::doomed::{Doomed, Loss};
use support::random::Random;

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ill {
    /// Nothing.
    Well,
    /// There is no room for anything more.
    Full,
    /// It is read-only.
    ReadOnly,
    /// So many in a hundred things fail, and writes in the middle.
    Fails(usize),
    /// The process has ended: its remaining threads have no effect.
    Gone,
}

#[derive(Debug)]
pub(crate) struct SimulatedDisk {
    ill: Mutex<Ill>,
    random: Mutex<Random>,
    doomed: Arc<Doomed>,
    activity: Arc<AtomicU64>,
}

impl SimulatedDisk {
    /// One that does `left` things and then no more; with an attic it remembers how things were.
    pub(crate) fn new(left: u64, seed: u64, attic: Option<&Path>, activity: &Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            ill: Mutex::new(Ill::Well),
            random: Mutex::new(Random::new(seed)),
            doomed: Doomed::new(left, seed, attic),
            activity: Arc::clone(activity),
        })
    }

    pub(crate) fn fall(&self, ill: Ill) {
        *self.ill.lock().unwrap() = ill;
    }

    /// Whether the process has ended.
    pub(crate) fn is_dead(&self) -> bool {
        self.doomed.is_dead()
    }

    pub(crate) fn lose(&self, loss: Loss, root: &Path) {
        self.doomed.lose(loss, root);
    }
}

impl Disk for SimulatedDisk {
    fn before(&self, effect: Effect<'_>) -> io::Result<()> {
        self.activity.fetch_add(1, Ordering::Relaxed);
        let ill = *self.ill.lock().unwrap();
        match ill {
            Ill::Well => {}
            Ill::Gone => return Err(io::Error::other("the process is gone")),
            Ill::Full => {
                if matches!(effect, Effect::MakeDir(_) | Effect::Create(_) | Effect::Write(..)) {
                    return Err(io::ErrorKind::StorageFull.into());
                }
            }
            Ill::ReadOnly => {
                if !matches!(effect, Effect::Lock(_)) {
                    return Err(io::ErrorKind::ReadOnlyFilesystem.into());
                }
            }
            Ill::Fails(percent) => {
                let mut random = self.random.lock().unwrap();
                if random.chance(percent) {
                    if let Effect::Write(file, _, at, bytes) = effect {
                        file.write_all_at(&bytes[..random.below(1 + bytes.len())], at)?;
                    }
                    return Err(io::Error::other("the disk failed"));
                }
            }
        }
        self.doomed.before(effect)
    }
}

/// Damages a file in some way, and returns which.
pub(crate) fn rot(path: &Path, random: &mut Random) -> &'static str {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let before = file.metadata().unwrap();
    let length = before.len();
    match random.below(10) {
        0 => {
            std::fs::remove_file(path).unwrap();
            "removed"
        }
        1 => {
            file.set_len(random.below(1 + length as usize) as u64).unwrap();
            "cut"
        }
        2 => {
            file.set_len(length + 1 + random.below(10_000) as u64).unwrap();
            "longer"
        }
        _ if length == 0 => "empty anyway",
        _ => {
            let at = random.next() % length;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0] ^= 1 << random.below(8);
            // Kernels before 6.13 stamp files by a clock that ticks every few milliseconds; what happens between two
            // ticks of it is not to be seen.
            let stamp = |found: &std::fs::Metadata| (found.ctime(), found.ctime_nsec());
            loop {
                file.write_all_at(&byte, at).unwrap();
                if stamp(&file.metadata().unwrap()) != stamp(&before) {
                    return "flipped";
                }
            }
        }
    }
}
