//! A look at large address spaces before they stand still.
//!
//! For smaps the kernel goes through every page table entry: 35 to 80 ms for 1 GB in small pages, where the fork of a shadow
//! takes 20 to 30 and maps 0.1. So it is read while the program still runs, if that shall go on while it is saved. In the
//! standstill maps tells whether it still has the same mappings; flags alone may have changed, which the shadow's smaps
//! tells when the program runs again ([`confirm`]).
#![forbid(unsafe_code)]

use super::context::Context;
use super::smaps::{self, RawVma};
use crate::checkpoint::pages::PAGE;
use crate::checkpoint::remote::task_list;
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Kind, Result};
use std::collections::BTreeMap;

/// Resident bytes from which on the look is worth it.
const LARGE: u64 = 64 << 20;

/// Flags that a clone does not have from its parent: locks, watched faults; and the kernel's own `sd`.
const OWN: [&[u8; 2]; 6] = [b"lo", b"lf", b"um", b"uw", b"ui", b"sd"];

/// Flags that say what a program advises, and nothing about what its memory is.
const ADVICE: [&[u8; 2]; 6] = [b"rr", b"sr", b"mg", b"hg", b"nh", b"dd"];

/// What was read, by pid.
#[derive(Debug, Default)]
pub struct Early(BTreeMap<i32, String>);

impl Early {
    /// Reads the mappings of large processes, which run. None if the containers shall not go on while they are saved.
    pub fn look(ctx: &Context) -> Self {
        let order = &ctx.order;
        if !order.resume || order.paused || order.dry_run {
            return Self::default();
        }
        let inits: Vec<i32> = order.containers.iter().map(|c| c.init).collect();
        let resident = |pid: i32| {
            let statm = ctx.procfs.read(pid, "statm").ok()?;
            statm.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let large = |pid: &i32| resident(*pid).is_some_and(|pages| pages * PAGE >= LARGE);
        let read = |pid: i32| {
            let text = ctx.procfs.read_whole(pid, "smaps").ok()?;
            Some((pid, String::from_utf8_lossy(&text).into_owned()))
        };
        // Whoever is gone by now is not missed.
        let pids = task_list::below(&ctx.procfs, &inits).unwrap_or_default();
        Self(pids.into_iter().filter(large).filter_map(read).collect())
    }

    /// The mappings of a process that stands still by now, if they were looked at and are the same; those that a clone would
    /// not have must be known for certain.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn take(&mut self, procfs: &ProcFs, pid: i32) -> Result<Option<Vec<RawVma>>> {
        let Some(text) = self.0.remove(&pid) else { return Ok(None) };
        let maps = procfs.read_whole(pid, "maps")?;
        if !heads(&text).eq(String::from_utf8_lossy(&maps).lines()) {
            return Ok(None);
        }
        let mut vmas = smaps::parse(&text)?;
        let locked: u64 = vmas.iter().filter(|v| v.has(b"lo")).map(|v| v.end - v.start).sum();
        let known = procfs.status_field(pid, "VmLck")?;
        let known = known.and_then(|v| v.trim_end_matches(" kB").trim().parse::<u64>().ok());
        if known != Some(locked >> 10) || vmas.iter().any(|v| v.has(b"dc") || v.has(b"wf")) {
            return Ok(None);
        }
        // It may have touched any of them since.
        vmas.iter_mut().for_each(|v| v.rss = v.rss.max(PAGE));
        Ok(Some(vmas))
    }
}

/// The lines of smaps that maps has as well.
fn heads(smaps: &str) -> impl Iterator<Item = &str> {
    smaps.lines().filter(|l| !l.as_bytes().first().is_some_and(u8::is_ascii_uppercase))
}

/// Advice about the mapping at an address that is not what it was at the early look: all there is now.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// Index of the address space among those that were given.
    pub space: usize,
    /// First address of the mapping.
    pub start: u64,
    /// As [`super::mm::advice`] has it.
    pub advice: Vec<i32>,
}

/// [`confirm`] for processes and what was seen of each, on a thread of its own while `work` is done.
///
/// # Errors
/// As [`confirm`], and as `work`.
pub fn confirm_while(
    procfs: &ProcFs,
    early: &[(i32, &[RawVma])],
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<Changed>> {
    let all = || -> Result<Vec<Changed>> {
        let mut changed = Vec::new();
        for (space, (pid, vmas)) in early.iter().enumerate() {
            let found = confirm(procfs, *pid, vmas)?;
            changed.extend(found.into_iter().map(|(start, advice)| Changed { space, start, advice }));
        }
        Ok(changed)
    };
    if early.is_empty() {
        return work().map(|()| Vec::new());
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("confirm".to_owned()).spawn_scoped(scope, all);
        work()?;
        match thread {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err(Error::failure("a thread panicked"))),
            Err(_) => all(),
        }
    })
}

