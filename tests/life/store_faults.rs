//! An image store in trouble: its registry, its disk, commands that are killed, engines that do not know it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::Entry;
use support::sandbox::{Sandbox, said};

use super::containers::system;
use super::image_store::{Store, cannot_run};

const NAME: &str = "team/app";

/// The system, and a layer of its own above it.
fn image() -> Option<Image> {
    let base = system().filter(|_| !cannot_run())?;
    let own = [Entry::file("own", "own\n")];
    Some(ImageBuilder::new().layer(LayerBuilder::of(&base)).layer(LayerBuilder::of(&own)).build())
}

fn served(image: &Image) -> (Registry, String) {
    let registry = Registry::start(Catalog::new().image(NAME, "1", image)).unwrap();
    let reference = registry.reference(NAME, "1");
    (registry, reference)
}

#[test]
fn an_image_is_added_whole_or_not_where_its_registry_fails() {
    let Some(image) = image() else { return };
    let (registry, reference) = served(&image);
    let sandbox = Sandbox::new();
    let store = Store::serve_at(&sandbox, sandbox.path().join("store"), &["--on-outage=offline"]);
    let upper = Target::Blob(image.layers()[1].digest.clone());
    registry.faults().add(Rule::new(upper, Fault::Reset { after: 10 }));
    let output = store.command(&["add", "--wait", "--on-outage=offline", &reference]).output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    assert!(said(&output).contains("cannot be fetched"), "{}", said(&output));
    assert_eq!((store.listed(), store.names()), (vec![], vec![]), "nothing of it is there");
    // Without `--wait` it is added: what it reads comes when the registry is back.
    store.peelfs(&["add", &reference]);
    assert_eq!(store.names(), std::slice::from_ref(&reference));
    let line =
        ["run", "--rm", "--pull=never", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"];
    let line = [&line[..], &[&reference, "cat", "/own"]].concat();
    let output = store.podman(&line);
    assert!(!output.status.success(), "{}", said(&output));
    assert_eq!(store.names(), std::slice::from_ref(&reference), "engines go on");
    registry.faults().clear();
    // It is asked again after a moment.
    let begun = Instant::now();
    while !store.podman(&line).status.success() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the registry is not asked again");
    }
    assert_eq!(store.run(&[&reference, "cat", "/own"]), "own");
    // Its manifest does not come.
    registry.faults().add(Rule::new(Target::Manifests, Fault::ResetBeforeHeaders));
    store.peelfs(&["remove", &reference]);
    let other = registry.reference(NAME, "2");
    let output = store.command(&["add", "--on-outage=offline", &other]).output().unwrap();
    assert!(!output.status.success(), "{}", said(&output));
    assert_eq!((store.listed(), store.names()), (vec![], vec![]));
}

#[test]
fn a_store_works_after_an_add_that_was_killed() {
    let Some(image) = image() else { return };
    let (registry, reference) = served(&image);
    let sandbox = Sandbox::new();
    let store = Store::serve_at(&sandbox, sandbox.path().join("store"), &[]);
    let other = ImageBuilder::new().layer(LayerBuilder::of(&[Entry::file("only", "2")])).build();
    other.write_layout(&sandbox.path().join("other"), "1").unwrap();
    let other = format!("oci:{}:1", sandbox.path().join("other").display());
    for is_known in [false, true] {
        let gate = Gate::new();
        let (target, fault) = match is_known {
            // It does not know what the image is.
            false => (Target::Manifests, Fault::Hang(gate.clone())),
            // It waits for a layer.
            true => (Target::Blob(image.layers()[1].digest.clone()), Fault::Stall { after: 10, gate: gate.clone() }),
        };
        registry.clear();
        registry.faults().add(Rule::new(target, fault));
        let mut add = store.command(&["add", "--wait", &reference]).stderr(Stdio::null()).spawn().unwrap();
        let asked = registry.wait_until(|seen| {
            seen.iter().any(|seen| match is_known {
                false => seen.is_manifest(),
                true => seen.request.path.ends_with(&image.layers()[1].digest.to_string()),
            })
        });
        assert!(asked);
        add.kill().unwrap();
        add.wait().unwrap();
        let wanted: &[String] = if is_known { std::slice::from_ref(&reference) } else { &[] };
        assert_eq!(store.listed(), wanted);
        // The process that serves it has been told, and is at it.
        let begun = Instant::now();
        while store.names() != wanted {
            assert!(begun.elapsed() < Duration::from_secs(60), "engines see {:?}", store.names());
            support::pause();
        }
        // It holds no lock.
        store.peelfs(&["add", "--name=localhost/other:1", &other]);
        assert!(store.names().contains(&"localhost/other:1".to_owned()));
        store.peelfs(&["remove", "localhost/other:1"]);
        registry.faults().clear();
        gate.open();
    }
    assert_eq!(store.run(&[&reference, "cat", "/own"]), "own");
    assert_eq!(temporary(&store), [""; 0]);
}

