//! The mount service: what is asked for, one mount's life, which process keeps it alive, hand-over, status.

pub(crate) mod background;
pub(crate) mod handover;
mod inherited;
pub(crate) mod keeper;
pub(crate) mod mount;
pub(crate) mod open;
pub(crate) mod probe;
pub(crate) mod server;
pub(crate) mod status;
mod systemd;
