//! Ranges: which bytes a response to a range request carries.
//!
//! A server may ignore a range (200), serve less than requested, or lie. Misplaced bytes would be detected only by
//! their digest, late, or never while an index is built from them; so the status, `Content-Range` and `Content-Length`
//! must be consistent (RFC 9110, sections 14.4 and 15.3.7) and match the request.

use std::ops::Range;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName};

/// The place of the wanted bytes in a response's body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Placement {
    /// Bytes of the body before the first wanted one.
    pub(super) skip: u64,
    /// Wanted bytes in the body; fewer than wanted if the server serves less.
    pub(super) take: u64,
    /// Whether the server served the range.
    pub(super) ranged: bool,
}

/// Why a response to a range request is invalid.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum RangeFault {
    #[error("requested bytes {}-{}, got `{got}`", wanted.start, wanted.end - 1)]
    OtherBytes { wanted: Range<u64>, got: String },
    #[error("the blob should have {expected} bytes, the source's has {got}")]
    OtherSize { expected: u64, got: u64 },
    #[error("its Content-Length {length} does not fit bytes {}-{}", body.start, body.end - 1)]
    Length { length: u64, body: Range<u64> },
    #[error("its Content-Length is not a number")]
    BadLength,
    #[error("it sent several parts for one range")]
    Multipart,
    #[error("it refused bytes {}-{} of {size}", wanted.start, wanted.end - 1)]
    Refused { wanted: Range<u64>, size: u64 },
    #[error("status {0}")]
    Status(StatusCode),
}

impl RangeFault {
    /// Whether requesting the whole blob may help.
    pub(super) fn is_about_ranges(&self) -> bool {
        match self {
            Self::OtherBytes { .. }
            | Self::OtherSize { .. }
            | Self::Multipart
            | Self::Refused { .. }
            | Self::Length { .. } => true,
            Self::BadLength | Self::Status(_) => false,
        }
    }
}

/// Where the bytes `wanted` of a blob of `size` bytes lie in this response.
///
/// `wanted` is not empty and lies within the blob.
pub(super) fn place(
    status: StatusCode,
    headers: &HeaderMap,
    wanted: &Range<u64>,
    size: u64,
) -> Result<Placement, RangeFault> {
    let length = match single(headers, &CONTENT_LENGTH) {
        Header::Absent => None,
        Header::One(text) => Some(decimal(text).ok_or(RangeFault::BadLength)?),
        Header::Unusable => return Err(RangeFault::BadLength),
    };
    match status {
        StatusCode::OK => match length {
            Some(length) if length != size => Err(RangeFault::OtherSize { expected: size, got: length }),
            _ => Ok(Placement { skip: wanted.start, take: wanted.end - wanted.start, ranged: false }),
        },
        StatusCode::PARTIAL_CONTENT => place_part(headers, length, wanted, size),
        StatusCode::RANGE_NOT_SATISFIABLE => match content_range(headers) {
            Ok(ContentRange { total: Some(got), .. }) if got != size => {
                Err(RangeFault::OtherSize { expected: size, got })
            }
            _ => Err(RangeFault::Refused { wanted: wanted.clone(), size }),
        },
        other => Err(RangeFault::Status(other)),
    }
}

fn place_part(
    headers: &HeaderMap,
    length: Option<u64>,
    wanted: &Range<u64>,
    size: u64,
) -> Result<Placement, RangeFault> {
    let kind = headers.get(CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    if kind.len() >= 10 && kind[..10].eq_ignore_ascii_case(b"multipart/") {
        return Err(RangeFault::Multipart);
    }
    let other = |got: String| RangeFault::OtherBytes { wanted: wanted.clone(), got };
    let given = content_range(headers).map_err(other)?;
    if let Some(got) = given.total.filter(|total| *total != size) {
        return Err(RangeFault::OtherSize { expected: size, got });
    }
    // Less at the end is allowed, and the rest is requested again; any other range is wrong.
    let Some(body) = given.bytes.clone().filter(|got| got.start == wanted.start && got.end <= wanted.end) else {
        return Err(other(given.to_string()));
    };
    let take = body.end - body.start;
    match length {
        Some(length) if length != take => Err(RangeFault::Length { length, body }),
        _ => Ok(Placement { skip: 0, take, ranged: true }),
    }
}

/// `Content-Range` in its two forms, `bytes A-B/TOTAL` (either may be `*`); the range is not empty.
#[derive(Debug, Eq, PartialEq)]
struct ContentRange {
    bytes: Option<Range<u64>>,
    total: Option<u64>,
}

impl std::fmt::Display for ContentRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.bytes {
            Some(bytes) => write!(f, "bytes {}-{}", bytes.start, bytes.end - 1),
            None => f.write_str("bytes *"),
        }
    }
}

