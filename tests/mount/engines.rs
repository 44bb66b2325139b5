//! Images that podman, buildah and Docker keep on this machine, read where they are.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use peelfs_loopback::image::{Family, Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::tar::Entry;
use serde_json::{Value, json};
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};
use support::walk::Compare;

use super::{assert_same, everything, packed, run, tree_of};

/// The storage of an engine in a sandbox.
struct Storage<'a> {
    sandbox: &'a Sandbox,
    driver: &'static str,
    root: PathBuf,
}

impl<'a> Storage<'a> {
    fn new(sandbox: &'a Sandbox, driver: &'static str) -> Self {
        Self { sandbox, driver, root: sandbox.path().join("storage") }
    }

    /// With this image, as skopeo pulls it.
    fn with(sandbox: &'a Sandbox, driver: &'static str, image: &Image, name: &str) -> Self {
        let storage = Self::new(sandbox, driver);
        storage.pull(image, name);
        storage
    }

    fn pull(&self, image: &Image, name: &str) {
        let layout = self.sandbox.path().join("pulled");
        image.write_layout(&layout, "1").unwrap();
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", &format!("oci:{}:1", layout.display())])
            .arg(format!("containers-storage:{}{name}", self.place()))
            .env("TMPDIR", self.sandbox.path()));
        std::fs::remove_dir_all(layout).unwrap();
        // The driver mounts its directory on itself, and leaves it so.
        let _ = rustix::mount::unmount(self.root.join(self.driver), rustix::mount::UnmountFlags::DETACH);
    }

    fn place(&self) -> String {
        format!("[{}@{}+{}]", self.driver, self.root.display(), self.sandbox.path().join("run/storage").display())
    }

    fn reference(&self, name: &str) -> String {
        format!("containers-storage:{}{name}", self.place())
    }

    fn list(&self, name: &str) -> PathBuf {
        self.root.join(format!("{}-{name}/{name}.json", self.driver))
    }

    /// Changes one of the two lists.
    fn edit(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let text = std::fs::read(self.list(name)).unwrap();
        let mut list = serde_json::from_slice(&text).unwrap();
        edit(&mut list);
        std::fs::write(self.list(name), list.to_string()).unwrap();
    }

    /// Changes a field of all layers.
    fn set_of_layers(&self, field: &str, value: Value) {
        self.edit("layers", |list| {
            for layer in list.as_array_mut().unwrap() {
                layer[field] = value.clone();
            }
        });
    }

    /// The file of the image's uppermost or only layer that has it.
    fn file(&self, name: &str) -> PathBuf {
        let layers = std::fs::read_dir(self.root.join("overlay")).unwrap().map(|entry| entry.unwrap().path());
        let mut found =
            layers.map(|layer| layer.join("diff").join(name)).filter(|path| path.symlink_metadata().is_ok());
        found.next().unwrap()
    }
}

/// Entries that engines take: they refuse a tar with a name twice, and a hard link to a file of a lower layer.
fn plain() -> Vec<Vec<Entry>> {
    const REFUSED: [&[u8]; 3] = [b"twice", b"cross-link", b"usr/bin/third"];
    let mut layers = everything();
    layers.iter_mut().for_each(|layer| layer.retain(|entry| !REFUSED.contains(&&*entry.path)));
    layers
}

fn small() -> Image {
    let base = [Entry::dir("etc"), Entry::file("etc/motd", "hello\n"), Entry::file("etc/large", vec![b'x'; 700_000])];
    let top = [Entry::file("etc/motd", "above\n"), Entry::file("data", "content\n")];
    let layers = [&base[..], &top[..]].map(|layer| LayerBuilder::of(layer).packing(Packing::GZIP));
    let config = json!({ "Cmd": ["sh"] });
    layers.into_iter().fold(ImageBuilder::new().config(config), ImageBuilder::layer).build()
}

fn no_engine() -> bool {
    cannot_mount() || is_missing("skopeo")
}

