//! Signal actions and pending signals.
#![forbid(unsafe_code)]

use crate::checkpoint::remote::{Arg, Batch, CallId, Ran, Tracee};
use crate::checkpoint::state::{Bytes, SigAction};
use airlock_wire::error::Result;

/// Numbers of signals.
pub const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

/// Size of the kernel's `struct sigaction`: handler, flags, restorer, mask.
const SIGACTION: usize = 32;

/// Calls that ask for the actions of all signals.
#[derive(Debug)]
pub struct Actions(Vec<(CallId, Arg)>);

impl Actions {
    /// Adds the calls to a batch.
    pub fn ask(batch: &mut Batch) -> Self {
        let one = |signal: i32| {
            let old = batch.space(SIGACTION);
            let args = [signal.into(), Arg::NULL, old, 8u64.into()];
            (batch.call(libc::SYS_rt_sigaction, args), old)
        };
        Self(SIGNALS.map(one).collect())
    }

    /// What they answered, by signal number less 1.
    ///
    /// # Errors
    /// When a call failed.
    pub fn answers(&self, ran: &Ran) -> Result<Vec<SigAction>> {
        let word = |at: Arg, n: usize| ran.word(at.at(8 * n));
        self.0
            .iter()
            .map(|(call, old)| {
                ran.get(*call)?;
                let (handler, flags) = (word(*old, 0), word(*old, 1));
                Ok(SigAction { handler, flags, restorer: word(*old, 2), mask: word(*old, 3) })
            })
            .collect()
    }
}

/// Pending signals of the thread, or (`shared`) of its process: those in the queue, oldest first, and then those that
/// are only marked in `bits`, because the queue was full when they came.
///
/// # Errors
/// When the thread has ended.
pub fn pending(tracee: &Tracee, shared: bool, bits: u64) -> Result<Vec<Bytes>> {
    let mut found: Vec<Bytes> = Vec::new();
    let mut queued = 0u64;
    for info in tracee.peek_siginfo(shared)? {
        queued |= bit(signal_of(&info));
        found.push(info.to_vec().into());
    }
    for signal in SIGNALS.filter(|s| bits & !queued & bit(*s) != 0) {
        // What the kernel makes of such a signal when it delivers it: one from nobody (SI_USER, pid 0).
        let mut info = [0u8; 128];
        info[..4].copy_from_slice(&signal.to_ne_bytes());
        found.push(info.to_vec().into());
    }
    Ok(found)
}

/// `si_signo` of a siginfo; 0 when it is too short.
pub fn signal_of(info: &[u8]) -> i32 {
    info.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes)
}

/// The bit of a signal in a mask; none for numbers that are no signals.
pub fn bit(signal: i32) -> u64 {
    if SIGNALS.contains(&signal) { 1 << (signal - 1) } else { 0 }
}
