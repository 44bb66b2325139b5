//! Whether an image can be reached, step by step.

use super::check::{Check, State};
use crate::text;
use peelfs::host::process::{self, Purpose};
use peelfs::host::reach::{self, Reached, ReachedRegistry};
use peelfs::host::report::{Code, Report};
use peelfs::host::spec::ImageSpec;
use peelfs::source::SourceError;
use peelfs::source::registry::MirrorAnswer;

pub(super) fn checks(image: &ImageSpec) -> Vec<Check> {
    let reached = process::runtime(Purpose::Reading).and_then(|runtime| {
        let reached = runtime.block_on(reach::reach(image));
        runtime.shutdown_background();
        reached
    });
    let (reference, is_insecure) = (image.reference.to_string(), image.access.insecure);
    match reached {
        Ok(Reached { registry, image }) => {
            let image = match image {
                Ok((layers, bytes)) => {
                    Check::ok(reference, format!("{}, {}", text::count(layers as u64, "layer"), text::size(bytes)))
                }
                Err(error) => Check::failed(reference, error.into()).costs("it cannot be mounted").needed(),
            };
            let unnamed = registry.as_ref().is_some_and(|registry| matches!(registry.addresses, Some(Err(_))));
            let mut checks = registry.map_or_else(Vec::new, |registry| registry_checks(registry, &image, is_insecure));
            checks.push(match image.state {
                // That it cannot be reached has its reason above.
                State::Broken if unnamed => {
                    Check { found: "its registry cannot be asked".to_owned(), remedy: None, ..image }
                }
                _ => image,
            });
            checks
        }
        Err(error) => vec![Check::failed(reference, error.into()).costs("it cannot be mounted").needed()],
    }
}

fn registry_checks(registry: ReachedRegistry, image: &Check, is_insecure: bool) -> Vec<Check> {
    let ReachedRegistry { host, addresses, manifest, contact, ranges, mirrors_by, mirrors } = registry;
    let mut checks = Vec::new();
    checks.push(match addresses {
        None => Check::ok("name", format!("{host} is resolved by the proxy")),
        Some(Ok(found)) => {
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            Check::ok("name", format!("{host} is {}", found.join(", ")))
        }
        Some(Err(error)) => Check::broken("name", format!("{host} cannot be resolved: {error}"))
            .costs("the registry cannot be asked")
            .remedy("check the name, /etc/resolv.conf and the network"),
    });
    if let Some(address) = contact.address {
        let how = match (address.starts_with("http:"), is_insecure) {
            (true, _) => "without TLS",
            (false, true) => "TLS without verification (`--insecure`)",
            (false, false) => "its certificate is trusted",
        };
        checks.push(Check::ok("connection", format!("{address}, {how}")));
    }
    match manifest {
        Ok(found) => {
            checks.push(Check::ok("login", contact.login));
            checks.push(Check::ok("manifest", format!("{} ({})", found.digest, found.media_type)));
        }
        // This is why the image cannot be mounted, and is told with it.
        Err(_) if image.state == State::Broken => {}
        // The registry works.
        Err(SourceError::NotFound { what, place, .. }) => checks.push(
            Check::missing("manifest", format!("{what} not found in {place}"))
                .costs("what the reference names does not exist any more"),
        ),
        Err(error) => {
            let report = Report::from(error);
            checks.push(Check::failed("manifest", report).costs("the registry does not say what the reference names"));
        }
    }
    if let Some(by) = mirrors_by.filter(|_| !mirrors.is_empty()) {
        checks.push(Check::ok("mirrors", format!("{}, by {by}", text::count(mirrors.len() as u64, "mirror"))));
        checks.extend(mirrors.into_iter().map(|asked| mirror(asked, &by)));
    }
    checks.extend(ranges.map(|ranges| {
        match ranges {
            Ok(true) => Check::ok("ranges", "served"),
            Ok(false) => Check::missing("ranges", "the registry answers with whole blobs")
                .costs("content that was evicted is read again from the beginning of its layer")
                .remedy("ask the registry's operator; a proxy in between may remove the header `Range`"),
            Err(error) => Check::failed("ranges", error.into()).costs("layers cannot be read"),
        }
    }));
    checks.extend(contact.limit.map(|limit| {
        let window = limit.seconds.map_or(String::new(), |seconds| format!(" in {} h", seconds.div_ceil(3600)));
        let found = format!("{} of {} requests left{window}", limit.remaining, limit.limit);
        match limit.remaining {
            0 => Check::broken("rate limit", found)
                .costs("the registry refuses until the window ends")
                .remedy("log in with `podman login` or `docker login`, or wait"),
            _ => Check::ok("rate limit", found),
        }
    }));
    checks
}

/// What a mirror is good for, and what it costs. `by` names the mirrors.
fn mirror(asked: MirrorAnswer, by: &str) -> Check {
    let MirrorAnswer { host, took, answer, silent } = asked;
    let name = format!("mirror {host}");
    let took = format!("{:.2} s", took.as_secs_f64());
    let error = match answer {
        Ok(()) => return Check::ok(name, format!("it has the image, and answered within {took}")),
        Err(SourceError::NotFound { .. }) => {
            return Check::missing(name, format!("it does not have the image, and said so within {took}"))
                .costs("a request for each layer, once a minute; the next host is asked then");
        }
        Err(error) => error,
    };
    let is_answer_of_another = matches!(error, SourceError::Protocol { .. } | SourceError::Corrupt { .. });
    let report = Report::from(error);
    let (costs, remedy) = match report.code {
        _ if is_answer_of_another => (
            "a request for each layer; the next host is asked then, and after three failures it is not asked for a while",
            format!("see what answers there, as a portal or a proxy may, or remove it ({by})"),
        ),
        Code::Network if silent => (
            "each command waits up to 3 s for it once before it asks the next host; for a minute, others do not ask it",
            format!("start it, check the way to it, or remove it ({by})"),
        ),
        Code::Network => (
            "next to no time: the next host is asked at once, and after three failures it is not asked for a while",
            format!("start it, or remove it ({by})"),
        ),
        _ => {
            let remedy = match &report.hint {
                Some(hint) => hint.clone(),
                None => format!("see its log, or remove it ({by})"),
            };
            ("a request for each layer; the next host is asked then", remedy)
        }
    };
    Check::failed(name, report).costs(costs).remedy(remedy)
}
