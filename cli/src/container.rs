//! What `peelfs run` and `peelfs bundle` share: container options and the root file system.

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::args::{ContainerKernelArg, ImageArgs, VerifyArg};
use super::progress::{Bar, Quiet};
use super::{environment, specs, volumes};
use peelfs::bundle::{self, BundleError, BundleOptions, Configured, Network, Volume, VolumePolicy};
use peelfs::fuse::{OpenFiles, mounts, unmount_with_cover};
use peelfs::host::background::{self, Keeper};
use peelfs::host::error::HostError;
use peelfs::host::kernel::{self as by_kernel, Outcome};
use peelfs::host::report::{Code, Report};
use peelfs::host::rootfs::{self, Stub};
use peelfs::host::spec::{ImageSpec, KernelOptions, MountSpec, Policy, Writable};
use peelfs::host::writable::{self, Overlay};
use peelfs::host::{mount_point, open, piped};
use peelfs::image::{self, Eagerness, ImageFs, PlanError, Pull};
use tokio::runtime::Runtime;

/// Differences from the image's configuration.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Container")]
pub(crate) struct ContainerArgs {
    /// When to ask the registry what the image's name points to
    #[arg(long, value_enum, default_value_t, value_name = "WHEN", conflicts_with = "offline", help_heading = "Image")]
    pub pull: PullArg,
    /// When bytes of the image may be shown
    #[arg(long, value_enum, default_value_t, value_name = "POLICY", help_heading = "Image")]
    pub verify: VerifyArg,
    /// Let the kernel mount the image itself (EROFS), without a process (root; Linux 6.12)
    #[arg(long, value_enum, default_value_t, value_name = "WHEN", help_heading = "Image")]
    pub kernel: ContainerKernelArg,
    /// Run as this user (name or number) instead of the image's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Set an environment variable; without `=VALUE`, take its value from this environment (`NAME*`: all with that prefix)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Set the environment variables in this file, one per line; `--env` takes precedence
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Start in this directory instead of the image's
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Run this program instead of the image's entrypoint and command; a JSON array for several words
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Mount a directory or file of this machine in the container; `:ro` makes it read-only
    #[arg(short, long, value_name = "SRC:DST[:OPTIONS]")]
    pub volume: Vec<String>,
    /// The same as `type=bind,src=SRC,dst=DST[,ro]`; or `type=tmpfs,dst=DST[,tmpfs-size=SIZE][,tmpfs-mode=MODE]`
    #[arg(long, value_name = "MOUNT")]
    pub mount: Vec<String>,
    /// Mount a tmpfs, as in `/tmp:size=64m,exec`; filled from the image unless `mode=` is given
    #[arg(long, value_name = "DST[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// Add a name and its address to the container's /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,
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

/// When to ask the registry what the image's name points to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum PullArg {
    /// Only if it is not known on this machine
    #[default]
    Missing,
    /// Each time; without an answer, fail
    Always,
    /// Never, not even for content: use only what is cached, as with `--offline`
    Never,
    /// Each time; while the registry cannot be reached, use the last answer
    Newer,
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
        let (binds, tmpfs) = volumes::mounts(&self.volume, &self.mount, &self.tmpfs)?;
        Ok(BundleOptions {
            environment: environment::variables(&self.env_file, &self.env)?,
            directory: self.workdir.clone(),
            entrypoint: self.entrypoint.as_deref().map(words).transpose()?,
            new_privileges: self.allow_new_privileges,
            volumes: match self.image_volume.unwrap_or(image_volume) {
                ImageVolume::Tmpfs => VolumePolicy::Tmpfs,
                ImageVolume::Ignore => VolumePolicy::Root,
            },
            binds,
            tmpfs,
            network: match network {
                NetworkArg::Host => Network::Host,
                NetworkArg::None => Network::None,
            },
            hostname: self.hostname.as_deref().map(|name| host_name("host", name)).transpose()?,
            ..BundleOptions::default()
        })
    }

    /// The image, with paths that mean the same in any directory.
    pub(super) fn image(&self, args: &ImageArgs) -> Result<ImageSpec, Report> {
        let mut image = specs::image_with_absolute_paths(args)?;
        if self.pull == PullArg::Never {
            image.access.network = image::Network::Offline;
        }
        Ok(image)
    }

    fn pull(&self) -> Pull {
        match self.pull {
            PullArg::Missing | PullArg::Never => Pull::Missing,
            PullArg::Always => Pull::Always,
            PullArg::Newer => Pull::Newer,
        }
    }

    /// Lines of `/etc/hosts`.
    fn hosts(&self, network: Network) -> Result<String, Report> {
        self.add_host.iter().map(|text| host(text, network)).collect()
    }
}

