//! Rows 1 to 10: hostile tars.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use peelfs::digest::{Algorithm, Digest};
use peelfs::image::Limits;
use peelfs_loopback::image::{ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::tar::{Entry, Header, append_end, append_padded, append_pax};

use super::{NAME, all_known, bounded, image, look, look_within, served, tried};
use support::random::Random;
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};

fn layer() -> LayerBuilder {
    LayerBuilder::new()
}

fn entry(entry: Entry) -> LayerBuilder {
    layer().entry(entry)
}

/// A PAX header that says `records` of the entry that follows.
fn pax(records: &[u8]) -> Vec<u8> {
    extension(b'x', records)
}

fn extension(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Header { name: b"extension", kind, size: body.len() as u64, mode: 0o644, ..Header::EMPTY }.write(&mut out);
    append_padded(&mut out, body);
    out
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    append_pax(&mut out, key.as_bytes(), value);
    out
}

#[test]
fn row_01_names_stay_inside_the_root() {
    let long = "n".repeat(255);
    let table: &[(&str, &[&str])] = &[
        ("/etc/x", &["etc/", "etc/x=!"]),
        ("//etc//x", &["etc/", "etc/x=!"]),
        ("./x", &["x=!"]),
        ("././/./x", &["x=!"]),
        ("a//b/./c", &["a/", "a/b/", "a/b/c=!"]),
        ("../x", &["x=!"]),
        ("../../../../../../x", &["x=!"]),
        ("a/../../../x", &["x=!"]),
        ("a/../b/..//c", &["c=!"]),
        ("/../../x", &["x=!"]),
        ("/proc/self/root/x", &["proc/", "proc/self/", "proc/self/root/", "proc/self/root/x=!"]),
        ("...", &["...=!"]),
        (".../x", &[".../", ".../x=!"]),
        ("..x", &["..x=!"]),
        ("x..", &["x..=!"]),
        ("C:\\x", &["C:\\\\x=!"]),
        ("~/x", &["~/", "~/x=!"]),
        ("a\nb", &["a\\nb=!"]),
        ("\x1b[2J", &["\\x1b[2J=!"]),
        ("/..", &[]),
        ("..", &[]),
        (".", &[]),
        ("/", &[]),
        ("", &[]),
        (&long, &[&format!("{long}=!")]),
    ];
    for (name, wanted) in table {
        assert_eq!(look([layer().file(name, "!")]).unwrap(), *wanted, "{name:?}");
    }
    let refused: [(&str, LayerBuilder); 4] = [
        ("a name of 256 bytes", layer().file(&"n".repeat(256), "")),
        ("a NUL in a path", layer().raw(&pax(&record("path", b"a\0b"))).file("x", "")),
        ("a NUL in a target", layer().raw(&pax(&record("linkpath", b"a\0b"))).symlink("x", "y")),
        ("a path of more than 64 KiB", layer().file(&"d/".repeat(40_000), "")),
    ];
    for (what, layer) in &refused {
        look([layer.clone()]).expect_err(what);
    }
    tried(1, table.len() + refused.len());
}

