//! Private images hidden without a login, and repositories under other names.

use super::*;

/// A registry that hides everything without a login, and accepts alice's password by Basic or for a token.
fn secretive(status: u16, by_token: bool, pings: bool) -> Scripted {
    Scripted::start(move |request| {
        let host = request.header("host").unwrap();
        let basic = basic_of("alice", "s3cret");
        let challenge = match by_token {
            true => format!(r#"Bearer realm="http://{host}/token",service="reg""#),
            false => r#"Basic realm="r""#.to_owned(),
        };
        match (request.target.as_str(), request.header("authorization")) {
            (token, Some(shown)) if token.starts_with("/token") && shown == basic => {
                Response::new(200, &[], r#"{"token":"good"}"#)
            }
            (token, _) if token.starts_with("/token") => Response::new(401, &[], "who are you"),
            ("/v2/", None) if pings => Response::new(401, &[("WWW-Authenticate", &challenge)], ""),
            ("/v2/", None) => Response::new(200, &[], "{}"),
            (_, Some("Bearer good")) if by_token => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
            (_, Some(shown)) if !by_token && shown == basic => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
            (_, _) => Response::new(status, &[], r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such thing"}]}"#),
        }
    })
}

fn pings(server: &Scripted) -> usize {
    server.requests().iter().filter(|request| request.target == "/v2/").count()
}

#[tokio::test]
async fn images_hidden_without_a_login_are_requested_with_one() {
    for status in [404, 403, 401] {
        for by_token in [true, false] {
            let server = secretive(status, by_token, true);
            let bench = bench(&server, Some(ALICE));
            for _ in 0..3 {
                bench.source.head().await.unwrap();
                bench.source.root().await.unwrap();
            }
            assert_eq!(pings(&server), 1, "{status} {by_token}");
        }
    }
}

#[tokio::test]
async fn without_a_login_nothing_more_is_asked() {
    let server = secretive(404, true, true);
    let result = bench(&server, None).source.root().await;
    let Err(SourceError::NotFound { said: Some(said), .. }) = result else { panic!("{result:?}") };
    assert_eq!(said, "404 Not Found (NAME_UNKNOWN: no such thing)");
    assert_eq!(server.requests().len(), 1);
    let server = secretive(403, true, true);
    let result = bench(&server, None).source.root().await;
    let Err(SourceError::Denied { tried, .. }) = result else { panic!("{result:?}") };
    assert!(tried.starts_with("anonymous, as no credentials were found; `REGISTRY_AUTH_FILE` names"), "{tried}");
    assert_eq!(server.requests().len(), 1);
}

/// The registry offers no login: its refusal is final, and the message says why no login was tried.
#[tokio::test]
async fn an_untried_login_is_reported() {
    for status in [404, 403, 401] {
        let server = secretive(status, true, false);
        let bench = bench(&server, Some(ALICE));
        for _ in 0..5 {
            let told = match bench.source.root().await {
                Err(SourceError::NotFound { said: Some(said), .. }) if status == 404 => said,
                Err(SourceError::Denied { tried, .. }) if status != 404 => tried,
                other => panic!("{other:?}"),
            };
            assert!(told.contains("login") && told.contains("`alice`") && told.contains("asks for none"), "{told}");
            assert!(!told.contains("no credentials were found"), "{told}");
        }
        assert_eq!((pings(&server), server.requests().len()), (1, 6), "{status}");
    }
}

#[tokio::test]
async fn what_a_login_does_not_find_is_not_there() {
    let server = Scripted::start(|request| match (request.target.as_str(), request.header("authorization")) {
        ("/v2/", None) => Response::new(401, &[("WWW-Authenticate", "Basic realm=r")], ""),
        _ => Response::new(404, &[], ""),
    });
    let bench = bench(&server, Some(ALICE));
    for _ in 0..3 {
        let result = bench.source.root().await;
        let Err(SourceError::NotFound { said: Some(said), hint: Some(hint), .. }) = result else {
            panic!("{result:?}")
        };
        assert!(said.contains("asked as user `alice` from"), "{said}");
        assert!(hint.contains("may read"), "{hint}");
    }
    assert_eq!(pings(&server), 1);
    // A wrong password is reported as such.
    let server = secretive(404, true, true);
    let wrong = ALICE.replace("s3cret", "wrong");
    let result = super::bench(&server, Some(&wrong)).source.root().await;
    let Err(SourceError::Denied { said, tried, .. }) = result else { panic!("{result:?}") };
    assert!(said.contains("who are you") && tried.contains("`alice`"), "{said} {tried}");
}

/// A proxy that serves `acme/org/app` of another registry as `org/app`; that registry grants rights for its own name
/// only.
#[tokio::test]
async fn a_scope_of_another_name_is_asked_for_beside_our_own() {
    for refusal in [401, 403] {
        for proposed in ["repository:acme/org/app:pull", "repository:acme/org/app:pull,push"] {
            let server = Scripted::start(move |request| {
                let host = request.header("host").unwrap();
                if request.target.starts_with("/token") {
                    let both = request.target.contains("scope=repository%3Ateam%2Fapp%3Apull")
                        && request.target.contains("scope=repository%3Aacme%2Forg%2Fapp%3Apull");
                    assert!(!request.target.contains("push"), "{}", request.target);
                    return Response::new(200, &[], if both { r#"{"token":"both"}"# } else { r#"{"token":"own"}"# });
                }
                let wants = format!(r#"Bearer realm="http://{host}/token",service="reg",scope="{proposed}""#);
                let wants = [("WWW-Authenticate", wants.as_str())];
                match request.header("authorization") {
                    Some("Bearer both") => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
                    Some(_) => Response::new(refusal, &wants, ""),
                    None => Response::new(401, &wants, ""),
                }
            });
            let bench = bench(&server, None);
            bench.source.root().await.unwrap();
            assert_eq!(tokens_asked(&server).len(), 2);
            // Afterwards both scopes at once.
            bench.clock.advance(Duration::from_secs(3600));
            bench.source.root().await.unwrap();
            assert_eq!(tokens_asked(&server).len(), 3);
        }
    }
}

#[tokio::test]
async fn a_greedy_scope_is_never_asked_for() {
    let server = token_registry(|_| false);
    assert!(bench(&server, Some(ALICE)).source.root().await.is_err());
    for request in tokens_asked(&server) {
        assert!(!request.target.contains("other"), "{}", request.target);
    }
}
