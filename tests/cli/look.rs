//! Commands that look into images, each beside the tool whose name it has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use insta::assert_snapshot;
use peelfs_loopback::chunked::ChunkedBuilder;
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::Entry;
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, is_missing, on_terminal};

use crate::user::User;

const NAME: &str = "oci:layout:1";

/// Two layers with everything that listings tell apart.
pub(super) fn image() -> Image {
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
    let base = LayerBuilder::new()
        .dir("etc")
        .file("etc/passwd", passwd)
        .file("etc/group", "root:x:0:\nshadow:x:42:\napp:x:1001:\n")
        .file("etc/motd", "hello\n")
        .entry(Entry::file("etc/shadow", "secret\n").mode(0o640).owner(0, 42).mtime(1_600_000_000, 123_456_789))
        .symlink("etc/mtab", "../proc/mounts")
        .dir("home")
        .entry(Entry::dir("home/app").mode(0o750).owner(1000, 1001))
        .entry(Entry::file("home/app/big", vec![b'x'; 70_000]).owner(1000, 1001).mode(0o600))
        .entry(Entry::file("home/app/owner's", "1").owner(4242, 4343))
        .dir("usr")
        .dir("usr/bin")
        .entry(Entry::file("usr/bin/su", "#!/bin/sh\n").mode(0o4755))
        .entry(Entry::file("usr/bin/wall", "#!/bin/sh\n").mode(0o2755))
        .entry(Entry::hard_link("usr/bin/su-too", "usr/bin/su").mode(0o4755))
        .entry(Entry::file("usr/empty", ""))
        .dir("usr/none")
        .entry(Entry::file("usr/binary", "root\0\nroot of all\n").xattr("user.note", &b"a \xff"[..]))
        .entry(Entry::dir("tmp").mode(0o1777));
    let top = LayerBuilder::new()
        .dir("etc")
        .whiteout("etc/motd")
        .dir("dev")
        .entry(Entry::char_device("dev/null", 1, 3).mode(0o666))
        .entry(Entry::block_device("dev/sda", 8, 0).mode(0o660))
        .entry(Entry::fifo("dev/pipe").mode(0o600))
        .dir("usr")
        .entry(Entry::file("usr/new", "new\n").mtime(1_800_000_000, 0))
        .entry(Entry::file(&b"usr/caf\xe9 \n"[..], "odd"))
        .entry(Entry::file(&b"usr/\x1b[31mred"[..], ""));
    ImageBuilder::new().layer(base).layer(top).build()
}

/// What a program of this machine prints in a directory, its lines sorted.
fn printed(program: &str, at: &Path, words: &[&str]) -> Vec<Vec<u8>> {
    let mut command = Command::new(program);
    command.current_dir(at).args(words).env("LC_ALL", "C.UTF-8").env("TZ", "UTC").stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    sorted(&output.stdout)
}

fn sorted(output: &[u8]) -> Vec<Vec<u8>> {
    let mut lines: Vec<_> = output.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    lines.sort();
    lines
}

/// A user with the layout of [`image`], and a mount of it.
fn mounted<'a>(sandbox: &'a Sandbox, user: &User) -> MountPoint<'a> {
    sandbox.mount(&format!("oci:{}:1", user.path("layout").display()), "m")
}

/// Every expression, beside find(1) in a mount of the image.
#[test]
fn find_prints_what_find_prints() {
    if cannot_mount() {
        return;
    }
    let (user, sandbox) = (User::with_layout(&image()), Sandbox::new());
    let mount = mounted(&sandbox, &user);
    let times = "%t|%c|%a|%T@|%T+|%TY-%Tm-%Td %TH:%TM:%TS|%Ta %TA %Tb %TB %Th|%Tc|%TD|%TF|%Te|%Tj|%Tk|%Tl|%TI|%Tp|%Tr|%TR|\
                 %Ts|%TT|%TX|%Tx|%Tu|%TU|%TV|%Tw|%TW|%Ty|%Tz|%TZ|%Tg|%TG|%A@|%C@\\n";
    let quoted: [&[&str]; 11] = [
        &["-printf", "%p|%f|%h|%H|%P|%d|%s|%k|%b|%m|%#m|%M|%U|%G|%y|%Y|%l|%n|%i\\n"],
        &["-printf", "[%10f|%-10f|%.2f|%05d|%+d|%.3d|%+05d|%-5d|%06s]\\t%%\\061\\101\\\\\\n"],
        &["-printf", times],
        &["-printf", "%05m|%5m|%-05m|%#08m|%.5m|%010.6m|%S|%08S|%.2S|%-8S|%05U|%03n\\n"],
        &["-printf", "%P\\n\\c%p"],
        &["-type", "d", "-printf", "a\\n", "-o", "-printf", "b\\n"],
        &["-name", "*'s"],
        &["(", "-name", "s*", "-o", "-name", "m*", ")", "!", "-name", "*-too"],
        &["-newermt", "2023-11-14 22:13:21"],
        &["-regex", ".*/[a-z]+", "-type", "f"],
        &["-name", "etc", "-prune", "-o", "-print"],
    ];
    let plain = [
        "",
        "-print0",
        "-type f",
        "-type d,l",
        "-type p",
        "-type c",
        "-type b",
        "-name s*",
        "-iname S*",
        "-name ?u",
        "-name [!s]*",
        "-name \\*",
        "-path */bin/*",
        "-wholename ./etc",
        "-lname ../*",
        "-size +1k",
        "-size -2",
        "-size 7c",
        "-size 0",
        "-size +0",
        "-size 1",
        "-perm 644",
        "-perm -4000",
        "-perm /6000",
        "-perm -u+s",
        "-perm u=rw,g=r",
        "-newer etc/shadow",
        "-not -newer etc/shadow",
        "-mtime +100",
        "-mtime -100",
        "-uid 1000",
        "-uid +100",
        "-gid 42",
        "-user 1000",
        "-group 1001",
        "-links 2",
        "-links +1 -type f",
        "-xdev -type l",
        "-mount -noleaf -maxdepth 1",
        "-depth",
        "-depth -maxdepth 2",
        "-depth -mindepth 1 -name etc -prune",
        "-samefile usr/bin/su",
        "-samefile etc",
        "-inum +5",
        "-empty",
        "-empty -type d",
        "-maxdepth 1",
        "-mindepth 2",
        "-maxdepth 2 -mindepth 2 -type f",
        "-name etc -prune",
        "-name usr -quit",
        "-false -o -true",
        "! -type d -a -size -1k",
        "-type f -print -name s* -print",
    ];
    let plain = plain.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
    for expression in plain.chain(quoted.iter().map(|words| words.to_vec())) {
        let own = user.run(&[&["find", NAME, "."][..], &expression].concat());
        assert!(own.output.status.success(), "{expression:?}: {}", own.text);
        let theirs = printed("find", &mount.path, &[&["."][..], &expression].concat());
        let own = sorted(&own.output.stdout);
        let shown = |lines: &[Vec<u8>]| lines.join(&b'\n').escape_ascii().to_string();
        assert_eq!(shown(&own), shown(&theirs), "{expression:?}");
    }
    // Sorted, a directory comes before what is in it; with `-depth` it comes behind.
    let behind = user.prints(&["find", NAME, "usr", "-depth", "-name", "[ub]*"]);
    assert_eq!(behind, "usr/bin\nusr/binary\nusr\n");
    let names = user.prints(&["find", NAME, "/", "-samefile", "/usr/bin/su"]);
    assert_eq!(names, "/usr/bin/su\n/usr/bin/su-too\n");
}

