//! From the address of a server to a client for it: its certificates, logins and limits.

use std::sync::Arc;

use reqwest::Url;
use tokio::sync::Semaphore;

use super::RegistryOptions;
use super::access::Logins;
use super::client::{Client, MAX_LATE};
use super::download::Cut;
use super::http::{Counters, Transport};
use super::mirrors::{Connection, Endpoint};
use super::origin::Origin;
use super::tls::Verify;
use crate::source::SourceError;
use crate::source::outage::Outages;

/// Failed transfers that may retry at the same time.
const RETRYING: usize = 2;

/// Whether a client is that of a mirror.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    Mirror,
    Own,
}

/// A client for one server.
pub(super) fn client(
    endpoint: Endpoint,
    role: Role,
    typed: &str,
    options: &RegistryOptions,
    (counters, outages): (&Arc<Counters>, &Outages),
) -> Result<Client, SourceError> {
    let unusable = |why: String| SourceError::Unsupported { place: typed.to_owned(), why, hint: None };
    let Endpoint { place, repository, reference, namespace, connection, abilities: _ } = endpoint;
    let Connection { insecure, ca, clients, headers, dial_timeout, proxy } = connection;
    let insecure = insecure || options.insecure;
    let verify = if insecure { Verify::No } else { Verify::Yes };
    let mut deadlines = options.deadlines.clone();
    if role == Role::Mirror {
        // Others are asked instead of waiting for it.
        deadlines.connect = deadlines.connect.min(deadlines.mirror);
    }
    deadlines.connect = dial_timeout.unwrap_or(deadlines.connect);
    if role == Role::Mirror {
        deadlines.patience = deadlines.late();
    }
    let is_certified = !options.ca.is_empty() || !ca.is_empty() || !clients.is_empty();
    let mut transport = Transport {
        verify,
        ca: options.ca.iter().cloned().chain(ca).collect(),
        certs_dirs: options.certs_dirs.clone(),
        identities: None,
        proxy,
        user_agent: options.user_agent.clone(),
        deadlines: deadlines.clone(),
        counters: Arc::clone(counters),
        clients: std::sync::Mutex::default(),
    };
    let in_directory = |https: &Url| match Origin::of(https) {
        Some(origin) => transport.certificates_for(&origin).map(|found| found.is_some()),
        None => Ok(false),
    };
    let mut fault = None;
    let bases = place.bases(insecure, |https| {
        is_certified
            || in_directory(https).unwrap_or_else(|error| {
                fault = Some(error);
                false
            })
    });
    if let Some(error) = fault {
        return Err(unusable(error.to_string()));
    }
    let Some(origin) = bases.first().and_then(Origin::of) else {
        return Err(unusable(format!("`{}` is not a host", place.authority.escape_debug())));
    };
    let twin = place.twin(&bases);
    transport.identities = (!clients.is_empty()).then_some((origin, clients));
    let logins = Logins {
        authfile: options.authfile.clone(),
        surroundings: options.surroundings.clone(),
        rights: options.rights,
        verify,
        clock: options.clock.clone(),
        deadlines: deadlines.clone(),
    };
    let authorizer = logins.authorizer(place.login_host(), &repository);
    Ok(Client {
        transport,
        authorizer: Arc::new(authorizer),
        elsewhere: std::sync::Mutex::default(),
        logins,
        clock: options.clock.clone(),
        deadlines,
        bases,
        twin,
        settled: std::sync::OnceLock::new(),
        root: place.root.clone(),
        repository,
        reference,
        host: place.login_host(),
        namespace,
        headers,
        locations: std::sync::Mutex::default(),
        unranged: std::sync::atomic::AtomicBool::new(false),
        ranges: std::sync::Mutex::default(),
        long: Arc::new(Semaphore::new(options.connections.max(1))),
        short: Arc::new(Semaphore::new(4 * options.connections.max(1))),
        cut: Cut::default(),
        lanes: std::sync::Mutex::default(),
        retrying: Arc::new(Semaphore::new(RETRYING)),
        late: Semaphore::new(MAX_LATE),
        outages: outages.clone(),
    })
}
