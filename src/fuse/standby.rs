//! A watch over the threads that serve mounts: where one hangs, another one listens.
//!
//! A thread that answers a request may come to wait for something that never comes: a disk or a network file system
//! that is away, or, where the cache lies below the mount, the mount itself. If it was the one that listens, nothing
//! that the kernel asks is heard any more, not even that a reader was killed; such a reader cannot go away. So one
//! thread of the process looks whether requests stay where they are. It sleeps while no mount is asked anything, and
//! looks a few times a second while one is.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::PipeFlags;

use super::serve::Threads;
use crate::sync::lock;

/// Watches over `threads` for as long as their mount is there.
///
/// # Errors
/// When the thread that watches cannot be had.
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
        // A full pipe calls as well.
        let _ = rustix::io::write(&watched.called, &[0]);
    }
    Ok(())
}

struct Watched {
    over: Vec<Weak<Threads>>,
    /// The thread looks anew for what it watches over when something is written here.
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
            // A signal; or too little memory, which may be a matter of time.
            std::thread::sleep(LOOK);
            continue;
        }
        let asked = live.iter().zip(&polled[1..]).filter(|(_, polled)| polled.revents().contains(PollFlags::IN));
        let before: Vec<_> = asked.map(|(threads, _)| (*threads, threads.received())).collect();
        while rustix::io::read(heard, &mut [0; 64]).is_ok_and(|length| length > 0) {}
        // Also where a mount has ended: its threads are about to find out.
        std::thread::sleep(LOOK);
        for (threads, before) in before {
            if threads.received() == before && threads.device().has_more() {
                tracing::debug!("the thread that listens for requests hangs; another one listens");
                threads.call();
            }
        }
    }
}

/// How long requests may wait for a thread before another one begins.
const LOOK: Duration = Duration::from_millis(250);
