//! Applies tar entries to the tree, as containerd's unpacker does.

use super::path::{clean, join, shown, split_first, split_last};
use super::{DEPTH_MAX, LayerTree, NAME_MAX, TARGET_MAX, TreeError, WHITEOUT, too_long, too_many};
use crate::layer::entry::{EntryId, Flags, Kind, Record, Timestamp};
use crate::layer::tar::{TarEntry, TarKind, TarSink};
use crate::layer::xattrs::{NAME_LIMIT, VALUE_LIMIT};

/// Limit for symlinks per path, as in containerd.
const LINKS_PER_PATH: usize = 255;
const META: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..opq";

/// Target of a path within a layer.
pub(super) enum Found {
    Directory(EntryId),
    /// Not in this layer: the path with this layer's symlinks resolved.
    Elsewhere(Vec<u8>),
    /// This layer hides it in lower layers, or has a file in its place.
    Hidden,
}

/// How a walk handles directories that the layer does not have.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Missing {
    /// Creates implied directories, as they get an entry.
    Imply,
    /// Records the path of a whiteout, which creates no directory.
    PassThrough,
    Report,
}

impl TarSink for LayerTree {
    type Error = TreeError;

    fn accept(&mut self, entry: &TarEntry<'_>) -> Result<(), TreeError> {
        self.add(entry)
    }
}

