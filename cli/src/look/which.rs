//! `peelfs which`: the layers that have had a path, and the one whose version is shown.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use serde::Serialize;

use super::Stop;
use super::args::WhichArgs;
use super::history::commands;
use super::open::{self, Looked, cannot};
use super::out::{Out, json_name};
use super::owners::Owners;
use crate::args::LayerArgs;
use crate::failures::Failures;
use crate::text;
use peelfs::digest::Digest;
use peelfs::host::report::{Code, Report};
use peelfs::image::{Change, Effect, FsError, LayerIndexes, tree};
use peelfs::overlay::LayerNo;

pub(crate) fn run(args: &WhichArgs) -> Result<(), Report> {
    open::run(&args.image, &LayerArgs::default(), async |looked| which(args, looked).await)
}

async fn which(args: &WhichArgs, looked: Looked) -> Result<(), Stop> {
    let indexes = looked.shown.image().layer_indexes(LayerNo(0)).await?;
    let owners = if args.json { Owners::default() } else { Owners::of(&looked.tree).await };
    let (mut out, mut failures) = (Out::new(), Failures::default());
    let commands = commands(&looked.opened.plan);
    for path in args.paths.iter().map(|path| path.as_os_str().as_bytes()) {
        let (real, changes) = match versions(&looked, &indexes, path).await {
            Ok(found) => found,
            Err(report) => {
                failures.add(report);
                continue;
            }
        };
        let lines = lines(&looked, &indexes, &changes, &commands)?;
        if args.json {
            let (path, path_hex) = json_name(&real);
            out.json(&JsonPath { path, path_hex, versions: lines })?;
            continue;
        }
        out.name(&real)?;
        writeln!(out)?;
        for line in &lines {
            let what = line.entry(&owners);
            let command = line.created_by.map(|command| text::printable(command.as_bytes()));
            writeln!(
                out,
                "{} layer {:<3} {:<7} {what}{}",
                if line.shown { '*' } else { ' ' },
                line.layer,
                line.effect,
                command.map(|command| format!("  {command}")).unwrap_or_default(),
            )?;
        }
    }
    out.flush()?;
    Ok(failures.outcome()?)
}

/// The path without symlinks on the way, and what layers did to it, the uppermost first.
async fn versions(looked: &Looked, indexes: &LayerIndexes, path: &[u8]) -> Result<(Vec<u8>, Vec<Change>), Report> {
    let failed = |error: FsError| cannot("look for", path, error.into());
    let names = tree::real_path(&*looked.tree, path).await.map_err(failed)?;
    let mut versions = indexes.root().map_err(failed)?;
    for name in &names {
        versions = indexes.child(&versions, name).map_err(failed)?;
    }
    let real = [b"/", &names.join(&b'/')[..]].concat();
    let mut changes = indexes.changes(&versions).map_err(failed)?;
    if changes.is_empty() {
        // A hint with the nearest path of those that are there now.
        looked.named("look for", path, peelfs::overlay::Last::Keep).await?;
        return Err(Report::new(Code::NotFound, format!("no layer has had `{}`", text::printable(path))));
    }
    changes.reverse();
    Ok((real, changes))
}

/// One line of `--json`.
#[derive(Serialize)]
struct JsonPath<'a> {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    versions: Vec<Line<'a>>,
}

/// What one layer did.
#[derive(Serialize)]
struct Line<'a> {
    /// Counted from 1, the lowest.
    layer: u32,
    digest: &'a Digest,
    effect: &'static str,
    shown: bool,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<&'a str>,
    #[serde(skip)]
    letters: String,
}

impl Line<'_> {
    fn entry(&self, owners: &Owners) -> String {
        let (Some(uid), Some(gid), Some(size), Some(mtime)) = (self.uid, self.gid, self.size, self.mtime) else {
            return String::new();
        };
        format!("{} {} {} {:>9} {}", self.letters, owners.user(uid), owners.group(gid), size, text::time(mtime))
    }
}

fn lines<'a>(
    looked: &'a Looked,
    indexes: &LayerIndexes,
    changes: &[Change],
    commands: &'a [Option<String>],
) -> Result<Vec<Line<'a>>, FsError> {
    let mut lines = Vec::new();
    for (at, change) in changes.iter().enumerate() {
        let entry = change.entry.map(|id| indexes.entry(change.layer, id)).transpose()?;
        let place = usize::from(change.layer.0);
        lines.push(Line {
            layer: u32::from(change.layer.0) + 1,
            digest: &looked.opened.plan.layers[place].blob.digest,
            effect: match change.effect {
                Effect::Adds => "adds",
                Effect::Changes => "changes",
                Effect::Removes => "removes",
            },
            shown: at == 0 && entry.is_some(),
            kind: entry.map(|entry| text::kind(entry.kind())),
            mode: entry.map(|entry| format!("{:04o}", entry.mode())),
            uid: entry.map(|entry| entry.uid()),
            gid: entry.map(|entry| entry.gid()),
            size: entry.map(|entry| entry.size()),
            mtime: entry.map(|entry| entry.mtime().seconds),
            created_by: commands[place].as_deref(),
            letters: entry.map_or(String::new(), |entry| text::mode(entry.kind(), entry.mode())),
        });
    }
    Ok(lines)
}
