//! The flatbuffers of SOCI: `ztoc.fbs` and `zinfo.fbs` of soci-snapshotter.
//!
//! The accessors are written by hand: what a compiler makes of the schema reads strings as UTF-8, and names of files need
//! not be. A string and a vector of bytes are the same in a buffer but for a zero behind the string, so strings are read as
//! vectors. Fields have their places in a table's list of offsets in the order of the schema, from 4 on, two bytes each.

#![allow(unsafe_code)]

use flatbuffers::{
    Follow, ForwardsUOffset, InvalidFlatbuffer, Table, VOffsetT, Vector, Verifiable, Verifier, VerifierOptions,
};

type Bytes<'a> = ForwardsUOffset<Vector<'a, u8>>;
type List<'a, T> = ForwardsUOffset<Vector<'a, ForwardsUOffset<T>>>;

/// A table of a buffer whose fields were all verified.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $field:ident: $kind:ty = $place:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(super) struct $name<'a>(Table<'a>);

        impl<'a> $name<'a> {
            $(
                $(#[$of])*
                pub(super) fn $field(&self) -> Option<<$kind as Follow<'a>>::Inner> {
                    const PLACE: VOffsetT = $place;
                    // SAFETY: a table of this type is made by `follow` only, which is called for a place that `run_verifier`
                    // has accepted; that verifies the fields of this same list, of the same kinds at the same places.
                    unsafe { self.0.get::<$kind>(PLACE, None) }
                }
            )*
        }

        impl<'a> Follow<'a> for $name<'a> {
            type Inner = Self;

            unsafe fn follow(buffer: &'a [u8], place: usize) -> Self {
                // SAFETY: the caller says that there is such a table.
                Self(unsafe { Table::new(buffer, place) })
            }
        }

        impl<'a> Verifiable for $name<'a> {
            fn run_verifier(verifier: &mut Verifier<'_, '_>, place: usize) -> Result<(), InvalidFlatbuffer> {
                let table = verifier.visit_table(place)?;
                $(let table = table.visit_field::<$kind>(stringify!($field), $place, false)?;)*
                table.finish();
                Ok(())
            }
        }
    };
}

table! {
    /// `Ztoc`
    Ztoc {
        version: Bytes<'a> = 4,
        compressed_archive_size: i64 = 8,
        uncompressed_archive_size: i64 = 10,
        toc: ForwardsUOffset<Toc<'a>> = 12,
        compression_info: ForwardsUOffset<CompressionInfo<'a>> = 14,
    }
}

table! {
    /// `TOC`
    Toc {
        metadata: List<'a, FileMetadata<'a>> = 4,
    }
}

table! {
    /// `FileMetadata`
    FileMetadata {
        name: Bytes<'a> = 4,
        kind: Bytes<'a> = 6,
        /// Of the body in the tar.
        uncompressed_offset: i64 = 8,
        uncompressed_size: i64 = 10,
        linkname: Bytes<'a> = 12,
        mode: i64 = 14,
        uid: u32 = 16,
        gid: u32 = 18,
        mod_time: Bytes<'a> = 24,
        devmajor: i64 = 26,
        devminor: i64 = 28,
        /// All PAX records, whatever the schema calls them.
        xattrs: List<'a, Xattr<'a>> = 30,
    }
}

table! {
    /// `Xattr`
    Xattr {
        key: Bytes<'a> = 4,
        value: Bytes<'a> = 6,
    }
}

table! {
    /// `CompressionInfo`
    CompressionInfo {
        compression_algorithm: i8 = 4,
        max_span_id: i32 = 6,
        span_digests: List<'a, Vector<'a, u8>> = 8,
        checkpoints: Bytes<'a> = 10,
    }
}

table! {
    /// `TarZinfo`
    TarZinfo {
        span_size: i64 = 6,
        size: i64 = 8,
    }
}

/// The root of a buffer, all of which is verified.
///
/// # Errors
/// [`InvalidFlatbuffer`]; also for one that is far larger when it is followed than it is, since parts of it are used twice.
pub(super) fn root<'a, T>(buffer: &'a [u8]) -> Result<T::Inner, InvalidFlatbuffer>
where
    T: Follow<'a> + Verifiable + 'a,
{
    let options = VerifierOptions {
        max_depth: DEPTH,
        max_tables: buffer.len() / LEAST_TABLE + 1,
        max_apparent_size: buffer.len().saturating_mul(APPARENT).saturating_add(APPARENT_FREE),
        ignore_missing_null_terminator: true,
    };
    flatbuffers::root_with_opts::<T>(&options, buffer)
}

/// A zTOC has tables in tables in tables: four.
const DEPTH: usize = 8;
/// Each table has an offset to its list of offsets.
const LEAST_TABLE: usize = 4;
/// The verifier counts a list of offsets again for each table that shares it: that is more than the table takes, and less
/// than twice that.
const APPARENT: usize = 4;
const APPARENT_FREE: usize = 4 << 10;
