//! The empty store below the mount.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Makes `at` an empty store. Existing files are kept.
///
/// # Errors
/// [`io::Error`]
pub fn make(at: &Path) -> io::Result<()> {
    for directory in ["", "overlay-images", "overlay-layers", "overlay", "overlay/l"] {
        let path = at.join(directory);
        if !path.is_dir() {
            std::fs::create_dir_all(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    for (file, text) in [
        ("overlay-images/images.json", "[]"),
        ("overlay-images/images.lock", ""),
        ("overlay-layers/layers.json", "[]"),
        ("overlay-layers/layers.lock", ""),
    ] {
        let path = at.join(file);
        if !path.exists() {
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}

/// Whether `at` holds anything else: the mount must not hide an engine's own store.
///
/// # Errors
/// [`io::Error`]
pub fn is_foreign(at: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(at)? {
        let name = entry?.file_name();
        if !["overlay-images", "overlay-layers", "overlay"].iter().any(|own| name == *own) {
            return Ok(true);
        }
    }
    let has_more = |directory: &str, own: &[&str]| {
        let names = std::fs::read_dir(at.join(directory)).into_iter().flatten().flatten();
        names.map(|entry| entry.file_name()).any(|name| !own.iter().any(|own| name == *own))
    };
    Ok(has_more("overlay-images", &["images.json", "images.lock"])
        || has_more("overlay-layers", &["layers.json", "layers.lock"])
        || has_more("overlay", &["l"]))
}
