//! `/proc/<pid>/fdinfo/<n>`: what the kernel tells of an open file, see proc_pid_fdinfo(5).
//!
//! Numbers in there are the kernel's, but names of message queues and the like are the container's: nothing is taken
//! for granted.
#![forbid(unsafe_code)]

/// One parsed file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// File offset.
    pub pos: i64,
    /// F_GETFL, and O_CLOEXEC when the descriptor has it.
    pub flags: i32,
    /// Mount it was opened through; 0 before Linux 3.15.
    pub mnt_id: i64,
    /// Inode number within its filesystem (Linux 5.14).
    pub ino: Option<u64>,
    /// Locks.
    pub locks: Vec<Lock>,
    /// All other lines, as they are.
    rest: Vec<String>,
}

/// A line `lock:`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    /// `FLOCK`, `POSIX`, `OFDLCK`, `LEASE`, `DELEG`.
    pub kind: String,
    /// `READ`, `WRITE`, `UNLCK`.
    pub access: String,
    /// `ADVISORY`, `ACTIVE`, `BREAKING`, …
    pub mode: String,
    /// Holder, in the procfs' pid namespace; -1 for locks that belong to no process.
    pub pid: i32,
    /// First byte.
    pub start: u64,
    /// Last byte; none: to the end.
    pub end: Option<u64>,
}

/// A line `tfd:` of an epoll instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EpollTarget {
    /// Number under which it was added.
    pub fd: i32,
    /// EPOLL*.
    pub events: u32,
    /// `epoll_event.data`.
    pub data: u64,
    /// Inode and device of the target (Linux 4.13).
    pub file: Option<(u64, u64)>,
}

/// A line `inotify`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// Its number.
    pub wd: i32,
    /// Inode number within its filesystem.
    pub ino: u64,
    /// Device, as in `st_dev`.
    pub dev: u64,
    /// Events, IN_*.
    pub mask: u32,
    /// File handle: type and bytes.
    pub handle: Option<(i32, Vec<u8>)>,
}

/// Fields of a timerfd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timerfd {
    /// Clock ID.
    pub clock: i32,
    /// Unread expirations.
    pub ticks: u64,
    /// TFD_TIMER_*.
    pub flags: i32,
    /// Time to the next expiry, nanoseconds.
    pub value: u64,
    /// Interval, nanoseconds.
    pub interval: u64,
}

impl FdInfo {
    /// Parses a file's text; lines that make no sense are kept for the accessors, which ignore them too.
    pub fn parse(text: &str) -> Self {
        let mut info = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match name {
                "pos" => info.pos = value.parse().unwrap_or(0),
                "flags" => info.flags = u32::from_str_radix(value, 8).unwrap_or(0) as i32,
                "mnt_id" => info.mnt_id = value.parse().unwrap_or(0),
                "ino" => info.ino = value.parse().ok(),
                "lock" => info.locks.extend(Lock::parse(value)),
                _ => info.rest.push(line.to_owned()),
            }
        }
        info
    }

    /// FD_CLOEXEC.
    pub fn cloexec(&self) -> bool {
        self.flags & libc::O_CLOEXEC != 0
    }

    /// F_GETFL.
    pub fn status_flags(&self) -> i32 {
        self.flags & !libc::O_CLOEXEC
    }

    /// Value of a line `name: value`.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.rest.iter().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// Counter of an eventfd, and whether it is a semaphore where the kernel tells (Linux 6.5).
    pub fn eventfd(&self) -> Option<(u64, Option<bool>)> {
        let count = u64::from_str_radix(self.field("eventfd-count")?, 16).ok()?;
        Some((count, self.field("eventfd-semaphore").map(|v| v != "0")))
    }

    /// Signals of a signalfd.
    pub fn sigmask(&self) -> Option<u64> {
        u64::from_str_radix(self.field("sigmask")?, 16).ok()
    }

    /// Fields of a timerfd.
    pub fn timerfd(&self) -> Option<Timerfd> {
        let time = |name: &str| -> Option<u64> {
            let (s, ns) = self.field(name)?.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
            let (s, ns): (u64, u64) = (s.trim().parse().ok()?, ns.trim().parse().ok()?);
            s.checked_mul(1_000_000_000)?.checked_add(ns)
        };
        Some(Timerfd {
            clock: self.field("clockid")?.parse().ok()?,
            ticks: self.field("ticks")?.parse().ok()?,
            flags: i32::from_str_radix(self.field("settime flags")?, 8).ok()?,
            value: time("it_value")?,
            interval: time("it_interval")?,
        })
    }

    /// Process of a pidfd, in the procfs' pid namespace: -1 when it has ended and was reaped, 0 when it is not in there.
    pub fn pid(&self) -> Option<i32> {
        self.field("Pid")?.parse().ok()
    }

    /// Targets of an epoll instance, in the order in which [`kcmp`](crate::sys::files::kcmp) counts those of the same
    /// number.
    pub fn targets(&self) -> Vec<EpollTarget> {
        self.rest.iter().filter_map(|l| EpollTarget::parse(l)).collect()
    }

    /// Watches of an inotify instance.
    pub fn watches(&self) -> Vec<Watch> {
        self.rest.iter().filter_map(|l| Watch::parse(l)).collect()
    }
}

