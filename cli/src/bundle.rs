//! `peelfs bundle`: a directory that a container runtime runs (runtime-spec, bundle.md).
//!
//! It holds `config.json`, `rootfs`, and `.peelfs` with stubs for mount points that the image lacks and a record of
//! what was made. `peelfs umount` removes what the record names, and nothing else.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::args::ImageArgs;
use super::container::{self, CONFIG, ContainerArgs, ImageVolume, NetworkArg, Plan, ROOTFS};
use peelfs::bundle::BundleOptions;
use peelfs::digest::{Algorithm, Digest};
use peelfs::fuse::{OpenFiles, mounts, unmount_with_cover};
use peelfs::host::error::HostError;
use peelfs::host::report::{Code, Report};
use peelfs::host::spec::Writable;
use peelfs::host::{open, process, writable};

/// `peelfs bundle`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BundleArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// The directory to make it in: an empty or a new one
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Make the root file system writable; changes are kept in UPPER, by default `upper` in the bundle
    #[arg(long, value_name = "UPPER", num_args = 0..=1, require_equals = true)]
    pub writable: Option<Option<PathBuf>>,
    /// Make the root file system writable, with changes in memory until the bundle is unmounted
    #[arg(long, conflicts_with = "writable")]
    pub ephemeral: bool,
    /// The version of the runtime specification that `config.json` names
    #[arg(long, value_name = "VERSION", default_value = "1.0.2")]
    pub runtime_spec: String,
    /// The network of the container
    #[arg(long, value_enum, default_value = "none", value_name = "NETWORK", help_heading = "Container")]
    pub network: NetworkArg,
    /// Give the process a terminal
    #[arg(short, long, help_heading = "Container")]
    pub tty: bool,
    /// Differences from the image's configuration.
    #[command(flatten)]
    pub container: ContainerArgs,
}

/// What was made, so that it can be removed.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    /// Digest of `config.json`.
    config: Digest,
    /// The directory was made as well.
    made_directory: bool,
}

pub(super) fn run(args: &BundleArgs) -> Result<(), Report> {
    if !rustix::process::geteuid().is_root() {
        return Err(Report::new(
            Code::Failure,
            "only root can make a bundle: its root file system is an overlay mount",
        )
        .hint("`peelfs run` works for other users, too"));
    }
    if !peelfs::bundle::is_known_version(&args.runtime_spec) {
        return Err(Report::usage(format!("`{}` is not a version of the runtime specification", args.runtime_spec))
            .hint("versions are 1.0.0 to 1.3.0"));
    }
    let options = args.container.options(args.network, ImageVolume::Tmpfs)?;
    let directory = open::absolute(&args.directory);
    let writable = match (&args.writable, args.ephemeral) {
        (None, false) => None,
        (None, true) => Some(Writable::Memory),
        (Some(Some(upper)), _) => Some(Writable::Directory(open::absolute(upper))),
        (Some(None), _) => Some(Writable::Directory(directory.join(UPPER))),
    };
    let options = BundleOptions {
        version: args.runtime_spec.clone(),
        readonly: writable.is_none(),
        terminal: args.tty,
        hostname: options.hostname.clone().or_else(|| Some("peelfs".to_owned())),
        ..options
    };
    let image = args.container.image(&args.image)?;
    let keeps = matches!(&writable, Some(Writable::Directory(upper)) if *upper == directory.join(UPPER));
    let made = Directory::make(&directory, &args.directory, keeps)?;
    let own = directory.join(OWN);
    let container = &args.container;
    let plan = Plan {
        image,
        args: container,
        only_root: false,
        options,
        directory: &directory,
        own: &own,
        in_own_namespace: false,
        writable,
        stubs: &LATER,
        without_command: "name a program with `--entrypoint`",
        quiet: args.image.opening.quiet.into(),
    };
    let runtime = process::runtime(process::Purpose::Starting)?;
    let done = plan.make(&runtime);
    runtime.shutdown_background();
    let mut done = done?;
    let record = Record { version: 1, config: Digest::of(Algorithm::Sha256, &done.config), made_directory: made.made };
    let text = serde_json::to_vec(&record).expect("plain data");
    if let Err(error) = container::write(&own.join(RECORD), &text, 0o600) {
        container::take_away(&directory.join(ROOTFS));
        return Err(error.into());
    }
    done.keep();
    made.keep();
    Ok(())
}

/// A bundle's directory while the bundle is made; restored if that fails.
struct Directory<'a> {
    path: &'a Path,
    made: bool,
    kept: bool,
}

