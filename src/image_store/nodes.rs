//! Node numbers of a store, the same in every process that serves it.
//!
//! The upper bits are the number of a layer, the lower ones its node. Images and layers are numbered in the order in
//! which they were added, and numbers are not reused, so a number never changes its meaning. The lists and locks are
//! new files after each change: an engine with an open one continues to read the old content.

use crate::overlay::NodeId;

/// A node of the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Node {
    /// A fixed directory.
    Directory(Directory),
    /// A list or lock of one generation of the store.
    List(u64, List),
    /// The directory of an image.
    Image(u32),
    /// A document of an image.
    Document(u32, u16),
    /// The directory of a layer.
    Layer(u32),
    /// A file that belongs to a layer.
    OfLayer(u32, OfLayer),
    /// A file in a layer.
    Inside(u32, NodeId),
}

/// Fixed directories.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Directory {
    Root,
    Images,
    Layers,
    Overlay,
    Links,
}

/// Files that change with the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum List {
    Images,
    ImagesLock,
    Layers,
    LayersLock,
}

/// The files that belong to a layer, besides its content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum OfLayer {
    /// The file with its short name.
    Link,
    /// The file with the short names of the layers below.
    Lower,
    /// The symlink with its short name.
    Symlink,
    /// The data to rebuild its tar.
    TarSplit,
}

impl Directory {
    pub(super) const ALL: [Self; 5] = [Self::Root, Self::Images, Self::Layers, Self::Overlay, Self::Links];

    /// Its name in its parent directory.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Root => "",
            Self::Images => "overlay-images",
            Self::Layers => "overlay-layers",
            Self::Overlay => "overlay",
            Self::Links => "l",
        }
    }

    pub(super) fn parent(self) -> Self {
        match self {
            Self::Links => Self::Overlay,
            _ => Self::Root,
        }
    }
}

impl List {
    pub(super) const ALL: [Self; 4] = [Self::Images, Self::ImagesLock, Self::Layers, Self::LayersLock];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Images => "images.json",
            Self::ImagesLock => "images.lock",
            Self::Layers => "layers.json",
            Self::LayersLock => "layers.lock",
        }
    }

    pub(super) fn parent(self) -> Directory {
        match self {
            Self::Images | Self::ImagesLock => Directory::Images,
            Self::Layers | Self::LayersLock => Directory::Layers,
        }
    }
}

const OF_LAYER: [OfLayer; 4] = [OfLayer::Link, OfLayer::Lower, OfLayer::Symlink, OfLayer::TarSplit];

impl Node {
    pub(super) fn id(self) -> NodeId {
        let of_layer = |layer: u32, number: u64| u64::from(layer) << LAYER_SHIFT | number;
        let number = match self {
            Self::Directory(directory) => 1 + directory as u64,
            Self::List(generation, list) => LISTS | generation << 2 | list as u64,
            Self::Image(image) => IMAGES | u64::from(image) << DOCUMENT_BITS,
            Self::Document(image, document) => IMAGES | u64::from(image) << DOCUMENT_BITS | (1 + u64::from(document)),
            Self::Layer(layer) => of_layer(layer, OWN),
            Self::OfLayer(layer, what) => of_layer(layer, OWN + 1 + what as u64),
            Self::Inside(layer, node) => of_layer(layer, node.get()),
        };
        NodeId::from_number(number).expect("none is zero")
    }

    /// `None` for unused numbers.
    pub(super) fn of(id: NodeId) -> Option<Self> {
        let (layer, number) = ((id.get() >> LAYER_SHIFT) as u32, id.get() & ((1 << LAYER_SHIFT) - 1));
        if layer > 0 {
            return Some(match number {
                OWN => Self::Layer(layer),
                number if (OWN + 1..OWN + 1 + OF_LAYER.len() as u64).contains(&number) => {
                    Self::OfLayer(layer, OF_LAYER[(number - OWN - 1) as usize])
                }
                number => Self::Inside(layer, NodeId::from_number(number)?),
            });
        }
        if number & LISTS != 0 {
            return Some(Self::List((number & !LISTS) >> 2, List::ALL[(number & 3) as usize]));
        }
        if number & IMAGES != 0 {
            let image = ((number & !IMAGES) >> DOCUMENT_BITS) as u32;
            return Some(match number & ((1 << DOCUMENT_BITS) - 1) {
                0 => Self::Image(image),
                document => Self::Document(image, (document - 1) as u16),
            });
        }
        Directory::ALL.get((number as usize).checked_sub(1)?).copied().map(Self::Directory)
    }
}

/// Above the largest node number of an image of a thousand layers.
const LAYER_SHIFT: u32 = 42;
/// Not the number of any file in a layer: those are 1 for the root, or above 32 bits.
const OWN: u64 = 2;
const LISTS: u64 = 1 << 41;
const IMAGES: u64 = 1 << 40;
const DOCUMENT_BITS: u32 = 8;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::layer::EntryId;
    use crate::overlay::LayerNo;

    #[test]
    fn numbers_of_nodes_are_read_back_and_differ() {
        let mut nodes: Vec<Node> = Directory::ALL.map(Node::Directory).to_vec();
        for number in [0, 1, 7, 1 << 20] {
            nodes.extend(List::ALL.map(|list| Node::List(u64::from(number), list)));
            nodes.extend([Node::Image(number), Node::Document(number, 0), Node::Document(number, 3)]);
            let layer = number + 1;
            nodes.push(Node::Layer(layer));
            nodes.extend(OF_LAYER.map(|what| Node::OfLayer(layer, what)));
            let inside =
                [NodeId::ROOT, NodeId::new(LayerNo(0), EntryId(0)), NodeId::new(LayerNo(999), EntryId(u32::MAX))];
            nodes.extend(inside.map(|node| Node::Inside(layer, node)));
        }
        for node in &nodes {
            assert_eq!(Node::of(node.id()), Some(*node));
        }
        let ids: BTreeSet<_> = nodes.iter().map(|node| node.id().get()).collect();
        assert_eq!(ids.len(), nodes.len());
        assert_eq!(Node::Directory(Directory::Root).id(), NodeId::ROOT);
        assert_eq!(Node::of(NodeId::from_number(99).unwrap()), None);
    }
}
