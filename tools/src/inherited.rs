//! Which descriptors this process was started with.
//!
//! `--preserve-fds` and `--pass-fd` hand descriptors of the caller to a container. A number alone does not tell
//! whether the caller opened it or we did (runc handed out its own cgroup descriptors: runc#5474), so the program
//! asks once, before it opens anything.

#![forbid(unsafe_code)]

use crate::sys;
use airlock_wire::error::{Error, Result};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

static SNAPSHOT: OnceLock<Vec<i32>> = OnceLock::new();

/// The numbers, 3 and above, of the descriptors that were open when this function was first called, ascending.
///
/// Call it first in `main`; later calls give the same answer. Empty when `/proc` is not mounted, so that nothing is
/// handed over rather than the wrong thing. The numbers only say what was there; [`duplicate`] gives a descriptor.
pub fn snapshot() -> &'static [i32] {
    SNAPSHOT.get_or_init(|| open_descriptors().unwrap_or_default())
}

/// True for a descriptor that the caller left open for us, standard ones included.
pub fn contains(fd: i32) -> bool {
    (0..=2).contains(&fd) || snapshot().binary_search(&fd).is_ok()
}

/// A close-on-exec duplicate of the caller's descriptor number `fd`.
///
/// # Errors
/// The caller left no descriptor of that number open for us.
pub fn duplicate(fd: i32) -> Result<OwnedFd> {
    if !contains(fd) {
        return Err(Error::invalid_argument(format!(
            "descriptor {fd} is not open: open it in the caller, without close-on-exec"
        )));
    }
    sys::duplicate_number(fd).map_err(|e| Error::from(e).context(format!("duplicate descriptor {fd}")))
}

fn open_descriptors() -> nix::Result<Vec<i32>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = Dir::open("/proc/self/fd", flags, Mode::empty())?;
    let own = dir.as_raw_fd();
    let mut open: Vec<i32> = dir
        .iter()
        .filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok())
        .filter(|fd| *fd > 2 && *fd != own)
        .collect();
    open.sort_unstable();
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_open_before_counts() {
        let before = std::fs::File::open("/dev/null").unwrap();
        let first = snapshot().to_vec();
        let after = std::fs::File::open("/dev/null").unwrap();
        assert!(open_descriptors().unwrap().contains(&before.as_raw_fd()));
        assert!(!contains(after.as_raw_fd()) || first.contains(&after.as_raw_fd()));
        assert_eq!(snapshot(), first);
        let copy = duplicate(0).unwrap();
        assert_ne!(copy.as_raw_fd(), 0);
        assert!(duplicate(-1).is_err() && duplicate(i32::MAX).is_err());
        assert!(first.is_sorted() && first.iter().all(|fd| *fd > 2));
    }
}
