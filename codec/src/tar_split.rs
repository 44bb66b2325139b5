//! The data by which a layer's tar is rebuilt from its files: what the Go package tar-split writes, version 2. Engines keep it
//! beside the files of a layer, compressed with gzip; zstd:chunked has it in the layer, as a zstd frame.
//!
//! It is a JSON object a line, in the order of the tar: literal bytes (headers, padding and the end), or a file whose
//! bytes come next, with its size and a checksum (CRC-64 of ISO 3309).

use std::borrow::Cow;
use std::io::{self, BufRead, Read as _};

use base64::Engine as _;
use serde::Deserialize;

/// What comes next in the tar.
#[derive(Debug, Eq, PartialEq)]
pub enum Next<'a> {
    /// These bytes.
    Literal(&'a [u8]),
    /// A file that is not empty.
    File {
        /// Its path, as the tar has it.
        name: &'a [u8],
        /// Bytes.
        size: u64,
        /// Its checksum, if there is one.
        sum: Option<u64>,
    },
}

/// Why tar-split data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TarSplitError {
    /// It cannot be read or decompressed.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    /// A line is longer than the limit.
    #[error("line {0} has more than {LINE_LIMIT} bytes")]
    Long(u64),
    /// A line is not what tar-split writes.
    #[error("line {line} is malformed: {why}")]
    Malformed {
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// Reads tar-split data, and hands each piece of the tar to `take`, which may stop with an error of its own.
///
/// # Errors
/// [`TarSplitError`], or the first error of `take`.
pub fn read<E: From<TarSplitError>>(
    mut lines: impl BufRead,
    mut take: impl FnMut(Next<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let (mut text, mut payload, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for line in 1.. {
        text.clear();
        let got = lines.by_ref().take(LINE_LIMIT + 1).read_until(b'\n', &mut text).map_err(TarSplitError::Read)?;
        if got == 0 {
            break;
        }
        if got as u64 > LINE_LIMIT {
            return Err(TarSplitError::Long(line).into());
        }
        let malformed = |why: &dyn std::fmt::Display| TarSplitError::Malformed { line, why: why.to_string() };
        let entry: Entry<'_> = serde_json::from_slice(&text).map_err(|error| malformed(&error))?;
        decode(entry.payload.as_deref(), &mut payload).map_err(|error| malformed(&error))?;
        match entry.kind {
            SEGMENT => take(Next::Literal(&payload))?,
            FILE if entry.size == 0 => {}
            FILE => {
                let name = match &entry.name_raw {
                    Some(_) => {
                        decode(entry.name_raw.as_deref(), &mut raw).map_err(|error| malformed(&error))?;
                        &raw[..]
                    }
                    None => entry.name.as_deref().unwrap_or_default().as_bytes(),
                };
                let size = u64::try_from(entry.size).map_err(|error| malformed(&error))?;
                if name.is_empty() || name.contains(&0) {
                    return Err(malformed(&"a file has no usable name").into());
                }
                let sum = payload.first_chunk().filter(|_| payload.len() == 8).map(|sum| u64::from_be_bytes(*sum));
                take(Next::File { name, size, sum })?;
            }
            other => return Err(malformed(&format_args!("its type is {other}")).into()),
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    /// A name that is not UTF-8.
    #[serde(borrow, default)]
    name_raw: Option<Cow<'a, str>>,
    #[serde(default)]
    size: i64,
    #[serde(borrow, default)]
    payload: Option<Cow<'a, str>>,
}

fn decode(text: Option<&str>, into: &mut Vec<u8>) -> Result<(), base64::DecodeError> {
    into.clear();
    base64::engine::general_purpose::STANDARD.decode_vec(text.unwrap_or_default(), into)
}

/// The type of a file.
pub const FILE: u8 = 1;
/// The type of literal bytes.
pub const SEGMENT: u8 = 2;
/// Writers split what is longer than a MiB.
const LINE_LIMIT: u64 = 64 << 20;

/// CRC-64 of ISO 3309, as in the Go package `hash/crc64`.
pub struct Crc64(u64);

impl Default for Crc64 {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc64 {
    /// The sum of nothing.
    pub fn new() -> Self {
        Self(!0)
    }

    /// Adds what comes next.
    pub fn add(&mut self, bytes: &[u8]) {
        let (chunks, rest) = bytes.as_chunks::<8>();
        for chunk in chunks {
            let mixed = (self.0 ^ u64::from_le_bytes(*chunk)).to_le_bytes();
            self.0 = (0..8).fold(0, |sum, at| sum ^ TABLES[7 - at][usize::from(mixed[at])]);
        }
        for byte in rest {
            self.0 = TABLES[0][usize::from(self.0 as u8 ^ byte)] ^ (self.0 >> 8);
        }
    }

    /// The sum of all that was added.
    pub fn finish(&self) -> u64 {
        !self.0
    }
}

/// The sums of a byte that zero to seven zero bytes follow.
static TABLES: [[u64; 256]; 8] = {
    let (mut tables, mut at) = ([[0; 256]; 8], 0);
    while at < 256 {
        let (mut value, mut bit) = (at as u64, 0);
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        tables[0][at] = value;
        at += 1;
    }
    let mut zeros = 1;
    while zeros < 8 {
        let mut at = 0;
        while at < 256 {
            let before: u64 = tables[zeros - 1][at];
            tables[zeros][at] = tables[0][(before & 0xff) as usize] ^ (before >> 8);
            at += 1;
        }
        zeros += 1;
    }
    tables
};

const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The values are those of the golden table of Go's `hash/crc64`.
    #[test]
    fn sums_are_those_of_go() {
        for (text, wanted) in [
            ("", 0),
            ("a", 0x3420_0000_0000_0000),
            ("ab", 0x36c4_2000_0000_0000),
            ("abc", 0x3776_c420_0000_0000),
            ("abcd", 0x3367_76c4_2000_0000_u64),
        ] {
            let mut sum = Crc64::new();
            sum.add(text.as_bytes());
            assert_eq!(sum.finish(), wanted, "{text}");
        }
    }

    #[test]
    fn a_sum_of_many_bytes_is_that_of_one_after_the_other() {
        let bytes: Vec<u8> = (0..1000_u32).map(|at| (at * 7 % 251) as u8).collect();
        let (mut all, mut each) = (Crc64::new(), Crc64::new());
        all.add(&bytes);
        bytes.iter().for_each(|byte| each.add(&[*byte]));
        assert_eq!(all.finish(), each.finish());
    }

    fn told(lines: &str) -> String {
        let mut told = String::new();
        let read = read(lines.as_bytes(), |next| {
            match next {
                Next::Literal(bytes) => told.push_str(&format!("{bytes:?} ")),
                Next::File { name, size, sum } => {
                    told.push_str(&format!("{}={size}/{} ", String::from_utf8_lossy(name), sum.is_some()));
                }
            }
            Ok::<_, TarSplitError>(())
        });
        read.map_or_else(|error| format!("{told}{error}"), |()| told.clone())
    }

    #[test]
    fn lines_are_those_of_tar_split() {
        let lines = "{\"type\":2,\"payload\":\"aGU=\",\"position\":0}\n\
                     {\"type\":1,\"name\":\"empty\",\"payload\":\"AAAAAAAAAAA=\",\"position\":1}\n\
                     {\"type\":1,\"name\":\"a/\\\"b\",\"size\":3,\"payload\":\"NCAAAAAAAAA=\",\"position\":2}\n\
                     {\"type\":1,\"name_raw\":\"Yf8=\",\"size\":1,\"payload\":null,\"position\":3}";
        assert_eq!(told(lines), "[104, 101] a/\"b=3/true a\u{fffd}=1/false ");
    }

    #[test]
    fn what_tar_split_does_not_write_is_refused() {
        for (lines, wanted) in [
            ("{}\n", "line 1 is malformed: missing field `type`"),
            ("{\"type\":3}\n", "line 1 is malformed: its type is 3"),
            ("{\"type\":2}\n{", "line 2 is malformed: EOF"),
            ("{\"type\":2,\"payload\":\"?\"}\n", "line 1 is malformed: Invalid symbol"),
            ("{\"type\":1,\"name\":\"a\",\"size\":-1}\n", "line 1 is malformed: out of range"),
            ("{\"type\":1,\"size\":1}\n", "a file has no usable name"),
            ("{\"type\":1,\"name\":\"a\\u0000\",\"size\":1}\n", "a file has no usable name"),
        ] {
            assert!(told(lines).contains(wanted), "{lines}: {}", told(lines));
        }
        let long = format!("{{\"type\":2,\"payload\":\"{}", "A".repeat(LINE_LIMIT as usize));
        assert!(matches!(read(long.as_bytes(), |_| Ok::<_, TarSplitError>(())).unwrap_err(), TarSplitError::Long(1)));
    }
}
