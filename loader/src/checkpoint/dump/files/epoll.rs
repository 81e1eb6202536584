//! What epoll instances watch.
//!
//! A target is an open file description together with the number under which it was added, which may mean something
//! else by now: only kcmp(2) tells.
#![forbid(unsafe_code)]

use super::Collector;
use super::fdinfo::EpollTarget as Line;
use crate::checkpoint::state::{EpollTarget, FileKind, Id};
use crate::sys::files::{self, Compare};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use std::cmp::Ordering;
use std::collections::HashMap;

impl Collector<'_> {
    pub(super) fn complete_epolls(&mut self) -> Result<()> {
        for index in 0..self.found.len() {
            if matches!(self.state(index).kind, FileKind::Epoll { .. }) {
                let targets = self.targets(index)?;
                self.state(index).kind = FileKind::Epoll { targets };
            }
        }
        Ok(())
    }

    fn targets(&mut self, index: usize) -> Result<Vec<EpollTarget>> {
        let lines = self.found[index].raw.info.targets();
        let mut nth: HashMap<i32, u32> = HashMap::new();
        let mut targets = Vec::with_capacity(lines.len());
        for line in lines {
            let count = nth.entry(line.fd).or_default();
            let which = *count;
            *count += 1;
            match self.target(index, &line, which)? {
                Some(file) => {
                    targets.push(EpollTarget { fd: line.fd, file, events: line.events, data: line.data });
                }
                None => {
                    let pid = self.ctx.procs.get(self.found[index].process).map_or(0, |p| p.ns_pid);
                    self.ctx.warn(format!(
                        "process {pid} watches something with epoll (added as descriptor {}) that no saved process has open: it is left out",
                        line.fd
                    ));
                }
            }
        }
        Ok(targets)
    }

    /// The file that a line of fdinfo speaks of.
    fn target(&self, epoll: usize, line: &Line, nth: u32) -> Result<Option<Id>> {
        // Mostly it still has its number where the instance is.
        for (table, _) in &self.found[epoll].holders {
            let at = self.tables[*table].content.binary_search_by_key(&line.fd, |raw| raw.fd);
            if let Some(found) = at.ok().and_then(|at| self.index[*table].get(at)).copied()
                && self.watches(epoll, line, nth, found)?
            {
                return Ok(Some(
                    self.external.get(&(*table, line.fd)).copied().unwrap_or(self.found[found].id),
                ));
            }
        }
        for (i, found) in self.found.iter().enumerate() {
            let ino = found.raw.info.ino.unwrap_or(found.raw.stat.st_ino);
            if line.file.is_none_or(|(wanted, _)| wanted == ino) && self.watches(epoll, line, nth, i)? {
                return Ok(Some(found.id));
            }
        }
        Ok(None)
    }

    fn watches(&self, epoll: usize, line: &Line, nth: u32, candidate: usize) -> Result<bool> {
        let (first, fd) = self.found[candidate].place.at(self.me);
        let (second, epoll) = self.found[epoll].place.at(self.me);
        let what = Compare::EpollTarget { fd, epoll, target: line.fd as u32, nth };
        match files::kcmp(first, second, what) {
            Ok(order) => Ok(order == Ordering::Equal),
            Err(Errno::ENOENT | Errno::EBADF) => Ok(false),
            Err(e) => Err(Error::from(e).context("comparing what an epoll instance watches (kcmp)")),
        }
    }
}
