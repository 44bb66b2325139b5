//! Offsets that say which ruler they are on.
//!
//! A layer has three rulers, and mixing them is the classic bug of lazy image systems: bytes of the
//! compressed blob, bytes of the decoded stream (the tar), bytes of one file.

use std::ops::{Add, Sub};

macro_rules! ruler {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(pub u64);

        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0 + bytes)
            }
        }

        impl Sub for $name {
            type Output = u64;
            fn sub(self, earlier: Self) -> u64 {
                self.0 - earlier.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

ruler!(
    /// Bytes into a layer's blob as the source stores it (compressed or not).
    BlobOffset
);
ruler!(
    /// Bytes into a layer's decoded stream, the tar.
    DecodedOffset
);
ruler!(
    /// Bytes into one file of the image.
    FileOffset
);
