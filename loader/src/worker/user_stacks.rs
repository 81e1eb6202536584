//! User-space stacks of container threads.
//!
//! A thread that waits in the kernel is not touched: `/proc/<pid>/task/<tid>/syscall` (proc(5)) tells where it is, and what it
//! saved on its stack is there to read. One that runs, or whose stack needs its frame pointer, is stopped for the time it takes
//! to read it (ptrace(2), no signal), and goes on as if nothing had been.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker};
use crate::checkpoint::remote::{Options, Tracee, use_procfs};
use crate::procfs::{ProcFs, Stat};
use crate::stacks::{self, Files, Frame, Names, Space};
use crate::sys::ptrace;
use airlock_wire::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long a thread may take to stop. One that does not is frozen or in an uninterruptible wait.
const PATIENCE: Duration = Duration::from_millis(500);
/// Processor time for one task.
const EFFORT: Duration = Duration::from_secs(20);
/// Text for one answer, in bytes.
const LONGEST_ANSWER: usize = 8 << 20;

/// Walks the user-space stacks of threads, given as (pid, tid) in the sandbox's pid namespace. Takes no descriptors. Answers in
/// the same order: lines, innermost function first, or why there are none.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct UserStacks(pub Vec<(i32, i32)>);

impl Task for UserStacks {
    type Reply = Vec<std::result::Result<Vec<String>, String>>;

    fn run(self, worker: &Worker, _: Vec<OwnedFd>) -> Result<Done<Self::Reply>> {
        stacks::limit_effort(EFFORT);
        use_procfs(worker.procfs.root().try_clone_to_owned()?);
        let mut walker = Walker { procfs: &worker.procfs, files: Files::default(), spaces: HashMap::new() };
        let mut names = Names::default();
        let mut written = 0;
        let mut all = Vec::new();
        for (pid, tid) in self.0 {
            if written > LONGEST_ANSWER {
                all.push(Err(
                    "left out: the answer is long enough; ask for one container at a time".to_owned()
                ));
                continue;
            }
            let lines = walker.walk(pid, tid).map(|(addresses, whole, note)| {
                let mut lines = Vec::new();
                lines.extend(note.map(str::to_owned));
                if let Some(space) = walker.spaces.get(&pid) {
                    lines.extend(addresses.iter().map(|a| names.place(walker.procfs, space, *a).to_string()));
                }
                if !whole {
                    lines.push("… (the rest of the stack cannot be walked)".to_owned());
                }
                written += lines.iter().map(String::len).sum::<usize>();
                lines
            });
            all.push(lines.map_err(|e| e.to_string()));
        }
        Ok(Done::with(all))
    }
}

struct Walker<'a> {
    procfs: &'a ProcFs,
    files: Files,
    spaces: HashMap<i32, Space>,
}

/// Addresses, whether they are the whole stack, and what else is to be said.
type Walked = (Vec<u64>, bool, Option<&'static str>);

impl Walker<'_> {
    fn walk(&mut self, pid: i32, tid: i32) -> Result<Walked> {
        // Before anything is stopped: this takes longer than all the rest.
        if !self.spaces.contains_key(&pid) {
            let space =
                Space::read(self.procfs, pid, &mut self.files).map_err(|e| e.context("its memory map"))?;
            self.spaces.insert(pid, space);
        }
        let space = self.spaces.get_mut(&pid).ok_or_else(|| Error::failure("no memory map"))?;
        let place = || self.procfs.read(pid, &format!("task/{tid}/syscall"));
        let before = place().ok();
        let waits = before.as_deref().and_then(waiting_at);
        if let Some(frame) = waits {
            let (addresses, whole) = space.unwind(frame, memory(tid));
            if whole && place().ok() == before {
                return Ok((addresses, true, None));
            }
        }
        match Tracee::seize_begin(tid, Options::default()).and_then(|mut s| s.wait(Instant::now() + PATIENCE))
        {
            Ok(tracee) => {
                let regs = tracee.regs()?;
                let frame = Frame { ip: regs.ip(), sp: regs.sp(), bp: regs.frame_pointer() };
                let (addresses, whole) = space.unwind(frame, memory(tid));
                // It may be killed meanwhile; its stack is worth showing all the same.
                let _ = tracee.detach(0);
                Ok((addresses, whole, None))
            }
            Err(e) => match waits.filter(|_| sleeps_soundly(self.procfs, pid, tid)) {
                Some(frame) => {
                    let (addresses, whole) = space.unwind(frame, memory(tid));
                    Ok((addresses, whole, Some("(frozen, or in an uninterruptible wait)")))
                }
                None => Err(e),
            },
        }
    }
}

fn sleeps_soundly(procfs: &ProcFs, pid: i32, tid: i32) -> bool {
    let stat = procfs.read(pid, &format!("task/{tid}/stat")).ok();
    stat.and_then(|s| Stat::parse(&s)).is_some_and(|s| s.state == 'D')
}

/// Where a thread waits, from the text of its `syscall` file: `number arguments… sp ip`, or `-1 sp ip` outside of a call.
fn waiting_at(text: &str) -> Option<Frame> {
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let hex = |field: &str| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok();
    let [.., sp, ip] = fields.as_slice() else { return None };
    Some(Frame { ip: hex(ip)?, sp: hex(sp)?, bp: Frame::UNKNOWN })
}

/// Reads words of a thread's memory, a page at a time.
fn memory(tid: i32) -> impl FnMut(u64) -> Option<u64> {
    const PAGE: u64 = 4096;
    let mut page = (u64::MAX, [0; PAGE as usize]);
    move |address| {
        let (start, into) = (address & !(PAGE - 1), (address & (PAGE - 1)) as usize);
        if start != page.0 {
            page.0 = u64::MAX;
            if ptrace::read_memory(tid, start, &mut page.1).ok()? < page.1.len() {
                return None;
            }
            page.0 = start;
        }
        Some(u64::from_ne_bytes(page.1.get(into..into + 8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_place_of_a_wait() {
        let waits = waiting_at("230 0x0 0x0 0x7ffe 0x0 0x0 0x3e8 0x7ffe10 0x7f3210\n").unwrap();
        assert_eq!(waits, Frame { ip: 0x7f_3210, sp: 0x7f_fe10, bp: Frame::UNKNOWN });
        assert_eq!(waiting_at("-1 0x10 0x20").map(|f| (f.sp, f.ip)), Some((0x10, 0x20)));
        assert_eq!(waiting_at("running\n"), None);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,100}") {
            let _ = waiting_at(&text);
        }
    }
}
