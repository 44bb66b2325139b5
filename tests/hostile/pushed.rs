//! Row 11 once more: pushed indexes that lie. They were put there by those who can write to the repository; what is shown is what the
//! layer has, in the end by a first pass, or an error.

use peelfs::codec::{LayerDecoder, Limits, OutputBuffer, StartKind, Status};
use peelfs::descriptor::{Compression, MediaType};
use peelfs::digest::Digest;
use peelfs::layer::{
    Check, IndexedLayer, LayerIndex, LayerTree, Proof, Span, TarWalker, WindowAt, WindowsBlob, write_index,
    write_without_windows,
};
use peelfs::offsets::{BlobOffset, DecodedOffset};
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, Layer, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use serde_json::{Value, json};

use super::{bounded, tried};
use support::sandbox::{Sandbox, said};

const NAME: &str = "team/app";

fn layer(text: &str) -> LayerBuilder {
    LayerBuilder::new().file("f", text.to_owned()).packing(Packing::Stored)
}

fn image(text: &str) -> Image {
    ImageBuilder::new().layer(layer(text)).build()
}

/// A registry with an image and what a machine has pushed of it.
struct Served {
    registry: Registry,
    image: Image,
    artifact: Value,
}

impl Served {
    fn new() -> Self {
        Self::of(image("right"))
    }

    fn of(image: Image) -> Self {
        let registry =
            Registry::start(Catalog::new().image(NAME, "1", &image).listing_referrers().taking_pushes()).unwrap();
        let sandbox = Sandbox::new();
        let pushed = sandbox.run(["index", "push", &registry.reference(NAME, "1")]);
        assert!(pushed.status.success(), "{}", said(&pushed));
        let told = String::from_utf8(pushed.stdout).unwrap();
        let digest = told.lines().next().unwrap().rsplit(": ").next().unwrap().to_owned();
        let artifact = serde_json::from_slice(&registry.document(NAME, &digest).unwrap()).unwrap();
        Self { registry, image, artifact }
    }

    /// The same registry afresh, with an artifact that was changed.
    fn with(&self, change: impl FnOnce(&mut Value, &Registry)) -> Registry {
        let catalog = Catalog::new().image(NAME, "1", &self.image).listing_referrers().taking_pushes();
        let registry = Registry::start(catalog).unwrap();
        for blob in self.artifact["layers"].as_array().unwrap() {
            let digest = blob["digest"].as_str().unwrap().parse().unwrap();
            registry.put_blob(NAME, self.registry.blob(NAME, &digest).unwrap());
        }
        let mut artifact = self.artifact.clone();
        change(&mut artifact, &registry);
        put(&registry, &artifact);
        registry
    }