#[test]
fn a_mount_from_a_storage_shows_what_the_layers_say() {
    if no_engine() {
        return;
    }
    let layers = plain();
    for driver in ["overlay", "vfs"] {
        let sandbox = Sandbox::new();
        let packings = [Packing::GZIP, Packing::ZSTD, Packing::Stored];
        let storage = Storage::with(&sandbox, driver, &packed(&layers, &packings, Family::Oci), "localhost/app:1");
        let mounted = sandbox.mount(&storage.reference("localhost/app:1"), "a");
        assert_same(driver, &tree_of(&layers), &mounted.path, Compare::Exactly);
        // The process that takes over shows the same image.
        mounted.kill_server();
        assert_same(driver, &tree_of(&layers), &mounted.path, Compare::Exactly);
        mounted.unmount();
    }
}

#[test]
fn all_commands_read_images_of_a_storage() {
    if no_engine() {
        return;
    }
    let sandbox = Sandbox::new();
    let storage = Storage::with(&sandbox, "overlay", &small(), "localhost/app:1");
    let app = storage.reference("app:1");
    let prints = |line: &[&str]| {
        let output = sandbox.run(line);
        assert!(output.status.success(), "{line:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(prints(&["cat", &app, "/etc/motd"]), "above\n");
    assert_eq!(prints(&["ls", &app, "/"]), "data\netc\n");
    assert_eq!(prints(&["find", &app, "/", "-name", "motd"]), "/etc/motd\n");
    assert_eq!(prints(&["diff", &app, &app]), "");
    prints(&["cp", &app, "/etc/large", sandbox.path().join("copy").to_str().unwrap()]);
    assert_eq!(std::fs::read(sandbox.path().join("copy")).unwrap(), vec![b'x'; 700_000]);
    let layers: Value = serde_json::from_str(&prints(&["layers", "--json", &app])).unwrap();
    assert_eq!(layers["layers"].as_array().unwrap().len(), 2);

    let shown: Value = serde_json::from_str(&prints(&["inspect", &app])).unwrap();
    let images: Value = serde_json::from_slice(&std::fs::read(storage.list("images")).unwrap()).unwrap();
    assert_eq!(shown["rebuilt_from"]["store"], *storage.root.to_str().unwrap());
    assert_eq!(shown["rebuilt_from"]["image"], images[0]["id"]);
    assert_eq!(shown["rebuilt_from"]["manifest"], images[0]["digest"]);
    assert_eq!(shown["config_digest"], format!("sha256:{}", images[0]["id"].as_str().unwrap()));
    for layer in shown["layers"].as_array().unwrap() {
        assert_eq!(layer["digest"], layer["diff_id"]);
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar");
    }

    // Ids, digests, full and short names are the same image.
    let id = images[0]["id"].as_str().unwrap();
    let digest = images[0]["digest"].as_str().unwrap();
    for name in
        ["localhost/app:1", "app:1", id, &format!("@{}", &id[..12]), &format!("sha256:{id}"), &format!("app@{digest}")]
    {
        assert_eq!(prints(&["cat", &storage.reference(name), "/data"]), "content\n", "{name}");
    }
}

/// What engines find without a path: by the file that they read, in further stores, and by a part of a name.
#[test]
fn storages_are_found_as_engines_find_them() {
    if no_engine() {
        return;
    }
    let (sandbox, further) = (Sandbox::new(), Sandbox::new());
    let own = Storage::with(&sandbox, "overlay", &small(), "r.example/team/app:1");
    let other = ImageBuilder::new().layer(LayerBuilder::new().file("a", "further")).build();
    let more = Storage::with(&further, "overlay", &other, "r.example/other:2");
    let conf = sandbox.path().join("storage.conf");
    let text = format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\n[storage.options]\nadditionalimagestores = [\"{}\"]\n",
        own.root.display(),
        more.root.display()
    );
    std::fs::write(&conf, text).unwrap();
    let cat = |name: &str, path: &str| {
        let line = ["cat", &format!("containers-storage:{name}"), path];
        sandbox.peelfs(line).env("CONTAINERS_STORAGE_CONF", &conf).output().unwrap()
    };
    assert_eq!(cat("r.example/team/app:1", "/data").stdout, b"content\n");
    assert_eq!(cat("app:1", "/data").stdout, b"content\n");
    assert_eq!(cat("other:2", "/a").stdout, b"further");
    let wrong = cat("none", "/a");
    assert_eq!(wrong.status.code(), Some(3));
    let told = said(&wrong);
    assert!(told.contains("image `none` not found in the storage `"), "{told}");
    assert!(told.contains("it has `r.example/other:2`, `r.example/team/app:1`"), "{told}");
    own.pull(&other, "q.example/app:1");
    let told = said(&cat("app:1", "/data"));
    assert!(told.contains("it holds 2 images that `app:1` could mean"), "{told}");
    assert!(told.contains("write one of `q.example/app:1`, `r.example/team/app:1`"), "{told}");
}

#[test]
fn a_changed_file_of_a_layer_is_an_error_that_names_it() {
    if no_engine() {
        return;
    }
    for (change, wanted) in [
        ("same size", "/etc/large` was changed after it was unpacked\n"),
        ("longer", "/etc/large` was changed after it was unpacked: it has 700001 bytes instead of 700000"),
        ("a link out", "/etc/large` was changed after it was unpacked: it is a symbolic link"),
        ("a pipe", "/etc/large` was changed after it was unpacked: it is not a regular file"),
        ("gone", "/etc/large` not found in layer `"),
    ] {
        let sandbox = Sandbox::new();
        let storage = Storage::with(&sandbox, "overlay", &small(), "localhost/app:1");
        let large = storage.file("etc/large");
        match change {
            "same size" => std::fs::write(&large, vec![b'y'; 700_000]).unwrap(),
            "longer" => std::fs::write(&large, vec![b'x'; 700_001]).unwrap(),
            _ => std::fs::remove_file(&large).unwrap(),
        }
        match change {
            "a link out" => {
                std::fs::write(sandbox.path().join("secret"), vec![b'x'; 700_000]).unwrap();
                std::os::unix::fs::symlink(sandbox.path().join("secret"), &large).unwrap();
            }
            "a pipe" => run(Command::new("mkfifo").arg(&large)),
            _ => {}
        }
        let output = sandbox.run(["cat", &storage.reference("app:1"), "/etc/large"]);
        assert!(!output.status.success() && output.stdout.is_empty(), "{change}");
        assert!(said(&output).contains(wanted), "{change}: {}", said(&output));
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(told.lines().count(), 2, "an error and a hint: {told}");
        assert!(told.contains("hint: the engine has removed or changed it"), "{told}");
        let at = sandbox.path().join("mnt/changed");
        std::fs::create_dir(&at).unwrap();
        let output = sandbox.run(["mount", "--wait", &storage.reference("app:1"), at.to_str().unwrap()]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !told.contains("warning"), "{told}");
    }
}

#[test]
fn a_file_that_is_changed_under_a_mount_is_named() {
    if no_engine() {
        return;
    }
    let sandbox = Sandbox::new();
    let storage = Storage::with(&sandbox, "overlay", &small(), "localhost/app:1");
    sandbox.mount(&storage.reference("app:1"), "a").unmount();
    sandbox.drop_content();
    let mounted = sandbox.mount_with(&storage.reference("app:1"), "a", &["--prefetch", "none"]);
    let large = storage.file("etc/large");
    let before = std::fs::read(&large).unwrap();
    std::fs::write(&large, vec![b'y'; before.len()]).unwrap();
    assert!(std::fs::read(mounted.join("etc/large")).is_err());
    let told = String::from_utf8(sandbox.run(["status", mounted.path.to_str().unwrap()]).stdout).unwrap();
    assert!(
        told.contains("/etc/large` was changed after it was unpacked; the engine has removed or changed"),
        "{told}"
    );
    // Other files are read as ever, and this one again once it is as it was.
    assert_eq!(std::fs::read(mounted.join("data")).unwrap(), b"content\n");
    std::fs::write(&large, &before).unwrap();
    assert_eq!(std::fs::read(mounted.join("etc/large")).unwrap(), before);
    mounted.unmount();
}

#[test]
fn a_name_without_its_tag_and_a_short_id_are_hinted_at() {
    if no_engine() {
        return;
    }
    let sandbox = Sandbox::new();
    let storage = Storage::with(&sandbox, "overlay", &small(), "localhost/app:1");
    let listed: Value = serde_json::from_slice(&std::fs::read(storage.list("images")).unwrap()).unwrap();
    let id = listed[0]["id"].as_str().unwrap().to_owned();
    let hint = |name: &str| {
        let output = sandbox.run(["ls", &storage.reference(name)]);
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        let told = String::from_utf8(output.stderr).unwrap();
        told.lines().nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(hint("app"), "hint: did you mean `app:1`?");
    assert_eq!(hint("localhost/app:2"), "hint: did you mean `localhost/app:1`?");
    assert!(hint("other").contains("each user has a storage"));
    let short = format!("hint: an id needs three digits at least: `{}`", &id[..12]);
    assert_eq!(hint(&id[..2]), short);
    // A second image whose id begins likewise.
    let other = format!("{}{}", &id[..4], if id.ends_with('0') { "1" } else { "0" }.repeat(60));
    storage.edit("images", |images| {
        let mut second = images[0].clone();
        (second["id"], second["names"]) = (other.clone().into(), serde_json::json!(["localhost/app:2"]));
        images.as_array_mut().unwrap().push(second);
    });
    assert_eq!(hint("app"), "hint: did you mean one of `app:1`, `app:2`?");
    let output = sandbox.run(["ls", &storage.reference(&format!("@{}", &id[..4]))]);
    let told = said(&output);
    assert!(!output.status.success() && told.contains("it holds 2 images that"), "{told}");
    for id in [&id, &other] {
        assert!(
            told.contains("hint: write more of its id: one of ") && told.contains(&format!("`{}`", &id[..12])),
            "{told}"
        );
    }
}

#[test]
fn an_image_that_is_removed_under_a_mount_is_an_error() {
    if no_engine() {
        return;
    }
    let sandbox = Sandbox::new();
    let storage = Storage::with(&sandbox, "overlay", &small(), "localhost/app:1");
    let mounted = sandbox.mount(&storage.reference("app:1"), "a");
    assert_eq!(std::fs::read(mounted.join("data")).unwrap(), b"content\n");
    std::fs::remove_dir_all(storage.root.join("overlay")).unwrap();
    // What is cached is read as ever.
    assert_eq!(std::fs::read(mounted.join("data")).unwrap(), b"content\n");
    mounted.unmount();
    sandbox.drop_content();
    let output = sandbox.run(["cat", &storage.reference("app:1"), "/data"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
}

#[test]
fn broken_lists_and_layers_of_a_storage_are_refused() {
    if no_engine() {
        return;
    }
    type Break = fn(&Storage<'_>);
    let table: &[(&str, Break, &str)] = &[
        ("no list", |s| std::fs::write(s.list("images"), "{").unwrap(), "is not a list of containers/storage"),
        ("null", |s| std::fs::write(s.list("images"), "null").unwrap(), "it has no image"),
        ("huge", |s| std::fs::File::create(s.list("layers")).unwrap().set_len(1 << 40).unwrap(), "is larger than the"),
        (
            "an id that leads out",
            |s| s.edit("images", |list| list[0]["id"] = "../../x".into()),
            "its id is not a file name",
        ),
        (
            "an unknown layer",
            |s| s.edit("images", |list| list[0]["layer"] = "none".into()),
            "layer `none` is not in its list of layers",
        ),
        (
            "a loop",
            |s| {
                s.edit("layers", |list| {
                    let [one, two] = [&list[0], &list[1]].map(|layer| layer["id"].clone());
                    (list[0]["parent"], list[1]["parent"]) = (two, one);
                });
            },
            "is below 1000 others, or below itself",
        ),
        (
            "a layer that leads out",
            |s| {
                s.edit("layers", |list| list.as_array_mut().unwrap().push(json!({ "id": "../x" })));
                s.edit("images", |list| list[0]["layer"] = "../x".into());
            },
            "has an id that is not a file name",
        ),
        ("a missing layer", |s| s.set_of_layers("parent", "".into()), "2 diff_ids"),
        (
            "another layer",
            |s| s.set_of_layers("diff-digest", format!("sha256:{}", "0".repeat(64)).into()),
            "it is another layer than sha256:",
        ),
        ("incomplete", |s| s.set_of_layers("flags", json!({ "incomplete": true })), "an engine has not finished it"),
        ("no tar-split", |s| tar_splits(s, |path| std::fs::remove_file(path).unwrap()), "it has no tar-split data"),
        (
            "no gzip",
            |s| tar_splits(s, |path| std::fs::write(path, "x").unwrap()),
            "its tar-split data is not usable: it cannot be read",
        ),
        ("another size", |s| s.set_of_layers("diff-size", 512.into()), "and the layer has 512"),
        (
            "composefs",
            |s| {
                for layer in std::fs::read_dir(s.root.join("overlay")).unwrap() {
                    let _ = std::fs::create_dir(layer.unwrap().path().join("composefs-data"));
                }
            },
            "its files are kept for composefs",
        ),
        (
            "another configuration",
            |s| {
                for entry in std::fs::read_dir(s.root.join("overlay-images")).unwrap() {
                    for file in std::fs::read_dir(entry.unwrap().path()).into_iter().flatten().flatten() {
                        if file.file_name().to_string_lossy().starts_with('=')
                            && std::fs::read_to_string(file.path()).unwrap().contains("rootfs")
                        {
                            std::fs::write(file.path(), "{}").unwrap();
                        }
                    }
                }
            },
            "its configuration is not what its digest",
        ),
    ];
    for (what, damage, wanted) in table {
        let sandbox = Sandbox::new();
        let storage = Storage::with(&sandbox, "overlay", &small(), "localhost/app:1");
        damage(&storage);
        let output = sandbox.run(["cat", &storage.reference("app:1"), "/data"]);
        let told = said(&output);
        assert!(!output.status.success() && told.contains(wanted), "{what}: {told}");
        assert_eq!(told.matches("error: ").count(), 1, "{what}: {told}");
    }
}

fn tar_splits(storage: &Storage<'_>, change: impl Fn(&Path)) {
    for entry in std::fs::read_dir(storage.root.join("overlay-layers")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().ends_with(".tar-split.gz") {
            change(&path);
        }
    }
}

/// Data that describes another file than the layer has: what is read is verified, and nothing outside is opened.
#[test]
fn forged_tar_split_data_shows_nothing_of_the_machine() {
    if no_engine() {
        return;
    }
    let sandbox = Sandbox::new();
    let storage = Storage::with(&sandbox, "overlay", &small(), "localhost/app:1");
    let secret = sandbox.path().join("secret");
    std::fs::write(&secret, "content\n").unwrap();
    std::os::unix::fs::symlink(sandbox.path(), storage.file("data").with_file_name("out")).unwrap();
    let up = format!("..{}", secret.display());
    for name in [secret.to_str().unwrap(), "../../../../secret", "out/secret", up.as_str()] {
        tar_splits(&storage, |path| forge(path, name));
        let output = sandbox.run(["cat", &storage.reference("app:1"), "/data"]);
        assert!(said(&output).contains("not found in layer"), "{name}: {}", said(&output));
    }
}

/// Renames `data`.
fn forge(path: &Path, name: &str) {
    use std::io::{Read as _, Write as _};
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        if line["size"] == 8 {
            line["name"] = name.into();
        }
        format!("{line}\n")
    });
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(lines.collect::<String>().as_bytes()).unwrap();
    std::fs::write(path, packed.finish().unwrap()).unwrap();
}

/// A user reads the storage of that user; files of other ids are read as podman's programs do, and root's not at all.
#[test]
fn a_user_reads_the_storage_of_that_user() {
    if no_engine() || ["setpriv", "podman"].into_iter().any(is_missing) {
        return;
    }
    let sandbox = Sandbox::new();
    let storage = Storage::with(&sandbox, "overlay", &small(), "localhost/app:1");
    let other = Other::new();
    let own = &other.sandbox;
    let as_user = |reference: &str| other.run(&["cat", reference, "/data"]);
    let told = said(&as_user(&storage.reference("app:1")));
    assert!(told.contains("this user must not read it") || told.contains("Permission denied"), "{told}");

    let none = as_user("containers-storage:app:1");
    assert_eq!(none.status.code(), Some(3), "{}", said(&none));
    assert!(said(&none).contains("home/.local/share/containers/storage`"), "{}", said(&none));
    let home = own.path().join("home/.local/share/containers");
    std::fs::create_dir_all(&home).unwrap();
    run(Command::new("cp").arg("-a").arg(&storage.root).arg(home.join("storage")));
    other.own(&own.path().join("home"));
    let read = as_user("containers-storage:app:1");
    assert_eq!(read.stdout, b"content\n", "{}", said(&read));
    // As a file of another id of the user's containers.
    let data = Storage { sandbox: own, driver: "overlay", root: home.join("storage") }.file("data");
    std::os::unix::fs::chown(&data, Some(100_000), Some(100_000)).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o600)).unwrap();
    run(Command::new("rm").arg("-rf").arg(own.path().join("home/.cache")));
    let told = said(&as_user("containers-storage:app:1"));
    assert!(
        told.contains("/data` cannot be used: this user must not read it") && told.contains("podman unshare"),
        "{told}"
    );
}

/// A user other than root, with a program and a home.
struct Other {
    sandbox: Sandbox,
}

impl Other {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        for name in ["", "home", "run", "mnt"] {
            std::os::unix::fs::chown(sandbox.path().join(name), Some(65_534), Some(65_534)).unwrap();
        }
        let program = sandbox.path().join("peelfs");
        std::fs::copy(support::sandbox::program(), &program).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { sandbox }
    }

    fn run(&self, line: &[&str]) -> std::process::Output {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(self.sandbox.path().join("peelfs"));
        command.args(line).env_clear().env("HOME", self.sandbox.path().join("home"));
        command.env("XDG_RUNTIME_DIR", self.sandbox.path().join("run")).current_dir("/").stdin(Stdio::null());
        command.output().unwrap()
    }

    /// Gives this directory to the user.
    fn own(&self, path: &Path) {
        run(Command::new("chown").args(["-R", "65534:65534"]).arg(path));
    }
}

/// An image as Docker keeps it, made of one that podman keeps: both unpack alike, under other names.
fn docker_storage(storage: &Storage<'_>, at: &Path) -> String {
    let list = |name: &str| serde_json::from_slice::<Value>(&std::fs::read(storage.list(name)).unwrap()).unwrap();
    let (images, layers) = (list("images"), list("layers"));
    let id = images[0]["id"].as_str().unwrap();
    let image = at.join("image/overlay2");
    let config = storage.root.join("overlay-images").join(id);
    let is_config = |text: &String| text.contains("diff_ids");
    let mut texts =
        std::fs::read_dir(config).unwrap().map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let config = texts.find(is_config).unwrap();
    std::fs::create_dir_all(image.join("imagedb/content/sha256")).unwrap();
    std::fs::write(image.join("imagedb/content/sha256").join(id), &config).unwrap();
    let name = json!({ "Repositories": { "app": { "app:1": format!("sha256:{id}") } } });
    std::fs::write(image.join("repositories.json"), name.to_string()).unwrap();

    let config: Value = serde_json::from_str(&config).unwrap();
    let mut chain = String::new();
    for (number, diff_id) in config["rootfs"]["diff_ids"].as_array().unwrap().iter().enumerate() {
        let diff_id = diff_id.as_str().unwrap();
        chain = match number {
            0 => diff_id.to_owned(),
            _ => peelfs::digest::Digest::of(peelfs::digest::Algorithm::Sha256, format!("{chain} {diff_id}").as_bytes())
                .to_string(),
        };
        let own = layers.as_array().unwrap().iter().find(|layer| layer["diff-digest"] == *diff_id).unwrap();
        let own = own["id"].as_str().unwrap();
        let dir = image.join("layerdb/sha256").join(&chain["sha256:".len()..]);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("diff"), diff_id).unwrap();
        std::fs::write(dir.join("cache-id"), format!("cache{number}")).unwrap();
        let tar_split = storage.root.join("overlay-layers").join(format!("{own}.tar-split.gz"));
        std::fs::copy(tar_split, dir.join("tar-split.json.gz")).unwrap();
        let files = at.join("overlay2").join(format!("cache{number}"));
        std::fs::create_dir_all(&files).unwrap();
        run(Command::new("cp").arg("-a").arg(storage.root.join("overlay").join(own).join("diff")).arg(files));
    }
    id.to_owned()
}

