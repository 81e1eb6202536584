//! Processes, descriptors and mappings of an image.

#![forbid(unsafe_code)]

use super::image::{Opened, stored};
use super::what;
use airlock_loader::checkpoint::pages::{Index, Object, PAGE};
use airlock_loader::checkpoint::state::{Life, MmState, ProcessState, SandboxState, Vma, VmaKind};
use airlock_wire::error::{Error, Result};
use serde::Serialize;

/// A line of a table.
pub trait Row {
    /// Names of the columns.
    const HEADER: &'static [&'static str];
    /// What is in them.
    fn cells(&self) -> Vec<String>;
}

/// A process.
#[derive(Debug, Serialize)]
pub struct Process {
    pub container: String,
    /// All pids are those of the container's pid namespace.
    pub pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    /// As in ps(1): `R` (or asleep), `T` stopped, `Z` zombie.
    pub state: char,
    pub uid: Option<u32>,
    pub threads: usize,
    /// Of the address space, bytes; of several processes that share one, each has it.
    pub mapped: u64,
    /// Bytes of its own memory in the image.
    pub stored: Option<u64>,
    pub command: String,
    pub executable: Option<String>,
}

impl Row for Process {
    const HEADER: &'static [&'static str] = &[
        "CONTAINER",
        "PID",
        "PPID",
        "PGID",
        "SID",
        "S",
        "UID",
        "THREADS",
        "MAPPED",
        "STORED",
        "COMMAND",
        "EXECUTABLE",
    ];

    fn cells(&self) -> Vec<String> {
        let number = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
        vec![
            self.container.clone(),
            self.pid.to_string(),
            self.ppid.to_string(),
            self.pgid.to_string(),
            self.sid.to_string(),
            self.state.to_string(),
            number(self.uid),
            self.threads.to_string(),
            kib(Some(self.mapped)),
            kib(self.stored),
            printable(&self.command),
            printable(self.executable.as_deref().unwrap_or("-")),
        ]
    }
}

/// A descriptor.
#[derive(Debug, Serialize)]
pub struct Descriptor {
    pub container: String,
    pub pid: i32,
    pub fd: i32,
    pub kind: &'static str,
    pub flags: String,
    pub pos: i64,
    /// Open file description: the same number is the same one.
    pub file: u32,
    pub what: String,
}

impl Row for Descriptor {
    const HEADER: &'static [&'static str] =
        &["CONTAINER", "PID", "FD", "KIND", "FLAGS", "POS", "FILE", "WHAT"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.container.clone(),
            self.pid.to_string(),
            self.fd.to_string(),
            self.kind.to_owned(),
            self.flags.clone(),
            self.pos.to_string(),
            self.file.to_string(),
            printable(&self.what),
        ]
    }
}

/// A mapping.
#[derive(Debug, Serialize)]
pub struct Mapping {
    pub container: String,
    pub pid: i32,
    pub start: u64,
    pub end: u64,
    pub permissions: String,
    pub offset: u64,
    /// Bytes of it in the image.
    pub stored: Option<u64>,
    pub what: String,
}

impl Row for Mapping {
    const HEADER: &'static [&'static str] =
        &["CONTAINER", "PID", "ADDRESSES", "PERM", "SIZE", "STORED", "OFFSET", "WHAT"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.container.clone(),
            self.pid.to_string(),
            format!("{:012x}-{:012x}", self.start, self.end),
            self.permissions.clone(),
            kib(Some(self.end - self.start)),
            kib(self.stored),
            format!("{:x}", self.offset),
            printable(&self.what),
        ]
    }
}

fn kib(bytes: Option<u64>) -> String {
    bytes.map_or("-".to_owned(), |bytes| format!("{}K", bytes.div_ceil(1024)))
}

/// Names come from programs: nothing of them may act on the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Name of the container of a process.
pub fn container(state: &SandboxState, process: &ProcessState) -> String {
    let found = state.containers.get(process.container as usize);
    found.map_or_else(String::new, |c| if c.cid.is_empty() { c.name.clone() } else { c.cid.clone() })
}

