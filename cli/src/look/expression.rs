//! The expressions of `find`, as find(1) has them: tests, `!`, `-a`, `-o`, parentheses, `-prune` and what to print.
//!
//! They are written behind the paths with one hyphen, as everywhere; two hyphens do as well. Since the grammar of
//! options has no such words, they are set apart before options are parsed.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use regex::bytes::{Regex, RegexBuilder};

use super::owners::Owners;
use peelfs::host::report::Report;
use peelfs::layer::Kind;
use peelfs::overlay::NodeAttr;

/// Moves the expression of a `peelfs find` behind `--`; other command lines stay as they are.
pub(crate) fn set_apart(line: Vec<OsString>) -> Vec<OsString> {
    if line.get(1).is_none_or(|word| word != "find") || line.iter().any(|word| word == "--") {
        return line;
    }
    let (mut kept, mut expression) = (Vec::new(), Vec::new());
    let mut words = line.into_iter();
    while let Some(word) = words.next() {
        match argument_of(&word) {
            Some(Takes::Value(Some(joined))) => {
                let (name, value) = joined;
                expression.extend([name, value]);
            }
            Some(takes) => {
                expression.push(word);
                if matches!(takes, Takes::Value(None)) {
                    expression.extend(words.next());
                }
            }
            None => kept.push(word),
        }
    }
    if !expression.is_empty() {
        kept.push("--".into());
        kept.extend(expression);
    }
    kept
}

enum Takes {
    Nothing,
    /// An argument; in the same word, as in `--name=x`.
    Value(Option<(OsString, OsString)>),
}

/// What a word of an expression takes; `None` for other words.
fn argument_of(word: &OsStr) -> Option<Takes> {
    let text = word.to_str()?;
    if matches!(text, "(" | ")" | "!" | ",") {
        return Some(Takes::Nothing);
    }
    let name = text.strip_prefix("--").or(text.strip_prefix('-'))?;
    if WITHOUT_VALUE.contains(&name) {
        return Some(Takes::Nothing);
    }
    if WITH_VALUE.contains(&name) {
        return Some(Takes::Value(None));
    }
    let (name, value) = text.strip_prefix("--")?.split_once('=')?;
    WITH_VALUE.contains(&name).then(|| Takes::Value(Some((format!("-{name}").into(), value.into()))))
}

const WITHOUT_VALUE: [&str; 19] = [
    "print",
    "print0",
    "ls",
    "prune",
    "quit",
    "empty",
    "true",
    "false",
    "nouser",
    "nogroup",
    "not",
    "a",
    "and",
    "o",
    "or",
    "executable",
    "delete",
    "exec",
    "ok",
];
const WITH_VALUE: [&str; 24] = [
    "name",
    "iname",
    "path",
    "ipath",
    "wholename",
    "iwholename",
    "lname",
    "ilname",
    "regex",
    "iregex",
    "type",
    "size",
    "perm",
    "newer",
    "newermt",
    "mtime",
    "mmin",
    "user",
    "group",
    "uid",
    "gid",
    "links",
    "maxdepth",
    "mindepth",
];

/// A parsed expression.
#[derive(Debug)]
pub(crate) struct Expression {
    root: Node,
    /// Levels below the start that are looked at.
    pub(crate) max_depth: usize,
    /// Levels below the start that are walked only.
    pub(crate) min_depth: usize,
    /// Whether a test needs targets of symlinks.
    pub(crate) needs_target: bool,
    /// Whether a test needs to know which directories are empty.
    pub(crate) needs_empty: bool,
    /// Whether a test needs the image's names of users and groups.
    pub(crate) needs_owners: bool,
    /// The paths of the image whose times are compared.
    pub(crate) newer: Vec<Vec<u8>>,
}

