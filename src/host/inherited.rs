//! Descriptors that a service manager hands to the process it starts (sd_listen_fds(3)).

use std::collections::HashMap;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// All of them by their names, of which the last one counts; none but at the first call.
///
/// # Errors
/// When the environment does not say what is there.
#[allow(unsafe_code)] // there is no safe way to own a descriptor of which only the number is known
pub fn take() -> io::Result<HashMap<String, OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    // Without any, systemd says nothing and others `LISTEN_FDS=0`, which has no list of names.
    let none = std::env::var_os("LISTEN_FDS").is_none_or(|count| count == "0");
    if none || TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(HashMap::new());
    }
    let numbers = sd_notify::listen_fds_with_names()?;
    // SAFETY: each is open, as its flags were just changed. The environment says that they were made for this very
    // process (`LISTEN_PID`), before it ran; so nothing in it can own them, and `TAKEN` lets no thread come here again.
    Ok(numbers.map(|(number, name)| (name, unsafe { OwnedFd::from_raw_fd(number) })).collect())
}
