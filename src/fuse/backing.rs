//! Backing files: files that the kernel reads directly (`FUSE_PASSTHROUGH`, Linux 6.9).

use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd as _;

use super::device::Device;

/// The kernel's number of a registered file. It belongs to the connection, not to a process, and keeps the file open
/// until it is [closed](BackingId::close).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct BackingId(NonZeroU32);

impl BackingId {
    /// Registers a file with the kernel.
    ///
    /// # Errors
    /// `EPERM` except for root in the initial user namespace, `ELOOP` for a file on a stacked file system.
    pub(super) fn open(device: &Device, file: &File) -> io::Result<Self> {
        let number = fuser::BackingId::create_raw(device.as_fd(), file.as_fd())?;
        Self::from_number(number).ok_or_else(|| io::Error::other("the kernel returned no number for a backing file"))
    }

    /// A file that another process has registered.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    pub(super) fn number(self) -> u32 {
        self.0.get()
    }

    /// Unregisters the file; the kernel drops it once it is no longer open.
    #[allow(unsafe_code)] // rustix has no safe wrapper for ioctls of single drivers
    pub(super) fn close(self, device: &Device) {
        /// `FUSE_DEV_IOC_BACKING_CLOSE`
        const CLOSE: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<u32>(229, 2);
        // SAFETY: `CLOSE` is a valid opcode, whose argument is a `u32` that the kernel only reads; on a descriptor that
        // is no FUSE connection it is refused.
        let closed = unsafe { rustix::ioctl::ioctl(device, rustix::ioctl::Setter::<CLOSE, u32>::new(self.number())) };
        if let Err(errno) = closed {
            tracing::debug!(%errno, "the kernel did not close a backing file");
        }
    }
}
