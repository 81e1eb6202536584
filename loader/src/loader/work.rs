//! Jobs for workers ([`crate::worker`]), as the loader gives them.
#![forbid(unsafe_code)]

use super::Loader;
use crate::container::Process;
use crate::spawner::Role;
use crate::worker::{Job, Task};
use airlock_wire::binary;
use airlock_wire::error::{Error, Kind, Result};
use serde::de::DeserializeOwned;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A worker whose task goes on. Dropping it closes the channel, which ends the task.
#[derive(Debug)]
pub struct Working {
    /// To the worker.
    pub channel: UnixStream,
    /// The worker.
    pub process: Option<Arc<Process>>,
}

impl Working {
    /// What a task that went on after its answer says at its end. Blocks until then.
    ///
    /// # Errors
    /// What it says; that the worker ended without a word.
    pub fn finish<T: DeserializeOwned>(self) -> Result<T> {
        match binary::recv::<std::result::Result<T, Error>>(&self.channel) {
            Ok((result, _)) => result,
            Err(e) => Err(ended_early(self.process, e)),
        }
    }
}

/// How a worker ended that did not answer.
fn ended_early(process: Option<Arc<Process>>, e: Error) -> Error {
    if e.kind != Kind::Disconnected {
        return e;
    }
    let how = process.and_then(|p| p.status()).map_or_else(String::new, |s| format!(" (wait status {s:#x})"));
    Error::failure(format!("the process for this work ended before it answered{how}"))
}

impl Loader {
    /// Has a worker do `task`. Blocks until it has answered.
    ///
    /// # Errors
    /// What the task answers; `EAGAIN` at the pids limit; how the worker ended if it ended without a word.
    pub fn work<T: Task>(
        &self,
        task: T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(T::Reply, Vec<OwnedFd>, Working)> {
        self.work_while(task, fds, &|_| Ok(()))
    }

    /// [`Loader::work`] for what may take long: `wait` blocks until the descriptor that it gets is readable. When it fails,
    /// because nobody wants the answer any more, the worker is killed.
    ///
    /// # Errors
    /// As [`Loader::work`]; what `wait` says.
    pub fn work_while<T: Task>(
        &self,
        task: T,
        fds: &[BorrowedFd<'_>],
        wait: &dyn Fn(BorrowedFd<'_>) -> Result<()>,
    ) -> Result<(T::Reply, Vec<OwnedFd>, Working)> {
        let (channel, process) = self.spawn_for(Role::Worker)?;
        let job: Job = task.into();
        let sent = binary::send(&channel, &job, fds);
        if let Err(e) = wait(channel.as_fd()) {
            if let Some(process) = &process {
                let _ = process.signal(libc::SIGKILL);
            }
            return Err(e);
        }
        let answered = sent.and_then(|()| binary::recv::<std::result::Result<T::Reply, Error>>(&channel));
        match answered {
            Ok((reply, fds)) => Ok((reply?, fds, Working { channel, process })),
            Err(e) => Err(ended_early(process, e)),
        }
    }
}