/// Known ways to escape from an unpacker's directory, with `outside` as the target.
fn breakouts(outside: &str) -> Vec<(&'static str, Vec<LayerBuilder>)> {
    let up = format!("{}{outside}", "../".repeat(20));
    let up = up.as_str();
    let passwd = |dir: &str| format!("{dir}/passwd");
    vec![
        ("an absolute name", vec![layer().file(&passwd(outside), "!")]),
        ("a name upwards", vec![layer().file(&passwd(up), "!")]),
        ("a directory upwards", vec![layer().dir(up).file(&passwd(up), "!")]),
        ("an absolute link", vec![layer().symlink("l", outside).file("l/passwd", "!")]),
        ("a relative link", vec![layer().symlink("l", up).file("l/passwd", "!")]),
        ("a link to the file", vec![layer().symlink("l", &passwd(outside)).file("l", "!")]),
        ("a link to a link", vec![layer().symlink("l", outside).symlink("m", "l").file("m/passwd", "!")]),
        ("links over directories", vec![layer().dir("d").symlink("d/l", up).file("d/l/passwd", "!")]),
        ("a link in another layer", vec![layer().symlink("l", outside), layer().file("l/passwd", "!")]),
        (
            "links in three layers",
            vec![layer().symlink("l", outside), layer().symlink("m", "l"), layer().file("m/passwd", "!")],
        ),
        (
            "a link that replaces a directory",
            vec![layer().dir("l"), layer().symlink("l", outside).file("l/passwd", "!")],
        ),
        (
            "a directory that replaces a link",
            vec![layer().symlink("l", outside), layer().dir("l").file("l/passwd", "!")],
        ),
        ("a directory over a link", vec![layer().symlink("l", outside).dir("l").file("l/passwd", "!")]),
        ("a link for the root", vec![layer().symlink(".", outside).file("passwd", "!")]),
        ("a link for the root, above", vec![layer().symlink("/", outside).file("passwd", "!")]),
        ("an absolute hard link", vec![layer().hard_link("h", &passwd(outside)).file("h", "!")]),
        ("a hard link upwards", vec![layer().hard_link("h", &passwd(up)).file("h", "!")]),
        ("a hard link through a link", vec![layer().symlink("l", outside).hard_link("h", "l/passwd")]),
        ("a hard link through a link below", vec![layer().symlink("l", up), layer().hard_link("h", "l/passwd")]),
        ("a hard link to a link", vec![layer().symlink("l", &passwd(outside)).hard_link("h", "l").file("h", "!")]),
        (
            "the mode of a hard link's target",
            vec![layer().symlink("l", outside).entry(Entry::hard_link("h", "l/passwd").mode(0o6777))],
        ),
        ("a hard link for a parent", vec![layer().hard_link("d", outside).file("d/passwd", "!")]),
        ("a whiteout upwards", vec![layer().file(&format!("{up}/.wh.passwd"), "")]),
        ("an absolute whiteout", vec![layer().file(&format!("{outside}/.wh.passwd"), "")]),
        ("a whiteout through a link", vec![layer().symlink("l", outside), layer().file("l/.wh.passwd", "")]),
        ("a whiteout through a link beside", vec![layer().symlink("l", outside).file("l/.wh.passwd", "")]),
        ("an opaque marker through a link", vec![layer().symlink("l", outside), layer().opaque("l")]),
        ("a whiteout of what is above", vec![layer().file(".wh...", "")]),
        ("a whiteout of the directory", vec![layer().file("d/.wh..", "")]),
        ("a whiteout with a slash", vec![layer().raw(&pax(&record("path", b".wh.a/../../passwd"))).file("x", "")]),
        ("a device through a link", vec![layer().symlink("l", outside).entry(Entry::char_device("l/passwd", 1, 3))]),
        ("a pipe through a link", vec![layer().symlink("l", outside).entry(Entry::fifo("l/passwd"))]),
        (
            "attributes through a link",
            vec![layer().symlink("l", &passwd(outside)).entry(Entry::file("l", "!").xattr("user.x", "y").mode(0o7777))],
        ),
        ("a long name of GNU tar's", vec![layer().raw(&extension(b'L', passwd(up).as_bytes())).file("x", "!")]),
        (
            "a long target of GNU tar's",
            vec![layer().raw(&extension(b'K', outside.as_bytes())).symlink("l", "x").file("l/passwd", "!")],
        ),
        ("a PAX path", vec![layer().raw(&pax(&record("path", passwd(up).as_bytes()))).file("x", "!")]),
    ]
}

#[test]
fn row_01_nothing_breaks_out_of_the_directory_it_is_copied_to() {
    let sandbox = Sandbox::new();
    let outside = sandbox.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("passwd"), "untouched").unwrap();
    let cases = breakouts(outside.to_str().unwrap());
    let state = |path: &Path| {
        let found = std::fs::metadata(path).unwrap();
        (found.permissions(), found.modified().unwrap(), std::fs::read(outside.join("passwd")).unwrap())
    };
    let before = (state(&outside.join("passwd")), state(&outside));
    for (number, (what, layers)) in cases.iter().enumerate() {
        let shown = look(layers.clone());
        for line in shown.iter().flatten() {
            // What a link of the image names is looked up in the image, so `outside` may exist in there.
            assert!(!line.split("->").next().unwrap().split('/').any(|name| name == ".."), "{what}: {line}");
            assert!(!line.contains("untouched"), "{what}: {line}");
        }
        let layout = sandbox.path().join("layout").join(number.to_string());
        image(layers.clone()).write_layout(&layout, "1").unwrap();
        let to = sandbox.path().join("to").join(number.to_string());
        std::fs::create_dir_all(&to).unwrap();
        let copied =
            sandbox.run(["cp", &format!("oci:{}:1", layout.display()), "/"].map(Path::new).iter().chain([&&*to]));
        assert_eq!(copied.status.success(), shown.is_ok(), "{what}: {} {shown:?}", said(&copied));
        assert_eq!((state(&outside.join("passwd")), state(&outside)), before, "{what}");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "{what}");
    }
    tried(1, cases.len());
}

