//! `peelfs run` beside `podman run`: the same words, the same exit statuses.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Output, Stdio};

use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::Entry;
use serde_json::{Value, json};
use support::sandbox::{Sandbox, cannot_mount, said};

use super::containers::{assert_nothing_left, image, layout, printed, run, runtimes, system};

/// The system with a file of its own.
fn version(text: &str) -> Option<Image> {
    let mut entries = system()?;
    entries.push(Entry::file("version", text.to_owned()));
    let config = json!({ "Cmd": ["cat", "/version"], "Env": ["PATH=/bin"] });
    Some(ImageBuilder::new().layer(LayerBuilder::of(&entries)).config(config).build())
}

/// A command that is not there ends with 127, one that cannot be run with 126, as with podman and docker; what the program
/// itself ends with is its own, even if that is the same.
#[test]
fn a_command_that_cannot_run_is_told_from_one_that_fails() {
    let mut entries = system().unwrap_or_default();
    entries.push(Entry::file("bin/odd", "neither a program nor a script").mode(0o755));
    entries.push(Entry::file("bin/orphan", "#!/missing/interpreter\n").mode(0o755));
    let config = json!({ "Env": ["PATH=/bin"] });
    let image = ImageBuilder::new().layer(LayerBuilder::of(&entries)).config(config).build();
    if entries.len() == 2 || cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    for runtime in runtimes() {
        for (command, status, words) in [
            (&["missing"][..], 127, "the container has no program `missing`"),
            (&["/bin/missing"], 127, "the container has no program `/bin/missing`"),
            (&["-it"], 127, "options of `peelfs run` come before the image"),
            (&["ls /bin"], 127, "write its arguments as separate words"),
            (&["/etc/passwd"], 126, "the container cannot run `/etc/passwd`"),
            (&["/etc"], 126, "the container cannot run `/etc`"),
            // The kernel refuses these when the runtime has let go of the container; engines end with 1 as well.
            (&["/bin/odd"], 1, "xec format error"),
            (&["/bin/orphan"], 1, "o such file or directory"),
            (&["sh", "-c", "exit 1"], 1, ""),
            (&["sh", "-c", "exit 126"], 126, ""),
            (&["sh", "-c", "no-such-command"], 127, "not found"),
        ] {
            let output = run(&sandbox, runtime, &[&[&reference[..]], command].concat()).output().unwrap();
            assert_eq!(output.status.code(), Some(status), "{runtime} {command:?}: {}", said(&output));
            assert!(said(&output).contains(words), "{runtime} {command:?}: {}", said(&output));
            let is_own = status > 125 && !command.contains(&"sh");
            assert_eq!(said(&output).contains("error: "), is_own, "{runtime} {command:?}: {}", said(&output));
            if is_own {
                only_ours(&output);
            }
        }
        // The runtime itself fails.
        let output = run(&sandbox, runtime, &["--tmpfs", "/x:size=nonsense", &reference, "true"]).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{}", said(&output));
        assert!(said(&output).contains(&format!("{runtime} cannot start the container")), "{}", said(&output));
        only_ours(&output);
    }
    assert_nothing_left(&sandbox);
}

/// What the runtime itself has said of it is not there twice.
fn only_ours(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    let mut lines = said.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("error: ")), "{said}");
    assert!(lines.all(|line| line.starts_with("hint: ")), "{said}");
}

/// What a container writes to stderr comes when it is written, also a prompt without an end of line.
#[test]
fn stderr_of_a_container_is_passed_on_at_once() {
    let Some(image) = image(json!({ "Env": ["PATH=/bin"] })).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    for runtime in runtimes() {
        let script = "printf 'name? ' >&2; read name; echo $name >&2; exec true 2>&-";
        let mut process = run(&sandbox, runtime, &["-i", &reference, "sh", "-c", script]);
        let mut process = process.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut asked, mut stderr) = (vec![0; 6], process.stderr.take().unwrap());
        stderr.read_exact(&mut asked).unwrap();
        assert_eq!(asked, b"name? ", "{runtime}");
        process.stdin.take().unwrap().write_all(b"me\n").unwrap();
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert_eq!((process.wait().unwrap().code(), rest.as_str()), (Some(0), "me\n"), "{runtime}");
    }
}

