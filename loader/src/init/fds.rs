//! Descriptors of a new container process: taking them from the message, putting them at their numbers.
#![forbid(unsafe_code)]

use super::plan::FdLayout;
use crate::sys::process;
use airlock_wire::api::boot::Namespace;
use airlock_wire::error::{Error, Result};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The descriptors of one order, by role.
#[derive(Debug)]
pub struct OrderFds {
    /// v1 cgroup files to write "0" to.
    pub cgroup_join: Vec<OwnedFd>,
    /// Standard streams (0 or 3).
    pub stdio: Vec<OwnedFd>,
    /// Console replica donated by the caller.
    pub tty: Option<OwnedFd>,
    /// devpts mount for a console of our own.
    pub devpts: Option<OwnedFd>,
    /// Program to execute.
    pub exec: Option<OwnedFd>,
    /// Passed descriptors with their numbers in the container.
    pub pass: Vec<(i32, OwnedFd)>,
    /// Namespaces to join.
    pub join: Vec<(Namespace, OwnedFd)>,
    /// Init of the container to enter.
    pub init: Option<OwnedFd>,
    /// Detached mounts, rootfs first.
    pub mounts: Vec<OwnedFd>,
    /// Device mounts by path.
    pub devices: Vec<(String, OwnedFd)>,
    /// Cgroup mounts by hierarchy.
    pub cgroup_mounts: Vec<(String, OwnedFd)>,
}

impl OrderFds {
    /// Sorts `fds` by `layout`.
    ///
    /// # Errors
    /// When the counts do not add up.
    pub fn take(layout: &FdLayout, fds: Vec<OwnedFd>) -> Result<Self> {
        let mut fds = VecDeque::from(fds);
        let mut some = |n: usize| -> Result<Vec<OwnedFd>> {
            if fds.len() < n {
                return Err(Error::failure("the loader sent too few descriptors"));
            }
            Ok(fds.drain(..n).collect())
        };
        let taken = Self {
            cgroup_join: some(layout.cgroup_join.into())?,
            stdio: some(layout.stdio.into())?,
            tty: some(layout.tty.into())?.pop(),
            devpts: some(layout.devpts.into())?.pop(),
            exec: some(layout.exec.into())?.pop(),
            pass: layout.pass.iter().copied().zip(some(layout.pass.len())?).collect(),
            join: layout.join.iter().copied().zip(some(layout.join.len())?).collect(),
            init: some(layout.init.into())?.pop(),
            mounts: some(layout.mounts.into())?,
            devices: layout.devices.iter().cloned().zip(some(layout.devices.len())?).collect(),
            cgroup_mounts: layout
                .cgroup_mounts
                .iter()
                .cloned()
                .zip(some(layout.cgroup_mounts.len())?)
                .collect(),
        };
        if !fds.is_empty() {
            return Err(Error::failure("the loader sent too many descriptors"));
        }
        Ok(taken)
    }
}

/// Writes "0" into each cgroup file: moves the calling, single-threaded process (cheap, unlike moving another
/// process through `cgroup.procs`).
///
/// # Errors
/// `ENOSPC`/`EAGAIN` from the controller.
pub fn join_cgroups(files: &[OwnedFd]) -> Result<()> {
    for file in files {
        nix::unistd::write(file, b"0")
            .map_err(|e| Error::from(e).context("joining the container's cgroup"))?;
    }
    Ok(())
}

/// The channel and the numbers from 3 on that the program keeps; or the channel, to tell why not.
type Placed = std::result::Result<(UnixStream, Vec<i32>), (UnixStream, Error)>;

/// Puts standard streams and passed descriptors at their numbers; moves `channel` out of the way first.
///
/// # Errors
/// Numbers that are negative, repeated or above the descriptor limit.
pub fn place(
    mut channel: UnixStream,
    exec: &mut Option<OwnedFd>,
    stdio: Vec<OwnedFd>,
    pass: Vec<(i32, OwnedFd)>,
) -> Placed {
    match place_all(&mut channel, exec, stdio, pass) {
        Ok(numbers) => Ok((channel, numbers)),
        Err(e) => Err((channel, e)),
    }
}

fn place_all(
    channel: &mut UnixStream,
    exec: &mut Option<OwnedFd>,
    stdio: Vec<OwnedFd>,
    pass: Vec<(i32, OwnedFd)>,
) -> Result<Vec<i32>> {
    let mut wanted: Vec<(i32, OwnedFd)> = (0..).zip(stdio).collect();
    wanted.extend(pass);
    for (i, (number, _)) in wanted.iter().enumerate() {
        if *number < 0 {
            return Err(Error::invalid_argument("guest file descriptors must be 0 or greater"));
        }
        if wanted[..i].iter().any(|(other, _)| other == number) {
            return Err(Error::invalid_argument(format!("guest file descriptor {number} is given twice")));
        }
    }
    let above = wanted.iter().map(|(n, _)| *n).max().unwrap_or(2).max(2).saturating_add(1);
    let out_of_the_way = |fd: BorrowedFd<'_>| {
        process::dup_above(fd, above)
            .map_err(|e| Error::from(e).context(format!("placing descriptors up to {}", above - 1)))
    };
    if channel.as_raw_fd() < above {
        *channel = UnixStream::from(out_of_the_way(channel.as_fd())?);
    }
    if let Some(fd) = exec.take() {
        *exec = Some(if fd.as_raw_fd() < above { out_of_the_way(fd.as_fd())? } else { fd });
    }
    let moved = wanted
        .into_iter()
        .map(|(n, fd)| Ok((n, if fd.as_raw_fd() < above { out_of_the_way(fd.as_fd())? } else { fd })))
        .collect::<Result<Vec<_>>>()?;
    for (number, fd) in &moved {
        process::dup_onto(fd.as_fd(), *number)?;
    }
    Ok(moved.iter().map(|(n, _)| *n).filter(|n| *n > 2).collect())
}
