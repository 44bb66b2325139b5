//! Containers of users other than root: of `peelfs run`, and of podman with a store of the user.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::tar::Entry;
use serde_json::json;
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};

use super::containers::{assert_nothing_left, for_crun, image, layout, printed, runtimes};

/// A user, in a mount namespace where the machine grants it these users (subuid(5)).
struct User<'a> {
    sandbox: &'a Sandbox,
    reference: String,
}

impl<'a> User<'a> {
    fn new(sandbox: &'a Sandbox, image: &Image, granted: &str) -> Self {
        let reference = layout(sandbox, image);
        std::fs::copy(support::sandbox::program(), sandbox.path().join("peelfs")).unwrap();
        std::fs::write(sandbox.path().join("granted"), granted).unwrap();
        for name in ["", "home", "run", "layout"] {
            let path = sandbox.path().join(name);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::os::unix::fs::chown(&path, Some(USER), Some(USER)).unwrap();
        }
        Self { sandbox, reference }
    }

    /// Runs a command as the user, in the directory of the sandbox.
    fn run(&self, line: &[&str]) -> Output {
        // As on most machines: users may open the device.
        let script = r#"
            test -e fuse || mknod -m 666 fuse c 10 229
            mount --bind fuse /dev/fuse
            mount --bind granted /etc/subuid && mount --bind granted /etc/subgid
            exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
        "#;
        let mut command = for_crun("sh");
        command.args(["-ec", script, "sh"]).args(line).current_dir(self.sandbox.path());
        let known = self.sandbox.peelfs([""]);
        command.env_clear().envs(known.get_envs().map(|(name, value)| (name, value.unwrap_or_default())));
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn program(&self) -> String {
        self.sandbox.path().join("peelfs").display().to_string()
    }
}

const USER: u32 = 65_534;
const GRANTED: &str = "65534:300000:65536\n";

fn cannot_be_another_user() -> bool {
    cannot_mount()
        || ["setpriv", "unshare", "newuidmap"].into_iter().any(|program| {
            let is_missing = Command::new(program).arg("--version").output().is_err();
            if is_missing {
                eprintln!("skipped: needs {program}");
            }
            is_missing
        })
}

/// A user other than root is root of a user namespace, and has other users there if the machine grants it some.
#[test]
fn users_run_containers_in_a_user_namespace() {
    let config = json!({ "Cmd": ["sh", "-c", "id; touch /etc/new; ls /etc/new"], "Env": ["PATH=/bin"] });
    let Some(image) = image(config).filter(|_| !cannot_be_another_user()) else { return };
    for runtime in runtimes() {
        for granted in ["", GRANTED] {
            let sandbox = Sandbox::new();
            let user = User::new(&sandbox, &image, granted);
            let run_as =
                |other: &str| user.run(&[&user.program(), "run", "--runtime", runtime, "-u", other, &user.reference]);
            let root = run_as("0");
            if said(&root).contains("user namespaces: let root allow them") {
                eprintln!("skipped: users may have no user namespaces here");
                return;
            }
            let is_root = printed(&root).starts_with("uid=0(root) gid=0(root)");
            assert!(is_root && printed(&root).ends_with("/etc/new"), "{}", said(&root));
            let app = run_as("1000:1001");
            if granted.is_empty() {
                assert_eq!(app.status.code(), Some(125));
                assert!(said(&app).contains("may not map the container's user 1000:1001"), "{}", said(&app));
            } else {
                assert!(said(&app).contains("uid=1000(app) gid=1001(app)"), "{}", said(&app));
            }
            assert_nothing_left(&sandbox);
        }
    }
}

/// A user who may mount no overlay is told so, and nothing is left of the attempt.
#[test]
fn a_user_is_told_that_only_root_mounts_overlays() {
    let Some(image) = image(json!({})).filter(|_| !cannot_be_another_user()) else { return };
    if is_missing("fusermount3") {
        return;
    }
    let sandbox = Sandbox::new();
    let user = User::new(&sandbox, &image, GRANTED);
    let home = sandbox.path().join("home");
    for how in ["--writable", "--ephemeral"] {
        let output = user.run(&[
            "sh",
            "-ec",
            "mkdir -p home/m; exec \"$@\" home/m",
            "sh",
            &user.program(),
            "mount",
            how,
            &user.reference,
        ]);
        assert_eq!(output.status.code(), Some(1), "{how}: {}", said(&output));
        assert!(said(&output).contains("only root can mount an overlay\nhint: "), "{how}: {}", said(&output));
        assert!(!home.join("m.upper").exists(), "{how}");
        assert!(std::fs::read_dir(home.join("m")).unwrap().next().is_none(), "{how}: it is unmounted");
    }
}

/// podman of a user, with the store of that user: owners are the container's, also where the user is not its root. With
/// fuse-overlayfs nothing is copied for that.
#[test]
fn podman_of_a_user_runs_from_the_user_s_store() {
    let config = json!({ "Cmd": ["sh", "-c", "echo $(id -u) $(stat -c %u /etc/passwd)"], "Env": ["PATH=/bin"] });
    let Some(image) = image(config).filter(|_| !cannot_be_another_user()) else { return };
    if ["podman", "runc", "fusermount3"].into_iter().any(is_missing) {
        return;
    }
    let by_fuse = !is_missing("fuse-overlayfs");
    let sandbox = Sandbox::new();
    let user = User::new(&sandbox, &image, GRANTED);
    let script = r#"
        set -e
        store=$HOME/store
        mkdir "$store"
        "$1" store serve "$store" &
        until "$1" status "$store" > /dev/null 2>&1; do sleep 0.02; done
        "$1" store add "$2" --store "$store" --name localhost/app:1 2> /dev/null
        use() {
            export CONTAINERS_STORAGE_CONF=$HOME/storage.conf
            printf '[storage]\ndriver = "overlay"\n[storage.options]\nadditionalimagestores = ["%s"]\n%s\n' "$store" "$1" > "$CONTAINERS_STORAGE_CONF"
        }
        in_podman() {
            podman --events-backend=none --cgroup-manager=cgroupfs --runtime=runc "$@"
        }
        run() {
            in_podman run --rm --pull=never --network=none --ulimit=nofile=1024:1024 --ulimit=nproc=4096:4096 "$@"
        }
        use ''
        run localhost/app:1
        run --userns=keep-id localhost/app:1
        in_podman system migrate
        if [ "$3" = true ]; then
            export HOME=$HOME/other
            mkdir "$HOME"
            use "$(printf '[storage.options.overlay]\nmount_program = "%s"' "$(command -v fuse-overlayfs)")"
            run --userns=keep-id localhost/app:1
            cat "$HOME/.local/share/containers/storage/overlay-layers/layers.json" 2> /dev/null || echo '[]'
            in_podman system migrate
        fi
        "$1" umount "$store"
        wait
    "#;
    let output = user.run(&["sh", "-c", script, "sh", &user.program(), &user.reference, &by_fuse.to_string()]);
    if said(&output).contains("cannot clone: Operation not permitted") {
        eprintln!("skipped: users may have no user namespaces here");
        return;
    }
    assert!(output.status.success(), "{}", said(&output));
    let wanted = ["localhost/app:1", "0 0", "65534 0", "65534 0", "[]"];
    assert_eq!(
        printed(&output).lines().collect::<Vec<_>>(),
        wanted[..if by_fuse { 5 } else { 3 }],
        "{}",
        said(&output)
    );
}

/// A user's own storage: files of other ids of the user's containers are read as podman's own programs read them.
#[test]
fn a_storage_of_a_user_is_read_as_podman_reads_it() {
    if cannot_be_another_user() || is_missing("podman") {
        return;
    }
    let layer = [
        Entry::file("own", "mine").mode(0o600),
        Entry::file("other", "theirs").mode(0o600).owner(33, 33),
        Entry::file("all", "ours").owner(33, 33),
    ];
    let image = ImageBuilder::new().layer(LayerBuilder::of(&layer)).build();
    let sandbox = Sandbox::new();
    let user = User::new(&sandbox, &image, GRANTED);
    // A process of podman stays behind otherwise, and other mounts of this machine stay in its namespace.
    let script = r#"
        trap 'podman system migrate > /dev/null 2>&1' EXIT
        podman --events-backend=none --cgroup-manager=cgroupfs pull -q oci:layout:1 > home/id || exit 7
        id=$(cat home/id)
        "$1" cat "containers-storage:$id" /other && exit 8
        podman unshare "$1" cat "containers-storage:$id" /own /other /all
    "#;
    let output = user.run(&["sh", "-c", script, "sh", &user.program()]);
    if output.status.code() == Some(7) {
        eprintln!("skipped: podman of a user does not work here: {}", said(&output));
        return;
    }
    assert_eq!(printed(&output), "minetheirsours", "{}", said(&output));
    assert!(said(&output).contains("this user must not read it\nhint: "), "{}", said(&output));
}
