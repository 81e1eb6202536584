//! A container's init: from a forked, privileged process to the container's program.
#![forbid(unsafe_code)]

use super::fds::{self, OrderFds};
use super::identity::{self, Program};
use super::mounts::{self, CgroupView, MountInputs};
use super::plan::{Answer, CreateOrder, Order};
use super::{Outcome, hooks, paths};
use crate::seccomp;
use crate::sys::{misc, mount, process};
use airlock_wire::api::boot::Namespace;
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub(super) fn run(
    channel: UnixStream,
    mount_namespace: BorrowedFd<'_>,
    order: CreateOrder,
    fds: Vec<OwnedFd>,
) -> Outcome {
    let mut ready = match prepare(&order, mount_namespace, fds) {
        Ok(ready) => ready,
        Err(e) => return Err((channel, e)),
    };
    let origin = origin(&ready);
    let (channel, passed) = fds::place(channel, &mut ready.exec, ready.stdio, ready.pass)?;
    let outcome = (|| {
        let process = required_process(&ready.spec)?;
        if let Some(size) = ready.console_size {
            super::take_terminal(ready.tty.as_fd(), size)?;
        }
        identity::apply_limits(process)?;
        let program = match Program::resolve(process, ready.exec.take()) {
            Err(e) if !order.to_restore => return Err(e),
            program => program,
        };
        let listener = super::install_with_listener(&mut ready.seccomp, process)?;
        if order.to_restore && order.in_userns {
            // The agent looks at this process and makes all others from it, with the privileges of the user namespace
            // alone. No program runs in the sandbox before they are what they were.
            process::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0)?;
        }
        let answer = Answer::Ready {
            pid: nix::unistd::getpid().as_raw(),
            console: ready.master.is_some(),
            listener: listener.is_some(),
            devpts: ready.devpts.is_some(),
            newest_mount: mount::newest_mount().unwrap_or(0),
            origin,
        };
        let out: Vec<_> =
            [&ready.master, &listener, &ready.devpts].into_iter().flatten().map(AsFd::as_fd).collect();
        binary::send(&channel, &answer, &out)?;
        ready.master = None;
        ready.devpts = None;
        Ok(program)
    })();
    let program = match outcome {
        Ok(program) => program,
        Err(e) => return Err((channel, e)),
    };
    match binary::recv::<Order>(&channel) {
        Ok((Order::Start, _)) => {}
        // Destroyed before it was started.
        _ => process::exit_now(0),
    }
    let program = match program {
        Ok(program) => program,
        Err(e) => return Err((channel, e)),
    };
    let state = hook_state(&order, &ready.spec, "created");
    let start_hooks = ready.spec.hooks().as_ref().and_then(|h| h.start_container().as_ref());
    if let Err(e) = hooks::run("startContainer", start_hooks, &state, None) {
        return Err((channel, e));
    }
    let filter = ready.seccomp;
    let error = program.execute(&passed, || super::install(filter.as_ref()));
    Err((channel, error))
}

struct Prepared {
    spec: Spec,
    exec: Option<OwnedFd>,
    stdio: Vec<OwnedFd>,
    pass: Vec<(i32, OwnedFd)>,
    tty: OwnedFd,
    console_size: Option<(u16, u16)>,
    master: Option<OwnedFd>,
    devpts: Option<OwnedFd>,
    seccomp: Option<seccomp::Program>,
}

/// Number, device and inode of the descriptors that come from outside.
fn origin(ready: &Prepared) -> Vec<(i32, u64, u64)> {
    let streams = (0..).zip(&ready.stdio);
    let passed = ready.pass.iter().map(|(number, fd)| (*number, fd));
    let identity = |(number, fd)| {
        let stat = nix::sys::stat::fstat(fd).ok()?;
        Some((number, stat.st_dev, stat.st_ino))
    };
    streams.chain(passed).filter_map(identity).collect()
}

fn required_process(spec: &Spec) -> Result<&Process> {
    spec.process().as_ref().ok_or_else(|| Error::invalid_argument("process: is missing"))
}

