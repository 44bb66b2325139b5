//! Images as EROFS over the content files, mounted by the kernel.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;

use peelfs::erofs::{self, Encoded};
use peelfs::fuse::Target as MountTarget;
use peelfs::image::ImageFs;
use peelfs::store::Store;

use super::*;
use support::model::NodeKind;

/// An image as a file, and the layers' files.
struct Written {
    dir: tempfile::TempDir,
    encoded: Encoded,
    files: erofs::Files,
}

impl Written {
    fn of(fs: &ImageFs) -> Result<Self, erofs::EncodeError> {
        let dir = tempfile::tempdir().unwrap();
        let mut image = File::options().read(true).write(true).create_new(true).open(dir.path().join("image")).unwrap();
        let encoded = erofs::encode(fs, &mut image)?;
        let device = |number: &_| fs.layer(*number).unwrap().layer().seal().unwrap();
        let files = erofs::Files { image, devices: encoded.devices.iter().map(device).collect() };
        Ok(Self { dir, encoded, files })
    }

    fn image(&self) -> std::path::PathBuf {
        self.dir.path().join("image")
    }

    /// Checks it with fsck.erofs, if that supports blocks of 512 bytes (erofs-utils 1.6).
    fn check(&self) {
        // It writes beyond a table of as many (erofs-utils 1.9.3).
        if self.files.devices.len() > 256 {
            return;
        }
        let mut command = Command::new("fsck.erofs");
        let devices = self.files.devices.iter().map(|file| format!("--device=/dev/fd/{}", file.as_raw_fd()));
        // It is given their names, and would be given the files themselves only without O_CLOEXEC.
        let names = devices.map(|device| device.replace("/dev/fd", &format!("/proc/{}/fd", std::process::id())));
        let Ok(output) = command.args(names).arg("--extract").arg(self.image()).output() else { return };
        let said = said(&output);
        if said.contains("isn't supported on this platform") {
            return eprintln!("skipped: this fsck.erofs knows no blocks of 512 bytes");
        }
        assert!(output.status.success(), "fsck.erofs: {said}");
    }

    /// Runs `look` on a mount of it.
    fn mounted<T>(&self, look: impl FnOnce(&Path) -> T) -> T {
        let at = self.dir.path().join("mnt");
        std::fs::create_dir_all(&at).unwrap();
        let target = MountTarget::open(&at).unwrap();
        let terms = erofs::Terms { reference: "127.0.0.1:1/image:1".into(), ..erofs::Terms::default() };
        erofs::attach(target.as_fd(), &self.files, &terms)
            .unwrap_or_else(|error| panic!("{}", peelfs::image::chain(&error)));
        let _unmounted = Unmount(&at);
        look(&at)
    }
}

pub(crate) struct Unmount<'a>(pub(crate) &'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = fuse::unmount(self.0, fuse::OpenFiles::Keep);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Opens `image` and gives it to `look`, with all layers cached.
fn with_image<T>(image: &Image, look: impl FnOnce(&ImageFs) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
    let source = MemorySource::new(image);
    runtime().block_on(async {
        let fs = shown::open(&source, &store).await.unwrap();
        tokio::task::block_in_place(|| look(&fs))
    })
}

/// What differs between the model and a mount of the written image.
fn differences(image: &Image, wanted: &BTreeMap<Vec<u8>, Seen>) -> Vec<String> {
    with_image(image, |fs| {
        let written = Written::of(fs).unwrap();
        let again = Written::of(fs).unwrap();
        assert_eq!(std::fs::read(written.image()).unwrap(), std::fs::read(again.image()).unwrap(), "the same bytes");
        written.check();
        written.mounted(|at| {
            let real = walk::seen(at).unwrap();
            let is_dir = |seen: &Seen| seen.node.kind == NodeKind::Dir;
            let mut dirs: BTreeMap<&[u8], u64> = BTreeMap::new();
            for path in real.iter().filter(|(path, seen)| !path.is_empty() && is_dir(seen)).map(|(path, _)| path) {
                *dirs.entry(support::model::parent_of(path)).or_default() += 1;
            }
            let links = real.iter().filter(|(_, seen)| is_dir(seen)).filter_map(|(path, _)| {
                let links = at.join(std::ffi::OsStr::from_bytes(path)).metadata().unwrap().nlink();
                let inside = dirs.get(&path[..]).copied().unwrap_or_default();
                let wrong = links != 2 + inside;
                wrong.then(|| format!("`{}` has {inside} directories and {links} links", path.escape_ascii()))
            });
            let mut lines = walk::differences(wanted, &real, Compare::Exactly);
            lines.extend(links);
            lines
        })
    })
}

