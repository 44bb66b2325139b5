//! A registry on loopback that can lie, and images to put into it.
//!
//! The demo needs a registry that is always there, and the tests need one that misbehaves at a byte of
//! their choosing: cuts a body, resets the connection, answers for another range, never answers. Web
//! frameworks exist to make such answers impossible, so this one is written on [`std::net::TcpListener`]
//! with one thread per connection and writes HTTP/1.1 by hand. It listens on 127.0.0.1 only, waits for
//! gates that a test opens instead of sleeping, and writes down every request it saw.
//! | module | content |
//! |---|---|
//! | [`registry`] | routes, ranges, what is served; the handle a test holds |
//! | [`faults`] | which request is answered wrongly, and how |
//! | [`auth`] | passwords, tokens and the tickets of redirect targets |
//! | [`tar`] | writing tar archives, good ones and odd ones |
//! | [`deflate`] | a gzip member of one deflate block, however long |
//! | [`image`] | layers, configurations, manifests and image indexes, in memory or as an OCI layout |
//! | [`chunked`] | layers with a table of contents (zstd:chunked, eStargz), good ones and odd ones |
//! | [`soci`] | layers and zTOCs that describe them, good ones and odd ones |
//! | [`sample`] | the image of the demo |
//!
//! Nothing here is used by a mount; the reading side shares no code with it beyond the ground floor, so
//! a misunderstanding of a format cannot hide by being made twice in the same function.

mod answer;
pub mod auth;
mod catalog;
pub mod chunked;
pub mod deflate;
pub mod faults;
mod http;
pub mod image;
mod push;
pub mod registry;
pub mod sample;
pub mod soci;
pub mod tar;

pub use http::Request;
