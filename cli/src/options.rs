//! `-o`: options of mount(8) and fstab(5).
//!
//! Long flags are options, too, with underscores or hyphens. Options that have no effect on a read-only image are
//! ignored, as fstab lines contain them for other programs; unknown options are errors.

use clap::ValueEnum;

use super::args::{MirrorArg, MountArgs, PassthroughArg};

use peelfs::host::http;
use peelfs::host::report::Report;
use peelfs::host::size;
use peelfs::host::spec::{IndexFrom, KernelOptions};

/// Applies the options to `args` and returns the kernel's options.
pub(crate) fn apply(args: &mut MountArgs) -> Result<KernelOptions, Report> {
    let mut kernel = KernelOptions {
        allow_other: args.allow_other,
        allow_root: args.allow_root,
        let_cpus_sleep: args.let_cpus_sleep,
        ..KernelOptions::default()
    };
    let options = std::mem::take(&mut args.options);
    // First: mount(8) also passes the options of the table of mounts.
    if options.iter().any(|option| option == "remount") {
        return Err(Report::usage(
            "a mount of an image is read-only and cannot be remounted: unmount it, and mount it with other options",
        ));
    }
    for option in options {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        };
        let name = name.replace('-', "_");
        // An empty value is none.
        let value = value.filter(|value| !(value.is_empty() && WITH_VALUE.contains(&name.as_str())));
        let wrong = |why: &dyn std::fmt::Display| Report::usage(format!("mount option `{option}`: {why}"));
        let access = &mut args.image.access;
        match (name.as_str(), value) {
            ("allow_other", None) => kernel.allow_other = true,
            ("allow_root", None) => kernel.allow_root = true,
            ("suid", None) => kernel.suid = true,
            ("dev", None) => kernel.dev = true,
            ("noexec", None) => kernel.noexec = true,
            ("nosuid", None) => kernel.suid = false,
            ("nodev", None) => kernel.dev = false,
            ("exec", None) => kernel.noexec = false,
            ("layer", Some(value)) => args.layer.layer = Some(value.parse().map_err(|why| wrong(&why))?),
            ("platform", Some(value)) => access.platform = Some(value.to_owned()),
            ("cache_dir", Some(value)) => access.cache.cache_dir = Some(value.into()),
            ("cache_size", Some(value)) => {
                access.cache.cache_size = Some(size::parse(value).map_err(|why| wrong(&why))?);
            }
            ("authfile", Some(value)) => access.authfile = Some(value.into()),
            ("ca", Some(value)) => access.ca.push(value.into()),
            ("mirror", Some(value)) => access.mirror.push(mirror(value)?),
            ("hosts_dir", Some(value)) => access.hosts_dir = Some(value.into()),
            ("verifier_dir", Some(value)) => access.verifier_dir = Some(value.into()),
            ("log_file", Some(value)) => args.log_file = Some(value.into()),
            ("insecure", None) => access.insecure = true,
            ("offline", None) => access.offline = true,
            ("artifact", None) => args.image.opening.artifact = true,
            ("as_layout", name) => args.as_layout = Some(name.map(ToOwned::to_owned)),
            ("wait", None) => args.wait = true,
            ("quiet", None) => args.image.opening.quiet = true,
            ("foreground", None) => args.foreground = true,
            ("no_keeper", None) => args.no_keeper = true,
            ("metrics", Some(value)) => args.metrics = Some(metrics(value)?),
            ("share", None) => args.share = true,
            ("passthrough", None) => args.passthrough = PassthroughArg::Always,
            ("passthrough", Some(value)) => args.passthrough = one_of(&name, value)?,
            ("let_cpus_sleep", None) => kernel.let_cpus_sleep = true,
            ("writable", upper) => args.writable = Some(upper.map(Into::into)),
            ("ephemeral", None) => args.ephemeral = true,
            ("on_outage", Some(value)) => access.on_outage = value.parse().map_err(|why| wrong(&why))?,
            ("verify", Some(value)) => args.verify = one_of(&name, value)?,
            ("prefetch", Some(value)) => args.prefetch = one_of(&name, value)?,
            ("index", Some(value)) => args.image.opening.index = one_of(&name, value)?,
            ("index_from", Some(value)) => args.image.opening.index_from = Some(index_from(value)?),
            ("index_verifier_dir", Some(value)) => args.image.opening.index_verifier_dir = Some(value.into()),
            ("kernel", Some(value)) => args.kernel = one_of(&name, value)?,
            (ignored, _) if is_ignored(ignored) => {}
            _ => {
                let what = match value {
                    None if WITH_VALUE.contains(&name.as_str()) => format!("mount option `{option}` needs a value"),
                    Some(_) if WITHOUT_VALUE.contains(&name.as_str()) => {
                        format!("mount option `{option}`: `{name}` takes no value")
                    }
                    _ => format!("unknown mount option `{option}`"),
                };
                return Err(
                    Report::usage(what).hint("see `peelfs mount --help`; options have the names of the long flags")
                );
            }
        }
    }
    exclusive(args, &kernel)?;
    Ok(kernel)
}

