//! The grammar of the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;

use peelfs::digest::Digest;
use peelfs::host::push::Ztocs;
use peelfs::host::spec::{IndexFrom, repository};
use peelfs::host::{http, size};
use peelfs::image::LayerChoice;
use peelfs::reference::RegistryName;
use peelfs::source::outage::OnOutage;
use peelfs::source::registry::mirrors::{MirrorError, Mirrors, NamedMirror};

use super::bundle::BundleArgs;
use super::complete;
use super::csi::CsiArgs;
use super::doctor::DoctorArgs;
use super::look::args::{
    CatArgs, DiffArgs, DuArgs, FindArgs, GrepArgs, LayersArgs, LsArgs, StatArgs, SumArgs, TreeArgs, WhichArgs,
};
use super::run::RunArgs;
use super::snapshotter::{CredentialArgs, SnapshotterArgs};
use super::store::StoreArgs;
use super::top::TopArgs;
use super::version::VersionArgs;
use super::web::WebArgs;

/// Mounts any OCI image as a directory, lazily and verified.
#[derive(Debug, Parser)]
#[command(name = "peelfs", version, about, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  peelfs mount python:3.12-slim ./python    mount an image; fetches only what is read
  peelfs umount ./python                    and unmount it
  peelfs run -it alpine sh                  run a container from an image
  peelfs ls -l python:3.12-slim /usr/bin    look into an image without mounting it
  peelfs find alpine / -perm -4000          and find, du, tree, stat, grep, sha256sum
  peelfs diff app:1.3 app:1.4               what differs between two images
  peelfs cat alpine /etc/os-release         print a file of an image
  peelfs inspect oci:./layout:latest        everything about an image, as JSON

Images are named as podman, docker and skopeo name them: NAME[:TAG][@DIGEST], docker://NAME,
oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], dir:DIR,
containers-storage:NAME (podman, buildah, CRI-O), docker-daemon:NAME, - (a piped archive).

Exit codes: 0 done, 1 failure, 2 usage, 3 not found, 4 authentication, 5 verification, 6 network.";

/// What peelfs can do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process makes one")]
pub(crate) enum Command {
    /// Mount an image on a directory
    Mount(MountArgs),
    /// Run a container from an image, with runc or crun
    Run(RunArgs),
    /// Make an OCI runtime bundle from an image, for runc and crun
    Bundle(BundleArgs),
    /// Unmount what peelfs mounted
    #[command(alias = "unmount")]
    Umount(UmountArgs),
    /// List a directory of an image, without mounting it
    Ls(LsArgs),
    /// Find files in an image by name, type, size, mode, owner or time, as find(1) does
    Find(FindArgs),
    /// Show how much space the files of an image take, by directory or by layer
    Du(DuArgs),
    /// Draw a directory of an image with all that is in it
    Tree(TreeArgs),
    /// Show metadata: times, owners, extended attributes, the layer
    Stat(StatArgs),
    /// Print files of an image
    Cat(CatArgs),
    /// Search files of an image
    Grep(GrepArgs),
    /// Print digests of files, as `sha256sum -c` checks them
    #[command(name = "sha256sum")]
    Sha256sum(SumArgs),
    /// Show what differs between two images
    Diff(DiffArgs),
    /// Show what each layer is made by, adds, changes, removes and wastes
    Layers(LayersArgs),
    /// Show which layers have had a path, and whose version is shown
    #[command(alias = "which-layer")]
    Which(WhichArgs),
    /// Copy files out of an image, with their metadata
    Cp(CpArgs),
    /// Describe an image as one JSON object
    Inspect(InspectArgs),
    /// Check whether an image is signed; also a verifier for containerd and peelfs
    VerifyImage(VerifyImageArgs),
    /// Show, verify and prune the cache
    Cache(CacheArgs),
    /// Push, export and import the layer indexes of an image
    Index(IndexArgs),
    /// Export, import and forget what runs of an image read first: its start-up profiles
    Profile(ProfileArgs),
    /// Show images to podman, buildah and CRI-O without pulling them
    Store(StoreArgs),
    /// Show mounts and their progress
    Status(StatusArgs),
    /// Watch what mounts fetch and why, and which programs wait
    Top(TopArgs),
    /// Serve a web page with the same, and a map of each image and what was fetched of it
    Web(WebArgs),
    /// Let this version of peelfs serve existing mounts, without unmounting
    Upgrade(UpgradeArgs),
    /// Serve containerd as a snapshotter that mounts images instead of unpacking them
    Snapshotter(SnapshotterArgs),
    /// Serve Kubernetes as a CSI plugin: volumes that show images
    Csi(CsiArgs),
    /// Check what works on this machine, and say how to get what does not
    Doctor(DoctorArgs),
    /// Print the version, of which commit it is, and how it was built
    Version(VersionArgs),
    /// Print a completion script for a shell
    #[command(hide = true)]
    Completions(CompletionsArgs),
    /// Write manual pages into a directory
    #[command(hide = true)]
    Man(ManArgs),
    /// Ask whether a mount is served
    #[command(hide = true)]
    Probe(ProbeArgs),
    /// Ask the kubelet's credential providers, as a credential helper of docker
    #[command(hide = true)]
    CredentialProvider(CredentialArgs),
    /// Hold or serve mounts for other processes of peelfs
    #[command(hide = true)]
    Host(HostArgs),
}

