//! Random bytes of the kernel, without a device file: the sandbox has none.

use std::io;

/// Fills `buffer` by getrandom(2). Waits only as long as the kernel's generator has never been seeded since boot.
///
/// # Errors
/// `ENOSYS` where a filter forbids the call.
pub fn fill(buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        // SAFETY: the pointer and the length are those of `rest`, which outlives the call.
        match unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) } {
            n if n >= 0 => done += n as usize,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
