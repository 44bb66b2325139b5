//! Access: passwords, a token service, and tickets for redirect targets.
//!
//! Tokens and tickets live for a number of uses or until a test says so, never for a time: what happens
//! when a token runs out in the middle of a read is then a line in a test and not a race.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::http::{Request, form_value};

/// What a registry requires from clients.
#[derive(Clone, Debug, Default)]
pub enum Access {
    /// Nothing.
    #[default]
    Open,
    /// A user and a password with every request (RFC 7617).
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token for the repository, from a token service (distribution, "Token Authentication").
    Bearer {
        /// The service that issues and checks tokens.
        tokens: TokenService,
        /// Where they are issued.
        realm: Realm,
    },
}

/// Where the token service is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Realm {
    /// `/token` of the same registry.
    Here,
    /// This URL: `/token` of another [`Registry`](super::registry::Registry), or a lie.
    At(String),
}

/// Methods for token requests; others get 405.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Methods {
    /// GET, the older way.
    Get,
    /// POST (OAuth 2).
    Post,
    /// Either.
    Both,
}

/// Fields of an answer that contain the token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenField {
    /// `token`
    Token,
    /// `access_token`
    AccessToken,
    /// Both, as most services do.
    Both,
}

/// How a token service behaves.
#[derive(Clone, Debug)]
pub struct TokenRules {
    /// The user who gets tokens; `None` for all.
    pub user: Option<(String, String)>,
    /// A refresh token that is as good as the password (Docker's "identity token").
    pub refresh_token: Option<String>,
    /// By which methods.
    pub methods: Methods,
    /// In which fields.
    pub field: TokenField,
    /// Number of requests after which a token expires.
    pub uses: Option<u32>,
    /// The claimed `expires_in` in seconds; not enforced.
    pub expires_in: Option<u64>,
    /// The `service` of the challenge.
    pub service: String,
}

impl Default for TokenRules {
    fn default() -> Self {
        Self {
            user: None,
            refresh_token: None,
            methods: Methods::Both,
            field: TokenField::Both,
            uses: None,
            expires_in: None,
            service: "loopback".to_owned(),
        }
    }
}

/// Issues and checks opaque tokens. Clones are the same service.
#[derive(Clone)]
pub struct TokenService(Arc<Mutex<TokenState>>);

struct TokenState {
    rules: TokenRules,
    live: HashMap<String, Grant>,
    issued: u64,
}

struct Grant {
    scopes: Vec<String>,
    uses_left: Option<u32>,
}

/// A status, a challenge or none, and a JSON body.
pub(super) struct Verdict {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl TokenService {
    /// A service without issued tokens.
    pub fn new(rules: TokenRules) -> Self {
        Self(Arc::new(Mutex::new(TokenState { rules, live: HashMap::new(), issued: 0 })))
    }

    /// Expires every token issued so far.
    pub fn expire_tokens(&self) {
        self.state().live.clear();
    }

    /// Changes the rules for tokens issued from now on.
    pub fn change(&self, change: impl FnOnce(&mut TokenRules)) {
        change(&mut self.state().rules);
    }

    /// How many tokens were issued.
    pub fn issued(&self) -> u64 {
        self.state().issued
    }

    /// Answers a request to `/token`.
    pub(super) fn answer(&self, request: &Request) -> Verdict {
        let mut state = self.state();
        let wanted = match request.method.as_str() {
            "GET" => state.rules.methods != Methods::Post,
            "POST" => state.rules.methods != Methods::Get,
            _ => false,
        };
        if !wanted {
            return refusal(405, "UNSUPPORTED", "tokens are not given out by this method", Vec::new());
        }
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let post = request.method == "POST";
        let field = |name: &str| if post { form_value(&form, name) } else { request.parameter(name) };
        let known = match &state.rules.user {
            None => true,
            Some((user, password)) => {
                let by_header = basic(request) == Some((user.clone(), password.clone()));
                let by_form = post
                    && field("grant_type").as_deref() == Some("password")
                    && field("username").as_ref() == Some(user)
                    && field("password").as_ref() == Some(password);
                let by_refresh = post
                    && field("grant_type").as_deref() == Some("refresh_token")
                    && state.rules.refresh_token.is_some()
                    && field("refresh_token") == state.rules.refresh_token;
                by_header || by_form || by_refresh
            }
        };
        if !known {
            return refusal(401, "UNAUTHORIZED", "who are you", Vec::new());
        }
        let scopes = field("scope").unwrap_or_default().split(' ').map(str::to_owned).collect();
        state.issued += 1;
        let token = format!("opaque.{:06}", state.issued);
        let uses_left = state.rules.uses;
        state.live.insert(token.clone(), Grant { scopes, uses_left });
        let mut body = serde_json::Map::new();
        if state.rules.field != TokenField::AccessToken {
            body.insert("token".to_owned(), json!(token));
        }
        if state.rules.field != TokenField::Token {
            body.insert("access_token".to_owned(), json!(token));
        }
        if let Some(seconds) = state.rules.expires_in {
            body.insert("expires_in".to_owned(), json!(seconds));
        }
        Verdict { status: 200, headers: Vec::new(), body: serde_json::Value::Object(body).to_string() }
    }

