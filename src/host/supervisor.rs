//! What takes a mount over when the process that serves it dies.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::channel::AsyncChannel;
use super::handover::{self, Handover, KeeperId};
use super::systemd::ServiceManager;
use super::wire::v1::Message;
use crate::image::Documents;

/// What takes a mount over.
#[derive(Debug)]
pub(super) enum Supervisor {
    /// A keeper holds the connection and starts another process.
    Keeper(Kept),
    /// A service manager does.
    ServiceManager(ServiceManager),
    /// Nothing: the mount ends with its process.
    None,
}

/// A mount that a keeper holds.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) keeper: KeeperId,
    pub(super) channel: Arc<AsyncChannel>,
    /// The mount's number.
    pub(super) number: u64,
    /// The process serves other mounts, too.
    pub(super) shared: bool,
}

impl Supervisor {
    /// The keeper, if that is what it is.
    pub(super) fn keeper(&self) -> Option<&Kept> {
        match self {
            Self::Keeper(kept) => Some(kept),
            Self::ServiceManager(_) | Self::None => None,
        }
    }

    /// An empty file for which files are open, which the next process will have.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(super) fn opens(&mut self) -> io::Result<Option<File>> {
        match self {
            Self::Keeper(kept) => handover::create_private(&kept.keeper.opens(kept.number)).map(Some),
            Self::ServiceManager(manager) => manager.opens().map(Some),
            Self::None => Ok(None),
        }
    }

    /// Keeps an image's documents for the next process.
    pub(super) fn keep_documents(&self, documents: &Documents) {
        if let Self::Keeper(kept) = self {
            kept.keeper.keep_documents(kept.number, documents);
        }
    }

    /// This is how another process could take the mount over; with the connection at the first time, if one could.
    pub(super) async fn serving(&mut self, handover: &Handover, connection: Option<BorrowedFd<'_>>) {
        match self {
            Self::Keeper(kept) => {
                let message = Message::Serving { number: kept.number, handover: Box::new(handover.into()) };
                kept.say(&message, connection).await;
            }
            Self::ServiceManager(manager) => manager.serving(handover, connection),
            Self::None => {}
        }
    }

    /// The mount has ended.
    pub(super) async fn ended(&mut self) {
        match self {
            Self::Keeper(kept) => kept.say(&Message::Ended { number: kept.number }, None).await,
            Self::ServiceManager(manager) => manager.ended(),
            Self::None => {}
        }
    }
}

impl Kept {
    async fn say(&self, message: &Message, connection: Option<BorrowedFd<'_>>) {
        if let Err(error) = self.channel.deliver(message, connection).await {
            tracing::warn!(%error, "the keeper is gone; this mount ends if this process dies");
        }
    }
}
