//! The library alone: random images against the reference model, the model against umoci, and a short run of every fuzz
//! target.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod embedding;
mod fuzz_corpus;
mod layers;
mod metrics;
mod property;
mod reference_model;
mod soci;
