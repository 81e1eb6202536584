//! What came of a batch of system calls.
#![forbid(unsafe_code)]

use super::batch::{Arg, Batch, Call, CallId};
use super::inject::{call_name, decode};
use super::procfs;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;

/// What came of a batch.
#[derive(Debug, Clone)]
pub struct Ran {
    pub(super) thread: i32,
    pub(super) batch: Batch,
    /// Raw results; none for calls that were not run.
    pub(super) results: Vec<Option<u64>>,
}

impl Ran {
    /// What a call returned.
    ///
    /// # Errors
    /// Its errno; `ECANCELED` for one that was not run because an earlier one had failed that must not.
    pub fn result(&self, id: CallId) -> std::result::Result<u64, Errno> {
        self.results.get(id.0).copied().flatten().map_or(Err(Errno::ECANCELED), decode)
    }

    /// What a call returned, with an error that names the call and the thread.
    ///
    /// # Errors
    /// As [`Ran::result`].
    pub fn get(&self, id: CallId) -> Result<u64> {
        self.result(id).map_err(|e| self.describe(id.0, e))
    }

    /// `len` bytes of data as the calls left them; empty when `at` is not data of this batch or shorter.
    pub fn output(&self, at: Arg, len: usize) -> &[u8] {
        match at {
            Arg::Data(start) => {
                start.checked_add(len).and_then(|end| self.batch.data.get(start..end)).unwrap_or_default()
            }
            _ => &[],
        }
    }

    /// The 64-bit word at `at`; 0 where there is none.
    pub fn word(&self, at: Arg) -> u64 {
        self.output(at, 8).try_into().map_or(0, u64::from_ne_bytes)
    }

    /// The 32-bit word at `at`; 0 where there is none.
    pub fn int(&self, at: Arg) -> i32 {
        self.output(at, 4).try_into().map_or(0, i32::from_ne_bytes)
    }

    /// Fails when any call failed, with the first one.
    ///
    /// # Errors
    /// Names the call, its arguments and the thread.
    pub fn check(&self) -> Result<()> {
        self.first_failure(|_| true)
    }

    /// Fails when a call failed that was added with [`Batch::must`].
    ///
    /// # Errors
    /// As [`Ran::check`].
    pub fn check_musts(&self) -> Result<()> {
        self.first_failure(|call| call.must)
    }

    fn first_failure(&self, counts: impl Fn(&Call) -> bool) -> Result<()> {
        for (i, call) in self.batch.calls.iter().enumerate() {
            if counts(call)
                && let Err(e) = self.result(CallId(i))
            {
                return Err(self.describe(i, e));
            }
        }
        Ok(())
    }

    fn describe(&self, i: usize, e: Errno) -> Error {
        let Some(call) = self.batch.calls.get(i) else {
            return Error::invalid_argument("no such call in the batch");
        };
        let args: Vec<String> = call
            .args
            .iter()
            .map(|arg| match arg {
                Arg::Value(v) if *v < 4096 => v.to_string(),
                Arg::Value(v) if (*v as i64) < 0 && (*v as i64) > -4096 => (*v as i64).to_string(),
                Arg::Value(v) => format!("{v:#x}"),
                Arg::Data(start) => self.show(*start),
                Arg::Result(id) => match self.result(*id) {
                    Ok(v) => format!("{v:#x}"),
                    Err(_) => "?".to_owned(),
                },
            })
            .collect();
        Error::from(e).context(format!(
            "{}({}) in {}",
            call_name(call.nr),
            args.join(", "),
            procfs::describe(self.thread)
        ))
    }

    /// Data that looks like text is shown.
    fn show(&self, start: usize) -> String {
        let text = self.batch.data.get(start..).and_then(|d| d.split(|b| *b == 0).next()).unwrap_or_default();
        match std::str::from_utf8(text) {
            Ok(t) if !t.is_empty() && t.len() < 300 && !t.contains(char::is_control) => format!("\"{t}\""),
            _ => "data".to_owned(),
        }
    }
}
