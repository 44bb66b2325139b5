//! TLS: which certificates are trusted, and which client certificate is sent.
//!
//! The trusted roots are the system's (or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`), plus `--ca`, plus, for one
//! registry, the `*.crt` of its `certs.d` directory; `*.cert` and `*.key` there are a client certificate
//! (containers-certs.d(5)). Each connection configuration names its provider, so nothing depends on process-wide state.
//! The provider is aws-lc-rs because company authorities use P-521 keys, and SHA-512 with smaller curves, which ring
//! does not verify.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::verifier::{Roots, Verifier, issuer};

/// Whether servers are authenticated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verify {
    /// By a certificate that leads to a trusted root.
    Yes,
    /// No: `--insecure`.
    No,
}

/// Certificates that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("cannot read {path}: {why}")]
    Read { path: String, why: String },
    #[error("{path} holds no certificate in PEM form")]
    Empty { path: String },
    #[error("{path} is not usable: {why}")]
    Unusable { path: String, why: String },
    #[error("this machine has no trusted certificates (is the ca-certificates package installed?)")]
    NoRoots,
}

/// The certificates that belong to one registry.
#[derive(Debug, Default)]
pub(super) struct HostCertificates {
    roots: Vec<PathBuf>,
    /// Certificate and key.
    clients: Vec<(PathBuf, PathBuf)>,
}

impl HostCertificates {
    /// The certificates in the first of `directories` that has a directory with one of `names`.
    pub(super) fn find(directories: &[PathBuf], names: &[String]) -> Result<Option<Self>, TlsError> {
        let candidates = directories.iter().flat_map(|dir| names.iter().map(move |name| dir.join(name)));
        let Some(directory) = candidates.into_iter().find(|path| path.is_dir()) else { return Ok(None) };
        let mut found = Self::default();
        for file in list(&directory)? {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => found.roots.push(file),
                Some("cert") => {
                    let key = file.with_extension("key");
                    found.clients.push((file, key));
                }
                _ => {}
            }
        }
        Ok(Some(found))
    }
}

impl HostCertificates {
    /// The same with further client certificates and keys.
    pub(super) fn with(mut self, pairs: &[(PathBuf, PathBuf)]) -> Self {
        self.clients.extend_from_slice(pairs);
        self
    }
}

/// Reads the files, so that what is wrong with them is known before they are needed.
pub(super) fn check(ca: &[PathBuf], clients: &[(PathBuf, PathBuf)]) -> Result<(), TlsError> {
    ca.iter().try_for_each(|path| certificates(path).map(drop))?;
    clients.iter().try_for_each(|(chain, key)| client(chain, key).map(drop))
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, TlsError> {
    let read = |error: std::io::Error| TlsError::Read { path: directory.display().to_string(), why: error.to_string() };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(read)? {
        files.push(entry.map_err(read)?.path());
    }
    files.sort();
    Ok(files)
}

/// A configuration without roots, for connections without TLS.
pub(super) fn none() -> ClientConfig {
    finish(builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// A configuration that trusts the system's roots, `ca`, and the roots of `host`.
pub(super) fn config(
    verify: Verify,
    ca: &[PathBuf],
    host: Option<&HostCertificates>,
) -> Result<ClientConfig, TlsError> {
    let verified = match verify {
        Verify::No => builder().dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider()))),
        Verify::Yes => {
            let files = ca.iter().chain(host.into_iter().flat_map(|host| &host.roots));
            let verifier = Verifier::new(roots(files)?, provider()).ok_or(TlsError::NoRoots)?;
            builder().dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let clients = host.map_or(&[][..], |host| &host.clients);
    let clients: Vec<_> = clients.iter().map(|(chain, key)| client(chain, key)).collect::<Result<_, _>>()?;
    Ok(finish(match clients.as_slice() {
        [] => verified.with_no_client_auth(),
        _ => verified.with_client_cert_resolver(Arc::new(ClientCertificates(clients))),
    }))
}

/// The system's roots and those of `files`.
fn roots<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<Roots, TlsError> {
    let mut roots = Roots::none();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!("ignoring a system certificate: {error}");
    }
    for certificate in system.certs {
        if let Err(error) = roots.add(certificate) {
            tracing::debug!("ignoring a system certificate: {error}");
        }
    }
    for path in files {
        let mut usable = Err(TlsError::Empty { path: path.display().to_string() });
        for certificate in certificates(path)? {
            // Some certificates of a bundle may be unusable; if all are, the file is an error.
            match roots.add(certificate) {
                Ok(()) => usable = Ok(()),
                Err(error) => {
                    tracing::debug!("ignoring a certificate in {}: {error}", path.display());
                    usable = usable.map_err(|_| unusable(path, error.to_string()));
                }
            }
        }
        usable?;
    }
    if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(roots) }
}

/// The client certificates for servers that request one.
#[derive(Debug)]
struct ClientCertificates(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientCertificates {
    /// A certificate signed by an authority that the server names, else the first whose key type it accepts: a server's
    /// list may lack intermediate authorities.
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let known = |client: &CertifiedKey| {
            let mut issuers = client.cert.iter().filter_map(|certificate| issuer(certificate));
            issuers.any(|issuer| authorities.contains(&issuer.as_slice()))
        };
        let usable = || self.0.iter().filter(|client| client.key.choose_scheme(schemes).is_some());
        usable().find(|client| known(client)).or_else(|| usable().next()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

fn client(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates(certificate)?;
    let read = |why: String| TlsError::Read { path: key.display().to_string(), why };
    let pem = std::fs::read(key).map_err(|error| read(error.to_string()))?;
    let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let encrypted = pem.windows(9).any(|word| word == b"ENCRYPTED");
        unusable(key, if encrypted { "the key is encrypted".to_owned() } else { error.to_string() })
    })?;
    let client = CertifiedKey::from_der(chain, secret, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => unusable(key, format!("it is not the key of {}", certificate.display())),
        error => unusable(key, error.to_string()),
    })?;
    Ok(Arc::new(client))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3")
}

fn finish(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let name = || path.display().to_string();
    let pem = std::fs::read(path).map_err(|error| TlsError::Read { path: name(), why: error.to_string() })?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(TlsError::Empty { path: name() }),
        Ok(all) => Ok(all),
        Err(error) => Err(unusable(path, error.to_string())),
    }
}

fn unusable(path: &Path, why: String) -> TlsError {
    TlsError::Unusable { path: path.display().to_string(), why }
}

/// Accepts every certificate, for `--insecure`.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn certificates_of_a_host_are_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("second/r.example:5000");
        std::fs::create_dir_all(&host).unwrap();
        for name in ["ca.crt", "me.cert", "me.key", "README"] {
            std::fs::write(host.join(name), "").unwrap();
        }
        let directories = [dir.path().join("first"), dir.path().join("second")];
        let find = |name: &str| HostCertificates::find(&directories, &[name.to_owned()]).unwrap();
        let found = find("r.example:5000").unwrap();
        assert_eq!(found.roots, [host.join("ca.crt")]);
        assert_eq!(found.clients, [(host.join("me.cert"), host.join("me.key"))]);
        assert!(find("r.example").is_none());
    }

    #[test]
    fn certificate_files_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "no certificate\n").unwrap();
        let missing = dir.path().join("missing.pem");
        for path in [empty, missing] {
            let error = config(Verify::Yes, std::slice::from_ref(&path), None).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }
}
