//! Reads files below a directory in a set way; prints how much that was and how long it took.
//!
//!     cargo run --release -p peelfs-bench-tools --bin walk_bench -- [--from 0] [--up-to 65536] [--random COUNT | --stat COUNT] DIR
//!
//! Each file of a size between the two is opened, read from its beginning to its end, and closed. With
//! `--random`, so many pieces of 4 KiB are read instead, each at a random place of a random one of them, all
//! of them open already; the places are the same in every run.
//!
//! The names are gathered and sorted first, outside the measured time, so that two file systems with
//! the same contents are asked the same questions in the same order.
//!
//! With `--stat`, the first of these files is asked for its metadata so often, past what the kernel knows of it
//! (`AT_STATX_FORCE_SYNC`): of FUSE that is a request each.

use std::fs::{self, File};
use std::io::Read as _;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Parser;
use rustix::fs::{AtFlags, StatxFlags};
use serde_json::json;

/// Reads files below a directory in a set way.
#[derive(Parser)]
struct Args {
    /// Where to begin
    directory: PathBuf,
    /// The smallest file that is read, in bytes
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// The largest file that is read, in bytes
    #[arg(long, default_value_t = u64::MAX)]
    up_to: u64,
    /// Reads so many pieces of 4 KiB at random places
    #[arg(long, value_name = "COUNT")]
    random: Option<u64>,
    /// Asks for the metadata of one file so often
    #[arg(long, value_name = "COUNT", conflicts_with = "random")]
    stat: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let files = files(&args.directory, args.from..=args.up_to)?;
    let (bytes, seconds) = match (args.random, args.stat) {
        (Some(count), _) => read_at_random(&files, count)?,
        (None, Some(count)) => (0, stat(files.first().context("there is no such file")?, count)?),
        (None, None) => read_whole(&files)?,
    };
    println!("{}", json!({ "files": files.len(), "bytes": bytes, "seconds": seconds }));
    Ok(())
}

/// All regular files of such sizes, sorted.
fn files(root: &Path, sizes: RangeInclusive<u64>) -> anyhow::Result<Vec<PathBuf>> {
    let (mut files, mut directories) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() && sizes.contains(&entry.metadata()?.len()) {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Opens, reads and closes each file; the bytes, and the seconds it took.
fn read_whole(files: &[PathBuf]) -> anyhow::Result<(u64, f64)> {
    let mut buffer = vec![0; WHOLE_BUFFER];
    let begun = Instant::now();
    let mut bytes = 0;
    for path in files {
        bytes += read(path, &mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok((bytes, begun.elapsed().as_secs_f64()))
}

/// Reads a file to its end; its length.
fn read(path: &Path, buffer: &mut [u8]) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    let mut length = 0;
    loop {
        match file.read(buffer)? {
            0 => return Ok(length),
            read => length += read as u64,
        }
    }
}

/// Asks the file system for a file's metadata; the seconds it took.
fn stat(path: &Path, count: u64) -> anyhow::Result<f64> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let begun = Instant::now();
    for _ in 0..count {
        rustix::fs::statx(&file, "", how, StatxFlags::BASIC_STATS)?;
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Reads pieces of the files at random places; the bytes, and the seconds it took.
fn read_at_random(files: &[PathBuf], count: u64) -> anyhow::Result<(u64, f64)> {
    let mut open = Vec::new();
    for path in files {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let pieces = file.metadata()?.len().div_ceil(PIECE as u64);
        open.push((file, pieces));
    }
    ensure!(open.iter().any(|(_, pieces)| *pieces > 0), "there is nothing to read");
    open.retain(|(_, pieces)| *pieces > 0);
    let (mut buffer, mut random) = ([0; PIECE], Random(SEED));
    let begun = Instant::now();
    let mut bytes = 0;
    for _ in 0..count {
        let (file, pieces) = &open[random.below(open.len() as u64) as usize];
        bytes += file.read_at(&mut buffer, random.below(*pieces) * PIECE as u64)? as u64;
    }
    Ok((bytes, begun.elapsed().as_secs_f64()))
}

/// SplitMix64: even enough for choosing places, and the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

const PIECE: usize = 4096;
/// What `cat` and `cp` read with.
const WHOLE_BUFFER: usize = 128 << 10;
const SEED: u64 = 1;
