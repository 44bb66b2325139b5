//! `config.json`: made from an image's configuration and the user's options.
//!
//! Defaults are those of podman and containerd: the usual mounts, eleven capabilities, masked and read-only paths. No
//! seccomp filter is set.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{BundleError, Configured, User};

/// The user's options for a container.
#[derive(Clone, Debug)]
pub struct BundleOptions {
    /// `ociVersion`
    pub version: String,
    /// Replaces the image's `Cmd`.
    pub command: Option<Vec<String>>,
    /// Replaces the image's `Entrypoint`; its `Cmd` is then ignored.
    pub entrypoint: Option<Vec<String>>,
    /// Additional environment variables, which override the image's.
    pub environment: Vec<(String, String)>,
    /// Replaces the image's `WorkingDir`.
    pub directory: Option<String>,
    /// The process has a terminal.
    pub terminal: bool,
    /// The root file system is read-only.
    pub readonly: bool,
    /// Set-user-id programs and file capabilities give privileges.
    pub new_privileges: bool,
    /// How to mount `Volumes`.
    pub volumes: VolumePolicy,
    /// Directories and files of the machine to mount.
    pub binds: Vec<Volume>,
    /// Directories in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// The container's network.
    pub network: Network,
    /// Its host name.
    pub hostname: Option<String>,
    /// Limits of its process, besides inherited ones.
    pub limits: Vec<Limit>,
    /// The privileges of the runtime.
    pub identity: Identity,
}

/// How to mount the paths in an image's `Volumes`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum VolumePolicy {
    /// Each as a tmpfs, filled from the image.
    #[default]
    Tmpfs,
    /// As part of the root file system.
    Root,
}

/// A directory or file of the machine, and its place in the container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Volume {
    /// On the machine, absolute.
    pub source: String,
    /// In the container, absolute.
    pub destination: String,
    /// It is read-only.
    pub readonly: bool,
    /// Further options of the mount, as runtimes have them.
    pub options: Vec<String>,
}

impl Volume {
    /// It cannot be written to, and has no further options.
    pub fn readonly(source: String, destination: String) -> Self {
        Self { source, destination, readonly: true, options: Vec::new() }
    }
}

/// A file system in memory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tmpfs {
    /// In the container, absolute.
    pub destination: String,
    /// Options of the mount, as runtimes have them.
    pub options: Vec<String>,
}

/// The container's network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Network {
    /// The machine's.
    Host,
    /// A network of its own, with only the loopback interface.
    None,
}

/// A limit of a process (getrlimit(2)).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limit {
    /// As in `RLIMIT_NOFILE`.
    pub kind: &'static str,
    /// The limit in force.
    pub soft: u64,
    /// The maximum that the process may set.
    pub hard: u64,
}

/// The privileges of the runtime.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Identity {
    /// Those of the machine's root.
    Root,
    /// Those of a user who is root only in a user namespace.
    UserNamespace,
}

impl Default for BundleOptions {
    fn default() -> Self {
        Self {
            version: VERSION.to_owned(),
            command: None,
            entrypoint: None,
            environment: Vec::new(),
            directory: None,
            terminal: false,
            readonly: true,
            new_privileges: false,
            volumes: VolumePolicy::default(),
            binds: Vec::new(),
            tmpfs: Vec::new(),
            network: Network::None,
            hostname: None,
            limits: Vec::new(),
            identity: Identity::Root,
        }
    }
}

/// Whether this version of the runtime specification is supported: all that is used is in 1.0.0.
pub fn is_known_version(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u16>().ok().filter(|_| !number.starts_with('+')));
    let own = [numbers.next(), numbers.next(), numbers.next()].map(Option::flatten);
    matches!(own, [Some(1), Some(_), Some(_)]) && numbers.next().is_none()
}

