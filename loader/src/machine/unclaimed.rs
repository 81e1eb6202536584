//! Programs that were started, until somebody takes their status.
#![forbid(unsafe_code)]

use crate::container::{Process, lock};
use airlock_wire::api::container::status::Code;
use airlock_wire::error::Result;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

/// Ended ones are forgotten when there are too many: the oldest first.
#[derive(Debug, Default)]
pub struct Unclaimed(Mutex<Vec<Arc<Process>>>);

impl Unclaimed {
    const MOST: usize = 1024;

    /// Keeps a process until somebody waits for it.
    pub fn add(&self, process: Arc<Process>) {
        let mut all = lock(&self.0);
        if all.len() >= Self::MOST
            && let Some(oldest) = all.iter().position(|p| p.status().is_some())
        {
            all.remove(oldest);
        }
        all.retain(|p| p.pid != process.pid);
        all.push(process);
    }

    /// See [`super::Place::wait`].
    ///
    /// # Errors
    /// `NOT_FOUND` for a process that is not among them; what `wait` says.
    pub fn wait(&self, pid: i32, wait: &dyn Fn(BorrowedFd<'_>) -> Result<()>) -> Result<u32> {
        let none = || {
            Code::NotFound
                .error(format_args!("process {pid} was not started by Run, or its status was taken"))
        };
        let process = lock(&self.0).iter().find(|p| p.pid == pid).cloned().ok_or_else(none)?;
        loop {
            if let Some(status) = process.status() {
                let mut all = lock(&self.0);
                let position = all.iter().position(|p| Arc::ptr_eq(p, &process)).ok_or_else(none)?;
                all.remove(position);
                return Ok(status);
            }
            wait(process.ended())?;
        }
    }
}
