//! `peelfs doctor`: each thing that can be wrong is made wrong here, where that can be done.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use peelfs_loopback::auth::Access;
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::registry::{Catalog, Registry, Settings};
use serde_json::Value;
use support::random::Random;
use support::sandbox::{Sandbox, cannot_mount, on_terminal, program, said};

use crate::commands::small;
use crate::look::{collect, documented_fields};

/// What `peelfs doctor --json` found.
struct Found {
    status: Option<i32>,
    json: Value,
}

impl Found {
    fn of(output: &Output) -> Self {
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)));
        Self { status: output.status.code(), json }
    }

    /// The checks of this name.
    fn all(&self, name: &str) -> Vec<&Value> {
        self.json["checks"].as_array().unwrap().iter().filter(|check| check["name"] == name).collect()
    }

    /// The check of this name.
    #[track_caller]
    fn check(&self, name: &str) -> &Value {
        let all = self.all(name);
        assert!(all.len() == 1, "`{name}` in {:#}", self.json);
        all[0]
    }

    /// Requires that a check has this state, says what its state costs, and that texts of it contain `words`.
    #[track_caller]
    fn expect(&self, name: &str, state: &str, words: &str) {
        let check = self.check(name);
        assert_eq!(check["state"], state, "{check:#}");
        assert!(check.to_string().contains(words), "{check:#}");
        assert!(state == "ok" || check["costs"].is_string(), "{check:#}");
    }
}

fn doctor(sandbox: &Sandbox, words: &[&str]) -> Found {
    Found::of(&sandbox.peelfs(["doctor", "--json"]).args(words).output().unwrap())
}

/// Runs a line of a shell, in which `"$0"` is the program.
fn in_shell(sandbox: &Sandbox, shell: &[&str], line: &str) -> Output {
    let plain = sandbox.peelfs([""; 0]);
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).args(["-c", line]).arg(program()).env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.output().unwrap()
}

/// Whether this machine lets tests enter namespaces; said if it does not.
fn has_no_namespaces(options: &[&str]) -> bool {
    let tried = Command::new("unshare").args(options).arg("true").output();
    let cannot = !tried.is_ok_and(|output| output.status.success());
    if cannot {
        eprintln!("skipped: cannot `unshare {}`", options.join(" "));
    }
    cannot
}

#[test]
fn a_machine_that_mounts_is_found_well() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let found = doctor(&sandbox, &[]);
    assert_eq!((found.status, &found.json["mounts"]), (Some(0), &Value::Bool(true)), "{:#}", found.json);
    found.expect("a mount", "ok", "made");
    found.expect("threads and memory", "ok", "enough");
    // Nothing is left of the trial, and no cache was made.
    assert!(!sandbox.path().join("run/peelfs").exists() && !sandbox.cache().exists());
    assert!(!peelfs::fuse::mounts::all().iter().any(|mount| mount.path.starts_with(sandbox.path())));
    // Nor where all directories have yet to be made.
    let mut command = sandbox.peelfs(["doctor", "--json"]);
    let found = Found::of(&command.env_remove("XDG_RUNTIME_DIR").env_remove("PEELFS_CACHE_DIR").output().unwrap());
    assert!(found.status == Some(0) && !sandbox.path().join("home/.cache").exists(), "{:#}", found.json);
}

/// Two runs, which have all fields together.
#[test]
fn its_json_has_the_documented_fields() {
    let registry = Registry::start(Catalog::new().image("library/app", "1", &small())).unwrap();
    let sandbox = Sandbox::new();
    let mut fields = BTreeSet::new();
    let found = doctor(&sandbox, &["--insecure", &registry.reference("library/app", "1")]);
    collect("", &found.json, &mut fields);
    std::fs::create_dir_all(sandbox.cache().join("index-v1")).unwrap();
    std::fs::set_permissions(sandbox.cache(), Permissions::from_mode(0o700)).unwrap();
    collect("", &doctor(&sandbox, &[]).json, &mut fields);
    assert_eq!(documented_fields()["doctor"], fields);
}

#[test]
fn without_a_working_device_it_fails() {
    if cannot_mount() || has_no_namespaces(&["-m"]) {
        return;
    }
    let sandbox = Sandbox::new();
    let line = r#"mount --bind /dev/null /dev/fuse && exec "$0" doctor --json"#;
    let found = Found::of(&in_shell(&sandbox, &["unshare", "-m", "sh"], line));
    assert_eq!((found.status, &found.json["mounts"]), (Some(1), &Value::Bool(false)), "{:#}", found.json);
    found.expect("a mount", "broken", "nothing can be mounted");
}