/// The runtime's configuration of a container.
///
/// # Errors
/// [`BundleError`]
pub fn config(image: &Configured, user: &User, options: &BundleOptions) -> Result<Value, BundleError> {
    let BundleOptions { version, terminal, readonly, new_privileges, hostname, limits, .. } = options;
    let arguments = arguments(image, options)?;
    let environment = environment(image, user, options)?;
    let directory = directory(image, options)?;
    let is_root = user.uid == 0;
    let mut capabilities = json!({ "bounding": CAPABILITIES });
    if is_root {
        capabilities["effective"] = json!(CAPABILITIES);
        capabilities["permitted"] = json!(CAPABILITIES);
    }
    let mut config = json!({
        "ociVersion": version,
        "process": {
            "terminal": terminal,
            "user": { "uid": user.uid, "gid": user.gid },
            "args": arguments,
            "env": environment,
            "cwd": directory,
            "capabilities": capabilities,
            "noNewPrivileges": !new_privileges,
        },
        "root": { "path": "rootfs", "readonly": readonly },
        "mounts": mounts(image, options)?,
        "linux": {
            "namespaces": namespaces(options.network),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    });
    if !user.groups.is_empty() {
        config["process"]["user"]["additionalGids"] = json!(user.groups);
    }
    if !limits.is_empty() {
        let limits =
            limits.iter().map(|Limit { kind, soft, hard }| json!({ "type": kind, "soft": soft, "hard": hard }));
        config["process"]["rlimits"] = limits.collect();
    }
    if let Some(hostname) = hostname {
        config["hostname"] = json!(hostname);
    }
    if options.identity == Identity::Root {
        config["linux"]["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    }
    let annotations = image.annotations();
    if !annotations.is_empty() {
        config["annotations"] = json!(annotations);
    }
    Ok(config)
}

/// Where a runtime with this `config` mounts or works: directories, and files that other files are mounted over. Each
/// must exist in a root file system that is read-only.
pub fn destinations(config: &Value) -> Vec<String> {
    let mounts = config["mounts"].as_array().into_iter().flatten();
    let mounts = mounts.filter_map(|mount| mount["destination"].as_str());
    // What is mounted within another mount is created there.
    let mut found: BTreeSet<&str> = mounts.collect();
    found.extend(config["process"]["cwd"].as_str());
    let within = |path: &str, other: &str| path.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
    let hidden = ["/proc", "/dev", "/sys"];
    found.into_iter().filter(|path| !hidden.iter().any(|other| within(path, other))).map(str::to_owned).collect()
}

fn arguments(image: &Configured, options: &BundleOptions) -> Result<Vec<String>, BundleError> {
    let entrypoint = options.entrypoint.as_deref().unwrap_or(image.entrypoint());
    let command = match (&options.command, &options.entrypoint) {
        (Some(command), _) => command.as_slice(),
        (None, Some(_)) => &[],
        (None, None) => image.command(),
    };
    let arguments: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if arguments.first().is_none_or(String::is_empty) {
        return Err(BundleError::NoCommand);
    }
    if arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(BundleError::Zero { what: "an argument of the command" });
    }
    Ok(arguments)
}

/// The image's variables unchanged and in order, then missing ones.
fn environment(image: &Configured, user: &User, options: &BundleOptions) -> Result<Vec<String>, BundleError> {
    let name_of = |entry: &str| entry.split_once('=').map(|(name, _)| name.to_owned()).filter(|name| !name.is_empty());
    let mut environment: Vec<(String, String)> = Vec::new();
    for entry in image.environment() {
        let Some(name) = name_of(entry) else { return Err(BundleError::Variable { entry: entry.clone() }) };
        environment.push((name, entry.clone()));
    }
    for (name, value) in &options.environment {
        let entry = format!("{name}={value}");
        if name_of(&entry).as_ref() != Some(name) {
            return Err(BundleError::Variable { entry });
        }
        environment.retain(|(other, _)| other != name);
        environment.push((name.clone(), entry));
    }
    let home = user.home.as_deref().unwrap_or("/");
    let usual = [("PATH", Some(USUAL_PATH)), ("HOME", Some(home)), ("TERM", options.terminal.then_some("xterm"))];
    for (name, value) in usual {
        if let (Some(value), false) = (value, environment.iter().any(|(other, _)| other == name)) {
            environment.push((name.to_owned(), format!("{name}={value}")));
        }
    }
    if environment.iter().any(|(_, entry)| entry.contains('\0')) {
        return Err(BundleError::Zero { what: "an environment variable" });
    }
    Ok(environment.into_iter().map(|(_, entry)| entry).collect())
}

fn directory(image: &Configured, options: &BundleOptions) -> Result<String, BundleError> {
    if let Some(directory) = options.directory.as_deref().filter(|directory| !directory.is_empty()) {
        return in_container(directory);
    }
    let directory = image.directory().unwrap_or("/");
    // Docker's builder has written relative paths.
    let directory = if directory.starts_with('/') { directory.to_owned() } else { format!("/{directory}") };
    in_container(&directory)
}

/// A path that stays within the container.
fn in_container(path: &str) -> Result<String, BundleError> {
    let leads_up = path.split('/').any(|name| name == "..");
    if !path.starts_with('/') || leads_up || path.contains('\0') {
        return Err(BundleError::Path { path: path.replace('\0', "\\0") });
    }
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    Ok(format!("/{}", names.join("/")))
}

/// The path to mount on in a container, without what does not change where it leads.
///
/// # Errors
/// [`BundleError::Path`], [`BundleError::OnRoot`], [`BundleError::InProc`]
pub fn mount_point(typed: &str) -> Result<String, BundleError> {
    match in_container(typed)? {
        path if path == "/" => Err(BundleError::OnRoot { path: typed.to_owned() }),
        path if path == "/proc" || path.starts_with("/proc/") && !OVER_PROC.contains(&&path[..]) => {
            Err(BundleError::InProc { path: typed.to_owned() })
        }
        path => Ok(path),
    }
}

fn mounts(image: &Configured, options: &BundleOptions) -> Result<Vec<Value>, BundleError> {
    let tmpfs = |destination: &str, options: &[&str]| mount(destination, "tmpfs", "tmpfs", options);
    let in_namespace = options.identity == Identity::UserNamespace;
    let pts: &[&str] = &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    // A user namespace with one user has no group of terminals.
    let pts = if in_namespace { &pts[..5] } else { pts };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        tmpfs("/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", pts),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    let protected = ["nosuid", "noexec", "nodev", "ro"];
    if in_namespace && options.network == Network::Host {
        // A new sysfs requires a network namespace of the same user namespace.
        mounts.push(mount("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]));
    } else {
        mounts.push(mount("/sys", "sysfs", "sysfs", &protected));
    }
    if !in_namespace {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]));
    }
    // Sorted by path: what is within another is mounted after it.
    let mut further = BTreeMap::new();
    if options.volumes == VolumePolicy::Tmpfs {
        for path in image.volumes() {
            let path = mount_point(path)?;
            further.insert(path.clone(), tmpfs(&path, &["nosuid", "nodev", "tmpcopyup"]));
        }
    }
    for Tmpfs { destination, options } in &options.tmpfs {
        let destination = mount_point(destination)?;
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        further.insert(destination.clone(), tmpfs(&destination, &options));
    }
    for Volume { source, destination, readonly, options } in &options.binds {
        let destination = mount_point(destination)?;
        let mut all = vec!["rbind", if *readonly { "ro" } else { "rw" }, "rprivate"];
        // A later one of two that contradict each other wins.
        all.extend(options.iter().map(String::as_str));
        further.insert(destination.clone(), mount(&destination, "bind", source, &all));
    }
    let replaced = |mount: &Value| mount["destination"].as_str().is_some_and(|path| further.contains_key(path));
    mounts.retain(|mount| !REPLACEABLE.iter().any(|path| mount["destination"] == **path) || !replaced(mount));
    mounts.extend(further.into_values());
    Ok(mounts)
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

fn namespaces(network: Network) -> Vec<Value> {
    let own = match network {
        Network::None => Some("network"),
        Network::Host => None,
    };
    ["pid", "ipc", "uts", "mount", "cgroup"].into_iter().chain(own).map(|kind| json!({ "type": kind })).collect()
}

/// All that is used is in 1.0.0; runc and crun of Debian 12 accept 1.0.2.
const VERSION: &str = "1.0.2";
/// Usual mounts that the user may have otherwise; nothing else is mounted in them.
const REPLACEABLE: [&str; 3] = ["/dev/shm", "/dev/mqueue", "/sys/fs/cgroup"];
/// The files below /proc that runc lets replace, as lxcfs does.
const OVER_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The default of podman.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// The default of containerd.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/interrupts",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn image(process: Value) -> Configured {
        Configured::parse(&json!({ "os": "linux", "config": process }).to_string()).unwrap()
    }

    fn made(process: Value, options: BundleOptions) -> Result<Value, BundleError> {
        config(&image(process), &User::default(), &options)
    }

    fn made_simply(process: Value) -> Value {
        made(process, BundleOptions::default()).unwrap()
    }

    #[test]
    fn entrypoint_and_command_are_joined_and_overridden() {
        let process = json!({ "Entrypoint": ["/entry", "-x"], "Cmd": ["run"] });
        let words = |words: &[&str]| Some(words.iter().map(|word| word.to_string()).collect::<Vec<_>>());
        for (command, entrypoint, wanted) in [
            (None, None, json!(["/entry", "-x", "run"])),
            (words(&["other", "a"]), None, json!(["/entry", "-x", "other", "a"])),
            (None, words(&["sh"]), json!(["sh"])),
            (words(&["-c", "id"]), words(&["sh"]), json!(["sh", "-c", "id"])),
            (words(&["id"]), words(&[]), json!(["id"])),
        ] {
            let options = BundleOptions { command, entrypoint, ..BundleOptions::default() };
            assert_eq!(made(process.clone(), options).unwrap()["process"]["args"], wanted);
        }
        assert_eq!(made(json!({}), BundleOptions::default()), Err(BundleError::NoCommand));
    }

    #[test]
    fn variables_of_the_image_stay_as_they_are() {
        let process = json!({ "Cmd": ["x"], "Env": ["PATH=/only", "A=1", "B=x=y", "C="] });
        let environment = vec![("A".to_owned(), "2".to_owned())];
        let config = made(process, BundleOptions { environment, terminal: true, ..BundleOptions::default() }).unwrap();
        assert_eq!(config["process"]["env"], json!(["PATH=/only", "B=x=y", "C=", "A=2", "HOME=/", "TERM=xterm"]));
        let config = made_simply(json!({ "Cmd": ["x"], "Env": ["HOME=/h"] }));
        assert_eq!(config["process"]["env"], json!(["HOME=/h", format!("PATH={USUAL_PATH}")]));
        for entry in ["A", "=x", ""] {
            let wrong = made(json!({ "Cmd": ["x"], "Env": [entry] }), BundleOptions::default());
            assert_eq!(wrong, Err(BundleError::Variable { entry: entry.to_owned() }));
        }
    }

    #[test]
    fn a_directory_is_absolute_and_stays_inside() {
        for (written, wanted) in [("", "/"), ("/a//b/./c/", "/a/b/c"), ("app", "/app")] {
            assert_eq!(made_simply(json!({ "Cmd": ["x"], "WorkingDir": written }))["process"]["cwd"], wanted);
        }
        // The user's own is not guessed at.
        for (typed, wanted) in [("", Some("/image")), ("/x/", Some("/x")), ("rel", None)] {
            let options = BundleOptions { directory: Some(typed.to_owned()), ..BundleOptions::default() };
            let config = made(json!({ "Cmd": ["x"], "WorkingDir": "/image" }), options).ok();
            assert_eq!(config.map(|config| config["process"]["cwd"].clone()), wanted.map(|wanted| json!(wanted)));
        }
        let up = made(json!({ "Cmd": ["x"], "WorkingDir": "/a/../../b" }), BundleOptions::default());
        assert_eq!(up, Err(BundleError::Path { path: "/a/../../b".to_owned() }));
    }

    #[test]
    fn volumes_are_mounted_outer_before_inner() {
        let process = json!({ "Cmd": ["x"], "Volumes": { "/data/b": {}, "/data": {} } });
        let bind = |destination: &str, readonly| Volume {
            source: "/src".to_owned(),
            destination: destination.to_owned(),
            readonly,
            options: Vec::new(),
        };
        let options =
            BundleOptions { binds: vec![bind("/data/a/", true), bind("/data", false)], ..BundleOptions::default() };
        let config = made(process.clone(), options.clone()).unwrap();
        let mounts = config["mounts"].as_array().unwrap();
        let further: Vec<_> = mounts[7..].iter().map(|mount| (&mount["destination"], &mount["type"])).collect();
        assert_eq!(
            further,
            [
                (&json!("/data"), &json!("bind")),
                (&json!("/data/a"), &json!("bind")),
                (&json!("/data/b"), &json!("tmpfs"))
            ]
        );
        assert_eq!(mounts[8]["options"], json!(["rbind", "ro", "rprivate"]));
        let kept = made(process, BundleOptions { volumes: VolumePolicy::Root, ..options }).unwrap();
        assert_eq!(kept["mounts"].as_array().unwrap().len(), 9);
        assert!(made(json!({ "Cmd": ["x"], "Volumes": { "/": {} } }), BundleOptions::default()).is_err());
        assert!(made(json!({ "Cmd": ["x"], "Volumes": { "data": {} } }), BundleOptions::default()).is_err());
        for (path, is_refused) in [("/proc", true), ("/proc/1/", true), ("/proc/meminfo", false), ("/process", false)] {
            assert_eq!(matches!(mount_point(path), Err(BundleError::InProc { .. })), is_refused, "{path}");
        }
    }

    #[test]
    fn what_a_runtime_needs_in_the_root_is_named() {
        let process = json!({ "Cmd": ["x"], "WorkingDir": "/app", "Volumes": { "/var/lib/x": {}, "/dev/y": {} } });
        assert_eq!(destinations(&made_simply(process)), ["/app", "/dev", "/proc", "/sys", "/var/lib/x"]);
    }

    #[test]
    fn only_root_has_capabilities() {
        let user = User { uid: 5, gid: 6, groups: vec![7], home: Some("/h".to_owned()) };
        let config = config(&image(json!({ "Cmd": ["x"] })), &user, &BundleOptions::default()).unwrap();
        assert_eq!(config["process"]["user"], json!({ "uid": 5, "gid": 6, "additionalGids": [7] }));
        assert_eq!(config["process"]["capabilities"], json!({ "bounding": CAPABILITIES }));
        assert_eq!(config["process"]["noNewPrivileges"], true);
        assert_eq!(made_simply(json!({ "Cmd": ["x"] }))["process"]["capabilities"]["effective"], json!(CAPABILITIES));
    }

    #[test]
    fn versions_of_the_runtime_specification() {
        for (version, known) in [
            ("1.0.0", true),
            ("1.3.0", true),
            ("2.0.0", false),
            ("1.0", false),
            ("1.0.0.0", false),
            ("", false),
            ("1.+1.0", false),
        ] {
            assert_eq!(is_known_version(version), known, "{version}");
        }
    }
}
