//! Versions of a path: what each layer of an image has at it, and what that does to the layers below.
//!
//! The merged tree has one version of each path, the uppermost. What an image is made of is told by the others as
//! well: which layer brought a file, which one changed or removed it, and how many bytes nothing shows any more. This
//! reads the layers' indexes only, never the bytes of a file.

use std::collections::HashMap;
use std::sync::Arc;

use super::fs::{FsError, ImageFs, not_now};
use crate::layer::{Entry, EntryId, Flags, IndexError, Kind, LayerIndex, is_hidden};
use crate::overlay::LayerNo;

/// The indexes of an image's upper layers, as they are merged in it.
pub struct LayerIndexes {
    first: u16,
    indexes: Vec<Arc<LayerIndex>>,
}

/// What one layer has at a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Version {
    /// The layer.
    pub layer: LayerNo,
    /// Whether the versions of lower layers do not show through: there is a whiteout, or a directory above is opaque, was
    /// removed or replaced.
    pub hides: bool,
    /// What it puts there.
    pub entry: Option<EntryId>,
}

/// A name of a directory, with its versions, the lowest first.
pub type NamedVersions<'a> = (&'a [u8], Vec<Version>);

/// What a layer does to a path.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Effect {
    /// There was nothing.
    Adds,
    /// There was something else, or a directory with other metadata.
    Changes,
    /// There is nothing any more.
    Removes,
}

/// One layer's change of a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Change {
    /// The layer.
    pub layer: LayerNo,
    /// What it does.
    pub effect: Effect,
    /// Its entry, unless it removes the path.
    pub entry: Option<EntryId>,
    /// What there was: the layer and its entry.
    pub before: Option<(LayerNo, EntryId)>,
}

/// What a layer does to the image.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LayerSummary {
    /// Paths that it adds.
    pub adds: u64,
    /// Paths that it changes.
    pub changes: u64,
    /// Paths that it removes, with all that was in removed directories.
    pub removes: u64,
    /// Bytes of its files; hard links count once.
    pub bytes: u64,
    /// Bytes of its files that a higher layer replaces or removes.
    pub wasted: u64,
}

/// A file that a higher layer replaces or removes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Waste {
    /// Its path from the root, without a leading slash.
    pub path: Vec<u8>,
    /// The layer that has it.
    pub layer: LayerNo,
    /// The layer that replaces or removes it.
    pub by: LayerNo,
    /// Its size.
    pub bytes: u64,
}

impl ImageFs {
    /// The indexes of the layers from `first` up, once they are available.
    ///
    /// # Errors
    /// [`FsError`]
    pub async fn layer_indexes(&self, first: LayerNo) -> Result<LayerIndexes, FsError> {
        let mut indexes = Vec::new();
        for number in (first.0..self.overlay.layer_count()).map(LayerNo) {
            indexes.push(self.awaited(|fs| fs.overlay.index(number).map_err(not_now)).await?);
        }
        Ok(LayerIndexes { first: first.0, indexes })
    }
}

impl LayerIndexes {
    /// The index of a layer.
    pub fn of_layer(&self, layer: LayerNo) -> &LayerIndex {
        &self.indexes[usize::from(layer.0 - self.first)]
    }

    /// The versions of the root, the lowest first.
    ///
    /// # Errors
    /// [`FsError::Malformed`]
    pub fn root(&self) -> Result<Vec<Version>, FsError> {
        let layers = (self.first..).map(LayerNo).take(self.indexes.len());
        Ok(layers.map(|layer| Version { layer, hides: false, entry: Some(EntryId::ROOT) }).collect())
    }

    /// The versions of `name` in a directory of these versions, the lowest first.
    ///
    /// # Errors
    /// [`FsError::Malformed`]
    pub fn child(&self, dir: &[Version], name: &[u8]) -> Result<Vec<Version>, FsError> {
        let mut found = Vec::new();
        for version in dir {
            let index = self.of_layer(version.layer);
            let id = match version.entry {
                Some(entry) if !is_hidden(name) => index.child(entry, name).map_err(malformed(version.layer))?,
                _ => None,
            };
            found.extend(self.below(*version, id)?);
        }
        Ok(found)
    }