#[test]
fn row_02_parents_that_are_links_are_followed_inside_the_image() {
    let chain = |links: usize| {
        let all = (0..links).fold(layer(), |layer, at| layer.symlink(&format!("l{at}"), &format!("l{}", at + 1)));
        all.file("l0/x", "!")
    };
    let table: Vec<(&str, Vec<LayerBuilder>, &[&str])> = vec![
        ("absolute", vec![layer().symlink("a", "/etc").file("a/x", "!")], &["a->/etc", "etc/", "etc/x=!"]),
        (
            "absolute, two layers",
            vec![layer().symlink("a", "/etc").dir("etc"), layer().file("a/x", "!")],
            &["a->/etc", "etc/", "etc/x=!"],
        ),
        (
            "upwards, two layers",
            vec![layer().symlink("d/a", "../../../etc").dir("etc"), layer().file("d/a/x", "!")],
            &["d/", "d/a->../../../etc", "etc/", "etc/x=!"],
        ),
        ("to the root", vec![layer().symlink("a", "/"), layer().file("a/x", "!")], &["a->/", "x=!"]),
        ("to itself by `.`", vec![layer().symlink("a", ".").file("a/a2", "!")], &["a->.", "a2=!"]),
    ];
    for (what, layers, wanted) in &table {
        assert_eq!(look(layers.clone()).unwrap(), *wanted, "{what}");
    }
    look([chain(200)]).expect("as far as containerd goes");
    let refused = [
        ("300 links", vec![chain(300)]),
        ("a link to itself", vec![layer().symlink("a", "a").file("a/x", "!")]),
        ("two links to each other", vec![layer().symlink("a", "b").symlink("b", "a").file("a/x", "!")]),
        ("a loop by way of a directory", vec![layer().symlink("d/a", "../d/a/b").file("d/a/x", "!")]),
        (
            "doubling links",
            vec![
                (1..40)
                    .fold(layer().dir("l0"), |layer, at| {
                        let below = at - 1;
                        layer.symlink(&format!("l{at}"), &format!("l{below}/../l{below}/../l{below}"))
                    })
                    .file("l39/x", "!"),
            ],
        ),
    ];
    for (what, layers) in &refused {
        let told = look(layers.clone()).expect_err(what);
        assert!(told.contains("symbolic links"), "{what}: {told}");
    }
    // A loop in lower layers affects no entry: nothing is hidden by it and no reader hangs.
    look([layer().symlink("a", "b").symlink("b", "a"), layer().file("a/x", "!")]).ok();
    tried(2, table.len() + refused.len() + 2);
}