/// The only Content-Range of a response, or a description of what is there instead.
fn content_range(headers: &HeaderMap) -> Result<ContentRange, String> {
    match single(headers, &CONTENT_RANGE) {
        Header::Absent => Err("no Content-Range".to_owned()),
        Header::Unusable => Err("an unusable Content-Range".to_owned()),
        Header::One(text) => parse(text).ok_or_else(|| text.chars().take(60).flat_map(char::escape_default).collect()),
    }
}

fn parse(text: &str) -> Option<ContentRange> {
    let (unit, rest) = text.trim().split_once([' ', '\t'])?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.trim().split_once('/')?;
    let total = match total.trim() {
        "*" => None,
        digits => Some(decimal(digits)?),
    };
    let bytes = match range.trim() {
        "*" => None,
        range => {
            let (first, last) = range.split_once('-')?;
            let (first, last) = (decimal(first)?, decimal(last)?);
            let end = last.checked_add(1).filter(|end| first < *end && total.is_none_or(|total| *end <= total))?;
            Some(first..end)
        }
    };
    (bytes.is_some() || total.is_some()).then_some(ContentRange { bytes, total })
}

/// Digits only: no sign, space or overflow.
pub(super) fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

enum Header<'a> {
    Absent,
    One(&'a str),
    Unusable,
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Header<'a> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (None, _) => Header::Absent,
        (Some(Ok(text)), None) => Header::One(text.trim()),
        _ => Header::Unusable,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)]) -> Result<Placement, RangeFault> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        place(StatusCode::from_u16(status).unwrap(), &map, &(10..20), 100)
    }

    #[test]
    fn content_range_forms() {
        let table = [
            ("bytes 0-9/10", Some((Some(0..10), Some(10)))),
            ("bytes 0-9/*", Some((Some(0..10), None))),
            ("bytes */10", Some((None, Some(10)))),
            ("Bytes  0-0/1", Some((Some(0..1), Some(1)))),
            ("bytes */*", None),
            ("bytes 5-4/10", None),
            ("bytes 0-10/10", None),
            ("bytes -5/10", None),
            ("bytes 5-/10", None),
            ("bytes +0-9/10", None),
            ("bytes 0-9", None),
            ("bytes=0-9/10", None),
            ("items 0-9/10", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes 0-99999999999999999999/*", None),
            ("bytes 0-1,3-4/10", None),
            ("", None),
        ];
        for (text, wanted) in table {
            let wanted = wanted.map(|(bytes, total)| ContentRange { bytes, total });
            assert_eq!(parse(text), wanted, "{text}");
        }
    }

    #[test]
    fn the_wanted_bytes_are_found_in_honest_answers() {
        let ranged = Placement { skip: 0, take: 10, ranged: true };
        assert_eq!(answer(206, &[("content-range", "bytes 10-19/100"), ("content-length", "10")]), Ok(ranged));
        assert_eq!(answer(206, &[("content-range", "bytes 10-19/*")]), Ok(ranged));
        assert_eq!(answer(206, &[("content-range", "bytes 10-14/100")]), Ok(Placement { take: 5, ..ranged }));
        let whole = Placement { skip: 10, take: 10, ranged: false };
        assert_eq!(answer(200, &[("content-length", "100")]), Ok(whole));
        assert_eq!(answer(200, &[]), Ok(whole));
    }

    #[test]
    fn every_other_answer_is_refused() {
        let table: &[(u16, &[(&'static str, &str)])] = &[
            (206, &[]),
            (206, &[("content-range", "bytes 11-19/100")]),
            (206, &[("content-range", "bytes 0-9/100")]),
            (206, &[("content-range", "bytes 10-20/100")]),
            (206, &[("content-range", "bytes 10-19/99")]),
            (206, &[("content-range", "bytes */100")]),
            (206, &[("content-range", "bytes 10-19/100"), ("content-length", "11")]),
            (206, &[("content-range", "bytes 10-19/100"), ("content-range", "bytes 10-19/100")]),
            (206, &[("content-range", "bytes 10-19/100"), ("content-length", "-10")]),
            (206, &[("content-range", "bytes 10-19/100"), ("content-type", "Multipart/byteranges; boundary=x")]),
            (200, &[("content-length", "99")]),
            (200, &[("content-length", "100, 100")]),
            (204, &[]),
            (416, &[("content-range", "bytes */15")]),
            (416, &[]),
        ];
        for (status, headers) in table {
            assert!(answer(*status, headers).is_err(), "{status} {headers:?}");
        }
    }

    #[test]
    fn a_blob_of_another_size_is_named_as_such() {
        let other = Err(RangeFault::OtherSize { expected: 100, got: 15 });
        assert_eq!(answer(416, &[("content-range", "bytes */15")]), other);
        assert_eq!(answer(200, &[("content-length", "15")]), other);
    }
}
