//! The walk that writes the image: an inode for each node, and the names of each directory.
//!
//! A directory's names contain the numbers of their inodes, and `..` that of the parent. So a directory's inode is
//! allocated when it is entered, its files are written at once, and its names after all of its subdirectories.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::ControlFlow;
use std::sync::Arc;

use zerocopy::IntoBytes as _;
use zerocopy::little_endian::{U16, U32, U64};

use super::chunks::{self, Chunk, Run};
use super::dirents::{Names, Shape};
use super::format::{
    self, BLOCK, BLOCK_BITS, ChunkIndex, DEVICES_AT, DEVICES_MAX, DeviceSlot, INODE_PLACE, Inode, Layout, NO_BLOCK,
    SUPER_AT, SuperBlock,
};
use super::space::{Output, Space};
use super::xattrs::{Attributes, Shared};
use super::{EncodeError, Encoded};
use crate::digest::Digest;
use crate::image::{FsError, ImageFs, NotNow, Now};
use crate::layer::Kind;
use crate::offsets::DecodedOffset;
use crate::overlay::{self, LayerNo, NodeAttr, NodeId};

/// An image being written.
pub(super) struct Encoder<'a> {
    /// A view of its own: it keeps every index page that the walk reads.
    fs: Arc<ImageFs>,
    /// Inode count at which the size of these pages is checked next.
    next_check: u64,
    space: Space<'a>,
    shared: Shared,
    /// The layers that are devices, and the device of each layer; devices count from 1.
    devices: Vec<LayerNo>,
    device_of: Vec<u16>,
    /// Inode numbers of nodes with several names.
    linked: HashMap<NodeId, u64>,
    inodes: u64,
    copied: u64,
}

/// A directory that is being walked.
struct Open {
    attr: NodeAttr,
    at: u64,
    xattrs: Attributes,
    names: Names,
    shape: Shape,
    /// Whether its last bytes follow the inode.
    inline: bool,
    /// The name at which the search for the next subdirectory continues.
    next: usize,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(fs: &ImageFs, out: &'a mut dyn Output) -> Result<Self, EncodeError> {
        let (mut devices, mut device_of) = (Vec::new(), Vec::new());
        let mut known = HashMap::<(Digest, Digest), u16>::new();
        for number in (0..fs.layer_count()).map(LayerNo) {
            let reader = fs.layer(number).ok_or(EncodeError::Missing(number))?;
            let of = reader.index().layer();
            device_of.push(match known.entry((of.blob.clone(), of.diff_id.clone())) {
                Entry::Occupied(same) => *same.get(),
                Entry::Vacant(new) => {
                    devices.push(number);
                    if devices.len() > DEVICES_MAX {
                        return Err(EncodeError::TooLarge);
                    }
                    *new.insert(devices.len() as u16)
                }
            });
        }
        let space = Space::new(out, DEVICES_AT + size_of::<DeviceSlot>() as u64 * devices.len() as u64);
        let (shared, linked) = (Shared::default(), HashMap::new());
        let fs = now(fs.afresh())?;
        Ok(Self { fs, next_check: 0, space, shared, devices, device_of, linked, inodes: 0, copied: 0 })
    }

    pub(super) fn encode(mut self) -> Result<Encoded, EncodeError> {
        let root = overlay::within(STEPS, None, || self.tree())?;
        let (inodes, copied, devices) = (self.inodes, self.copied, self.devices);
        let (slots, uuid) = device_table(&self.fs, &devices)?;
        let mut head = vec![0; SUPER_AT as usize];
        let super_block = SuperBlock {
            magic: U32::new(format::MAGIC),
            checksum: U32::new(0),
            feature_compat: U32::new(format::COMPAT_MTIME),
            block_bits: BLOCK_BITS,
            extension_slots: 0,
            root: U16::new(u16::try_from(root).map_err(|_| EncodeError::TooLarge)?),
            inodes: U64::new(inodes),
            build_time: U64::new(0),
            build_time_nanos: U32::new(0),
            blocks: U32::new(0),
            meta_block: U32::new(0),
            xattr_block: U32::new(0),
            uuid,
            volume_name: *b"peelfs\0\0\0\0\0\0\0\0\0\0",
            feature_incompat: U32::new(format::INCOMPAT_CHUNKED_FILE | format::INCOMPAT_DEVICE_TABLE),
            compression: U16::new(0),
            extra_devices: U16::new(devices.len() as u16),
            devices_at: U16::new((DEVICES_AT / size_of::<DeviceSlot>() as u64) as u16),
            rest: [0; 38],
        };
        let (out, size) = self.space.finish()?;
        let super_block = SuperBlock { blocks: U32::new((size / BLOCK) as u32), ..super_block };
        head.extend_from_slice(super_block.as_bytes());
        head.extend_from_slice(&slots);
        out.write_at(0, &head).and_then(|()| out.finish(size)).map_err(EncodeError::Write)?;
        Ok(Encoded { size, inodes, copied, devices })
    }

