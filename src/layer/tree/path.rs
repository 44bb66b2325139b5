//! Paths as text, before any lookup.

use super::{NAME_MAX, TreeError, WHITEOUT, too_long};

/// A path without empty or `.` parts, with `..` applied and stopped at the root, and no surrounding slashes.
pub(in crate::layer) fn clean(path: &[u8], limit: usize) -> Result<Vec<u8>, TreeError> {
    if path.len() > limit {
        return Err(TreeError::PathTooLong { len: path.len(), limit });
    }
    if path.contains(&0) {
        return Err(TreeError::Nul { path: shown(path) });
    }
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => out.truncate(out.iter().rposition(|&byte| byte == b'/').unwrap_or(0)),
            _ => {
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    // Only remaining names must fit. A whiteout is not a file, so only the name that it hides must fit.
    let (_, last) = split_last(&out);
    let whiteout = last.starts_with(WHITEOUT) && last.len() <= WHITEOUT.len() + NAME_MAX;
    let parts = out[..if whiteout { out.len() - last.len() } else { out.len() }].split(|&byte| byte == b'/');
    match parts.into_iter().find(|part| part.len() > NAME_MAX) {
        Some(part) => Err(too_long(part)),
        None => Ok(out),
    }
}

pub(super) fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

pub(super) fn split_first(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().position(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (path, &[]),
    }
}

pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// The part of a path shown in an error.
pub(super) fn shown(path: &[u8]) -> Vec<u8> {
    path[..path.len().min(256)].to_vec()
}
