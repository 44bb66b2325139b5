//! One thing that was looked at, and the result.

use std::fmt::Display;

use serde::Serialize;

use peelfs::host::report::Report;

/// Checks of one kind.
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) checks: Vec<Check>,
}

/// Whether a thing is there, and works.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// It works.
    Ok,
    /// It is not there.
    Missing,
    /// It is there, and does not work or does harm.
    Broken,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    /// The thing.
    pub(super) name: String,
    pub(super) state: State,
    /// What was found.
    pub(super) found: String,
    /// Whether no mount works without it.
    pub(super) needed: bool,
    /// What does not work because of its state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) costs: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

impl Check {
    pub(super) fn ok(name: impl Display, found: impl Display) -> Self {
        Self::new(State::Ok, name, found)
    }

    pub(super) fn missing(name: impl Display, found: impl Display) -> Self {
        Self::new(State::Missing, name, found)
    }

    pub(super) fn broken(name: impl Display, found: impl Display) -> Self {
        Self::new(State::Broken, name, found)
    }

    /// What a command would fail with.
    pub(super) fn failed(name: impl Display, report: Report) -> Self {
        Self { remedy: report.hint, ..Self::broken(name, report.message) }
    }

    fn new(state: State, name: impl Display, found: impl Display) -> Self {
        let (name, found) = (name.to_string(), found.to_string());
        Self { name, state, found, needed: false, costs: None, remedy: None }
    }

    /// No mount works without it.
    pub(super) fn needed(self) -> Self {
        Self { needed: true, ..self }
    }

    pub(super) fn costs(self, costs: impl Display) -> Self {
        Self { costs: Some(costs.to_string()), ..self }
    }

    pub(super) fn remedy(self, remedy: impl Display) -> Self {
        Self { remedy: Some(remedy.to_string()), ..self }
    }

    /// Whether it keeps mounts from working.
    pub(super) fn prevents_mounts(&self) -> bool {
        self.needed && self.state != State::Ok
    }
}