#[derive(Debug)]
enum Node {
    Always(bool),
    Not(Box<Node>),
    All(Vec<Node>),
    Any(Vec<Node>),
    Name(Regex),
    Path(Regex),
    Target(Regex),
    Types(Vec<Kind>),
    Size(Compared, u64),
    Perm(Perm),
    /// Modified later than the file of this number.
    Newer(usize),
    /// Modified later than this time.
    After(i64),
    /// Modified this many units of seconds ago.
    Age(Compared, i64),
    User(String),
    Group(String),
    Uid(Compared),
    Gid(Compared),
    Links(Compared),
    NoUser,
    NoGroup,
    Empty,
    Executable,
    Prune,
    Quit,
    Print(Print),
}

/// How a match is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Print {
    /// On a line of its own.
    Line,
    /// Ended by a zero byte.
    Zero,
    /// With metadata, as `ls -dils`.
    Long,
}

/// `N`, `+N` (more) or `-N` (less).
#[derive(Clone, Copy, Debug)]
struct Compared(std::cmp::Ordering, u64);

impl Compared {
    fn parse(text: &str) -> Option<Self> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let (order, digits) = match text.as_bytes().first()? {
            b'+' => (Greater, &text[1..]),
            b'-' => (Less, &text[1..]),
            _ => (Equal, text),
        };
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse().ok().map(|number| Self(order, number)))?
    }

    fn fits(self, value: i128) -> bool {
        value.cmp(&i128::from(self.1)) == self.0
    }
}

/// `-perm`
#[derive(Clone, Copy, Debug)]
enum Perm {
    Exactly(u16),
    AllOf(u16),
    AnyOf(u16),
}

/// What an expression is asked about.
pub(crate) struct Candidate<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) name: &'a [u8],
    pub(crate) attr: &'a NodeAttr,
    pub(crate) target: Option<&'a [u8]>,
    /// Whether it is a directory without names.
    pub(crate) empty_dir: bool,
}

/// What expressions compare with.
pub(crate) struct Facts {
    pub(crate) owners: Owners,
    /// Times of the files of [`Expression::newer`].
    pub(crate) newer: Vec<(i64, u32)>,
    /// Seconds since 1970.
    pub(crate) now: i64,
}

/// What to do after a candidate.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// How to print it.
    pub(crate) prints: Vec<Print>,
    /// Whether to stay out of the directory.
    pub(crate) prune: bool,
    /// Whether to end.
    pub(crate) quit: bool,
}

impl Expression {
    /// Parses an expression; an empty one prints everything.
    ///
    /// # Errors
    /// A usage error that names the word.
    pub(crate) fn parse(words: &[OsString]) -> Result<Self, Report> {
        let mut parser = Parser {
            words,
            at: 0,
            depth: 0,
            prints: false,
            expression: Self {
                root: Node::Always(true),
                max_depth: usize::MAX,
                min_depth: 0,
                needs_target: false,
                needs_empty: false,
                needs_owners: false,
                newer: Vec::new(),
            },
        };
        let mut root = if words.is_empty() { Node::Always(true) } else { parser.any()? };
        if let Some(word) = parser.peek() {
            return Err(Report::usage(format!("`{}` is not expected here", word.display())));
        }
        if !parser.prints {
            root = Node::All(vec![root, Node::Print(Print::Line)]);
        }
        Ok(Self { root, ..parser.expression })
    }

    /// Asks about a candidate.
    pub(crate) fn ask(&self, candidate: &Candidate<'_>, facts: &Facts) -> Verdict {
        let mut verdict = Verdict::default();
        self.root.holds(candidate, facts, &mut verdict);
        verdict
    }
}