impl<'a> Directory<'a> {
    /// Makes it; `keeps` if changes go to [`UPPER`] in it, which an earlier bundle may have left there.
    fn make(path: &'a Path, typed: &Path, keeps: bool) -> Result<Self, Report> {
        let failed = |cause| Report::from(HostError::RunState { path: typed.to_owned(), cause });
        let made = match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        if !made {
            let kept = writable::is_kept(&path.join(UPPER));
            let is_kept = |name: &std::ffi::OsStr| kept && name == UPPER;
            let names: Vec<_> = std::fs::read_dir(path)
                .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
                .map_err(failed)?;
            let only_kept = names.iter().all(|name| is_kept(name));
            let may_go_on = names.is_empty() || (only_kept && keeps);
            if !may_go_on {
                let shown = typed.display();
                let report = Report::usage(format!("cannot make a bundle in `{shown}`: it is not empty"));
                return Err(match path.join(OWN).join(RECORD).exists() {
                    true => report.hint(format!("it holds a bundle; `peelfs umount {shown}` removes it")),
                    false if only_kept => {
                        report.hint("it holds the changes of an earlier bundle; `--writable` takes them up")
                    }
                    false => report.hint("name a directory that is empty, or that does not exist yet"),
                });
            }
        }
        let directory = Self { path, made, kept: false };
        let found = std::fs::metadata(path).map_err(failed)?;
        if found.mode() & 0o077 != 0 {
            // The image's set-user-id programs are in it, as in an engine's store.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
            eprintln!("note: `{}` now has mode 700: programs in it may be set-user-id", typed.display());
        }
        for name in [OWN, ROOTFS] {
            container::make_private(&path.join(name))?;
        }
        container::make_stubs_directory(&path.join(OWN))?;
        Ok(directory)
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Directory<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed is empty, or its name shows what it is.
            let _ = std::fs::remove_file(self.path.join(CONFIG));
            let _ = remove_own(self.path, self.made);
        }
    }
}

/// Whether `directory` holds a bundle. A mount is none and is not looked into: it may not answer.
pub(super) fn is_bundle(directory: &Path) -> bool {
    let is_mount = mounts::followed(directory).is_ok_and(|at| mounts::at(&at).is_some());
    !is_mount && record(directory).is_some()
}

/// The record, unless another user may have written it.
fn record(directory: &Path) -> Option<Record> {
    let path = directory.join(OWN).join(RECORD);
    let found = std::fs::symlink_metadata(&path).ok()?;
    let is_own = found.is_file() && found.uid() == rustix::process::geteuid().as_raw();
    let text = is_own.then(|| std::fs::read(&path).ok()).flatten()?;
    serde_json::from_slice(&text).ok().filter(|record: &Record| record.version == 1)
}

/// Removes a bundle: its mounts and the files that were made with it.
pub(super) fn take_away(directory: &Path, open_files: OpenFiles) -> Result<(), Report> {
    let Some(record) = record(directory) else {
        return Err(Report::new(Code::NotFound, format!("there is no bundle in `{}`", directory.display())));
    };
    if let Some(mount) = mounts::absolute(&directory.join(ROOTFS)).ok().and_then(|rootfs| mounts::peelfs_at(&rootfs)) {
        unmount_with_cover(&mount, open_files)?;
    }
    let config = directory.join(CONFIG);
    match std::fs::read(&config) {
        Ok(text) if Digest::of(Algorithm::Sha256, &text) == record.config => {
            std::fs::remove_file(&config).map_err(|cause| HostError::RunState { path: config, cause })?;
        }
        Ok(_) => eprintln!("note: `{}` was edited and is kept", config.display()),
        Err(_) => {}
    }
    let removed = remove_own(directory, record.made_directory);
    removed.map_err(|cause| Report::from(HostError::RunState { path: directory.to_owned(), cause }))
}

/// Removes what peelfs made in a bundle; the directory itself if peelfs made it and it is empty now.
fn remove_own(directory: &Path, made: bool) -> io::Result<()> {
    match std::fs::remove_dir_all(directory.join(OWN)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Fails if another program has put something there.
    let _ = std::fs::remove_dir(directory.join(ROOTFS));
    if made {
        let _ = std::fs::remove_dir(directory);
    }
    Ok(())
}

const OWN: &str = ".peelfs";
const RECORD: &str = "bundle.json";
/// Where changes are kept, unless the user names another directory.
const UPPER: &str = "upper";
/// Files that engines mount over later.
const LATER: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname"];
