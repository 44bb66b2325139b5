//! Draws a view. What colours say, words say, too.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table as Grid, TableState};

use super::view::{Place, Table, View};
use crate::activity;
use crate::text::{self, printable};
use crate::watch::{self, Mount};
use peelfs::host::activity::Activity;
use peelfs::host::wire::v1::activity::{ByReason, LayerState};

pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let head = if view.place == Place::Mounts { 1 } else { HEAD };
    let [title, above, table, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(head), Constraint::Min(3), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(self::title(view), title);
    match view.place {
        Place::Mounts => frame.render_widget(totals(view), above),
        Place::Mount(shown) => {
            if let Some(mount) = view.mount() {
                frame.render_widget(Paragraph::new(summary(mount, shown, above.width)), above);
            }
        }
    }
    view.page = usize::from(table.height.saturating_sub(1));
    rows(frame, view, table);
    frame.render_widget(self::foot(view), foot);
    if view.help {
        help(frame);
    }
}

/// What this is, and where.
fn title(view: &View) -> Line<'static> {
    let mut title = vec![Span::from(" peelfs top ").bold().reversed(), " ".into()];
    match view.place {
        Place::Mounts => title.push(text::count(view.snapshot.mounts.len() as u64, "mount").into()),
        Place::Mount(_) => title.extend(view.mount().map(|mount| Span::from(mount.name()).bold())),
    }
    if view.paused {
        title.push("  paused".yellow().bold());
    }
    title.into()
}

/// All mounts together.
fn totals(view: &View) -> Line<'static> {
    let mounts = &view.snapshot.mounts;
    let rate: f64 = mounts.iter().map(|mount| mount.rates.fetched).sum();
    let of = |of: fn(&Activity) -> u64| -> u64 { mounts.iter().flat_map(|mount| &mount.activity).map(of).sum() };
    let (fetched, waiting) = (of(watch::fetched), of(|activity| activity.mount.waiting));
    let mut line = vec![Span::from(format!(" fetched {}, {}", text::size(fetched), speed(rate)))];
    if waiting > 0 {
        line.push(format!("  {} waiting", text::count(waiting, "request")).red().bold());
    }
    line.into()
}

/// What is known of one mount, in [`HEAD`] lines.
fn summary(mount: &Mount, shown: Table, width: u16) -> Vec<Line<'static>> {
    let image = printable(mount.reference.as_bytes());
    let process = match &mount.state {
        Some(state) if state.takeovers > 0 => {
            format!("process {}, after {}", state.pid, text::count(state.takeovers.into(), "take-over"))
        }
        Some(state) => format!("process {}", state.pid),
        None => String::new(),
    };
    let mut lines = vec![Line::from(vec![format!(" {image}  ").into(), process.dim()])];
    match &mount.activity {
        Err(why) => lines.push(Line::from(format!(" {}", printable(why.as_bytes()))).yellow()),
        Ok(activity) => {
            let all = &activity.mount;
            let hits =
                watch::hits(activity).map_or(String::new(), |hits| format!(", {} without waiting", percent(hits)));
            let read = text::size(watch::read(activity));
            let mut line = vec![Span::from(format!(
                " fetched {} of {}, {}; programs read {read}, {}{hits}",
                text::size(watch::fetched(activity)),
                text::size(all.image_bytes),
                speed(mount.rates.fetched),
                speed(mount.rates.read),
            ))];
            if all.failed > 0 {
                line.push(format!("; {} failed", text::count(all.failed, "request")).red().bold());
            }
            lines.push(line.into());
            let registry = all.registry.as_ref().map_or(Line::default(), |registry| {
                let mut line = vec![Span::from(format!(
                    " registry: {}, {} received, {}",
                    text::count(registry.requests, "request"),
                    text::size(registry.received_bytes),
                    match registry.retries + registry.resumptions {
                        1 => "1 retry".to_owned(),
                        retries => format!("{retries} retries"),
                    },
                ))];
                if registry.failing > 0 {
                    line.push(format!("; failing for {} s", registry.failing_s).red().bold());
                }
                line.into()
            });
            lines.push(registry);
            let why = watch::reasons(&activity.layers);
            lines.push(bar(&why, all.image_bytes, width.saturating_sub(2)));
            lines.push(legend(&why));
        }
    }
    lines.resize(usize::from(HEAD) - 1, Line::default());
    lines.push(tabs(mount, shown));
    lines
}

