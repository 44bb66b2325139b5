//! The values of tests: patterns, sizes, modes, ages, as find(1) has them.

use regex::bytes::{Regex, RegexBuilder};

use peelfs::layer::Kind;

/// `N`, `+N` (more) or `-N` (less).
#[derive(Clone, Copy, Debug)]
pub(super) struct Compared(std::cmp::Ordering, u64);

impl Compared {
    pub(super) fn parse(text: &str) -> Option<Self> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let (order, digits) = match text.as_bytes().first()? {
            b'+' => (Greater, &text[1..]),
            b'-' => (Less, &text[1..]),
            _ => (Equal, text),
        };
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse().ok().map(|number| Self(order, number)))?
    }

    pub(super) fn fits(self, value: i128) -> bool {
        value.cmp(&i128::from(self.1)) == self.0
    }
}

/// `-perm`
#[derive(Clone, Copy, Debug)]
pub(super) enum Perm {
    Exactly(u16),
    AllOf(u16),
    AnyOf(u16),
}

pub(super) fn compiled(pattern: &str, name: &str) -> Result<Regex, String> {
    let compiled = RegexBuilder::new(pattern).case_insensitive(name.starts_with('i')).size_limit(PATTERN).build();
    compiled.map_err(|error| error.to_string().lines().last().unwrap_or_default().trim().to_owned())
}

/// A pattern of fnmatch(3) as a regular expression of bytes: `*` and `?` also match a slash and a leading dot.
pub(super) fn glob(pattern: &[u8]) -> String {
    let mut out = String::from("^");
    let mut rest = pattern;
    while let [first, after @ ..] = rest {
        rest = after;
        match first {
            b'*' => out.push_str("(?s-u:.*)"),
            b'?' => out.push_str(r"(?:(?s:.)|(?-u:[\x80-\xff]))"),
            b'[' => match bracket(rest) {
                Some((set, after)) => {
                    out.push_str(&set);
                    rest = after;
                }
                None => out.push_str(r"\["),
            },
            b'\\' if !rest.is_empty() => {
                literal(&mut out, &rest[..1]);
                rest = &rest[1..];
            }
            byte if byte.is_ascii() => literal(&mut out, &[*byte]),
            _ => {
                // A character of several bytes stays one, for patterns that ignore case.
                let length = 1 + rest.iter().take_while(|byte| **byte & 0xc0 == 0x80).count();
                let all = &[&[*first], &rest[..length - 1]].concat();
                literal(&mut out, all);
                rest = &rest[length - 1..];
            }
        }
    }
    out.push('$');
    out
}

/// A bracket expression behind its `[`, and the rest of the pattern.
fn bracket(pattern: &[u8]) -> Option<(String, &[u8])> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let body = &pattern[usize::from(negated)..];
    // A bracket that comes first is one of the set.
    let mut end = usize::from(body.first() == Some(&b']'));
    while *body.get(end)? != b']' {
        // `[:alpha:]` has a bracket of its own.
        if body[end..].starts_with(b"[:") {
            end += body[end..].windows(2).position(|pair| pair == b":]")? + 1;
        } else if body[end] == b'\\' {
            end += 1;
        }
        end += 1;
    }
    let text = std::str::from_utf8(&body[..end]).ok()?;
    let mut out = String::from(if negated { "[^" } else { "[" });
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '[' if chars.peek() == Some(&':') => {
                out.push('[');
                while let Some(char) = chars.next() {
                    out.push(char);
                    if char == ':' && chars.peek() == Some(&']') {
                        out.extend(chars.next());
                        break;
                    }
                }
            }
            '\\' => out.extend(
                chars.next().map(|char| format!(r"\x{{{:x}}}", u32::from(char))).iter().flat_map(|text| text.chars()),
            ),
            // Between two characters it is a range; two of them would be an operator of regular expressions.
            '-' if !out.ends_with(['[', '^', '-']) && chars.peek().is_some_and(|next| *next != '-') => out.push('-'),
            char if char.is_alphanumeric() => out.push(char),
            char => out.push_str(&format!(r"\x{{{:x}}}", u32::from(char))),
        }
    }
    out.push(']');
    Some((out, &body[end + 1..]))
}

fn literal(out: &mut String, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => out.push_str(&regex::escape(text)),
        Err(_) => bytes.iter().for_each(|byte| out.push_str(&format!(r"(?-u:\x{byte:02x})"))),
    }
}

pub(super) fn types(text: &str) -> Option<Vec<Kind>> {
    text.split(',')
        .map(|letter| {
            Some(match letter {
                "f" => Kind::File,
                "d" => Kind::Directory,
                "l" => Kind::Symlink,
                "p" => Kind::Fifo,
                "c" => Kind::CharDevice,
                "b" => Kind::BlockDevice,
                _ => return None,
            })
        })
        .collect()
}

