//! Archives: a tar of an image layout, and the tar that `docker save` writes. Both are read in place, or
//! [spooled](super::spool) if they are compressed or come from a pipe.
//!
//! A `docker save` tar has no manifest: its `manifest.json` names a configuration and layers by path. This module
//! builds a manifest for it, so that all later code sees one kind of image. A layer's digest is taken from its path
//! (`blobs/ALGORITHM/HEX`), or, for an uncompressed layer, from the configuration's diff_id, which is the same digest.
//! Both are verified when the layer is read. Only a compressed layer whose path has no digest is hashed here.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;

use super::layout::{Files, open_files};
use super::local::{Blobs, LocalSource, Piece, listed, unusable};
use super::spool::{Spool, shown};
use super::tarfile::TarFile;
use super::{CONFIG_LIMIT, MANIFEST_LIMIT, SourceError};
use crate::descriptor::{Compression, Descriptor, MediaType};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::documents::{ImageConfig, LAYERS_LIMIT};
use crate::reference::{LocalName, Pick, RegistryName, STANDARD_INPUT};

/// Opens a tar of an image layout.
///
/// # Errors
/// [`SourceError`] if it cannot be read, or lacks the image that `local` names.
pub(super) fn open_oci(name: String, local: &LocalName, spool: &Spool) -> Result<LocalSource, SourceError> {
    let reading = local.reading(|path| path.symlink_metadata().is_ok());
    let tar = tar_at(&name, &reading.path, spool)?;
    open_files(name, &reading.pick, local.digest(), tar)
}

impl Files for TarFile {
    fn find(&self, name: &str) -> Result<Option<Piece>, SourceError> {
        Ok(Self::find(self, name))
    }

    fn no_layout_hint(&self) -> Option<String> {
        self.has("manifest.json").then(|| other_kind("docker-archive", self))
    }
}

/// Opens a tar that `docker save` wrote.
///
/// # Errors
/// [`SourceError`] if it cannot be read, or lacks the image that `local` names.
pub(super) fn open_docker(name: String, local: &LocalName, spool: &Spool) -> Result<LocalSource, SourceError> {
    let reading = local.reading(|path| path.symlink_metadata().is_ok());
    let tar = tar_at(&name, &reading.path, spool)?;
    // A pipe cannot be read again by another name.
    if is_piped(&reading.path) && !tar.has("manifest.json") && tar.has("oci-layout") {
        return open_files(name, &reading.pick, None, tar);
    }
    open_saved(name, &tar, &reading.pick)
}

/// The archive of the image called `name`.
fn tar_at(name: &str, path: &Path, spool: &Spool) -> Result<TarFile, SourceError> {
    TarFile::read(spool.archive(path, &shown(path, name))?)
}

/// A hint to read this archive as one of the other kind.
fn other_kind(transport: &str, tar: &TarFile) -> String {
    match tar.path() {
        STANDARD_INPUT => "`-` reads archives of either kind".to_owned(),
        path => format!("try `{transport}:{path}`"),
    }
}

/// Whether this is a descriptor of the process, behind which a pipe is or was.
fn is_piped(path: &Path) -> bool {
    path == Path::new("/dev/stdin") || path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd")
}

/// Opens a tar that `docker save` wrote.
///
/// # Errors
/// [`SourceError`] if it lacks the image that `pick` names.
pub(super) fn open_saved(name: String, tar: &TarFile, pick: &Pick) -> Result<LocalSource, SourceError> {
    let Some(list) = tar.find("manifest.json") else {
        let hint = tar.has("oci-layout").then(|| other_kind("oci-archive", tar));
        return Err(SourceError::Unsupported { place: name, why: "it has no `manifest.json`".to_owned(), hint });
    };
    let list = list.read_whole(MANIFEST_LIMIT)?;
    let images: Vec<Saved> = serde_json::from_slice(&list).map_err(|cause| {
        let why: String = cause.to_string().chars().take(200).flat_map(char::escape_debug).collect();
        SourceError::Unsupported {
            place: name.clone(),
            why: format!("its `manifest.json` is malformed: {why}"),
            hint: None,
        }
    })?;
    let image = choose(&name, &images, pick)?;
    let mut blobs = HashMap::new();
    let manifest = manifest_of(&name, tar, image, &mut blobs)?;
    let root = Descriptor::new(MediaType::OciManifest, Digest::of(Algorithm::Sha256, &manifest), manifest.len() as u64);
    Ok(LocalSource::new(name, root, Some(manifest), DockerBlobs(blobs)))
}

