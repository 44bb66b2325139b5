//! Metrics: each with its name, type, unit and meaning. `docs/metrics.md` is generated from this file.
//!
//! Names follow the conventions of Prometheus: base units, `_total` for counters. Values are read when they are asked for;
//! counters begin anew when another process takes a mount over, which Prometheus knows how to add up.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use super::activity::Activity;
use super::status::MountState;
use super::wire::v1::activity::{ByReason, LayerActivity, LayerState, RegistryActivity};
use crate::fuse::WAIT_BOUNDS;

/// One metric.
#[derive(Clone, Copy)]
pub struct Metric {
    name: &'static str,
    /// What it counts or measures.
    pub kind: Kind,
    unit: Option<Base>,
    /// What it means, as a sentence without its full stop.
    pub help: &'static str,
    /// Its labels besides `mount`, the mount point.
    pub labels: &'static [&'static str],
    read: fn(&MountState, &Activity) -> Vec<Sample>,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// It only grows while the process lives.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

/// A base unit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Base {
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

/// One value, with the values of the labels besides `mount`.
#[derive(Debug)]
struct Sample {
    labels: Vec<String>,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Number(u64),
    Seconds(f64),
    /// Counts of each bucket with its bound, and the sum.
    Waits(Vec<(f64, u64)>, f64),
}

/// The media type of [`text`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// All metrics of these mounts in Prometheus' text format.
pub fn text(mounts: Vec<(MountState, Activity)>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Mounts(mounts)));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).expect("a string takes everything");
    text
}

