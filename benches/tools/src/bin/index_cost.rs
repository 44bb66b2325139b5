//! What layer indexes take on disk: bytes an entry, and what checkpoints add to that.
//!
//!     cargo run --release -p peelfs-bench-tools --bin index_cost -- ~/.cache/peelfs/index-v2/sha256/*
//!
//! Checkpoints are the span records and the decoder windows they point to; all else is the tree.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use peelfs::layer::LayerIndex;
use peelfs::span::SpanId;
use serde_json::json;

/// What layer indexes take on disk.
#[derive(Parser)]
struct Args {
    /// Layer indexes
    #[arg(required = true)]
    indexes: Vec<PathBuf>,
}

/// A sum over layers.
#[derive(Default)]
struct Cost {
    entries: u64,
    bytes: u64,
    spans: u64,
    windows: u64,
    decoded: u64,
}

fn main() -> anyhow::Result<()> {
    let mut cost = Cost::default();
    for path in &Args::parse().indexes {
        cost.add(path).with_context(|| format!("cannot measure {}", path.display()))?;
    }
    let checkpoints = cost.windows + cost.spans * SPAN_RECORD;
    let tree = cost.bytes - checkpoints;
    let report = json!({
        "entries": cost.entries,
        "index_bytes": cost.bytes,
        "tree_bytes": tree,
        "checkpoint_bytes": checkpoints,
        "decoded_bytes": cost.decoded,
        "tree_bytes_per_entry": tree as f64 / cost.entries as f64,
        "checkpoint_percent": checkpoints as f64 * 100.0 / cost.decoded as f64,
    });
    println!("{report}");
    Ok(())
}

impl Cost {
    fn add(&mut self, path: &PathBuf) -> anyhow::Result<()> {
        let file = File::open(path)?;
        self.bytes += file.metadata()?.len();
        let index = LayerIndex::open(file)?;
        self.entries += u64::from(index.len());
        self.spans += u64::from(index.span_count());
        self.decoded += index.layer().decoded_size;
        for id in 0..index.span_count() {
            self.windows += index.span(SpanId(id))?.window.map_or(0, |window| u64::from(window.len));
        }
        Ok(())
    }
}

/// Bytes of one span's record, as the index format has it.
const SPAN_RECORD: u64 = 64;
