//! Terminals: handing a pty's master to the caller, and relaying between the caller's terminal and a pty.
//!
//! The console socket's framing (one message: the pty's name and exactly one descriptor; no reply) is what containerd
//! and conmon expect of an OCI runtime.

#![forbid(unsafe_code)]

use crate::sys;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use sendfd::SendWithFd;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A connection to a console socket (or a pidfd socket, which has the same framing).
#[derive(Debug)]
pub struct ConsoleSocket {
    path: PathBuf,
    stream: UnixStream,
}

impl ConsoleSocket {
    /// Connects to the listening socket at `path`. Done before anything is made, so that a wrong path costs nothing.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = crate::files::connect_stream(path)
            .map_err(|e| Error::from(e).context(format!("connect to console socket {}", path.display())))?;
        Ok(Self { path: path.to_owned(), stream })
    }

    /// Sends `fd` with `payload` (which must not be empty) in one message and closes the connection.
    pub fn send(self, payload: &str, fd: BorrowedFd<'_>) -> Result<()> {
        let bytes = payload.as_bytes();
        let sent = loop {
            match self.stream.send_with_fd(bytes, &[fd.as_raw_fd()]) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match sent {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => Err(Error::failure(format!("console socket {} took a part only", self.path.display()))),
            Err(e) => Err(Error::from(e).context(format!("send to console socket {}", self.path.display()))),
        }
    }

    /// Sends a pty's master with the name of its other end.
    pub fn send_master(self, master: BorrowedFd<'_>) -> Result<()> {
        let name = match sys::pty_number(master) {
            Ok(number) => format!("/dev/pts/{number}"),
            Err(_) => "/dev/console".to_owned(),
        };
        self.send(&name, master)
    }
}

/// Puts a terminal into raw mode and back again when dropped.
#[derive(Debug)]
pub struct RawMode {
    tty: OwnedFd,
    saved: Termios,
}

impl RawMode {
    /// Makes the terminal behind `tty` raw: every key goes to the other side, which has the line discipline.
    pub fn enter(tty: BorrowedFd<'_>) -> Result<Self> {
        let text = |e: Errno| Error::from(e).context("set the terminal to raw mode");
        let tty = tty.try_clone_to_owned().map_err(|e| Error::from(e).context("duplicate the terminal"))?;
        let saved = tcgetattr(&tty).map_err(text)?;
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&tty, SetArg::TCSANOW, &raw).map_err(text)?;
        Ok(Self { tty, saved })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // TCSADRAIN: what the program wrote last is shown with the raw settings that it was meant for.
        let _ = tcsetattr(&self.tty, SetArg::TCSADRAIN, &self.saved);
    }
}

/// A pty's master that is relayed to this process' own standard input and output.
#[derive(Debug)]
pub struct Relay {
    master: OwnedFd,
    raw: Option<RawMode>,
    to_master: Pump,
    to_output: Pump,
}

/// One direction of a relay: bytes that were read and not yet written.
#[derive(Debug, Default)]
struct Pump {
    buffer: Vec<u8>,
    /// The source has ended.
    ended: bool,
}

/// Bytes a direction holds at most before it stops reading.
const BUFFER: usize = 16 << 10;
/// End of file as a line discipline takes it.
const CONTROL_D: u8 = 4;

impl Relay {
    /// Starts relaying `master`; standard input becomes raw if it is a terminal.
    pub fn start(master: OwnedFd) -> Result<Self> {
        let stdin = std::io::stdin();
        let raw = if nix::unistd::isatty(&stdin).unwrap_or(false) {
            Some(RawMode::enter(stdin.as_fd())?)
        } else {
            None
        };
        let flags = fcntl(&master, FcntlArg::F_GETFL).map_err(|e| Error::from(e).context("pty"))?;
        fcntl(&master, FcntlArg::F_SETFL(OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK))
            .map_err(|e| Error::from(e).context("pty"))?;
        let relay = Self { master, raw, to_master: Pump::default(), to_output: Pump::default() };
        relay.resize();
        Ok(relay)
    }

    /// Gives the pty the size of our terminal, if we have one.
    pub fn resize(&self) {
        if self.raw.is_some()
            && let Ok(size) = sys::window_size(std::io::stdin().as_fd())
        {
            // A pty that has gone away needs no size.
            let _ = sys::set_window_size(self.master.as_fd(), &size);
        }
    }

    fn wants_input(&self) -> bool {
        !self.to_master.ended && self.to_master.buffer.len() < BUFFER
    }

    fn wants_output(&self) -> bool {
        !self.to_output.ended && self.to_output.buffer.len() < BUFFER
    }

