//! The command line as users and scripts see it: output, streams and exit codes.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Output, Stdio};

use base64::Engine as _;
use insta::assert_snapshot;
use peelfs::digest::{Algorithm, Digest};
use peelfs_loopback::auth::Access;
use peelfs_loopback::image::{Image, ImageBuilder, IndexBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry, Settings};
use peelfs_loopback::tar::{Entry, Header, append_padded, append_pax};

use support::sandbox::{Sandbox, said};

use crate::user::User;

pub(super) fn small() -> Image {
    let base = LayerBuilder::new()
        .dir("etc")
        .file("etc/motd", "hello\n")
        .file("etc/removed", "gone\n")
        .entry(Entry::file("etc/shadow", "secret\n").mode(0o4640).owner(0, 42).mtime(1_700_000_000, 123_456_789))
        .symlink("etc/mtab", "../proc/mounts")
        .dir("bin")
        .hard_link("bin/motd", "etc/motd");
    let top = LayerBuilder::new()
        .whiteout("etc/removed")
        .entry(Entry::char_device("dev/null", 1, 3).mode(0o666))
        .entry(Entry::file(&b"bin/\x1b[31mred"[..], "").mode(0o755));
    ImageBuilder::new().layer(base).layer(top).config(serde_json::json!({ "Cmd": ["/bin/sh"] })).build()
}

fn registry(image: &Image) -> Registry {
    Registry::start(Catalog::new().image("library/app", "1", image)).unwrap()
}

#[test]
fn an_image_that_is_cached_by_tag_is_cached_by_digest() {
    let image = small();
    let registry = Registry::start(Catalog::new().image("library/image", "1", &image)).unwrap();
    let user = User::at(&registry);
    let tagged = registry.reference("library/image", "1");
    let listed = user.prints(&["ls", &tagged]);
    let digest = &image.root().digest;
    for pinned in [registry.pinned("library/image", digest), format!("{tagged}@{digest}")] {
        let ran = user.run(&["ls", "--offline", &pinned]);
        assert!(ran.text.contains(&listed), "{pinned}: {}", ran.text);
    }
}

#[test]
fn a_process_behind_mounts_cannot_be_started_by_hand() {
    for role in ["keeper", "server", "alone"] {
        let ran = User::new().run(&["host", role]);
        assert_eq!(ran.output.status.code(), Some(2), "{}", ran.text);
        assert!(ran.text.contains("`peelfs host` is for peelfs itself"), "{}", ran.text);
    }
}

#[test]
fn help_fits_on_a_screen() {
    let user = User::new();
    assert_snapshot!(user.prints(&["--help"]), @r#"
    Mounts any OCI image as a directory, lazily and verified

    Usage: peelfs <COMMAND>

    Commands:
      mount         Mount an image on a directory
      run           Run a container from an image, with runc or crun
      bundle        Make an OCI runtime bundle from an image, for runc and crun
      umount        Unmount what peelfs mounted
      ls            List a directory of an image, without mounting it
      find          Find files in an image by name, type, size, mode, owner or time, as find(1) does
      du            Show how much space the files of an image take, by directory or by layer
      tree          Draw a directory of an image with all that is in it
      stat          Show metadata: times, owners, extended attributes, the layer
      cat           Print files of an image
      grep          Search files of an image
      sha256sum     Print digests of files, as `sha256sum -c` checks them
      diff          Show what differs between two images
      layers        Show what each layer is made by, adds, changes, removes and wastes
      which         Show which layers have had a path, and whose version is shown
      cp            Copy files out of an image, with their metadata
      inspect       Describe an image as one JSON object
      verify-image  Check whether an image is signed; also a verifier for containerd and peelfs
      cache         Show, verify and prune the cache
      index         Push, export and import the layer indexes of an image
      profile       Export, import and forget what runs of an image read first: its start-up profiles
      store         Show images to podman, buildah and CRI-O without pulling them
      status        Show mounts and their progress
      top           Watch what mounts fetch and why, and which programs wait
      web           Serve a web page with the same, and a map of each image and what was fetched of it
      upgrade       Let this version of peelfs serve existing mounts, without unmounting
      snapshotter   Serve containerd as a snapshotter that mounts images instead of unpacking them
      csi           Serve Kubernetes as a CSI plugin: volumes that show images
      doctor        Check what works on this machine, and say how to get what does not
      version       Print the version, of which commit it is, and how it was built
      help          Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help
      -V, --version  Print version

    Examples:
      peelfs mount python:3.12-slim ./python    mount an image; fetches only what is read
      peelfs umount ./python                    and unmount it
      peelfs run -it alpine sh                  run a container from an image
      peelfs ls -l python:3.12-slim /usr/bin    look into an image without mounting it
      peelfs find alpine / -perm -4000          and find, du, tree, stat, grep, sha256sum
      peelfs diff app:1.3 app:1.4               what differs between two images
      peelfs cat alpine /etc/os-release         print a file of an image
      peelfs inspect oci:./layout:latest        everything about an image, as JSON

    Images are named as podman, docker and skopeo name them: NAME[:TAG][@DIGEST], docker://NAME,
    oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], dir:DIR,
    containers-storage:NAME (podman, buildah, CRI-O), docker-daemon:NAME, - (a piped archive).

    Exit codes: 0 done, 1 failure, 2 usage, 3 not found, 4 authentication, 5 verification, 6 network.
    "#);
}

#[test]
fn help_of_a_command_names_its_options() {
    let user = User::new();
    assert_snapshot!(user.prints(&["cat", "-h"]), @r#"
    Print files of an image

    Usage: peelfs cat [OPTIONS] <IMAGE> <PATH>...

    Arguments:
      <IMAGE>    The image: NAME[:TAG][@DIGEST], docker://NAME, oci:DIR, oci-archive:FILE,
                 docker-archive:FILE, dir:DIR, containers-storage:NAME, docker-daemon:NAME
      <PATH>...  Files in the image

    Options:
      -q, --quiet  Show no progress; `grep` and `diff` print nothing at all, and the exit code tells
      -h, --help   Print help (see more with '--help')

    Image:
          --index <WHICH>             Which indexes of layers to use besides those that this machine has
                                      made [env: PEELFS_INDEX] [default: auto] [possible values: auto,
                                      own, foreign, none]
          --artifact                  Show the layers of an image as files, one each; artifacts are
                                      shown as files without it
          --index-from <REPO>         Where this machine has no index of a layer, use the one that
                                      `peelfs index push` or SOCI has put into REPO, or, for
                                      `referrers`, into the image's own repository; its writers are
                                      trusted for names, attributes and content [env: PEELFS_INDEX_FROM]
          --index-verifier-dir <DIR>  Use such indexes only if the verifiers in this directory allow the
                                      artifact that they are in [default: /etc/peelfs/index-verifiers,
                                      if there is one] [env: PEELFS_INDEX_VERIFIER_DIR]
          --platform <PLATFORM>       Choose OS/ARCH[/VARIANT] instead of this machine's platform [env:
                                      PEELFS_PLATFORM]
          --offline                   Use only what is cached; never use the network
          --verifier-dir <DIR>        Run the verifiers in this directory to decide whether the image
                                      may be used, as containerd does [default: /etc/peelfs/verifiers]
                                      [env: PEELFS_VERIFIER_DIR]
          --layer <N>                 Use only layer N, as a lower directory of overlayfs: its number as
                                      in `peelfs inspect` (1 is the lowest), or at least the first 6
                                      digits of its digest

    Registry:
          --insecure            Allow plain HTTP and unverified TLS (loopback registries need no
                                permission) [env: PEELFS_INSECURE]
          --ca <FILE>           Also trust the certificates in this PEM file
          --authfile <FILE>     Read credentials from this file instead of those of podman and docker
          --mirror <MIRROR>     Ask a mirror before the registry: [REGISTRY=]HOST[:PORT] or
                                [REGISTRY=]URL, of any registry if none is named; can be repeated.
                                `none` also keeps files of mirrors from being read [env: PEELFS_MIRROR]
          --hosts-dir <DIR>     Read hosts.toml files of mirrors from this directory, as in
                                DIR/docker.io/hosts.toml [default: /etc/containerd/certs.d and
                                /etc/docker/certs.d] [env: PEELFS_HOSTS_DIR]
          --on-outage <POLICY>  How long to wait for a registry that does not answer:
                                `deadline=SECONDS`, `block` or `offline` [default: deadline=60]

    Cache:
          --cache-dir <DIR>    Keep layers in this directory [default: $XDG_CACHE_HOME/peelfs] [env:
                               PEELFS_CACHE_DIR]
          --cache-size <SIZE>  Limit the disk space of layers, as in 20GiB [env: PEELFS_CACHE_SIZE]
    "#);
}

