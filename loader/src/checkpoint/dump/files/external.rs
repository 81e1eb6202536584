//! Descriptors that came from outside: standard streams, the console, passed descriptors.
//!
//! They are not saved: whoever restores gives new ones. What counts is which of them a descriptor is. Standard streams
//! are often one and the same (a terminal, `/dev/null`), and may be different ones at restore, so the number under which
//! a program has one decides where it can.
#![forbid(unsafe_code)]

use super::{Collector, tty};
use crate::checkpoint::state::{FileKind, FileState, Id};
use airlock_wire::error::Result;
use std::os::fd::AsFd;

impl Collector<'_> {
    /// Settles a description that came from outside; false when it did not.
    pub(super) fn describe_external(&mut self, index: usize) -> Result<bool> {
        let streams = self.streams(index);
        if streams.is_empty() {
            return Ok(false);
        }
        let socket = self.found[index].raw.link.starts_with("socket:");
        let at_home = |found: &super::Found| {
            found.holders.iter().any(|(table, fd)| {
                let container = self.tables[*table].container;
                streams.contains(&(container, *fd))
            })
        };
        let identity = self.found[index].raw.identity();
        let reopened = !socket
            && !at_home(&self.found[index])
            && self.found.iter().any(|f| f.raw.identity() == identity && at_home(f));
        let tty = match tty::is_terminal(self.found[index].raw.stat.st_rdev) {
            true => {
                let fd = self.open(index)?;
                let mut settings = tty::settings(fd.as_fd()).unwrap_or_default();
                (settings.sid, settings.pgrp) = self.job_control(self.found[index].raw.stat.st_rdev);
                Some(settings)
            }
            false => None,
        };
        let access = self.found[index].raw.info.flags & libc::O_ACCMODE;
        let own = self.found[index].id;
        let mut made: Vec<((Id, i32), Id)> = Vec::new();
        for (table, fd) in self.found[index].holders.clone() {
            let chosen = choose(&streams, self.tables[table].container, fd, access);
            let id = match made.iter().find(|(stream, _)| *stream == chosen) {
                Some((_, id)) => *id,
                None => {
                    let id = if made.is_empty() { own } else { self.ctx.state.files.len() as Id };
                    let (container, stream) = chosen;
                    let kind = FileKind::External { container, stream, tty: tty.clone(), reopened };
                    if made.is_empty() {
                        self.state(index).kind = kind;
                    } else {
                        let like = self.ctx.state.files[own as usize].clone();
                        self.ctx.state.files.push(FileState { kind, ..like });
                    }
                    made.push((chosen, id));
                    id
                }
            };
            self.external.insert((table, fd), id);
        }
        if made.is_empty() {
            // In flight in a message.
            let (container, stream) = choose(&streams, self.found[index].container, -1, access);
            self.state(index).kind = FileKind::External { container, stream, tty, reopened };
        }
        Ok(true)
    }

    /// Which streams from outside a description can be: container and number.
    fn streams(&self, index: usize) -> Vec<(Id, i32)> {
        let found = &self.found[index];
        let (dev, ino) = found.raw.identity();
        let mut streams: Vec<(Id, i32)> = self
            .ctx
            .order
            .containers
            .iter()
            .zip(0..)
            .flat_map(|(c, id)| c.origin.iter().map(move |o| (id, o)))
            .filter(|(_, (_, d, i))| (*d, *i) == (dev, ino))
            .map(|(id, (number, ..))| (id, *number))
            .collect();
        if streams.is_empty() {
            return streams;
        }
        let link = &found.raw.link;
        if link.starts_with("anon_inode:") {
            // All of these share one inode, so only the number can tell.
            streams.retain(|(container, number)| {
                found.holders.iter().any(|(t, fd)| fd == number && self.tables[*t].container == *container)
            });
        } else if link.starts_with('/') && found.raw.stat.st_nlink > 0 {
            // `/dev/null` may well be both: what the container opened itself was opened through a mount of its own.
            let own = self.own_mount(index);
            let console = tty::is_slave(found.raw.stat.st_rdev)
                && self.master_of(found.container, tty::index_of(found.raw.stat.st_rdev)).is_none();
            if own && !console {
                streams.clear();
            }
        }
        streams
    }

    /// The stream from outside that is the terminal with that device number.
    pub(super) fn console(&self, container: Id, rdev: u64) -> Option<(Id, i32)> {
        self.found
            .iter()
            .filter(|f| f.container == container && f.raw.stat.st_rdev == rdev)
            .filter(|f| tty::is_terminal(rdev) && f.raw.link != "/dev/tty")
            .find_map(|f| {
                let index = self.found.iter().position(|o| std::ptr::eq(o, f))?;
                self.streams(index).into_iter().next()
            })
            .or_else(|| {
                // Nobody has it open any more but through /dev/tty.
                let order = self.ctx.order.containers.get(container as usize)?;
                let (number, ..) = order.origin.iter().find(|(_, _, ino)| *ino == tty::inode_of(rdev))?;
                Some((container, *number))
            })
    }
}

/// The stream that number `fd` of a process of `container` is.
fn choose(streams: &[(Id, i32)], container: Id, fd: i32, access: i32) -> (Id, i32) {
    let own: Vec<(Id, i32)> = streams.iter().copied().filter(|(c, _)| *c == container).collect();
    let among = if own.is_empty() { streams } else { &own };
    let usual = match access {
        libc::O_RDONLY => 0,
        libc::O_WRONLY => 1,
        _ => i32::MIN,
    };
    let has = |number: i32| among.iter().copied().find(|(_, n)| *n == number);
    has(fd).or_else(|| has(usual)).or_else(|| among.iter().copied().min_by_key(|(_, n)| *n)).unwrap_or((0, 0))
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn the_number_decides_then_the_direction_then_the_lowest() {
        let streams = [(0, 0), (0, 1), (0, 2), (1, 1)];
        assert_eq!(choose(&streams, 0, 2, libc::O_RDWR), (0, 2));
        assert_eq!(choose(&streams, 0, 10, libc::O_RDONLY), (0, 0));
        assert_eq!(choose(&streams, 0, 10, libc::O_WRONLY), (0, 1));
        assert_eq!(choose(&streams, 0, 255, libc::O_RDWR), (0, 0));
        assert_eq!(choose(&streams, 1, 2, libc::O_RDWR), (1, 1));
        assert_eq!(choose(&streams, 7, 1, libc::O_RDWR), (0, 1));
        assert_eq!(choose(&[(0, 5)], 0, 1, libc::O_RDONLY), (0, 5));
    }
}