    /// Uses a token once: `Err` has the `error` of the challenge.
    fn spend(&self, request: &Request, repository: Option<&str>) -> Result<(), Option<&'static str>> {
        let Some(token) = request.header("authorization").and_then(|v| v.strip_prefix("Bearer ")) else {
            return Err(None);
        };
        let mut state = self.state();
        let grant = state.live.get_mut(token).ok_or(Some("invalid_token"))?;
        let allowed = |name| grant.scopes.iter().any(|scope| scope_allows(scope, name, needed(request)));
        if !repository.is_none_or(allowed) {
            return Err(Some("insufficient_scope"));
        }
        match &mut grant.uses_left {
            None => {}
            Some(0) => return Err(Some("invalid_token")),
            Some(left) => *left -= 1,
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, TokenState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TokenService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "TokenService(issued: {}, live: {})", state.issued, state.live.len())
    }
}

impl Access {
    /// `None` if the request may pass; `host` is the registry's own `ADDRESS:PORT`.
    pub(super) fn refuse(&self, request: &Request, repository: Option<&str>, host: &str) -> Option<Verdict> {
        match self {
            Self::Open => None,
            Self::Basic { user, password } => {
                if basic(request) == Some((user.clone(), password.clone())) {
                    return None;
                }
                let challenge = "Basic realm=\"loopback\"".to_owned();
                Some(refusal(401, "UNAUTHORIZED", "authentication required", vec![challenge]))
            }
            Self::Bearer { tokens, realm } => {
                let error = tokens.spend(request, repository).err()?;
                let realm = match realm {
                    Realm::Here => format!("http://{host}/token"),
                    Realm::At(url) => url.clone(),
                };
                let service = tokens.state().rules.service.clone();
                let mut challenge = format!("Bearer realm=\"{realm}\",service=\"{service}\"");
                if let Some(name) = repository {
                    let rights = if needed(request) == "push" { "pull,push" } else { "pull" };
                    challenge.push_str(&format!(",scope=\"repository:{name}:{rights}\""));
                }
                if let Some(error) = error {
                    challenge.push_str(&format!(",error=\"{error}\""));
                }
                Some(refusal(401, "UNAUTHORIZED", "authentication required", vec![challenge]))
            }
        }
    }
}

/// Tickets: the part of a redirect's URL that expires. Clones share their tickets.
#[derive(Clone)]
pub struct Tickets(Arc<Mutex<TicketState>>);

struct TicketState {
    uses: u32,
    issued: u64,
    live: HashMap<String, u32>,
}

impl Tickets {
    /// Tickets that are valid for this many requests each.
    pub fn new(uses: u32) -> Self {
        Self(Arc::new(Mutex::new(TicketState { uses, issued: 0, live: HashMap::new() })))
    }

    /// Expires every ticket issued so far.
    pub fn expire(&self) {
        self.state().live.clear();
    }

    /// How many were issued.
    pub fn issued(&self) -> u64 {
        self.state().issued
    }

    pub(super) fn issue(&self) -> String {
        let mut state = self.state();
        state.issued += 1;
        let ticket = format!("ticket-{}", state.issued);
        let uses = state.uses;
        state.live.insert(ticket.clone(), uses);
        ticket
    }

    pub(super) fn admit(&self, request: &Request) -> bool {
        let Some(ticket) = request.parameter(TICKET_PARAMETER) else { return false };
        match self.state().live.get_mut(&ticket) {
            None | Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, TicketState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "Tickets(issued: {}, live: {})", state.issued, state.live.len())
    }
}

/// The query parameter that carries a ticket.
pub(super) const TICKET_PARAMETER: &str = "ticket";

/// The error document of distribution-spec, "Error Codes".
pub(super) fn error_document(code: &str, message: &str) -> String {
    json!({ "errors": [{ "code": code, "message": message }] }).to_string()
}

fn refusal(status: u16, code: &str, message: &str, challenges: Vec<String>) -> Verdict {
    let headers = challenges.into_iter().map(|value| ("WWW-Authenticate".to_owned(), value)).collect();
    Verdict { status, headers, body: error_document(code, message) }
}

