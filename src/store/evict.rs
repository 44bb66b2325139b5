//! Usage of the cache, and eviction within its limit.
//!
//! Content of layers that no process uses is evicted first, least recently used first; then their indexes, except for
//! an eighth of the limit, as an index saves the download of its layer; then spans of layers in use, whose indexes
//! stay. Reading a layer's content marks it as used (the map's modification time).

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::content::{ContentPaths, MapInPlace};
use super::files::Found;
use super::seal::seal_of;
use super::{CONTENT, DOCUMENT, EROFS, INDEX, LOCK, MIRROR, PROFILE, Store, StoreError, TAG, TMP, WHOLE};
use crate::digest::Digest;
use crate::sync::lock;

/// Disk usage of the store.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// All layers, most recently used first.
    pub layers: Vec<LayerUsage>,
    /// Bytes of manifests, image indexes, configurations and tags.
    pub documents: u64,
    /// Bytes of EROFS images for the kernel.
    pub images: u64,
    /// Bytes of files being written.
    pub temporary: u64,
}

/// One layer in the store.
#[derive(Clone, Debug)]
pub struct LayerUsage {
    /// The blob's digest.
    pub digest: Digest,
    /// Bytes of its layer index on disk; 0 if there is none.
    pub index: u64,
    /// Bytes of its content on disk, including passthrough copies.
    pub content: u64,
    /// When it was last used.
    pub used: SystemTime,
    /// Whether a process has it open.
    pub held: bool,
}

/// What [`Store::prune`] keeps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keep {
    /// Everything except leftovers of ended processes and layouts of older versions.
    Known,
    /// Indexes and documents; removes content.
    Indexes,
    /// Only what is in use.
    Nothing,
    /// At most this many bytes of layers: removes content first, then indexes, least recently used first.
    Bytes(u64),
}

/// Result of [`Store::prune`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Freed {
    /// Bytes freed.
    pub bytes: u64,
    /// Layers whose content was removed.
    pub layers: u64,
    /// Layers whose index was removed.
    pub indexes: u64,
    /// Layers kept because a process uses them.
    pub held: u64,
}

impl Usage {
    /// Bytes of all layers, indexes included.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.index + layer.content).sum()
    }
}

