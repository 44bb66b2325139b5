//! `peelfs layers`: what each layer of an image is made by, adds, changes, removes and wastes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::Write as _;

use serde::Serialize;

use super::Stop;
use super::args::LayersArgs;
use super::history::commands;
use super::open::{self, Looked};
use super::out::{Out, json_name};
use crate::args::LayerArgs;
use crate::text;
use peelfs::digest::Digest;
use peelfs::host::report::{Code, Report};
use peelfs::image::{LayerIndexes, LayerSummary, Waste};
use peelfs::overlay::LayerNo;

pub(crate) fn run(args: &LayersArgs) -> Result<(), Report> {
    open::run(&args.image, &LayerArgs::default(), async |looked| describe(args, looked).await)
}

async fn describe(args: &LayersArgs, looked: Looked) -> Result<(), Stop> {
    let indexes = looked.shown.image().layer_indexes(LayerNo(0)).await?;
    let mut wasted = Largest::new(if args.json { usize::MAX } else { args.waste.unwrap_or(0) });
    let summaries = indexes.summaries(&mut |waste| wasted.add(waste))?;
    let described = Described::of(&looked, &indexes, &summaries, wasted);
    let mut out = Out::new();
    if args.json {
        out.json(&described)?;
    } else {
        described.print(args, &mut out)?;
    }
    out.flush()?;
    Ok(described.totals.judge(args)?)
}

impl Totals {
    /// # Errors
    /// The limit that the image does not keep.
    fn judge(&self, args: &LayersArgs) -> Result<(), Report> {
        let (efficiency, hint) = (self.efficiency * 100.0, "`--waste` lists the files");
        if let Some(least) = args.min_efficiency.filter(|least| efficiency < *least) {
            let message = format!("the efficiency of the image is {efficiency:.1} %; at least {least} % is asked for");
            return Err(Report::new(Code::Failure, message).hint(hint));
        }
        if let Some(most) = args.max_waste.filter(|most| self.wasted_bytes > *most) {
            let (wasted, most) = (text::size(self.wasted_bytes), text::size(most));
            let message = format!("the image wastes {wasted}; at most {most} is asked for");
            return Err(Report::new(Code::Failure, message).hint(hint));
        }
        Ok(())
    }
}

/// Size, path, the layer that has it and the one that replaces or removes it; the first of equal size by path.
type Ranked = (u64, Reverse<Vec<u8>>, LayerNo, LayerNo);

/// The largest wasted files.
struct Largest {
    keep: usize,
    files: u64,
    heap: BinaryHeap<Reverse<Ranked>>,
}

impl Largest {
    fn new(keep: usize) -> Self {
        Self { keep, files: 0, heap: BinaryHeap::new() }
    }

    fn add(&mut self, waste: Waste) {
        self.files += 1;
        if self.keep == 0 {
            return;
        }
        self.heap.push(Reverse((waste.bytes, Reverse(waste.path), waste.layer, waste.by)));
        if self.heap.len() > self.keep {
            self.heap.pop();
        }
    }
}

/// The output. Fields may be added; removing one or changing its meaning requires a new `schema`.
#[derive(Serialize)]
struct Described<'a> {
    schema: u32,
    layers: Vec<Layer<'a>>,
    totals: Totals,
    wasted: Vec<WastedFile>,
}

#[derive(Serialize)]
struct Layer<'a> {
    /// Counted from 1, the lowest.
    number: usize,
    digest: &'a Digest,
    diff_id: &'a Digest,
    size: u64,
    decoded_size: u64,
    entries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    adds: u64,
    changes: u64,
    removes: u64,
    file_bytes: u64,
    wasted_bytes: u64,
}

#[derive(Serialize)]
struct Totals {
    layers: usize,
    size: u64,
    decoded_size: u64,
    entries: u64,
    file_bytes: u64,
    wasted_bytes: u64,
    wasted_files: u64,
    /// From 0 to 1.
    efficiency: f64,
}

#[derive(Serialize)]
struct WastedFile {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    bytes: u64,
    layer: u32,
    by: u32,
}

