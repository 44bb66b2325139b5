//! TLS: whose certificates are believed, and which certificate we show.
//!
//! The trusted roots are the system's (or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`), plus `--ca`,
//! plus, for one registry, the `*.crt` of its `certs.d` directory; `*.cert` and `*.key` there are a
//! client certificate (containers-certs.d(5)). The provider is named here for each connection
//! configuration, so nothing depends on process-wide state.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Whether a server must prove who it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verify {
    /// By a certificate that a trusted root vouches for.
    Yes,
    /// Not at all: `--insecure`.
    No,
}

/// Certificates could not be used.
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
    client: Option<(PathBuf, PathBuf)>,
}

impl HostCertificates {
    /// Those in the first of `directories` that has a directory named as one of `names`.
    pub(super) fn find(directories: &[PathBuf], names: &[String]) -> Result<Option<Self>, TlsError> {
        let candidates = directories.iter().flat_map(|dir| names.iter().map(move |name| dir.join(name)));
        let Some(directory) = candidates.into_iter().find(|path| path.is_dir()) else { return Ok(None) };
        let mut found = Self::default();
        let mut pairs = Vec::new();
        for file in list(&directory)? {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => found.roots.push(file),
                Some("cert") => pairs.push((file.clone(), file.with_extension("key"))),
                _ => {}
            }
        }
        found.client = pairs.into_iter().next();
        Ok(Some(found))
    }
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

/// A configuration without any root, for connections that use no TLS.
pub(super) fn none() -> ClientConfig {
    finish(builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// A configuration that believes the system's roots, `ca`, and what `host` adds.
pub(super) fn config(
    verify: Verify,
    ca: &[PathBuf],
    host: Option<&HostCertificates>,
) -> Result<ClientConfig, TlsError> {
    let verified = match verify {
        Verify::No => builder().dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider()))),
        Verify::Yes => {
            let mut roots = RootCertStore::empty();
            let system = rustls_native_certs::load_native_certs();
            for error in &system.errors {
                tracing::debug!("passing over a system certificate: {error}");
            }
            roots.add_parsable_certificates(system.certs);
            for path in ca.iter().chain(host.into_iter().flat_map(|host| &host.roots)) {
                for certificate in certificates(path)? {
                    let why = |error: rustls::Error| error.to_string();
                    roots.add(certificate).map_err(|error| unusable(path, why(error)))?;
                }
            }
            if roots.is_empty() {
                return Err(TlsError::NoRoots);
            }
            builder().with_root_certificates(roots)
        }
    };
    let config = match host.and_then(|host| host.client.as_ref()) {
        None => verified.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error.to_string()))?;
            verified.with_client_auth_cert(chain, secret).map_err(|error| unusable(key, error.to_string()))?
        }
    };
    Ok(finish(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the ring provider has suites for TLS 1.2 and 1.3")
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

/// Believes every certificate, as `--insecure` says.
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
        assert_eq!(found.client, Some((host.join("me.cert"), host.join("me.key"))));
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
