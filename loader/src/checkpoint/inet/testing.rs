//! Network namespaces for tests.

use crate::init::paths::testing::root_or_skip;
use crate::sys::{misc, process};

/// Runs `f` in a thread that has a network namespace of its own, whose loopback interface is up. Skipped by name
/// without root.
pub(crate) fn in_netns<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if !root_or_skip(name) {
        return None;
    }
    let thread = std::thread::spawn(|| {
        process::unshare(libc::CLONE_NEWNET).unwrap();
        misc::loopback_up().unwrap();
        f()
    });
    match thread.join() {
        Ok(value) => Some(value),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
