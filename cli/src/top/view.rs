//! What is shown: which mount, which table, which line, in which order.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering as Memory};

use ratatui::crossterm::event::KeyCode;

use crate::watch::{self, Mount, Snapshot};
use peelfs::host::activity::Activity;
use peelfs::host::report::Report;
use peelfs::host::wire::v1::activity::{FileActivity, LayerActivity, WaitingRequest};

/// The state of the screen.
pub(super) struct View {
    pub(super) snapshot: Snapshot,
    pub(super) place: Place,
    /// The line in each table.
    pub(super) lines: [usize; Table::ALL.len()],
    orders: [Order; Table::ALL.len()],
    pub(super) paused: bool,
    pub(super) help: bool,
    /// How many lines the table has room for, as it was drawn last.
    pub(super) page: usize,
    /// How many files are asked for.
    pub(super) files: Arc<AtomicU32>,
    /// Why it ends.
    pub(super) error: Option<Report>,
}

/// Where the user is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// The list of mounts.
    Mounts,
    /// In the mount on the line of the list.
    Mount(Table),
}

/// A table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Table {
    Mounts,
    Layers,
    Files,
    Waiting,
}

/// How a table is sorted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Order {
    /// The column.
    pub(super) column: usize,
    /// The smallest or first comes first.
    pub(super) ascending: bool,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Action {
    Nothing,
    /// Look at the mounts now.
    Look,
    Quit,
}

impl Table {
    pub(super) const ALL: [Self; 4] = [Self::Mounts, Self::Layers, Self::Files, Self::Waiting];

    /// The headings of its columns.
    pub(super) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Mounts => &["MOUNT", "IMAGE", "SIZE", "FETCHED", "RATE", "READ/S", "HITS", "WAITING"],
            Self::Layers => &["LAYER", "STATE", "SIZE", "FETCHED", "CACHED", "READ", "WAITS", "WHY"],
            Self::Files => &["FILE", "LAYER", "SIZE", "FETCHED", "WAITS", "WAITED", "AGO", "WHY"],
            Self::Waiting => &["FOR", "PROGRAM", "PID", "DOES", "WITH"],
        }
    }

    /// The order in which it begins.
    fn first_order(self) -> Order {
        match self {
            Self::Mounts | Self::Layers => Order { column: 0, ascending: true },
            // The last active ones first.
            Self::Files => Order { column: 6, ascending: true },
            Self::Waiting => Order { column: 0, ascending: false },
        }
    }
}

impl View {
    pub(super) fn new(snapshot: Snapshot, inside: bool) -> Self {
        let view = Self {
            snapshot,
            place: Place::Mounts,
            lines: Default::default(),
            orders: Table::ALL.map(Table::first_order),
            paused: false,
            help: false,
            page: 1,
            files: Arc::new(AtomicU32::new(0)),
            error: None,
        };
        match inside && view.snapshot.mounts.len() == 1 {
            true => view.inside(),
            false => view,
        }
    }

    fn inside(mut self) -> Self {
        self.enter();
        self
    }

    /// The table that is shown.
    pub(super) fn table(&self) -> Table {
        match self.place {
            Place::Mounts => Table::Mounts,
            Place::Mount(table) => table,
        }
    }

    pub(super) fn order(&self) -> Order {
        self.orders[self.table() as usize]
    }

    /// Takes a snapshot; whether anything is to be drawn.
    pub(super) fn see(&mut self, seen: Result<Snapshot, Report>) -> bool {
        match seen {
            Ok(_) if self.paused => return false,
            Ok(snapshot) => {
                // The line stays on its mount.
                let chosen = self.mount().map(|mount| mount.at.clone());
                self.snapshot = snapshot;
                let line = self.mounts().iter().position(|mount| Some(&mount.at) == chosen.as_ref());
                if line.is_none() && self.place != Place::Mounts {
                    self.leave();
                }
                self.lines[Table::Mounts as usize] = line.unwrap_or(self.lines[Table::Mounts as usize]);
                self.keep_lines();
            }
            Err(error) => self.error = Some(error),
        }
        true
    }

