//! Who is told what happens to the processes of domains.
#![forbid(unsafe_code)]

use super::outlet::Outlet;
use crate::container::lock;
use airlock_wire::api::supervisor::{Event, EventData};
use airlock_wire::error::{Error, Result};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

/// How many may listen at once: each costs a thread and up to 2 MiB.
pub const MAX_READERS: usize = 64;

/// Tells events to readers. What it tells is in the order of the calls of [`Hub::tell`].
#[derive(Debug, Default)]
pub struct Hub(Mutex<Vec<Reader>>);

#[derive(Debug)]
struct Reader {
    /// Empty for all domains.
    domain: String,
    outlet: Outlet,
}

impl Hub {
    /// Has what happens in `domain` (empty: in all) written to `to`, one JSON object a line, until its reader hangs up.
    ///
    /// # Errors
    /// Too many listen; as [`Outlet::new`].
    pub fn add(&self, domain: &str, to: OwnedFd) -> Result<()> {
        let mut readers = lock(&self.0);
        readers.retain(|reader| !reader.outlet.gone());
        if readers.len() >= MAX_READERS {
            return Err(Error::failure(format!(
                "{MAX_READERS} readers of events are as many as there may be"
            )));
        }
        let outlet = Outlet::new("events", to, Box::new(|lost, _| line(EventData::loss(lost))))?;
        readers.push(Reader { domain: domain.to_owned(), outlet });
        Ok(())
    }

    /// The most that waits for a reader now, in bytes.
    pub fn waiting(&self) -> usize {
        lock(&self.0).iter().map(|reader| reader.outlet.waiting()).max().unwrap_or_default()
    }

    /// Tells what happened in `domain`. Never blocks.
    pub fn tell(&self, domain: &str, event: impl FnOnce() -> EventData) {
        let mut readers = lock(&self.0);
        if readers.is_empty() {
            return;
        }
        let line = line(event());
        readers.retain(|reader| match reader.domain.as_str() {
            "" => reader.outlet.push(&line),
            wanted if wanted == domain => reader.outlet.push(&line),
            _ => !reader.outlet.gone(),
        });
    }
}

fn line(event: EventData) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let mut line = Vec::with_capacity(192);
    // Nothing in it can fail to be written.
    if serde_json::to_writer(&mut line, &Event { time, event }).is_ok() {
        line.push(b'\n');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn readers_hear_of_their_domain_or_of_all_in_order() {
        let hub = Hub::default();
        let (one, to_one) = std::io::pipe().unwrap();
        let (all, to_all) = std::io::pipe().unwrap();
        hub.add("a", to_one.into()).unwrap();
        hub.add("", to_all.into()).unwrap();
        for n in 0..3u32 {
            hub.tell("a", || EventData::termination("a", &format!("p{n}"), n << 8));
            hub.tell("b", || EventData::termination("b", &format!("p{n}"), 9));
        }
        drop(hub);
        let events = |from| -> Vec<Event> {
            BufReader::new(from).lines().map(|l| serde_json::from_str(&l.unwrap()).unwrap()).collect()
        };
        let names = |events: &[Event]| -> Vec<String> {
            let each = events.iter().map(|e| &e.event);
            each.map(|e| format!("{}/{}", e.domain.as_deref().unwrap(), e.name.as_deref().unwrap())).collect()
        };
        let heard = events(one);
        assert_eq!(names(&heard), ["a/p0", "a/p1", "a/p2"]);
        assert_eq!(heard[2].event.exit_status, Some(2));
        assert!(heard.iter().all(|e| e.time > 1_700_000_000_000));
        let heard = events(all);
        assert_eq!(names(&heard), ["a/p0", "b/p0", "a/p1", "b/p1", "a/p2", "b/p2"]);
        assert_eq!(heard[1].event.signo, Some(9));
    }

    #[test]
    fn readers_are_limited_and_those_that_are_gone_make_room() {
        let hub = Hub::default();
        let mut readers = Vec::new();
        for _ in 0..MAX_READERS {
            let (reader, writer) = std::io::pipe().unwrap();
            hub.add("", writer.into()).unwrap();
            readers.push(reader);
        }
        let more = || hub.add("", std::io::pipe().unwrap().1.into());
        assert!(more().unwrap_err().message.contains("64 readers"));
        readers.pop();
        while lock(&hub.0).iter().all(|reader| !reader.outlet.gone()) {
            std::thread::yield_now();
        }
        let (_reader, writer) = std::io::pipe().unwrap();
        hub.add("", writer.into()).unwrap();
    }
}
