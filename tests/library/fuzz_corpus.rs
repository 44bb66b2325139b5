//! A short, deterministic run of every fuzz target, without a fuzzer: seeds, inputs that once failed
//! (`fuzz/regressions/TARGET/*`), and mutations of both.
//!
//! `PEELFS_FUZZ_ROUNDS` says how many mutations of each target are tried. An input that fails is
//! written to the temporary directory and named in the message; `make fuzz` looks further.

#[path = "../../fuzz/seeds.rs"]
mod seeds;
#[path = "../../fuzz/targets.rs"]
#[allow(unreachable_pub, reason = "shared with cargo-fuzz")]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use targets::{TARGETS, Target};

#[test]
fn tars_become_trees_or_errors() {
    run("tar", 3000);
}

#[test]
fn indexes_with_any_content_answer() {
    run("index", 3000);
}

/// Otherwise mutations of them would never get farther than that.
#[test]
fn seeds_of_indexes_are_opened() {
    for seed in seeds::of("index") {
        let index = targets::sealed_index(&seed[..seed.len() - 1]);
        peelfs::layer::LayerIndex::open(index).unwrap();
    }
}

#[test]
fn gzip_decodes_alike_from_everywhere() {
    run("gzip", 3000);
}

#[test]
fn zstd_decodes_alike_from_everywhere() {
    run("zstd", 3000);
}

#[test]
fn any_checkpoint_decodes_or_fails() {
    run("checkpoint", 6000);
}

#[test]
fn documents_are_read_or_refused() {
    run("documents", 6000);
}

#[test]
fn references_can_be_typed_again() {
    run("reference", 30_000);
}

#[test]
fn platforms_can_be_typed_again() {
    run("platform", 30_000);
}

#[test]
fn requests_are_understood_or_refused() {
    run("wire", 30_000);
}

#[test]
fn tables_of_contents_become_trees_or_errors() {
    run("toc", 6000);
}

#[test]
fn ends_of_stargz_layers_are_read_or_refused() {
    run("estargz", 3000);
}

#[test]
fn artifacts_with_indexes_are_read_or_refused() {
    run("pushed", 6000);
}

#[test]
fn ztocs_become_trees_or_errors() {
    run("ztoc", 3000);
}

#[test]
fn every_target_has_seeds_and_a_program() {
    for (name, _) in TARGETS {
        assert!(!seeds::of(name).is_empty(), "{name} has no seeds");
        assert!(fuzz_dir().join(format!("fuzz_targets/{name}.rs")).exists(), "cargo-fuzz does not know {name}");
    }
}

/// Runs a target over its seeds, what once failed, and `rounds` mutations.
fn run(name: &str, rounds: u64) {
    let target = TARGETS.iter().find(|(known, _)| *known == name).unwrap().1;
    let rounds = std::env::var("PEELFS_FUZZ_ROUNDS").map_or(rounds, |rounds| rounds.parse().unwrap());
    let mut corpus = seeds::of(name);
    corpus.extend(regressions(name));
    for input in &corpus {
        guarded(name, target, input);
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds {
        let mut input = random.of(&corpus).clone();
        for _ in 0..1 + random.below(4) {
            mutate(&mut input, &corpus, &mut random);
        }
        guarded(name, target, &input);
    }
}

/// Runs a target over one input; a panic or a long wait fails the test and keeps the input.
fn guarded(name: &str, target: Target, input: &[u8]) {
    let begun = std::time::Instant::now();
    let done = catch_unwind(AssertUnwindSafe(|| target(input)));
    // No input of this size may take so long, however slow the machine.
    let slow = begun.elapsed() > Duration::from_secs(30);
    if done.is_err() || slow {
        let path = std::env::temp_dir().join(format!("peelfs-fuzz-{name}-{}", blake3::hash(input).to_hex()));
        std::fs::write(&path, input).unwrap();
        let what = if slow { "takes too long" } else { "fails" };
        panic!("`{name}` {what} on {}; put it into fuzz/regressions/{name}/ with the fix", path.display());
    }
}

fn regressions(name: &str) -> Vec<Vec<u8>> {
    let dir = fuzz_dir().join("regressions").join(name);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn fuzz_dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}

/// One small change, of a kind that parsers trip over.
fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    const NUMBERS: [u64; 10] =
        [0, 1, 127, 255, 1 << 16, (1 << 31) - 1, u32::MAX as u64, 1 << 33, i64::MAX as u64, u64::MAX];
    let at = random.below(input.len() as u64 + 1) as usize;
    let rest = input.len() - at;
    let some = (1 + random.below(64) as usize).min(rest);
    match random.below(8) {
        0 if rest > 0 => input[at] ^= 1 << random.below(8),
        1 if rest > 0 => input[at] = random.next() as u8,
        2 => input.truncate(at),
        3 => drop(input.drain(at..at + some)),
        4 => {
            let copy = input[at..at + some].to_vec();
            input.splice(at..at, copy);
        }
        5 => {
            let number = random.of(&NUMBERS).to_le_bytes();
            let width = (1 << random.below(4)).min(rest);
            input[at..at + width].copy_from_slice(&number[..width]);
        }
        6 => {
            // Numbers as text: octal in tar headers, decimal in JSON and PAX.
            let digit = b"0179"[random.below(4) as usize];
            let run = input[at..].iter().take(12).take_while(|byte| byte.is_ascii_digit()).count();
            input[at..at + run].fill(digit);
        }
        _ => {
            let other = random.of(corpus);
            let from = random.below(other.len() as u64 + 1) as usize;
            let take = (other.len() - from).min(512);
            input.splice(at..at, other[from..from + take].iter().copied());
        }
    }
}

/// xorshift64*: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}
