//! Descriptors: which tables there are, what each descriptor refers to, and what it takes to make that again.
//!
//! A descriptor is a number in a table ([`FdTable`]); what it refers to is an open file description ([`FileState`]),
//! which other descriptors, other processes and messages in flight may refer to as well. Tables and descriptions are
//! told apart with kcmp(2); a description is examined through a duplicate that pidfd_getfd(2) gives. Nothing is changed
//! by that, except what the modules below say of themselves.
//!
//! Order: [`scan`] (tables, `/proc`), then each description: [`external`] ones first, then by its kind. What a kind
//! cannot tell alone (the other end of a pipe, the targets of an epoll instance) is done when all are known.
#![forbid(unsafe_code)]

mod anon;
mod drain;
mod epoll;
mod external;
pub mod fdinfo;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod inotify;
mod locks;
mod path;
mod pipe;
mod scan;
mod search;
mod tty;
mod unix;

pub use drain::drain;

use super::context::Context;
use super::net::Sockets;
use crate::checkpoint::inet::options::Reference;
use crate::checkpoint::inside;
use crate::checkpoint::state::{FdEntry, FdTable, FileKind, FileState, Id};
use crate::sys::files::{self, Compare};
use crate::sys::{process, ptrace};
use airlock_wire::error::{Error, Result};
use scan::{Mount, Raw, Shared};
use search::Wanted;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

/// Where a description can be reached.
#[derive(Debug)]
enum Place {
    /// Under a number of a task.
    Task { tid: i32, fd: i32 },
    /// In this process: it came in a message.
    Own(OwnedFd),
}

/// An open file description.
#[derive(Debug)]
struct Found {
    place: Place,
    /// Index in the state.
    id: Id,
    /// A process that has it (or the socket whose queue it is in), for messages.
    process: usize,
    /// Index of that process' container.
    container: Id,
    raw: Raw,
    /// Tables and numbers under which it is there.
    holders: Vec<(usize, i32)>,
}

impl Found {
    /// The number to name in messages.
    fn number(&self) -> Option<i32> {
        self.holders.first().map(|(_, fd)| *fd)
    }
}

/// Descriptions that may be the same: same inode, same link.
type Candidates = HashMap<(u64, u64, String), Vec<usize>>;

/// Whose path is looked for.
#[derive(Debug, Clone, Copy)]
enum Later {
    /// That of a watch of an inotify instance, by position.
    Watch(usize, usize),
    /// Another name of a deleted file.
    OtherName(usize),
}

struct Collector<'a> {
    ctx: &'a mut Context,
    sockets: &'a mut Sockets,
    tables: Vec<Shared<Vec<Raw>>>,
    found: Vec<Found>,
    candidates: Candidates,
    /// Index of the description of each descriptor: by table, by position in it.
    index: Vec<Vec<usize>>,
    /// Mounts by container.
    mounts: Vec<Vec<Mount>>,
    /// By task.
    pidfds: HashMap<i32, OwnedFd>,
    /// Descriptions that came from outside: by table and number, the id that stands for the new one.
    external: HashMap<(usize, i32), Id>,
    /// Masters of ptys: container, number, description.
    masters: Vec<(Id, u32, usize)>,
    /// Descriptions of pipes and FIFOs.
    pipes: Vec<usize>,
    /// Descriptions of unix sockets by inode.
    unix_sockets: HashMap<u64, usize>,
    unix: Option<unix::Table>,
    options: Reference,
    later: Vec<(Later, Wanted)>,
    /// Links of the descriptors of exec sessions, once somebody asked.
    excluded: Option<HashSet<String>>,
    /// Pids and the like of the sandbox's pid namespace, by those of the containers'.
    pids: HashMap<i32, i32>,
    me: i32,
}

/// Finds out about all descriptors and directories: fills `fd_tables`, `files`, `fs` of the state, and in its threads
/// which of these are theirs. `state.processes` must be complete, and mappings known (`mm::collect`): a deleted file that
/// is mapped is one object with the mapping's. `sockets` describes those of other families than AF_UNIX; what it has to
/// do when all are known (`Sockets::link`) is left to the caller. Contents that are too large for the state are left to
/// the page engine: see [`Context::contents`].
///
/// # Errors
/// When the kernel does not answer what it always answers. What cannot be saved is noted as a refusal.
pub fn collect(ctx: &mut Context, sockets: &mut Sockets) -> Result<()> {
    inside::many_descriptors();
    let (tables, mounts) = look_around(ctx)?;
    let me = std::process::id() as i32;
    let pids = locks::numbers(ctx);
    let mut collector = Collector {
        ctx,
        sockets,
        index: Vec::with_capacity(tables.len()),
        tables,
        found: Vec::new(),
        candidates: HashMap::new(),
        mounts,
        pidfds: HashMap::new(),
        external: HashMap::new(),
        masters: Vec::new(),
        pipes: Vec::new(),
        unix_sockets: HashMap::new(),
        unix: None,
        options: Reference::default(),
        later: Vec::new(),
        excluded: None,
        pids,
        me,
    };
    collector.sort()?;
    collector.describe_all()?;
    collector.write_tables();
    Ok(())
}

