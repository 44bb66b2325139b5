//! What the [keeper](super::keeper) and the process that serves the mount say to each other.
//!
//! Over a pair of sockets whose one end is the serving process' stdin, in messages of JSON, of which
//! some carry the connection to the kernel.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use super::background::Word;
use crate::cli::args::MountArgs;
use crate::digest::Digest;
use crate::fuse::{MountOptions, MountPlace};
use crate::image::Documents;
use crate::source::registry::Surroundings;

/// What is said.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Message {
    /// To a new process: mount.
    Begin(KeptBy),
    /// To a new process, with the connection: get ready to go on with this mount.
    TakeOver(KeptBy, Box<Handover>),
    /// From it: ready. It does not serve yet.
    Prepared,
    /// To it: the process before is gone; serve.
    Go,
    /// From the process that serves: this is how another one could go on. At the first time with the connection.
    Serving(Box<Handover>),
    /// To a new process: so many mounts to go on with follow, one [`Message::TakeOver`] each.
    Resume(KeptBy, usize),
    /// To the process that serves shared mounts: make one more, by this number.
    Mount(u64, Box<Request>),
    /// From it: what whoever asked for that mount is to be told.
    Tell(u64, Word),
    /// To it: whoever asked for that mount is gone before it was ready.
    GivenUp(u64),
    /// From it: that mount has ended.
    Ended(u64),
}

/// What somebody wants mounted by the process that serves shared mounts, with all paths absolute.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Request {
    /// The command line, options applied.
    pub(crate) args: MountArgs,
    /// How it is mounted.
    pub(crate) kernel: MountOptions,
    /// Where its credentials are.
    pub(crate) surroundings: Surroundings,
}

/// Who keeps the connection.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct KeptBy {
    /// The keeper's process.
    pub(crate) pid: u32,
    /// Where it can be asked for an upgrade.
    pub(crate) socket: PathBuf,
}

impl KeptBy {
    /// Where a mount with passthrough keeps which files are open, for the next process.
    pub(crate) fn opens(&self) -> PathBuf {
        self.socket.with_extension("opens")
    }

    /// Where the documents of a mount are kept for the next process, by its number among shared mounts, or 0.
    pub(crate) fn documents(&self, number: u64) -> PathBuf {
        self.socket.with_extension(format!("{number}.image"))
    }

    /// Keeps the documents of a mount: a process that goes on with it may find that the cache has lost them and that the
    /// registry is away.
    pub(crate) fn keep_documents(&self, number: u64, documents: &Documents) {
        let path = self.documents(number);
        let text = serde_json::to_vec(documents).expect("it is digests and texts");
        let kept = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        if let Err(error) = kept.and_then(|mut file| file.write_all(&text)) {
            tracing::warn!(%error, path = %path.display(), "cannot keep an image's documents beside its mount");
        }
    }

    /// What [`KeptBy::keep_documents`] has kept; nothing, if it is not there or no longer whole.
    pub(crate) fn kept_documents(&self, number: u64) -> Documents {
        let text = std::fs::read(self.documents(number)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

/// What a process needs to go on with a mount, besides the command line and the connection.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Handover {
    /// Where it is mounted.
    pub(crate) place: MountPlace,
    /// What the reference named when it was mounted.
    pub(crate) root: Digest,
    /// The manifest that was chosen there.
    pub(crate) manifest: Digest,
    /// Where the log is written; none in the foreground.
    pub(crate) log: Option<PathBuf>,
    /// Seconds since 1970 at which it was mounted.
    pub(crate) since: u64,
    /// How often another process has gone on with it.
    pub(crate) takeovers: u32,
    /// How the process before ended.
    pub(crate) ended: Option<String>,
    /// Whoever asked for it has not been told yet that it is ready.
    #[serde(default)]
    pub(crate) awaited: bool,
    /// Its number among shared mounts, and what was asked for.
    pub(crate) shared: Option<(u64, Box<Request>)>,
}

impl Handover {
    /// How long ago the mount was made, by the wall clock; for ever, if that has been set back since.
    pub(crate) fn age(&self) -> Duration {
        let since = UNIX_EPOCH.checked_add(Duration::from_secs(self.since));
        since.and_then(|since| since.elapsed().ok()).unwrap_or(Duration::MAX)
    }
}

/// A mount to go on with.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) handover: Handover,
    /// Its connection to the kernel.
    pub(crate) connection: OwnedFd,
    /// Which files are open, of a mount with passthrough.
    pub(crate) opens: Option<File>,
}

/// One end. Whole messages travel over it, whatever the type of the stream says.
#[derive(Debug)]
pub(crate) struct Channel(UnixStream);

impl Channel {
    /// This end, and the other one's descriptor.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (own, other) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(own.into()), other))
    }