    /// All names of a directory of these versions, sorted by bytes, each with its versions, the lowest first.
    ///
    /// # Errors
    /// [`FsError::Malformed`]
    pub fn children(&self, dir: &[Version]) -> Result<Vec<NamedVersions<'_>>, FsError> {
        // Each layer's own entries, in the order of the layers.
        let mut entries: Vec<(&[u8], usize, EntryId)> = Vec::new();
        for (place, version) in dir.iter().enumerate() {
            let Some(entry) = version.entry else { continue };
            let index = self.of_layer(version.layer);
            for id in index.children(entry).map_err(malformed(version.layer))? {
                let id = id.map_err(malformed(version.layer))?;
                let name = index.name(id).map_err(malformed(version.layer))?;
                if !is_hidden(name) {
                    entries.push((name, place, id));
                }
            }
        }
        if dir.len() > 1 {
            entries.sort_unstable_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        }
        let mut children = Vec::new();
        for of_name in entries.chunk_by(|a, b| a.0 == b.0) {
            let mut versions = Vec::with_capacity(of_name.len());
            let mut own = of_name.iter().peekable();
            for (place, version) in dir.iter().enumerate() {
                let id = own.next_if(|(_, at, _)| *at == place).map(|(.., id)| *id);
                versions.extend(self.below(*version, id)?);
            }
            children.push((of_name[0].0, versions));
        }
        Ok(children)
    }

    /// The version of a name whose entry is `id`, in a directory with the version `dir`.
    fn below(&self, dir: Version, id: Option<EntryId>) -> Result<Option<Version>, FsError> {
        let Version { layer, .. } = dir;
        let mut version = Version { entry: None, ..dir };
        if let Some(above) = dir.entry {
            let above = self.entry(layer, above)?;
            version.hides |= above.kind() != Kind::Directory || above.is(Flags::OPAQUE);
        }
        if let Some(id) = id {
            let entry = self.entry(layer, id)?;
            version.hides |= entry.kind() == Kind::Whiteout || entry.is(Flags::HIDES_LOWER);
            version.entry = (entry.kind() != Kind::Whiteout).then_some(id);
        }
        Ok((version.hides || version.entry.is_some()).then_some(version))
    }

    /// What each layer does to the path of these versions, the lowest first.
    ///
    /// # Errors
    /// [`FsError::Malformed`]
    pub fn changes(&self, versions: &[Version]) -> Result<Vec<Change>, FsError> {
        let (mut changes, mut shown) = (Vec::new(), None::<(LayerNo, EntryId)>);
        for Version { layer, hides, entry } in versions.iter().copied() {
            let before = shown;
            let own = entry.map(|id| self.entry(layer, id).map(|entry| (id, entry))).transpose()?;
            // A directory of whiteouts alone is only there if a lower layer has it.
            let own = own.filter(|(_, entry)| !entry.is(Flags::WHITEOUT_PATH));
            let effect = match (before, own) {
                (None, None) => continue,
                (Some(_), None) if hides => Effect::Removes,
                (Some(_), None) => continue,
                (None, Some(_)) => Effect::Adds,
                (Some((below, id)), Some((_, entry))) => {
                    if entry.kind() == Kind::Directory && !self.differs(&entry, below, id)? {
                        // It stays the same directory, in so far.
                        if !entry.is(Flags::IMPLIED) {
                            shown = Some((layer, own.map_or(EntryId::ROOT, |(id, _)| id)));
                        }
                        continue;
                    }
                    Effect::Changes
                }
            };
            shown = own.map(|(id, _)| (layer, id));
            changes.push(Change { layer, effect, entry: shown.map(|(_, id)| id), before });
        }
        Ok(changes)
    }

    /// Whether a directory's entry changes what a lower layer has in its place.
    fn differs(&self, dir: &Entry, below: LayerNo, id: EntryId) -> Result<bool, FsError> {
        let lower = self.entry(below, id)?;
        let metadata = |entry: &Entry| (entry.mode(), entry.uid(), entry.gid(), entry.mtime());
        let same = dir.is(Flags::IMPLIED) || lower.is(Flags::IMPLIED) || metadata(dir) == metadata(&lower);
        Ok(lower.kind() != Kind::Directory || !same)
    }

    /// What each layer does, the lowest first; calls `waste` for each file that a higher layer replaces or removes. All
    /// layers must be among these.
    ///
    /// # Errors
    /// [`FsError::Malformed`]
    pub fn summaries(&self, waste: &mut dyn FnMut(Waste)) -> Result<Vec<LayerSummary>, FsError> {
        let mut counting =
            Counting { of: self, layers: vec![LayerSummary::default(); self.indexes.len()], linked: HashMap::new() };
        let mut path = Vec::new();
        // The rest of each directory on the way, and the length of its path.
        let mut open = vec![(0, self.children(&self.root()?)?.into_iter())];
        while let Some((length, rest)) = open.last_mut() {
            path.truncate(*length);
            let Some((name, versions)) = rest.next() else {
                open.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            counting.path(&path, &versions, waste)?;
            if open.len() < DEEPEST && self.is_directory(&versions)? {
                open.push((path.len(), self.children(&versions)?.into_iter()));
            }
        }
        Ok(counting.layers)
    }

    /// Whether any layer has a directory there.
    fn is_directory(&self, versions: &[Version]) -> Result<bool, FsError> {
        for version in versions {
            if let Some(id) = version.entry
                && self.entry(version.layer, id)?.kind() == Kind::Directory
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// An entry of a layer.
    ///
    /// # Errors
    /// [`FsError::Malformed`]
    pub fn entry(&self, layer: LayerNo, id: EntryId) -> Result<Entry, FsError> {
        self.of_layer(layer).entry(id).map_err(malformed(layer))
    }
}

/// Sums over a walk.
struct Counting<'a> {
    of: &'a LayerIndexes,
    layers: Vec<LayerSummary>,
    /// Names of files of several names that are wasted, by layer and inode.
    linked: HashMap<(LayerNo, EntryId), u32>,
}

impl Counting<'_> {
    fn path(&mut self, path: &[u8], versions: &[Version], waste: &mut dyn FnMut(Waste)) -> Result<(), FsError> {
        for version in versions {
            let Some(id) = version.entry else { continue };
            let entry = self.of.entry(version.layer, id)?;
            // A hard link's bytes are those of its first name.
            if entry.kind() == Kind::File && entry.inode() == id {
                self.of_layer(version.layer).bytes += entry.size();
            }
        }
        for change in self.of.changes(versions)? {
            let summary = self.of_layer(change.layer);
            match change.effect {
                Effect::Adds => summary.adds += 1,
                Effect::Changes => summary.changes += 1,
                Effect::Removes => summary.removes += 1,
            }
            let Some((layer, id)) = change.before else { continue };
            let entry = self.of.entry(layer, id)?;
            if entry.kind() != Kind::File || entry.size() == 0 {
                continue;
            }
            let names = self.linked.entry((layer, entry.inode())).or_default();
            *names += 1;
            if *names < entry.nlink() {
                continue;
            }
            self.of_layer(layer).wasted += entry.size();
            waste(Waste { path: path.to_vec(), layer, by: change.layer, bytes: entry.size() });
        }
        Ok(())
    }

    fn of_layer(&mut self, layer: LayerNo) -> &mut LayerSummary {
        &mut self.layers[usize::from(layer.0 - self.of.first)]
    }
}