impl Store {
    /// The current usage.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a directory cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut layers = std::collections::BTreeMap::<Digest, LayerUsage>::new();
        let mut usage = Usage::default();
        for bucket in [INDEX, CONTENT, WHOLE] {
            self.files.each(&self.root.join(bucket), &mut |path, found| {
                let Some(digest) = digest_of(path) else { return };
                let layer = layers.entry(digest.clone()).or_insert_with(|| LayerUsage {
                    digest,
                    index: 0,
                    content: 0,
                    used: SystemTime::UNIX_EPOCH,
                    held: false,
                });
                if bucket == INDEX {
                    layer.index += found.disk_bytes();
                    layer.held = self.marks.is_marked(&layer.digest);
                } else {
                    layer.content += found.disk_bytes();
                }
                layer.used = layer.used.max(found.modified());
            })?;
        }
        for bucket in [DOCUMENT, TAG, MIRROR, PROFILE] {
            self.files.each(&self.root.join(bucket), &mut |_, found| usage.documents += found.disk_bytes())?;
        }
        self.files.each(&self.root.join(EROFS), &mut |_, found| usage.images += found.disk_bytes())?;
        self.files.each(&self.root.join(TMP), &mut |_, found| usage.temporary += found.disk_bytes())?;
        usage.layers = layers.into_values().collect();
        usage.layers.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.digest.cmp(&b.digest)));
        Ok(usage)
    }

    /// Counts `kept` bytes; returns whether to check the limit now.
    pub fn should_check_limit(&self, kept: u64) -> bool {
        let Some(limit) = self.limit else { return false };
        let look = self.unchecked.fetch_add(kept, Ordering::Relaxed) + kept >= ROOM_CHECK.min(limit / 32);
        if look {
            self.unchecked.store(0, Ordering::Relaxed);
        }
        look
    }

    /// Evicts content of unused layers, and then their indexes, until `wanted` more bytes fit under the limit; returns
    /// the bytes still in excess.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn make_room(&self, wanted: u64) -> Result<u64, StoreError> {
        let Some(limit) = self.limit else { return Ok(0) };
        let _one_at_a_time = lock(&self.making_room);
        let usage = self.usage()?;
        let all = usage.layer_bytes() + usage.images + usage.temporary;
        let mut over = (all + wanted).saturating_sub(limit);
        if over > 0 && usage.temporary > 0 {
            over = over.saturating_sub(self.drop_unfinished()?);
        }
        if over > 0 && usage.images > 0 {
            // They are quickly rebuilt, and useless for an image with evicted content.
            over = over.saturating_sub(self.drop_kernel_images()?);
        }
        for layer in usage.layers.iter().rev() {
            if over == 0 {
                break;
            }
            if layer.content > 0 && !layer.held && self.drop_content(&layer.digest) {
                tracing::info!(layer = %layer.digest, bytes = layer.content, "evicted a layer that is not in use");
                over = over.saturating_sub(layer.content);
            }
        }
        let unused = usage.layers.iter().rev().filter(|layer| !layer.held);
        let mut indexes: u64 = unused.clone().map(|layer| layer.index).sum();
        for layer in unused {
            if over == 0 || indexes <= limit / INDEXES_KEPT {
                break;
            }
            if layer.index > 0 && self.drop_unused_index(&layer.digest) {
                tracing::info!(layer = %layer.digest, bytes = layer.index, "evicted the index of a layer that is not in use");
                over = over.saturating_sub(layer.index);
                indexes -= layer.index;
            }
        }
        Ok(over)
    }

    /// Removes what `keep` does not keep, and what ended processes left behind.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn prune(&self, keep: Keep) -> Result<Freed, StoreError> {
        let mut freed = self.sweep()?;
        // The limit holds here as well; layers in use are evicted by their processes.
        let keep = match (keep, self.limit) {
            (Keep::Known, Some(limit)) => Keep::Bytes(limit),
            _ => keep,
        };
        let usage = self.usage()?;
        let mut left = usage.layer_bytes();
        let images_go = match keep {
            Keep::Known => false,
            Keep::Indexes | Keep::Nothing => true,
            Keep::Bytes(most) => left + usage.images > most,
        };
        if images_go {
            freed.bytes += self.drop_kernel_images()?;
        }
        for layer in usage.layers.iter().rev() {
            let (content, index) = match keep {
                Keep::Known => (false, false),
                Keep::Indexes => (true, false),
                Keep::Nothing => (true, true),
                Keep::Bytes(most) => (left > most, false),
            };
            if !content || (layer.content == 0 && !index) {
                continue;
            }
            if layer.held || !self.drop_content(&layer.digest) {
                freed.held += 1;
                continue;
            }
            freed.layers += 1;
            freed.bytes += layer.content;
            left -= layer.content;
            if index {
                self.drop_indexes(&layer.digest);
                freed.bytes += layer.index;
                freed.indexes += 1;
            }
        }
        if let Keep::Bytes(most) = keep {
            for layer in usage.layers.iter().rev().filter(|layer| layer.index > 0) {
                if left > most && !layer.held && self.drop_unused_index(&layer.digest) {
                    freed.indexes += 1;
                    freed.bytes += layer.index;
                    left -= layer.index;
                }
            }
        }
        if keep == Keep::Nothing {
            // A process that takes over a mount needs its documents; the layers in use do not tell which.
            let documents = if freed.held == 0 { &[DOCUMENT, TAG][..] } else { &[] };
            for bucket in documents.iter().chain(&[PROFILE, MIRROR]) {
                self.files.each(&self.root.join(bucket), &mut |path, found| {
                    freed.bytes += found.disk_bytes();
                    self.files.remove(path);
                })?;
            }
        }
        Ok(freed)
    }

    /// Removes the index of a layer, and the rest of its content, unless a process uses it.
    fn drop_unused_index(&self, blob: &Digest) -> bool {
        let Some(_unused) = self.marks.unused(blob) else { return false };
        self.drop_indexes(blob);
        self.remove_content(blob);
        true
    }

    /// Removes the content of a layer that no process uses, and returns the bytes freed; `None` if one does.
    pub fn drop_unused_content(&self, blob: &Digest) -> Option<u64> {
        let bytes = self.bytes_of(&[CONTENT, WHOLE], blob);
        self.drop_content(blob).then_some(bytes)
    }

    /// Removes the indexes and the content of a layer that no process uses, and returns the bytes freed; `None` if one does.
    pub fn drop_unused(&self, blob: &Digest) -> Option<u64> {
        let bytes = self.bytes_of(&[INDEX, CONTENT, WHOLE], blob);
        self.drop_unused_index(blob).then_some(bytes)
    }

    /// Disk usage of a blob's files in these buckets, in bytes.
    fn bytes_of(&self, buckets: &[&str], blob: &Digest) -> u64 {
        let mut bytes = 0;
        for bucket in buckets {
            self.each_of(bucket, blob, &mut |_, found| bytes += found.disk_bytes());
        }
        bytes
    }

    /// Removes leftovers of ended processes: temporary files, and content without an index. Returns the bytes freed.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a directory cannot be read.
    pub fn tidy(&self) -> Result<u64, StoreError> {
        let mut freed = self.drop_unfinished()?;
        let mut orphans = std::collections::BTreeMap::<Digest, u64>::new();
        for bucket in [CONTENT, WHOLE] {
            self.files.each(&self.root.join(bucket), &mut |path, found| {
                if let Some(digest) = digest_of(path)
                    && !self.has_index(&digest)
                {
                    *orphans.entry(digest).or_default() += found.disk_bytes();
                }
            })?;
        }
        for (digest, bytes) in orphans {
            // A pass publishes the content before the index, and holds this lock meanwhile.
            let Some(pass) = self.try_lock_pass(&digest) else { continue };
            if pass.is_real() && !self.has_index(&digest) && self.drop_content(&digest) {
                freed += bytes;
            }
        }
        Ok(freed + self.drop_orphaned_kernel_images()?)
    }

    /// Removes the files that ended processes were writing. Returns the bytes freed.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the directory cannot be read.
    pub fn drop_unfinished(&self) -> Result<u64, StoreError> {
        let mut freed = 0;
        self.each_unfinished(&mut |path, found| {
            freed += found.disk_bytes();
            self.files.remove(path);
        })?;
        Ok(freed)
    }

    /// Disk usage of the files that ended processes were writing, in bytes.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the directory cannot be read.
    pub fn unfinished(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        self.each_unfinished(&mut |_, found| bytes += found.disk_bytes())?;
        Ok(bytes)
    }

    fn each_unfinished(&self, seen: &mut dyn FnMut(&Path, &Found)) -> Result<(), StoreError> {
        self.files.each(&self.root.join(TMP), &mut |path, found| {
            // Locked until `seen` returns, so that no process starts to write it.
            let file = self.files.open_read(path).ok();
            if file.as_ref().is_none_or(|file| self.files.try_lock(file, path).is_ok()) {
                seen(path, found);
            }
        })
    }

    /// As [`Store::tidy`], and removes buckets of other versions.
    fn sweep(&self) -> Result<Freed, StoreError> {
        let mut freed = Freed { bytes: self.tidy()?, ..Freed::default() };
        for path in self.other_formats()? {
            self.files.each(&path, &mut |_, found| freed.bytes += found.disk_bytes())?;
            self.files.remove_dir(&path)?;
        }
        Ok(freed)
    }

    /// The buckets that are of other releases, whose formats have other numbers.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the directory cannot be read.
    pub fn other_formats(&self) -> Result<Vec<PathBuf>, StoreError> {
        let own = [INDEX, CONTENT, WHOLE, EROFS, DOCUMENT, TAG, MIRROR, PROFILE, LOCK];
        let kinds = own.map(|bucket| bucket.split("-v").next().unwrap_or_default());
        let is_other = |path: &Path| {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
            let parts = name.split_once("-v");
            !own.contains(&name)
                && parts.is_some_and(|(kind, version)| kinds.contains(&kind) && version.parse::<u32>().is_ok())
        };
        Ok(self.files.list(&self.root)?.into_iter().map(|(path, _)| path).filter(|path| is_other(path)).collect())
    }

    /// Removes the content of a layer, unless a process uses it.
    fn drop_content(&self, blob: &Digest) -> bool {
        let unused = self.marks.unused(blob);
        if unused.is_some() {
            self.remove_content(blob);
        }
        unused.is_some()
    }

    /// Removes the content of a layer, which must be locked against use.
    fn remove_content(&self, blob: &Digest) {
        let mut contents = std::collections::BTreeSet::new();
        self.each_of(CONTENT, blob, &mut |path, _| {
            contents.extend(ContentPaths::of(path));
        });
        for ContentPaths { data, map } in contents {
            let _held = MapInPlace::hold(&self.files, &map);
            // In this order: a map alone takes no space, and has no effect without its data.
            self.files.remove(&seal_of(&data));
            self.files.remove(&data);
            self.files.remove(&map);
        }
        self.drop_passthrough_copies(blob);
    }

    /// All files of a bucket named by this blob.
    pub(super) fn each_of(&self, bucket: &str, blob: &Digest, seen: &mut dyn FnMut(&Path, &Found)) {
        let dir = self.root.join(bucket).join(blob.algorithm().name());
        // Skip a directory that cannot be listed.
        let listed = self.files.list_some(&dir, |name| name.starts_with(blob.hex().as_bytes())).unwrap_or_default();
        for (path, found) in listed.iter().filter(|(path, _)| digest_of(path).as_ref() == Some(blob)) {
            seen(path, found);
        }
    }
}

