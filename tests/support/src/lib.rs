//! What several test programs share: random images, the model of what they must look like, walks over
//! a real directory and over an image in the model's terms, a place to run peelfs in, and readers
//! that put it under load.

#![allow(
    missing_docs,
    clippy::new_without_default,
    clippy::should_implement_trait,
    clippy::unwrap_used,
    reason = "only test programs use this"
)]

pub mod doomed;
pub mod load;
pub mod model;
pub mod random;
pub mod sandbox;
pub mod shown;
pub mod walk;
