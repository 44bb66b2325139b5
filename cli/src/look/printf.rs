//! Formats of `find -printf`, as find(1) of GNU has them: directives, escapes, flags, widths and precisions. Times are in
//! UTC.

use std::borrow::Cow;
use std::io::{self, Write};

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

use super::out::Out;
use super::owners::Owners;
use crate::text;
use peelfs::layer::Kind;
use peelfs::overlay::NodeAttr;

/// A parsed format.
#[derive(Clone, Debug, Default)]
pub(crate) struct Format {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(Vec<u8>),
    Field(Shape, Field),
    /// `\c`: nothing more of the format.
    End,
}

/// How a field is padded and cut.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    left: bool,
    zeros: bool,
    sign: bool,
    /// `#`: octal numbers begin with a zero.
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Field {
    Path,
    Name,
    Parent,
    Start,
    BelowStart,
    Depth,
    Size,
    Kibibytes,
    Blocks,
    Mode,
    Symbolic,
    Uid,
    Gid,
    User,
    Group,
    Letter,
    /// The letter of what a symlink leads to.
    FollowedLetter,
    Target,
    Links,
    Inode,
    /// How much of it takes room on a disk.
    Sparseness,
    /// A time by a letter of strftime(3), or one of `@`, `+` and `c`.
    Time(Which, char),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Which {
    Modified,
    Changed,
}

/// What is printed.
pub(crate) struct Subject<'a> {
    pub(crate) path: &'a [u8],
    /// The path from which the search started, as it was typed.
    pub(crate) start: &'a [u8],
    pub(crate) depth: usize,
    pub(crate) attr: &'a NodeAttr,
    pub(crate) inode: u64,
    pub(crate) changed: (i64, u32),
    pub(crate) target: Option<&'a [u8]>,
    /// What a symlink leads to: a kind, or that there is nothing, or a loop.
    pub(crate) followed: Followed,
    pub(crate) owners: &'a Owners,
}

/// Where a path leads that ends in a symlink.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Followed {
    To(Kind),
    Nothing,
    Loop,
}

impl Format {
    /// Parses a format; the error names what is wrong with it.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let (mut pieces, mut plain, mut rest) = (Vec::new(), Vec::new(), text);
        let keep = |plain: &mut Vec<u8>, pieces: &mut Vec<Piece>| {
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(plain)));
            }
        };
        while let [first, after @ ..] = rest {
            rest = after;
            match first {
                b'\\' => match escape(&mut rest)? {
                    Some(byte) => plain.push(byte),
                    None => {
                        keep(&mut plain, &mut pieces);
                        pieces.push(Piece::End);
                    }
                },
                b'%' if rest.first() == Some(&b'%') => {
                    plain.push(b'%');
                    rest = &rest[1..];
                }
                b'%' => {
                    keep(&mut plain, &mut pieces);
                    pieces.push(directive(&mut rest)?);
                }
                byte => plain.push(*byte),
            }
        }
        keep(&mut plain, &mut pieces);
        Ok(Self { pieces })
    }

    /// Whether names of users and groups are needed.
    pub(crate) fn needs_owners(&self) -> bool {
        self.has(|field| matches!(field, Field::User | Field::Group))
    }

    /// Whether targets of symlinks are needed.
    pub(crate) fn needs_target(&self) -> bool {
        self.has(|field| field == Field::Target)
    }

    /// Whether it must be known what symlinks lead to.
    pub(crate) fn needs_followed(&self) -> bool {
        self.has(|field| field == Field::FollowedLetter)
    }

    fn has(&self, is: impl Fn(Field) -> bool) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Field(_, field) if is(*field)))
    }

    /// Prints a subject; names are escaped on a terminal.
    pub(crate) fn print(&self, of: &Subject<'_>, out: &mut Out) -> io::Result<()> {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.write_all(text)?,
                Piece::Field(shape, field) => {
                    let mut text = field.of(of, *shape);
                    if field.is_name() && out.is_terminal() {
                        text = text::printable(&text).into_bytes().into();
                    }
                    // The precision of a number is not that of a text.
                    let precision = shape.precision.filter(|_| !field.is_number());
                    Shape { precision, ..*shape }.print(&text, out)?;
                }
                Piece::End => break,
            }
        }
        Ok(())
    }
}

