//! Challenges: the `WWW-Authenticate` header of a registry that requires a login.
//!
//! The header is a comma-separated list whose items are comma-separated lists themselves (RFC 9110, section 11.6.1),
//! and it is untrusted; clients that parse it with a regular expression have sent passwords to the wrong host. So it is
//! tokenised and limited, and nothing is guessed: a malformed header yields the challenges before the fault.

/// Limit for a header, in bytes.
const MAX_HEADER: usize = 8 << 10;
/// Limit for challenges of one response.
const MAX_CHALLENGES: usize = 16;

/// One challenge that peelfs can answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Challenge {
    /// RFC 7617.
    Basic,
    /// Fetch a token from `realm` (distribution-spec's companion, "Token Authentication").
    Bearer {
        /// The URL of the token server, as received.
        realm: String,
        /// The name under which the token server knows this registry.
        service: Option<String>,
    },
}

/// A challenge as a registry offers it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Offer {
    pub(super) challenge: Challenge,
    /// The scope that the registry proposes. It may be broader than needed, so only [`Offer::scope_beside`] uses it.
    scope: Option<String>,
}

impl Offer {
    /// The proposed right to pull from another repository than that of `own`, if any.
    ///
    /// A proxy that serves a repository under another name may require rights for the original name.
    pub(super) fn scope_beside(&self, own: &str) -> Option<String> {
        let mut others = self.scope.as_deref()?.split(' ').filter_map(|scope| {
            let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
            let pulls = actions.split(',').any(|action| action == "pull");
            (pulls && is_repository(name)).then(|| format!("repository:{name}:pull"))
        });
        others.find(|scope| scope != own)
    }
}

/// Whether `name` may be the name of a repository, with the host and port that some proxies put before it.
pub(super) fn is_repository(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte);
    !name.is_empty() && name.len() <= 255 && name.bytes().all(plain) && !name.split('/').any(|part| part == "..")
}

/// The challenge to answer among all `WWW-Authenticate` headers of one response: the first Bearer
/// that has a realm, else Basic, else none.
pub(super) fn choose<'a>(headers: impl Iterator<Item = &'a [u8]>) -> Option<Offer> {
    let all: Vec<Offer> = headers.take(MAX_CHALLENGES).flat_map(parse).take(MAX_CHALLENGES).collect();
    let bearer = all.iter().find(|offer| matches!(offer.challenge, Challenge::Bearer { .. }));
    bearer.or(all.first()).cloned()
}

/// The known challenges of one header, in order.
fn parse(header: &[u8]) -> Vec<Offer> {
    let Some(text) = std::str::from_utf8(header).ok().filter(|text| text.len() <= MAX_HEADER) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut rest = Cursor { text };
    rest.skip_separators();
    while let Some(scheme) = rest.token() {
        let Some(parameters) = rest.parameters() else { break };
        let value = |name: &str| {
            let mut same = parameters.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
            // A repeated parameter could be read differently by other parsers.
            match (same.next(), same.next()) {
                (Some((_, value)), None) => Some(value.clone()),
                _ => None,
            }
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Offer { challenge: Challenge::Basic, scope: None });
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = value("realm").filter(|realm| !realm.is_empty())
        {
            let challenge = Challenge::Bearer { realm, service: value("service") };
            found.push(Offer { challenge, scope: value("scope") });
        }
        rest.skip_separators();
    }
    found
}

struct Cursor<'a> {
    text: &'a str,
}

impl<'a> Cursor<'a> {
    fn skip_spaces(&mut self) {
        self.text = self.text.trim_start_matches([' ', '\t']);
    }

    fn skip_separators(&mut self) {
        self.text = self.text.trim_start_matches([' ', '\t', ',']);
    }

