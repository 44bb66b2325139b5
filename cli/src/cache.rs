//! `peelfs cache`: shows, checks and prunes the cache.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use serde_json::json;

use super::args::{AccessArgs, CacheArgs, CacheCommand, ImageArgs, MirrorArg, OpeningArgs};
use super::progress::{Meter, Quiet};
use super::{specs, text};
use peelfs::content::{self, CheckedLayer, check_layer};
use peelfs::digest::Digest;
use peelfs::host::report::{Code, Report};
use peelfs::host::{open, process};
use peelfs::source::outage::OnOutage;
use peelfs::store::{Keep, Store, Usage};

pub(super) fn run(args: &CacheArgs) -> Result<(), Report> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let done = match args.command.clone().unwrap_or(CacheCommand::Show { json: false }) {
        CacheCommand::Dir => print_dir(args, &mut out),
        CacheCommand::Show { json } => show(&existing(args)?, json, &mut out),
        CacheCommand::Verify { quiet } => verify(&existing(args)?, quiet.into(), &mut out),
        CacheCommand::Drop { image: None, all: false, .. } => {
            let missing = Report::new(Code::Usage, "`cache drop` needs the image whose layers it drops");
            return Err(missing.hint("name it as it was mounted; `--all` drops what is cached of all images"));
        }
        CacheCommand::Drop { image, platform, content, all: _ } => {
            let what = if content { Dropped::Content } else { Dropped::All };
            drop_layers(args, image, platform, what, &mut out)
        }
        CacheCommand::Prune { content, all, to } => {
            let keep = match (content, all, to) {
                (_, _, Some(bytes)) => Keep::Bytes(bytes),
                (_, true, _) => Keep::Nothing,
                (true, ..) => Keep::Indexes,
                (false, false, None) => Keep::Known,
            };
            prune(&existing(args)?, keep, &mut out)
        }
    };
    let flushed = out.flush();
    match done {
        Err(Trouble::Report(report)) => Err(report),
        Err(Trouble::Output(error)) => text::output_ended(&error),
        Ok(()) => flushed.or_else(|error| text::output_ended(&error)),
    }
}

/// The existing cache: showing or pruning creates none.
fn existing(args: &CacheArgs) -> Result<Store, Report> {
    Ok(Store::open_existing(&specs::cache_dir(&args.cache)?, args.cache.cache_size)?)
}

/// Fails if the cache is not writable.
fn can_be_changed(store: &Store) -> Result<(), Report> {
    match rustix::fs::access(store.root(), rustix::fs::Access::WRITE_OK) {
        Err(error @ (Errno::ROFS | Errno::ACCESS)) => {
            let message = format!("nothing can be removed from the cache `{}`: {error}", store.root().display());
            Err(Report::new(Code::Failure, message))
        }
        // A missing cache is empty.
        Ok(()) | Err(_) => Ok(()),
    }
}

enum Trouble {
    Report(Report),
    Output(io::Error),
}

impl<E: Into<Report>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Report(error.into())
    }
}

type Done = Result<(), Trouble>;

/// The directory's raw bytes, for scripts.
fn print_dir(args: &CacheArgs, out: &mut impl Write) -> Done {
    let dir = specs::cache_dir(&args.cache)?;
    out.write_all(dir.as_os_str().as_bytes()).and_then(|()| out.write_all(b"\n")).map_err(Trouble::Output)
}

fn show(store: &Store, json: bool, out: &mut impl Write) -> Done {
    let usage = store.usage()?;
    let unfinished = store.unfinished()?;
    let shown = if json { format!("{}\n", description(store, &usage)) } else { table(store, &usage, unfinished) };
    out.write_all(shown.as_bytes()).map_err(Trouble::Output)
}

fn description(store: &Store, usage: &Usage) -> serde_json::Value {
    let layers: Vec<_> = usage
        .layers
        .iter()
        .map(|layer| {
            json!({
                "digest": layer.digest, "index_bytes": layer.index, "content_bytes": layer.content,
                "used": seconds(layer.used), "in_use": layer.held,
            })
        })
        .collect();
    json!({
        "directory": store.root().to_string_lossy(), "limit": store.limit(), "layers": layers,
        "layer_bytes": usage.layer_bytes(), "document_bytes": usage.documents, "image_bytes": usage.images, "temporary_bytes": usage.temporary,
    })
}

