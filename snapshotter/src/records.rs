//! Records of snapshots, on disk and in memory.
//!
//! ```text
//! records/ID.json   one snapshot: its name, kind, parent, labels, times; written whole, by rename, and synced
//! ```
//! Each operation changes one snapshot, so one file, and is atomic in a crash. Names are containerd's and may be
//! anything, so files are named by number. Completed operations are durable: containerd has its own records, and does
//! not pull again what it considers present.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use peelfs::digest::Digest;
use peelfs::host::whole_file;
use serde::{Deserialize, Serialize};

/// A snapshot.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Its directory.
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    /// The name of the snapshot it lies on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) created: Time,
    pub(crate) updated: Time,
    /// Its disk usage, once it does not change any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    /// The layer of an image that is mounted, not unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remote: Option<Remote>,
    /// containerd has changed owners in it for a user namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) remapped: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Cannot be written.
    View,
    /// Can be written.
    Active,
    /// Immutable; may be the parent of others.
    Committed,
}

/// Since 1970.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanos: i32,
}

impl Time {
    pub(crate) fn now() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { seconds: now.as_secs().cast_signed(), nanos: now.subsec_nanos().cast_signed() }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// A layer of an image that is mounted, with those below it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remote {
    /// Its chain id.
    pub(crate) chain: Digest,
    /// How many layers of the image are mounted for it.
    pub(crate) layers: u16,
    /// How many it has.
    pub(crate) of: u16,
    /// The image, as it was named, and its manifest.
    pub(crate) reference: String,
    pub(crate) manifest: Digest,
    /// The layer itself.
    pub(crate) blob: Digest,
    pub(crate) diff_id: Digest,
}

impl Record {
    pub(crate) fn new(id: u64, kind: Kind) -> Self {
        let (parent, labels, now) = (None, BTreeMap::new(), Time::now());
        Self { id, kind, parent, labels, created: now, updated: now, usage: None, remote: None, remapped: false }
    }
}

/// The content of its file.
#[derive(Deserialize, Serialize)]
struct Named<T> {
    name: String,
    #[serde(flatten)]
    record: T,
}

/// All snapshots.
#[derive(Debug)]
pub(crate) struct Records {
    directory: PathBuf,
    /// Synced after each change.
    synced: File,
    known: RwLock<Known>,
    /// Held by the one operation that changes something; the next number.
    changing: Mutex<u64>,
}

/// The snapshots by name.
#[derive(Debug, Default)]
pub(crate) struct Known {
    all: BTreeMap<String, Record>,
    children: HashMap<String, usize>,
}

/// Why an operation was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("there is no snapshot `{0}`")]
    NotFound(String),
    #[error("there is a snapshot `{0}` already")]
    Exists(String),
    #[error("the snapshot `{name}` {why}")]
    Precondition { name: String, why: &'static str },
    #[error("cannot write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

impl Records {
    /// Those in `directory`, which is made if it is missing; numbers below `first` are not used.
    pub(crate) fn open(directory: PathBuf, first: u64) -> Result<Self, RecordError> {
        let failed = |path: &Path, cause| RecordError::Read { path: path.to_owned(), cause };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(|e| failed(&directory, e))?;
        let synced = File::open(&directory).map_err(|e| failed(&directory, e))?;
        let (mut known, mut next) = (Known::default(), first.max(1));
        for entry in std::fs::read_dir(&directory).map_err(|e| failed(&directory, e))? {
            let path = entry.map_err(|e| failed(&directory, e))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // It was being written when the process ended.
                let _ = std::fs::remove_file(&path);
                continue;
            }
            let text = std::fs::read(&path).map_err(|e| failed(&path, e))?;
            let Named { name, record } =
                serde_json::from_slice::<Named<Record>>(&text).map_err(|e| failed(&path, e.into()))?;
            next = next.max(record.id + 1);
            known.put(name, record);
        }
        Ok(Self { directory, synced, known: RwLock::new(known), changing: Mutex::new(next) })
    }

    /// The current snapshots.
    pub(crate) fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation: until it ends, nothing else changes.
    pub(crate) fn change(&self) -> Change<'_> {
        Change { records: self, next: self.changing.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    fn path(&self, id: u64) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

/// An operation that changes one snapshot.
pub(crate) struct Change<'a> {
    records: &'a Records,
    next: MutexGuard<'a, u64>,
}

impl Change<'_> {
    /// A number that no snapshot has had.
    pub(crate) fn new_id(&mut self) -> u64 {
        *self.next += 1;
        *self.next - 1
    }

    pub(crate) fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.records.known()
    }

    /// Writes a snapshot under `name`, which is new; `before` is what it was called before.
    pub(crate) fn put(&self, name: &str, record: Record, before: Option<&str>) -> Result<(), RecordError> {
        let path = self.records.path(record.id);
        let named = Named { name: name.to_owned(), record: &record };
        let text = serde_json::to_vec(&named).map_err(Into::into);
        let written = text.and_then(|text| whole_file::write(&path, &text));
        written.map_err(|cause| RecordError::Write { path, cause })?;
        let mut known = self.records.known.write().unwrap_or_else(PoisonError::into_inner);
        before.into_iter().for_each(|before| known.take(before));
        known.put(name.to_owned(), record);
        Ok(())
    }

    /// Removes a snapshot without children.
    pub(crate) fn remove(&self, name: &str) -> Result<Record, RecordError> {
        let known = self.known();
        let record = known.get(name)?.clone();
        if known.has_children(name) {
            return Err(RecordError::Precondition { name: name.to_owned(), why: "cannot be removed: it has children" });
        }
        drop(known);
        let path = self.records.path(record.id);
        let removed = std::fs::remove_file(&path).and_then(|()| self.records.synced.sync_all());
        match removed {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(RecordError::Write { path, cause }),
            _ => {}
        }
        self.records.known.write().unwrap_or_else(PoisonError::into_inner).take(name);
        Ok(record)
    }
}

