//! Configuration files in TOML, and the lines at which their values are.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Limit for a file, in bytes.
const LARGEST: u64 = 1 << 20;

/// A configuration file that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{}`{}: {why}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// The line of the value; the first is 1.
    pub line: Option<usize>,
    /// What is wrong with it.
    pub why: String,
}

/// A file's text.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) path: PathBuf,
    text: String,
}

impl Text {
    /// Reads a file; `None` if it does not exist, or, with a warning, if this user may not read it.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, ConfigError> {
        let error = |why: String| ConfigError { path: path.to_owned(), line: None, why };
        let mut text = Vec::new();
        let read = is_readable(path).and_then(|()| {
            // What has become a pipe since then is not waited for.
            let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
            let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
            file.take(LARGEST + 1).read_to_end(&mut text)
        });
        match read {
            Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
                tracing::warn!(
                    "`{}` cannot be read, so what it says of registries is not used: {cause}",
                    path.display()
                );
                Ok(None)
            }
            Err(cause) => Err(error(cause.to_string())),
            Ok(_) if text.len() as u64 > LARGEST => Err(error(format!("it has more than {LARGEST} bytes"))),
            Ok(_) => match String::from_utf8(text) {
                Ok(text) => Ok(Some(Self { path: path.to_owned(), text })),
                Err(_) => Err(error("it is not UTF-8".to_owned())),
            },
        }
    }

    #[cfg(test)]
    pub(super) fn of(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.to_owned() }
    }

    pub(super) fn parse(&self) -> Result<Document<'_>, ConfigError> {
        let parsed = DeTable::parse(&self.text);
        let root = parsed.map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            self.error(at, error.message().lines().collect::<Vec<_>>().join(", "))
        })?;
        Ok(Document { text: self, root })
    }

    fn error(&self, at: usize, why: String) -> ConfigError {
        ConfigError { path: self.path.clone(), line: Some(self.line(at)), why }
    }

    fn line(&self, at: usize) -> usize {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// Whether a file can be read without waiting: a regular one, or `/dev/null`, which says nothing.
///
/// # Errors
/// If it is of another kind or cannot be looked at.
pub(super) fn is_readable(path: &Path) -> io::Result<()> {
    let found = std::fs::metadata(path)?;
    let is_null = |found: &Metadata| found.file_type().is_char_device() && found.rdev() == rustix::fs::makedev(1, 3);
    match found.is_file() || is_null(&found) {
        true => Ok(()),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// A parsed file.
pub(super) struct Document<'a> {
    text: &'a Text,
    root: Spanned<DeTable<'a>>,
}

impl Document<'_> {
    pub(super) fn root(&self) -> Table<'_> {
        Table { text: self.text, entries: self.root.get_ref() }
    }
}

/// A table.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    text: &'a Text,
    entries: &'a DeTable<'a>,
}

/// A value and its key.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    text: &'a Text,
    pub(super) key: &'a str,
    at: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Table<'a> {
    /// Its values, in the order of the file.
    pub(super) fn values(self) -> Vec<Value<'a>> {
        let value = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let key: &'a Spanned<std::borrow::Cow<'a, str>> = key;
            Value { text: self.text, key: key.get_ref(), at: key.span().start, value: value.get_ref() }
        };
        let mut values: Vec<_> = self.entries.iter().map(value).collect();
        values.sort_by_key(|value| value.at);
        values
    }

    pub(super) fn get(self, key: &str) -> Option<Value<'a>> {
        self.values().into_iter().find(|value| value.key == key)
    }

    /// The text of `key`; `None` if it is missing or empty.
    pub(super) fn text(self, key: &str) -> Result<Option<(&'a str, Value<'a>)>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        Ok(Some((value.text()?, value)).filter(|(text, _)| !text.is_empty()))
    }

    pub(super) fn flag(self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.value {
            DeValue::Boolean(flag) => Ok(Some(*flag)),
            _ => Err(value.error(format!("`{key}` is neither true nor false"))),
        }
    }

    /// The texts of `key`, which may be one alone.
    pub(super) fn texts(self, key: &str) -> Result<Option<Vec<(&'a str, Value<'a>)>>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let items = value.items().unwrap_or_else(|| vec![value]);
        items.into_iter().map(|item| Ok((item.text()?, item))).collect::<Result<_, _>>().map(Some)
    }

    /// The table `key`.
    pub(super) fn table(self, key: &str) -> Result<Option<Table<'a>>, ConfigError> {
        self.get(key).map(Value::table).transpose()
    }

    /// The tables `[[key]]`.
    pub(super) fn tables(self, key: &str) -> Result<Vec<(Table<'a>, Value<'a>)>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let items =
            value.items().ok_or_else(|| value.error(format!("`{key}` is not a list of tables: write `[[{key}]]`")))?;
        items.into_iter().map(|item| Ok((item.table()?, item))).collect()
    }
}

