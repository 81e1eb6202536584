//! Calls, as whoever wants to see them sees them: for traces of a sandbox process.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A call that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// When its handler began.
    pub begin: Instant,
    /// When its handler returned.
    pub end: Instant,
    /// It answered with an error.
    pub failed: bool,
    /// The thread that did it (gettid(2)).
    pub thread: i32,
}

/// Gets every call of this process' servers that ends while this lives.
#[derive(Debug)]
pub struct Calls {
    seen: Receiver<Seen>,
}

/// How many look on. Nobody nearly always: then a call costs one load more.
static WATCHERS: AtomicUsize = AtomicUsize::new(0);
static SENDERS: Mutex<Vec<Sender<Seen>>> = Mutex::new(Vec::new());

impl Calls {
    /// Begins to look.
    pub fn watch() -> Self {
        let (sender, seen) = channel();
        SENDERS.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        WATCHERS.fetch_add(1, Ordering::Relaxed);
        Self { seen }
    }

    /// The calls that have ended since this was asked last.
    pub fn ended(&self) -> impl Iterator<Item = Seen> {
        self.seen.try_iter()
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        WATCHERS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Does `handle`, and shows it to whoever looks.
pub(crate) fn call<T, E>(method: &str, handle: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    if WATCHERS.load(Ordering::Relaxed) == 0 {
        return handle();
    }
    let begin = Instant::now();
    let result = handle();
    let thread = nix::unistd::gettid().as_raw();
    let seen =
        Seen { method: method.to_owned(), begin, end: Instant::now(), failed: result.is_err(), thread };
    // Those whose receiver is gone are forgotten.
    SENDERS.lock().unwrap_or_else(PoisonError::into_inner).retain(|sender| sender.send(seen.clone()).is_ok());
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_seen_while_somebody_looks() {
        let _ = call::<_, ()>("Test.Before", || Ok(()));
        let calls = Calls::watch();
        let _ = call::<(), _>("Test.During", || Err(()));
        let seen: Vec<Seen> = calls.ended().filter(|s| s.method.starts_with("Test.")).collect();
        assert_eq!(seen.len(), 1);
        assert!(seen[0].method == "Test.During" && seen[0].failed && seen[0].begin <= seen[0].end);
        drop(calls);
        assert_eq!(call::<_, ()>("Test.After", || Ok(7)), Ok(7));
    }
}
