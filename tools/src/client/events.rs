//! Resource usage and out-of-memory events of a container.

#![forbid(unsafe_code)]

use crate::cgroups::OomWatch;
use crate::process::timeout_until;
use crate::state::{ExitRecord, State};
use airlock_wire::api::container_manager::NetworkInterface;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde_json::{Value, json};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// What a container uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// What its cgroup counts.
    pub cgroup: airlock_loader::cgroup::Stats,
    /// The interfaces of its network namespace.
    pub network_interfaces: Vec<NetworkInterface>,
}

impl Stats {
    /// The `data` object of `events --stats`, as runc prints it.
    pub fn to_json(&self) -> Value {
        let mut json = self.cgroup.to_runc_json();
        if let Some(object) = json.as_object_mut() {
            // A list of plain structures always encodes.
            let interfaces = serde_json::to_value(&self.network_interfaces).unwrap_or_default();
            object.insert("network_interfaces".to_owned(), interfaces);
        }
        json
    }
}

/// Something that happened to a container.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// What it uses now.
    Stats(Box<Stats>),
    /// The kernel killed a process of it for lack of memory.
    Oom,
    /// It has ended: its last words, unless it was deleted before they could be read.
    Exit(Option<ExitRecord>),
}

impl Event {
    /// The event as a line of `events`, without the newline: `{"type","id","data"}`.
    pub fn to_line(&self, id: &str) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            r#type: &'a str,
            id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            data: Option<Value>,
        }
        let line = match self {
            Event::Stats(stats) => Line { r#type: "stats", id, data: Some(stats.to_json()) },
            Event::Oom => Line { r#type: "oom", id, data: None },
            Event::Exit(record) => {
                let data = record.as_ref().map(|record| {
                    json!({
                        "exit_code": record.code(),
                        "status": record.status,
                        "reason": record.reason,
                        "killed_by": record.killed_by,
                        "time": record.time,
                    })
                });
                Line { r#type: "exit", id, data }
            }
        };
        // It consists of strings and JSON, which always encode.
        serde_json::to_string(&line).unwrap_or_default()
    }
}

/// Reads what the container of `state` uses.
pub(super) fn stats(state: &State) -> Result<Stats> {
    let cgroup = state.cgroup.stats()?;
    // The OCI pid of a subcontainer is a proxy's, which is in the host's network; the sandbox's process never is.
    let text = std::fs::read_to_string(format!("/proc/{}/net/dev", state.loader.pid)).unwrap_or_default();
    Ok(Stats { cgroup, network_interfaces: interfaces(&text) })
}

/// The interfaces in `/proc/<pid>/net/dev`: two lines of header, then `name:` with 8 counters each way.
fn interfaces(text: &str) -> Vec<NetworkInterface> {
    let line = |line: &str| {
        let (name, counters) = line.rsplit_once(':')?;
        let counters: Vec<u64> = counters.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        let at = |index: usize| counters.get(index).copied();
        Some(NetworkInterface {
            name: name.trim().to_owned(),
            rx_bytes: at(0)?,
            rx_packets: at(1)?,
            rx_errors: at(2)?,
            rx_dropped: at(3)?,
            tx_bytes: at(8)?,
            tx_packets: at(9)?,
            tx_errors: at(10)?,
            tx_dropped: at(11)?,
        })
    };
    text.lines().skip(2).filter_map(line).collect()
}

/// The events of a container until it ends; see [`Airlock::events`](super::Airlock::events).
pub struct Events {
    state: State,
    last_words: LastWords,
    /// The process that ends with the container; `None` once it has ended.
    process: Option<OwnedFd>,
    interval: Duration,
    next: Instant,
    oom: Option<OomWatch>,
    /// Out-of-memory kills that happened and were not told yet.
    untold: u64,
    /// The last event is still to come.
    exits: bool,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("id", &self.state.id)
            .field("untold", &self.untold)
            .finish_non_exhaustive()
    }
}