/// A name that can be a host name: the kernel takes 64 bytes, and programs expect letters, digits and little else.
pub(super) fn host_name(whose: &str, name: &str) -> Result<String, Report> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins && name.len() <= LONGEST_HOST_NAME && name.bytes().all(is_good) {
        return Ok(name.to_owned());
    }
    let hint = "names have up to 64 letters, digits, `_`, `.` and `-`, and begin with a letter or digit";
    Err(Report::usage(format!("`{}` is not a {whose} name", name.escape_debug())).hint(hint))
}

/// `NAME[;NAME…]:ADDRESS`; as a line of `/etc/hosts`.
fn host(text: &str, network: Network) -> Result<String, Report> {
    let wrong = || {
        let hint = "write a name and an address, as in `--add-host db:10.0.0.7` or `--add-host 'db:[fd00::7]'`";
        Report::usage(format!("`--add-host {text}` is not a name and an address")).hint(hint)
    };
    let (names, address) = text.split_once([':', '=']).ok_or_else(wrong)?;
    let address = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
    let address: IpAddr = match (address, network) {
        // It is the same machine.
        ("host-gateway", Network::Host) => Ipv4Addr::LOCALHOST.into(),
        (address, _) => address.parse().map_err(|_| wrong())?,
    };
    let is_name = |name: &str| !name.is_empty() && !name.contains(|char: char| char.is_whitespace() || char == '#');
    if !names.split(';').all(is_name) {
        return Err(wrong());
    }
    Ok(format!("{address}\t{}\n", names.replace(';', " ")))
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

/// A container to be made.
pub(super) struct Plan<'a> {
    /// Its image, with absolute paths.
    pub(super) image: ImageSpec,
    /// The user's options.
    pub(super) args: &'a ContainerArgs,
    /// Root is the only user.
    pub(super) only_root: bool,
    /// The other options.
    pub(super) options: BundleOptions,
    /// Where to make `config.json` and `rootfs`.
    pub(super) directory: &'a Path,
    /// The directory for peelfs's own files.
    pub(super) own: &'a Path,
    /// Whether its mounts are in a namespace that ends with the container.
    pub(super) in_own_namespace: bool,
    /// Where changes go; without, the root file system is read-only.
    pub(super) writable: Option<Writable>,
    /// Files that mounts added later need.
    pub(super) stubs: &'a [&'a str],
    /// What to do about an image without a command.
    pub(super) without_command: &'a str,
    /// Whether the progress of first passes is shown.
    pub(super) quiet: Quiet,
}

/// What was made for a container, held for its life.
pub(super) struct Made {
    /// The program that it runs.
    pub(super) program: String,
    /// `config.json` as written.
    pub(super) config: Vec<u8>,
    /// The directory that keeps changes.
    upper_lock: Option<writable::UpperLock>,
}

impl Made {
    /// The container is made, or has run: what it has changed stays.
    pub(super) fn keep(&mut self) {
        self.upper_lock.iter_mut().for_each(writable::UpperLock::keep);
    }
}

