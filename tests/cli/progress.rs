//! Progress as a person sees it: on a terminal, while something takes long.

use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};

use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use support::random::Random;
use support::sandbox::{Sandbox, cannot_mount, said, terminal};

/// A program on a terminal.
struct Watched {
    child: Child,
    shown: String,
}

impl Watched {
    fn start(sandbox: &Sandbox, line: &str) -> Self {
        let plain = sandbox.peelfs([""; 0]);
        let child = terminal(&plain, line).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, shown: String::new() }
    }

    /// Reads until `words` were shown.
    #[track_caller]
    fn until(&mut self, words: &str) {
        let mut piece = [0; 4096];
        while !self.shown.contains(words) {
            let read = self.child.stdout.as_mut().unwrap().read(&mut piece).unwrap();
            assert!(read > 0, "it ended without showing `{words}`: {}", self.shown);
            self.shown.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    }

    /// All that was shown.
    #[track_caller]
    fn end(mut self) -> String {
        let mut rest = Vec::new();
        self.child.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
        self.shown.push_str(&String::from_utf8_lossy(&rest));
        assert!(self.child.wait().unwrap().success(), "{}", self.shown);
        self.shown
    }
}

/// Two files that do not compress, of 1 MiB each, and one of some lines.
fn image() -> Image {
    let mut random = Random::new(1);
    let mut noise = || (0..1 << 20).map(|_| random.below(256) as u8).collect::<Vec<u8>>();
    let lines = "a line\n".repeat(100);
    let layer = LayerBuilder::new().file("a", noise()).file("b", noise()).file("lines", lines);
    ImageBuilder::new().layer(layer.packing(Packing::Stored)).build()
}

struct Slow {
    registry: Registry,
    image: Image,
    reference: String,
    gate: Gate,
}

impl Slow {
    fn new() -> Self {
        let image = image();
        let registry = Registry::start(Catalog::new().image("library/app", "1", &image)).unwrap();
        let reference = registry.reference("library/app", "1");
        Self { registry, image, reference, gate: Gate::new() }
    }

    /// The layer stops after so many bytes of an answer, until the gate is opened.
    fn stall(&self, after: u64) {
        let target = Target::Blob(self.image.layers()[0].digest.clone());
        self.registry.faults().add(Rule::new(target, Fault::Stall { after, gate: self.gate.clone() }));
    }
}

#[test]
fn layers_that_are_read_are_shown_with_bytes_rate_and_time() {
    let (slow, sandbox) = (Slow::new(), Sandbox::new());
    slow.stall(1 << 20);
    let to = sandbox.path().join("copy");
    let mut watched = Watched::start(&sandbox, &format!("cp {} /a {}", slow.reference, to.display()));
    watched.until("reading layers");
    watched.until("/2.");
    watched.until("/s");
    slow.gate.open();
    let shown = watched.end();
    assert_eq!(std::fs::metadata(&to).unwrap().len(), 1 << 20, "{shown}");
}

#[test]
fn a_copy_is_shown_in_bytes() {
    let (slow, sandbox) = (Slow::new(), Sandbox::new());
    assert!(sandbox.run(["ls", &slow.reference]).status.success());
    sandbox.drop_content();
    // The second file does not come at once.
    let target = Target::Blob(slow.image.layers()[0].digest.clone());
    let gate = slow.gate.clone();
    slow.registry.faults().add(Rule::new(target, Fault::Hang(gate)).skip(1));
    let to = sandbox.path().join("copy");
    std::fs::create_dir(&to).unwrap();
    let mut watched = Watched::start(&sandbox, &format!("cp {} / {}", slow.reference, to.display()));
    watched.until("copying");
    watched.until("/2.00 MiB");
    slow.gate.open();
    watched.end();
    assert_eq!(std::fs::read(to.join("lines")).unwrap().len(), 700);
}

#[test]
fn lines_of_output_stay_whole_beside_a_bar() {
    let (slow, sandbox) = (Slow::new(), Sandbox::new());
    slow.stall(1 << 20);
    let mut watched = Watched::start(&sandbox, &format!("grep -rh line {} /", slow.reference));
    watched.until("reading layers");
    slow.gate.open();
    let shown = watched.end();
    assert_eq!(shown.matches("a line\r\n").count(), 100, "{shown:?}");
}

#[test]
fn a_mount_that_waits_shows_what_for() {
    if cannot_mount() {
        return;
    }
    let (slow, sandbox) = (Slow::new(), Sandbox::new());
    slow.stall(1 << 20);
    let at = sandbox.mount_point("a");
    let mut watched = Watched::start(&sandbox, &format!("mount --wait {} {}", slow.reference, at.path.display()));
    watched.until("reading layers");
    slow.gate.open();
    watched.end();
    at.unmount();
}

#[test]
fn a_quiet_command_shows_nothing() {
    let (slow, sandbox) = (Slow::new(), Sandbox::new());
    slow.stall(1 << 20);
    let to = sandbox.path().join("copy");
    let watched = Watched::start(&sandbox, &format!("cp --quiet {} /a {}", slow.reference, to.display()));
    let stalls = |log: &[peelfs_loopback::registry::Recorded]| log.iter().any(|one| one.body_bytes >= 1 << 20);
    assert!(slow.registry.wait_until(stalls));
    slow.gate.open();
    assert_eq!(watched.end(), "");
}

#[test]
fn an_import_is_shown_while_its_bytes_come() {
    let (slow, sandbox) = (Slow::new(), Sandbox::new());
    assert!(sandbox.run(["ls", &slow.reference]).status.success());
    let (exported, pipe) = (sandbox.path().join("exported"), sandbox.path().join("pipe"));
    let output = sandbox.peelfs(["index", "export", &slow.reference]).arg(&exported).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let bytes = std::fs::read(&exported).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let other = Sandbox::new();
    let mut watched = Watched::start(&other, &format!("index import {}", pipe.display()));
    let mut writer = std::fs::File::options().write(true).open(&pipe).unwrap();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    writer.write_all(first).unwrap();
    watched.until("importing indexes");
    writer.write_all(second).unwrap();
    drop(writer);
    assert!(watched.end().contains("imported the indexes of 1 layer\r\n"));
}

#[test]
fn a_push_shows_the_layer_that_it_reads() {
    let image = image();
    let catalog = Catalog::new().image("library/app", "1", &image).taking_pushes().listing_referrers();
    let registry = Registry::start(catalog).unwrap();
    let (gate, sandbox) = (Gate::new(), Sandbox::new());
    let target = Target::Blob(image.layers()[0].digest.clone());
    registry.faults().add(Rule::new(target, Fault::Stall { after: 1 << 20, gate: gate.clone() }));
    let reference = registry.reference("library/app", "1");
    let mut watched = Watched::start(&sandbox, &format!("index push {reference}"));
    watched.until("reading all of it");
    watched.until("reading layers");
    gate.open();
    assert!(watched.end().contains("pushed the indexes of 1 layer"));
}
