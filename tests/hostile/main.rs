//! Hostile images, registries and neighbours, one row of the attack table (SECURITY.md) after
//! the other: the test that holds row 7 has `row_07` in its name, and prints how many inputs it tried.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod artifacts;
mod documents;
mod forged;
mod layers;
mod machine;
mod network;
mod pushed;
mod signatures;
mod soci;
mod tables;
mod verification;

use std::ffi::OsStr;
use std::process::{Command, Output};
use std::sync::Arc;

use peelfs::image::{self, Eagerness, ImageFs, Limits, Network, Verify, chain};
use peelfs::platform::Platform;
use peelfs::source::BlobSource;
use peelfs::store::Store;
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use support::model::NodeKind;
use support::random::Random;
use support::sandbox::{Sandbox, said};
use support::shown::{self, MemorySource};

const NAME: &str = "library/image";

/// Says how many inputs a row was tried with.
fn tried(row: u32, inputs: usize) {
    eprintln!("row {row:02}: {inputs} inputs");
}

fn image(layers: impl IntoIterator<Item = LayerBuilder>) -> Image {
    layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer).build()
}

/// What the layers show, a line a name (`d/`, `f=content`, `s->target`, `p|`, `c:1,3`), or the one error.
fn look(layers: impl IntoIterator<Item = LayerBuilder>) -> Result<Vec<String>, String> {
    look_within(&Limits::default(), layers)
}

fn look_within(limits: &Limits, layers: impl IntoIterator<Item = LayerBuilder>) -> Result<Vec<String>, String> {
    let source = MemorySource::new(&image(layers));
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
    runtime().block_on(async {
        let fs = open(&(source as Arc<dyn BlobSource>), &store, limits, Verify::BeforeShowing).await?;
        fs.all_known().await.map_err(|error| chain(&error))?;
        Ok(lines(&fs).await)
    })
}

/// Reads all layers, and shows nothing of them.
fn all_known(image: &Image) -> Result<(), String> {
    let source = MemorySource::new(image);
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
    runtime().block_on(async {
        let fs = open(&(source as Arc<dyn BlobSource>), &store, &Limits::default(), Verify::BeforeShowing).await?;
        fs.all_known().await.map_err(|error| chain(&error))
    })
}

/// Opens the image of a source; its layers are still to be read.
async fn open(
    source: &Arc<dyn BlobSource>,
    store: &Arc<Store>,
    limits: &Limits,
    verify: Verify,
) -> Result<Arc<ImageFs>, String> {
    let reference = "127.0.0.1:1/image:1".parse().unwrap();
    let plan = image::resolve(&reference, source, store, &Platform::host(), Network::Allowed).await;
    let plan = plan.map_err(|error| chain(&error))?;
    Ok(image::open(&plan, Arc::clone(source), Arc::clone(store), limits, Eagerness::OnDemand, verify))
}

async fn lines(fs: &Arc<ImageFs>) -> Vec<String> {
    let line = |(path, seen): (Vec<u8>, support::model::Seen)| {
        let path = path.escape_ascii();
        match seen.node.kind {
            NodeKind::File(content) => format!("{path}={}", content[..content.len().min(32)].escape_ascii()),
            NodeKind::Dir => format!("{path}/"),
            NodeKind::Symlink(target) => format!("{path}->{}", target.escape_ascii()),
            NodeKind::Fifo => format!("{path}|"),
            NodeKind::CharDevice { major, minor } => format!("{path}:c{major},{minor}"),
            NodeKind::BlockDevice { major, minor } => format!("{path}:b{major},{minor}"),
        }
    };
    shown::seen(fs.clone(), &mut Random::new(1)).await.into_iter().skip(1).map(line).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn served(image: &Image) -> Registry {
    Registry::start(Catalog::new().image(NAME, "1", image)).unwrap()
}

/// A command line of peelfs that may have 256 MiB of memory: one that asks for more is ended by it.
fn bounded(sandbox: &Sandbox, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let wanted = sandbox.peelfs(args);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -d 262144 && exec \"$0\" \"$@\""]).arg(wanted.get_program()).args(wanted.get_args());
    command.env_clear();
    for (name, value) in wanted.get_envs() {
        value.map(|value| command.env(name, value));
    }
    command
}

/// One error, on one line, with this exit code; returns it.
fn refused(output: &Output, code: i32, what: &str) -> String {
    assert_eq!(output.status.code(), Some(code), "{what}: {}", said(output));
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    let errors = told.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{what}: {}: {}", output.status, said(output));
    assert!(output.stdout.is_empty(), "{what}: {}", said(output));
    told
}