/// The digest in the name of a bucket's file.
pub(super) fn digest_of(path: &Path) -> Option<Digest> {
    let algorithm = path.parent()?.file_name()?.to_str()?;
    let hex = path.file_name()?.to_str()?.split('.').next()?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// Divisor of the limit: the share that indexes of unused layers may keep during eviction.
const INDEXES_KEPT: u64 = 8;
/// Bytes that a process may store between two checks of the limit; less if the limit is small.
const ROOM_CHECK: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;

    use super::*;
    use crate::digest::Algorithm;
    use crate::offsets::DecodedOffset;
    use crate::store::LayerName;

    fn layer_of(digest: &Digest) -> LayerName<'_> {
        LayerName { blob: digest, diff_id: digest }
    }

    fn with_layers(dir: &tempfile::TempDir, limit: u64) -> (Store, Vec<Digest>) {
        let store = Store::open(&dir.path().join("cache"), Some(limit)).unwrap();
        let digests: Vec<_> = (0..3u8).map(|n| Digest::of(Algorithm::Sha256, &[n])).collect();
        for (age, digest) in digests.iter().enumerate() {
            let mut index = store.new_index(digest).unwrap();
            index.write_all(b"index").unwrap();
            index.publish().unwrap();
            let content = store.content(layer_of(digest), 1 << 20, 1).unwrap();
            content.fill(crate::span::SpanId(0), DecodedOffset(0), &vec![1; 1 << 20]).unwrap();
            let when = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 * age as u64);
            for extension in ["data", "map"] {
                let path = store.decoded_path(CONTENT, layer_of(digest), extension);
                File::options().write(true).open(path).unwrap().set_modified(when).unwrap();
            }
            File::open(store.path(INDEX, digest)).unwrap().set_modified(when).unwrap();
        }
        (store, digests)
    }

    #[test]
    fn the_least_recently_used_layer_goes_a_held_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (store, digests) = with_layers(&dir, 2 << 20);
        let held = store.index(&digests[0]).unwrap();
        let over = store.make_room(0).unwrap();
        let left: Vec<_> = store.usage().unwrap().layers;
        let content = |n: usize| left.iter().find(|layer| layer.digest == digests[n]).unwrap().content;
        assert!(content(0) > 0, "held");
        assert_eq!(content(1), 0, "oldest that no process holds");
        assert!(over == 0 || content(2) == 0);
        drop(held);
    }

    fn content_files(store: &Store) -> usize {
        std::fs::read_dir(store.root().join(CONTENT).join("sha256")).unwrap().count()
    }

    #[test]
    fn prune_leaves_no_more_than_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let (unbounded, _) = with_layers(&dir, u64::MAX);
        let all = unbounded.usage().unwrap();
        assert_eq!(unbounded.prune(Keep::Known).unwrap(), Freed::default());
        let limit = all.layer_bytes() - 1;
        let bounded = Store::open(&dir.path().join("cache"), Some(limit)).unwrap();
        let freed = bounded.prune(Keep::Known).unwrap();
        assert_eq!((freed.layers, freed.bytes), (1, all.layers.last().unwrap().content), "the oldest");
    }

    /// Three layers with an index of 1 MiB each and no content, the first the least recently used.
    fn with_indexes(dir: &tempfile::TempDir, limit: u64) -> (Store, Vec<Digest>) {
        let store = Store::open(&dir.path().join("cache"), Some(limit)).unwrap();
        let digests: Vec<_> = (0..3u8).map(|n| Digest::of(Algorithm::Sha256, &[n])).collect();
        for (age, digest) in digests.iter().enumerate() {
            let mut index = store.new_index(digest).unwrap();
            index.write_all(&vec![1; 1 << 20]).unwrap();
            index.publish().unwrap();
            let when = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 * age as u64);
            File::open(store.path(INDEX, digest)).unwrap().set_modified(when).unwrap();
        }
        (store, digests)
    }

    fn indexes(store: &Store, digests: &[Digest]) -> Vec<bool> {
        digests.iter().map(|digest| store.path(INDEX, digest).exists()).collect()
    }

    #[test]
    fn indexes_count_in_the_limit_and_those_in_use_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (store, digests) = with_indexes(&dir, 5 << 19);
        let held = store.index(&digests[0]).unwrap();
        assert_eq!(store.make_room(0).unwrap(), 0);
        assert_eq!(indexes(&store, &digests), [true, false, true], "the oldest that no process holds");
        drop(held);
        // The share of the limit for indexes of unused layers.
        let (store, digests) = with_indexes(&dir, 16 << 20);
        assert!(store.make_room(20 << 20).unwrap() > 0);
        assert_eq!(indexes(&store, &digests), [false, true, true]);
    }

    #[test]
    fn prune_to_a_size_removes_indexes_after_all_content() {
        let dir = tempfile::tempdir().unwrap();
        let (store, digests) = with_indexes(&dir, u64::MAX);
        let freed = store.prune(Keep::Bytes(2 << 20)).unwrap();
        assert_eq!((freed.layers, freed.indexes, freed.bytes), (0, 1, 1 << 20));
        assert_eq!(indexes(&store, &digests), [false, true, true]);
        let held = store.index(&digests[1]).unwrap();
        assert_eq!(store.prune(Keep::Bytes(0)).unwrap().indexes, 1);
        assert_eq!(indexes(&store, &digests), [false, true, false]);
        drop(held);
        let dir = tempfile::tempdir().unwrap();
        let (store, digests) = with_layers(&dir, u64::MAX);
        let all = store.usage().unwrap();
        let content: u64 = all.layers.iter().map(|layer| layer.content).sum();
        let freed = store.prune(Keep::Bytes(all.layer_bytes() - content)).unwrap();
        assert_eq!((freed.layers, freed.indexes), (3, 0));
        assert_eq!(indexes(&store, &digests), [true; 3]);
    }

    #[test]
    fn prune_removes_leftovers_but_not_work_in_progress() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = with_layers(&dir, u64::MAX);
        let working = store.new_index(&Digest::of(Algorithm::Sha256, b"new")).unwrap();
        std::fs::write(store.root().join(TMP).join("1-1"), b"left behind").unwrap();
        std::fs::create_dir_all(store.root().join("index-v0/sha256")).unwrap();
        std::fs::create_dir_all(store.root().join("not-ours")).unwrap();
        let orphan = Digest::of(Algorithm::Sha256, b"no index");
        let content = store.content(layer_of(&orphan), 100, 1).unwrap();
        content.fill(crate::span::SpanId(0), DecodedOffset(0), b"x").unwrap();
        store.publish_passthrough_copy(store.new_passthrough_copy(layer_of(&orphan), 7).unwrap()).unwrap();
        let making = store.try_lock_pass(&orphan).unwrap();
        store.prune(Keep::Known).unwrap();
        assert_eq!(content_files(&store), 8, "a pass is at it");
        drop(making);
        store.prune(Keep::Known).unwrap();
        assert_eq!(content_files(&store), 6, "three layers with an index have two files each");
        assert_eq!(store.passthrough_copies(layer_of(&orphan)), [] as [u32; 0]);
        assert_eq!(std::fs::read_dir(store.root().join(TMP)).unwrap().count(), 1);
        assert!(!store.root().join("index-v0").exists());
        assert!(store.root().join("not-ours").exists());
        drop(working);
    }
}
