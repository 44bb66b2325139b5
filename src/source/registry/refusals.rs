//! Refusals: which logins were refused, and when they may be tried again.
//!
//! A login that worked and is now refused is usually stale: its token or password has expired. A login that never
//! worked is wrong, and repeating it locks accounts. So the former is retried at intervals, the latter only after the
//! user has changed it.

use std::time::Duration;

use super::auth::AuthError;
use super::challenge::Challenge;
use super::credentials::Found;

/// First pause before a login that worked is retried; doubles with every refusal.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Limit for remembered refusals; the oldest is dropped first.
const MOST: usize = 8;

/// One way to log in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Attempt {
    /// The credentials; `None` is anonymous.
    pub(super) used: Option<Found>,
    pub(super) challenge: Challenge,
    /// The scopes of the token.
    pub(super) scopes: Vec<String>,
}

/// The refused logins, and the last one that worked.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    known: Vec<Known>,
    /// The credentials that were last accepted.
    good: Option<Option<Found>>,
}

#[derive(Debug)]
struct Known {
    attempt: Attempt,
    pause: Duration,
    /// When it may be tried again; `None` if its credentials never worked.
    again: Option<Duration>,
    why: Option<AuthError>,
}

impl Refusals {
    /// Records that `used` was accepted.
    pub(super) fn granted(&mut self, used: Option<&Found>) {
        self.known.retain(|known| known.attempt.used.as_ref() != used);
        if self.good.as_ref().map(Option::as_ref) != Some(used) {
            self.good = Some(used.cloned());
        }
    }

    /// Whether `used` was the last credentials accepted.
    pub(super) fn has_worked(&self, used: Option<&Found>) -> bool {
        self.good.as_ref().is_some_and(|good| good.as_ref() == used)
    }

    /// Records that `attempt` was refused, with the reason of the token server if it was refused there. Returns whether
    /// it may be tried once more, as its last refusal is old enough.
    pub(super) fn refused(&mut self, attempt: &Attempt, now: Duration, why: Option<AuthError>) -> bool {
        let good = self.has_worked(attempt.used.as_ref());
        if let Some(known) = self.known.iter_mut().find(|known| known.attempt == *attempt) {
            let due = known.again.is_some_and(|again| now >= again);
            if due {
                known.pause = (2 * known.pause).min(LONGEST_PAUSE);
                known.again = Some(now + known.pause);
            }
            known.why = why.or(known.why.take());
            return due;
        }
        if self.known.len() >= MOST {
            self.known.remove(0);
        }
        let again = good.then_some(now + SHORTEST_PAUSE);
        self.known.push(Known { attempt: attempt.clone(), pause: SHORTEST_PAUSE, again, why });
        false
    }

    /// Whether `attempt` may be tried; if not, the token server's reason, if any.
    pub(super) fn may(&self, attempt: &Attempt, now: Duration) -> Result<(), Option<AuthError>> {
        match self.known.iter().find(|known| known.attempt == *attempt) {
            Some(known) if known.again.is_none_or(|again| now < again) => Err(known.why.clone()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::credentials::{Credential, Secret};
    use super::*;

    fn attempt(password: &str) -> Attempt {
        let credential = Credential::Password { user: "u".to_owned(), password: Secret::new(password) };
        let used = Some(Found { credential, origin: "file".to_owned() });
        Attempt { used, challenge: Challenge::Basic, scopes: Vec::new() }
    }

    #[test]
    fn a_login_that_never_worked_stays_refused() {
        let mut refusals = Refusals::default();
        let (wrong, other) = (attempt("wrong"), attempt("other"));
        assert!(!refusals.refused(&wrong, Duration::ZERO, None));
        for hours in [0, 1, 1_000] {
            let now = Duration::from_secs(3_600 * hours);
            assert!(refusals.may(&wrong, now).is_err() && !refusals.refused(&wrong, now, None));
            assert!(refusals.may(&other, now).is_ok());
        }
    }

    #[test]
    fn a_login_that_worked_is_tried_at_growing_intervals() {
        let mut refusals = Refusals::default();
        let login = attempt("p");
        refusals.granted(login.used.as_ref());
        let (mut now, mut tries) = (Duration::ZERO, Vec::new());
        refusals.refused(&login, now, None);
        while tries.len() < 10 {
            now += Duration::from_millis(100);
            if refusals.may(&login, now).is_ok() {
                assert!(refusals.refused(&login, now, None), "it was due");
                tries.push(now);
            }
        }
        let pauses: Vec<u128> = tries.windows(2).map(|two| (two[1] - two[0]).as_millis()).collect();
        assert_eq!(pauses, [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000, 30_000]);
        refusals.granted(login.used.as_ref());
        assert!(refusals.may(&login, now).is_ok());
    }

    #[test]
    fn few_refusals_are_remembered() {
        let mut refusals = Refusals::default();
        for number in 0..100 {
            refusals.refused(&attempt(&number.to_string()), Duration::ZERO, None);
        }
        assert_eq!(refusals.known.len(), MOST);
        assert!(refusals.may(&attempt("99"), Duration::ZERO).is_err());
        assert!(refusals.may(&attempt("1"), Duration::ZERO).is_ok());
    }
}