impl Command {
    /// The image that is named, if one is.
    pub(super) fn image(&self) -> Option<&str> {
        let image = match self {
            Self::Mount(args) => &args.image,
            Self::Bundle(args) => &args.image,
            Self::Run(args) => return args.line.first().map(String::as_str),
            Self::Ls(args) => &args.image,
            Self::Find(args) => &args.image,
            Self::Du(args) => &args.image,
            Self::Tree(args) => &args.image,
            Self::Stat(args) => &args.image,
            Self::Grep(args) => &args.image,
            Self::Sha256sum(args) => &args.image,
            Self::Diff(args) => &args.image,
            Self::Layers(args) => &args.image,
            Self::Which(args) => &args.image,
            Self::Cat(args) => &args.image,
            Self::Cp(args) => &args.image,
            Self::Inspect(args) => &args.image,
            Self::Store(args) => args.image()?,
            Self::Doctor(args) => return args.reference.as_deref(),
            _ => return None,
        };
        Some(&image.reference)
    }
}

/// `--layer`
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct LayerArgs {
    /// Use only layer N, as a lower directory of overlayfs: its number as in `peelfs inspect` (1 is the lowest), or at
    /// least the first 6 digits of its digest
    ///
    /// A deleted name is a character device 0:0; an opaque directory has the extended attribute
    /// `trusted.overlay.opaque` for root, `user.overlay.opaque` for other users. Lower layers are read only where an
    /// entry of this layer depends on them.
    #[arg(long, value_name = "N", help_heading = "Image")]
    pub layer: Option<LayerChoice>,
}

