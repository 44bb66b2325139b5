//! Version 1 of the messages between processes.

pub mod activity;
mod store;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub use store::{StoreHandover, StoreSpec};

use serde::{Deserialize, Serialize};

use super::{WireError, WirePath};
use crate::digest::Digest;
use crate::fuse::MountPlace;
use crate::host::handover::{Handover, KeeperId};
use crate::host::report::{Code, Report};
use crate::host::spec;
use crate::host::verifiers::DEFAULT_DIR;
use crate::image::{IndexChoice, Network, Prefetch, Verify, View};
use crate::reference::Reference;
use crate::source::outage::OnOutage;
use crate::source::registry::Surroundings;
use crate::source::registry::mirrors::Mirrors;

/// Between a keeper and its server; some messages carry the connection to the kernel.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// To a new server: its keeper, and how many mounts follow for it to take over. For an image store, with a
    /// descriptor that the server holds as long as it runs; programs that know of none close it.
    Begin {
        /// The keeper.
        keeper: KeeperAddress,
        /// Mounts that follow, one [`Message::TakeOver`] each.
        mounts: usize,
        /// The log file for the time after a mount is ready; none in the foreground.
        log: Option<WirePath>,
        /// Whether further mounts may follow.
        shared: bool,
    },
    /// To a new server, with the connection: prepare to take this mount over.
    TakeOver {
        /// The mount's number.
        number: u64,
        /// The mount.
        handover: Box<MountHandover>,
    },
    /// From the server: all mounts are prepared. It does not serve yet.
    Prepared,
    /// To the server: the previous server is gone; serve.
    Go,
    /// To the server: make one more mount.
    Mount {
        /// Its number.
        number: u64,
        /// The request.
        spec: Box<MountSpec>,
    },
    /// From the server: the state for a take-over. The first time with the connection.
    Serving {
        /// The mount's number.
        number: u64,
        /// The mount.
        handover: Box<MountHandover>,
    },
    /// As [`Message::TakeOver`], of an image store.
    TakeOverStore {
        /// Its number.
        number: u64,
        /// The store.
        handover: Box<StoreHandover>,
    },
    /// As [`Message::Mount`], of an image store. A program that knows none refuses it.
    Store {
        /// Its number.
        number: u64,
        /// What is asked for.
        spec: Box<StoreSpec>,
    },
    /// As [`Message::Serving`], of an image store.
    ServingStore {
        /// Its number.
        number: u64,
        /// The store.
        handover: Box<StoreHandover>,
    },
    /// From it: what the process that asked for a mount is to be told.
    Tell {
        /// The mount's number.
        number: u64,
        /// The message.
        word: Word,
    },
    /// To the server: the requester ended before the mount was ready.
    GivenUp {
        /// The mount's number.
        number: u64,
    },
    /// From the server: the mount has ended.
    Ended {
        /// The mount's number.
        number: u64,
    },
    /// From either: a message could not be parsed, and had no effect.
    Refused {
        /// The mount it was about, if known.
        number: Option<u64>,
        /// Why.
        why: String,
    },
}

/// To the requester of a mount.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Word {
    /// Progress of the first passes.
    Progress {
        /// Bytes to read.
        total: u64,
        /// Bytes read.
        done: u64,
    },
    /// A note for the user.
    Note(String),
    /// The mount is up and, if requested, verified.
    Ready,
    /// It failed; nothing is mounted.
    Failed(Failure),
}

/// Requests to a control socket.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Make a mount; [`Word`]s are the answer.
    Mount(Box<MountSpec>),
    /// Let this program serve; [`Upgraded`] is the answer.
    Upgrade {
        /// The program.
        program: WirePath,
    },
}

/// The result of an upgrade.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Upgraded {
    /// The new server serves now.
    Done {
        /// Its process number.
        pid: u32,
        /// Microseconds in which no process served.
        pause_us: u64,
    },
    /// The old server continues.
    Refused {
        /// Why.
        why: String,
    },
}

/// A failure for the user.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    kind: FailureKind,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum FailureKind {
    Failure,
    Usage,
    NotFound,
    Authentication,
    Verification,
    Network,
}

/// A keeper, and its socket.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeeperAddress {
    pid: u32,
    socket: WirePath,
}

/// The state for a take-over, sent along with the connection.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MountHandover {
    spec: MountSpec,
    place: Place,
    root: Digest,
    manifest: Digest,
    log: Option<WirePath>,
    since: u64,
    takeovers: u32,
    ended: Option<String>,
    awaited: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Place {
    at: WirePath,
    device: Option<String>,
    #[serde(default)]
    id: Option<u64>,
    generation: u32,
}

