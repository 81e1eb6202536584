//! Contexts of asynchronous I/O (io_setup(2)).
#![forbid(unsafe_code)]

use crate::checkpoint::dump::aio::{EVENT, HEADER};
use crate::checkpoint::remote::{Arg, Batch, Region, Tracee};
use crate::checkpoint::state::{AioRing, MmState, VmaKind};
use airlock_wire::error::{Error, Result};

/// Makes the contexts anew, moves their rings to where the program knows them, and puts in what nobody has fetched.
///
/// # Errors
/// `EAGAIN` at the system's limit (`fs.aio-max-nr`); damaged images.
pub(super) fn contexts(task: &mut Tracee, region: &Region, mm: &MmState) -> Result<()> {
    for ring in &mm.aio {
        let vma = mm.vmas.iter().find(|v| v.start == ring.id && v.kind == VmaKind::Aio);
        let len = vma.map_or(0, |v| v.end.saturating_sub(v.start));
        if (HEADER + ring.unread.len()) as u64 > len || ring.unread.len() % EVENT != 0 {
            return Err(Error::invalid_argument("the statefile is damaged: a context of asynchronous I/O"));
        }
        one(task, region, ring, len)
            .map_err(|e| e.context(format!("making the context of asynchronous I/O at {:#x}", ring.id)))?;
    }
    Ok(())
}

fn one(task: &mut Tracee, region: &Region, ring: &AioRing, len: u64) -> Result<()> {
    let mut batch = Batch::new();
    let context = batch.space(8);
    batch.must(libc::SYS_io_setup, [ring.events.into(), context]);
    let ran = batch.run(task, region)?;
    ran.check()?;
    let made = ran.word(context);
    fill(task, region, made, ring.unread.len() / EVENT)?;
    let mut batch = Batch::new();
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    batch.must(libc::SYS_mremap, [made.into(), len.into(), len.into(), flags.into(), ring.id.into()]);
    batch.run(task, region)?.check()?;
    task.mem().write(ring.id + HEADER as u64, &ring.unread)
}

/// Has the kernel count so many events, of requests that read nothing. What they say is then overwritten.
fn fill(task: &mut Tracee, region: &Region, context: u64, events: usize) -> Result<()> {
    const AT_A_TIME: usize = 128;
    if events == 0 {
        return Ok(());
    }
    let mut batch = Batch::new();
    let name = batch.text("");
    let file = batch.must(libc::SYS_memfd_create, [name, Arg::NULL]);
    let number = batch.run(task, region)?.get(file)?;
    for first in (0..events).step_by(AT_A_TIME) {
        let count = (events - first).min(AT_A_TIME);
        let mut batch = Batch::new();
        // `struct iocb`: IOCB_CMD_PREAD is 0, and so is everything else but the descriptor.
        let mut request = [0; 64];
        request[20..24].copy_from_slice(&(number as u32).to_ne_bytes());
        let request = batch.data(&request);
        let list = batch.space(8 * count);
        (0..count).for_each(|n| batch.pointer(list.at(8 * n), request));
        let call = batch.must(libc::SYS_io_submit, [context.into(), count.into(), list]);
        let submitted = batch.run(task, region)?.get(call)?;
        if submitted != count as u64 {
            return Err(Error::failure(format!("{submitted} of {count} requests were taken")));
        }
    }
    let mut batch = Batch::new();
    batch.must(libc::SYS_close, [number.into()]);
    batch.run(task, region)?.check()
}