/// The processes that are meant.
fn select(state: &SandboxState, pid: Option<i32>) -> Result<Vec<&ProcessState>> {
    let found: Vec<_> = state.processes.iter().filter(|p| pid.is_none_or(|pid| p.pid == pid)).collect();
    match pid {
        Some(pid) if found.is_empty() => {
            Err(Error::no_such_entity(format!("the image has no process {pid}")))
        }
        _ => Ok(found),
    }
}

pub fn processes(image: &Opened, pid: Option<i32>) -> Result<Vec<Process>> {
    let (state, index) = (image.state()?, image.index()?);
    let row = |p: &ProcessState| {
        let mm = p.mm.and_then(|id| state.mms.get(id as usize));
        let exe = mm.and_then(|mm| mm.exe).and_then(|id| state.files.get(id as usize));
        let leader = p.threads.first();
        Process {
            container: container(&state, p),
            pid: p.pid,
            ppid: p.ppid,
            pgid: p.pgid,
            sid: p.sid,
            state: match p.life {
                Life::Alive => 'R',
                Life::Stopped { .. } => 'T',
                Life::Zombie { .. } => 'Z',
            },
            uid: leader.map(|thread| thread.creds.uids[1]),
            threads: p.threads.len(),
            mapped: mm.map_or(0, mapped),
            stored: index.as_ref().map(|index| {
                let pages = p.mm.map_or(0, |id| stored(index, Object::Memory(id), 0..u64::MAX));
                pages.saturating_mul(PAGE)
            }),
            command: leader.map_or_else(String::new, |t| String::from_utf8_lossy(&t.comm).into_owned()),
            executable: exe.map(|file| what::file(&state, file).1),
        }
    };
    Ok(select(&state, pid)?.into_iter().map(row).collect())
}

fn mapped(mm: &MmState) -> u64 {
    mm.vmas.iter().map(|vma| vma.end - vma.start).fold(0, u64::saturating_add)
}

pub fn descriptors(image: &Opened, pid: Option<i32>) -> Result<Vec<Descriptor>> {
    let state = image.state()?;
    let mut rows = Vec::new();
    for p in select(&state, pid)? {
        // Threads share one table, as a rule; others' are shown by thread ID.
        let mut shown = Vec::new();
        for thread in p.threads.iter().filter(|_| p.mm.is_some()) {
            if shown.contains(&thread.fd_table) {
                continue;
            }
            let table = state.fd_tables.get(thread.fd_table as usize);
            let pid = if shown.is_empty() { p.pid } else { thread.tid };
            shown.push(thread.fd_table);
            for entry in table.iter().flat_map(|table| &table.fds) {
                let Some(file) = state.files.get(entry.file as usize) else { continue };
                let (kind, what) = what::file(&state, file);
                rows.push(Descriptor {
                    container: container(&state, p),
                    pid,
                    fd: entry.fd,
                    kind,
                    flags: what::flags(file, entry.cloexec),
                    pos: file.pos,
                    file: entry.file,
                    what,
                });
            }
        }
    }
    Ok(rows)
}

pub fn mappings(image: &Opened, pid: Option<i32>) -> Result<Vec<Mapping>> {
    let (state, index) = (image.state()?, image.index()?);
    let mut rows = Vec::new();
    for p in select(&state, pid)? {
        let Some((id, mm)) = p.mm.and_then(|id| Some((id, state.mms.get(id as usize)?))) else { continue };
        rows.extend(mm.vmas.iter().map(|vma| Mapping {
            container: container(&state, p),
            pid: p.pid,
            start: vma.start,
            end: vma.end,
            permissions: what::permissions(vma),
            offset: vma.offset,
            stored: index.as_ref().map(|index| stored_of(index, id, vma).saturating_mul(PAGE)),
            what: what::mapping(&state, mm, vma),
        }));
    }
    Ok(rows)
}

/// Pages of a mapping that are stored: those of a shared one are its object's.
pub fn stored_of(index: &Index, mm: u32, vma: &Vma) -> u64 {
    match vma.kind {
        VmaKind::Shmem(id) if vma.shared => {
            let end = vma.offset.saturating_add(vma.end - vma.start);
            stored(index, Object::Shared(id), vma.offset..end)
        }
        _ => stored(index, Object::Memory(mm), vma.start..vma.end),
    }
}