type Tables = (Vec<Shared<Vec<Raw>>>, Vec<Vec<Mount>>);

/// Reads what `/proc` tells, container by container, and settles directories on the way.
fn look_around(ctx: &mut Context) -> Result<Tables> {
    let tables = scan::group(ctx, Compare::Files)?;
    let directories = scan::group(ctx, Compare::Fs)?;
    let mut found: Vec<Option<Vec<Raw>>> = tables.iter().map(|_| None).collect();
    let first_fs = ctx.state.fs.len();
    let mut fs: Vec<Option<scan::Directories>> = directories.iter().map(|_| None).collect();
    let mut mounts = Vec::new();
    for container in 0..ctx.order.containers.len() {
        let init = ctx.order.containers[container].init;
        let of = |groups: &[Shared<()>]| -> Vec<usize> {
            (0..groups.len()).filter(|i| groups[*i].container as usize == container).collect()
        };
        let tids = |groups: &[Shared<()>], which: &[usize]| -> Vec<i32> {
            which.iter().map(|i| groups[*i].users[0].tid).collect()
        };
        let (ours, dirs) = (of(&tables), of(&directories));
        let seen = scan::look(&ctx.procfs, init, &tids(&tables, &ours), &tids(&directories, &dirs))?;
        ours.into_iter().zip(seen.tables).for_each(|(i, t)| found[i] = Some(t));
        dirs.into_iter().zip(seen.fs).for_each(|(i, d)| fs[i] = Some(d));
        mounts.push(seen.mounts);
    }
    for (i, (group, seen)) in directories.into_iter().zip(fs).enumerate() {
        let seen = seen.unwrap_or_default();
        if let Some(problem) = seen.problem {
            ctx.refuse(group.users[0].process, None, "directory", problem);
        }
        ctx.state.fs.push(seen.state);
        for user in &group.users {
            set_thread(ctx, *user, |t| t.fs = (first_fs + i) as Id);
        }
    }
    let tables = tables
        .into_iter()
        .zip(found)
        .map(|(group, raw)| Shared {
            users: group.users,
            container: group.container,
            content: raw.unwrap_or_default(),
        })
        .collect();
    Ok((tables, mounts))
}

/// Changes what the state says of a thread.
fn set_thread(
    ctx: &mut Context,
    task: scan::Task,
    set: impl FnOnce(&mut crate::checkpoint::state::ThreadState),
) {
    let tid = ctx.procs.get(task.process).and_then(|p| p.ns_tids.get(task.thread)).copied();
    let threads = ctx.state.processes.get_mut(task.process).map(|p| &mut p.threads);
    if let Some(thread) = threads.and_then(|all| all.iter_mut().find(|t| Some(t.tid) == tid)) {
        set(thread);
    }
}

