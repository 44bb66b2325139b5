//! Filters of lists, in containerd's syntax (its `pkg/filters`): `name==x`, `labels."a.b/c"==d,parent!=e`, `kind`.

use super::records::{Kind, Record};

/// Selects the snapshots of a list: those that match any filter; without filters, all.
#[derive(Debug)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    field: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Is(String),
    IsNot(String),
}

/// Why a filter cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the filter `{filter}`: {why}")]
pub(crate) struct FilterError {
    filter: String,
    why: &'static str,
}

impl Filters {
    pub(crate) fn parse(filters: &[String]) -> Result<Self, FilterError> {
        let one = |filter: &String| {
            let mut parser = Parser { rest: filter };
            parser.selectors().map_err(|why| FilterError { filter: filter.clone(), why })
        };
        filters.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn fit(&self, name: &str, record: &Record) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|selector| selector.fits(name, record)))
    }
}

impl Selector {
    fn fits(&self, name: &str, record: &Record) -> bool {
        let value = self.value(name, record);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Is(wanted) => value.is_some_and(|value| value == wanted),
            Test::IsNot(other) => value.unwrap_or_default() != other,
        }
    }

    fn value<'a>(&self, name: &'a str, record: &'a Record) -> Option<&'a str> {
        match &self.field[..] {
            [field] if field == "name" => Some(name),
            [field] if field == "parent" => Some(record.parent.as_deref().unwrap_or_default()),
            [field] if field == "kind" => Some(match record.kind {
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            }),
            [field, label @ ..] if field == "labels" => record.labels.get(&label.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn selectors(&mut self) -> Result<Vec<Selector>, &'static str> {
        if self.rest.is_empty() {
            return Ok(Vec::new());
        }
        let mut all = vec![self.selector()?];
        while self.take(",") {
            all.push(self.selector()?);
        }
        if self.rest.is_empty() { Ok(all) } else { Err("unexpected text after a value") }
    }

    fn selector(&mut self) -> Result<Selector, &'static str> {
        let mut field = vec![self.field()?];
        while self.take(".") {
            field.push(self.field()?);
        }
        let test = if self.take("==") {
            Test::Is(self.value()?)
        } else if self.take("!=") {
            Test::IsNot(self.value()?)
        } else if self.rest.starts_with("~=") {
            return Err("regular expressions are not supported");
        } else {
            Test::Present
        };
        Ok(Selector { field, test })
    }

    fn field(&mut self) -> Result<String, &'static str> {
        if self.rest.starts_with(['"', '\'']) {
            return self.quoted();
        }
        let is_name = |char: char| char.is_ascii_alphanumeric() || char == '_';
        let field = self.until(|char| !is_name(char));
        if field.is_empty() { Err("a field has no name") } else { Ok(field) }
    }

    fn value(&mut self) -> Result<String, &'static str> {
        if self.rest.starts_with(['"', '\'']) {
            return self.quoted();
        }
        Ok(self.until(|char| char == ',' || char.is_whitespace()))
    }

    /// A quoted string with Go's escapes.
    fn quoted(&mut self) -> Result<String, &'static str> {
        let mut chars = self.rest.char_indices();
        let quote = chars.next().map(|(_, quote)| quote);
        let mut text = String::new();
        while let Some((at, char)) = chars.next() {
            match char {
                char if Some(char) == quote => {
                    self.rest = &self.rest[at + char.len_utf8()..];
                    return Ok(text);
                }
                '\\' => {
                    let escaped = chars.next().map(|(_, char)| char).ok_or("a string does not end")?;
                    text.push(match escaped {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        '\\' | '"' | '\'' => escaped,
                        'x' => {
                            let digits: String = chars.by_ref().take(2).map(|(_, char)| char).collect();
                            let code = u8::from_str_radix(&digits, 16).ok().filter(u8::is_ascii);
                            code.ok_or("a string has an unknown escape")?.into()
                        }
                        _ => return Err("a string has an unknown escape"),
                    });
                }
                char => text.push(char),
            }
        }
        Err("a string does not end")
    }

    fn until(&mut self, ends: impl Fn(char) -> bool) -> String {
        let (taken, rest) = self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()));
        self.rest = rest;
        taken.to_owned()
    }

    fn take(&mut self, text: &str) -> bool {
        self.rest.strip_prefix(text).map(|rest| self.rest = rest).is_some()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fits(filters: &[&str]) -> bool {
        let labels = [("containerd.io/snapshot.ref", "sha256:c0"), ("plain", "a \"b\"")];
        let record = Record {
            kind: Kind::Committed,
            parent: Some("ns/2/sha256:p".into()),
            labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..Record::new(7, Kind::Committed)
        };
        let filters: Vec<_> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Filters::parse(&filters).unwrap().fit("sha256:c0", &record)
    }

    #[test]
    fn what_containerd_asks_for_is_found() {
        assert!(fits(&[]) && fits(&[""]));
        assert!(fits(&["labels.\"containerd.io/snapshot.ref\"==sha256:c0,parent==\"ns/2/sha256:p\""]));
        assert!(!fits(&["labels.\"containerd.io/snapshot.ref\"==sha256:c0,parent==\"\""]));
        assert!(!fits(&["labels.\"containerd.io/snapshot.ref\"==sha256:c1"]));
        assert!(fits(&["name==other", "kind==committed"]), "any of several will do");
        assert!(fits(&["labels.plain==\"a \\\"b\\\"\""]) && fits(&["labels.plain"]) && !fits(&["labels.none"]));
        assert!(fits(&["name!=other"]) && !fits(&["colour==red"]));
    }

    #[test]
    fn a_filter_that_is_not_understood_is_an_error() {
        for filter in ["==x", "name==\"x", "name~=x", "labels.", "name==x y", ",", "name==\"\\q\""] {
            let error = Filters::parse(&[filter.to_owned()]).unwrap_err();
            assert!(error.to_string().contains(filter), "{error}");
        }
    }
}