    /// Reads our standard input once (it was reported readable).
    fn read_input(&mut self) {
        let mut bytes = [0; 4096];
        match nix::unistd::read(std::io::stdin(), &mut bytes) {
            Ok(0) => {
                self.to_master.ended = true;
                self.to_master.buffer.push(CONTROL_D);
            }
            Ok(n) => self.to_master.buffer.extend_from_slice(&bytes[..n]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.to_master.ended = true,
        }
    }

    /// Moves what can be moved without blocking on the pty. False when the pty gave nothing.
    fn move_master(&mut self) -> bool {
        while !self.to_master.buffer.is_empty() {
            match nix::unistd::write(&self.master, &self.to_master.buffer) {
                Ok(n) => drop(self.to_master.buffer.drain(..n)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => {
                    self.to_master.buffer.clear();
                    self.to_master.ended = true;
                }
            }
        }
        let mut bytes = [0; 4096];
        if !self.wants_output() {
            return false;
        }
        match nix::unistd::read(&self.master, &mut bytes) {
            Ok(0) => {
                self.to_output.ended = true;
                false
            }
            Ok(n) => {
                self.to_output.buffer.extend_from_slice(&bytes[..n]);
                true
            }
            Err(Errno::EINTR) => true,
            Err(Errno::EAGAIN) => false,
            // EIO: nobody has the other end open any more.
            Err(_) => {
                self.to_output.ended = true;
                false
            }
        }
    }

    /// Writes all collected output; blocks while our own output does.
    fn flush_output(&mut self) {
        while !self.to_output.buffer.is_empty() {
            match nix::unistd::write(std::io::stdout(), &self.to_output.buffer) {
                Ok(n) => drop(self.to_output.buffer.drain(..n)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let stdout = std::io::stdout();
                    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
                    let _ = poll(&mut fds, PollTimeout::NONE);
                }
                // Nobody reads us: the program learns it as it would on a terminal that hung up.
                Err(_) => {
                    self.to_output.buffer.clear();
                    self.to_output.ended = true;
                }
            }
        }
    }

    /// Moves all output that is there now, then restores our terminal.
    fn finish(mut self) {
        loop {
            // A poll makes the pty hand over what its writer has written: a read alone may come too early.
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let there = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0);
            if !there || !self.move_master() {
                break;
            }
            self.flush_output();
        }
        self.flush_output();
    }
}

/// Blocks the signals that a foreground command or a proxy passes on, for this thread: from here on they wait for
/// [`Foreground`]. Call it before the first process or thread is made.
#[derive(Debug)]
pub struct SignalBlock {
    set: SigSet,
    before: SigSet,
}

/// Signals that stay with this process: those that the kernel raises for its own faults, job control, and SIGCHLD.
const OWN: [Signal; 17] = [
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGCHLD,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGCONT,
    Signal::SIGPIPE,
    Signal::SIGURG,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGSYS,
    Signal::SIGABRT,
    Signal::SIGXCPU,
];

impl SignalBlock {
    /// Blocks everything that a person or a supervisor may send, real-time signals included.
    pub fn forwardable() -> Result<Self> {
        let mut set = SigSet::all();
        for signal in OWN {
            set.remove(signal);
        }
        let before = set
            .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)
            .map_err(|e| Error::from(e).context("block signals"))?;
        Ok(Self { set, before })
    }

    /// Blocks all signals but SIGKILL, SIGSTOP, faults and SIGCHLD: for a process that stands for another one.
    pub fn everything() -> Result<Self> {
        let mut set = SigSet::all();
        for signal in OWN {
            if !matches!(
                signal,
                Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU | Signal::SIGCONT | Signal::SIGABRT
            ) {
                set.remove(signal);
            }
        }
        let before = set
            .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)
            .map_err(|e| Error::from(e).context("block signals"))?;
        Ok(Self { set, before })
    }
}

impl Drop for SignalBlock {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// Waits for something to end while passing on signals and, with a terminal, keys and output.
#[derive(Debug)]
pub struct Foreground {
    signals: SignalFd,
    relay: Option<Relay>,
    _block: SignalBlock,
}

impl Foreground {
    /// Takes over the blocked signals, and the pty's master if there is one to relay.
    pub fn new(block: SignalBlock, master: Option<OwnedFd>) -> Result<Self> {
        let signals = SignalFd::with_flags(&block.set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|e| Error::from(e).context("wait for signals"))?;
        let relay = master.map(Relay::start).transpose()?;
        Ok(Self { signals, relay, _block: block })
    }