/// Options that exclude each other, by whichever way they were given.
fn exclusive(args: &MountArgs, kernel: &KernelOptions) -> Result<(), Report> {
    let artifact = args.image.opening.artifact;
    let (layout, layer) = (args.as_layout.is_some(), args.layer.layer.is_some());
    let (writable, share) = (args.writable.is_some(), ("share", args.share));
    let groups = [
        &[("writable", writable), ("ephemeral", args.ephemeral), ("layer", layer), ("as_layout", layout)][..],
        &[("as_layout", layout), ("artifact", artifact)],
        &[("allow_other", kernel.allow_other), ("allow_root", kernel.allow_root)],
        &[share, ("foreground", args.foreground)],
        &[share, ("no_keeper", args.no_keeper)],
    ];
    for group in groups {
        let mut given = group.iter().filter_map(|(name, is_given)| is_given.then_some(name));
        if let (Some(one), Some(other)) = (given.next(), given.next()) {
            return Err(
                Report::usage(format!("`{one}` and `{other}` exclude each other")).hint("leave out one of them")
            );
        }
    }
    Ok(())
}

fn metrics(value: &str) -> Result<std::net::SocketAddr, Report> {
    http::parse_address(value).map_err(|error| Report::usage(format!("mount option `metrics`: {error}")))
}

fn mirror(value: &str) -> Result<MirrorArg, Report> {
    value.parse().map_err(|error| Report::usage(format!("mount option `mirror`: {error}")))
}

fn index_from(value: &str) -> Result<IndexFrom, Report> {
    value.parse().map_err(|error| Report::usage(format!("mount option `index_from`: {error}")))
}

fn one_of<T: ValueEnum>(option: &str, value: &str) -> Result<T, Report> {
    T::from_str(value, false).map_err(|_| {
        let values = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<_> = values.map(|value| format!("`{}`", value.get_name())).collect();
        Report::usage(format!("`{value}` is not a value of mount option `{option}`"))
            .hint(format!("values are {}", names.join(", ")))
    })
}

fn is_ignored(name: &str) -> bool {
    name.is_empty() || name.starts_with("x_") || name.starts_with("x.") || IGNORED.contains(&name)
}

