//! Descriptors from the service manager that started this process (sd_listen_fds(3)).

use std::collections::HashMap;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The descriptors by name; of equal names the last wins. Empty after the first call.
///
/// # Errors
/// If the environment is inconsistent.
#[allow(unsafe_code)] // there is no safe way to own a descriptor of which only the number is known
pub fn take() -> io::Result<HashMap<String, OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    // Without descriptors, systemd sets nothing; others set `LISTEN_FDS=0` without a list of names.
    let none = std::env::var_os("LISTEN_FDS").is_none_or(|count| count == "0");
    if none || TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(HashMap::new());
    }
    let numbers = sd_notify::listen_fds_with_names()?;
    // SAFETY: each is open, as its flags were just changed. The environment says that they were made for this very
    // process (`LISTEN_PID`), before it ran; so nothing in it can own them, and `TAKEN` lets no thread come here again.
    Ok(numbers.map(|(number, name)| (name, unsafe { OwnedFd::from_raw_fd(number) })).collect())
}