    /// Writes all directories; returns the number of the root's inode.
    fn tree(&mut self) -> Result<u64, EncodeError> {
        let root = self.enter(now(self.fs.attr(NodeId::ROOT))?, None)?;
        let number = root.at / INODE_PLACE;
        let mut way = vec![root];
        while let Some(dir) = way.last_mut() {
            match dir.next_directory() {
                Some(child) => {
                    let above = dir.at / INODE_PLACE;
                    let attr = now(self.fs.attr(child))?;
                    let child = self.enter(attr, Some(above))?;
                    dir.names.entries[dir.next - 1].inode = child.at / INODE_PLACE;
                    way.push(child);
                }
                None => {
                    let Some(done) = way.pop() else { break };
                    self.leave(done)?;
                }
            }
        }
        Ok(number)
    }

    /// Lists a directory, and writes everything in it but subdirectories.
    fn enter(&mut self, attr: NodeAttr, above: Option<u64>) -> Result<Open, EncodeError> {
        self.forget_indexes()?;
        let (mut names, mut failed) = (Names::default(), None);
        let fs = Arc::clone(&self.fs);
        let xattrs = self.xattrs(attr.node)?;
        // The root's number has 16 bits, so the root is allocated first, before its content is known.
        let first = match above {
            None => Some(self.space.small(INODE + xattrs.size(), INODE_PLACE, 0)?),
            Some(_) => None,
        };
        let listed = fs.list_with_attrs(attr.node, 0, |entry, attr| {
            names.push(entry.name, attr.kind);
            let number = if attr.kind == Kind::Directory { Ok(attr.node.get()) } else { self.node(attr) };
            match number {
                Ok(number) => {
                    if let Some(named) = names.entries.last_mut() {
                        named.inode = number;
                    }
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        now(listed)?;
        if let Some(error) = failed {
            return Err(error);
        }
        if names.bytes() > NAMES_MAX {
            return Err(EncodeError::TooLarge);
        }
        names.sort();
        let shape = names.shape();
        let inline = if first.is_none() && shape.last <= INLINE_MAX { shape.last } else { 0 };
        let at = match first {
            Some(at) => at,
            None => self.space.small(INODE + xattrs.size() + inline, INODE_PLACE, inline)?,
        };
        self.inodes += 1;
        let own = at / INODE_PLACE;
        names.set_dots(own, above.unwrap_or(own));
        Ok(Open { attr, at, xattrs, names, shape, inline: inline > 0, next: 0 })
    }

    /// Replaces the view when it holds many index pages: a walk reads every index from beginning to end.
    fn forget_indexes(&mut self) -> Result<(), EncodeError> {
        if self.inodes >= self.next_check {
            self.next_check = self.inodes + CHECK_EVERY;
            if self.fs.resident_bytes() > RESIDENT_MAX {
                self.fs = now(self.fs.afresh())?;
            }
        }
        Ok(())
    }

    /// Writes a directory whose names all have inodes.
    fn leave(&mut self, dir: Open) -> Result<(), EncodeError> {
        let bytes = dir.names.encode(&dir.shape);
        let in_blocks = if dir.inline { dir.shape.blocks_before_last() * BLOCK } else { bytes.len() as u64 };
        let (blocks, tail) = bytes.split_at(in_blocks as usize);
        let layout = if dir.inline { Layout::Inline } else { Layout::Plain };
        let place = self.in_blocks(blocks)?;
        // `.` of the directory itself, and `..` of each subdirectory.
        let subdirs = dir.names.entries.iter().filter(|entry| entry.kind == Kind::Directory).count() as u32;
        self.inode(
            dir.at,
            &NodeAttr { size: bytes.len() as u64, nlink: subdirs, ..dir.attr },
            layout,
            place,
            &dir.xattrs,
            tail,
        )?;
        self.fs.forget(dir.attr.node);
        Ok(())
    }

    /// The inode number of a node that is not a directory; writes it if needed.
    fn node(&mut self, attr: &NodeAttr) -> Result<u64, EncodeError> {
        if attr.nlink > 1
            && let Some(number) = self.linked.get(&attr.node)
        {
            return Ok(*number);
        }
        let xattrs = self.xattrs(attr.node)?;
        let at = match attr.kind {
            Kind::Symlink => self.symlink(attr, &xattrs)?,
            Kind::File if attr.size > 0 => self.file(attr, &xattrs)?,
            Kind::CharDevice | Kind::BlockDevice => self.bare(attr, format::device_number(attr.device), &xattrs)?,
            _ => self.bare(attr, 0, &xattrs)?,
        };
        self.inodes += 1;
        if attr.nlink > 1 {
            self.linked.insert(attr.node, at / INODE_PLACE);
        }
        Ok(at / INODE_PLACE)
    }

    /// An inode without data.
    fn bare(&mut self, attr: &NodeAttr, place: u32, xattrs: &Attributes) -> Result<u64, EncodeError> {
        let at = self.space.small(INODE + xattrs.size(), INODE_PLACE, 0)?;
        self.inode(at, attr, Layout::Plain, U32::new(place), xattrs, &[])?;
        Ok(at)
    }

    fn symlink(&mut self, attr: &NodeAttr, xattrs: &Attributes) -> Result<u64, EncodeError> {
        let target = now(self.fs.symlink_target(attr.node))?;
        let attr = &NodeAttr { size: target.len() as u64, ..*attr };
        if target.len() > INLINE_MAX {
            let at = self.space.small(INODE + xattrs.size(), INODE_PLACE, 0)?;
            let place = self.in_blocks(&target)?;
            self.inode(at, attr, Layout::Plain, place, xattrs, &[])?;
            return Ok(at);
        }
        let at = self.space.small(INODE + xattrs.size() + target.len(), INODE_PLACE, target.len())?;
        self.inode(at, attr, Layout::Inline, U32::new(0), xattrs, &target)?;
        Ok(at)
    }

    /// A non-empty file.
    fn file(&mut self, attr: &NodeAttr, xattrs: &Attributes) -> Result<u64, EncodeError> {
        let mut runs = Vec::new();
        let number = now(self.fs.runs(attr.node, |run| {
            chunks::push(&mut runs, Run { file: run.file.0, decoded: run.decoded.0, len: run.len });
        }))?;
        let reader = self.fs.layer(number).ok_or(EncodeError::Missing(number))?;
        if attr.size > i64::MAX as u64 {
            return Err(EncodeError::TooLarge);
        }
        let file = chunks::File { size: attr.size, decoded_size: reader.index().layer().decoded_size, runs: &runs };
        let cut = file.cut(self.space.room())?;
        self.copied += cut.copied;
        if self.copied > COPIED_MAX {
            return Err(EncodeError::TooLarge);
        }
        let table_at = (INODE + xattrs.size()).next_multiple_of(CHUNK);
        let mut table = vec![0xff; CHUNK * cut.count as usize];
        table.chunks_exact_mut(CHUNK).for_each(|hole| hole.copy_from_slice(chunk_index(0, NO_BLOCK).as_bytes()));
        let mut copy_to = self.space.blocks(cut.room)?;
        let device = self.device_of[usize::from(number.0)];
        let mut copies = Vec::new();
        file.each_chunk(cut.bits, |chunk, start, end, _| {
            let index = match chunk {
                Chunk::Layer(block) => chunk_index(device, block),
                Chunk::Copied => {
                    copies.push((start, end, copy_to));
                    let block = (copy_to / BLOCK) as u32;
                    copy_to += (end - start).next_multiple_of(BLOCK);
                    chunk_index(0, block)
                }
            };
            let place = (start >> (cut.bits + BLOCK_BITS)) as usize * CHUNK;
            table[place..place + CHUNK].copy_from_slice(index.as_bytes());
            Ok(())
        })?;
        for (start, end, to) in copies {
            self.copy(number, &runs, start..end, to)?;
        }
        let at = self.space.small(table_at + table.len(), INODE_PLACE, 0)?;
        self.inode(at, attr, Layout::Chunks, format::chunk_format(cut.bits), xattrs, &[])?;
        self.space.put(at + table_at as u64, &table)?;
        Ok(at)
    }

    /// Copies the parts of a file's runs within `range` to the image.
    fn copy(&mut self, layer: LayerNo, runs: &[Run], range: std::ops::Range<u64>, to: u64) -> Result<(), EncodeError> {
        let reader = self.fs.layer(layer).ok_or(EncodeError::Missing(layer))?;
        let first = runs.partition_point(|run| run.file + run.len <= range.start);
        let mut buf = Vec::new();
        for run in runs[first..].iter().take_while(|run| run.file < range.end) {
            let (mut from, end) = (run.file.max(range.start), (run.file + run.len).min(range.end));
            while from < end {
                buf.resize((end - from).min(PIECE) as usize, 0);
                let cached = reader.peek(DecodedOffset(run.decoded + (from - run.file)), &mut buf);
                if !cached.map_err(FsError::from)? {
                    return Err(EncodeError::Missing(layer));
                }
                self.space.put(to + (from - range.start), &buf)?;
                from += buf.len() as u64;
            }
        }
        Ok(())
    }

    fn inode(
        &mut self,
        at: u64,
        attr: &NodeAttr,
        layout: Layout,
        place: U32,
        xattrs: &Attributes,
        tail: &[u8],
    ) -> Result<(), EncodeError> {
        let inode = Inode {
            format: layout.format(),
            xattr_count: xattrs.count(),
            mode: U16::new(format::type_bits(attr.kind) | attr.mode & 0o7777),
            reserved: U16::new(0),
            size: U64::new(attr.size),
            place,
            number: U32::new((at / INODE_PLACE) as u32),
            uid: U32::new(attr.uid),
            gid: U32::new(attr.gid),
            mtime: U64::new(attr.mtime.cast_unsigned()),
            mtime_nanos: U32::new(attr.mtime_ns),
            nlink: U32::new(attr.nlink),
            rest: [0; 16],
        };
        let mut bytes = inode.as_bytes().to_vec();
        xattrs.encode(&mut bytes);
        bytes.extend_from_slice(tail);
        self.space.put(at, &bytes)
    }

    /// Puts bytes into their own blocks; returns the first block.
    fn in_blocks(&mut self, bytes: &[u8]) -> Result<U32, EncodeError> {
        if bytes.is_empty() {
            return Ok(U32::new(0));
        }
        let at = self.space.blocks(bytes.len() as u64)?;
        self.space.put(at, bytes)?;
        Ok(U32::new((at / BLOCK) as u32))
    }

    fn xattrs(&mut self, node: NodeId) -> Result<Attributes, EncodeError> {
        let all = now(self.fs.xattrs(node))?;
        let pairs = all.iter().map(|(name, value)| (&name[..], &value[..]));
        let space = &mut self.space;
        self.shared.attributes(pairs, |entry| {
            let at = space.small(entry.len(), format::XATTR_UNIT, 0)?;
            space.put(at, entry)?;
            Ok(at)
        })
    }
}

impl Open {
    /// The node of the next subdirectory; its name is before [`Open::next`].
    fn next_directory(&mut self) -> Option<NodeId> {
        while let Some(named) = self.names.entries.get(self.next) {
            self.next += 1;
            if named.kind == Kind::Directory && !self.names.is_dot(named) {
                return NodeId::from_number(named.inode);
            }
        }
        None
    }
}

fn chunk_index(device: u16, block: u32) -> ChunkIndex {
    ChunkIndex { advise: U16::new(0), device: U16::new(device), block: U32::new(block) }
}

/// The table of devices, and a number that depends on the layers only.
fn device_table(fs: &ImageFs, devices: &[LayerNo]) -> Result<(Vec<u8>, [u8; 16]), EncodeError> {
    let (mut table, mut chain) = (Vec::new(), blake3::Hasher::new());
    for number in devices {
        let reader = fs.layer(*number).ok_or(EncodeError::Missing(*number))?;
        let of = reader.index().layer();
        chain.update(of.diff_id.to_string().as_bytes());
        let hex = of.diff_id.hex().as_bytes();
        let mut tag = [0; 64];
        let length = hex.len().min(tag.len());
        tag[..length].copy_from_slice(&hex[..length]);
        let blocks = U32::new(u32::try_from(of.decoded_size.div_ceil(BLOCK)).unwrap_or(u32::MAX));
        table.extend_from_slice(DeviceSlot { tag, blocks, mapped_block: U32::new(0), rest: [0; 56] }.as_bytes());
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&chain.finalize().as_bytes()[..16]);
    Ok((table, uuid))
}

fn now<T>(answer: Now<T>) -> Result<T, EncodeError> {
    answer.map_err(|not_now| match not_now {
        NotNow::Needs(layer) => EncodeError::Missing(layer),
        NotNow::TakesLong => FsError::TakesTooLong.into(),
        NotNow::Never(error) => error.into(),
    })
}

const INODE: usize = size_of::<Inode>();
const CHUNK: usize = size_of::<ChunkIndex>();
/// Bytes after an inode that fit into a block with it, wherever the inode is.
const INLINE_MAX: usize = (BLOCK - INODE_PLACE) as usize;
/// Limit in bytes of the names of one directory.
const NAMES_MAX: usize = 1 << 30;
/// Limit in bytes of copied data.
const COPIED_MAX: u64 = 4 << 30;
const PIECE: u64 = 1 << 20;
/// Limit in bytes of index pages in memory, where it is checked.
const RESIDENT_MAX: usize = 4 << 20;
/// Inodes between two checks.
const CHECK_EVERY: u64 = 1024;
/// Limit on steps of the walk; see [`overlay::within`]. An image of a million entries takes some ten million.
const STEPS: u64 = 1 << 30;
