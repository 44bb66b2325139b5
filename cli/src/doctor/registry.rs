//! Whether an image can be reached, step by step.

use super::check::Check;
use crate::text;
use peelfs::host::process::{self, Purpose};
use peelfs::host::reach::{self, Reached, ReachedRegistry};
use peelfs::host::report::Report;
use peelfs::host::spec::ImageSpec;

pub(super) fn checks(image: &ImageSpec) -> Vec<Check> {
    let reached = process::runtime(Purpose::Reading).and_then(|runtime| {
        let reached = runtime.block_on(reach::reach(image));
        runtime.shutdown_background();
        reached
    });
    let (reference, is_insecure) = (image.reference.to_string(), image.access.insecure);
    match reached {
        Ok(Reached { registry, image }) => {
            let mut checks: Vec<_> = registry.map_or_else(Vec::new, |registry| registry_checks(registry, is_insecure));
            checks.push(match image {
                Ok((layers, bytes)) => {
                    Check::ok(reference, format!("{}, {}", text::count(layers as u64, "layer"), text::size(bytes)))
                }
                Err(error) => Check::failed(reference, error.into()).costs("it cannot be mounted").needed(),
            });
            checks
        }
        Err(error) => vec![Check::failed(reference, error.into()).costs("it cannot be mounted").needed()],
    }
}

fn registry_checks(registry: ReachedRegistry, is_insecure: bool) -> Vec<Check> {
    let ReachedRegistry { host, addresses, manifest, contact, ranges } = registry;
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
        Err(error) => {
            let report = Report::from(error);
            checks.push(Check::failed("manifest", report).costs("the registry does not say what the reference names"));
        }
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