/// Which image, and how to reach it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ImageArgs {
    /// The image: NAME[:TAG][@DIGEST], docker://NAME, oci:DIR, oci-archive:FILE, docker-archive:FILE, dir:DIR,
    /// containers-storage:NAME, docker-daemon:NAME
    #[arg(value_name = "IMAGE", add = ArgValueCompleter::new(complete::images))]
    pub reference: String,
    /// How its layers are opened.
    #[command(flatten)]
    pub opening: OpeningArgs,
    /// How to reach the image.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// How layers are opened, and whether that is shown.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct OpeningArgs {
    /// Show no progress; `grep` and `diff` print nothing at all, and the exit code tells
    #[arg(short, long)]
    pub quiet: bool,
    /// Which indexes of layers to use besides those that this machine has made
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "WHICH",
        env = "PEELFS_INDEX",
        hide_env_values = true,
        help_heading = "Image"
    )]
    pub index: IndexArg,
    /// Show the layers of an image as files, one each; artifacts are shown as files without it
    ///
    /// A file has the name that the manifest gives it, or else its digest. Artifacts are CNCF ModelPack, ORAS files, Docker
    /// models, Helm charts, and every other manifest whose configuration or layers are not an image's.
    #[arg(long, help_heading = "Image")]
    pub artifact: bool,
    /// Where this machine has no index of a layer, use the one that `peelfs index push` or SOCI has put into REPO, or, for
    /// `referrers`, into the image's own repository; its writers are trusted for names, attributes and content
    #[arg(long, value_name = "REPO", env = "PEELFS_INDEX_FROM", hide_env_values = true, help_heading = "Image")]
    pub index_from: Option<IndexFrom>,
    /// Use such indexes only if the verifiers in this directory allow the artifact that they are in
    /// [default: /etc/peelfs/index-verifiers, if there is one]
    ///
    /// The verifiers are run as those of images are, with REPO@DIGEST as the name. A directory without a verifier allows
    /// nothing. If an artifact is not allowed, that is a warning, and layers are read as if it were not there.
    #[arg(long, value_name = "DIR", env = "PEELFS_INDEX_VERIFIER_DIR", hide_env_values = true, help_heading = "Image")]
    pub index_verifier_dir: Option<PathBuf>,
}

/// Which indexes of layers are used besides those that this machine has made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum IndexArg {
    /// Imported ones, tables of contents of layers that bring one along (zstd:chunked, eStargz), and those that the manifest
    /// binds (SOCI)
    #[default]
    Auto,
    /// Those of peelfs: a layer with a table of contents is read whole, as any other
    Own,
    /// As `auto`, with tables of contents before all others
    Foreign,
    /// None
    None,
}

/// How to reach an image, and where to cache it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AccessArgs {
    /// Choose OS/ARCH[/VARIANT] instead of this machine's platform
    #[arg(long, value_name = "PLATFORM", env = "PEELFS_PLATFORM", hide_env_values = true, help_heading = "Image")]
    pub platform: Option<String>,
    /// Use only what is cached; never use the network
    #[arg(long, help_heading = "Image")]
    pub offline: bool,
    /// Allow plain HTTP and unverified TLS (loopback registries need no permission)
    #[arg(
        long,
        env = "PEELFS_INSECURE",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide_env_values = true,
        help_heading = "Registry"
    )]
    pub insecure: bool,
    /// Also trust the certificates in this PEM file
    #[arg(long, value_name = "FILE", help_heading = "Registry")]
    pub ca: Vec<PathBuf>,
    /// Read credentials from this file instead of those of podman and docker
    #[arg(long, value_name = "FILE", help_heading = "Registry")]
    pub authfile: Option<PathBuf>,
    /// Ask a mirror before the registry: [REGISTRY=]HOST[:PORT] or [REGISTRY=]URL, of any registry if none is named; can be
    /// repeated. `none` also keeps files of mirrors from being read
    ///
    /// Without it, mirrors are those of containerd's hosts.toml, or else of podman's registries.conf. A mirror is passed over
    /// for the next, and in the end for the registry, if it fails, lacks something or sends wrong bytes. It gets the login
    /// for its own host.
    #[arg(
        long,
        value_name = "MIRROR",
        env = "PEELFS_MIRROR",
        value_delimiter = ',',
        hide_env_values = true,
        help_heading = "Registry"
    )]
    pub mirror: Vec<MirrorArg>,
    /// Read hosts.toml files of mirrors from this directory, as in DIR/docker.io/hosts.toml
    /// [default: /etc/containerd/certs.d and /etc/docker/certs.d]
    #[arg(long, value_name = "DIR", env = "PEELFS_HOSTS_DIR", hide_env_values = true, help_heading = "Registry")]
    pub hosts_dir: Option<PathBuf>,
    /// Run the verifiers in this directory to decide whether the image may be used, as containerd does
    /// [default: /etc/peelfs/verifiers]
    #[arg(long, value_name = "DIR", env = "PEELFS_VERIFIER_DIR", hide_env_values = true, help_heading = "Image")]
    pub verifier_dir: Option<PathBuf>,
    /// How long to wait for a registry that does not answer: `deadline=SECONDS`, `block` or `offline`
    ///
    /// `deadline=SECONDS` fails after that time without data, `block` waits until the registry is back, `offline` fails
    /// at once. A registry that accepts connections but never answers is detected after 15 s, one that stops in the
    /// middle of an answer after 20 s. Cached data can be read all the time.
    #[arg(long, value_name = "POLICY", default_value = "deadline=60", help_heading = "Registry")]
    pub on_outage: OnOutage,
    /// Where the cache is, and its limit.
    #[command(flatten)]
    pub cache: CacheDirArgs,
}

