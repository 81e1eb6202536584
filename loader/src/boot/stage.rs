//! The stage: short-lived and single-threaded. It reads the boot message, moves into the sandbox's cgroup and
//! namespaces, empties its root directory, and forks the spawner and the loader.
#![forbid(unsafe_code)]

use super::run::{self, LoaderStart};
use super::{FdTable, Handlers, guarded};
use crate::oci::namespaces::joined;
use crate::spawner::{self, Spawner, SpawnerEnds};
use crate::sys::{misc, mount, process};
use airlock_wire::api::boot::{BootArgs, BootReply, Namespace};
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Runs `airlock boot`: reads the boot message from descriptor 0 and becomes a sandbox. `handlers` makes the
/// controller's method table. Does not return.
pub fn stage_main(handlers: Handlers) -> ! {
    process::set_name(c"airlock-stage");
    let Ok(socket) = process::take_stdin() else {
        process::exit_now(2);
    };
    // Whatever the caller of our parent left open is none of the sandbox's business.
    let _ = process::close_all_except(3, &[socket.as_raw_fd()]);
    let socket = UnixStream::from(socket);
    if let Err(error) = guarded(|| stage(&socket, handlers)) {
        // Nobody may be left to hear it; the exit code is all there is then.
        let _ = binary::send(&socket, &BootReply::Failed(error), &[]);
        process::exit_now(1);
    }
    process::exit_now(0)
}

fn stage(socket: &UnixStream, handlers: Handlers) -> Result<()> {
    // Descriptor 0 was the boot socket: nothing may inherit it.
    process::dup_onto(std::io::stdout().as_fd(), 0)?;
    let (args, fds): (BootArgs, Vec<OwnedFd>) = binary::recv(socket)?;
    let mut fds = FdTable::new(fds);
    let text =
        args.spec.0.as_deref().ok_or_else(|| Error::invalid_argument("boot arguments missing spec"))?;
    let spec: Spec =
        serde_json::from_str(text).map_err(|e| Error::invalid_argument(format!("config.json: {e}")))?;
    let mut args = args;

    for dir in &mut args.fds.cgroup.dirs {
        if let Some(join) = dir.join.take() {
            let file = fds.take(join)?;
            nix::unistd::write(&file, b"0").map_err(|e| {
                Error::from(e).context(format!("joining the sandbox's cgroup ({})", dir.name))
            })?;
        }
    }
    let host_pid = enter_namespaces(socket, &mut args, &spec, &mut fds)?;

    let mount_namespace: OwnedFd = std::fs::File::open("/proc/self/ns/mnt")?.into();
    let own_binary: Option<OwnedFd> = std::fs::File::open("/proc/self/exe").ok().map(OwnedFd::from);
    process::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0)?;
    enter_empty_root()?;

    let (spawner_requests, loader_requests) = UnixStream::pair()?;
    let (spawner_exits, loader_exits) = UnixStream::pair()?;
    process::block_signals();
    let spawner_pidfd = match process::fork(process::ForkOptions::default()).map_err(forking)? {
        process::Forked::Child => {
            let keep = [spawner_requests.as_raw_fd(), spawner_exits.as_raw_fd(), mount_namespace.as_raw_fd()];
            let _ = process::close_all_except(3, &keep);
            spawner::main(SpawnerEnds {
                requests: spawner_requests,
                exits: spawner_exits,
                mount_namespace,
                shared_pid_namespace: host_pid,
            });
        }
        process::Forked::Parent { pidfd, .. } => pidfd,
    };
    drop((spawner_requests, spawner_exits, mount_namespace));
    let sibling = process::ForkOptions { sibling: true, ..Default::default() };
    match process::fork(sibling).map_err(forking)? {
        process::Forked::Child => {
            drop(spawner_pidfd);
            run::main(LoaderStart {
                socket: socket.try_clone()?,
                args,
                spec,
                fds,
                spawner: Arc::new(Spawner::new(loader_requests)),
                exits: Arc::new(loader_exits),
                own_binary,
                host_pid,
                handlers,
            })
        }
        process::Forked::Parent { pid, pidfd } => binary::send(
            socket,
            &BootReply::Stage { loader_pid: pid },
            &[pidfd.as_fd(), spawner_pidfd.as_fd()],
        ),
    }
}

fn forking(errno: nix::errno::Errno) -> Error {
    Error::from(errno).context(
        "forking the sandbox's processes (is linux.resources.pids.limit too small? airlock itself needs 4 and one for each connection)",
    )
}

