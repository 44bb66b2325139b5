//! A Unix socket to serve on: newly made, or passed by a service manager.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::Stream;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::net::{UnixListener, UnixStream};

/// A socket that listens. The file that it made is removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    made: Option<Made>,
}

/// A socket's file, identified by its inode.
#[derive(Debug)]
struct Made {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Why there is no socket to serve on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process serves there.
    #[error("`{}` is in use: another process listens there", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is in use by another kind of file.
    #[error("`{}` exists and is no socket", path.display())]
    NoSocket {
        /// The file.
        path: PathBuf,
    },
    /// The path is too long for a socket's address.
    #[error("`{}` has {} bytes; the name of a socket has at most {LONGEST}", path.display(), path.as_os_str().len())]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// The descriptor of the service manager is not usable.
    #[error("the service manager handed over something that does not listen as a Unix socket")]
    Inherited,
    /// It cannot be created.
    #[error("cannot listen at `{}`", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

impl SocketError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InUse { .. } => Some("end that process, or name another socket".into()),
            Self::NoSocket { path } => Some(format!("remove `{}`, or name another socket", path.display())),
            Self::TooLong { .. } => Some("name a socket in a directory with a shorter path, as in /run".into()),
            Self::Inherited => Some("let the socket unit have one `ListenStream=` with a path".into()),
            Self::Listen { path, cause } if cause.kind() == io::ErrorKind::NotFound => {
                Some(format!("make its directory with `mkdir -p {}`", directory(path).display()))
            }
            Self::Listen { .. } => None,
        }
    }
}

impl Socket {
    /// The socket passed by a service manager, or a new one at `path`; replaces one left by an ended process. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// [`SocketError`]
    pub fn open(path: &Path, inherited: Option<OwnedFd>) -> Result<Self, SocketError> {
        match inherited {
            Some(descriptor) => Self::of_manager(descriptor),
            None => Self::make(path),
        }
    }

    fn of_manager(descriptor: OwnedFd) -> Result<Self, SocketError> {
        let listens = || -> io::Result<bool> {
            Ok(sockopt::socket_domain(&descriptor)? == AddressFamily::UNIX
                && sockopt::socket_type(&descriptor)? == SocketType::STREAM
                && sockopt::socket_acceptconn(&descriptor)?)
        };
        if !listens().unwrap_or(false) {
            return Err(SocketError::Inherited);
        }
        let listener = std::os::unix::net::UnixListener::from(descriptor);
        let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        Ok(Self { listener: listener.map_err(|_| SocketError::Inherited)?, made: None })
    }

    fn make(path: &Path) -> Result<Self, SocketError> {
        let failed = |cause: io::Error| SocketError::Listen { path: path.to_owned(), cause };
        if path.as_os_str().len() > LONGEST {
            return Err(SocketError::TooLong { path: path.to_owned() });
        }
        let in_use = || SocketError::InUse { path: path.to_owned() };
        // Of two processes that find a stale socket, the second one must not remove what the first one has made.
        let directory = File::open(directory(path)).map_err(failed)?;
        let begun = Instant::now();
        loop {
            match directory.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if begun.elapsed() < OTHERS_TAKE => std::thread::sleep(LOOK),
                Err(TryLockError::WouldBlock) => return Err(failed(io::ErrorKind::TimedOut.into())),
                Err(TryLockError::Error(cause)) => return Err(failed(cause)),
            }
        }
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NoSocket { path: path.to_owned() }),
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    tracing::info!(path = %path.display(), "replacing the socket of a process that is gone");
                    std::fs::remove_file(path).map_err(failed)?;
                }
                // Its queue may be full: it is in use nevertheless.
                _ => return Err(in_use()),
            },
        }
        let bound = bind(path).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => in_use(),
            _ => failed(error),
        })?;
        Ok(bound)
    }

    /// The connections of root and of this process's user; others are closed.
    pub fn incoming(self) -> impl Stream<Item = io::Result<UnixStream>> {
        futures_util::stream::unfold(self, async |socket| {
            loop {
                match socket.listener.accept().await {
                    Ok((stream, _)) if is_trusted(&stream) => return Some((Ok(stream), socket)),
                    Ok(_) => {}
                    // As without a descriptor left; pending connections are accepted later.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(BREATH).await;
                    }
                }
            }
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some(made) = &self.made else { return };
        let is_own = |found: &std::fs::Metadata| (found.dev(), found.ino()) == (made.device, made.inode);
        if std::fs::symlink_metadata(&made.path).is_ok_and(|found| is_own(&found)) {
            let _ = std::fs::remove_file(&made.path);
        }
    }
}

/// Only its user may connect, from the start: connections are refused until it listens.
fn bind(path: &Path) -> io::Result<Socket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let found = std::fs::symlink_metadata(path)?;
    let made = Made { path: path.to_owned(), device: found.dev(), inode: found.ino() };
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(Socket { listener: UnixListener::from_std(socket.into())?, made: Some(made) })
}

fn is_trusted(stream: &UnixStream) -> bool {
    // A peer that is gone already asks for nothing.
    let Ok(peer) = sockopt::socket_peercred(stream) else { return false };
    let trusted = peer.uid.is_root() || peer.uid == rustix::process::geteuid();
    if !trusted {
        tracing::warn!(uid = peer.uid.as_raw(), "refused a connection of another user");
    }
    trusted
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Bytes of a path in a socket's address, without the zero at its end (unix(7)).
const LONGEST: usize = 107;
const BACKLOG: i32 = 128;
const OTHERS_TAKE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);
const BREATH: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("s");
        // Left by a process that was killed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = Socket::open(&path, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let error = Socket::open(&path, None).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        drop(socket);
        assert!(!path.exists(), "its file goes with it");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("s");
        std::fs::write(&path, "mine").unwrap();
        let error = Socket::open(&path, None).unwrap_err();
        assert!(matches!(error, SocketError::NoSocket { .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        let missing = scratch.path().join("none/s");
        assert!(Socket::open(&missing, None).unwrap_err().hint().unwrap().contains("mkdir"));
        let long = scratch.path().join("x".repeat(120));
        assert!(matches!(Socket::open(&long, None), Err(SocketError::TooLong { .. })));
    }

    #[tokio::test]
    async fn a_socket_of_the_service_manager_has_to_listen() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("s");
        let listening = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let socket = Socket::open(Path::new("/nowhere/s"), Some(listening.into())).unwrap();
        drop(socket);
        assert!(path.exists(), "the file is the manager's");
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(Socket::open(&path, Some(file.into())), Err(SocketError::Inherited)));
    }
}