    /// The compressed index.
    fn index(&self) -> bytes::Bytes {
        let digest: Digest = self.artifact["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
        self.registry.blob(NAME, &digest).unwrap()
    }

    fn layer(&self) -> &Layer {
        &self.image.layers()[0]
    }
}

fn put(registry: &Registry, artifact: &Value) -> Digest {
    let bytes = artifact.to_string().into();
    let digest = Digest::of(peelfs::digest::Algorithm::Sha256, artifact.to_string().as_bytes());
    registry.put_document(NAME, &digest.to_string(), MediaType::OciManifest, bytes)
}

/// Describes `index` as the index of the only layer, compressed, with its windows.
fn replace(artifact: &mut Value, registry: &Registry, index: &[u8]) {
    artifact["layers"][0]["mediaType"] = "application/vnd.peelfs.layer-index.v2+zstd".into();
    replace_blob(artifact, registry, index);
}

/// The same of the index without its windows, and of these.
fn replace_apart(artifact: &mut Value, registry: &Registry, head: &[u8], windows: &[u8]) {
    replace_blob(artifact, registry, head);
    artifact["layers"][1]["size"] = windows.len().into();
    artifact["layers"][1]["digest"] = registry.put_blob(NAME, windows.to_vec().into()).to_string().into();
}

fn replace_blob(artifact: &mut Value, registry: &Registry, index: &[u8]) {
    let packed = zstd::encode_all(index, 3).unwrap();
    artifact["layers"][0]["size"] = packed.len().into();
    artifact["layers"][0]["annotations"]["example.peelfs.size"] = index.len().to_string().into();
    artifact["layers"][0]["digest"] = registry.put_blob(NAME, packed.into()).to_string().into();
}

/// What a clean machine shows of the file, and what it says.
fn shown(registry: &Registry) -> (Option<i32>, Vec<u8>, String) {
    let sandbox = Sandbox::new();
    let args = ["cat", &registry.reference(NAME, "1"), "/f", "--index-from", "referrers"];
    let output = bounded(&sandbox, args).output().unwrap();
    assert!(sandbox.bucket("tmp").is_empty(), "nothing is left over");
    (output.status.code(), output.stdout.clone(), said(&output))
}

/// The right byte by a first pass, and a line that says why.
fn falls_back(registry: &Registry, why: &str) {
    let (code, out, told) = shown(registry);
    assert_eq!((code, &out[..]), (Some(0), &b"right"[..]), "{why}: {told}");
    assert!(told.contains(why), "{why}: {told}");
}

#[test]
fn row_11_a_pushed_index_that_cannot_be_right_is_passed_over() {
    let served = Served::new();
    let good = zstd::decode_all(&served.index()[..]).unwrap();
    let (code, out, told) = shown(&served.registry);
    assert_eq!((code, &out[..]), (Some(0), &b"right"[..]), "{told}");
    assert!(!told.contains("warning: "), "{told}");

    // Of another layer.
    let other = image("other");
    let elsewhere =
        Registry::start(Catalog::new().image(NAME, "1", &other).listing_referrers().taking_pushes()).unwrap();
    let sandbox = Sandbox::new();
    sandbox.run(["ls", &elsewhere.reference(NAME, "1")]);
    let file = sandbox.bucket("index-v2").pop().unwrap();
    let foreign = std::fs::read(file).unwrap();
    falls_back(&served.with(|artifact, registry| replace(artifact, registry, &foreign)), "it is the index of blob");
    let with = |index: Vec<u8>| served.with(|artifact, registry| replace(artifact, registry, &index));
    // Flipped bits, and cut short.
    for at in [0, 70, good.len() / 2, good.len() - 600, good.len() - 10] {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        falls_back(&with(flipped), "an index is not used");
    }
    for end in [0, 100, good.len() - 1] {
        falls_back(&with(good[..end].to_vec()), "this is not a complete layer index");
    }
    // The blob is not what the artifact says, in one way or another.
    let changed = |change: &dyn Fn(&mut Value)| served.with(|artifact, _| change(&mut artifact["layers"][0]));
    falls_back(
        &changed(&|layer| layer["annotations"]["example.peelfs.size"] = "9000000000".into()),
        "an index of this layer may have",
    );
    falls_back(&changed(&|layer| layer["size"] = 9_000_000_000u64.into()), "an index of this layer may have");
    let longer = (good.len() + 1).to_string();
    falls_back(&changed(&|layer| layer["annotations"]["example.peelfs.size"] = longer.clone().into()), "1 of ");
    let shorter = (good.len() - 1).to_string();
    falls_back(
        &changed(&|layer| layer["annotations"]["example.peelfs.size"] = shorter.clone().into()),
        "longer than it should be",
    );
    falls_back(&changed(&|layer| layer["annotations"]["example.peelfs.index.version"] = "1".into()), "has version 1");
    falls_back(&changed(&|layer| layer["annotations"]["example.peelfs.layer"] = "x".into()), "is not described by");
    let absent = format!("sha256:{}", "0".repeat(64));
    falls_back(&changed(&|layer| layer["digest"] = absent.clone().into()), "not found");
    // Bytes that change on the way, and a bomb: some KiB that are 64 MiB.
    let registry = served.with(|_, _| {});
    let digest = served.artifact["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    registry.faults().add(Rule::new(Target::Blob(digest), Fault::FlipBit { at: 9, bit: 1 }));
    falls_back(&registry, "an index is not used");
    let bomb = vec![0; 64 << 20];
    falls_back(&with(bomb), "an index is not used");
    let noise = served.with(|artifact, registry| {
        artifact["layers"][0]["digest"] = registry.put_blob(NAME, vec![7; 100].into()).to_string().into();
        artifact["layers"][0]["size"] = 100.into();
    });
    falls_back(&noise, "it cannot be decompressed");
    tried(11, 22);
}

#[test]
fn row_11_a_list_of_referrers_is_read_in_part() {
    let served = Served::new();
    // Of another image, of another kind, and a document that is none.
    for (why, change) in [
        (
            "its subject is sha256:",
            &(|artifact: &mut Value| {
                // The registry lists it all the same.
                artifact["subject"]["digest"] = format!("sha256:{}", "0".repeat(64)).into();
            }) as &dyn Fn(&mut Value),
        ),
        ("it is an artifact of type `x`", &|artifact| artifact["artifactType"] = "x".into()),
        ("it is not an image manifest", &|artifact| artifact["layers"] = 1.into()),
    ] {
        let catalog = Catalog::new().image(NAME, "1", &served.image).taking_pushes();
        let registry = Registry::start(catalog).unwrap();
        let mut artifact = served.artifact.clone();
        change(&mut artifact);
        let digest = put(&registry, &artifact);
        list(&registry, &served, &[entry(&digest, artifact.to_string().len(), "2026-01-01T00:00:00Z")]);
        falls_back(&registry, why);
    }
    // Thousands of entries: the newest few are looked at, and one of them is right.
    let registry = Registry::start(Catalog::new().image(NAME, "1", &served.image).taking_pushes()).unwrap();
    registry.put_blob(NAME, served.index());
    let right = put(&registry, &served.artifact);
    let absent = |n: usize| format!("sha256:{n:064}").parse::<Digest>().unwrap();
    let mut entries: Vec<_> = (0..5000).map(|n| entry(&absent(n), 700, "2026-01-01T00:00:00Z")).collect();
    list(&registry, &served, &entries);
    falls_back(&registry, "not found");
    let asked = registry.requests().iter().filter(|asked| asked.is_manifest()).count();
    assert!(asked < 20, "{asked} manifests");
    entries.push(entry(&right, served.artifact.to_string().len(), "2026-01-02T00:00:00Z"));
    list(&registry, &served, &entries);
    registry.clear();
    let (code, out, told) = shown(&registry);
    assert_eq!((code, &out[..]), (Some(0), &b"right"[..]), "{told}");
    let asked = registry.requests().into_iter().filter(|asked| asked.is_manifest() && asked.request.method == "GET");
    assert!(asked.count() <= 4, "the newest is right, and no other is looked at");
    // Pages that lead to each other.
    let registry = served.with(|artifact, _| artifact["layers"] = json!([]));
    let link = format!("</v2/{NAME}/referrers/{}?last=1>; rel=\"next\"", served.image.root().digest);
    let listing = || Target::matching(|request| request.path.contains("/referrers/"));
    registry
        .faults()
        .add(Rule::new(listing(), Fault::Header("Link".to_owned(), link.replace("=1", "=2"))).skip(1).times(1));
    registry.faults().add(Rule::new(listing(), Fault::Header("Link".to_owned(), link)).skip(2));
    let (code, out, told) = shown(&registry);
    assert_eq!((code, &out[..]), (Some(0), &b"right"[..]), "{told}");
    let pages = registry.requests().iter().filter(|asked| asked.request.path.contains("/referrers/")).count();
    assert!(pages <= 8, "{pages} pages");
    // A list without an end.
    let registry = served.with(|_, _| {});
    registry.faults().add(Rule::new(listing(), Fault::Endless));
    let (code, out, told) = shown(&registry);
    assert_eq!((code, &out[..]), (Some(0), &b"right"[..]), "{told}");
    tried(11, 6);
}

fn entry(digest: &Digest, size: usize, created: &str) -> Value {
    json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": size,
        "artifactType": "application/vnd.peelfs.index.v1", "annotations": { "org.opencontainers.image.created": created },
    })
}

