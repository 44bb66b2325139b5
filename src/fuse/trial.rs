//! A mount that is made to see whether mounts work here, and unmounted at once.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use fuser::{Config, Filesystem, InitFlags, KernelConfig, Session, SessionACL};

use super::attach::{self, Attached, Target};
use super::device::Device;
use super::place::MountPlace;
use super::session::{MountError, MountOptions};
use super::through;
use crate::sync::lock;

/// What the kernel offers for mounts.
#[derive(Debug)]
pub struct Offers {
    /// It resends requests that a process has left unanswered, so that another one can take a mount over (Linux 6.9).
    pub resends: bool,
    /// Clones of a mount can map owners (Linux 6.12).
    pub idmap: bool,
    /// It reads files of the cache directly, or why not (Linux 6.9); `None` if that was not tried.
    pub passthrough: Option<Result<(), MountError>>,
}

/// Mounts an empty file system on `target`, which only its user should be able to enter, and unmounts it. `trial` is an
/// empty file on the cache's file system, to test passthrough with.
///
/// # Errors
/// [`MountError::Refused`]
pub fn try_mount(target: &Target, trial: Option<&File>) -> Result<Offers, MountError> {
    let refused = |cause| MountError::Refused { at: target.path().to_owned(), cause };
    let options = MountOptions { source: "peelfs-trial".to_owned(), ..MountOptions::default() };
    let Attached { connection, mount } = attach::attach(target, &options).map_err(refused)?;
    let place = mount.as_ref().map(MountPlace::of);
    let offers = negotiate(connection, trial).map_err(refused);
    // The connection is closed: nothing can wait for an answer any more.
    if let Some(place) = place {
        place.take_away().map_err(io::Error::other).map_err(refused)?;
    }
    offers
}

fn negotiate(connection: std::os::fd::OwnedFd, trial: Option<&File>) -> io::Result<Offers> {
    let device = Device::new(connection.try_clone()?);
    let offered = Arc::new(Mutex::new(InitFlags::empty()));
    let asker = Asker { offered: Arc::clone(&offered), passthrough: trial.is_some() };
    drop(Session::from_fd(asker, connection, SessionACL::Owner, Config::default())?);
    let offered = *lock(&offered);
    let passthrough = trial.map(|trial| match offered.contains(InitFlags::FUSE_PASSTHROUGH) {
        true => through::try_out(&device, trial).map_err(MountError::RefusedPassthrough),
        false => Err(MountError::NoPassthrough),
    });
    Ok(Offers {
        resends: offered.contains(InitFlags::FUSE_HAS_RESEND),
        idmap: offered.contains(InitFlags::FUSE_ALLOW_IDMAP),
        passthrough,
    })
}

/// Notes what the kernel offers.
struct Asker {
    offered: Arc<Mutex<InitFlags>>,
    passthrough: bool,
}

impl Filesystem for Asker {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        *lock(&self.offered) = config.capabilities();
        if self.passthrough {
            // Whether the kernel accepts them shows when a file is registered.
            let _ = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH);
            let _ = config.set_max_stack_depth(1);
        }
        Ok(())
    }
}