fn basic(request: &Request) -> Option<(String, String)> {
    let encoded = request.header("authorization")?.strip_prefix("Basic ")?;
    let text = String::from_utf8(BASE64.decode(encoded).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// What a request has to be allowed to do.
fn needed(request: &Request) -> &'static str {
    if matches!(request.method.as_str(), "GET" | "HEAD") { "pull" } else { "push" }
}

/// Whether `repository:NAME:ACTIONS` allows `needed` for `name`; the name may hold colons of a port.
fn scope_allows(scope: &str, name: &str, needed: &str) -> bool {
    let Some((resource, actions)) = scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':')) else {
        return false;
    };
    resource == name && actions.split(',').any(|action| action == needed || action == "*")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn request(method: &str, query: &str, authorization: Option<&str>, body: &str) -> Request {
        Request {
            method: method.to_owned(),
            path: "/".to_owned(),
            query: query.to_owned(),
            headers: authorization.map(|v| ("Authorization".to_owned(), v.to_owned())).into_iter().collect(),
            body: body.as_bytes().to_vec(),
        }
    }

    fn token_of(verdict: &Verdict) -> String {
        let body: serde_json::Value = serde_json::from_str(&verdict.body).unwrap();
        format!("Bearer {}", body["token"].as_str().unwrap())
    }

    const SCOPE: &str = "service=s&scope=repository:a/b:pull";

    #[test]
    fn a_token_opens_its_repository_and_no_other() {
        let tokens = TokenService::new(TokenRules::default());
        let access = Access::Bearer { tokens: tokens.clone(), realm: Realm::Here };
        let refused = access.refuse(&request("GET", "", None, ""), Some("a/b"), "h:1").unwrap();
        assert_eq!(
            refused.headers[0].1,
            "Bearer realm=\"http://h:1/token\",service=\"loopback\",scope=\"repository:a/b:pull\""
        );
        let bearer = token_of(&tokens.answer(&request("GET", SCOPE, None, "")));
        let with = request("GET", "", Some(&bearer), "");
        assert!(access.refuse(&with, Some("a/b"), "h:1").is_none());
        let other = access.refuse(&with, Some("a/c"), "h:1").unwrap();
        assert!(other.headers[0].1.ends_with("error=\"insufficient_scope\""));
        tokens.expire_tokens();
        assert!(access.refuse(&with, Some("a/b"), "h:1").is_some());
    }

    #[test]
    fn a_token_is_used_up() {
        let tokens = TokenService::new(TokenRules { uses: Some(2), ..TokenRules::default() });
        let access = Access::Bearer { tokens: tokens.clone(), realm: Realm::Here };
        let bearer = token_of(&tokens.answer(&request("GET", SCOPE, None, "")));
        let with = request("GET", "", Some(&bearer), "");
        let passed: Vec<bool> = (0..3).map(|_| access.refuse(&with, Some("a/b"), "h").is_none()).collect();
        assert_eq!(passed, [true, true, false]);
        assert_eq!(tokens.issued(), 1);
    }

    #[test]
    fn credentials_count_in_header_form_and_as_refresh_token() {
        let tokens = TokenService::new(TokenRules {
            user: Some(("alice".to_owned(), "s3cret".to_owned())),
            refresh_token: Some("again".to_owned()),
            ..TokenRules::default()
        });
        let right = format!("Basic {}", BASE64.encode("alice:s3cret"));
        let wrong = format!("Basic {}", BASE64.encode("alice:other"));
        let table = [
            (request("GET", SCOPE, None, ""), 401),
            (request("GET", SCOPE, Some(&wrong), ""), 401),
            (request("GET", SCOPE, Some(&right), ""), 200),
            (request("POST", "", None, "grant_type=password&username=alice&password=s3cret"), 200),
            (request("POST", "", None, "grant_type=password&username=alice&password=x"), 401),
            (request("POST", "", None, "grant_type=refresh_token&refresh_token=again"), 200),
            (request("POST", "", None, "grant_type=refresh_token&refresh_token=x"), 401),
        ];
        for (request, wanted) in table {
            assert_eq!(tokens.answer(&request).status, wanted, "{request:?}");
        }
        tokens.change(|rules| rules.methods = Methods::Get);
        assert_eq!(tokens.answer(&request("POST", "", Some(&right), "")).status, 405);
    }

    #[test]
    fn tickets_expire_by_use_and_by_word() {
        let tickets = Tickets::new(1);
        let with = |ticket: &str| request("GET", &format!("ticket={ticket}"), None, "");
        let first = tickets.issue();
        assert!(tickets.admit(&with(&first)));
        assert!(!tickets.admit(&with(&first)));
        let second = tickets.issue();
        tickets.expire();
        assert!(!tickets.admit(&with(&second)));
        assert!(!tickets.admit(&request("GET", "", None, "")));
    }
}