fn prepare(order: &CreateOrder, mount_namespace: BorrowedFd<'_>, fds: Vec<OwnedFd>) -> Result<Prepared> {
    let spec: Spec = serde_json::from_str(&order.spec)
        .map_err(|e| Error::invalid_argument(format!("config.json: {e}")))?;
    let process = required_process(&spec)?;
    let mut fds = OrderFds::take(&order.fds, fds)?;
    let linux = spec.linux().as_ref();
    let has_namespace = |kind: LinuxNamespaceType| {
        linux.and_then(|l| l.namespaces().as_ref()).is_some_and(|all| all.iter().any(|n| n.typ() == kind))
    };
    nix::unistd::setsid()?;
    fds::join_cgroups(&fds.cgroup_join)?;

    let mut new_cgroup_namespace = has_namespace(LinuxNamespaceType::Cgroup);
    for (kind, fd) in std::mem::take(&mut fds.join) {
        if kind == Namespace::Cgroup {
            new_cgroup_namespace = false;
        }
        process::setns(fd.as_fd(), 0)
            .map_err(|e| Error::from(e).context(format!("joining {kind:?} namespace")))?;
    }
    if order.root {
        // Also puts the root directory back from the empty one to that of the namespace.
        process::setns(mount_namespace, libc::CLONE_NEWNS)?;
    } else {
        process::unshare(libc::CLONE_NEWNS)?;
        let own = process::pidfd_open(nix::unistd::getpid().as_raw())?;
        process::setns(own.as_fd(), libc::CLONE_NEWNS)?;
    }
    if new_cgroup_namespace {
        process::unshare(libc::CLONE_NEWCGROUP)?;
    }
    let mut gofer = std::mem::take(&mut fds.mounts).into_iter();
    let rootfs = gofer.next().ok_or_else(|| Error::invalid_argument("no rootfs descriptor was given"))?;
    let (names, cgroup_mounts): (Vec<_>, Vec<_>) = std::mem::take(&mut fds.cgroup_mounts).into_iter().unzip();
    let names = if names.is_empty() { order.cgroup_names.clone() } else { names };
    let hooks = spec.hooks().as_ref();
    let create_hooks = hooks.and_then(|h| h.create_container().as_ref());
    let built = mounts::build(MountInputs {
        spec: &spec,
        rootfs,
        gofer: gofer.collect(),
        devices: std::mem::take(&mut fds.devices),
        cgroup: CgroupView {
            v2: order.cgroup_v2,
            names,
            mounts: cgroup_mounts,
            new_ns: new_cgroup_namespace,
        },
        in_userns: order.in_userns,
        generation: &order.generation,
        pre_pivot: Box::new(|| {
            if create_hooks.is_some() && !order.root {
                return Err(Error::unsupported(
                    "hooks.createContainer: a subcontainer is made inside its sandbox, where the host's programs do not exist",
                ));
            }
            let state = hook_state(order, &spec, "creating");
            hooks::run("createContainer", create_hooks, &state, Some(Path::new(&order.bundle)))
        }),
    })?;

    write_proc(&spec, process, built.procfs)?;
    super::apply_personality(super::personality_of(&spec))?;
    // Like runc: a container without a keyring of its own could read its neighbours' keys. Kernels without keys
    // and exhausted quotas are no reason to fail.
    let _ = misc::new_session_keyring();

    let terminal = process.terminal().unwrap_or(false);
    let (mut stdio, mut master) = (std::mem::take(&mut fds.stdio), None);
    if terminal {
        let tty = match (fds.tty.take(), &built.devpts) {
            (Some(tty), _) => tty,
            (None, Some(devpts)) => {
                let (m, peer) = mounts::open_console(devpts.as_fd())?;
                mounts::mount_console(peer.as_fd())?;
                master = Some(m);
                peer
            }
            (None, None) => {
                return Err(Error::invalid_argument(
                    "process.terminal is set, but the config mounts no devpts at /dev/pts and no terminal was donated",
                ));
            }
        };
        // The user of the container owns its terminal, as login(1) would have it.
        let _ = nix::unistd::fchown(&tty, Some(process.user().uid().into()), None);
        stdio = vec![tty.try_clone()?, tty.try_clone()?, tty];
    }
    let tty = match stdio.first() {
        Some(fd) if stdio.len() == 3 => fd.try_clone()?,
        _ => {
            return Err(Error::invalid_argument(format!(
                "3 standard streams are wanted, {} came",
                stdio.len()
            )));
        }
    };
    let size = process.console_size();
    let seccomp = linux
        .and_then(|l| l.seccomp().as_ref())
        .map(|profile| seccomp::compile(profile, &seccomp::Options::default()))
        .transpose()
        .map_err(|e| Error::invalid_argument(e.to_string()))?;
    Ok(Prepared {
        exec: fds.exec.take(),
        stdio,
        pass: std::mem::take(&mut fds.pass),
        tty,
        console_size: terminal.then(|| size.map_or((0, 0), |s| (s.height() as u16, s.width() as u16))),
        master,
        devpts: built.devpts,
        seccomp,
        spec,
    })
}

/// Sysctls and the OOM score, through a procfs that nothing in the container can have tampered with.
fn write_proc(spec: &Spec, process: &Process, own: Option<paths::ProcHandle>) -> Result<()> {
    let sysctls = spec.linux().as_ref().and_then(|l| l.sysctl().as_ref()).filter(|s| !s.is_empty());
    if sysctls.is_none() && process.oom_score_adj().is_none() {
        return Ok(());
    }
    super::write_oom_score(&own.map_or_else(paths::ProcHandle::open, Ok)?, process.oom_score_adj())?;
    if sysctls.is_none() {
        return Ok(());
    }
    // The container's own procfs may have sys/ read-only by now.
    let procfs = paths::ProcHandle::open()?;
    for (name, value) in sysctls.into_iter().flatten() {
        let path = format!("sys/{}", sysctl_path(name));
        procfs
            .write(&path, value.as_bytes())
            .map_err(|e| e.context(format!("linux.sysctl {name}={value}")))?;
    }
    Ok(())
}

/// `net.ipv4.ip_forward` → `net/ipv4/ip_forward`; a name that is written with slashes may keep dots in its parts.
fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(i) if name.as_bytes()[i] == b'.' => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn hook_state(order: &CreateOrder, spec: &Spec, status: &str) -> String {
    serde_json::json!({
        "ociVersion": spec.version(),
        "id": order.cid,
        "status": status,
        // As the container sees it: that is where these hooks run.
        "pid": nix::unistd::getpid().as_raw(),
        "bundle": order.bundle,
        "annotations": spec.annotations().clone().unwrap_or_default(),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::sysctl_path;

    #[test]
    fn sysctl_names_are_turned_into_paths_by_their_first_separator() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/forwarding"), "net/ipv4/conf/eth0.1/forwarding");
    }
}
