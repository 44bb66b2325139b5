//! Servers with certificates of all kinds, made by openssl as in real deployments.

use std::process::Command;

use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::verifier::{Refusal, Roots, Verifier, explain};
use super::*;

const P256: &str = "ec -pkeyopt ec_paramgen_curve:prime256v1";
const P384: &str = "ec -pkeyopt ec_paramgen_curve:secp384r1";
const P521: &str = "ec -pkeyopt ec_paramgen_curve:secp521r1";
/// A directory of keys and certificates: `NAME.key`, `NAME.pem`.
pub(super) struct Keys(tempfile::TempDir);

impl Keys {
    /// `None` without openssl.
    pub(super) fn new() -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_err() {
            eprintln!("skipped: needs openssl");
            return None;
        }
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, words: &str) {
        let output =
            Command::new("openssl").args(words.split_whitespace()).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A self-signed certificate; `more` are options of `openssl req`.
    pub(super) fn own(&self, name: &str, key: &str, more: &str) {
        self.openssl(&format!(
            "req -x509 -newkey {key} -nodes -keyout {name}.key -out {name}.pem -days 365 -subj /CN={name} {more}"
        ));
    }

    /// A certificate for this machine's loopback names signed by the authority `by`; extensions in `more`.
    fn signed(&self, name: &str, key: &str, by: &str, digest: &str, more: &str) {
        self.openssl(&format!("req -newkey {key} -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        std::fs::write(self.path("extensions"), format!("{SAN}\n{more}\n")).unwrap();
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {by}.pem -CAkey {by}.key -CAcreateserial -days 365 -{digest} \
             -extfile extensions -out {name}.pem"
        ));
    }

    fn certificates(&self, name: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(self.path(&format!("{name}.pem"))).unwrap().map(Result::unwrap).collect()
    }

    fn secret(&self, name: &str) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap()
    }

    /// A server with the certificate `name` that answers with what `script` returns.
    pub(super) fn registry_saying(
        &self,
        name: &str,
        script: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Scripted {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(self.certificates(name), self.secret(name)).unwrap();
        Scripted::start_tls(config, script)
    }

    /// A registry with the certificate `name` that requires a client certificate by the authority `clients`, if given.
    fn registry(&self, name: &str, clients: Option<&str>) -> Scripted {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(self.certificates(authority));
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
                config.with_client_cert_verifier(verifier)
            }
        };
        let config = config.with_single_cert(self.certificates(name), self.secret(name)).unwrap();
        Scripted::start_tls(config, |_| Response::new(200, &[("Content-Type", OCI)], MANIFEST))
    }

    fn ask(&self, server: &Scripted, ca: &str) -> Asking<'_> {
        Asking { keys: self, address: server.address, ca: ca.to_owned() }
    }
}

const SAN: &str = "subjectAltName=DNS:localhost,IP:127.0.0.1";

/// A request for one manifest.
struct Asking<'a> {
    keys: &'a Keys,
    address: SocketAddr,
    ca: String,
}

impl Asking<'_> {
    async fn of(&self, host: &str) -> Result<(), SourceError> {
        self.with(host, |_| {}).await
    }

    async fn with(&self, host: &str, change: impl FnOnce(&mut RegistryOptions)) -> Result<(), SourceError> {
        let clock = Arc::new(FakeClock::default());
        let mut options = RegistryOptions { clock, ..RegistryOptions::new(Surroundings::default()) };
        options.certs_dirs.clear();
        options.ca.extend((!self.ca.is_empty()).then(|| self.keys.path(&format!("{}.pem", self.ca))));
        // So that nothing is tried without TLS.
        options.certs_dirs.push(self.keys.path("certs.d"));
        let directory = self.keys.path("certs.d").join(format!("{host}:{}", self.address.port()));
        std::fs::create_dir_all(directory).unwrap();
        change(&mut options);
        let name = format!("{host}:{}/team/app:1", self.address.port()).parse().unwrap();
        RegistrySource::new(name, "it".to_owned(), options)?.root().await.map(drop)
    }
}