/// What podman's four words ask of a registry, counted there.
#[test]
fn pull_decides_when_a_registry_is_asked() {
    let versions = ["1", "2", "3"].map(version);
    let [Some(first), Some(second), Some(third)] = versions else { return };
    let Some(runtime) = runtimes().into_iter().next().filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::default()).unwrap();
    let reference = registry.reference("library/image", "1");
    let ends = |pull: &str| run(&sandbox, runtime, &[&format!("--pull={pull}"), &reference]).output().unwrap();
    let shows = |pull: &str| {
        let output = ends(pull);
        assert!(output.status.success(), "{pull}: {}", said(&output));
        printed(&output).to_owned()
    };
    registry.push("library/image", "1", &first);
    let never = ends("never");
    assert_eq!(never.status.code(), Some(125));
    assert!(said(&never).contains("hint: run it once without `--pull=never` to fetch it"), "{}", said(&never));
    assert!(registry.requests().is_empty(), "never asks for nothing");
    assert_eq!(shows("missing"), "1");
    registry.push("library/image", "1", &second);
    registry.clear();
    assert_eq!((shows("missing"), shows("never")), ("1".to_owned(), "1".to_owned()));
    assert!(registry.requests().is_empty(), "what is known and cached is not asked for");
    assert_eq!((shows("newer"), shows("missing")), ("2".to_owned(), "2".to_owned()));
    registry.push("library/image", "1", &third);
    assert_eq!(shows("always"), "3");
    drop(registry);
    for pull in ["missing", "never", "newer"] {
        assert_eq!(shows(pull), "3", "while the registry is away");
    }
    let always = ends("always");
    assert_eq!(always.status.code(), Some(125), "{}", said(&always));
    assert!(said(&always).contains("error: "), "{}", said(&always));
    assert_nothing_left(&sandbox);
}

#[test]
fn a_container_has_what_options_of_podman_give_it() {
    let config = json!({ "Cmd": ["true"], "Env": ["PATH=/bin"] });
    let Some(image) = image(config).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let reference = layout(&sandbox, &image);
    let variables = sandbox.path().join("variables");
    std::fs::write(&variables, "# these\nA=from file\nB=2\nHOME\n").unwrap();
    let variables = variables.to_str().unwrap();
    let data = sandbox.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let data = data.to_str().unwrap();
    for runtime in runtimes() {
        let says = |options: &[&str], script: &str| {
            let line = [options, &[&reference[..], "sh", "-c", script]].concat();
            let output = run(&sandbox, runtime, &line).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
            printed(&output).to_owned()
        };
        let home = sandbox.path().join("home").display().to_string();
        assert_eq!(
            says(&["--env-file", variables, "-e", "B=3", "-e", "UNSET"], "echo $A $B $HOME ${UNSET-unset}"),
            format!("from file 3 {home} unset")
        );
        assert_eq!(
            says(&["--add-host", "db:10.0.0.7", "--add-host=v6;six:[fd00::7]"], "cat /etc/hosts")
                .lines()
                .rev()
                .take(2)
                .collect::<Vec<_>>(),
            ["fd00::7\tv6 six", "10.0.0.7\tdb"]
        );
        assert_eq!(
            says(
                &["--tmpfs", "/etc:size=1m", "--mount=type=tmpfs,dst=/deep/t,tmpfs-size=64k"],
                "cat /etc/group | sed 1q; touch /etc/x /deep/t/x; grep -c ' /etc .*noexec' /proc/mounts; grep -c ' /deep/t .*size=64k' /proc/mounts"
            ),
            "root:x:0:\n1\n1",
            "what the image has there is in it"
        );
        assert_eq!(
            says(
                &["--mount", &format!("type=bind,src={data},dst=/data,ro")],
                "touch /data/x 2> /dev/null || echo read-only"
            ),
            "read-only"
        );
        assert_eq!(says(&["--hostname=here", "--verify=behind"], "hostname"), "here");
        for (user, wanted) in [
            ("app", "1000 1001 1001 50"),
            ("app:staff", "1000 50 50"),
            ("1000", "1000 1001 1001"),
            ("7", "7 0 0"),
            ("7:app", "7 1001 1001"),
            (":staff", "0 50 50"),
        ] {
            assert_eq!(says(&["-u", user], "echo $(id -u) $(id -g) $(id -G)"), wanted, "{user}");
        }
    }
    assert_nothing_left(&sandbox);
}

/// A bundle and a run understand the same options.
#[test]
fn a_bundle_has_the_options_of_a_run() {
    let Some(image) = image(json!({ "Cmd": ["true"] })).filter(|_| !cannot_mount()) else { return };
    let sandbox = Sandbox::new();
    let at = sandbox.path().join("mnt/bundle");
    let options = ["bundle", "--tmpfs=/x", "--add-host=db:10.0.0.7", "-e", "A=1", "--pull=newer", "--verify=behind"];
    let output = sandbox.peelfs(options).arg(layout(&sandbox, &image)).arg(&at).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let config: Value = serde_json::from_slice(&std::fs::read(at.join("config.json")).unwrap()).unwrap();
    let mounts = config["mounts"].as_array().unwrap();
    let source = |place: &str| mounts.iter().find(|mount| mount["destination"] == place).unwrap()["source"].clone();
    assert_eq!(source("/x"), "tmpfs");
    let hosts = std::fs::read_to_string(Path::new(source("/etc/hosts").as_str().unwrap())).unwrap();
    assert!(hosts.ends_with("10.0.0.7\tdb\n"), "{hosts}");
    assert!(sandbox.peelfs(["umount"]).arg(&at).status().unwrap().success());
}
