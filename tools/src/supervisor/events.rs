//! Events as they are read.

#![forbid(unsafe_code)]

use airlock_wire::api::supervisor::{DomainInfo, Event, EventType};
use airlock_wire::error::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;

/// A longer line is none that a supervisor writes.
const MAX_LINE: u64 = 64 << 10;

/// What happens in a sandbox' domains, in order, until the sandbox ends. [`Iterator::next`] blocks.
#[derive(Debug)]
pub struct Events {
    lines: BufReader<File>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this exit status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl Ending {
    /// As a shell counts it: the exit status, or 128 + the signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(status) => status,
            Self::Signaled(signal) => 128 + signal,
        }
    }

    fn of_wait_status(status: u32) -> Self {
        match (status & 0x7f).cast_signed() {
            0 => Self::Exited((status >> 8 & 0xff).cast_signed()),
            signal => Self::Signaled(signal),
        }
    }
}

impl std::fmt::Display for Ending {
    /// In the words of Go's `exec.ExitError`, which Lambda shows to its users.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Signaled(signal) => match go_name(*signal) {
                Some(name) => write!(f, "signal: {name}"),
                None => write!(f, "signal: signal {signal}"),
            },
        }
    }
}

/// What Go calls a signal on Linux.
fn go_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGUSR1 => "user defined signal 1",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGUSR2 => "user defined signal 2",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        _ => return None,
    })
}

impl Events {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { lines: BufReader::new(File::from(fd)) }
    }

    /// Waits until the named process has ended. `look` describes the domains: what a reader that was too slow has missed is
    /// found there.
    ///
    /// # Errors
    /// The sandbox ends first; what reading or `look` says.
    pub fn wait_for(
        &mut self,
        domain: &str,
        name: &str,
        look: impl Fn() -> Result<Vec<DomainInfo>>,
    ) -> Result<Ending> {
        for event in self {
            let event = event?.event;
            if event.kind == EventType::EventLoss {
                let domains = look()?;
                let processes = domains.iter().filter(|d| d.domain == domain).flat_map(|d| &d.processes);
                let ended = processes.filter(|p| p.name == name).find_map(|p| p.status);
                if let Some(status) = ended {
                    return Ok(Ending::of_wait_status(status));
                }
            } else if event.domain.as_deref() == Some(domain) && event.name.as_deref() == Some(name) {
                return match (event.exit_status, event.signo) {
                    (Some(status), _) => Ok(Ending::Exited(status)),
                    (None, Some(signal)) => Ok(Ending::Signaled(signal)),
                    (None, None) => {
                        Err(Error::failure(format!("an event of {name} does not say how it ended")))
                    }
                };
            }
        }
        Err(Error::invalid_state(format!("the sandbox ended before process {name} of domain {domain} did")))
    }
}

impl Iterator for Events {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match (&mut self.lines).take(MAX_LINE).read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).map_err(|e| {
                Error::failure(format!("an event that cannot be read ({e}): {}", line.trim_end()))
            })),
            Err(e) => Some(Err(Error::from(e).context("read events"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlock_wire::api::supervisor::{EventData, ProcessInfo};
    use std::io::Write;

    fn events(of: &[EventData]) -> Events {
        let (reader, mut writer) = std::io::pipe().unwrap();
        for event in of {
            let line = serde_json::to_string(&Event { time: 1, event: event.clone() }).unwrap();
            writeln!(writer, "{line}").unwrap();
        }
        Events::new(reader.into())
    }

    #[test]
    fn the_end_of_a_process_is_found_among_others() {
        let all = [
            EventData::termination("d", "other", 0),
            EventData::termination("e", "p", 0),
            EventData::termination("d", "p", 3 << 8),
            EventData::termination("d", "q", 9),
        ];
        let mut read = events(&all);
        let none = || Ok(Vec::new());
        let ended = read.wait_for("d", "p", none).unwrap();
        assert_eq!(
            (ended, ended.code(), ended.to_string().as_str()),
            (Ending::Exited(3), 3, "exit status 3")
        );
        let ended = read.wait_for("d", "q", none).unwrap();
        assert_eq!((ended.code(), ended.to_string().as_str()), (137, "signal: killed"));
        let error = read.wait_for("d", "r", none).unwrap_err();
        assert!(error.message.contains("process r of domain d"), "{error}");
        assert_eq!(Ending::Signaled(40).to_string(), "signal: signal 40");
    }

    #[test]
    fn what_was_lost_is_looked_for() {
        let look = || {
            let process = ProcessInfo { name: "p".to_owned(), pid: 2, status: Some(15) };
            Ok(vec![DomainInfo { domain: "d".to_owned(), processes: vec![process], ..DomainInfo::default() }])
        };
        assert_eq!(events(&[EventData::loss(7)]).wait_for("d", "p", look).unwrap(), Ending::Signaled(15));
        assert!(events(&[EventData::loss(7)]).wait_for("d", "q", look).is_err());
        assert!(events(&[EventData::loss(7)]).wait_for("d", "p", || Err(Error::failure("x"))).is_err());
    }

    #[test]
    fn odd_lines_are_told() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"nonsense\n{}\n").unwrap();
        drop(writer);
        let mut events = Events::new(reader.into());
        assert!(events.next().unwrap().unwrap_err().message.contains("nonsense"));
        assert_eq!(events.next().unwrap().unwrap(), Event::default());
        assert!(events.next().is_none());
    }
}