/// Why it could not be reached, and the hint.
fn told(result: Result<(), SourceError>) -> (String, Option<&'static str>) {
    match result {
        Err(SourceError::Unreachable { why, hint, .. }) => (why, hint),
        other => panic!("{other:?}"),
    }
}

/// As docker does; podman needs no hint, as it always asks with TLS.
#[tokio::test]
async fn a_registry_of_this_machine_is_asked_with_tls_if_it_has_it() {
    let Some(keys) = Keys::new() else { return };
    keys.own("server", P256, &format!("-addext {SAN}"));
    let server = keys.registry("server", None);
    let asked = |options: &mut RegistryOptions| options.certs_dirs.clear();
    let (why, hint) = told(keys.ask(&server, "").with("127.0.0.1", asked).await);
    assert!(why.contains("certificate"), "{why}");
    assert!(hint.unwrap().contains("--ca"), "{hint:?}");
    assert_eq!(server.requests().len(), 0, "nothing was sent that it can read");
    // Without TLS, an answer of this kind is what it is.
    let plain = Scripted::start(|_| Response::new(400, &[], "no"));
    match keys.ask(&plain, "").with("127.0.0.1", asked).await {
        Err(SourceError::Protocol { why, .. }) => assert!(why.contains("400"), "{why}"),
        other => panic!("{other:?}"),
    }
}

/// As the documentation of registries and of Docker recommends; the file is both certificate and root.
#[tokio::test]
async fn a_trusted_certificate_is_accepted_as_itself() {
    let Some(keys) = Keys::new() else { return };
    for (key, more) in [
        ("rsa:2048", "-sha256"),
        (P521, ""),
        (P256, "-sha512"),
        (P256, "-addext basicConstraints=critical,CA:FALSE"),
        (P256, "-addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=keyCertSign"),
        (P256, "-addext extendedKeyUsage=serverAuth,clientAuth"),
    ] {
        keys.own("own", key, &format!("-addext {SAN} {more}"));
        let server = keys.registry("own", None);
        let asking = keys.ask(&server, "own");
        for host in ["localhost", "127.0.0.1"] {
            asking.of(host).await.unwrap_or_else(|error| panic!("{key} {more} {host}: {error}"));
        }
        // Another certificate with the same names is not accepted.
        keys.own("other", key, &format!("-addext {SAN} {more} -subj /CN=own"));
        let (why, hint) = told(keys.ask(&server, "other").of("localhost").await);
        assert!(why.contains("its certificate") && hint.unwrap().contains("--ca"), "{key} {more}: {why}");
        // In the `certs.d` directory of the host instead.
        let directory = keys.path(&format!("certs.d/localhost:{}", server.address.port()));
        std::fs::copy(keys.path("own.pem"), directory.join("any.crt")).unwrap();
        keys.ask(&server, "").of("localhost").await.unwrap();
    }
}

/// Not self-signed: its issuer is not trusted, only the certificate itself.
#[tokio::test]
async fn a_trusted_leaf_needs_no_authority() {
    let Some(keys) = Keys::new() else { return };
    keys.own("ca", P256, "");
    keys.signed("leaf", P256, "ca", "sha256", "");
    keys.ask(&keys.registry("leaf", None), "leaf").of("localhost").await.unwrap();
}

#[tokio::test]
async fn authorities_of_companies_are_accepted() {
    let Some(keys) = Keys::new() else { return };
    for (authority, digest, leaf) in [
        (P521, "sha512", P256),
        (P521, "sha256", P256),
        (P521, "sha384", P521),
        (P384, "sha512", P256),
        (P256, "sha512", P384),
        ("rsa:2048", "sha512", P521),
        ("ed25519", "sha512", P256),
    ] {
        keys.own("ca", authority, "");
        keys.signed("leaf", leaf, "ca", digest, "");
        let asked = keys.ask(&keys.registry("leaf", None), "ca").of("localhost").await;
        asked.unwrap_or_else(|error| panic!("{authority} {digest} {leaf}: {error}"));
        // A server that need not be verified must still be reachable.
        let server = keys.registry("leaf", None);
        keys.ask(&server, "").with("localhost", |options| options.insecure = true).await.unwrap();
    }
}

