//! How long a snapshotter takes for requests, asked as containerd asks them: medians in milliseconds, a line each.
//!
//!     cargo run --release -p peelfs-bench-tools --bin snapshot_requests -- SOCKET
//!
//! The snapshotter has to be new: it belongs to this process then. The image of the lazy layers comes from a registry that
//! this process serves.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::ensure;
use clap::Parser;
use peelfs::digest::{Algorithm, Digest};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_snapshotter::proto::containerd::services::snapshots::v1 as api;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// Times requests to a snapshotter.
#[derive(Parser)]
struct Args {
    /// Lazy layers
    #[arg(long, default_value_t = 40)]
    layers: usize,
    /// Snapshots that are prepared, committed, and listed
    #[arg(long, default_value_t = 1000)]
    snapshots: usize,
    /// The snapshotter's socket
    socket: PathBuf,
}

type Client = api::snapshots_client::SnapshotsClient<Channel>;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let image = (0..args.layers)
        .fold(ImageBuilder::new(), |image, layer| image.layer(LayerBuilder::new().file(&layer.to_string(), "x")))
        .build();
    let registry = Registry::start(Catalog::new().image("app", "1", &image))?;
    let reference = registry.reference("app", "1");
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", args.socket.display()))?;
        let mut client = Client::new(endpoint.connect().await?);
        lazy_layers(&mut client, &image, &reference).await?;
        ordinary(&mut client, args.snapshots).await
    })
}

/// A layer of an image that is mounted: the image is looked at for the first one.
async fn lazy_layers(client: &mut Client, image: &Image, reference: &str) -> anyhow::Result<()> {
    let mut parent = String::new();
    let mut taken = Vec::new();
    for layer in image.layers() {
        let diff_id = &layer.diff_id;
        let chain = match parent.as_str() {
            "" => diff_id.clone(),
            below => Digest::of(Algorithm::Sha256, format!("{below} {diff_id}").as_bytes()),
        };
        let labels = [("snapshot.ref", chain.to_string()), ("snapshot/cri.image-ref", reference.to_owned())];
        let labels = labels.map(|(name, value)| (format!("containerd.io/{name}"), value));
        let key = format!("n/1/extract {chain}");
        let request = api::PrepareSnapshotRequest { key, parent, labels: HashMap::from(labels), ..Default::default() };
        let begun = Instant::now();
        let answer = client.prepare(request).await;
        taken.push(begun.elapsed().as_secs_f64());
        ensure!(answer.is_err_and(|status| status.code() == Code::AlreadyExists), "a layer is not mounted");
        parent = chain.to_string();
    }
    taken.remove(0);
    tell("Prepare of a further lazy layer", taken);
    Ok(())
}

/// Layers that are unpacked.
async fn ordinary(client: &mut Client, count: usize) -> anyhow::Result<()> {
    let (mut prepared, mut committed, mut listed) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..count {
        let key = format!("k{number}");
        let begun = Instant::now();
        client.prepare(api::PrepareSnapshotRequest { key: key.clone(), ..Default::default() }).await?;
        prepared.push(begun.elapsed().as_secs_f64());
        let request = api::CommitSnapshotRequest { name: format!("sha256:{number}"), key, ..Default::default() };
        let begun = Instant::now();
        client.commit(request).await?;
        committed.push(begun.elapsed().as_secs_f64());
    }
    for _ in 0..20 {
        let begun = Instant::now();
        let mut pages = client.list(api::ListSnapshotsRequest::default()).await?.into_inner();
        let mut found = 0;
        while let Some(page) = pages.message().await? {
            found += page.info.len();
        }
        listed.push(begun.elapsed().as_secs_f64());
        ensure!(found >= count, "{found} of {count} snapshots are listed");
    }
    tell("Prepare", prepared);
    tell("Commit", committed);
    tell(&format!("List of {count}"), listed);
    Ok(())
}

fn tell(what: &str, mut taken: Vec<f64>) {
    taken.sort_by(f64::total_cmp);
    println!("{what}\t{:.3}", 1e3 * taken[taken.len() / 2]);
}