/// The byte that an escape stands for; `None` for `\c`.
fn escape(rest: &mut &[u8]) -> Result<Option<u8>, String> {
    let Some((letter, after)) = rest.split_first() else { return Err("it ends with a backslash".to_owned()) };
    if letter.is_ascii_digit() && *letter < b'8' {
        let digits = rest.iter().take(3).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
        let value = rest[..digits].iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
        *rest = &rest[digits..];
        return Ok(Some(value as u8));
    }
    *rest = after;
    Ok(Some(match letter {
        b'a' => 0x07,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 0x0b,
        b'\\' => b'\\',
        b'c' => return Ok(None),
        other => return Err(format!("there is no escape `\\{}`", other.escape_ascii())),
    }))
}

/// A directive behind its `%`.
fn directive(rest: &mut &[u8]) -> Result<Piece, String> {
    let mut shape = Shape::default();
    while let Some(flag) = rest.first().filter(|byte| b"-0#+ ".contains(byte)) {
        match flag {
            b'-' => shape.left = true,
            b'0' => shape.zeros = true,
            b'#' => shape.alternate = true,
            b'+' => shape.sign = true,
            _ => {}
        }
        *rest = &rest[1..];
    }
    shape.width = number(rest)?;
    if let Some(after) = rest.strip_prefix(b".") {
        *rest = after;
        shape.precision = Some(number(rest)?);
    }
    let mut next = || {
        let (letter, after) = rest.split_first()?;
        *rest = after;
        Some(*letter)
    };
    let letter = next().ok_or("it ends within a directive")?;
    let field = match letter {
        b'p' => Field::Path,
        b'f' => Field::Name,
        b'h' => Field::Parent,
        b'H' => Field::Start,
        b'P' => Field::BelowStart,
        b'd' => Field::Depth,
        b's' => Field::Size,
        b'k' => Field::Kibibytes,
        b'b' => Field::Blocks,
        b'm' => Field::Mode,
        b'M' => Field::Symbolic,
        b'U' => Field::Uid,
        b'G' => Field::Gid,
        b'u' => Field::User,
        b'g' => Field::Group,
        b'y' => Field::Letter,
        b'Y' => Field::FollowedLetter,
        b'l' => Field::Target,
        b'n' => Field::Links,
        b'i' => Field::Inode,
        b'S' => Field::Sparseness,
        b't' | b'a' => Field::Time(Which::Modified, CTIME),
        b'c' => Field::Time(Which::Changed, CTIME),
        b'T' | b'A' | b'C' => {
            let which = if letter == b'C' { Which::Changed } else { Which::Modified };
            let of = char::from(next().ok_or("it ends within a directive")?);
            if !TIMES.contains(of) {
                return Err(format!("there is no time `%{}{}`", char::from(letter), of.escape_default()));
            }
            Field::Time(which, of)
        }
        b'D' => return Err("an image has no device number (`%D`)".to_owned()),
        b'F' => return Err("an image has no type of file system (`%F`)".to_owned()),
        b'Z' => return Err("SELinux contexts of an image are not told (`%Z`)".to_owned()),
        other => return Err(format!("there is no directive `%{}`", other.escape_ascii())),
    };
    Ok(Piece::Field(shape, field))
}

fn number(rest: &mut &[u8]) -> Result<usize, String> {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let text = std::str::from_utf8(&rest[..digits]).unwrap_or_default();
    *rest = &rest[digits..];
    match text {
        "" => Ok(0),
        text => {
            text.parse().ok().filter(|width| *width <= WIDEST).ok_or_else(|| format!("`{text}` columns are too many"))
        }
    }
}

impl Field {
    /// Whether its bytes come from names and targets.
    fn is_name(self) -> bool {
        matches!(
            self,
            Self::Path
                | Self::Name
                | Self::Parent
                | Self::Start
                | Self::BelowStart
                | Self::User
                | Self::Group
                | Self::Target
        )
    }

    /// Whether flags and precision are those of numbers; find prints all others as texts.
    fn is_number(self) -> bool {
        matches!(self, Self::Depth | Self::Mode | Self::Sparseness)
    }

