//! PAX records and the numbers of tar headers.
//!
//! The meaning of a record decides where the next header is, and two readers that disagree show different trees for one
//! digest. So the rules are those of Go's `archive/tar`, which nearly every runtime uses: the last record of a key
//! wins, an empty value keeps the header's, a size record always replaces the header's size, and a malformed record is
//! an error. Records of a global header are validated and then ignored, as in Go.

use super::entry::Timestamp;
use super::tar::TarFault;

/// An extended attribute in a tar.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Xattr {
    /// Name with its namespace, as in `security.capability`.
    pub name: Vec<u8>,
    /// Value, any bytes, possibly none.
    pub value: Vec<u8>,
}

/// The records of one extended header, not interpreted yet: they take effect with the entry that follows.
#[derive(Debug, Default)]
pub(super) struct PaxRecords {
    pub(super) path: Vec<u8>,
    pub(super) linkpath: Vec<u8>,
    pub(super) size: Vec<u8>,
    pub(super) uid: Vec<u8>,
    pub(super) gid: Vec<u8>,
    pub(super) mtime: Vec<u8>,
    atime: Vec<u8>,
    ctime: Vec<u8>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: PaxSparse,
}

/// Records that describe a sparse file.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Vec<u8>,
    pub(super) minor: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) size: Vec<u8>,
    pub(super) real_size: Vec<u8>,
    pub(super) blocks: Vec<u8>,
    pub(super) map: Vec<u8>,
}

impl PaxRecords {
    /// Parses the body of an `x` or `g` header (POSIX.1-2017, pax, "pax Extended Header").
    pub(super) fn parse(mut body: &[u8]) -> Result<Self, TarFault> {
        let mut records = Self::default();
        // Format 0.0 spreads the sparse map over repeated offset and numbytes records.
        let mut pairs: Vec<u8> = Vec::new();
        let mut pair_values = 0_usize;
        while !body.is_empty() {
            let (key, value, rest) = split_record(body).ok_or(TarFault::PaxRecord)?;
            body = rest;
            match key {
                b"path" => records.path = no_nul(value)?,
                b"linkpath" => records.linkpath = no_nul(value)?,
                b"uname" | b"gname" => drop(no_nul(value)?),
                b"size" => records.size = value.to_vec(),
                b"uid" => records.uid = value.to_vec(),
                b"gid" => records.gid = value.to_vec(),
                b"mtime" => records.mtime = value.to_vec(),
                b"atime" => records.atime = value.to_vec(),
                b"ctime" => records.ctime = value.to_vec(),
                b"GNU.sparse.major" => records.sparse.major = value.to_vec(),
                b"GNU.sparse.minor" => records.sparse.minor = value.to_vec(),
                b"GNU.sparse.name" => records.sparse.name = value.to_vec(),
                b"GNU.sparse.size" => records.sparse.size = value.to_vec(),
                b"GNU.sparse.realsize" => records.sparse.real_size = value.to_vec(),
                b"GNU.sparse.numblocks" => records.sparse.blocks = value.to_vec(),
                b"GNU.sparse.map" => records.sparse.map = value.to_vec(),
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let wanted: &[u8] =
                        if pair_values.is_multiple_of(2) { b"GNU.sparse.offset" } else { b"GNU.sparse.numbytes" };
                    if key != wanted || value.contains(&b',') {
                        return Err(TarFault::SparseMap);
                    }
                    if pair_values > 0 {
                        pairs.push(b',');
                    }
                    pairs.extend_from_slice(value);
                    pair_values += 1;
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        records.set_xattr(name, value);
                    }
                }
            }
        }
        if pair_values > 0 {
            records.sparse.map = pairs;
        }
        records.xattrs.sort_by(|left, right| left.name.cmp(&right.name));
        records.xattrs.dedup_by(|later, earlier| {
            // Stable sort: equal names stay in file order, and the last one wins.
            let same = later.name == earlier.name;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        Ok(records)
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) {
        self.xattrs.push(Xattr { name: name.to_vec(), value: value.to_vec() });
    }

    /// Validates times that are not kept, since readers that keep them would refuse the layer.
    pub(super) fn check_unused_times(&self) -> Result<(), TarFault> {
        for text in [&self.atime, &self.ctime] {
            if !text.is_empty() {
                parse_time(text)?;
            }
        }
        Ok(())
    }
}

/// Splits `"LENGTH KEY=VALUE\n"` off the front.
fn split_record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().take(24).position(|&byte| byte == b' ')?;
    let length = usize::try_from(parse_decimal(&body[..space])?).ok()?;
    if length < 5 || length > body.len() || length <= space + 1 {
        return None;
    }
    let (record, rest) = body.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    Some((key, value, rest))
}

fn no_nul(value: &[u8]) -> Result<Vec<u8>, TarFault> {
    if value.contains(&0) { Err(TarFault::PaxRecord) } else { Ok(value.to_vec()) }
}

/// A decimal number with an optional sign, and nothing else.
pub(super) fn parse_decimal(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return None;
    }
    let mut value = 0_i64;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        let digit = i64::from(digit - b'0');
        value = value.checked_mul(10)?;
        value = if negative { value.checked_sub(digit)? } else { value.checked_add(digit)? };
    }
    Some(value)
}

