//! Files with logins of registries: whether they can be read, by whom, and whether their helpers are installed.

use std::path::Path;

use super::check::Check;
use crate::text;
use peelfs::source::registry::{Surroundings, SurveyedFile, SurveyedLogins};

pub(super) fn checks(authfile: Option<&Path>) -> Vec<Check> {
    let surveyed = Surroundings::of_process().survey(authfile);
    let mut checks: Vec<Check> = surveyed.iter().flat_map(file).collect();
    if checks.is_empty() {
        checks.push(Check::ok(
            "logins",
            "none: only public images can be read; `podman login` or `docker login` makes one",
        ));
    }
    checks
}

fn file(surveyed: &SurveyedFile) -> Vec<Check> {
    let name = surveyed.path.display().to_string();
    let costs = "its logins are not used";
    let logins = match &surveyed.logins {
        Ok(Some(logins)) => logins,
        Ok(None) if surveyed.is_named => {
            return vec![
                Check::missing(name, "it does not exist")
                    .costs("no login is used")
                    .remedy("make it with `podman login --authfile`"),
            ];
        }
        Ok(None) => return Vec::new(),
        Err(why) => {
            let why = why.strip_prefix(&format!("cannot use {name}: ")).unwrap_or(why).to_owned();
            return vec![Check::broken(name, why).costs(costs).remedy("mend it, or remove it and log in again")];
        }
    };
    let mut checks = Vec::new();
    let mode = surveyed.mode.unwrap_or_default();
    if mode & 0o077 != 0 && !logins.registries.is_empty() {
        checks.push(
            Check::broken(&name, format!("mode {mode:03o}, and it has passwords"))
                .costs("other users of this machine can read or change them")
                .remedy(format!("`chmod 600 {name}`")),
        );
    }
    if !logins.invalid.is_empty() {
        checks.push(
            Check::broken(&name, format!("invalid entries: {}", logins.invalid.join(", ")))
                .costs("these logins are not used")
                .remedy("log in again"),
        );
    }
    let missing = logins.helpers.iter().filter(|(_, program)| program.is_none());
    checks.extend(missing.map(|(helper, _)| {
        Check::missing(format!("docker-credential-{helper}"), format!("not in PATH; named by {name}"))
            .costs("the logins that it keeps are not used")
            .remedy("install the helper, or remove its name from the file and log in again")
    }));
    if checks.is_empty() {
        checks.push(Check::ok(&name, described(logins)));
    }
    checks
}

fn described(logins: &SurveyedLogins) -> String {
    let mut parts = Vec::new();
    if !logins.registries.is_empty() {
        parts.push(format!(
            "{} for {}",
            text::count(logins.registries.len() as u64, "login"),
            logins.registries.join(", ")
        ));
    }
    if !logins.helpers.is_empty() {
        let helpers: Vec<_> = logins.helpers.iter().map(|(helper, _)| format!("docker-credential-{helper}")).collect();
        parts.push(format!("helpers {}", helpers.join(", ")));
    }
    if parts.is_empty() { "no logins".to_owned() } else { parts.join("; ") }
}
