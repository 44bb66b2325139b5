//! What a user may have meant by a tag that does not exist.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::reference::RegistryName;
use crate::source::registry::RegistrySource;

/// The error is told after this time, with or without a hint.
const LIMIT: Duration = Duration::from_secs(5);
/// Similarity from which a tag may have been meant, from 0 to 1.
const SIMILAR: f64 = 0.6;
/// So many tags are all named.
const FEW: usize = 6;

/// A hint for `name`, whose tag its repository does not have.
pub(super) async fn hint(name: &RegistryName, registry: &RegistrySource) -> Option<String> {
    let tag = name.tag().filter(|_| name.digest().is_none())?;
    let tags = tokio::time::timeout(LIMIT, registry.tags()).await.ok()?.ok()?;
    of(&format!("{}/{}", name.authority(), name.repository()), tag, &tags)
}

fn of(repository: &str, tag: &str, tags: &BTreeSet<String>) -> Option<String> {
    // A list that has it contradicts the registry's answer.
    if tags.is_empty() || tags.contains(tag) {
        return None;
    }
    let score = |other: &String| strsim::normalized_damerau_levenshtein(tag, other);
    let nearest = tags.iter().map(|other| (score(other), other)).max_by(|one, other| one.0.total_cmp(&other.0))?;
    if nearest.0 >= SIMILAR {
        return Some(format!("did you mean `{repository}:{}`?", nearest.1));
    }
    let named = tags.iter().take(FEW).map(|tag| format!("`{tag}`")).collect::<Vec<_>>().join(", ");
    Some(match tags.len() {
        1 => format!("the only tag of {repository} is {named}"),
        2..=FEW => format!("the tags of {repository} are {named}"),
        count => format!("{repository} has {count} other tags, as {named}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_tag_is_named_or_else_some_that_exist() {
        let hint =
            |tag: &str, tags: &[&str]| of("r.example/a", tag, &tags.iter().map(|tag| (*tag).to_owned()).collect());
        let told = |text: &str| Some(text.to_owned());
        assert_eq!(hint("3.12-slm", &["3.1", "3.12", "3.12-slim"]), told("did you mean `r.example/a:3.12-slim`?"));
        assert_eq!(hint("lastest", &["1", "latest"]), told("did you mean `r.example/a:latest`?"));
        assert_eq!(hint("latest", &["1"]), told("the only tag of r.example/a is `1`"));
        assert_eq!(hint("latest", &["1", "2"]), told("the tags of r.example/a are `1`, `2`"));
        let many = ["0", "1", "2", "3", "4", "5", "6"];
        let some = "r.example/a has 7 other tags, as `0`, `1`, `2`, `3`, `4`, `5`";
        assert_eq!(hint("latest", &many), told(some));
        assert_eq!((hint("1", &["1"]), hint("1", &[])), (None, None));
    }
}