/// `--mirror`
#[derive(Clone, Debug)]
pub(crate) enum MirrorArg {
    /// No file is read.
    None,
    /// This one.
    Named(NamedMirror),
}

impl std::str::FromStr for MirrorArg {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<Self, MirrorError> {
        if text == "none" { Ok(Self::None) } else { text.parse().map(Self::Named) }
    }
}

impl AccessArgs {
    /// Which mirrors are asked.
    pub(super) fn mirrors(&self) -> Mirrors {
        let named = self.mirror.iter().filter_map(|mirror| match mirror {
            MirrorArg::None => None,
            MirrorArg::Named(mirror) => Some(mirror.clone()),
        });
        let no_files = self.mirror.iter().any(|mirror| matches!(mirror, MirrorArg::None));
        Mirrors { named: named.collect(), hosts_dir: self.hosts_dir.clone(), no_files }
    }

    /// Options in use that mean nothing for a local image; none that a variable of the environment may have set.
    pub(super) fn only_for_registries(&self) -> impl Iterator<Item = &'static str> {
        let given = [(!self.ca.is_empty(), "--ca"), (self.authfile.is_some(), "--authfile")];
        given.into_iter().filter_map(|(is_given, option)| is_given.then_some(option))
    }
}

/// Where the cache is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CacheDirArgs {
    /// Keep layers in this directory [default: $XDG_CACHE_HOME/peelfs]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "PEELFS_CACHE_DIR",
        hide_env_values = true,
        help_heading = "Cache"
    )]
    pub cache_dir: Option<PathBuf>,
    /// Limit the disk space of layers, as in 20GiB
    #[arg(long, global = true, value_name = "SIZE", env = "PEELFS_CACHE_SIZE", hide_env_values = true, value_parser = size::parse, help_heading = "Cache")]
    pub cache_size: Option<u64>,
}

/// `--verify`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum VerifyArg {
    /// Only after the whole layer has been verified
    #[default]
    Strict,
    /// As `strict`; and layers without an index are shown by one that the image's repository has of them, whose writers are
    /// trusted for names, attributes and content (`--index-from referrers`)
    Vouched,
    /// While the layer is downloaded; if it then fails verification, all of it returns errors
    Behind,
}

/// `--prefetch`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum PrefetchArg {
    /// What earlier runs read first, data near each read, and, while no reader waits, everything else
    All,
    /// What earlier runs read first, and data near each read
    #[default]
    Profile,
    /// Only readahead for sequential reads
    None,
}

/// `--kernel`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum KernelArg {
    /// If all of it is cached already; otherwise a process serves it, and `peelfs status` shows why
    Auto,
    /// Yes: fetches and verifies all of it before it returns
    Always,
    /// No: a process serves it
    #[default]
    Never,
}

/// `--kernel` of containers
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum ContainerKernelArg {
    /// If all of it is cached already
    #[default]
    Auto,
    /// No: a process serves it
    Never,
}

