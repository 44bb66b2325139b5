//! Writes the seeds of every fuzz target where cargo-fuzz looks for them: `fuzz/corpus/TARGET/seed-N`.

#[path = "../../../../fuzz/seeds.rs"]
mod seeds;
#[path = "../../../../fuzz/targets.rs"]
#[allow(unreachable_pub, reason = "shared with cargo-fuzz")]
mod targets;

use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus"));
    for (name, _) in targets::TARGETS {
        let dir = corpus.join(name);
        std::fs::create_dir_all(&dir)?;
        for (number, seed) in seeds::of(name).into_iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
