//! Whether engines know an image store: `storage.conf` (containers-storage.conf(5)).

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The file that this user's engines read, if it does not name the store `at`. Without any file there may be no engine.
pub(super) fn without(at: &Path) -> Option<PathBuf> {
    let file = files().into_iter().find(|path| path.exists())?;
    let text = std::fs::read_to_string(&file).ok()?;
    (!names(&text, at)).then_some(file)
}

/// Where the file is looked for; the first one counts.
fn files() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os("CONTAINERS_STORAGE_CONF") {
        return vec![path.into()];
    }
    let own = (!rustix::process::geteuid().is_root()).then(|| {
        use etcetera::BaseStrategy as _;
        Some(etcetera::choose_base_strategy().ok()?.config_dir().join(NAME))
    });
    own.flatten().into_iter().chain(SYSTEM.map(|directory| Path::new(directory).join(NAME))).collect()
}

/// Whether a configuration names the store. One that cannot be parsed is the engine's to report.
fn names(text: &str, at: &Path) -> bool {
    #[derive(Default, Deserialize)]
    struct Options {
        #[serde(default)]
        additionalimagestores: Vec<PathBuf>,
    }
    #[derive(Default, Deserialize)]
    struct Storage {
        #[serde(default)]
        options: Options,
    }
    #[derive(Deserialize)]
    struct Configuration {
        #[serde(default)]
        storage: Storage,
    }
    toml::from_str::<Configuration>(text).map_or(true, |configuration| {
        configuration.storage.options.additionalimagestores.iter().any(|store| store == at)
    })
}

const NAME: &str = "containers/storage.conf";
const SYSTEM: [&str; 2] = ["/etc", "/usr/share"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_found_among_those_that_a_file_names() {
        for (text, is_named) in [
            ("", false),
            ("[storage]\ndriver = \"overlay\"\n", false),
            ("[storage.options]\nadditionalimagestores = [\"/usr/lib/store\", \"/srv/images/\"]\n", true),
            ("[storage.options]\nadditionalimagestores = [\"/usr/lib/store\"]\nmountopt = \"nodev\"\n", false),
            ("[storage", true),
        ] {
            assert_eq!(names(text, Path::new("/srv/images")), is_named, "{text}");
        }
    }
}
