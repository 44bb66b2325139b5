//! Writes an OCI layout with a given number of files and layers, to measure growth with the image's size.
//!
//!     cargo run --release -p peelfs-bench-tools --bin growth_image -- --entries 1000000 --layers 5 DIR
//!
//! File number n is `d{n / 10000}/d{n / 100 % 100}/f{n % 100}` and holds its number. Each layer has the
//! next share of them, as images have it: most directories come from one layer, those near the root from
//! many. The tag is `latest`.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Parser;
use peelfs_loopback::image::{ImageBuilder, LayerBuilder, Packing};

/// Writes an OCI layout with so many files in so many layers.
#[derive(Parser)]
struct Args {
    /// Files in the image; the directories that hold them come on top
    #[arg(long)]
    entries: u64,
    /// Layers they are spread over
    #[arg(long)]
    layers: u64,
    /// Where the layout goes
    layout: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!((1..=args.entries).contains(&args.layers), "each layer needs a file");
    let share = |layer| args.entries * layer / args.layers;
    let image = (0..args.layers)
        .fold(ImageBuilder::new(), |image, layer| image.layer(files(share(layer)..share(layer + 1))))
        .build();
    std::fs::create_dir_all(&args.layout)?;
    image.write_layout(&args.layout, "latest").with_context(|| format!("cannot write {}", args.layout.display()))
}

/// A layer with these files, each directory before what is in it.
fn files(numbers: std::ops::Range<u64>) -> LayerBuilder {
    let mut layer = LayerBuilder::new().packing(Packing::Gzip { level: 1, member: None });
    for number in numbers.clone() {
        let (outer, inner) = (format!("d{}", number / 10_000), number / 100 % 100);
        let first = number == numbers.start;
        if first || number.is_multiple_of(10_000) {
            layer = layer.dir(&outer);
        }
        if first || number.is_multiple_of(100) {
            layer = layer.dir(&format!("{outer}/d{inner}"));
        }
        layer = layer.file(&format!("{outer}/d{inner}/f{}", number % 100), number.to_string());
    }
    layer
}
