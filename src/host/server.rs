//! The process that serves mounts: one, or all that a user shares on one cache.
//!
//! A keeper starts it with one end of a channel as stdin, and sends mount requests over that. [`SharedLayers`] lists
//! what mounts of a process share; each mount has its own options, source and credentials. The process ends when the
//! keeper has closed the channel and the last mount has ended.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::{AbortHandle, JoinSet};

use super::channel::{AsyncChannel, Channel, ChannelError};
use super::error::HostError;
use super::handover::{Handed, Handover, KeeperId};
use super::image_store::{self, PreparedStore, StoreHandover, StoreMount, StoreSpec};
use super::mount::{self, Asker, Mount, Prepared};
use super::open;
use super::process::{self, Ends};
use super::report::Report;
use super::spec::{CacheSpec, MountSpec, Passthrough};
use super::supervisor::{KeeperLink, Supervisor};
use super::target::TargetSpec;
use super::wire::v1::{Message, Word};
use super::wire::{self, WireError};
use super::{background, ending};
use crate::fuse::{self, MountPlace};
use crate::image::SharedLayers;

/// Runs this process as the server of the keeper that has started it.
///
/// # Errors
/// [`HostError`]
pub fn run() -> Result<(), HostError> {
    let channel = Channel::of_stdin().map_err(|_| HostError::NotStartedByPeelfs)?;
    let failed = |cause| HostError::Channel { peer: "keeper", cause };
    channel.accept().map_err(failed)?;
    process::leave_directory();
    // Held until this process ends, which its guard notices.
    let Some((Message::Begin { keeper, mounts, log, shared }, _held)) = next(&channel).map_err(failed)? else {
        return Err(HostError::NotStartedByPeelfs);
    };
    let keeper = KeeperId::try_from(keeper).map_err(|error| failed(error.into()))?;
    let log = log.map(PathBuf::try_from).transpose().map_err(|error| failed(error.into()))?;
    let mut handed = Vec::new();
    for _ in 0..mounts {
        let wrong = |error: WireError| failed(error.into());
        handed.push(match next(&channel).map_err(failed)? {
            Some((Message::TakeOver { number, handover }, Some(connection))) => {
                let handover = Handover::try_from(*handover).map_err(wrong)?;
                let opens = (handover.spec.policy.passthrough == Passthrough::Always)
                    .then(|| File::options().read(true).write(true).open(keeper.opens(number)));
                let opens = opens.transpose().map_err(HostError::Opens)?;
                (number, ToTakeOver::Image(Box::new(Handed { handover, connection, opens })))
            }
            Some((Message::TakeOverStore { number, handover }, Some(connection))) => {
                let handover = StoreHandover::try_from(*handover).map_err(wrong)?;
                (number, ToTakeOver::Store(Box::new(image_store::Handed { handover, connection })))
            }
            _ => return Err(HostError::NotStartedByPeelfs),
        });
    }
    mount::in_runtime(async move {
        let channel =
            Arc::new(AsyncChannel::new(channel).map_err(HostError::system("open the channel to the keeper"))?);
        let server = Server {
            channel,
            keeper,
            log,
            shared,
            shared_layers: OnceLock::new(),
            ending: AtomicBool::new(false),
            redirected: AtomicBool::new(false),
        };
        Arc::new(server).run(handed).await
    })
}

/// The next message; one that cannot be parsed is refused, and ends this process.
fn next(channel: &Channel) -> Result<Option<(Message, Option<std::os::fd::OwnedFd>)>, ChannelError> {
    let Some((text, descriptor)) = channel.receive()? else { return Ok(None) };
    match wire::parse(&text) {
        Ok(message) => Ok(Some((message, descriptor))),
        Err(error) => {
            channel.send(&Message::Refused { number: None, why: error.to_string() }, None)?;
            Err(error.into())
        }
    }
}

/// State shared by all mounts of the process.
struct Server {
    channel: Arc<AsyncChannel>,
    keeper: KeeperId,
    /// The log file for the time after a mount is ready; none in the foreground.
    log: Option<PathBuf>,
    shared: bool,
    /// The cache of the first mount, and the open layers of the process.
    shared_layers: OnceLock<(CacheSpec, SharedLayers)>,
    /// A signal has requested the end.
    ending: AtomicBool,
    /// This process has detached from the terminal.
    redirected: AtomicBool,
}