/// `--passthrough`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum PassthroughArg {
    /// If the image is indexed and most of its bytes are in such files
    Auto,
    /// Yes, also without a value
    Always,
    /// No
    #[default]
    Never,
}

/// `peelfs mount`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct MountArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Which layer of it.
    #[command(flatten)]
    pub layer: LayerArgs,
    /// The directory to mount it on
    #[arg(value_name = "DIR")]
    pub at: PathBuf,
    /// Stay in the foreground; Ctrl-C unmounts
    #[arg(short, long)]
    pub foreground: bool,
    /// Return only when every layer is indexed and verified
    #[arg(long)]
    pub wait: bool,
    /// When bytes of a layer may be read
    #[arg(long, value_enum, default_value_t, value_name = "POLICY")]
    pub verify: VerifyArg,
    /// What to prefetch of layers that are indexed but whose content is not cached
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub prefetch: PrefetchArg,
    /// Let the kernel read files of 1 MiB and more directly from the cache: as fast as a local file system, and one
    /// copy in memory for all mounts; opening files takes longer (root; Linux 6.9)
    #[arg(
        long,
        value_enum,
        default_value_t,
        default_missing_value = "always",
        num_args = 0..=1,
        require_equals = true,
        value_name = "WHEN"
    )]
    pub passthrough: PassthroughArg,
    /// Let the kernel mount the image itself (EROFS), without a process: as fast as a local file system, and the mount
    /// outlives peelfs and the cache. All of the image must be cached (root; Linux 6.12; with --allow-other)
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub kernel: KernelArg,
    /// Let idle CPUs sleep between reads: saves power, but the first read of small files takes about twice as long
    /// (mounts by root keep CPUs awake otherwise)
    #[arg(long)]
    pub let_cpus_sleep: bool,
    /// Let other users access the mount (needs `user_allow_other` in /etc/fuse.conf unless root mounts)
    #[arg(long)]
    pub allow_other: bool,
    /// Let root access the mount of another user (needs `user_allow_other` in /etc/fuse.conf); a mount by root always
    /// lets root in
    #[arg(long, conflicts_with = "allow_other")]
    pub allow_root: bool,
    /// Options as mount(8) has them: allow_other, suid, dev, noexec, platform=…, cache_dir=…, …
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Write the log to this file instead of the directory that `peelfs status` shows; in the foreground the log goes
    /// to stderr
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Serve Prometheus metrics of this mount at http://ADDR/metrics; a port alone is one of loopback
    #[arg(long, value_name = "ADDR", value_parser = http::parse_address)]
    pub metrics: Option<SocketAddr>,
    /// Serve without a keeper, the process that takes over when the serving process dies; for use under a supervisor
    #[arg(long)]
    pub no_keeper: bool,
    /// Show an OCI image layout instead of files, for skopeo, umoci and other tools that read layouts; the image is called
    /// NAME in it, by default as in IMAGE, with nothing left out
    #[arg(
        long,
        value_name = "NAME",
        num_args = 0..=1,
        require_equals = true,
        conflicts_with_all = ["artifact", "layer", "writable", "ephemeral"],
        help_heading = "Image"
    )]
    pub as_layout: Option<Option<String>>,
    /// Make the mount writable, as for chroot and systemd-nspawn: changes are kept in UPPER, by default `DIR.upper`
    /// beside the mount point, and reused by the next such mount (root)
    #[arg(
        long,
        value_name = "UPPER",
        num_args = 0..=1,
        require_equals = true,
        conflicts_with = "layer",
        help_heading = "Writing"
    )]
    pub writable: Option<Option<PathBuf>>,
    /// Make the mount writable, with changes in memory until it is unmounted (root)
    #[arg(long, conflicts_with_all = ["writable", "layer"], help_heading = "Writing")]
    pub ephemeral: bool,
    /// Serve it from the process that serves this user's other `--share` mounts of this cache: shared layers are in
    /// memory once
    #[arg(long, conflicts_with_all = ["foreground", "no_keeper"])]
    pub share: bool,
}

