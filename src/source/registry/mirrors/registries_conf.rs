//! `registries.conf`: mirrors, other locations and short names, as podman, buildah, skopeo and CRI-O read it
//! (containers-registries.conf(5)).
//!
//! The user's own file replaces the machine's. Files in `registries.conf.d` are read after it, in the order of their
//! names; what they say of a prefix or of a short name replaces what was said before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reqwest::Url;

use super::file::{ConfigError, Table, Text, Value};
use super::hosts_toml::proxy;
use crate::reference::{DOCKER_HUB, RegistryName};
use crate::source::registry::credentials::Surroundings;

/// The directory of the machine's files.
const SYSTEM: &str = "/etc/containers";
/// The file, and the directory beside it for further ones.
const FILE: &str = "registries.conf";
const DROP_INS: &str = "registries.conf.d";
/// Where podman notes which image a user has chosen for a short name: for root, and for other users below their cache.
const CHOSEN: &str = "containers/short-name-aliases.conf";
/// Limit for entries of a list.
const MOST: usize = 1024;

/// Which files there may be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Files {
    /// The file that is named by `CONTAINERS_REGISTRIES_CONF`.
    named: Option<PathBuf>,
    /// The directory of the user's files.
    user: Option<PathBuf>,
    /// The directory of the machine's.
    system: PathBuf,
    /// The short names that the user has chosen.
    chosen: Option<PathBuf>,
}

impl Files {
    /// Those of a user with these surroundings.
    pub fn of(around: &Surroundings) -> Self {
        let chosen = match around.uid {
            Some(0) => Some(Path::new("/var/cache").join(CHOSEN)),
            _ => around.cache_home().map(|cache| cache.join(CHOSEN)),
        };
        Self {
            named: around.registries_conf.clone(),
            user: around.config_home().map(|config| config.join("containers")),
            system: SYSTEM.into(),
            chosen,
        }
    }

    /// The file, the directories of further ones, and whether the file must exist.
    fn resolve(&self) -> (PathBuf, Vec<PathBuf>, bool) {
        let drop_ins = |directory: &PathBuf| directory.join(DROP_INS);
        let both = [Some(&self.system), self.user.as_ref()].into_iter().flatten().map(drop_ins).collect();
        if let Some(named) = &self.named {
            return (named.clone(), both, true);
        }
        match self.user.as_ref().map(|user| (user.join(FILE), drop_ins(user))) {
            Some((file, drop_ins)) if file.exists() => (file, vec![drop_ins], false),
            _ => (self.system.join(FILE), both, false),
        }
    }
}

/// What all files say together.
#[derive(Clone, Debug, Default)]
pub struct RegistriesConf {
    /// By prefix.
    entries: BTreeMap<String, Entry>,
    search: Option<Search>,
    aliases: BTreeMap<String, Alias>,
    mode: Option<Mode>,
}

/// Registries that are searched for a name without one.
#[derive(Clone, Debug)]
struct Search {
    hosts: Vec<String>,
    file: PathBuf,
}

/// What a short name stands for; nothing if a file takes an earlier meaning away.
#[derive(Clone, Debug)]
struct Alias {
    name: Option<String>,
    file: PathBuf,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Enforcing,
    Permissive,
    Disabled,
}

/// A `[[registry]]`.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) prefix: String,
    pub(super) location: Location,
    pub(super) mirrors: Vec<(Location, PullFrom)>,
    pub(super) blocked: bool,
    pub(super) file: PathBuf,
    line: usize,
}

/// Where the images of a prefix are.
#[derive(Clone, Debug)]
pub(super) struct Location {
    /// In place of the prefix; the prefix itself if it is empty.
    at: String,
    pub(super) insecure: bool,
    pub(super) proxy: Option<Url>,
    line: usize,
}

/// Which references a mirror is asked for: `pull-from-mirror`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum PullFrom {
    All,
    DigestOnly,
    TagOnly,
}

/// What a name without a registry may stand for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ShortNames {
    /// The images, in the order in which they are looked for.
    pub names: Vec<RegistryName>,
    /// The file that says so.
    pub file: PathBuf,
    /// Whether it is left to the user which of several is meant (`short-name-mode = "enforcing"`).
    pub ask: bool,
}

