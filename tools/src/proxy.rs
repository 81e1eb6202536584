//! The process that stands for another one.
//!
//! A caller that reaps (conmon, the runc.v2 shim) must find a child of its own in the pid file, and it must end as the
//! container's process ends. For the root container that is the sandbox process. For a subcontainer and for `exec -d` it
//! is a proxy: it waits for the process by RPC, passes signals on, and then ends the same way. If it is killed, its
//! connection hangs up and the sandbox kills the process.

#![forbid(unsafe_code)]

use crate::console::{Foreground, SignalBlock};
use crate::sandbox::reap;
use crate::state::ExitRecord;
use crate::sys::{self, Fork};
use airlock_wire::api::airlock as api;
use airlock_wire::client::{Client, Dialect};
use airlock_wire::error::{Error, Kind, Result};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// The process that is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its container.
    pub cid: String,
    /// Its pid in the container's pid namespace; 0 for the container's init.
    pub pid: i32,
}

/// A process that is supervised: the sandbox kills it when this is dropped (or this program dies).
#[derive(Debug)]
pub struct Supervised {
    target: Target,
    /// The reply to `Airlock.Supervise` comes there.
    waiting: Client,
    /// Passes signals on there.
    signals: Client,
}

impl Supervised {
    /// Asks the sandbox for the end of `target`, without waiting for it. Two connections: one to wait on, one to pass
    /// signals on.
    pub fn start(target: Target, mut waiting: Client, signals: Client) -> Result<Self> {
        let args = api::SuperviseArgs { cid: target.cid.clone(), pid: target.pid };
        waiting.start::<api::Supervise>(&args, &[])?;
        Ok(Self { target, waiting, signals })
    }

    /// Waits for the end while passing on what `foreground` collects. Returns the wait status: that of a kill when the
    /// sandbox is killed meanwhile.
    pub fn wait(self, foreground: Foreground) -> Result<i32> {
        self.wait_told(foreground).map(|(status, _)| status)
    }

    /// As [`Supervised::wait`], and asks the sandbox what it knows of the end of a container's init.
    fn wait_told(self, foreground: Foreground) -> Result<(i32, Option<api::ContainerInfo>)> {
        let Self { target, mut waiting, mut signals } = self;
        foreground.wait(waiting.stream().as_fd(), |signo| {
            let args = api::SignalForwardArgs { cid: target.cid.clone(), pid: target.pid, signo };
            // The process may just have ended, which the other connection will tell.
            let _ = signals.call::<api::SignalForward>(&args, &[]);
        })?;
        match waiting.finish::<api::Supervise>() {
            Ok(reply) => {
                let named = api::ContainerId { cid: target.cid };
                let told = (target.pid == 0).then(|| signals.call::<api::Info>(&named, &[]));
                Ok((reply.value as i32, told.and_then(Result::ok).map(|reply| reply.value)))
            }
            // The sandbox is gone, and with it everything in it: that is a kill.
            Err(e) if e.kind == Kind::Disconnected => Ok((libc::SIGKILL, None)),
            Err(e) => Err(e),
        }
    }
}

/// What a proxy works with.
#[derive(Debug)]
pub struct Proxy {
    /// Whom it stands for.
    pub supervised: Supervised,
    /// Where the last words of a subcontainer go.
    pub exit_file: Option<File>,
}

impl Proxy {
    /// Forks the proxy off this process, which must be single-threaded (the command line is). Returns its pid.
    pub fn fork(self) -> Result<i32> {
        let block = SignalBlock::everything()?;
        match sys::fork_single_threaded().map_err(|e| Error::from(e).context("fork the proxy process"))? {
            Fork::Parent(pid) => {
                drop(block);
                // The connections live on in the child.
                Ok(pid)
            }
            Fork::Child => {
                let Supervised { waiting, signals, .. } = &self.supervised;
                let mut keep: Vec<i32> = vec![waiting.stream().as_raw_fd(), signals.stream().as_raw_fd()];
                keep.extend(self.exit_file.as_ref().map(AsRawFd::as_raw_fd));
                sys::close_all_but(&keep, 0);
                sys::null_stdio();
                self.main(block)
            }
        }
    }

