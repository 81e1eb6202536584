//! Files without a name: eventfd, timerfd, signalfd, pidfd, namespaces; and those that are refused.
#![forbid(unsafe_code)]

use super::Collector;
use crate::checkpoint::state::FileKind;
use crate::sys::files as call;
use airlock_wire::error::{Error, Result};
use nix::fcntl::readlinkat;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Kinds that cannot be saved, by what their link contains: the name for messages, and why.
const REFUSED: &[(&str, &str, &str)] = &[
    ("io_uring", "io_uring", "requests in flight belong to the kernel; no tool can save them"),
    ("userfaultfd", "userfaultfd", "page faults of the program are handled through it"),
    ("bpf", "bpf", "programs and maps in the kernel cannot be read back"),
    ("perf_event", "perf", "performance counters belong to this machine"),
    ("kvm", "kvm", "virtual machines cannot be saved"),
    ("fanotify", "fanotify", "its queue and permission requests cannot be read"),
    ("seccomp notify", "seccomp listener", "requests that wait for its answer cannot be saved"),
    ("fscontext", "mount", "a filesystem that is being configured"),
    ("landlock", "landlock", "rules cannot be read back"),
    ("secretmem", "secret memory", "only the program itself can read it"),
    ("dmabuf", "device", "memory of a device"),
    ("sync_file", "device", "a fence of a device"),
    ("iommufd", "device", "mappings of a device"),
    ("vfio", "device", "a device given to the program"),
    ("gpio", "device", "lines of a device"),
    ("guest_memfd", "kvm", "memory of a virtual machine"),
];

/// Why a file with this link cannot be saved: kind and reason.
pub fn refused(link: &str) -> Option<(&'static str, &'static str)> {
    REFUSED.iter().find(|(part, ..)| link.contains(part)).map(|(_, kind, why)| (*kind, *why))
}

impl Collector<'_> {
    /// `anon_inode:…`. Those that need all others to be known are left for later (epoll).
    pub(super) fn describe_anonymous(&mut self, index: usize) -> Result<()> {
        let link = self.found[index].raw.link.clone();
        let name = match link.strip_prefix("anon_inode:") {
            Some(name) => name.trim_matches(['[', ']']),
            None => "pidfd",
        };
        match name {
            "eventfd" => self.describe_eventfd(index),
            "timerfd" => self.describe_timerfd(index),
            "signalfd" => {
                let mask = self.found[index].raw.info.sigmask().ok_or_else(|| untold("signalfd"))?;
                self.state(index).kind = FileKind::Signalfd { mask };
                Ok(())
            }
            "eventpoll" => {
                self.state(index).kind = FileKind::Epoll { targets: Vec::new() };
                Ok(())
            }
            "inotify" => self.describe_inotify(index),
            "pidfd" => self.describe_pidfd(index),
            _ => {
                let (kind, why) = refused(&link)
                    .unwrap_or(("unknown kind of file", "nothing is known about how to save it"));
                self.refuse(index, kind, format!("{link}: {why}"));
                Ok(())
            }
        }
    }

    fn describe_eventfd(&mut self, index: usize) -> Result<()> {
        let (count, semaphore) = self.found[index].raw.info.eventfd().ok_or_else(|| untold("eventfd"))?;
        let semaphore = match semaphore {
            Some(semaphore) => semaphore,
            None => is_semaphore(self.open(index)?.as_fd(), count)?,
        };
        self.state(index).kind = FileKind::Eventfd { count, semaphore };
        Ok(())
    }

    fn describe_timerfd(&mut self, index: usize) -> Result<()> {
        let fd = self.open(index)?;
        // Expirations of a periodic timer are counted when somebody asks, and only then.
        call::timerfd_gettime(fd.as_fd())?;
        let info = self.own_info(&fd)?.timerfd().ok_or_else(|| untold("timerfd"))?;
        let of_day = matches!(info.clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
        let absolute = info.flags & libc::TFD_TIMER_ABSTIME != 0 && info.value > 0;
        let expires_ns = (of_day && absolute).then(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            (now.map_or(0, |d| d.as_nanos() as u64)).saturating_add(info.value)
        });
        self.state(index).kind = FileKind::Timerfd {
            clock: info.clock,
            settime_flags: info.flags as u32,
            ticks: info.ticks,
            remaining_ns: info.value,
            interval_ns: info.interval,
            expires_ns,
        };
        Ok(())
    }

    fn describe_pidfd(&mut self, index: usize) -> Result<()> {
        let raw = &self.found[index].raw;
        let thread = raw.info.flags & libc::O_EXCL != 0;
        let pid = raw.info.pid().ok_or_else(|| untold("pidfd"))?;
        let local = match pid {
            -1 => 0,
            pid => match self.known_pid(pid) {
                Some(local) => local,
                None => {
                    let what =
                        "pidfd of a process that is not saved: one outside the container, or an exec session";
                    self.ctx.warn(format!(
                        "descriptor {:?}: {what}; it will look ended",
                        self.found[index].number()
                    ));
                    0
                }
            },
        };
        self.state(index).kind = FileKind::Pidfd { pid: local, thread };
        Ok(())
    }

    /// `net:[…]` and the like: found by looking for a process that is in it.
    pub(super) fn describe_namespace(&mut self, index: usize) -> Result<()> {
        let link = self.found[index].raw.link.clone();
        let kind = link.split(':').next().unwrap_or_default().to_owned();
        let container = self.found[index].container;
        for proc in self.ctx.procs.iter().filter(|p| p.container == container && !p.is_zombie()) {
            for name in [kind.as_str(), &format!("{kind}_for_children")] {
                let path = format!("{}/ns/{name}", proc.task());
                if readlinkat(self.ctx.procfs.root(), path.as_str()).is_ok_and(|l| l == link.as_str()) {
                    let pid = proc.ns_pid;
                    self.state(index).kind = FileKind::Namespace { kind: name.to_owned(), pid };
                    return Ok(());
                }
            }
        }
        self.refuse(index, "namespace", format!("{link}: no process of the container is in it"));
        Ok(())
    }

    /// fdinfo of a descriptor of this process.
    pub(super) fn own_info(&self, fd: &OwnedFd) -> Result<super::fdinfo::FdInfo> {
        use std::os::fd::AsRawFd;
        let text = self.ctx.procfs.read_whole(self.me, &format!("fdinfo/{}", fd.as_raw_fd()))?;
        Ok(super::fdinfo::FdInfo::parse(&String::from_utf8_lossy(&text)))
    }
}