/// What this process is to take over.
enum ToTakeOver {
    Image(Box<Handed>),
    Store(Box<image_store::Handed>),
}

/// What it is ready to take over.
enum Ready {
    Image(Box<Prepared>),
    Store(Box<PreparedStore>),
}

/// A mount that is up: an image, or an image store.
enum Life {
    Image(Box<Mount>),
    Store(Box<StoreMount>),
}

impl ToTakeOver {
    fn is_awaited(&self) -> bool {
        match self {
            Self::Image(handed) => handed.handover.awaited,
            Self::Store(handed) => handed.handover.awaited,
        }
    }
}

impl Life {
    fn place(&self) -> MountPlace {
        match self {
            Self::Image(mount) => mount.place(),
            Self::Store(mount) => mount.place(),
        }
    }

    async fn serve(self, asker: &mut impl Asker) {
        match self {
            Self::Image(mount) => mount.serve(asker).await,
            Self::Store(mount) => mount.serve(asker).await,
        }
    }
}

/// A mount that is up, sent to the table.
type Made = (u64, Life);

/// The mounts of the process.
#[derive(Default)]
struct Table {
    /// Being made.
    making: HashMap<u64, AbortHandle>,
    places: HashMap<u64, MountPlace>,
    served: JoinSet<u64>,
}

impl Server {
    /// Serves until the last mount has ended and the keeper has closed the channel.
    async fn run(self: Arc<Self>, handed: Vec<(u64, ToTakeOver)>) -> Result<(), HostError> {
        let mut ends = Ends::new()?;
        let mut table = Table::default();
        self.take_over(handed, &mut table).await?;
        let (sender, mut made) = unbounded_channel();
        let mut kept = true;
        while kept || !table.served.is_empty() {
            tokio::select! {
                packet = self.channel.receive(), if kept => match packet {
                    Ok(Some((text, _))) => self.heard(&text, &mut table, &sender).await,
                    Ok(None) | Err(_) => kept = false,
                },
                Some((number, mount)) = made.recv() => {
                    table.making.remove(&number);
                    self.serve(number, mount, &mut table);
                }
                Some(number) = table.served.join_next() => {
                    number.iter().for_each(|number| drop(table.places.remove(number)));
                }
                _ = ends.wait() => {
                    if self.ending.swap(true, Ordering::Relaxed) {
                        ending::disconnect();
                        // What was made for mounts that are not ready is removed.
                        let _ = tokio::time::timeout(REMOVED_WITHIN, table.served.shutdown()).await;
                        return Ok(());
                    }
                    self.end_all(&mut table).await;
                }
            }
        }
        Ok(())
    }

    /// Handles a message of the keeper.
    async fn heard(self: &Arc<Self>, text: &[u8], table: &mut Table, made: &UnboundedSender<Made>) {
        match wire::parse(text) {
            Ok(Message::Mount { number, spec }) => match MountSpec::try_from(*spec) {
                Ok(spec) => self.begin(number, spec.into(), table, made),
                Err(error) => self.refuse(Some(number), &error).await,
            },
            Ok(Message::Store { number, spec }) => match StoreSpec::try_from(*spec) {
                Ok(spec) => self.begin(number, spec.into(), table, made),
                Err(error) => self.refuse(Some(number), &error).await,
            },
            Ok(Message::GivenUp { number }) => {
                if let Some(making) = table.making.remove(&number) {
                    making.abort();
                }
                table.places.get(&number).into_iter().for_each(mount::take_away);
            }
            Ok(Message::Refused { why, .. }) => tracing::error!(why, "the keeper refused a message"),
            Ok(other) => tracing::warn!(?other, "unexpected message from the keeper"),
            Err(error) => self.refuse(number_in(text), &error).await,
        }
    }

    async fn refuse(&self, number: Option<u64>, error: &WireError) {
        tracing::error!(%error, "a message of the keeper cannot be parsed");
        self.say(&Message::Refused { number, why: error.to_string() }).await;
    }

