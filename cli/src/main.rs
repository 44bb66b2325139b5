//! The command line of peelfs.
//!
//! Data goes to stdout, messages to stderr. A failure is one line that names what failed, an optional hint, and an exit
//! code (see [`Code`]).

mod activity;
mod args;
mod bare;
mod bundle;
mod cache;
mod carry;
mod complete;
mod container;
mod cp;
mod csi;
mod doctor;
mod engine_options;
mod environment;
mod extras;
mod failures;
mod guard;
mod inspect;
mod log;
mod look;
mod mount;
mod namespace;
mod options;
mod progress;
mod repeats;
mod run;
mod runtime;
mod snapshotter;
mod specs;
mod status;
mod store;
mod text;
mod top;
mod tree;
mod umount;
mod upgrade;
mod variables;
mod verify_image;
mod version;
mod volumes;
mod watch;
mod web;

use std::ffi::OsString;
use std::process::ExitCode;

use args::Command;
use peelfs::host;
use peelfs::host::report::{Code, Report};
use peelfs::reference::{Place, Reference};
use peelfs::source::nearby::Nearby;

fn main() -> ExitCode {
    complete::answer();
    run(std::env::args_os())
}

/// Runs one command line, including the program name.
fn run(line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line: Vec<OsString> = line.into_iter().collect();
    let line = verify_image::as_verifier(&line).unwrap_or(line);
    let line = look::expression::set_apart(line);
    let line = specs::with_piped_images(line);
    let parsed = variables::parse(&line).or_else(|error| match bare::with_mount(&line, &error) {
        Some(line) => variables::parse(&line),
        None => Err(error),
    });
    let args = match parsed {
        Ok(args) => args,
        Err(error) => {
            // Help and version go to stdout, usage errors to stderr.
            let is_run = line.get(1).is_some_and(|word| word == "run");
            match engine_options::refusal(&error) {
                Some(report) if is_run => failures::print(&report),
                _ => {
                    drop(error.print());
                    if let Some(variable) = variables::named_by(&error, &line) {
                        eprintln!("hint: the value is that of the variable `{variable}`");
                    }
                }
            }
            return match error.use_stderr() {
                // Other exit codes belong to the container.
                true if is_run => runtime::FAILED.into(),
                true => Code::Usage.into(),
                false => ExitCode::SUCCESS,
            };
        }
    };
    log::start(&args.command);
    let nearby = args.command.image().and_then(nearby);
    let is_run = matches!(args.command, Command::Run(_));
    let mut found = true;
    let done = match args.command {
        Command::Mount(args) => mount::run(args),
        Command::Run(args) => match run::run(&args) {
            Ok(status) => {
                log::end();
                return status.into();
            }
            Err(report) => Err(report),
        },
        Command::Bundle(args) => bundle::run(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Ls(args) => look::ls::run(&args),
        Command::Find(args) => look::find::run(&args),
        Command::Du(args) => look::du::run(&args),
        Command::Tree(args) => look::tree::run(&args),
        Command::Stat(args) => look::stat::run(&args),
        Command::Cat(args) => look::cat::run(&args),
        Command::Sha256sum(args) => look::sums::run(&args),
        Command::Layers(args) => look::layers::run(&args),
        Command::Which(args) => look::which::run(&args),
        // As diff(1) and grep(1), these two have a result beside success and failure.
        Command::Diff(args) => look::diff::run(&args).map(|differ| found = !differ),
        Command::Grep(args) => look::grep::run(&args).map(|any| found = any),
        Command::Cp(args) => cp::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::VerifyImage(args) => verify_image::run(&args),
        Command::Cache(args) => cache::run(&args),
        Command::Index(args) => carry::index(&args.command),
        Command::Profile(args) => carry::profile(&args.command),
        Command::Status(args) => status::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Web(args) => web::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Csi(args) => csi::run(&args),
        Command::Snapshotter(args) => snapshotter::run(&args),
        Command::CredentialProvider(args) => snapshotter::credentials(&args),
        // Nor is a machine that cannot mount a failure of the command.
        Command::Doctor(args) => doctor::run(&args).map(|works| found = works),
        Command::Completions(args) => complete::script(&args),
        Command::Version(args) => version::run(&args),
        Command::Man(args) => extras::man(&args),
        Command::Probe(args) => return host::probe::run(&args.at),
        Command::Host(args) => mount::host(&args),
    };
    // The error is the last that is said.
    log::end();
    match done {
        Ok(()) => {
            if let Some(nearby) = nearby {
                eprintln!("note: that was an image of a registry; {}", nearby.hint());
            }
            if found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(report) => {
            let report = match nearby {
                Some(nearby) if may_be_meant(&report) => report.hint(nearby.hint()),
                _ => report,
            };
            failures::print(&report);
            // Other exit codes belong to the container.
            if is_run { runtime::FAILED.into() } else { report.code.into() }
        }
    }
}

/// A local file or directory of that name, for an image that was looked up in a registry.
fn nearby(typed: &str) -> Option<Nearby> {
    let is_local = |reference: Reference| !matches!(reference.place(), Place::Registry(_));
    if typed.parse().is_ok_and(is_local) { None } else { Nearby::find(typed) }
}

/// Whether the image was not found, so that a local file may have been meant.
fn may_be_meant(report: &Report) -> bool {
    match report.code {
        Code::Authentication | Code::Network => true,
        Code::NotFound => report.message.contains(" not found in "),
        Code::Usage => report.message.contains("is not an image reference"),
        Code::Failure | Code::Verification => false,
    }
}