    /// The end that a keeper has given to this process as stdin, which is empty from here on.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(crate) fn of_stdin() -> io::Result<Self> {
        let own = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Self(own.into()))
    }

    /// # Errors
    /// [`io::Error`], as when the other end is gone.
    pub(crate) fn send(&self, message: &Message, connection: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let connections = connection.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !connections.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(connections));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message; `None` when the other end is gone.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(crate) fn receive(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        let mut text = vec![0; LARGEST_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let parts = &mut [IoSliceMut::new(&mut text)];
            match rustix::net::recvmsg(&self.0, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                // Killed while it had not read everything.
                Err(Errno::CONNRESET) => return Ok(None),
                received => break received?,
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        let connection = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut connections) => connections.next(),
            _ => None,
        });
        Ok(Some((serde_json::from_slice(&text[..received.bytes])?, connection)))
    }
}

/// A [`Channel`] on which waiting lets other things happen.
#[derive(Debug)]
pub(crate) struct AsyncChannel {
    channel: Channel,
    ready: tokio::net::UnixStream,
}

impl AsyncChannel {
    /// # Errors
    /// [`io::Error`]
    pub(crate) fn new(channel: Channel) -> io::Result<Self> {
        channel.0.set_nonblocking(true)?;
        let ready = tokio::net::UnixStream::from_std(channel.0.try_clone()?)?;
        Ok(Self { channel, ready })
    }

    /// # Errors
    /// [`io::Error`], as when the other end is gone.
    pub(crate) fn send(&self, message: &Message, connection: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.channel.send(message, connection)
    }

    /// As [`AsyncChannel::send`], after the other end has taken what it was sent before.
    ///
    /// # Errors
    /// [`io::Error`], as when the other end is gone.
    pub(crate) async fn deliver(&self, message: &Message, connection: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.ready.async_io(tokio::io::Interest::WRITABLE, || self.channel.send(message, connection)).await
    }

    /// The next message; `None` when the other end is gone.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(crate) async fn receive(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        self.ready.async_io(tokio::io::Interest::READABLE, || self.channel.receive()).await
    }
}

/// Two paths of 4 KiB, each byte of them escaped, and a little more.
const LARGEST_MESSAGE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_message_carries_a_connection_and_the_end_is_seen() {
        let (own, other) = Channel::pair().unwrap();
        let other = Channel(other.into());
        let (mut reader, mut writer) = io::pipe().unwrap();
        own.send(&Message::Prepared, Some(writer.as_fd())).unwrap();
        own.send(&Message::Go, None).unwrap();
        writer.write_all(b"a").unwrap();
        drop(writer);
        drop(own);

        let (message, connection) = other.receive().unwrap().unwrap();
        assert!(matches!(message, Message::Prepared));
        std::fs::File::from(connection.unwrap()).write_all(b"b").unwrap();
        assert!(matches!(other.receive().unwrap().unwrap(), (Message::Go, None)));
        assert!(other.receive().unwrap().is_none());
        let mut came = String::new();
        reader.read_to_string(&mut came).unwrap();
        assert_eq!(came, "ab");
    }
}
