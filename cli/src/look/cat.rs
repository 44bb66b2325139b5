//! `peelfs cat`: prints files of an image; once the layer is indexed, fetches only the spans that hold them.

use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use super::args::CatArgs;
use super::{specs, text};
use peelfs::host::report::Report;
use peelfs::host::{open, process};
use peelfs::image::{Eagerness, FsError, Tree, Verify, tree};
use peelfs::layer::Kind;
use peelfs::offsets::FileOffset;
use peelfs::overlay::Last;

pub(super) fn run(args: &CatArgs) -> Result<(), Report> {
    process::runtime(process::Purpose::Reading)?.block_on(async {
        let opened = open::open_alone(&specs::image_or_layer(&args.image, &args.layer)?).await?;
        let tree = opened.shown(Eagerness::OnDemand, Verify::BeforeShowing).tree();
        let mut out = io::stdout().lock();
        let mut failed = None;
        for path in &args.paths {
            match print(&tree, path.as_os_str().as_bytes(), &mut out).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return text::output_ended(&error),
                Err(error) => {
                    let report = Report::from(error);
                    let message = format!("cannot print `{}`: {}", path.display(), report.message);
                    failed = failed.or(Some(Report { message, ..report }));
                }
            }
        }
        match out.flush() {
            Ok(()) => failed.map_or(Ok(()), Err),
            Err(error) => text::output_ended(&error),
        }
    })
}

/// Prints one file; the inner result is the output's.
async fn print(tree: &Arc<dyn Tree>, path: &[u8], out: &mut io::StdoutLock<'_>) -> Result<io::Result<()>, FsError> {
    let attr = tree::walk(&**tree, path, Last::Follow).await?;
    match attr.kind {
        Kind::File => {}
        Kind::Directory => return Err(FsError::IsADirectory),
        _ => return Err(FsError::NotAFile),
    }
    let mut at = FileOffset(0);
    while at.0 < attr.size {
        let piece = Arc::clone(tree).read(attr.node, at, PIECE).await?;
        if let Err(error) = out.write_all(&piece) {
            return Ok(Err(error));
        }
        at = at + piece.len() as u64;
    }
    Ok(Ok(()))
}

/// Bytes per read; enough for neighbouring spans to share a request.
pub(super) const PIECE: usize = 4 << 20;
