//! Requests of other processes to a keeper, at its sockets or over the channel of the command that started it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::channel::{AsyncChannel, Channel, ChannelError, Listener};
use super::error::HostError;
use super::report::{Code, Report};
use super::spec::MountSpec;
use super::wire;
use super::wire::v1::{Request, Word};

/// A request, and the channel to its sender.
pub(super) type IncomingRequest = (Request, AsyncChannel);

/// Forwards requests from a socket. Each connection has its own task, so that a silent one blocks no other.
pub(super) async fn listen(listener: Listener, requests: mpsc::Sender<IncomingRequest>) {
    let room = Arc::new(Semaphore::new(PENDING));
    loop {
        let Ok(room) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok(channel) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    match receive_request(channel).await {
                        Ok(request) => drop(requests.send(request).await),
                        Err(error) => {
                            tracing::debug!(%error, "a request cannot be parsed");
                        }
                    }
                    drop(room);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

/// Reads a request; one that cannot be parsed is refused with the reason.
pub(super) async fn receive_request(channel: AsyncChannel) -> Result<IncomingRequest, ChannelError> {
    channel.accept(REQUEST_TIMEOUT).await?;
    let received = timeout(REQUEST_TIMEOUT, channel.receive()).await.map_err(|_| ChannelError::Silent)?;
    let (text, _) = received?.ok_or(ChannelError::Gone)?;
    let understood = if text.len() > LARGEST_REQUEST {
        Err(wire::WireError::TooLarge { size: text.len(), limit: LARGEST_REQUEST })
    } else {
        wire::parse::<Request>(&text)
    };
    match understood {
        Ok(request) => Ok((request, channel)),
        Err(error) => {
            let report = Report::new(Code::Failure, format!("the keeper cannot parse the request: {error}"));
            channel.deliver(&Word::Failed((&report).into()), None).await?;
            Err(error.into())
        }
    }
}

/// The mount that this process was started for, from the process at the other end of its stdin, called `peer`.
pub(super) fn receive_mount(peer: &'static str) -> Result<(MountSpec, Channel), HostError> {
    let channel = Channel::of_stdin().map_err(|_| HostError::NotStartedByPeelfs)?;
    let asked = || -> Result<_, ChannelError> {
        channel.accept()?;
        let (text, _) = channel.receive()?.ok_or(ChannelError::Gone)?;
        match wire::parse(&text)? {
            Request::Mount(spec) => Ok(Some(MountSpec::try_from(*spec)?)),
            Request::Upgrade { .. } => Ok(None),
        }
    };
    let spec = asked().map_err(|cause| HostError::Channel { peer, cause })?;
    Ok((spec.ok_or(HostError::NotStartedByPeelfs)?, channel))
}

/// Refuses a mount whose hand-over would not fit into a message.
pub(super) fn check_size(spec: &MountSpec) -> Result<(), HostError> {
    let text = wire::text(&Request::Mount(Box::new(spec.into())));
    let checked = text.map(|text| text.len()).and_then(|size| match size {
        0..=LARGEST_REQUEST => Ok(()),
        _ => Err(wire::WireError::TooLarge { size, limit: LARGEST_REQUEST }),
    });
    checked.map_err(|error| HostError::Channel { peer: "background process", cause: error.into() })
}

/// Answers a requester. A requester that does not read is waited for in a task of its own.
pub(super) async fn last_word(channel: AsyncChannel, word: Word) {
    // Usually there is room at once, and this process may be about to end.
    if !channel.send(&word, None).is_err_and(|error| error.is_full()) {
        return;
    }
    tokio::spawn(async move { timeout(REPLY_TIMEOUT, channel.deliver(&word, None)).await });
}

/// Time limit for a request to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for sending the final message.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of connections without a request yet; further ones wait.
pub(super) const PENDING: usize = 64;
/// Largest request in bytes: the hand-over of the mount must hold it and some more paths.
const LARGEST_REQUEST: usize = wire::LARGEST / 4 * 3;
const BREATH: Duration = Duration::from_millis(50);
