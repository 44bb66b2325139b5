//! `peelfs status`: mounts and their progress.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::activity::{self, JsonActivity};
use super::args::StatusArgs;
use super::{text, umount};
use peelfs::fuse::mounts::{self, MountPoint};
use peelfs::host::activity::Activity;
use peelfs::host::ask;
use peelfs::host::probe::{self, Answer};
use peelfs::host::report::Report;
use peelfs::host::status::{self, Health, KernelMount, MountState, ShownLayer};
use peelfs::image::{Considered, LayerProgress, LayerStatus, NotUsed};
use peelfs::source::outage::WaitStatus;
use peelfs::source::registry::HostStatus;
use peelfs::store::NotKept;

pub(super) fn run(args: &StatusArgs) -> Result<(), Report> {
    if args.metrics {
        return metrics(args);
    }
    let Some(interval) = args.watch else { return show(args).map(drop) };
    let clears = !args.json && io::stdout().is_terminal();
    loop {
        if clears {
            // Home, and clear what is below.
            print!("\x1b[H\x1b[J");
        }
        if !show(args)? {
            return Ok(());
        }
        std::thread::sleep(interval);
    }
}

/// The metrics of some mounts.
fn metrics(args: &StatusArgs) -> Result<(), Report> {
    let mounted = mounted(args)?;
    let mut states = status::all(&status::directory()?);
    states.retain(|state| mounted.iter().any(|mount| state.is_of(mount)));
    for mount in &mounted {
        if !states.iter().any(|state| state.is_of(mount)) {
            let why = if mount.is_shown_by_kernel() { "the kernel shows it alone" } else { "its process is gone" };
            eprintln!("note: no metrics of `{}`: {why}", mount.path.display());
        }
    }
    let mut known = Vec::new();
    for (state, activity) in ask::all(states, 0) {
        match activity {
            Ok(activity) => known.push((state, activity)),
            Err(error) => eprintln!("note: no metrics of `{}`: {}", state.at.display(), peelfs::image::chain(&error)),
        }
    }
    let mut out = io::stdout().lock();
    let written = out.write_all(peelfs::host::metrics::text(known).as_bytes()).and_then(|()| out.flush());
    written.or_else(|error| text::output_ended(&error))
}

/// The mounts that are asked about.
fn mounted(args: &StatusArgs) -> Result<Vec<MountPoint>, Report> {
    let mut mounted: Vec<_> = mounts::all().into_iter().filter(mounts::MountPoint::is_peelfs).collect();
    if !args.at.is_empty() {
        let wanted = args.at.iter().map(|typed| umount::target(typed)).collect::<Result<Vec<_>, _>>()?;
        mounted.retain(|mount| wanted.iter().any(|wanted| wanted.id == mount.id));
    }
    Ok(mounted)
}

/// Prints once; `false` if the output is closed.
fn show(args: &StatusArgs) -> Result<bool, Report> {
    let mounted = mounted(args)?;
    let directory = status::directory()?;
    let (states, by_kernel) = (status::all(&directory), status::kernel_mounts(&directory));
    let mut out = io::stdout().lock();
    for (number, mount) in mounted.iter().enumerate() {
        let mut known = Known { explain: args.explain, ..Known::of(mount, &states, &by_kernel) };
        if args.activity {
            known.ask();
        }
        let written = if args.json {
            serde_json::to_writer(&mut out, &known.line()).map_err(io::Error::from).and_then(|()| writeln!(out))
        } else {
            let gap = if number > 0 { "\n" } else { "" };
            write!(out, "{gap}{}", known.text())
        };
        if let Err(error) = written {
            return text::output_ended(&error).map(|()| false);
        }
    }
    if mounted.is_empty() && !args.json {
        eprintln!("note: peelfs has nothing mounted");
    }
    match out.flush() {
        Ok(()) => Ok(true),
        Err(error) => text::output_ended(&error).map(|()| false),
    }
}

/// What is known of one mount.
struct Known<'a> {
    at: &'a PathBuf,
    /// From the kernel's table of mounts.
    source: &'a str,
    /// A kernel mount, without a process.
    by_kernel: bool,
    /// This session's record of a kernel mount.
    noted: Option<&'a KernelMount>,
    answer: Answer,
    state: Option<&'a MountState>,
    health: Option<Health>,
    activity: Option<Activity>,
    /// Whether all origins of layers are told.
    explain: bool,
}

