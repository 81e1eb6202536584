//! Real processes, stopped and let go. Each test does its ptrace work on its own thread, as ptrace wants it.
#![cfg(target_arch = "x86_64")]

mod batches;
mod calls;
mod children;
mod descriptors;
mod lists;
mod measure;
mod orphans;
mod signals;

use super::{Region, Tracee};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Computes the same thing again and again while signals arrive, and says at SIGTERM whether it always came out right.
const COMPUTATION: &str = "import hashlib, signal\n\
    n, end = 0, False\n\
    def tick(s, f):\n\
    \x20   global n; n += 1\n\
    def stop(s, f):\n\
    \x20   global end; end = True\n\
    def chain():\n\
    \x20   h = b''\n\
    \x20   for i in range(3000): h = hashlib.sha256(h + str(i * 1.25).encode()).digest()\n\
    \x20   return h\n\
    first, right = chain(), True\n\
    signal.signal(signal.SIGALRM, tick)\n\
    signal.signal(signal.SIGTERM, stop)\n\
    signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)\n\
    print('ready')\n\
    while not end: right = right and chain() == first\n\
    while n < 50: pass\n\
    signal.setitimer(signal.ITIMER_REAL, 0)\n\
    print('right' if right else 'wrong')";

/// A program that runs; killed when dropped.
pub(super) struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Program {
    /// Starts `command`; `None` (and a note) when there is no such program.
    pub(super) fn start(command: &[&str]) -> Option<Self> {
        let spawned =
            Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        match spawned {
            Ok(mut child) => {
                let output = BufReader::new(child.stdout.take().unwrap());
                Some(Self { child, output })
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: {} is not installed", command[0]);
                None
            }
            Err(e) => panic!("{}: {e}", command[0]),
        }
    }

    /// Starts a Python program and waits until it has printed a line.
    pub(super) fn python(code: &str) -> Option<Self> {
        let mut program = Self::start(&["python3", "-uc", code])?;
        assert_eq!(program.line(), "ready");
        Some(program)
    }

    /// `sleep` for `seconds`, once it does sleep.
    pub(super) fn sleep(seconds: &str) -> Self {
        let program = Self::start(&["sleep", seconds]).unwrap();
        until("sleep sleeps", || {
            std::fs::read_to_string(format!("/proc/{}/syscall", program.pid())).is_ok_and(|t| {
                t.starts_with(&format!("{} ", libc::SYS_clock_nanosleep)) || t.starts_with("35 ")
            })
        });
        program
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The next line that it prints.
    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(super) fn state(&self) -> char {
        super::procfs::state(self.pid()).unwrap()
    }

    pub(super) fn signal(&self, signal: i32) {
        let signal = nix::sys::signal::Signal::try_from(signal).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for its end, which must be a success.
    pub(super) fn finish(mut self) {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// True when a task has ended, whether or not it has been waited for.
pub(super) fn dead(pid: i32) -> bool {
    matches!(super::procfs::state(pid), None | Some('Z'))
}

/// Waits for a condition that nothing announces.
pub(super) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn seized(program: &Program) -> (Tracee, Region) {
    let mut t = Tracee::seize(program.pid()).unwrap();
    let region = Region::map(&mut t, None).unwrap();
    (t, region)
}

pub(super) fn status(pid: i32, field: &str) -> String {
    super::procfs::status_field(pid, field).unwrap()
}
