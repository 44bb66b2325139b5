//! Turns arguments into requests: everything parsed and checked once, every path absolute.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::args::{
    AccessArgs, CacheDirArgs, ImageArgs, IndexArg, LayerArgs, MountArgs, OpeningArgs, PassthroughArg, PrefetchArg,
    VerifyArg,
};
use peelfs::host::open;
use peelfs::host::process;
use peelfs::host::report::{Code, Report};
use peelfs::host::short_name::{self, Meaning};
use peelfs::host::spec::{
    Access, CacheSpec, ImageSpec, IndexFrom, KernelOptions, MountSpec, Passthrough, Policy, Writable,
};
use peelfs::host::verifiers;
use peelfs::image::{IndexChoice, Network, Prefetch, Verify, View};
use peelfs::reference::{Place, Reference, STANDARD_INPUT, is_ref_name};
use peelfs::source::registry::Surroundings;
use peelfs::source::registry::mirrors::Mirrors;

/// The mount that `args` request; its mount point stays as typed.
pub(super) fn mount(args: MountArgs, kernel: KernelOptions) -> Result<MountSpec, Report> {
    let policy = Policy {
        verify: verify(args.verify),
        prefetch: match args.prefetch {
            PrefetchArg::All => Prefetch::All,
            PrefetchArg::Profile => Prefetch::Profile,
            PrefetchArg::None => Prefetch::None,
        },
        wait: args.wait,
        passthrough: match args.passthrough {
            PassthroughArg::Auto => Passthrough::Auto,
            PassthroughArg::Always => Passthrough::Always,
            PassthroughArg::Never => Passthrough::Never,
        },
    };
    let image = image_or_layer(&args.image, &args.layer)?;
    let index_from = index_from(args.verify, &image);
    let mut image = ImageSpec { index_from, ..with_absolute_paths(image)? };
    if let Some(name) = args.as_layout {
        if let Some(name) = name.as_ref().filter(|name| name.is_empty() || !is_ref_name(name)) {
            return Err(Report::usage(format!("`{}` is not a name of an image in a layout", name.escape_debug()))
                .hint("names have letters, digits and -._:@/+, as in `--as-layout=app:1`"));
        }
        let name = name.unwrap_or_else(|| image.reference.canonical()).into();
        image.view = View::Layout { name };
    }
    let writable = match (&args.writable, args.ephemeral) {
        (None, false) => None,
        (None, true) => Some(Writable::Memory),
        (Some(Some(upper)), _) => Some(Writable::Directory(open::absolute(upper))),
        (Some(None), _) => Some(Writable::Directory(beside(&args.at))),
    };
    Ok(MountSpec {
        image,
        at: args.at,
        kernel,
        policy,
        log: args.log_file.map(open::absolute),
        by_fuse: None,
        writable,
        metrics: args.metrics,
    })
}

pub(super) fn verify(arg: VerifyArg) -> Verify {
    match arg {
        VerifyArg::Strict | VerifyArg::Vouched => Verify::BeforeShowing,
        VerifyArg::Behind => Verify::Behind,
    }
}

/// Where indexes of `image` are looked for that others have pushed, if `arg` has them looked for. Prints a note if that
/// has no effect.
pub(super) fn index_from(arg: VerifyArg, image: &ImageSpec) -> Option<IndexFrom> {
    let own = (arg == VerifyArg::Vouched).then_some(IndexFrom::Referrers);
    let option = match (&own, &image.index_from) {
        (Some(_), _) => Some("--verify vouched"),
        // The variable is for all commands of a machine.
        (None, Some(_)) if std::env::var_os("PEELFS_INDEX_FROM").is_none_or(|from| from.is_empty()) => {
            Some("--index-from")
        }
        (None, _) => None,
    };
    if let Some(option) = option {
        if image.index == IndexChoice::None {
            eprintln!("note: `{option}` has no effect: with `--index none` no index of others is used");
        } else if !matches!(image.reference.place(), Place::Registry(_)) {
            eprintln!("note: `{option}` has no effect: `{}` is not in a registry", image.reference);
        }
    }
    image.index_from.clone().or(own)
}

