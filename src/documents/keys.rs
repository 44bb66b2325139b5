//! Keys of documents: each stands in its object once, spelt as the specification spells it.
//!
//! Go's decoder takes `Layers`, and even `layerſ`, for `layers`, and the last of two; others take the
//! first, or only the exact one.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{DOCUMENT_LIMIT, DocumentError, shown};

use Below::{Leaf, Many, One};

/// The keys of one kind of object that decide something, and what lies under them.
pub(super) struct Shape(&'static [(&'static str, Below)]);

/// What lies under a key.
#[derive(Clone, Copy)]
pub(super) enum Below {
    /// A value that the wire types check alone.
    Leaf,
    /// An object.
    One(&'static Shape),
    /// An array of objects.
    Many(&'static Shape),
}

pub(super) const DOCUMENT: &Shape = &Shape(&[
    ("schemaVersion", Leaf),
    ("mediaType", Leaf),
    ("artifactType", Leaf),
    ("config", One(DESCRIPTOR)),
    ("layers", Many(DESCRIPTOR)),
    ("manifests", Many(DESCRIPTOR)),
    ("fsLayers", Leaf),
    ("annotations", Leaf),
]);
const DESCRIPTOR: &Shape = &Shape(&[
    ("mediaType", Leaf),
    ("artifactType", Leaf),
    ("digest", Leaf),
    ("size", Leaf),
    ("data", Leaf),
    ("platform", One(PLATFORM)),
    ("annotations", Leaf),
]);
const PLATFORM: &Shape =
    &Shape(&[("architecture", Leaf), ("os", Leaf), ("os.version", Leaf), ("os.features", Leaf), ("variant", Leaf)]);
pub(super) const CONFIG: &Shape = &Shape(&[
    ("architecture", Leaf),
    ("os", Leaf),
    ("os.version", Leaf),
    ("os.features", Leaf),
    ("variant", Leaf),
    ("rootfs", One(&Shape(&[("type", Leaf), ("diff_ids", Leaf)]))),
]);

/// `annotations`, each key once: some of them are names of files.
pub(super) fn annotations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    struct Annotations;

    impl<'de> Visitor<'de> for Annotations {
        type Value = Option<BTreeMap<String, String>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of strings")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                if all.contains_key(&key) {
                    return Err(A::Error::custom(format_args!("the annotation `{}` is there twice", shown(&key))));
                }
                all.insert(key, value);
            }
            Ok(Some(all))
        }
    }

    deserializer.deserialize_any(Annotations)
}

/// The deciding keys of the outermost object.
pub(super) fn check_keys(bytes: &[u8], shape: &'static Shape) -> Result<Vec<&'static str>, DocumentError> {
    if bytes.len() > DOCUMENT_LIMIT {
        return Err(DocumentError::TooLarge { size: bytes.len() });
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let keys = Walk(One(shape)).deserialize(&mut json).and_then(|keys| json.end().map(|()| keys));
    keys.map_err(|cause| DocumentError::Malformed { why: shown(&cause.to_string()) })
}

/// Visits a value and keeps nothing but the keys of an object. Serde would read an array as a struct,
/// field by field; here it is refused.
#[derive(Clone, Copy)]
struct Walk(Below);

impl<'de> DeserializeSeed<'de> for Walk {
    type Value = Vec<&'static str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.0 {
            One(_) | Many(_) => deserializer.deserialize_any(self),
            Leaf => IgnoredAny::deserialize(deserializer).map(|_| Vec::new()),
        }
    }
}

impl<'de> Visitor<'de> for Walk {
    type Value = Vec<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let known = match self.0 {
            Leaf => &[],
            One(shape) | Many(shape) => shape.0,
        };
        let mut seen = Vec::new();
        while let Some(at) = map.next_key_seed(Key(known))? {
            let Some((key, below)) = at.map(|at| known[at]) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if seen.contains(&key) {
                return Err(serde::de::Error::custom(format_args!("the key `{key}` is there twice")));
            }
            seen.push(key);
            map.next_value_seed(Walk(below))?;
        }
        Ok(seen)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let Many(shape) = self.0 else {
            return Err(serde::de::Error::invalid_type(serde::de::Unexpected::Seq, &self));
        };
        while seq.next_element_seed(Walk(One(shape)))?.is_some() {}
        Ok(Vec::new())
    }

    // What is no object here is for the wire types to refuse.
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }
}

/// Finds which of the known keys a key is.
struct Key(&'static [(&'static str, Below)]);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Self::Value, E> {
        let Some(at) = self.0.iter().position(|(known, _)| same_to_go(known, key)) else { return Ok(None) };
        if self.0[at].0 != key {
            return Err(E::custom(format_args!("the key `{}` is spelt `{}`", self.0[at].0, key.escape_debug())));
        }
        Ok(Some(at))
    }
}

/// Whether Go's `encoding/json` takes `key` for `known`: it ignores case as Unicode folds it, and two
/// letters outside ASCII fold to letters inside.
fn same_to_go(known: &str, key: &str) -> bool {
    let fold = |c: char| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.len() <= 2 * known.len() && known.chars().map(fold).eq(key.chars().map(fold))
}
