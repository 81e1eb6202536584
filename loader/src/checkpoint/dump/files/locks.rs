//! Locks on files, and who is told of events on descriptors.
#![forbid(unsafe_code)]

use super::fdinfo::Lock;
use super::{Collector, Place};
use crate::checkpoint::state::FileLock;
use crate::sys::files as call;
use airlock_wire::error::Result;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};

const F_GETSIG: i32 = 11;

/// Translates a lock; none for those that nobody holds.
fn describe(lock: &Lock, pid: i32) -> Option<FileLock> {
    let kind = match lock.kind.as_str() {
        "FLOCK" => "flock",
        "POSIX" => "posix",
        "OFDLCK" => "ofd",
        "LEASE" => "lease",
        _ => return None,
    };
    let exclusive = match lock.access.as_str() {
        "WRITE" => true,
        "READ" => false,
        _ => return None,
    };
    let len = lock.end.map_or(0, |end| end.saturating_sub(lock.start).saturating_add(1));
    Some(FileLock {
        kind: kind.to_owned(),
        exclusive,
        start: lock.start,
        len,
        pid: if kind == "posix" { pid } else { 0 },
    })
}

impl Collector<'_> {
    /// Takes note of the locks that are held through each description. Those of fcntl(2) belong to descriptor tables,
    /// and show up only with the right one.
    pub(super) fn collect_locks(&mut self) {
        for table in 0..self.tables.len() {
            let process = self.tables[table].users[0].process;
            let pid = self.ctx.procs.get(process).map_or(0, |p| p.ns_pid);
            for at in 0..self.tables[table].content.len() {
                let raw = &self.tables[table].content[at];
                if raw.info.locks.is_empty() {
                    continue;
                }
                let breaking = raw.info.locks.iter().any(|l| l.kind == "LEASE" && l.mode != "ACTIVE");
                let locks: Vec<FileLock> = raw.info.locks.iter().filter_map(|l| describe(l, pid)).collect();
                let (found, link) = (self.index[table][at], raw.link.clone());
                if breaking {
                    self.ctx.warn(format!(
                        "{link}: somebody waits for the lease on it to be given back; it is kept"
                    ));
                }
                let state = self.state(found);
                for lock in locks {
                    if !state.locks.contains(&lock) {
                        state.locks.push(lock);
                    }
                }
            }
        }
    }

    /// Takes note of who gets SIGIO for a description.
    pub(super) fn collect_owner(&mut self, index: usize) -> Result<()> {
        if self.found[index].raw.info.flags & libc::O_PATH != 0 {
            return Ok(());
        }
        let fd = self.open(index)?;
        let (kind, id) = call::owner(fd.as_fd())?;
        let signal = call::fcntl(fd.as_fd(), F_GETSIG, 0).unwrap_or(0);
        if id == 0 && signal == 0 {
            return Ok(());
        }
        let local = if id == 0 { 0 } else { self.known_pid(id).unwrap_or(0) };
        self.state(index).owner = Some((kind, local, signal));
        Ok(())
    }

    /// A pid, thread id, process group or session of the sandbox's pid namespace as the container numbers it.
    pub(super) fn known_pid(&self, pid: i32) -> Option<i32> {
        self.pids.get(&pid).copied()
    }

    /// As [`Collector::known_pid`]; 0 for what is not saved.
    pub(super) fn local_pid(&self, pid: i32) -> i32 {
        self.known_pid(pid).unwrap_or(0)
    }
}

/// Numbers of the sandbox's pid namespace by those of the containers'.
pub(super) fn numbers(ctx: &super::Context) -> HashMap<i32, i32> {
    let mut all = HashMap::new();
    for proc in &ctx.procs {
        all.insert(proc.pid, proc.ns_pid);
        for status in &proc.statuses {
            for levels in [&status.pids, &status.tgids, &status.pgids, &status.sids] {
                if let (Some(outer), Some(inner)) = (levels.first(), levels.last())
                    && *outer > 0
                {
                    all.entry(*outer).or_insert(*inner);
                }
            }
        }
    }
    all
}

impl Place {
    /// Task and number, for messages and kcmp(2).
    pub(super) fn at(&self, me: i32) -> (i32, i32) {
        match self {
            Self::Task { tid, fd } => (*tid, *fd),
            Self::Own(fd) => (me, fd.as_raw_fd()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::dump::files::fdinfo::FdInfo;

    #[test]
    fn ranges_and_holders() {
        let text = "lock:\t1: POSIX  ADVISORY  WRITE 9 fe:00:1 10 14\nlock:\t2: FLOCK  ADVISORY  READ 9 fe:00:1 0 EOF\n\
                    lock:\t3: LEASE  ACTIVE    WRITE 9 fe:00:1 0 EOF\nlock:\t4: POSIX  ADVISORY  READ 9 fe:00:1 7 18446744073709551615\n\
                    lock:\t5: LEASE  BREAKING  UNLCK 9 fe:00:1 0 EOF\n";
        let locks: Vec<FileLock> = FdInfo::parse(text).locks.iter().filter_map(|l| describe(l, 3)).collect();
        assert_eq!(locks.len(), 4);
        assert_eq!((locks[0].start, locks[0].len, locks[0].pid, locks[0].exclusive), (10, 5, 3, true));
        assert_eq!((locks[1].kind.as_str(), locks[1].len, locks[1].pid), ("flock", 0, 0));
        assert_eq!((locks[2].kind.as_str(), locks[2].exclusive), ("lease", true));
        assert_eq!(locks[3].len, u64::MAX - 6);
    }
}