    fn of<'a>(self, of: &Subject<'a>, shape: Shape) -> Cow<'a, [u8]> {
        let attr = of.attr;
        let text = |text: String| Cow::Owned(text.into_bytes());
        match self {
            Self::Path => of.path.into(),
            Self::Name => split(of.path).1.into(),
            Self::Parent => split(of.path).0.into(),
            Self::Start => of.start.into(),
            Self::BelowStart => {
                let below = of.path.strip_prefix(of.start).unwrap_or(of.path);
                below.strip_prefix(b"/").unwrap_or(below).into()
            }
            Self::Depth => shape.number(of.depth as u64),
            Self::Size => text(attr.size.to_string()),
            Self::Kibibytes => text(attr.blocks.div_ceil(2).to_string()),
            Self::Blocks => text(attr.blocks.to_string()),
            Self::Mode => text(shape.octal(attr.mode)),
            Self::Symbolic => text(text::mode(attr.kind, attr.mode)),
            Self::Uid => text(attr.uid.to_string()),
            Self::Gid => text(attr.gid.to_string()),
            Self::User => text(of.owners.user(attr.uid).into_owned()),
            Self::Group => text(of.owners.group(attr.gid).into_owned()),
            Self::Letter => letter(attr.kind).into(),
            Self::FollowedLetter => match of.followed {
                Followed::To(kind) => letter(kind).into(),
                Followed::Nothing => b"N".into(),
                Followed::Loop => b"L".into(),
            },
            Self::Target => of.target.unwrap_or_default().into(),
            Self::Links => text(attr.nlink.to_string()),
            Self::Inode => text(of.inode.to_string()),
            Self::Sparseness => text(shape.general(match (attr.size, attr.blocks) {
                (0, 0) => 1.0,
                (size, blocks) => 512.0 * blocks as f64 / size as f64,
            })),
            Self::Time(Which::Modified, letter) => text(time((attr.mtime, attr.mtime_ns), letter)),
            Self::Time(Which::Changed, letter) => text(time(of.changed, letter)),
        }
    }
}

impl Shape {
    /// A number in base 8, without a sign (`%o` of printf(3)).
    fn octal(self, value: u16) -> String {
        let mut digits = format!("{value:0digits$o}", digits = self.precision.unwrap_or(1));
        if self.alternate && !digits.starts_with('0') {
            digits.insert(0, '0');
        }
        self.padded(digits)
    }

    /// A number with six digits, or with an exponent if it is very large or small (`%g` of printf(3)).
    fn general(self, value: f64) -> String {
        if !value.is_finite() {
            return "inf".to_owned();
        }
        let digits = self.precision.unwrap_or(6).max(1);
        let scientific = format!("{value:.*e}", digits - 1);
        let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let whole = |text: &str| match text.contains('.') && !self.alternate {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text.to_owned(),
        };
        let text = if exponent < -4 || exponent >= digits as i32 {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}e{sign}{:02}", whole(mantissa), exponent.unsigned_abs())
        } else {
            let after = (digits as i32 - 1 - exponent).max(0) as usize;
            whole(&format!("{value:.after$}"))
        };
        self.padded(if self.sign { format!("+{text}") } else { text })
    }

    /// With zeros before it where `0` asks for them.
    fn padded(self, digits: String) -> String {
        let is_padded = self.zeros && !self.left && self.precision.is_none();
        let (sign, digits) = match digits.strip_prefix('+') {
            Some(digits) => ("+", digits.to_owned()),
            None => ("", digits),
        };
        let zeros = if is_padded { self.width.saturating_sub(sign.len() + digits.len()) } else { 0 };
        format!("{sign}{}{digits}", "0".repeat(zeros))
    }

    /// A number in base 10.
    fn number(self, value: u64) -> Cow<'static, [u8]> {
        let sign = if self.sign { "+" } else { "" };
        let text = match (self.precision, self.zeros && !self.left) {
            (Some(digits), _) => format!("{sign}{value:0digits$}"),
            (None, true) => format!("{sign}{value:0width$}", width = self.width.saturating_sub(sign.len())),
            (None, false) => format!("{sign}{value}"),
        };
        Cow::Owned(text.into_bytes())
    }

    fn print(self, text: &[u8], out: &mut impl Write) -> io::Result<()> {
        let text = &text[..self.precision.map_or(text.len(), |most| most.min(text.len()))];
        let padding = vec![b' '; self.width.saturating_sub(text.len())];
        let (before, after) = if self.left { (&[][..], &padding[..]) } else { (&padding[..], &[][..]) };
        out.write_all(before)?;
        out.write_all(text)?;
        out.write_all(after)
    }
}

/// The directory and the name of a path; slashes at its end belong to the name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    match path[..end].iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None if end == 0 && !path.is_empty() => path.split_at(path.len() - 1),
        None => (b".", path),
    }
}

fn letter(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Directory => b"d",
        Kind::Symlink => b"l",
        Kind::CharDevice => b"c",
        Kind::BlockDevice => b"b",
        Kind::Fifo => b"p",
        _ => b"f",
    }
}