/// `peelfs host`, for use by peelfs itself
#[derive(Debug, clap::Args)]
pub(crate) struct HostArgs {
    /// The role of this process
    #[command(subcommand)]
    pub command: HostCommand,
}

/// The processes behind mounts; each reads on stdin what to do.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Holds the connections of mounts, and starts the process that serves them
    Keeper {
        /// Write the time on log lines
        #[arg(long)]
        in_background: bool,
        /// Accept further mounts on this socket
        #[arg(long, value_name = "SOCKET")]
        shared: Option<PathBuf>,
    },
    /// Serves mounts
    Server {
        /// Write the time on log lines
        #[arg(long)]
        in_background: bool,
    },
    /// Serves a mount that has no keeper
    Alone {
        /// Write the time on log lines
        #[arg(long)]
        in_background: bool,
    },
    /// Ends a container after its `peelfs run` has ended
    Guard {
        /// The container runtime
        runtime: PathBuf,
        /// The directory of the container's bundle and state
        directory: PathBuf,
        /// The container's name
        name: String,
    },
    /// Enters the namespaces of a container, tells what works there, and exits
    Namespace,
    /// Unmounts an image store after its other processes were killed
    StoreGuard {
        /// The kernel's number of the file system
        #[arg(long)]
        device: String,
        /// The kernel's number of the mount
        #[arg(long)]
        id: u64,
        /// The mount point
        at: PathBuf,
    },
    /// Mounts an overlay over a mount, and exits
    Cover {
        /// Write lines of a log, with the time
        #[arg(long)]
        in_background: bool,
    },
}

/// `peelfs probe`, for use by peelfs itself
#[derive(Debug, clap::Args)]
pub(crate) struct ProbeArgs {
    /// The mount point
    #[arg(value_name = "DIR")]
    pub at: PathBuf,
}

/// `peelfs umount`
#[derive(Debug, clap::Args)]
pub(crate) struct UmountArgs {
    /// Mount points
    #[arg(value_name = "DIR", required_unless_present = "all", add = ArgValueCompleter::new(complete::mount_points))]
    pub at: Vec<PathBuf>,
    /// Detach now, even if files are open; they stay readable until closed
    #[arg(short, long)]
    pub lazy: bool,
    /// All peelfs mounts of this user
    #[arg(long, conflicts_with = "at")]
    pub all: bool,
}

/// `peelfs upgrade`
#[derive(Debug, clap::Args)]
pub(crate) struct UpgradeArgs {
    /// Mount points
    #[arg(value_name = "DIR", required_unless_present = "all", add = ArgValueCompleter::new(complete::mount_points))]
    pub at: Vec<PathBuf>,
    /// All peelfs mounts of this user
    #[arg(long, conflicts_with = "at")]
    pub all: bool,
}

/// `peelfs cp`
#[derive(Debug, clap::Args)]
pub(crate) struct CpArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Which layer of it.
    #[command(flatten)]
    pub layer: LayerArgs,
    /// What to copy: a file or directory in the image
    #[arg(value_name = "PATH")]
    pub from: PathBuf,
    /// Where to: a new name, or an existing directory
    #[arg(value_name = "TO")]
    pub to: PathBuf,
    /// Keep the image's owners (default for root)
    #[arg(long, overrides_with = "no_same_owner")]
    pub same_owner: bool,
    /// Make everything belong to the caller (default for other users)
    #[arg(long, overrides_with = "same_owner")]
    pub no_same_owner: bool,
}

/// `peelfs inspect`
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Which layer of it.
    #[command(flatten)]
    pub layer: LayerArgs,
    /// Also say for each layer what its index may come from, which of that is used, and why not the others
    #[arg(long)]
    pub explain: bool,
}