    /// Returns when `ended` becomes readable. Signals that arrive go to `forward` (a failure there is the other side's
    /// business); SIGWINCH resizes the relayed pty instead. Output that the pty holds at the end is still shown.
    pub fn wait(mut self, ended: BorrowedFd<'_>, mut forward: impl FnMut(i32)) -> Result<()> {
        loop {
            let stdin = std::io::stdin();
            let mut fds = vec![
                PollFd::new(ended, PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            let mut input = None;
            if let Some(relay) = &self.relay {
                let mut events = PollFlags::empty();
                events.set(PollFlags::POLLIN, relay.wants_output());
                events.set(PollFlags::POLLOUT, !relay.to_master.buffer.is_empty());
                if !relay.to_output.ended {
                    fds.push(PollFd::new(relay.master.as_fd(), events));
                }
                if relay.wants_input() {
                    input = Some(fds.len());
                    fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
                }
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::from(e).context("wait")),
            }
            let over = fds[0].any().unwrap_or(false);
            let readable = input.is_some_and(|i| fds[i].any().unwrap_or(false));
            drop(fds);
            self.pass_signals(&mut forward);
            if let Some(relay) = &mut self.relay {
                if readable {
                    relay.read_input();
                }
                relay.move_master();
                relay.flush_output();
            }
            if over {
                if let Some(relay) = self.relay.take() {
                    relay.finish();
                }
                return Ok(());
            }
        }
    }

    fn pass_signals(&mut self, forward: &mut impl FnMut(i32)) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let Ok(signal) = i32::try_from(info.ssi_signo) else { continue };
            match (&self.relay, signal) {
                (Some(relay), libc::SIGWINCH) => relay.resize(),
                _ => forward(signal),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use sendfd::RecvWithFd;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_console_socket_gets_one_message_with_one_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let error = ConsoleSocket::connect(&path).unwrap_err();
        assert!(error.message.contains("console.sock"), "{error}");
        let listener = UnixListener::bind(&path).unwrap();
        let pty = openpty(None, None).unwrap();
        ConsoleSocket::connect(&path).unwrap().send_master(pty.master.as_fd()).unwrap();

        let (stream, _) = listener.accept().unwrap();
        let (mut bytes, mut fds) = ([0; 64], [-1; 4]);
        let (length, count) = stream.recv_with_fd(&mut bytes, &mut fds).unwrap();
        assert_eq!(count, 1);
        let name = std::str::from_utf8(&bytes[..length]).unwrap();
        let theirs = nix::unistd::ttyname(&pty.slave).unwrap();
        assert_eq!(Path::new(name), theirs);
        // The connection is closed behind it.
        assert_eq!((&stream).read(&mut bytes).unwrap(), 0);
        let received = sys::duplicate_number(fds[0]).unwrap();
        nix::unistd::close(fds[0]).unwrap();
        // It is the master: what it writes, the other end reads.
        File::from(received).write_all(b"hi\n").unwrap();
        let read = nix::unistd::read(&pty.slave, &mut bytes).unwrap();
        assert_eq!(&bytes[..read], b"hi\n");
    }

    #[test]
    fn raw_mode_is_undone() {
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let raw = RawMode::enter(pty.slave.as_fd()).unwrap();
        assert_ne!(tcgetattr(&pty.slave).unwrap().local_flags, before.local_flags);
        drop(raw);
        assert_eq!(tcgetattr(&pty.slave).unwrap().local_flags, before.local_flags);
        let file = tempfile::tempfile().unwrap();
        assert!(RawMode::enter(file.as_fd()).is_err());
    }

    #[test]
    fn sizes_travel() {
        let pty = openpty(None, None).unwrap();
        let size = libc::winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
        sys::set_window_size(pty.master.as_fd(), &size).unwrap();
        let seen = sys::window_size(pty.slave.as_fd()).unwrap();
        assert_eq!((seen.ws_row, seen.ws_col), (33, 77));
    }

    #[test]
    fn the_last_output_of_a_pty_is_not_lost() {
        let pty = openpty(None, None).unwrap();
        let mut relay =
            Relay { master: pty.master, raw: None, to_master: Pump::default(), to_output: Pump::default() };
        fcntl(&relay.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut slave = File::from(pty.slave);
        slave.write_all(b"last words").unwrap();
        drop(slave);
        let mut fds = [PollFd::new(relay.master.as_fd(), PollFlags::POLLIN)];
        assert!(poll(&mut fds, PollTimeout::ZERO).unwrap() > 0);
        assert!(relay.move_master());
        assert_eq!(relay.to_output.buffer, b"last words");
        relay.to_output.buffer.clear();
        assert!(!relay.move_master() && relay.to_output.ended);
    }

    #[test]
    fn signals_are_collected_until_the_end() {
        // On a thread of its own: the mask is a thread's.
        std::thread::spawn(|| {
            let block = SignalBlock::forwardable().unwrap();
            for signal in [Signal::SIGUSR1, Signal::SIGTERM, Signal::SIGWINCH] {
                nix::sys::signal::raise(signal).unwrap();
            }
            let (ended, writer) = std::io::pipe().unwrap();
            drop(writer);
            let mut seen = Vec::new();
            Foreground::new(block, None).unwrap().wait(ended.as_fd(), |s| seen.push(s)).unwrap();
            seen.sort_unstable();
            assert_eq!(seen, [libc::SIGUSR1, libc::SIGTERM, libc::SIGWINCH]);
            assert!(!SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM));
        })
        .join()
        .unwrap();
    }
}
