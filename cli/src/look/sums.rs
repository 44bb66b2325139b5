//! `peelfs sha256sum`: digests of files, in the form that `sha256sum -c` checks.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::Stop;
use super::args::SumArgs;
use super::cat::PIECE;
use super::open::{self, Looked, cannot, require_file};
use super::out::{Out, json_name};
use super::walk::{Step, Walk, size_of_all};
use crate::failures::Failures;
use crate::text;
use peelfs::host::report::Report;
use peelfs::image::FsError;
use peelfs::layer::Kind;
use peelfs::offsets::FileOffset;
use peelfs::overlay::{Last, NodeAttr};

pub(crate) fn run(args: &SumArgs) -> Result<(), Report> {
    open::run(&args.image, &args.layer, async |looked| sums(args, looked).await)
}

async fn sums(args: &SumArgs, looked: Looked) -> Result<(), Stop> {
    let (mut out, mut failures) = (Out::new(), Failures::default());
    looked.meter.total_will_be(size_of_all(&looked.tree, &args.paths));
    for path in args.paths.iter().map(|path| path.as_os_str().as_bytes()) {
        let start = match looked.named("read", path, Last::Follow).await {
            Ok(start) => start,
            Err(report) => {
                failures.add(report);
                continue;
            }
        };
        if start.kind != Kind::Directory || !args.recursive {
            one(args, &looked, path, &start, &mut out, &mut failures).await?;
            continue;
        }
        let mut walk = Walk::new(&looked.tree, path, start);
        loop {
            match walk.next().await {
                Ok(Some(Step::Node(attr))) if attr.kind == Kind::File => {
                    one(args, &looked, walk.path(), &attr, &mut out, &mut failures).await?;
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => failures.add(cannot("list", walk.path(), error.into())),
            }
        }
    }
    out.flush()?;
    Ok(failures.outcome()?)
}

/// One line of `--json`.
#[derive(Serialize)]
struct JsonSum {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    sha256: String,
    size: u64,
}

async fn one(
    args: &SumArgs,
    looked: &Looked,
    path: &[u8],
    attr: &NodeAttr,
    out: &mut Out,
    failures: &mut Failures,
) -> std::io::Result<()> {
    let digest = match require_file(attr) {
        Ok(()) => digest(looked, attr).await,
        Err(error) => Err(error),
    };
    let sum = match digest {
        Ok(digest) => text::hex(&digest),
        Err(error) => {
            failures.add(cannot("read", path, error.into()));
            return Ok(());
        }
    };
    if args.json {
        let (path, path_hex) = json_name(path);
        return out.json(&JsonSum { path, path_hex, sha256: sum, size: attr.size });
    }
    if args.zero {
        write!(out, "{sum}  ")?;
        out.write_all(path)?;
        return out.write_all(b"\0");
    }
    // A leading backslash says that the name is escaped.
    let escaped = path.iter().any(|byte| matches!(byte, b'\\' | b'\n' | b'\r'));
    write!(out, "{}{sum}  ", if escaped { "\\" } else { "" })?;
    if !escaped {
        return out.line("", path);
    }
    let mut name = Vec::new();
    for byte in path {
        match byte {
            b'\\' => name.extend_from_slice(b"\\\\"),
            b'\n' => name.extend_from_slice(b"\\n"),
            b'\r' => name.extend_from_slice(b"\\r"),
            byte => name.push(*byte),
        }
    }
    out.line("", &name)
}

/// The digest of a file; the next piece is fetched while one is hashed.
async fn digest(looked: &Looked, attr: &NodeAttr) -> Result<Vec<u8>, FsError> {
    let read = |at: u64| tokio::spawn(Arc::clone(&looked.tree).read(attr.node, FileOffset(at), PIECE));
    let mut hasher = Sha256::new();
    let (mut at, mut next) = (0, (attr.size > 0).then(|| read(0)));
    while let Some(piece) = next.take() {
        let piece = piece.await.map_err(|_| FsError::Ended)??;
        at += piece.len() as u64;
        looked.meter.add(piece.len() as u64);
        if at < attr.size && !piece.is_empty() {
            next = Some(read(at));
        }
        hasher.update(&piece);
    }
    Ok(hasher.finalize().to_vec())
}
