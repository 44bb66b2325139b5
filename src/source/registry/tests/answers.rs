//! Documents, redirects, refusals, and secrets that stay so.

use super::*;

#[tokio::test]
async fn redirects_carry_no_credentials_and_last_until_they_expire() {
    let bytes = content();
    let served = bytes.clone();
    let expired = Arc::new(AtomicUsize::new(0));
    let old = expired.clone();
    let storage = Scripted::start(move |request| {
        let generation = format!("/store?sig={}", old.load(Ordering::SeqCst));
        if request.target == generation { serve(request, &served) } else { Response::new(403, &[], "expired") }
    });
    let (location, current) = (storage.url("/store"), expired.clone());
    let server = Scripted::start(move |request| match request.header("authorization") {
        Some(_) => {
            let to = format!("{location}?sig={}", current.load(Ordering::SeqCst));
            Response::new(307, &[("Location", &to), ("Set-Cookie", "a=b")], "")
        }
        None => Response::new(401, &[("WWW-Authenticate", "Basic realm=r")], ""),
    });
    let bench = bench(&server, Some(ALICE));
    for range in [0..10, 10..20, 150_000..199_000] {
        let wanted = &bytes[range.start as usize..range.end as usize];
        assert_eq!(read(&bench, &blob(&bytes), range).await.unwrap(), wanted);
    }
    // 401, redirect; then storage only.
    assert_eq!((server.requests().len(), storage.requests().len()), (2, 3));
    expired.store(1, Ordering::SeqCst);
    assert_eq!(read(&bench, &blob(&bytes), 20..30).await.unwrap(), bytes[20..30]);
    assert_eq!((server.requests().len(), storage.requests().len()), (3, 5));
    for request in storage.requests() {
        for name in ["authorization", "cookie", "referer", "proxy-authorization"] {
            assert_eq!(request.header(name), None, "{name}");
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
    // With only one subscriber, `tracing` caches interest from the thread that first reaches a call site; that may be
    // another test's.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let guard = tracing::subscriber::set_default(subscriber);
    let bytes = content();
    let served = bytes.clone();
    let storage = Scripted::start(move |request| match request.range() {
        Some((0, _)) => Response::new(403, &[], "no"),
        _ => serve(request, &served),
    });
    let location = storage.url("/store?signature=sIgNaTuRe");
    let server = Scripted::start(move |request| {
        if request.target.starts_with("/token") {
            return Response::new(200, &[], r#"{"token":"tOkEnTeXt"}"#);
        }
        match request.header("authorization") {
            Some("Bearer tOkEnTeXt") => Response::new(307, &[("Location", &location)], ""),
            _ => challenge(request),
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
        let server = Scripted::start(move |_| Response::new(302, &[("Location", location)], ""));
        let result = read(&bench(&server, None), &blob(&bytes), 0..10).await;
        let Err(SourceError::Protocol { why, .. }) = result else { panic!("{result:?}") };
        assert!(why.contains(words), "{why}");
        assert!(server.requests().len() <= 6);
    }
    let server = Scripted::start(|_| Response::new(302, &[], ""));
    let result = read(&bench(&server, None), &blob(&bytes), 0..10).await;
    assert!(matches!(result, Err(SourceError::Protocol { .. })), "{result:?}");
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_but_not_for_ever() {
    let left = AtomicUsize::new(3);
    let server = Scripted::start(move |_| {
        match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(3) => Response::new(429, &[("Retry-After", "40")], ""),
            Ok(_) => Response::new(503, &[], "tired"),
            Err(_) => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
        }
    });
    let first = bench(&server, None);
    first.source.root().await.unwrap();
    let pauses = first.clock.pauses();
    assert_eq!(pauses.len(), 3);
    assert_eq!(pauses[0], Duration::from_secs(40));
    assert!(pauses[1..].iter().all(|pause| *pause < Duration::from_secs(1)));

    let server = Scripted::start(|_| Response::new(503, &[], "tired"));
    let Err(SourceError::Unreachable { why, .. }) = bench(&server, None).source.root().await else { panic!() };
    assert!(why.contains("503") && why.contains("tired") && why.contains("tried 6 times"), "{why}");
}

/// The date is compared with the server's own.
#[tokio::test]
async fn one_that_asks_to_wait_for_too_long_is_not_asked_again() {
    let at = |date: &'static str| vec![("Date", "Fri, 01 Jan 2100 12:00:00 GMT"), ("Retry-After", date)];
    let after = |asked: &'static str| vec![("Retry-After", asked)];
    let table = [
        (after("3600"), Some("asks to wait 3600 s")),
        (after("99999999999999999999"), Some("asks to wait 18446744073709551615 s")),
        (at("Fri, 01 Jan 2100 13:00:00 GMT"), Some("asks to wait 3600 s")),
        (at("Friday, 01-Jan-00 13:00:00 GMT"), None),
        (at("Fri Jan  1 13:00:00 2100"), Some("asks to wait 3600 s")),
        (at("Fri, 01 Jan 2100 12:00:20 GMT"), None),
        (at("Fri, 01 Jan 2100 11:00:00 GMT"), None),
        (after("Thu, 01 Jan 1970 00:00:00 GMT"), None),
        (after("soon"), None),
        (Vec::new(), None),
    ];
    for (status, trouble) in [(429, Outage::TooMany), (503, Outage::Unwell)] {
        for (headers, asks) in &table {
            let said = headers.clone();
            let server = Scripted::start(move |_| Response::new(status, &said, "enough"));
            let bench = bench(&server, None);
            let Err(SourceError::Unreachable { why, hint, .. }) = bench.source.root().await else { panic!() };
            assert_eq!(hint, trouble.hint());
            assert!(why.contains("enough") && asks.is_none_or(|asks| why.contains(asks)), "{headers:?}: {why}");
            let tries = server.requests().len();
            match asks {
                Some(_) => assert_eq!((tries, bench.clock.pauses()), (1, Vec::new()), "{headers:?}"),
                None => assert!((2..=6).contains(&tries), "{headers:?}: {tries}"),
            }
        }
    }
}

/// Without a time to retry, the third refusal is final.
#[tokio::test]
async fn too_many_requests_are_not_answered_with_more() {
    for path in ["/v2/", "/token"] {
        let server = Scripted::start(move |request| match request.target.starts_with(path) {
            true => Response::new(429, &[], r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#),
            false => challenge(request),
        });
        let bench = bench(&server, None);
        let Err(SourceError::Unreachable { why, hint, .. }) = bench.source.root().await else { panic!("{path}") };
        assert_eq!(hint, Outage::TooMany.hint(), "{why}");
        assert!(why.contains("slow down"), "{why}");
        let refused = server.requests().iter().filter(|request| request.target.starts_with(path)).count();
        assert_eq!(refused, 3, "{path}");
        let pauses = bench.clock.pauses();
        assert!(pauses.iter().all(|pause| pause.as_millis() >= 500), "{pauses:?}");
    }
}

#[tokio::test]
async fn an_endless_manifest_ends_at_four_mebibytes() {
    let server = Scripted::start(|_| Response::head(200, &[("Content-Type", OCI)]).then_repeat(&[b' '; 65_536]));
    let bench = bench(&server, None);
    let Err(SourceError::Protocol { why, .. }) = bench.source.root().await else { panic!() };
    assert!(why.contains("more than 4194304 bytes"), "{why}");
    assert!(bench.source.stats().bytes_received < MANIFEST_LIMIT + (1 << 20));
}

#[tokio::test]
async fn an_endless_token_ends_at_one_mebibyte() {
    let server = Scripted::start(|request| {
        if request.target.starts_with("/token") {
            return Response::head(200, &[]).then_repeat(&[b' '; 65_536]);
        }
        challenge(request)
    });
    let bench = bench(&server, None);
    assert!(bench.source.root().await.is_err());
    assert!(bench.source.stats().bytes_received < 3 << 20);
}

#[tokio::test]
async fn head_describes_without_a_body() {
    let digest = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes());
    let named = digest.to_string();
    let server = Scripted::start(move |request| {
        assert_eq!(request.method, "HEAD");
        let length = MANIFEST.len().to_string();
        Response::head(200, &[("Content-Type", OCI), ("Content-Length", &length), ("Docker-Content-Digest", &named)])
    });
    let found = bench(&server, None).source.head().await.unwrap();
    assert_eq!(found, Descriptor::new(MediaType::OciManifest, digest, MANIFEST.len() as u64));
}

#[tokio::test]
async fn a_registry_that_cannot_head_is_asked_by_get() {
    for status in [404, 405, 400, 200] {
        // 200 without a digest is not enough.
        let server = Scripted::start(move |request| match request.method.as_str() {
            "HEAD" => Response::head(status, &[("Content-Length", "31"), ("Content-Type", OCI)]),
            _ => Response::new(200, &[("Content-Type", OCI)], MANIFEST),
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
        let server = Scripted::start(move |_| Response::new(200, &[("Content-Type", content_type)], body));
        let found = bench(&server, None).source.root().await.ok().map(|(descriptor, _)| descriptor.media_type);
        assert_eq!(found, wanted, "{content_type} {body}");
    }
}

#[tokio::test]
async fn schema_1_comes_with_a_hint() {
    let schema1 = "application/vnd.docker.distribution.manifest.v1+json";
    let server = Scripted::start(move |_| Response::new(200, &[("Content-Type", schema1)], "{}"));
    let result = bench(&server, None).source.root().await;
    assert!(matches!(result, Err(SourceError::Unsupported { hint: Some(_), .. })), "{result:?}");
}

#[tokio::test]
async fn a_manifest_that_contradicts_its_descriptor_is_refused() {
    let server = Scripted::start(|_| Response::new(200, &[("Content-Type", OCI)], MANIFEST));
    let bench = bench(&server, None);
    let digest = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes());
    let size = MANIFEST.len() as u64;
    let fetch = |media_type, size| {
        let (source, wanted) = (bench.source.clone(), Descriptor::new(media_type, digest.clone(), size));
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
    let server = Scripted::start(move |_| {
        Response::new(200, &[("Content-Type", OCI), ("Docker-Content-Digest", &other)], MANIFEST)
    });
    let result = bench(&server, None).source.root().await;
    assert!(matches!(result, Err(SourceError::Corrupt { .. })), "{result:?}");
}

#[tokio::test]
async fn missing_objects_are_named() {
    let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
    let server = Scripted::start(move |_| Response::new(404, &[], body));
    let error = bench(&server, None).source.root().await.unwrap_err();
    assert_eq!(error.to_string(), format!("manifest `1` not found in {}/team/app", server.address));
    let SourceError::NotFound { said: Some(said), .. } = error else { panic!() };
    assert!(said.contains("MANIFEST_UNKNOWN: manifest unknown"), "{said}");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_one_clear_error_at_once() {
    // Bound and not listening: no other process can take the port, and connections are refused.
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address: SocketAddr = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
    let gone = Scripted::start(|_| Response::head(200, &[]));
    let mut bench = bench(&gone, None);
    let name = format!("{address}/team/app:1").parse().unwrap();
    let clock = bench.clock.clone();
    let options = RegistryOptions { clock, certs_dirs: Vec::new(), ..RegistryOptions::new(Surroundings::default()) };
    bench.source = Arc::new(RegistrySource::new(name, "it".to_owned(), options).unwrap());
    let error = bench.source.root().await.unwrap_err().to_string();
    assert!(error.contains(&format!("cannot reach {address}: connection refused")), "{error}");
    assert_eq!(bench.clock.pauses(), []);
}

#[test]
fn addresses_of_a_registry() {
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
        // Neither an address nor a name.
        ("1.2.3.256", false, false, None),
    ] {
        assert_eq!(find(host, insecure, ca).as_deref(), wanted, "{host}");
    }
}