impl Lock {
    /// `1: FLOCK  ADVISORY  WRITE 4363 fe:00:10100755 0 EOF`
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        words.next()?.strip_suffix(':')?;
        let (kind, mode, access) =
            (words.next()?.to_owned(), words.next()?.to_owned(), words.next()?.to_owned());
        let pid = words.next()?.parse().ok()?;
        words.next()?;
        let start = words.next()?.parse().ok()?;
        let end = words.next()?;
        Some(Self {
            kind,
            mode,
            access,
            pid,
            start,
            end: if end == "EOF" { None } else { Some(end.parse().ok()?) },
        })
    }
}

impl EpollTarget {
    /// `tfd:        3 events: 80000019 data:     deadbeefcafe  pos:0 ino:1a sdev:10`
    pub(super) fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("tfd:")?;
        let (fd, rest) = rest.split_once("events:")?;
        let (events, rest) = rest.split_once("data:")?;
        let mut words = rest.split_ascii_whitespace();
        let data = words.next()?;
        let mut file = (None, None);
        for word in words {
            if let Some(ino) = word.strip_prefix("ino:") {
                file.0 = u64::from_str_radix(ino, 16).ok();
            } else if let Some(dev) = word.strip_prefix("sdev:") {
                file.1 = u64::from_str_radix(dev, 16).ok().map(device);
            }
        }
        Some(Self {
            fd: fd.trim().parse().ok()?,
            events: u32::from_str_radix(events.trim(), 16).ok()?,
            data: u64::from_str_radix(data, 16).ok()?,
            file: file.0.zip(file.1),
        })
    }
}

impl Watch {
    /// `inotify wd:1 ino:3c4a7 sdev:fe00000 mask:102 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c403…`
    pub(super) fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("inotify ")?;
        let value =
            |name: &str| rest.split_ascii_whitespace().find_map(|w| w.strip_prefix(name)?.strip_prefix(':'));
        let hex = |name: &str| u64::from_str_radix(value(name)?, 16).ok();
        let handle = || -> Option<(i32, Vec<u8>)> {
            let text = value("f_handle")?.as_bytes();
            let bytes = text
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                .collect::<Option<Vec<u8>>>()?;
            let len = hex("fhandle-bytes")? as usize;
            (bytes.len() == len).then_some((hex("fhandle-type")? as i32, bytes))
        };
        Some(Self {
            wd: i32::try_from(hex("wd")?).ok()?,
            ino: hex("ino")?,
            dev: device(hex("sdev")?),
            mask: hex("mask")? as u32,
            handle: handle(),
        })
    }
}

