//! A bounded way out for records: to a reader that may be slow, may never read, or may vanish.
//!
//! Whoever has a record never waits: it is taken, or it is lost and counted. A thread writes what was taken, as much at once
//! as there is. Records are never torn, and the reader is told how many it lost in the place where they would have been.
#![forbid(unsafe_code)]

use crate::container::lock;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::{SFlag, fstat};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

/// What waits for a reader, in bytes; as much again may be with the writing thread.
pub const CAPACITY: usize = 1 << 20;

/// Makes the record that tells of the loss of others: how many, and of how many bytes.
pub type TellLoss = Box<dyn Fn(u64, u64) -> Vec<u8> + Send>;

/// A way out. When the last clone of it is dropped, the thread writes what is left and ends.
#[derive(Debug)]
pub struct Outlet {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
}

/// What waits.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Records that found no room since the last time that all was taken: they come behind what waits.
    lost: u64,
    lost_bytes: u64,
    /// All that were ever lost.
    all_lost: u64,
    /// No more records come.
    closed: bool,
    /// Readable when there is something to do; `None` once nobody reads any more.
    wake: Option<Arc<EventFd>>,
}

impl Queue {
    /// Lets `change` happen and the writer know, unless it knows already that there is something.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let idle = self.bytes.is_empty() && self.lost == 0;
        change(self);
        if let Some(wake) = self.wake.as_ref().filter(|_| idle) {
            let _ = wake.write(1);
        }
    }

    fn push(&mut self, record: &[u8]) {
        // What is lost stays behind what was taken before it, and in front of what comes after it.
        if self.lost > 0 || self.bytes.len() + record.len() > CAPACITY {
            self.lose(record.len());
        } else {
            self.bytes.extend_from_slice(record);
        }
    }

    fn lose(&mut self, bytes: usize) {
        self.lost += 1;
        self.all_lost += 1;
        self.lost_bytes += bytes as u64;
    }

    fn take(&mut self, tell: &dyn Fn(u64, u64) -> Vec<u8>) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        if self.lost > 0 {
            bytes.extend(tell(self.lost, self.lost_bytes));
            (self.lost, self.lost_bytes) = (0, 0);
        }
        bytes
    }
}

impl Outlet {
    /// Begins to write to `to`, a pipe or a stream socket, on a thread called `name`.
    ///
    /// # Errors
    /// `to` is something else, or not open for writing; no thread or descriptor is left.
    pub fn new(name: &str, to: OwnedFd, tell: TellLoss) -> Result<Self> {
        check(&to)?;
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let queue = Queue { wake: Some(wake.clone()), ..Queue::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue) });
        let writer = shared.clone();
        let work = move || {
            let result = write_all(&writer, &wake, &to, &tell);
            let mut queue = lock(&writer.queue);
            queue.wake = None;
            queue.bytes = Vec::new();
            if let Err(e) = result {
                log::debug!("a reader is gone: {e}");
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(128 << 10);
        thread.spawn(work).map_err(|e| Error::from(e).context("starting a thread for a reader"))?;
        Ok(Self { shared })
    }

    /// Takes a record, or counts it as lost. Never blocks. False once the reader is gone.
    pub fn push(&self, record: &[u8]) -> bool {
        let mut queue = lock(&self.shared.queue);
        let open = queue.wake.is_some();
        if open {
            queue.change(|queue| queue.push(record));
        }
        open
    }

    /// Counts a record of so many bytes as lost that could not even be pushed.
    pub fn lose(&self, bytes: usize) {
        lock(&self.shared.queue).change(|queue| queue.lose(bytes));
    }

    /// How many records were lost so far, told or not.
    pub fn losses(&self) -> u64 {
        lock(&self.shared.queue).all_lost
    }

    /// What waits, in bytes.
    pub fn waiting(&self) -> usize {
        lock(&self.shared.queue).bytes.len()
    }

    /// True once the reader is gone.
    pub fn gone(&self) -> bool {
        lock(&self.shared.queue).wake.is_none()
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.closed = true;
        if let Some(wake) = &queue.wake {
            let _ = wake.write(1);
        }
    }
}

