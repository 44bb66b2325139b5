//! The client against correct, faulty and lying servers.

mod answers;
mod bodies;
mod certificates;
mod downloads;
mod elsewhere;
mod hidden;
mod logins;
mod mirrors;
mod stale;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use base64::Engine as _;
use reqwest::Url;

use super::download::{Cut, Lanes};
use super::patience::tests::FakeClock;
use super::scripted::{Request, Response, Scripted};
use super::*;
use crate::source::Outage;
use crate::source::outage::{OnOutage, WaitStatus};

const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[]}"#;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

struct Bench {
    source: Arc<RegistrySource>,
    clock: Arc<FakeClock>,
    _home: tempfile::TempDir,
}

/// A source for `server`, with a clock that never waits, and these credentials (an auth.json).
fn bench(server: &Scripted, auth: Option<&str>) -> Bench {
    bench_with(server, auth, |_| {})
}

fn bench_with(server: &Scripted, auth: Option<&str>, change: impl FnOnce(&mut RegistryOptions)) -> Bench {
    let home = tempfile::tempdir().unwrap();
    let authfile = home.path().join("auth.json");
    if let Some(auth) = auth {
        std::fs::write(&authfile, auth.replace("HOST", &server.address.to_string())).unwrap();
    }
    let clock = Arc::new(FakeClock::default());
    let around = Surroundings { registry_auth_file: Some(authfile), ..Surroundings::default() };
    let mut options = RegistryOptions { clock: clock.clone(), certs_dirs: Vec::new(), ..RegistryOptions::new(around) };
    change(&mut options);
    let name = format!("{}/team/app:1", server.address).parse().unwrap();
    Bench { source: Arc::new(RegistrySource::new(name, "it".to_owned(), options).unwrap()), clock, _home: home }
}

const ALICE: &str = r#"{"auths": {"HOST": {"username": "alice", "password": "s3cret"}}}"#;

fn basic_of(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn blob(bytes: &[u8]) -> Descriptor {
    let digest = Digest::of(Algorithm::Sha256, bytes);
    Descriptor::new(MediaType::parse("application/vnd.oci.image.layer.v1.tar"), digest, bytes.len() as u64)
}

/// 200,000 bytes that vary by position.
fn content() -> Vec<u8> {
    (0..200_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A correct response to a request for (a range of) `bytes`.
fn serve(request: &Request, bytes: &[u8]) -> Response {
    match request.range() {
        Some((first, last)) => {
            let range = format!("bytes {first}-{last}/{}", bytes.len());
            Response::new(206, &[("Content-Range", &range)], &bytes[first..=last])
        }
        None => Response::new(200, &[], bytes),
    }
}

async fn read(bench: &Bench, blob: &Descriptor, range: Range<u64>) -> Result<Vec<u8>, SourceError> {
    let range = BlobOffset(range.start)..BlobOffset(range.end);
    bench.source.read_at(blob, range).await.map(|bytes| bytes.into_unverified().to_vec())
}

/// A registry that requires a token, and its token server on the same port.
fn token_registry(accepted: impl Fn(&str) -> bool + Send + Sync + 'static) -> Scripted {
    let issued = AtomicUsize::new(0);
    Scripted::start(move |request| {
        if request.target.starts_with("/token") {
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Response::new(200, &[], format!(r#"{{"token":"t{number}","expires_in":100}}"#));
        }
        match request.header("authorization") {
            Some(header) if accepted(header) => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
            _ => challenge(request),
        }
    })
}

fn challenge(request: &Request) -> Response {
    let host = request.header("host").unwrap();
    let wants =
        format!(r#"Bearer realm="http://{host}/token",service="reg",scope="repository:other/repo:push,delete""#);
    Response::new(401, &[("WWW-Authenticate", &wants)], r#"{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}"#)
}

fn tokens_asked(server: &Scripted) -> Vec<Request> {
    server.requests().into_iter().filter(|request| request.target.starts_with("/token")).collect()
}
