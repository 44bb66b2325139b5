//! Embedding the library works as `examples/embed.rs` shows.

use std::path::Path;

use peelfs::fuse::{OpenFiles, mounts, unmount};
use peelfs::host::spec::ImageSpec;
use peelfs_loopback::image::{ImageBuilder, LayerBuilder};
use support::sandbox::cannot_mount;

#[path = "../../examples/embed.rs"]
mod embed;

/// An image with one directory, in a layout, and a cache of its own.
fn image(dir: &Path) -> ImageSpec {
    let layer = LayerBuilder::new().dir("d/").file("d/hello", "hello\n").file("d/empty", "");
    ImageBuilder::new().layer(layer.build()).build().write_layout(&dir.join("layout"), "1").unwrap();
    let reference = format!("oci:{}:1", dir.join("layout").display());
    ImageSpec::new(reference.parse().unwrap(), dir.join("cache"))
}

#[test]
fn a_program_lists_and_reads_without_a_mount() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let names = embed::list(&image, "/d").unwrap();
    assert_eq!(names, [("empty".to_owned(), 0), ("hello".to_owned(), 6)]);
    assert_eq!(embed::read(&image, "d/hello").unwrap(), b"hello\n");
    let missing = embed::read(&image, "d/none").unwrap_err();
    assert_eq!(missing.to_string(), "no such file or directory");
}

#[test]
fn a_program_serves_a_mount_by_itself() {
    if cannot_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, at) = (image(dir.path()), dir.path().join("mnt"));
    std::fs::create_dir(&at).unwrap();
    let serving = {
        let at = at.clone();
        std::thread::spawn(move || embed::mount(image, &at))
    };
    while mounts::at(&at).is_none() {
        assert!(!serving.is_finished(), "{:?}", serving.join());
        support::pause();
    }
    // A process that reads its own mount gets an error: it would wait for itself.
    let read = std::process::Command::new("cat").arg(at.join("d/hello")).output().unwrap();
    assert_eq!(read.stdout, b"hello\n");
    unmount(&at, OpenFiles::Refuse).unwrap();
    serving.join().unwrap().unwrap();
}
