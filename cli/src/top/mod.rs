//! `peelfs top`: what mounts fetch and why, and who waits, as it happens.

mod draw;
mod view;

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use clap_complete::engine::ArgValueCompleter;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{Clear, ClearType};
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::args::interval;
use super::watch::Snapshot;
use super::{complete, umount};
use peelfs::fuse::mounts::MountPoint;
use peelfs::host::report::{Code, Report};
use view::{Action, View};

/// `peelfs top`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = KEYS)]
pub(crate) struct TopArgs {
    /// Mount points; all peelfs mounts when none is given
    #[arg(value_name = "DIR", add = ArgValueCompleter::new(complete::mount_points))]
    pub at: Vec<PathBuf>,
    /// How often to look
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub interval: Duration,
}

const KEYS: &str = "\
Keys:
  up, down, k, j, PageUp, PageDown, Home, End   choose a line
  Enter, right    go into a mount       Esc, left      go back
  Tab             layers, files, or waiting programs of a mount
  s, S            sort by the next column, or in the other order
  space           pause                 ?              help
  q, Ctrl-C       quit";

pub(super) fn run(args: &TopArgs) -> Result<(), Report> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Report::usage("`peelfs top` needs a terminal")
            .hint("`peelfs status --activity` prints the same, and `--watch` prints it again and again"));
    }
    let only = args.at.iter().map(|typed| umount::target(typed)).collect::<Result<Vec<_>, _>>()?;
    // What is wrong from the start is told on the plain terminal.
    let first = Snapshot::take(0, &only, None)?;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(|error| failed("listen to signals", &error))?;
    }
    let mut view = View::new(first, !only.is_empty());
    let looks =
        Looks::begin(only, args.interval, Arc::clone(&view.files)).map_err(|error| failed("start a thread", &error))?;
    // Restores the terminal in a panic, too.
    let mut terminal = ratatui::try_init().map_err(|error| failed("use the terminal", &error))?;
    let done = watch(&mut terminal, &mut view, &looks, &ended);
    let restored = ratatui::try_restore();
    done.and(restored).map_err(|error| failed("use the terminal", &error))?;
    view.error.map_or(Ok(()), Err)
}

fn failed(what: &str, error: &io::Error) -> Report {
    Report::new(Code::Failure, format!("cannot {what}: {error}"))
}

/// Draws and obeys keys until the end.
fn watch(terminal: &mut DefaultTerminal, view: &mut View, looks: &Looks, ended: &AtomicBool) -> io::Result<()> {
    let mut changed = true;
    while !ended.load(Ordering::Relaxed) && view.error.is_none() {
        if changed {
            terminal.draw(|frame| draw::draw(frame, view))?;
            changed = false;
        }
        if event::poll(KEY_WAIT)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    let control = key.modifiers.contains(KeyModifiers::CONTROL);
                    match (key.code, control) {
                        (KeyCode::Char('c'), true) => return Ok(()),
                        (KeyCode::Char('z'), true) => suspend(terminal)?,
                        (KeyCode::Char('l'), true) => draw_anew(terminal)?,
                        (code, _) => match view.press(code) {
                            Action::Quit => return Ok(()),
                            Action::Look => looks.soon(),
                            Action::Nothing => {}
                        },
                    }
                    changed = true;
                }
                Event::Resize(..) => changed = true,
                _ => {}
            }
        }
        while let Ok(seen) = looks.seen.try_recv() {
            changed |= view.see(seen);
        }
    }
    Ok(())
}

/// Stops this process, as Ctrl-Z does elsewhere; returns when it continues.
fn suspend(terminal: &mut DefaultTerminal) -> io::Result<()> {
    ratatui::try_restore()?;
    kill_process(getpid(), Signal::TSTP)?;
    *terminal = ratatui::try_init()?;
    Ok(())
}

/// Draws all of the screen the next time. Does not ask the terminal for its cursor, which not every one tells.
fn draw_anew(terminal: &mut DefaultTerminal) -> io::Result<()> {
    execute!(io::stdout(), Clear(ClearType::All))?;
    terminal.swap_buffers();
    Ok(())
}

/// A thread that asks the mounts, so that one that does not answer delays no key.
struct Looks {
    seen: Receiver<Result<Snapshot, Report>>,
    wake: Sender<()>,
}

impl Looks {
    fn begin(only: Vec<MountPoint>, interval: Duration, files: Arc<AtomicU32>) -> io::Result<Self> {
        let (to_view, seen) = mpsc::channel();
        let (wake, woken) = mpsc::channel();
        std::thread::Builder::new().name("looks".to_owned()).spawn(move || {
            let mut before: Option<Snapshot> = None;
            loop {
                match woken.recv_timeout(interval) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                let seen = Snapshot::take(files.load(Ordering::Relaxed), &only, before.as_ref());
                before = seen.as_ref().ok().cloned();
                if to_view.send(seen).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { seen, wake })
    }

    /// Looks now.
    fn soon(&self) {
        // Its thread ends only after this.
        let _ = self.wake.send(());
    }
}

/// How long a snapshot or a signal may wait to be noticed.
const KEY_WAIT: Duration = Duration::from_millis(100);
