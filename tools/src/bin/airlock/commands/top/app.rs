//! What is selected, unfolded, sorted and typed; what a key does.
#![forbid(unsafe_code)]

use super::collect::{Container, Process, Snapshot, Usage};
use airlock::client::{Airlock, KillTarget};
use airlock::container::checkpoint::CheckpointOptions;
use airlock::process::ProcessId;
use airlock_wire::error::{Error, Result};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::widgets::TableState;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The signals of the menu.
pub const SIGNALS: [(&str, i32); 8] = [
    ("TERM", libc::SIGTERM),
    ("KILL", libc::SIGKILL),
    ("INT", libc::SIGINT),
    ("HUP", libc::SIGHUP),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("STOP", libc::SIGSTOP),
    ("CONT", libc::SIGCONT),
];

/// What decides the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    Name,
    Cpu,
    Memory,
    Io,
    Calls,
}

impl Sort {
    /// Its name in the header of the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "NAME",
            Self::Cpu => "CPU%",
            Self::Memory => "MEM",
            Self::Io => "I/O",
            Self::Calls => "CALLS",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Name => Self::Cpu,
            Self::Cpu => Self::Memory,
            Self::Memory => Self::Io,
            Self::Io => Self::Calls,
            Self::Calls => Self::Name,
        }
    }
}

/// What keys are for just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Moving and asking.
    Normal,
    /// Typing what names must contain.
    Filter,
    /// Choosing a signal.
    Signal(usize),
    /// Typing the folder of a checkpoint's image.
    Checkpoint(String),
}

/// What a row stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    Container(String),
    Process(String, i32),
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq)]
pub enum Row<'a> {
    Container(&'a Container),
    Process(&'a Container, &'a Process),
}

impl Row<'_> {
    /// What it stands for.
    pub fn key(&self) -> Key {
        match self {
            Self::Container(c) => Key::Container(c.id.clone()),
            Self::Process(c, p) => Key::Process(c.id.clone(), p.pid),
        }
    }

    /// What it uses.
    pub fn usage(&self) -> Usage {
        match self {
            Self::Container(c) => c.usage,
            Self::Process(_, p) => p.usage,
        }
    }
}

/// What the one who draws shall do.
#[derive(Debug, PartialEq)]
pub enum Action {
    Quit,
    Work(Work),
}

/// Something that a key asks of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    Pause(String),
    Resume(String),
    Signal(String, i32),
    SignalProcess(i32, i32),
    Checkpoint(String, PathBuf),
}

impl Work {
    /// Does it; what came of it, in one line.
    pub fn run(self, root: &Path) -> String {
        self.done(root).unwrap_or_else(|e| format!("failed: {e}").replace('\n', " "))
    }

    fn done(self, root: &Path) -> Result<String> {
        let airlock = Airlock::open(root)?;
        match self {
            Self::Pause(id) => airlock.pause(&id).map(|()| format!("paused {id}")),
            Self::Resume(id) => airlock.resume(&id).map(|()| format!("resumed {id}")),
            Self::Signal(id, signal) => {
                airlock.kill(&id, signal, KillTarget::Init).map(|()| format!("sent signal {signal} to {id}"))
            }
            Self::SignalProcess(pid, signal) => match ProcessId::of(pid)?.signal(signal)? {
                true => Ok(format!("sent signal {signal} to process {pid}")),
                false => Err(Error::no_such_entity(format!("process {pid} has ended"))),
            },
            Self::Checkpoint(id, image) => airlock
                .checkpoint(&id, &image, &CheckpointOptions::default())
                .map(|_| format!("saved {id} to {} (it has ended)", image.display())),
        }
    }
}

/// The state of the view.
#[derive(Debug)]
pub struct App {
    /// The state directory, for the title.
    pub root: PathBuf,
    /// What there is.
    pub snapshot: Snapshot,
    /// False until the first look.
    pub looked: bool,
    /// Which row is selected, and how far the table is scrolled.
    pub table: TableState,
    /// What names must contain.
    pub filter: String,
    /// The order.
    pub sort: Sort,
    /// What keys are for.
    pub mode: Mode,
    /// What was said last.
    pub said: String,
    unfolded: HashSet<String>,
    /// The selected row survives changes of the order.
    selected: Option<Key>,
}

