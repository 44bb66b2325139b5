//! Hosts that are only another name for a registry, to which they redirect.

use super::*;

const BOB: &str = r#"{"auths": {"FIRST": {"username": "alice", "password": "s3cret"}, "SECOND": {"username": "bob", "password": "b0b"}}}"#;

/// A host that redirects all of `/v2/` to the same path of `to`; it may require alice's password itself.
fn vanity(to: &Scripted, protected: bool) -> Scripted {
    let base = to.url("");
    Scripted::start(move |request| match request.header("authorization") {
        None if protected => Response::new(401, &[("WWW-Authenticate", "Basic realm=vanity")], ""),
        _ => Response::new(307, &[("Location", &format!("{base}{}", request.target))], ""),
    })
}

/// A registry with this manifest and these bytes that requires a password, or a token for one.
fn registry(by_token: bool, user: Option<(&'static str, &'static str)>, bytes: Vec<u8>) -> Scripted {
    Scripted::start(move |request| {
        let shown = request.header("authorization");
        let password = user.map(|(user, password)| basic_of(user, password));
        if request.target.starts_with("/token") {
            assert!(request.target.contains("scope=repository%3Ateam%2Fapp%3Apull"), "{}", request.target);
            let known = password.is_none() || shown == password.as_deref();
            return if known {
                Response::new(200, &[], r#"{"token":"second"}"#)
            } else {
                Response::new(401, &[], "not you")
            };
        }
        let granted = if by_token { shown == Some("Bearer second") } else { shown == password.as_deref() };
        match (granted, request.target.contains("/blobs/")) {
            (true, true) => serve(request, &bytes),
            (true, false) => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
            (false, _) if by_token => challenge(request),
            (false, _) => Response::new(401, &[("WWW-Authenticate", "Basic realm=second")], ""),
        }
    })
}

fn login(first: &Scripted, second: &Scripted) -> String {
    BOB.replace("FIRST", &first.address.to_string()).replace("SECOND", &second.address.to_string())
}

/// The authorization that `server` received, except what it issued itself.
fn shown(server: &Scripted) -> Vec<String> {
    server.requests().iter().filter_map(|request| request.header("authorization").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_registry_behind_another_name_is_logged_in_to_by_its_own() {
    let bytes = content();
    for protected in [false, true] {
        for (by_token, user) in [(true, None), (true, Some(("bob", "b0b"))), (false, Some(("bob", "b0b")))] {
            let second = registry(by_token, user, bytes.clone());
            let first = vanity(&second, protected);
            let bench = bench(&first, Some(&login(&first, &second)));
            bench.source.root().await.unwrap_or_else(|error| panic!("{protected} {by_token} {user:?}: {error}"));
            let before = second.requests().len();
            for range in [0..10, 10..20, 30..40] {
                let wanted = &bytes[range.start as usize..range.end as usize];
                assert_eq!(read(&bench, &blob(&bytes), range).await.unwrap(), wanted);
            }
            // Refused once without a login; afterwards the place and its login are cached.
            assert_eq!(second.requests().len() - before, 4);
            let alice = basic_of("alice", "s3cret");
            assert!(!shown(&second).contains(&alice));
            assert!(shown(&first).iter().all(|shown| *shown == alice));
        }
    }
}

#[tokio::test]
async fn the_login_of_the_first_registry_is_no_login_elsewhere() {
    for by_token in [true, false] {
        let second = registry(by_token, Some(("alice", "s3cret")), content());
        let first = vanity(&second, false);
        let bench = bench(&first, Some(ALICE));
        let result = bench.source.root().await;
        let Err(SourceError::Denied { said, place, tried, .. }) = result else { panic!("{result:?}") };
        assert_eq!(place, second.address.to_string());
        assert_eq!(tried, "anonymous, as no credentials were found");
        assert!(said.contains(&format!("where {} redirects to", first.address)), "{said}");
        assert_eq!(shown(&second), Vec::<String>::new());
        assert!(first.requests().len() <= 2 && bench.clock.pauses().is_empty());
    }
}

/// Storage may ask for a password at such a path, too. It gets none unless manifests were served there.
#[tokio::test]
async fn a_password_is_not_for_where_blobs_alone_lead() {
    let bytes = content();
    let second = registry(false, Some(("bob", "b0b")), bytes.clone());
    let base = second.url("");
    let first = Scripted::start(move |request| match request.target.contains("/blobs/") {
        true => Response::new(307, &[("Location", &format!("{base}{}", request.target))], ""),
        false => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
    });
    let bench = bench(&first, Some(&login(&first, &second)));
    bench.source.root().await.unwrap();
    let result = read(&bench, &blob(&bytes), 0..10).await;
    let Err(SourceError::Denied { said, tried, .. }) = result else { panic!("{result:?}") };
    assert!(said.contains(&format!("where {} redirects to", first.address)), "{said}");
    assert!(tried.starts_with("none, as no password is sent to"), "{tried}");
    assert_eq!(shown(&second), Vec::<String>::new());
}

#[tokio::test]
async fn a_token_of_a_registry_elsewhere_is_renewed_like_our_own() {
    let bytes = content();
    let (served, issued, good) = (bytes.clone(), AtomicUsize::new(0), Arc::new(AtomicUsize::new(1)));
    let first_good = good.clone();
    let second = Scripted::start(move |request| {
        if request.target.starts_with("/token") {
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Response::new(200, &[], format!(r#"{{"token":"{number}","expires_in":86400}}"#));
        }
        let shown = request.header("authorization").and_then(|shown| shown.strip_prefix("Bearer ")?.parse().ok());
        match shown {
            Some(number) if first_good.load(Ordering::SeqCst) <= number => serve(request, &served),
            Some(_) => Response::new(401, &[], ""),
            None => challenge(request),
        }
    });
    let first = vanity(&second, false);
    let bench = bench(&first, None);
    for turn in 1..4 {
        good.store(turn, Ordering::SeqCst);
        assert_eq!(read(&bench, &blob(&bytes), 0..10).await.unwrap(), bytes[0..10]);
        assert_eq!(tokens_asked(&second).len(), turn);
    }
}

#[tokio::test]
async fn an_image_missing_at_the_redirect_is_not_found() {
    let second = Scripted::start(|request| match request.header("authorization") {
        _ if request.target.starts_with("/token") => Response::new(200, &[], r#"{"token":"t"}"#),
        None => challenge(request),
        Some(_) => Response::new(404, &[], ""),
    });
    let bench = bench(&vanity(&second, false), None);
    let result = bench.source.root().await;
    assert!(matches!(result, Err(SourceError::NotFound { .. })), "{result:?}");
    let result = read(&bench, &blob(&content()), 0..10).await;
    assert!(matches!(result, Err(SourceError::NotFound { .. })), "{result:?}");
    assert!(second.requests().len() < 10);
}

/// A registry with TLS that redirects its blobs to a server without.
#[tokio::test]
async fn insecure_redirects_may_lose_tls() {
    let Some(keys) = certificates::Keys::new() else { return };
    keys.own("own", "ec -pkeyopt ec_paramgen_curve:prime256v1", "");
    let bytes = content();
    let served = bytes.clone();
    let storage = Scripted::start(move |request| serve(request, &served));
    let location = storage.url("/store");
    let server = keys.registry_saying("own", move |_| Response::new(307, &[("Location", &location)], ""));
    let insecure = bench_with(&server, None, |options| options.insecure = true);
    assert_eq!(read(&insecure, &blob(&bytes), 0..10).await.unwrap(), bytes[0..10]);
}
