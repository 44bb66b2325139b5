//! Which words of a command line belong to the expression. Since the grammar of options has no such words, they are set
//! apart before options are parsed.

use std::ffi::{OsStr, OsString};

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
    if WITH_VALUE.contains(&name) || refusal(name).is_some_and(|(_, takes_value, _)| *takes_value) {
        return Some(Takes::Value(None));
    }
    // No option of a command has one hyphen and several letters, so it is a test that find or nothing has.
    let is_word = name.len() > 1 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !text.starts_with("--") && is_word {
        return Some(Takes::Nothing);
    }
    let (name, value) = text.strip_prefix("--")?.split_once('=')?;
    WITH_VALUE.contains(&name).then(|| Takes::Value(Some((format!("-{name}").into(), value.into()))))
}

/// What to do instead of a test or action that find(1) has, and this one has not.
pub(super) fn refused(name: &str) -> Option<&'static str> {
    let (.., hint) = refusal(name)?;
    Some(hint)
}

/// The row of [`REFUSED`] that a word belongs to.
fn refusal(name: &str) -> Option<&'static Refusal> {
    let newer = || name.starts_with("newer").then_some(&NEWER);
    REFUSED.iter().find(|(names, ..)| names.contains(&name)).or_else(newer)
}

/// Words of find(1), whether each takes a value, and what to do instead.
type Refusal = (&'static [&'static str], bool, &'static str);

static REFUSED: [Refusal; 12] = [
    (
        &["exec", "execdir", "ok", "okdir", "delete"],
        false,
        "pipe its output into a program, as in `peelfs find IMAGE / -print0 | xargs -0 …`",
    ),
    (&["fprint", "fprint0", "fprintf", "fls"], true, "redirect its output into a file"),
    (&["fstype"], true, "an image is one file system: leave it out"),
    (
        &["amin", "anewer", "atime", "used"],
        true,
        "an image has no times of access; `-mmin`, `-mtime` and `-newer` compare those of modification",
    ),
    (&["cmin", "cnewer", "ctime"], true, "`-mmin`, `-mtime` and `-newer` compare times of modification"),
    (&["readable", "writable"], false, "`-perm` compares modes, as in `-perm -u+w`"),
    (&["follow"], false, FOLLOWED),
    (&["xtype"], true, FOLLOWED),
    (&["context"], true, "SELinux contexts of an image are not told"),
    (&["regextype"], true, "patterns have the syntax of Rust's regex"),
    (&["daystart"], false, "`-newermt` compares with a time"),
    (&["files0-from"], true, "name the paths behind the image"),
];
const FOLLOWED: &str = "symlinks are not followed; `-printf '%p %Y\\n'` tells what they lead to";
/// Of times that are not told apart.
static NEWER: Refusal = (&[], false, "`-newer PATH` and `-newermt TIME` compare times of modification");
const WITHOUT_VALUE: [&str; 27] = [
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
    "depth",
    "xdev",
    "mount",
    "noleaf",
    "warn",
    "nowarn",
    "ignore_readdir_race",
    "noignore_readdir_race",
    "delete",
    "exec",
    "ok",
];
const WITH_VALUE: [&str; 27] = [
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
    "inum",
    "samefile",
    "printf",
    "maxdepth",
    "mindepth",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn an_expression_is_set_apart_from_options() {
        let set = |line: &str| set_apart(words(line)).join(OsStr::new(" ")).into_string().unwrap();
        assert_eq!(set("peelfs find i / -name x --json"), "peelfs find i / --json -- -name x");
        assert_eq!(set("peelfs find i --type=f ! -name --offline"), "peelfs find i -- -type f ! -name --offline");
        assert_eq!(set("peelfs find i --offline"), "peelfs find i --offline");
        assert_eq!(set("peelfs find i -- -name x"), "peelfs find i -- -name x");
        assert_eq!(set("peelfs ls i -name"), "peelfs ls i -name");
        assert_eq!(set("peelfs find i -nmae x -q --json"), "peelfs find i x -q --json -- -nmae");
        assert_eq!(set("peelfs find i -fstype ext4 -depth"), "peelfs find i -- -fstype ext4 -depth");
    }
}