#[rustfmt::skip]
/// All metrics, in the order of the documents.
pub const ALL: &[Metric] = &[
    gauge("mount_info", None, "A mount, with value 1; joins its labels to other metrics", &["reference", "manifest", "pid"],
        |state, _| vec![labelled([&state.reference, &state.manifest, &state.pid.to_string()], 1)]),
    gauge("mount_start_time", Some(Base::Seconds), "When it was mounted, since 1970", &[],
        |state, _| number(state.since)),
    counter("takeovers", None, "How often another process has taken the mount over", &[],
        |state, _| number(state.takeovers.into())),
    gauge("image_size", Some(Base::Bytes), "Bytes of all layers' blobs", &[],
        |_, activity| number(activity.mount.image_bytes)),
    gauge("images", None, "Images that an image store shows", &[],
        |_, activity| activity.mount.images.map_or_else(Vec::new, number)),
    gauge("layers", None, "Layers by `state`: `waiting` for its turn, `reading` in its first pass, `ready` and verified, or `failed`", &["state"],
        |_, activity| STATES.map(|(state, name)| labelled([name], count(activity, state))).into()),
    gauge("cached", Some(Base::Bytes), "Decoded bytes of the image's layers in the cache, which other mounts share", &[],
        |_, activity| sum(activity, |layer| layer.cached_bytes)),

    counter("requests", None, "Requests of the kernel; what it has cached it does not ask for", &[],
        |_, activity| number(activity.mount.requests)),
    counter("failed_requests", None, "Requests that were answered with EIO", &[],
        |_, activity| number(activity.mount.failed)),
    gauge("waiting_requests", None, "Requests that wait now for a layer or for bytes", &[],
        |_, activity| number(activity.mount.waiting)),
    gauge("longest_wait", Some(Base::Seconds), "How long the request waits that waits longest now", &[],
        |_, activity| seconds(activity.waiting.iter().map(|request| request.waits_us).max().unwrap_or(0))),
    Metric { name: "request_wait", kind: Kind::Histogram, unit: Some(Base::Seconds), labels: &[], read: waits,
        help: "How long requests waited that had to wait; those that are answered from memory or the cache are not in it" },

    counter("reads", None, "Pieces of files that were read, by `result`: `cached`, or `waited` for bytes", &["result"],
        |_, activity| {
            let (all, waited) = (total(activity, |layer| layer.reads), total(activity, |layer| layer.waits));
            vec![labelled(["cached"], all.saturating_sub(waited)), labelled(["waited"], waited)]
        }),
    counter("read", Some(Base::Bytes), "Bytes of these", &[],
        |_, activity| sum(activity, |layer| layer.read_bytes)),
    counter("failed_reads", None, "Reads that failed after they had waited", &[],
        |_, activity| sum(activity, |layer| layer.failed)),

    counter("fetched", Some(Base::Bytes), "Blob bytes that the mount has requested from its source, by `reason`", &["reason"],
        |_, activity| by_reason(activity, |layer| layer.fetched)),
    counter("fetches", None, "Requests for these, by `reason`; a first pass is not counted", &["reason"],
        |_, activity| by_reason(activity, |layer| layer.fetches)),
    counter("layer_fetched", Some(Base::Bytes), "Blob bytes that the mount has requested, by layer", &["layer", "digest"],
        |_, activity| each_layer(activity, |layer| layer.fetched.sum())),
    gauge("layer_size", Some(Base::Bytes), "Bytes of a layer's blob", &["layer", "digest"],
        |_, activity| each_layer(activity, |layer| layer.size)),

    counter("registry_requests", None, "Requests to the registry, with redirects and logins", &[],
        |_, activity| registry(activity, |registry| registry.requests)),
    counter("registry_received", Some(Base::Bytes), "Bytes received from the registry, documents and indexes included", &[],
        |_, activity| registry(activity, |registry| registry.received_bytes)),
    counter("registry_retries", None, "Requests to the registry that were sent again", &[],
        |_, activity| registry(activity, |registry| registry.retries)),
    counter("registry_resumptions", None, "Answers of the registry that broke off and were resumed", &[],
        |_, activity| registry(activity, |registry| registry.resumptions)),
    counter("registry_logins", None, "Logins, and renewals of tokens", &[],
        |_, activity| registry(activity, |registry| registry.logins)),
    gauge("registry_failing_requests", None, "Requests to the registry that keep failing now and are tried again", &[],
        |_, activity| registry(activity, |registry| registry.failing)),
    gauge("registry_failing", Some(Base::Seconds), "For how long the oldest of these fails; 0 while the registry answers", &[],
        |_, activity| registry(activity, |registry| registry.failing_s)),

    counter("damaged_spans", None, "Cached pieces of layers that did not match their digests, and were fetched again", &[],
        |_, activity| sum(activity, |layer| layer.damaged_spans)),
    counter("repeated_spans", None, "Pieces that were fetched although they were cached on arrival, as when two processes fetch the same", &[],
        |_, activity| sum(activity, |layer| layer.repeated_spans)),
    counter("unkept_spans", None, "Pieces that were fetched and not cached, as on a full disk", &[],
        |_, activity| sum(activity, |layer| layer.unkept_spans)),
];

const STATES: [(LayerState, &str); 4] = [
    (LayerState::Waiting, "waiting"),
    (LayerState::Reading, "reading"),
    (LayerState::Ready, "ready"),
    (LayerState::Failed, "failed"),
];

type Read = fn(&MountState, &Activity) -> Vec<Sample>;
type Labels = &'static [&'static str];

const fn counter(name: &'static str, unit: Option<Base>, help: &'static str, labels: Labels, read: Read) -> Metric {
    Metric { name, kind: Kind::Counter, unit, help, labels, read }
}

const fn gauge(name: &'static str, unit: Option<Base>, help: &'static str, labels: Labels, read: Read) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, help, labels, read }
}

impl Metric {
    /// The name as Prometheus has it.
    pub fn full_name(&self) -> String {
        let unit = self.unit.map_or(String::new(), |unit| format!("_{}", unit.name()));
        let total = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("{PREFIX}{}{unit}{total}", self.name)
    }

    /// Its unit.
    pub fn unit(&self) -> Option<&'static str> {
        self.unit.map(Base::name)
    }
}

