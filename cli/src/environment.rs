//! `-e` and `--env-file`: environment variables of a container, as podman and docker read them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use peelfs::host::report::{Code, Report};

/// The variables that files and options set, in this order.
pub(super) fn variables(files: &[PathBuf], typed: &[String]) -> Result<Vec<(String, String)>, Report> {
    let mut found = Vec::new();
    for path in files {
        let text = read(path)?;
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim_start();
            if !line.is_empty() && !line.starts_with('#') {
                let variables = set(line, std::env::vars_os());
                found.extend(variables.map_err(|report| {
                    let message = format!("{}, line {}: {}", path.display(), number + 1, report.message);
                    Report { message, ..report }
                })?);
            }
        }
    }
    for text in typed {
        found.extend(set(text, std::env::vars_os())?);
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String, Report> {
    let read = || {
        let mut text = String::new();
        match File::open(path)?.take(LARGEST + 1).read_to_string(&mut text) {
            Ok(read) if read as u64 > LARGEST => Err(io::Error::other(format!("it is longer than {LARGEST} bytes"))),
            read => read.map(|_| text),
        }
    };
    read().map_err(|error| {
        let code = if error.kind() == io::ErrorKind::NotFound { Code::NotFound } else { Code::Failure };
        Report::new(code, format!("cannot read variables from `{}`: {error}", path.display()))
    })
}

/// `NAME=VALUE`; `NAME` and `NAME*` stand for what is set in `own`.
fn set(text: &str, own: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>, Report> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text.trim_end(), None),
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(Report::usage(format!("`{text}` is not an environment variable")).hint("write NAME=VALUE, or NAME"));
    }
    if let Some(value) = value {
        return Ok(vec![(name.to_owned(), value.to_owned())]);
    }
    let is_meant = |own: &str| name.strip_suffix('*').map_or(own == name, |begin| own.starts_with(begin));
    let own = own.filter_map(|(own, value)| Some((own.into_string().ok().filter(|own| is_meant(own))?, value)));
    own.map(|(name, value)| match value.into_string() {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(Report::usage(format!("the value of `{name}` is not UTF-8, as `config.json` must be"))),
    })
    .collect()
}

/// A bound in bytes, above what a process can have.
const LARGEST: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn a_name_alone_stands_for_the_own_value() {
        let own = [("A", "1"), ("A_B", "2"), ("B", "3=4")].map(|(name, value)| (name.into(), value.into()));
        for (text, wanted) in [
            ("X=y z ", &[("X", "y z ")][..]),
            ("X=", &[("X", "")]),
            ("B", &[("B", "3=4")]),
            ("A*", &[("A", "1"), ("A_B", "2")]),
            ("MISSING", &[]),
        ] {
            let wanted: Vec<_> = wanted.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            assert_eq!(set(text, own.clone().into_iter()).unwrap(), wanted, "{text}");
        }
        for text in ["", "=x", "A B=c", " "] {
            assert!(set(text, own.clone().into_iter()).unwrap_err().message.contains("is not an environment variable"));
        }
        let odd = [("ODD".into(), OsString::from_vec(vec![0xff]))].into_iter();
        assert!(set("ODD", odd).unwrap_err().message.contains("`ODD` is not UTF-8"));
    }

    #[test]
    fn files_come_before_options_and_name_the_bad_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{feff}# one\n\n  A=\"quoted\" # kept\r\nB=2\n").unwrap();
        let files = [file.path().to_owned()];
        let found = variables(&files, &["B=3".to_owned()]).unwrap();
        let wanted = [("A", "\"quoted\" # kept"), ("B", "2"), ("B", "3")];
        assert_eq!(found, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
        std::fs::write(file.path(), "A=1\nnot one=2\n").unwrap();
        assert!(variables(&files, &[]).unwrap_err().message.contains(", line 2: `not one=2` is not"));
        assert!(variables(&["/nonexistent".into()], &[]).unwrap_err().message.contains("`/nonexistent`: No such file"));
    }
}