impl Node {
    fn holds(&self, of: &Candidate<'_>, facts: &Facts, verdict: &mut Verdict) -> bool {
        let attr = of.attr;
        match self {
            Self::Always(holds) => *holds,
            Self::Not(node) => !node.holds(of, facts, verdict),
            Self::All(nodes) => nodes.iter().all(|node| !verdict.quit && node.holds(of, facts, verdict)),
            Self::Any(nodes) => nodes.iter().any(|node| !verdict.quit && node.holds(of, facts, verdict)),
            Self::Name(glob) => glob.is_match(of.name),
            Self::Path(glob) => glob.is_match(of.path),
            Self::Target(glob) => of.target.is_some_and(|target| glob.is_match(target)),
            Self::Types(kinds) => kinds.contains(&attr.kind),
            Self::Size(compared, unit) => compared.fits(i128::from(attr.size.div_ceil(*unit))),
            Self::Perm(Perm::Exactly(mode)) => attr.mode == *mode,
            Self::Perm(Perm::AllOf(mode)) => attr.mode & mode == *mode,
            Self::Perm(Perm::AnyOf(mode)) => *mode == 0 || attr.mode & mode != 0,
            Self::Newer(number) => (attr.mtime, attr.mtime_ns) > facts.newer[*number],
            Self::After(time) => (attr.mtime, attr.mtime_ns) > (*time, 0),
            Self::Age(compared, unit) => {
                let age = i128::from(facts.now) - i128::from(attr.mtime) - i128::from(attr.mtime_ns > 0);
                compared.fits(age.div_euclid(i128::from(*unit)))
            }
            Self::User(name) => facts.owners.uid(name).or(name.parse().ok()) == Some(attr.uid),
            Self::Group(name) => facts.owners.gid(name).or(name.parse().ok()) == Some(attr.gid),
            Self::Uid(compared) => compared.fits(attr.uid.into()),
            Self::Gid(compared) => compared.fits(attr.gid.into()),
            Self::Links(compared) => compared.fits(attr.nlink.into()),
            Self::NoUser => !facts.owners.knows_user(attr.uid),
            Self::NoGroup => !facts.owners.knows_group(attr.gid),
            Self::Empty => of.empty_dir || (attr.kind == Kind::File && attr.size == 0),
            Self::Executable => attr.mode & 0o111 != 0,
            Self::Prune => {
                verdict.prune = true;
                true
            }
            Self::Quit => {
                verdict.quit = true;
                true
            }
            Self::Print(print) => {
                verdict.prints.push(*print);
                true
            }
        }
    }
}