/// A time in UTC, with the fraction that find prints.
fn time((seconds, nanos): (i64, u32), letter: char) -> String {
    let fraction = format!(".{nanos:09}0");
    if letter == '@' {
        return format!("{seconds}{fraction}");
    }
    let Ok(time) = Timestamp::from_second(seconds) else { return format!("@{seconds}{fraction}") };
    let zoned = time.to_zoned(TimeZone::UTC);
    let by = |format: &str| strtime::format(format, &zoned).unwrap_or_default();
    match letter {
        CTIME => format!("{}{fraction} {}", by("%a %b %e %H:%M:%S"), by("%Y")),
        '+' => format!("{}{fraction}", by("%Y-%m-%d+%H:%M:%S")),
        'S' => format!("{}{fraction}", by("%S")),
        'T' | 'X' => format!("{}{fraction}", by("%H:%M:%S")),
        'c' => by("%a %b %e %H:%M:%S %Y"),
        'D' | 'x' => by("%m/%d/%y"),
        'r' => by("%I:%M:%S %p"),
        's' => seconds.to_string(),
        'Z' => "UTC".to_owned(),
        letter => by(&format!("%{letter}")),
    }
}

/// Directives of times behind `%A`, `%C` and `%T`.
const TIMES: &str = "@+aAbBcdDeFhHIjklmMprRsSTuUVwWxXyYzZgG";
/// The form of ctime(3).
const CTIME: char = '\0';
/// Columns of a field.
const WIDEST: usize = 4096;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_are_split_as_by_find() {
        for (path, parent, name) in [
            ("/", "", "/"),
            ("//", "/", "/"),
            ("a", ".", "a"),
            (".", ".", "."),
            ("/a", "", "a"),
            ("/a/", "", "a/"),
            ("a/b", "a", "b"),
            ("/a//b/", "/a/", "b/"),
        ] {
            assert_eq!(split(path.as_bytes()), (parent.as_bytes(), name.as_bytes()), "{path}");
        }
    }

    /// As printf(3) prints them.
    #[test]
    fn numbers_of_find_are_padded_and_rounded() {
        let shape = |directive: &str| {
            let Piece::Field(shape, _) = directive_of(directive) else { panic!("{directive}") };
            shape
        };
        for (directive, value, wanted) in [
            ("05m", 0o644, "00644"),
            ("m", 0o644, "644"),
            ("#m", 0o644, "0644"),
            ("#08m", 0o644, "00000644"),
            ("-05m", 0o644, "644"),
            (".5m", 0o644, "00644"),
            ("#.6m", 0o644, "000644"),
            ("010.6m", 0o644, "000644"),
            ("#m", 0, "0"),
        ] {
            assert_eq!(shape(directive).octal(value), wanted, "{directive}");
        }
        for (directive, value, wanted) in [
            ("S", 1.0, "1"),
            ("S", 0.0, "0"),
            ("S", 1_365.333, "1365.33"),
            ("S", 0.000_001_365_33, "1.36533e-06"),
            ("S", 0.000_123_456_7, "0.000123457"),
            ("S", 1_234_567.0, "1.23457e+06"),
            (".2S", 1365.3, "1.4e+03"),
            ("08S", 0.5, "000000.5"),
            ("+08S", 0.5, "+00000.5"),
            ("S", f64::INFINITY, "inf"),
        ] {
            assert_eq!(shape(directive).general(value), wanted, "{directive} {value}");
        }
    }

    fn directive_of(text: &str) -> Piece {
        directive(&mut text.as_bytes()).unwrap()
    }

    #[test]
    fn what_find_warns_of_is_refused() {
        for (format, wanted) in [
            ("%", "it ends within a directive"),
            ("%5", "it ends within a directive"),
            ("%q", "there is no directive `%q`"),
            ("%T", "it ends within a directive"),
            ("%TQ", "there is no time `%TQ`"),
            ("%D", "an image has no device number (`%D`)"),
            ("%F", "an image has no type of file system (`%F`)"),
            ("%Z", "SELinux contexts of an image are not told (`%Z`)"),
            ("\\x41", "there is no escape `\\x`"),
            ("\\q", "there is no escape `\\q`"),
            ("\\", "it ends with a backslash"),
            ("%99999s", "`99999` columns are too many"),
        ] {
            assert_eq!(Format::parse(format.as_bytes()).unwrap_err(), wanted, "{format}");
        }
    }
}