impl<'a> Value<'a> {
    pub(super) fn text(self) -> Result<&'a str, ConfigError> {
        match self.value {
            DeValue::String(text) => Ok(text),
            _ => Err(self.error(format!("`{}` is not text in quotes", self.key.escape_debug()))),
        }
    }

    pub(super) fn table(self) -> Result<Table<'a>, ConfigError> {
        match self.value {
            DeValue::Table(entries) => Ok(Table { text: self.text, entries }),
            _ => Err(self.error(format!("`{}` is not a table", self.key.escape_debug()))),
        }
    }

    /// The items of a list.
    pub(super) fn items(self) -> Option<Vec<Value<'a>>> {
        let DeValue::Array(items) = self.value else { return None };
        let item = |item: &'a Spanned<DeValue<'a>>| Value { at: item.span().start, value: item.get_ref(), ..self };
        Some(items.iter().map(item).collect())
    }

    /// The line at which it is.
    pub(super) fn line(self) -> usize {
        self.text.line(self.at)
    }

    pub(super) fn error(self, why: impl Into<String>) -> ConfigError {
        self.text.error(self.at, why.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_come_in_the_order_of_the_file() {
        let text = Text::of("f", "[b]\nz = 1\na = 'x'\n[a]\n[b.c]\n");
        let document = text.parse().unwrap();
        let keys = |table: Table<'_>| table.values().iter().map(|v| (v.key.to_owned(), v.line())).collect::<Vec<_>>();
        assert_eq!(keys(document.root()), [("b".to_owned(), 1), ("a".to_owned(), 4)]);
        let inner = document.root().table("b").unwrap().unwrap();
        assert_eq!(keys(inner), [("z".to_owned(), 2), ("a".to_owned(), 3), ("c".to_owned(), 5)]);
    }

    #[test]
    fn what_is_wrong_with_a_file_names_it_and_the_line() {
        for (text, wanted) in [
            ("a = 1\nb = [\n", "`f`, line 2: "),
            ("\n\nx = 1", "`f`, line 3: `x` is not text in quotes"),
            ("y = [1]\nx = 'a'", "`f`, line 1: `y` is not text in quotes"),
        ] {
            let text = Text::of("f", text);
            let read = || {
                let document = text.parse()?;
                document.root().text("x")?;
                document.root().texts("y").map(drop)
            };
            let error = read().unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Text::read(&dir.path().join("none")).unwrap().is_none());
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for other in [dir.path(), &fifo, Path::new("/dev/zero")] {
            let error = Text::read(other).unwrap_err().to_string();
            assert!(error.ends_with("`: it is not a regular file"), "{error}");
        }
        assert!(Text::read(Path::new("/dev/null")).unwrap().is_some());
        std::fs::write(dir.path().join("f"), [0xff]).unwrap();
        let error = Text::read(&dir.path().join("f")).unwrap_err().to_string();
        assert!(error.ends_with("/f`: it is not UTF-8"), "{error}");
    }
}