/// A device number as the kernel writes it inside, as stat(2) gives it.
pub fn device(kernel: u64) -> u64 {
    nix::sys::stat::makedev(kernel >> 20, kernel & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_descriptor_with_locks() {
        let info = FdInfo::parse(
            "pos:\t17\nflags:\t02100002\nmnt_id:\t27\nino:\t10100755\n\
             lock:\t1: FLOCK  ADVISORY  WRITE 4363 fe:00:10100755 0 EOF\n\
             lock:\t2: POSIX  ADVISORY  READ 4364 fe:00:10100755 10 14\n\
             lock:\t3: OFDLCK ADVISORY  READ -1 fe:00:10100755 100 EOF\n",
        );
        assert_eq!((info.pos, info.mnt_id, info.ino), (17, 27, Some(10_100_755)));
        assert!(info.cloexec());
        assert_eq!(info.status_flags(), 0o100_002);
        assert_eq!(info.locks.len(), 3);
        assert_eq!((info.locks[0].kind.as_str(), info.locks[0].end), ("FLOCK", None));
        assert_eq!((info.locks[1].pid, info.locks[1].start, info.locks[1].end), (4364, 10, Some(14)));
        assert_eq!((info.locks[2].pid, info.locks[2].access.as_str()), (-1, "READ"));
    }

    #[test]
    fn each_kind_of_event_file() {
        let event = FdInfo::parse("eventfd-count:               1f\neventfd-id: 1\neventfd-semaphore: 1\n");
        assert_eq!(event.eventfd(), Some((31, Some(true))));
        assert_eq!(FdInfo::parse("eventfd-count: ffffffffffffffff\n").eventfd(), Some((u64::MAX, None)));
        let timer = FdInfo::parse(
            "clockid: 7\nticks: 3\nsettime flags: 01\nit_value: (4, 965471241)\nit_interval: (1, 0)\n",
        );
        assert_eq!(
            timer.timerfd(),
            Some(Timerfd { clock: 7, ticks: 3, flags: 1, value: 4_965_471_241, interval: 1_000_000_000 })
        );
        assert_eq!(FdInfo::parse("sigmask:\t0000000000000200\n").sigmask(), Some(0x200));
        assert_eq!(FdInfo::parse("Pid:\t-1\n").pid(), Some(-1));
    }

    #[test]
    fn targets_of_epoll() {
        let info = FdInfo::parse(
            "pos:\t0\ntfd:        3 events: 80000019 data:     deadbeefcafe  pos:0 ino:1a sdev:10\n\
             tfd:       12 events:       19 data: ffffffffffffffff\n",
        );
        let targets = info.targets();
        assert_eq!(
            targets[0],
            EpollTarget { fd: 3, events: 0x8000_0019, data: 0xdead_beef_cafe, file: Some((0x1a, 16)) }
        );
        assert_eq!(targets[1], EpollTarget { fd: 12, events: 0x19, data: u64::MAX, file: None });
    }

    #[test]
    fn watches_of_inotify() {
        let line = "inotify wd:2 ino:9a2011 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:11209a00a4369c66\n";
        let watches = FdInfo::parse(line).watches();
        assert_eq!(watches.len(), 1);
        assert_eq!((watches[0].wd, watches[0].ino, watches[0].mask), (2, 0x9a_2011, 0xfff));
        assert_eq!(watches[0].dev, nix::sys::stat::makedev(254, 0));
        assert_eq!(watches[0].handle, Some((1, vec![0x11, 0x20, 0x9a, 0, 0xa4, 0x36, 0x9c, 0x66])));
        let high = line.replace("wd:2", "wd:186a0");
        assert_eq!(FdInfo::parse(&high).watches()[0].wd, 100_000);
        let cut = line.replace("a4369c66", "a4369c");
        assert_eq!(FdInfo::parse(&cut).watches()[0].handle, None);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(\\PC|\n|\t){0,400}") {
            let info = FdInfo::parse(&text);
            let _ = (info.eventfd(), info.timerfd(), info.sigmask(), info.pid(), info.targets(), info.watches());
        }

        #[test]
        fn hostile_values_never_panic(
            name in "pos|flags|mnt_id|lock|tfd|eventfd-count|ticks|it_value|inotify wd|inotify|sigmask",
            value in "([0-9a-fA-F():, EOF-]|wd:|ino:|sdev:|mask:|f_handle:|fhandle-bytes:|fhandle-type:|events:|data:|é){0,60}",
        ) {
            let info = FdInfo::parse(&format!("{name}: {value}\n"));
            let _ = (info.eventfd(), info.timerfd(), info.sigmask(), info.pid(), info.targets(), info.watches());
        }

        #[test]
        fn targets_are_read_back(fd in 0i32.., events: u32, data: u64, ino: u64) {
            let line = format!("tfd: {fd:8} events: {events:8x} data: {data:16x}  pos:0 ino:{ino:x} sdev:{:x}", 0xfe00000);
            let info = FdInfo::parse(&line);
            prop_assert_eq!(
                info.targets(),
                vec![EpollTarget { fd, events, data, file: Some((ino, device(0xfe00000))) }]
            );
        }
    }
}