struct Parser<'a> {
    words: &'a [OsString],
    at: usize,
    /// Open parentheses and negations.
    depth: usize,
    /// Whether it says itself what to print.
    prints: bool,
    expression: Expression,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a OsStr> {
        self.words.get(self.at).map(OsString::as_os_str)
    }

    /// The next word without its hyphens, and as it was written.
    fn next(&mut self) -> Option<(&'a str, &'a OsStr)> {
        let word = self.peek()?;
        self.at += 1;
        let text = word.to_str().unwrap_or_default();
        Some((text.strip_prefix("--").or(text.strip_prefix('-')).unwrap_or(text), word))
    }

    fn takes(&mut self, names: &[&str]) -> bool {
        let before = self.at;
        let taken = self.next().is_some_and(|(name, _)| names.contains(&name));
        if !taken {
            self.at = before;
        }
        taken
    }

    fn any(&mut self) -> Result<Node, Report> {
        let mut nodes = vec![self.all()?];
        while self.takes(&["o", "or"]) {
            nodes.push(self.all()?);
        }
        Ok(one_or(nodes, Node::Any))
    }

    fn all(&mut self) -> Result<Node, Report> {
        let mut nodes = vec![self.not()?];
        loop {
            if self.takes(&["a", "and"]) {
                nodes.push(self.not()?);
                continue;
            }
            let word = self.peek().and_then(OsStr::to_str).unwrap_or(")");
            if word == ")" || matches!(word.trim_start_matches('-'), "o" | "or") {
                return Ok(one_or(nodes, Node::All));
            }
            nodes.push(self.not()?);
        }
    }

    fn not(&mut self) -> Result<Node, Report> {
        self.depth += 1;
        if self.depth > NESTING {
            return Err(Report::usage(format!("the expression is nested deeper than {NESTING} levels")));
        }
        let node = if self.takes(&["!", "not"]) {
            Node::Not(Box::new(self.not()?))
        } else if self.takes(&["("]) {
            let node = self.any()?;
            if !self.takes(&[")"]) {
                return Err(Report::usage("`(` lacks its `)`").hint("quote both for the shell, as in '(' and ')'"));
            }
            node
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn test(&mut self) -> Result<Node, Report> {
        let Some((name, word)) = self.next() else {
            return Err(Report::usage("the expression ends where a test should follow"));
        };
        Ok(match name {
            "name" | "iname" => Node::Name(self.glob(name)?),
            "path" | "ipath" | "wholename" | "iwholename" => Node::Path(self.glob(name)?),
            "lname" | "ilname" => {
                self.expression.needs_target = true;
                Node::Target(self.glob(name)?)
            }
            "regex" | "iregex" => Node::Path(self.regex(name)?),
            "type" => Node::Types(self.parsed(name, "letters out of f, d, l, p, c and b, as in f,l", types)?),
            "size" => {
                let (size, unit) = self.parsed(name, "a size, as in +10M, -4k, 100c or 0", size)?;
                Node::Size(size, unit)
            }
            "perm" => Node::Perm(self.parsed(name, "a mode, as in 644, -4000, /111 or -u+s", perm)?),
            "newer" => {
                let path = self.value(name)?.as_bytes().to_vec();
                self.expression.newer.push(path);
                Node::Newer(self.expression.newer.len() - 1)
            }
            "newermt" => {
                Node::After(self.parsed(name, "a time (UTC), as in 2025-01-31 or `2025-01-31 12:00`", time)?)
            }
            "mtime" => Node::Age(self.number(name)?, 86_400),
            "mmin" => Node::Age(self.number(name)?, 60),
            "user" | "group" => {
                self.expression.needs_owners = true;
                let owner = self.parsed(name, "a name or number", |text| Some(text.to_owned()))?;
                if name == "user" { Node::User(owner) } else { Node::Group(owner) }
            }
            "uid" => Node::Uid(self.number(name)?),
            "gid" => Node::Gid(self.number(name)?),
            "links" => Node::Links(self.number(name)?),
            "nouser" | "nogroup" => {
                self.expression.needs_owners = true;
                if name == "nouser" { Node::NoUser } else { Node::NoGroup }
            }
            "empty" => {
                self.expression.needs_empty = true;
                Node::Empty
            }
            "executable" => Node::Executable,
            "maxdepth" | "mindepth" => {
                let levels = self.parsed(name, "a number of levels", |text| text.parse().ok())?;
                let depth = &mut self.expression;
                *(if name == "maxdepth" { &mut depth.max_depth } else { &mut depth.min_depth }) = levels;
                Node::Always(true)
            }
            "true" => Node::Always(true),
            "false" => Node::Always(false),
            "prune" => Node::Prune,
            "quit" => Node::Quit,
            "print" => self.print(Print::Line),
            "print0" => self.print(Print::Zero),
            "ls" => self.print(Print::Long),
            "exec" | "ok" | "delete" => {
                return Err(Report::usage(format!("find of an image has no `{}`", word.display()))
                    .hint("pipe its output into a program, as in `peelfs find IMAGE / -print0 | xargs -0 …`"));
            }
            _ => return Err(Report::usage(format!("`{}` is not a test of find", word.display()))),
        })
    }

    fn print(&mut self, print: Print) -> Node {
        self.prints = true;
        self.expression.needs_owners |= print == Print::Long;
        self.expression.needs_target |= print == Print::Long;
        Node::Print(print)
    }

    fn value(&mut self, name: &str) -> Result<&'a OsStr, Report> {
        let value = self.peek().ok_or_else(|| Report::usage(format!("`-{name}` needs a value")))?;
        self.at += 1;
        Ok(value)
    }

    fn parsed<T>(&mut self, name: &str, what: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Report> {
        let value = self.value(name)?;
        let parsed = value.to_str().and_then(parse);
        parsed.ok_or_else(|| Report::usage(format!("`-{name} {}`: expected {what}", value.display())))
    }

    fn number(&mut self, name: &str) -> Result<Compared, Report> {
        self.parsed(name, "a number, as in 7, +7 for more or -7 for less", Compared::parse)
    }

    fn glob(&mut self, name: &str) -> Result<Regex, Report> {
        let pattern = self.value(name)?;
        compiled(&glob(pattern.as_bytes()), name).map_err(|why| unusable(name, pattern, &why))
    }

    /// Matches the whole path, as find(1) has it.
    fn regex(&mut self, name: &str) -> Result<Regex, Report> {
        let pattern = self.value(name)?;
        let text = pattern.to_str().ok_or_else(|| unusable(name, pattern, "it is not UTF-8"))?;
        compiled(&format!("^(?:{text})$"), name).map_err(|why| unusable(name, pattern, &why))
    }
}

fn one_or(mut nodes: Vec<Node>, several: fn(Vec<Node>) -> Node) -> Node {
    if nodes.len() == 1 { nodes.remove(0) } else { several(nodes) }
}

fn unusable(name: &str, pattern: &OsStr, why: &str) -> Report {
    Report::usage(format!("`-{name} {}`: {why}", pattern.display()))
}

fn compiled(pattern: &str, name: &str) -> Result<Regex, String> {
    let compiled = RegexBuilder::new(pattern).case_insensitive(name.starts_with('i')).size_limit(PATTERN).build();
    compiled.map_err(|error| error.to_string().lines().last().unwrap_or_default().trim().to_owned())
}

/// A pattern of fnmatch(3) as a regular expression of bytes: `*` and `?` also match a slash and a leading dot.
fn glob(pattern: &[u8]) -> String {
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

fn types(text: &str) -> Option<Vec<Kind>> {
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
fn size(text: &str) -> Option<(Compared, u64)> {
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

fn perm(text: &str) -> Option<Perm> {
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
fn time(text: &str) -> Option<i64> {
    if let Some(seconds) = text.strip_prefix('@') {
        return seconds.parse().ok();
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(time.as_second());
    }
    let civil = text.parse::<jiff::civil::DateTime>().ok()?;
    Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

/// Limit of nested parentheses and negations.
const NESTING: usize = 200;
/// Limit of a compiled pattern, in bytes.
const PATTERN: usize = 4 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

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
    fn an_expression_is_set_apart_from_options() {
        let set = |line: &str| set_apart(words(line)).join(OsStr::new(" ")).into_string().unwrap();
        assert_eq!(set("peelfs find i / -name x --json"), "peelfs find i / --json -- -name x");
        assert_eq!(set("peelfs find i --type=f ! -name --offline"), "peelfs find i -- -type f ! -name --offline");
        assert_eq!(set("peelfs find i --offline"), "peelfs find i --offline");
        assert_eq!(set("peelfs find i -- -name x"), "peelfs find i -- -name x");
        assert_eq!(set("peelfs ls i -name"), "peelfs ls i -name");
    }

    #[test]
    fn wrong_words_are_named() {
        for (line, message) in [
            ("-size x", "`-size x`: expected a size, as in +10M, -4k, 100c or 0"),
            ("-type s", "`-type s`: expected letters out of f, d, l, p, c and b, as in f,l"),
            ("-perm 9", "`-perm 9`: expected a mode, as in 644, -4000, /111 or -u+s"),
            ("-name", "`-name` needs a value"),
            ("-delete", "find of an image has no `-delete`"),
            ("-name x )", "`)` is not expected here"),
            ("( -name x", "`(` lacks its `)`"),
            ("-name x -o", "the expression ends where a test should follow"),
            ("-mtime soon", "`-mtime soon`: expected a number, as in 7, +7 for more or -7 for less"),
            ("-regex (", "`-regex (`: error: unclosed group"),
        ] {
            assert_eq!(Expression::parse(&words(line)).unwrap_err().message, message, "{line}");
        }
        let deep = vec![OsString::from("!"); 100_000];
        assert!(Expression::parse(&deep).unwrap_err().message.contains("200 levels"));
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
