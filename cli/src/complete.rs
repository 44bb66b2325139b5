//! Completion at the prompt: shells ask the program itself, which knows what is mounted.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::env::{CompleteEnv, Shells};
use clap_complete::{CompletionCandidate, Shell};

use super::args::{Args, CompletionsArgs};
use super::text;
use peelfs::fuse::mounts;
use peelfs::host::open;
use peelfs::host::report::{Code, Report};
use peelfs::store::Store;

/// Answers a shell, and ends the process, if it was started to complete a line.
pub(super) fn answer() {
    CompleteEnv::with_factory(Args::command).var(VARIABLE).bin(NAME).completer(NAME).complete();
}

/// `peelfs completions`: prints what a shell runs to complete lines.
pub(super) fn script(args: &CompletionsArgs) -> Result<(), Report> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let shell = shells.completer(name_of(args.shell)).expect("all these shells are there");
    shell
        .write_registration(VARIABLE, NAME, NAME, NAME, &mut script)
        .map_err(|error| Report::new(Code::Failure, error))?;
    if args.shell == Shell::Zsh {
        script.extend_from_slice(AT_ONCE);
    }
    let mut out = std::io::stdout().lock();
    out.write_all(&script).and_then(|()| out.flush()).or_else(|error| text::output_ended(&error))
}

fn name_of(shell: Shell) -> &'static str {
    match shell {
        Shell::Elvish => "elvish",
        Shell::Fish => "fish",
        Shell::PowerShell => "powershell",
        Shell::Zsh => "zsh",
        _ => "bash",
    }
}

/// Mount points that begin with what was typed; below the working directory, by a relative path.
pub(super) fn mount_points(typed: &OsStr) -> Vec<CompletionCandidate> {
    let mounted = mounts::all().into_iter().filter(mounts::MountPoint::is_peelfs);
    let mounted: Vec<_> = mounted.map(|mount| (mount.path.clone(), mount.reference().to_owned())).collect();
    let here = std::env::current_dir().unwrap_or_default();
    let fits = |path: &Path| path.as_os_str().as_bytes().starts_with(typed.as_bytes());
    let named = mounted.into_iter().filter_map(|(path, reference)| {
        let path = as_typed(&path, &here, typed);
        fits(&path).then(|| CompletionCandidate::new(path).help(Some(text::printable(reference.as_bytes()).into())))
    });
    named.collect()
}

/// Images that were used before and begin with what was typed, as the cache of this user knows them.
pub(super) fn images(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let named = std::env::var_os("PEELFS_CACHE_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let Some(dir) = named.or_else(|| open::default_cache_dir().ok()) else { return Vec::new() };
    let Ok(store) = Store::open_existing(&dir, None) else { return Vec::new() };
    let names = store.tags(MOST).into_iter().map(|tag| tag.reference);
    // Digests are pasted.
    let mut names: Vec<String> = names.filter(|name| !name.contains('@')).collect();
    names.sort();
    // Names of Docker Hub are rarely typed in full.
    let short = |name: &str| name.strip_prefix("docker.io/").map(|name| name.trim_start_matches("library/").to_owned());
    let fits = |name: String| match short(&name) {
        Some(short) if short.starts_with(typed) => Some(short),
        _ => name.starts_with(typed).then_some(name),
    };
    names.into_iter().filter_map(fits).map(|name| CompletionCandidate::new(text::printable(name.as_bytes()))).collect()
}

/// Names that are offered.
const MOST: usize = 1000;

/// A path as it is typed: absolute, relative to `here`, or so with `./`.
fn as_typed(path: &Path, here: &Path, typed: &OsStr) -> PathBuf {
    match path.strip_prefix(here) {
        Ok(below) if !typed.as_bytes().starts_with(b"/") && !below.as_os_str().is_empty() => {
            if typed.as_bytes().starts_with(b".") { Path::new(".").join(below) } else { below.to_owned() }
        }
        _ => path.to_owned(),
    }
}

/// zsh loads the file `_peelfs` when it first completes a line, as a function of that name, which has to complete the line.
const AT_ONCE: &[u8] = b"[[ $funcstack[1] != _peelfs ]] || _clap_dynamic_completer_peelfs \"$@\"\n";
/// Set by the shell to its name when it asks.
const VARIABLE: &str = "PEELFS_COMPLETE";
const NAME: &str = "peelfs";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_completed_as_they_are_begun() {
        for (path, typed, wanted) in [
            ("/home/me/app", "", "app"),
            ("/home/me/app", "a", "app"),
            ("/home/me/app", "./", "./app"),
            ("/home/me/app", "/h", "/home/me/app"),
            ("/srv/app", "", "/srv/app"),
            ("/home/me", "", "/home/me"),
        ] {
            assert_eq!(
                as_typed(Path::new(path), Path::new("/home/me"), OsStr::new(typed)),
                Path::new(wanted),
                "{typed}"
            );
        }
    }
}
