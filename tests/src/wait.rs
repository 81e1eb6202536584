//! Waiting for something to become true, with a limit: no test sleeps in the hope that it is long enough.
use std::time::{Duration, Instant};

/// Looks every few milliseconds until `probe` gives something; panics after 20 seconds.
#[track_caller]
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited 20 s for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