#[test]
fn images_of_docker_are_read_where_they_are() {
    if no_engine() || is_missing("setpriv") {
        return;
    }
    let sandbox = Sandbox::new();
    let storage = Storage::with(&sandbox, "overlay", &small(), "docker.io/library/app:1");
    let other = Other::new();
    let docker = other.sandbox.path().join("home/.local/share/docker");
    let id = docker_storage(&storage, &docker);
    other.own(&other.sandbox.path().join("home"));
    for name in ["app:1", "docker.io/library/app:1", &id[..12], &format!("sha256:{id}")] {
        let read = other.run(&["cat", &format!("docker-daemon:{name}"), "/data", "/etc/motd"]);
        assert_eq!(read.stdout, b"content\nabove\n", "{name}: {}", said(&read));
    }
    let shown: Value = serde_json::from_slice(&other.run(&["inspect", "docker-daemon:app:1"]).stdout).unwrap();
    assert_eq!(shown["rebuilt_from"], json!({ "store": docker, "image": id, "manifest": null }));
    assert_eq!(shown["config_digest"], format!("sha256:{id}"));
    let root = shown["root"]["digest"].as_str().unwrap();
    assert_eq!(other.run(&["cat", &format!("docker-daemon:app@{root}"), "/data"]).stdout, b"content\n");

    let none = other.run(&["cat", "docker-daemon:none", "/data"]);
    assert_eq!(none.status.code(), Some(3));
    assert!(
        said(&none).contains("not found in Docker's storage") && said(&none).contains("it has `app:1`"),
        "{}",
        said(&none)
    );
    std::fs::write(docker.join("overlay2/cache0/diff/etc/large"), "short").unwrap();
    let changed = other.run(&["sha256sum", "docker-daemon:app:1", "/etc/large"]);
    assert!(changed.status.success(), "cached: {}", said(&changed));
    std::fs::remove_dir_all(other.sandbox.path().join("home/.cache")).unwrap();
    let changed = said(&other.run(&["sha256sum", "docker-daemon:app:1", "/etc/large"]));
    assert!(
        changed.contains("/etc/large` was changed after it was unpacked: it has 5 bytes instead of 700000"),
        "{changed}"
    );
}