    pub(super) fn press(&mut self, key: KeyCode) -> Action {
        if self.help {
            self.help = false;
            return Action::Nothing;
        }
        let page = self.page.max(1) as isize;
        match key {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace | KeyCode::Char('h') => self.leave(),
            KeyCode::Enter | KeyCode::Right if self.place == Place::Mounts && self.mount().is_some() => {
                self.enter();
                return Action::Look;
            }
            KeyCode::Tab | KeyCode::BackTab => self.turn(key == KeyCode::Tab),
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::PageUp => self.go(-page),
            KeyCode::PageDown => self.go(page),
            KeyCode::Home | KeyCode::Char('g') => self.go(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.go(isize::MAX),
            KeyCode::Char('s') => self.sort_by_next(),
            KeyCode::Char('S') => {
                let order = &mut self.orders[self.table() as usize];
                order.ascending = !order.ascending;
            }
            KeyCode::Char(' ') => {
                self.paused = !self.paused;
                return Action::Look;
            }
            KeyCode::Char('?') | KeyCode::F(1) => self.help = true,
            _ => {}
        }
        Action::Nothing
    }

    fn enter(&mut self) {
        self.place = Place::Mount(Table::Files);
        self.lines[1..].fill(0);
        self.files.store(FILES, Memory::Relaxed);
    }

    fn leave(&mut self) {
        self.place = Place::Mounts;
        self.files.store(0, Memory::Relaxed);
    }

    fn turn(&mut self, forward: bool) {
        let Place::Mount(table) = self.place else { return };
        self.place = Place::Mount(match (table, forward) {
            (Table::Layers, true) | (Table::Waiting, false) => Table::Files,
            (Table::Files, true) | (Table::Layers, false) => Table::Waiting,
            _ => Table::Layers,
        });
    }

    fn go(&mut self, by: isize) {
        let line = &mut self.lines[self.table() as usize];
        *line = line.saturating_add_signed(by);
        self.keep_lines();
    }

    /// Lines are within their tables.
    fn keep_lines(&mut self) {
        for table in Table::ALL {
            let last = self.length(table).saturating_sub(1);
            let line = &mut self.lines[table as usize];
            *line = (*line).min(last);
        }
    }

    fn sort_by_next(&mut self) {
        let table = self.table();
        let order = &mut self.orders[table as usize];
        order.column = (order.column + 1) % table.columns().len();
        // Names from A, numbers from the largest.
        order.ascending = match table {
            Table::Mounts => order.column < 2,
            Table::Layers => order.column < 2,
            Table::Files => matches!(order.column, 0 | 1 | 6),
            Table::Waiting => order.column > 0,
        };
    }

    fn length(&self, table: Table) -> usize {
        let of = |length: fn(&Activity) -> usize| self.activity().map_or(0, length);
        match table {
            Table::Mounts => self.snapshot.mounts.len(),
            Table::Layers => of(|activity| activity.layers.len()),
            Table::Files => of(|activity| activity.files.len()),
            Table::Waiting => of(|activity| activity.waiting.len()),
        }
    }

    fn sorted<'a, T>(&self, table: Table, all: &'a [T], compare: impl Fn(&T, &T, usize) -> Ordering) -> Vec<&'a T> {
        let Order { column, ascending } = self.orders[table as usize];
        let mut all: Vec<_> = all.iter().collect();
        all.sort_by(|a, b| if ascending { compare(a, b, column) } else { compare(b, a, column) });
        all
    }

    /// The mounts in their order.
    pub(super) fn mounts(&self) -> Vec<&Mount> {
        self.sorted(Table::Mounts, &self.snapshot.mounts, |a, b, column| {
            let number = |mount: &Mount, of: fn(&Activity) -> u64| mount.activity.as_ref().map_or(0, of);
            let by = |of| number(a, of).cmp(&number(b, of));
            match column {
                0 => a.at.cmp(&b.at),
                1 => a.reference.cmp(&b.reference),
                2 => by(|activity| activity.mount.image_bytes),
                3 => by(watch::fetched),
                4 => a.rates.fetched.total_cmp(&b.rates.fetched),
                5 => a.rates.read.total_cmp(&b.rates.read),
                6 => {
                    let hits = |mount: &Mount| mount.activity.as_ref().ok().and_then(watch::hits).unwrap_or(-1.0);
                    hits(a).total_cmp(&hits(b))
                }
                _ => by(|activity| activity.mount.waiting),
            }
        })
    }

    /// The mount on the line.
    pub(super) fn mount(&self) -> Option<&Mount> {
        self.mounts().get(self.lines[Table::Mounts as usize]).copied()
    }

    pub(super) fn activity(&self) -> Option<&Activity> {
        self.mount()?.activity.as_ref().ok()
    }

    pub(super) fn layers(&self) -> Vec<&LayerActivity> {
        let all = self.activity().map_or(&[][..], |activity| &activity.layers);
        self.sorted(Table::Layers, all, |a, b, column| match column {
            0 => a.number.cmp(&b.number),
            1 => (a.state as u8).cmp(&(b.state as u8)),
            2 => a.size.cmp(&b.size),
            4 => a.cached_bytes.cmp(&b.cached_bytes),
            5 => a.read_bytes.cmp(&b.read_bytes),
            6 => a.waits.cmp(&b.waits),
            _ => a.fetched.sum().cmp(&b.fetched.sum()),
        })
    }

    pub(super) fn files(&self) -> Vec<&FileActivity> {
        let all = self.activity().map_or(&[][..], |activity| &activity.files);
        self.sorted(Table::Files, all, |a, b, column| match column {
            0 => crate::activity::path(&a.path).cmp(&crate::activity::path(&b.path)),
            1 => a.layer.cmp(&b.layer),
            2 => a.size.cmp(&b.size),
            4 => a.waits.cmp(&b.waits),
            5 => a.waited_us.cmp(&b.waited_us),
            6 => a.idle_ms.cmp(&b.idle_ms),
            _ => a.fetched.sum().cmp(&b.fetched.sum()),
        })
    }

    pub(super) fn waiting(&self) -> Vec<&WaitingRequest> {
        let all = self.activity().map_or(&[][..], |activity| &activity.waiting);
        self.sorted(Table::Waiting, all, |a, b, column| match column {
            0 => a.waits_us.cmp(&b.waits_us),
            1 => a.command.cmp(&b.command),
            2 => a.pid.cmp(&b.pid),
            3 => a.operation.cmp(&b.operation),
            _ => a.path.as_ref().map(crate::activity::path).cmp(&b.path.as_ref().map(crate::activity::path)),
        })
    }
}

/// How many files of a mount are asked for.
const FILES: u32 = 1000;
