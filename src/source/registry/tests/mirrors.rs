//! Mirrors: who is asked, what for, and what follows from their answers.

use super::*;
use crate::source::registry::mirrors::Mirrors;

type Script = fn(&Request) -> Response;

/// A source for `own`, with mirrors that are named on the command line.
fn mirrored(mirrors: &[SocketAddr], own: SocketAddr, change: impl FnOnce(&mut RegistryOptions)) -> Bench {
    let home = tempfile::tempdir().unwrap();
    let clock = Arc::new(FakeClock::default());
    let mut options = options(&home, &clock);
    options.mirrors.named = mirrors.iter().map(|mirror| mirror.to_string().parse().unwrap()).collect();
    change(&mut options);
    let name = format!("{own}/team/app:1").parse().unwrap();
    Bench { source: Arc::new(RegistrySource::new(name, "it".to_owned(), options).unwrap()), clock, _home: home }
}

/// A source for `own`, whose mirrors stand in this `hosts.toml`.
fn configured(hosts_toml: &str, own: SocketAddr) -> Bench {
    mirrored(&[], own, |options| {
        let root = options.mirrors.hosts_dir.clone().unwrap();
        let directory = root.join(own.to_string());
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("hosts.toml"), hosts_toml).unwrap();
    })
}

/// Options without anything of this machine.
fn options(home: &tempfile::TempDir, clock: &Arc<FakeClock>) -> RegistryOptions {
    let [authfile, conf] = ["auth.json", "registries.conf"].map(|name| home.path().join(name));
    std::fs::write(&conf, "").unwrap();
    let around = Surroundings {
        registry_auth_file: Some(authfile),
        registries_conf: Some(conf),
        xdg_config_home: Some(home.path().join("config")),
        ..Surroundings::default()
    };
    let mirrors = Mirrors { hosts_dir: Some(home.path().join("certs.d")), ..Mirrors::default() };
    let circuits = Circuits::new(clock.clone());
    let defaults = RegistryOptions::new(around);
    RegistryOptions { clock: clock.clone(), certs_dirs: Vec::new(), mirrors, circuits, ..defaults }
}

/// A registry with the manifest and a blob.
fn complete() -> Scripted {
    Scripted::start(|request| {
        if request.target.contains("/manifests/") {
            let digest = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes()).to_string();
            let length = MANIFEST.len().to_string();
            let labels = [("Content-Type", OCI), ("Docker-Content-Digest", &*digest), ("Content-Length", &*length)];
            let head = Response::head(200, &labels);
            return if request.method == "HEAD" { head } else { head.and(MANIFEST.as_bytes()) };
        }
        serve(request, &content())
    })
}