/// The image that `args` name, for processes with another working directory.
pub(super) fn image_with_absolute_paths(args: &ImageArgs) -> Result<ImageSpec, Report> {
    with_absolute_paths(image(args)?)
}

fn with_absolute_paths(image: ImageSpec) -> Result<ImageSpec, Report> {
    let access = Access {
        ca: image.access.ca.iter().map(open::absolute).collect(),
        authfile: image.access.authfile.as_ref().map(open::absolute),
        mirrors: Mirrors {
            hosts_dir: image.access.mirrors.hosts_dir.as_ref().map(open::absolute),
            ..image.access.mirrors
        },
        ..image.access
    };
    let reference = image.reference.absolute(|path| open::absolute(path));
    Ok(ImageSpec { reference, access, ..image })
}

/// How to reach images that are named later.
pub(super) fn access_with_absolute_paths(access: &AccessArgs) -> Result<ImageSpec, Report> {
    with_absolute_paths(image_named(access, "none")?)
}

/// The default directory for changes of a writable mount.
fn beside(at: &Path) -> PathBuf {
    let mut upper = peelfs::fuse::mounts::followed(at).unwrap_or_else(|_| open::absolute(at)).into_os_string();
    upper.push(".upper");
    upper.into()
}

/// The image that `args` name, with paths as typed. Prints a note if the user may have meant something else.
pub(super) fn image(args: &ImageArgs) -> Result<ImageSpec, Report> {
    let image = image_as_written(args)?;
    let reference = full_name(&image)?;
    Ok(ImageSpec { reference: reference.unwrap_or(image.reference.clone()), ..image })
}

/// What a name without a registry stands for, if it is anything else than on Docker Hub.
fn full_name(image: &ImageSpec) -> Result<Option<Reference>, Report> {
    let (references, file, ask) = match short_name::meaning(image)? {
        Meaning::AsWritten => return Ok(None),
        Meaning::Elsewhere { references, file, ask } => (references, file, ask),
    };
    let typed = &image.reference;
    let found = match &references[..] {
        [only] => only.clone(),
        // What a registry has cannot be asked.
        [first, ..] if image.access.network == Network::Offline => first.clone(),
        several if ask => {
            let names: Vec<_> = several.iter().map(|reference| format!("`{reference}`")).collect();
            let why = format!("`{typed}` may be any of {}, by `{}`", names.join(", "), file.display());
            return Err(Report::usage(why).hint("write one of them in full"));
        }
        // Some commands are within a runtime already.
        several => std::thread::scope(|scope| {
            let looking = scope.spawn(|| -> Result<Reference, Report> {
                Ok(process::runtime(process::Purpose::Reading)?.block_on(short_name::first(several, image))?)
            });
            looking.join().expect("looking for an image does not panic")
        })?,
    };
    if found.canonical() != typed.canonical() {
        eprintln!("note: `{typed}` stands for `{found}`, by `{}`", file.display());
    }
    Ok(Some(found))
}

fn image_as_written(args: &ImageArgs) -> Result<ImageSpec, Report> {
    let reference: Reference = match args.reference.as_str() {
        // Which kind of archive it is, is seen when it is read.
        "-" => PIPE.parse::<Reference>()?.called(STANDARD_INPUT),
        typed => match typed.strip_prefix('-').filter(|name| name.starts_with([':', '@'])) {
            Some(name) => piped(name).parse()?,
            None => typed.parse()?,
        },
    };
    for note in reference.notes() {
        eprintln!("note: {note}");
    }
    let access = &args.access;
    if !matches!(reference.place(), Place::Registry(_)) {
        for option in access.only_for_registries() {
            eprintln!("note: `{option}` has no effect: `{reference}` is not in a registry");
        }
    } else if !access.offline {
        check_hosts_dir(&access.mirrors())?;
    }
    Ok(ImageSpec {
        reference,
        platform: access.platform.as_deref().map(str::parse).transpose()?,
        layer: None,
        up_to: None,
        view: if args.opening.artifact { View::Artifact } else { View::Auto },
        access: self::access(access),
        cache: cache(&access.cache)?,
        index: match args.opening.index {
            IndexArg::Auto => IndexChoice::Auto,
            IndexArg::Own => IndexChoice::Own,
            IndexArg::Foreign => IndexChoice::Foreign,
            IndexArg::None => IndexChoice::None,
        },
        index_from: args.opening.index_from.clone(),
        index_verifiers: args.opening.index_verifier_dir.as_ref().map(open::absolute),
        verifiers: open::absolute(access.verifier_dir.as_deref().unwrap_or(Path::new(verifiers::DEFAULT_DIR))),
    })
}