impl<'a> Known<'a> {
    fn of(mount: &'a mounts::MountPoint, states: &'a [MountState], noted: &'a [KernelMount]) -> Self {
        // Of two successive mounts on one directory, the later one counts.
        let by_kernel = mount.is_shown_by_kernel();
        let state = states.iter().rev().find(|state| !by_kernel && state.is_of(mount));
        let health = state.and_then(MountState::health);
        let answer = if health.is_some() || by_kernel { Answer::Served } else { probe::ask(&mount.path) };
        Self {
            at: &mount.path,
            source: mount.reference(),
            by_kernel,
            noted: noted.iter().find(|noted| noted.is_of(mount)),
            answer,
            state,
            health,
            activity: None,
            explain: false,
        }
    }

    /// Asks what it has fetched, and who waits.
    fn ask(&mut self) {
        match self.state.filter(|_| self.health.is_some()).map(|state| state.activity(FILES)) {
            Some(Ok(activity)) => self.activity = Some(activity),
            Some(Err(error)) => eprintln!("note: `{}`: {}", self.at.display(), peelfs::image::chain(&error)),
            None => {}
        }
    }

    fn text(&self) -> String {
        let at = text::printable(std::os::unix::ffi::OsStrExt::as_bytes(self.at.as_os_str()));
        let mut lines = vec![at.clone()];
        let mut line = |what: &str, value: String| lines.push(format!("  {what:<9}{value}"));
        let reference = self.state.map_or(self.source, |state| state.reference.as_str());
        match self.state {
            Some(state) if state.store => {
                let images = self.health.as_ref().and_then(|health| health.images);
                line("store", images.map_or("of images".to_owned(), |images| text::count(images as u64, "image")));
            }
            None if self.source == STORE => line("store", "of images".to_owned()),
            _ => line("image", text::printable(reference.as_bytes())),
        }
        if let Some(layer) = self.state.and_then(|state| state.layer.as_ref()) {
            let ShownLayer { number, count, digest } = layer;
            line("layer", format!("{number} of {count}, {}", text::printable(digest.as_bytes())));
        }
        match self.answer {
            Answer::Served => {}
            Answer::Gone => {
                let again = if self.source == STORE { "peelfs store serve" } else { "peelfs mount" };
                line(
                    "state",
                    format!("not served (its process is gone); `{again}` on it or `peelfs umount {at}` clears it"),
                );
                return lines.join("\n") + "\n";
            }
            Answer::Silent => {
                line("state", format!("not served (no answer); `peelfs umount --lazy {at}` clears it"));
                return lines.join("\n") + "\n";
            }
        }
        match self.state {
            None if self.by_kernel => {
                let since = |noted: &KernelMount| text::time(i64::try_from(noted.since).unwrap_or(i64::MAX));
                let since = self.noted.map_or(String::new(), |noted| format!(", since {} UTC", since(noted)));
                line("process", format!("none: mounted by the kernel{since}"));
            }
            Some(state) => {
                let since = text::time(i64::try_from(state.since).unwrap_or(i64::MAX));
                line("process", format!("{}, since {since} UTC", state.pid));
            }
            None => line("process", "of another session or user".to_owned()),
        }
        if let Some((layers, bytes)) = self.noted.and_then(|noted| noted.layers.zip(noted.bytes)) {
            line("content", format!("{} in files of {}", text::count(layers as u64, "layer"), text::size(bytes)));
        }
        match self.noted {
            Some(KernelMount { fs_verity: Some(true), .. }) => {
                line("kernel", "verifies each page that it reads (fs-verity)".to_owned());
            }
            Some(KernelMount { no_fs_verity: Some(why), .. }) => {
                line("kernel", format!("verifies nothing that it reads: {}", text::printable(why.as_bytes())));
            }
            _ => {}
        }
        if self.state.is_some_and(|state| state.passthrough) {
            line("kernel", "reads large files directly (passthrough)".to_owned());
        }
        if let Some(why) = self.state.and_then(|state| state.by_fuse.as_ref()) {
            line("kernel", format!("not used: {}", text::printable(why.as_bytes())));
        }
        if self.state.is_some_and(|state| state.keeper.is_some()) && self.keeper().is_none() {
            line("keeper", "gone: if its process dies, so does the mount; unmount it and mount it again".to_owned());
        }
        if let Some(times) = self.state.map(|state| state.takeovers).filter(|times| *times > 0) {
            line("restarts", times.to_string());
        }
        if let Some(health) = &self.health {
            let ready = health.layers.iter().filter(|layer| layer.state == LayerProgress::Ready).count();
            line("layers", format!("{ready} of {} ready", health.layers.len()));
            for (by, count) in vouchers(&health.layers) {
                line("vouched", format!("{count} of {} by {}", health.layers.len(), text::printable(by.as_bytes())));
            }
            for (number, layer) in health.layers.iter().enumerate().filter(|_| self.explain) {
                let digest = text::printable(layer.digest.to_string().as_bytes());
                line("layer", format!("{} of {}, {digest}", number + 1, health.layers.len()));
                for Considered { origin, why_not } in &layer.origins {
                    let told = match why_not {
                        None => format!("used: {origin}"),
                        Some(why) => format!("not used: {origin}: {why}"),
                    };
                    line("", text::printable(told.as_bytes()));
                }
                if let Some(host) = &layer.served_by {
                    line("", text::printable(format!("sent by: {host}").as_bytes()));
                }
            }
            if let Some(why) = &health.no_pushed_index {
                line("indexes", text::printable(why.as_bytes()));
            }
            for told in not_used(health).iter().filter(|_| !self.explain) {
                line("not used", text::printable(told.as_bytes()));
            }
            let (received, size) = (text::size(health.received_bytes), text::size(health.image_bytes));
            // What was evicted or dropped is fetched again.
            let of = match self.state {
                Some(state) if state.store => "for images of",
                _ if health.received_bytes > health.image_bytes => "for an image of",
                _ => "of",
            };
            line("fetched", format!("{received} {of} {size}, in {}", text::count(health.requests, "request")));
            for host in &health.hosts {
                let HostStatus { host, mirror, received_bytes, passed_over } = host;
                let role = if *mirror { "mirror" } else { "registry" };
                let why = passed_over.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
                let told = format!("{} from {role} {host}{why}", text::size(*received_bytes));
                line("", text::printable(told.as_bytes()));
            }
            for wait in &health.waiting {
                let WaitStatus { what, seconds, tries, last_error } = wait;
                let tried = text::count((*tries).into(), "time");
                let told = format!("for {what}, for {seconds} s, tried {tried}: {last_error}");
                line("waiting", text::printable(told.as_bytes()));
            }
            if let Some(refused) = &health.refused {
                line("refused", text::printable(refused.as_bytes()));
            }
            if let Some(not_kept) = &health.not_kept {
                let told = told_of_cache(not_kept, self.state.map(|state| &*state.cache));
                told.into_iter()
                    .zip(["cache", ""])
                    .for_each(|(told, what)| line(what, text::printable(told.as_bytes())));
            }
            for layer in &health.layers {
                if let Some(error) = &layer.error {
                    let what = if layer.state == LayerProgress::Ready { "failing" } else { "failed" };
                    line(what, text::printable(error.as_bytes()));
                }
            }
        }
        if let Some(activity) = &self.activity {
            activity::lines(activity).into_iter().for_each(|(what, value)| line(what, value));
        }
        if let Some(address) = self.state.and_then(|state| state.metrics) {
            line("metrics", format!("http://{address}/metrics"));
        }
        if let Some(log) = self.state.and_then(|state| state.log.as_ref()) {
            line("log", text::printable(std::os::unix::ffi::OsStrExt::as_bytes(log.as_os_str())));
        }
        lines.join("\n") + "\n"
    }

