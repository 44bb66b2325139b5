//! Modules stand on floors and import downwards only.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The floor of each top-level module. A module may use those of its own floor and below.
const FLOORS: [(&str, u8); 24] = [
    ("digest", 0),
    ("descriptor", 0),
    ("offsets", 0),
    ("span", 0),
    ("process_group", 0),
    ("sync", 0),
    ("trust", 0),
    ("reference", 0),
    ("platform", 0),
    ("documents", 0),
    ("source", 1),
    ("codec", 1),
    ("store", 1),
    ("layer", 2),
    ("overlay", 2),
    ("predict", 2),
    ("signature", 2),
    ("content", 3),
    ("image", 4),
    ("image_store", 5),
    ("bundle", 5),
    ("erofs", 5),
    ("fuse", 5),
    ("host", 5),
];

#[test]
fn no_module_imports_from_a_floor_above() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let Some(own) = module_of(&file) else { continue };
        let own_floor = floor(&own);
        for used in imports(&std::fs::read_to_string(&file).unwrap()) {
            seen += 1;
            if floor(&used) > own_floor {
                wrong.push(format!(
                    "{}: `{own}` (floor {own_floor}) uses `{used}` (floor {})",
                    file.display(),
                    floor(&used)
                ));
            }
        }
    }
    assert!(seen > 50, "the test reads imports at all, but found only {seen}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_fuse_module_knows_fuser() {
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let text = std::fs::read_to_string(&file).unwrap();
        let knows = text.lines().any(|line| {
            let line = line.trim_start();
            !line.starts_with("//") && line.contains("fuser::")
        });
        assert!(!knows || module_of(&file).as_deref() == Some("fuse"), "{} knows fuser", file.display());
    }
}

/// `fuse` uses the trait of trees only, and no tree, layer or store.
#[test]
fn the_fuse_module_knows_trees_and_no_image() {
    const KNOWN: [(&str, &[&str]); 5] = [
        (
            "image",
            &[
                "Answer",
                "Apart",
                "FsError",
                "KernelContent",
                "NoAnswer",
                "ReadNow",
                "SeekTo",
                "Totals",
                "Tree",
                "briefly",
            ],
        ),
        ("overlay", &["NodeAttr", "NodeId"]),
        ("layer", &["Kind"]),
        ("content", &["ReadError"]),
        ("offsets", &["FileOffset"]),
    ];
    let mut seen = 0;
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/fuse"))) {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for (at, _) in code.match_indices("crate::") {
            let path = &code[at + "crate::".len()..];
            let module = name(path);
            if matches!(module.as_str(), "sync" | "fuse") {
                continue;
            }
            let known = KNOWN.iter().find(|(known, _)| *known == module).map_or(&[][..], |(_, names)| names);
            let names: Vec<String> =
                match path[module.len()..].strip_prefix("::").and_then(|rest| rest.strip_prefix('{')) {
                    Some(group) => group.split('}').next().unwrap_or_default().split(',').map(name).collect(),
                    None => vec![name(&path[module.len() + "::".len()..])],
                };
            seen += names.len();
            for used in names {
                assert!(known.contains(&used.as_str()), "{} uses `{module}::{used}`", file.display());
            }
        }
    }
    assert!(seen > 10, "the test reads imports at all, but found only {seen}");
}

/// Front ends are crates of their own: what only they need, the library does not.
#[test]
fn the_library_knows_no_terminal_and_no_arguments() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let needed = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    assert!(needed.contains("fuser.workspace"), "the test reads what the library needs");
    for front in ["clap", "indicatif", "tracing-subscriber"] {
        assert!(!needed.contains(front), "the library needs {front}");
    }
    let own: Vec<_> = needed.lines().filter(|line| line.starts_with("peelfs-")).collect();
    assert_eq!(own, ["peelfs-codec.workspace = true"]);
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let is_test = file.components().any(|part| part.as_os_str() == "tests");
        assert!(is_test || !code.contains("println!("), "{} prints", file.display());
    }
}

#[test]
fn predictors_are_pure() {
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/predict"))) {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for impure in ["tokio", "async ", "Mutex", "Atomic", "std::fs", "Instant", "crate::store", "crate::source"] {
            assert!(!code.contains(impure), "{} knows `{impure}`", file.display());
        }
    }
}

/// Rooms whose files import each other in one direction only. The file of a room's own name (`mod.rs`) uses all others.
const ROOMS: [&str; 3] = ["content", "image", "predict"];

#[test]
fn files_of_a_room_import_in_one_direction() {
    for room in ROOMS {
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).join(room);
        let files: BTreeMap<String, String> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
            .map(|path| (stem(&path), std::fs::read_to_string(&path).unwrap()))
            .collect();
        let uses: BTreeMap<&str, BTreeSet<String>> =
            files.iter().map(|(file, text)| (file.as_str(), siblings(room, file, text, &files))).collect();
        assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 5, "the test reads imports at all");
        // A file is done when all that it uses are.
        let mut done = BTreeSet::new();
        while let Some(next) = uses.iter().find(|(file, used)| !done.contains(**file) && used.is_subset(&done)) {
            done.insert((*next.0).to_owned());
        }
        let rest: Vec<_> = uses.iter().filter(|(file, _)| !done.contains(**file)).collect();
        assert!(rest.is_empty(), "files of `{room}` that use each other in a circle, or use one that does: {rest:#?}");
    }
}

