//! What all mounts do at one time, and since the time before: for `peelfs top` and `peelfs web`.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use peelfs::fuse::mounts::{self, MountPoint};
use peelfs::host::activity::Activity;
use peelfs::host::ask;
use peelfs::host::report::Report;
use peelfs::host::status::{self, MountState};
use peelfs::host::wire::v1::activity::{ByReason, LayerActivity};

/// All mounts at one time.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// When.
    pub taken: Instant,
    /// In the order of the kernel's table.
    pub mounts: Vec<Mount>,
}

/// One mount.
#[derive(Clone, Debug)]
pub(super) struct Mount {
    /// The mount point.
    pub at: PathBuf,
    /// What it shows.
    pub reference: String,
    /// What is known of its process, if one of this user serves it.
    pub state: Option<MountState>,
    /// What it has fetched, or why that is not known.
    pub activity: Result<Activity, String>,
    /// Since the snapshot before.
    pub rates: Rates,
}

/// Changes in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// Blob bytes fetched.
    pub fetched: f64,
    /// Requests of the kernel.
    pub requests: f64,
    /// Bytes read by programs.
    pub read: f64,
}

impl Snapshot {
    /// Asks now; `files` is how many files are told of a mount, and `only` names the mounts that are asked about, if not all
    /// are.
    ///
    /// # Errors
    /// [`Report`] if the directory of published state is unsafe.
    pub(super) fn take(files: u32, only: &[MountPoint], before: Option<&Self>) -> Result<Self, Report> {
        let states = status::all(&status::directory()?);
        let mut mounted: Vec<_> = mounts::all().into_iter().filter(MountPoint::is_peelfs).collect();
        if !only.is_empty() {
            mounted.retain(|mount| only.iter().any(|wanted| wanted.id == mount.id));
        }
        let served = |mount: &MountPoint| {
            states.iter().rev().find(|state| !mount.is_shown_by_kernel() && state.is_of(mount)).cloned()
        };
        let mounted: Vec<_> = mounted.into_iter().map(|mount| (served(&mount), mount)).collect();
        let asked = mounted.iter().filter_map(|(state, _)| state.clone()).collect();
        let mut answers: HashMap<_, _> =
            ask::all(asked, files).into_iter().map(|(state, activity)| ((state.pid, state.at), activity)).collect();
        let taken = Instant::now();
        let mounts = mounted.into_iter().map(|(state, mount)| {
            let answer = state.as_ref().and_then(|state| answers.remove(&(state.pid, state.at.clone())));
            let activity = match answer {
                Some(activity) => activity.map_err(|error| peelfs::image::chain(&error)),
                None if mount.is_shown_by_kernel() => Err("the kernel mounts it, without a process".to_owned()),
                None => Err("no process of this user serves it".to_owned()),
            };
            let reference = state.as_ref().map_or(mount.reference(), |state| &state.reference).to_owned();
            Mount { at: mount.path, reference, state, activity, rates: Rates::default() }
        });
        let mut snapshot = Self { taken, mounts: mounts.collect() };
        if let Some(before) = before {
            snapshot.rate_since(before);
        }
        Ok(snapshot)
    }

    /// Compares with an earlier one. A process that was exchanged has begun to count anew.
    pub(super) fn rate_since(&mut self, before: &Self) {
        let time = self.taken.saturating_duration_since(before.taken).max(Duration::from_millis(1)).as_secs_f64();
        for mount in &mut self.mounts {
            let earlier = before.mounts.iter().find(|earlier| earlier.at == mount.at && earlier.pid() == mount.pid());
            let Some((Ok(earlier), Ok(now))) = earlier.map(|earlier| (&earlier.activity, &mount.activity)) else {
                continue;
            };
            let rate = |of: fn(&Activity) -> u64| of(now).saturating_sub(of(earlier)) as f64 / time;
            mount.rates = Rates { fetched: rate(fetched), requests: rate(|all| all.mount.requests), read: rate(read) };
        }
    }
}

impl Mount {
    /// The process that serves it.
    pub(super) fn pid(&self) -> Option<u32> {
        self.state.as_ref().map(|state| state.pid)
    }

    /// The mount point, safe for a terminal.
    pub(super) fn name(&self) -> String {
        super::text::printable(self.at.as_os_str().as_bytes())
    }
}

/// Blob bytes fetched by a mount.
pub(super) fn fetched(activity: &Activity) -> u64 {
    activity.layers.iter().map(|layer| layer.fetched.sum()).sum()
}

/// Blob bytes fetched by a mount, for each reason.
pub(super) fn reasons(layers: &[LayerActivity]) -> ByReason {
    let mut all = ByReason::default();
    layers.iter().for_each(|layer| all += layer.fetched);
    all
}

/// Bytes that programs have read.
pub(super) fn read(activity: &Activity) -> u64 {
    activity.layers.iter().map(|layer| layer.read_bytes).sum()
}

/// The share of reads that did not wait, if there were any.
pub(super) fn hits(activity: &Activity) -> Option<f64> {
    let reads: u64 = activity.layers.iter().map(|layer| layer.reads).sum();
    let waits: u64 = activity.layers.iter().map(|layer| layer.waits).sum();
    (reads > 0).then(|| 1.0 - waits.min(reads) as f64 / reads as f64)
}

/// How long the request waits that waits longest, in microseconds.
pub(super) fn longest_wait(activity: &Activity) -> Option<u64> {
    activity.waiting.iter().map(|request| request.waits_us).max()
}