/// `peelfs verify-image`
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyImageArgs {
    /// The image; the digest that its name resolves to now must be signed
    #[arg(value_name = "IMAGE", conflicts_with = "name")]
    pub image: Option<String>,
    /// A public key (PEM); the image must be signed with one of the given keys
    #[arg(long, value_name = "FILE", conflicts_with = "config", help_heading = "Signatures")]
    pub key: Vec<PathBuf>,
    /// The signature must be for the image's own repository
    #[arg(long, requires = "key", help_heading = "Signatures")]
    pub same_repository: bool,
    /// Which images need which keys [default: /etc/peelfs/verify-image.json]
    #[arg(
        long,
        value_name = "FILE",
        env = "PEELFS_VERIFY_IMAGE_CONFIG",
        hide_env_values = true,
        help_heading = "Signatures"
    )]
    pub config: Option<PathBuf>,
    /// The image's name, as passed to a verifier (also `-name`; likewise for the others)
    #[arg(long, value_name = "NAME", requires = "digest", help_heading = "As a verifier")]
    pub name: Option<String>,
    /// The digest that must be signed
    #[arg(long, value_name = "DIGEST", help_heading = "As a verifier")]
    pub digest: Option<Digest>,
    /// The media type of stdin, which is not read
    #[arg(long, value_name = "TYPE", help_heading = "As a verifier")]
    pub stdin_media_type: Option<String>,
    /// The operation that needs the verification
    #[arg(long, value_name = "WHAT", help_heading = "As a verifier")]
    pub operation: Option<String>,
    /// How to reach the image.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// `peelfs cache`
#[derive(Debug, clap::Args)]
pub(crate) struct CacheArgs {
    /// What to do; shows the cache by default
    #[command(subcommand)]
    pub command: Option<CacheCommand>,
    /// Where it is.
    #[command(flatten)]
    pub cache: CacheDirArgs,
}

/// `peelfs cache`: its commands.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Show its layers and sizes (the default)
    Show {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check everything in it; damaged parts are removed and fetched again
    Verify {
        /// Show no progress
        #[arg(short, long)]
        quiet: bool,
    },
    /// Drop the content and the indexes of an image's layers; layers in use keep their indexes and fetch content again
    Drop {
        /// Drop content alone: indexes stay, so that the next mount starts at once
        #[arg(long)]
        content: bool,
        /// The layers of this image
        #[arg(value_name = "IMAGE")]
        image: Option<String>,
        /// Choose OS/ARCH[/VARIANT] instead of this machine's platform
        #[arg(long, value_name = "PLATFORM", env = "PEELFS_PLATFORM", hide_env_values = true)]
        platform: Option<String>,
        /// The layers of all images
        #[arg(long, conflicts_with = "image")]
        all: bool,
    },
    /// Remove leftovers and what exceeds the limit, or more with the options
    Prune {
        /// Remove all content, keep indexes
        #[arg(long, conflicts_with_all = ["all", "to"])]
        content: bool,
        /// Remove everything that is not in use
        #[arg(long, conflicts_with = "to")]
        all: bool,
        /// Remove the least recently used content until layers take at most SIZE
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        to: Option<u64>,
    },
    /// Print the directory
    Dir,
}

/// `peelfs index`
#[derive(Debug, clap::Args)]
pub(crate) struct IndexArgs {
    /// What to do
    #[command(subcommand)]
    pub command: IndexCommand,
}

