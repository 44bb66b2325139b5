//! Files that the kernel mounts directly: EROFS images, and the content files that they name.
//!
//! ```text
//! erofs-v1/ALG/HEX        the image, named by the chain of its layers, mode 0400
//! erofs-v1/ALG/HEX.seal   the digest of the image, and the change time at which it was verified (JSON)
//! content-v2/ALG/HEX.DIFF.data.seal   the change time at which all of a layer's content was verified (JSON)
//! ```

use std::fs::{File, Permissions};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::seal::{Stamp, seal_of};
use super::{CONTENT, Checked, Content, DIFF, EROFS, LayerName, NewFile, Store, StoreError};
use crate::digest::{Algorithm, Digest, Hasher};

/// Sealed, complete content of a layer.
#[derive(Debug)]
pub struct SealedContent {
    /// The data file.
    pub file: File,
    stamp: Stamp,
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
        Some(SealedContent { file, stamp })
    }

    /// A layer's content, if all of it was verified and nothing was written since.
    pub fn verified_content(&self, layer: LayerName<'_>) -> Option<SealedContent> {
        let path = self.content_paths(layer).data;
        self.content_file(layer).filter(|found| self.seal_holds(&path, layer.diff_id, found.stamp))
    }

    /// Seals the content of a layer for verification; `None` if some of it is missing.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn seal_content(&self, content: &Content) -> Result<Option<SealedContent>, StoreError> {
        let Some(file) = content.seal()? else { return Ok(None) };
        let stamp = Stamp::of(&file).map_err(StoreError::io("read", content.data_path()))?;
        Ok(Some(SealedContent { file, stamp }))
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
        if let Err(error) = self.write_seal(path, layer.diff_id, sealed.stamp) {
            tracing::debug!(%error, "other processes will compare the content of a layer again");
        }
        Ok(true)
    }

    /// The image of the layers with this chain, if it is intact.
    pub fn kernel_image(&self, chain: &Digest) -> Option<File> {
        let path = self.path(EROFS, chain);
        let mut file = self.files.open_read(&path).ok()?;
        let (stamp, hash) = (Stamp::of(&file).ok()?, self.was_sealed_as(&path)?);
        if self.seal_holds(&path, &hash, stamp) {
            return Some(file);
        }
        // It was changed, or the machine has rebooted.
        if !is_intact(&mut file, &hash) || Stamp::of(&file).ok() != Some(stamp) {
            self.drop_kernel_image(&path);
            return None;
        }
        if let Err(error) = self.write_seal(&path, &hash, stamp) {
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

    /// Publishes a written image, and opens it.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn publish_kernel_image(&self, new: NewFile) -> Result<File, StoreError> {
        let path = new.target.clone();
        new.file().set_permissions(Permissions::from_mode(0o400)).map_err(StoreError::io("protect", &path))?;
        new.sync()?;
        let mut file = new.file().try_clone().map_err(StoreError::io("open", &path))?;
        let hash = hash(&mut file).map_err(StoreError::io("read", &path))?;
        new.publish()?;
        let stamp = Stamp::of(&file).map_err(StoreError::io("read", &path))?;
        self.write_seal(&path, &hash, stamp)?;
        Ok(file)
    }

    /// Checks all images, and removes damaged ones.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a directory cannot be read.
    pub fn check_kernel_images(&self) -> Result<Checked, StoreError> {
        let mut found = Checked::default();
        for path in self.kernel_images()? {
            found.checked += 1;
            let hash = self.was_sealed_as(&path);
            let intact = hash.zip(self.files.open_read(&path).ok());
            if !intact.is_some_and(|(hash, mut file)| is_intact(&mut file, &hash)) {
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
            let named = self.files.open_read(&path).ok().and_then(|file| layers_of(&file).ok());
            let is_cached = |layer: &String| layer.get(..DIFF).is_some_and(|diff| cached.contains(diff));
            if named.is_some_and(|named| !named.iter().all(is_cached)) {
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

/// The layers that an image names in its table of devices, as digests in hex (`docs/formats.md`).
fn layers_of(image: &File) -> io::Result<Vec<String>> {
    let number = |at: u64| {
        let mut bytes = [0; 2];
        image.read_exact_at(&mut bytes, at).map(|()| u64::from(u16::from_le_bytes(bytes)))
    };
    let (count, first) = (number(EXTRA_DEVICES_AT)?, number(DEVICES_AT)?);
    let tag = |slot: u64| {
        let mut tag = [0; 64];
        image.read_exact_at(&mut tag, slot * DEVICE_SLOT)?;
        Ok(String::from_utf8_lossy(&tag).trim_end_matches('\0').to_owned())
    };
    (first..first + count).map(tag).collect()
}

/// Of the superblock, which is at byte 1024 (kernel, `fs/erofs/erofs_fs.h`): how many devices there are, and where the table of
/// them is, in slots.
const EXTRA_DEVICES_AT: u64 = 1024 + 86;
const DEVICES_AT: u64 = 1024 + 88;
const DEVICE_SLOT: u64 = 128;

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
