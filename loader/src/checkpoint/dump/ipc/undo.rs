//! SEM_UNDO: what a process has done to semaphores, and is undone when it ends. The kernel does not tell; but a task that
//! leaves the list it shares with its threads (unshare(2), CLONE_SYSVSEM) has it undone at once. So every task is made to
//! leave, the change is looked at, and the same operations are done again.
#![forbid(unsafe_code)]

use super::Space;
use crate::checkpoint::dump::context::Context;
use crate::checkpoint::ipc::redo;
use crate::checkpoint::state::Id;
use crate::sys::ipc;
use airlock_wire::error::{Error, Result};

const CLONE_SYSVSEM: u64 = 0x40000;

/// Finds out what the processes of one IPC namespace have to undo, and leaves everything as it was.
pub(super) fn find(ctx: &mut Context, space: &Space) -> Result<()> {
    let sets: Vec<usize> = (0..ctx.state.ipc.semaphores.len())
        .filter(|i| ctx.state.ipc.semaphores[*i].perm.container == space.container)
        .collect();
    if sets.is_empty() {
        return Ok(());
    }
    let inside = |container: Id| {
        ctx.state.containers.get(container as usize).is_some_and(|c| c.ipc_owner == space.container)
    };
    let procs: Vec<usize> = (0..ctx.procs.len())
        .filter(|i| inside(ctx.procs[*i].container) && !ctx.procs[*i].is_zombie())
        .collect();
    for index in procs {
        let Some(proc) = ctx.procs.get_mut(index) else { continue };
        if ctx.order.resume && proc.threads.len() > 1 {
            // Its threads would not share a list any more.
            let pid = proc.ns_pid;
            ctx.warn(format!(
                "what process {pid} has done to semaphores with SEM_UNDO is not undone when its copy ends"
            ));
            continue;
        }
        for thread in &mut proc.threads {
            // A filter of the program's own may forbid it.
            let _ = thread.syscall(libc::SYS_unshare, [CLONE_SYSVSEM, 0, 0, 0, 0, 0])?;
        }
        for set in &sets {
            let Some(semaphores) = ctx.state.ipc.semaphores.get(*set).cloned() else { continue };
            let (id, before) = (semaphores.perm.id, semaphores.values.clone());
            let read = || Ok(ipc::sem_values(id, before.len())?);
            let after = space.enter(read).map_err(|e: Error| e.context(format!("semaphore set {id}")))?;
            let undone: Vec<i16> =
                after.iter().zip(&before).map(|(a, b)| (i32::from(*a) - i32::from(*b)) as i16).collect();
            if undone.iter().all(|change| *change == 0) {
                continue;
            }
            let Some(proc) = ctx.procs.get_mut(index) else { continue };
            let (pid, Some((tracee, region))) = (proc.ns_pid, proc.injector()) else { continue };
            // What was undone has changed the values already: they only have to go back.
            redo::process(tracee, &region, id, &undone)
                .map_err(|e| e.context(format!("SEM_UNDO of process {pid} on semaphore set {id}")))?;
            if let Some(semaphores) = ctx.state.ipc.semaphores.get_mut(*set) {
                semaphores.undo.push((pid, undone));
            }
        }
    }
    Ok(())
}
