//! What a program does that reads or mounts images by itself: list a directory, read a file, serve a mount.
//!
//!     cargo run --example embed -- docker.io/library/alpine:3 ls /etc
//!     cargo run --example embed -- docker.io/library/alpine:3 cat /etc/os-release
//!     cargo run --example embed -- oci:./layout:latest mount ./dir     # until it is unmounted or interrupted

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context as _, bail};
use peelfs::host::spec::{ImageSpec, MountSpec};
use peelfs::host::{Silent, alone, open};
use peelfs::image::{Eagerness, Verify};
use peelfs::offsets::FileOffset;
use peelfs::overlay::Last;

#[allow(dead_code, reason = "a test includes this file")]
fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [reference, command, path] = &args[..] else { bail!("usage: embed IMAGE ls|cat|mount PATH") };
    let image = ImageSpec::new(reference.parse()?, open::default_cache_dir()?);
    match command.as_str() {
        "ls" => {
            for (name, size) in list(&image, path)? {
                println!("{size:>12} {name}");
            }
        }
        "cat" => std::io::stdout().write_all(&read(&image, path)?)?,
        "mount" => mount(image, Path::new(path))?,
        _ => bail!("`{command}` is none of ls, cat, mount"),
    }
    Ok(())
}

/// The names in a directory of an image, and how many bytes each has. Layers that cannot have a say are not fetched.
pub(crate) fn list(image: &ImageSpec, path: &str) -> anyhow::Result<Vec<(String, u64)>> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let files = open::open_alone(image).await?.files(Eagerness::OnDemand, Verify::BeforeShowing);
        // A question is asked again once the layer that it needs is known.
        let directory = files.awaited(|files| files.walk(path.as_bytes(), Last::Follow)).await?;
        let names = files.awaited(|files| {
            let mut names = Vec::new();
            files.list_with_attrs(directory.node, 0, |entry, attr| {
                names.push((String::from_utf8_lossy(entry.name).into_owned(), attr.size));
                ControlFlow::Continue(())
            })?;
            Ok(names)
        });
        names.await.context("cannot list the directory")
    })
}

/// The content of a file, verified. Of the layers that are known, only what holds it is fetched.
pub(crate) fn read(image: &ImageSpec, path: &str) -> anyhow::Result<Vec<u8>> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let files = open::open_alone(image).await?.files(Eagerness::OnDemand, Verify::BeforeShowing);
        let file = files.awaited(|files| files.walk(path.as_bytes(), Last::Follow)).await?;
        let mut content = Vec::new();
        while (content.len() as u64) < file.size {
            let piece = files.read(file.node, FileOffset(content.len() as u64), 1 << 20).await?;
            content.extend_from_slice(&piece);
        }
        Ok(content)
    })
}

/// Serves the image on the directory `at` until it is unmounted or this process is told to end.
pub(crate) fn mount(image: ImageSpec, at: &Path) -> anyhow::Result<()> {
    Ok(alone::serve(&MountSpec::new(image, std::path::absolute(at)?), Box::new(Silent))?)
}
