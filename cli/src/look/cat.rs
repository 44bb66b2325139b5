//! `peelfs cat`: prints files of an image; once the layer is indexed, fetches only the spans that hold them.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use super::Stop;
use super::args::CatArgs;
use super::open::{self, Looked, cannot, require_file};
use super::out::Stdout;
use crate::failures::Failures;
use peelfs::host::report::Report;
use peelfs::offsets::FileOffset;
use peelfs::overlay::Last;

pub(crate) fn run(args: &CatArgs) -> Result<(), Report> {
    open::run(&args.image, &args.layer, async |looked| {
        let mut failures = Failures::default();
        let mut out = Stdout::new();
        for path in args.paths.iter().map(|path| path.as_os_str().as_bytes()) {
            match print(&looked, path, &mut out).await {
                Ok(()) => {}
                Err(Stop::Failed(report)) => failures.add(report),
                Err(stop) => return Err(stop),
            }
        }
        out.flush()?;
        Ok(failures.outcome()?)
    })
}

async fn print(looked: &Looked, path: &[u8], out: &mut Stdout) -> Result<(), Stop> {
    let attr = looked.named("print", path, Last::Follow).await?;
    let failed = |error: peelfs::image::FsError| cannot("print", path, error.into());
    require_file(&attr).map_err(failed)?;
    looked.meter.begin("reading files", Some(attr.size));
    let mut at = FileOffset(0);
    while at.0 < attr.size {
        let piece = Arc::clone(&looked.tree).read(attr.node, at, PIECE).await.map_err(failed)?;
        out.write_all(&piece)?;
        looked.meter.add(piece.len() as u64);
        at = at + piece.len() as u64;
    }
    Ok(())
}

/// Bytes per read; enough for neighbouring spans to share a request.
pub(crate) const PIECE: usize = 4 << 20;
