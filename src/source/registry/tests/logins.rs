//! Credentials and tokens, and where they are sent.

use super::*;

#[tokio::test]
async fn a_token_is_fetched_and_kept() {
    let server = token_registry(|header| header == "Bearer t1");
    let bench = bench(&server, Some(ALICE));
    let (descriptor, bytes) = bench.source.root().await.unwrap();
    assert_eq!(bytes.into_unverified(), MANIFEST);
    assert_eq!(descriptor.digest, Digest::of(Algorithm::Sha256, MANIFEST.as_bytes()));
    bench.source.root().await.unwrap();
    let requests = server.requests();
    let targets: Vec<&str> = requests.iter().map(|request| request.target.as_str()).collect();
    let token = "/token?account=alice&service=reg&scope=repository%3Ateam%2Fapp%3Apull";
    assert_eq!(targets, ["/v2/team/app/manifests/1", token, "/v2/team/app/manifests/1", "/v2/team/app/manifests/1"]);
    assert_eq!(requests[1].header("authorization"), Some(&*basic_of("alice", "s3cret")));
    for media_type in MediaType::MANIFESTS {
        assert!(requests[0].header("accept").unwrap().contains(media_type));
    }
    assert!(requests.iter().all(|request| request.header("accept-encoding") == Some("identity")));
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
    let refused = server.requests().iter().filter(|request| request.header("authorization").is_none()).count();
    // The first request and the two for tokens; no request was refused for an expired token.
    assert_eq!(refused, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_readers_renew_once() {
    let valid = Arc::new(Mutex::new("Bearer t1".to_owned()));
    let check = valid.clone();
    let server = token_registry(move |header| *check.lock().unwrap() == header);
    let bench = bench_with(&server, None, |options| options.connections = 50);
    bench.source.root().await.unwrap();
    // The registry drops the token; all readers notice together.
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
    let server = Scripted::start(|_| Response::new(401, &[], r#"{"details":"wrong password"}"#));
    let bench = bench(&server, Some(ALICE));
    let (authorizer, transport) = (&bench.source.client.authorizer, &bench.source.client.transport);
    let url = Url::parse(&server.url("/v2/team/app/manifests/1")).unwrap();
    let headers = reqwest::header::HeaderMap::new();
    let request =
        http::Outgoing { method: Method::GET, url, headers, own: Default::default(), authorization: None, body: None };
    let offered = format!("Bearer realm={}", server.url("/token"));
    let nothing = authorizer.grant(transport).await.unwrap();
    // Joined on one thread: each one waits before the first response is handled.
    let readers = (0..50).map(|_| {
        let offer = challenge::choose(std::iter::once(offered.as_bytes()));
        let (request, status) = (&request, StatusCode::UNAUTHORIZED);
        authorizer.refused(transport, &nothing, auth::Refused { request, status, offer, logins: 0 })
    });
    for result in futures_util::future::join_all(readers).await {
        assert!(matches!(result, Err(auth::AuthError::Refused { .. })), "{result:?}");
    }
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_refused_login_says_who_and_what() {
    let server = Scripted::start(|request| {
        if request.target.starts_with("/token") {
            return Response::new(401, &[], r#"{"details":"incorrect username or password"}"#);
        }
        challenge(request)
    });
    let bench = bench(&server, Some(ALICE));
    let Err(SourceError::Denied { said, tried, .. }) = bench.source.root().await else { panic!() };
    assert!(said.contains("401") && said.contains("incorrect username or password"), "{said}");
    assert!(tried.starts_with("user `alice` from "), "{tried}");
    assert!(!said.contains("s3cret") && !tried.contains("s3cret"));
}

#[tokio::test]
async fn a_refused_fresh_token_is_not_fetched_again_by_the_same_login() {
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
    let server = Scripted::start(move |request| {
        let host = request.header("host").unwrap();
        if request.target.starts_with("/token") {
            let user = if logins.fetch_add(1, Ordering::SeqCst) == 0 { "old" } else { "new" };
            assert_eq!(request.header("authorization").unwrap(), basic_of(user, "p"));
            // Meanwhile the user logs in again.
            std::fs::write(&path, format!(r#"{{"auths": {{"{host}": {{"username": "new", "password": "p"}}}}}}"#))
                .unwrap();
            return Response::new(200, &[], format!(r#"{{"token":"{user}"}}"#));
        }
        match request.header("authorization") {
            Some("Bearer new") => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
            _ => challenge(request),
        }
    });
    let host = server.address;
    std::fs::write(&file, format!(r#"{{"auths": {{"{host}": {{"username": "old", "password": "p"}}}}}}"#)).unwrap();
    let bench = bench_with(&server, None, |options| options.authfile = Some(file));
    bench.source.root().await.unwrap();
}

#[tokio::test]
async fn basic_is_answered_with_the_password_itself() {
    let server = Scripted::start(|request| match request.header("authorization") {
        Some(header) if header == basic_of("alice", "s3cret") => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
        _ => Response::new(401, &[("WWW-Authenticate", r#"Basic realm="r""#)], ""),
    });
    bench(&server, Some(ALICE)).source.root().await.unwrap();
    let Err(SourceError::Denied { tried, .. }) = bench(&server, None).source.root().await else { panic!() };
    assert!(tried.starts_with("anonymous"), "{tried}");
    let wrong = ALICE.replace("s3cret", "wrong");
    let before = server.requests().len();
    let result = bench(&server, Some(&wrong)).source.root().await;
    assert!(matches!(result, Err(SourceError::Denied { .. })));
    assert_eq!(server.requests().len() - before, 2);
}

#[tokio::test]
async fn a_token_server_that_only_knows_post_gets_a_form() {
    for refusal in [400, 404, 405, 501] {
        let server = Scripted::start(move |request| match (request.method.as_str(), request.header("authorization")) {
            ("POST", None) => Response::new(200, &[], r#"{"access_token":"t"}"#),
            (_, _) if request.target.starts_with("/token") => Response::new(refusal, &[], ""),
            (_, Some("Bearer t")) => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
            _ => challenge(request),
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
    let server = Scripted::start(|request| match request.header("authorization") {
        _ if request.body.starts_with("grant_type=refresh_token&refresh_token=idt&") => {
            Response::new(200, &[], r#"{"access_token":"t"}"#)
        }
        Some("Bearer t") => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
        _ => challenge(request),
    });
    let auth = r#"{"auths": {"HOST": {"auth": "eDp5", "identitytoken": "idt"}}}"#;
    bench(&server, Some(auth)).source.root().await.unwrap();
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_of_a_blob_is_renewed() {
    let bytes = content();
    let (served, gets) = (bytes.clone(), AtomicUsize::new(0));
    let tokens = AtomicUsize::new(0);
    let server = Scripted::start(move |request| {
        if request.target.starts_with("/token") {
            let number = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            return Response::new(200, &[], format!(r#"{{"token":"t{number}"}}"#));
        }
        match (request.header("authorization"), gets.load(Ordering::SeqCst)) {
            (Some("Bearer t1"), 0) => {
                gets.store(1, Ordering::SeqCst);
                Response::head(200, &[("Content-Length", "200000")]).and(&served[..70_000]).then_hang_up()
            }
            (Some("Bearer t2"), 1) => serve(request, &served),
            _ => challenge(request),
        }
    });
    let bench = bench(&server, None);
    assert_eq!(read(&bench, &blob(&bytes), 0..200_000).await.unwrap(), bytes);
    assert_eq!(server.requests().last().unwrap().range(), Some((70_000, 199_999)));
}
