//! `peelfs verify-image`: checks signatures; also a verifier of containerd and of peelfs itself.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::args::VerifyImageArgs;
use super::specs;
use peelfs::host::report::{Code, Report};
use peelfs::host::signature_policy::{self, Policy, PolicyError, Requirement};
use peelfs::host::signed::{self, Demand, NotSigned};
use peelfs::host::{open, process};
use peelfs::image::{Network, chain};
use peelfs::reference::Reference;

/// Adds the command to the line of a verifier, `VERIFIER -name NAME -digest DIGEST …`; Go programs use one hyphen.
pub(super) fn as_verifier(line: &[OsString]) -> Option<Vec<OsString>> {
    let [program, options @ ..] = line else { return None };
    let words: Vec<OsString> = options.iter().map(|word| with_two_hyphens(word)).collect();
    let is_one = options.first().is_some_and(|first| with_two_hyphens(first) != *first);
    is_one.then(|| [program.clone(), "verify-image".into()].into_iter().chain(words).collect())
}

fn with_two_hyphens(word: &OsStr) -> OsString {
    let Some(text) = word.to_str() else { return word.to_owned() };
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    if OPTIONS.contains(&name) { format!("-{text}").into() } else { word.to_owned() }
}

const OPTIONS: [&str; 4] = ["-name", "-digest", "-stdin-media-type", "-operation"];

pub(super) fn run(args: &VerifyImageArgs) -> Result<(), Report> {
    let verified = verify(args);
    // A verifier gives its reason on stdout.
    if args.stdin_media_type.is_some()
        && let Err(report) = &verified
    {
        println!("{}", super::text::printable(report.message.as_bytes()));
    }
    verified
}

fn verify(args: &VerifyImageArgs) -> Result<(), Report> {
    let name = args.name.as_ref().or(args.image.as_ref());
    let Some(name) = name else {
        return Err(Report::usage("no image is named").hint("`peelfs verify-image IMAGE`, or `-name` and `-digest`"));
    };
    let mut image = specs::image_named(&args.access, name)?;
    let demand = match demand(args, &image.reference)? {
        Requirement::Nothing => {
            println!("no signature is required for {}", super::text::printable(name.as_bytes()));
            return Ok(());
        }
        Requirement::Signature(demand) => demand,
    };
    if std::env::var_os("PEELFS_OFFLINE").is_some() {
        image.access.network = Network::Offline;
    }
    if let Some(paths) = std::env::var_os("PEELFS_CA") {
        image.access.ca.extend(std::env::split_paths(&paths));
    }
    process::runtime(process::Purpose::Reading)?.block_on(async {
        let digest = match &args.digest {
            Some(digest) => digest.clone(),
            None => open::named(&image).await.map_err(|error| without_cache(error.into()))?,
        };
        let statement = signed::verify(&image, &digest, &demand).await.map_err(not_signed)?;
        println!("{digest} is signed with the key {}", demand.keys[statement.key].fingerprint());
        Ok(())
    })
}

/// The required signature: from the keys that are given, else from the configuration.
fn demand(args: &VerifyImageArgs, reference: &Reference) -> Result<Requirement, Report> {
    if !args.key.is_empty() {
        let keys = signature_policy::keys(&args.key).map_err(|error| no_policy(&error, None))?;
        return Ok(Requirement::Signature(Demand { keys, same_repository: args.same_repository }));
    }
    let file = args.config.as_deref().unwrap_or(signature_policy::DEFAULT_FILE.as_ref());
    Policy::read(file).and_then(|policy| policy.requirement(reference)).map_err(|error| no_policy(&error, Some(file)))
}

/// Why it is not known what is required, by the configuration in `file` or by keys that are given.
fn no_policy(error: &PolicyError, file: Option<&Path>) -> Report {
    let report = Report::new(Code::Failure, chain(error));
    match error {
        PolicyError::File { path, cause } if cause.kind() == std::io::ErrorKind::NotFound => {
            let report = Report { code: Code::NotFound, ..report };
            if file != Some(&**path) {
                return report;
            }
            report.hint("name a key with `--key`, or write a configuration of images and their keys (`--config`)")
        }
        PolicyError::NoRule { .. } => Report { code: Code::Verification, ..report }
            .hint("the name `*` matches images without a rule of their own"),
        _ => report,
    }
}

/// The error of a registry that cannot be reached, where what is cached has been used already.
fn without_cache(report: Report) -> Report {
    match report.code {
        Code::Network => report.hint("check the network and the name of the registry; nothing of it is cached here"),
        _ => report,
    }
}

fn not_signed(error: NotSigned) -> Report {
    match error {
        NotSigned::Host(error) => {
            let report = without_cache(Report::from(*error));
            Report { message: format!("cannot look for signatures: {}", report.message), ..report }
        }
        NotSigned::None { .. } | NotSigned::NoneCounts { .. } => Report::new(Code::Verification, chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> Vec<OsString> {
        words.split(' ').map(Into::into).collect()
    }

    #[test]
    fn a_line_of_containerd_is_understood_under_any_name() {
        let called =
            line("/etc/peelfs/verifiers/cosign -name a/b:1 -digest sha256:1 -stdin-media-type t -operation=pull");
        let meant = line(
            "/etc/peelfs/verifiers/cosign verify-image --name a/b:1 --digest sha256:1 --stdin-media-type t --operation=pull",
        );
        assert_eq!(as_verifier(&called), Some(meant));
        for other in ["peelfs", "peelfs mount a b", "peelfs -h", "peelfs verify-image -name x"] {
            assert_eq!(as_verifier(&line(other)), None, "{other}");
        }
    }
}