/// Reads a container's exit record.
type LastWords = Box<dyn Fn() -> Option<ExitRecord> + Send>;

/// Why [`Events::wait`] returned.
enum News {
    StatsDue,
    Oom,
    Ended,
}

impl Events {
    pub(super) fn new(state: State, interval: Duration, last_words: LastWords) -> Result<Self> {
        let process = state.process().open();
        let oom = state.cgroup.watch_oom()?;
        Ok(Self { state, last_words, process, interval, next: Instant::now(), oom, untold: 0, exits: true })
    }

    /// Waits until the next statistics are due, an out-of-memory kill has happened, or the container has ended.
    fn wait(&mut self) -> Result<News> {
        loop {
            let Some(process) = &self.process else { return Ok(News::Ended) };
            if Instant::now() >= self.next {
                return Ok(News::StatsDue);
            }
            let mut fds = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.oom.as_ref().map(|oom| PollFd::new(oom.ready(), PollFlags::POLLIN)));
            match poll(&mut fds, timeout_until(Some(self.next))) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::from(e).context("wait for events")),
            }
            let ended = fds[0].any() == Some(true);
            self.untold += self.oom.as_mut().map_or(0, OomWatch::take);
            if ended {
                self.process = None;
            }
            if self.untold > 0 {
                return Ok(News::Oom);
            }
        }
    }
}

impl Iterator for Events {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        let news = if self.untold > 0 { Ok(News::Oom) } else { self.wait() };
        match news {
            Err(e) => {
                (self.process, self.exits) = (None, false);
                Some(Err(e))
            }
            Ok(News::Oom) => {
                self.untold -= 1;
                Some(Ok(Event::Oom))
            }
            Ok(News::Ended) => {
                let last = std::mem::replace(&mut self.exits, false);
                last.then(|| Ok(Event::Exit((self.last_words)())))
            }
            Ok(News::StatsDue) => {
                self.next = Instant::now() + self.interval;
                match stats(&self.state) {
                    Ok(stats) => Some(Ok(Event::Stats(Box::new(stats)))),
                    // It ended and was deleted while we read; that is told next.
                    Err(_) if !self.state.process().is_alive() => self.next(),
                    Err(e) => {
                        (self.process, self.exits) = (None, false);
                        Some(Err(e))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes\n    \
                    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  \
                    eth0:1:100 2 0 0 0 0 0 0 300 4 0 0 0 0 0 0\nbroken: 1\n";
        let found = interfaces(text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].name.as_str(), found[0].rx_dropped, found[0].tx_dropped), ("lo", 4, 12));
        assert_eq!((found[1].name.as_str(), found[1].rx_bytes, found[1].tx_bytes), ("eth0:1", 100, 300));
        assert!(interfaces("").is_empty());
    }

    #[test]
    fn lines_have_the_shape_that_callers_read() {
        let mut stats = Stats::default();
        stats.cgroup.pids.current = 3;
        stats.network_interfaces = interfaces("\n\nlo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n");
        let line = Event::Stats(Box::new(stats)).to_line("c1");
        assert!(line.starts_with(r#"{"type":"stats","id":"c1","data":{"#) && !line.contains('\n'), "{line}");
        let json: Value = serde_json::from_str(&line).unwrap();
        for key in ["cpu", "memory", "pids", "blkio", "hugetlb", "network_interfaces"] {
            assert!(json["data"].get(key).is_some(), "no {key}");
        }
        assert_eq!(json["data"]["pids"]["current"], 3);
        assert_eq!(json["data"]["network_interfaces"][0]["RxBytes"], 1);
        assert_eq!(Event::Oom.to_line("c1"), r#"{"type":"oom","id":"c1"}"#);
        assert_eq!(Event::Exit(None).to_line("c1"), r#"{"type":"exit","id":"c1"}"#);
    }
}
