//! POSIX message queues. They can be emptied, not looked into: all messages are received and sent again, which leaves
//! the same messages in the same order.
#![forbid(unsafe_code)]

use super::Found;
use crate::checkpoint::state::{Id, PosixQueue};
use crate::sys::ipc;
use crate::sys::mount;
use airlock_wire::error::{Error, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A queue that is to be read.
#[derive(Debug)]
pub(super) struct Queue {
    fd: OwnedFd,
    state: PosixQueue,
}

/// Finds the queues of the calling thread's IPC namespace.
pub(super) fn look(container: Id, found: &mut Found) -> Result<()> {
    let failed = |e: Error| e.context("looking for POSIX message queues");
    let root = match root() {
        Ok(root) => root,
        Err(Errno::ENODEV | Errno::ENOSYS) => return Ok(()),
        Err(e) => return Err(failed(e.into())),
    };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = Dir::openat(&root, ".", flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let names: Vec<Vec<u8>> = dir
        .iter()
        .filter_map(|e| Some(e.ok()?.file_name().to_bytes().to_vec()))
        .filter(|name| name != b"." && name != b"..")
        .collect();
    let result = queues(&root, names, container, found);
    // To close a detached mount is to wait for the kernel; the agent's end will do it.
    std::mem::forget(root);
    result
}

fn queues(root: &OwnedFd, names: Vec<Vec<u8>>, container: Id, found: &mut Found) -> Result<()> {
    for name in names {
        let shown = String::from_utf8_lossy(&name).into_owned();
        let failed = |e: Error| e.context(format!("message queue /{shown}"));
        let (queue, watcher) = open(root.as_fd(), &name, container).map_err(failed)?;
        let attributes = ipc::mq_attributes(queue.fd.as_fd()).map_err(|e| failed(e.into()))?;
        if let Some(pid) = watcher.filter(|_| attributes.messages > 0) {
            found.problems.push((
                Some(pid),
                format!(
                    "message queue /{shown} has messages, and a process waits to be notified of the next (mq_notify), which \
                     looking at them would do"
                ),
            ));
            continue;
        }
        found.posix.push(queue);
    }
    Ok(())
}

/// The filesystem of the namespace's queues, whether the container has it mounted or not.
fn root() -> nix::Result<OwnedFd> {
    let raw = |e: mount::FsError| e.errno;
    let context = mount::fsopen("mqueue").map_err(raw)?;
    mount::fsconfig_create(context.as_fd()).map_err(raw)?;
    mount::fsmount(context.as_fd(), 0).map_err(raw)
}

fn open(root: BorrowedFd<'_>, name: &[u8], container: Id) -> Result<(Queue, Option<i32>)> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::OsStr::from_bytes(name);
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(root, path, flags, Mode::empty())?;
    let stat = fstat(&fd)?;
    let attributes = ipc::mq_attributes(fd.as_fd())?;
    let mut text = String::new();
    File::from(fd.try_clone()?).take(4096).read_to_string(&mut text)?;
    let watcher = text
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("NOTIFY_PID:")?.parse().ok())
        .filter(|pid| *pid != 0);
    let state = PosixQueue {
        container,
        name: name.into(),
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        max_messages: attributes.max_messages,
        message_size: attributes.message_size,
        messages: Vec::new(),
    };
    Ok((Queue { fd, state }, watcher))
}

impl Queue {
    /// Reads the messages, and puts them back.
    pub(super) fn read(&self) -> Result<PosixQueue> {
        let fd = self.fd.as_fd();
        let longest = usize::try_from(self.state.message_size).unwrap_or(0);
        let mut state = self.state.clone();
        let failed = |e: Errno, what: &str| {
            let name = String::from_utf8_lossy(&self.state.name).into_owned();
            Error::from(e).context(format!("message queue /{name}: {what}"))
        };
        let outcome = loop {
            match ipc::mq_receive(fd, longest) {
                Ok((priority, data)) => state.messages.push((priority, data.into())),
                Err(Errno::EAGAIN) => break Ok(()),
                Err(e) => break Err(failed(e, "taking its messages")),
            }
        };
        for (priority, data) in &state.messages {
            ipc::mq_send(fd, *priority, data).map_err(|e| failed(e, "putting its messages back"))?;
        }
        outcome.map(|()| state)
    }
}
