//! `peelfs inspect`: an image's metadata as one JSON object. Reads no layer.

use std::collections::HashMap;
use std::io::{self, Write as _};

use serde::Serialize;
use serde_json::Value;

use super::args::InspectArgs;
use super::{specs, text};
use peelfs::content::{self, Origin};
use peelfs::descriptor::Descriptor;
use peelfs::digest::Digest;
use peelfs::documents::ArtifactKind;
use peelfs::host::open::{self, Opened};
use peelfs::host::process;
use peelfs::host::report::Report;
use peelfs::image::{Considered, LayerRef, shown_otherwise};
use peelfs::layer::Format;
use peelfs::source::registry::{HostStatus, RegistrySource};
use peelfs::store::LayerUsage;

pub(super) fn run(args: &InspectArgs) -> Result<(), Report> {
    let runtime = process::runtime(process::Purpose::Reading)?;
    let opened = runtime.block_on(open::open_to_describe(&specs::image_or_layer(&args.image, &args.layer)?))?;
    let found = if args.explain { runtime.block_on(pushed(&opened)) } else { HashMap::new() };
    let explained = args.explain.then_some(&found);
    let stored = runtime.block_on(stored(&opened));
    let description = describe(&args.image.reference, &opened, (&stored, explained))?;
    let mut out = io::stdout().lock();
    let written = serde_json::to_writer_pretty(&mut out, &description).map_err(io::Error::from);
    match written.and_then(|()| writeln!(out)).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) => text::output_ended(&error),
    }
}

/// The output. Fields may be added; removing one or changing its meaning requires a new `schema`.
#[derive(Serialize)]
struct Description<'a> {
    schema: u32,
    reference: &'a str,
    canonical: String,
    root: Described<'a>,
    manifest: Described<'a>,
    platform: Option<String>,
    offered: Vec<String>,
    config_digest: &'a Digest,
    config: Value,
    /// The kind of an artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact: Option<&'static str>,
    /// Where an engine has the image unpacked, if its layers are rebuilt from files there.
    #[serde(skip_serializing_if = "Option::is_none")]
    rebuilt_from: Option<RebuiltFrom<'a>>,
    layers: Vec<Layer<'a>>,
    totals: Totals,
    /// With `--explain`: which servers are asked for what the cache lacks, in order; the registry itself is the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    hosts: Option<Vec<HostStatus>>,
    /// With `--explain`: the file or option that names mirrors.
    #[serde(skip_serializing_if = "Option::is_none")]
    mirrors_named_by: Option<&'a str>,
}

#[derive(Serialize)]
struct Described<'a> {
    digest: &'a Digest,
    #[serde(rename = "mediaType")]
    media_type: &'a str,
    size: u64,
}

/// An image whose manifest was written by peelfs: the engine's own names blobs that exist no longer.
#[derive(Serialize)]
struct RebuiltFrom<'a> {
    store: String,
    image: &'a str,
    /// The digest of the engine's manifest.
    manifest: Option<&'a Digest>,
}

#[derive(Serialize)]
struct Layer<'a> {
    /// Counted from 1, the lowest.
    number: usize,
    #[serde(flatten)]
    blob: Described<'a>,
    diff_id: &'a Digest,
    /// The path of the file that the blob is, as the manifest has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// The path under which that file is shown, if that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    shown_as: Option<String>,
    /// The number of the layer whose file is shown in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_by: Option<usize>,
    indexed: bool,
    /// What the manifest says that the layer brings along to be opened by, and what is wrong with that, if anything is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    brings: Vec<Brought>,
    /// With `--explain`: what the index may come from, in the order in which that is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    origins: Option<Vec<Considered>>,
    #[serde(flatten)]
    known: Option<Known>,
}