/// The archive in standard input.
const PIPE: &str = "docker-archive:/dev/stdin";
/// The same, where an image is named by its digest: only OCI archives have manifests with one.
const OCI_PIPE: &str = "oci-archive:/dev/stdin";

/// The image that is called `name` in the archive in standard input: `:TAG`, `@DIGEST`, or both.
fn piped(name: &str) -> String {
    let digest = name.rsplit_once('@').map(|(_, digest)| digest);
    let pipe = if digest.is_some_and(|digest| digest.contains(':')) { OCI_PIPE } else { PIPE };
    format!("{pipe}{name}")
}

/// Writes images of the archive in standard input, as in `-:TAG`, in a form that does not look like an option.
pub(super) fn with_piped_images(line: Vec<OsString>) -> Vec<OsString> {
    let mut options_ended = false;
    let written = |word: OsString| {
        options_ended |= word == "--";
        match word.to_str().and_then(|word| word.strip_prefix('-')).filter(|name| name.starts_with([':', '@'])) {
            Some(name) if !options_ended => piped(name).into(),
            _ => word,
        }
    };
    line.into_iter().map(written).collect()
}

/// Whether an image as typed is in the archive in standard input.
pub(super) fn is_piped(typed: &str) -> bool {
    typed == "-" || typed.starts_with("-:") || typed.starts_with("-@") || typed.contains("-archive:/dev/stdin")
}

/// A directory that is named must exist; what it says of mirrors would be missed otherwise.
fn check_hosts_dir(mirrors: &Mirrors) -> Result<(), Report> {
    let Some(dir) = mirrors.hosts_dir.as_ref().filter(|_| !mirrors.no_files) else { return Ok(()) };
    let (code, why) = match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => (Code::Usage, "it is not a directory".to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => (Code::NotFound, "there is no such directory".to_owned()),
        Err(error) => (Code::Failure, error.to_string()),
    };
    Err(Report::new(code, format!("hosts.toml files cannot be read from `{}`: {why}", dir.display()))
        .hint("correct `--hosts-dir` or PEELFS_HOSTS_DIR, or read no such files with `--mirror none`"))
}

/// An image of this name, with the access options.
pub(super) fn image_named(access: &AccessArgs, name: &str) -> Result<ImageSpec, Report> {
    image(&ImageArgs { reference: name.to_owned(), opening: OpeningArgs::default(), access: access.clone() })
}

/// As [`image`], with an optional layer.
pub(super) fn image_or_layer(args: &ImageArgs, layer: &LayerArgs) -> Result<ImageSpec, Report> {
    Ok(ImageSpec { layer: layer.layer.clone(), ..image(args)? })
}

fn access(args: &AccessArgs) -> Access {
    Access {
        network: if args.offline { Network::Offline } else { Network::Allowed },
        insecure: args.insecure,
        ca: args.ca.clone(),
        authfile: args.authfile.clone(),
        mirrors: args.mirrors(),
        on_outage: args.on_outage,
        surroundings: Surroundings::of_process(),
    }
}

/// The cache that `args` name, or the default.
pub(super) fn cache(args: &CacheDirArgs) -> Result<CacheSpec, Report> {
    Ok(CacheSpec { dir: cache_dir(args)?, limit: args.cache_size })
}

/// Its directory.
pub(super) fn cache_dir(args: &CacheDirArgs) -> Result<PathBuf, Report> {
    match &args.cache_dir {
        Some(dir) => Ok(open::absolute(dir)),
        None => Ok(open::default_cache_dir()?),
    }
}
