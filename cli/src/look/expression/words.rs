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
const WITH_VALUE: [&str; 25] = [
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
    }
}