/// A table of contents.
#[derive(Serialize)]
struct Brought {
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

/// Fields that need the layer's index.
#[derive(Serialize)]
struct Known {
    entries: u32,
    decoded_size: u64,
    /// What the index was made of.
    origin: &'static str,
    /// Who vouches for the index, unless this machine made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    vouched_by: Option<String>,
    content_bytes_on_disk: u64,
}

#[derive(Default, Serialize)]
struct Totals {
    layers: usize,
    indexed: usize,
    size: u64,
    /// Only if all layers are indexed.
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoded_size: Option<u64>,
    content_bytes_on_disk: u64,
}

/// What is known of pushed indexes, by layer; empty if none may be used.
type PushedOf = HashMap<Digest, [(Origin, String); 2]>;

/// Looks for pushed indexes of layers that have no index here.
async fn pushed(opened: &Opened) -> PushedOf {
    let Some(pushed) = &opened.pushed else { return HashMap::new() };
    let mut found = HashMap::new();
    for layer in &opened.plan.layers {
        let told = [(PUSHED, pushed.look(layer).await), (SOCI_V1, pushed.look_for_ztoc(layer).await)];
        found.insert(layer.blob.digest.clone(), told);
    }
    found
}

/// The index of each layer in the cache, if it may be used.
async fn stored(opened: &Opened) -> Vec<Option<content::Opened>> {
    let mut found = Vec::new();
    for layer in &opened.plan.layers {
        found.push(opened.stored(layer).await);
    }
    found
}

fn describe<'a>(
    typed: &'a str,
    opened: &'a Opened,
    (stored, explained): (&[Option<content::Opened>], Option<&PushedOf>),
) -> Result<Description<'a>, Report> {
    let plan = &opened.plan;
    let used: HashMap<Digest, LayerUsage> =
        opened.store.usage()?.layers.into_iter().map(|layer| (layer.digest.clone(), layer)).collect();
    let asked_for = |number: usize| opened.layer.is_none_or(|layer| usize::from(layer.0) == number);
    let layers = plan.layers.iter().enumerate().filter(|(number, _)| asked_for(*number));
    let mut layers: Vec<Layer<'_>> =
        layers.map(|(at, layer)| of_layer((at + 1, layer), opened, stored[at].as_ref(), &used, explained)).collect();
    for file in shown_otherwise(&plan.layers) {
        if let Some(layer) = layers.iter_mut().find(|layer| layer.number == file.number) {
            layer.shown_as = file.shown_as.map(|path| String::from_utf8_lossy(&path).into_owned());
            layer.hidden_by = file.hidden_by;
        }
    }
    let raw = plan.configuration.raw.get();
    let registry = opened.registry.as_deref().filter(|_| explained.is_some());
    Ok(Description {
        schema: SCHEMA,
        reference: typed,
        canonical: opened.reference.canonical(),
        root: described(&plan.root),
        manifest: described(&plan.manifest),
        platform: plan.platform.as_ref().map(ToString::to_string),
        offered: plan.offered.iter().map(ToString::to_string).collect(),
        config_digest: &plan.config.digest,
        artifact: plan.artifact.map(ArtifactKind::name),
        // JSON that is nested too deep for a tree is printed as text.
        config: serde_json::from_str(raw).unwrap_or_else(|_| raw.into()),
        rebuilt_from: opened.source.rebuilt_from().map(|rebuilt| RebuiltFrom {
            store: rebuilt.store.display().to_string(),
            image: &rebuilt.image,
            manifest: rebuilt.manifest.as_ref(),
        }),
        totals: totals(&layers),
        layers,
        hosts: registry.map(RegistrySource::hosts),
        mirrors_named_by: registry.and_then(RegistrySource::mirrors_named_by),
    })
}

fn described(descriptor: &Descriptor) -> Described<'_> {
    Described { digest: &descriptor.digest, media_type: descriptor.media_type.as_str(), size: descriptor.size }
}

fn of_layer<'a>(
    (number, layer): (usize, &'a LayerRef),
    opened: &Opened,
    found: Option<&content::Opened>,
    used: &HashMap<Digest, LayerUsage>,
    explained: Option<&PushedOf>,
) -> Layer<'a> {
    let origins = explained.map(|pushed| {
        let used = found.map(|found| found.origin);
        let told = pushed.get(&layer.blob.digest).into_iter().flatten();
        let told = told.filter(|(origin, _)| used != Some(*origin)).cloned().collect();
        content::explain(layer, used, opened.origins(), &told)
    });
    let known = found.map(|content::Opened { index, origin, .. }| Known {
        entries: index.len(),
        decoded_size: index.layer().decoded_size,
        origin: origin.name(),
        vouched_by: index.proof().vouched_by().map(ToOwned::to_owned),
        content_bytes_on_disk: used.get(&layer.blob.digest).map_or(0, |usage| usage.content),
    });
    let brought = |(origin, fault): (Origin, Option<_>)| {
        let fault = fault.map(|fault| std::string::ToString::to_string(&fault));
        Brought { format: origin.name(), fault }
    };
    let brings = Origin::tables(layer).into_iter().map(brought).collect();
    let path = layer.file().map(|file| String::from_utf8_lossy(file.path()).into_owned());
    let (blob, diff_id, indexed) = (described(&layer.blob), layer.content(), known.is_some());
    Layer { number, blob, diff_id, path, shown_as: None, hidden_by: None, indexed, brings, origins, known }
}

/// A layer that occurs twice in an image counts twice in the tree, once on disk.
fn totals(layers: &[Layer<'_>]) -> Totals {
    let mut totals = Totals { layers: layers.len(), entries: Some(0), decoded_size: Some(0), ..Totals::default() };
    let mut seen = std::collections::HashSet::new();
    for layer in layers {
        totals.size += layer.blob.size;
        let Some(known) = &layer.known else {
            totals.entries = None;
            totals.decoded_size = None;
            continue;
        };
        totals.indexed += 1;
        totals.entries = totals.entries.map(|sum| sum + u64::from(known.entries));
        totals.decoded_size = totals.decoded_size.map(|sum| sum.saturating_add(known.decoded_size));
        if seen.insert(layer.blob.digest) {
            totals.content_bytes_on_disk += known.content_bytes_on_disk;
        }
    }
    totals
}

const SCHEMA: u32 = 1;
const PUSHED: Origin = Origin::Vouched(Format::Pushed);
const SOCI_V1: Origin = Origin::Vouched(Format::SociReferrer);
