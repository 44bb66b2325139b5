//! Encodings: documents that something on the way has compressed, though only `identity` was accepted.
//!
//! A digest says what a document is, so its label need not be believed: it is decoded only where it is not what it
//! should be as it came. Blobs are never decoded: what has the digest of a layer is the layer, whatever it is called.

use std::io::Read;

use bytes::Bytes;

/// The document that `body` is: itself if it is `right`, or else what it decodes to by its label, at most `limit` bytes.
///
/// # Errors
/// Why it is neither, for people.
pub(super) fn document(
    body: Bytes,
    label: Option<&str>,
    limit: usize,
    right: impl Fn(&[u8]) -> bool,
) -> Result<Bytes, String> {
    let Some(label) = label.filter(|_| !right(&body)) else { return Ok(body) };
    match decode(&body, label, limit) {
        Some(Ok(decoded)) => Ok(decoded),
        Some(Err(error)) => Err(format!("it is encoded as `{label}`, and does not decode: {error}")),
        None => Err(format!("it is encoded as `{label}`, though only `identity` was accepted")),
    }
}

/// Whether this may be a document: all of them are JSON objects, and nothing compressed begins like one.
pub(super) fn is_plain(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{")
}

/// Decodes by one of the names of RFC 9110, 8.4.1, and RFC 8878; none for others, and for several in a row.
fn decode(body: &[u8], label: &str, limit: usize) -> Option<std::io::Result<Bytes>> {
    let label = label.trim().to_ascii_lowercase();
    let decoded = match &*label {
        "gzip" | "x-gzip" => read(flate2::read::MultiGzDecoder::new(body), limit),
        "deflate" => read(flate2::read::ZlibDecoder::new(body), limit),
        "zstd" => zstd::stream::read::Decoder::with_buffer(body).and_then(|mut decoder| {
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            read(decoder, limit)
        }),
        _ => return None,
    };
    Some(decoded)
}

fn read(decoder: impl Read, limit: usize) -> std::io::Result<Bytes> {
    let mut decoded = Vec::new();
    decoder.take(limit as u64 + 1).read_to_end(&mut decoded)?;
    if decoded.len() > limit {
        return Err(std::io::Error::other(format!("it has more than {limit} bytes")));
    }
    Ok(decoded.into())
}

/// By how much a document grows at most that does not compress.
pub(super) const OVERHEAD: usize = 4 << 10;
/// RFC 9659: a coding may not need a larger window than 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_document_is_decoded_only_if_it_is_not_right_as_it_came() {
        let text: &[u8] = b"{\"a\":1}";
        let mut deflated = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        deflated.write_all(text).unwrap();
        let table = [
            ("gzip", text.to_vec()),
            ("gzip", gzip(text)),
            ("X-Gzip", gzip(text)),
            ("deflate", deflated.finish().unwrap()),
            ("zstd", zstd::bulk::compress(text, 3).unwrap()),
            ("br", text.to_vec()),
        ];
        for (label, body) in table {
            let decoded = document(body.into(), Some(label), 100, is_plain);
            assert_eq!(decoded.as_deref(), Ok(text), "{label}");
        }
        assert_eq!(document(gzip(text).into(), None, 100, is_plain), Ok(gzip(text).into()), "nothing says so");
    }

    #[test]
    fn what_does_not_decode_within_the_limit_is_told() {
        for (label, body, words) in [
            ("gzip", gzip(&[b' '; 1000]), "more than 100 bytes"),
            ("gzip", gzip(b"{}")[..12].to_vec(), "does not decode"),
            ("zstd", b"nonsense".to_vec(), "does not decode"),
            ("br", vec![0x8b; 9], "only `identity` was accepted"),
            ("gzip, gzip", gzip(&gzip(b"{}")), "only `identity` was accepted"),
        ] {
            let told = document(body.into(), Some(label), 100, is_plain).unwrap_err();
            assert!(told.contains(words) && told.contains(label), "{told}");
        }
    }
}