impl RegistriesConf {
    /// Reads the files.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn load(files: &Files) -> Result<Self, ConfigError> {
        let (file, directories, must_exist) = files.resolve();
        let mut conf = match Text::read(&file)? {
            Some(text) => parse(&text, Versions::Any)?,
            None if must_exist && !file.exists() => {
                let why = "there is no such file, and CONTAINERS_REGISTRIES_CONF names it".to_owned();
                return Err(ConfigError { path: file, line: None, why });
            }
            None => Self::default(),
        };
        for directory in directories {
            for file in drop_ins(&directory)? {
                if let Some(text) = Text::read(&file)? {
                    conf.update(parse(&text, Versions::Second)?);
                }
            }
        }
        if let Some(text) = files.chosen.as_deref().map(Text::read).transpose()?.flatten() {
            let document = text.parse()?;
            conf.aliases.extend(aliases(document.root(), &text.path)?);
        }
        Ok(conf)
    }

    fn update(&mut self, later: Self) {
        self.entries.extend(later.entries);
        self.aliases.extend(later.aliases);
        self.search = later.search.or(self.search.take());
        self.mode = later.mode.or(self.mode);
    }

    /// The entry for an image: that with the longest prefix.
    pub(super) fn entry(mut self, name: &RegistryName) -> Option<Entry> {
        let written = written(name);
        let matching = self.entries.keys().filter(|prefix| matched(&written, prefix).is_some());
        let longest = matching.max_by_key(|prefix| prefix.len())?.clone();
        self.entries.remove(&longest)
    }

    /// What `name`, which was typed without a registry, stands for; `None` if no file says.
    ///
    /// `short` is the name as it was typed, without tag and digest.
    pub fn short_names(&self, short: &str, name: &RegistryName) -> Option<ShortNames> {
        let suffix = &written(name)[name.authority().len() + 1 + name.repository().len()..];
        let alias = self.aliases.get(short);
        if let Some((meant, file)) = alias.and_then(|alias| Some((alias.name.as_ref()?, &alias.file))) {
            let names = vec![format!("{meant}{suffix}").parse().ok()?];
            return Some(ShortNames { names, file: file.clone(), ask: false });
        }
        let search = self.search.as_ref().filter(|search| !search.hosts.is_empty())?;
        let names: Vec<_> =
            search.hosts.iter().filter_map(|host| format!("{host}/{short}{suffix}").parse().ok()).collect();
        let ask = names.len() > 1 && self.mode == Some(Mode::Enforcing);
        (!names.is_empty()).then(|| ShortNames { names, file: search.file.clone(), ask })
    }
}

impl Entry {
    /// Its file and line.
    pub(super) fn place(&self) -> String {
        format!("`{}`, line {},", self.file.display(), self.line)
    }

    /// The image `name` at another location.
    pub(super) fn moved(&self, name: &RegistryName, location: &Location) -> Result<RegistryName, ConfigError> {
        if location.at.is_empty() {
            return Ok(name.clone());
        }
        let written = written(name);
        let end = matched(&written, &self.prefix).expect("the entry was found by its prefix");
        let moved = format!("{}{}", location.at, &written[end..]);
        moved.parse().map_err(|error| ConfigError {
            path: self.file.clone(),
            line: Some(location.line),
            why: format!("`{}` makes an image name of `{written}` that cannot be: {error}", location.at.escape_debug()),
        })
    }
}

/// A name as prefixes are compared with: with its tag or its digest.
fn written(name: &RegistryName) -> String {
    let separator = if name.digest().is_some() { '@' } else { ':' };
    format!("{}/{}{separator}{}", name.authority(), name.repository(), name.manifest_name())
}

/// Where in `name` the prefix ends, if the name begins with it.
fn matched(name: &str, prefix: &str) -> Option<usize> {
    let end = match prefix.strip_prefix('*') {
        Some(domain) => {
            let host = &name[..name.find('/').unwrap_or(name.len())];
            let host = &host[..host.find(':').unwrap_or(host.len())];
            host.ends_with(domain).then_some(host.len())?
        }
        None => name.starts_with(prefix).then_some(prefix.len())?,
    };
    // A host without a port is not one with a port.
    let separators: &[u8] = if prefix.contains('/') { b"/:@" } else { b"/@" };
    match name.as_bytes().get(end) {
        None => Some(end),
        Some(next) if separators.contains(next) || prefix.starts_with('*') => Some(end),
        Some(_) => None,
    }
}

/// Which versions of the format a file may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Versions {
    Any,
    Second,
}

fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let error = |error: std::io::Error| ConfigError { path: directory.to_owned(), line: None, why: error.to_string() };
    let entries = match std::fs::read_dir(directory) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) if cause.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::warn!(
                "`{}` cannot be read, so what it says of registries is not used: {cause}",
                directory.display()
            );
            return Ok(Vec::new());
        }
        entries => entries.map_err(error)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|extension| extension == "conf") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn parse(text: &Text, versions: Versions) -> Result<RegistriesConf, ConfigError> {
    let document = text.parse()?;
    let root = document.root();
    if let Some(old) = root.get("registries") {
        if versions == Versions::Second {
            return Err(old.error("it is in version 1 of the format, which a file of `registries.conf.d` cannot be"));
        }
        if let Some(new) = ["registry", "unqualified-search-registries"].into_iter().find_map(|key| root.get(key)) {
            return Err(
                new.error(format!("`{}` is of version 2 of the format, and `registries` of version 1", new.key))
            );
        }
        return first_version(old.table()?, &text.path);
    }
    let mut entries = BTreeMap::new();
    for (table, value) in root.tables("registry")? {
        if entries.len() == MOST {
            return Err(value.error(format!("there are more than {MOST} registries")));
        }
        let entry = entry(table, value, &text.path)?;
        // As podman: the first of those with one prefix counts.
        entries.entry(entry.prefix.clone()).or_insert(entry);
    }
    let search = match root.texts("unqualified-search-registries")? {
        Some(hosts) => Some(search(hosts, &text.path)?),
        None => None,
    };
    let mode = match root.text("short-name-mode")? {
        None => None,
        Some(("enforcing", _)) => Some(Mode::Enforcing),
        Some(("permissive", _)) => Some(Mode::Permissive),
        Some(("disabled", _)) => Some(Mode::Disabled),
        Some((_, value)) => {
            return Err(value.error("`short-name-mode` is none of `enforcing`, `permissive` and `disabled`"));
        }
    };
    Ok(RegistriesConf { entries, search, aliases: aliases(root, &text.path)?, mode })
}

/// `[registries.search]`, `[registries.insecure]` and `[registries.block]`.
fn first_version(old: Table<'_>, file: &Path) -> Result<RegistriesConf, ConfigError> {
    let list = |name: &str| {
        let table = old.table(name)?;
        Ok(table.map(|table| table.texts("registries")).transpose()?.flatten().unwrap_or_default())
    };
    let mut conf = RegistriesConf::default();
    for (name, blocks) in [("block", true), ("insecure", false)] {
        for (host, value) in list(name)? {
            let at = location(host, value)?;
            let entry = conf.entries.entry(at.clone()).or_insert_with(|| Entry {
                prefix: at.clone(),
                location: Location { at, insecure: false, proxy: None, line: value.line() },
                mirrors: Vec::new(),
                blocked: false,
                file: file.to_owned(),
                line: value.line(),
            });
            entry.blocked |= blocks;
            entry.location.insecure |= !blocks;
        }
    }
    conf.search = Some(search(list("search")?, file)?);
    Ok(conf)
}

fn entry(table: Table<'_>, value: Value<'_>, file: &Path) -> Result<Entry, ConfigError> {
    let place = located(table, value)?;
    let prefix = match table.text("prefix")? {
        Some((prefix, value)) => {
            let prefix = location(prefix, value)?;
            if prefix.starts_with("*.") && prefix.contains(['/', ':', '@']) {
                return Err(value.error("a prefix with `*.` can have no port, path, tag or digest"));
            }
            if place.at.is_empty() && !prefix.starts_with("*.") {
                return Err(value.error("`location` is missing; only a prefix with `*.` can be without"));
            }
            prefix
        }
        None if place.at.is_empty() => return Err(value.error("a registry has neither `prefix` nor `location`")),
        None => place.at.clone(),
    };
    if let Some(value) = table.get("pull-from-mirror") {
        return Err(value.error("`pull-from-mirror` belongs to a mirror, and this is the registry"));
    }
    let by_digest_only = table.flag("mirror-by-digest-only")?.unwrap_or(false);
    let mut mirrors = Vec::new();
    for (table, value) in table.tables("mirror")? {
        let place = located(table, value)?;
        if place.at.is_empty() {
            return Err(value.error("a mirror has no `location`"));
        }
        let pull = match table.text("pull-from-mirror")? {
            Some((_, value)) if by_digest_only => {
                return Err(value.error("`pull-from-mirror` and `mirror-by-digest-only` exclude each other"));
            }
            None if by_digest_only => PullFrom::DigestOnly,
            None | Some(("all", _)) => PullFrom::All,
            Some(("digest-only", _)) => PullFrom::DigestOnly,
            Some(("tag-only", _)) => PullFrom::TagOnly,
            Some((_, value)) => {
                return Err(value.error("`pull-from-mirror` is none of `all`, `digest-only` and `tag-only`"));
            }
        };
        mirrors.push((place, pull));
    }
    let blocked = table.flag("blocked")?.unwrap_or(false);
    Ok(Entry { prefix, location: place, mirrors, blocked, file: file.to_owned(), line: value.line() })
}

