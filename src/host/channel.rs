//! A channel between two processes: JSON messages over a Unix socket, some with a descriptor.
//!
//! The sockets have the type `SOCK_SEQPACKET`: a message arrives completely or not at all, and a malformed one does not
//! affect the next. [`wire`] describes how a conversation starts.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::time::timeout;

use super::wire::{self, Answer, Offer, WireError};

/// One end of a channel; calls block.
#[derive(Debug)]
pub struct Channel(UnixStream);

/// A received message in its wire form, and a descriptor.
pub type Packet = (Vec<u8>, Option<OwnedFd>);

/// Why a conversation failed.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(io::Error),
    /// A message is invalid.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The other end is closed.
    #[error("the other process is gone")]
    Gone,
    /// The other end does not answer.
    #[error("the other process does not answer")]
    Silent,
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Whether it closes before or after a message is sent is a race.
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Gone,
            _ => Self::Io(error),
        }
    }
}

impl ChannelError {
    /// Whether the message was not sent because the buffer is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Channel {
    /// This end, and the descriptor of the other.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (own, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(own.into()), other))
    }

    /// The channel that this process has as stdin; stdin is empty afterwards.
    ///
    /// # Errors
    /// [`io::Error`], also if stdin is no such channel.
    pub fn of_stdin() -> io::Result<Self> {
        let own = io::stdin().as_fd().try_clone_to_owned()?;
        if rustix::net::sockopt::socket_type(&own)? != SocketType::SEQPACKET {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Self(own.into()))
    }

    /// Connects to `path`, where a process of this user or of root must listen.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        if !is_trusted(&socket)? {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a process of another user listens there"));
        }
        Ok(Self(socket.into()))
    }

    /// Starts a conversation: offers the versions of this program and waits for the answer.
    ///
    /// # Errors
    /// [`ChannelError`]
    pub fn offer(&self) -> Result<u32, ChannelError> {
        self.send(&Offer::own(), None)?;
        let (text, _) = self.receive()?.ok_or(ChannelError::Gone)?;
        Ok(wire::parse::<Answer>(&text)?.version()?)
    }

    /// Answers the offer of the other side.
    ///
    /// # Errors
    /// [`ChannelError`]; the other side was sent the reason.
    pub fn accept(&self) -> Result<u32, ChannelError> {
        let (text, _) = self.receive()?.ok_or(ChannelError::Gone)?;
        let (answer, version) = answer(&text);
        self.send(&answer, None)?;
        Ok(version?)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`ChannelError`], as when the other end is closed.
    pub fn send(&self, message: &impl Serialize, descriptor: Option<BorrowedFd<'_>>) -> Result<(), ChannelError> {
        Ok(self.send_text(&wire::text(message)?, descriptor)?)
    }

    fn send_text(&self, text: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let descriptors = descriptor.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next packet; `None` when the other end is closed.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn receive(&self) -> io::Result<Option<Packet>> {
        let mut text = vec![0; wire::LARGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let parts = &mut [IoSliceMut::new(&mut text)];
            match rustix::net::recvmsg(&self.0, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                // It was killed before it had read everything.
                Err(Errno::CONNRESET) => return Ok(None),
                received => break received?,
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        text.truncate(received.bytes);
        Ok(Some((text, descriptor)))
    }

    /// Makes [`Channel::receive`] fail after `time` without a message.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn set_timeout(&self, time: Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(time))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The answer to an offer, and the chosen version.
fn answer(offer: &[u8]) -> (Answer, Result<u32, WireError>) {
    match wire::parse::<Offer>(offer).and_then(|offer| offer.choose()) {
        Ok(version) => (Answer::Version(version), Ok(version)),
        Err(error) => (Answer::Refused { why: error.to_string() }, Err(error)),
    }
}

/// A [`Channel`] for async code.
#[derive(Debug)]
pub struct AsyncChannel {
    channel: Channel,
    ready: tokio::net::UnixStream,
}

impl AsyncChannel {
    /// # Errors
    /// [`io::Error`]
    pub fn new(channel: Channel) -> io::Result<Self> {
        channel.0.set_nonblocking(true)?;
        let ready = tokio::net::UnixStream::from_std(channel.0.try_clone()?)?;
        Ok(Self { channel, ready })
    }

    /// Offers the versions of this program; waits at most `within` for the answer.
    ///
    /// # Errors
    /// [`ChannelError`]
    pub async fn offer(&self, within: Duration) -> Result<u32, ChannelError> {
        self.send(&Offer::own(), None)?;
        let received = timeout(within, self.receive()).await.map_err(|_| ChannelError::Silent)?;
        let (text, _) = received?.ok_or(ChannelError::Gone)?;
        Ok(wire::parse::<Answer>(&text)?.version()?)
    }

    /// Answers the offer of the other side, which must arrive `within` that time.
    ///
    /// # Errors
    /// [`ChannelError`]; the other side was sent the reason.
    pub async fn accept(&self, within: Duration) -> Result<u32, ChannelError> {
        let received = timeout(within, self.receive()).await.map_err(|_| ChannelError::Silent)?;
        let (text, _) = received?.ok_or(ChannelError::Gone)?;
        let (answer, version) = answer(&text);
        self.send(&answer, None)?;
        Ok(version?)
    }

    /// Sends a message if the buffer has room.
    ///
    /// # Errors
    /// [`ChannelError`]
    pub fn send(&self, message: &impl Serialize, descriptor: Option<BorrowedFd<'_>>) -> Result<(), ChannelError> {
        self.channel.send(message, descriptor)
    }

    /// As [`AsyncChannel::send`], but waits for room in the buffer.
    ///
    /// # Errors
    /// [`ChannelError`]
    pub async fn deliver(
        &self,
        message: &impl Serialize,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), ChannelError> {
        let text = wire::text(message)?;
        Ok(self.ready.async_io(Interest::WRITABLE, || self.channel.send_text(&text, descriptor)).await?)
    }

    /// The next packet; `None` when the other end is closed. Cancel-safe.
    ///
    /// # Errors
    /// [`io::Error`]
    pub async fn receive(&self) -> io::Result<Option<Packet>> {
        self.ready.async_io(Interest::READABLE, || self.channel.receive()).await
    }

    /// The next message; `None` when the other end is closed.
    ///
    /// # Errors
    /// [`ChannelError`]
    pub async fn receive_message<T: DeserializeOwned>(&self) -> Result<Option<(T, Option<OwnedFd>)>, ChannelError> {
        match self.receive().await? {
            Some((text, descriptor)) => Ok(Some((wire::parse(&text)?, descriptor))),
            None => Ok(None),
        }
    }
}

/// A socket for requests of processes of the same user; removed when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: tokio::net::UnixListener,
}

impl Listener {
    /// Listens on `path`, in a directory that only this user may enter.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::fs::chmod(path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Self { socket: tokio::net::UnixListener::from_std(socket.into())? })
    }

    /// The next connection of this user or of root; closes others.
    ///
    /// # Errors
    /// [`io::Error`] of the socket itself.
    pub async fn accept(&self) -> io::Result<AsyncChannel> {
        loop {
            let (stream, _) = self.socket.accept().await?;
            // A peer that is gone has no request.
            if is_trusted(&stream).unwrap_or(false) {
                return AsyncChannel::new(Channel(stream.into_std()?));
            }
        }
    }
}

/// Whether the peer of a Unix socket is a process of this user or of root.
///
/// # Errors
/// [`io::Error`]
pub(super) fn is_trusted(socket: &impl AsFd) -> io::Result<bool> {
    let peer = rustix::net::sockopt::socket_peercred(socket)?;
    let trusted = peer.uid.is_root() || peer.uid == rustix::process::geteuid();
    if !trusted {
        tracing::debug!(uid = peer.uid.as_raw(), "refused a connection of another user's process");
    }
    Ok(trusted)
}

const BACKLOG: i32 = 64;
