//! Files that the kernel mounts directly: EROFS images, and the content files that they name.
//!
//! ```text
//! erofs-v1/ALG/HEX        the image, named by the chain of its layers, mode 0400
//! erofs-v1/ALG/HEX.seal   the digest of the image, when it was verified, and what its layers are (JSON)
//! content-v2/ALG/HEX.DIFF.data.seal   when all of a layer's content was verified (JSON)
//! ```

use std::fs::{File, Permissions};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::seal::{Seal, Stamp, seal_of};
use super::verity::{self, Measured, NoVerity};
use super::{CONTENT, Checked, Content, DIFF, EROFS, LayerName, NewFile, Store, StoreError};
use crate::digest::{Algorithm, Digest, Hasher};

/// Sealed, complete content of a layer.
#[derive(Debug)]
pub struct SealedContent {
    /// The data file, open for reading.
    pub file: File,
    stamp: Stamp,
    /// What the kernel compares it with, if that was enabled before it was compared with its digests.
    verity: Result<Measured, NoVerity>,
}

/// Whether the kernel verifies what it reads of a file.
///
/// # Errors
/// [`NoVerity`], and why not.
pub fn is_verified_by_kernel(file: &File) -> Result<(), NoVerity> {
    verity::measure(file).map(drop)
}

impl SealedContent {
    /// Its identity and change time.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }
}

impl Store {
    /// A layer's content file, sealed or not.
    pub fn content_file(&self, layer: LayerName<'_>) -> Option<SealedContent> {
        let file = self.files.open_read(&self.content_paths(layer).data).ok()?;
        let stamp = Stamp::of(&file).ok()?;
        Some(SealedContent { file, stamp, verity: Err(NoVerity::NotEnabled) })
    }

    /// A layer's content, if all of it was verified and nothing was written since.
    pub fn verified_content(&self, layer: LayerName<'_>) -> Option<SealedContent> {
        let path = self.content_paths(layer).data;
        self.content_file(layer).filter(|found| self.seal_holds(&path, layer.diff_id, &found.file, found.stamp))
    }

    /// The same for a kernel mount: `None` also if the kernel can verify it from now on, so that it is to be compared.
    pub fn verified_content_for_mount(&self, layer: LayerName<'_>) -> Option<File> {
        let (path, found) = (self.content_paths(layer).data, self.verified_content(layer)?);
        (!self.gets_verity(&path, &found.file)).then_some(found.file)
    }