/// The tables of a mount.
fn tabs(mount: &Mount, shown: Table) -> Line<'static> {
    let count = |of: fn(&Activity) -> u64| mount.activity.as_ref().map_or(0, of);
    let tabs = [
        (Table::Layers, "Layers", count(|activity| activity.layers.len() as u64)),
        (Table::Files, "Files", count(|activity| activity.files.len() as u64)),
        (Table::Waiting, "Waiting", count(|activity| activity.mount.waiting)),
    ];
    let tab = |(table, name, count): (Table, &str, u64)| {
        let label = Span::from(format!(" {name} {count} "));
        let label = if table == Table::Waiting && count > 0 { label.red().bold() } else { label };
        [" ".into(), if table == shown { label.reversed() } else { label }]
    };
    tabs.into_iter().flat_map(tab).collect::<Vec<_>>().into()
}

/// How much of the image was fetched, part by part for each reason.
fn bar(why: &ByReason, whole: u64, width: u16) -> Line<'static> {
    let width = u64::from(width);
    let whole = whole.max(why.sum()).max(1);
    let mut spans = vec![Span::from(" ")];
    let (mut done, mut drawn) = (0, 0);
    for (bytes, color) in why.numbers().into_iter().zip(COLORS) {
        done += bytes;
        let end = (u128::from(done) * u128::from(width) / u128::from(whole)) as u64;
        spans.push(Span::styled("█".repeat((end - drawn) as usize), color));
        drawn = end;
    }
    spans.push("·".repeat((width - drawn) as usize).dim());
    spans.into()
}

fn legend(why: &ByReason) -> Line<'static> {
    let mut spans = vec![Span::from(" ")];
    for ((name, bytes), color) in
        ByReason::NAMES.iter().zip(why.numbers()).zip(COLORS).filter(|((_, bytes), _)| *bytes > 0)
    {
        spans.push(Span::styled("■ ", color));
        spans.push(format!("{} {}   ", name.replace('_', " "), text::size(bytes)).into());
    }
    spans.into()
}

/// The table, with the line that is chosen.
fn rows(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let table = view.table();
    let (rows, widths): (Vec<Row<'_>>, &[Constraint]) = match table {
        Table::Mounts => (view.mounts().into_iter().map(mount_row).collect(), &MOUNT_WIDTHS),
        Table::Layers => (view.layers().into_iter().map(layer_row).collect(), &LAYER_WIDTHS),
        Table::Files => {
            let room = usize::from(area.width).saturating_sub(FILE_REST).max(12);
            (view.files().into_iter().map(|file| file_row(file, room)).collect(), &FILE_WIDTHS)
        }
        Table::Waiting => (view.waiting().into_iter().map(waiting_row).collect(), &WAITING_WIDTHS),
    };
    if rows.is_empty() {
        let empty = match table {
            Table::Mounts => "Nothing is mounted. `peelfs mount IMAGE DIR` mounts an image.",
            Table::Layers => "No layer is known.",
            Table::Files => "No file was fetched or waited for. What is read from the cache is not listed.",
            Table::Waiting => "No program waits.",
        };
        return frame.render_widget(Paragraph::new(format!(" {empty}")).dim(), area);
    }
    let order = view.order();
    let headings = table.columns().iter().enumerate().map(|(number, name)| {
        let heading = match (number == order.column, order.ascending) {
            (true, true) => Line::from(format!("{name}↑")).bold(),
            (true, false) => Line::from(format!("{name}↓")).bold(),
            (false, _) => Line::from(*name),
        };
        if is_number(table, number) { Cell::from(heading.right_aligned()) } else { Cell::from(heading) }
    });
    let grid = Grid::new(rows, widths.iter().copied())
        .header(Row::new(headings).style(Modifier::UNDERLINED))
        .column_spacing(1)
        .row_highlight_style(Style::new().reversed());
    let mut state = TableState::new().with_selected(view.lines[table as usize]);
    frame.render_stateful_widget(grid, area, &mut state);
}

fn is_number(table: Table, column: usize) -> bool {
    match table {
        Table::Mounts => column >= 2,
        Table::Layers => (2..7).contains(&column),
        Table::Files => (1..7).contains(&column),
        Table::Waiting => matches!(column, 0 | 2),
    }
}

fn number(text: String) -> Cell<'static> {
    Line::from(text).right_aligned().into()
}

