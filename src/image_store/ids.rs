//! Owners on disk: an engine of a user other than root works in a user namespace, in which root's files belong to that
//! user on the machine.

/// Maps numbers of the image to numbers of the machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IdMap {
    /// The user's own number, which is 0 in images.
    own: u32,
    /// The first of the others, which is 1 in images, and their count.
    others: (u32, u32),
}

impl IdMap {
    /// For a user `own` with `count` subordinate ids from `first` on.
    pub fn new(own: u32, (first, count): (u32, u32)) -> Self {
        Self { own, others: (first, count) }
    }

    /// The number on the machine; that of the overflow user if it is not mapped.
    pub fn outside(self, id: u32) -> u32 {
        let (first, count) = self.others;
        match id {
            0 => self.own,
            id if id <= count => first.checked_add(id - 1).unwrap_or(UNMAPPED),
            _ => UNMAPPED,
        }
    }
}

/// The kernel's number for unmapped ids.
const UNMAPPED: u32 = 65_534;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_an_image_are_mapped_as_newuidmap_does() {
        let map = IdMap::new(1000, (100_000, 65_536));
        for (inside, outside) in [(0, 1000), (1, 100_000), (65_536, 165_535), (65_537, UNMAPPED), (u32::MAX, UNMAPPED)]
        {
            assert_eq!(map.outside(inside), outside, "{inside}");
        }
        assert_eq!(IdMap::new(1000, (0, 0)).outside(1), UNMAPPED, "there is no other");
        assert_eq!(IdMap::new(1000, (u32::MAX, 2)).outside(2), UNMAPPED);
    }
}