#[tokio::test]
async fn certificates_are_refused_in_words() {
    let Some(keys) = Keys::new() else { return };
    keys.own("ca", P256, "-subj /O=Corp/CN=Root");
    keys.signed("leaf", P256, "ca", "sha256", "");
    let (why, hint) = told(keys.ask(&keys.registry("leaf", None), "").of("localhost").await);
    assert!(why.contains("signed by `CN=Root,O=Corp`, which is not trusted here"), "{why}");
    assert!(hint.unwrap().contains("`--ca FILE`"), "{hint:?}");
    let (why, hint) = told(keys.ask(&keys.registry("ca", None), "").of("localhost").await);
    assert!(why.contains("signed by itself and not trusted here"), "{why}");
    assert!(hint.unwrap().contains("`--ca FILE`"), "{hint:?}");

    keys.own("named", P256, "-addext subjectAltName=DNS:a.example,DNS:*.b.example,IP:10.0.0.1");
    let (why, hint) = told(keys.ask(&keys.registry("named", None), "named").of("localhost").await);
    assert!(
        why.ends_with("its certificate is for `a.example`, `*.b.example`, `10.0.0.1`, not for `localhost`"),
        "{why}"
    );
    assert!(hint.unwrap().contains("subjectAltName"), "{hint:?}");
    keys.own("nameless", P256, "-subj /CN=localhost");
    let (why, _) = told(keys.ask(&keys.registry("nameless", None), "nameless").of("localhost").await);
    assert!(why.contains("without a `subjectAltName`"), "{why}");

    keys.own("client", P256, &format!("-addext {SAN} -addext extendedKeyUsage=clientAuth"));
    let (why, _) = told(keys.ask(&keys.registry("client", None), "client").of("localhost").await);
    assert!(why.contains("is not one for servers"), "{why}");
    keys.signed("old", "rsa:2048", "ca", "sha1", "");
    let (why, _) = told(keys.ask(&keys.registry("old", None), "ca").of("localhost").await);
    assert!(why.contains("signed with SHA-1, which is no longer secure"), "{why}");

    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        use std::io::Write as _;
        plain.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let asking = Asking { keys: &keys, address, ca: String::new() };
    let (why, hint) = told(asking.of("localhost").await);
    answering.join().unwrap();
    assert!(why.ends_with("it does not speak TLS") && hint.unwrap().contains("--insecure"), "{why}");
}

/// By the verifier directly, as not every openssl can make certificates of other dates.
#[test]
fn certificates_of_other_days_are_refused() {
    let Some(keys) = Keys::new() else { return };
    keys.own("own", P256, &format!("-addext {SAN}"));
    keys.own("ca", P256, "");
    keys.signed("leaf", P256, "ca", "sha256", "");
    let mut roots = Roots::none();
    for name in ["own", "ca"] {
        roots.add(keys.certificates(name).remove(0)).unwrap();
    }
    let verifier = Verifier::new(roots, Arc::new(rustls::crypto::aws_lc_rs::default_provider())).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let year = Duration::from_secs(366 * 86_400);
    for name in ["own", "leaf"] {
        let certificate = keys.certificates(name).remove(0);
        let verify = |at: Duration| {
            let host = ServerName::try_from("localhost").unwrap();
            let result = verifier.verify_server_cert(&certificate, &[], &host, &[], UnixTime::since_unix_epoch(at));
            result.map(drop).map_err(|error| explain(&error).unwrap().to_string())
        };
        verify(now + Duration::from_secs(60)).unwrap();
        let late = verify(now + year).unwrap_err();
        assert!(late.starts_with("its certificate expired on 2") && late.contains("(today is 2"), "{name}: {late}");
        let early = verify(now - year).unwrap_err();
        assert!(early.starts_with("its certificate is not valid before 2"), "{name}: {early}");
    }
    let other = rustls::Error::General("\u{1b}[2J".to_owned());
    let Refusal { why, .. } = explain(&other).unwrap();
    assert!(!why.contains('\u{1b}'), "{why}");
}