impl<'a> Described<'a> {
    fn of(looked: &'a Looked, indexes: &LayerIndexes, summaries: &[LayerSummary], wasted: Largest) -> Self {
        let plan = &looked.opened.plan;
        let layers: Vec<_> = plan
            .layers
            .iter()
            .zip(summaries)
            .zip(commands(plan))
            .enumerate()
            .map(|(at, ((layer, summary), created_by))| {
                let index = indexes.of_layer(LayerNo(u16::try_from(at).expect("a manifest has at most 1000 layers")));
                Layer {
                    number: at + 1,
                    digest: &layer.blob.digest,
                    diff_id: layer.content(),
                    size: layer.blob.size,
                    decoded_size: index.layer().decoded_size,
                    entries: index.len(),
                    created_by,
                    adds: summary.adds,
                    changes: summary.changes,
                    removes: summary.removes,
                    file_bytes: summary.bytes,
                    wasted_bytes: summary.wasted,
                }
            })
            .collect();
        let sum = |of: fn(&Layer<'_>) -> u64| layers.iter().map(of).fold(0, u64::saturating_add);
        let (file_bytes, wasted_bytes) = (sum(|layer| layer.file_bytes), sum(|layer| layer.wasted_bytes));
        let totals = Totals {
            layers: layers.len(),
            size: sum(|layer| layer.size),
            decoded_size: sum(|layer| layer.decoded_size),
            entries: sum(|layer| layer.entries.into()),
            file_bytes,
            wasted_bytes,
            wasted_files: wasted.files,
            efficiency: if file_bytes == 0 { 1.0 } else { 1.0 - wasted_bytes as f64 / file_bytes as f64 },
        };
        let number = |layer: LayerNo| u32::from(layer.0) + 1;
        let wasted = wasted.heap.into_sorted_vec().into_iter().map(|Reverse((bytes, Reverse(path), layer, by))| {
            let (path, path_hex) = json_name(&[b"/", &path[..]].concat());
            WastedFile { path, path_hex, bytes, layer: number(layer), by: number(by) }
        });
        Self { schema: SCHEMA, totals, wasted: wasted.collect(), layers }
    }

    fn print(&self, args: &LayersArgs, out: &mut Out) -> Result<(), Stop> {
        writeln!(
            out,
            "{:>5} {:>10} {:>10} {:>8} {:>8} {:>8} {:>8} {:>10}  MADE BY",
            "LAYER", "SIZE", "UNPACKED", "ENTRIES", "ADDS", "CHANGES", "REMOVES", "WASTED"
        )?;
        for layer in &self.layers {
            let command = layer.created_by.as_deref().unwrap_or("-");
            let command = if args.no_trunc { command.to_owned() } else { cut(command) };
            writeln!(
                out,
                "{:>5} {:>10} {:>10} {:>8} {:>8} {:>8} {:>8} {:>10}  {}",
                layer.number,
                text::size(layer.size),
                text::size(layer.decoded_size),
                layer.entries,
                layer.adds,
                layer.changes,
                layer.removes,
                text::size(layer.wasted_bytes),
                text::printable(command.as_bytes()),
            )?;
        }
        let totals = &self.totals;
        writeln!(
            out,
            "{}, {}; unpacked {}; wasted {} of {} in {}; efficiency {:.1} %",
            text::count(totals.layers as u64, "layer"),
            text::size(totals.size),
            text::size(totals.decoded_size),
            text::size(totals.wasted_bytes),
            text::size(totals.file_bytes),
            text::count(totals.wasted_files, "file"),
            totals.efficiency * 100.0,
        )?;
        for file in &self.wasted {
            writeln!(
                out,
                "{:>10}  layer {}, gone in layer {}: {}",
                text::size(file.bytes),
                file.layer,
                file.by,
                text::printable(file.path.as_bytes())
            )?;
        }
        Ok(())
    }
}

/// The begin of a command, on one line.
fn cut(command: &str) -> String {
    let line = command.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(COMMAND) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

const SCHEMA: u32 = 1;
/// Characters of a command that are shown.
const COMMAND: usize = 60;
