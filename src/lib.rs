//! peelfs mounts any OCI image as a directory, lazily, and verifies every byte it shows.
//!
//! The modules stand on floors and import downwards only (`tests/layering.rs` holds them to it):
//!
//! | floor | knows | modules |
//! |---|---|---|
//! | 5 front ends | people and the kernel | [`cli`], [`fuse`] |
//! | 4 image | one image as a file system | [`image`] |
//! | 3 content | how to make bytes present | [`content`] |
//! | 2 knowledge | what a layer and a tree look like | [`layer`], [`overlay`] |
//! | 1 bytes | where bytes come from, are decoded and kept | [`source`], [`codec`], [`store`] |
//! | 0 words | what things are called | [`digest`], [`descriptor`], [`offsets`], [`trust`], [`reference`], [`platform`], [`documents`] |

pub mod codec;
pub mod content;
pub mod descriptor;
pub mod digest;
pub mod documents;
pub mod fuse;
pub mod host;
pub mod image;
pub mod layer;
pub mod offsets;
pub mod overlay;
pub mod platform;
pub mod predict;
pub mod reference;
pub mod source;
pub mod span;
pub mod store;
mod sync;
pub mod trust;