    /// Starts making a mount.
    fn begin(self: &Arc<Self>, number: u64, wanted: TargetSpec, table: &mut Table, made: &UnboundedSender<Made>) {
        let (server, made) = (Arc::clone(self), made.clone());
        let making = tokio::spawn(async move {
            match server.make(number, &wanted).await {
                // The receiver lives as long as the process.
                Ok(mount) => drop(made.send((number, mount))),
                Err(error) => server.tell(number, Word::Failed((&Report::from(error)).into())).await,
            }
        });
        table.making.insert(number, making.abort_handle());
    }

    async fn make(&self, number: u64, wanted: &TargetSpec) -> Result<Life, HostError> {
        let (log, supervisor) = (self.log.as_deref(), self.supervisor(number));
        Ok(match wanted {
            TargetSpec::Image(spec) => {
                self.refuse_conflicts(spec)?;
                let shared_layers = self.shared_layers(&spec.image.cache)?;
                Life::Image(Box::new(Mount::make(spec, &shared_layers, log, supervisor).await?))
            }
            TargetSpec::Store(spec) => {
                let shared_layers = self.shared_layers(&spec.cache)?;
                Life::Store(Box::new(StoreMount::make(spec, &shared_layers, log, supervisor).await?))
            }
        })
    }

    /// Serves a mount to its end.
    fn serve(self: &Arc<Self>, number: u64, mount: Life, table: &mut Table) {
        table.places.insert(number, mount.place());
        let mut asker = Caller { server: Arc::clone(self), number };
        table.served.spawn(async move {
            mount.serve(&mut asker).await;
            number
        });
    }

    /// Opens the images of another process's mounts, waits for that process to end, and takes the mounts over.
    async fn take_over(self: &Arc<Self>, handed: Vec<(u64, ToTakeOver)>, table: &mut Table) -> Result<(), HostError> {
        if handed.is_empty() {
            return Ok(());
        }
        // Use the log from the start, unless a requester still waits for the mount.
        if let Some(log) = &self.log
            && !handed.iter().any(|(_, handed)| handed.is_awaited())
        {
            background::redirect_to(log)?;
            self.redirected.store(true, Ordering::Relaxed);
        }
        let mut ready = Vec::new();
        for (number, handed) in handed {
            ready.extend(self.prepare(number, handed).await?.map(|prepared| (number, prepared)));
        }
        self.say(&Message::Prepared).await;
        let gone = || HostError::Channel { peer: "keeper", cause: ChannelError::Gone };
        let Ok(Some((Message::Go, _))) = self.channel.receive_message().await else { return Err(gone()) };
        for (number, prepared) in ready {
            let supervisor = self.supervisor(number);
            let (place, taken) = match prepared {
                Ready::Image(prepared) => {
                    let place = prepared.handover().place.clone();
                    (place, prepared.take_over(supervisor).map(Box::new).map(Life::Image))
                }
                Ready::Store(prepared) => {
                    let place = prepared.handover().place.clone();
                    (place, prepared.take_over(supervisor).await.map(Box::new).map(Life::Store))
                }
            };
            match taken {
                Ok(mount) => self.serve(number, mount, table),
                Err(error) => {
                    let error = crate::image::chain(&error);
                    tracing::error!(error, at = %place.at().display(), "cannot take a mount over");
                    self.say(&Message::Ended { number }).await;
                }
            }
        }
        Ok(())
    }

    /// Opens what is to be taken over; nothing, if it had to be given up.
    async fn prepare(&self, number: u64, handed: ToTakeOver) -> Result<Option<Ready>, HostError> {
        let handed = match handed {
            ToTakeOver::Image(handed) => handed,
            ToTakeOver::Store(handed) => {
                let shared_layers = self.shared_layers(&handed.handover.spec.cache)?;
                return Ok(Some(Ready::Store(Box::new(PreparedStore::open(*handed, &shared_layers).await?))));
            }
        };
        let shared_layers = self.shared_layers(&handed.handover.spec.image.cache)?;
        match Prepared::open(*handed, &self.keeper.kept_documents(number), &shared_layers).await {
            Ok(prepared) => Ok(Some(Ready::Image(Box::new(prepared)))),
            // No other process can serve it any more.
            Err((error, handed)) if self.shared && handed.handover.ended.is_some() => {
                self.give_up(number, handed, &error).await;
                Ok(None)
            }
            Err((error, _)) => Err(error),
        }
    }