fn malformed(number: LayerNo) -> impl Fn(IndexError) -> FsError {
    move |cause| FsError::Malformed { number, cause: Arc::new(cause) }
}

/// Directories in each other; no layer has more.
const DEEPEST: usize = 4096;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use peelfs_loopback::tar::Entry as TarEntry;

    use super::*;
    use crate::overlay::testing::index;

    fn stack<const N: usize>(layers: [Vec<TarEntry>; N]) -> LayerIndexes {
        LayerIndexes { first: 0, indexes: layers.into_iter().map(index).collect() }
    }

    /// What each layer does to a path, as in `1 Adds, 2 Removes`.
    fn told(layers: &LayerIndexes, path: &str) -> String {
        let mut versions = layers.root().unwrap();
        for name in path.split('/') {
            versions = layers.child(&versions, name.as_bytes()).unwrap();
        }
        let changes = layers.changes(&versions).unwrap();
        changes.iter().map(|change| format!("{} {:?}", change.layer, change.effect)).collect::<Vec<_>>().join(", ")
    }

    fn summary(adds: u64, changes: u64, removes: u64, bytes: u64, wasted: u64) -> LayerSummary {
        LayerSummary { adds, changes, removes, bytes, wasted }
    }

    fn summaries(layers: &LayerIndexes) -> (Vec<LayerSummary>, Vec<String>) {
        let mut wastes = Vec::new();
        let summaries = layers.summaries(&mut |waste| {
            let path = String::from_utf8(waste.path).unwrap();
            wastes.push(format!("{path} {} of {} by {}", waste.bytes, waste.layer, waste.by));
        });
        (summaries.unwrap(), wastes)
    }

    #[test]
    fn a_path_is_added_changed_and_removed() {
        let layers = stack([
            vec![TarEntry::dir("etc"), TarEntry::file("etc/a", "1234"), TarEntry::file("etc/b", "12")],
            vec![TarEntry::dir("etc"), TarEntry::file("etc/a", "123"), TarEntry::file("etc/.wh.b", "")],
            vec![TarEntry::dir("etc").mode(0o700), TarEntry::file("etc/b", "again")],
        ]);
        assert_eq!(told(&layers, "etc"), "1 Adds, 3 Changes");
        assert_eq!(told(&layers, "etc/a"), "1 Adds, 2 Changes");
        assert_eq!(told(&layers, "etc/b"), "1 Adds, 2 Removes, 3 Adds");
        assert_eq!(told(&layers, "etc/none"), "");
        let wanted = vec![summary(3, 0, 0, 6, 6), summary(0, 1, 1, 3, 0), summary(1, 1, 0, 5, 0)];
        assert_eq!(summaries(&layers), (wanted, vec!["etc/a 4 of 1 by 2".into(), "etc/b 2 of 1 by 2".into()]));
    }

    /// A whiteout, an opaque directory or a file in its place removes all that was in a directory.
    #[test]
    fn what_was_in_a_directory_goes_with_it() {
        for (upper, dir, inside) in [
            (vec![TarEntry::file(".wh.d", "")], "1 Adds, 2 Removes", "1 Adds, 2 Removes"),
            (vec![TarEntry::dir("d"), TarEntry::file("d/.wh..wh..opq", "")], "1 Adds", "1 Adds, 2 Removes"),
            (vec![TarEntry::file("d", "a file")], "1 Adds, 2 Changes", "1 Adds, 2 Removes"),
        ] {
            let below = vec![TarEntry::dir("d"), TarEntry::dir("d/e"), TarEntry::file("d/e/f", "123")];
            let layers = stack([below, upper, vec![]]);
            assert_eq!((told(&layers, "d"), told(&layers, "d/e/f")), (dir.to_owned(), inside.to_owned()));
            assert_eq!(summaries(&layers).1, ["d/e/f 3 of 1 by 2"]);
        }
    }

    #[test]
    fn a_hard_link_is_wasted_with_its_last_name() {
        let below = || vec![TarEntry::file("a", "1234"), TarEntry::hard_link("b", "a")];
        let one = summaries(&stack([below(), vec![TarEntry::file(".wh.a", "")]]));
        assert_eq!((one.0[0], one.1.len()), (summary(2, 0, 0, 4, 0), 0));
        let both = summaries(&stack([below(), vec![TarEntry::file(".wh.a", "")], vec![TarEntry::file("b", "")]]));
        assert_eq!(
            both,
            (
                vec![summary(2, 0, 0, 4, 4), summary(0, 0, 1, 0, 0), summary(0, 1, 0, 0, 0)],
                vec!["b 4 of 1 by 3".into()]
            )
        );
    }
}