#[test]
fn row_03_hard_links_lead_to_files_of_the_image_only() {
    let table: Vec<(&str, Vec<LayerBuilder>, &[&str])> = vec![
        ("to a file", vec![layer().file("f", "!").hard_link("h", "f")], &["f=!", "h=!"]),
        ("absolute", vec![layer().file("f", "!").hard_link("h", "/f")], &["f=!", "h=!"]),
        ("upwards", vec![layer().file("f", "!").hard_link("d/h", "../../f")], &["d/", "d/h=!", "f=!"]),
        (
            "to a symlink",
            vec![layer().symlink("s", "/etc/passwd").hard_link("h", "s")],
            &["h->/etc/passwd", "s->/etc/passwd"],
        ),
        ("to a pipe", vec![layer().entry(Entry::fifo("p")).hard_link("h", "p")], &["h|", "p|"]),
        ("to a link", vec![layer().file("f", "!").hard_link("g", "f").hard_link("h", "g")], &["f=!", "g=!", "h=!"]),
        ("to a lower layer's file", vec![layer().file("f", "!"), layer().hard_link("h", "f")], &["f=!", "h=!"]),
        (
            "to a file that is whited out",
            vec![layer().file("f", "!"), layer().whiteout("f").hard_link("h", "f")],
            &["h=!"],
        ),
        ("forward", vec![layer().hard_link("h", "f").file("f", "!")], &["f=!"]),
        ("to nothing", vec![layer().hard_link("h", "/etc/passwd")], &[]),
        ("to itself", vec![layer().hard_link("h", "h")], &[]),
    ];
    let mut differing = Vec::new();
    for (what, layers, wanted) in &table {
        let shown = look(layers.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
        if shown != *wanted {
            differing.push(format!("{what}: {shown:?} instead of {wanted:?}"));
        }
    }
    assert!(differing.is_empty(), "{differing:#?}");
    for target in ["d", ".", "/", ""] {
        let told = look([layer().dir("d").hard_link("h", target)]).expect_err(target);
        assert!(told.contains("hard link"), "{told}");
    }
    tried(3, table.len() + 4);
}

#[test]
fn row_04_whiteouts_hide_lower_layers_and_nothing_else() {
    let lower = || layer().dir("d").file("d/a", "low").file("d/b", "low").file("c", "low");
    let low = ["c=low", "d/", "d/a=low", "d/b=low"];
    let mut table: Vec<(&str, LayerBuilder, &[&str])> = vec![
        ("a whiteout", layer().whiteout("d/a"), &["c=low", "d/", "d/b=low"]),
        ("file, then whiteout", layer().file("d/a", "up").whiteout("d/a"), &["c=low", "d/", "d/a=up", "d/b=low"]),
        ("whiteout, then file", layer().whiteout("d/a").file("d/a", "up"), &["c=low", "d/", "d/a=up", "d/b=low"]),
        ("opaque, then file", layer().opaque("d").file("d/x", "up"), &["c=low", "d/", "d/x=up"]),
        ("file, then opaque", layer().file("d/x", "up").opaque("d"), &["c=low", "d/", "d/x=up"]),
        ("opaque in the root", layer().opaque("").file("x", "up"), &["x=up"]),
        ("opaque in the root, late", layer().file("x", "up").opaque(""), &["x=up"]),
        ("of a directory", layer().whiteout("d"), &["c=low"]),
        ("of what is not there", layer().whiteout("d/none"), &low),
        ("twice", layer().whiteout("d/a").whiteout("d/a"), &["c=low", "d/", "d/b=low"]),
        ("of mode 000", entry(Entry::whiteout("d/a").mode(0)), &["c=low", "d/", "d/b=low"]),
        ("AUFS's own files", layer().file(".wh..wh.plnk", "x").file(".wh..wh.aufs", "x"), &low),
        ("AUFS's own directory", layer().dir(".wh..wh.orph"), &low),
        ("through a link", layer().symlink("l", "d").file("l/.wh.a", ""), &["c=low", "d/", "d/b=low", "l->d"]),
        ("of a name that begins like one", layer().whiteout(".wh.x"), &low),
    ];
    for (what, upper, wanted) in table.drain(..) {
        assert_eq!(look([lower(), upper]).unwrap(), wanted, "{what}");
    }
    let refused = [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."];
    for name in refused {
        let told = look([lower(), layer().file(name, "")]).expect_err(name);
        assert!(told.contains("names no file"), "{name}: {told}");
    }
    // Only the last part of a name makes a whiteout; what lies below one is there for hard links and not shown.
    assert_eq!(look([lower(), layer().file(".wh.d/a", "x")]).unwrap(), low);
    let linked = layer().file(".wh.d/a", "x").hard_link("e", ".wh.d/a");
    assert_eq!(look([lower(), linked]).unwrap(), [&low[..], &["e=x"]].concat());
    assert_eq!(look([lower(), entry(Entry::dir(".wh.d"))]).unwrap(), ["c=low"]);
    tried(4, 15 + refused.len() + 3);
}

#[test]
fn row_05_devices_and_set_id_programs_are_shown_and_inert() {
    if cannot_mount() || is_missing("id") {
        return;
    }
    let program = std::fs::read("/usr/bin/id").unwrap();
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let special = layer()
        .entry(Entry::file("id", program).mode(0o6755).xattr("security.capability", capability))
        .entry(Entry::char_device("null", 1, 3).mode(0o666))
        .entry(Entry::block_device("disk", 8, 0).mode(0o666))
        .entry(Entry::fifo("pipe"));
    let registry = served(&image([special]));
    let sandbox = Sandbox::new();
    // Other users need access to the mount point.
    open_up(sandbox.path());
    let reference = registry.reference(NAME, "1");
    let run = |at: &Path| {
        let output = Command::new(at.join("id")).arg("-u").uid(1000).gid(1000).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };

    let at = sandbox.mount_point("a");
    let output = at.try_mount(&reference, &["--wait", "--allow-other"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(run(&at.path), "1000", "the set-id bit must not count");
    for device in ["null", "disk"] {
        let error = std::fs::File::open(at.join(device)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ACCESS.raw_os_error()), "{device}");
    }
    let shown = sandbox.run(["ls", "-l", &reference]);
    for mode in ["-rwsr-sr-x", "crw-rw-rw-", "brw-rw-rw-", "prw-r--r--"] {
        assert!(String::from_utf8_lossy(&shown.stdout).contains(mode), "{mode}: {}", said(&shown));
    }
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(at.join("id"), "security.capability", &mut value).unwrap();
    assert_eq!(&value[..length], capability);
    at.unmount();

    // A mount that needs them, as a container's root directory, says so.
    let output = at.try_mount(&reference, &["--wait", "-o", "allow_other,suid,dev"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(run(&at.path), "0");
    std::fs::File::open(at.join("null")).unwrap();
    at.unmount();
    tried(5, 4);
}

/// Lets others into a directory.
pub(super) fn open_up(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    for path in [path.to_owned(), path.join("mnt")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn row_06_a_bomb_takes_neither_memory_nor_more_than_its_limit() {
    let zeros = vec![0; 300 << 20];
    let empty_members = {
        let member = LayerBuilder::new().without_end().build().blob; // nothing, compressed
        member.repeat(200_000)
    };
    let fitting: Vec<(&str, LayerBuilder)> = vec![
        ("zeros in gzip", layer().file("zeros", zeros.clone())),
        (
            "zeros in gzip members",
            layer().file("zeros", zeros.clone()).packing(Packing::Gzip { level: 9, member: Some(1 << 20) }),
        ),
        ("zeros in zstd", layer().file("zeros", zeros.clone()).packing(Packing::ZSTD)),
        ("empty gzip members", layer().file("zeros", vec![0; 100]).trailer(&empty_members)),
        ("a sparse file of 4 EiB", sparse(1 << 62)),
    ];
    let inputs = fitting.len();
    for (what, layer) in fitting {
        let sandbox = Sandbox::new();
        let registry = served(&image([layer]));
        let output = bounded(&sandbox, ["ls", &registry.reference(NAME, "1")]).output().unwrap();
        assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"zeros\n"[..]), "{what}: {}", said(&output));
    }

    // A window of 2 GiB must not allocate that memory.
    let mut asking = layer().file("zeros", vec![0; 100]).packing(Packing::ZSTD).build();
    asking.blob = asking_for_a_window_of(&asking.tar, 31).into();
    asking.digest = Digest::of(Algorithm::Sha256, &asking.blob);
    let sandbox = Sandbox::new();
    let registry = served(&ImageBuilder::new().layer(asking).build());
    let output = bounded(&sandbox, ["ls", &registry.reference(NAME, "1")]).output().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"zeros\n"[..]), "{}", said(&output));

    let mut limits = Limits::default();
    limits.codec.decoded = 1 << 20;
    for packing in [Packing::GZIP, Packing::ZSTD, Packing::Stored] {
        let bomb = layer().file("zeros", vec![0; 2 << 20]).packing(packing);
        let told = look_within(&limits, [bomb]).expect_err("it is twice as large as is allowed");
        assert!(told.contains("1048576"), "{told}");
    }
    let mut limits = Limits::default();
    limits.codec.ratio_free = 1 << 20;
    let told = look_within(&limits, [layer().file("zeros", zeros).packing(Packing::ZSTD)]).expect_err("ratio");
    assert!(told.contains("2000"), "{told}");
    tried(6, inputs + 5);
}

/// These bytes in a zstd frame that asks for a window of two to that power, as `zstd --long=31` writes it from a pipe.
fn asking_for_a_window_of(bytes: &[u8], log: u8) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    let mut frame = encoder.finish().unwrap();
    // RFC 8878, 3.1.1.1: no single segment, so that the byte after the descriptor is the window's.
    assert_eq!(frame[4] & 0x20, 0);
    frame[5] = (log - 10) << 3;
    frame
}

/// A window above the limit is reported as such, also to a reader of a file.
#[test]
fn row_06_a_window_beyond_the_limit_is_told_as_such() {
    let mut random = Random::new(3);
    let part = random.bytes(400_000);
    let far = layer().file("a", part.clone()).file("b", part).packing(Packing::ZSTD);
    let mut limits = Limits::default();
    limits.codec.zstd_window_log = 17;
    let told = look_within(&limits, [far]).expect_err("the second file refers to the first");
    assert!(told.contains("needs a window of") && told.contains("the limit is 131072 bytes"), "{told}");
    assert!(!told.contains("diff_id"), "{told}");
    tried(6, 1);
}

/// A sparse file in GNU tar's PAX form 1.0 that is all hole.
fn sparse(size: u64) -> LayerBuilder {
    let records = [
        record("GNU.sparse.major", b"1"),
        record("GNU.sparse.minor", b"0"),
        record("GNU.sparse.name", b"zeros"),
        record("GNU.sparse.realsize", size.to_string().as_bytes()),
    ];
    let mut map = b"1\n".to_vec();
    map.extend_from_slice(format!("{size}\n0\n").as_bytes());
    map.resize(512, 0);
    layer().raw(&pax(&records.concat())).file("GNUSparseFile/zeros", map)
}

#[test]
fn row_07_header_numbers_are_checked_and_faults_name_the_place() {
    const FIELDS: [(&str, usize, usize); 7] = [
        ("mode", 100, 8),
        ("uid", 108, 8),
        ("gid", 116, 8),
        ("size", 124, 12),
        ("mtime", 136, 12),
        ("major", 329, 8),
        ("minor", 337, 8),
    ];
    let values = |len: usize| -> Vec<Vec<u8>> {
        let base256 = |number: i128| {
            let mut field = number.to_be_bytes()[16 - len..].to_vec();
            field[0] |= 0x80;
            field
        };
        let text = |text: &str| {
            let mut field = text.as_bytes().to_vec();
            field.resize(len, 0);
            field
        };
        let mut all =
            vec![vec![0xff; len], vec![0x80; len], vec![b' '; len], vec![0; len], vec![b'7'; len], vec![b'z'; len]];
        all.extend([-1, -2, 1, 1 << 31, 1 << 32, (1 << 55) - 1].map(base256));
        all.extend(["8", "-1", "+1", "0x10", "1 2", " 12", "12 ", "1e3", "\u{00b9}", "00000001"].map(text));
        if len == 12 {
            all.extend([i128::from(i64::MAX), 1 << 63, i128::from(u64::MAX), 1 << 33, -(1 << 62)].map(base256));
        }
        all
    };
    let mut inputs = 0;
    let mut outcomes = BTreeMap::<&str, (usize, usize)>::new();
    for (name, at, len) in FIELDS {
        for value in values(len) {
            let mut block = Vec::new();
            let kind = if name.starts_with('m') && at > 300 { b'3' } else { b'0' };
            Header { name: b"victim", kind, size: 0, mode: 0o644, ..Header::EMPTY }.write(&mut block);
            block[at..at + len].copy_from_slice(&value);
            for checksum in [Checksum::Unsigned, Checksum::Signed, Checksum::Wrong] {
                checksum.write(&mut block);
                inputs += 1;
                let counts = outcomes.entry(name).or_default();
                match look([layer().file("first", "1").raw(&block).file("last", "3")]) {
                    Ok(shown) => {
                        assert_ne!(checksum, Checksum::Wrong, "{name} {value:?}");
                        assert!(
                            shown.len() <= 3 && shown.contains(&"first=1".to_owned()),
                            "{name} {value:?}: {shown:?}"
                        );
                        counts.0 += 1;
                    }
                    Err(told) => {
                        assert!(told.contains("at offset"), "where it is: {told}");
                        counts.1 += 1;
                    }
                }
            }
        }
    }
    eprintln!("row 07: (shown, refused) {outcomes:?}");
    assert!(inputs >= 200);
    tried(7, inputs);
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Checksum {
    Unsigned,
    Signed,
    Wrong,
}

impl Checksum {
    fn write(self, block: &mut [u8]) {
        block[148..156].copy_from_slice(b"        ");
        let sum: i64 = match self {
            Self::Signed => block.iter().map(|byte| i64::from(byte.cast_signed())).sum(),
            Self::Unsigned | Self::Wrong => block.iter().map(|byte| i64::from(*byte)).sum(),
        };
        let sum = if self == Self::Wrong { sum + 1 } else { sum };
        // A signed sum below zero is one that no tar has ever written; its low bits will do.
        block[148..155].copy_from_slice(format!("{:06o}\0", sum & 0o777_777).as_bytes());
    }
}

#[test]
fn row_08_one_reading_of_every_size_and_name() {
    // RUSTSEC-2025-0111: the PAX size covers a whole archive that the header's size of 0 would reveal.
    let mut inner = Vec::new();
    Entry::file("smuggled", "!").write(&mut inner);
    append_end(&mut inner);
    let mut nested = pax(&record("size", inner.len().to_string().as_bytes()));
    Header { name: b"outer", size: 0, mode: 0o644, ..Header::EMPTY }.write(&mut nested);
    append_padded(&mut nested, &inner);
    let covered = layer().file("before", "1").raw(&nested).file("after", "2");
    let names =
        |shown: &[String]| shown.iter().map(|line| line.split('=').next().unwrap().to_owned()).collect::<Vec<_>>();
    let shown = look([covered.clone()]).unwrap();
    assert_eq!(names(&shown), ["after", "before", "outer"]);
    if !is_missing("python3") {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("tar");
        std::fs::write(&tar, covered.build().tar).unwrap();
        let list = "import sys, tarfile; print('\\n'.join(sorted(tarfile.open(sys.argv[1]).getnames())))";
        let output = Command::new("python3").args(["-c", list]).arg(tar).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().collect::<Vec<_>>(), names(&shown));
    }

    let with = |records: Vec<u8>| layer().raw(&pax(&records)).file("f", "!");
    let accepted: Vec<(&str, LayerBuilder, &[&str])> = vec![
        ("the last of two", with([record("path", b"a"), record("path", b"b")].concat()), &["b=!"]),
        ("a global path", layer().raw(&extension(b'g', &record("path", b"g"))).file("f", "!"), &["f=!"]),
        ("a comment", with(record("comment", &[0xff; 100])), &["f=!"]),
        ("an unknown key", with(record("VENDOR.x", b"y")), &["f=!"]),
        ("an equals sign in a value", with(record("path", b"a=b")), &["a=b=!"]),
        ("a size that agrees", with(record("size", b"1")), &["f=!"]),
    ];
    for (what, layer, wanted) in &accepted {
        assert_eq!(look([layer.clone()]).unwrap(), *wanted, "{what}");
    }
    let malformed: Vec<(&str, Vec<u8>)> = vec![
        ("no length", b"path=x\n".to_vec()),
        ("a length of 0", b"0 path=x\n".to_vec()),
        ("a negative length", b"-9 path=x\n".to_vec()),
        ("a length too small", b"5 path=x\n".to_vec()),
        ("a length too large", b"99 path=x\n".to_vec()),
        ("a huge length", b"99999999999999999999999 path=x\n".to_vec()),
        ("no line end", b"9 path=xy".to_vec()),
        ("no equals sign", b"8 pathx\n".to_vec()),
        ("no blank", b"9path=xx\n".to_vec()),
        ("something behind", [record("path", b"x"), b"garbage".to_vec()].concat()),
        ("a size that is no number", record("size", b"1x")),
        ("a negative size", record("size", b"-1")),
        ("a huge size", record("size", b"99999999999999999999999")),
        ("a size beyond the stream", record("size", b"1000000")),
        ("a user that is no number", record("uid", b"root")),
        ("a time that is no number", record("mtime", b"now")),
        ("a NUL in a path", record("path", b"a\0b")),
    ];
    for (what, records) in &malformed {
        look([with(records.clone())]).expect_err(what);
    }
    // Headers about headers about headers, and one of 2 MiB.
    look([layer().raw(&extension(b'x', &vec![b' '; 2 << 20])).file("f", "!")]).expect_err("2 MiB of PAX");
    look([layer().raw(&extension(b'L', &vec![b'n'; 2 << 20])).file("f", "!")]).expect_err("2 MiB of name");
    let chain = extension(b'L', b"a/b/c").repeat(50);
    assert_eq!(look([layer().raw(&chain).file("f", "!")]).unwrap(), ["a/", "a/b/", "a/b/c=!"]);
    let of_nothing = layer().file("f", "!").raw(&pax(&record("path", b"x"))).without_end();
    assert_eq!(look([of_nothing]).unwrap(), ["f=!"], "as Go's reader has it");
    tried(8, 1 + accepted.len() + malformed.len() + 4);
}

#[test]
fn row_09_the_last_entry_of_a_name_wins() {
    let table: Vec<(&str, LayerBuilder, &[&str])> = vec![
        ("file, file", layer().file("x", "1").file("x", "2"), &["x=2"]),
        ("by another spelling", layer().file("x", "1").file("./a/../x", "2"), &["x=2"]),
        ("file over directory", layer().dir("x").file("x/in", "1").file("x", "2"), &["x=2"]),
        ("directory over file", layer().file("x", "1").dir("x").file("x/in", "2"), &["x/", "x/in=2"]),
        ("directory over directory", layer().dir("x").file("x/in", "1").dir("x"), &["x/", "x/in=1"]),
        ("link over file", layer().file("x", "1").symlink("x", "y"), &["x->y"]),
        ("file over link", layer().symlink("x", "y").file("x", "1"), &["x=1"]),
        ("file over a hard link's target", layer().file("x", "1").hard_link("h", "x").file("x", "2"), &["h=1", "x=2"]),
        ("two cases", layer().file("x", "1").file("X", "2"), &["X=2", "x=1"]),
        ("two normal forms", layer().file("\u{e9}", "1").file("e\u{301}", "2"), &["e\\xcc\\x81=2", "\\xc3\\xa9=1"]),
    ];
    for (what, layer, wanted) in &table {
        assert_eq!(look([layer.clone()]).unwrap(), *wanted, "{what}");
    }
    // The same, a layer up: what is above wins, and directories are one.
    assert_eq!(
        look([layer().file("x", "1").dir("d").file("d/a", "1"), layer().dir("d").file("d/b", "2")]).unwrap(),
        ["d/", "d/a=1", "d/b=2", "x=1"]
    );
    tried(9, table.len() + 1);
}

#[test]
fn row_10_counts_and_lengths_have_limits_that_are_named() {
    let many = (0..2_000).fold(layer(), |layer, number| layer.file(&format!("f{number}"), ""));
    let limited = |change: fn(&mut peelfs::layer::Limits)| {
        let mut limits = Limits::default();
        change(&mut limits.layer);
        limits
    };
    let xattrs = (0..100).fold(layer(), |layer, number| {
        layer.entry(Entry::file(format!("f{number}"), "").xattr("user.x", vec![number; 1_000]))
    });
    let table: Vec<(&str, Limits, LayerBuilder)> = vec![
        ("entries", limited(|limits| limits.entries = 1_000), many.clone()),
        ("names", limited(|limits| limits.names = 1_000), many.clone()),
        ("attributes", limited(|limits| limits.xattrs = 10_000), xattrs),
        ("a path", limited(|limits| limits.path = 100), layer().file(&"d/".repeat(60), "")),
        ("steps through links", limited(|limits| limits.link_steps = 100), {
            let links = layer().symlink("l0", "a/b/c").symlink("l1", "a/b");
            (0..200).fold(links, |layer, number| layer.file(&format!("l{}/{number}", number % 2), ""))
        }),
        ("depth", Limits::default(), layer().file(&"d/".repeat(5_000), "")),
        ("a name", Limits::default(), layer().file(&"n".repeat(64 << 10), "")),
        ("a target", Limits::default(), layer().symlink("s", &"t".repeat(5_000))),
        (
            "an attribute's name",
            Limits::default(),
            entry(Entry::file("f", "").xattr("user.".to_owned() + &"n".repeat(300), "v")),
        ),
        ("an attribute's value", Limits::default(), entry(Entry::file("f", "").xattr("user.x", vec![b'v'; 70_000]))),
    ];
    for (what, limits, layer) in &table {
        let told = look_within(limits, [layer.clone()]).expect_err(what);
        assert!(told.chars().any(|c| c.is_ascii_digit()), "the limit is named: {told}");
        assert!(told.len() < 2_000, "{what}: {} bytes of error", told.len());
    }
    let layers =
        |count: usize| (0..count).fold(ImageBuilder::new(), |image, _| image.layer(layer().file("f", "!"))).build();
    for (count, code) in [(128, 0), (1_000, 0), (1_001, 5)] {
        let sandbox = Sandbox::new();
        let registry = served(&layers(count));
        let output = bounded(&sandbox, ["ls", &registry.reference(NAME, "1")]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{count} layers: {}", said(&output));
    }
    // Honest and large: within the memory, a fraction of it an entry.
    let large = (0..200_000).fold(layer(), |layer, number| layer.file(&format!("d{}/f{number}", number % 500), ""));
    let large = (0..50_000).fold(large, |layer, number| layer.hard_link(&format!("h{number}"), "d0/f0"));
    let sandbox = Sandbox::new();
    let registry = served(&image([large]));
    let output = bounded(&sandbox, ["ls", &registry.reference(NAME, "1"), "/d7"]).output().unwrap();
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 400, "{}", said(&output));
    tried(10, table.len() + 4);
}

#[test]
fn row_06_a_file_beyond_the_end_of_the_world_reads_as_zeros() {
    if cannot_mount() {
        return;
    }
    let registry = served(&image([sparse(1 << 62)]));
    let sandbox = Sandbox::new();
    let at = sandbox.mount(&registry.reference(NAME, "1"), "a");
    let file = std::fs::File::open(at.join("zeros")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 62);
    for from in [0, 1 << 31, (1 << 62) - 4096] {
        let mut read = [1; 4096];
        file.read_exact_at(&mut read, from).unwrap();
        assert!(read.iter().all(|byte| *byte == 0));
    }
    drop(file);
    at.unmount();
    tried(6, 1);
}

/// Names and times as a build makes them that sets all times to the same, with nothing in the files, compress better than
/// anything else that a layer has.
#[test]
fn row_10_regular_layers_have_room_in_their_index() {
    type Regular = fn(usize) -> Entry;
    let table: [(&str, usize, Regular); 5] = [
        ("empty files", 30_000, |n| Entry::file(format!("f{n}"), "")),
        ("directories", 30_000, |n| Entry::dir(format!("d{n}"))),
        ("hard links", 30_000, |n| if n == 0 { Entry::file("f", "x") } else { Entry::hard_link(format!("h{n}"), "f") }),
        ("symlinks", 30_000, |n| Entry::symlink(format!("p{}/x{}", n / 40, n % 40), format!("../store/p{}", n / 40))),
        ("three implied directories for each file", 10_000, |n| Entry::file(format!("a{n}/b/c/f"), "")),
    ];
    for (what, many, entry) in &table {
        let layer = (0..*many).fold(layer(), |layer, number| layer.entry(entry(number)));
        for packing in [Packing::ZSTD, Packing::GZIP] {
            all_known(&image([layer.clone().packing(packing)])).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
    tried(10, 2 * table.len());
}

/// A path, a link or an attribute that compresses to nothing makes thousands of directories or kilobytes of names: what
/// a layer takes in an index is bounded by what its blob takes.
#[test]
fn row_10_an_index_is_in_proportion_to_its_blob() {
    type Bomb = fn(usize) -> Entry;
    let table: [(&str, usize, Bomb); 6] = [
        ("deep paths", 30, |number| Entry::file(format!("x{number}/{}f", "a/".repeat(4_000)), "")),
        ("long paths", 100, |number| Entry::file(format!("{number}/{}f", ("n".repeat(250) + "/").repeat(250)), "")),
        ("long hard links", 100, |number| {
            Entry::hard_link(format!("h{number}"), ("n".repeat(250) + "/").repeat(250) + "f")
        }),
        ("one symlink again and again", 20_000, |_| Entry::symlink("s", "t".repeat(4_000))),
        ("attributes", 100, |number| {
            Entry::file(format!("f{number}"), "").xattr("user.x", format!("{number:060000}").into_bytes())
        }),
        ("one file again and again", 400_000, |_| Entry::file("f", "")),
    ];
    for (what, many, bomb) in table {
        let layer = |count: usize| (0..count).fold(layer(), |layer, number| layer.entry(bomb(number)));
        look([layer(1).packing(Packing::ZSTD)]).unwrap_or_else(|error| panic!("one of {what}: {error}"));
        let told = look([layer(many).packing(Packing::ZSTD)]).expect_err(what);
        assert!(told.contains("out of proportion"), "{what}: {told}");
    }
    tried(10, 2 * table.len());
}
