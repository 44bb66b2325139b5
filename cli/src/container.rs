//! What `peelfs run` and `peelfs bundle` share: container options and the root file system.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::progress::Bar;
use peelfs::bundle::{self, BundleOptions, Configured, Network, Volume, VolumePolicy};
use peelfs::fuse::{OpenFiles, mounts, unmount_with_cover};
use peelfs::host::background::{self, Keeper};
use peelfs::host::error::HostError;
use peelfs::host::report::{Code, Report};
use peelfs::host::rootfs::{self, Stub};
use peelfs::host::spec::{ImageSpec, KernelOptions, MountSpec, Writable};
use peelfs::host::writable::{self, Overlay};
use peelfs::host::{mount_point, open, piped};
use peelfs::image::{Eagerness, ImageFs, Verify};
use tokio::runtime::Runtime;

/// Differences from the image's configuration.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Container")]
pub(crate) struct ContainerArgs {
    /// Run as this user (name or number) instead of the image's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Set an environment variable; without `=VALUE`, take its value from this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Start in this directory instead of the image's
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Run this program instead of the image's entrypoint and command; a JSON array for several words
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Mount a directory or file of this machine in the container; `:ro` makes it read-only
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    pub volume: Vec<String>,
    /// How to mount the volumes that the image declares
    #[arg(long, value_enum, value_name = "HOW")]
    pub image_volume: Option<ImageVolume>,
    /// The container's host name
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Let set-user-id programs such as sudo and file capabilities work in the container
    #[arg(long)]
    pub allow_new_privileges: bool,
}

/// How to mount the volumes that an image declares.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum ImageVolume {
    /// Each in memory, filled from the image
    Tmpfs,
    /// As part of the root file system
    Ignore,
}

/// Which network a container has.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum NetworkArg {
    /// This machine's network
    Host,
    /// A network of its own, with a loopback interface only
    None,
}

impl ContainerArgs {
    /// Parses them; `image_volume` applies where the user gave none.
    pub(super) fn options(&self, network: NetworkArg, image_volume: ImageVolume) -> Result<BundleOptions, Report> {
        let environment = self.env.iter().filter_map(|text| match text.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            None => std::env::var(text).ok().map(|value| (text.clone(), value)),
        });
        Ok(BundleOptions {
            environment: environment.collect(),
            directory: self.workdir.clone(),
            entrypoint: self.entrypoint.as_deref().map(words).transpose()?,
            new_privileges: self.allow_new_privileges,
            volumes: match self.image_volume.unwrap_or(image_volume) {
                ImageVolume::Tmpfs => VolumePolicy::Tmpfs,
                ImageVolume::Ignore => VolumePolicy::Root,
            },
            binds: self.volume.iter().map(|text| volume(text)).collect::<Result<_, _>>()?,
            network: match network {
                NetworkArg::Host => Network::Host,
                NetworkArg::None => Network::None,
            },
            hostname: self.hostname.clone(),
            ..BundleOptions::default()
        })
    }
}

/// An entrypoint: one program or a JSON array of words; an empty one means none.
fn words(text: &str) -> Result<Vec<String>, Report> {
    match text {
        "" => Ok(Vec::new()),
        text if text.starts_with('[') => serde_json::from_str(text)
            .map_err(|error| Report::usage(format!("`{text}` is not a JSON array of words: {error}"))),
        program => Ok(vec![program.to_owned()]),
    }
}

/// `SRC:DST[:ro]`
fn volume(text: &str) -> Result<Volume, Report> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, readonly) = match parts[..] {
        [source, destination] | [source, destination, "rw"] => (source, destination, false),
        [source, destination, "ro"] => (source, destination, true),
        _ => {
            let hint = "give a path on this machine and a path in the container, as in `-v ./data:/data:ro`";
            return Err(Report::usage(format!("`{text}` is not a volume")).hint(hint));
        }
    };
    if source.is_empty() {
        return Err(Report::usage(format!("volume `{text}` has no path on this machine")));
    }
    let absolute = open::absolute(source);
    let found = absolute.canonicalize().map_err(|error| {
        let report = Report::new(Code::NotFound, format!("cannot use `{source}` as a volume: {error}"));
        if source.contains('/') {
            report
        } else {
            report.hint(format!("volumes are paths; named volumes are not supported. Make it with `mkdir {source}`"))
        }
    })?;
    let Some(source) = found.to_str() else {
        return Err(Report::usage(format!("the path of volume `{text}` is not UTF-8, as `config.json` must be")));
    };
    Ok(Volume { source: source.to_owned(), destination: destination.to_owned(), readonly })
}