    /// Seals the content of a layer for verification; `None` if some of it is missing.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn seal_content(&self, content: &Content) -> Result<Option<SealedContent>, StoreError> {
        let Some(file) = content.seal()? else { return Ok(None) };
        let stamp = Stamp::of(&file).map_err(StoreError::io("read", content.data_path()))?;
        Ok(Some(SealedContent { file, stamp, verity: Err(NoVerity::NotEnabled) }))
    }

    /// Has the kernel verify sealed content from now on, where it can. Reads all of it, and waits for the disk.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn verify_by_kernel(&self, content: &Content, sealed: SealedContent) -> Result<SealedContent, StoreError> {
        let verity = self.files.enable_verity(&sealed.file, content.data_path());
        let stamp = Stamp::of(&sealed.file).map_err(StoreError::io("read", content.data_path()))?;
        Ok(SealedContent { file: sealed.file, stamp, verity })
    }

    /// Records for other processes that `sealed`, all content of a layer, was verified; returns whether nothing was
    /// written meanwhile. Waits for the disk.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the disk fails to store what was written to the file.
    pub fn record_verified(
        &self,
        layer: LayerName<'_>,
        content: &Content,
        sealed: &SealedContent,
    ) -> Result<bool, StoreError> {
        let path = content.data_path();
        // Without a sync, the kernel may drop unwritten bytes later without a visible change.
        self.files.sync(&sealed.file, path).map_err(StoreError::io("sync", path))?;
        if Stamp::of(&sealed.file).ok() != Some(sealed.stamp) {
            return Ok(false);
        }
        let seal = Seal::new(layer.diff_id, sealed.stamp).map(|seal| seal.with_verity(&sealed.verity));
        if let Err(error) = self.write_seal(path, seal) {
            tracing::debug!(%error, "other processes will compare the content of a layer again");
        }
        Ok(true)
    }

    /// The image of the layers with this chain, if it is intact.
    pub fn kernel_image(&self, chain: &Digest) -> Option<File> {
        let path = self.path(EROFS, chain);
        let (file, seal) = (self.files.open_read(&path).ok()?, self.read_seal(&path)?);
        if self.seal_holds(&path, seal.of(), &file, Stamp::of(&file).ok()?) && !self.gets_verity(&path, &file) {
            return Some(file);
        }
        // It was changed, or the machine has rebooted.
        self.compare_kernel_image(&path, seal.of(), seal.layers()?)
    }

    /// Compares an image with its digest, and seals it; removes it if it is damaged.
    fn compare_kernel_image(&self, path: &Path, hash: &Digest, layers: &[Digest]) -> Option<File> {
        let mut file = self.files.open_read(path).ok()?;
        let verity = self.files.enable_verity(&file, path);
        let stamp = Stamp::of(&file).ok()?;
        if !is_intact(&mut file, hash) || Stamp::of(&file).ok() != Some(stamp) {
            self.drop_kernel_image(path);
            return None;
        }
        let seal = Seal::new(hash, stamp).map(|seal| seal.with_verity(&verity).with_layers(layers));
        if let Err(error) = self.write_seal(path, seal) {
            tracing::debug!(%error, "other processes will compare an image again");
        }
        Some(file)
    }

    /// Starts writing the image of the layers with this chain.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn new_kernel_image(&self, chain: &Digest) -> Result<NewFile, StoreError> {
        self.new_file(self.path(EROFS, chain))
    }

    /// Publishes a written image over `layers`, and opens it.
    ///
    /// # Errors
    /// [`StoreError::Io`], also if the disk does not return what was written.
    pub fn publish_kernel_image(&self, new: NewFile, layers: &[Digest]) -> Result<File, StoreError> {
        let path = new.target.clone();
        new.file().set_permissions(Permissions::from_mode(0o400)).map_err(StoreError::io("protect", &path))?;
        new.sync()?;
        let mut file = new.file().try_clone().map_err(StoreError::io("open", &path))?;
        let hash = hash(&mut file).map_err(StoreError::io("read", &path))?;
        // The kernel verifies no file that is open for writing.
        drop(file);
        new.publish()?;
        let compared = self.compare_kernel_image(&path, &hash, layers);
        compared.ok_or_else(|| StoreError::io("read", &path)(io::ErrorKind::InvalidData.into()))
    }

    /// Checks all images, and removes damaged ones.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a directory cannot be read.
    pub fn check_kernel_images(&self) -> Result<Checked, StoreError> {
        let mut found = Checked::default();
        for path in self.kernel_images()? {
            found.checked += 1;
            let intact = self.read_seal(&path).zip(self.files.open_read(&path).ok());
            if !intact.is_some_and(|(seal, mut file)| is_intact(&mut file, seal.of())) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                found.damaged.push(format!("image {name} for the kernel"));
                self.drop_kernel_image(&path);
            }
        }
        Ok(found)
    }

    /// Removes all images and returns the bytes freed. Mounts keep theirs.
    pub(super) fn drop_kernel_images(&self) -> Result<u64, StoreError> {
        let mut freed = 0;
        self.files.each(&self.root.join(EROFS), &mut |path, found| {
            freed += found.disk_bytes();
            self.files.remove(path);
        })?;
        Ok(freed)
    }

    /// Removes the images that name a layer of which nothing is cached, and returns the bytes freed. Mounts keep theirs.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a directory cannot be read.
    pub fn drop_orphaned_kernel_images(&self) -> Result<u64, StoreError> {
        let images = self.kernel_images()?;
        if images.is_empty() {
            return Ok(0);
        }
        let mut cached = std::collections::HashSet::new();
        self.files.each(&self.root.join(CONTENT), &mut |path, _| {
            // `HEX.DIFF.data`
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            cached.extend(name.strip_suffix(".data").and_then(|name| name.split('.').nth(1)).map(str::to_owned));
        })?;
        let mut freed = 0;
        for path in images {
            // The seal of a new image is still to be written.
            let Some(seal) = self.read_seal(&path) else { continue };
            let is_cached = |layer: &Digest| cached.contains(&layer.hex()[..DIFF]);
            // One of an earlier version, which does not name its layers, is made again.
            if !seal.layers().is_some_and(|layers| layers.iter().all(is_cached)) {
                for file in [&path, &seal_of(&path)] {
                    freed += self.files.look(file).map_or(0, |found| found.disk_bytes());
                }
                self.drop_kernel_image(&path);
            }
        }
        Ok(freed)
    }

    fn kernel_images(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut all = Vec::new();
        self.files.each(&self.root.join(EROFS), &mut |path, _| {
            if path.extension().is_none() {
                all.push(path.to_owned());
            }
        })?;
        Ok(all)
    }

    fn drop_kernel_image(&self, path: &Path) {
        self.files.remove(&seal_of(path));
        self.files.remove(path);
    }
}