impl Collector<'_> {
    /// Sorts all descriptors by the description that they refer to.
    fn sort(&mut self) -> Result<()> {
        for table in 0..self.tables.len() {
            let user = self.tables[table].users[0];
            let container = self.tables[table].container;
            let mut index = Vec::with_capacity(self.tables[table].content.len());
            for at in 0..self.tables[table].content.len() {
                let raw = self.tables[table].content[at].clone();
                let fd = raw.fd;
                let place = Place::Task { tid: user.tid, fd };
                let found = self.register(place, raw, user.process, container)?;
                self.found[found].holders.push((table, fd));
                index.push(found);
            }
            self.index.push(index);
        }
        Ok(())
    }

    /// Index of the description at `place`, which is new or known already.
    fn register(&mut self, place: Place, raw: Raw, process: usize, container: Id) -> Result<usize> {
        let key = (raw.stat.st_dev, raw.stat.st_ino, raw.link.clone());
        let (mut low, mut high) = (0, self.candidates.get(&key).map_or(0, Vec::len));
        while low < high {
            let middle = low + (high - low) / 2;
            let other = self.candidates[&key][middle];
            match self.compare(&place, &self.found[other].place)? {
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
                Ordering::Equal => return Ok(other),
            }
        }
        self.candidates.entry(key).or_default().insert(low, self.found.len());
        let id = self.ctx.state.files.len() as Id;
        self.ctx.state.files.push(FileState {
            flags: raw.info.status_flags(),
            pos: raw.info.pos,
            container,
            ..FileState::default()
        });
        self.found.push(Found { place, id, process, container, raw, holders: Vec::new() });
        Ok(self.found.len() - 1)
    }

    fn compare(&self, a: &Place, b: &Place) -> Result<Ordering> {
        let ((first, a), (second, b)) = (a.at(self.me), b.at(self.me));
        files::kcmp(first, second, Compare::File(a, b)).map_err(|e| {
            Error::from(e)
                .context(format!("comparing descriptor {a} of task {first} with {b} of {second} (kcmp)"))
        })
    }

    /// A duplicate of the description's descriptor.
    fn open(&mut self, index: usize) -> Result<OwnedFd> {
        let (tid, fd) = match &self.found[index].place {
            Place::Own(fd) => return Ok(fd.try_clone()?),
            Place::Task { tid, fd } => (*tid, *fd),
        };
        if !self.pidfds.contains_key(&tid) {
            let leader = self.ctx.procs.iter().any(|p| p.pid == tid && !p.leader_gone);
            let opened = if leader { process::pidfd_open(tid) } else { files::pidfd_open_thread(tid) };
            let pidfd = opened.map_err(|e| {
                let hint =
                    if leader { "" } else { " (a thread with descriptors of its own needs Linux 6.9)" };
                Error::from(e).context(format!("opening task {tid}{hint}"))
            })?;
            self.pidfds.insert(tid, pidfd);
        }
        let pidfd = self.pidfds.get(&tid).ok_or_else(|| Error::failure("no pidfd"))?;
        ptrace::pidfd_getfd(pidfd.as_fd(), fd)
            .map_err(|e| Error::from(e).context(format!("duplicating descriptor {fd} of task {tid}")))
    }

    /// Describes each description; more may turn up meanwhile, in messages in flight.
    fn describe_all(&mut self) -> Result<()> {
        self.find_masters()?;
        let mut next = 0;
        while next < self.found.len() {
            let described = self.describe(next).and_then(|()| self.collect_owner(next));
            if let Err(e) = described {
                let link = self.found[next].raw.link.clone();
                self.refuse(next, "descriptor", format!("{link}: {e}"));
            }
            next += 1;
        }
        self.collect_locks();
        self.complete_pipes()?;
        self.complete_unix()?;
        self.complete_epolls()?;
        self.find_paths()
    }

    fn describe(&mut self, index: usize) -> Result<()> {
        if let Some(problem) = self.found[index].raw.problem.clone() {
            self.refuse(index, "file", problem);
            return Ok(());
        }
        if self.describe_external(index)? {
            return Ok(());
        }
        let link = self.found[index].raw.link.as_str();
        match link.split_once(':') {
            _ if link.starts_with('/') => self.describe_path(index),
            Some(("pipe", _)) => self.describe_pipe(index),
            Some(("socket", _)) => self.describe_socket(index),
            Some(("anon_inode" | "pidfd", _)) => self.describe_anonymous(index),
            Some(("net" | "mnt" | "pid" | "uts" | "ipc" | "user" | "cgroup" | "time", _)) => {
                self.describe_namespace(index)
            }
            _ => {
                let what = format!("{link}: nothing is known about how to save it");
                self.refuse(index, "unknown kind of file", what);
                Ok(())
            }
        }
    }

    /// Notes that a description cannot be saved.
    fn refuse(&mut self, index: usize, kind: &str, what: impl Into<String>) {
        let (process, number) = (self.found[index].process, self.found[index].number());
        self.ctx.refuse(process, number, kind, what);
    }

    /// The state of a description.
    fn state(&mut self, index: usize) -> &mut FileState {
        let id = self.found[index].id as usize;
        &mut self.ctx.state.files[id]
    }

    /// Writes the tables, now that it is known what all descriptors are.
    fn write_tables(&mut self) {
        for (number, table) in self.tables.iter().enumerate() {
            let mut fds = Vec::with_capacity(table.content.len());
            for (raw, found) in table.content.iter().zip(&self.index[number]) {
                let file = self.external.get(&(number, raw.fd)).copied().unwrap_or(self.found[*found].id);
                // What is lost has no kind; a warning says so.
                if !matches!(self.ctx.state.files[file as usize].kind, FileKind::None) {
                    fds.push(FdEntry { fd: raw.fd, cloexec: raw.info.cloexec(), file });
                }
            }
            let id = self.ctx.state.fd_tables.len() as Id;
            self.ctx.state.fd_tables.push(FdTable { fds });
            for user in table.users.clone() {
                set_thread(self.ctx, user, |t| t.fd_table = id);
            }
        }
    }
}