impl Base {
    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
        }
    }
}

impl Kind {
    /// As Prometheus names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

fn labelled<const N: usize>(labels: [&str; N], value: u64) -> Sample {
    Sample { labels: labels.map(str::to_owned).into(), value: Value::Number(value) }
}

fn number(value: u64) -> Vec<Sample> {
    vec![labelled([], value)]
}

fn seconds(us: u64) -> Vec<Sample> {
    vec![Sample { labels: Vec::new(), value: Value::Seconds(us as f64 / 1e6) }]
}

fn total(activity: &Activity, of: fn(&LayerActivity) -> u64) -> u64 {
    activity.layers.iter().map(of).sum()
}

fn sum(activity: &Activity, of: fn(&LayerActivity) -> u64) -> Vec<Sample> {
    number(total(activity, of))
}

fn count(activity: &Activity, state: LayerState) -> u64 {
    activity.layers.iter().filter(|layer| layer.state == state).count() as u64
}

fn by_reason(activity: &Activity, of: fn(&LayerActivity) -> ByReason) -> Vec<Sample> {
    let mut all = ByReason::default();
    activity.layers.iter().for_each(|layer| all += of(layer));
    ByReason::NAMES.iter().zip(all.numbers()).map(|(name, number)| labelled([name], number)).collect()
}

fn each_layer(activity: &Activity, of: fn(&LayerActivity) -> u64) -> Vec<Sample> {
    activity.layers.iter().map(|layer| labelled([&layer.number.to_string(), &layer.digest], of(layer))).collect()
}

fn registry(activity: &Activity, of: fn(&RegistryActivity) -> u64) -> Vec<Sample> {
    activity.mount.registry.as_ref().map_or_else(Vec::new, |registry| number(of(registry)))
}

fn waits(_: &MountState, activity: &Activity) -> Vec<Sample> {
    let bounds = WAIT_BOUNDS.iter().map(std::time::Duration::as_secs_f64).chain([f64::INFINITY]);
    let buckets = bounds.zip(activity.mount.waits.iter().copied().chain(std::iter::repeat(0))).collect();
    vec![Sample { labels: Vec::new(), value: Value::Waits(buckets, activity.mount.waited_us as f64 / 1e6) }]
}

/// What is encoded.
struct Mounts(Vec<(MountState, Activity)>);

impl fmt::Debug for Mounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounts").finish_non_exhaustive()
    }
}

impl Collector for Mounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in ALL {
            let name = format!("{PREFIX}{}", metric.name);
            let unit = metric.unit.map(|unit| match unit {
                Base::Bytes => Unit::Bytes,
                Base::Seconds => Unit::Seconds,
            });
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut family = encoder.encode_descriptor(&name, metric.help, unit.as_ref(), kind)?;
            for (state, activity) in &self.0 {
                for Sample { labels, value } in (metric.read)(state, activity) {
                    let names = ["mount"].iter().chain(metric.labels);
                    let values = [state.at.to_string_lossy().into_owned()].into_iter().chain(labels);
                    let labels: Vec<(&str, String)> = names.copied().zip(values).collect();
                    encode(family.encode_family(&labels)?, metric.kind, &value)?;
                }
            }
        }
        Ok(())
    }
}

fn encode(mut to: MetricEncoder<'_>, kind: Kind, value: &Value) -> fmt::Result {
    const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, f64>> = None;
    match (kind, value) {
        (Kind::Counter, Value::Number(value)) => to.encode_counter(value, NO_EXEMPLAR),
        (Kind::Counter, Value::Seconds(value)) => to.encode_counter(value, NO_EXEMPLAR),
        (_, Value::Number(value)) => to.encode_gauge(value),
        (_, Value::Seconds(value)) => to.encode_gauge(value),
        (_, Value::Waits(buckets, sum)) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            to.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}

const PREFIX: &str = "peelfs_";