    /// RFC 9110 `token`; `None` if there is none at this position.
    fn token(&mut self) -> Option<&'a str> {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let end = self.text.find(|c| !is_token(c)).unwrap_or(self.text.len());
        let (token, rest) = self.text.split_at(end);
        self.text = rest;
        (!token.is_empty()).then_some(token)
    }

    /// The `name=value` list up to the next scheme or the end; `None` if it is malformed.
    fn parameters(&mut self) -> Option<Vec<(&'a str, String)>> {
        let mut list = Vec::new();
        loop {
            self.skip_separators();
            let before = self.text;
            let Some(name) = self.token() else { return self.text.is_empty().then_some(list) };
            self.skip_spaces();
            let Some(after) = self.text.strip_prefix('=') else {
                // Not a parameter: the name is the next scheme.
                self.text = before;
                return Some(list);
            };
            self.text = after;
            self.skip_spaces();
            let value = if self.text.starts_with('"') { self.quoted()? } else { self.bare() };
            list.push((name, value));
        }
    }

    fn bare(&mut self) -> String {
        // Accepts more than a token: some registries send URLs without quotes.
        let end = self.text.find([',', ' ', '\t', '"']).unwrap_or(self.text.len());
        let (value, rest) = self.text.split_at(end);
        self.text = rest;
        value.to_owned()
    }

    fn quoted(&mut self) -> Option<String> {
        let mut value = String::new();
        let mut characters = self.text.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.text = &self.text[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(characters.next()?.1),
                other => value.push(other),
            }
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    fn chosen(headers: &[&str]) -> Option<Challenge> {
        choose(headers.iter().map(|header| header.as_bytes())).map(|offer| offer.challenge)
    }

    #[test]
    fn challenges_as_registries_send_them() {
        let table: [(&[&str], Option<Challenge>); 9] = [
            (
                &[
                    r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull""#,
                ],
                Some(bearer("https://auth.example/token", Some("registry.example"))),
            ),
            (&[r#"bearer realm="https://a/t""#], Some(bearer("https://a/t", None))),
            (&["Bearer realm=https://a/t,service=s"], Some(bearer("https://a/t", Some("s")))),
            (&[r#"Basic realm="Registry Realm""#], Some(Challenge::Basic)),
            (&["Basic"], Some(Challenge::Basic)),
            (&[r#"Basic realm="x", Bearer realm="https://a/t", service="s""#], Some(bearer("https://a/t", Some("s")))),
            (&[r#"Basic realm="x""#, r#"Bearer realm="https://a/t""#], Some(bearer("https://a/t", None))),
            (&[r#"Negotiate, NTLM, Basic realm="x""#], Some(Challenge::Basic)),
            (
                &[r#"Bearer error="invalid_token" , realm = "https://a/\"t\\" ,"#],
                Some(bearer(r#"https://a/"t\"#, None)),
            ),
        ];
        for (headers, wanted) in table {
            assert_eq!(chosen(headers), wanted, "{headers:?}");
        }
    }

    #[test]
    fn malformed_challenges_are_not_guessed_at() {
        let long = format!(r#"Bearer realm="https://a/{}""#, "a".repeat(64 << 10));
        for header in [
            "",
            ",,,",
            "Bearer",
            "Bearer realm",
            "Bearer realm=",
            r#"Bearer realm="""#,
            r#"Bearer realm="https://a/t"#,
            r#"Bearer realm="https://a/t\"#,
            r#"Bearer realm="https://good/t",realm="https://evil/t""#,
            "=====",
            "\u{e9}\u{e9}",
            &long,
        ] {
            assert_eq!(chosen(&[header]), None, "{header:.60}");
        }
        assert_eq!(choose(std::iter::once(&b"Basic realm=\"\xff\""[..])), None);
    }

    #[test]
    fn only_pulling_from_another_repository_is_taken_from_a_scope() {
        for (scope, wanted) in [
            ("repository:acme/org/app:pull", Some("repository:acme/org/app:pull")),
            ("repository:acme/org/app:pull,push", Some("repository:acme/org/app:pull")),
            ("repository:org/app:pull repository:acme/app:pull", Some("repository:acme/app:pull")),
            ("repository:r.example:5000/app:pull", Some("repository:r.example:5000/app:pull")),
            ("repository:org/app:pull", None),
            ("repository:other/app:push,delete registry:catalog:*", None),
            ("repository:other/app:*", None),
            ("repository::pull", None),
            ("repository:a&b:pull", None),
            ("repository:../x:pull", None),
            ("registry:catalog:pull", None),
            ("pull", None),
            ("", None),
        ] {
            let header = format!(r#"Bearer realm="https://a/t",scope="{scope}""#);
            let offer = choose(std::iter::once(header.as_bytes())).unwrap();
            assert_eq!(offer.scope_beside("repository:org/app:pull").as_deref(), wanted, "{scope}");
        }
        assert_eq!(choose(std::iter::once(&b"Bearer realm=a"[..])).unwrap().scope_beside("repository:a:pull"), None);
    }

    #[test]
    fn text_inside_quotes_is_no_challenge() {
        assert_eq!(chosen(&[r#"Basic realm="x, Bearer realm=https://evil/t""#]), Some(Challenge::Basic));
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_parsed_without_panic(header: Vec<u8>) {
            let _ = parse(&header);
        }

        #[test]
        fn any_text_is_parsed_without_panic(header in r#"(Bearer|Basic|[a-z]{0,3}|=|,| |"|\\|é){0,40}"#) {
            let _ = parse(header.as_bytes());
        }
    }
}
