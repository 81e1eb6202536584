//! In which namespaces the tasks are: those of their container, or they cannot be saved.
#![forbid(unsafe_code)]

use super::context::{Context, Proc};
use super::status::Status;
use crate::checkpoint::state::Id;
use crate::procfs::ProcFs;
use airlock_wire::error::Result;
use nix::fcntl::readlinkat;

/// What `/proc/<tid>/ns` links to, by [`KINDS`]. Of a kind that the kernel has not, or of a namespace that nobody has
/// entered yet: empty.
type Links = Vec<String>;

const KINDS: [&str; 10] =
    ["mnt", "user", "pid", "pid_for_children", "time", "time_for_children", "net", "uts", "ipc", "cgroup"];
const MNT: usize = 0;
const USER: usize = 1;
/// Where a task's own children would be: in the same namespace as the task itself.
const CHILDREN: [(usize, usize); 2] = [(2, 3), (4, 5)];

fn links(procfs: &ProcFs, tid: i32) -> Links {
    let link = |kind: &&str| {
        let path = format!("{tid}/ns/{kind}");
        readlinkat(procfs.root(), path.as_str()).map(|l| l.to_string_lossy().into_owned()).unwrap_or_default()
    };
    KINDS.iter().map(link).collect()
}

/// Puts each process into the container whose mount namespace it is in, and refuses those that are in namespaces that
/// their program made itself.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn check(ctx: &mut Context) -> Result<()> {
    let inits: Vec<(Links, usize)> = ctx
        .order
        .containers
        .iter()
        .map(|c| {
            let init = ctx.procs.iter().find(|p| p.pid == c.init);
            let depth = init.and_then(|p| p.statuses.first()).map_or(0, Status::depth);
            (links(&ctx.procfs, init.map_or(c.init, Proc::task)), depth)
        })
        .collect();
    let own_user = readlinkat(ctx.procfs.root(), "self/ns/user").map(|l| l.to_string_lossy().into_owned());
    for i in 0..ctx.procs.len() {
        let Some(proc) = ctx.procs.get(i) else { continue };
        let parent = proc.parent.and_then(|p| ctx.procs.get(p)).map(|p| p.container);
        let as_init = ctx.order.containers.iter().position(|c| c.init == proc.pid);
        let inherited = as_init.map(|c| c as Id).or(parent).unwrap_or(0);
        let depth = proc.statuses.first().map_or(0, Status::depth);
        let tids: Vec<i32> = proc.threads.iter().map(|t| t.tid()).collect();
        let mut wrong: Vec<(&str, String)> = Vec::new();
        if as_init.is_some() && proc.leader_gone {
            // Through it, everybody finds the container's namespaces and root directory.
            let what = "the first thread of the container's first process has ended while others live on";
            wrong.push(("ended first thread", what.to_owned()));
        }
        let mut container = inherited;
        for (n, tid) in tids.iter().enumerate() {
            let own = links(&ctx.procfs, *tid);
            if n == 0 {
                // An orphan may have the init of another container, in whose pid namespace it is, for its parent.
                let same = |(init, _): &(Links, usize)| init.get(MNT) == own.get(MNT);
                let inherits = inits.get(inherited as usize).is_some_and(same);
                container = match inits.iter().position(same) {
                    Some(found) if !inherits => found as Id,
                    _ => inherited,
                };
                if as_init.is_some() && own_user.as_ref().is_ok_and(|user| Some(user) != own.get(USER)) {
                    let what = "the container's first process is in a user namespace of its own";
                    wrong.push(("user namespace", what.to_owned()));
                }
            }
            let Some((init, _)) = inits.get(container as usize) else { continue };
            for (kind, (own, init)) in KINDS.iter().zip(own.iter().zip(init)) {
                if own != init {
                    wrong.push((named(kind), foreign(kind, n > 0, *tid)));
                }
            }
            for (at, children) in CHILDREN.iter().filter(|_| as_init.is_some()) {
                if own.get(*at) != own.get(*children) {
                    let kind = KINDS.get(*children).copied().unwrap_or_default();
                    wrong.push((named(kind), foreign(kind, n > 0, *tid)));
                }
            }
        }
        if inits.get(container as usize).is_some_and(|(_, d)| *d != depth) {
            let what = "it is in a pid namespace that the container's program made".to_owned();
            wrong.push(("pid namespace", what));
        }
        if let Some(proc) = ctx.procs.get_mut(i) {
            proc.container = container;
        }
        for (kind, what) in wrong {
            ctx.refuse(i, None, kind, what);
        }
    }
    Ok(())
}

fn named(kind: &str) -> &'static str {
    match kind {
        "mnt" => "mount namespace",
        "user" => "user namespace",
        "net" => "network namespace",
        "uts" => "UTS namespace",
        "ipc" => "IPC namespace",
        "cgroup" => "cgroup namespace",
        "time" | "time_for_children" => "time namespace",
        _ => "pid namespace",
    }
}

fn foreign(kind: &str, thread: bool, tid: i32) -> String {
    let who = if thread { format!("its thread {tid} (in the sandbox)") } else { "it".to_owned() };
    match kind {
        "pid_for_children" | "time_for_children" => {
            format!("{who} has prepared a namespace for its children (unshare or setns)")
        }
        _ => format!("{who} is not in the {} of its container", named(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    #[test]
    fn the_own_namespaces_are_those_of_the_kernel() {
        let proc: OwnedFd = std::fs::File::open("/proc").unwrap().into();
        let own = links(&ProcFs::new(proc), std::process::id() as i32);
        assert_eq!(own.len(), KINDS.len());
        assert!(own[MNT].starts_with("mnt:[") && own[USER].starts_with("user:["), "{own:?}");
    }
}
