//! Pending requests: their answers wait in tasks, for a layer or for bytes. They can be cancelled, and who waits for how
//! long can be told.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::asked::Asked;
use super::device::{Device, Reply};
use crate::overlay::NodeId;
use crate::sync::lock;

/// A request that waits for a layer or for bytes.
#[derive(Clone, Debug)]
pub struct PendingRequest {
    /// The requesting thread, by its number in the mount's pid namespace; 0 if it has none there.
    pub thread: u32,
    /// The node that it is about; for a lookup the directory.
    pub node: NodeId,
    /// The operation, as in `read`.
    pub operation: &'static str,
    /// The name that is looked up.
    pub name: Option<Vec<u8>>,
    /// For how long.
    pub waits: Duration,
}

/// Counters of a mount's requests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RequestCounts {
    /// Received from the kernel.
    pub received: u64,
    /// Answered with EIO.
    pub failed: u64,
    /// Those that had to wait and do no more: for each of [`WAIT_BOUNDS`], how many waited no longer, but longer than the
    /// bound before; then how many waited longer.
    pub waits: [u64; WAIT_BOUNDS.len() + 1],
    /// How long they waited, all together, in microseconds.
    pub waited_us: u64,
}

/// Bounds of waits that are counted apart.
pub const WAIT_BOUNDS: [Duration; 9] = [
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
];

/// The requests of a mount, for status. Keeps nothing alive that serves.
#[derive(Clone)]
pub struct Requests {
    pub(super) waiting: Arc<Waiting>,
    pub(super) received: Arc<AtomicU64>,
    pub(super) device: Weak<Device>,
}

impl Requests {
    /// The counters so far.
    pub fn counts(&self) -> RequestCounts {
        let failed = self.device.upgrade().map_or(0, |device| device.failed());
        RequestCounts { received: self.received.load(Ordering::Relaxed), failed, ..self.waiting.ended.counts() }
    }

    /// The requests that wait now, the longest first.
    pub fn pending(&self) -> Vec<PendingRequest> {
        let mut pending = self.waiting.pending();
        pending.sort_by_key(|request| std::cmp::Reverse(request.waits));
        pending
    }
}

/// Requests pending in tasks, by the kernel's number, with a way to cancel them.
#[derive(Default)]
pub(super) struct Waiting {
    requests: Mutex<WaitingRequests>,
    ended: Ended,
}

#[derive(Default)]
struct WaitingRequests {
    tasks: HashMap<u64, Task>,
    /// Numbers of interrupted requests that are not pending (yet): another thread may read the interrupt first. Numbers
    /// are not reused, so old ones do no harm.
    early: VecDeque<u64>,
}

struct Task {
    interrupted: Arc<AtomicBool>,
    task: tokio::task::AbortHandle,
    asked: Asked,
    since: Instant,
}

/// How long requests have waited.
#[derive(Default)]
struct Ended {
    waits: [AtomicU64; WAIT_BOUNDS.len() + 1],
    waited_us: AtomicU64,
}

impl Ended {
    fn add(&self, waited: Duration) {
        let bucket = WAIT_BOUNDS.partition_point(|bound| *bound < waited);
        self.waits[bucket].fetch_add(1, Ordering::Relaxed);
        self.waited_us.fetch_add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn counts(&self) -> RequestCounts {
        RequestCounts {
            waits: std::array::from_fn(|bucket| self.waits[bucket].load(Ordering::Relaxed)),
            waited_us: self.waited_us.load(Ordering::Relaxed),
            ..RequestCounts::default()
        }
    }
}

impl Waiting {
    /// Runs `answer`, which owns `reply`'s request, as a task until it is done or interrupted.
    pub(super) fn wait(
        self: &Arc<Self>,
        tasks: &tokio::runtime::Handle,
        mut reply: Reply,
        answer: impl FnOnce(Reply) -> futures_util::future::BoxFuture<'static, ()>,
    ) {
        let (unique, interrupted, asked) = (reply.unique(), reply.interrupted(), reply.asked().clone());
        let since = Instant::now();
        let mut waiting = lock(&self.requests);
        if waiting.early.contains(&unique) {
            interrupted.store(true, Ordering::Release);
            return; // and the reply says so
        }
        let (answer, all) = (answer(reply), Arc::clone(self));
        let task = tasks.spawn(async move {
            answer.await;
            let ended = lock(&all.requests).tasks.remove(&unique);
            ended.iter().for_each(|task| all.ended.add(task.since.elapsed()));
        });
        waiting.tasks.insert(unique, Task { interrupted, task: task.abort_handle(), asked, since });
    }

    /// Cancels all pending requests: the mount is gone.
    pub(super) fn end(&self) {
        for (_, Task { task, .. }) in lock(&self.requests).tasks.drain() {
            task.abort();
        }
    }

    pub(super) fn interrupt(&self, unique: u64) {
        let mut waiting = lock(&self.requests);
        match waiting.tasks.remove(&unique) {
            Some(Task { interrupted, task, since, .. }) => {
                interrupted.store(true, Ordering::Release);
                drop(waiting);
                task.abort();
                self.ended.add(since.elapsed());
            }
            None => {
                if waiting.early.len() == EARLY_INTERRUPTS {
                    waiting.early.pop_front();
                }
                waiting.early.push_back(unique);
            }
        }
    }

    fn pending(&self) -> Vec<PendingRequest> {
        let told = |task: &Task| {
            let Asked { thread, node, operation, name } = &task.asked;
            let (node, name) = (NodeId::from_number(*node)?, name.as_ref().map(|name| name.to_vec()));
            Some(PendingRequest { thread: *thread, node, operation, name, waits: task.since.elapsed() })
        };
        lock(&self.requests).tasks.values().filter_map(told).collect()
    }
}

/// Limit of early interrupts that are remembered.
const EARLY_INTERRUPTS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_counted_once_at_the_bound_that_it_reached() {
        let ended = Ended::default();
        for ms in [0, 1, 2, 10, 59_999, 60_000, 60_001, 3_600_000] {
            ended.add(Duration::from_millis(ms));
        }
        let counts = ended.counts();
        assert_eq!(counts.waits, [2, 2, 0, 0, 0, 0, 0, 0, 2, 2]);
        assert_eq!(counts.waited_us, 3_780_013_000);
    }
}
