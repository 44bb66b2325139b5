//! `/dev/fuse`: reads requests and writes answers.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::asked::Asked;
use super::wire::{InvalidInode, OutHeader};

/// A connection to the kernel after negotiation.
#[derive(Debug)]
pub(super) struct Device {
    connection: OwnedFd,
    /// Requests that were answered with EIO.
    failed: AtomicU64,
}

impl Device {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { connection: fd, failed: AtomicU64::new(0) }
    }

    /// How many requests were answered with EIO.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits for the next request; `None` once the file system is unmounted.
    ///
    /// # Errors
    /// Errors after which the connection cannot be used.
    pub(super) fn receive(&self, room: &mut [u8]) -> Result<Option<usize>, Errno> {
        loop {
            match rustix::io::read(&self.connection, &mut *room) {
                Ok(length) => return Ok(Some(length)),
                // ENOENT: the request was cancelled while it was read.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                Err(Errno::NODEV) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Whether another request is pending.
    pub(super) fn has_more(&self) -> bool {
        self.has_more_within(Duration::ZERO)
    }

    /// Whether another request is pending, or arrives within `time`.
    pub(super) fn has_more_within(&self, time: Duration) -> bool {
        let mut polled = [PollFd::new(&self.connection, PollFlags::IN)];
        let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
        matches!(rustix::event::poll(&mut polled, Some(&time)), Ok(1)) && polled[0].revents().contains(PollFlags::IN)
    }

    /// Whether the kernel still has a file system for this connection.
    pub(super) fn is_alive(&self) -> bool {
        is_alive(self.connection.as_fd())
    }

    /// Makes the kernel drop a file's cached pages and attributes (`FUSE_NOTIFY_INVAL_INODE`). Waits for pending reads
    /// of them, so other threads must be there to answer.
    pub(super) fn forget_content(&self, node: u64) {
        const NOTIFY_INVAL_INODE: i32 = 2;
        let all = InvalidInode { node, offset: 0, length: 0 };
        let len = (size_of::<OutHeader>() + size_of::<InvalidInode>()) as u32;
        let notification = OutHeader { len, error: NOTIFY_INVAL_INODE, unique: 0 };
        let parts = [IoSlice::new(notification.as_bytes()), IoSlice::new(all.as_bytes())];
        match rustix::io::writev(&self.connection, &parts) {
            // ENOENT: the kernel has nothing cached; ENODEV: it is unmounted.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => tracing::error!(%errno, node, "the kernel may keep stale data of a file"),
        }
    }

    /// Makes the kernel resend requests that a previous process had received but not answered (`FUSE_NOTIFY_RESEND`,
    /// Linux 6.9).
    pub(super) fn resend(&self) -> Result<(), Errno> {
        const NOTIFY_RESEND: i32 = 7;
        let notification = OutHeader { len: size_of::<OutHeader>() as u32, error: NOTIFY_RESEND, unique: 0 };
        rustix::io::write(&self.connection, notification.as_bytes()).map(drop)
    }
}

/// Whether the kernel still has a file system for a connection.
pub fn is_alive(connection: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(connection, PollFlags::empty())];
    let told = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    told.is_ok() && !polled[0].revents().contains(PollFlags::ERR)
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// The answer to one request. Dropped without an answer, it sends EIO, so that a panicking handler leaves no reader
/// waiting.
#[derive(Debug)]
pub(super) struct Reply {
    device: Arc<Device>,
    unique: u64,
    asked: Asked,
    /// For a pending reply: set when the requesting process is interrupted.
    interrupted: Option<Arc<AtomicBool>>,
    sent: bool,
}

impl Reply {
    pub(super) fn new(device: &Arc<Device>, unique: u64, asked: Asked) -> Self {
        Self { device: Arc::clone(device), unique, asked, interrupted: None, sent: false }
    }

    /// The kernel's number of the request.
    pub(super) fn unique(&self) -> u64 {
        self.unique
    }

    /// Who asks for what.
    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// It is about this name.
    pub(super) fn for_name(mut self, name: &Arc<[u8]>) -> Self {
        self.asked.for_name(name);
        self
    }

    /// To be set when the reply is cancelled by a signal: the answer is then EINTR.
    pub(super) fn interrupted(&mut self) -> Arc<AtomicBool> {
        Arc::clone(self.interrupted.get_or_insert_default())
    }

    pub(super) fn ok(mut self) {
        self.send(0, &[]);
    }

    pub(super) fn bytes(mut self, payload: &[u8]) {
        self.send(0, payload);
    }

    pub(super) fn error(mut self, errno: Errno) {
        self.send(-errno.raw_os_error(), &[]);
    }

    fn send(&mut self, error: i32, payload: &[u8]) {
        self.sent = true;
        if error == -Errno::IO.raw_os_error() {
            self.device.failed.fetch_add(1, Ordering::Relaxed);
        }
        let len = (size_of::<OutHeader>() + payload.len()) as u32;
        let header = OutHeader { len, error, unique: self.unique };
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(payload)];
        match rustix::io::writev(&self.device, &parts) {
            // ENOENT: the request was interrupted; ENODEV: it is unmounted.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => tracing::warn!(%errno, "the kernel rejected an answer"),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.sent {
            let interrupted = self.interrupted.as_ref().is_some_and(|flag| flag.load(Ordering::Acquire));
            let errno = if interrupted { Errno::INTR } else { Errno::IO };
            self.send(-errno.raw_os_error(), &[]);
        }
    }
}
