//! Sizes, times and names in text.

use peelfs::host::report::{Code, Report};
use peelfs::layer::Kind;

/// A size in binary units.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A size as `ls -h` and `du -h` print it: rounded up, with the letter of a binary unit.
pub(crate) fn human(bytes: u64) -> String {
    let mut unit = 0;
    let mut scale = 1_u128;
    let bytes = u128::from(bytes);
    while bytes >= 1024 * scale && unit + 1 < LETTERS.len() {
        scale <<= 10;
        unit += 1;
    }
    if unit == 0 {
        return bytes.to_string();
    }
    let tenths = (bytes * 10).div_ceil(scale);
    let (number, unit) = match (tenths < 100, bytes.div_ceil(scale)) {
        (true, _) => (format!("{}.{}", tenths / 10, tenths % 10), unit),
        (false, 1024) if unit + 1 < LETTERS.len() => ("1.0".to_owned(), unit + 1),
        (false, whole) => (whole.to_string(), unit),
    };
    format!("{number}{}", LETTERS[unit])
}

/// A count with its noun, as in `1 layer` and `2 layers`.
pub(crate) fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Bytes made safe for a terminal: escapes control characters and what is not UTF-8.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || is_direction(c) {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// A name as GNU `find -ls` prints it, also into pipes: no name ends a line or looks like two fields.
pub(crate) fn quoted_as_find(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\x08' => out.push_str("\\b"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b'\x0c' => out.push_str("\\f"),
            b' ' => out.push_str("\\ "),
            b'"' => out.push_str("\\\""),
            0x21..=0x7e => out.push(char::from(*byte)),
            _ => out.push_str(&format!("\\{byte:03o}")),
        }
    }
    out
}

/// The type and permissions as in ls(1).
pub(crate) fn mode(kind: Kind, mode: u16) -> String {
    let letter = match kind {
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Fifo => 'p',
        Kind::File | Kind::Whiteout | Kind::LowerLink => '-',
    };
    let mut text = String::from(letter);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// The kind of a node, in one or two words.
pub(crate) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::CharDevice => "character device",
        Kind::BlockDevice => "block device",
        Kind::Fifo => "fifo",
        Kind::File | Kind::Whiteout | Kind::LowerLink => "file",
    }
}

/// Seconds since 1970 as `2025-01-31 23:59:59` in UTC; as a number outside the calendar's range.
pub(crate) fn time(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => format!("@{seconds}"),
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A closed output (`| head`) is no failure.
pub(crate) fn output_ended(error: &std::io::Error) -> Result<(), Report> {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Report::new(Code::Failure, format!("cannot write the output: {error}"))),
    }
}

/// Characters that change the direction of text, so that a name can look like another.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

const LETTERS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_are_shown_in_binary_units() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 << 30), "5.0 GiB");
    }

    /// What `ls -lh` and `numfmt --to=iec` print.
    #[test]
    fn human_sizes_are_rounded_up_as_by_ls() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1025, "1.1K"),
            (10_138, "10K"),
            (10_240, "10K"),
            (10_241, "11K"),
            (1_047_553, "1.0M"),
            (1 << 20, "1.0M"),
            (1_572_864, "1.5M"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn times_are_shown_as_dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (-1, "1969-12-31 23:59:59"),
            (i64::MIN, "@-9223372036854775808"),
            (253_402_300_800, "@253402300800"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn modes_are_shown_as_by_ls() {
        assert_eq!(mode(Kind::File, 0o644), "-rw-r--r--");
        assert_eq!(mode(Kind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(mode(Kind::File, 0o6745), "-rwsr-Sr-x");
        assert_eq!(mode(Kind::Symlink, 0o777), "lrwxrwxrwx");
    }

    #[test]
    fn what_could_steer_a_terminal_is_escaped() {
        assert_eq!(printable(b"plain \xc3\xa4"), "plain \u{e4}");
        assert_eq!(printable(b"\x1b]0;x\x07"), "\\u{1b}]0;x\\u{7}");
        assert_eq!(printable(b"a\xffb"), "a\\xffb");
    }
}