/// Writes the list under the tag of a registry that keeps none itself.
fn list(registry: &Registry, served: &Served, entries: &[Value]) {
    let index = json!({ "schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": entries });
    let tag = format!("sha256-{}", served.image.root().digest.hex());
    registry.put_document(NAME, &tag, MediaType::OciIndex, index.to_string().into());
}

/// An index of `layer` with the tree of `instead`, and digests of its spans of `digested`; all checksums hold.
fn forged(layer: &Layer, instead: &Layer, digested: &[u8]) -> Vec<u8> {
    let (mut tree, mut walker) = (LayerTree::new(peelfs::layer::Limits::default()), TarWalker::new());
    walker.push(&instead.tar, &mut tree).unwrap();
    walker.finish().unwrap();
    let decoded_size = layer.tar.len() as u64;
    let span = Span {
        decoded: DecodedOffset(0)..DecodedOffset(decoded_size),
        blob: BlobOffset(0),
        bit: 0,
        kind: StartKind::Stored,
        check: Check::blake3(digested),
        window: None,
    };
    let (blob, diff_id) = (layer.digest.clone(), layer.diff_id.clone());
    let of = IndexedLayer { blob, blob_size: layer.blob.len() as u64, diff_id, decoded_size };
    let mut index = Vec::new();
    write_index(&tree, &[span], &[], &of, &Proof::Built, &mut index).unwrap();
    index
}