fn located(table: Table<'_>, value: Value<'_>) -> Result<Location, ConfigError> {
    let (at, line) = match table.text("location")? {
        Some((at, value)) => (location(at, value)?, value.line()),
        None => (String::new(), value.line()),
    };
    Ok(Location { at, insecure: table.flag("insecure")?.unwrap_or(false), proxy: proxy(table)?, line })
}

/// `HOST[:PORT][/PATH]`.
fn location(text: &str, value: Value<'_>) -> Result<String, ConfigError> {
    let text = text.trim_end_matches('/');
    let bad = |why: &str| Err(value.error(format!("`{}` is not a registry: {why}", text.escape_debug())));
    if text.starts_with("http://") || text.starts_with("https://") {
        return bad("write it without `http://` or `https://`");
    }
    let host = text.split('/').next().unwrap_or_default();
    if !host.contains(['.', ':']) && host != "localhost" {
        return bad("it has no host with a dot or a port");
    }
    Ok(text.to_owned())
}

fn search(hosts: Vec<(&str, Value<'_>)>, file: &Path) -> Result<Search, ConfigError> {
    if let Some((_, value)) = hosts.get(MOST) {
        return Err(value.error(format!("there are more than {MOST} registries")));
    }
    let host = |(host, value): (&str, Value<'_>)| {
        let host = location(host, value)?;
        if host.contains('/') || format!("{host}/x/x").parse::<RegistryName>().is_err() {
            return Err(value.error(format!("`{}` is not a host, with or without a port", host.escape_debug())));
        }
        Ok(host)
    };
    Ok(Search { hosts: hosts.into_iter().map(host).collect::<Result<_, _>>()?, file: file.to_owned() })
}

fn aliases(root: Table<'_>, file: &Path) -> Result<BTreeMap<String, Alias>, ConfigError> {
    let mut aliases = BTreeMap::new();
    for value in root.table("aliases")?.map(Table::values).unwrap_or_default() {
        let short: Result<RegistryName, _> = value.key.parse();
        let is_short = short.is_ok_and(|name| {
            name.authority() == DOCKER_HUB && !value.key.contains([':', '@']) && !names_host(value.key)
        });
        if !is_short {
            return Err(value.error(format!("`{}` is not a short name", value.key.escape_debug())));
        }
        let meant = value.text()?;
        if !meant.is_empty() {
            let name: Result<RegistryName, _> = meant.parse();
            let is_full = name.is_ok_and(|name| name.digest().is_none() && names_host(meant));
            let has_tag = meant.rsplit('/').next().is_some_and(|last| last.contains(':'));
            if !is_full || has_tag {
                let meant = meant.escape_debug();
                return Err(value.error(format!("`{meant}` is not the full name of a repository, without a tag")));
            }
        }
        let name = (!meant.is_empty()).then(|| meant.to_owned());
        aliases.insert(value.key.to_owned(), Alias { name, file: file.to_owned() });
    }
    Ok(aliases)
}

/// Whether a name begins with a host.
fn names_host(name: &str) -> bool {
    name.split_once('/').is_some_and(|(first, _)| first == "localhost" || first.contains(['.', ':']))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(text: &str) -> Result<RegistriesConf, ConfigError> {
        parse(&Text::of("/etc/containers/registries.conf", text), Versions::Any)
    }

    /// The locations of an image by this file, with `?` for a mirror that is asked for digests alone.
    fn locations(text: &str, name: &str) -> Vec<String> {
        let name: RegistryName = name.parse().unwrap();
        let Some(entry) = parsed(text).unwrap().entry(&name) else { return Vec::new() };
        let mark = |pull: &PullFrom| if *pull == PullFrom::DigestOnly { "?" } else { "" };
        let mirrors = entry.mirrors.iter().map(|(at, pull)| (at, mark(pull)));
        let all = mirrors.chain([(&entry.location, "")]);
        all.map(|(at, mark)| format!("{}{mark}", entry.moved(&name, at).unwrap())).collect()
    }

    /// The example of containers-registries.conf(5).
    #[test]
    fn mirrors_come_before_the_location() {
        let text = r#"
unqualified-search-registries = ["example.com"]
[[registry]]
prefix = "example.com/foo"
insecure = false
blocked = false
location = "internal-registry-for-example.com/bar"
[[registry.mirror]]
location = "example-mirror-0.local/mirror-for-foo"
[[registry.mirror]]
location = "example-mirror-1.local/mirrors/foo"
insecure = true
pull-from-mirror = "digest-only"
"#;
        let wanted = [
            "example-mirror-0.local/mirror-for-foo/image:latest",
            "example-mirror-1.local/mirrors/foo/image:latest?",
            "internal-registry-for-example.com/bar/image:latest",
        ];
        assert_eq!(locations(text, "example.com/foo/image"), wanted);
        assert!(locations(text, "example.com/food/image").is_empty());
        assert!(locations(text, "example.com/bar").is_empty());
    }

    #[test]
    fn the_longest_prefix_counts() {
        let text = "[[registry]]\nlocation='r.example'\n[[registry]]\nprefix='r.example/a'\nlocation='m.example/x'\n\
                    [[registry]]\nprefix='*.example'\nlocation='w.example'\n[[registry]]\nprefix='*.other'\n\
                    [[registry]]\nprefix='r.example/a/b:1'\nlocation='one.example/c:2'\n";
        for (name, wanted) in [
            ("r.example/z", "r.example/z:latest"),
            ("r.example/a/b", "m.example/x/b:latest"),
            ("r.example/a/b:1", "one.example/c:2"),
            ("r.example/a", "m.example/x:latest"),
            ("r.example/ab", "r.example/ab:latest"),
            ("deep.sub.example/a", "w.example/a:latest"),
            ("sub.example:5000/a", "w.example:5000/a:latest"),
            ("x.other/a:2", "x.other/a:2"),
        ] {
            assert_eq!(locations(text, name), [wanted], "{name}");
        }
        assert!(
            locations(text, "r.example:5000/z").iter().all(|at| at.starts_with("w.")),
            "a port is part of the host"
        );
        assert!(locations(text, "example.com/z").is_empty());
    }

    #[test]
    fn the_first_version_of_the_format_is_read() {
        let text = "[registries.search]\nregistries=['a.example','b.example']\n[registries.insecure]\n\
                    registries=['i.example']\n[registries.block]\nregistries=['x.example']\n";
        let conf = parsed(text).unwrap();
        assert!(conf.clone().entry(&"i.example/a".parse().unwrap()).unwrap().location.insecure);
        assert!(conf.clone().entry(&"x.example/a".parse().unwrap()).unwrap().blocked);
        let names = conf.short_names("app", &"app:1".parse().unwrap()).unwrap().names;
        assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a.example/app:1", "b.example/app:1"]);
    }

    #[test]
    fn short_names_stand_for_aliases_then_for_each_registry() {
        let text = "unqualified-search-registries = ['q.example:5000', 'docker.io']\nshort-name-mode = 'enforcing'\n\
                    [aliases]\n'alpine' = 'docker.io/library/alpine'\n'team/app' = 'r.example/x/app'\n'gone' = ''\n";
        let conf = parsed(text).unwrap();
        let names = |short: &str, typed: &str| {
            let found = conf.short_names(short, &typed.parse().unwrap()).unwrap();
            (found.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), found.ask)
        };
        assert_eq!(names("alpine", "alpine:3"), ("docker.io/library/alpine:3".to_owned(), false));
        let digest = format!("sha256:{}", "0".repeat(64));
        let pinned = format!("team/app@{digest}");
        assert_eq!(names("team/app", &pinned), (format!("r.example/x/app@{digest}"), false));
        let searched = "q.example:5000/gone:latest docker.io/library/gone:latest";
        assert_eq!(names("gone", "gone"), (searched.to_owned(), true));
        assert!(parsed("").unwrap().short_names("a", &"a".parse().unwrap()).is_none());
        let none = parsed("unqualified-search-registries = []").unwrap();
        assert!(none.short_names("a", &"a".parse().unwrap()).is_none());
    }

    #[test]
    fn a_bad_file_is_one_error_with_its_line() {
        for (text, wanted) in [
            (
                "[[registry]]\nlocation = 'https://r.example'",
                "line 2: `https://r.example` is not a registry: write it without",
            ),
            ("[[registry]]\nlocation = 'host'", "line 2: `host` is not a registry: it has no host with a dot"),
            ("[[registry]]\nprefix = 'r.example'", "line 2: `location` is missing"),
            ("\n[[registry]]\nblocked = true", "line 2: a registry has neither"),
            ("[[registry]]\nprefix = '*.example/a'\nlocation = 'a.b'", "line 2: a prefix with `*.`"),
            (
                "[[registry]]\nlocation='a.b'\n[[registry.mirror]]\ninsecure = true",
                "line 3: a mirror has no `location`",
            ),
            ("[[registry]]\nlocation='a.b'\npull-from-mirror='all'", "line 3: `pull-from-mirror` belongs to a mirror"),
            (
                "[[registry]]\nlocation='a.b'\n[[registry.mirror]]\nlocation='c.d'\npull-from-mirror='some'",
                "line 5: `pull-from-mirror` is none",
            ),
            (
                "[[registry]]\nlocation='a.b'\nmirror-by-digest-only=true\n[[registry.mirror]]\nlocation='c.d'\npull-from-mirror='all'",
                "line 6: `pull-from-mirror` and",
            ),
            ("[[registry]]\nlocation='a.b'\ninsecure='no'", "line 3: `insecure` is neither true nor false"),
            ("[registry]\nlocation='a.b'", "line 1: `registry` is not a list of tables"),
            ("unqualified-search-registries = ['a.b/c']", "line 1: `a.b/c` is not a host"),
            ("short-name-mode = 'off'", "line 1: `short-name-mode` is none of"),
            ("[aliases]\n'a.b/c' = 'a.b/c'", "line 2: `a.b/c` is not a short name"),
            ("[aliases]\n'a:1' = 'a.b/c'", "line 2: `a:1` is not a short name"),
            ("[aliases]\n'a' = 'b'", "line 2: `b` is not the full name"),
            ("[aliases]\n'a' = 'r.example/b:1'", "line 2: `r.example/b:1` is not the full name"),
            ("registry = []\n[registries.search]\nregistries = []", "line 1: `registry` is of version 2"),
            ("a = 1\na = 2", "line 2: "),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`/etc/containers/registries.conf`, {wanted}")), "{text}: {error}");
        }
        let error = parse(&Text::of("f", "[registries.search]\nregistries = []"), Versions::Second).unwrap_err();
        assert!(error.to_string().starts_with("`f`, line 1: it is in version 1"), "{error}");
    }

    #[test]
    fn later_files_replace_what_earlier_ones_say() {
        let dir = tempfile::tempdir().unwrap();
        let [system, user] = ["etc", "user"].map(|name| dir.path().join(name));
        let write = |path: PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let mut files = Files { named: None, user: Some(user.clone()), system: system.clone(), chosen: None };
        let search = |files: &Files| {
            let conf = RegistriesConf::load(files).unwrap();
            let found = conf.short_names("a", &"a".parse().unwrap());
            found.map(|found| found.names[0].authority())
        };
        assert_eq!(search(&files), None);
        let one = |host: &str| format!("unqualified-search-registries = ['{host}']");
        write(system.join(FILE), &one("system.example"));
        assert_eq!(search(&files).unwrap(), "system.example");
        write(system.join(DROP_INS).join("20.conf"), &one("twenty.example"));
        write(system.join(DROP_INS).join("10.conf"), &one("ten.example"));
        write(system.join(DROP_INS).join("30.txt"), "[");
        assert_eq!(search(&files).unwrap(), "twenty.example");
        write(user.join(DROP_INS).join("00.conf"), &one("own.example"));
        assert_eq!(search(&files).unwrap(), "own.example");
        std::fs::remove_dir_all(user.join(DROP_INS)).unwrap();
        write(user.join(FILE), &one("user.example"));
        assert_eq!(search(&files).unwrap(), "user.example", "the machine's files are not read beside the user's");
        files.named = Some(dir.path().join("none"));
        let error = RegistriesConf::load(&files).unwrap_err().to_string();
        assert!(error.ends_with("/none`: there is no such file, and CONTAINERS_REGISTRIES_CONF names it"), "{error}");
        files.chosen = Some(dir.path().join("chosen.conf"));
        write(dir.path().join("none"), "[aliases]\n'a' = 'docker.io/x/a'\n");
        write(dir.path().join("chosen.conf"), "[aliases]\n'a' = 'chosen.example/a'\n");
        assert_eq!(search(&files).unwrap(), "chosen.example");
    }
}