/// A container to be made.
pub(super) struct Plan<'a> {
    /// Its image, with absolute paths.
    pub(super) image: ImageSpec,
    /// The user, if not the image's.
    pub(super) user: Option<&'a str>,
    /// Root is the only user.
    pub(super) only_root: bool,
    /// The other options.
    pub(super) options: BundleOptions,
    /// Where to make `config.json` and `rootfs`.
    pub(super) directory: &'a Path,
    /// The directory for peelfs's own files.
    pub(super) own: &'a Path,
    /// Where changes go; without, the root file system is read-only.
    pub(super) writable: Option<Writable>,
    /// Files that mounts added later need.
    pub(super) stubs: &'a [&'a str],
}

/// What was made for a container, held for its life.
pub(super) struct Made {
    /// `config.json` as written.
    pub(super) config: Vec<u8>,
    /// The directory that keeps changes.
    pub(super) kept: Option<writable::Kept>,
}

impl Plan<'_> {
    /// Mounts the image with an overlay, and writes `config.json`. Unmounts again on failure.
    pub(super) fn make(mut self, runtime: &Runtime) -> Result<Made, Report> {
        let (image, piped) = {
            let spec = MountSpec::new(self.image.clone(), self.directory.join(ROOTFS));
            let (spec, piped) = piped::hold(spec)?;
            (spec.image, piped)
        };
        if piped.is_some() {
            return Err(
                Report::usage("a container cannot read its archive from a pipe").hint("write it to a file first")
            );
        }
        let at = self.directory.join(ROOTFS);
        runtime.block_on(async {
            let opened = open::open_alone(&image).await?;
            let configured = Configured::parse(opened.plan.configuration.raw.get())?;
            let manifest = &opened.plan.manifest.digest;
            let kept = writable::take(self.writable.as_ref(), &at, manifest).map_err(HostError::from)?;
            // Every process reads the image that this process has resolved.
            let reference = opened.reference.clone().pinned(&opened.plan.root.digest);
            let image = ImageSpec { reference, ..image };
            // As an engine's root file system: protection is set in the container's configuration.
            let kernel = KernelOptions { suid: true, dev: true, allow_other: true, ..KernelOptions::default() };
            let verify = meant::verify(self.args.verify);
            let spec = MountSpec::new(image, &at);
            let spec = MountSpec { kernel, policy: Policy { verify, ..spec.policy }, ..spec };
            mount_point::hold(&spec, &at)?;
            let mounting = tokio::task::spawn_blocking(move || {
                let mut bar = Bar::new();
                background::mount(&spec, Keeper::Process, &mut bar)
            });
            let fs = opened.files(Eagerness::OnDemand, Verify::BeforeShowing);
            let described = self.describe(&fs, &configured).await;
            let mounted = mounting.await.map_err(|error| Report::new(Code::Failure, error))?.map_err(Report::from);
            let covered = match (described, mounted) {
                (Ok(config), Ok(())) => self.cover(&at, &opened.reference.to_string(), kernel).map(|()| config),
                (_, Err(error)) => return Err(error),
                (Err(error), Ok(())) => Err(error),
            };
            covered.map(|config| Made { config, kept }).inspect_err(|_| take_away(&at))
        })
    }

    /// Writes `config.json`, and makes mount points that the image lacks.
    async fn describe(&mut self, fs: &ImageFs, image: &Configured) -> Result<Vec<u8>, Report> {
        let user = rootfs::user(fs, self.user.unwrap_or(image.user())).await?;
        if self.only_root && (user.uid != 0 || user.gid != 0) {
            let (uid, gid) = (user.uid, user.gid);
            return Err(Report::new(Code::Failure, format!("this user may not map the container's user {uid}:{gid}"))
                .hint("let root add a line for this user to /etc/subuid and /etc/subgid, and install `uidmap`; or run as the container's root with `--user 0`"));
        }
        self.add_names()?;
        let config = bundle::config(image, &user, &self.options).map_err(Report::from)?;
        let binds = |path: &str| self.options.binds.iter().find(|bind| bind.destination.trim_end_matches('/') == path);
        let is_file = |path: &str| binds(path).is_some_and(|bind| !Path::new(&bind.source).is_dir());
        let stubs = bundle::destinations(&config).into_iter();
        let mut stubs: Vec<_> =
            stubs.map(|path| if is_file(&path) { (path, Stub::File) } else { (path, Stub::Directory) }).collect();
        stubs.extend(self.stubs.iter().map(|path| ((*path).to_owned(), Stub::File)));
        rootfs::make_stubs(fs, &stubs, &self.own.join(STUBS)).await?;
        let mut text = serde_json::to_vec_pretty(&config).expect("plain data");
        text.push(b'\n');
        write(&self.directory.join(CONFIG), &text, 0o600)?;
        Ok(text)
    }

    /// Name resolution files in the container; a user's own volumes take precedence.
    fn add_names(&mut self) -> Result<(), Report> {
        let mut names = Vec::new();
        let mut add = |source: &Path, destination: &str| {
            if let (Some(source), true) = (source.to_str(), source.exists()) {
                let (source, destination) = (source.to_owned(), destination.to_owned());
                names.push(Volume { source, destination, readonly: true });
            }
        };
        match self.options.network {
            Network::Host => {
                add(Path::new("/etc/resolv.conf"), "/etc/resolv.conf");
                add(Path::new("/etc/hosts"), "/etc/hosts");
            }
            Network::None => {
                let hosts = self.own.join("hosts");
                let name = self.options.hostname.as_deref().map_or(String::new(), |name| format!("127.0.1.1 {name}\n"));
                write(&hosts, format!("127.0.0.1 localhost\n::1 localhost\n{name}").as_bytes(), 0o644)?;
                add(&hosts, "/etc/hosts");
            }
        }
        names.append(&mut self.options.binds);
        self.options.binds = names;
        Ok(())
    }

    fn cover(&self, at: &Path, source: &str, kernel: KernelOptions) -> Result<(), Report> {
        let below = self.own.join(STUBS);
        let overlay = Overlay { upper: self.writable.as_ref(), below: Some(&below), kernel, source };
        Ok(writable::cover(at, &overlay).map_err(HostError::from)?)
    }
}

