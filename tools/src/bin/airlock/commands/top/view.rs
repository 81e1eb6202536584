//! Draws the view. The sixteen colours that every terminal has, and nothing that 80 columns do not hold.
#![forbid(unsafe_code)]

use super::app::{App, Mode, Row, SIGNALS, Sort};
use super::collect::Container;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Flex, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Cell, Clear, List, ListItem, Paragraph, Table};

const KEYS: [(&str, &str); 9] = [
    ("↑↓", "move"),
    ("⏎", "open"),
    ("p", "pause"),
    ("r", "resume"),
    ("k", "signal"),
    ("c", "save"),
    ("/", "filter"),
    ("s", "sort"),
    ("q", "quit"),
];

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let [title, table, said, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_title(frame, app, title);
    draw_table(frame, app, table);
    draw_said(frame, app, said);
    let mut spans = Vec::new();
    for (key, does) in KEYS {
        spans.push(Span::from(format!(" {key}")).bold().cyan());
        spans.push(Span::from(format!(" {does} ")).dim());
    }
    frame.render_widget(Line::from(spans), keys);
    match &app.mode {
        Mode::Signal(at) => draw_signals(frame, app, *at),
        Mode::Checkpoint(path) => draw_checkpoint(frame, path),
        Mode::Normal | Mode::Filter => {}
    }
}

fn draw_title(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let all = &app.snapshot.containers;
    let sandboxes = all.iter().filter(|c| c.id == c.sandbox).count();
    let processes: usize = all.iter().map(|c| c.processes.len()).sum();
    let bar = Style::new().bg(Color::Blue).fg(Color::White);
    let left = Line::from(vec![" airlock top ".bold(), format!(" {}", app.root.display()).into()]);
    let right = format!(
        "{} · {} · {} ",
        count(sandboxes, "sandbox"),
        count(all.len(), "container"),
        count(processes, "process")
    );
    frame.render_widget(Paragraph::new(left).style(bar), area);
    let width = (right.chars().count() as u16).min(area.width);
    let right_end = Rect { x: area.x + area.width - width, width, ..area };
    frame.render_widget(Paragraph::new(right).style(bar), right_end);
}

fn count(n: usize, what: &str) -> String {
    let ending = match (n, what.ends_with(['s', 'x'])) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{n} {what}{ending}")
}

fn draw_table(frame: &mut Frame<'_>, app: &mut App, area: Rect) {
    let heading = |text: &'static str, sort: Option<Sort>| {
        let chosen = sort == Some(app.sort);
        let text = if chosen { format!("{text}▾") } else { text.to_owned() };
        let line =
            Line::from(text).alignment(if text_is_left(sort) { Alignment::Left } else { Alignment::Right });
        if chosen { Cell::from(line.yellow()) } else { Cell::from(line) }
    };
    let header = ratatui::widgets::Row::new([
        heading(Sort::Name.name(), Some(Sort::Name)),
        Cell::from("STATUS"),
        heading("PROCS", None),
        heading(Sort::Cpu.name(), Some(Sort::Cpu)),
        heading(Sort::Memory.name(), Some(Sort::Memory)),
        heading("I/O", Some(Sort::Io)),
        heading("CALLS", Some(Sort::Calls)),
    ])
    .bold();
    let widths = [
        Constraint::Min(20),
        Constraint::Length(8),
        Constraint::Length(5),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(8),
    ];
    let rows: Vec<_> = app.rows().iter().map(|row| cells(app, row)).collect();
    let empty = rows.is_empty();
    let table = Table::new(rows, widths)
        .header(header)
        .column_spacing(1)
        .row_highlight_style(Style::new().bg(Color::DarkGray).fg(Color::White).add_modifier(Modifier::BOLD));
    frame.render_stateful_widget(table, area, &mut app.table);
    if empty && area.height > 2 {
        let text = match (app.looked, app.filter.is_empty()) {
            (false, _) => "looking …",
            (true, true) => "no containers below this state directory",
            (true, false) => "nothing matches the filter",
        };
        let middle = Rect { y: area.y + area.height / 2, height: 1, ..area };
        frame.render_widget(Paragraph::new(text.dim()).alignment(Alignment::Center), middle);
    }
}

fn text_is_left(sort: Option<Sort>) -> bool {
    sort == Some(Sort::Name)
}

fn cells<'a>(app: &App, row: &Row<'_>) -> ratatui::widgets::Row<'a> {
    let number = |text: String| Cell::from(Line::from(text).alignment(Alignment::Right));
    let usage = row.usage();
    let (cpu, memory, io) = (
        number(percent(usage.cpu)).style(hot(usage.cpu)),
        number(bytes(usage.memory as f64)),
        number(rate(usage.io)),
    );
    match row {
        Row::Container(c) => {
            let inner = if c.id == c.sandbox { "" } else { "  " };
            let mark = match (c.processes.is_empty(), app.is_unfolded(&c.id)) {
                (true, _) => ' ',
                (false, true) => '▾',
                (false, false) => '▸',
            };
            let calls = c.calls.map_or(String::new(), |n| format!("{n:.1}/s"));
            ratatui::widgets::Row::new([
                Cell::from(format!("{inner}{mark} {}", c.id)),
                Cell::from(c.status.clone()).style(status(c)),
                number(c.processes.len().to_string()),
                cpu,
                memory,
                io,
                number(calls),
            ])
        }
        Row::Process(c, p) => {
            let inner = if c.id == c.sandbox { "    " } else { "      " };
            let name =
                Line::from(vec![Span::from(format!("{inner}{} ", p.pid)).dim(), Span::from(p.name.clone())]);
            let threads = if p.threads > 1 { format!("{} thr", p.threads) } else { String::new() };
            ratatui::widgets::Row::new([
                Cell::from(name),
                Cell::from(threads).style(Style::new().dim()),
                Cell::from(""),
                cpu,
                memory,
                io,
                Cell::from(""),
            ])
        }
    }
}

