//! Registries: images over HTTP, by the OCI distribution specification.
//!
//! A lazy mount asks a registry for small ranges over weeks, where a pull asks for everything once.
//! So the client is our own: it resumes, renews, waits within bounds, believes no answer that does
//! not fit its question, and gives credentials to nobody but the registry and its token server.

mod challenge;
mod credentials;
mod http;
mod origin;
mod patience;
mod ranges;
mod tls;