/// A mount request.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    image: ImageSpec,
    at: WirePath,
    kernel: KernelOptions,
    policy: Policy,
    log: Option<WirePath>,
    /// For status; omitted if empty, so that older programs need not understand it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by_fuse: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writable: Option<Writable>,
    /// Programs that cannot tell any refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metrics: Option<SocketAddr>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Writable {
    Memory,
    #[serde(rename = "kept")]
    Directory(WirePath),
}

/// An image, and how to reach it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    reference: String,
    /// What the reference led to before, if it is to be that; it is written as it was typed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<Digest>,
    /// What the user calls it, where a process has it at another place, as an archive from a pipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    called: Option<String>,
    platform: Option<String>,
    /// Omitted for a whole image; programs that cannot show a single layer refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layer: Option<String>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    up_to: Option<NonZeroU16>,
    /// Likewise, for what is shown of any reference by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    view: Option<Shown>,
    offline: bool,
    insecure: bool,
    ca: Vec<WirePath>,
    authfile: Option<WirePath>,
    /// Left out where files alone name mirrors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mirrors: Option<MirrorUse>,
    surroundings: Environment,
    cache_dir: WirePath,
    cache_size: Option<u64>,
    /// Omitted if it is the default directory and that does not exist: such an image needs no support for verifiers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verifiers: Option<WirePath>,
    /// Left out where it is what a process does that does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index: Option<IndexUse>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index_from: Option<String>,
    /// Left out where no verifier is asked: programs that cannot ask refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index_verifiers: Option<WirePath>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct MirrorUse {
    named: Vec<String>,
    hosts_dir: Option<WirePath>,
    no_files: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Shown {
    Image,
    Artifact,
    Layout { name: Box<str> },
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum IndexUse {
    Own,
    Foreign,
    None,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Environment {
    home: Option<WirePath>,
    xdg_runtime_dir: Option<WirePath>,
    xdg_config_home: Option<WirePath>,
    docker_config: Option<WirePath>,
    registry_auth_file: Option<WirePath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registries_conf: Option<WirePath>,
    path: Option<WirePath>,
    uid: Option<u32>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct KernelOptions {
    allow_other: bool,
    allow_root: bool,
    suid: bool,
    dev: bool,
    noexec: bool,
    let_cpus_sleep: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    verify: VerifyPolicy,
    prefetch: PrefetchPolicy,
    on_outage: OutagePolicy,
    wait: bool,
    passthrough: bool,
    /// Replaces `passthrough`: if the image is mostly large files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    passthrough_if_large: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum VerifyPolicy {
    Strict,
    Behind,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum PrefetchPolicy {
    None,
    Profile,
    All,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum OutagePolicy {
    Block,
    DeadlineMs(u64),
    Offline,
}

impl From<&spec::MountSpec> for MountSpec {
    fn from(spec: &spec::MountSpec) -> Self {
        let spec::MountSpec { image, at, kernel, policy, log, by_fuse, writable, metrics } = spec;
        let spec::KernelOptions { allow_other, allow_root, suid, dev, noexec, let_cpus_sleep } = *kernel;
        Self {
            image: image.into(),
            at: at.into(),
            kernel: KernelOptions { allow_other, allow_root, suid, dev, noexec, let_cpus_sleep },
            policy: Policy::of(*policy, image.access.on_outage),
            log: log.as_ref().map(WirePath::from),
            by_fuse: by_fuse.clone(),
            metrics: *metrics,
            writable: writable.as_ref().map(|writable| match writable {
                spec::Writable::Memory => Writable::Memory,
                spec::Writable::Directory(directory) => Writable::Directory(directory.into()),
            }),
        }
    }
}

impl TryFrom<MountSpec> for spec::MountSpec {
    type Error = WireError;

    fn try_from(spec: MountSpec) -> Result<Self, WireError> {
        let MountSpec { image, at, kernel, policy, log, by_fuse, writable, metrics } = spec;
        let KernelOptions { allow_other, allow_root, suid, dev, noexec, let_cpus_sleep } = kernel;
        let writable = writable.map(|writable| match writable {
            Writable::Memory => Ok(spec::Writable::Memory),
            Writable::Directory(directory) => directory.try_into().map(spec::Writable::Directory),
        });
        let (policy, on_outage) = policy.into_spec();
        Ok(Self {
            image: image.into_spec(on_outage)?,
            at: at.try_into()?,
            kernel: spec::KernelOptions { allow_other, allow_root, suid, dev, noexec, let_cpus_sleep },
            policy,
            log: path(log)?,
            by_fuse,
            writable: writable.transpose()?,
            metrics,
        })
    }
}

impl From<&spec::ImageSpec> for ImageSpec {
    fn from(image: &spec::ImageSpec) -> Self {
        let spec::ImageSpec { reference, platform, layer, up_to, view, access, cache, .. } = image;
        let spec::ImageSpec { index, index_from, verifiers, .. } = image;
        let is_usual = *verifiers == Path::new(DEFAULT_DIR) && !verifiers.exists();
        let spec::Access { network, insecure, ca, authfile, mirrors, on_outage: _, surroundings } = access;
        Self {
            reference: reference.written().to_owned(),
            pin: reference.pin().cloned(),
            called: reference.other_name().map(ToOwned::to_owned),
            platform: platform.as_ref().map(ToString::to_string),
            layer: layer.as_ref().map(ToString::to_string),
            up_to: *up_to,
            view: match view {
                View::Auto => None,
                View::Image => Some(Shown::Image),
                View::Artifact => Some(Shown::Artifact),
                View::Layout { name } => Some(Shown::Layout { name: name.clone() }),
            },
            offline: *network == Network::Offline,
            insecure: *insecure,
            ca: ca.iter().map(WirePath::from).collect(),
            authfile: authfile.as_ref().map(WirePath::from),
            mirrors: MirrorUse::of(mirrors),
            surroundings: surroundings.into(),
            cache_dir: (&cache.dir).into(),
            cache_size: cache.limit,
            verifiers: (!is_usual).then(|| verifiers.into()),
            index: match index {
                IndexChoice::Auto => None,
                IndexChoice::Own => Some(IndexUse::Own),
                IndexChoice::Foreign => Some(IndexUse::Foreign),
                IndexChoice::None => Some(IndexUse::None),
            },
            index_from: index_from.as_ref().map(ToString::to_string),
            index_verifiers: image.index_verifiers_in_force().as_ref().map(WirePath::from),
        }
    }
}

impl ImageSpec {
    /// Parses it, with this policy for outages.
    pub(in crate::host) fn into_spec(self, on_outage: OnOutage) -> Result<spec::ImageSpec, WireError> {
        let Self { reference, pin, called, platform, layer, up_to, offline, insecure, ca, authfile, .. } = self;
        let Self { mirrors, surroundings, cache_dir, cache_size, verifiers, view, .. } = self;
        let Self { index, index_from, index_verifiers, .. } = self;
        let access = spec::Access {
            network: if offline { Network::Offline } else { Network::Allowed },
            insecure,
            ca: ca.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            authfile: path(authfile)?,
            mirrors: mirrors.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            on_outage,
            surroundings: surroundings.try_into()?,
        };
        let mut reference: Reference = value("reference", reference)?;
        if let Some(pin) = pin {
            reference = reference.pinned(&pin);
        }
        if let Some(called) = called {
            reference = reference.called(&called);
        }
        Ok(spec::ImageSpec {
            reference,
            platform: platform.map(|platform| value("platform", platform)).transpose()?,
            layer: layer.map(|layer| value("layer", layer)).transpose()?,
            up_to,
            view: match view {
                None => View::Auto,
                Some(Shown::Image) => View::Image,
                Some(Shown::Artifact) => View::Artifact,
                Some(Shown::Layout { name }) => View::Layout { name },
            },
            access,
            cache: spec::CacheSpec { dir: cache_dir.try_into()?, limit: cache_size },
            index: match index {
                None => IndexChoice::Auto,
                Some(IndexUse::Own) => IndexChoice::Own,
                Some(IndexUse::Foreign) => IndexChoice::Foreign,
                Some(IndexUse::None) => IndexChoice::None,
            },
            index_from: index_from.map(|from| value("index_from", from)).transpose()?,
            index_verifiers: path(index_verifiers)?,
            verifiers: path(verifiers)?.unwrap_or_else(|| DEFAULT_DIR.into()),
        })
    }
}

impl MirrorUse {
    fn of(mirrors: &Mirrors) -> Option<Self> {
        let Mirrors { named, hosts_dir, no_files } = mirrors;
        (*mirrors != Mirrors::default()).then(|| Self {
            named: named.iter().map(ToString::to_string).collect(),
            hosts_dir: hosts_dir.as_ref().map(WirePath::from),
            no_files: *no_files,
        })
    }
}

impl TryFrom<MirrorUse> for Mirrors {
    type Error = WireError;

    fn try_from(of: MirrorUse) -> Result<Self, WireError> {
        let MirrorUse { named, hosts_dir, no_files } = of;
        let named = named.into_iter().map(|mirror| value("mirror", mirror)).collect::<Result<_, _>>()?;
        Ok(Self { named, hosts_dir: path(hosts_dir)?, no_files })
    }
}

impl From<&Surroundings> for Environment {
    fn from(of: &Surroundings) -> Self {
        let Surroundings { home, xdg_runtime_dir, xdg_config_home, docker_config, registry_auth_file, .. } = of;
        // Short names were looked up, for which the cache directory is needed, before a request is made.
        let Surroundings { registries_conf, path, uid, xdg_cache_home: _, .. } = of;
        let wire = |path: &Option<PathBuf>| path.as_ref().map(WirePath::from);
        Self {
            home: wire(home),
            xdg_runtime_dir: wire(xdg_runtime_dir),
            xdg_config_home: wire(xdg_config_home),
            docker_config: wire(docker_config),
            registry_auth_file: wire(registry_auth_file),
            registries_conf: wire(registries_conf),
            path: path.as_ref().map(|path| WirePath::from(Path::new(path))),
            uid: *uid,
        }
    }
}

impl TryFrom<Environment> for Surroundings {
    type Error = WireError;

    fn try_from(of: Environment) -> Result<Self, WireError> {
        Ok(Self {
            home: path(of.home)?,
            xdg_runtime_dir: path(of.xdg_runtime_dir)?,
            xdg_config_home: path(of.xdg_config_home)?,
            docker_config: path(of.docker_config)?,
            registry_auth_file: path(of.registry_auth_file)?,
            registries_conf: path(of.registries_conf)?,
            xdg_cache_home: None,
            path: path(of.path)?.map(Into::into),
            uid: of.uid,
        })
    }
}

impl Policy {
    fn of(policy: spec::Policy, on_outage: OnOutage) -> Self {
        let spec::Policy { verify, prefetch, wait, passthrough } = policy;
        Self {
            verify: match verify {
                Verify::BeforeShowing => VerifyPolicy::Strict,
                Verify::Behind => VerifyPolicy::Behind,
            },
            prefetch: match prefetch {
                Prefetch::None => PrefetchPolicy::None,
                Prefetch::Profile => PrefetchPolicy::Profile,
                Prefetch::All => PrefetchPolicy::All,
            },
            on_outage: on_outage.into(),
            wait,
            passthrough: passthrough == spec::Passthrough::Always,
            passthrough_if_large: passthrough == spec::Passthrough::Auto,
        }
    }

    /// How to serve a mount, and how to wait for its source.
    fn into_spec(self) -> (spec::Policy, OnOutage) {
        let Self { verify, prefetch, on_outage, wait, passthrough, passthrough_if_large } = self;
        let policy = spec::Policy {
            verify: match verify {
                VerifyPolicy::Strict => Verify::BeforeShowing,
                VerifyPolicy::Behind => Verify::Behind,
            },
            prefetch: match prefetch {
                PrefetchPolicy::None => Prefetch::None,
                PrefetchPolicy::Profile => Prefetch::Profile,
                PrefetchPolicy::All => Prefetch::All,
            },
            wait,
            passthrough: match (passthrough, passthrough_if_large) {
                (true, _) => spec::Passthrough::Always,
                (false, true) => spec::Passthrough::Auto,
                (false, false) => spec::Passthrough::Never,
            },
        };
        (policy, on_outage.into())
    }
}

impl From<OnOutage> for OutagePolicy {
    fn from(on_outage: OnOutage) -> Self {
        match on_outage {
            OnOutage::Block => Self::Block,
            OnOutage::Deadline(time) => Self::DeadlineMs(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            OnOutage::Offline => Self::Offline,
        }
    }
}

impl From<OutagePolicy> for OnOutage {
    fn from(policy: OutagePolicy) -> Self {
        match policy {
            OutagePolicy::Block => Self::Block,
            OutagePolicy::DeadlineMs(ms) => Self::Deadline(Duration::from_millis(ms)),
            OutagePolicy::Offline => Self::Offline,
        }
    }
}

impl From<&MountPlace> for Place {
    fn from(place: &MountPlace) -> Self {
        Self {
            at: place.at().into(),
            device: place.device().map(ToOwned::to_owned),
            id: place.id(),
            generation: place.generation(),
        }
    }
}

impl TryFrom<Place> for MountPlace {
    type Error = WireError;

    fn try_from(place: Place) -> Result<Self, WireError> {
        Ok(Self::new(place.at.try_into()?, place.device, place.id, place.generation))
    }
}

impl From<&KeeperId> for KeeperAddress {
    fn from(keeper: &KeeperId) -> Self {
        Self { pid: keeper.pid, socket: (&keeper.socket).into() }
    }
}

impl TryFrom<KeeperAddress> for KeeperId {
    type Error = WireError;

    fn try_from(keeper: KeeperAddress) -> Result<Self, WireError> {
        Ok(Self { pid: keeper.pid, socket: keeper.socket.try_into()? })
    }
}

impl From<&Handover> for MountHandover {
    fn from(handover: &Handover) -> Self {
        let Handover { spec, place, root, manifest, log, since, takeovers, ended, awaited } = handover;
        Self {
            spec: spec.into(),
            place: place.into(),
            root: root.clone(),
            manifest: manifest.clone(),
            log: log.as_ref().map(WirePath::from),
            since: *since,
            takeovers: *takeovers,
            ended: ended.clone(),
            awaited: *awaited,
        }
    }
}

impl TryFrom<MountHandover> for Handover {
    type Error = WireError;

    fn try_from(handover: MountHandover) -> Result<Self, WireError> {
        let MountHandover { spec, place, root, manifest, log, since, takeovers, ended, awaited } = handover;
        Ok(Self {
            spec: spec.try_into()?,
            place: place.try_into()?,
            root,
            manifest,
            log: path(log)?,
            since,
            takeovers,
            ended,
            awaited,
        })
    }
}

impl From<&Report> for Failure {
    fn from(report: &Report) -> Self {
        let kind = match report.code {
            Code::Failure => FailureKind::Failure,
            Code::Usage => FailureKind::Usage,
            Code::NotFound => FailureKind::NotFound,
            Code::Authentication => FailureKind::Authentication,
            Code::Verification => FailureKind::Verification,
            Code::Network => FailureKind::Network,
        };
        Self { message: report.message.clone(), hint: report.hint.clone(), kind }
    }
}

impl From<Failure> for Report {
    fn from(failure: Failure) -> Self {
        let code = match failure.kind {
            FailureKind::Failure => Code::Failure,
            FailureKind::Usage => Code::Usage,
            FailureKind::NotFound => Code::NotFound,
            FailureKind::Authentication => Code::Authentication,
            FailureKind::Verification => Code::Verification,
            FailureKind::Network => Code::Network,
        };
        Self { message: failure.message, hint: failure.hint, code }
    }
}

fn path(path: Option<WirePath>) -> Result<Option<PathBuf>, WireError> {
    path.map(TryInto::try_into).transpose()
}

/// A value that is sent as text.
fn value<T: FromStr>(what: &'static str, text: String) -> Result<T, WireError> {
    text.parse().map_err(|_| WireError::Value { what, value: text })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{parse, text};
    use super::*;

    /// A program that cannot show a single layer refuses the field, and never gets it otherwise.
    #[test]
    fn a_layer_travels_and_its_absence_does_not() {
        let image = spec::ImageSpec::new("app:1".parse().unwrap(), "/cache");
        let whole = spec::MountSpec::new(image, "/mnt");
        let mut one = whole.clone();
        one.image.layer = Some("sha256:0123abc".parse().unwrap());
        let sent = |spec: &spec::MountSpec| text(&MountSpec::from(spec)).unwrap();
        assert!(!String::from_utf8(sent(&whole)).unwrap().contains("layer"));
        let received = |spec| spec::MountSpec::try_from(parse::<MountSpec>(&sent(spec)).unwrap()).unwrap().image.layer;
        assert_eq!(received(&one), one.image.layer);
        assert_eq!(received(&whole), None);
        one.image.layer = Some("2".parse().unwrap());
        let wrong = String::from_utf8(sent(&one)).unwrap().replace(r#""layer":"2""#, r#""layer":"0""#);
        let refused = spec::MountSpec::try_from(parse::<MountSpec>(wrong.as_bytes()).unwrap()).unwrap_err();
        assert!(refused.to_string().contains("`0` is not a valid layer"), "{refused}");
    }
}
