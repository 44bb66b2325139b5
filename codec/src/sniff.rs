//! Detects a blob's compression by its magic number.
//!
//! Media types may be wrong: old builders pushed gzip as plain tar, and mirrors recompress silently. Digest and diff_id
//! verify a layer however it is decoded, so the first bytes may decide. But only if they do not fit the declared type:
//! a blob can be both a tar and a gzip file.

use super::CodecError;
use crate::Compression;
use crate::offsets::BlobOffset;

/// Bytes needed to detect the compression, or all bytes of a shorter blob.
pub const MAGIC: usize = 512;

/// The compression of a blob with these first bytes and the declared compression `said`.
///
/// # Errors
/// [`CodecError::Foreign`] for a format that layers may not have.
pub fn compression_of(first: &[u8], said: Compression) -> Result<Compression, CodecError> {
    let all = [said, Compression::Gzip, Compression::Zstd, Compression::Stored];
    if let Some(found) = all.into_iter().find(|compression| begins_like(first, *compression)) {
        return Ok(found);
    }
    let foreign: [(&[u8], &'static str); 3] = [(b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"), (b"PK\x03\x04", "zip")];
    match foreign.into_iter().find(|(magic, _)| first.starts_with(magic)) {
        Some((_, format)) => Err(CodecError::Foreign { at: BlobOffset(0), format }),
        // The declared type's decoder gives the best error.
        None => Ok(said),
    }
}

fn begins_like(first: &[u8], compression: Compression) -> bool {
    match compression {
        Compression::Gzip => first.starts_with(&[0x1f, 0x8b]),
        Compression::Zstd => match first.first_chunk() {
            // A stream may begin with a skippable frame (RFC 8878, 3.1.2).
            Some([0x50..=0x5f, 0x2a, 0x4d, 0x18] | [0x28, 0xb5, 0x2f, 0xfd]) => true,
            _ => false,
        },
        Compression::Stored => is_tar(first),
    }
}

/// Whether a tar begins like this: with a header with a valid checksum, or with its end marker.
fn is_tar(first: &[u8]) -> bool {
    let Some(block) = first.first_chunk::<MAGIC>() else { return first.is_empty() };
    let summed = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
    let sum: u64 = block.iter().enumerate().map(|(at, byte)| u64::from(summed(at, *byte))).sum();
    // Some old tars summed the bytes as signed numbers.
    let signed: i64 = block.iter().enumerate().map(|(at, byte)| i64::from(summed(at, *byte).cast_signed())).sum();
    let field = block[148..156].trim_ascii().split(|byte| *byte == 0).next().unwrap_or_default();
    let stated = std::str::from_utf8(field).ok().and_then(|text| u64::from_str_radix(text.trim(), 8).ok());
    stated.is_some_and(|stated| stated == sum || i64::try_from(stated) == Ok(signed)) || block.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn tar(name: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(0);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    #[test]
    fn a_blob_goes_by_its_magic_unless_it_fits_its_media_type() {
        use Compression::{Gzip, Stored, Zstd};
        let gzip = [0x1f, 0x8b, 8, 0].to_vec();
        let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0].to_vec();
        let skippable = [0x5a, 0x2a, 0x4d, 0x18, 0].to_vec();
        // Its first name begins like a gzip member.
        let both = tar(b"\x1f\x8b\x08");
        let table = [
            (gzip.clone(), [Gzip, Gzip, Gzip]),
            (zstd, [Zstd, Zstd, Zstd]),
            (skippable, [Zstd, Zstd, Zstd]),
            (tar(b"name"), [Stored, Stored, Stored]),
            (vec![0; 1024], [Stored, Stored, Stored]),
            (both, [Stored, Gzip, Gzip]),
            (Vec::new(), [Stored, Stored, Stored]),
            (b"nonsense".to_vec(), [Stored, Gzip, Zstd]),
            (vec![b'x'; 512], [Stored, Gzip, Zstd]),
        ];
        for (first, found) in table {
            for (said, found) in [Stored, Gzip, Zstd].into_iter().zip(found) {
                assert_eq!(compression_of(&first, said), Ok(found), "{said:?}: {:?}", &first[..first.len().min(8)]);
            }
        }
        for (first, name) in [(&b"\xfd7zXZ\0..."[..], "xz"), (b"BZh91AY", "bzip2"), (b"PK\x03\x04", "zip")] {
            let told = compression_of(first, Gzip).unwrap_err().to_string();
            assert!(told.contains(name), "{told}");
        }
    }
}