/// Files beside the records that a command has left.
fn temporary(store: &Store) -> Vec<String> {
    let records = PathBuf::from(format!("{}.images", store.at.display()));
    let names = std::fs::read_dir(records).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let known = |name: &str| ["lock", "serving", "socket", "numbers"].contains(&name);
    names.filter(|name| !known(name) && !name.ends_with(".json") && !name.ends_with(".removed")).collect()
}

#[test]
fn an_image_is_not_added_on_a_full_disk() {
    let Some(image) = image() else { return };
    let sandbox = Sandbox::new();
    image.write_layout(&sandbox.path().join("layout"), "1").unwrap();
    let reference = format!("oci:{}:1", sandbox.path().join("layout").display());
    let disk = sandbox.path().join("small");
    std::fs::create_dir(&disk).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if let Err(error) = rustix::mount::mount("tmpfs", &disk, "tmpfs", flags, Some(c"size=128k")) {
        eprintln!("skipped: cannot mount a tmpfs: {error}");
        return;
    }
    {
        let store = Store::serve_at(&sandbox, disk.join("store"), &[]);
        let filler = disk.join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        drop(file);
        let output = store.command(&["add", "--wait", "--name=localhost/app:1", &reference]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("No space left on device"), "{}", said(&output));
        assert_eq!((store.listed(), store.names(), temporary(&store)), (vec![], vec![], vec![]));
        std::fs::remove_file(&filler).unwrap();
        store.peelfs(&["add", "--wait", "--name=localhost/app:1", &reference]);
        assert_eq!(store.run(&["app:1", "cat", "/own"]), "own");
    }
    rustix::mount::unmount(&disk, rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// An engine that does not know the store works without it, and the command that adds an image says so.
#[test]
fn an_engine_that_does_not_know_the_store_is_no_error() {
    let Some(image) = image() else { return };
    let sandbox = Sandbox::new();
    image.write_layout(&sandbox.path().join("layout"), "1").unwrap();
    let reference = format!("oci:{}:1", sandbox.path().join("layout").display());
    let store = Store::serve_at(&sandbox, sandbox.path().join("store"), &[]);
    let known = store.peelfs(&["add", "--name=localhost/app:1", &reference]);
    assert!(!said(&known).contains("note:"), "the file names it: {}", said(&known));
    let configuration = sandbox.path().join("storage.conf");
    let text = std::fs::read_to_string(&configuration).unwrap();
    let without: Vec<_> = text.lines().filter(|line| !line.contains("additionalimagestores")).collect();
    std::fs::write(&configuration, without.join("\n")).unwrap();
    assert_eq!(store.names(), [""; 0]);
    let output = store.peelfs(&["add", "--name=localhost/app:1", &reference]);
    let wanted = format!(
        "note: `{}` does not name this store; engines use it with `additionalimagestores = [\"{}\"]`",
        configuration.display(),
        store.at.display()
    );
    assert!(said(&output).contains(&wanted), "{}", said(&output));
}
