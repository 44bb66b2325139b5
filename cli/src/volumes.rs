//! `-v`, `--mount` and `--tmpfs`: mounts of a container, in the syntax of podman and docker.

use peelfs::bundle::{self, BundleError, Tmpfs, Volume};
use peelfs::host::open;
use peelfs::host::report::{Code, Report};

/// What is mounted in a container.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Mount {
    /// A directory or file of the machine.
    Bind(Volume),
    /// A file system in memory.
    Tmpfs(Tmpfs),
}

impl Mount {
    fn destination(&self) -> &str {
        match self {
            Self::Bind(volume) => &volume.destination,
            Self::Tmpfs(tmpfs) => &tmpfs.destination,
        }
    }
}

/// All that the options name, apart; nothing may be mounted over another of them.
pub(super) fn mounts(
    volumes: &[String],
    mounts: &[String],
    tmpfs: &[String],
) -> Result<(Vec<Volume>, Vec<Tmpfs>), Report> {
    let volumes = volumes.iter().map(|text| volume(text).map(Mount::Bind));
    let tmpfs = tmpfs.iter().map(|text| memory(text).map(Mount::Tmpfs));
    let all: Vec<Mount> =
        volumes.chain(mounts.iter().map(|text| mount(text))).chain(tmpfs).collect::<Result<_, _>>()?;
    let mut places = all.iter().map(|mount| mount_point(mount.destination())).collect::<Result<Vec<_>, _>>()?;
    places.sort_unstable();
    if let Some(twice) = places.windows(2).find(|two| two[0] == two[1]) {
        return Err(Report::usage(format!("there are two mounts on `{}`", twice[0])).hint("leave one of them out"));
    }
    let (mut binds, mut memory) = (Vec::new(), Vec::new());
    for mount in all {
        match mount {
            Mount::Bind(volume) => binds.push(volume),
            Mount::Tmpfs(tmpfs) => memory.push(tmpfs),
        }
    }
    Ok((binds, memory))
}

/// The path that a mount is on, in the form in which two can be compared.
fn mount_point(destination: &str) -> Result<String, Report> {
    bundle::mount_point(destination).map_err(|error| {
        let on_root = matches!(error, BundleError::OnRoot { .. });
        let report = Report::from(error);
        let hint = "mount on a directory of it; for a container of a directory without an image, make a bundle with `runc spec`";
        if on_root { report.hint(hint) } else { report }
    })
}

/// `SRC:DST[:OPTIONS]`
fn volume(text: &str) -> Result<Volume, Report> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts[..] {
        [source, destination] => (source, destination, ""),
        [source, destination, options] => (source, destination, options),
        [path] if path.starts_with('/') => {
            let hint =
                format!("`--tmpfs {path}` makes a directory in memory, `-v ./data:{path}` shows one of this machine");
            return Err(Report::usage(format!("volume `{text}` has no source")).hint(hint));
        }
        _ => {
            let hint = "give a path on this machine and a path in the container, as in `-v ./data:/data:ro`";
            return Err(Report::usage(format!("`{text}` is not a volume")).hint(hint));
        }
    };
    if source.is_empty() {
        return Err(Report::usage(format!("volume `{text}` has no path on this machine")));
    }
    if !source.contains('/') && !source.starts_with('.') {
        return Err(Report::usage(format!("`{source}` is a named volume, which peelfs does not support"))
            .hint(format!("write `-v ./{source}:{destination}` for the directory of that name")));
    }
    let mut readonly = false;
    let mut kept = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" | "rw" => readonly = option == "ro",
            // SELinux labels, which are not set, and options of Docker Desktop.
            "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            option if BIND_OPTIONS.contains(&option) => kept.push(option.to_owned()),
            option => {
                return Err(Report::usage(format!(
                    "volume `{text}` has an option `{option}` that peelfs does not support"
                ))
                .hint(format!("there are ro, rw, {}", BIND_OPTIONS.join(", "))));
            }
        }
    }
    bind(source, destination, readonly, kept)
}

fn bind(source: &str, destination: &str, readonly: bool, options: Vec<String>) -> Result<Volume, Report> {
    let found = open::absolute(source).canonicalize().map_err(|error| {
        let report = Report::new(Code::NotFound, format!("cannot use `{source}` as a volume: {error}"));
        match error.kind() {
            std::io::ErrorKind::NotFound => report.hint(format!("make it with `mkdir -p {source}`")),
            _ => report,
        }
    })?;
    let Some(source) = found.to_str() else {
        return Err(Report::usage(format!("the path of volume `{source}` is not UTF-8, as `config.json` must be")));
    };
    Ok(Volume { source: source.to_owned(), destination: destination.to_owned(), readonly, options })
}

