//! `peelfs web`: one page that shows what mounts fetch and why, and who waits.
//!
//! The page itself has no secret, and no resource beside it. What it shows is asked for with a token, which is in the part of
//! the printed address behind `#`: browsers send that to no server and into no log. The page puts it into a header, which
//! no page of another site can do. No cookie is set: other servers on loopback, of other users, would receive it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::activity::JsonActivity;
use super::look::out::json_name;
use super::text;
use super::watch::{Mount, Snapshot};
use peelfs::host::http::{self, Parts, Response, Server, StatusCode, header, parse_address};
use peelfs::host::process::{self, Purpose};
use peelfs::host::report::{Code, Report};
use peelfs::host::{ask, metrics, status};

/// `peelfs web`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WebArgs {
    /// Where to listen: a port alone is one of loopback, and 0 a free one
    ///
    /// Any other address is open to all who can reach it and know the token, without encryption.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", value_parser = parse_address)]
    pub listen: SocketAddr,
}

pub(super) fn run(args: &WebArgs) -> Result<(), Report> {
    let failed = |what: &str, error: &std::io::Error| Report::new(Code::Failure, format!("cannot {what}: {error}"));
    // What is wrong with the directory of published state is told now.
    status::directory()?;
    let mut ends = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|error| failed("listen to signals", &error))?;
    let token = token().map_err(|error| failed("make a token", &error))?;
    let web = Arc::new(Web { token: token.clone(), page: Page::new(), last: Mutex::default() });
    let runtime = process::runtime(Purpose::Starting)?;
    let server = runtime.block_on(Server::bind(args.listen, Arc::new(move |request| web.answer(request))));
    let server = server.map_err(|error| {
        Report::new(Code::Failure, format!("cannot listen on {}: {error}", args.listen))
            .hint("name another port with `--listen`")
    })?;
    let address = server.address();
    if !address.ip().is_loopback() {
        eprintln!("note: others who can reach {address} need only the token, which is sent without encryption");
    }
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "http://{address}/#token={token}").and_then(|()| out.flush());
    drop(out);
    if let Err(error) = written {
        return text::output_ended(&error);
    }
    ends.forever().next();
    runtime.shutdown_background();
    Ok(())
}

/// 128 random bits, which no program of another user can guess.
fn token() -> std::io::Result<String> {
    let mut random = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(text::hex(&random))
}

struct Web {
    token: String,
    page: Page,
    /// What was told last: several open pages cost as much as one.
    last: Mutex<Option<(Instant, Vec<u8>)>>,
}

/// The page, and what its browser may do.
struct Page {
    text: String,
    policy: String,
}

impl Web {
    fn answer(&self, request: &Parts) -> Response {
        match request.uri.path() {
            "/" => self.page.response(),
            "/favicon.ico" => http::response(StatusCode::OK, "image/svg+xml", ICON),
            "/data" | "/metrics" if !self.is_allowed(request) => http::plain(
                StatusCode::UNAUTHORIZED,
                "this needs the token that `peelfs web` has printed, as `Authorization: Bearer TOKEN`",
            ),
            "/data" => match self.data() {
                Ok(data) => http::response(StatusCode::OK, "application/json", data),
                Err(report) => http::plain(StatusCode::INTERNAL_SERVER_ERROR, &report.message),
            },
            "/metrics" => match status::directory() {
                Ok(directory) => {
                    let told = ask::all(status::all(&directory), 0).into_iter();
                    let told = told.filter_map(|(state, activity)| Some((state, activity.ok()?))).collect();
                    http::response(StatusCode::OK, metrics::CONTENT_TYPE, metrics::text(told))
                }
                Err(error) => http::plain(StatusCode::INTERNAL_SERVER_ERROR, &peelfs::image::chain(&error)),
            },
            _ => http::not_found(),
        }
    }

    fn is_allowed(&self, request: &Parts) -> bool {
        let given =
            request.headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        // The time it takes does not say how much of it is right.
        given.is_some_and(|given| {
            let differs = given.iter().zip(self.token.as_bytes()).fold(0, |differs, (a, b)| differs | (a ^ b));
            given.len() == self.token.len() && differs == 0
        })
    }

    /// What all mounts do, as JSON.
    fn data(&self) -> Result<Vec<u8>, Report> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((taken, data)) = &*last
            && taken.elapsed() < FRESH
        {
            return Ok(data.clone());
        }
        let snapshot = Snapshot::take(FILES, &[], None)?;
        let mounts = snapshot.mounts.iter().map(JsonMount::from).collect();
        let all = Json { version: env!("CARGO_PKG_VERSION"), mounts };
        let data = serde_json::to_vec(&all).expect("plain data");
        *last = Some((Instant::now(), data.clone()));
        Ok(data)
    }
}

impl Page {
    fn new() -> Self {
        let (style, script) = (include_str!("page.css"), include_str!("page.js"));
        let text = include_str!("page.html").replace("/*STYLE*/", style).replace("/*SCRIPT*/", script);
        let digest = |text: &str| base64(&Sha256::digest(text));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            digest(style),
            digest(script)
        );
        Self { text, policy }
    }

    fn response(&self) -> Response {
        let mut response = http::response(StatusCode::OK, "text/html; charset=utf-8", self.text.clone());
        let headers = response.headers_mut();
        let policy = self.policy.parse().expect("digests and words");
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        headers.insert(header::REFERRER_POLICY, header::HeaderValue::from_static("no-referrer"));
        response
    }
}

/// Base64 of a digest, as policies have it.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let each = bytes.chunks(3).flat_map(|chunk| {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        (0..4).map(
            move |at| if at > chunk.len() { '=' } else { char::from(LETTERS[(bits >> (18 - 6 * at) & 63) as usize]) },
        )
    });
    each.collect()
}

#[derive(Serialize)]
struct Json<'a> {
    version: &'a str,
    mounts: Vec<JsonMount<'a>>,
}

#[derive(Serialize)]
struct JsonMount<'a> {
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_hex: Option<String>,
    reference: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    takeovers: Option<u32>,
    /// Why there is no activity.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activity: Option<JsonActivity<'a>>,
}

impl<'a> From<&'a Mount> for JsonMount<'a> {
    fn from(mount: &'a Mount) -> Self {
        let (at, at_hex) = json_name(std::os::unix::ffi::OsStrExt::as_bytes(mount.at.as_os_str()));
        let state = mount.state.as_ref();
        Self {
            at,
            at_hex,
            reference: &mount.reference,
            pid: mount.pid(),
            since: state.map(|state| state.since),
            takeovers: state.map(|state| state.takeovers),
            unknown: mount.activity.as_ref().err().map(String::as_str),
            activity: mount.activity.as_ref().ok().map(JsonActivity::from),
        }
    }
}

/// Files of a mount that are told.
const FILES: u32 = 400;
/// What was told this short a time ago is told again.
const FRESH: Duration = Duration::from_millis(500);
const ICON: &str = include_str!("icon.svg");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_in_base64() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("\u{ff}ob", "w79vYg==")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    /// Nothing is loaded from elsewhere, and nothing of an image becomes markup.
    #[test]
    fn the_page_is_alone() {
        let text = Page::new().text;
        for elsewhere in
            ["http://", "https://", "@import", "innerHTML", "insertAdjacentHTML", "document.write", "eval("]
        {
            let found =
                text.match_indices(elsewhere).filter(|(at, _)| !text[*at..].starts_with("http://www.w3.org/2000/svg"));
            assert_eq!(found.count(), 0, "{elsewhere}");
        }
        assert!(!text.contains("/*STYLE*/") && !text.contains("/*SCRIPT*/"));
    }
}
