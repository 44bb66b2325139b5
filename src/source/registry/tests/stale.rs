//! Logins that worked and have ended, and the ways in which registries report that.

use super::*;

/// A registry whose token service accepts this password, and whose tokens are valid from this number on. The test
/// decides how it refuses an expired token.
struct Aging {
    password: Arc<Mutex<String>>,
    first_good: Arc<AtomicUsize>,
    server: Scripted,
}

impl Aging {
    fn start(refuse: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let (password, first_good) = (Arc::new(Mutex::new("s3cret".to_owned())), Arc::new(AtomicUsize::new(1)));
        let (wanted, good, issued) = (password.clone(), first_good.clone(), AtomicUsize::new(0));
        let server = Scripted::start(move |request| {
            let shown = request.header("authorization");
            if request.target.starts_with("/token") {
                return match shown {
                    Some(shown) if shown != basic_of("alice", &wanted.lock().unwrap()) => {
                        Response::new(401, &[], "wrong")
                    }
                    _ => {
                        let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
                        Response::new(200, &[], format!(r#"{{"token":"{number}","expires_in":86400}}"#))
                    }
                };
            }
            let number = shown.and_then(|shown| shown.strip_prefix("Bearer ")?.parse::<usize>().ok());
            match (number, shown) {
                (Some(number), _) if number >= good.load(Ordering::SeqCst) => {
                    Response::new(200, &[("Content-Type", OCI)], MANIFEST)
                }
                (None, None) => challenge(request),
                _ => refuse(request),
            }
        });
        Self { password, first_good, server }
    }

    /// Expires the tokens issued so far.
    fn expire(&self) {
        self.first_good.store(tokens_asked(&self.server).len() + 1, Ordering::SeqCst);
    }
}

/// The refusals of an expired token by Harbor, Docker Hub, registries that follow the specification, and ECR.
fn refusals() -> [fn(&Request) -> Response; 5] {
    [
        |_| Response::new(401, &[("WWW-Authenticate", r#"Basic realm="harbor""#)], ""),
        |_| Response::new(401, &[], ""),
        |_| Response::new(401, &[("WWW-Authenticate", r#"Bearer error="invalid_token""#)], ""),
        challenge,
        |_| {
            Response::new(
                403,
                &[],
                r#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired."}]}"#,
            )
        },
    ]
}

#[tokio::test]
async fn a_token_that_has_ended_is_renewed_however_it_is_refused() {
    for (number, refuse) in refusals().into_iter().enumerate() {
        for auth in [Some(ALICE), None] {
            let aging = Aging::start(refuse);
            let bench = bench(&aging.server, auth);
            bench.source.root().await.unwrap();
            for turn in 2..4 {
                aging.expire();
                // 403 may also be about the object, so it does not always count as an expired token.
                bench.clock.advance(Duration::from_secs(10));
                bench.source.root().await.unwrap_or_else(|error| panic!("{number} {auth:?}: {error}"));
                assert_eq!(tokens_asked(&aging.server).len(), turn, "{number} {auth:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_readers_renew_once_however_they_are_refused() {
    for refuse in refusals() {
        let aging = Aging::start(refuse);
        let bench = bench_with(&aging.server, Some(ALICE), |_| {});
        bench.source.root().await.unwrap();
        aging.expire();
        let readers: Vec<_> = (0..50)
            .map(|_| {
                let source = bench.source.clone();
                tokio::spawn(async move { source.root().await.map(drop) })
            })
            .collect();
        for reader in readers {
            reader.await.unwrap().unwrap();
        }
        assert_eq!(tokens_asked(&aging.server).len(), 2);
    }
}

/// The password changes at the registry first, and the user logs in again later.
#[tokio::test]
async fn a_login_that_has_ended_heals_when_the_user_logs_in() {
    for refuse in refusals() {
        let aging = Aging::start(refuse);
        let file = tempfile::NamedTempFile::new().unwrap();
        let host = aging.server.address.to_string();
        let log_in = |password: &str| {
            let text = ALICE.replace("HOST", &host).replace("s3cret", password);
            std::fs::write(file.path(), text).unwrap();
        };
        log_in("s3cret");
        let path = file.path().to_owned();
        let bench = bench_with(&aging.server, None, |options| options.authfile = Some(path));
        bench.source.root().await.unwrap();
        *aging.password.lock().unwrap() = "n3w".to_owned();
        aging.expire();
        for _ in 0..20 {
            let result = bench.source.root().await;
            let Err(SourceError::Denied { tried, .. }) = result else { panic!("{result:?}") };
            assert!(tried.starts_with("user `alice` from"), "{tried}");
        }
        // The old password was not sent twenty times.
        assert_eq!(tokens_asked(&aging.server).len(), 2);
        log_in("typo");
        assert!(bench.source.root().await.is_err());
        let before = tokens_asked(&aging.server).len();
        bench.clock.advance(Duration::from_secs(3600));
        // A login that never worked is not retried; time does not fix it.
        assert!(bench.source.root().await.is_err());
        assert!(tokens_asked(&aging.server).len() <= before + 1);
        log_in("n3w");
        bench.source.root().await.unwrap();
    }
}

/// A token service that refuses what it accepted, and accepts it again, as after an outage of its directory.
#[tokio::test]
async fn a_login_that_worked_is_tried_again_at_intervals() {
    for refuse in refusals() {
        let aging = Aging::start(refuse);
        let bench = bench(&aging.server, Some(ALICE));
        bench.source.root().await.unwrap();
        *aging.password.lock().unwrap() = "other".to_owned();
        aging.expire();
        let before = tokens_asked(&aging.server).len();
        for _ in 0..1_000 {
            assert!(matches!(bench.source.root().await, Err(SourceError::Denied { .. })));
            bench.clock.advance(Duration::from_millis(100));
        }
        let tries = tokens_asked(&aging.server).len() - before;
        assert!((3..=12).contains(&tries), "{tries} tries in 100 s");
        *aging.password.lock().unwrap() = "s3cret".to_owned();
        bench.clock.advance(Duration::from_secs(60));
        bench.source.root().await.unwrap();
    }
}

/// As above, with a token whose expiry is known: no request to the registry reveals it.
#[tokio::test]
async fn an_expired_token_is_renewed_at_intervals() {
    let aging = Aging::start(challenge);
    let bench = bench(&aging.server, Some(ALICE));
    bench.source.root().await.unwrap();
    *aging.password.lock().unwrap() = "other".to_owned();
    bench.clock.advance(Duration::from_secs(90_000));
    for _ in 0..100 {
        assert!(matches!(bench.source.root().await, Err(SourceError::Denied { .. })));
    }
    assert_eq!(tokens_asked(&aging.server).len(), 2);
    *aging.password.lock().unwrap() = "s3cret".to_owned();
    bench.clock.advance(Duration::from_secs(60));
    bench.source.root().await.unwrap();
}

/// Basic, as at ECR, where a password is valid for twelve hours.
#[tokio::test]
async fn an_expired_password_is_looked_up_again() {
    let password = Arc::new(Mutex::new("old".to_owned()));
    for refusal in [401, 403] {
        *password.lock().unwrap() = "old".to_owned();
        let wanted = password.clone();
        let server = Scripted::start(move |request| match request.header("authorization") {
            Some(shown) if shown == basic_of("AWS", &wanted.lock().unwrap()) => {
                Response::new(200, &[("Content-Type", OCI)], MANIFEST)
            }
            Some(_) => Response::new(refusal, &[], r#"{"errors":[{"code":"DENIED","message":"expired"}]}"#),
            None => Response::new(401, &[("WWW-Authenticate", "Basic realm=\"ecr\"")], ""),
        });
        let home = tempfile::tempdir().unwrap();
        // A helper, as Amazon's.
        let (bin, said) = (home.path().join("bin"), home.path().join("said"));
        std::fs::create_dir(&bin).unwrap();
        let helper = bin.join("docker-credential-aws");
        std::fs::write(&helper, format!("#!/bin/sh\ncat '{}'\n", said.display())).unwrap();
        std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let log_in = |password: &str| {
            std::fs::write(&said, format!(r#"{{"Username":"AWS","Secret":"{password}"}}"#)).unwrap();
        };
        log_in("old");
        let file = home.path().join("auth.json");
        std::fs::write(&file, r#"{"credsStore":"aws"}"#).unwrap();
        let bench = bench_with(&server, None, |options| {
            options.authfile = Some(file);
            options.surroundings.path = Some(bin.clone().into());
        });
        bench.source.root().await.unwrap();
        *password.lock().unwrap() = "new".to_owned();
        let before = server.requests().len();
        for _ in 0..5 {
            let result = bench.source.root().await;
            let Err(SourceError::Denied { said, tried, .. }) = result else { panic!("{result:?}") };
            assert!(said.contains("expired") && tried.contains("`AWS`"), "{said} {tried}");
        }
        // Each read sends one request, and one request asked the registry for a challenge.
        assert_eq!(server.requests().len() - before, 6, "{refusal}");
        log_in("new");
        bench.clock.advance(Duration::from_secs(2));
        bench.source.root().await.unwrap();
    }
}

/// 403 for an object that the user may not see, with a login that is valid otherwise.
#[tokio::test]
async fn a_refusal_of_one_thing_does_not_renew_for_ever() {
    let bytes = content();
    let digest = Digest::of(Algorithm::Sha256, &bytes).to_string();
    let issued = AtomicUsize::new(0);
    let server = Scripted::start(move |request| {
        if request.target.starts_with("/token") {
            let number = issued.fetch_add(1, Ordering::SeqCst);
            return Response::new(200, &[], format!(r#"{{"token":"{number}","expires_in":86400}}"#));
        }
        match request.header("authorization") {
            None => challenge(request),
            Some(_) if request.target.contains(&digest) => Response::new(403, &[], "blocked by policy"),
            Some(_) => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
        }
    });
    let bench = bench(&server, Some(ALICE));
    for _ in 0..50 {
        bench.source.root().await.unwrap();
        let result = read(&bench, &blob(&bytes), 0..10).await;
        assert!(matches!(result, Err(SourceError::Denied { .. })), "{result:?}");
    }
    let tokens = tokens_asked(&server).len();
    assert!(tokens <= 3, "{tokens}");
}

/// A token from before a night's suspend is not sent in the morning.
#[tokio::test]
async fn a_token_grows_old_while_the_machine_sleeps() {
    let server = token_registry(|header| header.starts_with("Bearer t"));
    let bench = bench(&server, None);
    bench.source.root().await.unwrap();
    bench.clock.suspend(Duration::from_secs(8 * 3600));
    bench.source.root().await.unwrap();
    let shown: Vec<_> =
        server.requests().iter().filter_map(|request| request.header("authorization").map(str::to_owned)).collect();
    assert_eq!(shown, ["Bearer t1", "Bearer t2"]);
}

#[test]
fn the_clock_of_lives_counts_from_the_boot() {
    let clock = MonotonicClock::default();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let now = clock.since_boot().as_secs_f64();
    assert!(now >= uptime && now < uptime + 600.0, "{now} {uptime}");
}
