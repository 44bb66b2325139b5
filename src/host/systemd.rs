//! A service manager as the keeper: systemd's descriptor store outlives the serving process.
//!
//! `mount -f --no-keeper` gives the manager (sd_notify(3), `FDSTORE=1`) what a successor needs: the connection to the
//! kernel and two files in memory, one with the mount's state and, with passthrough, one with its open files. The
//! manager passes them to the process that it starts in place of one that died. A unit must allow that with
//! `FileDescriptorStoreMax=3`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::MemfdFlags;
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};

use super::handover::{Handed, Handover};
use super::inherited;
use super::spec::MountSpec;
use super::wire::{self, v1};
use crate::fuse::OpenFiles;

/// The manager that has started this process.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    /// The stored state of the mount, once there is one.
    record: Option<File>,
    /// The record of open files, of a mount with passthrough.
    opens: Option<File>,
}

/// What the manager stores of a mount.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    /// The version of the wire format of the mount's state.
    wire: u32,
    mount: v1::MountHandover,
}

impl ServiceManager {
    /// The manager, if there is one, and its stored state of the requested mount, if that still exists.
    pub(super) fn find(spec: &MountSpec) -> Option<(Self, Option<Handed>)> {
        std::env::var_os("NOTIFY_SOCKET")?;
        let mut manager = Self { record: None, opens: None };
        let kept = manager.kept(spec).unwrap_or_else(|error| {
            tracing::warn!(%error, "the state stored by the service manager cannot be used; mounting again");
            None
        });
        if kept.is_none() {
            manager.forget();
        }
        Some((manager, kept))
    }

    fn kept(&mut self, spec: &MountSpec) -> io::Result<Option<Handed>> {
        let mut kept = inherited::take()?;
        let (Some(record), Some(connection)) = (kept.remove(RECORD), kept.remove(CONNECTION)) else { return Ok(None) };
        let file = File::from(record);
        let mut text =
            vec![0; usize::try_from(file.metadata()?.len()).map_or(LARGEST_RECORD, |l| l.min(LARGEST_RECORD))];
        file.read_exact_at(&mut text, 0)?;
        let Record { wire, mount } = serde_json::from_slice(&text)?;
        if !wire::VERSIONS.contains(&wire) {
            return Err(io::Error::other(format!("it was written in wire version {wire}")));
        }
        let before = Handover::try_from(mount).map_err(io::Error::other)?;
        if !before.place.is_mounted() {
            return Ok(None);
        }
        // The image as this command line requests it.
        let asked = |spec: &MountSpec| (spec.image.reference.to_string(), spec.image.platform.clone(), spec.at.clone());
        if asked(&before.spec) != asked(spec) {
            let (at, reference) = (before.place.at().display(), &before.spec.image.reference);
            tracing::warn!(%at, %reference, "unmounting the service's previous mount");
            before.place.unmount(OpenFiles::Keep).map_err(io::Error::other)?;
            return Ok(None);
        }
        self.record = Some(file);
        let opens = kept.remove(OPENS).map(File::from);
        let ended = Some("the service manager started another process".into());
        // From here on, the options of this command line apply.
        let handover = Handover { spec: spec.clone(), ..before.to_next(ended) };
        Ok(Some(Handed { handover, connection, opens }))
    }

    /// A file to record open files, which the manager stores as well.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(crate) fn opens(&mut self) -> io::Result<File> {
        let opens = memory(OPENS)?;
        self.opens = Some(opens.try_clone()?);
        Ok(opens)
    }

    /// The mount is up: gives the manager what a successor needs, if a take-over is possible, and reports readiness.
    pub(crate) fn serving(&mut self, handover: &Handover, connection: Option<BorrowedFd<'_>>) {
        let ready = !handover.awaited;
        if let Err(error) = self.keep(handover, connection) {
            tracing::warn!(%error, "the service manager cannot store this mount; it ends if this process dies");
        }
        if ready {
            tell(&[NotifyState::Ready]);
        }
    }

    fn keep(&mut self, handover: &Handover, connection: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let record = Record { wire: 1, mount: handover.into() };
        let mut text = serde_json::to_vec(&record)?;
        // Later versions have the same size, and replace it as a whole.
        text.resize(text.len().next_multiple_of(PAGE), b' ');
        if let Some(record) = &self.record {
            return record.write_all_at(&text, 0); // the manager has the same file
        }
        let Some(connection) = connection else { return Ok(()) };
        let record = memory(RECORD)?;
        record.write_all_at(&text, 0)?;
        // The connection comes last: without it, the mount ends with this process.
        let opens = self.opens.iter().map(|opens| (OPENS, opens.as_fd()));
        for (name, descriptor) in opens.chain([(RECORD, record.as_fd()), (CONNECTION, connection)]) {
            sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[descriptor])?;
        }
        self.record = Some(record);
        Ok(())
    }

    /// The mount has ended: no process shall take it over.
    pub(crate) fn ended(&mut self) {
        tell(&[NotifyState::Stopping]);
        self.forget();
    }

    fn forget(&mut self) {
        (self.record, self.opens) = (None, None);
        for name in [CONNECTION, RECORD, OPENS] {
            tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        }
    }
}

/// Tells a service manager, if one has started this process, that it is ready. What it starts instead of a process that
/// dies is up to a keeper.
pub(super) fn tell_ready() {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        tell(&[NotifyState::Ready]);
    }
}

fn memory(name: &str) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

fn tell(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Names in the descriptor store.
const CONNECTION: &str = "peelfs";
const RECORD: &str = "peelfs-mount";
const OPENS: &str = "peelfs-opens";
const PAGE: usize = 4096;
/// Two paths of 4 KiB, each byte escaped, and a little more.
const LARGEST_RECORD: usize = 64 << 10;
