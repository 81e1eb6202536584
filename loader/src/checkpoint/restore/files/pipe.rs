//! Pipes and FIFOs.
#![forbid(unsafe_code)]

use super::path::open_checked;
use super::{Context, file, in_container, name_of, put, reopen};
use crate::checkpoint::state::{FileKind, FileState, Id};
use crate::sys::files as call;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, write};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Makes the pipes, and opens the FIFOs, of a container's descriptions, with what was in them.
pub(super) fn open(ctx: &mut Context, ids: &[Id]) -> Result<()> {
    let (mut pipes, mut fifos): (BTreeMap<u64, Vec<Id>>, BTreeMap<u64, Vec<Id>>) = Default::default();
    for id in ids {
        match &file(&ctx.state, *id)?.kind {
            FileKind::Pipe { pipe, .. } => pipes.entry(*pipe).or_default().push(*id),
            FileKind::Fifo { pipe, .. } => fifos.entry(*pipe).or_default().push(*id),
            _ => {}
        }
    }
    for ends in pipes.into_values() {
        let named = |e: Error, ctx: &Context| {
            e.context(format!("making the pipe of {}", name_of(&ctx.state, ends[0])))
        };
        let made = make(ctx, &ends).map_err(|e| named(e, ctx))?;
        for (id, fd) in made {
            put(ctx, id, fd)?;
        }
    }
    for ends in fifos.into_values() {
        let made = open_fifo(ctx, &ends)?;
        for (id, fd) in made {
            put(ctx, id, fd)?;
        }
    }
    Ok(())
}

fn make(ctx: &Context, ends: &[Id]) -> Result<Vec<(Id, OwnedFd)>> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let first = file(&ctx.state, ends[0])?;
    let FileKind::Pipe { size, owner, .. } = first.kind else { return Ok(Vec::new()) };
    resize(writer.as_fd(), size)?;
    if owner != (0, 0) {
        let (uid, gid) = (owner.0.into(), owner.1.into());
        nix::unistd::fchown(&writer, Some(uid), Some(gid))?;
    }
    for id in ends {
        if let FileKind::Pipe { data, packets, .. } = &file(&ctx.state, *id)?.kind {
            fill(writer.as_fd(), data, packets)?;
        }
    }
    // The two descriptions that a pipe is made with go to the first who had such; others open it once more.
    let (mut reader_left, mut writer_left) = (Some(reader), Some(writer));
    let mut made = Vec::with_capacity(ends.len());
    for id in ends {
        let flags = file(&ctx.state, *id)?.flags;
        let fd = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => reader_left.take(),
            libc::O_WRONLY => writer_left.take(),
            _ => None,
        };
        let fd = match fd {
            Some(fd) => fd,
            None => {
                let any = made
                    .first()
                    .map(|(_, fd): &(Id, OwnedFd)| fd.as_fd())
                    .or(reader_left.as_ref().map(AsFd::as_fd))
                    .or(writer_left.as_ref().map(AsFd::as_fd));
                let any = any.ok_or_else(|| Error::failure("nothing is left of it"))?;
                reopen(ctx.procfs.root(), any, flags & (libc::O_ACCMODE | libc::O_DIRECT) | libc::O_NONBLOCK)?
            }
        };
        made.push((*id, fd));
    }
    Ok(made)
}

fn resize(pipe: BorrowedFd<'_>, size: u32) -> Result<()> {
    let size = i32::try_from(size)
        .map_err(|_| Error::invalid_argument("the statefile is damaged: size of a pipe"))?;
    if fcntl(pipe, FcntlArg::F_GETPIPE_SZ)? != size {
        fcntl(pipe, FcntlArg::F_SETPIPE_SZ(size)).map_err(|e| {
            Error::from(e).context(format!("giving a pipe room for {size} bytes (fs.pipe-max-size?)"))
        })?;
    }
    Ok(())
}

/// Writes `data` into a pipe, in packets of those lengths if there are any.
fn fill(pipe: BorrowedFd<'_>, data: &[u8], packets: &[u32]) -> Result<()> {
    let put = |bytes: &[u8]| -> Result<()> {
        let n = write(pipe, bytes).map_err(|e| Error::from(e).context("writing what was in it"))?;
        if n != bytes.len() {
            return Err(Error::failure(format!("only {n} of {} bytes go into it", bytes.len())));
        }
        Ok(())
    };
    if packets.is_empty() {
        return if data.is_empty() { Ok(()) } else { put(data) };
    }
    let flags = call::fcntl(pipe, libc::F_GETFL, 0)?;
    call::fcntl(pipe, libc::F_SETFL, flags | libc::O_DIRECT)?;
    let mut rest = data;
    for len in packets {
        let (packet, tail) = rest
            .split_at_checked(*len as usize)
            .ok_or_else(|| Error::invalid_argument("the statefile is damaged: packets of a pipe"))?;
        put(packet)?;
        rest = tail;
    }
    call::fcntl(pipe, libc::F_SETFL, flags)?;
    Ok(())
}

fn open_fifo(ctx: &Context, ends: &[Id]) -> Result<Vec<(Id, OwnedFd)>> {
    let states: Vec<(Id, &FileState)> =
        ends.iter().map(|id| Ok((*id, file(&ctx.state, *id)?))).collect::<Result<_>>()?;
    let Some((_, first)) = states.first() else { return Ok(Vec::new()) };
    let FileKind::Fifo { file: path, size, deleted, .. } = &first.kind else { return Ok(Vec::new()) };
    let procfs = ctx.procfs.root();
    let who = name_of(&ctx.state, ends[0]);
    in_container(ctx, first.container, libc::CLONE_NEWNS, || {
        let node = if *deleted {
            super::objects::make_fifo(path)?
        } else {
            open_checked(path).map_err(|e| e.context(format!("{}, which was {who}", path.path)))?
        };
        // With both directions open nobody has to be waited for.
        let holder = reopen(procfs, node.as_fd(), libc::O_RDWR | libc::O_NONBLOCK)?;
        resize(holder.as_fd(), *size)?;
        let mut made = Vec::with_capacity(states.len());
        for (id, state) in &states {
            let flags = state.flags & (libc::O_ACCMODE | libc::O_DIRECT) | libc::O_NONBLOCK;
            made.push((*id, reopen(procfs, node.as_fd(), flags)?));
            if let FileKind::Fifo { data, packets, .. } = &state.kind {
                fill(holder.as_fd(), data, packets)?;
            }
        }
        Ok(made)
    })
    .map_err(|e| e.context(format!("opening FIFO {}", path.path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::read;

    #[test]
    fn data_and_packets_come_out_as_they_went_in() {
        let (r, w) = pipe2(OFlag::O_NONBLOCK).unwrap();
        resize(w.as_fd(), 1 << 20).unwrap();
        let data: Vec<u8> = (0..500_000u32).map(|i| i as u8).collect();
        fill(w.as_fd(), &data, &[]).unwrap();
        let mut out = vec![0; 600_000];
        assert_eq!(read(&r, &mut out), Ok(data.len()));
        assert!(out[..data.len()] == data);
        fill(w.as_fd(), b"abcdef", &[1, 3, 2]).unwrap();
        for packet in [&b"a"[..], b"bcd", b"ef"] {
            let n = read(&r, &mut out).unwrap();
            assert_eq!(&out[..n], packet);
        }
        assert!(fill(w.as_fd(), b"abc", &[2, 2]).unwrap_err().message.contains("damaged"));
    }
}
