//! Telling a restored program that it is not the only one: its generation ID is a new one.
#![forbid(unsafe_code)]

use crate::checkpoint::inside;
use crate::checkpoint::restore::context::Context;
use crate::init::mounts::GENERATION;
use airlock_wire::error::Result;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Writes the ID, which the new container has already, once more, so that whoever watches the file hears of it. And gives
/// the kernel's random generator something that no other copy has: a reseed from it depends on this instance.
///
/// To be called when watches have been made again, and just before the programs go on. Failures do not matter: a
/// container without a `/dev` of its own has no such file.
pub fn announce(ctx: &Context) {
    for container in &ctx.order.containers {
        let Ok(init) = crate::sys::process::pidfd_open(container.init) else { continue };
        let _ = inside::run(init.as_fd(), libc::CLONE_NEWNS, write_again);
    }
}

fn write_again() -> Result<()> {
    let dir = open(Path::new("/dev"), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(&dir, GENERATION, flags, Mode::empty())?);
    let status = fstat(&file)?;
    if status.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
        return Ok(());
    }
    let mut id = Vec::new();
    (&mut file).take(128).read_to_end(&mut id)?;
    file.write_all_at(&id, 0)?;
    drop(file);
    let mut random = [0; 32];
    crate::sys::random::fill(&mut random)?;
    let urandom =
        openat(&dir, "urandom", OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let is_device = fstat(&urandom)?.st_rdev == nix::sys::stat::makedev(1, 9);
    if is_device {
        File::from(urandom).write_all(&random)?;
    }
    Ok(())
}