/// A PAX time: decimal seconds with any number of decimals, of which nine are used.
pub(super) fn parse_time(text: &[u8]) -> Result<Timestamp, TarFault> {
    let dot = text.iter().position(|&byte| byte == b'.');
    let (whole, decimals) = match dot {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let seconds = parse_decimal(whole).ok_or(TarFault::PaxValue { key: "time" })?;
    if !decimals.iter().all(u8::is_ascii_digit) {
        return Err(TarFault::PaxValue { key: "time" });
    }
    let mut nanos = 0_u32;
    for place in 0..9 {
        nanos = nanos * 10 + decimals.get(place).map_or(0, |digit| u32::from(digit - b'0'));
    }
    if nanos > 0 && whole.first() == Some(&b'-') {
        // -1.25 is 1.25 s before 1970: two seconds back, then 0.75 s forward.
        let seconds = seconds.checked_sub(1).ok_or(TarFault::PaxValue { key: "time" })?;
        return Ok(Timestamp { seconds, nanos: 1_000_000_000 - nanos });
    }
    Ok(Timestamp { seconds, nanos })
}

/// A numeric header field: octal text, or base-256 when the first bit is set (GNU, star).
pub(super) fn parse_numeric(field: &[u8]) -> Option<i64> {
    if field.first().is_none_or(|first| first & 0x80 == 0) {
        return parse_octal(field);
    }
    let flip = if field[0] & 0x40 != 0 { 0xff } else { 0 };
    let mut value = 0_u64;
    for (place, &byte) in field.iter().enumerate() {
        let byte = if place == 0 { (byte ^ flip) & 0x7f } else { byte ^ flip };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if flip != 0 { !value } else { value })
}

/// Octal text between optional blanks and NULs; an empty field is 0.
pub(super) fn parse_octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let text = until_nul(&field[start..end]);
    let mut value = 0_u64;
    for &digit in text {
        if !matches!(digit, b'0'..=b'7') || value >> 61 != 0 {
            return None;
        }
        value = value << 3 | u64::from(digit - b'0');
    }
    i64::try_from(value).ok()
}

/// The bytes before the first NUL.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    &field[..end]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields_read_as_go_reads_them() {
        let table: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"  644 \0 ", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"12\x0034\0", Some(0o12)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"8", None),
            (b"-1", None),
            (b"0x1", None),
            (b"7777777777777777777777777", None),
        ];
        for (field, wanted) in table {
            assert_eq!(parse_numeric(field), *wanted, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn base_256_fields_are_twos_complement() {
        let table: &[(&[u8], Option<i64>)] = &[
            (&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], Some(256)),
            (&[0xff; 12], Some(-1)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff], Some(-257)),
            (&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Some(i64::MAX)),
            (&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0xbf; 12], None),
        ];
        for (field, wanted) in table {
            assert_eq!(parse_numeric(field), *wanted, "{field:x?}");
        }
    }

    #[test]
    fn times_keep_nanoseconds_on_both_sides_of_1970() {
        let time = |text: &str| parse_time(text.as_bytes()).ok().map(|time| (time.seconds, time.nanos));
        let table = [
            ("1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            ("1", Some((1, 0))),
            ("1.", Some((1, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("-1.0", Some((-1, 0))),
            ("+1.5", Some((1, 500_000_000))),
            ("", None),
            (".5", None),
            ("1.5x", None),
            ("1.-5", None),
            ("-9223372036854775808.1", None),
            ("99999999999999999999", None),
        ];
        for (text, wanted) in table {
            assert_eq!(time(text), wanted, "{text}");
        }
    }

    #[test]
    fn malformed_records_are_errors_not_skipped() {
        let table: &[&[u8]] = &[
            b"0 a=b\n",
            b"5 a=b\n",
            b"7 a=b\n",
            b"6 a=b ",
            b"6 ab \n",
            b"99999999999999999999999 a=b\n",
            b"-6 a=b\n",
            b"6  =b\n\0",
            b"5 =b\n",
            b" 6 a=b\n",
            b"x",
            b"11 path=a\0\n",
            b"8 a\0b=c\n",
            b"\0",
        ];
        for body in table {
            assert!(PaxRecords::parse(body).is_err(), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn last_record_of_a_key_wins() {
        let records =
            PaxRecords::parse(b"10 path=a\n10 path=b\n22 SCHILY.xattr.u.a=1\n22 SCHILY.xattr.u.a=2\n").unwrap();
        assert_eq!(records.path, b"b");
        assert_eq!(records.xattrs, [Xattr { name: b"u.a".to_vec(), value: b"2".to_vec() }]);
    }

    #[test]
    fn xattr_values_may_hold_any_byte() {
        let mut body = b"28 SCHILY.xattr.user.x=".to_vec();
        body.extend_from_slice(b"\0=\n\xff\n");
        let records = PaxRecords::parse(&body).unwrap();
        assert_eq!(records.xattrs[0].value, b"\0=\n\xff");
    }

    #[test]
    fn sparse_pairs_of_format_0_0_must_alternate() {
        let good = b"22 GNU.sparse.offset=1\n24 GNU.sparse.numbytes=2\n";
        let body: Vec<u8> = good.to_vec();
        assert!(PaxRecords::parse(&body).is_err(), "length of the first record is wrong");
        let good = b"23 GNU.sparse.offset=1\n25 GNU.sparse.numbytes=2\n";
        assert_eq!(PaxRecords::parse(good).unwrap().sparse.map, b"1,2");
        let twice = b"23 GNU.sparse.offset=1\n23 GNU.sparse.offset=1\n";
        assert!(PaxRecords::parse(twice).is_err());
    }
}