/// One image of `manifest.json` (moby, image/spec/v1.2.md, "Combined Image JSON + Filesystem Changeset Format").
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl<'de> serde::Deserialize<'de> for Saved {
    /// Keys may be in any case: docker and podman follow Go's rule, and containerify writes `config`. A key that occurs
    /// in two cases would be ambiguous and is refused.
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(SavedKeys)
    }
}

struct SavedKeys;

impl<'de> serde::de::Visitor<'de> for SavedKeys {
    type Value = Saved;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Saved, A::Error> {
        use serde::de::Error as _;

        let (mut config, mut repo_tags, mut layers) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.to_ascii_lowercase().as_str() {
                "config" if config.is_none() => config = Some(map.next_value()?),
                "repotags" if repo_tags.is_none() => repo_tags = Some(map.next_value()?),
                "layers" if layers.is_none() => layers = Some(map.next_value()?),
                "config" | "repotags" | "layers" => {
                    return Err(A::Error::custom(format!("`{}` is given twice", key.escape_debug())));
                }
                _ => drop(map.next_value::<serde::de::IgnoredAny>()?),
            }
        }
        let config = config.ok_or_else(|| A::Error::missing_field("Config"))?;
        Ok(Saved { config, repo_tags: repo_tags.flatten(), layers: layers.flatten() })
    }
}

impl Saved {
    fn tags(&self) -> impl Iterator<Item = &str> {
        self.repo_tags.iter().flatten().map(String::as_str)
    }
}

fn choose<'a>(name: &str, images: &'a [Saved], pick: &Pick) -> Result<&'a Saved, SourceError> {
    let tags = listed(images.iter().flat_map(Saved::tags));
    let said = match images.len() {
        0 => "it has no image".to_owned(),
        _ if tags.is_empty() => "no image in it has a name".to_owned(),
        _ => format!("it has {tags}"),
    };
    let missing = |what| SourceError::NotFound { what, place: name.to_owned(), said: Some(said.clone()), hint: None };
    match pick {
        Pick::Position(at) => images.get(*at).ok_or_else(|| missing(format!("image @{at}"))),
        Pick::Named(wanted) => {
            let full = wanted.parse::<RegistryName>().ok();
            let fits = |tag: &str| tag == wanted || (full.is_some() && tag.parse::<RegistryName>().ok() == full);
            images.iter().find(|image| image.tags().any(fits)).ok_or_else(|| missing(format!("image `{wanted}`")))
        }
        Pick::Only => match images {
            [image] => Ok(image),
            [] => Err(missing("an image".to_owned())),
            _ => Err(SourceError::Unsupported {
                place: name.to_owned(),
                why: format!("it holds {} images; {said}", images.len()),
                hint: Some("add the name of one after `:`, or its position, as in `:@0`".to_owned()),
            }),
        },
    }
}