fn table(store: &Store, usage: &Usage, unfinished: u64) -> String {
    let mut lines = Vec::new();
    if !usage.layers.is_empty() {
        lines.push(["LAYER", "INDEX", "CONTENT", "LAST USED (UTC)", ""].map(str::to_owned));
    }
    for layer in &usage.layers {
        let in_use = if layer.held { "in use" } else { "" };
        lines.push([
            layer.digest.short().to_owned(),
            if layer.index == 0 { "-".to_owned() } else { text::size(layer.index) },
            if layer.content == 0 { "-".to_owned() } else { text::size(layer.content) },
            text::time(seconds(layer.used)),
            in_use.to_owned(),
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let (layer, index, content, used) = (width(0), width(1), width(2), width(3));
    let mut shown = String::new();
    for [a, b, c, d, e] in &lines {
        let line = format!("{a:<layer$}  {b:>index$}  {c:>content$}  {d:<used$}  {e}");
        shown.push_str(line.trim_end());
        shown.push('\n');
    }
    let mut total = format!(
        "{}, {}; manifests and configurations {}",
        text::count(usage.layers.len() as u64, "layer"),
        text::size(usage.layer_bytes()),
        text::size(usage.documents),
    );
    if usage.images > 0 {
        total.push_str(&format!("; images for the kernel {}", text::size(usage.images)));
    }
    let in_flight = usage.temporary.saturating_sub(unfinished);
    if in_flight > 0 {
        total.push_str(&format!("; in flight {}", text::size(in_flight)));
    }
    if unfinished > 0 {
        total.push_str(&format!("; left by interrupted processes {}", text::size(unfinished)));
    }
    total.push_str(&match store.limit() {
        Some(limit) => format!("; limit {}", text::size(limit)),
        None => "; no limit".to_owned(),
    });
    format!("{shown}{total}\n")
}

fn verify(store: &Store, quiet: Quiet, out: &mut impl Write) -> Done {
    let meter = Meter::start("verifying", quiet);
    let stays = can_be_changed(store).err();
    // What nothing describes cannot be checked, and is of no use.
    let leftovers = if stays.is_none() { content::tidy(store)? } else { 0 };
    let usage = store.usage()?;
    let documents = store.check_documents()?;
    let mut damaged = documents.damaged.clone();
    damaged.extend(store.check_kernel_images()?.damaged);
    let (mut spans, mut bytes, mut undescribed) = (0u64, 0u64, 0u64);
    meter.begin("verifying", Some(usage.layer_bytes()));
    for layer in &usage.layers {
        let checked = check_layer(store, &layer.digest)?;
        meter.add(layer.index + layer.content);
        spans += u64::from(checked.spans);
        bytes += checked.bytes;
        undescribed += checked.undescribed;
        damaged.extend(damage(&layer.digest, &checked));
    }
    drop(meter);
    let removed = if stays.is_none() { ", removed" } else { "" };
    for what in &damaged {
        writeln!(out, "damaged{removed}: {what}").map_err(Trouble::Output)?;
    }
    writeln!(
        out,
        "checked {} with {} of content in {}, and {}",
        text::count(usage.layers.len() as u64, "layer"),
        text::size(bytes),
        text::count(spans, "span"),
        text::count(documents.checked, "document"),
    )
    .map_err(Trouble::Output)?;
    if leftovers > 0 {
        writeln!(out, "removed {} of leftovers, which nothing uses", text::size(leftovers)).map_err(Trouble::Output)?;
    }
    if undescribed > 0 {
        let what = "not checked, as no index in the cache describes it; a process that uses it checks it itself";
        writeln!(out, "{} of content {what}", text::size(undescribed)).map_err(Trouble::Output)?;
    }
    if damaged.is_empty() {
        return Ok(());
    }
    let verb = if damaged.len() == 1 { "was" } else { "were" };
    let found = text::count(damaged.len() as u64, "part");
    Err(Trouble::Report(Report::new(Code::Verification, format!("{found} of the cache {verb} damaged")).hint(
        match stays {
            None => "no action needed: removed data is fetched again on demand",
            Some(_) => "not removed, as the cache is not writable; readers fetch it again",
        },
    )))
}

/// Describes the damage of a layer.
fn damage(layer: &Digest, checked: &CheckedLayer) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(why) = &checked.index {
        found.push(format!("index of layer {layer}: {why}"));
    }
    if checked.misshapen {
        found.push(format!("content of layer {layer}: its files do not match its index"));
    }
    if checked.damaged_windows > 0 {
        found.push(format!("{} decoder windows of layer {layer}", checked.damaged_windows));
    }
    found.extend(checked.damaged_passthrough_copies.iter().map(|entry| format!("file {entry} of layer {layer}")));
    found.extend(checked.damaged.iter().map(|span| format!("span {span} of layer {layer}")));
    found
}

/// What `cache drop` drops of a layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Dropped {
    /// Its content.
    Content,
    /// Its content, and its index if no process uses it.
    All,
}

/// Drops the content, and the indexes, of an image's layers, or of all if no image is given; does not use the network.
fn drop_layers(
    args: &CacheArgs,
    image: Option<String>,
    platform: Option<String>,
    what: Dropped,
    out: &mut impl Write,
) -> Done {
    let store = Arc::new(existing(args)?);
    can_be_changed(&store)?;
    let layers: Vec<Digest> = match image {
        None => store.usage()?.layers.into_iter().map(|layer| layer.digest).collect(),
        Some(reference) => {
            let cache = args.cache.clone();
            let access = AccessArgs {
                platform,
                offline: true,
                insecure: false,
                ca: Vec::new(),
                authfile: None,
                mirror: vec![MirrorArg::None],
                hosts_dir: None,
                on_outage: OnOutage::default(),
                verifier_dir: None,
                cache,
            };
            let image = specs::image(&ImageArgs { reference, opening: OpeningArgs::default(), access })?;
            let opened = process::runtime(process::Purpose::Reading)?
                .block_on(open::open_in_cache(&image, &Arc::clone(&store).into()));
            let opened = opened.map_err(Report::from).map_err(|report| match report.code {
                Code::NotFound => report.hint("name it as it was mounted, or drop what is cached of all with `--all`"),
                _ => report,
            })?;
            let layers: BTreeSet<_> = opened.plan.layers.into_iter().map(|layer| layer.blob.digest).collect();
            layers.into_iter().collect()
        }
    };
    let (mut freed, mut without_index, mut in_use) = (0, 0u64, 0u64);
    for layer in &layers {
        match if what == Dropped::All { store.drop_unused(layer) } else { None } {
            Some(bytes) => (freed, without_index) = (freed + bytes, without_index + u64::from(bytes > 0)),
            None => {
                freed += content::evict_content(&store, layer)?;
                in_use += u64::from(what == Dropped::All);
            }
        }
    }
    freed += store.drop_orphaned_kernel_images()?;
    let mut line = format!("freed {}", text::size(freed));
    match what {
        Dropped::Content if freed > 0 => {
            line.push_str(&format!(": the content of {}; indexes stay", text::count(layers.len() as u64, "layer")));
        }
        Dropped::All if without_index > 0 => {
            line.push_str(&format!(": content and index of {}", text::count(without_index, "layer")));
        }
        _ => {}
    }
    match in_use {
        0 => {}
        1 => line.push_str("; 1 layer is in use: its content was dropped, its index stays"),
        _ => line.push_str(&format!("; {in_use} layers are in use: their content was dropped, their indexes stay")),
    }
    writeln!(out, "{line}").map_err(Trouble::Output)
}

fn prune(store: &Store, keep: Keep, out: &mut impl Write) -> Done {
    can_be_changed(store)?;
    let leftovers = content::tidy(store)?;
    let mut freed = store.prune(keep)?;
    freed.bytes += leftovers;
    let mut line = format!("freed {}", text::size(freed.bytes));
    if freed.layers > 0 {
        let what = if keep == Keep::Nothing { "removed" } else { "without content now" };
        line.push_str(&format!("; {} {what}", text::count(freed.layers, "layer")));
    }
    if freed.indexes > 0 && keep != Keep::Nothing {
        line.push_str(&format!("; {} without an index now", text::count(freed.indexes, "layer")));
    }
    if freed.held > 0 {
        line.push_str(&format!("; {} kept, in use", text::count(freed.held, "layer")));
    }
    writeln!(out, "{line}").map_err(Trouble::Output)
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