#[test]
fn row_11_a_pushed_index_that_contradicts_the_layer_is_given_up() {
    let served = Served::new();
    let (layer, other) = (served.layer(), image("wrong"));
    // Right names, and wrong digests: the layer is read, and the same is shown.
    let lie = forged(layer, layer, b"something else");
    let registry = served.with(|artifact, registry| replace(artifact, registry, &lie));
    falls_back(&registry, "is wrong about its layer");
    // Digests of other bytes than the layer has: never these bytes.
    let other = &other.layers()[0];
    let lie = forged(layer, other, &other.tar);
    let registry = served.with(|artifact, registry| replace(artifact, registry, &lie));
    let (code, out, told) = shown(&registry);
    assert!(out.is_empty() || out == b"right", "{code:?} {told}");
    assert!(told.contains("is wrong about its layer"), "{told}");
    // What was fetched by a lie is nothing to a mount that does not trust it.
    let sandbox = Sandbox::new();
    sandbox.run(["cat", &registry.reference(NAME, "1"), "/f", "--index-from", "referrers"]);
    let plain = sandbox.run(["cat", &registry.reference(NAME, "1"), "/f"]);
    assert_eq!(plain.stdout, b"right", "{}", said(&plain));
    tried(11, 3);
}

/// Changes a checkpoint as it is stored.
type Change = fn(&mut Vec<u8>);

/// An index of a layer that is one deflate block, whose spans have the right digests, and `change` what stands for the window
/// of each start inside the block, before it is compressed.
fn with_windows(layer: &Layer, change: Change) -> Vec<u8> {
    let mut decoder = LayerDecoder::first_pass(Compression::Gzip, Limits::default()).unwrap();
    let mut out = OutputBuffer::new(layer.tar.len() + 1);
    assert_eq!(decoder.decode(&mut &layer.blob[..], &mut out), Ok(Status::NeedInput));
    let (marks, found) = (decoder.take_marks(), decoder.take_windows());
    let (mut windows, mut places) = (Vec::new(), vec![None; marks.len()]);
    for (number, window) in found {
        assert_eq!(marks[number].kind, StartKind::InsideBlock);
        let mut bytes = zstd::bulk::decompress(&window.to_bytes(), 1 << 20).unwrap();
        change(&mut bytes);
        let packed = zstd::bulk::compress(&bytes, 3).unwrap();
        places[number] = Some(WindowAt { start: windows.len() as u64, len: packed.len().try_into().unwrap() });
        windows.extend(packed);
    }
    assert!(places.len() > 2, "{marks:?}");
    let ends = marks[1..].iter().map(|mark| mark.decoded).chain([DecodedOffset(layer.tar.len() as u64)]);
    let spans: Vec<Span> = marks
        .iter()
        .zip(ends)
        .zip(places)
        .map(|((mark, end), window)| Span {
            decoded: mark.decoded..end,
            blob: mark.blob,
            bit: mark.bit,
            kind: mark.kind,
            check: Check::blake3(&layer.tar[mark.decoded.0 as usize..end.0 as usize]),
            window,
        })
        .collect();
    let (mut tree, mut walker) = (LayerTree::new(peelfs::layer::Limits::default()), TarWalker::new());
    walker.push(&layer.tar, &mut tree).unwrap();
    walker.finish().unwrap();
    let (blob, diff_id) = (layer.digest.clone(), layer.diff_id.clone());
    let of = IndexedLayer { blob, blob_size: layer.blob.len() as u64, diff_id, decoded_size: layer.tar.len() as u64 };
    let mut index = Vec::new();
    write_index(&tree, &spans, &windows, &of, &Proof::Built, &mut index).unwrap();
    index
}

