//! The JSON of a table of contents, record by record: a table of half a million entries is never in memory as such.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::TocError;

/// One record, as it is written. What is absent is empty or 0.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record<'a> {
    #[serde(borrow, default)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) link_name: Cow<'a, str>,
    #[serde(default)]
    pub(super) mode: u64,
    #[serde(default)]
    pub(super) size: u64,
    #[serde(default)]
    pub(super) uid: u64,
    #[serde(default)]
    pub(super) gid: u64,
    #[serde(borrow, default)]
    pub(super) modtime: Cow<'a, str>,
    #[serde(default)]
    pub(super) dev_major: u32,
    #[serde(default)]
    pub(super) dev_minor: u32,
    #[serde(borrow, default)]
    pub(super) xattrs: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) digest: Cow<'a, str>,
    #[serde(default)]
    pub(super) offset: u64,
    #[serde(default)]
    pub(super) end_offset: u64,
    #[serde(default)]
    pub(super) inner_offset: u64,
    #[serde(default)]
    pub(super) chunk_offset: u64,
    #[serde(default)]
    pub(super) chunk_size: u64,
    #[serde(borrow, default)]
    pub(super) chunk_digest: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) chunk_type: Cow<'a, str>,
}

/// Hands each record of a table to `each`, in order.
///
/// # Errors
/// The table's own fault, or the first that `each` finds.
pub(super) fn read(json: &[u8], mut each: impl FnMut(Record<'_>) -> Result<(), TocError>) -> Result<(), TocError> {
    let mut failed = None;
    let mut table = Table { each: &mut each, failed: &mut failed, version: None, entries: false };
    let mut parser = serde_json::Deserializer::from_slice(json);
    let parsed = parser.deserialize_map(&mut table).and_then(|()| parser.end());
    let (version, entries) = (table.version, table.entries);
    match (failed, parsed) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(TocError::Json(error)),
        (None, Ok(())) => match version {
            Some(1) if entries => Ok(()),
            Some(1) => Err(TocError::Unusable { what: "it has no entries" }),
            version => Err(TocError::Version(version.unwrap_or(0))),
        },
    }
}

struct Table<'b, F> {
    each: &'b mut F,
    failed: &'b mut Option<TocError>,
    version: Option<i64>,
    entries: bool,
}

impl<'de, F> Visitor<'de> for &mut Table<'_, F>
where
    F: FnMut(Record<'_>) -> Result<(), TocError>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match &*key {
                "version" if self.version.is_none() => self.version = Some(map.next_value()?),
                "entries" if !self.entries => {
                    self.entries = true;
                    map.next_value_seed(Entries(self))?;
                }
                "version" | "entries" => return Err(A::Error::custom("a field comes twice")),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct Entries<'t, 'b, F>(&'t mut Table<'b, F>);

impl<'de, F> DeserializeSeed<'de> for Entries<'_, '_, F>
where
    F: FnMut(Record<'_>) -> Result<(), TocError>,
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F> Visitor<'de> for Entries<'_, '_, F>
where
    F: FnMut(Record<'_>) -> Result<(), TocError>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the entries of a table of contents")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut records: A) -> Result<(), A::Error> {
        while let Some(record) = records.next_element::<Record<'de>>()? {
            if let Err(error) = (self.0.each)(record) {
                *self.0.failed = Some(error);
                return Err(A::Error::custom("the table is not read on"));
            }
        }
        Ok(())
    }
}
