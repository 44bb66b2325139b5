//! Backing files: what the kernel reads instead of asking (`FUSE_PASSTHROUGH`, Linux 6.9).

use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd as _;

use super::device::Device;

/// The kernel's number for a file that it was given. It belongs to the connection and not to a process, and
/// holds the file until it is [closed](BackingId::close).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct BackingId(NonZeroU32);

impl BackingId {
    /// Gives the kernel a file.
    ///
    /// # Errors
    /// `EPERM` to all but root in the first user namespace, `ELOOP` for a file on a stacked file system.
    pub(super) fn open(device: &Device, file: &File) -> io::Result<Self> {
        let number = fuser::BackingId::create_raw(device.as_fd(), file.as_fd())?;
        Self::from_number(number).ok_or_else(|| io::Error::other("the kernel gave a backing file no number"))
    }

    /// One that another process had opened.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    pub(super) fn number(self) -> u32 {
        self.0.get()
    }

    /// Lets the kernel forget the file, as soon as it is no longer open.
    #[allow(unsafe_code)] // rustix has no safe wrapper for ioctls of single drivers
    pub(super) fn close(self, device: &Device) {
        /// `FUSE_DEV_IOC_BACKING_CLOSE`
        const CLOSE: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<u32>(229, 2);
        // SAFETY: `CLOSE` is a valid opcode, whose argument is a `u32` that the kernel only reads; on a
        // descriptor that is no FUSE connection it is refused.
        let closed = unsafe { rustix::ioctl::ioctl(device, rustix::ioctl::Setter::<CLOSE, u32>::new(self.number())) };
        if let Err(errno) = closed {
            tracing::debug!(%errno, "the kernel did not give a backing file back");
        }
    }
}