/// An address at which nothing listens.
fn nowhere() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn manifest(bench: &Bench) -> Result<(), SourceError> {
    bench.source.root().await.map(|(root, _)| assert_eq!(root.size, MANIFEST.len() as u64))
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_told_which_registry_is_meant() {
    let (mirror, own) = (complete(), complete());
    let bench = mirrored(&[mirror.address], own.address, |_| {});
    manifest(&bench).await.unwrap();
    let whole = content();
    assert_eq!(read(&bench, &blob(&whole), 5..10).await.unwrap(), whole[5..10]);
    assert_eq!(read(&bench, &blob(&whole), 0..200_000).await.unwrap(), whole);
    assert_eq!(own.requests().len(), 0);
    let ns = format!("?ns={}", own.address.to_string().replace(':', "%3A"));
    assert!(mirror.requests().iter().all(|request| request.target.ends_with(&ns)), "{:?}", mirror.requests());
    let hosts = bench.source.hosts();
    assert_eq!((hosts[0].host.clone(), hosts[0].mirror), (mirror.address.to_string(), true));
    assert_eq!((hosts[0].received_bytes, hosts[1].received_bytes), (200_005, 0));
    assert_eq!(bench.source.served_by(&blob(&whole).digest), Some(mirror.address.to_string()));
}

/// The reader never waits: there is another host to ask.
#[tokio::test]
async fn whatever_is_wrong_with_a_mirror_the_next_is_asked_at_once() {
    let other = r#"{"schemaVersion":2,"layers":[],"annotations":{}}"#;
    let wrong: [(&str, Script); 8] = [
        ("lacks it", |_| Response::new(404, &[], "")),
        ("is broken", |_| Response::new(500, &[], "oops")),
        ("is busy", |_| Response::new(429, &[("Retry-After", "3600")], "")),
        ("denies", |_| Response::new(403, &[], "")),
        ("wants a login", |_| Response::new(401, &[("WWW-Authenticate", "Basic realm=\"m\"")], "")),
        ("hangs up", |_| Response::nothing().then_hang_up()),
        ("sends a page", |_| Response::new(200, &[("Content-Type", "text/html")], "<html>")),
        ("redirects in circles", |request| Response::new(307, &[("Location", &request.target)], "")),
    ];
    for (what, script) in wrong {
        let (mirror, own) = (Scripted::start(script), complete());
        let bench = mirrored(&[mirror.address], own.address, |_| {});
        assert_eq!(bench.source.head().await.unwrap().size, MANIFEST.len() as u64, "a mirror that {what}");
        manifest(&bench).await.unwrap_or_else(|error| panic!("a mirror that {what}: {error}"));
        let read = read(&bench, &blob(&content()), 7..300).await;
        assert_eq!(read.unwrap_or_else(|error| panic!("a mirror that {what}: {error}")), content()[7..300]);
        assert_eq!(bench.clock.pauses(), [], "a mirror that {what}");
        assert!(!mirror.requests().is_empty());
    }
    // Documents that are named by digest are compared before they are taken.
    let mirror = Scripted::start(move |_| Response::new(200, &[("Content-Type", OCI)], other));
    let own = complete();
    let bench = mirrored(&[mirror.address], own.address, |_| {});
    let digest = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes());
    let wanted = Descriptor::new(MediaType::OciManifest, digest, MANIFEST.len() as u64);
    let got = bench.source.manifest(&wanted).await.unwrap().into_unverified();
    assert_eq!(got, MANIFEST);
}

#[tokio::test]
async fn a_mirror_that_fails_is_not_asked_for_a_while() {
    let (down, own) = (nowhere(), complete());
    let bench = mirrored(&[down], own.address, |_| {});
    for _ in 0..5 {
        read(&bench, &blob(&content()), 0..9).await.unwrap();
    }
    let passed_over = || bench.source.hosts()[0].passed_over.clone();
    assert!(passed_over().unwrap().starts_with("not asked for 15 s: cannot reach"), "{:?}", passed_over());
    // It is a matter of the process, whichever image and layer is asked for.
    let again = mirrored(&[down], own.address, |_| {});
    assert!(again.source.hosts()[0].passed_over.is_none(), "another process");
    bench.clock.advance(Duration::from_secs(15));
    read(&bench, &blob(&content()), 0..9).await.unwrap();
    assert!(passed_over().unwrap().starts_with("not asked for 30 s"), "{:?}", passed_over());
}

#[tokio::test]
async fn a_mirror_that_is_back_is_asked_again() {
    let up = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_up = up.clone();
    let mirror = Scripted::start(move |request| match is_up.load(Ordering::SeqCst) {
        true => serve(request, &content()),
        false => Response::new(503, &[], ""),
    });
    let own = complete();
    let bench = mirrored(&[mirror.address], own.address, |_| {});
    for _ in 0..5 {
        read(&bench, &blob(&content()), 0..9).await.unwrap();
    }
    assert_eq!(mirror.requests().len(), 3);
    up.store(true, Ordering::SeqCst);
    bench.clock.advance(Duration::from_secs(15));
    for _ in 0..5 {
        read(&bench, &blob(&content()), 0..9).await.unwrap();
    }
    assert_eq!((mirror.requests().len(), own.requests().len()), (8, 5));
    assert!(bench.source.hosts()[0].passed_over.is_none());
}

