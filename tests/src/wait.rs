//! Waiting for something to become true, with a limit: no test sleeps in the hope that it is long enough.
use std::time::{Duration, Instant};

/// Longer than anything takes on a machine with other work to do.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Looks every few milliseconds until `probe` gives something; panics after a minute: long for a test that
/// fails, so that a busy machine does not make one fail.
#[track_caller]
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
