//! What a keeper keeps: mounts of images, and image stores. It looks at neither closely.

use std::path::PathBuf;

use super::error::HostError;
use super::handover::Handover;
use super::image_store::{StoreHandover, StoreSpec};
use super::requests;
use super::spec::MountSpec;
use super::wire::WireError;
use super::wire::v1::{self, Message};
use crate::fuse::MountPlace;

/// What a process is to serve.
#[derive(Clone, Debug)]
pub enum TargetSpec {
    /// A mount of an image.
    Image(Box<MountSpec>),
    /// An image store.
    Store(StoreSpec),
}

/// What a process serves, as another one could take it over.
#[derive(Clone, Debug)]
pub(super) enum TargetState {
    Image(Box<Handover>),
    Store(Box<StoreHandover>),
}

impl From<MountSpec> for TargetSpec {
    fn from(spec: MountSpec) -> Self {
        Self::Image(Box::new(spec))
    }
}

impl From<StoreSpec> for TargetSpec {
    fn from(spec: StoreSpec) -> Self {
        Self::Store(spec)
    }
}

impl TargetSpec {
    /// Where the log is written, if the user named a file.
    pub(super) fn log(&self) -> Option<&PathBuf> {
        match self {
            Self::Image(spec) => spec.log.as_ref(),
            Self::Store(_) => None,
        }
    }

    /// Refuses what another process could not be told.
    pub(super) fn check_size(&self) -> Result<(), HostError> {
        match self {
            Self::Image(spec) => requests::check_size(spec),
            // Two paths.
            Self::Store(_) => Ok(()),
        }
    }

    /// Asks a process that serves for it.
    pub(super) fn message(&self, number: u64) -> Message {
        match self {
            Self::Image(spec) => Message::Mount { number, spec: Box::new((&**spec).into()) },
            Self::Store(spec) => Message::Store { number, spec: Box::new(spec.into()) },
        }
    }
}

impl TargetState {
    pub(super) fn image(handover: v1::MountHandover) -> Result<Self, WireError> {
        Handover::try_from(handover).map(Box::new).map(Self::Image)
    }

    pub(super) fn store(handover: v1::StoreHandover) -> Result<Self, WireError> {
        StoreHandover::try_from(handover).map(Box::new).map(Self::Store)
    }

    pub(super) fn place(&self) -> &MountPlace {
        match self {
            Self::Image(handover) => &handover.place,
            Self::Store(handover) => &handover.place,
        }
    }

    /// Whether the process that asked for it has not been told yet that it is ready.
    pub(super) fn is_awaited(&self) -> bool {
        match self {
            Self::Image(handover) => handover.awaited,
            Self::Store(handover) => handover.awaited,
        }
    }

    /// Tells it to the next process; `ended` says how the one before died.
    pub(super) fn to_next(&self, number: u64, ended: Option<String>) -> Message {
        match self {
            Self::Image(handover) => {
                Message::TakeOver { number, handover: Box::new((&handover.to_next(ended)).into()) }
            }
            Self::Store(handover) => {
                Message::TakeOverStore { number, handover: Box::new((&handover.to_next(ended)).into()) }
            }
        }
    }

    /// Another process serves it now.
    pub(super) fn was_taken_over(&mut self) {
        match self {
            Self::Image(handover) => handover.takeovers += 1,
            Self::Store(handover) => handover.takeovers += 1,
        }
    }
}
