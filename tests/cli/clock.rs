//! Jumps of the wall clock do no harm: a real mount under libfaketime, years forth and back, with expiring tokens, a
//! registry that asks for pauses, a cache that is too small, and a server that dies.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use peelfs_loopback::auth::{Access, Realm, TokenRules, TokenService};
use peelfs_loopback::faults::{Fault, Rule, Target};
use peelfs_loopback::image::{ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use support::random::Random;
use support::sandbox::{Sandbox, cannot_mount, said};

const FILES: usize = 12;
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
const DAY: i64 = 24 * 3600;
/// Successive offsets of the wall clock in seconds.
const JUMPS: [i64; 6] = [0, 3650 * DAY, -3650 * DAY, 3 * DAY, -3600, 0];

#[test]
fn a_wall_clock_that_jumps_harms_nothing() {
    if cannot_mount() {
        return;
    }
    if !Path::new(LIBRARY).exists() {
        eprintln!("skipped: needs libfaketime");
        return;
    }
    let mut random = Random::new(5);
    let files: Vec<_> = (0..FILES).map(|_| random.bytes(600_000)).collect();
    let builder = |layer: usize| {
        let files = files.iter().enumerate().filter(|(number, _)| number % 2 == layer);
        files.fold(LayerBuilder::new(), |layer, (number, bytes)| layer.file(&number.to_string(), bytes.clone()))
    };
    let image = ImageBuilder::new().layer(builder(0)).layer(builder(1)).build();
    let registry = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
    let tokens = TokenService::new(TokenRules { expires_in: Some(300), ..TokenRules::default() });
    registry.set_access(Access::Bearer { tokens: tokens.clone(), realm: Realm::Here });

    let sandbox = Sandbox::new();
    let offset = sandbox.path().join("offset");
    let jump = |seconds: i64| std::fs::write(&offset, format!("{seconds:+}\n")).unwrap();
    let reference = registry.reference("app", "1");
    let at = sandbox.mount_point("mnt");
    let mount = || {
        // A part of the read data fits.
        let mut command = sandbox.peelfs(["mount", "--wait", "--cache-size", "3MiB", &reference]);
        command.arg(&at.path).env("LD_PRELOAD", LIBRARY).env("FAKETIME_TIMESTAMP_FILE", &offset);
        let only_the_wall_clock = ["FAKETIME_DONT_FAKE_MONOTONIC", "FAKETIME_NO_CACHE", "NO_FAKE_STAT"];
        command.envs(only_the_wall_clock.map(|variable| (variable, "1")));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    };
    jump(JUMPS[1]);
    mount();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(
        at.state().unwrap()["since"].as_u64().unwrap() > now + 3000 * DAY.unsigned_abs(),
        "the clock is the machine's"
    );

    for (turn, seconds) in JUMPS.into_iter().enumerate() {
        jump(seconds);
        match turn % 3 {
            0 => tokens.expire_tokens(),
            1 => registry.faults().add(Rule::new(Target::Blobs, Fault::too_many(LONG_AGO)).once()),
            _ => at.kill_server(),
        }
        for (number, content) in files.iter().enumerate() {
            let file = File::open(at.join(&number.to_string())).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let mut bytes = vec![0; content.len()];
            file.read_exact_at(&mut bytes, 0).unwrap_or_else(|error| panic!("{number} at {seconds} s: {error}"));
            assert!(bytes == *content, "{number} at {seconds} s: wrong bytes");
        }
        let status = sandbox.peelfs(["status", "--json"]).arg(&at.path).output().unwrap();
        assert!(status.status.success(), "{}", said(&status));
    }
    // Not one for each request, as if each token had expired at once.
    assert!(tokens.issued() <= 2 + JUMPS.len() as u64, "{} tokens", tokens.issued());
    at.unmount();

    // Files with times in the future are used and evicted as well.
    jump(0);
    mount();
    at.unmount();
    let pruned = sandbox.run(["cache", "prune", "--to", "1MiB"]);
    assert!(pruned.status.success(), "{}", said(&pruned));
    assert!(sandbox.store().usage().unwrap().layer_bytes() <= 1 << 20);
}

const LONG_AGO: &str = "Wed, 21 Oct 2015 07:28:00 GMT";