/// An image whose file needs a window.
fn one_block() -> Served {
    let text: String = (0..200_000_u32).map(|n| format!("{:x} ", n.wrapping_mul(0x9e37_79b9) >> 9)).collect();
    let layer = LayerBuilder::new().file("before", text).file("f", "right").packing(Packing::OneBlock);
    Served::of(ImageBuilder::new().layer(layer).build())
}

/// An index without its windows, in which `said` changes what it says of their blob, and the windows.
fn taken_apart(index: Vec<u8>, said: impl FnOnce(&mut WindowsBlob)) -> (Vec<u8>, Vec<u8>) {
    let index = LayerIndex::open(index).unwrap();
    let (mut windows, mut head) = (Vec::new(), Vec::new());
    index.copy_windows(&mut windows).unwrap();
    let digest = Digest::of(peelfs::digest::Algorithm::Sha256, &windows);
    let mut blob = WindowsBlob { digest, size: windows.len() as u64 };
    said(&mut blob);
    write_without_windows(&index, &blob, &mut head).unwrap();
    (head, windows)
}

#[test]
fn row_11_windows_that_are_withheld_end_the_use_of_an_index() {
    let served = one_block();
    let windows: Digest = served.artifact["layers"][1]["digest"].as_str().unwrap().parse().unwrap();
    let (code, out, told) = shown(&served.registry);
    assert_eq!((code, &out[..]), (Some(0), &b"right"[..]), "{told}");
    assert!(!told.contains("warning: "), "{told}");

    let size = served.artifact["layers"][1]["size"].as_u64().unwrap();
    let bytes = served.registry.blob(NAME, &windows).unwrap();
    let gate = Gate::new();
    let why = "windows of an index that was not made here cannot be fetched";
    let other = |bytes: &[u8]| Fault::OtherBytes(bytes.to_vec().into());
    for (name, fault) in [
        ("404", Fault::status(404)),
        ("403", Fault::status(403)),
        ("500", Fault::status(500)),
        ("a part", Fault::Truncate { after: 3 }),
        ("short", other(&bytes[1..])),
        ("long", other(&[&bytes[..], b"more"].concat())),
        ("other bytes", other(&vec![7; bytes.len()])),
        ("a flipped bit", Fault::FlipBit { at: size - 9, bit: 1 }),
        ("a stall", Fault::Stall { after: 0, gate: gate.clone() }),
        ("no answer", Fault::Hang(gate.clone())),
        ("a reset", Fault::ResetBeforeHeaders),
    ] {
        let registry = served.with(|_, _| {});
        registry.faults().add(Rule::new(Target::Blob(windows.clone()), fault));
        let sandbox = Sandbox::new();
        let args =
            ["cat", &registry.reference(NAME, "1"), "/f", "--index-from", "referrers", "--on-outage", "deadline=1"];
        let output = bounded(&sandbox, args).output().unwrap();
        let told = said(&output);
        assert_eq!(output.stdout, b"right", "{name}: {told}");
        assert_eq!(told.matches(why).count(), 1, "{name}: {told}");
        assert!(sandbox.bucket("tmp").is_empty(), "nothing is left over");
    }
    gate.open();
    tried(11, 11);
}