impl Known {
    fn put(&mut self, name: String, record: Record) {
        self.take(&name);
        if let Some(parent) = &record.parent {
            *self.children.entry(parent.clone()).or_default() += 1;
        }
        self.all.insert(name, record);
    }

    fn take(&mut self, name: &str) {
        let Some(parent) = self.all.remove(name).and_then(|record| record.parent) else { return };
        if let Some(count) = self.children.get_mut(&parent) {
            *count -= 1;
            if *count == 0 {
                self.children.remove(&parent);
            }
        }
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Record, RecordError> {
        self.all.get(name).ok_or_else(|| RecordError::NotFound(name.to_owned()))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.all.contains_key(name)
    }

    pub(crate) fn has_children(&self, name: &str) -> bool {
        self.children.contains_key(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Record)> {
        self.all.iter()
    }

    /// The snapshot `name` lies on, the one below that, and so on.
    pub(crate) fn below<'a>(&'a self, record: &'a Record) -> impl Iterator<Item = Result<&'a Record, RecordError>> {
        let mut next = record.parent.as_deref();
        // A parent exists before its child, so this ends.
        std::iter::from_fn(move || {
            let found = self.get(next?);
            next = found.as_ref().ok().and_then(|record| record.parent.as_deref());
            Some(found)
        })
    }

    /// The committed layer with this chain id that lies on `parent`.
    pub(crate) fn remote(&self, chain: &Digest, parent: Option<&str>) -> Option<(&String, &Record)> {
        let is_it = |record: &Record| record.remote.as_ref().is_some_and(|remote| remote.chain == *chain);
        self.all.iter().find(|(_, record)| record.parent.as_deref() == parent && is_it(record))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn on(parent: &str, id: u64) -> Record {
        Record { parent: Some(parent.to_owned()), ..Record::new(id, Kind::Active) }
    }

    #[test]
    fn what_was_written_is_known_after_a_restart() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("records");
        let records = Records::open(directory.clone(), 0).unwrap();
        let mut change = records.change();
        let (base, child) = (change.new_id(), change.new_id());
        change.put("base/with slash", Record::new(base, Kind::Committed), None).unwrap();
        change.put("key", on("base/with slash", child), None).unwrap();
        let committed = Record { kind: Kind::Committed, ..on("base/with slash", child) };
        change.put("name", committed.clone(), Some("key")).unwrap();
        drop(change);
        // Cut off while it was written.
        std::fs::write(directory.join("9.new"), "{").unwrap();
        drop(records);
        let records = Records::open(directory.clone(), 0).unwrap();
        assert_eq!(records.known().get("name").unwrap(), &committed);
        assert!(!records.known().has("key") && !directory.join("9.new").exists());
        assert!(records.change().new_id() > child, "numbers are not given twice");
    }

    #[test]
    fn a_snapshot_that_others_lie_on_is_not_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let records = Records::open(scratch.path().join("records"), 0).unwrap();
        let change = records.change();
        change.put("base", Record::new(1, Kind::Committed), None).unwrap();
        change.put("key", on("base", 2), None).unwrap();
        assert!(matches!(change.remove("base"), Err(RecordError::Precondition { .. })));
        assert_eq!(change.remove("key").unwrap().id, 2);
        change.remove("base").unwrap();
        assert!(matches!(change.remove("base"), Err(RecordError::NotFound(_))));
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_its_file() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("records");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("3.json"), "{\"name\":").unwrap();
        let error = Records::open(directory, 0).unwrap_err();
        assert!(error.to_string().contains("3.json"), "{error}");
    }
}