    /// The keeper, if it is running.
    fn keeper(&self) -> Option<u32> {
        let pid = self.state?.keeper.as_ref()?.pid;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may hold anything; Z is a process that has ended.
        let (_, state) = stat.rsplit_once(')')?;
        (!state.trim_start().starts_with('Z')).then_some(pid)
    }

    fn line(&self) -> Line<'_> {
        let cache = self.state.map(|state| &state.cache).or(self.noted.map(|noted| &noted.cache));
        Line {
            at: self.at.to_string_lossy().into_owned(),
            reference: self.state.map_or(self.source, |state| &state.reference),
            served: self.answer == Answer::Served,
            by_kernel: self.by_kernel,
            by_fuse: self.state.and_then(|state| state.by_fuse.as_deref()),
            passthrough: self.state.map(|state| state.passthrough),
            content_layers: self.noted.and_then(|noted| noted.layers),
            content_bytes: self.noted.and_then(|noted| noted.bytes),
            fs_verity: self.noted.and_then(|noted| noted.fs_verity),
            no_fs_verity: self.noted.and_then(|noted| noted.no_fs_verity.as_deref()),
            store: self.state.is_some_and(|state| state.store),
            manifest: self
                .state
                .map(|state| state.manifest.as_str())
                .filter(|manifest| !manifest.is_empty())
                .or(self.noted.map(|noted| noted.manifest.as_str())),
            layer: self.state.and_then(|state| state.layer.as_ref()),
            pid: self.state.map(|state| state.pid),
            keeper: self.keeper(),
            takeovers: self.state.map(|state| state.takeovers),
            since: self.state.map(|state| state.since).or(self.noted.map(|noted| noted.since)),
            log: self.state.and_then(|state| state.log.as_ref()).map(|log| log.to_string_lossy().into_owned()),
            cache: cache.map(|cache| cache.to_string_lossy().into_owned()),
            health: self.health.as_ref(),
            metrics: self.state.and_then(|state| state.metrics),
            activity: self.activity.as_ref().map(JsonActivity::from),
        }
    }
}

