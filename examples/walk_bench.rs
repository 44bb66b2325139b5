//! Opens, reads and closes every small file below a directory; prints how many and how long it took.
//!
//!     cargo run --release --example walk_bench -- [--up-to 65536] DIR
//!
//! The names are gathered and sorted first, outside the measured time, so that two file systems with
//! the same contents are asked the same questions in the same order.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use serde_json::json;

/// Opens, reads and closes every small file below a directory.
#[derive(Parser)]
struct Args {
    /// Where to begin
    directory: PathBuf,
    /// The largest file that is read, in bytes
    #[arg(long, default_value_t = 64 << 10)]
    up_to: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let files = small_files(&args.directory, args.up_to)?;
    let mut buffer = vec![0; usize::try_from(args.up_to)? + 1];
    let begun = Instant::now();
    let mut bytes = 0;
    for path in &files {
        bytes += read(path, &mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{}", json!({ "files": files.len(), "bytes": bytes, "seconds": seconds }));
    Ok(())
}

/// All regular files of at most `up_to` bytes, sorted.
fn small_files(root: &Path, up_to: u64) -> anyhow::Result<Vec<PathBuf>> {
    let (mut files, mut directories) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() && entry.metadata()?.len() <= up_to {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a file to its end; its length.
fn read(path: &Path, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut file = File::open(path)?;
    let mut length = 0;
    loop {
        match file.read(&mut buffer[length..])? {
            0 => return Ok(length),
            read => length += read,
        }
    }
}