/// The files of a room that one of them uses outside its tests, by `super::` or `crate::`; what is not in a file of its
/// own is in `mod.rs`.
fn siblings(room: &str, file: &str, text: &str, files: &BTreeMap<String, String>) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let starts = if file == "mod" { vec![] } else { vec!["super::".to_owned(), format!("crate::{room}::")] };
    let mut used = BTreeSet::new();
    for start in &starts {
        for (at, _) in code.match_indices(start.as_str()) {
            let names = match code[at + start.len()..].split_once('{') {
                Some(("", group)) => group.split('}').next().unwrap_or_default().split(',').map(name).collect(),
                _ => vec![name(&code[at + start.len()..])],
            };
            let file_of = |name: String| if files.contains_key(&name) { name } else { "mod".to_owned() };
            used.extend(names.into_iter().filter(|name| !name.is_empty()).map(file_of));
        }
    }
    if file == "mod" {
        used.extend(files.keys().filter(|child| code.contains(&format!("{child}::"))).cloned());
    }
    used.remove(file);
    used
}

/// The name at the beginning of a path.
fn name(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

fn floor(module: &str) -> u8 {
    let found = FLOORS.iter().find(|(name, _)| *name == module);
    found.unwrap_or_else(|| panic!("module `{module}` has no floor yet; give it one here")).1
}

/// The top-level module a file belongs to; none for the crate's roots.
fn module_of(file: &Path) -> Option<String> {
    let inside = file.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (name != "lib" && name != "main").then(|| name.to_owned())
}

/// Every module that stands behind `crate::` outside comments.
fn imports(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut modules = Vec::new();
    for line in code {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            let name: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if !name.is_empty() {
                modules.push(name);
            }
        }
    }
    modules
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Links between documents and into the source, as `[text](path#anchor)`; those out of the repository are not followed.
#[test]
fn links_in_documents_lead_somewhere() {
    let mut dead = Vec::new();
    let mut seen = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for link in text.match_indices("](").map(|(at, _)| &text[at + 2..]).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.contains(char::is_whitespace) {
                continue;
            }
            seen += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            let found = target.exists() && (anchor.is_empty() || anchors(&target).iter().any(|one| one == anchor));
            if !found {
                dead.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(seen > 50, "the test finds links at all, but found only {seen}");
    assert!(dead.is_empty(), "change these links, or what they name:\n{}", dead.join("\n"));
}

/// Plain engineers' English (docs/style.md): a process is no person.
#[test]
fn documents_and_sources_use_plain_words() {
    const WORDS: [&str; 8] = ["somebody", "nobody", "anybody", "everybody", "whoever", "he", "his", "him"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lists_them = ["docs/style.md", "tests/layering.rs"].map(|path| root.join(path));
    let mut found = Vec::new();
    let all = documents().into_iter().chain(all_sources()).chain(scripts());
    for file in all.filter(|path| !lists_them.contains(path)) {
        for (number, line) in std::fs::read_to_string(&file).unwrap().lines().enumerate() {
            // The user of that name is meant.
            if line.contains("`nobody`") {
                continue;
            }
            // Names of functions and tests are words, too.
            let words = line.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_ascii_lowercase);
            for word in words.filter(|word| WORDS.contains(&word.as_str())) {
                found.push(format!("{}:{}: {word}", file.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "say which process or reader it is:\n{}", found.join("\n"));
}

/// A name that fits on a line beside its result; what else there is to say stands above the test.
#[test]
fn names_of_functions_have_at_most_60_characters() {
    let mut found = Vec::new();
    for file in all_sources() {
        let text = std::fs::read_to_string(&file).unwrap();
        for (at, _) in text.match_indices("fn ") {
            let function = name(&text[at + 3..]);
            if function.len() > 60 {
                found.push(format!("{}: {function}", file.display()));
            }
        }
    }
    assert!(found.is_empty(), "shorten these names:\n{}", found.join("\n"));
}

/// The sources of all crates, tests and benches.
fn all_sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found: Vec<_> = [
        "src",
        "cli/src",
        "codec/src",
        "csi/src",
        "grpc/src",
        "loopback/src",
        "snapshotter/src",
        "tests",
        "benches",
        "examples",
        "fuzz/fuzz_targets",
    ]
    .into_iter()
    .flat_map(|dir| sources(&root.join(dir)))
    .collect();
    assert!(found.len() > 150, "the test finds sources, but only {}", found.len());
    found
}

/// What is run by a shell.
fn scripts() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let below = ["scripts", "findings", "benches", "benches/parts", ".ci"];
    let listed = below.into_iter().flat_map(|dir| std::fs::read_dir(root.join(dir)).unwrap());
    let begins = |path: &PathBuf| std::fs::read(path).is_ok_and(|text| text.starts_with(b"#"));
    let found: Vec<_> = listed.map(|entry| entry.unwrap().path()).filter(begins).collect();
    assert!(found.len() > 10, "the test finds scripts, but only {}", found.len());
    found
}

/// The documents of the repository.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = ["", "docs", "findings"].into_iter().flat_map(|dir| std::fs::read_dir(root.join(dir)).unwrap());
    let mut found: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found.sort();
    found
}

/// The anchors that a document's headings have.
fn anchors(document: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(document).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| -> String {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
    };
    headings.map(anchor).collect()
}
