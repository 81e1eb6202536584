//! `debug`: the loader's threads with symbols, and what each container process is doing.

use airlock_loader::loader::Loader;
use airlock_loader::symbols::Symbols;
use airlock_loader::sys::backtrace;
use airlock_loader::worker::KernelStacks;
use airlock_wire::api::debug::Stacks;
use airlock_wire::api::types::Empty;
use airlock_wire::error::Result;
use airlock_wire::registry::Registry;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<Stacks>(move |_, Empty {}| stacks(&l));
}

fn stacks(loader: &Loader) -> Result<String> {
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
    let mut threads = Vec::new();
    for container in loader.containers() {
        for pid in loader.pids_of(&container)? {
            threads.extend(procfs.threads(pid).unwrap_or_default().into_iter().map(|tid| (pid, tid)));
        }
    }
    // Only CAP_SYS_ADMIN may read kernel stacks, and the loader has given it up.
    let kernel = match loader.work(KernelStacks(threads.clone()), &[]) {
        Ok((stacks, ..)) => stacks,
        Err(e) => vec![Err(e.to_string()); threads.len()],
    };
    let kernel: HashMap<_, _> = threads.into_iter().zip(kernel).collect();
    for container in loader.containers() {
        for pid in loader.pids_of(&container)? {
            // A process that has just ended has no stack to show.
            let Ok(stat) = procfs.stat(pid) else { continue };
            let _ = writeln!(text, "container {:?} process {pid} [{}]:", container.cid, stat.comm);
            for tid in procfs.threads(pid).unwrap_or_default() {
                describe_thread(loader, pid, tid, kernel.get(&(pid, tid)), &mut text);
            }
            text.push('\n');
        }
    }
    Ok(text)
}

fn describe_thread(
    loader: &Loader,
    pid: i32,
    tid: i32,
    kernel: Option<&std::result::Result<String, String>>,
    text: &mut String,
) {
    let procfs = loader.procfs();
    let read = |name: &str| procfs.read_path(&format!("{pid}/task/{tid}/{name}"));
    let state =
        read("stat").ok().and_then(|s| airlock_loader::procfs::Stat::parse(&s)).map_or('?', |s| s.state);
    let waiting = match read("wchan") {
        Ok(w) if w.is_empty() || w == "0" => String::new(),
        Ok(w) => format!(", waiting in {w}"),
        Err(e) => format!(", wait channel not readable: {e}"),
    };
    let _ = writeln!(text, "\tthread {tid}: state {state}{waiting}");
    match kernel {
        Some(Ok(stack)) => {
            for line in stack.lines() {
                let _ = writeln!(text, "\t\t{line}");
            }
        }
        Some(Err(e)) => {
            let _ = writeln!(text, "\t\tkernel stack not readable: {e}");
        }
        None => {}
    }
}