/// Builds the manifest that the archive lacks, and records where its blobs lie.
fn manifest_of(
    name: &str,
    tar: &TarFile,
    image: &Saved,
    blobs: &mut HashMap<Digest, Piece>,
) -> Result<Bytes, SourceError> {
    let find = |path: &str| {
        let what = format!("file `{}`", path.chars().take(128).flat_map(char::escape_debug).collect::<String>());
        tar.find(path).ok_or(SourceError::NotFound { what, place: name.to_owned(), said: None, hint: None })
    };
    let layers = image.layers.as_deref().unwrap_or_default();
    if layers.len() > LAYERS_LIMIT {
        let why = format!("it has {} layers; at most {LAYERS_LIMIT} are read", layers.len());
        return Err(SourceError::Unsupported { place: name.to_owned(), why, hint: None });
    }
    let piece = find(&image.config)?;
    let bytes = piece.read_whole(CONFIG_LIMIT)?;
    let config = ImageConfig::parse(&bytes, layers.len()).map_err(|error| unusable(name, "configuration", &error))?;
    let config_digest = Digest::of(Algorithm::Sha256, &bytes);
    let config_entry = entry("application/vnd.oci.image.config.v1+json", &config_digest, piece.len());
    blobs.insert(config_digest, piece);

    let mut entries = Vec::with_capacity(layers.len());
    for (path, diff_id) in layers.iter().zip(&config.diff_ids) {
        let piece = find(path)?;
        let compression = sniff(&piece)?;
        let digest = match (compression, digest_in(path)) {
            (_, Some(digest)) => digest,
            (Compression::Stored, None) => diff_id.clone(),
            (Compression::Gzip | Compression::Zstd, None) => hash(&piece)?,
        };
        let media_type = match compression {
            Compression::Stored => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        entries.push(entry(media_type, &digest, piece.len()));
        blobs.insert(digest, piece);
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OciManifest.as_str(),
        "config": config_entry,
        "layers": entries,
    });
    Ok(manifest.to_string().into())
}

fn entry(media_type: &str, digest: &Digest, size: u64) -> serde_json::Value {
    serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size })
}

fn sniff(piece: &Piece) -> Result<Compression, SourceError> {
    let mut magic = [0; 4];
    let seen = usize::try_from(piece.len().min(4)).expect("at most 4");
    piece.read_at(0, &mut magic[..seen])?;
    Ok(match magic {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd] => Compression::Zstd,
        // A zstd stream may begin with a skippable frame (RFC 8878, 3.1.2).
        [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Compression::Zstd,
        _ => Compression::Stored,
    })
}

/// The digest in a path of the form `blobs/ALGORITHM/HEX`.
fn digest_in(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.trim_start_matches("./").strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

fn hash(piece: &Piece) -> Result<Digest, SourceError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    while at < piece.len() {
        let len = usize::try_from((piece.len() - at).min(buffer.len() as u64)).expect("at most the buffer");
        piece.read_at(at, &mut buffer[..len])?;
        hasher.update(&buffer[..len]);
        at += len as u64;
    }
    Ok(hasher.finish())
}

struct DockerBlobs(HashMap<Digest, Piece>);