/// Whatever the names of the pair and the form of the key; of several pairs, the one whose authority the server names.
#[tokio::test]
async fn client_certificates_are_found_by_pairs() {
    let Some(keys) = Keys::new() else { return };
    keys.own("own", P256, &format!("-addext {SAN}"));
    for authority in ["ours", "theirs"] {
        keys.own(authority, P256, "");
    }
    keys.signed("me", "rsa:2048", "ours", "sha256", "extendedKeyUsage=clientAuth");
    keys.signed("stranger", P256, "theirs", "sha256", "extendedKeyUsage=clientAuth");
    let server = keys.registry("own", Some("ours"));
    let asking = keys.ask(&server, "own");
    let directory = keys.path(&format!("certs.d/localhost:{}", server.address.port()));
    let put = |from: &str, to: &str| {
        for (old, new) in [("pem", "cert"), ("key", "key")] {
            std::fs::copy(keys.path(&format!("{from}.{old}")), directory.join(format!("{to}.{new}"))).unwrap();
        }
    };

    let (why, hint) = told(asking.of("localhost").await);
    assert!(why.contains("it requires a client certificate"), "{why}");
    assert!(hint.unwrap().contains("`certs.d`"), "{hint:?}");
    put("stranger", "a");
    let (why, _) = told(asking.of("localhost").await);
    assert!(why.contains("does not accept the client certificate"), "{why}");
    put("me", "work laptop");
    asking.of("localhost").await.unwrap();
    std::fs::remove_file(directory.join("a.cert")).unwrap();
    // A key without a certificate is ignored.
    asking.of("localhost").await.unwrap();
    let key = directory.join("work laptop.key");
    let traditional = format!("rsa -in me.key -traditional -out {}", "me.rsa");
    keys.openssl(&traditional);
    std::fs::copy(keys.path("me.rsa"), &key).unwrap();
    asking.of("localhost").await.unwrap();

    let refused = |result: Result<(), SourceError>| match result {
        Err(SourceError::Unsupported { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    std::fs::copy(keys.path("stranger.key"), &key).unwrap();
    assert!(refused(asking.of("localhost").await).contains("is not the key of"));
    keys.openssl("pkcs8 -topk8 -in me.key -passout pass:x -out me.locked");
    std::fs::copy(keys.path("me.locked"), &key).unwrap();
    assert!(refused(asking.of("localhost").await).contains("the key is encrypted"));
    std::fs::remove_file(&key).unwrap();
    assert!(refused(asking.of("localhost").await).contains(key.to_str().unwrap()));
}

#[tokio::test]
async fn a_bundle_may_hold_unusable_certificates() {
    let Some(keys) = Keys::new() else { return };
    keys.own("own", P256, &format!("-addext {SAN}"));
    let broken = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let own = std::fs::read_to_string(keys.path("own.pem")).unwrap();
    std::fs::write(keys.path("bundle.pem"), format!("a comment\r\n{broken}{own}")).unwrap();
    std::fs::write(keys.path("broken.pem"), broken).unwrap();
    let server = keys.registry("own", None);
    keys.ask(&server, "bundle").of("localhost").await.unwrap();
    let result = keys.ask(&server, "broken").of("localhost").await;
    assert!(matches!(result, Err(SourceError::Unsupported { .. })), "{result:?}");
}