    /// Starts the proxy as a program of its own, `airlock proxy`: for callers with threads. `binary` is the airlock
    /// binary (see [`crate::sandbox::protected_binary`]). Returns the pid of the child, which the caller reaps.
    pub fn execute(self, binary: BorrowedFd<'_>) -> Result<i32> {
        let Supervised { target, waiting, signals } = self.supervised;
        let exit_file = match self.exit_file {
            Some(file) => Stdio::from(file),
            None => Stdio::null(),
        };
        let child = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()))
            .arg0("airlock")
            .args(["proxy", &target.cid, &target.pid.to_string()])
            .env_clear()
            .stdin(OwnedFd::from(waiting.into_stream()))
            .stdout(OwnedFd::from(signals.into_stream()))
            .stderr(exit_file)
            .spawn()
            .map_err(|e| Error::from(e).context("execute the proxy process (is /proc mounted?)"))?;
        i32::try_from(child.id()).map_err(|_| Error::failure("pid out of range"))
    }

    /// Becomes the proxy; does not return. Descriptors 0 to 2 are `/dev/null` or unused by now.
    fn main(self, block: SignalBlock) -> ! {
        // Neither the caller's terminal nor its directory is ours to hold.
        let _ = nix::unistd::setsid();
        let _ = nix::unistd::chdir("/");
        sys::set_name(c"airlock-proxy");
        let Proxy { supervised, exit_file } = self;
        let id = supervised.target.cid.clone();
        let (status, told) = Foreground::new(block, None)
            .and_then(|foreground| supervised.wait_told(foreground))
            // What nobody watches any more is killed.
            .unwrap_or((libc::SIGKILL, None));
        if let Some(mut file) = exit_file {
            let told = told.unwrap_or_default();
            let record = ExitRecord {
                id,
                status,
                reason: told.reason,
                killed_by: told.killed_by,
                time: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
            };
            if let Ok(text) = serde_json::to_vec(&record) {
                // Nobody is left to tell.
                let _ = file.write_all(&text);
            }
        }
        end_as(status)
    }
}

/// Runs `airlock proxy CID PID`: connections on descriptors 0 and 1, the exit file on 2. Does not return.
pub fn main(cid: &str, pid: i32) -> ! {
    let run = || -> Result<Proxy> {
        let take = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(|e| Error::from(e).context("duplicate an inherited descriptor"))
        };
        let waiting = UnixStream::from(take(std::io::stdin().as_fd())?);
        let signals = UnixStream::from(take(std::io::stdout().as_fd())?);
        let exit_file = File::from(take(std::io::stderr().as_fd())?);
        let target = Target { cid: cid.to_owned(), pid };
        // The request was sent before this program was executed.
        let waiting = Client::from_stream(waiting, Dialect::Binary);
        let signals = Client::from_stream(signals, Dialect::Binary);
        Ok(Proxy { supervised: Supervised { target, waiting, signals }, exit_file: Some(exit_file) })
    };
    match (run(), SignalBlock::everything()) {
        (Ok(proxy), Ok(block)) => {
            // The originals would keep the connections open behind our back.
            sys::null_stdio();
            proxy.main(block)
        }
        _ => sys::exit_now(1),
    }
}

/// Ends this process as `wait_status` says: with that exit code, or of that signal (without a core of our own).
fn end_as(wait_status: i32) -> ! {
    let signal = wait_status & 0x7f;
    if signal != 0 {
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
        sys::die_of(signal);
        sys::exit_now(128 + signal);
    }
    sys::exit_now((wait_status >> 8) & 0xff)
}

/// Waits for a proxy that could not be kept, after killing it.
pub(crate) fn discard(pid: i32) {
    if let Ok(fd) = sys::pidfd_open(pid) {
        let _ = sys::pidfd_send_signal(fd.as_fd(), libc::SIGKILL);
        let _ = reap(pid);
    }
}
