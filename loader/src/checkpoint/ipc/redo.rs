//! Operations on semaphores that are to be undone at a process' end (SEM_UNDO).
#![forbid(unsafe_code)]

use crate::checkpoint::remote::{Arg, Batch, Region, Tracee};
use airlock_wire::error::Result;

/// Has a stopped process do operations that its end will undo by adding `undo` to the semaphores of set `id`. The values
/// change by the opposite.
///
/// # Errors
/// `ERANGE`, or `EAGAIN` when a value would become negative.
pub fn process(tracee: &mut Tracee, region: &Region, id: i32, undo: &[i16]) -> Result<()> {
    const SEM_UNDO: i16 = 0x1000;
    let mut operations = Vec::new();
    let mut count = 0u64;
    for (number, change) in undo.iter().enumerate().filter(|(_, c)| **c != 0) {
        // `struct sembuf`
        operations.extend((number as u16).to_ne_bytes());
        operations.extend(change.wrapping_neg().to_ne_bytes());
        operations.extend((SEM_UNDO | libc::IPC_NOWAIT as i16).to_ne_bytes());
        count += 1;
    }
    let mut batch = Batch::new();
    // The kernel takes 500 operations at once; sets are shorter as a rule.
    for part in operations.chunks(6 * 400) {
        let data = batch.data(part);
        batch.must(libc::SYS_semop, [Arg::from(id), data, Arg::from(part.len() / 6)]);
    }
    if count == 0 {
        return Ok(());
    }
    batch.run(tracee, region)?.check()
}
