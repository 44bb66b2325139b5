//! The client against servers that behave, misbehave and lie.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use base64::Engine as _;

use super::download::Lanes;
use super::patience::tests::FakeClock;
use super::scripted::{Asked, Said, Scripted};
use super::*;

const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[]}"#;
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

struct Bench {
    source: Arc<RegistrySource>,
    clock: Arc<FakeClock>,
    _home: tempfile::TempDir,
}

/// A source for `server`, with a clock that never waits and these credentials (as an auth.json).
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
    descriptor(MediaType::parse("application/vnd.oci.image.layer.v1.tar"), digest, bytes.len() as u64)
}

/// 200,000 bytes that differ from place to place.
fn content() -> Vec<u8> {
    (0..200_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// An honest answer to a request for (a range of) `bytes`.
fn serve(asked: &Asked, bytes: &[u8]) -> Said {
    match asked.range() {
        Some((first, last)) => {
            let range = format!("bytes {first}-{last}/{}", bytes.len());
            Said::new(206, &[("Content-Range", &range)], &bytes[first..=last])
        }
        None => Said::new(200, &[], bytes),
    }
}

async fn read(bench: &Bench, blob: &Descriptor, range: Range<u64>) -> Result<Vec<u8>, SourceError> {
    let range = BlobOffset(range.start)..BlobOffset(range.end);
    bench.source.read_at(blob, range).await.map(|bytes| bytes.into_unverified().to_vec())
}

/// A registry that wants a token, and its token server on the same port.
fn token_registry(accepted: impl Fn(&str) -> bool + Send + Sync + 'static) -> Scripted {
    let issued = AtomicUsize::new(0);
    Scripted::start(move |asked| {
        if asked.target.starts_with("/token") {
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Said::new(200, &[], format!(r#"{{"token":"t{number}","expires_in":100}}"#));
        }
        match asked.header("authorization") {
            Some(header) if accepted(header) => Said::new(200, &[("Content-Type", OCI)], MANIFEST),
            _ => challenge(asked),
        }
    })
}

fn challenge(asked: &Asked) -> Said {
    let host = asked.header("host").unwrap();
    let wants =
        format!(r#"Bearer realm="http://{host}/token",service="reg",scope="repository:other/repo:push,delete""#);
    Said::new(401, &[("WWW-Authenticate", &wants)], r#"{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}"#)
}

fn tokens_asked(server: &Scripted) -> Vec<Asked> {
    server.asked().into_iter().filter(|asked| asked.target.starts_with("/token")).collect()
}

#[tokio::test]
async fn a_token_is_fetched_and_kept() {
    let server = token_registry(|header| header == "Bearer t1");
    let bench = bench(&server, Some(ALICE));
    let (descriptor, bytes) = bench.source.root().await.unwrap();
    assert_eq!(bytes.into_unverified(), MANIFEST);
    assert_eq!(descriptor.digest, Digest::of(Algorithm::Sha256, MANIFEST.as_bytes()));
    bench.source.root().await.unwrap();
    let asked = server.asked();
    let targets: Vec<&str> = asked.iter().map(|asked| asked.target.as_str()).collect();
    let token = "/token?account=alice&service=reg&scope=repository%3Ateam%2Fapp%3Apull";
    assert_eq!(targets, ["/v2/team/app/manifests/1", token, "/v2/team/app/manifests/1", "/v2/team/app/manifests/1"]);
    assert_eq!(asked[1].header("authorization"), Some(&*basic_of("alice", "s3cret")));
    for media_type in MediaType::MANIFESTS {
        assert!(asked[0].header("accept").unwrap().contains(media_type));
    }
    assert!(asked.iter().all(|asked| asked.header("accept-encoding") == Some("identity")));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn without_credentials_the_token_is_asked_for_anonymously() {
    let server = token_registry(|header| header == "Bearer t1");
    let bench = bench(&server, None);
    bench.source.root().await.unwrap();
    assert_eq!(tokens_asked(&server)[0].header("authorization"), None);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let server = token_registry(|header| header.starts_with("Bearer t"));
    let bench = bench(&server, None);
    bench.source.root().await.unwrap();
    bench.clock.advance(Duration::from_secs(79));
    bench.source.root().await.unwrap();
    assert_eq!(tokens_asked(&server).len(), 1);
    bench.clock.advance(Duration::from_secs(2));
    bench.source.root().await.unwrap();
    assert_eq!(tokens_asked(&server).len(), 2);
    let refused = server.asked().iter().filter(|asked| asked.header("authorization").is_none()).count();
    // The first request and the two for tokens; none came back with 401 because a token had ended.
    assert_eq!(refused, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_readers_renew_once() {
    let valid = Arc::new(Mutex::new("Bearer t1".to_owned()));
    let check = valid.clone();
    let server = token_registry(move |header| *check.lock().unwrap() == header);
    let bench = bench_with(&server, None, |options| options.connections = 50);
    bench.source.root().await.unwrap();
    // The registry forgets the token; all find out together.
    *valid.lock().unwrap() = "Bearer t2".to_owned();
    let readers: Vec<_> = (0..50)
        .map(|_| {
            let source = bench.source.clone();
            tokio::spawn(async move { source.root().await.map(drop) })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    assert_eq!(tokens_asked(&server).len(), 2);
}

#[tokio::test]
async fn fifty_readers_share_one_failed_login() {
    let server = Scripted::start(|_| Said::new(401, &[], r#"{"details":"wrong password"}"#));
    let bench = bench(&server, Some(ALICE));
    let (authorizer, transport) = (&bench.source.client.authorizer, &bench.source.client.transport);
    let registry = Origin::of(&Url::parse(&server.url("/")).unwrap()).unwrap();
    let challenge = challenge::Challenge::Bearer { realm: server.url("/token"), service: None };
    let refused = authorizer.grant(transport).await.unwrap();
    // Joined on one thread: each is waiting before the first answer is looked at.
    let readers = (0..50).map(|_| {
        let challenge = Some((registry.clone(), challenge.clone()));
        authorizer.renew(transport, &refused, challenge, auth::Refused::OldToken)
    });
    for result in futures_util::future::join_all(readers).await {
        assert!(matches!(result, Err(auth::AuthError::Refused { .. })), "{result:?}");
    }
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_refused_login_says_who_and_what() {
    let server = Scripted::start(|asked| {
        if asked.target.starts_with("/token") {
            return Said::new(401, &[], r#"{"details":"incorrect username or password"}"#);
        }
        challenge(asked)
    });
    let bench = bench(&server, Some(ALICE));
    let Err(SourceError::Denied { said, tried, .. }) = bench.source.root().await else { panic!() };
    assert!(said.contains("401") && said.contains("incorrect username or password"), "{said}");
    assert!(tried.starts_with("user `alice` from "), "{tried}");
    assert!(!said.contains("s3cret") && !tried.contains("s3cret"));
}

#[tokio::test]
async fn a_fresh_token_that_is_refused_is_not_fetched_again_with_the_same_credentials() {
    let server = token_registry(|_| false);
    let bench = bench(&server, Some(ALICE));
    let Err(SourceError::Denied { said, .. }) = bench.source.root().await else { panic!() };
    assert!(said.contains("UNAUTHORIZED: who?"), "{said}");
    assert_eq!(tokens_asked(&server).len(), 1);
}

#[tokio::test]
async fn credentials_are_read_again_when_a_fresh_token_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("auth.json");
    let (path, logins) = (file.clone(), AtomicUsize::new(0));
    let server = Scripted::start(move |asked| {
        let host = asked.header("host").unwrap();
        if asked.target.starts_with("/token") {
            let user = if logins.fetch_add(1, Ordering::SeqCst) == 0 { "old" } else { "new" };
            assert_eq!(asked.header("authorization").unwrap(), basic_of(user, "p"));
            // Meanwhile the user logs in anew.
            std::fs::write(&path, format!(r#"{{"auths": {{"{host}": {{"username": "new", "password": "p"}}}}}}"#))
                .unwrap();
            return Said::new(200, &[], format!(r#"{{"token":"{user}"}}"#));
        }
        match asked.header("authorization") {
            Some("Bearer new") => Said::new(200, &[("Content-Type", OCI)], MANIFEST),
            _ => challenge(asked),
        }
    });
    let host = server.address;
    std::fs::write(&file, format!(r#"{{"auths": {{"{host}": {{"username": "old", "password": "p"}}}}}}"#)).unwrap();
    let bench = bench_with(&server, None, |options| options.authfile = Some(file));
    bench.source.root().await.unwrap();
}

#[tokio::test]
async fn basic_is_answered_with_the_password_itself() {
    let server = Scripted::start(|asked| match asked.header("authorization") {
        Some(header) if header == basic_of("alice", "s3cret") => Said::new(200, &[("Content-Type", OCI)], MANIFEST),
        _ => Said::new(401, &[("WWW-Authenticate", r#"Basic realm="r""#)], ""),
    });
    bench(&server, Some(ALICE)).source.root().await.unwrap();
    let Err(SourceError::Denied { tried, .. }) = bench(&server, None).source.root().await else { panic!() };
    assert!(tried.starts_with("anonymous"), "{tried}");
    let wrong = ALICE.replace("s3cret", "wrong");
    let before = server.asked().len();
    let result = bench(&server, Some(&wrong)).source.root().await;
    assert!(matches!(result, Err(SourceError::Denied { .. })));
    assert_eq!(server.asked().len() - before, 2);
}

#[tokio::test]
async fn a_token_server_that_only_knows_post_gets_a_form() {
    for refusal in [400, 404, 405, 501] {
        let server = Scripted::start(move |asked| match (asked.method.as_str(), asked.header("authorization")) {
            ("POST", None) => Said::new(200, &[], r#"{"access_token":"t"}"#),
            (_, _) if asked.target.starts_with("/token") => Said::new(refusal, &[], ""),
            (_, Some("Bearer t")) => Said::new(200, &[("Content-Type", OCI)], MANIFEST),
            _ => challenge(asked),
        });
        bench(&server, Some(ALICE)).source.root().await.unwrap();
        let form = &tokens_asked(&server)[1];
        assert_eq!(form.target, "/token");
        assert_eq!(
            form.body,
            "grant_type=password&username=alice&password=s3cret&service=reg\
             &scope=repository%3Ateam%2Fapp%3Apull&client_id=peelfs"
        );
    }
}

#[tokio::test]
async fn an_identity_token_is_a_refresh_token() {
    let server = Scripted::start(|asked| match asked.header("authorization") {
        _ if asked.body.starts_with("grant_type=refresh_token&refresh_token=idt&") => {
            Said::new(200, &[], r#"{"access_token":"t"}"#)
        }
        Some("Bearer t") => Said::new(200, &[("Content-Type", OCI)], MANIFEST),
        _ => challenge(asked),
    });
    let auth = r#"{"auths": {"HOST": {"auth": "eDp5", "identitytoken": "idt"}}}"#;
    bench(&server, Some(auth)).source.root().await.unwrap();
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_of_a_blob_is_renewed() {
    let bytes = content();
    let (served, gets) = (bytes.clone(), AtomicUsize::new(0));
    let tokens = AtomicUsize::new(0);
    let server = Scripted::start(move |asked| {
        if asked.target.starts_with("/token") {
            let number = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            return Said::new(200, &[], format!(r#"{{"token":"t{number}"}}"#));
        }
        match (asked.header("authorization"), gets.load(Ordering::SeqCst)) {
            (Some("Bearer t1"), 0) => {
                gets.store(1, Ordering::SeqCst);
                Said::head(200, &[("Content-Length", "200000")]).and(&served[..70_000]).then_hang_up()
            }
            (Some("Bearer t2"), 1) => serve(asked, &served),
            _ => challenge(asked),
        }
    });
    let bench = bench(&server, None);
    assert_eq!(read(&bench, &blob(&bytes), 0..200_000).await.unwrap(), bytes);
    assert_eq!(server.asked().last().unwrap().range(), Some((70_000, 199_999)));
}

#[tokio::test]
async fn a_body_that_is_cut_is_taken_up_at_the_last_good_byte() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |asked| {
        let (first, last) = asked.range().unwrap_or((0, served.len() - 1));
        // Never more than 70,000 bytes at a time, of whatever was promised.
        let cut = (last + 1).min(first + 70_000);
        let length = (last + 1 - first).to_string();
        let range = format!("bytes {first}-{last}/{}", served.len());
        let headers = [("Content-Length", &*length), ("Content-Range", &*range)];
        let status = if asked.range().is_some() { 206 } else { 200 };
        Said::head(status, &headers).and(&served[first..cut]).then_hang_up()
    });
    let bench = bench(&server, None);
    assert_eq!(read(&bench, &blob(&bytes), 0..200_000).await.unwrap(), bytes);
    let ranges: Vec<_> = server.asked().iter().map(Asked::range).collect();
    assert_eq!(ranges, [None, Some((70_000, 199_999)), Some((140_000, 199_999))]);
    assert_eq!(bench.source.stats().resumptions, 2);
    assert_eq!(bench.source.stats().bytes_received, 200_000);
    assert_eq!(read(&bench, &blob(&bytes), 5..9).await.unwrap(), bytes[5..9]);
}

#[tokio::test]
async fn a_server_that_always_hangs_up_is_given_up() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |asked| {
        let (first, last) = asked.range().unwrap_or((0, served.len() - 1));
        let range = format!("bytes {first}-{last}/{}", served.len());
        let status = if asked.range().is_some() { 206 } else { 200 };
        Said::head(status, &[("Content-Range", &range)]).and(&served[first..first + 10]).then_hang_up()
    });
    let bench = bench(&server, None);
    let Err(SourceError::Unreachable { why, .. }) = read(&bench, &blob(&bytes), 0..200_000).await else { panic!() };
    assert!(why.contains("tried 6 times"), "{why}");
    assert_eq!(server.asked().len(), 6);
}

#[tokio::test]
async fn a_slow_reader_loses_no_patience() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |asked| match asked.range() {
        None => Said::head(200, &[("Content-Length", "200000")]).and(&served[..1000]).then_hang_up(),
        Some(_) => serve(asked, &served),
    });
    let bench = bench(&server, None);
    let mut stream = bench.source.stream(&blob(&bytes), BlobOffset(0)..BlobOffset(200_000)).await.unwrap();
    let mut all = stream.next().await.unwrap().unwrap().into_unverified().to_vec();
    bench.clock.advance(Duration::from_secs(24 * 3600));
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece.unwrap().into_unverified());
    }
    assert_eq!(all, bytes);
}

#[tokio::test]
async fn a_server_that_falls_silent_is_asked_again() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |asked| match asked.range() {
        None => Said::head(200, &[("Content-Length", "200000")]).and(&served[..1000]).then_hang(),
        Some(_) => serve(asked, &served),
    });
    let bench = bench_with(&server, None, |options| options.deadlines.stall = Duration::from_millis(250));
    assert_eq!(read(&bench, &blob(&bytes), 0..200_000).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_server_that_never_answers_is_reported() {
    let server = Scripted::start(|_| Said::head(200, &[]).then_hang());
    let bench = bench_with(&server, None, |options| options.deadlines.stall = Duration::from_millis(10));
    let Err(SourceError::Unreachable { why, .. }) = bench.source.root().await else { panic!() };
    assert!(why.contains("stopped sending"), "{why}");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |_| Said::new(200, &[], &served));
    let bench = bench(&server, None);
    assert!(bench.source.serves_ranges());
    assert_eq!(read(&bench, &blob(&bytes), 100_000..100_010).await.unwrap(), bytes[100_000..100_010]);
    assert!(!bench.source.serves_ranges());
}

/// As [`bench`], with ranges beyond 40,000 bytes cut, and `lanes` connections beyond the first.
fn cutting(server: &Scripted, lanes: u32) -> Bench {
    let mut bench = bench(server, None);
    let source = Arc::get_mut(&mut bench.source).unwrap();
    let client = Arc::get_mut(&mut source.client).unwrap();
    client.cut = Cut { alone: 20_000, beside: 7_000, near: 3_000 };
    client.lanes = Mutex::new(Lanes::default());
    client.lanes.lock().unwrap().allow(lanes);
    bench
}

/// First and past-the-last byte of every range asked for, sorted.
fn ranges_asked(server: &Scripted) -> Vec<(usize, usize)> {
    let mut ranges: Vec<_> = server.asked().iter().map(|asked| asked.range().unwrap()).collect();
    ranges.sort_unstable();
    ranges.into_iter().map(|(first, last)| (first, last + 1)).collect()
}

#[tokio::test]
async fn a_large_blob_comes_in_parts_and_no_byte_twice() {
    for lanes in [0, 1, 4] {
        let bytes = content();
        let served = bytes.clone();
        let server = Scripted::start(move |asked| serve(asked, &served));
        let bench = cutting(&server, lanes);
        assert_eq!(read(&bench, &blob(&bytes), 5..200_000).await.unwrap(), bytes[5..], "{lanes}");
        let asked = ranges_asked(&server);
        assert!(asked.windows(2).all(|pair| pair[0].1 == pair[1].0), "{lanes}: {asked:?}");
        let first = if lanes == 0 { 20_005 } else { 7_005 };
        assert_eq!((asked[0], asked.last().unwrap().1), ((5, first), 200_000));
        assert_eq!(bench.source.stats().bytes_received, 199_995);
        assert_eq!(asked.len(), if lanes == 0 { 10 } else { 29 }, "{lanes}: {asked:?}");
    }
}

#[tokio::test]
async fn a_server_that_ignores_ranges_from_some_point_on_sends_the_rest_as_one() {
    for lanes in [0, 4] {
        let bytes = content();
        let served = bytes.clone();
        let asked_before = AtomicUsize::new(0);
        let server = Scripted::start(move |asked| match asked_before.fetch_add(1, Ordering::Relaxed) {
            0..2 => serve(asked, &served),
            _ => Said::new(200, &[], &served),
        });
        let bench = cutting(&server, lanes);
        assert_eq!(read(&bench, &blob(&bytes), 5..200_000).await.unwrap(), bytes[5..], "{lanes}");
        // Two parts, those that were under way when the first answer came without its range, and the rest.
        let asked = ranges_asked(&server);
        assert!(asked.len() <= if lanes == 0 { 4 } else { 12 }, "{lanes}: {asked:?}");
        assert_eq!(asked.last().unwrap().1, 200_000);
    }
}

/// The first part's body comes to a halt until its rest was asked for elsewhere; then it goes on as far as
/// `until`, and ends.
async fn a_slow_first_part(until: usize) -> (Bench, Vec<(usize, usize)>) {
    let bytes = content();
    let served = bytes.clone();
    let (asked_elsewhere, asks) = std::sync::mpsc::channel();
    let asks = Arc::new(Mutex::new(asks));
    let server = Scripted::start(move |asked| match asked.range() {
        Some((0, last)) => {
            let range = format!("bytes 0-{last}/{}", served.len());
            let length = (last + 1).to_string();
            let head = Said::head(206, &[("Content-Range", &range), ("Content-Length", &length)]);
            let asks = asks.clone();
            let wait = move || {
                for _ in 0..2 {
                    asks.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap();
                }
            };
            head.and(&served[..1000]).then_last(wait, &served[1000..until])
        }
        range => {
            if range.unwrap().0 < 20_000 {
                asked_elsewhere.send(()).unwrap();
            }
            serve(asked, &served)
        }
    });
    let bench = cutting(&server, 0);
    let mut stream = bench.source.stream(&blob(&bytes), BlobOffset(0)..BlobOffset(200_000)).await.unwrap();
    let mut got = Vec::new();
    while let Some(piece) = stream.next().await {
        got.extend_from_slice(&piece.unwrap().into_unverified());
        if got.len() == 1000 {
            bench.source.client.lanes.lock().unwrap().allow(2);
        }
    }
    assert!(got == bytes);
    (bench, ranges_asked(&server))
}

#[tokio::test]
async fn a_long_part_is_shortened_for_connections_beside_it_and_its_rest_asked_for_once() {
    let (_, asked) = a_slow_first_part(20_000).await;
    assert_eq!(asked[..4], [(0, 20_000), (8_000, 15_000), (15_000, 20_000), (20_000, 27_000)]);
    assert!(asked[1..].windows(2).all(|pair| pair[0].1 == pair[1].0), "{asked:?}");
}

#[tokio::test]
async fn a_shortened_part_that_is_cut_is_taken_up_where_it_ended() {
    let (bench, asked) = a_slow_first_part(3_000).await;
    assert_eq!(bench.source.stats().resumptions, 1);
    assert_eq!(asked[..3], [(0, 20_000), (3_000, 20_000), (8_000, 15_000)]);
}

#[tokio::test]
async fn a_part_that_is_cut_is_taken_up_where_it_ended() {
    let bytes = content();
    let served = bytes.clone();
    let cut = AtomicUsize::new(0);
    let server = Scripted::start(move |asked| match asked.range() {
        Some((first, last)) if first > 50_000 && cut.fetch_add(1, Ordering::SeqCst) < 3 => {
            let range = format!("bytes {first}-{last}/{}", served.len());
            let length = (last + 1 - first).to_string();
            let head = Said::head(206, &[("Content-Range", &range), ("Content-Length", &length)]);
            head.and(&served[first..first + 1000]).then_hang_up()
        }
        _ => serve(asked, &served),
    });
    let bench = cutting(&server, 2);
    assert_eq!(read(&bench, &blob(&bytes), 0..200_000).await.unwrap(), bytes);
    assert_eq!(bench.source.stats().resumptions, 3);
    assert_eq!(bench.source.stats().bytes_received, 200_000);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_sends_a_large_blob_once() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |_| Said::new(200, &[], &served));
    let bench = cutting(&server, 4);
    for _ in 0..2 {
        assert_eq!(read(&bench, &blob(&bytes), 0..200_000).await.unwrap(), bytes);
    }
    assert_eq!(server.asked().len(), 2);
    assert_eq!(bench.source.stats().bytes_received, 400_000);
}

#[tokio::test]
async fn a_part_that_cannot_be_had_ends_the_download() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |asked| match asked.range() {
        Some((first, _)) if first > 50_000 => Said::new(404, &[], ""),
        _ => serve(asked, &served),
    });
    let bench = cutting(&server, 4);
    assert!(matches!(read(&bench, &blob(&bytes), 0..200_000).await, Err(SourceError::NotFound { .. })));
}

#[tokio::test]
async fn wrong_ranges_are_refused_and_the_whole_blob_is_tried() {
    let bytes = content();
    for lie in
        ["bytes 0-9/200000", "bytes 11-20/200000", "bytes 10-99/200000", "", "bytes 10-19/10", "bytes 10-19/199999"]
    {
        let served = bytes.clone();
        let server = Scripted::start(move |asked| match asked.range() {
            Some(_) => Said::new(206, &[("Content-Range", lie)], &served[..10]),
            None => Said::new(200, &[], &served),
        });
        let bench = bench(&server, None);
        assert_eq!(read(&bench, &blob(&bytes), 10..20).await.unwrap(), bytes[10..20], "{lie}");
        assert_eq!(server.asked().len(), 2);
    }
}

#[tokio::test]
async fn a_server_that_lies_about_everything_is_an_error() {
    let bytes = content();
    let server = Scripted::start(|_| Said::new(206, &[("Content-Range", "bytes 0-9/200000")], [0; 10]));
    let result = read(&bench(&server, None), &blob(&bytes), 10..20).await;
    assert!(matches!(result, Err(SourceError::Protocol { .. })), "{result:?}");
}

#[tokio::test]
async fn a_blob_of_the_wrong_size_is_refused_before_its_body() {
    let bytes = content();
    for length in ["199999", "200001", "0"] {
        let server = Scripted::start(move |_| Said::head(200, &[("Content-Length", length)]).then_hang());
        let result = read(&bench(&server, None), &blob(&bytes), 0..200_000).await;
        let Err(SourceError::Protocol { why, .. }) = result else { panic!("{result:?}") };
        assert!(why.contains("200000") && why.contains(length), "{why}");
    }
}

#[tokio::test]
async fn a_body_without_length_may_not_be_longer_than_the_blob() {
    let bytes = content();
    let server = Scripted::start(|_| Said::head(200, &[]).then_repeat(&[7; 10_000]));
    let result = read(&bench(&server, None), &blob(&bytes[..5_000]), 0..5_000).await;
    assert!(matches!(result, Err(SourceError::Protocol { .. })), "{result:?}");
}

#[tokio::test]
async fn encoded_bodies_are_refused() {
    let bytes = content();
    for encoding in ["gzip", "identity, gzip", "br"] {
        let server = Scripted::start(move |_| Said::new(200, &[("Content-Encoding", encoding)], [1; 9]));
        let bench = bench(&server, None);
        let Err(SourceError::Protocol { why, .. }) = read(&bench, &blob(&bytes), 0..9).await else { panic!() };
        assert!(why.contains(encoding), "{why}");
        assert!(bench.source.root().await.is_err());
    }
}

#[tokio::test]
async fn redirects_carry_no_credentials_and_are_remembered_till_they_expire() {
    let bytes = content();
    let served = bytes.clone();
    let expired = Arc::new(AtomicUsize::new(0));
    let old = expired.clone();
    let storage = Scripted::start(move |asked| {
        let generation = format!("/store?sig={}", old.load(Ordering::SeqCst));
        if asked.target == generation { serve(asked, &served) } else { Said::new(403, &[], "expired") }
    });
    let (location, current) = (storage.url("/store"), expired.clone());
    let server = Scripted::start(move |asked| match asked.header("authorization") {
        Some(_) => {
            let to = format!("{location}?sig={}", current.load(Ordering::SeqCst));
            Said::new(307, &[("Location", &to), ("Set-Cookie", "a=b")], "")
        }
        None => Said::new(401, &[("WWW-Authenticate", "Basic realm=r")], ""),
    });
    let bench = bench(&server, Some(ALICE));
    for range in [0..10, 10..20, 150_000..199_000] {
        let wanted = &bytes[range.start as usize..range.end as usize];
        assert_eq!(read(&bench, &blob(&bytes), range).await.unwrap(), wanted);
    }
    // 401, redirect; then storage alone.
    assert_eq!((server.asked().len(), storage.asked().len()), (2, 3));
    expired.store(1, Ordering::SeqCst);
    assert_eq!(read(&bench, &blob(&bytes), 20..30).await.unwrap(), bytes[20..30]);
    assert_eq!((server.asked().len(), storage.asked().len()), (3, 5));
    for asked in storage.asked() {
        for name in ["authorization", "cookie", "referer", "proxy-authorization"] {
            assert_eq!(asked.header(name), None, "{name}");
        }
    }
}

#[tokio::test]
async fn no_log_at_any_level_holds_a_secret() {
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let written = Written::default();
    let writer = written.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    // With one subscriber alone, `tracing` asks the thread that meets a call site first whether
    // anybody listens; that may be the thread of another test.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let guard = tracing::subscriber::set_default(subscriber);
    let bytes = content();
    let served = bytes.clone();
    let storage = Scripted::start(move |asked| match asked.range() {
        Some((0, _)) => Said::new(403, &[], "no"),
        _ => serve(asked, &served),
    });
    let location = storage.url("/store?signature=sIgNaTuRe");
    let server = Scripted::start(move |asked| {
        if asked.target.starts_with("/token") {
            return Said::new(200, &[], r#"{"token":"tOkEnTeXt"}"#);
        }
        match asked.header("authorization") {
            Some("Bearer tOkEnTeXt") => Said::new(307, &[("Location", &location)], ""),
            _ => challenge(asked),
        }
    });
    let bench = bench(&server, Some(ALICE));
    read(&bench, &blob(&bytes), 5..10).await.unwrap();
    let error = read(&bench, &blob(&bytes), 0..10).await.unwrap_err();
    drop(guard);
    let log = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("/store"), "{log}");
    let password = basic_of("alice", "s3cret");
    for secret in ["s3cret", password.trim_start_matches("Basic "), "tOkEnTeXt", "sIgNaTuRe"] {
        assert!(!log.contains(secret), "{secret} in {log}");
        assert!(!format!("{error:?} {error}").contains(secret));
    }
}

#[tokio::test]
async fn redirects_that_lead_astray_are_refused() {
    let bytes = content();
    for (location, words) in [
        ("file:///etc/passwd", "neither http nor https"),
        ("", "no usable address"),
        ("/v2/team/app/again", "more than 5 redirects"),
    ] {
        let server = Scripted::start(move |_| Said::new(302, &[("Location", location)], ""));
        let result = read(&bench(&server, None), &blob(&bytes), 0..10).await;
        let Err(SourceError::Protocol { why, .. }) = result else { panic!("{result:?}") };
        assert!(why.contains(words), "{why}");
        assert!(server.asked().len() <= 6);
    }
    let server = Scripted::start(|_| Said::new(302, &[], ""));
    let result = read(&bench(&server, None), &blob(&bytes), 0..10).await;
    assert!(matches!(result, Err(SourceError::Protocol { .. })), "{result:?}");
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_but_not_for_ever() {
    let left = AtomicUsize::new(3);
    let server = Scripted::start(move |_| {
        match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(3) => Said::new(429, &[("Retry-After", "86400")], ""),
            Ok(_) => Said::new(503, &[], "tired"),
            Err(_) => Said::new(200, &[("Content-Type", OCI)], MANIFEST),
        }
    });
    let first = bench(&server, None);
    first.source.root().await.unwrap();
    let pauses = first.clock.pauses();
    assert_eq!(pauses.len(), 3);
    assert_eq!(pauses[0], Duration::from_secs(10));
    assert!(pauses[1..].iter().all(|pause| *pause < Duration::from_secs(1)));

    let server = Scripted::start(|_| Said::new(503, &[], "tired"));
    let Err(SourceError::Unreachable { why, .. }) = bench(&server, None).source.root().await else { panic!() };
    assert!(why.contains("503") && why.contains("tired") && why.contains("tried 6 times"), "{why}");
}

#[tokio::test]
async fn an_endless_manifest_ends_at_four_mebibytes() {
    let server = Scripted::start(|_| Said::head(200, &[("Content-Type", OCI)]).then_repeat(&[b' '; 65_536]));
    let bench = bench(&server, None);
    let Err(SourceError::Protocol { why, .. }) = bench.source.root().await else { panic!() };
    assert!(why.contains("more than 4194304 bytes"), "{why}");
    assert!(bench.source.stats().bytes_received < MANIFEST_LIMIT + (1 << 20));
}

#[tokio::test]
async fn an_endless_token_ends_at_one_mebibyte() {
    let server = Scripted::start(|asked| {
        if asked.target.starts_with("/token") {
            return Said::head(200, &[]).then_repeat(&[b' '; 65_536]);
        }
        challenge(asked)
    });
    let bench = bench(&server, None);
    assert!(bench.source.root().await.is_err());
    assert!(bench.source.stats().bytes_received < 3 << 20);
}

#[tokio::test]
async fn head_describes_without_a_body() {
    let digest = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes());
    let named = digest.to_string();
    let server = Scripted::start(move |asked| {
        assert_eq!(asked.method, "HEAD");
        let length = MANIFEST.len().to_string();
        Said::head(200, &[("Content-Type", OCI), ("Content-Length", &length), ("Docker-Content-Digest", &named)])
    });
    let found = bench(&server, None).source.head().await.unwrap();
    assert_eq!(found, descriptor(MediaType::OciManifest, digest, MANIFEST.len() as u64));
}

#[tokio::test]
async fn a_registry_that_cannot_head_is_asked_by_get() {
    for status in [404, 405, 400, 200] {
        // 200 without a digest says too little.
        let server = Scripted::start(move |asked| match asked.method.as_str() {
            "HEAD" => Said::head(status, &[("Content-Length", "31"), ("Content-Type", OCI)]),
            _ => Said::new(200, &[("Content-Type", OCI)], MANIFEST),
        });
        let found = bench(&server, None).source.head().await.unwrap();
        assert_eq!(found.digest, Digest::of(Algorithm::Sha256, MANIFEST.as_bytes()), "{status}");
    }
}

#[tokio::test]
async fn what_a_manifest_is_must_be_clear() {
    let index = r#"{"schemaVersion":2,"manifests":[]}"#;
    for (content_type, body, wanted) in [
        (OCI, MANIFEST, Some(MediaType::OciManifest)),
        ("application/vnd.oci.image.index.v1+json; charset=utf-8", index, Some(MediaType::OciIndex)),
        ("application/json", index, Some(MediaType::OciIndex)),
        ("text/plain", MANIFEST, Some(MediaType::OciManifest)),
        ("application/json", r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, None),
        ("application/json", r#"{"schemaVersion":1}"#, None),
        ("application/json", "not json", None),
        ("text/html", MANIFEST, None),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", MANIFEST, None),
    ] {
        let server = Scripted::start(move |_| Said::new(200, &[("Content-Type", content_type)], body));
        let found = bench(&server, None).source.root().await.ok().map(|(descriptor, _)| descriptor.media_type);
        assert_eq!(found, wanted, "{content_type} {body}");
    }
}

#[tokio::test]
async fn schema_1_comes_with_a_hint() {
    let schema1 = "application/vnd.docker.distribution.manifest.v1+json";
    let server = Scripted::start(move |_| Said::new(200, &[("Content-Type", schema1)], "{}"));
    let result = bench(&server, None).source.root().await;
    assert!(matches!(result, Err(SourceError::Unsupported { hint: Some(_), .. })), "{result:?}");
}

#[tokio::test]
async fn a_manifest_of_another_kind_or_size_than_its_descriptor_is_refused() {
    let server = Scripted::start(|_| Said::new(200, &[("Content-Type", OCI)], MANIFEST));
    let bench = bench(&server, None);
    let digest = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes());
    let size = MANIFEST.len() as u64;
    let fetch = |media_type, size| {
        let (source, wanted) = (bench.source.clone(), descriptor(media_type, digest.clone(), size));
        async move { source.manifest(&wanted).await.map(drop) }
    };
    fetch(MediaType::OciManifest, size).await.unwrap();
    fetch(MediaType::DockerManifest, size).await.unwrap();
    assert!(fetch(MediaType::OciIndex, size).await.is_err());
    assert!(fetch(MediaType::OciManifest, size + 1).await.is_err());
    assert!(fetch(MediaType::OciManifest, size - 1).await.is_err());
    assert!(fetch(MediaType::OciManifest, u64::MAX).await.is_err());
}

#[tokio::test]
async fn a_digest_that_does_not_fit_the_document_is_corrupt() {
    let other = Digest::of(Algorithm::Sha256, b"other").to_string();
    let server =
        Scripted::start(move |_| Said::new(200, &[("Content-Type", OCI), ("Docker-Content-Digest", &other)], MANIFEST));
    let result = bench(&server, None).source.root().await;
    assert!(matches!(result, Err(SourceError::Corrupt { .. })), "{result:?}");
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
    let server = Scripted::start(move |_| Said::new(404, &[], body));
    let error = bench(&server, None).source.root().await.unwrap_err();
    assert_eq!(error.to_string(), format!("manifest `1` not found in {}/team/app", server.address));
    let SourceError::NotFound { said: Some(said), .. } = error else { panic!() };
    assert!(said.contains("MANIFEST_UNKNOWN: manifest unknown"), "{said}");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_one_clear_error_at_once() {
    // Bound and not listening: nobody else can take the port, and nobody answers.
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address: SocketAddr = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
    let gone = Scripted::start(|_| Said::head(200, &[]));
    let mut bench = bench(&gone, None);
    let name = format!("{address}/team/app:1").parse().unwrap();
    let clock = bench.clock.clone();
    let options = RegistryOptions { clock, certs_dirs: Vec::new(), ..RegistryOptions::new(Surroundings::default()) };
    bench.source = Arc::new(RegistrySource::new(name, "it".to_owned(), options).unwrap());
    let error = bench.source.root().await.unwrap_err().to_string();
    assert!(error.contains(&format!("cannot reach {address}: connection refused")), "{error}");
    assert_eq!(bench.clock.pauses(), []);
}

#[tokio::test]
async fn an_empty_range_asks_nothing_and_an_impossible_one_is_an_error() {
    let server = Scripted::start(|_| Said::new(500, &[], ""));
    let bench = bench(&server, None);
    let blob = blob(&content());
    assert!(read(&bench, &blob, 5..5).await.unwrap().is_empty());
    assert!(read(&bench, &blob, 5..200_001).await.is_err());
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = 6..5;
    assert!(read(&bench, &blob, backwards).await.is_err());
    assert_eq!(server.asked().len(), 0);
}

#[test]
fn where_a_registry_is_looked_for() {
    let find = |host: &str, insecure: bool, ca: bool| {
        let mut options = RegistryOptions::new(Surroundings::default());
        options.certs_dirs.clear();
        options.insecure = insecure;
        options.ca.extend(ca.then(|| PathBuf::from("/ca.pem")));
        RegistrySource::new(format!("{host}/a").parse().unwrap(), "x".to_owned(), options)
            .map(|source| source.client.bases.iter().map(Url::to_string).collect::<Vec<_>>().join(" "))
            .ok()
    };
    for (host, insecure, ca, wanted) in [
        ("docker.io", false, false, Some("https://registry-1.docker.io/")),
        ("index.docker.io", false, false, Some("https://registry-1.docker.io/")),
        ("r.example:5000", false, false, Some("https://r.example:5000/")),
        ("r.example:5000", true, false, Some("https://r.example:5000/ http://r.example:5000/")),
        ("127.0.0.1:5000", false, false, Some("http://127.0.0.1:5000/")),
        ("127.0.0.1:5000", false, true, Some("https://127.0.0.1:5000/")),
        ("localhost", false, false, Some("http://localhost/")),
        ("[::1]:5000", false, false, Some("http://[::1]:5000/")),
        ("10.0.0.1:5000", false, false, Some("https://10.0.0.1:5000/")),
        // No address, and no name either.
        ("1.2.3.256", false, false, None),
    ] {
        assert_eq!(find(host, insecure, ca).as_deref(), wanted, "{host}");
    }
}