    /// Unmounts a mount that cannot be served any more.
    async fn give_up(&self, number: u64, handed: Handed, error: &HostError) {
        let Handed { handover, connection, .. } = handed;
        let error = crate::image::chain(error);
        tracing::error!(at = %handover.place.at().display(), error, "cannot take a mount over; unmounting it");
        if fuse::is_alive(connection.as_fd())
            && let Err(error) = handover.place.abort()
        {
            tracing::debug!(%error, "a connection ends when the keeper closes it");
        }
        drop(connection);
        mount::take_away(&handover.place);
        self.say(&Message::Ended { number }).await;
    }

    /// Ends every mount; open files can be read to their end.
    async fn end_all(&self, table: &mut Table) {
        for (number, making) in table.making.drain() {
            making.abort();
            let report = Report::from(HostError::InterruptedBeforeMount);
            self.tell(number, Word::Failed((&report).into())).await;
        }
        table.places.values().for_each(mount::take_away);
    }

    /// Options that concern the process are set by the first mount.
    fn refuse_conflicts(&self, spec: &MountSpec) -> Result<(), HostError> {
        let settled = self.shared_layers.get().map(|(cache, _)| cache.limit);
        if spec.image.cache.limit.is_some() && settled.is_some_and(|limit| limit != spec.image.cache.limit) {
            return Err(HostError::Conflict { option: "cache-size" });
        }
        if spec.log.is_some() && spec.log != self.log {
            return Err(HostError::Conflict { option: "log-file" });
        }
        Ok(())
    }

    /// The open layers of the process; the first mount's cache is used for all.
    fn shared_layers(&self, cache: &CacheSpec) -> Result<SharedLayers, HostError> {
        if self.shared_layers.get().is_none() {
            // Two mounts may race here; the first one wins.
            let _ = self.shared_layers.set((cache.clone(), open::shared_layers(cache)?));
        }
        Ok(self.shared_layers.get().map(|(_, shared_layers)| shared_layers.clone()).expect("it was just set"))
    }

    fn supervisor(&self, number: u64) -> Supervisor {
        let (keeper, channel) = (self.keeper.clone(), Arc::clone(&self.channel));
        Supervisor::Keeper(KeeperLink { keeper, channel, number, shared: self.shared })
    }

    async fn tell(&self, number: u64, word: Word) {
        self.say(&Message::Tell { number, word }).await;
    }

    async fn say(&self, message: &Message) {
        if let Err(error) = self.channel.deliver(message, None).await {
            tracing::warn!(%error, "the keeper is gone; these mounts end if this process dies");
        }
    }
}

/// The requester of a mount, reached over the keeper.
struct Caller {
    server: Arc<Server>,
    number: u64,
}

impl Asker for Caller {
    async fn progress(&mut self, total: u64, done: u64) -> Result<(), HostError> {
        // Progress that does not fit is dropped, as more follows. The keeper checks whether the requester still waits.
        let word = Word::Progress { total, done };
        let _ = self.server.channel.send(&Message::Tell { number: self.number, word }, None);
        Ok(())
    }

    async fn ready(&mut self) {
        self.server.tell(self.number, Word::Ready).await;
        if let Some(log) = &self.server.log
            && !self.server.redirected.swap(true, Ordering::Relaxed)
            && let Err(error) = background::redirect_to(log)
        {
            tracing::warn!(%error, "cannot detach from the terminal");
        }
    }

    async fn failed(&mut self, error: HostError) {
        let interrupted = self.server.ending.load(Ordering::Relaxed);
        let error = match error {
            HostError::UnmountedBeforeVerified if interrupted => HostError::InterruptedBeforeVerified,
            error => error,
        };
        self.server.tell(self.number, Word::Failed((&Report::from(error)).into())).await;
    }
}

/// Time limit for mounts to remove what was made for them, once the process was asked a second time to end.
const REMOVED_WITHIN: Duration = Duration::from_secs(1);

/// The mount number in a message that could not be parsed.
fn number_in(text: &[u8]) -> Option<u64> {
    let message: serde_json::Value = serde_json::from_slice(text).ok()?;
    message.as_object()?.values().next()?.get("number")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_mount_it_is_about() {
        assert_eq!(number_in(br#"{"mount":{"number":7,"spec":{"colour":"red"}}}"#), Some(7));
        assert_eq!(number_in(br#""go""#), None);
        assert_eq!(number_in(b"\xff{"), None);
    }
}
