//! All address spaces: mapped by their tasks, filled by the page engine with all cores, finished by their tasks.
#![forbid(unsafe_code)]

use super::context::Context;
use super::mm::{self, MapFds};
use super::source::Source;
use crate::checkpoint::agent::Link;
use crate::checkpoint::pages::background::{self, Waiting};
use crate::checkpoint::pages::descriptor::{self, Purpose};
use crate::checkpoint::pages::{self, Layout, Memory, Object, Range, Target};
use crate::checkpoint::remote::fdpass::Pass;
use crate::checkpoint::remote::{Arg, Batch};
use crate::checkpoint::state::{Id, MmState, ShmemKind, Vma, VmaKind};
use airlock_wire::error::{Error, Result};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// An address space on its way.
struct Space {
    /// Index of the process that builds it.
    process: usize,
    mm: Id,
    layout: Layout,
    content: Vec<(u64, u64)>,
    ranges: Vec<Range>,
    memory: Memory,
    uffd: Option<OwnedFd>,
    /// What follows in the background, and the descriptor by which faults are answered.
    later: Option<(Layout, OwnedFd)>,
    /// Numbers of the descriptors that mapping needs, in the task.
    numbers: BTreeMap<Wanted, i32>,
}

/// What a mapping needs a descriptor of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    File(Id),
    Shmem(Id),
    /// `/dev/userfaultfd`.
    Device,
}

/// Builds the address spaces of all processes, contents and all. Answers how many pages came, and with
/// [`crate::checkpoint::order::RestoreOrder::background`] those that shall follow.
///
/// # Errors
/// What cannot be mapped or filled, by address.
pub fn build(link: &Link, ctx: &mut Context, source: &Source) -> Result<(u64, Vec<Waiting>)> {
    let mut spaces = Vec::new();
    for index in 0..ctx.procs.len() {
        let Some(mm) = builds(ctx, index) else { continue };
        let above = taken(ctx, &spaces, index);
        spaces.push(map(ctx, source, index, mm, above)?);
    }
    let targets: Vec<Target<'_>> = spaces
        .iter()
        .map(|s| Target {
            object: Object::Memory(s.mm),
            layout: &s.layout,
            memory: &s.memory,
            ranges: &s.ranges,
            uffd: s.uffd.as_ref().map(AsFd::as_fd),
        })
        .collect();
    let progress = |done: u64, total: u64| link.progress("reading memory", done, total);
    let filled = pages::fill(&source.chain, &targets, 0, Some(&progress))?;
    for space in &spaces {
        finish(ctx, space)?;
    }
    drop(targets);
    let waiting = |space: Space| {
        let (layout, uffd) = space.later?;
        let (object, pid) = (Object::Memory(space.mm), space.memory.pid());
        Some(Waiting { object, pid, uffd, layout, ranges: space.ranges })
    };
    Ok((filled.pages, spaces.into_iter().filter_map(waiting).collect()))
}

/// The address space that process `index` has to build: none for a zombie, and for one that shares its parent's.
fn builds(ctx: &Context, index: usize) -> Option<Id> {
    let process = ctx.state.processes.get(index)?;
    ctx.procs.get(index)?.as_ref().filter(|p| !p.threads.is_empty())?;
    process.mm.filter(|_| !process.shares_mm_with_parent)
}

/// The highest number that others put into the descriptor table of process `index`, which they may share.
fn taken(ctx: &Context, spaces: &[Space], index: usize) -> i32 {
    let table = |process: usize| Some(ctx.state.processes.get(process)?.threads.first()?.fd_table);
    let sharing = spaces.iter().filter(|s| table(s.process) == table(index));
    sharing.flat_map(|s| s.numbers.values()).copied().max().unwrap_or(-1)
}

fn map(ctx: &mut Context, source: &Source, index: usize, id: Id, above: i32) -> Result<Space> {
    let layout = source.chain.layout(Object::Memory(id))?;
    let content: Vec<(u64, u64)> = layout.spans().into_iter().map(|s| (s.start, s.end)).collect();
    let numbers = pass_files(ctx, source, index, id, above)?;
    let mut warnings = Vec::new();
    let mut fds = MapFds::default();
    for (wanted, number) in &numbers {
        match wanted {
            Wanted::File(id) => fds.files.insert(*id, *number),
            Wanted::Shmem(id) => fds.shmems.insert(*id, *number),
            Wanted::Device => None,
        };
    }
    fds.segments = ctx.segments.iter().map(|(id, segment)| (*id, *segment)).collect();
    let state = &ctx.state;
    let mm = state.mms.get(id as usize).ok_or_else(|| Error::failure("no such address space"))?;
    let Some(proc) = ctx.procs.get_mut(index).and_then(Option::as_mut) else {
        return Err(Error::failure("a process was not made"));
    };
    let (tracee, region) = proc.injector()?;
    mm::clear(tracee, &region, mm)?;
    mm::check_vdso(&String::from_utf8_lossy(&ctx.procfs.read_whole(tracee.tid(), "maps")?), mm)?;
    mm::map(tracee, &region, mm, &state.shmems, &fds, &content)?;
    let ranges = ranges(mm);
    let (mut layout, mut later) = (layout, None);
    if ctx.order.background {
        let locked: Vec<_> = mm.vmas.iter().filter(|v| v.locked != 0).map(|v| v.start..v.end).collect();
        let (lazy, rest) = background::split(&layout, &ranges, &locked);
        if !lazy.is_empty() {
            let device = numbers.get(&Wanted::Device).copied();
            match descriptor::make(tracee, Purpose::Faults, device)? {
                Some(uffd) => (layout, later) = (rest, Some((lazy, uffd))),
                None => warnings.push(
                    "memory was restored before the program ran: to answer its faults and follow its forks takes CAP_SYS_PTRACE in the initial user namespace (userfaultfd(2))",
                ),
            }
        }
    }
    // One descriptor in an address space is enough of trouble.
    let uffd = if later.is_none() && pages::wants_descriptor(&layout, &ranges) {
        descriptor::make(tracee, Purpose::Fill, None)?
    } else {
        None
    };
    let memory = Memory::open(&ctx.procfs, tracee.tid())?;
    warnings.into_iter().for_each(|w| ctx.warn(w));
    Ok(Space { process: index, mm: id, layout, content, ranges, memory, uffd, later, numbers })
}

