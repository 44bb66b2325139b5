//! `/dev/fuse`: where requests come from and answers go.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::wire::{InvalidInode, OutHeader};

/// A connection to the kernel whose terms have been negotiated.
#[derive(Debug)]
pub(super) struct Device(OwnedFd);

impl Device {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Waits for the next request; `None` once the file system is unmounted.
    ///
    /// # Errors
    /// What makes going on pointless.
    pub(super) fn receive(&self, room: &mut [u8]) -> Result<Option<usize>, Errno> {
        loop {
            match rustix::io::read(&self.0, &mut *room) {
                Ok(length) => return Ok(Some(length)),
                // ENOENT: the request was taken back while it was read.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                Err(Errno::NODEV) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Whether another request waits already.
    pub(super) fn has_more(&self) -> bool {
        self.has_more_within(Duration::ZERO)
    }

    /// Whether another request waits, or comes within `time`.
    pub(super) fn has_more_within(&self, time: Duration) -> bool {
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
        matches!(rustix::event::poll(&mut polled, Some(&time)), Ok(1)) && polled[0].revents().contains(PollFlags::IN)
    }

    /// Whether the kernel still has a file system at the other end.
    pub(super) fn is_alive(&self) -> bool {
        is_alive(self.0.as_fd())
    }

    /// Has the kernel forget what it keeps of a file's bytes and attributes (`FUSE_NOTIFY_INVAL_INODE`). Waits for reads
    /// of them that are under way, so other threads must be there to answer.
    pub(super) fn forget_content(&self, node: u64) {
        const NOTIFY_INVAL_INODE: i32 = 2;
        let all = InvalidInode { node, offset: 0, length: 0 };
        let len = (size_of::<OutHeader>() + size_of::<InvalidInode>()) as u32;
        let notification = OutHeader { len, error: NOTIFY_INVAL_INODE, unique: 0 };
        let parts = [IoSlice::new(notification.as_bytes()), IoSlice::new(all.as_bytes())];
        match rustix::io::writev(&self.0, &parts) {
            // ENOENT: the kernel knows nothing of it; ENODEV: it is unmounted.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => tracing::error!(%errno, node, "the kernel may go on showing what it was told of a file"),
        }
    }

    /// Asks the kernel to send again what a process that is gone had received and not answered
    /// (`FUSE_NOTIFY_RESEND`, Linux 6.9).
    pub(super) fn resend(&self) -> Result<(), Errno> {
        const NOTIFY_RESEND: i32 = 7;
        let notification = OutHeader { len: size_of::<OutHeader>() as u32, error: NOTIFY_RESEND, unique: 0 };
        rustix::io::write(&self.0, notification.as_bytes()).map(drop)
    }
}

/// Whether the kernel still has a file system at the other end of a connection.
pub fn is_alive(connection: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(connection, PollFlags::empty())];
    let told = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    told.is_ok() && !polled[0].revents().contains(PollFlags::ERR)
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The answer that is owed for one request. Dropped without one, it answers EIO, so that no reader waits
/// for a handler that has panicked.
#[derive(Debug)]
pub(super) struct Reply {
    device: Arc<Device>,
    unique: u64,
    /// Of a reply that waits: set when its process has been interrupted.
    interrupted: Option<Arc<AtomicBool>>,
    sent: bool,
}

impl Reply {
    pub(super) fn new(device: &Arc<Device>, unique: u64) -> Self {
        Self { device: Arc::clone(device), unique, interrupted: None, sent: false }
    }

    /// The kernel's number for the request.
    pub(super) fn unique(&self) -> u64 {
        self.unique
    }

    /// To be set when the reply's waiting is given up because of a signal: it is then EINTR.
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
        let len = (size_of::<OutHeader>() + payload.len()) as u32;
        let header = OutHeader { len, error, unique: self.unique };
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(payload)];
        match rustix::io::writev(&self.device, &parts) {
            // ENOENT: the request was interrupted; ENODEV: the mount is gone.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => tracing::warn!(%errno, "the kernel did not take an answer"),
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
