//! `debug`: the loader's threads with symbols, and what each container process is doing.

use airlock_loader::container::Container;
use airlock_loader::loader::Loader;
use airlock_loader::procfs::Stat;
use airlock_loader::symbols::Symbols;
use airlock_loader::sys::backtrace;
use airlock_loader::worker::{KernelStacks, UserStacks};
use airlock_wire::api::debug::{Stacks, StacksArgs};
use airlock_wire::error::Result;
use airlock_wire::registry::Registry;
use std::fmt::Write;
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<Stacks>(move |_, args| stacks(&l, &args));
}

fn stacks(loader: &Loader, args: &StacksArgs) -> Result<String> {
    let (mut text, containers) = match args.cid.as_str() {
        "" => (own_threads(loader)?, loader.containers()),
        cid => (String::new(), vec![loader.container(cid)?]),
    };
    containers_threads(loader, &containers, args.all, &mut text)?;
    Ok(text)
}

/// The stacks of the sandbox process' own threads.
pub(crate) fn own_threads(loader: &Loader) -> Result<String> {
    let procfs = loader.procfs();
    let me = std::process::id() as i32;
    let symbols = loader.self_exe().and_then(|exe| Symbols::load(exe, procfs).ok());
    let mut text = String::new();
    for tid in procfs.threads(me)? {
        let name = procfs.read_path(&format!("{me}/task/{tid}/comm")).unwrap_or_default();
        let _ = writeln!(text, "loader thread {tid} [{}]:", name.trim_end());
        for address in backtrace::of_thread(tid) {
            let shown = symbols.as_ref().map_or_else(|| format!("{address:#x}"), |s| s.name(address));
            let _ = writeln!(text, "\t{shown}");
        }
        text.push('\n');
    }
    Ok(text)
}

/// One thread of a container.
struct Thread {
    pid: i32,
    tid: i32,
    kernel: std::result::Result<String, String>,
    user: Option<std::result::Result<Vec<String>, String>>,
}

fn containers_threads(
    loader: &Loader,
    containers: &[Arc<Container>],
    all: bool,
    text: &mut String,
) -> Result<()> {
    let procfs = loader.procfs();
    let mut found = Vec::new();
    for container in containers {
        for pid in loader.pids_of(container)? {
            let threads = procfs.threads(pid).unwrap_or_default();
            found.extend(threads.into_iter().map(|tid| (&**container, pid, tid)));
        }
    }
    let ids: Vec<(i32, i32)> = found.iter().map(|(_, pid, tid)| (*pid, *tid)).collect();
    let failed = |e: &dyn std::fmt::Display| e.to_string();
    // Only CAP_SYS_ADMIN may read kernel stacks, and the loader has given it up.
    let kernel = match loader.work(KernelStacks(ids.clone()), &[]) {
        Ok((stacks, ..)) => stacks,
        Err(e) => vec![Err(failed(&e)); ids.len()],
    };
    let user = match all.then(|| loader.work(UserStacks(ids.clone()), &[])) {
        None => vec![None; ids.len()],
        Some(Ok((stacks, ..))) => stacks.into_iter().map(Some).collect(),
        Some(Err(e)) => vec![Some(Err(failed(&e))); ids.len()],
    };
    let mut last = None;
    for (((container, pid, tid), kernel), user) in found.into_iter().zip(kernel).zip(user) {
        // A process that has just ended has no stack to show.
        let Ok(stat) = procfs.stat(pid) else { continue };
        if last.replace(pid) != Some(pid) {
            let _ = writeln!(text, "container {:?} process {pid} [{}]:", container.cid, stat.comm);
        }
        describe(loader, &Thread { pid, tid, kernel, user }, text);
    }
    Ok(())
}

fn describe(loader: &Loader, thread: &Thread, text: &mut String) {
    let Thread { pid, tid, .. } = *thread;
    let read = |name: &str| loader.procfs().read_path(&format!("{pid}/task/{tid}/{name}"));
    let state = read("stat").ok().and_then(|s| Stat::parse(&s)).map_or('?', |s| s.state);
    let waiting = match read("wchan") {
        Ok(w) if w.is_empty() || w == "0" => String::new(),
        Ok(w) => format!(", waiting in {w}"),
        Err(e) => format!(", wait channel not readable: {e}"),
    };
    let _ = writeln!(text, "\tthread {tid}: state {state}{waiting}");
    match &thread.kernel {
        Ok(stack) => stack.lines().for_each(|line| {
            let _ = writeln!(text, "\t\t{line}");
        }),
        Err(e) => {
            let _ = writeln!(text, "\t\tkernel stack not readable: {e}");
        }
    }
    match &thread.user {
        None => {}
        Some(Ok(lines)) => lines.iter().for_each(|line| {
            let _ = writeln!(text, "\t\t{line}");
        }),
        Some(Err(e)) => {
            let _ = writeln!(text, "\t\tuser-space stack not readable: {e}");
        }
    }
}
