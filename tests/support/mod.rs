//! What several test programs share: random images, the model of what they must look like, walks over
//! a real directory and over an image in the model's terms, a place to run peelfs in, and readers
//! that put it under load.

// Each test program compiles this anew and uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared by test programs")]

pub mod doomed;
pub mod load;
pub mod model;
pub mod random;
pub mod sandbox;
pub mod shown;
pub mod walk;