impl App {
    /// Nothing seen yet.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            snapshot: Snapshot::default(),
            looked: false,
            table: TableState::default(),
            filter: String::new(),
            sort: Sort::Cpu,
            mode: Mode::Normal,
            said: String::new(),
            unfolded: HashSet::new(),
            selected: None,
        }
    }

    /// Takes over what was seen.
    pub fn update(&mut self, snapshot: Snapshot) {
        (self.snapshot, self.looked) = (snapshot, true);
        self.reselect();
    }

    /// Shows a line at the bottom.
    pub fn say(&mut self, text: String) {
        self.said = text;
    }

    /// True when the processes of a container are shown.
    pub fn is_unfolded(&self, id: &str) -> bool {
        self.unfolded.contains(id)
    }

    /// The rows as they are shown: sandboxes in order, each with its containers, those with their processes if unfolded.
    pub fn rows(&self) -> Vec<Row<'_>> {
        let matches = |c: &Container| {
            let named = |name: &str| name.to_lowercase().contains(&self.filter.to_lowercase());
            named(&c.id) || c.processes.iter().any(|p| named(&p.name))
        };
        let shown: Vec<&Container> = self.snapshot.containers.iter().filter(|c| matches(c)).collect();
        // They come sandbox by sandbox.
        let mut sandboxes: Vec<&[&Container]> = shown.chunk_by(|a, b| a.sandbox == b.sandbox).collect();
        let weight = |usage: Usage, calls: f64| match self.sort {
            Sort::Name => 0.0,
            Sort::Cpu => usage.cpu,
            Sort::Memory => usage.memory as f64,
            Sort::Io => usage.io,
            Sort::Calls => calls,
        };
        let of_sandbox =
            |all: &[&Container]| all.iter().map(|c| weight(c.usage, c.calls.unwrap_or(0.0))).sum::<f64>();
        sandboxes.sort_by(|a, b| of_sandbox(b).total_cmp(&of_sandbox(a)));
        let mut rows = Vec::new();
        for container in sandboxes.into_iter().flatten() {
            rows.push(Row::Container(container));
            if self.is_unfolded(&container.id) {
                let mut processes: Vec<&Process> = container.processes.iter().collect();
                processes.sort_by(|a, b| weight(b.usage, 0.0).total_cmp(&weight(a.usage, 0.0)));
                rows.extend(processes.into_iter().map(|p| Row::Process(container, p)));
            }
        }
        rows
    }

    /// Finds the selected row again, or the next best one.
    fn reselect(&mut self) {
        let keys: Vec<Key> = self.rows().iter().map(Row::key).collect();
        let found = self.selected.as_ref().and_then(|key| keys.iter().position(|k| k == key));
        let before = self.table.selected().unwrap_or(0);
        let index = found.unwrap_or(before).min(keys.len().saturating_sub(1));
        self.table.select((!keys.is_empty()).then_some(index));
        self.selected = keys.into_iter().nth(index);
    }

    fn move_to(&mut self, index: usize) {
        self.table.select(Some(index));
        self.selected = None;
        self.reselect();
    }

    /// Does what a key asks for.
    pub fn key(&mut self, key: KeyEvent) -> Option<Action> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            if key.code == KeyCode::Char('u') {
                // As terminals do: the line anew.
                match &mut self.mode {
                    Mode::Checkpoint(path) => path.clear(),
                    Mode::Filter => {
                        self.filter.clear();
                        self.reselect();
                    }
                    _ => {}
                }
                return None;
            }
            return matches!(key.code, KeyCode::Char('c' | 'd')).then_some(Action::Quit);
        }
        match self.mode.clone() {
            Mode::Normal => self.normal(key.code),
            Mode::Filter => {
                match key.code {
                    KeyCode::Char(c) => self.filter.push(c),
                    KeyCode::Backspace => drop(self.filter.pop()),
                    KeyCode::Esc => {
                        self.filter.clear();
                        self.mode = Mode::Normal;
                    }
                    KeyCode::Enter => self.mode = Mode::Normal,
                    _ => {}
                }
                self.reselect();
                None
            }
            Mode::Signal(at) => self.signal(key.code, at),
            Mode::Checkpoint(mut path) => {
                match key.code {
                    KeyCode::Char(c) => path.push(c),
                    KeyCode::Backspace => drop(path.pop()),
                    KeyCode::Esc => {
                        self.mode = Mode::Normal;
                        return None;
                    }
                    KeyCode::Enter => {
                        self.mode = Mode::Normal;
                        return self.checkpoint(&path);
                    }
                    _ => {}
                }
                self.mode = Mode::Checkpoint(path);
                None
            }
        }
    }

    fn normal(&mut self, code: KeyCode) -> Option<Action> {
        let rows = self.rows().len();
        let at = self.table.selected().unwrap_or(0);
        self.said.clear();
        match code {
            KeyCode::Char('q') => return Some(Action::Quit),
            KeyCode::Esc if !self.filter.is_empty() => {
                self.filter.clear();
                self.reselect();
            }
            KeyCode::Down | KeyCode::Char('j') => {
                self.move_to(at.saturating_add(1).min(rows.saturating_sub(1)))
            }
            KeyCode::Up => self.move_to(at.saturating_sub(1)),
            KeyCode::PageDown => self.move_to(at.saturating_add(10).min(rows.saturating_sub(1))),
            KeyCode::PageUp => self.move_to(at.saturating_sub(10)),
            KeyCode::Home => self.move_to(0),
            KeyCode::End => self.move_to(rows.saturating_sub(1)),
            KeyCode::Tab => self.next_sandbox(true),
            KeyCode::BackTab => self.next_sandbox(false),
            KeyCode::Enter | KeyCode::Char(' ') => self.fold(),
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.reselect();
            }
            KeyCode::Char('p') => return self.container().map(|id| Action::Work(Work::Pause(id))),
            KeyCode::Char('r') => return self.container().map(|id| Action::Work(Work::Resume(id))),
            KeyCode::Char('k') if self.selected.is_some() => self.mode = Mode::Signal(0),
            KeyCode::Char('c') => {
                if let Some(id) = self.container() {
                    self.mode = Mode::Checkpoint(format!("/tmp/{id}.image"));
                }
            }
            _ => {}
        }
        None
    }

    /// The container of the selected row.
    fn container(&self) -> Option<String> {
        self.selected.as_ref().map(|key| match key {
            Key::Container(id) | Key::Process(id, _) => id.clone(),
        })
    }

    fn fold(&mut self) {
        let Some(id) = self.container() else { return };
        if !self.unfolded.remove(&id) {
            self.unfolded.insert(id.clone());
        }
        self.selected = Some(Key::Container(id));
        self.reselect();
    }

    /// Goes to the first row of the next sandbox, or of the one before.
    fn next_sandbox(&mut self, forward: bool) {
        let at = self.table.selected().unwrap_or(0);
        let rows = self.rows();
        let mut starts = rows.iter().enumerate().filter_map(|(i, row)| match row {
            Row::Container(c) if c.id == c.sandbox => Some(i),
            _ => None,
        });
        let to = if forward { starts.find(|i| *i > at) } else { starts.rfind(|i| *i < at) };
        if let Some(to) = to {
            self.move_to(to);
        }
    }

    fn signal(&mut self, code: KeyCode, at: usize) -> Option<Action> {
        match code {
            KeyCode::Down | KeyCode::Tab | KeyCode::Char('j') => {
                self.mode = Mode::Signal((at + 1) % SIGNALS.len())
            }
            KeyCode::Up | KeyCode::BackTab | KeyCode::Char('k') => {
                self.mode = Mode::Signal((at + SIGNALS.len() - 1) % SIGNALS.len());
            }
            KeyCode::Esc | KeyCode::Char('q') => self.mode = Mode::Normal,
            KeyCode::Enter => {
                self.mode = Mode::Normal;
                let (_, signal) = SIGNALS.get(at)?;
                return self.selected.as_ref().map(|key| {
                    Action::Work(match key {
                        Key::Container(id) => Work::Signal(id.clone(), *signal),
                        Key::Process(_, pid) => Work::SignalProcess(*pid, *signal),
                    })
                });
            }
            _ => {}
        }
        None
    }

    fn checkpoint(&mut self, path: &str) -> Option<Action> {
        if path.is_empty() {
            self.say("no folder, no checkpoint".to_owned());
            return None;
        }
        let id = self.container()?;
        self.say(format!("saving {id} …"));
        Some(Action::Work(Work::Checkpoint(id, path.into())))
    }
}
