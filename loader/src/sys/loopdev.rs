//! Loop devices: how kernels that cannot mount a file system from a file do it after all.

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// struct loop_info64 of linux/loop.h.
#[repr(C)]
struct LoopInfo64 {
    numbers: [u64; 5],
    lo_number: u32,
    encrypt: [u32; 2],
    lo_flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// struct loop_config of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// Binds the file `image` to a free loop device (Linux 5.8). The device goes back to being free when nobody has it
/// open or mounted any more: the caller keeps the returned file open until the mount exists.
///
/// # Errors
/// `ENOENT` where there are no loop devices; `EACCES`; `EBUSY` when others were faster again and again.
pub fn attach(image: BorrowedFd<'_>, read_only: bool) -> std::io::Result<(PathBuf, File)> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..64 {
        // SAFETY: the ioctl takes no argument.
        let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).write(!read_only).open(&path)?;
        // SAFETY: all fields are integers, for which zero is a valid value.
        let mut config: LoopConfig = unsafe { std::mem::zeroed() };
        config.fd = image.as_raw_fd() as u32;
        config.info.lo_flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
        // SAFETY: `config` has the kernel's layout (its size is checked above) and outlives the call.
        let ret = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        match Errno::result(ret) {
            Ok(_) => return Ok((path, device)),
            Err(Errno::EBUSY) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Errno::EBUSY.into())
}
