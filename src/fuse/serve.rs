//! The dispatch loop: a few threads read requests and answer them, or leave them pending in a task.
//!
//! fuser mounts and negotiates; afterwards the connection is served here, for three things that fuser's loop lacks:
//! pending requests can be interrupted, another process's connection can be taken over, and threads are scheduled so
//! that a request wakes one that ran just now.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::watch;

use super::asked::Asked;
use super::device::{Device, Reply};
use super::eager::Eager;
use super::own;
use super::standby;
use super::wire::{Operation, REQUEST_ROOM, Request};
use crate::sync::lock;

/// Answers requests.
pub(super) trait Handler: Send + Sync + 'static {
    /// Answers `request`, now or later; must notify `threads` before something that may take long.
    fn handle(&self, request: &Request<'_>, reply: Reply, threads: &Threads);

    /// Handles messages without an answer: inodes that the kernel has dropped.
    fn forget(&self, request: &Request<'_>);

    /// Cancels the answer to this request, whose process has been interrupted.
    fn interrupt(&self, unique: u64);
}

/// The threads that serve one mount.
pub(super) struct Service(Arc<Threads>);

impl Service {
    /// Starts serving; `let_cpus_sleep` as for [`Eager::new`], `refuse_own` as
    /// [`MountOptions::refuse_own_requests`](super::MountOptions::refuse_own_requests).
    ///
    /// # Errors
    /// If no thread can be started.
    pub(super) fn start(
        device: &Arc<Device>,
        handler: &Arc<dyn Handler>,
        let_cpus_sleep: bool,
        refuse_own: bool,
    ) -> io::Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        let threads = Threads::new(device, handler, cpus + SPARE_THREADS, let_cpus_sleep, refuse_own);
        threads.begin()?;
        standby::watch(&threads)?;
        Ok(Self(threads))
    }

    /// The number of requests received so far.
    pub(super) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.received)
    }

    /// Becomes `true` when the file system is unmounted and its last file closed.
    pub(super) fn gone(&self) -> watch::Receiver<bool> {
        self.0.gone.subscribe()
    }

    /// Waits until the file system is unmounted and its last file closed.
    ///
    /// # Errors
    /// The error that ended the service, unless it was unmounted.
    pub(super) async fn ended(self) -> io::Result<()> {
        // The sender lives as long as the threads.
        let _ = self.gone().wait_for(|gone| *gone).await;
        let mut outcome = Ok(());
        while let Some(thread) = { lock(&self.0.begun).pop() } {
            let panicked = |_| Err(io::Error::other("a thread that serves the mount panicked"));
            let ended = thread.join().unwrap_or_else(panicked);
            outcome = outcome.and(ended);
        }
        outcome
    }
}

fn work(threads: &Threads) -> io::Result<()> {
    let (device, handler) = (&threads.device, &*threads.handler);
    let mut room = vec![0; REQUEST_ROOM];
    let mut eager = Eager::new(threads.let_cpus_sleep);
    while threads.listen(&mut eager) {
        eager.await_next(device);
        let received = device.receive(&mut room);
        let Ok(Some(length)) = received else {
            threads.end();
            return received.map(drop).map_err(Into::into);
        };
        threads.received.fetch_add(1, Ordering::Relaxed);
        threads.stop_listening();
        if device.has_more() {
            threads.call();
        }
        dispatch(&room[..length], device, handler, threads);
    }
    Ok(())
}

/// Passes one request to its handler. A panic there fails this request, not the mount.
fn dispatch(bytes: &[u8], device: &Arc<Device>, handler: &dyn Handler, threads: &Threads) {
    let request = match Request::parse(bytes) {
        Ok(request) => request,
        Err(malformed) => {
            tracing::error!(?malformed, "the kernel sent a request that cannot be parsed");
            // The answer of a dropped reply is EIO.
            drop(malformed.unique.map(|unique| Reply::new(device, unique, Asked::default())));
            return;
        }
    };
    if threads.refuse_own && own::is_of_this_process(request.thread, &request.operation) {
        return Reply::new(device, request.unique, Asked::default()).error(Errno::DEADLK);
    }
    let handled = catch_unwind(AssertUnwindSafe(|| match request.operation {
        Operation::Forget | Operation::BatchForget { .. } => handler.forget(&request),
        Operation::Interrupt { unique } => handler.interrupt(unique),
        _ => handler.handle(&request, Reply::new(device, request.unique, Asked::of(&request)), threads),
    }));
    if handled.is_err() {
        tracing::error!(operation = ?request.operation, node = request.node, "answering a request panicked");
    }
}

