//! What takes a mount over when its process dies.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::channel::AsyncChannel;
use super::handover::{self, Handover, KeeperId};
use super::image_store::StoreHandover;
use super::systemd::ServiceManager;
use super::wire::v1::Message;
use crate::image::Documents;

/// What takes a mount over.
#[derive(Debug)]
pub(super) enum Supervisor {
    /// A keeper holds the connection and starts another process.
    Keeper(KeeperLink),
    /// A service manager does that.
    ServiceManager(ServiceManager),
    /// Nothing: the mount ends with its process.
    None,
}

/// A mount that a keeper holds, and the channel to that keeper.
#[derive(Debug)]
pub(super) struct KeeperLink {
    pub(super) keeper: KeeperId,
    pub(super) channel: Arc<AsyncChannel>,
    /// The mount's number.
    pub(super) number: u64,
    /// The process serves other mounts, too.
    pub(super) shared: bool,
}

impl Supervisor {
    /// The keeper, if there is one.
    pub(super) fn keeper(&self) -> Option<&KeeperLink> {
        match self {
            Self::Keeper(link) => Some(link),
            Self::ServiceManager(_) | Self::None => None,
        }
    }

    /// An empty file to record open files, which the next process inherits.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(super) fn opens(&mut self) -> io::Result<Option<File>> {
        match self {
            Self::Keeper(link) => handover::create_private(&link.keeper.opens(link.number)).map(Some),
            Self::ServiceManager(manager) => manager.opens().map(Some),
            Self::None => Ok(None),
        }
    }

    /// Stores an image's documents for the next process.
    pub(super) fn keep_documents(&self, documents: &Documents) {
        if let Self::Keeper(link) = self {
            link.keeper.keep_documents(link.number, documents);
        }
    }

    /// Sends the state for a take-over; the first time with the connection, if a take-over is possible.
    pub(super) async fn serving(&mut self, handover: &Handover, connection: Option<BorrowedFd<'_>>) {
        match self {
            Self::Keeper(link) => {
                let message = Message::Serving { number: link.number, handover: Box::new(handover.into()) };
                link.say(&message, connection).await;
            }
            Self::ServiceManager(manager) => manager.serving(handover, connection),
            Self::None => {}
        }
    }

    /// As [`Supervisor::serving`], of an image store.
    pub(super) async fn serving_store(&self, handover: &StoreHandover, connection: Option<BorrowedFd<'_>>) {
        if let Self::Keeper(link) = self {
            let message = Message::ServingStore { number: link.number, handover: Box::new(handover.into()) };
            link.say(&message, connection).await;
        }
    }

    /// The mount has ended.
    pub(super) async fn ended(&mut self) {
        match self {
            Self::Keeper(link) => link.say(&Message::Ended { number: link.number }, None).await,
            Self::ServiceManager(manager) => manager.ended(),
            Self::None => {}
        }
    }
}

impl KeeperLink {
    async fn say(&self, message: &Message, connection: Option<BorrowedFd<'_>>) {
        if let Err(error) = self.channel.deliver(message, connection).await {
            tracing::warn!(%error, "the keeper is gone; this mount ends if this process dies");
        }
    }
}
