//! Options of `podman run` and `docker run` that `peelfs run` does not have: what to do instead of them.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use peelfs::host::report::Report;

/// The message about an unknown option, if engines have it.
pub(super) fn refusal(error: &clap::Error) -> Option<Report> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidArg) else { return None };
    let name = typed.split_once('=').map_or(typed.as_str(), |(name, _)| name);
    let (_, instead) = INSTEAD.iter().find(|(names, _)| names.split(' ').any(|known| known == name))?;
    Some(Report::usage(format!("`peelfs run` does not have `{name}`, which podman and docker have")).hint(instead))
}

/// Names, and what to do instead.
const INSTEAD: [(&str, &str); 26] = [
    (
        "-p --publish -P --publish-all --expose",
        "leave it out: with `--network host`, the default, what listens in the container listens on this machine",
    ),
    (
        "-d --detach",
        "containers run in the foreground: put it into the background with `&`, let a service manager run it (`systemd-run --unit=NAME peelfs run …`), or let podman run the image by `peelfs store add`",
    ),
    (
        "--privileged --cap-add --security-opt --device --device-cgroup-rule --gpus --sysctl --oom-score-adj",
        "make a bundle and edit its configuration: `peelfs bundle IMAGE DIR`, then `runc run --bundle DIR NAME`",
    ),
    (
        "--cap-drop",
        "a container has eleven capabilities if its user is root, and none otherwise: run it as another user with `-u 1000`",
    ),
    (
        "-m --memory --memory-swap --memory-reservation --cpus -c --cpu-shares --cpuset-cpus --cpuset-mems --cpu-quota --cpu-period --pids-limit --blkio-weight",
        "limit the whole command: `systemd-run --scope -p MemoryMax=1G -p CPUQuota=50% peelfs run …`",
    ),
    ("--ulimit", "a container has the limits of the command: set them before, as with `ulimit -n 4096`"),
    ("--shm-size", "mount one of another size: `--tmpfs /dev/shm:size=1g,exec`"),
    ("--init", "let the image's command end its children itself, or run an init of the image: `--entrypoint tini`"),
    (
        "--restart --health-cmd --health-interval --health-retries --health-timeout --no-healthcheck",
        "let a service manager restart it: `systemd-run --unit=NAME -p Restart=always peelfs run …`",
    ),
    ("--volumes-from --volume-driver", "use directories: `-v ./data:/data`, and `--keep DIR` for all changes"),
    (
        "--ip --ip6 --mac-address --network-alias --link --dns --dns-search --dns-option --dns-opt --no-hosts --no-resolv",
        "a container has this machine's network and names (`--network host`) or none; `--add-host` adds names, `-v ./resolv.conf:/etc/resolv.conf` other servers",
    ),
    ("--pod --infra-command", "only podman has pods: let it run the image with `peelfs store add`"),
    (
        "--userns --uidmap --gidmap --subuidname --subgidname",
        "run it as another user of this machine: then it has a user namespace",
    ),
    (
        "--pid --ipc --uts --cgroupns --cgroup-parent --cgroups",
        "namespaces for processes, IPC, host name and control groups are the container's own",
    ),
    (
        "-l --label --label-file --annotation --cidfile --pidfile --log-driver --log-opt",
        "leave it out: containers are always removed when they end",
    ),
    (
        "--stop-signal --stop-timeout --timeout",
        "send the signal to `peelfs run` itself, as with `timeout -s TERM 60 peelfs run …`: it is passed on",
    ),
    (
        "-a --attach --sig-proxy --detach-keys --no-stdin",
        "output and signals are always passed on, and stdin with `-i`",
    ),
    ("--group-add", "name the group with the user: `-u USER:GROUP`"),
    ("--arch --os --variant", "name the platform: `--platform linux/arm64`"),
    ("--tls-verify", "`--insecure` allows plain HTTP and unverified TLS"),
    (
        "--creds --username --password --decryption-key",
        "log in with `podman login` or `docker login`, or name a login file with `--authfile`",
    ),
    ("--cert-dir", "`--ca FILE` names certificates"),
    ("--replace --rmi", "leave it out: nothing of peelfs conflicts with other containers and images"),
    ("--rootfs", "for a directory without an image, make a bundle with `runc spec`"),
    (
        "--env-host --env-merge --unsetenv --unsetenv-all --http-proxy",
        "set variables with `-e NAME=VALUE`, or take them from this environment with `-e NAME` and `-e 'NAME*'`",
    ),
    ("--secret", "show the file: `-v ./secret:/run/secrets/NAME:ro`"),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser as _;

    use super::super::args::Args;
    use super::*;

    #[test]
    fn options_of_engines_are_refused_with_what_to_do() {
        for (line, name, wanted) in [
            (&["-p", "80:80", "alpine"][..], "-p", "leave it out"),
            (&["--publish=80:80", "alpine"], "--publish", "leave it out"),
            (&["-dit", "alpine"], "-d", "systemd-run"),
            (&["-it", "--privileged", "alpine"], "--privileged", "peelfs bundle"),
            (&["--memory", "1g", "alpine"], "--memory", "MemoryMax"),
        ] {
            let error = Args::try_parse_from(["peelfs", "run"].iter().chain(line)).unwrap_err();
            let report = refusal(&error).unwrap_or_else(|| panic!("{line:?}: {error}"));
            assert!(report.message.contains(&format!("`{name}`")), "{}", report.message);
            assert!(report.hint.unwrap().contains(wanted), "{line:?}");
        }
        let error = Args::try_parse_from(["peelfs", "run", "--no-such-thing", "alpine"]).unwrap_err();
        assert_eq!(refusal(&error), None);
    }

    /// What is refused with a hint is not there, and each is named once.
    #[test]
    fn no_option_is_both_there_and_refused() {
        let mut names: Vec<_> = INSTEAD.iter().flat_map(|(names, _)| names.split(' ')).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for name in names {
            let parsed = Args::try_parse_from(["peelfs", "run", name, "1", "alpine"]);
            let refused = parsed.err().and_then(|error| refusal(&error));
            assert!(refused.is_some(), "{name}");
        }
    }
}