/// Joins and makes namespaces. Returns true when the sandbox shares somebody else's pid namespace.
fn enter_namespaces(
    socket: &UnixStream,
    args: &mut BootArgs,
    spec: &Spec,
    fds: &mut FdTable,
) -> Result<bool> {
    let linux = spec.linux().as_ref();
    let wanted = |kind: LinuxNamespaceType| {
        linux
            .and_then(|l| l.namespaces().as_ref())
            .is_some_and(|all| all.iter().any(|n| n.typ() == kind && joined(n).is_none()))
    };
    if !wanted(LinuxNamespaceType::Mount) {
        return Err(Error::unsupported(
            "linux.namespaces: airlock needs a mount namespace of the container's own (type mount, no path)",
        ));
    }
    let mut host_pid = args.host_pid;
    let (sandbox_level, container_level): (Vec<_>, Vec<_>) =
        std::mem::take(&mut args.fds.join).into_iter().partition(|(kind, _)| *kind != Namespace::Cgroup);
    args.fds.join = container_level;
    let mut foreign_user_namespace = false;
    for (kind, fd) in sandbox_level {
        host_pid |= kind == Namespace::Pid;
        foreign_user_namespace |= kind == Namespace::User;
        let fd = fds.take(fd)?;
        process::setns(fd.as_fd(), 0)
            .map_err(|e| Error::from(e).context(format!("joining {kind:?} namespace")))?;
    }
    if wanted(LinuxNamespaceType::User) {
        process::unshare(libc::CLONE_NEWUSER)
            .map_err(|e| Error::from(e).context("making a user namespace"))?;
        binary::send(socket, &BootReply::MapIds { pid: nix::unistd::getpid().as_raw() }, &[])?;
        let (_, _): ((), _) = binary::recv(socket)?;
        foreign_user_namespace = true;
    }
    if foreign_user_namespace {
        process::set_groups(&[]).or_else(|e| if e == nix::errno::Errno::EPERM { Ok(()) } else { Err(e) })?;
        process::set_uid_gid(0, 0)
            .map_err(|e| Error::from(e).context("becoming root of the user namespace (is id 0 mapped?)"))?;
    }
    if wanted(LinuxNamespaceType::Time) {
        process::unshare(libc::CLONE_NEWTIME)
            .map_err(|e| Error::from(e).context("making a time namespace"))?;
        write_time_offsets(spec)?;
    }
    let mut flags = 0;
    for (kind, flag) in [
        (LinuxNamespaceType::Mount, libc::CLONE_NEWNS),
        (LinuxNamespaceType::Ipc, libc::CLONE_NEWIPC),
        (LinuxNamespaceType::Uts, libc::CLONE_NEWUTS),
        (LinuxNamespaceType::Network, libc::CLONE_NEWNET),
    ] {
        if wanted(kind) {
            flags |= flag;
        }
    }
    if !host_pid {
        flags |= libc::CLONE_NEWPID;
    }
    process::unshare(flags).map_err(|e| Error::from(e).context("making namespaces"))?;
    if flags & libc::CLONE_NEWNET != 0 {
        misc::loopback_up().map_err(|e| Error::from(e).context("bringing lo up"))?;
    }
    if let Some(name) = spec.hostname() {
        misc::set_uts_name(name, false).map_err(|e| Error::from(e).context(format!("hostname {name:?}")))?;
    }
    if let Some(name) = spec.domainname() {
        misc::set_uts_name(name, true).map_err(|e| Error::from(e).context(format!("domainname {name:?}")))?;
    }
    Ok(host_pid)
}

/// The offsets count for processes forked from now on (time_namespaces(7)).
fn write_time_offsets(spec: &Spec) -> Result<()> {
    let offsets = spec.linux().as_ref().and_then(|l| l.time_offsets().as_ref());
    let mut text = String::new();
    for (clock, offset) in offsets.into_iter().flatten() {
        text += &format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
    }
    if text.is_empty() {
        return Ok(());
    }
    std::fs::write("/proc/self/timens_offsets", &text).map_err(|e| {
        Error::from(e).context(format!("linux.timeOffsets {}", text.trim_end().replace('\n', ", ")))
    })
}

/// Leaves the caller, and those it forks, in a root directory that is empty for ever once the caller has ended: its
/// own directory of descriptor information, which goes with the process. A tmpfs of its own would do as well, but
/// closing its descriptor waits for a grace period of the kernel, up to milliseconds in every start.
fn enter_empty_root() -> Result<()> {
    nix::unistd::chroot("/proc/self/fdinfo")
        .and_then(|()| nix::unistd::chdir("/"))
        .or_else(|_| enter_empty_tmpfs())
        .map_err(|e| Error::from(e).context("entering an empty root directory"))
}

/// For hosts whose `/proc` is restricted.
fn enter_empty_tmpfs() -> nix::Result<()> {
    let failed = |_| nix::errno::Errno::EPERM;
    let context = mount::fsopen("tmpfs").map_err(failed)?;
    mount::fsconfig_string(context.as_fd(), "mode", "0555").map_err(failed)?;
    mount::fsconfig_create(context.as_fd()).map_err(failed)?;
    let attrs = mount::MOUNT_ATTR_RDONLY | mount::MOUNT_ATTR_NOEXEC;
    let root = mount::fsmount(context.as_fd(), attrs).map_err(failed)?;
    nix::unistd::fchdir(&root)?;
    nix::unistd::chroot(".")
}