/// Unmounts what was mounted for a container.
pub(super) fn take_away(at: &Path) {
    if let Some(mount) = mounts::peelfs_at(at)
        && let Err(error) = unmount_with_cover(&mount, OpenFiles::Keep)
    {
        eprintln!("note: {error}");
    }
}

/// Writes a new file.
pub(super) fn write(path: &Path, text: &[u8], mode: u32) -> Result<(), HostError> {
    let written = File::options().write(true).create(true).truncate(true).mode(mode).open(path);
    let written = written.and_then(|mut file| file.write_all(text));
    written.map_err(|cause| HostError::RunState { path: path.to_owned(), cause })
}

/// A directory that only this user may enter.
pub(super) fn make_private(path: &Path) -> Result<(), HostError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    made.map_err(|cause| HostError::RunState { path: path.to_owned(), cause })
}

/// The directory of stubs: the lowest layer of the overlay.
pub(super) fn make_stubs_directory(own: &Path) -> Result<PathBuf, HostError> {
    let stubs = own.join(STUBS);
    make_private(&stubs)?;
    Ok(stubs)
}

/// Names in a bundle; the specification requires the first two.
pub(super) const CONFIG: &str = "config.json";
pub(super) const ROOTFS: &str = "rootfs";
const STUBS: &str = "stubs";
