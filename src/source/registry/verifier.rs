//! Server certificates: which are accepted, and messages for the others.
//!
//! webpki finds a path to a root. It does not accept a server certificate with CA:TRUE, which `openssl req -x509` makes
//! and which many private registries use. A certificate that is byte for byte a trusted one needs no path: it is
//! accepted while it is valid and for its names, as in Go and OpenSSL.

use std::collections::HashSet;
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{AlertDescription, CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{ExtendedKeyUsage, SubjectAltName};

use super::http::shown;

/// Limit for names in a message.
const NAMES_SHOWN: usize = 5;
/// `id-kp-serverAuth` and `anyExtendedKeyUsage` (RFC 5280, section 4.2.1.12).
const SERVER_USES: [ObjectIdentifier; 2] =
    [ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1"), ObjectIdentifier::new_unwrap("2.5.29.37.0")];
/// Signature algorithms still found in certificates, and accepted by no current library.
const OLD_ALGORITHMS: [(&str, &str); 4] = [
    ("1.2.840.113549.1.1.4", "MD5"),
    ("1.2.840.113549.1.1.5", "SHA-1"),
    ("1.2.840.10045.4.1", "SHA-1"),
    ("1.2.840.10040.4.3", "SHA-1"),
];

const TRUST: &str = "give the certificate of its authority (or its own) with `--ca FILE`, or as `ca.crt` in a `certs.d` \
                     directory for this host";
const RENEW: &str = "the registry's certificate needs to be renewed, unless the clock of this machine is wrong";
const RENAME: &str = "use a name that the certificate has, or have one made with this name in `subjectAltName`";
const REPLACE: &str = "the registry needs another certificate";
const CLIENT: &str = "a client certificate is a pair `NAME.cert` and `NAME.key` in a `certs.d` directory for this host";
const PLAIN: &str = "a registry without TLS is reached with `--insecure`";

/// Why a server's certificate or its TLS handshake is refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{why}")]
pub(super) struct Refusal {
    pub(super) why: String,
    /// What the user can do.
    pub(super) hint: Option<&'static str>,
}

/// Trusted certificates.
pub(super) struct Roots {
    store: RootCertStore,
    /// Hashes of the trusted certificates themselves.
    themselves: HashSet<blake3::Hash>,
}

impl Roots {
    pub(super) fn none() -> Self {
        Self { store: RootCertStore::empty(), themselves: HashSet::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.store.is_empty()
    }

    /// Trusts `certificate` and certificates issued by it.
    pub(super) fn add(&mut self, certificate: CertificateDer<'static>) -> Result<(), rustls::Error> {
        let hash = blake3::hash(&certificate);
        self.store.add(certificate)?;
        self.themselves.insert(hash);
        Ok(())
    }
}

/// Accepts certificates with a path to a root, and the roots themselves.
#[derive(Debug)]
pub(super) struct Verifier {
    paths: Arc<WebPkiServerVerifier>,
    themselves: HashSet<blake3::Hash>,
}

impl Verifier {
    /// `None` if there are no roots.
    pub(super) fn new(roots: Roots, provider: Arc<CryptoProvider>) -> Option<Self> {
        let paths = WebPkiServerVerifier::builder_with_provider(Arc::new(roots.store), provider).build().ok()?;
        Some(Self { paths, themselves: roots.themselves })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = if self.themselves.contains(&blake3::hash(presented)) {
            trusted_itself(presented, name, now)
        } else {
            self.paths.verify_server_cert(presented, intermediates, name, ocsp, now)
        };
        verified.map_err(|error| match error {
            rustls::Error::InvalidCertificate(error) => {
                let refusal = refusal(&error, presented, intermediates, name, now);
                rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
            }
            other => other,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.paths.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.paths.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.paths.supported_verify_schemes()
    }
}

/// Checks a certificate that is itself trusted: its names, validity and usage.
fn trusted_itself(
    presented: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, rustls::Error> {
    verify_server_name(&ParsedCertificate::try_from(presented)?, name)?;
    let certificate = parse(presented).ok_or(CertificateError::BadEncoding)?;
    let validity = certificate.tbs_certificate().validity();
    let moment = |time: x509_cert::time::Time| UnixTime::since_unix_epoch(time.to_unix_duration());
    let (not_before, not_after) = (moment(validity.not_before), moment(validity.not_after));
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    match certificate.tbs_certificate().get_extension::<ExtendedKeyUsage>() {
        Ok(Some((_, uses))) if !uses.0.iter().any(|used| SERVER_USES.contains(used)) => {
            Err(CertificateError::InvalidPurpose.into())
        }
        Ok(_) => Ok(ServerCertVerified::assertion()),
        Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}

fn parse(certificate: &[u8]) -> Option<Certificate> {
    Certificate::from_der(certificate).ok()
}

/// The issuer of a certificate, DER-encoded.
pub(super) fn issuer(certificate: &[u8]) -> Option<Vec<u8>> {
    parse(certificate)?.tbs_certificate().issuer().to_der().ok()
}

fn refusal(
    error: &CertificateError,
    presented: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    name: &ServerName<'_>,
    now: UnixTime,
) -> Refusal {
    let certificate = parse(presented);
    let today = day(now.as_secs());
    let (why, hint) = match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            let why = format!("its certificate expired on {} (today is {today})", day(not_after.as_secs()));
            (why, RENEW)
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            (format!("its certificate is not valid before {} (today is {today})", day(not_before.as_secs())), RENEW)
        }
        CertificateError::Expired => ("its certificate has expired".to_owned(), RENEW),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            (format!("its certificate is {}, not for `{}`", names(certificate.as_ref()), name.to_str()), RENAME)
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            ("its certificate is not one for servers".to_owned(), REPLACE)
        }
        CertificateError::BadEncoding => ("its certificate cannot be read".to_owned(), REPLACE),
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            let chain = std::iter::once(presented).chain(intermediates);
            (format!("its certificate is signed with {}", old_algorithm(chain)), REPLACE)
        }
        CertificateError::BadSignature => (
            "the signature of its certificate is wrong: another authority of the same name is trusted".to_owned(),
            TRUST,
        ),
        _ => (not_trusted(certificate.as_ref()), TRUST),
    };
    Refusal { why, hint: Some(hint) }
}

/// The message if the certificate has no other fault.
fn not_trusted(certificate: Option<&Certificate>) -> String {
    let Some(certificate) = certificate.map(Certificate::tbs_certificate) else {
        return "its certificate cannot be read".to_owned();
    };
    if certificate.issuer() == certificate.subject() {
        return "its certificate is signed by itself and not trusted here".to_owned();
    }
    let issuer = shown(&certificate.issuer().to_string());
    format!("its certificate is signed by `{issuer}`, which is not trusted here")
}

/// The names of a certificate, as `for a, b`.
fn names(certificate: Option<&Certificate>) -> String {
    let names =
        certificate.and_then(|certificate| certificate.tbs_certificate().get_extension::<SubjectAltName>().ok());
    let Some((_, SubjectAltName(names))) = names.flatten() else {
        // Browsers and Go have used nothing else since 2017 (RFC 9525).
        return "without a `subjectAltName` and so for no host".to_owned();
    };
    let text = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Some(format!("`{}`", shown(name.as_str()))),
        GeneralName::IpAddress(bytes) => {
            let four = <[u8; 4]>::try_from(bytes.as_bytes()).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(bytes.as_bytes()).map(IpAddr::from));
            address.ok().map(|address| format!("`{address}`"))
        }
        _ => None,
    };
    let mut all: Vec<String> = names.iter().filter_map(text).collect();
    let more = all.len() > NAMES_SHOWN;
    all.truncate(NAMES_SHOWN);
    match all.as_slice() {
        [] => "for no host".to_owned(),
        _ if more => format!("for {}, …", all.join(", ")),
        _ => format!("for {}", all.join(", ")),
    }
}

fn old_algorithm<'a>(chain: impl Iterator<Item = &'a CertificateDer<'a>>) -> String {
    let mut old = chain.filter_map(|certificate| {
        let used = parse(certificate)?.signature_algorithm().oid.to_string();
        OLD_ALGORITHMS
            .iter()
            .find(|(oid, _)| *oid == used)
            .map(|(_, name)| format!("{name}, which is no longer secure"))
    });
    old.next().unwrap_or_else(|| "an algorithm that peelfs does not support".to_owned())
}

