//! Taking over the inits that wait for their start.
#![forbid(unsafe_code)]

use super::context::{Context, Stub};
use super::mm;
use crate::checkpoint::machine;
use crate::checkpoint::remote::fdpass::{self, Channel};
use crate::checkpoint::remote::{Arg, Batch, Options, Region, Tracee};
use crate::checkpoint::state::Machine;
use crate::sys::process;
use airlock_wire::error::{Error, Result};
use std::time::{Duration, Instant};

/// An init that waits for orders stops at once.
const STOP: Duration = Duration::from_secs(10);

/// Stops the inits, maps a region at one and the same address into all of them, and takes out of them what came from
/// outside. Their other descriptors are closed, so that the loader sees the end of the channel to each.
///
/// # Errors
/// An init is gone, or was taken over by somebody else; there is no room for the region.
pub fn take_over(ctx: &mut Context) -> Result<()> {
    let count = ctx.state.containers.len();
    ctx.stubs = std::iter::repeat_with(|| None).take(count).collect();
    ctx.channels = std::iter::repeat_with(|| None).take(count).collect();
    let deadline = Instant::now() + STOP;
    let mut stopped = Vec::new();
    for container in &ctx.order.containers {
        let failed = |e: Error| e.context(format!("taking over the init of container {:?}", container.cid));
        let mut seizing = Tracee::seize_begin(container.init, Options { kill: true }).map_err(failed)?;
        stopped.push(seizing.wait(deadline).map_err(failed)?);
    }
    let mut taken = Vec::new();
    for tracee in &stopped {
        let maps = ctx.procfs.read_whole(tracee.tid(), "maps")?;
        let maps = String::from_utf8_lossy(&maps);
        taken.extend(maps.lines().filter_map(range));
        check_vdso(&ctx.state.machine, tracee, &maps)?;
    }
    let len = Region::DATA + 4096;
    let at = mm::free_address(ctx.state.mms.iter(), &taken, len).ok_or_else(|| {
        Error::failure("the saved programs leave no room in their address spaces to build them through")
    })?;
    let orders = ctx.order.containers.clone();
    for (mut tracee, order) in stopped.into_iter().zip(orders) {
        // An init with a seccomp listener has its filter already.
        let _ = tracee.suspend_seccomp(true);
        let region = Region::map(&mut tracee, Some(at))?;
        for number in &order.origin {
            ctx.externals.insert((order.image, *number), fdpass::take(tracee.tid(), *number)?);
        }
        let (channel, link) = Channel::open(&mut tracee, &region)?;
        close_all_but(&mut tracee, &region, link.number)?;
        let pidfd = process::pidfd_open(order.init)?;
        let index = order.image as usize;
        let (Some(stub), Some(slot)) = (ctx.stubs.get_mut(index), ctx.channels.get_mut(index)) else {
            return Err(Error::invalid_argument(format!("the image has no container {index}")));
        };
        *stub = Some(Stub { tracee, pidfd, region, link });
        *slot = Some(channel);
    }
    Ok(())
}

fn close_all_but(tracee: &mut Tracee, region: &Region, number: i32) -> Result<()> {
    let mut batch = Batch::new();
    if number > 0 {
        batch.must(libc::SYS_close_range, [Arg::NULL, Arg::from(number - 1), Arg::NULL]);
    }
    batch.must(libc::SYS_close_range, [Arg::from(number + 1), Arg::from(u32::MAX), Arg::NULL]);
    batch.run(tracee, region)?.check().map_err(|e| e.context("closing an init's descriptors"))
}

/// The programs call into the kernel's vdso at addresses that they have looked up long ago.
fn check_vdso(saved: &Machine, tracee: &Tracee, maps: &str) -> Result<()> {
    let Some((start, end)) = maps.lines().find(|l| l.ends_with("[vdso]")).and_then(range) else {
        return Ok(());
    };
    let here = machine::vdso_digest(&tracee.mem().bytes(start, (end - start) as usize)?);
    if saved.vdso_digest.is_empty() || saved.vdso_digest == here {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "the image was made on Linux {}, whose vdso has its functions elsewhere than that of this kernel: its programs would \
         jump into nothing; restore it where it was made, or on the same kernel",
        saved.kernel
    )))
}

/// The address range that a line of `/proc/pid/maps` begins with.
fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}
