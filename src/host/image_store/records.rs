//! Records of a store's images, one file each, from which they are opened again.
//!
//! ```text
//! DIR.images/lock        held while records are changed
//! DIR.images/serving     held by the processes that serve
//! DIR.images/socket      where the one that does is told of changes
//! DIR.images/numbers     what the kernel knows of the store, for the next process that serves it
//! DIR.images/HEX.json    an image: HEX is the digest of its configuration
//! DIR.images/HEX.removed an image that was removed while the store was served: containers may go on using it
//! ```

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ImageStoreError, records_of};
use crate::digest::Digest;
use crate::host::handover::create_private;
use crate::host::spec;
use crate::host::whole_file;
use crate::host::wire::v1;
use crate::image::{Documents, Plan};
use crate::image_store::{Keep, Remembered};
use crate::source::outage::OnOutage;

/// The records of one store.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) at: PathBuf,
    path: PathBuf,
    directory: File,
}

/// An image of a store.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// Of this format.
    version: u32,
    pub(super) names: Vec<String>,
    image: v1::ImageSpec,
    pub(super) root: Digest,
    pub(super) manifest: Digest,
    pub(super) config: Digest,
    pub(super) layers: usize,
    /// Bytes of its blobs.
    pub(super) size: u64,
    /// When it was added: RFC 3339.
    pub(super) added: String,
    pub(super) documents: Documents,
}

/// An image of a store, for display.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Its names.
    pub names: Vec<String>,
    /// The digest of its configuration, which is its id in engines.
    pub id: String,
    /// The digest of its manifest.
    pub manifest: String,
    /// The reference that was added.
    pub reference: String,
    /// How many layers it has.
    pub layers: usize,
    /// Bytes of their blobs.
    pub size: u64,
    /// When it was added: RFC 3339.
    pub added: String,
}

impl Record {
    pub(super) fn new(image: &spec::ImageSpec, plan: &Plan, names: Vec<String>) -> Self {
        Self {
            version: VERSION,
            names,
            image: image.into(),
            root: plan.root.digest.clone(),
            manifest: plan.manifest.digest.clone(),
            config: plan.config.digest.clone(),
            layers: plan.layers.len(),
            size: plan.layers.iter().map(|layer| layer.blob.size).sum(),
            added: jiff::Timestamp::now().to_string(),
            documents: plan.documents.clone(),
        }
    }

    /// The same with these names.
    pub(super) fn named(&self, names: Vec<String>) -> Self {
        Self { names, ..self.clone() }
    }

    /// The reference that was added.
    pub(super) fn image(&self, on_outage: OnOutage) -> Result<spec::ImageSpec, super::super::wire::WireError> {
        self.image.clone().into_spec(on_outage)
    }

    pub(super) fn listed(&self) -> Listed {
        let reference =
            self.image(OnOutage::default()).map_or_else(|_| String::new(), |image| image.reference.to_string());
        Listed {
            names: self.names.clone(),
            id: self.config.hex().to_owned(),
            manifest: self.manifest.to_string(),
            reference,
            layers: self.layers,
            size: self.size,
            added: self.added.clone(),
        }
    }
}

/// Held while records are changed, or while the store is served.
pub(super) struct Lock {
    _file: File,
}