fn status(container: &Container) -> Style {
    Style::new().fg(match container.status.as_str() {
        "running" => Color::Green,
        "paused" => Color::Yellow,
        "stopped" | "?" => Color::Red,
        _ => Color::Cyan,
    })
}

fn hot(cpu: f64) -> Style {
    match cpu {
        c if c >= 80.0 => Style::new().fg(Color::Red),
        c if c >= 20.0 => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    }
}

fn percent(cpu: f64) -> String {
    if cpu < 0.05 { "0".to_owned() } else { format!("{cpu:.1}") }
}

/// Bytes in at most six characters.
fn bytes(n: f64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let mut n = n;
    for unit in UNITS {
        if n < 999.5 || unit == "T" {
            return if n < 9.95 && unit != "B" { format!("{n:.1}{unit}") } else { format!("{n:.0}{unit}") };
        }
        n /= 1024.0;
    }
    String::new()
}

fn rate(io: f64) -> String {
    if io < 1.0 { "0".to_owned() } else { format!("{}/s", bytes(io)) }
}

fn draw_said(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let line = match &app.mode {
        Mode::Filter => Line::from(vec![" filter: ".yellow().bold(), format!("{}▏", app.filter).into()]),
        _ if !app.said.is_empty() => {
            let text = format!(" {}", app.said);
            if app.said.starts_with("failed") { Line::from(text.red()) } else { Line::from(text.green()) }
        }
        _ if !app.filter.is_empty() => Line::from(format!(" filter: {} (esc ends it)", app.filter).yellow()),
        _ => Line::default(),
    };
    frame.render_widget(line, area);
}

/// A box in the middle.
fn popup(frame: &mut Frame<'_>, title: &str, width: u16, height: u16) -> Rect {
    let [area] = Layout::horizontal([Constraint::Length(width)]).flex(Flex::Center).areas(frame.area());
    let [area] = Layout::vertical([Constraint::Length(height)]).flex(Flex::Center).areas(area);
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(Style::new().fg(Color::Cyan))
        .title(format!(" {title} "));
    let inner = block.inner(area);
    frame.render_widget(Clear, area);
    frame.render_widget(block, area);
    inner
}

fn draw_signals(frame: &mut Frame<'_>, app: &App, at: usize) {
    let to = match app.table.selected().and_then(|i| app.rows().into_iter().nth(i)) {
        Some(Row::Process(_, p)) => format!("{} {}", p.pid, p.name),
        Some(Row::Container(c)) => c.id.clone(),
        None => String::new(),
    };
    let inner = popup(frame, &format!("signal to {to}"), 40, SIGNALS.len() as u16 + 3);
    let item = |(i, (name, number)): (usize, &(&str, i32))| {
        let text = format!(" {number:>2}  SIG{name}");
        if i == at { ListItem::new(text).style(Style::new().reversed()) } else { ListItem::new(text) }
    };
    let items: Vec<ListItem<'_>> = SIGNALS.iter().enumerate().map(item).collect();
    frame.render_widget(List::new(items), inner);
    let foot = Rect { y: inner.y + inner.height.saturating_sub(1), height: 1, ..inner };
    frame.render_widget(Line::from(" enter sends · esc does not").dim(), foot);
}

fn draw_checkpoint(frame: &mut Frame<'_>, path: &str) {
    let width = frame.area().width.saturating_sub(8).min(72);
    let inner = popup(frame, "checkpoint to the folder", width, 4);
    // The end of a long path is what is being typed.
    let room = usize::from(inner.width).saturating_sub(2);
    let hidden = path.chars().count().saturating_sub(room);
    let shown: String = path.chars().skip(hidden).collect();
    let lines =
        vec![Line::from(format!("{shown}▏")), Line::from("enter saves and ends it · esc does not").dim()];
    frame.render_widget(Paragraph::new(lines), inner);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let shown = [0.0, 999.0, 1000.0, 5.0 * 1024.0, 1_048_576.0, 123e9, 9e15].map(bytes);
        assert_eq!(shown, ["0B", "999B", "1.0K", "5.0K", "1.0M", "115G", "8185T"]);
        assert_eq!(
            (count(1, "sandbox"), count(2, "process"), count(0, "container")),
            ("1 sandbox".into(), "2 processes".into(), "0 containers".into())
        );
    }
}