/// Private mappings, as the page engine wants them.
fn ranges(mm: &MmState) -> Vec<Range> {
    let range = |vma: &Vma| Range {
        start: vma.start,
        end: vma.end,
        huge: vma.advice.contains(&libc::MADV_HUGEPAGE),
        page_size: vma.huge_page_size,
        backed: !matches!(vma.kind, VmaKind::Anonymous),
        file_pages: false,
    };
    mm.vmas.iter().filter(|v| !v.shared && !v.droppable).map(range).collect()
}

/// Sends the files and memory objects that mappings show, and the program, into the task.
fn pass_files(
    ctx: &mut Context,
    source: &Source,
    index: usize,
    id: Id,
    above: i32,
) -> Result<BTreeMap<Wanted, i32>> {
    let Some(mm) = ctx.state.mms.get(id as usize) else {
        return Err(Error::failure("no such address space"));
    };
    let mut wanted: Vec<Wanted> = mm.exe.map(Wanted::File).into_iter().collect();
    for vma in &mm.vmas {
        match vma.kind {
            VmaKind::File(id) => wanted.push(Wanted::File(id)),
            VmaKind::Shmem(id) => {
                let kind = ctx.state.shmems.get(id as usize).map(|s| s.kind);
                if !matches!(kind, Some(ShmemKind::SysV { .. })) {
                    wanted.push(Wanted::Shmem(id));
                }
            }
            _ => {}
        }
    }
    if ctx.order.background && source.device.is_some() {
        wanted.push(Wanted::Device);
    }
    wanted.sort_unstable();
    wanted.dedup();
    let Some(proc) = ctx.procs.get_mut(index).and_then(Option::as_mut) else {
        return Err(Error::failure("a process was not made"));
    };
    let container = proc.container as usize;
    let (Some(channel), Some(mut end)) = (ctx.channels.get(container).and_then(Option::as_ref), proc.link)
    else {
        return Err(Error::failure("a process has no channel for descriptors"));
    };
    let mut numbers = BTreeMap::new();
    let mut passes = Vec::with_capacity(wanted.len());
    // Descriptors of its own come later: it has its end of the channel and nothing else.
    for (number, item) in (end.number.max(above) + 1..).zip(wanted) {
        let (opened, what) = match item {
            Wanted::File(id) => (ctx.files.get(id as usize), format!("file {id}")),
            Wanted::Shmem(id) => (ctx.shmems.get(id as usize), format!("memory object {id}")),
            Wanted::Device => (Some(&source.device), "userfaultfd".to_owned()),
        };
        let Some(fd) = opened.and_then(Option::as_ref) else {
            return Err(Error::failure(format!("{what} is mapped and was not opened")));
        };
        passes.push(Pass { fd: fd.as_fd(), number, cloexec: true });
        numbers.insert(item, number);
    }
    let (tracee, region) = proc.injector()?;
    channel.send(tracee, &region, &mut end, &passes)?;
    proc.link = Some(end);
    Ok(numbers)
}

fn finish(ctx: &mut Context, space: &Space) -> Result<()> {
    let state = &ctx.state;
    let mm = state.mms.get(space.mm as usize).ok_or_else(|| Error::failure("no such address space"))?;
    let Some(proc) = ctx.procs.get_mut(space.process).and_then(Option::as_mut) else {
        return Err(Error::failure("a process was not made"));
    };
    let pid = proc.ns_pid;
    let exe = mm.exe.and_then(|id| space.numbers.get(&Wanted::File(id))).copied();
    let (tracee, region) = proc.injector()?;
    let warnings = mm::finish(tracee, &region, mm, exe, &space.content)?;
    if let (Some(first), Some(last)) = (space.numbers.values().min(), space.numbers.values().max()) {
        let mut batch = Batch::new();
        batch.must(libc::SYS_close_range, [Arg::from(*first), Arg::from(*last), Arg::NULL]);
        batch.run(tracee, &region)?.check()?;
    }
    warnings.into_iter().for_each(|w| ctx.warn(format!("process {pid}: {w}")));
    Ok(())
}
