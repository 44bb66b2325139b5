//! Where the storage of podman, buildah and CRI-O is: `storage.conf` (containers-storage.conf(5)).
//!
//! Root's engines read one file of the system, a user's one of their own. What a user's file does not say is the default
//! for users, not what the system's file says of root's storage.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::reference::{StoreAt, is_store_option};
use crate::source::SourceError;

/// What decides where engines keep images.
#[derive(Clone, Debug, Default)]
pub(crate) struct Around {
    /// `CONTAINERS_STORAGE_CONF`
    pub(crate) conf: Option<PathBuf>,
    /// `STORAGE_DRIVER`
    pub(crate) driver: Option<String>,
    /// `STORAGE_OPTS`
    pub(crate) options: Option<String>,
    /// `HOME`
    pub(crate) home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`
    pub(crate) config_home: Option<PathBuf>,
    /// `XDG_DATA_HOME`
    pub(crate) data_home: Option<PathBuf>,
    /// The user, even in a user namespace that podman has made.
    pub(crate) uid: u32,
    /// Directories with the system's configuration.
    pub(crate) system: Vec<PathBuf>,
}

/// A storage.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct StoreDir {
    pub(super) root: PathBuf,
    pub(super) driver: Option<String>,
}

impl Around {
    /// That of this process.
    pub(crate) fn of_process() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name: &str| text(name).map(PathBuf::from);
        // `podman unshare` runs programs as root of a namespace.
        let outside = text("_CONTAINERS_ROOTLESS_UID").and_then(|uid| uid.parse().ok());
        Self {
            conf: path("CONTAINERS_STORAGE_CONF"),
            driver: text("STORAGE_DRIVER"),
            options: text("STORAGE_OPTS"),
            home: path("HOME"),
            config_home: path("XDG_CONFIG_HOME"),
            data_home: path("XDG_DATA_HOME"),
            uid: outside.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            system: vec![PathBuf::from("/etc"), PathBuf::from("/usr/share")],
        }
    }

    fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// The stores in which an image is looked for, in order: the one that was typed, or those that are configured.
    pub(super) fn stores(&self, typed: Option<&StoreAt>) -> Result<Vec<StoreDir>, SourceError> {
        let (main, more) = match typed {
            Some(typed) => {
                let driver = typed.driver.as_deref().map(str::to_owned);
                (StoreDir { root: typed.root.clone(), driver }, typed.additional.clone())
            }
            None => self.configured()?,
        };
        let more = more.into_iter().map(|root| StoreDir { root, driver: main.driver.clone() });
        Ok(std::iter::once(main.clone()).chain(more).collect())
    }

    /// Their directories; none if the configuration is not usable.
    pub(crate) fn directories(&self, typed: Option<&StoreAt>) -> Vec<PathBuf> {
        self.stores(typed).unwrap_or_default().into_iter().map(|store| store.root).collect()
    }

    /// The file that names the stores of this user's engines, if they do not look for images in `at`. Without any file
    /// there may be no engine; one that cannot be used is the engine's to report.
    pub(super) fn file_without(&self, at: &Path) -> Option<PathBuf> {
        let file = self.own_file().or_else(|| self.is_root().then(|| self.system_file())?)?;
        let stores = self.stores(None).ok()?;
        stores.iter().all(|store| store.root != at).then_some(file)
    }

    /// The file that decides alone.
    fn own_file(&self) -> Option<PathBuf> {
        let own = (!self.is_root()).then(|| {
            let home = || self.home.as_ref().map(|home| home.join(".config"));
            self.config_home.clone().or_else(home).map(|dir| dir.join(NAME))
        });
        self.conf.clone().or_else(|| own.flatten().filter(|path| path.exists()))
    }

    fn system_file(&self) -> Option<PathBuf> {
        self.system.iter().map(|dir| dir.join(NAME)).find(|path| path.exists())
    }

    fn configured(&self) -> Result<(StoreDir, Vec<PathBuf>), SourceError> {
        let storage = match self.own_file() {
            Some(path) => self.read(&path)?,
            None => match self.system_file() {
                Some(path) if self.is_root() => self.read(&path)?,
                // Only this concerns users.
                Some(path) => Storage { graphroot: self.read(&path)?.rootless_storage_path, ..Storage::default() },
                None => Storage::default(),
            },
        };
        let root = match storage.graphroot.filter(|root| !root.is_empty()) {
            Some(root) => PathBuf::from(self.expand(&root)),
            None if self.is_root() => PathBuf::from(ROOT_STORE),
            None => {
                let home = || self.home.as_ref().map(|home| home.join(".local/share"));
                let Some(data) = self.data_home.clone().or_else(home) else {
                    return Err(SourceError::Unsupported {
                        place: "containers-storage".to_owned(),
                        why: "neither HOME nor XDG_DATA_HOME says where it is".to_owned(),
                        hint: Some("name it: `containers-storage:[overlay@/path/to/storage]NAME`".to_owned()),
                    });
                };
                data.join("containers/storage")
            }
        };
        let driver = self.driver.clone().or(storage.driver).filter(|driver| !driver.is_empty());
        let options = self.options.iter().flat_map(|options| options.split(','));
        let options = options.filter_map(|option| option.split_once('=')).filter(|(key, _)| is_store_option(key));
        let more = storage.imagestore.into_iter().chain(storage.options.imagestore);
        let more = more.chain(storage.options.additionalimagestores).chain(options.map(|(_, path)| path.to_owned()));
        let more = more.filter(|path| !path.is_empty()).map(|path| PathBuf::from(self.expand(&path)));
        Ok((StoreDir { root, driver }, more.collect()))
    }

    fn read(&self, path: &Path) -> Result<Storage, SourceError> {
        let failed = |cause| SourceError::Io { path: path.display().to_string(), cause };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let read: Configuration = toml::from_str(&text).map_err(|error| SourceError::Unsupported {
            place: format!("`{}`", path.display()),
            why: format!("it is not as storage.conf is: {}", error.message()),
            hint: Some(
                "correct it, or name the storage: `containers-storage:[overlay@/path/to/storage]NAME`".to_owned(),
            ),
        })?;
        Ok(read.storage)
    }

    /// A path with the variables that engines know in it.
    fn expand(&self, text: &str) -> String {
        let home = self.home.as_deref().map_or_else(String::new, |home| home.display().to_string());
        let text = text.replace("${HOME}", &home).replace("$HOME", &home);
        let uid = self.uid.to_string();
        text.replace("${UID}", &uid).replace("$UID", &uid)
    }
}

#[derive(Default, Deserialize)]
struct Configuration {
    #[serde(default)]
    storage: Storage,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Storage {
    driver: Option<String>,
    graphroot: Option<String>,
    rootless_storage_path: Option<String>,
    imagestore: Option<String>,
    options: Options,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Options {
    imagestore: Option<String>,
    additionalimagestores: Vec<String>,
}

const NAME: &str = "containers/storage.conf";
const ROOT_STORE: &str = "/var/lib/containers/storage";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The stores of a user with these files.
    fn stores(uid: u32, files: &[(&str, &str)], change: impl Fn(&mut Around, &Path)) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let mut around = Around {
            home: Some(PathBuf::from("/home/joe")),
            config_home: Some(dir.path().join("own")),
            uid,
            system: vec![dir.path().join("etc"), dir.path().join("usr")],
            ..Around::default()
        };
        change(&mut around, dir.path());
        let shown = |store: StoreDir| match store.driver {
            Some(driver) => format!("{driver}@{}", store.root.display()),
            None => store.root.display().to_string(),
        };
        match around.stores(None) {
            Ok(stores) => stores.into_iter().map(shown).collect(),
            Err(error) => vec![error.to_string().replace(&dir.path().display().to_string(), "TMP")],
        }
    }

    const SYSTEM: (&str, &str) = (
        "etc/containers/storage.conf",
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"/srv/store\"\nrootless_storage_path = \"/data/$UID/x\"\n\
         [storage.options]\nadditionalimagestores = [\"/a\", \"/b\"]\n",
    );

    #[test]
    fn root_reads_the_file_of_the_system() {
        let none = |_: &mut Around, _: &Path| {};
        assert_eq!(stores(0, &[], none), ["/var/lib/containers/storage"]);
        let other = ("usr/containers/storage.conf", "[storage]\ndriver = \"vfs\"\n");
        assert_eq!(stores(0, &[other], none), ["vfs@/var/lib/containers/storage"]);
        assert_eq!(stores(0, &[SYSTEM, other], none), ["overlay@/srv/store", "overlay@/a", "overlay@/b"]);
        let environment = |around: &mut Around, _: &Path| {
            around.driver = Some("vfs".to_owned());
            around.options = Some("x=1,overlay.imagestore=/c".to_owned());
        };
        assert_eq!(stores(0, &[SYSTEM], environment), ["vfs@/srv/store", "vfs@/a", "vfs@/b", "vfs@/c"]);
    }

    #[test]
    fn a_user_has_a_file_and_a_storage_of_their_own() {
        let none = |_: &mut Around, _: &Path| {};
        assert_eq!(stores(7, &[], none), ["/home/joe/.local/share/containers/storage"]);
        assert_eq!(stores(7, &[], |around, _| around.data_home = Some("/d".into())), ["/d/containers/storage"]);
        assert_eq!(stores(7, &[SYSTEM], none), ["/data/7/x"]);
        let own = ("own/containers/storage.conf", "[storage]\ngraphroot = \"$HOME/s\"\nimagestore = \"/i\"\n");
        assert_eq!(stores(7, &[SYSTEM, own], none), ["/home/joe/s", "/i"]);
        let named = |around: &mut Around, dir: &Path| around.conf = Some(dir.join("etc/containers/storage.conf"));
        assert_eq!(stores(7, &[SYSTEM, own], named)[0], "overlay@/srv/store");
    }

    #[test]
    fn a_file_is_named_where_engines_do_not_look_into_a_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc").join(NAME);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let root = Around { system: vec![dir.path().join("etc")], ..Around::default() };
        assert_eq!(root.file_without(Path::new("/a")), None, "there is no file");
        for (text, is_named) in [
            ("", false),
            ("[storage]\ndriver = \"overlay\"\n", false),
            ("[storage.options]\nadditionalimagestores = [\"/usr/lib/store\", \"/a/\"]\n", true),
            ("[storage.options]\nadditionalimagestores = [\"/usr/lib/store\"]\nmountopt = \"nodev\"\n", false),
            ("[storage", true),
        ] {
            std::fs::write(&path, text).unwrap();
            let wanted = (!is_named).then(|| path.clone());
            assert_eq!(root.file_without(Path::new("/a")), wanted, "{text}");
        }
        std::fs::write(&path, "").unwrap();
        let told = Around { options: Some("overlay.imagestore=/a".to_owned()), ..root.clone() };
        assert_eq!(told.file_without(Path::new("/a")), None, "by the environment");
        let user = Around { uid: 7, home: Some("/home/joe".into()), ..root };
        assert_eq!(user.file_without(Path::new("/a")), None, "the file of the system is not a user's");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let broken = ("etc/containers/storage.conf", "[storage\n");
        let said = stores(0, &[broken], |_, _| {}).join("");
        assert!(
            said.starts_with("`TMP/etc/containers/storage.conf` cannot be used: it is not as storage.conf is"),
            "{said}"
        );
        let said = stores(0, &[], |around, dir| around.conf = Some(dir.join("none"))).join("");
        assert_eq!(said, "cannot read TMP/none");
        let said = stores(7, &[], |around, _| around.home = None).join("");
        assert!(said.contains("neither HOME nor XDG_DATA_HOME"), "{said}");
    }
}