#[test]
fn mistakes_are_named_with_a_hint_and_an_exit_code() {
    let registry = registry(&small());
    let user = User::at(&registry);
    let image = registry.reference("library/app", "1");
    let other = registry.reference("library/app", "2");
    let run = |line: &[&str]| user.run(line).text;
    assert_snapshot!(run(&["ls", "UPPER/Case"]), @r#"
    --- stderr
    error: `UPPER/Case` is not an image reference: repository names are lower case
    hint: did you mean `upper/case`?
    --- exit 2
    "#);
    assert_snapshot!(run(&["ls", "https://example.com/app"]), @r#"
    --- stderr
    error: `https://example.com/app` is not an image reference: it is a URL
    hint: leave the scheme out: `example.com/app`
    --- exit 2
    "#);
    assert_snapshot!(run(&["ls", "--colour", "app"]), @r#"
    --- stderr
    error: unexpected argument '--colour' found

      tip: a similar argument exists: '--color'

    Usage: peelfs ls --color[=<WHEN>] <IMAGE> [PATH]...

    For more information, try '--help'.
    --- exit 2
    "#);
    assert_snapshot!(run(&["ls", &other]), @r#"
    --- stderr
    error: manifest `2` not found in registry.test/library/app: 404 Not Found (MANIFEST_UNKNOWN: manifest unknown)
    hint: the only tag of registry.test/library/app is `1`
    --- exit 3
    "#);
    assert_snapshot!(run(&["ls", "--platform", "linux/riscv64", &image]), @r#"
    --- stderr
    error: registry.test/library/app:1: there is no image for linux/riscv64; it offers linux/amd64
    hint: choose one with `--platform linux/amd64`
    --- exit 3
    "#);
    assert_snapshot!(run(&["ls", "--platform", "riscv", &image]), @r#"
    --- stderr
    error: `riscv` is not a platform: it is neither an operating system nor an architecture that is known
    hint: write OS/ARCHITECTURE[/VARIANT], as in `linux/arm64` or `linux/arm/v7`
    --- exit 2
    "#);
    assert_snapshot!(run(&["ls", &image, "/nowhere"]), @r#"
    --- stderr
    error: cannot list `/nowhere`: no such file or directory
    --- exit 3
    "#);
    assert_snapshot!(run(&["cat", &image, "/etc", "/etc/motd"]), @r#"
    hello
    --- stderr
    error: cannot print `/etc`: is a directory
    --- exit 1
    "#);
    assert_snapshot!(run(&["cp", &image, "/nowhere", "copy"]), @r#"
    --- stderr
    error: cannot copy `/nowhere`: no such file or directory
    --- exit 3
    "#);
    assert_snapshot!(run(&["cp", &image, "/etc", "no/such/place"]), @r#"
    --- stderr
    error: cannot copy to `no/such/place`: there is no directory `no/such`
    hint: make it with `mkdir -p no/such`
    --- exit 3
    "#);
    assert_snapshot!(run(&["ls", "--offline", &other]), @r#"
    --- stderr
    error: registry.test/library/app:2 is not in the cache, and the network may not be used
    hint: run it once without `--offline` to fetch it
    --- exit 3
    "#);
    assert_snapshot!(run(&["ls", "oci:nowhere"]), @r#"
    --- stderr
    error: cannot read nowhere: No such file or directory (os error 2)
    --- exit 3
    "#);
    small().write_layout(&user.path("layout"), "1").unwrap();
    assert_snapshot!(run(&["ls", "oci:layout:2"]), @r#"
    --- stderr
    error: image `2` not found in oci:layout:2: it has `1`
    --- exit 3
    "#);
    assert_snapshot!(run(&["ls", "--authfile", "nowhere", &image]), @r#"
    --- stderr
    error: cannot read the credentials in `nowhere`: No such file or directory (os error 2)
    --- exit 3
    "#);
    assert_snapshot!(run(&["verify-image", "--key", "nowhere", &image]), @r"
    --- stderr
    error: cannot read `nowhere`: No such file or directory (os error 2)
    --- exit 3
    ");
    assert_snapshot!(run(&["verify-image", "--config", "nowhere", &image]), @r"
    --- stderr
    error: cannot read `nowhere`: No such file or directory (os error 2)
    hint: name a key with `--key`, or write a configuration of images and their keys (`--config`)
    --- exit 3
    ");
    assert_snapshot!(run(&["index", "push", "--sign-key", "nowhere", &image]), @r"
    --- stderr
    error: cannot read the private key `nowhere`: No such file or directory (os error 2)
    --- exit 3
    ");
    assert_snapshot!(run(&["ls", "--hosts-dir", "nowhere", &image]), @r"
    --- stderr
    error: hosts.toml files cannot be read from `nowhere`: there is no such directory
    hint: correct `--hosts-dir` or PEELFS_HOSTS_DIR, or read no such files with `--mirror none`
    --- exit 3
    ");
    assert_snapshot!(run(&["cache", "drop", "--content", &other]), @r#"
    --- stderr
    error: registry.test/library/app:2 is not in the cache, and the network may not be used
    hint: name it as it was mounted, or drop what is cached of all with `--all`
    --- exit 3
    "#);
    assert_snapshot!(run(&["index", "import", "layout/oci-layout"]), @r#"
    --- stderr
    error: cannot import `layout/oci-layout`: not a file of exported indexes: unknown header
    --- exit 5
    "#);
    assert_snapshot!(run(&["profile", "import", "layout/oci-layout"]), @r#"
    --- stderr
    error: `layout/oci-layout` holds no profiles of peelfs: missing field `peelfs_profiles` at line 1 column 30
    --- exit 5
    "#);
    assert_snapshot!(run(&["status", "."]), @r#"
    --- stderr
    error: nothing is mounted on `.`
    hint: `peelfs status` lists what peelfs has mounted
    --- exit 3
    "#);
    assert_snapshot!(run(&["cache", "prune", "--to", "much"]), @r#"
    --- stderr
    error: invalid value 'much' for '--to <SIZE>': `much` is not a size; write it as 20GiB, 500M or 1000000

    For more information, try '--help'.
    --- exit 2
    "#);
}

/// A layout, an archive or a directory has the name that is looked up in a registry.
#[test]
fn an_image_that_is_here_by_that_name_is_hinted_at() {
    let registry = registry(&small());
    let user = User::at(&registry);
    let lone = format!("{}/lay", registry.addr());
    small().write_layout(&user.path(&lone), "1").unwrap();
    small().write_layout(&user.path("Lay"), "1").unwrap();
    let run = |line: &[&str]| user.run(line).text;
    assert_snapshot!(run(&["ls", &format!("{lone}:1")]), @r#"
    --- stderr
    error: manifest `1` not found in registry.test/lay: 404 Not Found (MANIFEST_UNKNOWN: manifest unknown)
    hint: `registry.test/lay` here is an image layout: name it `oci:registry.test/lay:1`
    --- exit 3
    "#);
    assert_snapshot!(run(&["inspect", "Lay"]), @r#"
    --- stderr
    error: `Lay` is not an image reference: repository names are lower case
    hint: `Lay` here is an image layout: name it `oci:Lay`
    --- exit 2
    "#);
    assert_snapshot!(run(&["cat", "./Lay:1", "/etc/motd"]), @r#"
    --- stderr
    error: `./Lay:1` is not an image reference: it is a path
    hint: `./Lay` here is an image layout: name it `oci:./Lay:1`
    --- exit 2
    "#);
    std::fs::create_dir(user.path("mnt")).unwrap();
    let mount = run(&["mount", &lone, "mnt"]);
    assert!(mount.contains("hint: `registry.test/lay` here is an image layout"), "{mount}");
    // It is in the registry as well: that one is used, with a note.
    let both = registry.reference("library/app", "1");
    small().write_layout(&user.path(both.trim_end_matches(":1")), "1").unwrap();
    let listed = user.run(&["ls", &both, "/etc"]);
    assert!(listed.output.status.success(), "{}", listed.text);
    let note = "note: that was an image of a registry; `registry.test/library/app` here is an image layout";
    assert!(listed.text.contains(note), "{}", listed.text);
    // A directory with other content, such as the mount point, is ignored.
    std::fs::remove_file(user.path(both.trim_end_matches(":1")).join("oci-layout")).unwrap();
    assert!(user.run(&["ls", &both, "/etc"]).output.stderr.is_empty());
}

#[test]
fn a_registry_that_wants_a_password_is_an_error_of_its_own() {
    let access = Access::Basic { user: "me".into(), password: "secret".into() };
    let catalog = Catalog::new().image("library/app", "1", &small());
    let registry = Registry::start_with(Settings { catalog, access, ..Settings::default() }).unwrap();
    let user = User::at(&registry);
    assert_snapshot!(user.run(&["inspect", &registry.reference("library/app", "1")]).text, @r#"
    --- stderr
    error: registry.test denied access to manifest `1`: it requires a user name and password (tried: anonymous, as no credentials were found)
    hint: log in with `podman login registry.test` or `docker login registry.test`, or pass `--authfile`
    --- exit 4
    "#);
    let reference = registry.reference("library/app", "1");
    let output = user.command(&["inspect", &reference]).env("REGISTRY_AUTH_FILE", "/nonexistent").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("; `REGISTRY_AUTH_FILE` names `/nonexistent`, which does not exist)"), "{told}");
}

#[test]
fn a_registry_that_is_not_there_is_an_error_of_its_own() {
    let registry = registry(&small());
    let user = User::at(&registry);
    let image = registry.reference("library/app", "1");
    drop(registry);
    assert_snapshot!(user.run(&["ls", &image]).text, @r#"
    --- stderr
    error: cannot read manifest `1` from registry.test: cannot reach registry.test: connection refused
    hint: check the network and the name of the registry; what is cached can be used with `--offline`
    --- exit 6
    "#);
}

#[test]
fn listings_look_like_those_of_ls() {
    let user = User::with_layout(&small());
    assert_snapshot!(user.prints(&["ls", "oci:layout:1"]), @r#"
    bin
    dev
    etc
    "#);
    assert_snapshot!(user.prints(&["ls", "-l", "oci:layout:1", "etc", "dev/null"]), @r#"
    crw-rw-rw- 1 0 0 1, 3 2023-11-14 22:13:20 dev/null

    etc:
    -rw-r--r-- 2 0  0  6 2023-11-14 22:13:20 motd
    lrwxrwxrwx 1 0  0 14 2023-11-14 22:13:20 mtab -> ../proc/mounts
    -rwSr----- 1 0 42  7 2023-11-14 22:13:20 shadow
    "#);
    assert_snapshot!(user.prints(&["ls", "-R", "oci:layout:1"]).replace('\x1b', "<ESC>"), @r#"
    /:
    bin
    dev
    etc

    /bin:
    <ESC>[31mred
    motd

    /dev:
    null

    /etc:
    motd
    mtab
    shadow
    "#);
    assert_snapshot!(user.prints(&["ls", "--json", "oci:layout:1", "/etc"]), @r#"
    {"path":"/etc/motd","type":"file","mode":"0644","uid":0,"gid":0,"size":6,"mtime":1700000000,"mtime_ns":0,"nlink":2,"inode":5}
    {"path":"/etc/mtab","type":"symlink","mode":"0777","uid":0,"gid":0,"size":14,"mtime":1700000000,"mtime_ns":0,"nlink":1,"inode":11,"target":"../proc/mounts"}
    {"path":"/etc/shadow","type":"file","mode":"4640","uid":0,"gid":42,"size":7,"mtime":1700000000,"mtime_ns":123456789,"nlink":1,"inode":9}
    "#);
}

#[test]
fn a_second_listing_asks_for_no_blob() {
    let registry = registry(&small());
    let user = User::at(&registry);
    let image = registry.reference("library/app", "1");
    let first = user.prints(&["ls", "-R", &image]);
    assert!(registry.requests().iter().any(|request| request.is_blob()));
    registry.clear();
    assert_eq!(user.prints(&["ls", "-R", &image]), first);
    let asked = registry.requests();
    assert!(asked.iter().all(|request| request.request.method == "HEAD" && request.is_manifest()), "{asked:?}");
    registry.clear();
    assert_eq!(user.prints(&["ls", "-R", "--offline", &image]), first);
    assert!(registry.requests().is_empty());
}

#[test]
fn cat_prints_files_and_nothing_else() {
    let user = User::with_layout(&small());
    assert_eq!(user.prints(&["cat", "oci:layout:1", "etc/motd", "/bin/motd"]), "hello\nhello\n");
}

/// The image of [`small`] and a top layer, with everything in the descriptors.
fn inlined() -> ImageBuilder {
    let layer = |packing, text: &'static str| LayerBuilder::new().packing(packing).file("etc/motd", text);
    let layers = [layer(Packing::GZIP, "below\n"), layer(Packing::Stored, "hello\n")];
    layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer).inlined()
}

/// image-spec, descriptor.md, "Embedded Content": what stands in a descriptor is asked for nowhere.
#[test]
fn a_layer_that_is_inlined_needs_no_blob() {
    let image = inlined().build();
    assert_eq!(image.blobs().count(), 0);
    let registry = registry(&image);
    let mut user = User::at(&registry);
    image.write_layout(&user.path("layout"), "1").unwrap();
    for name in ["oci:layout:1", &registry.reference("library/app", "1")] {
        assert_eq!(user.prints(&["cat", name, "etc/motd"]), "hello\n");
        assert_eq!(user.prints(&["ls", "-R", name]), "/:\netc\n\n/etc:\nmotd\n");
        user.prints(&["cp", name, "/etc", "copy"]);
        assert_eq!(std::fs::read(user.path("copy/motd")).unwrap(), b"hello\n");
        std::fs::remove_dir_all(user.path("copy")).unwrap();
        assert_eq!(user.json(&["inspect", name])["layers"].as_array().unwrap().len(), 2);
    }
    let asked = registry.requests();
    assert!(asked.iter().all(|request| request.is_manifest()), "{asked:?}");
    // Inlined data is in the cache, even for layers that were never read.
    let other = User::at(&registry);
    let name = registry.reference("library/app", "1");
    other.prints(&["inspect", &name]);
    assert_eq!(other.prints(&["cat", "--offline", &name, "etc/motd"]), "hello\n");

    // The manifest itself may stand in the `index.json` of a layout.
    let index = user.path("layout/index.json");
    let mut listed: serde_json::Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    let (manifest, path) = (image.root().digest.clone(), image.root().digest.hex().to_owned());
    let path = user.path("layout/blobs/sha256").join(path);
    let data = base64::engine::general_purpose::STANDARD.encode(std::fs::read(&path).unwrap());
    listed["manifests"][0]["data"] = data.into();
    std::fs::write(&index, listed.to_string()).unwrap();
    std::fs::remove_file(&path).unwrap();
    user = User { dir: user.dir, hidden: Vec::new() };
    for name in ["oci:layout:1", &format!("oci:layout@{manifest}")] {
        assert_eq!(user.prints(&["cat", "--cache-dir", "other", name, "etc/motd"]), "hello\n");
    }
}

/// Even if the blob is available: it is undefined which of the two the descriptor means.
#[test]
fn inlined_data_that_is_not_the_layer_is_an_error() {
    let wrong = |at: usize| {
        let image = inlined().edit_manifest(move |manifest| {
            let data = manifest["layers"][at]["data"].as_str().unwrap();
            let mut bytes = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            manifest["layers"][at]["data"] = base64::engine::general_purpose::STANDARD.encode(bytes).into();
        });
        image.build()
    };
    let right = inlined().build();
    for at in [0, 1] {
        let image = right.layers().iter().fold(wrong(at), |image, layer| image.with_blob(layer.blob.clone()));
        let user = User::with_layout(&image);
        for line in [&["cat", "oci:layout:1", "etc/motd"][..], &["inspect", "oci:layout:1"]] {
            let ran = user.run(line);
            assert_eq!(ran.output.status.code(), Some(5), "{}", ran.text);
            let layer = &right.layers()[at];
            let told = format!(
                "--- stderr\nerror: the inlined data of a layer of oci:layout:1 is not what its digest says: expected {} ({1} \
                 bytes), got sha256:",
                layer.digest,
                layer.blob.len()
            );
            assert!(ran.text.starts_with(&told) && ran.text.lines().count() == 4, "{}", ran.text);
            assert!(ran.text.contains("hint: the image has `data`"), "{}", ran.text);
        }
        assert_eq!(std::fs::read_dir(user.path("layout")).unwrap().count(), 3);
    }
    let image = inlined().edit_manifest(|manifest| manifest["layers"][0]["data"] = "????".into()).build();
    let ran = User::with_layout(&image).run(&["ls", "oci:layout:1"]);
    assert!(ran.text.contains("the inlined data of sha256:") && ran.text.contains("is not base64"), "{}", ran.text);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let long = LayerBuilder::new().file("long", vec![b'x'; 4 << 20]);
    let user = User::with_layout(&ImageBuilder::new().layer(long).build());
    let lines: [&[&str]; 3] = [&["cat", "oci:layout:1", "long"], &["completions", "bash"], &["cache", "dir"]];
    for line in lines {
        let mut child = user.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{line:?}: {ended:?}");
        assert!(ended.stderr.is_empty(), "{line:?}: {ended:?}");
    }
}

#[test]
fn a_corrupt_layer_is_told_once_and_leaves_nothing() {
    let user = User::with_layout(&small());
    let base = small().layers()[0].digest.clone();
    let blob = user.path("layout/blobs/sha256").join(base.hex());
    let mut bytes = std::fs::read(&blob).unwrap();
    let last = bytes.len() - 6;
    bytes[last] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    let ran = user.run(&["cp", "oci:layout:1", "etc", "copy"]);
    assert_eq!(ran.output.status.code(), Some(5), "{}", ran.text);
    assert_eq!(ran.text.lines().filter(|line| line.to_lowercase().contains("error")).count(), 1, "{}", ran.text);
    assert!(ran.text.contains(&base.to_string()), "{}", ran.text);
    assert!(!user.path("copy").exists());
}

/// An image layout in a tar.
fn archive(user: &User, image: &Image) -> Vec<u8> {
    let layout = user.path("archived");
    image.write_layout(&layout, "1").unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", &layout).unwrap();
    tar.into_inner().unwrap()
}

/// An archive of two images, of which the second is [`small`].
fn two_images(user: &User) -> Vec<u8> {
    let layout = user.path("two");
    ImageBuilder::new().layer(LayerBuilder::new().file("other", "other")).build().write_layout(&layout, "1").unwrap();
    small().write_layout(&layout, "2").unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", &layout).unwrap();
    tar.into_inner().unwrap()
}

/// Runs a command with these bytes coming through a pipe.
fn piped(user: &User, line: &[&str], bytes: &[u8]) -> Output {
    let mut command = user.command(line);
    let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = running.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // It may be ended before it has read everything.
        scope.spawn(move || drop(std::io::Write::write_all(&mut stdin, bytes)));
        running.wait_with_output().unwrap()
    })
}

#[test]
fn archives_may_be_compressed_and_come_through_pipes() {
    let user = User::new();
    let tar = archive(&user, &small());
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &tar).unwrap();
    let gzip = encoder.finish().unwrap();
    for bytes in [&tar, &gzip, &zstd::bulk::compress(&tar, 3).unwrap()] {
        let output = piped(&user, &["cat", "oci-archive:/dev/stdin:1", "etc/motd"], bytes);
        assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"hello\n"[..]), "{output:?}");
        let output = piped(&user, &["cat", "-", "etc/motd"], bytes);
        assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"hello\n"[..]), "{output:?}");
        std::fs::write(user.path("image.tar.x"), bytes).unwrap();
        assert_eq!(user.prints(&["cat", "oci-archive:image.tar.x:1", "etc/motd"]), "hello\n");
    }
    let output = piped(&user, &["ls", "oci-archive:/dev/stdin"], &gzip[..gzip.len() / 2]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not decompress"), "{output:?}");
    // One of several, as the hint says.
    let two = two_images(&user);
    let output = piped(&user, &["ls", "-"], &two);
    assert!(String::from_utf8_lossy(&output.stderr).contains("hint: add one of `1`, `2` after `:`"), "{output:?}");
    let by_digest = format!("-@{}", small().root().digest);
    let by_both = format!("-:1@{}", small().root().digest);
    for line in [
        &["cat", "-:2", "etc/motd"][..],
        &["cat", "--", "-:2", "etc/motd"],
        &["cat", &by_digest, "etc/motd"],
        &["cat", "--", &by_both, "etc/motd"],
    ] {
        let output = piped(&user, line, &two);
        assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"hello\n"[..]), "{output:?}");
    }
    // What the user has typed is named, however the archive is read.
    for line in [&["ls", "-"][..], &["ls", "oci-archive:/dev/stdin"], &["mount", "-", "at"]] {
        std::fs::create_dir_all(user.path("at")).unwrap();
        let output = piped(&user, line, b"neither a tar nor compressed");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.starts_with("error: `standard input` cannot be used: it is not a valid tar"), "{line:?}: {told}");
    }
    let output = piped(&user, &["ls", "--platform", "linux/s390x", "-"], &tar);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.starts_with("error: standard input: there is no image for linux/s390x"), "{told}");
    let output = piped(&user, &["diff", "-", "-"], &tar);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("only one of the two images"), "{output:?}");
}

/// The spool file is unnamed: nothing has to be cleaned up, however the process ends.
#[test]
fn a_process_that_is_killed_while_it_spools_leaves_nothing() {
    let user = User::new();
    let tar = archive(&user, &small());
    let mut command = user.command(&["cat", "oci-archive:/dev/stdin:1", "etc/motd"]);
    let mut running = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = running.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &tar[..tar.len() / 2]).unwrap();
    let spooled = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", running.id())).unwrap();
        open.flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .any(|to| to.starts_with(user.dir.path()) && to.to_string_lossy().ends_with(" (deleted)"))
    };
    while !spooled() {
        support::pause();
    }
    running.kill().unwrap();
    running.wait().unwrap();
    let left = std::fs::read_dir(user.dir.path().join("home/cache/tmp")).unwrap().count();
    assert_eq!(left, 0);
}

/// As Bazel and others build trees; a link that leads out is refused.
#[test]
fn a_layout_of_links_is_read_as_long_as_they_stay_in_it() {
    let user = User::with_layout(&small());
    let layout = user.path("layout");
    std::fs::create_dir(layout.join("real")).unwrap();
    for name in ["oci-layout", "index.json"] {
        std::fs::rename(layout.join(name), layout.join("real").join(name)).unwrap();
        symlink(format!("real/{name}"), layout.join(name)).unwrap();
    }
    let blobs: Vec<_> =
        std::fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|blob| blob.unwrap().path()).collect();
    for blob in &blobs {
        let name = blob.file_name().unwrap();
        std::fs::rename(blob, layout.join("real").join(name)).unwrap();
        symlink(Path::new("../../real").join(name), blob).unwrap();
    }
    assert_eq!(user.prints(&["cat", "oci:layout:1", "etc/motd"]), "hello\n");
    std::fs::rename(layout.join("real"), user.path("elsewhere")).unwrap();
    symlink("../elsewhere", layout.join("real")).unwrap();
    let ran = user.run(&["cat", "oci:layout:1", "etc/motd"]);
    assert_eq!(ran.output.status.code(), Some(1), "{}", ran.text);
    assert!(ran.text.contains("it is a symbolic link that leads out of `layout`"), "{}", ran.text);
    assert!(ran.text.contains("`cp -rL layout COPY`"), "{}", ran.text);
}

/// A mirror or an export may lack some of the images that its index lists.
#[test]
fn the_next_image_that_fits_is_taken_if_the_best_is_missing() {
    let of = |platform: &str| {
        ImageBuilder::new().layer(LayerBuilder::new().file(&platform.replace('/', "-"), "")).platform(platform).build()
    };
    let (best, next, other) = (of("linux/amd64/v3"), of("linux/amd64"), of("linux/s390x"));
    let image = IndexBuilder::new().image(&best).image(&next).image(&other).build();
    let user = User::with_layout(&image);
    let run = |user: &User| user.run(&["ls", "--platform", "linux/amd64/v3", "oci:layout:1"]);
    assert_eq!(run(&user).text, "linux-amd64-v3\n");
    let user = User::with_layout(&image);
    let blob = |image: &Image| user.path("layout/blobs/sha256").join(image.root().digest.hex());
    std::fs::remove_file(blob(&best)).unwrap();
    let ran = run(&user);
    assert_eq!((ran.output.status.code(), &*ran.output.stdout), (Some(0), &b"linux-amd64\n"[..]), "{}", ran.text);
    let told =
        format!("blob {} not found in oci:layout:1; using the image for linux/amd64 instead", best.root().digest);
    assert!(ran.text.contains(&told), "{}", ran.text);
    std::fs::remove_file(blob(&next)).unwrap();
    std::fs::remove_dir_all(user.dir.path().join("home/cache")).unwrap();
    let ran = run(&user);
    assert_eq!(ran.output.status.code(), Some(3), "{}", ran.text);
    assert!(ran.text.contains(&format!("error: blob {} not found", best.root().digest)), "{}", ran.text);
}

#[test]
fn inspect_describes_an_image_for_any_platform() {
    let user = User::with_layout(&ImageBuilder::new().platform("linux/s390x").build());
    let ran = user.run(&["ls", "oci:layout:1"]);
    assert_eq!(ran.output.status.code(), Some(3), "{}", ran.text);
    assert!(ran.text.contains("it offers linux/s390x") && ran.text.contains("--platform linux/s390x"), "{}", ran.text);
    for line in [&["inspect", "oci:layout:1"][..], &["inspect", "--platform", "linux/riscv64", "oci:layout:1"]] {
        let ran = user.run(line);
        let described: serde_json::Value = serde_json::from_slice(&ran.output.stdout).unwrap();
        assert_eq!(described["platform"], "linux/s390x", "{}", ran.text);
        assert!(ran.text.contains("oci:layout:1 is for linux/s390x, not for linux/"), "{}", ran.text);
    }
    // Of several, the first is described unless one is asked for.
    let several = ["linux/s390x", "linux/ppc64le"].map(|platform| ImageBuilder::new().platform(platform).build());
    let user = User::with_layout(&several.iter().fold(IndexBuilder::new(), IndexBuilder::image).build());
    let ran = user.run(&["inspect", "oci:layout:1"]);
    let described: serde_json::Value = serde_json::from_slice(&ran.output.stdout).unwrap();
    assert_eq!(described["platform"], "linux/s390x", "{}", ran.text);
    let ran = user.run(&["inspect", "--platform", "linux/riscv64", "oci:layout:1"]);
    assert_eq!(ran.output.status.code(), Some(3), "{}", ran.text);
}

/// The names of podman's local builds; a server on port 80 of this machine has no such image.
#[test]
fn a_name_of_a_local_build_comes_with_a_hint() {
    let ran = User::new().run(&["ls", "localhost/some-local-build"]);
    assert!(!ran.output.status.success());
    assert!(ran.text.contains("hint: podman names what it builds `localhost/NAME`"), "{}", ran.text);
    assert!(ran.text.contains("`podman save -o FILE localhost/NAME`"), "{}", ran.text);
}

#[test]
fn a_layer_is_read_as_what_it_begins_like() {
    let content: Vec<u8> = (0..200_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let types = ["", "+gzip", "+zstd"].map(|suffix| format!("application/vnd.oci.image.layer.v1.tar{suffix}"));
    for (packing, begins_like) in [(Packing::Stored, 0), (Packing::GZIP, 1), (Packing::ZSTD, 2)] {
        for (number, media_type) in types.iter().enumerate() {
            let layer = LayerBuilder::new().file("f", content.clone()).packing(packing).media_type(media_type);
            let registry = registry(&ImageBuilder::new().layer(layer).build());
            let (user, reference) = (User::at(&registry), registry.reference("library/app", "1"));
            for told in [usize::from(number != begins_like), 0] {
                let ran = user.run(&["cat", &reference, "f"]);
                assert!(ran.output.status.success() && ran.output.stdout == content, "{packing:?} as {media_type}");
                let talk = String::from_utf8_lossy(&ran.output.stderr).into_owned();
                let count = talk.matches("the media type of a layer is wrong").count();
                assert_eq!(count, told, "{packing:?} as {media_type}: {talk}");
                // The next time it is read with range requests.
                assert!(user.run(&["cache", "prune", "--content"]).output.status.success());
            }
        }
    }
    for (magic, format) in [(&b"\xfd7zXZ\0 and more"[..], "xz"), (b"BZh91AY&SY and more", "bzip2")] {
        let layer = LayerBuilder::new().without_end().packing(Packing::Stored).trailer(magic).media_type(&types[1]);
        let registry = registry(&ImageBuilder::new().layer(layer).build());
        let ran = User::at(&registry).run(&["ls", &registry.reference("library/app", "1")]);
        assert_eq!(ran.output.status.code(), Some(1), "{}", ran.text);
        assert!(ran.text.contains(&format!("is compressed with {format}, as no layer may be")), "{}", ran.text);
    }
}

/// As skopeo 1.9 writes zstd:chunked: the padding of the tar is lost, and the diff_id is of the padded tar.
#[test]
fn a_layer_that_lost_its_padding_is_told_as_such() {
    let mut layer = LayerBuilder::new().file("f", "content").packing(Packing::ZSTD).build();
    let mut padded = layer.tar.to_vec();
    padded.resize(10 << 10, 0);
    let lost = padded.len() - layer.tar.len();
    layer.diff_id = Digest::of(Algorithm::Sha256, &padded);
    let registry = registry(&ImageBuilder::new().layer(layer).build());
    let ran = User::at(&registry).run(&["cat", &registry.reference("library/app", "1"), "f"]);
    assert_eq!(ran.output.status.code(), Some(5), "{}", ran.text);
    assert!(ran.text.contains(&format!("its tar lacks the last {lost} bytes, all zeros")), "{}", ran.text);
    assert!(ran.text.contains("skopeo 1.9") && ran.text.contains("--dest-compress-format gzip"), "{}", ran.text);
}

/// `zstd --long=28` and more.
#[test]
fn large_zstd_windows_are_read() {
    for log in [28, 31] {
        let mut layer = LayerBuilder::new().file("f", "content").packing(Packing::ZSTD).build();
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        std::io::Write::write_all(&mut encoder, &layer.tar).unwrap();
        let mut blob = encoder.finish().unwrap();
        // RFC 8878, 3.1.1.1.2; there is no encoder that would take so much memory for a few bytes.
        blob[5] = (log - 10) << 3;
        layer.digest = Digest::of(Algorithm::Sha256, &blob);
        layer.blob = blob.into();
        let registry = registry(&ImageBuilder::new().layer(layer).build());
        let user = User::at(&registry);
        for _ in 0..2 {
            let ran = user.run(&["cat", &registry.reference("library/app", "1"), "f"]);
            assert_eq!(ran.text, "content", "--long={log}");
            assert!(user.run(&["cache", "prune", "--content"]).output.status.success());
        }
    }
}

#[test]
fn a_blob_of_another_size_than_was_named_is_not_what_was_named() {
    let image = small();
    let user = User::with_layout(&image);
    let layer = user.path("layout/blobs/sha256").join(image.layers()[0].digest.hex());
    let size = std::fs::metadata(&layer).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&layer).unwrap().set_len(size + 1).unwrap();
    let ran = user.run(&["cat", "oci:layout:1", "etc/motd"]);
    assert_eq!(ran.output.status.code(), Some(5), "{}", ran.text);
    assert!(ran.text.contains(&format!("has {} bytes, and its descriptor says {size}", size + 1)), "{}", ran.text);
}

#[test]
fn inspect_tells_everything_but_the_files() {
    let image = IndexBuilder::new().image(&small()).image(&ImageBuilder::new().platform("linux/s390x").build()).build();
    let registry = Registry::start(Catalog::new().image("library/app", "1", &image)).unwrap();
    let user = User::at(&registry);
    let reference = registry.reference("library/app", "1");
    let platform = ["--platform", "linux/amd64"];
    let line = ["inspect", &reference, platform[0], platform[1]];
    let before = user.json(&line);
    let layers: Vec<String> = small().layers().iter().map(|layer| layer.digest.to_string()).collect();
    assert!(!registry.requests().iter().any(|asked| layers.iter().any(|digest| asked.request.path.contains(digest))));
    assert_eq!(before["schema"], 1);
    assert_eq!(before["reference"], reference);
    assert_eq!(before["offered"], serde_json::json!(["linux/amd64", "linux/s390x"]));
    assert_eq!(before["platform"], "linux/amd64");
    assert_eq!(before["config"]["config"]["Cmd"][0], "/bin/sh");
    assert_eq!(before["root"]["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(before["layers"][0]["digest"], layers[0]);
    assert_eq!(before["layers"][0]["indexed"], false);
    assert_eq!(before["layers"][0]["entries"], serde_json::Value::Null);
    user.prints(&["ls", "-R", &reference, platform[0], platform[1]]);
    let after = user.json(&line);
    assert_eq!(after["layers"][0]["indexed"], true);
    assert!(after["layers"][0]["entries"].as_u64() > Some(5));
    assert_eq!(
        after["totals"]["decoded_size"],
        small().layers().iter().map(|layer| layer.tar.len() as u64).sum::<u64>()
    );
    assert!(after["totals"]["content_bytes_on_disk"].as_u64() > Some(0));
}

/// Commands that are interrupted may be the only ones that use a cache.
#[test]
fn a_command_removes_what_interrupted_ones_were_writing() {
    let user = User::with_layout(&small());
    user.prints(&["ls", "oci:layout:1"]);
    let unfinished = user.dir.path().join("home/cache/tmp");
    let (left, written) = (unfinished.join("1-1"), unfinished.join("2-1"));
    std::fs::write(&left, [1; 100_000]).unwrap();
    std::fs::write(&written, [1; 100_000]).unwrap();
    let writer = std::fs::File::open(&written).unwrap();
    writer.lock().unwrap();
    let shown = user.prints(&["cache"]);
    assert!(shown.contains("; in flight ") && shown.contains("; left by interrupted processes "), "{shown}");
    user.prints(&["ls", "oci:layout:1"]);
    assert!(!left.exists() && written.exists());
    assert!(!user.prints(&["cache"]).contains("interrupted"));
}

#[test]
fn the_cache_is_shown_pruned_and_found() {
    let user = User::with_layout(&small());
    assert_snapshot!(user.run(&["cache"]).text, @r#"0 layers, 0 B; manifests and configurations 0 B; no limit"#);
    user.prints(&["ls", "-R", "oci:layout:1"]);
    let shown = user.json(&["cache", "show", "--json"]);
    assert_eq!(shown["layers"].as_array().unwrap().len(), 2);
    assert_eq!(shown["layers"][0]["in_use"], false);
    assert!(user.prints(&["cache"]).starts_with("LAYER "));
    assert_eq!(user.prints(&["cache", "dir"]), format!("{}\n", user.dir.path().join("home/cache").display()));
    let elsewhere = user.dir.path().join("elsewhere");
    let line = ["cache", "dir", "--cache-dir", elsewhere.to_str().unwrap()];
    assert_eq!(user.prints(&line), format!("{}\n", elsewhere.display()));
    for what in [&["show"][..], &["verify"], &["prune", "--all"], &["drop", "--content", "--all"]] {
        user.prints(&[&["cache", "--cache-dir", elsewhere.to_str().unwrap()], what].concat());
    }
    let drop = ["cache", "--cache-dir", elsewhere.to_str().unwrap(), "drop", "--content", "127.0.0.1:1/app"];
    assert_eq!(user.run(&drop).output.status.code(), Some(3));
    assert!(!elsewhere.exists());
    assert!(user.prints(&["cache", "prune", "--content"]).contains("2 layers without content now"));
    assert_eq!(user.prints(&["cat", "oci:layout:1", "etc/motd"]), "hello\n");
    assert!(user.prints(&["cache", "prune", "--all"]).contains("2 layers removed"));
    assert!(user.json(&["cache", "show", "--json"])["layers"].as_array().unwrap().is_empty());
}

/// It takes what it can, and says how much that was.
#[test]
fn a_damaged_file_of_indexes_is_imported_in_part() {
    let user = User::with_layout(&small());
    user.prints(&["ls", "oci:layout:1"]);
    user.prints(&["index", "export", "oci:layout:1", "indexes"]);
    let whole = std::fs::read(user.path("indexes")).unwrap();
    let import = |file: &str, bytes: &[u8]| {
        std::fs::write(user.path(file), bytes).unwrap();
        let ran = user.run(&["index", "import", file, "--cache-dir", "other"]);
        let layers = small().layers().iter().map(|layer| layer.digest.to_string()).collect::<Vec<_>>();
        layers.iter().fold(ran.text, |text, layer| text.replace(layer, "LAYER"))
    };
    assert_snapshot!(import("header", &whole[..9]), @r"
    --- stderr
    error: cannot import `header`: not a file of exported indexes: it is cut short
    --- exit 5
    ");
    let mut flipped = whole.clone();
    // Behind the header, and the name and the length of the first index.
    flipped[16 + 1 + 71 + 8 + 100] ^= 1;
    assert_snapshot!(import("flipped", &flipped), @r"
    --- stderr
    error: cannot import all of `flipped`: the index of layer LAYER cannot be used: page 0 of the layer index is damaged; of its 2 indexes, 1 imported, 0 known already, 1 not taken
    --- exit 5
    ");
    assert_snapshot!(import("cut", &whole[..whole.len() - 1]), @r"
    --- stderr
    error: cannot import all of `cut`: not a file of exported indexes: it is cut short; of its 2 indexes, 1 imported, 0 known already, 1 not taken
    --- exit 5
    ");
    assert_snapshot!(import("whole", &whole), @"imported the indexes of 0 layers; 2 known already");
}

#[test]
fn indexes_of_others_that_are_not_used_are_told() {
    let registry = registry(&small());
    let user = User::at(&registry);
    small().write_layout(&user.path("layout"), "1").unwrap();
    let image = registry.reference("library/app", "1");
    // The directory is missing, so nothing is mounted.
    let first = |line: &[&str]| {
        let told = user.run(line).text;
        told.lines().nth(1).unwrap().to_owned()
    };
    let none = "has no effect: with `--index none` no index of others is used";
    for option in [&["--verify", "vouched"], &["--index-from", "referrers"]] {
        let shown = if option[0] == "--verify" { "--verify vouched" } else { "--index-from" };
        let line = ["mount", "--index", "none", option[0], option[1], &image, "nowhere"];
        assert_eq!(first(&line), format!("note: `{shown}` {none}"));
        let line = ["mount", option[0], option[1], "oci:layout:1", "nowhere"];
        assert_eq!(first(&line), format!("note: `{shown}` has no effect: `oci:layout:1` is not in a registry"));
        let line = ["mount", option[0], option[1], &image, "nowhere"];
        assert!(first(&line).starts_with("error: "));
    }
}

#[test]
fn cache_drop_says_what_it_drops_and_what_stays() {
    let user = User::with_layout(&small());
    let sizes = || {
        let shown = user.json(&["cache", "show", "--json"]);
        let layers = shown["layers"].as_array().unwrap().clone();
        let sum = |key: &str| layers.iter().map(|layer| layer[key].as_u64().unwrap()).sum::<u64>();
        (layers.len(), sum("index_bytes"), sum("content_bytes"))
    };
    user.prints(&["cat", "oci:layout:1", "etc/motd"]);
    let (layers, index, content) = sizes();
    assert!(layers == 2 && index > 0 && content > 0);
    let said = user.prints(&["cache", "drop", "--content", "oci:layout:1"]);
    assert!(said.starts_with("freed ") && said.ends_with(": the content of 2 layers; indexes stay\n"), "{said}");
    assert_eq!(sizes(), (2, index, 0));
    assert_eq!(user.prints(&["cache", "drop", "--content", "oci:layout:1"]), "freed 0 B\n");
    user.prints(&["cat", "oci:layout:1", "etc/motd"]);
    let said = user.prints(&["cache", "drop", "oci:layout:1"]);
    assert!(said.starts_with("freed ") && said.ends_with(": content and index of 2 layers\n"), "{said}");
    assert_eq!(sizes(), (0, 0, 0));
    assert_eq!(user.prints(&["cache", "drop", "--all"]), "freed 0 B\n");
    assert_eq!(user.prints(&["cat", "oci:layout:1", "etc/motd"]), "hello\n");
    assert_snapshot!(user.run(&["cache", "drop"]).text, @r#"
    --- stderr
    error: `cache drop` needs the image whose layers it drops
    hint: name it as it was mounted; `--all` drops what is cached of all images
    --- exit 2
    "#);
}

#[test]
fn a_flipped_byte_in_the_cache_is_found_and_healed() {
    let registry = registry(&small());
    let user = User::at(&registry);
    let image = registry.reference("library/app", "1");
    assert_eq!(user.prints(&["cat", &image, "etc/motd"]), "hello\n");
    assert!(user.prints(&["cache", "verify"]).starts_with("checked 2 layers with "));
    flip_bytes(&user.dir.path().join("home/cache/content-v2/sha256"), "data");
    let layers: Vec<String> = small().layers().iter().map(|layer| layer.digest.hex().to_owned()).collect();
    let found = user.run(&["cache", "verify"]);
    assert_eq!(found.output.status.code(), Some(5));
    let text = found.text.replace(&layers[0], "BASE").replace(&layers[1], "TOP");
    let mut lines: Vec<&str> = text.lines().filter(|line| line.starts_with("damaged")).collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["damaged, removed: span 0 of layer sha256:BASE", "damaged, removed: span 0 of layer sha256:TOP"]
    );
    assert_snapshot!(text.split_once("--- stderr\n").unwrap().1, @r#"
    error: 2 parts of the cache were damaged
    hint: no action needed: removed data is fetched again on demand
    --- exit 5
    "#);
    assert!(user.prints(&["cache", "verify"]).starts_with("checked 2 layers with 0 B of content in 0 spans"));
    assert_eq!(user.prints(&["cat", &image, "etc/motd"]), "hello\n");
    assert!(user.run(&["cache", "verify"]).output.status.success());

    flip_bytes(&user.dir.path().join("home/cache/index-v2/sha256"), "");
    assert_eq!(user.run(&["cache", "verify"]).output.status.code(), Some(5));
    assert_eq!(user.prints(&["cat", &image, "etc/motd"]), "hello\n");
}

/// Flips a bit of every byte in the first kilobyte of each file.
fn flip_bytes(dir: &Path, extension: &str) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().unwrap_or_default() == extension {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.iter_mut().take(1024).for_each(|byte| *byte ^= 1);
            std::fs::write(&path, bytes).unwrap();
        }
    }
}

#[test]
fn status_of_nothing_is_nothing_on_stdout() {
    let user = User::new();
    let ran = user.run(&["status", "--json"]);
    assert!(ran.output.status.success(), "{}", ran.text);
}

#[test]
fn manual_pages_are_made() {
    let user = User::new();
    user.prints(&["man", "pages"]);
    let mut pages: Vec<_> =
        std::fs::read_dir(user.path("pages")).unwrap().map(|page| page.unwrap().file_name()).collect();
    pages.sort();
    for page in ["peelfs.1", "peelfs-mount.1", "peelfs-cache-verify.1"] {
        assert!(pages.iter().any(|found| found == page), "{pages:?}");
    }
}

/// Everything that a copy can keep, in two layers.
fn rich() -> (Image, Vec<Entry>) {
    let me = (rustix::process::geteuid().as_raw().into(), rustix::process::getegid().as_raw().into());
    let own = |entry: Entry| entry.owner(me.0, me.1);
    let entries = vec![
        own(Entry::dir("tree").mode(0o750).mtime(1_600_000_000, 5)),
        own(Entry::dir("tree/locked").mode(0o555).mtime(1_600_000_001, 999_999_999)),
        own(Entry::file("tree/locked/file", "content").mode(0o444).mtime(-3, 250_000_000)),
        own(Entry::file("tree/empty", "")),
        own(Entry::file("tree/set-id", "#!/bin/sh\n").mode(0o6755)),
        own(Entry::file("tree/user-xattr", "x").xattr("user.note", "kept")),
        own(Entry::dir("tree/sticky").mode(0o1777)),
        own(Entry::symlink("tree/link", "locked/file").mtime(1_500_000_000, 7)),
        own(Entry::symlink("tree/escape", "/etc")),
        own(Entry::fifo("tree/pipe").mode(0o620)),
        own(Entry::file("tree/one", "three names")),
        own(Entry::hard_link("tree/two", "tree/one")),
        own(Entry::dir("tree/z")),
        own(Entry::hard_link("tree/z/three", "tree/one")),
        own(Entry::file(&b"tree/caf\xe9"[..], "not utf-8")),
    ];
    let image = ImageBuilder::new().layer(LayerBuilder::of(&entries)).build();
    (image, entries)
}

#[test]
fn a_copy_keeps_everything() {
    let (image, entries) = rich();
    let user = User::with_layout(&image);
    let model = model_of(&entries);
    for (to, copied) in [("copy", "copy"), ("existing", "existing/tree")] {
        if to == "existing" {
            std::fs::create_dir(user.path(to)).unwrap();
        }
        assert_eq!(user.run(&["cp", "oci:layout:1", "tree", to]).text, "");
        let real = support::walk::seen(&user.path(copied)).unwrap();
        let different = support::walk::differences(&model, &real, support::walk::Compare::Exactly);
        assert!(different.is_empty(), "{}", different.join("\n"));
        // And again over the existing copy.
        if rustix::process::geteuid().is_root() {
            assert_eq!(user.run(&["cp", "oci:layout:1", "tree", to]).text, "");
        }
    }
}

#[test]
fn a_copy_replaces_no_fifo_and_no_symlink_that_the_user_has() {
    let user = User::with_layout(&small());
    std::os::unix::fs::symlink("elsewhere", user.path("link")).unwrap();
    std::fs::create_dir(user.path("dir")).unwrap();
    for fifo in ["fifo", "dir/motd"] {
        let made = std::process::Command::new("mkfifo").arg(user.path(fifo)).status().unwrap();
        assert!(made.success());
    }
    for (to, kept) in [("link", "link"), ("fifo", "fifo"), ("dir", "dir/motd")] {
        let before = std::fs::symlink_metadata(user.path(kept)).unwrap().file_type();
        let output = user.command(&["cp", "oci:layout:1", "etc/motd", to]).output().unwrap();
        assert!(!output.status.success(), "{to}");
        assert_eq!(std::fs::symlink_metadata(user.path(kept)).unwrap().file_type(), before, "{to}");
    }
    assert!(!user.path("elsewhere").exists());
}

/// The model of what lies below `tree`.
fn model_of(entries: &[Entry]) -> BTreeMap<Vec<u8>, support::model::Seen> {
    let mut tree = support::model::Tree::new();
    tree.apply(entries);
    let mut below = BTreeMap::new();
    for (path, mut seen) in tree.seen() {
        let Some(rest) = path.strip_prefix(b"tree") else { continue };
        seen.names = seen.names.iter().map(|name| name["tree".len()..].trim_ascii_start_slash()).collect();
        below.insert(rest.trim_ascii_start_slash(), seen);
    }
    below
}

trait WithoutSlash {
    fn trim_ascii_start_slash(&self) -> Vec<u8>;
}

impl WithoutSlash for [u8] {
    fn trim_ascii_start_slash(&self) -> Vec<u8> {
        self.strip_prefix(b"/").unwrap_or(self).to_vec()
    }
}

#[test]
fn copying_the_root_fills_a_directory() {
    let user = User::with_layout(&small());
    std::fs::create_dir(user.path("out")).unwrap();
    user.run(&["cp", "--no-same-owner", "oci:layout:1", "/", "out"]);
    assert_eq!(std::fs::read_to_string(user.path("out/etc/motd")).unwrap(), "hello\n");
    assert_eq!(std::fs::read_link(user.path("out/etc/mtab")).unwrap(), Path::new("../proc/mounts"));
}

#[test]
fn a_copy_replaces_files_and_merges_directories() {
    let user = User::with_layout(&small());
    std::fs::create_dir_all(user.path("out/etc")).unwrap();
    std::fs::write(user.path("out/etc/motd"), "old").unwrap();
    std::fs::write(user.path("out/etc/own"), "mine").unwrap();
    std::fs::write(user.path("outside"), "untouched").unwrap();
    symlink("../../outside", user.path("out/etc/shadow")).unwrap();
    user.run(&["cp", "--no-same-owner", "oci:layout:1", "etc", "out"]);
    assert_eq!(std::fs::read_to_string(user.path("out/etc/motd")).unwrap(), "hello\n");
    assert_eq!(std::fs::read_to_string(user.path("out/etc/own")).unwrap(), "mine");
    assert_eq!(std::fs::read_to_string(user.path("outside")).unwrap(), "untouched");
    assert!(std::fs::symlink_metadata(user.path("out/etc/shadow")).unwrap().is_file());
    assert_eq!(std::fs::read_dir(user.path("out/etc")).unwrap().count(), 4, "no temporary file stays");
}

#[test]
fn a_copy_never_follows_a_symlink_of_the_destination() {
    let user = User::with_layout(&small());
    std::fs::create_dir_all(user.path("out")).unwrap();
    std::fs::create_dir(user.path("elsewhere")).unwrap();
    symlink(user.path("elsewhere"), user.path("out/etc")).unwrap();
    assert_snapshot!(user.run(&["cp", "oci:layout:1", "etc", "out"]).text, @r#"
    --- stderr
    error: cannot copy `etc` to `out/etc`: something that is not a directory is in the way
    --- exit 1
    "#);
    assert_eq!(std::fs::read_dir(user.path("elsewhere")).unwrap().count(), 0);
    std::fs::create_dir_all(user.path("in-the-way/motd")).unwrap();
    assert_snapshot!(user.run(&["cp", "oci:layout:1", "etc/motd", "in-the-way"]).text, @r#"
    --- stderr
    error: cannot copy `etc/motd` to `in-the-way/motd`: a directory is in the way
    --- exit 1
    "#);
}

#[test]
fn a_sparse_file_is_copied_with_its_holes() {
    const SIZE: u64 = 64 << 20;
    let mut records = Vec::new();
    for (key, value) in [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "holes"),
        ("GNU.sparse.realsize", &SIZE.to_string()),
    ] {
        append_pax(&mut records, key.as_bytes(), value.as_bytes());
    }
    let mut body = format!("2\n1048576\n4096\n{SIZE}\n0\n").into_bytes();
    body.resize(512, 0);
    body.extend_from_slice(&[b'd'; 4096]);
    let mut tar = Vec::new();
    Header { name: b"pax", kind: b'x', size: records.len() as u64, ..Header::EMPTY }.write(&mut tar);
    append_padded(&mut tar, &records);
    Header { name: b"holes", kind: b'0', size: body.len() as u64, mode: 0o644, ..Header::EMPTY }.write(&mut tar);
    append_padded(&mut tar, &body);
    let user = User::with_layout(&ImageBuilder::new().layer(LayerBuilder::new().raw(&tar)).build());
    user.run(&["cp", "--no-same-owner", "oci:layout:1", "holes", "copy"]);
    let found = std::fs::metadata(user.path("copy")).unwrap();
    assert_eq!(found.len(), SIZE);
    assert!(found.blocks() * 512 < 1 << 20, "{} blocks", found.blocks());
    let bytes = std::fs::read(user.path("copy")).unwrap();
    assert!(bytes[1 << 20..][..4096].iter().all(|byte| *byte == b'd'));
    assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 4096);
}

#[test]
fn a_set_id_program_does_not_change_hands() {
    let user = User::with_layout(
        &ImageBuilder::new()
            .layer(LayerBuilder::new().entry(Entry::file("su", "#!/bin/sh\n").mode(0o4755).owner(12345, 12345)))
            .build(),
    );
    let ran = user.run(&["cp", "--no-same-owner", "oci:layout:1", "su", "copy"]);
    assert_snapshot!(ran.text, @r#"
    --- stderr
    note: skipped the set-id bits of 1 file, as the copy has another owner
    "#);
    assert_eq!(std::fs::metadata(user.path("copy")).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn devices_are_copied_by_root_and_refused_to_others() {
    let user = User::with_layout(&small());
    let ran = user.run(&["cp", "oci:layout:1", "dev/null", "copy"]);
    if ran.output.status.success() {
        let found = std::fs::symlink_metadata(user.path("copy")).unwrap();
        assert!(found.file_type().is_char_device());
        assert_eq!(found.rdev(), rustix::fs::makedev(1, 3));
    } else {
        assert!(ran.text.contains("only root can create devices"), "{}", ran.text);
    }
}

#[test]
fn empty_variables_are_not_set_and_errors_name_others() {
    let (sandbox, directory) = (Sandbox::new(), tempfile::tempdir().unwrap());
    let layout = directory.path().join("layout");
    small().write_layout(&layout, "1").unwrap();
    let list = |name: &str, value: &str| {
        let reference = format!("oci:{}:1", layout.display());
        let output = sandbox.peelfs(["ls", &reference]).env(name, value).output().unwrap();
        (output.status.code(), said(&output))
    };
    for name in [
        "CACHE_SIZE",
        "PLATFORM",
        "INSECURE",
        "MIRROR",
        "HOSTS_DIR",
        "INDEX",
        "INDEX_FROM",
        "VERIFIER_DIR",
        "INDEX_VERIFIER_DIR",
        "LOG",
    ] {
        let (status, told) = list(&format!("PEELFS_{name}"), "");
        assert_eq!(status, Some(0), "{name}: {told}");
    }
    for value in ["0", "false", "no", "off", "1", "true", "yes"] {
        assert_eq!(list("PEELFS_INSECURE", value).0, Some(0), "{value}");
    }
    for (name, value) in [("PEELFS_INSECURE", "maybe"), ("PEELFS_CACHE_SIZE", "much"), ("PEELFS_INDEX", "some")] {
        let (status, told) = list(name, value);
        assert_eq!(status, Some(2), "{told}");
        assert!(told.contains(&format!("hint: the value is that of the variable `{name}`")), "{told}");
    }
}