#[tokio::test]
async fn a_blob_that_a_mirror_lacks_is_asked_of_it_a_minute_later() {
    let mirror = Scripted::start(|_| Response::new(404, &[], ""));
    let own = complete();
    let bench = mirrored(&[mirror.address], own.address, |_| {});
    for _ in 0..4 {
        read(&bench, &blob(&content()), 0..9).await.unwrap();
    }
    assert_eq!((mirror.requests().len(), own.requests().len()), (1, 4));
    bench.clock.advance(Duration::from_secs(60));
    read(&bench, &blob(&content()), 0..9).await.unwrap();
    assert_eq!(mirror.requests().len(), 2);
    assert!(bench.source.hosts()[0].passed_over.is_none(), "it works, and may have others");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_continued_by_the_next() {
    let mirror = Scripted::start(|request| {
        let (first, last) = request.range().unwrap_or((0, 199_999));
        let range = format!("bytes {first}-{last}/200000");
        let length = (last + 1 - first).to_string();
        let part = &content()[first..(first + 30_000).min(last + 1)];
        Response::head(206, &[("Content-Range", &range), ("Content-Length", &length)]).and(part).then_hang_up()
    });
    let own = complete();
    let bench = mirrored(&[mirror.address], own.address, |_| {});
    assert_eq!(read(&bench, &blob(&content()), 10..200_000).await.unwrap(), content()[10..]);
    assert_eq!(mirror.requests().len(), 3, "then it is not asked");
    assert_eq!(own.requests()[0].range(), Some((90_010, 199_999)));
    let hosts = bench.source.hosts();
    assert_eq!((hosts[0].received_bytes, hosts[1].received_bytes), (90_000, 109_990));
}

#[tokio::test]
async fn wrong_bytes_are_asked_of_the_next() {
    let lying = |flip: u8| {
        Scripted::start(move |request| serve(request, &content().iter().map(|b| b ^ flip).collect::<Vec<_>>()))
    };
    let (first, second, own) = (lying(1), lying(2), complete());
    let bench = mirrored(&[first.address, second.address], own.address, |_| {});
    let blob = blob(&content());
    let stream = || async {
        let mut stream = bench.source.stream(&blob, BlobOffset(0)..BlobOffset(1)).await.unwrap();
        let byte = stream.next().await.unwrap().unwrap().into_unverified()[0];
        (byte ^ content()[0], stream.senders().pass_over())
    };
    assert_eq!(stream().await, (1, true));
    assert_eq!(stream().await, (2, true));
    assert_eq!(stream().await, (0, false), "of the registry itself nothing stands in");
    assert_eq!(stream().await.0, 0);
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1));
    bench.clock.advance(Duration::from_secs(600));
    assert_eq!(stream().await.0, 1, "it may have been mended");
}

