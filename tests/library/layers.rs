//! Layers alone, stacked by the rules of overlayfs as plain as they can be written: that has to come to the merged tree. What
//! the kernel makes of them is compared in `tests/mount/layers.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use peelfs::image::tree::awaited;
use peelfs::image::{self, Eagerness, FsError, Limits, Network, OpaqueMark, SharedLayers, Tree, Verify};
use peelfs::layer::EntryId;
use peelfs::overlay::{LayerNo, NodeId};
use peelfs::platform::Platform;
use peelfs::source::BlobSource;
use peelfs::store::Store;
use support::model::{NodeKind, Seen, join};
use support::random::{self, Random, Shape};
use support::shown::{self, MemorySource};
use support::walk::{self, Compare};

use super::property::{runtime, seeds};

type Layer = BTreeMap<Vec<u8>, Seen>;

const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// What overlayfs makes of lower directories, the uppermost first; a name that it lists and does not find is `broken`.
fn stacked(layers: &[Layer]) -> (Layer, Vec<String>) {
    let (mut merged, mut broken) = (Layer::new(), Vec::new());
    let mut pending = vec![(Vec::new(), layers.iter().collect::<Vec<_>>())];
    while let Some((path, parts)) = pending.pop() {
        let mut node = parts[0][&path].node.clone();
        node.xattrs.remove(OPAQUE);
        merged.insert(path.clone(), Seen { node, names: vec![path.clone()], nlink: 1 });
        let names: BTreeSet<&[u8]> = parts.iter().flat_map(|layer| children(layer, &path)).collect();
        for name in names {
            let path_of = join(&path, name);
            let mut taking_part = Vec::new();
            for layer in &parts {
                let Some(seen) = layer.get(&path_of) else { continue };
                match &seen.node.kind {
                    NodeKind::CharDevice { major: 0, minor: 0 } => break,
                    NodeKind::Dir => taking_part.push(*layer),
                    _ if taking_part.is_empty() => {
                        taking_part.push(layer);
                        break;
                    }
                    _ => break,
                }
                if seen.node.xattrs.contains_key(OPAQUE) {
                    break;
                }
            }
            match taking_part.first() {
                Some(first) if first[&path_of].node.kind == NodeKind::Dir => pending.push((path_of, taking_part)),
                Some(first) => {
                    let node = first[&path_of].node.clone();
                    merged.insert(path_of.clone(), Seen { node, names: vec![path_of], nlink: 1 });
                }
                // A directory of one layer is listed as it is.
                None if parts.len() == 1 && !path.is_empty() => broken.push(path_of.escape_ascii().to_string()),
                None => {}
            }
        }
    }
    (merged, broken)
}

fn children<'a>(layer: &'a Layer, path: &[u8]) -> Vec<&'a [u8]> {
    let below = |name: &'a Vec<u8>| match path {
        b"" => Some(&name[..]).filter(|name| !name.is_empty()),
        _ => name.strip_prefix(path)?.strip_prefix(b"/"),
    };
    layer.keys().filter_map(below).filter(|name| !name.contains(&b'/')).collect()
}

/// All layers of an image, each alone, base first.
async fn layers(image: &peelfs_loopback::image::Image, dir: &std::path::Path) -> Vec<Arc<dyn Tree>> {
    let shared: SharedLayers = Arc::new(Store::open(&dir.join("cache"), None).unwrap()).into();
    let source = MemorySource::new(image) as Arc<dyn BlobSource>;
    let (reference, host, limits) = ("127.0.0.1:1/image:1".parse().unwrap(), Platform::host(), Limits::default());
    let plan = image::resolve(&reference, &source, shared.store(), &host, Network::Allowed).await.unwrap();
    let open = |number: usize| {
        let (layer, source) = ((LayerNo(number as u16), OpaqueMark::Trusted), Arc::clone(&source));
        let (eagerness, verify) = (Eagerness::OnDemand, Verify::BeforeShowing);
        image::open_layer(&plan, layer, source, shared.clone(), &limits, eagerness, verify) as Arc<dyn Tree>
    };
    (0..plan.layers.len()).map(open).collect()
}

fn check(seed: u64, shape: &Shape) {
    let random = random::image(seed, shape);
    let dir = tempfile::tempdir().unwrap();
    let (merged, broken) = runtime().block_on(async {
        let mut seen = Vec::new();
        for layer in layers(&random.image, dir.path()).await.into_iter().rev() {
            seen.push(shown::seen(layer, &mut Random::new(seed)).await);
        }
        stacked(&seen)
    });
    let one = |(path, seen): (Vec<u8>, Seen)| (path.clone(), Seen { names: vec![path], nlink: 1, ..seen });
    let wanted = random.tree.seen().into_iter().map(one).collect();
    let lines = walk::differences(&wanted, &merged, Compare::Exactly);
    let listing = random.listing();
    assert!(lines.is_empty() && broken.is_empty(), "seed {seed}: {broken:?}\n{}\n{listing}", lines.join("\n"));
}

#[test]
fn layers_stacked_by_rule_are_the_merged_tree() {
    let through = Shape { through_links: true, large: 5000, ..Shape::default() };
    let whiteouts = Shape { through_links: true, ..Shape::whiteouts() };
    (0..seeds(60)).for_each(|seed| check(3000 + seed, [&through, &whiteouts][seed as usize % 2]));
}

/// File handles bring numbers of nodes from anywhere, whatever was looked at before.
#[test]
fn a_layer_knows_its_nodes_by_their_numbers_and_no_others() {
    for seed in 0..seeds(20) {
        let random = random::image(3500 + seed, &Shape { through_links: true, ..Shape::whiteouts() });
        let dir = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let all = layers(&random.image, dir.path()).await;
            let unseen = layers(&random.image, &dir.path().join("unseen")).await;
            for (number, (layer, unseen)) in (0..).map(LayerNo).zip(all.into_iter().zip(unseen)) {
                let mut nodes = BTreeMap::new();
                let mut pending = vec![NodeId::ROOT];
                while let Some(dir) = pending.pop() {
                    let mut listed = Vec::new();
                    let list = |tree: &dyn Tree| {
                        listed.clear();
                        tree.list_with_attrs(dir, 0, &mut |_, attr| {
                            listed.push(*attr);
                            std::ops::ControlFlow::Continue(())
                        })
                    };
                    awaited(&*layer, list).await.unwrap();
                    pending.extend(
                        listed.iter().filter(|attr| attr.kind == peelfs::layer::Kind::Directory).map(|attr| attr.node),
                    );
                    nodes.extend(listed.into_iter().map(|attr| (attr.node, attr)));
                }
                for node in (0..200).map(|entry| NodeId::new(number, EntryId(entry))) {
                    match (awaited(&*unseen, |tree| tree.node(node)).await, nodes.get(&node)) {
                        (Ok(found), Some(attr)) => assert_eq!(found, *attr, "seed {seed}"),
                        (Err(FsError::NoSuchNode(_)), None) => {}
                        (other, listed) => {
                            panic!("seed {seed}, layer {number}: {other:?} {listed:?}\n{}", random.listing())
                        }
                    }
                }
            }
        });
    }
}