/// Whether a file has the digest in its seal.
fn is_intact(file: &mut File, digest: &Digest) -> bool {
    hash(file).is_ok_and(|found| found == *digest)
}

/// The digest of a whole file.
fn hash(file: &mut File) -> io::Result<Digest> {
    file.rewind()?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buf = vec![0; 1 << 20];
    loop {
        match file.read(&mut buf)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buf[..length]),
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Cache {
        _dir: tempfile::TempDir,
        store: Store,
        layers: [Digest; 2],
        chain: Digest,
    }

    /// A cache with content of two layers, and an image over them.
    fn cache() -> Cache {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"), None).unwrap();
        let [one, two, chain] = [b"one", b"two", b"all"].map(|text| Digest::of(Algorithm::Sha256, text));
        for diff_id in [&one, &two] {
            let path = store.content_paths(LayerName { blob: diff_id, diff_id }).data;
            store.new_file(path).unwrap().publish().unwrap();
        }
        let cache = Cache { _dir: dir, store, layers: [one, two], chain };
        cache.publish();
        cache
    }

    impl Cache {
        fn publish(&self) {
            let mut new = self.store.new_kernel_image(&self.chain).unwrap();
            new.write_all(b"image").unwrap();
            let mut file = self.store.publish_kernel_image(new, &self.layers).unwrap();
            let mut bytes = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, b"image");
        }

        fn path(&self) -> PathBuf {
            self.store.path(EROFS, &self.chain)
        }

        /// Changes what the seal says.
        fn forge(&self, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
            let path = seal_of(&self.path());
            let mut seal = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            change(&mut seal);
            std::fs::write(&path, serde_json::to_vec(&seal).unwrap()).unwrap();
        }

        fn seal(&self) -> Seal {
            self.store.read_seal(&self.path()).unwrap()
        }
    }

    #[test]
    fn an_image_goes_with_the_first_of_its_layers() {
        let cache = cache();
        assert_eq!(cache.seal().layers(), Some(&cache.layers[..]));
        assert_eq!(cache.store.drop_orphaned_kernel_images().unwrap(), 0);
        assert!(cache.store.kernel_image(&cache.chain).is_some());
        std::fs::remove_file(
            cache.store.content_paths(LayerName { blob: &cache.layers[1], diff_id: &cache.layers[1] }).data,
        )
        .unwrap();
        assert!(cache.store.drop_orphaned_kernel_images().unwrap() > 0);
        assert!(cache.store.kernel_image(&cache.chain).is_none() && !seal_of(&cache.path()).exists());
    }

    #[test]
    fn an_image_that_does_not_name_its_layers_is_made_again() {
        let cache = cache();
        cache.forge(|seal| drop(seal.remove("layers")));
        assert!(cache.store.kernel_image(&cache.chain).is_some(), "it is what was sealed");
        cache.forge(|seal| {
            seal.insert("boot".into(), "another".into());
            seal.remove("verity");
        });
        assert!(cache.store.kernel_image(&cache.chain).is_none());
        cache.publish();
        assert_eq!(cache.seal().layers(), Some(&cache.layers[..]));
        cache.forge(|seal| drop(seal.remove("layers")));
        assert!(cache.store.drop_orphaned_kernel_images().unwrap() > 0 && !cache.path().exists());
        // Another process has yet to seal it.
        cache.publish();
        std::fs::remove_file(seal_of(&cache.path())).unwrap();
        assert_eq!(cache.store.drop_orphaned_kernel_images().unwrap(), 0);
        assert!(cache.path().exists());
    }

    #[test]
    fn an_image_is_compared_after_a_reboot_and_keeps_its_layers() {
        let cache = cache();
        for _ in 0..2 {
            // A digest that the kernel does not measure is no reason to trust it.
            cache.forge(|seal| {
                seal.insert("boot".into(), "another".into());
                seal.insert("verity".into(), cache.chain.to_string().into());
            });
            assert!(cache.store.kernel_image(&cache.chain).is_some());
            assert_eq!(cache.seal().layers(), Some(&cache.layers[..]));
        }
        cache.forge(|seal| drop(seal.insert("diff_id".into(), cache.chain.to_string().into())));
        cache.forge(|seal| drop(seal.insert("verity".into(), cache.chain.to_string().into())));
        assert!(cache.store.kernel_image(&cache.chain).is_none() && !cache.path().exists(), "it is another one");
    }
}
