//! `peelfs store`: images for podman, buildah and CRI-O.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Subcommand;

use super::args::{CacheDirArgs, ImageArgs};
use super::progress::{Bar, Quiet};
use super::{specs, text};
use peelfs::fuse::mounts;
use peelfs::host::image_store::{self, Listed, StoreSpec};
use peelfs::host::report::Report;
use peelfs::host::{http, open};
use peelfs::source::outage::OnOutage;
use peelfs::source::storage;

/// `peelfs store`
#[derive(Debug, clap::Args)]
pub(crate) struct StoreArgs {
    /// What to do
    #[command(subcommand)]
    pub command: StoreCommand,
}

/// Which store.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PlaceArgs {
    /// The store's directory [default: /var/lib/peelfs/store, for users other than root $XDG_DATA_HOME/peelfs/store]
    #[arg(long, value_name = "DIR", env = "PEELFS_STORE", hide_env_values = true)]
    pub store: Option<PathBuf>,
}

/// What can be done with a store.
#[derive(Clone, Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process makes one")]
pub(crate) enum StoreCommand {
    /// Serve a store in the foreground, until Ctrl-C or `peelfs umount DIR`
    ///
    /// Engines use it if storage.conf has `additionalimagestores = ["DIR"]`. While it is not served it is a store
    /// without images.
    Serve {
        /// The store's directory [default: /var/lib/peelfs/store, for users other than root $XDG_DATA_HOME/peelfs/store]
        #[arg(value_name = "DIR", env = "PEELFS_STORE", hide_env_values = true)]
        store: Option<PathBuf>,
        /// Let engines of other users use it, too
        #[arg(long)]
        allow_other: bool,
        /// How long reads wait for a registry that does not answer, as for `peelfs mount`
        #[arg(long, value_name = "POLICY", default_value = "deadline=60")]
        on_outage: OnOutage,
        /// Serve Prometheus metrics of the store at http://ADDR/metrics; a port alone is one of loopback
        #[arg(long, value_name = "ADDR", value_parser = http::parse_address)]
        metrics: Option<SocketAddr>,
        /// Where layers are cached.
        #[command(flatten)]
        cache: CacheDirArgs,
    },
    /// Add an image: engines see it at once, and what they read is fetched on demand
    Add {
        /// Which image.
        #[command(flatten)]
        image: ImageArgs,
        /// Which store.
        #[command(flatten)]
        place: PlaceArgs,
        /// Use this name instead of the image's own; may be repeated
        #[arg(long, value_name = "NAME")]
        name: Vec<String>,
        /// Return only when every layer is indexed and verified
        #[arg(long)]
        wait: bool,
    },
    /// Remove images by name or id; running containers keep them
    #[command(alias = "rm")]
    Remove {
        /// Names or ids
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
        /// Which store.
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// List the images
    #[command(alias = "ls")]
    List {
        /// Which store.
        #[command(flatten)]
        place: PlaceArgs,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
}

impl StoreArgs {
    /// The image that is named, if any.
    pub(super) fn image(&self) -> Option<&ImageArgs> {
        match &self.command {
            StoreCommand::Add { image, .. } => Some(image),
            _ => None,
        }
    }
}

pub(super) fn run(args: &StoreArgs) -> Result<(), Report> {
    match &args.command {
        StoreCommand::Serve { store, allow_other, on_outage, metrics, cache } => {
            let (at, cache) = (directory(store.as_ref())?, specs::cache(cache)?);
            let (on_outage, allow_other, metrics) = (*on_outage, *allow_other, *metrics);
            let spec = StoreSpec { at, cache, on_outage, allow_other, metrics };
            Ok(image_store::serve(&spec, Box::new(Bar::new(Quiet::No)))?)
        }
        StoreCommand::Add { image, .. } if image.opening.artifact => {
            Err(Report::usage("engines take images from a store, not artifacts").hint("leave out `--artifact`"))
        }
        StoreCommand::Add { image, place, name, wait } => {
            let (at, spec) = (directory(place.store.as_ref())?, specs::image_with_absolute_paths(image)?);
            let added = image_store::add(&at, &spec, name, *wait, &mut Bar::new(image.opening.quiet.into()))?;
            for name in added.moved {
                eprintln!("note: `{name}` was another image's name and names this one now");
            }
            if !added.served {
                let at = at.display();
                eprintln!(
                    "note: the store `{at}` is not served; engines see the image once `peelfs store serve {at}` runs"
                );
            }
            if let Some(file) = storage::file_without(&at) {
                let (file, at) = (file.display(), at.display());
                eprintln!(
                    "note: `{file}` does not name this store; engines use it with `additionalimagestores = [\"{at}\"]` below `[storage.options]`"
                );
            }
            print_names(&added.image)
        }
        StoreCommand::Remove { images, place } => {
            let at = directory(place.store.as_ref())?;
            image_store::remove(&at, images, &mut Bar::new(Quiet::No))?;
            eprintln!(
                "note: what an engine has built from an image needs it here; if `podman images` then says `layer not known`, add it again"
            );
            Ok(())
        }
        StoreCommand::List { place, json } => {
            let listed = image_store::list(&directory(place.store.as_ref())?)?;
            if *json { print_json(&listed) } else { print_table(&listed) }
        }
    }
}

fn directory(typed: Option<&PathBuf>) -> Result<PathBuf, Report> {
    match typed {
        // A store has one name, whichever symlink leads to it.
        Some(typed) => Ok(mounts::followed(typed).unwrap_or_else(|_| open::absolute(typed))),
        None => Ok(image_store::default_directory()?),
    }
}

fn print_names(image: &Listed) -> Result<(), Report> {
    let mut out = std::io::stdout().lock();
    image.names.iter().try_for_each(|name| writeln!(out, "{name}")).or_else(|error| text::output_ended(&error))
}

fn print_json(listed: &[Listed]) -> Result<(), Report> {
    let mut out = std::io::stdout().lock();
    let print = |image: &Listed| writeln!(out, "{}", serde_json::to_string(image).expect("plain data"));
    listed.iter().try_for_each(print).or_else(|error| text::output_ended(&error))
}

fn print_table(listed: &[Listed]) -> Result<(), Report> {
    let rows: Vec<_> = listed.iter().flat_map(|image| image.names.iter().map(move |name| (name, image))).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = std::io::stdout().lock();
    let mut print = |(name, image): &(&String, &Listed)| {
        let (id, layers) =
            (image.id.get(..SHOWN_OF_ID).unwrap_or(&image.id), text::count(image.layers as u64, "layer"));
        writeln!(out, "{name:width$}  {id}  {layers}, {}", text::size(image.size))
    };
    rows.iter().try_for_each(&mut print).or_else(|error| text::output_ended(&error))
}

const SHOWN_OF_ID: usize = 12;