/// Each image is made twice, checked by fsck.erofs if that supports blocks of 512 bytes, mounted, and compared with the
/// model: names, metadata, content, attributes, and the link counts of files and directories.
#[test]
fn random_images_are_the_same_shown_by_the_kernel_alone() {
    if cannot_mount() {
        return;
    }
    for seed in 0..super::seeds(12) {
        let shape = match seed % 3 {
            0 => Shape::whiteouts(),
            1 => Shape { through_links: true, ..Shape::default() },
            _ => Shape { large: 3_000_000, ..Shape::default() },
        };
        let random = random::image(seed, &shape);
        let lines = differences(&random.image, &random.tree.seen());
        assert!(lines.is_empty(), "seed {seed}:\n{}\n{}", lines.join("\n"), random.listing());
    }
}

#[test]
fn everything_that_layers_have_is_shown_by_the_kernel_alone() {
    if cannot_mount() {
        return;
    }
    let layers = everything();
    let lines = differences(&packed(&layers, &[Packing::GZIP, Packing::ZSTD], Family::Oci), &tree_of(&layers));
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

#[test]
fn five_hundred_layers_are_five_hundred_devices() {
    if cannot_mount() {
        return;
    }
    let layers: Vec<Vec<Entry>> = (0..500)
        .map(|number| {
            vec![Entry::file(format!("{number:03}"), number.to_string()), Entry::file("top", number.to_string())]
        })
        .collect();
    let image = packed(&layers, &[Packing::Stored], Family::Oci);
    with_image(&image, |fs| assert_eq!(Written::of(fs).unwrap().encoded.devices.len(), 500));
    let lines = differences(&image, &tree_of(&layers));
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

/// One layer is one device, however often an image has it.
#[test]
fn a_layer_that_comes_twice_is_one_device() {
    if cannot_mount() {
        return;
    }
    let [one, two] = ["a", "b"].map(|name| vec![Entry::file(name, name)]);
    let layers = [one.clone(), two, one];
    let image = packed(&layers, &[Packing::GZIP], Family::Oci);
    with_image(&image, |fs| assert_eq!(Written::of(fs).unwrap().encoded.devices.len(), 2));
    assert_eq!(differences(&image, &tree_of(&layers)), [] as [String; 0]);
}

/// Names of every length, in directories of one block and of many, and symlinks of every length.
#[test]
fn long_names_large_directories_and_long_links_are_shown() {
    if cannot_mount() {
        return;
    }
    let mut entries = vec![Entry::dir("none")];
    for length in 1..=255 {
        entries.push(Entry::file(format!("lengths/{}", "n".repeat(length)), length.to_string()));
        entries.push(Entry::symlink(format!("links/{length}"), "t".repeat(length * 16)));
        entries.push(Entry::dir(format!("dirs/{length}/{}", "d".repeat(length))));
    }
    for number in 0..4000 {
        entries.push(Entry::file(format!("many/{}", number * 7919 % 4000), ""));
    }
    let layers = [entries];
    let lines = differences(&packed(&layers, &[Packing::GZIP], Family::Oci), &tree_of(&layers));
    assert!(lines.is_empty(), "{}", lines[..lines.len().min(9)].join("\n"));
}

/// Many attributes of one file, the same ones of many files, the longest that fit, and access control lists.
#[test]
fn extended_attributes_are_shown_as_they_are() {
    if cannot_mount() {
        return;
    }
    let many = (0..300).fold(Entry::file("many", ""), |entry, number| entry.xattr(format!("user.{number}"), "x"));
    let acl =
        [&2_u32.to_le_bytes()[..], &acl_entry(1, 7, u32::MAX), &acl_entry(2, 4, 1234), &acl_entry(4, 5, u32::MAX)]
            .concat();
    let acl = [&acl[..], &acl_entry(0x10, 5, u32::MAX), &acl_entry(0x20, 0, u32::MAX)].concat();
    let mut entries = vec![
        many,
        Entry::file("long", "").xattr(format!("user.{}", "n".repeat(250)), vec![b'v'; 60_000]),
        Entry::file("acl", "").mode(0o750).xattr("system.posix_acl_access", acl.clone()),
        Entry::dir("acls").xattr("system.posix_acl_default", acl.clone()),
        Entry::symlink("link", "acl").xattr("security.note", "of a link").xattr("trusted.t", "of a link"),
        Entry::fifo("pipe").xattr("security.note", "of a pipe"),
    ];
    entries.extend(
        (0..500).map(|n| Entry::file(format!("d/{n}"), "").xattr("security.selinux", "system_u:object_r:usr_t:s0")),
    );
    let layers = [entries];
    let image = packed(&layers, &[Packing::GZIP], Family::Oci);
    assert_eq!(differences(&image, &tree_of(&layers)), [] as [String; 0]);
}

/// Names as in a library of Python, twenty to a directory.
#[test]
fn the_image_takes_at_most_130_bytes_an_entry() {
    if cannot_mount() {
        return;
    }
    let mut entries = Vec::new();
    for dir in 0..300 {
        entries.push(Entry::dir(format!("usr/lib/python3/dist-packages/package_{dir}")));
        for file in 0..19 {
            let name = format!("usr/lib/python3/dist-packages/package_{dir}/_module_{file}.py");
            entries.push(Entry::file(name, "import this"));
        }
    }
    let count = entries.len() as u64;
    with_image(&packed(&[entries], &[Packing::GZIP], Family::Oci), |fs| {
        let size = Written::of(fs).unwrap().encoded.size;
        assert!(size <= 130 * count, "{size} bytes for {count} entries");
    });
}

/// The walk forgets what it has read of the indexes, which are larger here than what it keeps; links across all of it stay.
#[test]
fn an_image_of_many_files_is_written_in_little_memory() {
    if cannot_mount() {
        return;
    }
    const DIRS: usize = 900;
    let mut entries = Vec::new();
    for dir in 0..DIRS {
        entries.push(Entry::dir(format!("d{dir:03}")));
        entries.extend((0..90).map(|file| Entry::file(format!("d{dir:03}/file-{file}"), "")));
        entries.push(match dir {
            0 => Entry::file("d000/link", "linked"),
            _ => Entry::hard_link(format!("d{dir:03}/link"), "d000/link"),
        });
    }
    let count = entries.len();
    with_image(&packed(&[entries], &[Packing::GZIP], Family::Oci), |fs| {
        let written = Written::of(fs).unwrap();
        // The walk has views of its own, and the spans take two pages at most.
        assert!(fs.resident_bytes() <= 128 << 10, "{} bytes", fs.resident_bytes());
        written.check();
        written.mounted(|at| {
            let names = walk_names(at);
            assert_eq!(names, count);
            let [first, last] = [0, DIRS - 1].map(|dir| at.join(format!("d{dir:03}/link")).metadata().unwrap());
            assert_eq!((first.ino(), first.nlink()), (last.ino(), DIRS as u64));
        });
    });
}

/// How many names there are below a directory.
fn walk_names(at: &Path) -> usize {
    let entries = std::fs::read_dir(at).unwrap().map(Result::unwrap);
    entries.map(|entry| 1 + if entry.file_type().unwrap().is_dir() { walk_names(&entry.path()) } else { 0 }).sum()
}

fn acl_entry(tag: u16, may: u16, id: u32) -> [u8; 8] {
    let mut entry = [0; 8];
    entry[..2].copy_from_slice(&tag.to_le_bytes());
    entry[2..4].copy_from_slice(&may.to_le_bytes());
    entry[4..].copy_from_slice(&id.to_le_bytes());
    entry
}

#[test]
fn an_attribute_that_erofs_cannot_hold_is_named() {
    for (name, value) in
        [("com.apple.quarantine", vec![1]), ("user.large", vec![0; 65_536]), ("system.nfs4_acl", vec![1])]
    {
        let layers = [vec![Entry::file("f", "").xattr(name, value)]];
        let error =
            with_image(&packed(&layers, &[Packing::GZIP], Family::Oci), |fs| Written::of(fs).map(drop)).unwrap_err();
        assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
    }
}

/// Pieces of a sparse file.
type Runs = Vec<(u64, Vec<u8>)>;

/// A file of `size` bytes with these runs, as GNU tar writes it.
fn sparse(path: &str, size: u64, runs: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut data = format!("{}\n", runs.len());
    runs.iter().for_each(|(at, bytes)| data.push_str(&format!("{at}\n{}\n", bytes.len())));
    let mut data = data.into_bytes();
    data.resize(data.len().next_multiple_of(512), 0);
    runs.iter().for_each(|(_, bytes)| data.extend_from_slice(bytes));
    let mut pax = Vec::new();
    for (key, value) in [("major", "1"), ("minor", "0"), ("name", path), ("realsize", &size.to_string())] {
        append_pax(&mut pax, format!("GNU.sparse.{key}").as_bytes(), value.as_bytes());
    }
    let mut raw = Vec::new();
    Header { name: b"pax", kind: b'x', size: pax.len() as u64, mode: 0o644, ..Header::EMPTY }.write(&mut raw);
    append_padded(&mut raw, &pax);
    Header { name: b"sparse", kind: b'0', size: data.len() as u64, mode: 0o600, ..Header::EMPTY }.write(&mut raw);
    append_padded(&mut raw, &data);
    raw
}

/// Holes, unaligned runs, files of terabytes, and a tar that ends in the middle of a block.
#[test]
fn sparse_files_and_odd_pieces_are_shown_byte_by_byte() {
    if cannot_mount() {
        return;
    }
    const TIB: u64 = 1 << 40;
    let mut random = Random::new(3);
    let mut files: Vec<(String, u64, Runs)> = vec![
        ("all-hole".into(), 9 * TIB + 5, vec![]),
        ("one-run".into(), 8 * TIB, vec![(4 * TIB + 4096, random.bytes(10_000))]),
        ("ends".into(), 5 * TIB, vec![(0, random.bytes(512)), (5 * TIB - 100, random.bytes(100))]),
        ("aligned".into(), 9 << 20, (0..9).map(|at| (at << 20, random.bytes(512 << at))).collect()),
        ("odd".into(), 3_000_000, (0..40).map(|at| (at * 70_001, random.bytes(1 + at as usize * 371))).collect()),
    ];
    for number in 0..20 {
        let (mut at, mut runs) = (0, Vec::new());
        for _ in 0..random.below(30) {
            at += [0, 512, 4096, 1, 100_000][random.below(5)];
            let length = [512, 4096, 1, 700, 65_536][random.below(5)];
            runs.push((at, random.bytes(length)));
            at += length as u64;
        }
        files.push((format!("random-{number}"), at + [0, 512, 77][random.below(3)], runs));
    }
    let raw: Vec<u8> = files.iter().flat_map(|(path, size, runs)| sparse(path, *size, runs)).collect();
    let last = random.bytes(5000);
    let layer = LayerBuilder::new().raw(&raw).file("last", last.clone()).without_end();
    with_image(&ImageBuilder::new().layer(layer).build(), |fs| {
        let written = Written::of(fs).unwrap();
        assert!(written.encoded.copied < 8 << 20 && written.encoded.size < 100 << 30, "{:?}", written.encoded);
        written.check();
        written.mounted(|at| {
            assert_eq!(std::fs::read(at.join("last")).unwrap(), last);
            for (path, size, runs) in &files {
                let file = File::open(at.join(path)).unwrap();
                assert_eq!(file.metadata().unwrap().len(), *size, "{path}");
                for (from, bytes) in runs {
                    let mut got = vec![0; bytes.len()];
                    file.read_exact_at(&mut got, *from).unwrap();
                    assert!(got == *bytes, "{path} at {from}");
                }
                if *size < 100 << 20 {
                    let mut wanted = vec![0; *size as usize];
                    for (from, bytes) in runs {
                        wanted[*from as usize..*from as usize + bytes.len()].copy_from_slice(bytes);
                    }
                    assert!(std::fs::read(at.join(path)).unwrap() == wanted, "{path}");
                } else {
                    let mut got = vec![1; 5000];
                    file.read_exact_at(&mut got, 3 * TIB).unwrap();
                    assert!(got.iter().all(|byte| *byte == 0), "{path}");
                }
            }
            let holes = File::open(at.join("one-run")).unwrap();
            let data = rustix::fs::seek(&holes, rustix::fs::SeekFrom::Data(0)).unwrap();
            assert!((4 * TIB - (1 << 30)..=4 * TIB + 4096).contains(&data), "{data}");
        });
    });
}

/// `-o nosuid,nodev` unless the user wants it otherwise, read-only in any case, and named after the image.
#[test]
fn a_kernel_mount_has_the_terms_of_other_mounts() {
    if cannot_mount() {
        return;
    }
    let layers = [vec![Entry::file("f", "x")]];
    with_image(&packed(&layers, &[Packing::GZIP], Family::Oci), |fs| {
        Written::of(fs).unwrap().mounted(|at| {
            let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            let line = text.lines().find(|line| line.contains(at.to_str().unwrap())).unwrap();
            assert!(line.contains(" ro,nosuid,nodev,noatime"), "{line}");
            assert!(line.contains(" - erofs peelfs:127.0.0.1:1/image:1 ro"), "{line}");
        });
    });
}