impl Records {
    /// The records of the store `at`; creates their directory if it is missing.
    pub(super) fn open(at: &Path) -> Result<Self, ImageStoreError> {
        let path = records_of(at);
        match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(ImageStoreError::file(&path)(error));
            }
            _ => {}
        }
        let directory = File::open(&path).map_err(ImageStoreError::file(&path))?;
        Ok(Self { at: at.to_owned(), path, directory })
    }

    /// Locks the records against changes by other processes.
    pub(super) fn lock(&self) -> Result<Lock, ImageStoreError> {
        let path = self.path.join("lock");
        let file = create_private(&path).map_err(ImageStoreError::file(&path))?;
        file.lock().map_err(ImageStoreError::file(&path))?;
        Ok(Lock { _file: file })
    }

    /// Locks the store against being served by other commands.
    pub(super) fn serve(&self) -> Result<Lock, ImageStoreError> {
        let path = self.path.join("serving");
        let file = create_private(&path).map_err(ImageStoreError::file(&path))?;
        let locked = file.try_lock();
        // The processes that this one starts hold it as well.
        match locked.and_then(|()| file.try_lock_shared()) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(ImageStoreError::Served { at: self.at.clone() }),
            Err(TryLockError::Error(cause)) => Err(ImageStoreError::file(&path)(cause)),
        }
    }

    /// Held by each process that serves the store, whatever becomes of the command.
    pub(super) fn join(&self) -> Result<Lock, ImageStoreError> {
        let path = self.path.join("serving");
        let file = create_private(&path).map_err(ImageStoreError::file(&path))?;
        match file.try_lock_shared() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(ImageStoreError::Served { at: self.at.clone() }),
            Err(TryLockError::Error(cause)) => Err(ImageStoreError::file(&path)(cause)),
        }
    }

    /// Whether a process serves the store, or is about to take over from one that did.
    pub(super) fn is_served(&self) -> bool {
        let file = File::open(self.path.join("serving"));
        file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// The socket of the serving process: by descriptor, as a socket path has at most 107 bytes.
    pub(super) fn socket(&self) -> PathBuf {
        format!("/proc/self/fd/{}/socket", self.directory.as_raw_fd()).into()
    }

    /// All records, by the hex of their configuration.
    pub(super) fn all(&self) -> Result<BTreeMap<String, Record>, ImageStoreError> {
        self.with_extension(LISTED)
    }

    /// Those of images that were removed since the store was mounted.
    pub(super) fn removed(&self) -> Result<BTreeMap<String, Record>, ImageStoreError> {
        self.with_extension(REMOVED)
    }

    fn with_extension(&self, wanted: &str) -> Result<BTreeMap<String, Record>, ImageStoreError> {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(&self.path).map_err(ImageStoreError::file(&self.path))? {
            let path = entry.map_err(ImageStoreError::file(&self.path))?.path();
            if path.extension().is_none_or(|extension| extension != wanted) {
                continue;
            }
            let text = match std::fs::read(&path) {
                Ok(text) => text,
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(cause) => return Err(ImageStoreError::file(&path)(cause)),
            };
            let wrong = |why: String| ImageStoreError::Record { path: path.clone(), why };
            let record: Record = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
            if record.version != VERSION {
                return Err(wrong(format!("it has version {}", record.version)));
            }
            all.insert(record.config.hex().to_owned(), record);
        }
        Ok(all)
    }

    /// Writes a record, completely or not at all.
    pub(super) fn write(&self, record: &Record) -> Result<(), ImageStoreError> {
        let path = self.file(record.config.hex(), LISTED);
        let text = serde_json::to_vec(record).expect("plain data");
        whole_file::write(&path, &text).map_err(ImageStoreError::file(&path))?;
        // It may have been removed before.
        let _ = std::fs::remove_file(self.file(record.config.hex(), REMOVED));
        Ok(())
    }

    /// Removes one. A process that takes the store over still finds it.
    pub(super) fn remove(&self, hex: &str) -> Result<(), ImageStoreError> {
        let path = self.file(hex, LISTED);
        std::fs::rename(&path, self.file(hex, REMOVED)).map_err(ImageStoreError::file(&path))
    }

    /// Forgets what was removed: the store is mounted anew, and no container uses that.
    pub(super) fn forget_removed(&self) -> Result<(), ImageStoreError> {
        for hex in self.removed()?.keys() {
            let path = self.file(hex, REMOVED);
            std::fs::remove_file(&path).map_err(ImageStoreError::file(&path))?;
        }
        Ok(())
    }

    fn file(&self, hex: &str, extension: &str) -> PathBuf {
        self.path.join(format!("{hex}.{extension}"))
    }

    /// What a process that showed the store before knew of it.
    pub(super) fn remembered(&self) -> Result<Option<Remembered>, ImageStoreError> {
        let path = self.path.join(NUMBERS);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(ImageStoreError::file(&path)(cause)),
        };
        let wrong = |why: String| ImageStoreError::Record { path: path.clone(), why };
        let remembered: Remembered = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if remembered.is_known() { Ok(Some(remembered)) } else { Err(wrong("it has another version".to_owned())) }
    }

    /// The file of that.
    pub(super) fn numbers(&self) -> PathBuf {
        self.path.join(NUMBERS)
    }

    /// What keeps that for the next one.
    pub(super) fn keep(&self) -> Keep {
        let path = self.path.join(NUMBERS);
        Arc::new(move |remembered| whole_file::write(&path, &serde_json::to_vec(remembered).expect("plain data")))
    }
}

const LISTED: &str = "json";
const REMOVED: &str = "removed";
const NUMBERS: &str = "numbers";
const VERSION: u32 = 1;
