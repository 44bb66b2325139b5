//! What is printed: lines and JSON, names of any bytes.
//!
//! A name is printed as it is into pipes and files, so that it can be used, and escaped on a terminal, which it could
//! steer otherwise.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};

use peelfs::image::Tree;
use peelfs::layer::Kind;
use peelfs::overlay::NodeAttr;
use serde::Serialize;

use crate::{progress, text};

/// Standard output.
pub(crate) struct Out {
    to: BufWriter<Stdout>,
    terminal: bool,
}

/// Standard output; on a terminal, above the bar that shows progress.
pub(crate) struct Stdout {
    lock: StdoutLock<'static>,
    terminal: bool,
}

impl Stdout {
    pub(crate) fn new() -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { lock: stdout.lock(), terminal }
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.terminal { progress::write_above(&mut self.lock, bytes) } else { self.lock.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock.flush()
    }
}

impl Out {
    pub(crate) fn new() -> Self {
        let stdout = Stdout::new();
        let terminal = stdout.terminal;
        Self { to: BufWriter::with_capacity(BUFFER, stdout), terminal }
    }

    /// Whether a person looks at it.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// A name or path.
    pub(crate) fn name(&mut self, name: &[u8]) -> io::Result<()> {
        if self.terminal { self.to.write_all(text::printable(name).as_bytes()) } else { self.to.write_all(name) }
    }

    /// A line that ends in a name.
    pub(crate) fn line(&mut self, before: &str, name: &[u8]) -> io::Result<()> {
        self.to.write_all(before.as_bytes())?;
        self.name(name)?;
        self.to.write_all(b"\n")
    }

    /// One JSON object, on a line.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.to, value)?;
        self.to.write_all(b"\n")
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A name or path in JSON: as text, and in hexadecimal too if it is not UTF-8.
pub(crate) fn json_name(name: &[u8]) -> (String, Option<String>) {
    let hex = std::str::from_utf8(name).is_err().then(|| text::hex(name));
    (String::from_utf8_lossy(name).into_owned(), hex)
}

/// A node in JSON, as `ls`, `find`, `tree` and `stat` print it.
#[derive(Serialize)]
pub(crate) struct JsonNode {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    mtime_ns: u32,
    nlink: u32,
    inode: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<[u32; 2]>,
}

impl JsonNode {
    pub(crate) fn new(tree: &dyn Tree, path: &[u8], attr: &NodeAttr, target: Option<&[u8]>) -> Self {
        let (path, path_hex) = json_name(path);
        let (target, target_hex) = target.map(json_name).map_or((None, None), |(text, hex)| (Some(text), hex));
        let is_device = matches!(attr.kind, Kind::CharDevice | Kind::BlockDevice);
        Self {
            path,
            path_hex,
            kind: text::kind(attr.kind),
            mode: format!("{:04o}", attr.mode),
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            mtime: attr.mtime,
            mtime_ns: attr.mtime_ns,
            nlink: attr.nlink,
            inode: tree.inode(attr.node),
            target,
            target_hex,
            device: is_device.then_some([attr.device.0, attr.device.1]),
        }
    }
}

/// Bytes that are written at a time.
const BUFFER: usize = 64 << 10;