const WITH_VALUE: [&str; 18] = [
    "metrics",
    "mirror",
    "hosts_dir",
    "platform",
    "layer",
    "cache_dir",
    "cache_size",
    "authfile",
    "ca",
    "log_file",
    "verifier_dir",
    "on_outage",
    "verify",
    "prefetch",
    "index",
    "index_from",
    "index_verifier_dir",
    "kernel",
];
const WITHOUT_VALUE: [&str; 18] = [
    "quiet",
    "foreground",
    "no_keeper",
    "artifact",
    "allow_other",
    "allow_root",
    "suid",
    "dev",
    "noexec",
    "nosuid",
    "nodev",
    "exec",
    "insecure",
    "offline",
    "wait",
    "share",
    "let_cpus_sleep",
    "ephemeral",
];
const IGNORED: [&str; 30] = [
    "_netdev",
    "async",
    "atime",
    "auto",
    "comment",
    "default_permissions",
    "defaults",
    "diratime",
    "dirsync",
    "group",
    "lazytime",
    "loud",
    "noatime",
    "noauto",
    "nodiratime",
    "nofail",
    "nogroup",
    "nolazytime",
    "noowner",
    "norelatime",
    "nouser",
    "owner",
    "relatime",
    "ro",
    "rw",
    "silent",
    "strictatime",
    "sync",
    "user",
    "users",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser as _;

    use super::super::args::{Args, Command, VerifyArg};
    use super::*;

    fn applied(options: &str) -> Result<(MountArgs, KernelOptions), Report> {
        let line = ["peelfs", "mount", "-o", options, "image", "dir"];
        let Command::Mount(mut args) = Args::try_parse_from(line).unwrap().command else { unreachable!() };
        let kernel = apply(&mut args)?;
        Ok((args, kernel))
    }

    #[test]
    fn an_fstab_line_is_understood() {
        let (args, kernel) =
            applied("ro,_netdev,nofail,x-systemd.automount,platform=linux/arm64,allow_other,cache-size=1G").unwrap();
        assert_eq!(args.image.access.platform.as_deref(), Some("linux/arm64"));
        assert_eq!(args.image.access.cache.cache_size, Some(1 << 30));
        assert!(kernel.allow_other && !kernel.suid && !kernel.dev);
    }

    /// A line of fstab has no other way to say it.
    #[test]
    fn every_long_flag_of_mount_is_an_option() {
        let command = <Args as clap::CommandFactory>::command();
        let mount = command.find_subcommand("mount").unwrap();
        let mut seen = 0;
        for arg in mount.get_arguments().chain(command.get_arguments()) {
            let Some(flag) = arg.get_long().filter(|flag| !["help", "version"].contains(flag)) else { continue };
            seen += 1;
            let takes_value = arg.get_action().takes_values();
            let option = if takes_value { format!("{flag}=x") } else { flag.to_owned() };
            if let Err(report) = applied(&option) {
                let is_known = ["unknown mount", "takes no value"].iter().all(|text| !report.message.contains(text));
                assert!(is_known, "`-o {option}`: {}", report.message);
            }
        }
        assert!(seen > 25, "{seen}");
    }

    #[test]
    fn what_only_some_front_ends_need_is_an_option_too() {
        let (args, _) = applied("quiet,foreground,no-keeper,metrics=9100").unwrap();
        assert!(args.image.opening.quiet && args.foreground && args.no_keeper);
        assert_eq!(args.metrics.unwrap().to_string(), "127.0.0.1:9100");
        assert!(applied("metrics=x").unwrap_err().message.starts_with("mount option `metrics`: "));
        for options in ["share,foreground", "share,no_keeper", "as_layout,writable", "as_layout,artifact"] {
            assert!(applied(options).unwrap_err().message.contains("exclude each other"), "{options}");
        }
    }

    #[test]
    fn changes_are_kept_or_not_as_with_the_long_flags() {
        let writable = |options: &str| applied(options).map(|(args, _)| (args.writable, args.ephemeral));
        assert_eq!(writable("rw,writable").unwrap(), (Some(None), false));
        assert_eq!(writable("writable=/srv/upper").unwrap(), (Some(Some("/srv/upper".into())), false));
        assert_eq!(writable("nofail,ephemeral").unwrap(), (None, true));
        for options in ["ephemeral,writable", "layer=1,writable", "ephemeral,layer=2"] {
            assert!(writable(options).unwrap_err().message.contains("exclude each other"), "{options}");
        }
        assert!(writable("ephemeral=yes").unwrap_err().message.contains("takes no value"));
    }

    #[test]
    fn root_is_let_in_alone_or_with_others() {
        assert!(applied("allow_root").unwrap().1.allow_root);
        let report = applied("allow_root,allow_other").unwrap_err();
        assert!(report.message.contains("exclude each other"), "{}", report.message);
    }

    #[test]
    fn a_remount_is_refused_in_one_line() {
        for options in ["remount", "rw,remount", "ro,user_id=0,default_permissions,remount"] {
            let report = applied(options).unwrap_err();
            assert!(report.message.contains("cannot be remounted") && report.hint.is_none(), "{}", report.message);
        }
    }

    #[test]
    fn an_unknown_option_is_an_error_that_names_it() {
        assert!(applied("ro,colour=red").unwrap_err().message.contains("`colour=red`"));
        assert!(applied("suid=1").is_err());
        assert!(applied("prefetch").unwrap_err().message.contains("needs a value"));
        assert!(applied("cache_dir=").unwrap_err().message.contains("`cache_dir=` needs a value"));
        let report = applied("on_outage=deadline=x").unwrap_err();
        assert!(report.message.contains("`on_outage=deadline=x`: `x` is not a number"), "{}", report.message);
        assert!(applied("share=yes").unwrap_err().message.contains("takes no value"));
        let report = applied("prefetch=most").unwrap_err();
        assert!(report.message.contains("`most`") && report.message.contains("`prefetch`"), "{}", report.message);
        assert_eq!(applied("verify=behind,prefetch=none").unwrap().0.verify, VerifyArg::Behind);
    }
}