/// Each blob is another, as it is not asked for one of which it has sent wrong bytes.
#[tokio::test]
async fn a_mirror_that_sends_nonsense_is_not_asked_for_a_while() {
    let wrong: [(&str, Script); 3] = [
        ("a page", |_| Response::new(200, &[("Content-Type", "text/html")], "<html>")),
        ("redirects in circles", |request| Response::new(307, &[("Location", &request.target)], "")),
        ("more than the blob", |request| Response::head(200, &[]).and(&content()).and(request.target.as_bytes())),
    ];
    for (what, script) in wrong {
        let (mirror, own) = (Scripted::start(script), complete());
        let bench = mirrored(&[mirror.address], own.address, |_| {});
        let mut asked = Vec::new();
        for number in 0..5 {
            let digest = Digest::of(Algorithm::Sha256, &[number]);
            let wanted = Descriptor { digest, ..blob(&content()) };
            assert_eq!(read(&bench, &wanted, 0..200_000).await.unwrap(), content(), "{what}");
            asked.push(mirror.requests().len());
        }
        assert!(asked[0] < asked[1] && asked[1] < asked[2] && asked[2] == asked[4], "{what}: {asked:?}");
        let passed_over = bench.source.hosts()[0].passed_over.clone().unwrap();
        assert!(passed_over.starts_with("not asked for 15 s: "), "{what}: {passed_over}");
        bench.clock.advance(Duration::from_secs(15));
        let wanted = Descriptor { digest: Digest::of(Algorithm::Sha256, b"other"), ..blob(&content()) };
        read(&bench, &wanted, 0..9).await.unwrap();
        assert!(mirror.requests().len() > asked[4], "{what}: it is tried again");
    }
}

