//! What the tests of this crate share.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Every test that opens descriptors holds this, so that counting them sees no other test at work.
static DESCRIPTORS: Mutex<()> = Mutex::new(());

/// Proves, when dropped, that the test left as many descriptors open as it found.
pub(crate) struct LeakCheck {
    before: Vec<String>,
    _alone: MutexGuard<'static, ()>,
}

impl LeakCheck {
    pub(crate) fn new() -> Self {
        let alone = DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
        Self { before: descriptors(), _alone: alone }
    }
}

impl Drop for LeakCheck {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // A connection's thread lets go of its server a moment after the connection has ended.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_as_before(&descriptors(), &self.before) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let now = descriptors();
        assert!(is_as_before(&now, &self.before), "descriptors leaked: {now:?}, were {:?}", self.before);
    }
}

/// None is new. Those that are gone may have been other tests', which do not all wait for their turn.
fn is_as_before(now: &[String], before: &[String]) -> bool {
    now.iter().all(|d| before.contains(d))
}

/// Numbers and targets of the open descriptors, without the one that reads the list.
fn descriptors() -> Vec<String> {
    let mut list: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let target = std::fs::read_link(entry.path()).ok()?;
            (!target.ends_with("fd")).then(|| format!("{:?} {}", entry.file_name(), target.display()))
        })
        .collect();
    list.sort();
    list
}

pub(crate) fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

/// `n` descriptors, each of another file.
pub(crate) fn files(n: usize) -> Vec<OwnedFd> {
    (0..n).map(|_| nix::sys::eventfd::EventFd::new().unwrap().into()).collect()
}

pub(crate) fn borrow(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

/// Proves that `received` are the files `sent`, in order, by writing through one and reading through the other.
pub(crate) fn assert_same_files(sent: &[OwnedFd], received: &[OwnedFd]) {
    assert_eq!(sent.len(), received.len());
    for (i, (sent, received)) in sent.iter().zip(received).enumerate() {
        let flags = nix::fcntl::fcntl(received, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC, "descriptor {i} is inherited by execve");
        let value = 1 + i as u64;
        nix::unistd::write(sent, &value.to_ne_bytes()).unwrap();
        let mut back = [0; 8];
        nix::unistd::read(received, &mut back).unwrap();
        assert_eq!(u64::from_ne_bytes(back), value, "descriptor {i} is another file");
    }
}
