//! Names of images that an engine keeps on this machine.
//!
//! | typed | means |
//! |---|---|
//! | `NAME[:TAG][@DIGEST]` | the image of this name; a short name is that of Docker Hub, else of `localhost`, else the only one that ends so |
//! | `@ID`, `NAME@ID`, `sha256:ID` | the image with this id; its first digits do |
//! | `HEX` | the image of this name, or whose id begins so |
//!
//! Before a name in containers-storage may stand where the store is: `[[DRIVER@]ROOT[+RUNROOT][:OPTIONS]]`
//! (containers-transports(5)). The only options that matter to reading name further stores.

use std::path::{Path, PathBuf};

use super::{RegistryName, Why, looks_like_digest, refuse_lone_digest};
use crate::digest::Digest;

/// An image in the storage of podman, buildah or CRI-O.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct StorageName {
    /// Where the storage is, if that was typed.
    pub store: Option<StoreAt>,
    /// Which of its images is meant.
    pub image: EngineName,
}

/// A storage that was typed.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct StoreAt {
    /// The storage driver.
    pub driver: Option<Box<str>>,
    /// Its directory.
    pub root: PathBuf,
    /// Further stores, which are searched after it.
    pub additional: Vec<PathBuf>,
}

/// An image as engines name it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct EngineName {
    /// Without digest and id, as typed.
    typed: Box<str>,
    name: Option<RegistryName>,
    id: Option<Box<str>>,
    pub(super) digest: Option<Digest>,
}

impl StorageName {
    pub(super) fn parse(text: &str) -> Result<Self, Why> {
        let Some(rest) = text.strip_prefix('[') else {
            return Ok(Self { store: None, image: EngineName::parse(text)? });
        };
        let (store, name) = rest.split_once(']').ok_or(Why::Bracket)?;
        Ok(Self { store: Some(StoreAt::parse(store)?), image: EngineName::parse(name)? })
    }
}

impl StoreAt {
    fn parse(text: &str) -> Result<Self, Why> {
        let (driver, place) = match text.split_once('@') {
            Some((driver, place)) => (Some(driver), place),
            None if text.starts_with('/') || text.starts_with('.') => (None, text),
            None => return Err(Why::StorePath { path: text.to_owned() }),
        };
        if driver.is_some_and(|driver| driver.is_empty() || !driver.bytes().all(|b| b.is_ascii_alphanumeric())) {
            return Err(Why::Driver);
        }
        let (place, options) = place.split_once(':').unwrap_or((place, ""));
        let root = place.split_once('+').map_or(place, |(root, _)| root);
        if root.is_empty() {
            return Err(Why::StorePath { path: root.to_owned() });
        }
        let stores = options.split(',').filter_map(|option| option.split_once('='));
        let stores = stores.filter(|(key, _)| is_store_option(key)).map(|(_, path)| PathBuf::from(path));
        Ok(Self { driver: driver.map(Into::into), root: PathBuf::from(root), additional: stores.collect() })
    }

    /// The directory as it stands in `typed`, a reference with such a store.
    pub(super) fn root_in(typed: &str) -> Option<(usize, usize)> {
        let begin = typed.find('[')? + 1;
        let end = begin + typed[begin..].find(']')?;
        let begin = begin + typed[begin..end].find('@').map_or(0, |at| at + 1);
        let len = typed[begin..end].find([':', '+']).unwrap_or(end - begin);
        Some((begin, begin + len))
    }
}

/// Whether an option of the storage driver names a further store.
pub(crate) fn is_store_option(key: &str) -> bool {
    matches!(key.rsplit('.').next(), Some("imagestore" | "additionalimagestore"))
}

impl EngineName {
    /// The name as typed, without digest and id; empty if only these were typed.
    pub fn typed(&self) -> &str {
        &self.typed
    }

    /// The name, completed as that of a registry.
    pub fn name(&self) -> Option<&RegistryName> {
        self.name.as_ref()
    }

    /// The id, or its first digits.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The digest of its manifest, which decides even if there is a tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The full names that a typed one may stand for, the likeliest first.
    pub fn full_names(&self) -> Vec<String> {
        let Some(name) = &self.name else { return Vec::new() };
        let tag = name.tag().unwrap_or("latest");
        let full = format!("{}/{}:{tag}", name.authority(), name.repository());
        match self.short() {
            Some(short) => vec![full, format!("localhost/{short}:{tag}")],
            None => vec![full],
        }
    }

    /// How a full name ends that a short one may stand for.
    pub fn ending(&self) -> Option<String> {
        Some(format!("/{}:{}", self.short()?, self.name.as_ref()?.tag().unwrap_or("latest")))
    }

    /// The name without a tag, if no registry was typed.
    fn short(&self) -> Option<&str> {
        let (first, has_more) = self.typed.split_once('/').map_or((&*self.typed, false), |(first, _)| (first, true));
        let names_host = has_more && (first == "localhost" || first.contains(['.', ':']));
        let tag = self.typed.rfind(':').filter(|at| !self.typed[*at..].contains('/'));
        (!names_host).then(|| &self.typed[..tag.unwrap_or(self.typed.len())])
    }