/// `2026-11-28`
fn day(seconds: u64) -> String {
    let moment = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    moment.map_or_else(|| "an invalid date".to_owned(), |moment| moment.strftime("%Y-%m-%d").to_string())
}

/// Explains a failed handshake; `None` if the error is not from TLS.
pub(super) fn explain(error: &(dyn Error + 'static)) -> Option<Refusal> {
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return Some(refusal.clone());
    }
    let (why, hint) = match error.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            return inner.downcast_ref::<Refusal>().cloned().or_else(|| {
                Some(Refusal {
                    why: format!("its certificate is not accepted ({})", shown(&inner.to_string())),
                    hint: None,
                })
            });
        }
        // `--insecure` still checks that the server holds the key of its certificate.
        rustls::Error::InvalidCertificate(_) => ("it does not hold the key of its certificate".to_owned(), None),
        rustls::Error::InvalidMessage(_) => ("it does not speak TLS".to_owned(), Some(PLAIN)),
        rustls::Error::PeerIncompatible(_) => ("it speaks no version of TLS from 1.2 on".to_owned(), None),
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => ("it requires a client certificate".to_owned(), Some(CLIENT)),
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied => {
                (format!("it does not accept the client certificate (it says {alert:?})"), Some(CLIENT))
            }
            AlertDescription::HandshakeFailure => {
                let why = "it requires a client certificate, or has no cipher in common with peelfs (it says HandshakeFailure)";
                (why.to_owned(), Some(CLIENT))
            }
            AlertDescription::ProtocolVersion => ("it speaks no version of TLS from 1.2 on".to_owned(), None),
            alert => (format!("it ended the TLS handshake (it says {alert:?})"), None),
        },
        other => (format!("the TLS handshake failed: {}", shown(&other.to_string())), None),
    };
    Some(Refusal { why, hint })
}
