//! A service manager as the keeper: systemd's descriptor store outlives the process that serves.
//!
//! `mount -f --no-keeper` gives the manager (sd_notify(3), `FDSTORE=1`) what another process needs to go on: the
//! connection to the kernel and two files in memory, one that tells of the mount and, with passthrough, one of
//! the files that are open. The manager hands them to the process that it starts in place of one that died. A unit
//! has to allow that with `FileDescriptorStoreMax=3`.

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
    /// Where it has what is to be told of the mount, once it has.
    record: Option<File>,
    /// The files that are open, of a mount with passthrough.
    opens: Option<File>,
}

/// What the manager keeps of a mount.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    /// The version of the wire format in which the mount is described.
    wire: u32,
    mount: v1::MountHandover,
}

impl ServiceManager {
    /// The manager, if there is one, and what it has kept of the mount that is asked for, if that is still there.
    pub(super) fn find(spec: &MountSpec) -> Option<(Self, Option<Handed>)> {
        std::env::var_os("NOTIFY_SOCKET")?;
        let mut manager = Self { record: None, opens: None };
        let kept = manager.kept(spec).unwrap_or_else(|error| {
            tracing::warn!(%error, "what the service manager has kept cannot be used; mounting anew");
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
            return Err(io::Error::other(format!("it was written by a program that speaks wire version {wire}")));
        }
        let before = Handover::try_from(mount).map_err(io::Error::other)?;
        if !before.place.is_mounted() {
            return Ok(None);
        }
        // The image, as this command line and no other one asks for it.
        let asked = |spec: &MountSpec| (spec.image.reference.to_string(), spec.image.platform.clone(), spec.at.clone());
        if asked(&before.spec) != asked(spec) {
            let (at, reference) = (before.place.at().display(), &before.spec.image.reference);
            tracing::warn!(%at, %reference, "unmounting what the service was asked for before");
            before.place.unmount(OpenFiles::Keep).map_err(io::Error::other)?;
            return Ok(None);
        }
        self.record = Some(file);
        let opens = kept.remove(OPENS).map(File::from);
        let ended = Some("the service manager started another process".into());
        // What this command line says of the mount holds from here on.
        let handover = Handover { spec: spec.clone(), ..before.to_next(ended) };
        Ok(Some(Handed { handover, connection, opens }))
    }

    /// A file for the files that are open, which the manager will have as well.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(crate) fn opens(&mut self) -> io::Result<File> {
        let opens = memory(OPENS)?;
        self.opens = Some(opens.try_clone()?);
        Ok(opens)
    }

    /// The mount is up: gives the manager what another process needs to go on with it, if one could, and says when
    /// it is ready.
    pub(crate) fn serving(&mut self, handover: &Handover, connection: Option<BorrowedFd<'_>>) {
        let ready = !handover.awaited;
        if let Err(error) = self.keep(handover, connection) {
            tracing::warn!(%error, "the service manager cannot keep this mount; it ends if this process dies");
        }
        if ready {
            tell(&[NotifyState::Ready]);
        }
    }

    fn keep(&mut self, handover: &Handover, connection: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let record = Record { wire: 1, mount: handover.into() };
        let mut text = serde_json::to_vec(&record)?;
        // What is written later is as long, and replaces it as a whole.
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

    /// The mount has ended: no process is to take it over.
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

fn memory(name: &str) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

fn tell(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        tracing::warn!(%error, "the service manager does not listen");
    }
}

/// Names in the descriptor store.
const CONNECTION: &str = "peelfs";
const RECORD: &str = "peelfs-mount";
const OPENS: &str = "peelfs-opens";
const PAGE: usize = 4096;
/// Two paths of 4 KiB, each byte of them escaped, and a little more.
const LARGEST_RECORD: usize = 64 << 10;
