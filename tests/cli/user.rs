//! A user of the command line.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use peelfs_loopback::image::Image;
use peelfs_loopback::registry::Registry;
use support::sandbox::program;

/// A user with a home, a cache and a working directory of their own.
pub(super) struct User {
    pub(super) dir: tempfile::TempDir,
    /// Random parts of the output, and their replacements.
    pub(super) hidden: Vec<(String, &'static str)>,
}

/// What a command did.
pub(super) struct Ran {
    pub(super) output: Output,
    pub(super) text: String,
}

impl User {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["home", "work", "run"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let hidden = vec![(dir.path().to_str().unwrap().to_owned(), "$DIR")];
        Self { dir, hidden }
    }

    pub(super) fn at(registry: &Registry) -> Self {
        let mut user = Self::new();
        user.hidden.push((registry.addr().to_string(), "registry.test"));
        user
    }

    /// A user with a layout of `image` in the working directory.
    pub(super) fn with_layout(image: &Image) -> Self {
        let user = Self::new();
        image.write_layout(&user.path("layout"), "1").unwrap();
        user
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("work").join(name)
    }

    pub(super) fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(program());
        let home = self.dir.path().join("home");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", &home);
        command.env("XDG_RUNTIME_DIR", self.dir.path().join("run")).env("PEELFS_CACHE_DIR", home.join("cache"));
        command.current_dir(self.dir.path().join("work")).stdin(Stdio::null()).args(line);
        command
    }

    pub(super) fn run(&self, line: &[&str]) -> Ran {
        let output = self.command(line).output().unwrap();
        let shown = |bytes: &[u8]| {
            let mut text = String::from_utf8_lossy(bytes).into_owned();
            for (random, shown) in &self.hidden {
                text = text.replace(random, shown);
            }
            text
        };
        let mut text = shown(&output.stdout);
        let talk = shown(&output.stderr);
        if !talk.is_empty() {
            text.push_str("--- stderr\n");
            text.push_str(&talk);
        }
        if !output.status.success() {
            text.push_str(&format!("--- exit {}\n", output.status.code().unwrap()));
        }
        Ran { output, text }
    }

    /// The output of a command that must succeed.
    pub(super) fn prints(&self, line: &[&str]) -> String {
        let ran = self.run(line);
        assert!(ran.output.status.success() && ran.output.stderr.is_empty(), "{line:?}: {}", ran.text);
        String::from_utf8(ran.output.stdout).unwrap()
    }

    pub(super) fn json(&self, line: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.prints(line)).unwrap()
    }
}