impl Blobs for DockerBlobs {
    fn open(&self, blob: &Descriptor) -> Result<Option<Piece>, SourceError> {
        Ok(self.0.get(&blob.digest).cloned())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use super::super::BlobSource;
    use super::super::local::made::{Layout, config, layers, open, told};
    use super::*;

    struct Archive(tar::Builder<Vec<u8>>);

    impl Archive {
        fn new() -> Self {
            Self(tar::Builder::new(Vec::new()))
        }

        fn file(mut self, name: &str, bytes: &[u8]) -> Self {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            self.0.append_data(&mut header, name, bytes).unwrap();
            self
        }

        fn link(mut self, kind: tar::EntryType, name: &str, target: &str) -> Self {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            self.0.append_link(&mut header, name, target).unwrap();
            self
        }

        fn saved(self, list: serde_json::Value) -> Self {
            self.file("manifest.json", list.to_string().as_bytes())
        }

        fn write(self, dir: &Path) -> PathBuf {
            let path = dir.join("image.tar");
            std::fs::write(&path, self.0.into_inner().unwrap()).unwrap();
            path
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[tokio::test]
    async fn a_layout_in_a_tar_is_read_like_a_layout() {
        let mut layout = Layout::new();
        layout.image(b"one", Some("v1"));
        let two = layout.image(b"two", Some("v2"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a:b.tar");
        let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
        tar.append_dir_all(".", layout.path()).unwrap();
        tar.finish().unwrap();
        for (picked, expected) in [(":v1".to_owned(), b"one"), (":v2".to_owned(), b"two"), (format!("@{two}"), b"two")]
        {
            let source = open(&format!("oci-archive:{}{picked}", path.display())).await.unwrap();
            assert_eq!(layers(&source).await, [expected]);
        }
    }

    #[tokio::test]
    async fn a_saved_image_gets_a_manifest_for_its_layers() {
        let dir = tempfile::tempdir().unwrap();
        let zipped = gzip(b"three");
        let in_blobs = format!("blobs/sha256/{}", Digest::of(Algorithm::Sha256, b"four").hex());
        let path = Archive::new()
            .file("one.tar", b"one")
            .link(tar::EntryType::Symlink, "ID1/layer.tar", "../one.tar")
            .file("ID2/layer.tar", b"two")
            .link(tar::EntryType::Link, "ID2/again.tar", "ID2/layer.tar")
            .file("three.tar.gz", &zipped)
            .file(&in_blobs, b"four")
            .file("config.json", &config(&[b"one", b"two", b"two", b"three", b"four"]))
            .saved(serde_json::json!([{
                "Config": "config.json",
                "RepoTags": ["app:latest"],
                "Layers": ["ID1/layer.tar", "ID2/layer.tar", "ID2/again.tar", "three.tar.gz", in_blobs],
            }]))
            .write(dir.path());
        let source = open(&format!("docker-archive:{}", path.display())).await.unwrap();
        let expected: [&[u8]; 5] = [b"one", b"two", b"two", &zipped, b"four"];
        assert_eq!(layers(&source).await, expected);
        let again = open(&format!("docker-archive:{}:docker.io/library/app", path.display())).await.unwrap();
        assert_eq!(again.head().await.unwrap(), source.head().await.unwrap());
    }

    /// An image of one layer, as it is saved.
    fn saved_tar(layer: &[u8]) -> Vec<u8> {
        let list = serde_json::json!([{ "Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l.tar"] }]);
        let archive = Archive::new().file("l.tar", layer).file("c.json", &config(&[layer])).saved(list);
        archive.0.into_inner().unwrap()
    }

    fn packed(format: &str, bytes: &[u8]) -> Vec<u8> {
        match format {
            "gzip" => gzip(bytes),
            // In two members, as parallel writers make them.
            "gzip members" => [gzip(&bytes[..1000]), gzip(&bytes[1000..])].concat(),
            "zstd" => zstd::bulk::compress(bytes, 3).unwrap(),
            "xz" => {
                let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
                writer.write_all(bytes).unwrap();
                writer.finish().unwrap()
            }
            "bzip2" => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            _ => bytes.to_vec(),
        }
    }

    #[tokio::test]
    async fn compressed_archives_and_those_from_a_pipe_are_spooled() {
        let layer: Vec<u8> =
            (0..300_000_u32).map(|n| if n < 200_000 { 0 } else { (n.wrapping_mul(n) >> 8) as u8 }).collect();
        let dir = tempfile::tempdir().unwrap();
        for format in ["plain", "gzip", "gzip members", "zstd", "xz", "bzip2"] {
            let bytes = packed(format, &saved_tar(&layer));
            let path = dir.path().join("image.tar");
            std::fs::write(&path, &bytes).unwrap();
            let source = open(&format!("docker-archive:{}:app:1", path.display())).await.unwrap();
            assert_eq!(layers(&source).await, [&layer[..]], "{format}");

            let (reader, mut writer) = std::io::pipe().unwrap();
            let writing = std::thread::spawn(move || writer.write_all(&bytes));
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
            let source = open(&format!("docker-archive:{path}:app:1")).await.unwrap();
            writing.join().unwrap().unwrap();
            drop(reader);
            assert_eq!(layers(&source).await, [&layer[..]], "{format}, piped");
        }
    }

    #[tokio::test]
    async fn a_fifo_is_waited_for_and_a_device_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let to = fifo.clone();
        let writing = std::thread::spawn(move || std::fs::write(to, saved_tar(b"layer")));
        let source = open(&format!("docker-archive:{}", fifo.display())).await.unwrap();
        writing.join().unwrap().unwrap();
        assert_eq!(layers(&source).await, [b"layer"]);
        let error = open("docker-archive:/dev/zero").await.err().unwrap();
        assert_eq!(told(&error, dir.path()), "cannot read /dev/zero: it is neither a file nor a pipe");
    }

    #[tokio::test]
    async fn spooling_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar.gz");
        std::fs::write(&path, gzip(&vec![0; 3 << 20])).unwrap();
        let reference = format!("oci-archive:{}", path.display()).parse().unwrap();
        let spool = Spool::new(Some(1 << 20), tempfile::tempfile);
        let error = LocalSource::open(&reference, &spool).await.unwrap().err().unwrap();
        assert_eq!(
            told(&error, dir.path()),
            "`TMP/image.tar.gz` cannot be used: it unpacks to more than the 1048576 bytes that the cache may take \
             | raise `--cache-size`, or decompress it yourself, so that it is read in place"
        );
    }

    /// As containerify writes it.
    #[tokio::test]
    async fn keys_of_a_saved_image_are_read_in_any_case() {
        let dir = tempfile::tempdir().unwrap();
        let path = Archive::new()
            .file("l.tar", b"one")
            .file("c.json", &config(&[b"one"]))
            .saved(serde_json::json!([{ "config": "c.json", "repoTags": ["app:1"], "LAYERS": ["l.tar"], "other": {} }]))
            .write(dir.path());
        let source = open(&format!("docker-archive:{}:app:1", path.display())).await.unwrap();
        assert_eq!(layers(&source).await, [b"one"]);
    }

    #[tokio::test]
    async fn one_of_several_saved_images_is_picked_by_name_or_position() {
        let dir = tempfile::tempdir().unwrap();
        let path = Archive::new()
            .file("1.tar", b"one")
            .file("2.tar", b"two")
            .file("1.json", &config(&[b"one"]))
            .file("2.json", &config(&[b"two"]))
            .saved(serde_json::json!([
                { "Config": "1.json", "RepoTags": ["user/app:1", "app:1"], "Layers": ["1.tar"] },
                { "Config": "2.json", "RepoTags": null, "Layers": ["2.tar"] },
            ]))
            .write(dir.path());
        let at = path.display();
        for (picked, expected) in [(":app:1", b"one"), (":user/app:1", b"one"), (":@0", b"one"), (":@1", b"two")] {
            let source = open(&format!("docker-archive:{at}{picked}")).await.unwrap();
            assert_eq!(layers(&source).await, [expected], "{picked}");
        }
        let mut all = String::new();
        for picked in ["", ":app", ":@2"] {
            let error = open(&format!("docker-archive:{at}{picked}")).await.err().unwrap();
            all.push_str(&format!("{}\n", told(&error, dir.path())));
        }
        insta::assert_snapshot!(all, @r#"
        docker-archive:TMP/image.tar cannot be used: it holds 2 images; it has `app:1`, `user/app:1` | add the name of one after `:`, or its position, as in `:@0`
        image `app` not found in docker-archive:TMP/image.tar:app | it has `app:1`, `user/app:1`
        image @2 not found in docker-archive:TMP/image.tar:@2 | it has `app:1`, `user/app:1`
        "#);
    }

    #[tokio::test]
    async fn archives_that_cannot_be_read_say_what_to_do() {
        let config = config(&[b"one"]);
        let saved = |layer: &str| serde_json::json!([{ "Config": "c.json", "RepoTags": [], "Layers": [layer] }]);
        let whole = Archive::new().file("c.json", &config).0.into_inner().unwrap();
        let mut flipped = whole.clone();
        flipped[3] ^= 1;
        let table = [
            ("docker-archive", Archive::new().file("c.json", &config).0.into_inner().unwrap()),
            ("docker-archive", Archive::new().file("oci-layout", b"{}").0.into_inner().unwrap()),
            ("oci-archive", Archive::new().saved(saved("x")).0.into_inner().unwrap()),
            ("docker-archive", Archive::new().file("c.json", &config).saved(saved("no.tar")).0.into_inner().unwrap()),
            ("docker-archive", Archive::new().file("c.json", b"{}").saved(saved("c.json")).0.into_inner().unwrap()),
            ("docker-archive", Archive::new().file("manifest.json", b"[{}]").0.into_inner().unwrap()),
            (
                "docker-archive",
                Archive::new()
                    .file("c.json", &config)
                    .link(tar::EntryType::Symlink, "a", "b")
                    .link(tar::EntryType::Symlink, "b", "a")
                    .saved(saved("a"))
                    .0
                    .into_inner()
                    .unwrap(),
            ),
            (
                "docker-archive",
                Archive::new()
                    .file("c.json", &config)
                    .link(tar::EntryType::Symlink, "a", "../../etc/passwd")
                    .saved(saved("a"))
                    .0
                    .into_inner()
                    .unwrap(),
            ),
            ("oci-archive", gzip(&whole)),
            ("oci-archive", gzip(&whole)[..200].to_vec()),
            ("oci-archive", b"BZh9 and no more".to_vec()),
            (
                "docker-archive",
                Archive::new().file("manifest.json", br#"[{"Config":"a","config":"b"}]"#).0.into_inner().unwrap(),
            ),
            ("oci-archive", whole[..600].to_vec()),
            ("oci-archive", whole[..520].to_vec()),
            ("oci-archive", whole[..100].to_vec()),
            ("oci-archive", flipped),
            ("oci-archive", b"hello".to_vec()),
            ("oci-archive", Vec::new()),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        let mut all = String::new();
        for (transport, bytes) in table {
            std::fs::write(&path, bytes).unwrap();
            let error = open(&format!("{transport}:{}", path.display())).await.err().unwrap();
            all.push_str(&format!("{}\n", told(&error, dir.path())));
        }
        insta::assert_snapshot!(all, @r#"
        docker-archive:TMP/image.tar cannot be used: it has no `manifest.json`
        docker-archive:TMP/image.tar cannot be used: it has no `manifest.json` | try `oci-archive:TMP/image.tar`
        oci-archive:TMP/image.tar cannot be used: it has no `oci-layout`, so it is not an image layout | try `docker-archive:TMP/image.tar`
        file `no.tar` not found in docker-archive:TMP/image.tar
        docker-archive:TMP/image.tar cannot be used: configuration: the configuration has no `rootfs`, so it is not one of a container image | if this is an artifact, `--artifact` shows its layers as files
        docker-archive:TMP/image.tar cannot be used: its `manifest.json` is malformed: missing field `Config` at line 1 column 3
        file `a` not found in docker-archive:TMP/image.tar
        file `a` not found in docker-archive:TMP/image.tar
        oci-archive:TMP/image.tar cannot be used: it has no `oci-layout`, so it is not an image layout
        `TMP/image.tar` cannot be used: it is compressed with gzip, and does not decompress: incomplete deflate stream
        `TMP/image.tar` cannot be used: it is compressed with bzip2, and does not decompress: bzip2: invalid data
        docker-archive:TMP/image.tar cannot be used: its `manifest.json` is malformed: `config` is given twice at line 1 column 23
        `TMP/image.tar` cannot be used: it is not a valid tar: the entry at byte 0 is cut short
        `TMP/image.tar` cannot be used: it is not a valid tar: the entry at byte 0 is cut short
        `TMP/image.tar` cannot be used: it is not a valid tar: the entry at byte 0 is cut short
        `TMP/image.tar` cannot be used: it is not a valid tar: the entry at byte 0 has a wrong checksum
        `TMP/image.tar` cannot be used: it is not a valid tar: the entry at byte 0 is cut short
        oci-archive:TMP/image.tar cannot be used: it has no `oci-layout`, so it is not an image layout
        "#);
    }
}
