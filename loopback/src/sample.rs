//! The sample image: what the demo mounts.
//!
//! It holds a little of everything that makes images interesting (whiteouts, an opaque directory, a large
//! file of which a reader needs only a part, many small files, links, something to run) and is the same
//! on every machine, apart from one program copied from the host. A program is copied rather than built
//! because a static one cannot be had everywhere: run straight from the mount, without chroot, it finds
//! its loader and libraries on the host it came from.

use std::path::Path;

use bytes::Bytes;

use super::image::{Image, ImageBuilder, LayerBuilder};
use super::tar::Entry;

/// The sample and what to try on it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The image.
    pub image: Image,
    /// A script for `/bin/sh`, by its path in the image; it prints the contents of [`GREETING`].
    pub script: &'static str,
    /// A copy of a program of this host, by its path in the image, if one was found.
    pub program: Option<String>,
    /// The large file, by its path in the image.
    pub large_file: &'static str,
    /// What the large file holds.
    pub large_content: Bytes,
}

impl Sample {
    /// Builds the sample; it takes about a second.
    pub fn build() -> Self {
        let large_content = Bytes::from(prose(LARGE_SIZE));
        let program = PROGRAMS.iter().find_map(|path| {
            let content = std::fs::read(path).ok().filter(|content| content.starts_with(b"\x7fELF"))?;
            Some((format!("usr/bin/{}", Path::new(path).file_name()?.to_str()?), content))
        });

        let mut base = LayerBuilder::new();
        for dir in ["etc", "home", "opt", "tmp", "usr", "usr/bin", "usr/share", "usr/share/doc", "var", "var/cache"] {
            base = base.dir(dir);
        }
        base = base
            .symlink("bin", "usr/bin")
            .file("etc/os-release", "NAME=\"peelfs sample\"\nVERSION_ID=1\n")
            .file("etc/old.conf", "removed by a whiteout in an upper layer\n")
            .file("var/cache/stale", "hidden by an opaque whiteout in an upper layer\n");
        for number in 0..SMALL_FILES {
            if number % 100 == 0 {
                base = base.dir(&format!("usr/share/doc/{:02}", number / 100));
            }
            let path = format!("usr/share/doc/{:02}/{number:04}.txt", number / 100);
            base = base.file(&path, format!("document {number}\n").repeat(1 + number % 40));
        }
        let base = base.hard_link("usr/share/doc/first.txt", "usr/share/doc/00/0000.txt");

        let data = LayerBuilder::new().dir("opt/data").file("opt/data/large.txt", large_content.clone());

        let changes = LayerBuilder::new()
            .whiteout("etc/old.conf")
            .file("etc/os-release", "NAME=\"peelfs sample\"\nVERSION_ID=2\n")
            .dir("var/cache")
            .file("var/cache/fresh", "new in an upper layer\n")
            .opaque("var/cache")
            .whiteout("usr/share/doc/13");

        let mut top = LayerBuilder::new()
            .dir("usr/share/hello")
            .file(GREETING, "hello from an image that was not pulled\n")
            .entry(Entry::file(SCRIPT, HELLO).mode(0o755));
        let name = program.map(|(path, content)| {
            let layer = std::mem::take(&mut top);
            top = layer.entry(Entry::file(path.as_str(), content).mode(0o755));
            path
        });

        let image = ImageBuilder::new()
            .layer(base)
            .layer(data)
            .layer(changes)
            .layer(top)
            .config(serde_json::json!({ "Cmd": [format!("/{SCRIPT}")], "Env": ["PATH=/usr/bin"] }))
            .build();
        Self { image, script: SCRIPT, program: name, large_file: "opt/data/large.txt", large_content }
    }
}

/// What the script reads, by its path in the image.
pub const GREETING: &str = "usr/share/hello/greeting";

const SCRIPT: &str = "usr/bin/hello";
const HELLO: &str = "#!/bin/sh\nexec cat \"$(dirname \"$0\")/../share/hello/greeting\"\n";
const SMALL_FILES: usize = 2000;
const LARGE_SIZE: usize = 24 << 20;
/// Programs that need little more than libc and print something without input.
const PROGRAMS: [&str; 4] = ["/usr/bin/date", "/bin/date", "/usr/bin/uname", "/bin/ls"];

/// Text that compresses about as well as real files do: words drawn by a fixed xorshift.
fn prose(size: usize) -> Vec<u8> {
    const SYLLABLES: [&str; 16] = [
        "la", "yer", "span", "in", "dex", "mount", "whi", "te", "out", "blob", "di", "gest", "tar", "ma", "ni", "fest",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut text = Vec::with_capacity(size + 64);
    while text.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut bits = state;
        for _ in 0..1 + state % 4 {
            text.extend_from_slice(SYLLABLES[(bits >> 60) as usize].as_bytes());
            bits <<= 4;
        }
        text.push(if state.is_multiple_of(11) { b'\n' } else { b' ' });
    }
    text.truncate(size);
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_the_same_each_time() {
        let (one, two) = (Sample::build(), Sample::build());
        assert_eq!(one.image.root(), two.image.root());
        assert_eq!(one.image.layers().len(), 4);
        assert_eq!(one.large_content.len(), LARGE_SIZE);
        let large = &one.image.layers()[1];
        assert!(large.blob.len() * 2 < large.tar.len() && large.blob.len() * 8 > large.tar.len());
    }
}
