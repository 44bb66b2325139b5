//! Limits of one layer's tree, in proportion to its blob.

/// Limits for one layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Entries, including implied directories.
    pub entries: u32,
    /// Length of one path, in bytes.
    pub path: usize,
    /// Names and link targets together, in bytes.
    pub names: usize,
    /// Distinct sets of extended attributes together, in bytes.
    pub xattrs: usize,
    /// Data runs of all sparse files together.
    pub extents: usize,
    /// Path components walked because of symlinks, in the whole layer.
    pub link_steps: u64,
    /// Bytes of entries, names, runs and attributes in an index, see [`Limits::of_blob`].
    pub index: u64,
    /// Minimum of `index` for a blob of any size, see [`Limits::of_image`].
    pub index_at_least: u64,
}

impl Limits {
    /// Limits for the layer of a blob of `size` bytes: the size of its index is limited in proportion.
    ///
    /// A highly compressible path can create thousands of directories, and a blob of some kilobytes an index of
    /// gigabytes.
    #[must_use]
    pub fn of_blob(self, size: u64) -> Self {
        let beginning = size.min(BEGINNING);
        let in_proportion =
            (beginning * INDEX_PER_FIRST_BYTE).saturating_add((size - beginning).saturating_mul(INDEX_PER_BYTE));
        Self { index: self.index.min(self.index_at_least.saturating_add(in_proportion)), ..self }
    }

    /// Limits for the layers of an image with this many: their minimum index sizes are limited in total.
    #[must_use]
    pub fn of_image(self, layers: usize) -> Self {
        let share = SMALL_LAYERS / layers.max(1) as u64;
        Self { index_at_least: self.index_at_least.min(share.max(SMALL_LAYER)), ..self }
    }
}

/// Minimum index size for any layer: twice that of a path of maximum depth.
const INDEX_AT_LEAST: u64 = 640 << 10;
/// Total of these minimums for an image, and the minimum per layer: some 900 entries.
const SMALL_LAYERS: u64 = 64 << 20;
const SMALL_LAYER: u64 = 64 << 10;
/// Bytes of index per byte of blob. Tars of only empty files, links or directories reach up to 47 when compressed by
/// `zstd -19`, and 12 with gzip; one whose files are each in three directories without entries reaches 180. With
/// contents, a layer has less than 1.
const INDEX_PER_BYTE: u64 = 64;
/// The same for the start of a blob, and the length of that start: regular names reach this value in a layer of 100,000
/// of them, and larger layers vary more.
const INDEX_PER_FIRST_BYTE: u64 = 256;
const BEGINNING: u64 = 256 << 10;

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 20_000_000,
            path: 64 << 10,
            names: 1 << 30,
            xattrs: 256 << 20,
            extents: 8 << 20,
            link_steps: 50_000_000,
            index: u64::MAX,
            index_at_least: INDEX_AT_LEAST,
        }
    }
}