/// Which thread listens for requests: one at a time, and the same one as long as it keeps up.
///
/// A request then wakes a thread that ran just now, usually on the requesting CPU: 11 µs instead of the 20 to 100 of
/// waking one on another, idle CPU. Others rest until requests queue up, or until the listening thread is about to wait
/// for a disk. An idle mount has one thread: others are started when they are first called, and end when they were not
/// called for a while.
pub(super) struct Threads {
    device: Arc<Device>,
    handler: Arc<dyn Handler>,
    own: Weak<Self>,
    begun: Mutex<Vec<JoinHandle<io::Result<()>>>>,
    /// How many exist, and may exist.
    alive: AtomicUsize,
    most: usize,
    /// Set when none is left.
    gone: watch::Sender<bool>,
    listening: AtomicBool,
    ended: AtomicBool,
    resting: AtomicUsize,
    /// How many resting threads should wake up.
    calls: Mutex<usize>,
    called: Condvar,
    received: Arc<AtomicU64>,
    let_cpus_sleep: bool,
    refuse_own: bool,
}

impl Threads {
    fn new(
        device: &Arc<Device>,
        handler: &Arc<dyn Handler>,
        most: usize,
        let_cpus_sleep: bool,
        refuse_own: bool,
    ) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            device: Arc::clone(device),
            handler: Arc::clone(handler),
            own: Weak::clone(own),
            begun: Mutex::default(),
            alive: AtomicUsize::new(0),
            most,
            gone: watch::Sender::new(false),
            listening: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            resting: AtomicUsize::new(0),
            calls: Mutex::new(0),
            called: Condvar::new(),
            received: Arc::default(),
            let_cpus_sleep,
            refuse_own,
        })
    }

    /// Starts one more thread, if there may be one.
    fn begin(&self) -> io::Result<()> {
        let more = |alive| (alive < self.most).then_some(alive + 1);
        let Ok(number) = self.alive.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) else { return Ok(()) };
        let threads = self.own.upgrade().expect("each thread that serves or begins to serve holds it");
        let thread = std::thread::Builder::new().name(format!("fuse-{number}"));
        let begun = thread.spawn(move || {
            let outcome = work(&threads);
            threads.leave();
            outcome
        });
        let mut all = lock(&self.begun);
        all.retain(|thread| !thread.is_finished());
        match begun {
            Ok(thread) => {
                all.push(thread);
                Ok(())
            }
            Err(error) => {
                self.leave();
                Err(error)
            }
        }
    }

    /// One thread less; the last one tells.
    fn leave(&self) {
        if self.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.gone.send_replace(true);
        }
    }

    /// Waits until this thread should listen; `false` when it should end.
    ///
    /// The listening thread comes back here or has called another one before doing something slow, so there is
    /// always a thread to come.
    fn listen(&self, eager: &mut Eager) -> bool {
        while !self.ended.load(Ordering::Acquire) {
            if self.listening.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return true;
            }
            eager.rest();
            if !self.rest() {
                break;
            }
        }
        false
    }

    /// Waits to be called; returns `false` if this thread is not needed.
    fn rest(&self) -> bool {
        let mut calls = lock(&self.calls);
        // One stays ready for the next call.
        let stays = self.resting.fetch_add(1, Ordering::AcqRel) == 0;
        let mut needed = true;
        while *calls == 0 && needed && !self.ended.load(Ordering::Acquire) {
            if stays {
                calls = self.called.wait(calls).unwrap_or_else(PoisonError::into_inner);
            } else {
                let waited = self.called.wait_timeout(calls, UNCALLED_FOR).unwrap_or_else(PoisonError::into_inner);
                (calls, needed) = (waited.0, !waited.1.timed_out());
            }
        }
        needed |= *calls > 0;
        *calls = calls.saturating_sub(1);
        self.resting.fetch_sub(1, Ordering::AcqRel);
        needed
    }

    fn stop_listening(&self) {
        self.listening.store(false, Ordering::Release);
    }

    /// This thread is about to do something that may take long: makes sure that another one listens.
    pub(super) fn slow(&self) {
        if !self.listening.load(Ordering::Acquire) {
            self.call();
        }
    }

    /// Makes another thread listen, if there is or may be one.
    pub(super) fn call(&self) {
        let resting = || self.resting.load(Ordering::Acquire);
        if resting() == 0 && self.alive.load(Ordering::Acquire) == self.most {
            return;
        }
        let mut calls = lock(&self.calls);
        if resting() > 0 {
            *calls = (*calls + 1).min(resting());
            self.called.notify_one();
            return;
        }
        drop(calls);
        if let Err(error) = self.begin() {
            tracing::debug!(%error, "cannot start another thread; serving with the existing ones");
        }
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// How many requests have been received.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether the mount is gone.
    pub(super) fn have_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        drop(lock(&self.calls));
        self.called.notify_all();
    }
}

/// Threads besides one per CPU: for reads from a slow disk.
const SPARE_THREADS: usize = 6;
/// A thread that is not called for this long ends.
const UNCALLED_FOR: Duration = Duration::from_secs(10);
