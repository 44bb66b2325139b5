//! Watches the threads that serve mounts: if one hangs, another one listens.
//!
//! A thread that answers a request may block for ever: on a disk or a network file system that is away, or, if the
//! cache is below the mount, on the mount itself. If it was the listening thread, no further request is read, not even
//! that a reader was killed; such a reader cannot exit. So one thread of the process checks whether pending requests
//! are being read. It sleeps while no mount gets requests, and checks a few times a second otherwise.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::PipeFlags;

use super::serve::Threads;
use crate::sync::lock;

/// Watches `threads` for as long as their mount exists.
///
/// # Errors
/// If the watching thread cannot be started.
pub(super) fn watch(threads: &Arc<Threads>) -> io::Result<()> {
    let mut watched = lock(&WATCHED);
    if watched.is_none() {
        let (heard, called) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        std::thread::Builder::new().name("fuse-standby".into()).spawn(move || run(&heard))?;
        *watched = Some(Watched { over: Vec::new(), called });
    }
    if let Some(watched) = &mut *watched {
        watched.over.retain(|threads| threads.strong_count() > 0);
        watched.over.push(Arc::downgrade(threads));
        // A full pipe wakes it as well.
        let _ = rustix::io::write(&watched.called, &[0]);
    }
    Ok(())
}

struct Watched {
    over: Vec<Weak<Threads>>,
    /// A write wakes the thread, which then reads the list again.
    called: OwnedFd,
}

static WATCHED: Mutex<Option<Watched>> = Mutex::new(None);

fn run(heard: &OwnedFd) {
    loop {
        let all: Vec<Arc<Threads>> =
            lock(&WATCHED).iter().flat_map(|watched| &watched.over).filter_map(Weak::upgrade).collect();
        let live: Vec<_> = all.iter().filter(|threads| !threads.have_ended()).collect();
        let devices = live.iter().map(|threads| PollFd::new(&**threads.device(), PollFlags::IN));
        let mut polled: Vec<_> =
            std::iter::once(PollFd::from_borrowed_fd(heard.as_fd(), PollFlags::IN)).chain(devices).collect();
        if poll(&mut polled, None).is_err() {
            // A signal, or a temporary lack of memory.
            std::thread::sleep(LOOK);
            continue;
        }
        let asked = live.iter().zip(&polled[1..]).filter(|(_, polled)| polled.revents().contains(PollFlags::IN));
        let before: Vec<_> = asked.map(|(threads, _)| (*threads, threads.received())).collect();
        while rustix::io::read(heard, &mut [0; 64]).is_ok_and(|length| length > 0) {}
        // Also if a mount has ended: its threads will notice.
        std::thread::sleep(LOOK);
        for (threads, before) in before {
            if threads.received() == before && threads.device().has_more() {
                tracing::debug!("the listening thread hangs; another one listens");
                threads.call();
            }
        }
    }
}

/// How long requests may be pending before another thread listens.
const LOOK: Duration = Duration::from_millis(250);
