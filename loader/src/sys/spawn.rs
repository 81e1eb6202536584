//! Starting a program in other cgroups than its parent's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Starts `command`, which joins cgroups before it is executed, by writing `0` to each of `join` (v1 `tasks`, v2
/// `cgroup.procs`) in this order.
///
/// # Errors
/// Those of fork(2), execve(2) and of joining.
pub fn spawn_in(mut command: Command, join: Vec<OwnedFd>) -> io::Result<Child> {
    let join_all = move || {
        for file in &join {
            // SAFETY: one byte is read from a static string; write(2) may be called between fork and exec.
            let written = unsafe { libc::write(file.as_raw_fd(), b"0".as_ptr().cast(), 1) };
            if written != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure only calls write(2) and reads errno: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(join_all) };
    command.spawn()
}