fn mount_row(mount: &Mount) -> Row<'static> {
    let (at, image) = (mount.name(), printable(mount.reference.as_bytes()));
    let activity = match &mount.activity {
        Ok(activity) => activity,
        Err(_) => {
            let unknown = if mount.state.is_some() { "unknown" } else { "no process" };
            let none = || Cell::from("");
            return Row::new([
                at.into(),
                image.into(),
                none(),
                none(),
                none(),
                none(),
                none(),
                number(unknown.to_owned()),
            ]);
        }
    };
    let waiting = match (activity.mount.waiting, watch::longest_wait(activity)) {
        (0, _) | (_, None) => number("-".to_owned()),
        (count, Some(us)) => number(format!("{count}, {}", activity::time(us))).style(Style::new().red().bold()),
    };
    Row::new([
        at.into(),
        image.into(),
        number(text::human(activity.mount.image_bytes)),
        number(text::human(watch::fetched(activity))),
        number(speed(mount.rates.fetched)),
        number(speed(mount.rates.read)),
        number(watch::hits(activity).map_or("-".to_owned(), percent)),
        waiting,
    ])
}

fn layer_row(layer: &peelfs::host::wire::v1::activity::LayerActivity) -> Row<'static> {
    let digest = layer.digest.split(':').next_back().unwrap_or_default();
    let state = match layer.state {
        LayerState::Waiting => Cell::from("waiting"),
        LayerState::Reading => Cell::from("reading").style(Color::Yellow),
        LayerState::Ready => Cell::from("ready"),
        LayerState::Failed => Cell::from("failed").style(Style::new().red().bold()),
    };
    let cached = layer.decoded_size.map_or("-".to_owned(), |size| {
        percent(if size == 0 { 1.0 } else { (layer.cached_bytes as f64 / size as f64).min(1.0) })
    });
    Row::new([
        format!("{:>3} {}", layer.number, printable(&digest.as_bytes()[..digest.len().min(12)])).into(),
        state,
        number(text::human(layer.size)),
        number(text::human(layer.fetched.sum())),
        number(cached),
        number(text::human(layer.read_bytes)),
        number(layer.waits.to_string()),
        why(&layer.fetched),
    ])
}

fn file_row(file: &peelfs::host::wire::v1::activity::FileActivity, room: usize) -> Row<'static> {
    Row::new([
        shortened(activity::path(&file.path), room).into(),
        number(file.layer.to_string()),
        number(text::human(file.size)),
        number(text::human(file.fetched.sum())),
        number(file.waits.to_string()),
        number(if file.waits == 0 { "-".to_owned() } else { activity::time(file.waited_us) }),
        number(ago(file.idle_ms)),
        why(&file.fetched),
    ])
}

fn waiting_row(request: &peelfs::host::wire::v1::activity::WaitingRequest) -> Row<'static> {
    let command = request.command.as_ref().map_or("?".to_owned(), |command| printable(command.as_bytes()));
    Row::new([
        number(activity::time(request.waits_us)).style(Style::new().bold()),
        command.into(),
        number(request.pid.map_or("?".to_owned(), |pid| pid.to_string())),
        printable(request.operation.as_bytes()).into(),
        request.path.as_ref().map_or("?".to_owned(), activity::path).into(),
    ])
}

/// The reasons, the largest first, with their shares.
fn why(by: &ByReason) -> Cell<'static> {
    let mut each: Vec<_> =
        ByReason::NAMES.iter().zip(by.numbers()).zip(COLORS).filter(|((_, bytes), _)| *bytes > 0).collect();
    each.sort_by_key(|((_, bytes), _)| std::cmp::Reverse(*bytes));
    let all = by.sum().max(1) as f64;
    let mut spans = Vec::new();
    for ((name, bytes), color) in each {
        if !spans.is_empty() {
            spans.push(Span::from(", "));
        }
        spans.push(Span::styled(name.replace('_', " "), color));
        if bytes < by.sum() {
            spans.push(format!(" {}", percent(bytes as f64 / all)).into());
        }
    }
    Line::from(spans).into()
}

fn foot(view: &View) -> Line<'static> {
    let keys: &[(&str, &str)] = match view.place {
        Place::Mounts => &[("Enter", "look into"), ("s", "sort"), ("space", "pause"), ("?", "help"), ("q", "quit")],
        Place::Mount(_) => {
            &[("Tab", "layers, files, waiting"), ("Esc", "back"), ("s", "sort"), ("?", "help"), ("q", "quit")]
        }
    };
    let keys = keys.iter().flat_map(|(key, what)| [format!(" {key} ").reversed(), format!(" {what}  ").into()]);
    keys.collect::<Vec<_>>().into()
}

