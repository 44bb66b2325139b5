//! Serves an OCI layout, or the sample image, on loopback: for trying clients by hand.
//!
//!     cargo run -p peelfs-loopback -- --port 5000 [--name library/demo] [LAYOUT_DIR]
//!
//! Every request is printed. It serves until it is interrupted.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use peelfs_loopback::auth::{Access, Realm, TokenRules, TokenService};
use peelfs_loopback::faults::{Fault, Rule, Target};
use peelfs_loopback::registry::{Catalog, Registry, Settings};
use peelfs_loopback::sample::Sample;

/// Serves an OCI layout, or the sample image, on 127.0.0.1.
#[derive(Parser)]
struct Args {
    /// The OCI layout; the sample image as `latest` if left out
    layout: Option<PathBuf>,
    /// The port; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The repository
    #[arg(long, default_value = "library/demo")]
    name: String,
    /// Asks for a token, given to every client
    #[arg(long)]
    tokens: bool,
    /// Sends blobs at so many bytes per second and connection
    #[arg(long)]
    pace: Option<u64>,
    /// Takes pushes, and lists referrers
    #[arg(long)]
    push: bool,
    /// Answers range requests with the whole blob
    #[arg(long)]
    ignore_ranges: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let catalog = match &args.layout {
        Some(dir) => {
            Catalog::new().layout(&args.name, dir).with_context(|| format!("cannot read {}", dir.display()))?
        }
        None => Catalog::new().image(&args.name, "latest", &Sample::build().image),
    };
    let catalog = if args.push { catalog.taking_pushes().listing_referrers() } else { catalog };
    let tags: Vec<String> = catalog.tags(&args.name).unwrap_or_default().iter().map(|tag| (*tag).to_owned()).collect();
    let access = match args.tokens {
        true => Access::Bearer { tokens: TokenService::new(TokenRules::default()), realm: Realm::Here },
        false => Access::Open,
    };
    let registry = Registry::start_with(Settings { catalog, access, port: args.port, tokens: None })?;
    let faults = args.pace.map(Fault::Pace).into_iter().chain(args.ignore_ranges.then_some(Fault::IgnoreRange));
    faults.for_each(|fault| registry.faults().add(Rule::new(Target::Blobs, fault)));
    for tag in &tags {
        println!("{}", registry.reference(&args.name, tag));
    }
    for next in 0.. {
        // A minute without a request is no reason to stop.
        while !registry.wait_until(|log| log.iter().any(|record| record.number == next && record.finished)) {}
        for record in registry.requests().iter().filter(|record| record.number == next) {
            let range = record.range().unwrap_or("-");
            let request = &record.request;
            eprintln!("{} {} {range} {} {}", request.method, request.path, record.status, record.body_bytes);
        }
    }
    Ok(())
}
