//! Talking to an agent.
#![forbid(unsafe_code)]

use crate::checkpoint::order::{Event, Order, Progress, Report};
use crate::checkpoint::state::Refusal;
use crate::container::Process;
use airlock_wire::binary;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

/// How long the news of an agent's end may be on their way, milliseconds.
const REPORT: u16 = 1000;

/// An agent at work.
#[derive(Debug)]
pub(super) struct Agent {
    pub channel: UnixStream,
    /// Tells how it ended when it ends without a word.
    pub process: Option<Arc<Process>>,
    /// What it gave us to keep: see [`Event::Keep`].
    pub kept: Mutex<Vec<(i32, OwnedFd)>>,
}

/// What the loader does at the turns of a dump.
pub(super) trait Turns {
    /// How far it is.
    fn progress(&mut self, progress: Progress);
    /// Tasks were told to stop: frozen ones have to be thawed for it.
    fn interrupted(&mut self) -> Result<()>;
    /// All tasks have stopped.
    fn stopped(&mut self);
    /// Tasks are about to go on: those that were frozen have to be frozen.
    fn detaching(&mut self);
    /// Gives away what tracks writes.
    fn untrack(&mut self) -> Vec<OwnedFd>;
    /// The containers run again.
    fn resumed(&mut self, pause_us: u64);
    /// The image is complete. True: the containers are to end.
    fn saved(&mut self, report: &Report, fds: Vec<OwnedFd>) -> bool;
}

/// How a dump came out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dumped {
    /// The image is complete; true: the containers were ended.
    Saved(Report, bool),
    /// Nothing stands against it.
    Possible(Report),
    /// These cannot be saved; nothing was disturbed.
    Refused(Vec<Refusal>),
}

impl Agent {
    pub fn order(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> Result<()> {
        binary::send(&self.channel, order, fds).map_err(|e| self.explain(e))
    }

    /// The next event but log lines.
    pub fn next(&self) -> Result<(Event, Vec<OwnedFd>)> {
        self.receive().map_err(|e| self.explain(e))
    }

    fn receive(&self) -> Result<(Event, Vec<OwnedFd>)> {
        loop {
            match binary::recv(&self.channel) {
                Ok((Event::Log { level, text }, _)) => {
                    const LEVELS: [log::Level; 5] = [
                        log::Level::Error,
                        log::Level::Warn,
                        log::Level::Info,
                        log::Level::Debug,
                        log::Level::Trace,
                    ];
                    let level = LEVELS[usize::from(level.clamp(1, 5)) - 1];
                    log::log!(level, "agent: {text}");
                }
                Ok((Event::Keep { number }, fds)) => {
                    crate::container::lock(&self.kept).extend(fds.into_iter().map(|fd| (number, fd)));
                }
                Ok((Event::Forget { number }, _)) => {
                    crate::container::lock(&self.kept).retain(|(kept, _)| *kept != number);
                }
                Ok(event) => return Ok(event),
                Err(e) => return Err(e),
            }
        }
    }

    /// Blocks until it has ended.
    fn wait(&self) {
        if let Some(process) = &self.process {
            wait_for(process.pidfd(), PollTimeout::NONE);
        }
    }

    /// A lost connection says little: how the agent ended says more.
    fn explain(&self, error: Error) -> Error {
        let Some(process) = self.process.as_ref().filter(|_| error.kind == Kind::Disconnected) else {
            return error;
        };
        // Its parent is told first.
        self.wait();
        wait_for(process.ended(), PollTimeout::from(REPORT));
        let status = process.status().or_else(|| crate::sys::process::exit_status(process.pidfd()).ok());
        let how = match status {
            Some(s) if s & 0x7f == libc::SIGKILL as u32 => {
                ": it was killed, by somebody or by the kernel (is memory short?)".to_owned()
            }
            Some(s) if s & 0x7f != 0 => format!(": signal {}", s & 0x7f),
            Some(s) => format!(": exit status {}", s >> 8 & 0xff),
            None => String::new(),
        };
        Error::new(Kind::Failure, format!("the process that does the work ended without a word{how}"))
    }

    /// Talks a dump through to the agent's end, so that nothing is traced any more when this returns.
    pub fn dump(&self, order: &Order, fds: &[BorrowedFd<'_>], turns: &mut dyn Turns) -> Result<Dumped> {
        self.order(order, fds)?;
        let mut outcome = None;
        loop {
            let (event, fds) = match (self.receive(), &outcome) {
                (Ok(event), _) => event,
                (Err(e), None) => return Err(self.explain(e)),
                (Err(_), Some(_)) => break,
            };
            match event {
                Event::Progress(progress) => turns.progress(progress),
                Event::Interrupted => match turns.interrupted() {
                    Ok(()) => self.order(&Order::Continue, &[])?,
                    Err(e) => {
                        // It lets go of everything when it hears no more of us.
                        let _ = self.channel.shutdown(std::net::Shutdown::Write);
                        outcome = Some(Err(e));
                    }
                },
                Event::Stopped => {
                    turns.stopped();
                    self.order(&Order::Continue, &[])?;
                }
                Event::Detaching => {
                    turns.detaching();
                    // After a failure nobody listens any more.
                    let _ = self.order(&Order::Continue, &[]);
                }
                Event::Untrack => {
                    let fds = turns.untrack();
                    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                    let _ = self.order(&Order::Continue, &fds);
                }
                Event::Resumed { pause_us } => turns.resumed(pause_us),
                Event::Refused(refusals) => outcome = Some(Ok(Dumped::Refused(refusals))),
                Event::DryRun(report) => outcome = Some(Ok(Dumped::Possible(report))),
                Event::Saved(report) => {
                    let kill = turns.saved(&report, fds);
                    self.order(&Order::Release { kill }, &[])?;
                    outcome = Some(Ok(Dumped::Saved(report, kill)));
                }
                // Once the image is complete it is the containers' going on that fails: the worse news counts.
                Event::Failed(_) if matches!(outcome, Some(Err(_))) => {}
                Event::Failed(error) => outcome = Some(Err(error)),
                Event::Restored(_)
                | Event::PagesIn(_)
                | Event::Log { .. }
                | Event::Keep { .. }
                | Event::Forget { .. } => outcome = Some(Err(out_of_turn())),
            }
        }
        // How it ended is not waited for: when it has ended the root container, nobody hears of that before this returns.
        self.wait();
        outcome.unwrap_or_else(|| Err(out_of_turn()))
    }

    /// Waits for a restore's next milestone: the programs run (false), or all pages are there (true).
    pub fn restored(&self, mut progress: impl FnMut(Progress)) -> Result<(Report, bool)> {
        loop {
            match self.next()?.0 {
                Event::Progress(p) => progress(p),
                Event::Restored(report) => return Ok((report, false)),
                Event::PagesIn(report) => return Ok((report, true)),
                Event::Failed(error) => return Err(error),
                _ => return Err(out_of_turn()),
            }
        }
    }
}

fn wait_for(fd: BorrowedFd<'_>, limit: PollTimeout) {
    while poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], limit) == Err(Errno::EINTR) {}
}

fn out_of_turn() -> Error {
    Error::failure("the process that does the work said something out of turn")
}