impl LayerTree {
    /// Applies the next tar entry, as containerd's unpacker does.
    ///
    /// # Errors
    /// [`TreeError`] if no unpacker could apply it or a limit is exceeded; the tree must not be used afterwards.
    pub fn add(&mut self, entry: &TarEntry<'_>) -> Result<(), TreeError> {
        let path = clean(entry.path, self.limits.path)?;
        if path.is_empty() {
            return self.describe_root(entry);
        }
        let (parent_path, name) = split_last(&path);
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.white_out(parent_path, hidden, &path);
        }
        let parent = self.parent(parent_path)?;
        match entry.kind {
            TarKind::HardLink(target) => self.link(parent, name, target, entry, &path),
            _ => self.put(parent, name, entry, &path),
        }
    }

    /// Hides `hidden` in the lower layers, or everything if it is the opaque marker.
    fn white_out(&mut self, parent_path: &[u8], hidden: &[u8], path: &[u8]) -> Result<(), TreeError> {
        match hidden {
            b"" | b"." | b".." => return Err(TreeError::Whiteout { path: shown(path) }),
            OPAQUE => {}
            _ if hidden.starts_with(META) => {
                self.ignored += 1;
                return Ok(());
            }
            _ => {}
        }
        let parent = match &self.last_parent {
            Some((last, id)) if last == parent_path => *id,
            _ => match self.walk(parent_path, Missing::PassThrough)? {
                Found::Directory(parent) => parent,
                Found::Hidden | Found::Elsewhere(_) => return Ok(()),
            },
        };
        match hidden {
            OPAQUE => {
                self.nodes[parent.index()].record.flags.set(Flags::OPAQUE);
                Ok(())
            }
            _ => self.hide(parent, hidden),
        }
    }

    fn describe_root(&mut self, entry: &TarEntry<'_>) -> Result<(), TreeError> {
        if !matches!(entry.kind, TarKind::Directory) {
            self.ignored += 1;
            return Ok(());
        }
        let described = self.describe(entry, EntryId::ROOT, &[])?;
        self.redescribe_directory(EntryId::ROOT, &described);
        Ok(())
    }

    /// The directory of a cleaned parent path, created if it is missing.
    fn parent(&mut self, path: &[u8]) -> Result<EntryId, TreeError> {
        if let Some((last, id)) = &self.last_parent
            && last == path
        {
            return Ok(*id);
        }
        let Found::Directory(id) = self.walk(path, Missing::Imply)? else {
            unreachable!("missing directories are created")
        };
        self.last_parent = Some((path.to_vec(), id));
        Ok(id)
    }

    /// Resolves a cleaned path, through symlinks of this layer, to a directory.
    ///
    /// A `..` in a symlink's target goes back over a missing name without creating it, as in containerd.
    pub(super) fn walk(&mut self, path: &[u8], missing: Missing) -> Result<Found, TreeError> {
        let mut directory = EntryId::ROOT;
        // Missing names below `directory`; below a missing name nothing exists.
        let mut absent: Vec<Vec<u8>> = Vec::new();
        let mut depth = 0_usize;
        let mut links = 0;
        let mut rewritten: Vec<u8>;
        let mut rest = path;
        while !rest.is_empty() {
            let (name, after) = split_first(rest);
            rest = after;
            if links > 0 {
                self.link_steps += 1;
                if self.link_steps > self.limits.link_steps {
                    return Err(TreeError::TooManyLinks { path: shown(path) });
                }
            }
            match name {
                b"" | b"." => continue,
                b".." => {
                    depth = depth.saturating_sub(1);
                    if absent.pop().is_none() {
                        directory = EntryId(self.nodes[directory.index()].record.parent);
                    }
                    continue;
                }
                _ => {}
            }
            if name.len() > NAME_MAX {
                return Err(too_long(name));
            }
            depth += 1;
            if depth > DEPTH_MAX {
                return Err(TreeError::TooDeep { path: shown(path) });
            }
            let there = if absent.is_empty() { self.child(directory, name) } else { None };
            match there.map(|id| (id, self.entry(id).kind())) {
                None | Some((_, Kind::Whiteout)) => absent.push(name.to_vec()),
                Some((id, Kind::Directory)) => directory = id,
                Some((id, Kind::Symlink)) => {
                    links += 1;
                    if links > LINKS_PER_PATH {
                        return Err(TreeError::TooManyLinks { path: shown(path) });
                    }
                    let target = self.symlink_target(id).expect("it is a symlink");
                    let joined = [target, b"/", rest].concat();
                    if joined.len() > self.limits.path + TARGET_MAX {
                        return Err(TreeError::PathTooLong { len: joined.len(), limit: self.limits.path });
                    }
                    if target.starts_with(b"/") {
                        (directory, depth) = (EntryId::ROOT, 0);
                    } else {
                        depth -= 1;
                    }
                    rewritten = joined;
                    rest = &rewritten;
                }
                Some(_) if missing == Missing::PassThrough => return Ok(Found::Hidden),
                Some(_) => return Err(TreeError::NotADirectory { path: shown(path), at: name.to_vec() }),
            }
        }
        match missing {
            Missing::Report if absent.is_empty() => {}
            Missing::Report => return Ok(Found::Elsewhere(join(&self.path(directory), &absent.join(&b'/')))),
            Missing::PassThrough => {
                // Only the first missing name can have a whiteout.
                let hidden = absent.first().is_some_and(|name| self.child(directory, name).is_some());
                if hidden || self.hides_what_is_in(directory) {
                    return Ok(Found::Hidden);
                }
                for name in absent {
                    directory = self.imply(directory, &name, Flags::IMPLIED | Flags::WHITEOUT_PATH, None)?;
                }
            }
            Missing::Imply => {
                self.exists(directory);
                for name in absent {
                    let whiteout = self.child(directory, &name);
                    directory = self.imply(directory, &name, Flags::IMPLIED, whiteout)?;
                }
            }
        }
        Ok(Found::Directory(directory))
    }

    /// Whether a directory only contains whiteouts, and is itself hidden by one.
    pub(super) fn is_whiteout(&self, id: EntryId) -> bool {
        self.nodes[id.index()].record.flags.has(Flags::WHITEOUT_PATH | Flags::HIDES_LOWER)
    }

    /// Whether the content of a directory in lower layers is already hidden.
    fn hides_what_is_in(&self, mut directory: EntryId) -> bool {
        loop {
            let record = &self.nodes[directory.index()].record;
            if record.flags.has(Flags::OPAQUE) || self.is_whiteout(directory) {
                return true;
            }
            if directory == EntryId::ROOT {
                return false;
            }
            directory = EntryId(record.parent);
        }
    }

    /// Marks a directory that only contained whiteouts, and its parents, as existing.
    pub(super) fn exists(&mut self, mut directory: EntryId) {
        while self.nodes[directory.index()].record.flags.has(Flags::WHITEOUT_PATH) {
            let record = &mut self.nodes[directory.index()].record;
            record.flags.clear(Flags::WHITEOUT_PATH);
            if record.flags.has(Flags::HIDES_LOWER) {
                record.flags.set(Flags::OPAQUE);
            }
            directory = EntryId(record.parent);
        }
    }

    /// Creates an implied directory, in place of a whiteout if there is one.
    fn imply(
        &mut self,
        parent: EntryId,
        name: &[u8],
        flags: Flags,
        whiteout: Option<EntryId>,
    ) -> Result<EntryId, TreeError> {
        let id = self.fresh(Record { flags, ..Record::implied(parent, EntryId(self.len())) }, name)?;
        if let Some(whiteout) = whiteout {
            self.detach(whiteout);
        }
        self.hook(id, parent);
        if whiteout.is_some() {
            self.hides_lower(id);
        }
        Ok(id)
    }

    /// Adds a whiteout of `name`.
    fn hide(&mut self, parent: EntryId, name: &[u8]) -> Result<(), TreeError> {
        if let Some(there) = self.child(parent, name) {
            self.hides_lower(there);
            return Ok(());
        }
        let id = EntryId(self.len());
        let record = Record { kind: Kind::Whiteout, flags: Flags::default(), mode: 0, ..Record::implied(parent, id) };
        let id = self.fresh(record, name)?;
        self.hook(id, parent);
        Ok(())
    }

    /// Adds any entry except a hard link.
    fn put(&mut self, parent: EntryId, name: &[u8], entry: &TarEntry<'_>, path: &[u8]) -> Result<(), TreeError> {
        let id = EntryId(self.len());
        let described = self.describe(entry, id, path)?;
        let there = self.child(parent, name);
        if let Some(there) = there
            && described.kind == Kind::Directory
            && self.nodes[there.index()].record.kind == Kind::Directory
            && self.nodes[there.index()].record.inode == there.0
        {
            self.exists(there);
            self.redescribe_directory(there, &described);
            return Ok(());
        }
        let id = self.fresh(described, name)?;
        self.take_place(id, parent, there);
        Ok(())
    }

    /// Adds a hard link: another name for an inode of this layer or of a lower one.
    fn link(
        &mut self,
        parent: EntryId,
        name: &[u8],
        target: &[u8],
        entry: &TarEntry<'_>,
        path: &[u8],
    ) -> Result<(), TreeError> {
        let to_directory = || TreeError::LinkToDirectory { path: shown(path), target: shown(target) };
        let target_path = clean(target, self.limits.path)?;
        if target_path.is_empty() {
            return Err(to_directory());
        }
        let there = self.child(parent, name);
        let (target_parent, target_name) = split_last(&target_path);
        let mut lower = match self.walk(target_parent, Missing::Report)? {
            Found::Hidden => unreachable!("only whiteouts are told so"),
            Found::Elsewhere(reached) => join(&reached, target_name),
            Found::Directory(directory) => {
                let exists = |id: &EntryId| !self.nodes[id.index()].record.flags.has(Flags::WHITEOUT_PATH);
                let found = self.child(directory, target_name).filter(exists);
                if let Some(itself) = found
                    && found == there
                {
                    // A link to itself has no effect.
                    return match self.entry(itself).kind() {
                        Kind::Directory => Err(to_directory()),
                        _ => Ok(()),
                    };
                }
                // The unpacker removes an existing entry before it looks for the target.
                if let Some(there) = there
                    && self.nodes[there.index()].record.kind == Kind::Directory
                    && found.is_some_and(|found| self.is_below(found, there))
                {
                    join(&self.path(directory), target_name)
                } else {
                    let inode = found.map(|id| self.nodes[id.index()].record.inode);
                    match inode.map(|inode| (inode, self.nodes[inode as usize].record.kind)) {
                        Some((_, Kind::Directory)) => return Err(to_directory()),
                        None | Some((_, Kind::Whiteout)) => join(&self.path(directory), target_name),
                        Some((inode, _)) => {
                            let described = self.describe(entry, EntryId(inode), path)?;
                            let kind = self.nodes[inode as usize].record.kind;
                            let record = Record { inode, kind, nlink: 0, ..described };
                            let id = self.fresh(record, name)?;
                            self.nodes[inode as usize].record.nlink += 1;
                            self.take_place(id, parent, there);
                            self.redescribe(EntryId(inode), &described);
                            return Ok(());
                        }
                    }
                }
            }
        };
        if lower.len() > self.limits.path {
            return Err(TreeError::PathTooLong { len: lower.len(), limit: self.limits.path });
        }
        let described = self.describe(entry, EntryId(self.len()), path)?;
        let (a, b) = self.keep(&std::mem::take(&mut lower))?;
        let id = self.fresh(Record { kind: Kind::LowerLink, a, b, ..described }, name)?;
        self.take_place(id, parent, there);
        Ok(())
    }

    pub(super) fn is_below(&self, mut id: EntryId, ancestor: EntryId) -> bool {
        while id != EntryId::ROOT {
            if id == ancestor {
                return true;
            }
            id = EntryId(self.nodes[id.index()].record.parent);
        }
        false
    }

    /// Puts `id` in the place of `there`: an entry replaced in one layer hides those in lower layers.
    fn take_place(&mut self, id: EntryId, parent: EntryId, there: Option<EntryId>) {
        if let Some(there) = there {
            self.detach(there);
        }
        self.hook(id, parent);
        if there.is_some() {
            self.hides_lower(id);
        }
    }

    pub(super) fn hides_lower(&mut self, id: EntryId) {
        let record = &mut self.nodes[id.index()].record;
        if record.kind == Kind::Whiteout {
            return;
        }
        record.flags.set(Flags::HIDES_LOWER);
        if record.kind == Kind::Directory && !record.flags.has(Flags::WHITEOUT_PATH) {
            record.flags.set(Flags::OPAQUE);
        }
    }

    /// The record of a tar entry, without its name.
    fn describe(&mut self, entry: &TarEntry<'_>, id: EntryId, path: &[u8]) -> Result<Record, TreeError> {
        for xattr in entry.xattrs {
            let (name, value) = (xattr.name.len(), xattr.value.len());
            if name == 0 || name > NAME_LIMIT || value > VALUE_LIMIT {
                return Err(TreeError::Xattr { path: shown(path), name, value });
            }
        }
        let xattrs = self.xattrs.intern(entry.xattrs, self.limits.xattrs);
        let xattrs = xattrs.ok_or(too_many("bytes of extended attributes", self.limits.xattrs as u64))?;
        self.is_in_proportion(0)?;
        let Timestamp { seconds, nanos } = entry.mtime;
        let mut record = Record {
            flags: Flags::default(),
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            mtime: seconds,
            mtime_nanos: nanos,
            xattrs,
            ..Record::implied(EntryId::ROOT, id)
        };
        match entry.kind {
            TarKind::Directory => record.kind = Kind::Directory,
            TarKind::Fifo => record.kind = Kind::Fifo,
            TarKind::CharDevice(device) | TarKind::BlockDevice(device) => {
                let block = matches!(entry.kind, TarKind::BlockDevice(_));
                record.kind = if block { Kind::BlockDevice } else { Kind::CharDevice };
                record.a = u64::from(device.major) << 32 | u64::from(device.minor);
            }
            TarKind::Symlink(target) => {
                if target.contains(&0) {
                    return Err(TreeError::Nul { path: shown(target) });
                }
                if target.is_empty() || target.len() > TARGET_MAX {
                    return Err(TreeError::TargetLength { path: shown(path), len: target.len() });
                }
                record.kind = Kind::Symlink;
                record.mode = 0o777;
                (record.a, record.b) = self.keep(target)?;
            }
            TarKind::HardLink(_) => {}
            TarKind::File { size, data, extents } => {
                record.kind = Kind::File;
                (record.a, record.b) = (size, data.0);
                if let Some(runs) = extents {
                    record.flags.set(Flags::SPARSE);
                    record.b = self.keep_runs(runs)?;
                }
            }
        }
        Ok(record)
    }

    /// Applies the metadata of a later entry for a directory, which replaces the earlier one, as if they were in two
    /// layers.
    fn redescribe_directory(&mut self, id: EntryId, described: &Record) {
        self.redescribe(id, described);
        self.nodes[id.index()].record.xattrs = described.xattrs;
    }

    /// Applies the metadata of a later hard link to the inode.
    pub(super) fn redescribe(&mut self, id: EntryId, described: &Record) {
        let record = &mut self.nodes[id.index()].record;
        record.flags.clear(Flags::IMPLIED);
        if record.kind != Kind::Symlink {
            record.mode = described.mode;
        }
        // Many tools write extended attributes only with the first name of a file.
        if described.xattrs != 0 {
            record.xattrs = described.xattrs;
        }
        (record.uid, record.gid) = (described.uid, described.gid);
        (record.mtime, record.mtime_nanos) = (described.mtime, described.mtime_nanos);
    }
}