/// Answers each request on a socket with what `answer` makes of its path.
fn daemon(socket: &Path, answer: impl Fn(&str) -> (u16, Vec<u8>) + Send + 'static) {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let Some(first) = lines.next() else { continue };
            lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
            let (status, body) = answer(first.split(' ').nth(1).unwrap());
            let _ = write!(stream, "HTTP/1.1 {status} Said\r\ntransfer-encoding: chunked\r\n\r\n");
            for chunk in body.chunks(100_000) {
                let _ = write!(stream, "{:x}\r\n", chunk.len());
                let _ = stream.write_all(chunk);
                let _ = stream.write_all(b"\r\n");
            }
            let _ = stream.write_all(b"0\r\n\r\n");
        }
    });
}

#[test]
fn the_docker_daemon_is_asked_for_what_is_not_readable() {
    if no_engine() {
        return;
    }
    let sandbox = Sandbox::new();
    let (layout, archive) = (sandbox.path().join("layout"), sandbox.path().join("saved.tar"));
    small().write_layout(&layout, "1").unwrap();
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "-q", &format!("oci:{}:1", layout.display())])
        .arg(format!("docker-archive:{}:app:1", archive.display())));
    let saved = std::fs::read(&archive).unwrap();
    let socket = sandbox.path().join("docker.sock");
    daemon(&socket, move |path| match path {
        "/images/docker.io/library/app:1/get" => (200, saved.clone()),
        "/images/docker.io/library/cut:1/get" => (200, saved[..10_000].to_vec()),
        "/images/docker.io/library/ill:1/get" => (500, b"out of \x1b order".to_vec()),
        _ => (404, br#"{"message":"No such image"}"#.to_vec()),
    });
    let host = format!("unix://{}", socket.display());
    // The same through a pipe.
    let mut piped = sandbox.peelfs(["cat", "-", "/data"]);
    let output = piped.stdin(std::fs::File::open(&archive).unwrap()).output().unwrap();
    assert_eq!(output.stdout, b"content\n", "{}", said(&output));
    let ask = |line: &[&str]| sandbox.peelfs(line).env("DOCKER_HOST", &host).output().unwrap();
    let read = ask(&["cat", "docker-daemon:app:1", "/data", "/etc/motd"]);
    assert_eq!(read.stdout, b"content\nabove\n", "{}", said(&read));
    let at = sandbox.mount_point("a");
    let mounted = ask(&["mount", "--wait", "docker-daemon:app:1", at.path.to_str().unwrap()]);
    assert!(mounted.status.success(), "{}", said(&mounted));
    assert_eq!(std::fs::read(at.join("data")).unwrap(), b"content\n");
    at.kill_server();
    assert_eq!(std::fs::read(at.join("etc/motd")).unwrap(), b"above\n");
    at.unmount();

    for (name, code, wanted) in [
        ("none:1", 3, "image `docker.io/library/none:1` not found in the Docker daemon at `"),
        ("cut:1", 1, "is cut short"),
        ("ill:1", 6, "500 Internal Server Error: out of \\u{1b} order"),
    ] {
        let output = ask(&["cat", &format!("docker-daemon:{name}"), "/data"]);
        assert!(output.status.code() == Some(code) && said(&output).contains(wanted), "{name}: {}", said(&output));
    }
    for (host, code, wanted) in [
        (
            "unix:///nonexistent/docker.sock",
            6,
            "hint: start Docker, name its socket with DOCKER_HOST, or pipe the image",
        ),
        ("tcp://127.0.0.1:2375", 1, "only daemons with a Unix socket are asked"),
    ] {
        let output = sandbox.peelfs(["cat", "docker-daemon:app:1", "/data"]).env("DOCKER_HOST", host).output().unwrap();
        assert!(output.status.code() == Some(code) && said(&output).contains(wanted), "{host}: {}", said(&output));
    }
}
