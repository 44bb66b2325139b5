//! Records of a store's images, one file each, from which they are opened again.
//!
//! ```text
//! DIR.images/lock        held while records are changed
//! DIR.images/serving     held by the serving process
//! DIR.images/socket      receives notifications of changes
//! DIR.images/HEX.json    an image: HEX is the digest of its configuration
//! ```

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ImageStoreError, records_of};
use crate::digest::Digest;
use crate::host::handover::create_private;
use crate::host::spec;
use crate::host::whole_file;
use crate::host::wire::v1;
use crate::image::{Documents, Plan};
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
        self.image.clone().meant(on_outage)
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

    /// Locks the store against being served by other processes.
    pub(super) fn serve(&self) -> Result<Lock, ImageStoreError> {
        let path = self.path.join("serving");
        let file = create_private(&path).map_err(ImageStoreError::file(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(ImageStoreError::Served { at: self.at.clone() }),
            Err(TryLockError::Error(cause)) => Err(ImageStoreError::file(&path)(cause)),
        }
    }

    /// The socket of the serving process: by descriptor, as a socket path has at most 107 bytes.
    pub(super) fn socket(&self) -> PathBuf {
        format!("/proc/self/fd/{}/socket", self.directory.as_raw_fd()).into()
    }

    /// All records, by the hex of their configuration.
    pub(super) fn all(&self) -> Result<BTreeMap<String, Record>, ImageStoreError> {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(&self.path).map_err(ImageStoreError::file(&self.path))? {
            let path = entry.map_err(ImageStoreError::file(&self.path))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
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
        let path = self.path.join(format!("{}.json", record.config.hex()));
        let text = serde_json::to_vec(record).expect("plain data");
        whole_file::write(&path, &text).map_err(ImageStoreError::file(&path))
    }

    /// Removes one.
    pub(super) fn remove(&self, hex: &str) -> Result<(), ImageStoreError> {
        let path = self.path.join(format!("{hex}.json"));
        std::fs::remove_file(&path).map_err(ImageStoreError::file(&path))
    }
}

const VERSION: u32 = 1;