    pub(super) fn parse(text: &str) -> Result<Self, Why> {
        if text.is_empty() {
            return Err(Why::NoRepository);
        }
        let (typed, id, digest) = match text.rsplit_once('@') {
            Some((name, digest)) if looks_like_digest(digest) => {
                (name, None, Some(digest.parse().map_err(Why::Digest)?))
            }
            Some((name, id)) if is_id(id) => (name, Some(id), None),
            Some(_) => return Err(Why::Id),
            None => match text.strip_prefix("sha256:") {
                Some(id) if is_id(id) => ("", Some(id), None),
                _ if is_id(text) && text.len() == 64 => ("", Some(text), None),
                _ if is_id(text) => (text, Some(text), None),
                _ => (text, None, None),
            },
        };
        let name = match typed {
            "" => None,
            // A name may be all digits, and an id is none that is too short or long.
            typed => {
                let (repository, tag) = typed.rsplit_once(':').map_or((typed, None), |(name, tag)| (name, Some(tag)));
                refuse_lone_digest(repository, tag)?;
                Some(RegistryName::parse(typed)?)
            }
        };
        Ok(Self { typed: typed.into(), name, id: id.map(Into::into), digest })
    }
}

/// Whether this can be an id: hexadecimal digits, as many as engines ask for at least.
fn is_id(text: &str) -> bool {
    (3..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A reference with the directory of its store made absolute.
pub(super) fn with_absolute_root(typed: &str, absolute: impl Fn(&Path) -> PathBuf) -> String {
    match StoreAt::root_in(typed) {
        Some((begin, end)) => {
            let root = absolute(Path::new(&typed[begin..end]));
            format!("{}{}{}", &typed[..begin], root.display(), &typed[end..])
        }
        None => typed.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Place, Reference};
    use super::*;

    const ID: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn storage(text: &str) -> StorageName {
        match text.parse::<Reference>().unwrap().place() {
            Place::ContainersStorage(name) => (**name).clone(),
            place => panic!("{place:?}"),
        }
    }

    #[test]
    fn a_short_name_may_stand_for_several_full_ones() {
        let full = |text: &str| storage(&format!("containers-storage:{text}")).image.full_names();
        assert_eq!(full("app"), ["docker.io/library/app:latest", "localhost/app:latest"]);
        assert_eq!(full("team/app:1"), ["docker.io/team/app:1", "localhost/team/app:1"]);
        assert_eq!(full("localhost/app:1"), ["localhost/app:1"]);
        assert_eq!(full("r.example:5000/app:1"), ["r.example:5000/app:1"]);
        assert_eq!(storage("containers-storage:app:1").image.ending().unwrap(), "/app:1");
        assert_eq!(storage("containers-storage:localhost/app:1").image.ending(), None);
    }

    #[test]
    fn ids_and_digests_are_told_from_names() {
        let parts = |text: &str| {
            let image = storage(&format!("containers-storage:{text}")).image;
            (image.typed().to_owned(), image.id().map(str::to_owned), image.digest().is_some())
        };
        let id = |id: &str| Some(id.to_owned());
        assert_eq!(parts("app"), ("app".to_owned(), None, false));
        assert_eq!(parts("abc"), ("abc".to_owned(), id("abc"), false));
        assert_eq!(parts("@abc"), (String::new(), id("abc"), false));
        assert_eq!(parts("app:1@abc"), ("app:1".to_owned(), id("abc"), false));
        assert_eq!(parts(ID), (String::new(), id(ID), false));
        assert_eq!(parts(&format!("sha256:{ID}")), (String::new(), id(ID), false));
        assert_eq!(parts(&format!("app@sha256:{ID}")), ("app".to_owned(), None, true));
        for wrong in ["", "@", "@xyz", "app@zz", "sha256:aa", "A", "[/x", "[]a", "[x]a", "[!@/x]a", "[overlay@]a"] {
            assert!(format!("containers-storage:{wrong}").parse::<Reference>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_store_may_be_typed() {
        let at = |text: &str| {
            let store = storage(&format!("containers-storage:{text}app")).store.unwrap();
            let more: Vec<_> = store.additional.iter().map(|path| path.display().to_string()).collect();
            (store.driver.map(String::from), store.root.display().to_string(), more.join(" "))
        };
        let of = |driver: Option<&str>, root: &str, more: &str| {
            (driver.map(str::to_owned), root.to_owned(), more.to_owned())
        };
        assert_eq!(at("[/s]"), of(None, "/s", ""));
        assert_eq!(at("[overlay@/s]"), of(Some("overlay"), "/s", ""));
        assert_eq!(at("[vfs@/s+/run/s]"), of(Some("vfs"), "/s", ""));
        assert_eq!(at("[overlay@s+/r:overlay.imagestore=/a,x=y,imagestore=/b]"), of(Some("overlay"), "s", "/a /b"));
    }

    #[test]
    fn the_directory_of_a_store_is_made_absolute() {
        let absolute = |text: &str| with_absolute_root(text, |path| Path::new("/w").join(path));
        assert_eq!(absolute("containers-storage:[overlay@s+r:o=p]a:1"), "containers-storage:[overlay@/w/s+r:o=p]a:1");
        assert_eq!(absolute("containers-storage:[./s]a"), "containers-storage:[/w/./s]a");
        assert_eq!(absolute("containers-storage:a"), "containers-storage:a");
    }
}
