//! The expressions of `find`, as find(1) has them: tests, `!`, `-a`, `-o`, parentheses, `-prune` and what to print.
//!
//! They are written behind the paths with one hyphen, as everywhere; two hyphens do as well.

mod values;
mod words;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use regex::bytes::Regex;

use self::values::{Compared, Perm, compiled, glob, perm, size, time, types};
use self::words::refused;
pub(crate) use self::words::set_apart;
use super::owners::Owners;
use super::printf::Format;
use peelfs::host::report::Report;
use peelfs::layer::Kind;
use peelfs::overlay::{NodeAttr, NodeId};

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
    /// Whether it must be known what symlinks lead to.
    pub(crate) needs_followed: bool,
    /// The paths of the image whose times are compared.
    pub(crate) newer: Vec<Vec<u8>>,
    /// The paths of the image whose other names are looked for.
    pub(crate) same: Vec<Vec<u8>>,
    /// Whether a directory comes behind what is in it.
    pub(crate) depth_first: bool,
    /// Formats in which matches are printed.
    pub(crate) formats: Vec<Format>,
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
    Inode(Compared),
    /// A name of the file of this number.
    Same(usize),
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
    /// By the format of this number in [`Expression::formats`].
    Format(usize),
}

/// What an expression is asked about.
pub(crate) struct Candidate<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) name: &'a [u8],
    pub(crate) attr: &'a NodeAttr,
    pub(crate) inode: u64,
    pub(crate) target: Option<&'a [u8]>,
    /// Whether it is a directory without names.
    pub(crate) empty_dir: bool,
}

/// What expressions compare with.
pub(crate) struct Facts {
    pub(crate) owners: Owners,
    /// Times of the files of [`Expression::newer`].
    pub(crate) newer: Vec<(i64, u32)>,
    /// The files of [`Expression::same`].
    pub(crate) same: Vec<NodeId>,
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
                needs_followed: false,
                newer: Vec::new(),
                same: Vec::new(),
                depth_first: false,
                formats: Vec::new(),
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
            Self::Inode(compared) => compared.fits(of.inode.into()),
            Self::Same(number) => attr.node == facts.same[*number],
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
            "inum" => Node::Inode(self.number(name)?),
            "samefile" => {
                let path = self.value(name)?.as_bytes().to_vec();
                self.expression.same.push(path);
                Node::Same(self.expression.same.len() - 1)
            }
            "depth" => {
                self.expression.depth_first = true;
                Node::Always(true)
            }
            // An image is one file system, and does not change.
            "xdev" | "mount" | "noleaf" | "warn" | "nowarn" | "ignore_readdir_race" | "noignore_readdir_race" => {
                Node::Always(true)
            }
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
            "printf" => {
                let text = self.value(name)?;
                let format = Format::parse(text.as_bytes()).map_err(|why| unusable(name, text, &why))?;
                let needs = &mut self.expression;
                needs.needs_owners |= format.needs_owners();
                needs.needs_target |= format.needs_target();
                needs.needs_followed |= format.needs_followed();
                needs.formats.push(format);
                let number = needs.formats.len() - 1;
                self.print(Print::Format(number))
            }
            name => {
                let word = word.display();
                return Err(match refused(name) {
                    Some(hint) => Report::usage(format!("find of an image has no `{word}`")).hint(hint),
                    None => Report::usage(format!("`{word}` is not a test of find"))
                        .hint("`peelfs find --help` lists the tests"),
                });
            }
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

/// Limit of nested parentheses and negations.
const NESTING: usize = 200;
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn wrong_words_are_named() {
        for (line, message) in [
            ("-size x", "`-size x`: expected a size, as in +10M, -4k, 100c or 0"),
            ("-type s", "`-type s`: expected letters out of f, d, l, p, c and b, as in f,l"),
            ("-perm 9", "`-perm 9`: expected a mode, as in 644, -4000, /111 or -u+s"),
            ("-name", "`-name` needs a value"),
            ("-delete", "find of an image has no `-delete`"),
            ("-fstype ext4", "find of an image has no `-fstype`"),
            ("-newerct 2025-01-01", "find of an image has no `-newerct`"),
            ("-inum x", "`-inum x`: expected a number, as in 7, +7 for more or -7 for less"),
            ("-nmae x", "`-nmae` is not a test of find"),
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
}
