//! User namespaces that exist only for their id maps, as idmapped mounts want them (mount_setattr(2)).

use nix::errno::Errno;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Makes a user namespace with the given maps, in the form of `/proc/<pid>/uid_map`. It lives as long as the returned
/// descriptor or a mount that uses it. Blocks for as long as a fork takes. May be called from any thread.
///
/// # Errors
/// `EPERM` when the caller may not map these ids; `EINVAL` for maps that overlap or are no maps; `ENOSPC` when there
/// are too many user namespaces; those of opening `/proc`.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> std::io::Result<OwnedFd> {
    let (read, write) = pipe()?;
    // SAFETY: a plain copy of the process without shared memory. The child only closes a descriptor, reads from a
    // pipe and exits by system calls, none of which takes a lock that another thread may have held.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER as libc::c_ulong, 0, 0, 0, 0) };
    if Errno::result(pid)? == 0 {
        // SAFETY: as above; `byte` outlives the call, and _exit(2) does not return.
        unsafe {
            let mut byte = 0u8;
            libc::close(write.as_raw_fd());
            libc::read(read.as_raw_fd(), (&raw mut byte).cast(), 1);
            libc::_exit(0)
        }
    }
    let result = (|| {
        let namespace = File::open(format!("/proc/{pid}/ns/user"))?;
        for (file, map) in [("uid_map", uid_map), ("gid_map", gid_map)] {
            let mut file = File::options().write(true).open(format!("/proc/{pid}/{file}"))?;
            file.write_all(map.as_bytes())?;
        }
        Ok(OwnedFd::from(namespace))
    })();
    drop((read, write));
    // SAFETY: the child is ours, has no exit signal, and nobody else waits for it with __WALL.
    while unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), libc::__WALL) } == -1
        && Errno::last() == Errno::EINTR
    {}
    result
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    Errno::result(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the call succeeded, so that both are new descriptors that nobody else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_those_that_were_asked_for_and_bad_ones_are_refused() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED maps_are_those_that_were_asked_for_and_bad_ones_are_refused: needs root");
            return;
        }
        let namespace = user_namespace("0 100000 10\n", "0 200000 10\n").unwrap();
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", namespace.as_raw_fd())).unwrap();
        assert!(link.to_str().unwrap().starts_with("user:["));
        assert_ne!(link, own);
        assert!(user_namespace("nonsense", "0 1 1\n").is_err());
        assert!(user_namespace("0 0 10\n5 50 10\n", "0 1 1\n").is_err());
    }
}