#[tokio::test]
async fn a_mirror_that_sends_wrong_bytes_is_not_asked_for_a_while() {
    let (mirror, own) = (complete(), complete());
    let bench = mirrored(&[mirror.address], own.address, |_| {});
    for number in 0..5 {
        let digest = Digest::of(Algorithm::Sha256, &[number]);
        let wanted = Descriptor { digest, ..blob(&content()) };
        let mut stream = bench.source.stream(&wanted, BlobOffset(0)..BlobOffset(1)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        assert_eq!(stream.senders().pass_over(), number < 3);
    }
    assert_eq!((mirror.requests().len(), own.requests().len()), (3, 2));
    let passed_over = bench.source.hosts()[0].passed_over.clone().unwrap();
    assert_eq!(passed_over, "not asked for 15 s: it sent wrong bytes");
}

#[tokio::test]
async fn a_login_goes_to_its_own_host_alone() {
    let guarded = |user: &'static str| {
        Scripted::start(move |request| match request.header("authorization") {
            Some(header) if header == basic_of(user, "pw") => serve(request, &content()),
            _ => Response::new(401, &[("WWW-Authenticate", "Basic realm=\"m\"")], ""),
        })
    };
    let (mirror, own) = (guarded("m"), guarded("o"));
    for (of_mirror, of_own) in [(false, true), (true, false), (true, true)] {
        let bench = mirrored(&[mirror.address], own.address, |options| {
            let login =
                |host: SocketAddr, user: &str| format!(r#""{host}": {{"username": "{user}", "password": "pw"}}"#);
            let logins = [of_mirror.then(|| login(mirror.address, "m")), of_own.then(|| login(own.address, "o"))];
            let logins = logins.into_iter().flatten().collect::<Vec<_>>().join(",");
            let file = options.surroundings.registry_auth_file.clone().unwrap();
            std::fs::write(file, format!(r#"{{"auths": {{{logins}}}}}"#)).unwrap();
        });
        assert_eq!(read(&bench, &blob(&content()), 1..4).await.unwrap(), content()[1..4]);
    }
    let sent = |server: &Scripted| {
        let requests = server.requests();
        let mut sent: Vec<_> = requests.iter().filter_map(|r| r.header("authorization").map(str::to_owned)).collect();
        sent.dedup();
        sent
    };
    assert_eq!((sent(&mirror), sent(&own)), (vec![basic_of("m", "pw")], vec![basic_of("o", "pw")]));
}

#[tokio::test]
async fn only_mirrors_that_may_resolve_tags_are_asked_for_them() {
    let (mirror, own) = (complete(), complete());
    let text = format!("[host.'http://{}']\ncapabilities = ['pull']", mirror.address);
    let bench = configured(&text, own.address);
    bench.source.head().await.unwrap();
    manifest(&bench).await.unwrap();
    assert_eq!((mirror.requests().len(), own.requests().len()), (0, 2));
    read(&bench, &blob(&content()), 1..4).await.unwrap();
    assert_eq!((mirror.requests().len(), own.requests().len()), (1, 2));
}

#[tokio::test]
async fn headers_of_a_host_stay_with_it() {
    let storage = Scripted::start(|request| serve(request, &content()));
    let elsewhere = storage.url("/blob");
    let mirror = Scripted::start(move |_| Response::new(307, &[("Location", &elsewhere)], ""));
    let own = complete();
    let text =
        format!("[host.'http://{}/sub'.header]\nX-Peer = ['a', 'b']\nAuthorization = 'Basic abc'\n", mirror.address);
    let bench = configured(&text, own.address);
    for _ in 0..2 {
        read(&bench, &blob(&content()), 1..4).await.unwrap();
    }
    let asked = &mirror.requests()[0];
    assert!(asked.target.starts_with("/sub/v2/team/app/blobs/sha256:"), "{}", asked.target);
    assert_eq!((asked.header("x-peer"), asked.header("authorization")), (Some("a"), Some("Basic abc")));
    assert_eq!(storage.requests().len(), 2);
    assert!(storage.requests().iter().all(|r| r.header("x-peer").or(r.header("authorization")).is_none()));
}

/// An air gap: there is no registry, and there is no need of one.
#[tokio::test]
async fn a_registry_that_is_away_does_not_matter() {
    let mirror = complete();
    let bench = mirrored(&[mirror.address], nowhere(), |_| {});
    bench.source.head().await.unwrap();
    manifest(&bench).await.unwrap();
    assert_eq!(read(&bench, &blob(&content()), 0..200_000).await.unwrap(), content());
}

#[tokio::test]
async fn when_all_are_away_the_error_names_each() {
    let bench = mirrored(&[nowhere()], nowhere(), |_| {});
    let error = manifest(&bench).await.unwrap_err().to_string();
    assert!(error.contains("; mirror 127.0.0.1:") && error.matches("cannot reach").count() == 2, "{error}");
    assert_eq!(bench.clock.pauses(), []);
    let lacking = || Scripted::start(|_| Response::new(404, &[], ""));
    let (mirror, own) = (lacking(), lacking());
    let bench = mirrored(&[mirror.address], own.address, |_| {});
    match manifest(&bench).await {
        Err(SourceError::NotFound { said: Some(said), .. }) => assert!(said.contains("it does not have it"), "{said}"),
        other => panic!("{other:?}"),
    }
}

/// As a mount does, it waits until one of them is back, whichever that is.
#[tokio::test]
async fn a_mount_waits_for_whichever_is_back_first() {
    let asked = AtomicUsize::new(0);
    let mirror = Scripted::start(move |request| match asked.fetch_add(1, Ordering::SeqCst) {
        0..6 => Response::new(503, &[], ""),
        _ => serve(request, &content()),
    });
    let bench = mirrored(&[mirror.address], nowhere(), |_| {});
    bench.source.outages().unwrap().retry_without_limit(OnOutage::Block);
    assert_eq!(read(&bench, &blob(&content()), 3..9).await.unwrap(), content()[3..9]);
    assert!(!bench.clock.pauses().is_empty());
}

/// A source that looks for a faster host after [`IMPATIENT`].
fn impatient(mirror: &Scripted, own: &Scripted) -> Bench {
    mirrored(&[mirror.address], own.address, |options| options.deadlines.mirror = IMPATIENT)
}

const IMPATIENT: Duration = Duration::from_millis(800);

/// Time stands still until this is dropped, but where a test moves it: so a limit is reached where the test wants it to be, however
/// busy the machine is.
struct StillTime(
    #[expect(dead_code, reason = "dropping it ends the task that is blocked")] std::sync::mpsc::Sender<()>,
);

impl StillTime {
    fn begin() -> Self {
        tokio::time::pause();
        let (held, until) = std::sync::mpsc::channel();
        // Otherwise tokio moves the time on whenever all tasks wait; not while one is blocked.
        tokio::task::spawn_blocking(move || until.recv());
        Self(held)
    }

    /// The answer, for which the source has waited longer than [`IMPATIENT`] once `is_waiting`.
    async fn slow<T>(&self, answer: impl Future<Output = T>, is_waiting: impl Fn() -> bool) -> T {
        let passes = async {
            while !is_waiting() {
                tokio::task::yield_now().await;
            }
            // Timers have a resolution of a millisecond.
            tokio::time::advance(IMPATIENT + Duration::from_millis(1)).await;
        };
        tokio::join!(answer, passes).0
    }
}

/// A response that begins and does not go on.
fn stuck(request: &Request) -> Response {
    let (first, last) = request.range().unwrap_or((0, 199_999));
    let range = format!("bytes {first}-{last}/200000");
    let length = (last + 1 - first).to_string();
    let part = &content()[first..last.min(first + 1000)];
    Response::head(206, &[("Content-Range", &range), ("Content-Length", &length)]).and(part).then_hang()
}

#[tokio::test]
async fn a_mirror_that_is_slow_is_left_for_the_next() {
    let (mirror, own, time) = (Scripted::start(stuck), complete(), StillTime::begin());
    let bench = impatient(&mirror, &own);
    let blob = blob(&content());
    let has_begun = || bench.source.hosts()[0].received_bytes == 1000;
    assert_eq!(time.slow(read(&bench, &blob, 10..200_000), has_begun).await.unwrap(), content()[10..]);
    for _ in 0..2 {
        assert_eq!(read(&bench, &blob, 10..200_000).await.unwrap(), content()[10..]);
    }
    assert_eq!(mirror.requests().len(), 1);
    let asked: Vec<_> = own.requests().iter().filter_map(Request::range).collect();
    assert_eq!(asked[..2], [(1010, 1009 + (16 << 10)), (1010 + (16 << 10), 199_999)]);
    assert_eq!(asked.len(), 4);
    let hosts = bench.source.hosts();
    let told = hosts[0].passed_over.clone().unwrap();
    let wanted = format!("and {} sent 16384 bytes in ", own.address);
    assert!(told.starts_with("not asked for 15 s: it is slow: 1000 bytes in ") && told.contains(&wanted), "{told}");
    assert_eq!((hosts[0].received_bytes, hosts[1].received_bytes), (1000, 3 * 199_990 - 1000));
}

#[tokio::test]
async fn a_mirror_that_does_not_answer_is_not_waited_for() {
    for what in ["a tag", "a manifest", "a blob"] {
        let (mirror, own) = (Scripted::start(|_| Response::nothing().then_hang()), complete());
        let (bench, time) = (impatient(&mirror, &own), StillTime::begin());
        let answer = async || match what {
            "a tag" => drop(bench.source.head().await.unwrap()),
            "a manifest" => manifest(&bench).await.unwrap(),
            _ => assert_eq!(read(&bench, &blob(&content()), 0..200_000).await.unwrap(), content()),
        };
        time.slow(answer(), || !mirror.requests().is_empty()).await;
        for _ in 0..2 {
            answer().await;
        }
        drop(time);
        tokio::time::resume();
        assert_eq!(mirror.requests().len(), 1, "{what}");
        let told = bench.source.hosts()[0].passed_over.clone().unwrap();
        assert!(told.starts_with("not asked for 15 s: it "), "{what}: {told}");
        assert_eq!(bench.clock.pauses(), []);
    }
}

/// A response that goes on when `own` was asked, too.
fn slow_until_compared(compared: std::sync::mpsc::Receiver<()>, begins: bool) -> Scripted {
    let compared = Arc::new(Mutex::new(compared));
    Scripted::start(move |request| {
        let compared = compared.clone();
        // Once: later requests are answered at once.
        serve(request, &content()).held(begins, move || {
            let _ = compared.lock().unwrap().recv();
        })
    })
}

/// On a slow link, or with a registry that is away.
#[tokio::test]
async fn a_slow_mirror_is_kept_when_the_next_is_no_faster() {
    for hangs_up in [false, true] {
        for begins in [false, true] {
            let (told, compared) = std::sync::mpsc::sync_channel(1);
            let told = Mutex::new(Some(told));
            let own = Scripted::start(move |_| {
                let nothing = Response::nothing();
                told.lock().unwrap().take();
                if hangs_up { nothing.then_hang_up() } else { nothing.then_hang() }
            });
            let mirror = slow_until_compared(compared, begins);
            let (bench, time) = (impatient(&mirror, &own), StillTime::begin());
            let blob = blob(&content());
            let slow = time.slow(read(&bench, &blob, 0..200_000), || !mirror.requests().is_empty());
            assert_eq!(slow.await.unwrap(), content());
            for _ in 0..2 {
                assert_eq!(read(&bench, &blob, 0..200_000).await.unwrap(), content());
            }
            drop(time);
            tokio::time::resume();
            assert_eq!((mirror.requests().len(), own.requests().len()), (3, 1), "it is compared once");
            assert!(bench.source.hosts()[0].passed_over.is_none());
        }
    }
}

#[tokio::test]
async fn a_slow_answer_of_a_mirror_counts_if_it_comes_first() {
    let (told, compared) = std::sync::mpsc::sync_channel::<()>(1);
    let told = Mutex::new(Some(told));
    let own = Scripted::start(move |_| {
        told.lock().unwrap().take();
        Response::nothing().then_hang()
    });
    let compared = Mutex::new(compared);
    let mirror = Scripted::start(move |_| {
        let _ = compared.lock().unwrap().recv();
        Response::new(200, &[("Content-Type", OCI)], MANIFEST)
    });
    let (bench, time) = (impatient(&mirror, &own), StillTime::begin());
    time.slow(manifest(&bench), || !mirror.requests().is_empty()).await.unwrap();
    assert_eq!((mirror.requests().len(), own.requests().len()), (1, 1));
    assert!(bench.source.hosts()[0].passed_over.is_none());
}

/// As where the connection could not be made.
#[tokio::test]
async fn a_mirror_that_fails_while_the_next_is_asked_is_left() {
    let (told, compared) = std::sync::mpsc::sync_channel::<()>(1);
    let told = Mutex::new(Some(told));
    let own = Scripted::start(move |_| {
        told.lock().unwrap().take();
        Response::new(200, &[("Content-Type", OCI)], MANIFEST)
    });
    let compared = Mutex::new(compared);
    let mirror = Scripted::start(move |_| {
        let _ = compared.lock().unwrap().recv();
        Response::nothing().then_hang_up()
    });
    let (bench, time) = (impatient(&mirror, &own), StillTime::begin());
    time.slow(manifest(&bench), || !mirror.requests().is_empty()).await.unwrap();
    for _ in 0..2 {
        manifest(&bench).await.unwrap();
    }
    assert_eq!((mirror.requests().len(), own.requests().len()), (1, 3));
    assert!(bench.source.hosts()[0].passed_over.is_some());
}

#[tokio::test]
async fn an_error_names_the_mirror_whose_body_broke() {
    let mirror = Scripted::start(|request| {
        let (first, _) = request.range().unwrap_or_default();
        let range = format!("bytes {first}-199999/200000");
        let length = (200_000 - first).to_string();
        let labels = [("Content-Range", &*range), ("Content-Length", &*length)];
        Response::head(206, &labels).and(&content()[first..=first]).then_hang_up()
    });
    let bench = mirrored(&[mirror.address], nowhere(), |_| {});
    let Err(SourceError::Unreachable { place, .. }) = read(&bench, &blob(&content()), 0..200_000).await else {
        panic!("it is away")
    };
    assert_eq!(place, mirror.address.to_string());
}