/// What the cache cannot keep, and what can be done about it.
fn told_of_cache(NotKept { what, why, full, since }: &NotKept, cache: Option<&Path>) -> [String; 2] {
    let since = text::time(i64::try_from(*since).unwrap_or(i64::MAX));
    let cache = cache.map_or(String::new(), |cache| format!("`{}` ", cache.display()));
    let remedy = match full {
        true => "make room on its disk (`peelfs cache prune`), or mount with another `--cache-dir`",
        false => "mount with another `--cache-dir`, which can be written to",
    };
    [
        format!("{cache}cannot keep {what}, since {since} UTC: {why}"),
        format!("what is not kept is fetched again when it is read; {remedy}"),
    ]
}

/// The indexes that were there and are not used; what holds for several layers in one line.
fn not_used(health: &Health) -> Vec<String> {
    let mut layers_of: Vec<(&NotUsed, Vec<usize>)> = Vec::new();
    for (number, layer) in (1..).zip(&health.layers) {
        for other in &layer.not_used {
            match layers_of.iter_mut().find(|(known, _)| *known == other) {
                Some((_, layers)) => layers.push(number),
                None => layers_of.push((other, vec![number])),
            }
        }
    }
    let all = health.layers.len();
    let told = |(NotUsed { origin, why }, layers): (&NotUsed, Vec<usize>)| match &layers[..] {
        [only] => format!("{origin} of layer {only} of {all}: {why}"),
        several => format!("{origin} of {} of {all} layers: {why}", several.len()),
    };
    layers_of.into_iter().map(told).collect()
}

/// Who vouches for layers that this machine has not indexed, and for how many.
fn vouchers(layers: &[LayerStatus]) -> BTreeMap<String, usize> {
    let mut vouchers = BTreeMap::new();
    for layer in layers {
        let Some(by) = &layer.vouched_by else { continue };
        // Each layer has a digest of its own there.
        let by = match (&layer.origin, by.starts_with("annotation ")) {
            (Some(origin), true) if layer.confirmed => format!("the manifest ({origin}), confirmed by the tar"),
            (Some(origin), true) => format!("the manifest ({origin})"),
            _ => by.clone(),
        };
        *vouchers.entry(by).or_default() += 1;
    }
    vouchers
}

/// One line of `--json`, without unknown fields.
#[derive(Serialize)]
struct Line<'a> {
    at: String,
    reference: &'a str,
    served: bool,
    /// A kernel mount, without a process.
    by_kernel: bool,
    /// Why a process serves it although a kernel mount was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    by_fuse: Option<&'a str>,
    /// The kernel reads large files directly.
    #[serde(skip_serializing_if = "Option::is_none")]
    passthrough: Option<bool>,
    /// The layers' files in a kernel mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_layers: Option<usize>,
    /// Bytes of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_bytes: Option<u64>,
    /// The kernel verifies what it reads of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    fs_verity: Option<bool>,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_fs_verity: Option<&'a str>,
    /// It is an image store.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    store: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<&'a ShownLayer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// The keeper's process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    keeper: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    takeovers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<String>,
    /// Where its metrics are, over HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<std::net::SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activity: Option<JsonActivity<'a>>,
    #[serde(flatten)]
    health: Option<&'a Health>,
}

/// How many files are told of a mount.
const FILES: u32 = 100;

/// What the kernel shows as the source of an image store.
const STORE: &str = peelfs::host::image_store::SOURCE;
