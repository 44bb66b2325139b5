//! Encodings: documents that a server or proxy has compressed although only `identity` was accepted.
//!
//! The digest decides whether a document is right, so its label is only a hint: it is decoded only if it is not right
//! as received. Blobs are never decoded: bytes with the layer's digest are the layer, whatever the label.

use std::io::Read;

use bytes::Bytes;

/// The document in `body`: as it is if `right` accepts it, or else decoded by its label, at most `limit` bytes.
///
/// # Errors
/// Why neither is right, for messages.
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

/// Whether this may be a document: all documents are JSON objects, and no compressed format begins like one.
pub(super) fn is_plain(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{")
}

/// Decodes by a name of RFC 9110, 8.4.1, or RFC 8878; `None` for other names and for several codings.
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

/// Upper bound for the growth of an incompressible document.
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
    fn a_document_beyond_the_limit_is_reported() {
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
