//! What the login files of a user hold, without any secret: for a report of what works on this machine.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::credentials::{Keyring, Surroundings};
use super::login_file::LoginFile;

/// One login file.
#[derive(Clone, Debug)]
pub struct SurveyedFile {
    /// The file.
    pub path: PathBuf,
    /// Whether the user has named it.
    pub is_named: bool,
    /// Permission bits, if it exists.
    pub mode: Option<u32>,
    /// What it holds; `None` if it does not exist; as an error, why it cannot be used.
    pub logins: Result<Option<SurveyedLogins>, String>,
}

/// What a login file holds.
#[derive(Clone, Debug, Default)]
pub struct SurveyedLogins {
    /// Registries with a login in the file itself.
    pub registries: Vec<String>,
    /// The credential helpers that it names, and where their programs are.
    pub helpers: Vec<(String, Option<PathBuf>)>,
    /// Entries that are ignored because they are invalid.
    pub invalid: Vec<String>,
}

impl Surroundings {
    /// Reads the files that are searched for logins, in that order. Runs no helper.
    pub fn survey(&self, authfile: Option<&Path>) -> Vec<SurveyedFile> {
        let named = authfile.map(Path::to_owned);
        let keyring = Keyring::new(String::new(), String::new(), named, self, Duration::ZERO);
        let surveyed = keyring.files().map(|(path, legacy, is_named)| SurveyedFile {
            path: path.to_owned(),
            is_named,
            mode: std::fs::metadata(path).ok().map(|found| found.mode() & 0o7777),
            logins: match LoginFile::read(path, legacy) {
                Ok(file) => Ok(file.map(|file| logins(&keyring, file))),
                Err(error) => Err(error.to_string()),
            },
        });
        surveyed.collect()
    }
}

fn logins(keyring: &Keyring, file: LoginFile) -> SurveyedLogins {
    let mut helpers: Vec<String> = file.helpers.into_iter().map(|(_, helper)| helper).chain(file.store).collect();
    helpers.sort();
    helpers.dedup();
    SurveyedLogins {
        registries: file.logins.into_iter().map(|(registry, _)| registry).collect(),
        helpers: helpers
            .into_iter()
            .map(|helper| {
                let program = keyring.installed(&helper);
                (helper, program)
            })
            .collect(),
        invalid: file.invalid,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_survey_names_registries_and_missing_helpers_only() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let program = bin.join("docker-credential-here");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let around = Surroundings { path: Some(bin.into()), ..Surroundings::default() };
        let file = dir.path().join("auth.json");
        let text = r#"{"auths": {"r.example": {"auth": "dTpodW50ZXIy"}, "x": 5},
            "credHelpers": {"a.example": "here", "b.example": "gone", "c.example": "../sh"}}"#;
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let surveyed = around.survey(Some(&file));
        assert!(surveyed[0].is_named && surveyed[0].mode == Some(0o640));
        let logins = surveyed[0].logins.clone().unwrap().unwrap();
        assert_eq!(logins.registries, ["r.example"]);
        let helpers: Vec<_> = logins.helpers.iter().map(|(name, at)| (name.as_str(), at.is_some())).collect();
        assert_eq!(helpers, [("../sh", false), ("gone", false), ("here", true)]);
        assert_eq!(logins.invalid.len(), 1);
        assert!(!format!("{surveyed:?}").contains("hunter2") && !format!("{surveyed:?}").contains("dTpodW50ZXIy"));
        std::fs::write(&file, "{broken").unwrap();
        assert!(around.survey(Some(&file))[0].logins.as_ref().unwrap_err().contains("line 1"));
        std::fs::remove_file(&file).unwrap();
        assert!(around.survey(Some(&file))[0].logins.as_ref().unwrap().is_none());
    }
}