/// `type=bind,src=SRC,dst=DST[,ro]` or `type=tmpfs,dst=DST[,tmpfs-size=SIZE][,tmpfs-mode=MODE]`
fn mount(text: &str) -> Result<Mount, Report> {
    let wrong = |why: String| {
        let hint = "write `--mount type=bind,src=./data,dst=/data,ro` or `--mount type=tmpfs,dst=/tmp,tmpfs-size=64m`";
        Report::usage(format!("mount `{text}` {why}")).hint(hint)
    };
    let (mut kind, mut source, mut destination, mut readonly, mut options) = (None, None, None, false, Vec::new());
    for word in text.split(',') {
        let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        match (key, value) {
            ("type", Some(value)) => kind = Some(value),
            ("src" | "source", Some(value)) => source = Some(value),
            ("dst" | "destination" | "target", Some(value)) => destination = Some(value),
            ("ro" | "readonly", None | Some("true")) | ("rw", Some("false")) => readonly = true,
            ("ro" | "readonly", Some("false")) | ("rw", None | Some("true")) => readonly = false,
            ("tmpfs-size", Some(value)) => options.push(format!("size={value}")),
            ("tmpfs-mode", Some(value)) => options.push(format!("mode={value}")),
            ("bind-propagation", Some(value)) => options.push(value.to_owned()),
            ("bind-nonrecursive", None | Some("true")) => options.push("bind".to_owned()),
            ("relabel" | "consistency", Some(_)) | ("bind-nonrecursive", Some("false")) => {}
            (option, None) => options.push(option.to_owned()),
            (key, Some(_)) => return Err(wrong(format!("has a key `{key}` that peelfs does not support"))),
        }
    }
    let destination = destination.ok_or_else(|| wrong("has no path in the container (`dst=`)".to_owned()))?;
    match kind {
        Some("bind") => {
            let source = source.ok_or_else(|| wrong("has no path on this machine (`src=`)".to_owned()))?;
            match options.iter().find(|option| !BIND_OPTIONS.contains(&option.as_str())) {
                Some(other) => Err(wrong(format!("has an option `{other}` that peelfs does not support"))),
                None => bind(source, destination, readonly, options).map(Mount::Bind),
            }
        }
        Some("tmpfs") => {
            options.extend(readonly.then(|| "ro".to_owned()));
            in_memory(destination, options.iter().map(String::as_str))
                .map(Mount::Tmpfs)
                .map_err(|other| wrong(format!("has an option `{other}` that peelfs does not support")))
        }
        Some("image") => Err(wrong("is of another image".to_owned())
            .hint("mount that with `peelfs mount IMAGE DIR`, and mount it with `--mount type=bind,src=DIR,dst=…,ro`")),
        Some(other) => Err(wrong(format!("is of type `{other}`, which peelfs does not support"))),
        None => Err(wrong("is a named volume, which peelfs does not support: it has no `type=`".to_owned())),
    }
}

/// `DST[:OPTIONS]`
fn memory(text: &str) -> Result<Tmpfs, Report> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    let options = options.split(',').filter(|option| !option.is_empty());
    in_memory(destination, options).map_err(|other| {
        Report::usage(format!("`--tmpfs {text}` has an option `{other}` that peelfs does not support")).hint(format!(
            "there are {}, {}=VALUE",
            TMPFS_OPTIONS.join(", "),
            TMPFS_KEYS.join("=VALUE, ")
        ))
    })
}

/// With the usual options, unless others are named; or the one that is not known. A mode is not that of what is copied.
fn in_memory<'a>(destination: &str, options: impl Iterator<Item = &'a str>) -> Result<Tmpfs, &'a str> {
    let mut all = vec!["nosuid", "nodev", "noexec", "tmpcopyup"];
    for option in options {
        let is_known = match option.split_once('=') {
            Some((key, value)) => TMPFS_KEYS.contains(&key) && !value.is_empty(),
            None => TMPFS_OPTIONS.contains(&option),
        };
        if !is_known {
            return Err(option);
        }
        let opposite = option.strip_prefix("no").map_or_else(|| format!("no{option}"), str::to_owned);
        all.retain(|other| *other != option && *other != opposite);
        if option.starts_with("mode=") {
            all.retain(|other| *other != "tmpcopyup");
        }
        // Runtimes have it only as a positive option.
        if option != "notmpcopyup" {
            all.push(option);
        }
    }
    let options = all.into_iter().map(str::to_owned).collect();
    Ok(Tmpfs { destination: destination.to_owned(), options })
}

const BIND_OPTIONS: [&str; 12] =
    ["bind", "rbind", "private", "rprivate", "slave", "rslave", "exec", "noexec", "suid", "nosuid", "dev", "nodev"];
