//! What other processes ask a keeper for, at its sockets or at the channel of the command that has started it.

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

/// What is asked for, and the process that asks.
pub(super) type Asked = (Request, AsyncChannel);

/// Passes on what processes ask for at a socket. Each has its own task: one that says nothing holds up no other.
pub(super) async fn listen(listener: Listener, requests: mpsc::Sender<Asked>) {
    let room = Arc::new(Semaphore::new(PENDING));
    loop {
        let Ok(room) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok(channel) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    match asked(channel).await {
                        Ok(asked) => drop(requests.send(asked).await),
                        Err(error) => {
                            tracing::debug!(%error, "a process asked for something that cannot be understood");
                        }
                    }
                    drop(room);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

/// What a process asks for; what cannot be understood is refused with the reason.
pub(super) async fn asked(channel: AsyncChannel) -> Result<Asked, ChannelError> {
    channel.accept(ASKED_WITHIN).await?;
    let received = timeout(ASKED_WITHIN, channel.receive()).await.map_err(|_| ChannelError::Silent)?;
    let (text, _) = received?.ok_or(ChannelError::Gone)?;
    let understood = if text.len() > LARGEST_REQUEST {
        Err(wire::WireError::TooLarge { size: text.len(), limit: LARGEST_REQUEST })
    } else {
        wire::parse::<Request>(&text)
    };
    match understood {
        Ok(request) => Ok((request, channel)),
        Err(error) => {
            let report = Report::new(Code::Failure, format!("the keeper does not understand the request: {error}"));
            channel.deliver(&Word::Failed((&report).into()), None).await?;
            Err(error.into())
        }
    }
}

/// The mount that this process was started for, by the one at the other end of its stdin, which is called `peer`.
pub(super) fn mount_asked(peer: &'static str) -> Result<(MountSpec, Channel), HostError> {
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

/// Refuses a mount of which another process could not be told: what it is told by has to fit into a message.
pub(super) fn check_size(spec: &MountSpec) -> Result<(), HostError> {
    let text = wire::text(&Request::Mount(Box::new(spec.into())));
    let checked = text.map(|text| text.len()).and_then(|size| match size {
        0..=LARGEST_REQUEST => Ok(()),
        _ => Err(wire::WireError::TooLarge { size, limit: LARGEST_REQUEST }),
    });
    checked.map_err(|error| HostError::Channel { peer: "background process", cause: error.into() })
}

/// Tells a process that asked how it went. One that does not read what it is told holds up nothing: it is waited for
/// beside everything else.
pub(super) async fn last_word(channel: AsyncChannel, word: Word) {
    // Mostly there is room at once, and this process may be about to end.
    if !channel.send(&word, None).is_err_and(|error| error.is_full()) {
        return;
    }
    tokio::spawn(async move { timeout(TOLD_WITHIN, channel.deliver(&word, None)).await });
}

/// How long a process that asks may take to say what for.
const ASKED_WITHIN: Duration = Duration::from_secs(5);
/// How long the last word to a process that asked is waited for.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// Connections that may be about to ask for something at the same time; further ones wait.
pub(super) const PENDING: usize = 64;
/// Bytes of the largest request: what a mount that was made is told by has to hold it and some paths more.
const LARGEST_REQUEST: usize = wire::LARGEST / 4 * 3;
const BREATH: Duration = Duration::from_millis(50);