impl Plan<'_> {
    /// Mounts the image with an overlay, and writes `config.json`. Unmounts again on failure.
    pub(super) fn make(mut self, runtime: &Runtime) -> Result<Made, Report> {
        let (image, piped) = {
            let index_from = specs::index_from(self.args.verify, &self.image);
            let image = ImageSpec { index_from, ..self.image.clone() };
            let spec = MountSpec::new(image, self.directory.join(ROOTFS));
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
            let opened =
                open::open_alone_pulled(&image, self.args.pull()).await.map_err(|error| self.unopened(error))?;
            // The configuration of an artifact says nothing of how it runs.
            let is_image = opened.plan.artifact.is_none();
            let configured = Configured::parse(if is_image { opened.plan.configuration.raw.get() } else { "{}" })?;
            let manifest = &opened.plan.manifest.digest;
            // Dropped last: what an error leaves of it is removed when nothing is mounted.
            let mut upper_lock = writable::take(self.writable.as_ref(), &at, manifest).map_err(HostError::from)?;
            // Every process reads the image that this process has resolved.
            let reference = opened.reference.clone().pinned(&opened.plan.root.digest);
            let image = ImageSpec { reference, ..image };
            // As an engine's root file system: protection is set in the container's configuration.
            let kernel = KernelOptions { suid: true, dev: true, allow_other: true, ..KernelOptions::default() };
            let verify = specs::verify(self.args.verify);
            let spec = MountSpec::new(image, &at);
            let mut spec = MountSpec { kernel, policy: Policy { verify, ..spec.policy }, ..spec };
            mount_point::hold(&spec, &at)?;
            // Without a process, once all of the image is cached.
            let is_mounted = match self.args.kernel {
                ContainerKernelArg::Never => false,
                ContainerKernelArg::Auto => {
                    match by_kernel::mount_opened_if_whole(&spec, &opened, self.in_own_namespace).await? {
                        Outcome::Mounted => true,
                        Outcome::Not(why) => {
                            spec.by_fuse = Some(image::chain(&why));
                            false
                        }
                    }
                }
            };
            let quiet = self.quiet;
            let mounting = tokio::task::spawn_blocking(move || {
                if is_mounted {
                    return Ok(());
                }
                let mut bar = Bar::new(quiet);
                background::mount(&spec, Keeper::Process, &mut bar)
            });
            let fs = opened.files(Eagerness::OnDemand, verify);
            let described = self.describe(&fs, &configured).await;
            let mounted = mounting.await.map_err(|error| Report::new(Code::Failure, error))?.map_err(Report::from);
            let covered = match (described, mounted) {
                (Ok(made), Ok(())) => {
                    let covered = self.cover(&at, &opened.reference.to_string(), kernel);
                    covered.map(|()| upper_lock.iter_mut().for_each(writable::UpperLock::used)).map(|()| made)
                }
                (_, Err(error)) => return Err(error),
                (Err(error), Ok(())) => Err(error),
            };
            let (program, config) = covered.inspect_err(|_| take_away(&at))?;
            Ok(Made { program, config, upper_lock })
        })
    }

    /// The error of an image that could not be opened.
    fn unopened(&self, error: HostError) -> Report {
        let is_offline = matches!(error, HostError::Plan(PlanError::Offline { .. }));
        let report = Report::from(error);
        if is_offline && self.args.pull == PullArg::Never {
            return report.hint("run it once without `--pull=never` to fetch it");
        }
        report
    }

    /// Writes `config.json`, and makes mount points that the image lacks; returns the program and the text.
    async fn describe(&mut self, fs: &ImageFs, image: &Configured) -> Result<(String, Vec<u8>), Report> {
        let user = rootfs::user(fs, self.args.user.as_deref().unwrap_or(image.user())).await?;
        if self.only_root && (user.uid != 0 || user.gid != 0) {
            let (uid, gid) = (user.uid, user.gid);
            return Err(Report::new(Code::Failure, format!("this user may not map the container's user {uid}:{gid}"))
                .hint("let root add a line for this user to /etc/subuid and /etc/subgid, and install `uidmap`; or run as the container's root with `--user 0`"));
        }
        self.add_names()?;
        let config = bundle::config(image, &user, &self.options).map_err(|error| {
            let is_without = matches!(error, BundleError::NoCommand);
            let report = Report::from(error);
            if is_without { report.hint(self.without_command) } else { report }
        })?;
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
        let program = config["process"]["args"][0].as_str().unwrap_or_default().to_owned();
        Ok((program, text))
    }

    /// Name resolution files in the container; a user's own volumes take precedence.
    fn add_names(&mut self) -> Result<(), Report> {
        let mut names = Vec::new();
        let mut add = |source: &Path, destination: &str| {
            if let (Some(source), true) = (source.to_str(), source.exists()) {
                names.push(Volume::readonly(source.to_owned(), destination.to_owned()));
            }
        };
        let network = self.options.network;
        let further = self.args.hosts(network)?;
        let hosts = match network {
            Network::Host => {
                add(Path::new("/etc/resolv.conf"), "/etc/resolv.conf");
                // Programs that run long see it change, where it is the machine's own.
                (!further.is_empty()).then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default())
            }
            Network::None => {
                let name = self.options.hostname.as_deref().map_or(String::new(), |name| format!("127.0.1.1 {name}\n"));
                Some(format!("127.0.0.1 localhost\n::1 localhost\n{name}"))
            }
        };
        match hosts {
            None => add(Path::new("/etc/hosts"), "/etc/hosts"),
            Some(mut hosts) => {
                if !hosts.ends_with('\n') {
                    hosts.push('\n');
                }
                let own = self.own.join("hosts");
                write(&own, (hosts + &further).as_bytes(), 0o644)?;
                add(&own, "/etc/hosts");
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
/// `__NEW_UTS_LEN` of the kernel.
const LONGEST_HOST_NAME: usize = 64;