#[test]
fn row_11_windows_that_cannot_be_right_are_passed_over() {
    let served = one_block();
    let good = with_windows(served.layer(), |_| {});
    let (head, windows) = taken_apart(good.clone(), |_| {});
    let (code, out, told) =
        shown(&served.with(|artifact, registry| replace_apart(artifact, registry, &head, &windows)));
    assert_eq!((code, &out[..]), (Some(0), &b"right"[..]), "{told}");
    assert!(!told.contains("warning: "), "{told}");

    // Those of another index, and one that hides that they are missing.
    let other = "it is the index of other windows than its artifact has";
    falls_back(&served.with(|artifact, registry| replace_apart(artifact, registry, &head, &windows[1..])), other);
    let size = |size: u64| taken_apart(good.clone(), |blob| blob.size = size).0;
    let short = size(windows.len() as u64 - 1);
    falls_back(&served.with(|artifact, registry| replace_apart(artifact, registry, &short, &windows)), other);
    falls_back(&served.with(|artifact, registry| replace_blob(artifact, registry, &good)), other);
    falls_back(&served.with(|artifact, registry| replace(artifact, registry, &head)), other);
    // Beyond their blob, and more than can be.
    let claiming = |size: u64| {
        let head = taken_apart(good.clone(), |blob| blob.size = size).0;
        served.with(|artifact, registry| {
            replace_apart(artifact, registry, &head, &windows);
            artifact["layers"][1]["size"] = size.into();
        })
    };
    falls_back(&claiming(windows.len() as u64 - 1), "a window lies outside");
    falls_back(&claiming(0), "a window lies outside");
    falls_back(&claiming(u64::MAX), "an index of this layer may have");
    // What is said of them is not true of the blob.
    falls_back(&claiming(windows.len() as u64 + 1), "cannot be fetched");
    falls_back(&claiming(60 << 20), "cannot be fetched");
    // The artifact has none.
    let none = served.with(|artifact, _| drop(artifact["layers"].as_array_mut().unwrap().remove(1)));
    falls_back(&none, "it has no windows of layer");
    falls_back(&served.with(|artifact, _| artifact["layers"][1]["annotations"] = json!({})), "is not described by");
    // A file of a user is no place for such an index.
    let sandbox = Sandbox::new();
    let file = sandbox.path().join("indexes");
    let name = served.layer().digest.to_string();
    let length = (head.len() as u64).to_le_bytes();
    let export = [&b"PEELIDXS\x01\0\0\0\x01\0\0\0"[..], &[name.len() as u8], name.as_bytes(), &length, &head].concat();
    std::fs::write(&file, export).unwrap();
    let imported = sandbox.run(["index", "import", file.to_str().unwrap()]);
    assert!(said(&imported).contains("its windows are in a blob of their own"), "{}", said(&imported));
    tried(11, 12);
}

/// The index is the liar, and not the registry: what the windows should be is what they are.
#[test]
fn row_11_windows_that_lie_are_given_up() {
    let served = one_block();
    let lies: [(&str, Change); 4] = [
        ("no state", Vec::clear),
        ("an unknown kind", |state| state[0] = 7),
        ("lengths that make no code", |state| state[3..40].fill(0x11)),
        ("the fixed codes", |state| drop(state.splice(..3 + 158, [1 | 4]))),
    ];
    for (why, lie) in lies {
        let (head, windows) = taken_apart(with_windows(served.layer(), lie), |_| {});
        let registry = served.with(|artifact, registry| replace_apart(artifact, registry, &head, &windows));
        let (code, out, told) = shown(&registry);
        assert_eq!((code, &out[..]), (Some(0), &b"right"[..]), "{why}: {told}");
        assert_eq!(told.matches("is wrong about its layer").count(), 1, "{why}: {told}");
        assert_eq!(told.matches("warning: ").count(), 1, "{why}: {told}");
    }
    tried(11, 4);
}

#[test]
fn row_11_a_start_inside_a_block_that_lies_is_given_up() {
    let served = one_block();
    let with = |change: Change| {
        let index = with_windows(served.layer(), change);
        served.with(|artifact, registry| replace(artifact, registry, &index))
    };
    let (code, out, told) = shown(&with(|_| {}));
    assert_eq!((code, &out[..]), (Some(0), &b"right"[..]), "{told}");
    assert!(!told.contains("warning: "), "{told}");
    // The state's first byte is the kind of the block; behind the numbers of codes are two lengths a byte.
    let lies: [(&str, Change); 8] = [
        ("no state", Vec::clear),
        ("an unknown kind", |state| state[0] = 7),
        ("too many codes", |state| state[1] = 30),
        ("a state cut short", |state| state.truncate(100)),
        ("lengths that make no code", |state| state[3..40].fill(0x11)),
        ("a block that cannot end", |state| state[3 + 128] &= 0xf0),
        ("the fixed codes", |state| drop(state.splice(..3 + 158, [1 | 4]))),
        ("another window", |state| state[3 + 158..].iter_mut().for_each(|byte| *byte ^= 1)),
    ];
    for (why, lie) in lies {
        let (code, out, told) = shown(&with(lie));
        assert_eq!((code, &out[..]), (Some(0), &b"right"[..]), "{why}: {told}");
        // A window may have no byte that counts for a file.
        assert!(told.contains("is wrong about its layer") || why == "another window", "{why}: {told}");
    }
    tried(11, 8);
}