#[test]
fn limits_that_are_too_low_are_told() {
    let sandbox = Sandbox::new();
    let limited =
        |limit: &str| Found::of(&in_shell(&sandbox, &["sh"], &format!(r#"ulimit {limit}; exec "$0" doctor --json"#)));
    let found = limited("-n 1024");
    found.expect("open files", "broken", "1024");
    found.expect("threads and memory", "ok", "");
    let found = limited("-n 40");
    assert_eq!(found.status, Some(1), "{:#}", found.json);
    found.expect("threads and memory", "broken", "may open 40 files");
    assert!(found.check("threads and memory")["remedy"].is_string());
    let found = limited("-v 90000");
    assert_eq!(found.status, Some(1), "{:#}", found.json);
    found.expect("threads and memory", "broken", "address space");
    found.expect("a mount", "broken", "not tried");
    // A soft limit is raised where it is needed.
    let found = limited("-Sn 64");
    found.expect("threads and memory", "ok", "");
}

#[test]
fn containers_that_cannot_have_namespaces_are_told() {
    if has_no_namespaces(&["-Ur"]) {
        return;
    }
    let sandbox = Sandbox::new();
    let line = r#"echo 0 > /proc/sys/user/max_mnt_namespaces && exec "$0" doctor --json"#;
    let found = Found::of(&in_shell(&sandbox, &["unshare", "-Ur", "sh"], line));
    found.expect("mount namespaces", "missing", "`peelfs run` does not work");
}

#[test]
fn a_cache_that_others_may_write_to_is_told() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.cache()).unwrap();
    std::fs::set_permissions(sandbox.cache(), Permissions::from_mode(0o777)).unwrap();
    let found = doctor(&sandbox, &[]);
    assert_eq!(found.status, Some(1), "{:#}", found.json);
    found.expect("directory", "broken", "others may write to it");
    assert!(found.check("directory")["remedy"].as_str().unwrap().contains("chmod go-w"));
}

#[test]
fn a_cache_where_no_files_can_be_is_told() {
    let found = doctor(&Sandbox::new(), &["--cache-dir", "/proc/x"]);
    found.expect("directory", "broken", "/proc/x cannot be made: /proc is of type proc, where no files can be");
    assert!(found.check("directory")["remedy"].as_str().unwrap().contains("--cache-dir"));
    assert!(found.all("room").is_empty());
}

#[test]
fn damage_and_old_formats_of_a_cache_are_told() {
    let registry = Registry::start(Catalog::new().image("library/app", "1", &small())).unwrap();
    let sandbox = Sandbox::new();
    assert!(sandbox.run(["ls", &registry.reference("library/app", "1"), "/etc"]).status.success());
    doctor(&sandbox, &[]).expect("content", "ok", "2 layers");
    let indexes = sandbox.bucket("index-v2");
    assert!(!indexes.is_empty());
    let mut random = Random::new(7);
    for index in &indexes {
        let bytes = std::fs::read(index).unwrap();
        std::fs::write(index, &bytes[..bytes.len() / 2 + random.below(8)]).unwrap();
    }
    std::fs::create_dir(sandbox.cache().join("index-v1")).unwrap();
    let found = doctor(&sandbox, &[]);
    found.expect("content", "broken", "2 of 2 layers");
    found.expect("format", "broken", "index-v1");
    // It only looks.
    assert_eq!(sandbox.bucket("index-v2"), indexes);
}

#[test]
fn a_cache_in_memory_is_told() {
    if cannot_mount() || has_no_namespaces(&["-m"]) {
        return;
    }
    let sandbox = Sandbox::new();
    let line = r#"mkdir -m 700 "$HOME/cache" && mount -t tmpfs -o mode=700,size=8m x "$HOME/cache" && exec "$0" doctor --json"#;
    let found = Found::of(&in_shell(&sandbox, &["unshare", "-m", "sh"], line));
    found.expect("file system", "broken", "tmpfs");
    found.expect("room", "broken", "free");
}

#[test]
fn login_files_are_looked_at_without_their_secrets() {
    let sandbox = Sandbox::new();
    let docker = sandbox.path().join("home/.docker");
    std::fs::create_dir(&docker).unwrap();
    let config = docker.join("config.json");
    let name = config.display().to_string();
    let write = |text: &str, mode: u32| {
        std::fs::write(&config, text).unwrap();
        std::fs::set_permissions(&config, Permissions::from_mode(mode)).unwrap();
        doctor(&sandbox, &[])
    };
    let found = doctor(&sandbox, &[]);
    found.expect("logins", "ok", "none");
    // `me:hunter2`
    let login = r#"{"auths": {"r.example": {"auth": "bWU6aHVudGVyMg=="}}}"#;
    let found = write(login, 0o600);
    found.expect(&name, "ok", "1 login for r.example");
    assert!(!found.json.to_string().contains("hunter2") && !found.json.to_string().contains("bWU6"));
    write(login, 0o644).expect(&name, "broken", "chmod 600");
    write("{", 0o600).expect(&name, "broken", "line 1");
    let found = write(r#"{"credsStore": "nowhere"}"#, 0o600);
    found.expect("docker-credential-nowhere", "missing", "not in PATH");
    let found = doctor(&sandbox, &["--authfile", "/nonexistent"]);
    found.expect("/nonexistent", "missing", "does not exist");
}

#[test]
fn a_registry_is_asked_step_by_step() {
    let catalog = || Catalog::new().image("library/app", "1", &small());
    let registry = Registry::start(catalog()).unwrap();
    let image = registry.reference("library/app", "1");
    let sandbox = Sandbox::new();
    let limit = |name: &str, value: &str| {
        let fault = Fault::Header(name.to_owned(), value.to_owned());
        registry.faults().add(Rule::new(Target::Manifests, fault));
    };
    limit("RateLimit-Limit", "100;w=21600");
    limit("RateLimit-Remaining", "76;w=21600");
    let found = doctor(&sandbox, &[&image]);
    found.expect("name", "ok", "127.0.0.1");
    found.expect("connection", "ok", "without TLS");
    found.expect("login", "ok", "anonymous");
    found.expect("manifest", "ok", "sha256:");
    found.expect("ranges", "ok", "served");
    found.expect("rate limit", "ok", "76 of 100 requests left in 6 h");
    found.expect(&image, "ok", "2 layers");
    // No layer was read.
    let read: u64 = registry.requests().iter().filter(|one| one.is_blob()).map(|one| one.body_bytes).sum();
    assert!(read < 2048, "{read} bytes");

    registry.faults().add(Rule::new(Target::Blobs, Fault::IgnoreRange));
    doctor(&sandbox, &[&image]).expect("ranges", "missing", "whole blobs");
    drop(registry);
    // The cache knows the image, and hides that nothing new can be asked.
    doctor(&sandbox, &[&image]).expect("manifest", "broken", "connection refused");
    let found = doctor(&Sandbox::new(), &[&image]);
    assert_eq!(found.status, Some(1), "{:#}", found.json);
    found.expect(&image, "broken", "connection refused");
    assert!(found.all("manifest").is_empty(), "one failure is told once: {:#}", found.json);

    let access = Access::Basic { user: "me".into(), password: "secret".into() };
    let registry = Registry::start_with(Settings { catalog: catalog(), access, ..Settings::default() }).unwrap();
    let found = doctor(&Sandbox::new(), &[&registry.reference("library/app", "1")]);
    found.expect(&registry.reference("library/app", "1"), "broken", "podman login");
    assert!(found.all("manifest").is_empty(), "one failure is told once: {:#}", found.json);
    assert_eq!(found.status, Some(1), "{:#}", found.json);
}

#[test]
fn a_wrong_tag_is_the_fault_of_the_reference() {
    if cannot_mount() {
        return;
    }
    let registry = Registry::start(Catalog::new().image("library/app", "1.0", &small())).unwrap();
    let image = registry.reference("library/app", "1.00");
    let sandbox = Sandbox::new();
    let found = doctor(&sandbox, &[&image]);
    found.expect(&image, "broken", "did you mean");
    assert!(found.all("manifest").is_empty(), "one failure is told once: {:#}", found.json);
    assert_eq!((found.status, &found.json["mounts"]), (Some(1), &Value::Bool(false)));
    let told = said(&sandbox.run(["doctor", &image]));
    assert!(told.contains(&format!("mounts work here, but `{image}` cannot be mounted; ")), "{told}");
}

#[test]
fn each_mirror_is_asked_and_told() {
    let [own, good, empty] = [(); 3].map(|()| Registry::start(Catalog::new()).unwrap());
    own.push("library/app", "1", &small());
    good.push("library/app", "1", &small());
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let portal = Registry::start(Catalog::new()).unwrap();
    let page = Fault::Status {
        status: 200,
        headers: vec![("Content-Type".into(), "text/html".into())],
        body: "<html>log in</html>".into(),
    };
    portal.faults().add(Rule::new(Target::Any, page));
    // A portal may claim whatever type it wants.
    let liar = Registry::start(Catalog::new()).unwrap();
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let page = Fault::Status {
        status: 200,
        headers: vec![("Content-Type".into(), manifest.into())],
        body: "<html>log in</html>".into(),
    };
    liar.faults().add(Rule::new(Target::Any, page));
    let mirrors = format!("--mirror={},{},{away},{},{}", good.addr(), empty.addr(), portal.addr(), liar.addr());
    let found = doctor(&Sandbox::new(), &[&mirrors, &own.reference("library/app", "1")]);
    found.expect("mirrors", "ok", "5 mirrors, by --mirror");
    found.expect(&format!("mirror {}", portal.addr()), "broken", "`text/html`, which is not an image manifest");
    found.expect(&format!("mirror {}", portal.addr()), "broken", "as a portal or a proxy may, or remove it (--mirror)");
    found.expect(&format!("mirror {}", liar.addr()), "broken", "digest");
    found.expect(&format!("mirror {away}"), "broken", "the next host is asked at once");
    found.expect(&format!("mirror {away}"), "broken", "start it, or remove it (--mirror)");
    found.expect(&format!("mirror {}", good.addr()), "ok", "answered within 0.");
    found.expect(&format!("mirror {}", empty.addr()), "missing", "does not have the image");
    found.expect(&format!("mirror {away}"), "broken", "connection refused");
    assert_eq!(found.status, Some(i32::from(cannot_mount())), "{:#}", found.json);
}

#[test]
fn a_registry_that_never_answers_is_given_up_in_seconds() {
    let registry = Registry::start(Catalog::new().image("library/app", "1", &small())).unwrap();
    let image = registry.reference("library/app", "1");
    let gate = Gate::new();
    registry.faults().add(Rule::new(Target::Any, Fault::Hang(gate.clone())));
    let begun = std::time::Instant::now();
    let found = doctor(&Sandbox::new(), &[&image]);
    let took = begun.elapsed().as_secs();
    gate.open();
    found.expect(&image, "broken", "within 6 s");
    assert!(found.all("manifest").is_empty(), "one failure is told once: {:#}", found.json);
    assert!(took < 25, "{took} s");
}

#[test]
fn a_local_image_is_opened() {
    let sandbox = Sandbox::new();
    let layout = sandbox.path().join("layout");
    small().write_layout(&layout, "1").unwrap();
    let image = format!("oci:{}:1", layout.display());
    doctor(&sandbox, &[&image]).expect(&image, "ok", "2 layers");
    let missing = format!("oci:{}:2", layout.display());
    let found = doctor(&sandbox, &[&missing]);
    assert_eq!(found.status, Some(1));
    found.expect(&missing, "broken", "cannot be mounted");
}

#[test]
fn sections_fit_a_terminal_and_pipes_get_whole_lines() {
    let sandbox = Sandbox::new();
    let plain = sandbox.peelfs(["doctor"]);
    let shown = String::from_utf8(on_terminal(&plain, "doctor").stdout).unwrap();
    let titles = ["Mounts", "Kernel", "Limits", "Users", "Cache", "Logins", "Programs"];
    let found: Vec<_> = shown.lines().map(str::trim_end).filter(|line| titles.contains(line)).collect();
    assert_eq!(found, titles);
    let path = sandbox.path().display().to_string();
    let long: Vec<_> =
        shown.lines().filter(|line| line.trim_end().chars().count() > 80 && !line.contains(&path)).collect();
    assert!(long.is_empty(), "{long:#?}");
    let piped = String::from_utf8(sandbox.run(["doctor"]).stdout).unwrap();
    assert!(piped.lines().all(|line| !line.contains('\x1b')) && piped.lines().count() <= shown.lines().count());
    assert!(piped.lines().last().unwrap().starts_with("mounts "), "{piped}");
}