fn check(to: &OwnedFd) -> Result<()> {
    let kind = SFlag::from_bits_truncate(fstat(to)?.st_mode & SFlag::S_IFMT.bits());
    let mode = OFlag::from_bits_truncate(fcntl(to, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE;
    if kind != SFlag::S_IFIFO && kind != SFlag::S_IFSOCK {
        return Err(Error::invalid_argument("the descriptor is neither a pipe nor a socket"));
    }
    if mode == OFlag::O_RDONLY {
        return Err(Error::invalid_argument("the descriptor is not open for writing"));
    }
    Ok(())
}

/// Writes what comes until no more does.
///
/// # Errors
/// The reader is gone.
fn write_all(
    shared: &Shared,
    wake: &EventFd,
    to: &OwnedFd,
    tell: &dyn Fn(u64, u64) -> Vec<u8>,
) -> Result<()> {
    loop {
        let (bytes, closed) = {
            let mut queue = lock(&shared.queue);
            (queue.take(tell), queue.closed)
        };
        if bytes.is_empty() {
            if closed {
                return Ok(());
            }
            wait(wake, to)?;
            continue;
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match nix::unistd::write(to, rest) {
                Ok(n) => rest = &rest[n..],
                Err(Errno::EINTR) => {}
                // The caller's descriptor may be non-blocking, now or later.
                Err(Errno::EAGAIN) => until(to, PollFlags::POLLOUT)?,
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Waits until there is something to do, or nobody reads any more.
fn wait(wake: &EventFd, to: &OwnedFd) -> Result<()> {
    let mut fds = [PollFd::new(wake.as_fd(), PollFlags::POLLIN), PollFd::new(to.as_fd(), PollFlags::empty())];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    if fds[1].any().unwrap_or(false) {
        return Err(Errno::EPIPE.into());
    }
    let _ = wake.read();
    Ok(())
}

fn until(fd: &OwnedFd, what: PollFlags) -> Result<()> {
    match poll(&mut [PollFd::new(fd.as_fd(), what)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{BufRead, BufReader};

    fn tell() -> TellLoss {
        Box::new(|n, bytes| format!("lost {n} {bytes}\n").into_bytes())
    }

    /// Numbers and losses as a reader sees them.
    fn read(from: impl std::io::Read) -> Vec<(bool, u64)> {
        let lines = BufReader::new(from).lines().map(|line| line.unwrap());
        lines
            .map(|line| match line.strip_prefix("lost ") {
                Some(rest) => (true, rest.split(' ').next().unwrap().parse().unwrap()),
                None => (false, line.trim_end_matches('.').parse().unwrap()),
            })
            .collect()
    }

    /// Every number from 0 on is there, or is one of those that are told as lost at its place.
    fn accounted(seen: &[(bool, u64)], pushed: u64) {
        let mut next = 0;
        for (loss, n) in seen {
            if *loss {
                next += n;
            } else {
                assert_eq!(*n, next, "in order, and none lost silently");
                next += 1;
            }
        }
        assert_eq!(next, pushed);
    }

    #[test]
    fn a_reader_that_reads_late_is_told_what_it_lost_and_where() {
        let (reader, writer) = std::io::pipe().unwrap();
        let outlet = Outlet::new("test", writer.into(), tell()).unwrap();
        let filler = ".".repeat(1000);
        let pushed = 4 * CAPACITY as u64 / 1000;
        for n in 0..pushed {
            assert!(outlet.push(format!("{n}{filler}\n").as_bytes()));
        }
        let lost = outlet.losses();
        assert!(lost > 0);
        drop(outlet);
        let seen = read(reader);
        accounted(&seen, pushed);
        assert_eq!(seen.iter().filter(|(loss, _)| *loss).map(|(_, n)| n).sum::<u64>(), lost);
    }

    #[test]
    fn a_reader_that_reads_gets_all() {
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let outlet = Outlet::new("test", writer.into(), tell()).unwrap();
        let reading = std::thread::spawn(move || read(reader));
        for n in 0..10_000 {
            outlet.push(format!("{n}\n").as_bytes());
        }
        assert_eq!(outlet.losses(), 0);
        drop(outlet);
        accounted(&reading.join().unwrap(), 10_000);
    }

    #[test]
    fn a_reader_that_vanishes_is_noticed_without_a_record() {
        let (reader, writer) = std::io::pipe().unwrap();
        let outlet = Outlet::new("test", writer.into(), tell()).unwrap();
        drop(reader);
        while !outlet.gone() {
            std::thread::yield_now();
        }
        assert!(!outlet.push(b"nobody reads this\n"));
    }

    #[test]
    fn what_cannot_be_written_to_is_refused() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let e = Outlet::new("test", reader.into(), tell()).unwrap_err();
        assert!(e.message.contains("not open for writing"), "{e}");
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let e = Outlet::new("test", file.into(), tell()).unwrap_err();
        assert!(e.message.contains("neither a pipe nor a socket"), "{e}");
    }

    proptest! {
        /// Whatever the order of records and of the writer's turns: all are told or counted, in order.
        #[test]
        fn nothing_is_lost_that_is_not_counted(turns in proptest::collection::vec((0usize..300_000, any::<bool>()), 1..60)) {
            let mut queue = Queue::default();
            let (mut out, mut pushed) = (Vec::new(), 0u64);
            for (length, take) in turns {
                queue.push(format!("{pushed}{}\n", ".".repeat(length)).as_bytes());
                pushed += 1;
                prop_assert!(queue.bytes.len() <= CAPACITY);
                if take {
                    out.extend(queue.take(&tell()));
                }
            }
            out.extend(queue.take(&tell()));
            let seen = read(out.as_slice());
            accounted(&seen, pushed);
            let told: u64 = seen.iter().filter(|(loss, _)| *loss).map(|(_, n)| n).sum();
            prop_assert_eq!(told, queue.all_lost);
        }
    }
}