#[test]
fn du_prints_what_du_prints() {
    if cannot_mount() {
        return;
    }
    let (user, sandbox) = (User::with_layout(&image()), Sandbox::new());
    let mount = mounted(&sandbox, &user);
    for line in [
        "-k .",
        "-k -a .",
        "-k -s etc usr",
        "-k -d 1 .",
        "-k -d 0 .",
        "-k -c etc home",
        "-h .",
        "-h -a usr",
        "-b .",
        "-b -a .",
        "-k --apparent-size .",
        "-k usr/bin usr",
        "-k etc/passwd",
        "-k -a etc/mtab",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let own: Vec<&str> = words.iter().copied().filter(|word| *word != "-k").collect();
        let own = user.run(&[&["du", NAME][..], &own].concat());
        assert!(own.output.status.success(), "{line}: {}", own.text);
        let shown = |lines: &[Vec<u8>]| lines.join(&b'\n').escape_ascii().to_string();
        assert_eq!(shown(&sorted(&own.output.stdout)), shown(&printed("du", &mount.path, &words)), "{line}");
    }
}

#[test]
fn du_tells_what_comes_from_each_layer() {
    let user = User::with_layout(&image());
    let layers = user.prints(&["du", "--layers", "-b", NAME]);
    let digests: Vec<_> = image().layers().iter().map(|layer| layer.digest.to_string()).collect();
    let layers = layers.replace(&digests[0], "BASE").replace(&digests[1], "TOP");
    assert_snapshot!(layers, @r#"
    90640	layer 1 BASE
    12295	layer 2 TOP
    "#);
    assert_snapshot!(user.prints(&["du", "--json", "-d1", NAME, "home"]), @r#"
    {"path":"home/app","bytes":74752,"files":3}
    {"path":"home","bytes":78848,"files":4}
    "#);
}

#[test]
fn listings_name_owners_as_the_image_does() {
    let user = User::with_layout(&image());
    assert_snapshot!(user.prints(&["ls", "-l", NAME, "etc", "home/app"]), @r#"
    etc:
    -rw-r--r-- 1 root root   35 2023-11-14 22:13:20 group
    lrwxrwxrwx 1 root root   14 2023-11-14 22:13:20 mtab -> ../proc/mounts
    -rw-r--r-- 1 root root   65 2023-11-14 22:13:20 passwd
    -rw-r----- 1 root shadow  7 2020-09-13 12:26:40 shadow

    home/app:
    -rw------- 1 app  app  70000 2023-11-14 22:13:20 big
    -rw-r--r-- 1 4242 4343     1 2023-11-14 22:13:20 owner's
    "#);
    assert_snapshot!(user.prints(&["ls", "-nh", NAME, "home/app"]), @r#"
    -rw------- 1 1000 1001 69K 2023-11-14 22:13:20 big
    -rw-r--r-- 1 4242 4343   1 2023-11-14 22:13:20 owner's
    "#);
    assert_snapshot!(user.prints(&["ls", "-ld", NAME, "tmp", "dev/sda"]), @r#"
    drwxrwxrwt 1 root root 4096 2023-11-14 22:13:20 tmp
    brw-rw---- 1 root root 8, 0 2023-11-14 22:13:20 dev/sda
    "#);
    assert_snapshot!(user.prints(&["find", NAME, "/home", "-nouser", "-ls"]).trim_start(), @"21      1 -rw-r--r--   1 4242     4343            1 2023-11-14 22:13:20 /home/app/owner's");
}

/// A name must not forge a line.
#[test]
fn find_ls_quotes_names_as_gnu_find_does() {
    let layer = LayerBuilder::new().entry(Entry::file(&b"a b\n\\\"\t\x1b\x7f\xe9"[..], "")).symlink("link", "to a\nb");
    let user = User::with_layout(&ImageBuilder::new().layer(layer).build());
    let listed = user.prints(&["find", NAME, "/", "-mindepth", "1", "-ls"]);
    let names: Vec<_> = listed.lines().map(|line| line.split_once(":20 ").unwrap().1).collect();
    assert_eq!(names, [r#"/a\ b\n\\\"\t\033\177\351"#, r"/link -> to\ a\nb"]);
}

#[test]
fn names_are_raw_in_pipes_and_colored_on_request() {
    let user = User::with_layout(&image());
    let raw = user.run(&["ls", NAME, "usr"]).output.stdout;
    assert_eq!(raw, b"\x1b[31mred\nbin\nbinary\ncaf\xe9 \n\nempty\nnew\nnone\n");
    let command = |color: &str| {
        let mut command = user.command(&["ls", color, NAME, "usr/bin"]);
        command.env("LS_COLORS", "su=1;31:sg=0:di=34");
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    assert_eq!(command("--color"), "\x1b[1;31msu\x1b[0m\n\x1b[1;31msu-too\x1b[0m\nwall\n");
    assert_eq!(command("--color=auto"), "su\nsu-too\nwall\n");
}

/// What a person sees; a name could steer the terminal.
#[test]
fn names_are_escaped_on_a_terminal() {
    if is_missing("script") {
        return;
    }
    let user = User::with_layout(&image());
    let own = user.command(&[]);
    for (line, shown) in [("ls", "\\u{1b}[31mred"), ("find", "usr/caf\\xe9 \\n"), ("tree", "caf\\xe9 \\n")] {
        let output = on_terminal(&own, &format!("{line} {NAME} usr"));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(shown) && !text.contains("\x1b[31m"), "{line}: {text:?}");
    }
}

/// Metadata is in the layer's index; only names of owners are in files of the image.
#[test]
fn looking_reads_no_file() {
    let registry = Registry::start(Catalog::new().image("app", "1", &image())).unwrap();
    let user = User::at(&registry);
    let name = registry.reference("app", "1");
    for line in [&["ls", "-R", &name][..], &["cache", "prune", "--content"]] {
        assert!(user.run(line).output.status.success(), "{line:?}");
    }
    registry.clear();
    for line in
        [&["find", &name, "-size", "+1", "-newer", "/etc/shadow"][..], &["du", "-a", &name], &["ls", "-nR", &name]]
    {
        assert!(user.run(line).output.status.success(), "{line:?}");
    }
    for line in [
        &["stat", "-c", "%s %u", &name, "/etc"][..],
        &["tree", &name],
        &["layers", &name],
        &["which", "--json", &name, "/etc"],
    ] {
        assert!(user.run(line).output.status.success(), "{line:?}");
    }
    let asked: Vec<_> = registry.requests().into_iter().filter(|request| request.is_blob()).collect();
    assert!(asked.is_empty(), "{asked:?}");
}

#[test]
fn wrong_expressions_and_paths_come_with_a_hint() {
    let user = User::with_layout(&image());
    assert_snapshot!(user.run(&["find", NAME, "/etc/paswd"]).text, @r#"
    --- stderr
    error: cannot search `/etc/paswd`: no such file or directory
    hint: did you mean `/etc/passwd`?
    --- exit 3
    "#);
    assert_snapshot!(user.run(&["find", NAME, "/", "-size", "big"]).text, @r#"
    --- stderr
    error: `-size big`: expected a size, as in +10M, -4k, 100c or 0
    --- exit 2
    "#);
    assert_snapshot!(user.run(&["find", NAME, "/", "-fstype", "ext4"]).text, @r#"
    --- stderr
    error: find of an image has no `-fstype`
    hint: an image is one file system: leave it out
    --- exit 2
    "#);
    assert_snapshot!(user.run(&["find", NAME, "/", "-nmae", "x"]).text, @r#"
    --- stderr
    error: `-nmae` is not a test of find
    hint: `peelfs find --help` lists the tests
    --- exit 2
    "#);
    assert_snapshot!(user.run(&["find", NAME, "/", "-printf", "%D"]).text, @r#"
    --- stderr
    error: `-printf %D`: an image has no device number (`%D`)
    --- exit 2
    "#);
    assert_snapshot!(user.run(&["find", NAME, "/", "-exec", "rm", "{}", ";"]).text, @r#"
    --- stderr
    error: find of an image has no `-exec`
    hint: pipe its output into a program, as in `peelfs find IMAGE / -print0 | xargs -0 …`
    --- exit 2
    "#);
    assert_snapshot!(user.run(&["find", NAME, "/", "-newer", "/nowhere"]).text, @r#"
    --- stderr
    error: cannot compare with `/nowhere`: no such file or directory
    --- exit 3
    "#);
    assert_snapshot!(user.run(&["du", NAME, "/ect", "/etc"]).text, @r#"
    6	/etc
    --- stderr
    error: cannot read `/ect`: no such file or directory
    hint: did you mean `/etc`?
    --- exit 3
    "#);
    assert_snapshot!(user.run(&["cat", NAME, "/etc/motd", "/usr/ben/su"]).text, @r#"
    --- stderr
    error: cannot print `/etc/motd`: no such file or directory
    error: cannot print `/usr/ben/su`: no such file or directory
    hint: did you mean `/usr/bin/su`?
    --- exit 3
    "#);
}

/// Names are listed in batches; none is lost or doubled between two of them.
#[test]
fn a_directory_of_many_names_is_walked_whole() {
    let mut layer = LayerBuilder::new().dir("d");
    for number in 0..3000 {
        layer = layer.file(&format!("d/{number:04}"), "");
    }
    let upper = LayerBuilder::new().dir("d").whiteout("d/0001").file("d/0000x", "");
    let user = User::with_layout(&ImageBuilder::new().layer(layer).layer(upper).build());
    let found = user.prints(&["find", NAME, "d", "-type", "f"]);
    let mut counts = BTreeMap::<&str, usize>::new();
    found.lines().for_each(|line| *counts.entry(line).or_default() += 1);
    assert_eq!((counts.len(), counts.values().max()), (3000, Some(&1)));
    assert!(counts.contains_key("d/0000x") && !counts.contains_key("d/0001"));
}

#[test]
fn a_closed_output_ends_a_walk_quietly() {
    let mut layer = LayerBuilder::new();
    for number in 0..5000 {
        layer = layer.file(&format!("a-name-of-some-length-{number}"), "");
    }
    let user = User::with_layout(&ImageBuilder::new().layer(layer).build());
    for line in [&["find", NAME][..], &["du", "-a", NAME], &["ls", "-l", NAME], &["ls", "--json", NAME]] {
        let mut child = user.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{line:?}: {ended:?}");
    }
}

#[test]
fn stat_prints_what_stat_prints() {
    if cannot_mount() {
        return;
    }
    let (user, sandbox) = (User::with_layout(&image()), Sandbox::new());
    let mount = mounted(&sandbox, &user);
    let paths = user.run(&["find", NAME, ".", "!", "-name", "caf*"]).output.stdout;
    let paths = String::from_utf8(paths).unwrap();
    let paths: Vec<&str> = paths.lines().collect();
    let format = "%n|%s|%b|%B|%o|%a|%A|%f|%F|%u|%g|%h|%i|%t|%T|%X|%Y|%Z|%x|%y|%z|%%|%";
    for options in [&["-c", format][..], &["-L", "-c", "%n %F %s"]] {
        // A symlink that leads nowhere has no status.
        let paths: Vec<&str> =
            paths.iter().copied().filter(|path| options.len() == 2 || !path.ends_with("mtab")).collect();
        let own = user.run(&[&["stat", NAME], options, &paths].concat());
        assert!(own.output.status.success(), "{}", own.text);
        let own = String::from_utf8_lossy(&own.output.stdout).into_owned();
        let theirs = printed("stat", &mount.path, &[options, &paths].concat());
        let own = sorted(own.as_bytes());
        let shown = |lines: &[Vec<u8>]| lines.join(&b'\n').escape_ascii().to_string();
        assert_eq!(shown(&own), shown(&theirs));
    }
    let digests = image().layers().iter().map(|layer| layer.digest.to_string()).collect::<Vec<_>>();
    let own = user.prints(&["stat", NAME, "etc/mtab", "dev/sda", "usr/binary", "etc/shadow", "dev"]);
    // The change time depends on the digest of the layer.
    let own: Vec<_> = own.lines().filter(|line| !line.starts_with("Change: ")).collect();
    let own = own.join("\n").replace(&digests[0], "BASE").replace(&digests[1], "TOP");
    assert_snapshot!(own, @r#"
      File: etc/mtab -> ../proc/mounts
      Size: 14              Blocks: 0          IO Block: 4096   symbolic link
     Inode: 13              Links: 1
    Access: (0777/lrwxrwxrwx)  Uid: (    0/    root)   Gid: (    0/    root)
    Access: 2023-11-14 22:13:20.000000000 +0000
    Modify: 2023-11-14 22:13:20.000000000 +0000
     Birth: -
     Layer: 1 BASE
      File: dev/sda
      Size: 0               Blocks: 0          IO Block: 4096   block special file
     Inode: 12              Links: 1     Device type: 8,0
    Access: (0660/brw-rw----)  Uid: (    0/    root)   Gid: (    0/    root)
    Access: 2023-11-14 22:13:20.000000000 +0000
    Modify: 2023-11-14 22:13:20.000000000 +0000
     Birth: -
     Layer: 2 TOP
      File: usr/binary
      Size: 18              Blocks: 1          IO Block: 4096   regular file
     Inode: 37              Links: 1
    Access: (0644/-rw-r--r--)  Uid: (    0/    root)   Gid: (    0/    root)
    Access: 2023-11-14 22:13:20.000000000 +0000
    Modify: 2023-11-14 22:13:20.000000000 +0000
     Birth: -
     Layer: 1 BASE
     Xattr: user.note="a \xff"
      File: etc/shadow
      Size: 7               Blocks: 1          IO Block: 4096   regular file
     Inode: 11              Links: 1
    Access: (0640/-rw-r-----)  Uid: (    0/    root)   Gid: (   42/  shadow)
    Access: 2020-09-13 12:26:40.123456789 +0000
    Modify: 2020-09-13 12:26:40.123456789 +0000
     Birth: -
     Layer: 1 BASE
      File: dev
      Size: 4096            Blocks: 8          IO Block: 4096   directory
     Inode: 8               Links: 1
    Access: (0755/drwxr-xr-x)  Uid: (    0/    root)   Gid: (    0/    root)
    Access: 2023-11-14 22:13:20.000000000 +0000
    Modify: 2023-11-14 22:13:20.000000000 +0000
     Birth: -
     Layer: 2 TOP
    "#);
}

#[test]
fn sums_are_those_of_sha256sum() {
    if cannot_mount() {
        return;
    }
    let (user, sandbox) = (User::with_layout(&image()), Sandbox::new());
    let mount = mounted(&sandbox, &user);
    let own = user.run(&["sha256sum", "-r", NAME, "."]);
    assert!(own.output.status.success(), "{}", own.text);
    let sums = user.path("sums");
    std::fs::write(&sums, &own.output.stdout).unwrap();
    let checked = printed("sha256sum", &mount.path, &["-c", "--strict", sums.to_str().unwrap()]);
    assert_eq!(checked.iter().filter(|line| line.ends_with(b": OK")).count(), 13);
    let files = ["etc/passwd", "usr/empty", "home/app/big"];
    let theirs = printed("sha256sum", &mount.path, &files);
    assert_eq!(sorted(user.prints(&[&["sha256sum", NAME], &files[..]].concat()).as_bytes()), theirs);
    assert_snapshot!(user.run(&["sha256sum", NAME, "etc", "etc/passwd", "dev/null"]).text, @r#"
    4a7223c7f0b92ab27cfc5b32edbd0a3bbc651e2a1ff9d92ac42aa0a9a5519e15  etc/passwd
    --- stderr
    error: cannot read `etc`: is a directory
    error: cannot read `dev/null`: not a regular file
    --- exit 1
    "#);
}

/// Every option, beside grep(1) in a mount of the image.
#[test]
fn grep_prints_what_grep_prints() {
    if cannot_mount() {
        return;
    }
    let (user, sandbox) = (User::with_layout(&image()), Sandbox::new());
    let mount = mounted(&sandbox, &user);
    for line in [
        "-r root .",
        "-rn root etc",
        "-ri ROOT etc",
        "-rl root .",
        "-rc root etc",
        "-rv root etc",
        "-rw app etc",
        "-rF 0:0: .",
        "-rh root etc",
        "-x hello etc/passwd etc/group",
        "root etc/passwd",
        "-H root etc/passwd",
        "-ra root usr/binary",
        "root usr/binary",
        "-c root usr/binary",
        "-rx secret .",
        "^app:.*:1001: -r etc",
        "-q root etc/passwd",
        "-rl nothing .",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Behind the pattern stands the image.
        let pattern = words.iter().position(|word| !word.starts_with('-')).unwrap();
        let mut own = vec!["grep"];
        own.extend(&words[..=pattern]);
        own.push(NAME);
        own.extend(&words[pattern + 1..]);
        let own = user.run(&own);
        let mut theirs = Command::new("grep");
        theirs.current_dir(&mount.path).args(&words).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        let theirs = theirs.output().unwrap();
        assert_eq!(own.output.status.code(), theirs.status.code(), "{line}: {}", own.text);
        let shown = |output: &[u8]| sorted(output).join(&b'\n').escape_ascii().to_string();
        assert_eq!(shown(&own.output.stdout), shown(&theirs.stdout), "{line}");
        let talk = |output: &[u8]| String::from_utf8_lossy(output).replace("peelfs grep:", "grep:");
        assert_eq!(talk(&own.output.stderr), talk(&theirs.stderr), "{line}");
    }
    assert_snapshot!(user.run(&["grep", "root", NAME, "etc", "etc/passwd"]).text, @r#"
    etc/passwd:root:x:0:0:root:/root:/bin/sh
    --- stderr
    error: cannot search `etc`: is a directory
    hint: `-r` searches what is in it
    --- exit 2
    "#);
    assert_snapshot!(user.run(&["grep", "(", NAME]).text, @r#"
    --- stderr
    error: `(` is not a pattern: unclosed group
    hint: patterns are those of ripgrep; `-F` searches for the text as it is
    --- exit 2
    "#);
    assert_eq!(user.run(&["grep", "no such text", NAME]).output.status.code(), Some(1));
}

#[test]
fn trees_are_drawn_as_by_tree() {
    let user = User::with_layout(&image());
    assert_snapshot!(user.prints(&["tree", "-L", "2", NAME, "home", "etc"]), @r#"
    home
    └── app
        ├── big
        └── owner's
    etc
    ├── group
    ├── mtab -> ../proc/mounts
    ├── passwd
    └── shadow

    1 directory, 6 files
    "#);
    assert_snapshot!(user.prints(&["tree", "-d", NAME]), @r#"
    /
    ├── dev
    ├── etc
    ├── home
    │   └── app
    ├── tmp
    └── usr
        ├── bin
        └── none

    8 directories
    "#);
    assert_snapshot!(user.prints(&["tree", "-ph", NAME, "/dev"]), @r#"
    [drwxr-xr-x 4.0K]  /dev
    ├── [crw-rw-rw-    0]  null
    ├── [prw-------    0]  pipe
    └── [brw-rw----    0]  sda

    0 directories, 3 files
    "#);
}

/// An image whose layers change, remove and waste what is below.
fn wasteful() -> Image {
    let base = LayerBuilder::new()
        .dir("app")
        .file("app/big", vec![1; 100_000])
        .file("app/small", "v1")
        .dir("cache")
        .file("cache/lists", vec![2; 50_000]);
    let middle = LayerBuilder::new().dir("app").file("app/big", vec![3; 100_000]).whiteout("cache");
    let top = LayerBuilder::new().entry(Entry::dir("app").mode(0o700)).file("app/small", "v2").whiteout("app/big");
    let history = serde_json::json!([
        { "created_by": "/bin/sh -c #(nop) COPY dir:1 in / " },
        { "created_by": "/bin/sh -c #(nop)  ENV A=b", "empty_layer": true },
        { "created_by": "RUN /bin/sh -c make && rm -rf /cache # buildkit" },
        { "created_by": "RUN /bin/sh -c chmod 700 /app &&     rm /app/big && echo v2 > /app/small # buildkit" },
    ]);
    let image = ImageBuilder::new().layer(base).layer(middle).layer(top);
    image.edit_config(move |config| config["history"] = history).build()
}

#[test]
fn layers_tell_what_they_add_and_waste() {
    let user = User::with_layout(&wasteful());
    assert_snapshot!(user.prints(&["layers", "--waste", NAME]), @r#"
    LAYER       SIZE   UNPACKED  ENTRIES     ADDS  CHANGES  REMOVES     WASTED  MADE BY
        1      394 B  151.0 KiB        6        5        0        0  146.5 KiB  COPY dir:1 in /
        2      282 B  100.5 KiB        4        0        1        2   97.7 KiB  RUN make && rm -rf /cache
        3      147 B    3.0 KiB        4        0        2        1        0 B  RUN chmod 700 /app && rm /app/big && echo v2 > /app/small
    3 layers, 823 B; unpacked 254.5 KiB; wasted 244.1 KiB of 244.1 KiB in 4 files; efficiency 0.0 %
      97.7 KiB  layer 2, gone in layer 3: /app/big
      97.7 KiB  layer 1, gone in layer 2: /app/big
      48.8 KiB  layer 1, gone in layer 2: /cache/lists
           2 B  layer 1, gone in layer 3: /app/small
    "#);
    let json = user.json(&["layers", "--json", NAME]);
    assert_eq!(json["totals"]["wasted_bytes"], 250_002);
    assert_eq!(json["wasted"].as_array().unwrap().len(), 4);
    for (limits, code) in [
        (&["--min-efficiency=0", "--max-waste=1M"][..], 0),
        (&["--min-efficiency", "0.1%"], 1),
        (&["--max-waste", "250001", "--json"], 1),
        (&["--min-efficiency", "101"], 2),
        (&["--min-efficiency", "0.95"], 2),
    ] {
        let ran = user.run(&[&["layers", NAME], limits].concat());
        assert_eq!(ran.output.status.code(), Some(code), "{limits:?}: {}", ran.text);
    }
    assert_eq!(
        String::from_utf8_lossy(&user.run(&["layers", "--max-waste=100k", NAME]).output.stderr),
        "error: the image wastes 244.1 KiB; at most 100.0 KiB is asked for\nhint: `--waste` lists the files\n"
    );
    assert_eq!(json["layers"][2]["created_by"], "RUN chmod 700 /app &&     rm /app/big && echo v2 > /app/small");
}

#[test]
fn which_names_the_layers_that_have_had_a_path() {
    let user = User::with_layout(&wasteful());
    assert_snapshot!(user.prints(&["which", NAME, "/app", "app/small", "/app/big", "/cache/lists"]), @r#"
    /app
    * layer 3   changes drwx------ 0 0         0 2023-11-14 22:13:20  RUN chmod 700 /app &&     rm /app/big && echo v2 > /app/small
      layer 1   adds    drwxr-xr-x 0 0         0 2023-11-14 22:13:20  COPY dir:1 in /
    /app/small
    * layer 3   changes -rw-r--r-- 0 0         2 2023-11-14 22:13:20  RUN chmod 700 /app &&     rm /app/big && echo v2 > /app/small
      layer 1   adds    -rw-r--r-- 0 0         2 2023-11-14 22:13:20  COPY dir:1 in /
    /app/big
      layer 3   removes   RUN chmod 700 /app &&     rm /app/big && echo v2 > /app/small
      layer 2   changes -rw-r--r-- 0 0    100000 2023-11-14 22:13:20  RUN make && rm -rf /cache
      layer 1   adds    -rw-r--r-- 0 0    100000 2023-11-14 22:13:20  COPY dir:1 in /
    /cache/lists
      layer 2   removes   RUN make && rm -rf /cache
      layer 1   adds    -rw-r--r-- 0 0     50000 2023-11-14 22:13:20  COPY dir:1 in /
    "#);
    assert_snapshot!(user.run(&["which", NAME, "/app/smal", "/cache/none"]).text, @r#"
    --- stderr
    error: cannot look for `/app/smal`: no such file or directory
    hint: did you mean `/app/small`?
    error: cannot look for `/cache/none`: no such file or directory
    --- exit 3
    "#);
    assert_eq!(user.prints(&["which-layer", NAME, "app"]), user.prints(&["which", NAME, "app"]));
}

/// Two images on the same base.
fn two() -> [Image; 2] {
    let base = || {
        LayerBuilder::new()
            .dir("etc")
            .file("etc/base", "same")
            .dir("app")
            .dir("app/lib")
            .file("app/lib/kept", "kept")
            .file("app/gone", "gone")
            .file("app/name", "a file")
            .file("app/below", "below")
    };
    let before = LayerBuilder::new()
        .dir("app")
        .file("app/same", "same")
        .file("app/text", "one")
        .entry(Entry::file("app/mode", "m").mode(0o644))
        .symlink("app/link", "old")
        .entry(Entry::char_device("app/device", 1, 3))
        .dir("app/dir")
        .file("app/dir/a", "a")
        .file("app/dir/b", "b")
        .file("app/touched", "t")
        .dir("opt")
        .file("opt/lists", "1");
    let after = LayerBuilder::new()
        .dir("app")
        .file("app/same", "same")
        .file("app/text", "two")
        .entry(Entry::file("app/mode", "m").mode(0o755).owner(7, 0))
        .symlink("app/link", "new")
        .entry(Entry::char_device("app/device", 1, 5))
        .file("app/dir", "now a file")
        .entry(Entry::file("app/touched", "t").mtime(1_700_000_001, 0))
        .whiteout("app/gone")
        .dir("app/name")
        .file("app/name/inside", "12345")
        .file("app/below", "other")
        .dir("opt")
        .opaque("opt")
        .file("opt/new", "1");
    [before, after].map(|top| ImageBuilder::new().layer(base()).layer(top).build())
}

fn with_two(images: &[Image; 2]) -> User {
    let user = User::new();
    for (image, name) in images.iter().zip(["a", "b"]) {
        image.write_layout(&user.path(name), "1").unwrap();
    }
    user
}

#[test]
fn differences_are_listed_as_by_git() {
    let user = with_two(&two());
    assert_snapshot!(user.run(&["diff", "oci:a:1", "oci:b:1"]).text, @r#"
    M	/app/below
    M	/app/device
    T	/app/dir
    D	/app/dir/a
    D	/app/dir/b
    D	/app/gone
    M	/app/link
    M	/app/mode
    T	/app/name
    A	/app/name/inside
    M	/app/text
    M	/app/touched
    D	/opt/lists
    A	/opt/new
    --- exit 1
    "#);
    assert_snapshot!(user.run(&["diff", "--stat", "oci:a:1", "oci:b:1"]).text, @r#"
    M          5 B -> 5 B          /app/below  (content)
    M character device -> character device /app/device  (device)
    T    directory -> 10 B         /app/dir  (type)
    D          1 B -> -            /app/dir/a
    D          1 B -> -            /app/dir/b
    D          4 B -> -            /app/gone
    M      symlink -> symlink      /app/link  (target)
    M          1 B -> 1 B          /app/mode  (mode, owner)
    T          6 B -> directory    /app/name  (type)
    A            - -> 5 B          /app/name/inside
    M          3 B -> 3 B          /app/text  (content)
    M          1 B -> 1 B          /app/touched  (time)
    D          1 B -> -            /opt/lists
    A            - -> 1 B          /opt/new
    8 paths changed, 2 added (6 B), 4 deleted (7 B)
    --- exit 1
    "#);
    assert_snapshot!(user.run(&["diff", "--ignore-times", "oci:b:1", "oci:a:1", "/app"]).text, @r#"
    M	/app/below
    M	/app/device
    T	/app/dir
    A	/app/dir/a
    A	/app/dir/b
    A	/app/gone
    M	/app/link
    M	/app/mode
    T	/app/name
    D	/app/name/inside
    M	/app/text
    --- exit 1
    "#);
    assert_snapshot!(user.run(&["diff", "--json", "oci:a:1", "oci:b:1", "app/mode"]).text, @r#"
    {"status":"M","path":"/app/mode","changes":["mode","owner"],"before":{"path":"/app/mode","type":"file","mode":"0644","uid":0,"gid":0,"size":1,"mtime":1700000000,"mtime_ns":0,"nlink":1,"inode":10},"after":{"path":"/app/mode","type":"file","mode":"0755","uid":7,"gid":0,"size":1,"mtime":1700000000,"mtime_ns":0,"nlink":1,"inode":10}}
    --- exit 1
    "#);
    assert_snapshot!(user.run(&["diff", "oci:a:1", "oci:b:1", "/nowhere"]).text, @r#"
    --- stderr
    error: cannot compare `/nowhere`: no such file or directory
    --- exit 3
    "#);
    assert_eq!(user.run(&["diff", "oci:a:1", "oci:none:1"]).output.status.code(), Some(3));
    for line in [&["diff", "oci:a:1", "oci:a:1"][..], &["diff", "oci:a:1", "oci:b:1", "/etc"]] {
        assert_eq!(user.run(line).text, "", "{line:?}");
    }
}

#[test]
fn differences_are_the_same_with_and_without_shared_layers() {
    let images = two();
    let user = with_two(&images);
    // The same trees in layers of other digests: nothing is shared.
    let apart = |image: &Image, name: &str| {
        let user_dir = user.path(name);
        let [base, top] = image.layers() else { panic!("two layers") };
        let mark = LayerBuilder::new().dir("etc").file("etc/base", "same").build();
        ImageBuilder::new()
            .layer(mark)
            .layer(base.clone())
            .layer(top.clone())
            .build()
            .write_layout(&user_dir, "1")
            .unwrap();
    };
    apart(&images[1], "c");
    let shared = user.run(&["diff", "oci:a:1", "oci:b:1"]).text;
    assert_eq!(user.run(&["diff", "oci:a:1", "oci:c:1"]).text, shared);
    for (line, wanted) in [
        (&["diff", "-q", "oci:a:1", "oci:b:1"][..], "--- exit 1\n"),
        (&["diff", "--quiet", "--stat", "oci:a:1", "oci:b:1"], "--- exit 1\n"),
        (&["diff", "-q", "oci:a:1", "oci:a:1"], ""),
    ] {
        assert_eq!(user.run(line).text, wanted, "{line:?}");
    }
    let back = user.run(&["diff", "oci:c:1", "oci:a:1"]).text;
    assert_eq!(back, user.run(&["diff", "oci:b:1", "oci:a:1"]).text);
}

/// Many of them lie in one span, which is read once for all; their order in the tar is none.
#[test]
fn small_files_that_differ_are_found_among_many() {
    for packing in [Packing::GZIP, Packing::ZSTD, Packing::Stored] {
        let changed = [7, 500, 1999];
        let image = |is_changed: bool| {
            let layer = (0..2000_usize).fold(LayerBuilder::new().packing(packing), |layer, number| {
                let number = number * 1237 % 2000;
                let mut text = Random::new(number as u64).bytes(300 + number % 700);
                if is_changed && changed.contains(&number) {
                    *text.last_mut().unwrap() ^= 1;
                }
                layer.file(&format!("d{}/{number:04}", number % 7), text)
            });
            ImageBuilder::new().layer(layer.file("large", vec![u8::from(is_changed); 70_000])).build()
        };
        let user = User::new();
        image(false).write_layout(&user.path("a"), "1").unwrap();
        image(true).write_layout(&user.path("b"), "1").unwrap();
        let mut wanted: Vec<_> = changed.iter().map(|number| format!("M\t/d{}/{number:04}", number % 7)).collect();
        wanted.push("M\t/large".to_owned());
        wanted.sort();
        // Twice, as what the first passes leave cached is read otherwise than what is verified anew.
        for _ in 0..2 {
            let told = user.run(&["diff", "oci:a:1", "oci:b:1"]).text;
            let told: Vec<_> = told.lines().filter(|line| line.starts_with("M\t")).collect();
            assert_eq!(told, wanted, "{packing:?}");
        }
    }
}

/// A shared layer is not asked for where the others decide every name.
#[test]
fn layers_that_both_images_share_are_not_touched() {
    let base = || LayerBuilder::new().file("base", vec![9; 300_000]);
    let top =
        |text: &'static str| LayerBuilder::new().dir("app").opaque("app").file("app/text", text).file("app/same", "s");
    let [a, b] = ["one", "two"].map(|text| ImageBuilder::new().layer(base()).layer(top(text)).build());
    let registry = Registry::start(Catalog::new().image("app", "a", &a).image("app", "b", &b)).unwrap();
    let user = User::at(&registry);
    let [a_name, b_name] = ["a", "b"].map(|tag| registry.reference("app", tag));
    assert_eq!(user.run(&["diff", &a_name, &b_name]).text, "M\t/app/text\n--- exit 1\n");
    let asked = registry.requests();
    let of = |digest: &str| asked.iter().filter(|request| request.request.path.contains(digest)).count();
    assert_eq!(of(&a.layers()[0].digest.to_string()), 0, "the shared layer");
    assert_eq!((of(&a.layers()[1].digest.to_string()), of(&b.layers()[1].digest.to_string())), (1, 1), "the others");
}

/// Files whose digests are in the tables of contents of both layers are compared without being read.
#[test]
fn files_with_known_digests_are_not_read_to_compare_them() {
    let same = Random::new(1).bytes(400_000);
    let image = |time: i64, text: &'static str| {
        let entries = vec![
            Entry::file("same", same.clone()).mtime(1_700_000_000, 0),
            Entry::file("touched", same.clone()).mtime(time, 0),
            Entry::file("text", text).mtime(1_700_000_000, 0),
        ];
        let chunked = ChunkedBuilder::of(entries).build();
        let (layer, annotations) = (chunked.layer, chunked.annotations);
        let edit = move |manifest: &mut serde_json::Value| manifest["layers"][0]["annotations"] = annotations;
        ImageBuilder::new().layer(layer).edit_manifest(edit).build()
    };
    let (a, b) = (image(1, "one"), image(2, "two"));
    let registry = Registry::start(Catalog::new().image("app", "a", &a).image("app", "b", &b)).unwrap();
    let user = User::at(&registry);
    let [a, b] = ["a", "b"].map(|tag| registry.reference("app", tag));
    assert_snapshot!(user.run(&["diff", "--stat", &a, &b]).text, @r#"
    M          3 B -> 3 B          /text  (content)
    M    390.6 KiB -> 390.6 KiB    /touched  (time)
    2 paths changed, 0 added (0 B), 0 deleted (0 B)
    --- exit 1
    "#);
    assert!(registry.blob_bytes() < 10_000, "{} bytes", registry.blob_bytes());
}

/// Manifest, configuration, table of contents, the file.
#[test]
fn a_small_file_of_a_new_image_takes_four_round_trips() {
    let entries = vec![
        Entry::dir("etc"),
        Entry::file("etc/motd", "hello\n"),
        Entry::file("large", Random::new(3).bytes(3_000_000)),
    ];
    let chunked = ChunkedBuilder::of(entries).build();
    let (layer, annotations) = (chunked.layer, chunked.annotations);
    let edit = move |manifest: &mut serde_json::Value| manifest["layers"][0]["annotations"] = annotations;
    let image = ImageBuilder::new().layer(layer).edit_manifest(edit).build();
    let registry = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
    let user = User::at(&registry);
    assert_eq!(user.prints(&["cat", &registry.reference("app", "1"), "/etc/motd"]), "hello\n");
    let asked: Vec<_> = registry.requests().iter().map(|asked| asked.request.path.clone()).collect();
    assert!(asked.len() <= 4, "{asked:#?}");
    assert!(registry.blob_bytes() < 100_000, "{}", registry.blob_bytes());
}

/// The fields of every command's JSON are those that the documentation lists for it.
#[test]
fn json_has_the_documented_fields() {
    let documented = documented_fields();
    let user = with_two(&two());
    image().write_layout(&user.path("layout"), "1").unwrap();
    wasteful().write_layout(&user.path("wasteful"), "1").unwrap();
    let lines: [(&str, &[&str]); 11] = [
        ("ls", &["ls", "--json", "-R", NAME]),
        ("find", &["find", "--json", NAME]),
        ("du", &["du", "--json", NAME]),
        ("du --layers", &["du", "--layers", "--json", NAME]),
        ("tree", &["tree", "--json", NAME]),
        ("stat", &["stat", "--json", NAME, "etc/mtab", "dev/sda", "usr/binary", "/"]),
        ("sha256sum", &["sha256sum", "--json", "-r", NAME, "/"]),
        ("grep", &["grep", "--json", "-a", "o", NAME]),
        ("diff", &["diff", "--json", "oci:a:1", "oci:b:1"]),
        ("layers", &["layers", "--json", "oci:wasteful:1"]),
        ("which", &["which", "--json", "oci:wasteful:1", "app/big"]),
    ];
    for (command, line) in lines {
        let ran = user.run(line);
        assert!(ran.output.status.code() < Some(2) && ran.output.stderr.is_empty(), "{line:?}: {}", ran.text);
        let mut fields = BTreeSet::new();
        for line in ran.output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            collect("", &serde_json::from_slice(line).unwrap(), &mut fields);
        }
        let documented = documented.get(command).unwrap_or_else(|| panic!("docs/json.md has no section `{command}`"));
        let unknown: Vec<_> = fields.difference(documented).collect();
        assert!(unknown.is_empty(), "`{command}` prints fields that docs/json.md does not list: {unknown:?}");
        let missing: Vec<_> = documented.difference(&fields).filter(|field| !field.ends_with("_hex")).collect();
        assert!(missing.is_empty(), "docs/json.md lists fields that `{command}` did not print: {missing:?}");
    }
}

/// The names of all fields, those of objects in lists and objects with a path.
pub(super) fn collect(above: &str, value: &serde_json::Value, fields: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (name, value) in object {
                let name = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
                collect(&name, value, fields);
                fields.insert(name);
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| collect(above, value, fields)),
        _ => {}
    }
}

/// The first column of the tables below each heading of docs/json.md; `NODE` stands for the fields of a node.
pub(super) fn documented_fields() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/json.md")).unwrap();
    let mut sections = BTreeMap::<String, BTreeSet<String>>::new();
    let mut section = String::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.trim_matches('`').to_owned();
        } else if let Some(cell) = line.strip_prefix("| `").and_then(|rest| rest.split_once("` |")) {
            sections.entry(section.clone()).or_default().insert(cell.0.to_owned());
        } else if let Some(above) = line.strip_prefix("| *a node* in `").and_then(|rest| rest.split_once('`')) {
            let node: Vec<String> = sections["A node"].iter().map(|field| format!("{}.{field}", above.0)).collect();
            sections.entry(section.clone()).or_default().extend(node);
        } else if line.starts_with("| *a node* ") {
            let node = sections["A node"].clone();
            sections.entry(section.clone()).or_default().extend(node);
        }
    }
    sections
}