/// Compares what [`Early::take`] gave with the clone (or process) `pid`. Answers the mappings (by first address) about which
/// the program had given other advice in the moment before it stood still, and that advice.
///
/// # Errors
/// It had changed something that the clone's memory depends on: what was saved is not to be used.
pub fn confirm(procfs: &ProcFs, pid: i32, early: &[RawVma]) -> Result<Vec<(u64, Vec<i32>)>> {
    let text = procfs.read_whole(pid, "smaps")?;
    let now = smaps::parse(&String::from_utf8_lossy(&text))?;
    let flags = |vma: &RawVma| -> Vec<[u8; 2]> {
        let tells = |f: &&[u8; 2]| !OWN.contains(f) && !ADVICE.contains(f);
        vma.flags.iter().filter(tells).copied().collect()
    };
    let mut changed = Vec::new();
    for then in early {
        let place = now.partition_point(|v| v.end <= then.start);
        let now = now.get(place).filter(|v| v.start <= then.start);
        let same =
            |now: &&RawVma| flags(now) == flags(then) && (now.prot, now.pkey) == (then.prot, then.pkey);
        let Some(now) = now.filter(same) else {
            return Err(Error::new(
                Kind::InvalidState,
                format!(
                    "a program changed its memory at {:#x} in the moment before it was stopped: try again",
                    then.start
                ),
            ));
        };
        let advice = super::mm::advice(now);
        if advice != super::mm::advice(then) {
            changed.push((then.start, advice));
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::dump::context::Context;
    use crate::checkpoint::order::DumpOrder;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    /// Maps 1 MB and gives it the advice whose number comes in.
    const PROGRAM: &str = "
import mmap, sys
m = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print('ready', flush=True)
for line in sys.stdin:
    m.madvise(int(line))
    print('ready', flush=True)
";

    struct Program(Child, BufReader<std::process::ChildStdout>);

    impl Program {
        fn start() -> Self {
            let mut command = Command::new("python3");
            command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let output = BufReader::new(child.stdout.take().unwrap());
            let mut program = Self(child, output);
            program.ready();
            program
        }
        fn ready(&mut self) {
            let mut line = String::new();
            self.1.read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
        }
        fn advise(&mut self, advice: i32) {
            writeln!(self.0.stdin.as_mut().unwrap(), "{advice}").unwrap();
            self.ready();
        }
        fn pid(&self) -> i32 {
            self.0.id() as i32
        }
    }

    impl Drop for Program {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn procfs() -> ProcFs {
        ProcFs::new(std::fs::File::open("/proc").unwrap().into())
    }

    fn looked(pid: i32) -> Early {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        Early(BTreeMap::from([(pid, text)]))
    }

    #[test]
    fn what_has_not_changed_is_confirmed_and_what_has_is_not() {
        if Command::new("python3").arg("-V").output().is_err() {
            eprintln!("skipped: needs python3");
            return;
        }
        let (mut program, procfs) = (Program::start(), procfs());
        let mut early = looked(program.pid());
        let vmas = early.take(&procfs, program.pid()).unwrap().unwrap();
        assert!(vmas.iter().all(|v| v.rss > 0) && vmas.len() > 10);
        assert!(early.take(&procfs, program.pid()).unwrap().is_none(), "it was taken");
        assert_eq!(confirm(&procfs, program.pid(), &vmas).unwrap(), []);
        program.advise(libc::MADV_RANDOM);
        let changed = confirm(&procfs, program.pid(), &vmas).unwrap();
        assert_eq!(changed.iter().map(|c| c.1.as_slice()).collect::<Vec<_>>(), [[libc::MADV_RANDOM]]);
        assert!(vmas.iter().any(|v| v.start == changed[0].0));
        program.advise(libc::MADV_WIPEONFORK);
        let told = confirm(&procfs, program.pid(), &vmas).unwrap_err();
        assert!(told.message.contains("try again"), "{told}");
        const KEEPONFORK: i32 = 19;
        program.advise(KEEPONFORK);
        let mut early = looked(program.pid());
        program.advise(libc::MADV_DONTFORK);
        // Flags of a mapping that merges with none: only the clone will tell.
        assert!(early.take(&procfs, program.pid()).unwrap().is_some());
        assert!(looked(program.pid()).take(&procfs, program.pid()).unwrap().is_none(), "a clone lacks it");
    }

    #[test]
    fn other_mappings_are_looked_at_again() {
        let (procfs, pid) = (procfs(), std::process::id() as i32);
        let mut early = looked(pid);
        early.0.get_mut(&pid).unwrap().push_str("7fff00000000-7fff00001000 rw-p 00000000 00:00 0\n");
        assert!(early.take(&procfs, pid).unwrap().is_none());
    }

    #[test]
    fn nothing_is_looked_at_when_programs_stay_stopped() {
        let ctx = Context::new(DumpOrder::default(), procfs(), Vec::new());
        assert!(Early::look(&ctx).0.is_empty());
    }
}
