//! peelfs mounts any OCI image as a directory, lazily, and verifies every byte it shows. This is its library; the program
//! is the crate `peelfs-cli`.
//!
//! A program that reads images by itself makes an [`ImageSpec`](host::spec::ImageSpec), opens it with
//! [`host::open`], and asks the [`ImageFs`](image::ImageFs) that it gets; one that mounts makes a
//! [`MountSpec`](host::spec::MountSpec) and lets [`host::alone`] serve it. `examples/embed.rs` does all three:
//!
//! ```no_run
//! use peelfs::host::open;
//! use peelfs::host::spec::ImageSpec;
//! use peelfs::image::{Eagerness, Verify};
//! use peelfs::offsets::FileOffset;
//! use peelfs::overlay::Last;
//!
//! # async fn read() -> Result<(), Box<dyn std::error::Error>> {
//! let image = ImageSpec::new("docker.io/library/alpine:3".parse()?, "/var/cache/example");
//! let files = open::open_alone(&image).await?.files(Eagerness::OnDemand, Verify::BeforeShowing);
//! // A question is asked again once the layer that it needs is known.
//! let file = files.awaited(|files| files.walk(b"etc/os-release", Last::Follow)).await?;
//! let beginning = files.read(file.node, FileOffset(0), 4096).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The modules stand on floors and import downwards only (`tests/layering.rs` holds them to it):
//!
//! | floor | knows | modules |
//! |---|---|---|
//! | 5 host | mounts: what is asked for, their life, the kernel; what a container runtime is told | [`host`], [`fuse`], [`erofs`], [`bundle`], [`image_store`] |
//! | 4 image | one image as a file system | [`image`] |
//! | 3 content | how to make bytes present | [`content`] |
//! | 2 knowledge | what a layer and a tree look like, what is read next, who signed | [`layer`], [`overlay`], [`predict`], [`signature`] |
//! | 1 bytes | where bytes come from, are decoded and kept | [`source`], [`codec`], [`store`] |
//! | 0 words | what things are called | [`digest`], [`descriptor`], [`offsets`], [`trust`], [`reference`], [`platform`], [`documents`] |

pub mod bundle;
pub mod content;
pub mod descriptor;
pub mod digest;
pub mod documents;
pub mod erofs;
pub mod fuse;
pub mod host;
pub mod image;
pub mod image_store;
pub mod layer;
pub mod overlay;
pub mod platform;
pub mod predict;
mod process_group;
pub mod reference;
pub mod signature;
pub mod source;
pub mod span;
pub mod store;
mod sync;
pub mod trust;

// A crate of its own: it is optimised in builds of the profile `dev`, too.
pub use peelfs_codec as codec;
pub use peelfs_codec::offsets;