const TMPFS_OPTIONS: [&str; 12] =
    ["ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "noatime", "relatime", "tmpcopyup", "notmpcopyup"];
const TMPFS_KEYS: [&str; 6] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn volumes_have_the_forms_of_podman() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap().to_str().unwrap().to_owned();
        for (more, readonly, options) in [
            ("", false, &[][..]),
            (":rw,z", false, &[]),
            (":ro", true, &[]),
            (":noexec,ro,Z,rslave", true, &["noexec", "rslave"]),
        ] {
            let wanted =
                Volume { source: path.clone(), destination: "/data".to_owned(), readonly, options: words(options) };
            assert_eq!(volume(&format!("{path}:/data{more}")).unwrap(), wanted, "{more}");
        }
        let wanted = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(volume(".:/data").unwrap().source, wanted.to_str().unwrap());
        for (text, message, hint) in [
            ("data:/data", "`data` is a named volume", "write `-v ./data:/data`"),
            ("/data", "has no source", "`--tmpfs /data`"),
            ("./missing:/data", "cannot use `./missing` as a volume: No such file", "mkdir -p ./missing"),
            ("/:/data:U", "an option `U` that peelfs does not support", "there are ro, rw"),
            ("data", "`data` is not a volume", "as in `-v ./data:/data:ro`"),
            (":/data", "has no path on this machine", ""),
            ("a:b:c:d", "is not a volume", ""),
        ] {
            let report = volume(text).unwrap_err();
            assert!(report.message.contains(message), "{text}: {}", report.message);
            assert!(report.hint.unwrap_or_default().contains(hint), "{text}");
        }
    }

    #[test]
    fn mounts_are_binds_or_memory() {
        let wanted = Volume {
            source: "/".to_owned(),
            destination: "/x".to_owned(),
            readonly: true,
            options: words(&["rslave"]),
        };
        for text in [
            "type=bind,src=/,dst=/x,ro,bind-propagation=rslave",
            "type=bind,source=/,target=/x,readonly=true,rslave,relabel=shared",
        ] {
            assert_eq!(mount(text).unwrap(), Mount::Bind(wanted.clone()), "{text}");
        }
        let wanted = Tmpfs {
            destination: "/x".to_owned(),
            options: words(&["nosuid", "nodev", "tmpcopyup", "size=1m", "exec", "ro"]),
        };
        assert_eq!(mount("type=tmpfs,dst=/x,tmpfs-size=1m,exec,ro").unwrap(), Mount::Tmpfs(wanted));
        for (text, message) in [
            ("src=/,dst=/x", "is a named volume"),
            ("type=volume,src=a,dst=/x", "is of type `volume`"),
            ("type=image,src=a,dst=/x", "is of another image"),
            ("type=bind,src=/", "no path in the container"),
            ("type=bind,dst=/x", "no path on this machine"),
            ("type=bind,src=/,dst=/x,shared", "an option `shared`"),
            ("type=bind,src=/,dst=/x,volume-opt=1", "a key `volume-opt`"),
        ] {
            assert!(mount(text).unwrap_err().message.contains(message), "{text}");
        }
    }

    #[test]
    fn memory_has_the_usual_options_unless_told_otherwise() {
        for (text, options) in [
            ("/x", &["nosuid", "nodev", "noexec", "tmpcopyup"][..]),
            ("/x:size=64m,mode=1777,exec", &["nosuid", "nodev", "size=64m", "mode=1777", "exec"]),
            ("/x:notmpcopyup,rw", &["nosuid", "nodev", "noexec", "rw"]),
            ("/x:rw,noexec", &["nosuid", "nodev", "tmpcopyup", "rw", "noexec"]),
        ] {
            assert_eq!(memory(text).unwrap(), Tmpfs { destination: "/x".to_owned(), options: words(options) });
        }
        assert!(memory("/x:huge=1").unwrap_err().message.contains("an option `huge=1`"));
    }

    #[test]
    fn two_mounts_are_not_on_one_place() {
        let error = mounts(&words(&["/:/x"]), &[], &words(&["/x/./"])).unwrap_err();
        assert_eq!(error.message, "there are two mounts on `/x`");
    }

    #[test]
    fn nothing_is_mounted_on_the_root() {
        let none: &[String] = &[];
        for (volumes, tmpfs, path) in [
            (&words(&["/:/"])[..], none, "/"),
            (&words(&["/:/./:ro"]), none, "/./"),
            (none, &words(&["//:size=1m"])[..], "//"),
        ] {
            let error = mounts(volumes, none, tmpfs).unwrap_err();
            assert_eq!(error.message, format!("cannot mount on `{path}`: it is the container's root file system"));
        }
        let error = mounts(none, &words(&["type=bind,src=/,dst=x"]), none).unwrap_err();
        assert_eq!(error.message, "`x` is not an absolute path in the container");
    }
}