fn untold(kind: &str) -> Error {
    Error::unsupported(format!("the kernel does not tell the state of a {kind} in fdinfo"))
}

/// What kernels before 6.5 do not tell. Only one above 1 can show it, so that the counter is raised for a moment; nobody
/// is running who could see that.
fn is_semaphore(fd: BorrowedFd<'_>, count: u64) -> Result<bool> {
    let add = |n: u64| nix::unistd::write(fd, &n.to_ne_bytes()).map(drop);
    let raised = 2u64.saturating_sub(count);
    if raised > 0 {
        add(raised)?;
    }
    let mut bytes = [0; 8];
    nix::unistd::read(fd, &mut bytes)?;
    let got = u64::from_ne_bytes(bytes);
    let left = count + raised - got;
    // What was read is put back, without what was added.
    if count > left {
        add(count - left)?;
    } else if left > count {
        nix::unistd::read(fd, &mut bytes)?;
    }
    Ok(got == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_has_a_name() {
        assert_eq!(refused("anon_inode:[io_uring]").map(|r| r.0), Some("io_uring"));
        assert_eq!(refused("anon_inode:bpf-map").map(|r| r.0), Some("bpf"));
        assert_eq!(refused("/secretmem (deleted)").map(|r| r.0), Some("secret memory"));
        assert_eq!(refused("anon_inode:[eventfd]"), None);
    }

    #[test]
    fn semaphores_are_told_from_counters_and_keep_their_count() {
        for semaphore in [false, true] {
            for count in [0u64, 1, 2, 5] {
                let fd = call::eventfd(count as u32, semaphore).unwrap();
                assert_eq!(is_semaphore(fd.as_fd(), count), Ok(semaphore), "{count}");
                let mut left = 0;
                let mut bytes = [0; 8];
                while nix::unistd::read(&fd, &mut bytes).is_ok() {
                    left += u64::from_ne_bytes(bytes);
                }
                assert_eq!(left, count, "semaphore {semaphore}");
            }
        }
    }
}
