//! The loader process: gives up privileges, sets the root container up, serves, and ends as the container ended.
//!
//! Two threads from the start: the main one takes in exits, signals and connections; the boot thread makes the root
//! container and then serves the boot socket as an ordinary connection. Every further connection adds a thread.
#![forbid(unsafe_code)]

use super::{FdTable, Handlers, guarded};
use crate::loader::{ContainerParts, Loader, LoaderConfig};
use crate::procfs::ProcFs;
use crate::seccomp::loader_filter;
use crate::spawner::{Exited, Spawner};
use crate::sys::{backtrace, heap, mount, process, ticks};
use airlock_wire::api::airlock::Killer;
use airlock_wire::api::boot::{BootArgs, BootReply};
use airlock_wire::api::trace::SessionConfig;
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use airlock_wire::server::{Server, ServerOptions};
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(super) struct LoaderStart {
    pub socket: UnixStream,
    pub args: BootArgs,
    pub spec: Spec,
    pub fds: FdTable,
    pub spawner: Arc<Spawner>,
    pub exits: Arc<UnixStream>,
    /// The binary this process runs, readable; `BootArgs::self_exe` stands in for it.
    pub own_binary: Option<OwnedFd>,
    pub host_pid: bool,
    pub handlers: Handlers,
}

/// Capabilities the loader keeps: signals to any user's processes, and looking into them.
const KEPT: u64 = 1 << 5 /* KILL */ | 1 << 19 /* SYS_PTRACE */ | 1 << 2 /* DAC_READ_SEARCH */;

/// `si_code` of a signal that the kernel sends of its own accord (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

pub(super) fn main(start: LoaderStart) -> ! {
    process::set_name(c"airlock-loader");
    let Ok(socket) = start.socket.try_clone() else { process::exit_now(1) };
    // The spawner takes the end of either connection for ours, and the kernel then kills us: both stay open until the
    // last word is said.
    let _open = (start.spawner.clone(), start.exits.clone());
    match guarded(|| run(start)) {
        Ok(never) => match never {},
        Err(error) => {
            log::error!("{error}");
            let _ = binary::send(&socket, &BootReply::Failed(error), &[]);
            process::exit_now(1)
        }
    }
}

/// Ends the loader as the container ended: same exit code or same signal.
fn end_as(status: u32) -> ! {
    let signal = status & 0x7f;
    if signal != 0 {
        process::die_by_signal(signal as i32);
    }
    process::exit_now((status >> 8) as i32 & 0xff)
}

