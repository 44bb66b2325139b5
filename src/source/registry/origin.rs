//! Origins: the target of a request, and which redirects between targets are allowed.
//!
//! Credentials belong to an origin (scheme, host, port). A registry may send a client anywhere, by a redirect or by the
//! realm of a challenge; without rules it could reach the cloud's metadata address or a service on this machine, or
//! downgrade to plain HTTP.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use super::tls::Verify;

/// Limit for redirects of one request.
pub(super) const MAX_REDIRECTS: usize = 5;
/// Limit for a URL from a registry, in bytes; storage back ends sign URLs of a few KiB.
const MAX_URL: usize = 16 << 10;

/// Scheme, host and port of a URL.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Origin {
    tls: bool,
    host: Box<str>,
    port: u16,
}

impl Origin {
    /// The origin of an `http` or `https` URL; `None` for all others.
    pub(super) fn of(url: &Url) -> Option<Self> {
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = url.host_str().filter(|host| !host.is_empty())?;
        Some(Self { tls, host: host.into(), port: url.port_or_known_default()? })
    }

    /// Whether it uses TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.tls
    }

    /// Its reach, judged by the name alone.
    pub(super) fn reach(&self) -> Reach {
        Reach::of(&self.host)
    }

    /// `host:port`, for messages and for `certs.d`.
    pub(super) fn host_and_port(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The host alone; an IPv6 address is in brackets.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The port, as given or as the scheme implies.
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual { f.write_str(&self.host) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

/// Distance of a host.
///
/// Judged by the name alone: a DNS name that resolves to a loopback address counts as [`Reach::Elsewhere`], as in other
/// clients.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reach {
    /// This machine: `localhost`, 127.0.0.0/8, `::1`, the unspecified addresses.
    Loopback,
    /// This link, with cloud metadata services: 169.254.0.0/16, fe80::/10, fd00:ec2::/32.
    Link,
    /// Anything else.
    Elsewhere,
}

impl Reach {
    /// The reach of a host name or address, with or without brackets.
    pub(super) fn of(host: &str) -> Self {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let Ok(address) = bare.parse::<IpAddr>() else {
            let name = bare.trim_end_matches('.').to_ascii_lowercase();
            let local = name == "localhost" || name.ends_with(".localhost");
            return if local { Self::Loopback } else { Self::Elsewhere };
        };
        match address.to_canonical() {
            IpAddr::V4(v4) if v4.is_loopback() || v4.is_unspecified() => Self::Loopback,
            IpAddr::V4(v4) if v4.is_link_local() => Self::Link,
            IpAddr::V6(v6) if v6.is_loopback() || v6.is_unspecified() => Self::Loopback,
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Self::Link,
            IpAddr::V6(v6) if v6.segments()[..2] == [0xfd00, 0x0ec2] => Self::Link,
            _ => Self::Elsewhere,
        }
    }

    fn is_local(self) -> bool {
        self != Self::Elsewhere
    }
}

/// Why a URL from a registry is not followed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Forbidden {
    #[error("it names no usable address")]
    Malformed,
    #[error("it is neither http nor https")]
    Scheme,
    #[error("it leads from https to plain http")]
    Downgrade,
    #[error("it leads from {from} to {to}, which is an address of this machine or link")]
    Inward { from: String, to: String },
}

/// The URL for `location` sent by `from`, if that redirect is allowed.
///
/// User, password and fragment in the URL are dropped. If TLS is not verified, a redirect from https to http loses
/// nothing.
pub(super) fn follow(from: &Url, location: &str, verify: Verify) -> Result<Url, Forbidden> {
    if location.is_empty() || location.len() > MAX_URL {
        return Err(Forbidden::Malformed);
    }
    let mut to = from.join(location).map_err(|_| Forbidden::Malformed)?;
    if !matches!(to.scheme(), "http" | "https") {
        return Err(Forbidden::Scheme);
    }
    to.set_username("").and_then(|()| to.set_password(None)).map_err(|()| Forbidden::Malformed)?;
    to.set_fragment(None);
    let (Some(here), Some(there)) = (Origin::of(from), Origin::of(&to)) else { return Err(Forbidden::Malformed) };
    if here.tls && !there.tls && verify == Verify::Yes {
        return Err(Forbidden::Downgrade);
    }
    if there.reach().is_local() && there.reach() != here.reach() && here.reach() != Reach::Loopback {
        return Err(Forbidden::Inward { from: here.to_string(), to: there.to_string() });
    }
    Ok(to)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn step(from: &str, to: &str) -> Result<String, Forbidden> {
        follow(&Url::parse(from).unwrap(), to, Verify::Yes).map(String::from)
    }

    #[test]
    fn redirects_go_outwards_and_never_lose_tls() {
        let allowed = [
            ("https://r.example/v2/a", "https://cdn.example/b?sig=1", "https://cdn.example/b?sig=1"),
            ("https://r.example/v2/a", "/b", "https://r.example/b"),
            ("http://127.0.0.1:5000/v2/a", "http://127.0.0.1:5001/b", "http://127.0.0.1:5001/b"),
            ("http://localhost:5000/", "https://cdn.example/", "https://cdn.example/"),
            ("http://r.example/", "https://r.example/", "https://r.example/"),
            ("https://r.example/", "https://user:pass@cdn.example/x#y", "https://cdn.example/x"),
            ("https://r.example/", "https://10.0.0.1/x", "https://10.0.0.1/x"),
        ];
        for (from, to, result) in allowed {
            assert_eq!(step(from, to).as_deref(), Ok(result), "{from} {to}");
        }
    }

    #[test]
    fn insecure_redirects_may_lose_tls_and_nothing_else() {
        let step = |from: &str, to: &str| follow(&Url::parse(from).unwrap(), to, Verify::No);
        assert!(step("https://r.example/v2/a", "http://r.example/b").is_ok());
        assert!(step("https://r.example/v2/a", "http://cdn.example/b").is_ok());
        assert!(step("https://127.0.0.1:1/", "http://127.0.0.1:2/").is_ok());
        assert!(matches!(step("https://r.example/", "http://127.0.0.1/"), Err(Forbidden::Inward { .. })));
        assert!(matches!(step("https://r.example/", "http://169.254.169.254/"), Err(Forbidden::Inward { .. })));
        assert_eq!(step("https://r.example/", "file:///x"), Err(Forbidden::Scheme));
    }

    #[test]
    fn redirects_inwards_downwards_and_to_other_schemes_are_refused() {
        let table = [
            ("https://r.example/", "http://r.example/", Forbidden::Downgrade),
            ("https://127.0.0.1:5000/", "http://127.0.0.1:5000/", Forbidden::Downgrade),
            ("https://r.example/", "file:///etc/passwd", Forbidden::Scheme),
            ("https://r.example/", "unix:/run/x.sock", Forbidden::Scheme),
            ("https://r.example/", "", Forbidden::Malformed),
            ("https://r.example/", "https://", Forbidden::Malformed),
            ("https://r.example/", "https://[::1", Forbidden::Malformed),
        ];
        for (from, to, result) in table {
            assert_eq!(step(from, to), Err(result), "{from} {to}");
        }
        for inward in [
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://localhost/",
            "https://a.localhost./",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://0.0.0.0/",
            "https://169.254.169.254/latest/meta-data",
            "https://[fe80::1]/",
            "https://[fd00:ec2::254]/",
        ] {
            assert!(matches!(step("https://r.example/", inward), Err(Forbidden::Inward { .. })), "{inward}");
        }
        assert!(step("https://r.example/", &format!("https://x/{}", "a".repeat(MAX_URL))).is_err());
    }
}