fn help(frame: &mut Frame<'_>) {
    let lines =
        super::KEYS.lines().skip(1).chain(["", "  What the reasons mean: docs/metrics.md", "", "  Any key goes back."]);
    let lines: Vec<_> = lines.map(Line::from).collect();
    let area = frame.area().centered(
        Constraint::Length(frame.area().width.min(78)),
        Constraint::Length(frame.area().height.min(lines.len() as u16 + 2)),
    );
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" Help ")), area);
}

/// The end of a path tells more than its beginning.
fn shortened(path: String, room: usize) -> String {
    let length = path.chars().count();
    if length <= room {
        return path;
    }
    let rest: String = path.chars().skip(length + 1 - room).collect();
    format!("…{rest}")
}

/// Bytes a second.
fn speed(rate: f64) -> String {
    match rate as u64 {
        0 => "idle".to_owned(),
        rate => format!("{}/s", text::human(rate)),
    }
}

fn percent(share: f64) -> String {
    // All but a little is not all.
    match share * 100.0 {
        0.0 => "0 %".to_owned(),
        share if share < 1.0 => "<1 %".to_owned(),
        share if share < 100.0 => format!("{} %", share.floor()),
        _ => "100 %".to_owned(),
    }
}

fn ago(ms: u64) -> String {
    match ms / 1000 {
        0 => "now".to_owned(),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// Lines above the tables of a mount.
const HEAD: u16 = 6;
const MOUNT_WIDTHS: [Constraint; 8] = [
    Constraint::Fill(3),
    Constraint::Fill(3),
    Constraint::Length(6),
    Constraint::Length(8),
    Constraint::Length(8),
    Constraint::Length(8),
    Constraint::Length(6),
    Constraint::Length(11),
];
const LAYER_WIDTHS: [Constraint; 8] = [
    Constraint::Length(16),
    Constraint::Length(8),
    Constraint::Length(6),
    Constraint::Length(8),
    Constraint::Length(7),
    Constraint::Length(6),
    Constraint::Length(6),
    Constraint::Fill(1),
];
const FILE_WIDTHS: [Constraint; 8] = [
    Constraint::Fill(1),
    Constraint::Length(6),
    Constraint::Length(6),
    Constraint::Length(8),
    Constraint::Length(6),
    Constraint::Length(7),
    Constraint::Length(6),
    Constraint::Length(WHY),
];
/// Room for the reasons of a file.
const WHY: u16 = 22;
/// The width of all columns but the first, with the spaces between them.
const FILE_REST: usize = 6 + 6 + 8 + 6 + 7 + 6 + WHY as usize + 7;
const WAITING_WIDTHS: [Constraint; 5] =
    [Constraint::Length(8), Constraint::Length(16), Constraint::Length(8), Constraint::Length(10), Constraint::Fill(1)];
/// For each reason.
const COLORS: [Color; 7] =
    [Color::LightRed, Color::LightBlue, Color::Cyan, Color::Green, Color::Magenta, Color::Gray, Color::Blue];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;
    use serde_json::json;

    use super::super::view::Action;
    use super::*;
    use crate::watch::{Rates, Snapshot};

    fn activity() -> Activity {
        let layer = |number: u32, size: u64, fetched: serde_json::Value, state: &str| {
            json!({
                "number": number, "digest": format!("sha256:{number:064x}"), "size": size, "state": state,
                "decoded_size": size * 3, "cached_bytes": size, "fetched": fetched, "fetches": {},
                "reads": 40, "read_bytes": 900_000, "waits": 3, "waited_us": 120_000, "failed": 0,
                "damaged_spans": 0, "repeated_spans": 0, "unkept_spans": 0,
            })
        };
        let file = |path: &str, fetched: serde_json::Value, waits: u64, idle_ms: u64| {
            json!({
                "layer": 2, "path": path, "size": 5_000_000, "fetched": fetched,
                "waits": waits, "waited_us": 45_000 * waits, "longest_us": 30_000, "idle_ms": idle_ms,
            })
        };
        let from = |value| serde_json::from_value(value).unwrap();
        Activity {
            mount: serde_json::from_value(json!({
                "image_bytes": 48_000_000, "requests": 1234, "failed": 2, "waits": [], "waited_us": 0, "waiting": 1,
                "registry": {
                    "requests": 31, "received_bytes": 13_000_000, "retries": 1, "resumptions": 0, "logins": 1,
                    "failing": 1, "failing_s": 12,
                },
            }))
            .unwrap(),
            layers: [
                layer(1, 30_000_000, json!({"first_pass": 6_000_000}), "reading"),
                layer(2, 18_000_000, json!({"demand": 3_000_000, "readahead": 4_000_000, "profile": 70_000}), "ready"),
            ]
            .map(from)
            .into(),
            files: [
                file("/usr/lib/x86_64-linux-gnu/a-directory-with-a-long-name/libpython3.12.so.1.0", json!({"demand": 3_000_000, "readahead": 2_000_000}), 3, 400),
                file("/usr/bin/python3", json!({"program": 70_000}), 0, 90_000),
                file("/usr/lib/\u{1b}[31mred", json!({"demand": 5}), 1, 9_000_000),
            ]
            .map(|value| serde_json::from_value(value).unwrap())
            .into(),
            waiting: vec![
                serde_json::from_value(json!({
                    "pid": 4711, "command": "python3", "operation": "read", "path": "/usr/lib/libz.so.1", "waits_us": 2_300_000,
                }))
                .unwrap(),
            ],
        }
    }

    fn view() -> View {
        let mount = |at: &str, reference: &str, activity| Mount {
            at: at.into(),
            reference: reference.to_owned(),
            state: None,
            activity,
            rates: Rates { fetched: 2_500_000.0, requests: 10.0, read: 1_200.0 },
        };
        let mounts = vec![
            mount("/mnt/python", "docker.io/library/python:3.12", Ok(activity())),
            mount("/mnt/node", "docker.io/library/node:22", Ok(Activity::default())),
            mount(
                "/mnt/kernel",
                "docker.io/library/debian:12",
                Err("the kernel mounts it, without a process".to_owned()),
            ),
        ];
        View::new(Snapshot { taken: Instant::now(), mounts }, false)
    }

    fn drawn(view: &mut View, width: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, 16)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        terminal.backend().to_string()
    }

    fn press(view: &mut View, keys: &[KeyCode]) {
        for key in keys {
            assert_ne!(view.press(*key), Action::Quit, "{key:?}");
        }
    }

    #[test]
    fn all_mounts_are_listed() {
        insta::assert_snapshot!(drawn(&mut view(), 110));
    }

    #[test]
    fn a_mount_has_files_with_reasons() {
        let mut view = view();
        press(&mut view, &[KeyCode::End, KeyCode::Enter]);
        insta::assert_snapshot!(drawn(&mut view, 110));
    }

    #[test]
    fn a_mount_has_layers() {
        let mut view = view();
        press(&mut view, &[KeyCode::End, KeyCode::Enter, KeyCode::BackTab]);
        insta::assert_snapshot!(drawn(&mut view, 110));
    }

    #[test]
    fn programs_that_wait_are_named() {
        let mut view = view();
        press(&mut view, &[KeyCode::End, KeyCode::Enter, KeyCode::Tab]);
        insta::assert_snapshot!(drawn(&mut view, 80));
    }

    /// Any size of a terminal, and any key at any time.
    #[test]
    fn nothing_panics_in_a_small_terminal() {
        for (width, height) in [(1, 1), (2, 3), (20, 4), (40, 8), (300, 80)] {
            let mut view = view();
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            let keys = "jkGgsSssss ? \t\u{8}jjjj".chars().map(KeyCode::Char);
            let named =
                [KeyCode::Enter, KeyCode::Tab, KeyCode::PageDown, KeyCode::Tab, KeyCode::Char('?'), KeyCode::Esc];
            for key in named.into_iter().chain(keys).chain(named) {
                view.press(key);
                terminal.draw(|frame| draw(frame, &mut view)).unwrap();
            }
        }
    }

    #[test]
    fn a_line_stays_on_its_mount() {
        let mut view = view();
        press(&mut view, &[KeyCode::Down]);
        let chosen = view.mount().unwrap().at.clone();
        let mut later = view.snapshot.clone();
        later.mounts.insert(0, Mount { at: "/aaa".into(), ..later.mounts[0].clone() });
        view.see(Ok(later.clone()));
        assert_eq!(view.mount().unwrap().at, chosen);
        // One that is unmounted is left.
        press(&mut view, &[KeyCode::Enter]);
        later.mounts.retain(|mount| mount.at != chosen);
        view.see(Ok(later));
        assert_eq!(view.place, Place::Mounts);
    }
}