fn run(mut start: LoaderStart) -> Result<Infallible> {
    let args = &start.args;
    super::logging::init(
        start.fds.take_option(args.log)?,
        start.fds.take_option(args.panic_log)?,
        args.log_level,
        &args.id,
    );
    let listener = start.fds.take_option(args.listener)?.map(UnixListener::from);
    let exit_file = start.fds.take_option(args.exit_file)?.map(File::from);
    drop(start.fds.take_option(args.user_log)?);
    let self_exe = match start.own_binary {
        Some(binary) => Some(binary),
        None => start.fds.take_option(args.self_exe)?,
    };
    let mut parts = ContainerParts::take(&args.fds, &mut start.fds)?;
    parts.confs.clone_from(&args.gofer_mount_confs);
    parts.to_restore = args.to_restore;
    let mut shared_mounts = Vec::new();
    for (name, fd) in &args.shared_mounts {
        shared_mounts.push((name.clone(), start.fds.take(*fd)?));
    }
    let trace = match &args.trace {
        Some(trace) => {
            let fds = trace.fds.iter().map(|fd| start.fds.take(*fd)).collect::<Result<_>>()?;
            Some((trace.config.0.clone(), fds))
        }
        None => None,
    };
    let (procfs, procfs_mount) = open_procfs()?;
    let namespaces = start.spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    let has = |kind| namespaces.is_some_and(|all| all.iter().any(|n| n.typ() == kind));
    let in_userns = has(LinuxNamespaceType::User);
    let own_network = has(LinuxNamespaceType::Network);
    let loader = Arc::new(Loader::new(LoaderConfig {
        id: args.id.clone(),
        bundle: args.bundle.clone(),
        in_userns,
        shared_pid_namespace: start.host_pid,
        procfs: ProcFs::new(procfs),
        spawner: start.spawner,
        self_exe,
        profile: args.profile,
        shared_mounts,
        own_network,
    })?);
    let signals = SignalFd::with_flags(&forwarded_signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    backtrace::enable();
    if start.args.profile {
        heap::enable();
        ticks::enable();
    }
    drop_privileges()?;

    let grace = Duration::from_millis(start.args.stop_grace_ms);
    let mut allowed_uids = start.args.allowed_uids.clone();
    if in_userns {
        // The host's users have no id here. The socket's folder lets none but its owner through.
        allowed_uids.push(overflow_uid(loader.procfs()));
    }
    let server = Server::new(
        (start.handlers)(&loader),
        ServerOptions { allowed_uids, grace, ..ServerOptions::default() },
    );
    let (answering, answered) = crossbeam_channel::bounded::<Infallible>(0);
    let boot = Boot {
        answering,
        socket: start.socket,
        loader: loader.clone(),
        server: server.clone(),
        spec_text: start.args.spec.0.unwrap_or_default(),
        spec: start.spec,
        bundle: start.args.bundle,
        parts,
        trace,
        autostart: start.args.autostart,
        hold: start.args.hold,
        late: (start.fds, procfs_mount),
    };
    // A container that fills its pids limit leaves us no threads, and still has to hear of its end: so this one is made
    // while the container is, whose making it does not hold up.
    let spare = server.promise_stand_by();
    std::thread::Builder::new()
        .name("boot".to_owned())
        .stack_size(512 << 10)
        .spawn(move || boot.run())
        .map_err(|e| {
            Error::from(e)
                .context("starting a thread of the sandbox (is linux.resources.pids.limit too small?)")
        })?;

    let thread = std::thread::Builder::new().name("rpc-spare".to_owned()).stack_size(512 << 10);
    if let Err(e) = thread.spawn(move || spare.serve()) {
        log::warn!("no spare thread for connections: {e}");
    }
    let status = watch(&loader, &server, &start.exits, &signals, listener.as_ref())?;
    // A short-lived program may be over before the parent has heard that it was started. Nothing is ever sent: the
    // boot thread drops its end when it has answered.
    let _ = answered.recv();
    loader.end_subcontainers(|| match binary::recv::<Exited>(&start.exits) {
        Ok((exited, _)) => {
            loader.process_ended(exited);
            true
        }
        Err(_) => false,
    });
    loader.end_trace_sessions();
    if let Some(file) = exit_file {
        write_last_words(file, &loader, status);
    }
    // Who connects from now on learns at once that there is nobody, instead of waiting for others' calls to finish.
    drop(listener);
    server.stop(grace);
    // Not by returning: that would close the spawner's socket first, and the spawner's end kills this process.
    end_as(status)
}

struct Boot {
    answering: crossbeam_channel::Sender<Infallible>,
    socket: UnixStream,
    loader: Arc<Loader>,
    server: Server,
    spec_text: String,
    spec: Spec,
    bundle: String,
    parts: ContainerParts,
    trace: Option<(SessionConfig, Vec<OwnedFd>)>,
    autostart: bool,
    hold: bool,
    /// Detached mounts that are not needed any more: closing one waits for a grace period of the kernel.
    late: (FdTable, OwnedFd),
}

impl Boot {
    fn run(mut self) {
        if let Err(error) = guarded(|| self.create()) {
            log::error!("{error}");
            let _ = binary::send(&self.socket, &BootReply::Failed(error), &[]);
            // Without a root container there is no sandbox. The spawner sees the loader go and ends the rest.
            if let Ok(root) = self.loader.root()
                && let Some(init) = root.init()
            {
                let _ = init.signal(libc::SIGKILL);
            }
            process::exit_now(1)
        }
        drop(self.answering);
        drop(self.late);
        let _ = self.server.serve_blocking(self.socket);
        self.server.stand_by();
    }

    fn create(&mut self) -> Result<()> {
        if self.hold {
            binary::send(&self.socket, &BootReply::Held, &[])?;
            super::hold::wait_for_continue(&self.socket)?;
        }
        let root = self.loader.root()?;
        let (text, spec) = (std::mem::take(&mut self.spec_text), std::mem::take(&mut self.spec));
        let parts = std::mem::take(&mut self.parts);
        let prepared = self.loader.prepare(&root, text, spec, &self.bundle, parts)?;
        if let Some((config, fds)) = self.trace.take() {
            self.loader
                .create_trace_session(config, false, fds)
                .map_err(|e| e.context("creating trace session"))?;
        }
        if self.autostart {
            self.loader.start(&root)?;
        }
        let fds: Vec<_> =
            [&prepared.console, &prepared.listener].into_iter().flatten().map(AsFd::as_fd).collect();
        let reply = BootReply::Ready {
            init_pid: prepared.init_pid,
            has_console: prepared.console.is_some(),
            has_seccomp_listener: prepared.listener.is_some(),
        };
        // A parent that is gone by now would leave a sandbox that nobody knows of.
        binary::send(&self.socket, &reply, &fds)
    }
}

/// Takes in exits, signals and connections until the root container's init has ended.
fn watch(
    loader: &Arc<Loader>,
    server: &Server,
    exits: &UnixStream,
    signals: &SignalFd,
    listener: Option<&UnixListener>,
) -> Result<u32> {
    loop {
        let mut fds = vec![
            PollFd::new(exits.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(loader.late_end(), PollFlags::POLLIN),
        ];
        fds.extend(listener.map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().is_some_and(|r| !r.is_empty())).collect();
        if ready[0] {
            let (exited, _): (Exited, _) =
                binary::recv(exits).map_err(|e| e.context("the spawner is gone"))?;
            if let Some(status) = loader.process_ended(exited) {
                return Ok(status);
            }
        }
        if ready[1] {
            while let Ok(Some(info)) = signals.read_signal() {
                // The kernel's own: a lease on the usage page was broken. None of the container's business.
                if info.ssi_signo != libc::SIGIO as u32 || info.ssi_code != SI_KERNEL {
                    let (uid, pid) = (info.ssi_uid, info.ssi_pid as i32);
                    forward(
                        loader,
                        Killer { uid, pid, by: "kill(2)".to_owned(), signal: info.ssi_signo as i32 },
                    );
                }
            }
        }
        if ready[2]
            && let Some(status) = loader.ended()
        {
            return Ok(status);
        }
        if ready.get(3) == Some(&true)
            && let Some(listener) = listener
            && let Err(e) = server.accept(listener)
        {
            log::warn!("refused a connection: {e}");
        }
    }
}

/// The loader's pid stands for the container, so signals to it are the container's.
fn forward(loader: &Loader, signal: Killer) {
    let signo = signal.signal;
    if let Err(e) = loader.forward(loader.id(), 0, signal) {
        log::debug!("forwarding signal {signo}: {e}");
    }
}

/// Everything a caller may send to the OCI pid; not what the kernel sends the loader itself.
fn forwarded_signals() -> SigSet {
    let mut set = SigSet::all();
    for own in [
        Signal::SIGCHLD,
        Signal::SIGPIPE,
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGSYS,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ] {
        set.remove(own);
    }
    set
}

/// What users without an id in a user namespace show up as (user_namespaces(7)).
fn overflow_uid(procfs: &ProcFs) -> u32 {
    const DEFAULT: u32 = 65534;
    let text = procfs.read_path("sys/kernel/overflowuid").unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT)
}

/// A procfs of the sandbox's pid namespace: its root directory, and the detached mount, which need not be kept.
fn open_procfs() -> Result<(OwnedFd, OwnedFd)> {
    let context = mount::fsopen("proc")?;
    mount::fsconfig_create(context.as_fd())?;
    let attrs = mount::MOUNT_ATTR_NOSUID | mount::MOUNT_ATTR_NODEV | mount::MOUNT_ATTR_NOEXEC;
    let mount = mount::fsmount(context.as_fd(), attrs)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok((openat(&mount, ".", flags, Mode::empty())?, mount))
}

/// Before any thread exists: trimming capabilities on every thread would cost milliseconds.
fn drop_privileges() -> Result<()> {
    let own = process::cap_permitted()?;
    for cap in 0..64 {
        if own & (1 << cap) != 0 && KEPT & (1 << cap) == 0 {
            match process::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) {
                Ok(_) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::EPERM) => {}
                Err(e) => return Err(Error::from(e).context("dropping the loader's bounding set")),
            }
        }
    }
    process::capset(own & KEPT, own & KEPT, 0)?;
    process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)?;
    loader_filter()
        .install()
        .map_err(|e| Error::from(e).context("installing the loader's seccomp filter"))?;
    Ok(())
}

/// Tells whoever asks later how the root container ended.
fn write_last_words(mut file: File, loader: &Loader, status: u32) {
    let root = loader.root().ok();
    let words = serde_json::json!({
        "id": loader.id(),
        "status": status,
        "reason": root.as_ref().map(|r| r.reason()).unwrap_or_default(),
        "killed_by": root.and_then(|r| r.killed_by()),
        "time": humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
    });
    if let Err(e) = file.write_all(format!("{words}\n").as_bytes()) {
        log::warn!("writing the exit file: {e}");
    }
}
