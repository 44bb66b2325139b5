//! What several test programs share: random images, the model of what they must look like, and a walk
//! over a real directory in the model's terms.

// Each test program compiles this anew and uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared by test programs")]

pub mod model;
pub mod random;
pub mod walk;
