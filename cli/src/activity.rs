//! What a mount has fetched, why, and who waits: as lines, and as JSON.

use std::path::PathBuf;

use serde::Serialize;

use super::look::out::json_name;
use super::text;
use peelfs::host::activity::Activity;
use peelfs::host::wire::WirePath;
use peelfs::host::wire::v1::activity::{ByReason, FileActivity, LayerActivity, MountActivity, WaitingRequest};

/// The lines of `peelfs status --activity`, each with the word before it.
pub(super) fn lines(activity: &Activity) -> Vec<(&'static str, String)> {
    let Activity { mount, layers, files, waiting } = activity;
    let mut lines = Vec::new();
    let reads: u64 = layers.iter().map(|layer| layer.reads).sum();
    let waits: u64 = layers.iter().map(|layer| layer.waits).sum();
    let asked = text::count(mount.requests, "request");
    let failed = if mount.failed > 0 { format!(", {} failed", mount.failed) } else { String::new() };
    lines.push((
        "asked",
        format!("{asked} of the kernel{failed}; {}, {waits} of them waited", text::count(reads, "read")),
    ));
    let mut fetched = ByReason::default();
    layers.iter().for_each(|layer| fetched += layer.fetched);
    if fetched.sum() > 0 {
        lines.push(("why", reasons(&fetched)));
    }
    for layer in layers.iter().filter(|layer| layer.fetched.sum() > 0) {
        let of = text::size(layer.size);
        lines.push((
            "layer",
            format!("{}: {} of {of}: {}", layer.number, text::size(layer.fetched.sum()), reasons(&layer.fetched)),
        ));
    }
    for file in files {
        let waited = match file.waits {
            0 => String::new(),
            times => format!("; waited {}, {} together", text::count(times, "time"), time(file.waited_us)),
        };
        let why = if file.fetched.sum() > 0 { reasons(&file.fetched) } else { "nothing fetched".to_owned() };
        lines.push(("file", format!("{}: {why}{waited}", path(&file.path))));
    }
    for request in waiting {
        lines.push(("waiting", format!("{}, for {}", what(request), time(request.waits_us))));
    }
    lines
}

/// Who waits for what.
pub(super) fn what(request: &WaitingRequest) -> String {
    let who = match (&request.command, request.pid) {
        (Some(command), Some(pid)) => format!("{} ({pid})", text::printable(command.as_bytes())),
        (None, Some(pid)) => format!("process {pid}"),
        (_, None) => "another process".to_owned(),
    };
    let path = request.path.as_ref().map_or(String::new(), |path| format!(" {}", self::path(path)));
    format!("{who}: {}{path}", request.operation)
}

/// Bytes for each reason that there is.
fn reasons(by: &ByReason) -> String {
    let each = ByReason::NAMES.iter().zip(by.numbers()).filter(|(_, bytes)| *bytes > 0);
    each.map(|(name, bytes)| format!("{} {}", text::size(bytes), name.replace('_', " "))).collect::<Vec<_>>().join(", ")
}

/// A path of an image, safe for a terminal.
pub(super) fn path(path: &WirePath) -> String {
    text::printable(&bytes(path))
}

fn bytes(path: &WirePath) -> Vec<u8> {
    let path = PathBuf::try_from(path.clone()).unwrap_or_default();
    std::os::unix::ffi::OsStringExt::into_vec(path.into_os_string())
}

/// A short time.
pub(super) fn time(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..1_000_000 => format!("{} ms", us / 1000),
        1_000_000..100_000_000 => format!("{:.1} s", us as f64 / 1e6),
        _ => format!("{} s", us / 1_000_000),
    }
}

/// `activity` of `peelfs status --activity --json`, and of the page.
#[derive(Serialize)]
pub(super) struct JsonActivity<'a> {
    #[serde(flatten)]
    mount: &'a MountActivity,
    layers: Vec<JsonLayer<'a>>,
    files: Vec<JsonFile<'a>>,
    waiting_requests: Vec<JsonWaiting<'a>>,
}

#[derive(Serialize)]
struct JsonLayer<'a> {
    #[serde(flatten)]
    layer: &'a LayerActivity,
    fetched_bytes: u64,
}

#[derive(Serialize)]
struct JsonFile<'a> {
    layer: u32,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    size: u64,
    fetched: &'a ByReason,
    fetched_bytes: u64,
    waits: u64,
    waited_us: u64,
    longest_us: u64,
    idle_ms: u64,
}

#[derive(Serialize)]
struct JsonWaiting<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    operation: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    waits_us: u64,
}

impl<'a> From<&'a Activity> for JsonActivity<'a> {
    fn from(Activity { mount, layers, files, waiting }: &'a Activity) -> Self {
        Self {
            mount,
            layers: layers.iter().map(|layer| JsonLayer { layer, fetched_bytes: layer.fetched.sum() }).collect(),
            files: files.iter().map(JsonFile::from).collect(),
            waiting_requests: waiting.iter().map(JsonWaiting::from).collect(),
        }
    }
}

impl<'a> From<&'a FileActivity> for JsonFile<'a> {
    fn from(file: &'a FileActivity) -> Self {
        let FileActivity { layer, path, size, fetched, waits, waited_us, longest_us, idle_ms } = file;
        let (path, path_hex) = json_name(&bytes(path));
        let fetched_bytes = fetched.sum();
        let (layer, size, waits, waited_us) = (*layer, *size, *waits, *waited_us);
        let (longest_us, idle_ms) = (*longest_us, *idle_ms);
        Self { layer, path, path_hex, size, fetched, fetched_bytes, waits, waited_us, longest_us, idle_ms }
    }
}

impl<'a> From<&'a WaitingRequest> for JsonWaiting<'a> {
    fn from(request: &'a WaitingRequest) -> Self {
        let WaitingRequest { pid, command, operation, path, waits_us } = request;
        let (path, path_hex) = match path.as_ref().map(|path| json_name(&bytes(path))) {
            Some((path, hex)) => (Some(path), hex),
            None => (None, None),
        };
        Self { pid: *pid, command: command.as_deref(), operation, path, path_hex, waits_us: *waits_us }
    }
}