/// A size and its unit in bytes; sizes are rounded up to units.
pub(super) fn size(text: &str) -> Option<(Compared, u64)> {
    let (number, unit) = match text.chars().last()? {
        'c' => (&text[..text.len() - 1], 1),
        'w' => (&text[..text.len() - 1], 2),
        'b' => (&text[..text.len() - 1], 512),
        'k' | 'K' => (&text[..text.len() - 1], 1 << 10),
        'M' => (&text[..text.len() - 1], 1 << 20),
        'G' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 512),
    };
    Some((Compared::parse(number)?, unit))
}

pub(super) fn perm(text: &str) -> Option<Perm> {
    let (of, mode): (fn(u16) -> Perm, _) = match text.as_bytes().first()? {
        b'-' => (Perm::AllOf, &text[1..]),
        b'/' => (Perm::AnyOf, &text[1..]),
        _ => (Perm::Exactly, text),
    };
    let is_octal = !mode.is_empty() && mode.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode =
        if is_octal { u16::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777)? } else { symbolic(mode)? };
    Some(of(mode))
}

/// A mode as in chmod(1), applied to 0.
fn symbolic(text: &str) -> Option<u16> {
    let mut mode = 0;
    for clause in text.split(',') {
        let at = clause.find(['+', '=', '-'])?;
        let (who, what) = (&clause[..at], &clause[at + 1..]);
        let all = who.is_empty() || who.contains('a');
        if !who.chars().all(|char| "ugoa".contains(char)) {
            return None;
        }
        let (user, group, other) = (all || who.contains('u'), all || who.contains('g'), all || who.contains('o'));
        let mut bits = 0;
        for char in what.chars() {
            let three = match char {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                's' => {
                    bits |= (u16::from(user) * 0o4000) | (u16::from(group) * 0o2000);
                    0
                }
                't' => {
                    bits |= 0o1000;
                    0
                }
                _ => return None,
            };
            let of = (u16::from(user) * 0o700) | (u16::from(group) * 0o070) | (u16::from(other) * 0o007);
            bits |= three & of;
        }
        if clause.as_bytes()[at] == b'-' { mode &= !bits } else { mode |= bits }
    }
    Some(mode)
}

/// A time in UTC, in seconds since 1970.
pub(super) fn time(text: &str) -> Option<i64> {
    if let Some(seconds) = text.strip_prefix('@') {
        return seconds.parse().ok();
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(time.as_second());
    }
    let civil = text.parse::<jiff::civil::DateTime>().ok()?;
    Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

/// Limit of a compiled pattern, in bytes.
const PATTERN: usize = 4 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn matches(pattern: &[u8], name: &[u8]) -> bool {
        compiled(&glob(pattern), "name").unwrap().is_match(name)
    }

    #[test]
    fn patterns_match_as_by_fnmatch() {
        for (pattern, yes, no) in [
            (&b"*.so"[..], &[&b"a.so"[..], b".so", b"x/y.so", b"\xff.so"][..], &[&b"a.so.1"[..], b"so"][..]),
            (b"?", &[b"a", b"\xc3\xa4", b"\xff", b"\n"], &[b"", b"ab"]),
            (b"[a-c]x", &[b"ax", b"cx"], &[b"dx", b"x"]),
            (b"[!a]", &[b"b", b"\xc3\xa4"], &[b"a"]),
            (b"[]x]", &[b"]", b"x"], &[b"a"]),
            (b"[[:digit:]-]", &[b"1", b"-"], &[b"a"]),
            (b"[[:alpha:][:digit:]]x", &[b"ax", b"1x"], &[b"-x", b":x"]),
            (b"[--0]", &[b"-", b"0"], &[b"x"]),
            (b"[a&&b]", &[b"&", b"a", b"b"], &[b"c"]),
            (b"a[", &[b"a["], &[b"a"]),
            (b"\\*", &[b"*"], &[b"a"]),
            (b"a{b,c}", &[b"a{b,c}"], &[b"ab"]),
            (b"caf\xe9", &[b"caf\xe9"], &[b"caf\xc3\xa9"]),
            (b"a.b+(c)|^$", &[b"a.b+(c)|^$"], &[b"axb"]),
            (b"", &[b""], &[b"a"]),
        ] {
            for name in yes {
                assert!(matches(pattern, name), "{} {}", pattern.escape_ascii(), name.escape_ascii());
            }
            for name in no {
                assert!(!matches(pattern, name), "{} {}", pattern.escape_ascii(), name.escape_ascii());
            }
        }
    }

    #[test]
    fn modes_and_times_are_read_as_by_find() {
        assert!(matches!(perm("-u+s"), Some(Perm::AllOf(0o4000))));
        assert!(matches!(perm("/222"), Some(Perm::AnyOf(0o222))));
        assert!(matches!(perm("u=rw,go=r"), Some(Perm::Exactly(0o644))));
        assert!(matches!(perm("a+t"), Some(Perm::Exactly(0o1000))));
        assert!(perm("10000").is_none() && perm("").is_none() && perm("z+x").is_none());
        assert_eq!(time("1970-01-02"), Some(86_400));
        assert_eq!(time("1970-01-01 00:01"), Some(60));
        assert_eq!(time("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(time("@7"), Some(7));
        assert_eq!(time("yesterday"), None);
    }
}