/// `peelfs index`: its commands.
#[derive(Clone, Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process makes one")]
pub(crate) enum IndexCommand {
    /// Push what this machine knows of an image to a registry, for `--index-from` on other machines
    ///
    /// The indexes of its layers and the start-up profiles of its runs become an artifact that refers to the image. Layers
    /// that this machine has not indexed are read first.
    Push {
        /// Which image.
        #[command(flatten)]
        image: ImageArgs,
        /// The repository to push to [default: the image's own]
        #[arg(long, value_name = "REPO", value_parser = repository)]
        to: Option<RegistryName>,
        /// What to push: indexes of peelfs, or a SOCI index of version 1, for machines with soci-snapshotter, too
        #[arg(long = "as", value_enum, default_value_t, value_name = "FORMAT")]
        format: PushedFormat,
        /// Sign what is pushed with the private key in this PEM file, as `cosign sign --key` does, for `--index-verifier-dir` on
        /// other machines
        ///
        /// The key is one of ECDSA with P-256, Ed25519 or RSA, in PKCS#8, SEC1 or PKCS#1, and not encrypted. A file of the
        /// user's own that others may read is refused, as ssh does. The signature goes beside the artifact, to the tag
        /// `sha256-HEX.sig`, behind those that are there.
        #[arg(long, value_name = "FILE")]
        sign_key: Option<PathBuf>,
        /// With `--as soci`: leave out layers that are smaller, as `soci create` does
        #[arg(long, value_name = "SIZE", default_value = "10MiB", value_parser = size::parse)]
        min_layer_size: u64,
        /// With `--as soci`: decoded bytes of a span, as `soci create` has it, from 256KiB to 64MiB
        ///
        /// A span is fetched as a whole. Of smaller ones a read brings less, and the table that is fetched first is longer: 32 KiB
        /// for each.
        #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = span_size)]
        span_size: u64,
    },
    /// Commands that `peelfs profile` has, too.
    #[command(flatten)]
    Carry(CarryCommand),
}

/// What `peelfs index push` pushes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum PushedFormat {
    /// Indexes and profiles, as peelfs has them
    #[default]
    Peelfs,
    /// zTOCs of gzip layers, and an index that refers to the image
    Soci,
}

/// `peelfs profile`
#[derive(Debug, clap::Args)]
pub(crate) struct ProfileArgs {
    /// What to do
    #[command(subcommand)]
    pub command: ProfileCommand,
}

/// `peelfs profile`: its commands.
#[derive(Clone, Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process makes one")]
pub(crate) enum ProfileCommand {
    /// Remove what the runs of an image have read from the cache
    Forget {
        /// Which image.
        #[command(flatten)]
        image: ImageArgs,
    },
    /// Commands that `peelfs index` has, too.
    #[command(flatten)]
    Carry(CarryCommand),
}

/// Commands that `peelfs index` and `peelfs profile` share.
#[derive(Clone, Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process makes one")]
pub(crate) enum CarryCommand {
    /// Write what the cache has of an image to a file
    Export {
        /// Which image.
        #[command(flatten)]
        image: ImageArgs,
        /// The file to write; `-` is standard output
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Read such a file into the cache; only from a source you trust
    Import {
        /// The file to read; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Show no progress
        #[arg(short, long)]
        quiet: bool,
        /// Where the cache is.
        #[command(flatten)]
        cache: CacheDirArgs,
    },
}

/// `peelfs status`
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Mount points; all peelfs mounts when none is given
    #[arg(value_name = "DIR", add = ArgValueCompleter::new(complete::mount_points))]
    pub at: Vec<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Also say for each layer what its index may come from, which of that is used, and why not the others
    #[arg(long)]
    pub explain: bool,
    /// Also say what was fetched and why, by layer and file, and which processes wait for what
    #[arg(long)]
    pub activity: bool,
    /// Show it again every SECONDS, one second by default, until it is interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1", value_parser = interval)]
    pub watch: Option<Duration>,
    /// Print Prometheus metrics
    #[arg(long, conflicts_with_all = ["json", "explain", "activity", "watch"])]
    pub metrics: bool,
}

/// An interval in seconds.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write a number of seconds from 0.1 to 3600".to_owned())
}

/// How much of a layer a span of a zTOC should have.
fn span_size(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text).map_err(|error| error.to_string())?;
    let fits = Ztocs::SPAN_SIZES.contains(&bytes).then_some(bytes);
    fits.ok_or_else(|| "write a size from 256KiB to 64MiB".to_owned())
}

/// `peelfs completions`
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    pub shell: clap_complete::Shell,
}

/// `peelfs man`
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// The directory to write to
    pub directory: PathBuf,
}
