//! Reading `/proc` of the sandbox's pid namespace through a donated-by-ourselves, detached procfs.
//!
//! Names and command lines in there are written by the container: everything is parsed as hostile text.
#![forbid(unsafe_code)]

use airlock_wire::api::container_manager::NetworkInterface;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A detached procfs of the sandbox's pid namespace.
#[derive(Debug)]
pub struct ProcFs(OwnedFd);

/// The fields of `/proc/<pid>/stat` that are of use here (proc_pid_stat(5)); times in clock ticks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stat {
    /// Command name, at most 15 bytes, control characters replaced.
    pub comm: String,
    /// One-letter state.
    pub state: char,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Controlling terminal's device number; 0 for none.
    pub tty_nr: i32,
    /// Foreground process group of the controlling terminal; -1 for none.
    pub tpgid: i32,
    /// User time.
    pub utime: u64,
    /// System time.
    pub stime: u64,
    /// Start, since boot.
    pub starttime: u64,
}

impl Stat {
    /// Parses the file's text.
    pub fn parse(text: &str) -> Option<Self> {
        // The name may contain spaces and parentheses: it ends at the LAST one.
        let open = text.find('(')?;
        let close = text.rfind(')')?;
        let comm = text.get(open + 1..close)?;
        let rest: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
        let number = |i: usize| rest.get(i).and_then(|s| s.parse::<i64>().ok());
        Some(Self {
            comm: comm.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
            state: rest.first()?.chars().next()?,
            ppid: number(1)? as i32,
            pgrp: number(2)? as i32,
            session: number(3)? as i32,
            tty_nr: number(4)? as i32,
            tpgid: number(5)? as i32,
            utime: number(11)? as u64,
            stime: number(12)? as u64,
            starttime: number(19)? as u64,
        })
    }
}

impl ProcFs {
    /// Wraps the root directory of a procfs.
    pub fn new(root: OwnedFd) -> Self {
        Self(root)
    }

    /// The same once more.
    ///
    /// # Errors
    /// `EMFILE`
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Its root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Reads the whole of `<pid>/<name>`, however long; for files whose size the process itself pays for.
    ///
    /// # Errors
    /// As [`ProcFs::read`]; `EFBIG` above 1 GiB.
    pub fn read_whole(&self, pid: i32, name: &str) -> Result<Vec<u8>> {
        self.read_whole_path(&format!("{pid}/{name}"))
    }

    /// As [`ProcFs::read_whole`], for a file by its path in this procfs.
    ///
    /// # Errors
    /// As [`ProcFs::read_whole`].
    pub fn read_whole_path(&self, path: &str) -> Result<Vec<u8>> {
        const LIMIT: u64 = 1 << 30;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let fd = openat(&self.0, path, flags, Mode::empty())?;
        let mut bytes = Vec::new();
        File::from(fd).take(LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LIMIT {
            return Err(Error::from(nix::errno::Errno::EFBIG).context(format!("reading /proc/{path}")));
        }
        Ok(bytes)
    }

    /// Opens `path` as the process `pid` sees it; nothing on the way leads out of its root directory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_inside(&self, pid: i32, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let root = openat(
            &self.0,
            format!("{pid}/root").as_str(),
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(root, path, how)
    }

    /// Reads `<pid>/<name>`, at most 64 KiB; bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// `ENOENT`/`ESRCH` when the process is gone, `EACCES`/`EPERM`.
    pub fn read(&self, pid: i32, name: &str) -> Result<String> {
        self.read_path(&format!("{pid}/{name}"))
    }

    /// Reads a file by its path in this procfs.
    ///
    /// # Errors
    /// As [`ProcFs::read`].
    pub fn read_path(&self, path: &str) -> Result<String> {
        const LIMIT: u64 = 64 << 10;
        let fd =
            openat(&self.0, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?;
        let mut bytes = Vec::new();
        File::from(fd).take(LIMIT).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Opens the file behind `fd` (which may be an `O_PATH` descriptor) anew for reading.
    ///
    /// # Errors
    /// The kernel's: the file cannot be read, or the procfs is not of this process' pid namespace.
    pub fn reopen(&self, fd: BorrowedFd<'_>) -> Result<File> {
        let path = format!("self/fd/{}", fd.as_raw_fd());
        Ok(openat(&self.0, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    /// As [`ProcFs::reopen`], for reading and writing.
    ///
    /// # Errors
    /// As [`ProcFs::reopen`].
    pub fn reopen_writable(&self, fd: BorrowedFd<'_>) -> Result<File> {
        let path = format!("self/fd/{}", fd.as_raw_fd());
        Ok(openat(&self.0, path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    /// Counters of the interfaces in the network namespace of process `pid`, `lo` among them.
    ///
    /// # Errors
    /// As [`ProcFs::read`].
    pub fn interfaces(&self, pid: i32) -> Result<Vec<NetworkInterface>> {
        Ok(self.read(pid, "net/dev")?.lines().filter_map(parse_interface).collect())
    }

    /// `/proc/<pid>/stat`.
    ///
    /// # Errors
    /// As [`ProcFs::read`].
    pub fn stat(&self, pid: i32) -> Result<Stat> {
        Stat::parse(&self.read(pid, "stat")?)
            .ok_or_else(|| Error::failure(format!("/proc/{pid}/stat cannot be parsed")))
    }

    /// A line `Name:\tvalue` of `/proc/<pid>/status`.
    ///
    /// # Errors
    /// As [`ProcFs::read`].
    pub fn status_field(&self, pid: i32, field: &str) -> Result<Option<String>> {
        let text = self.read(pid, "status")?;
        Ok(text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':')).map(|v| v.trim().to_owned()))
    }

    /// Thread ids of a process, ascending.
    ///
    /// # Errors
    /// As [`ProcFs::read`].
    pub fn threads(&self, pid: i32) -> Result<Vec<i32>> {
        self.numbers(&format!("{pid}/task"))
    }

    /// Numbers of the descriptors of a process, ascending.
    ///
    /// # Errors
    /// As [`ProcFs::read`].
    pub fn descriptors(&self, pid: i32) -> Result<Vec<i32>> {
        self.numbers(&format!("{pid}/fd"))
    }

    /// Time since boot; zero when it cannot be read.
    pub fn uptime(&self) -> Duration {
        let text = self.read_path("uptime").unwrap_or_default();
        let seconds = text.split_ascii_whitespace().next().and_then(|s| s.parse::<f64>().ok());
        seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or_default()
    }

    /// All processes of the sandbox's pid namespace, ascending.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn pids(&self) -> Result<Vec<i32>> {
        self.numbers(".")
    }

    fn numbers(&self, path: &str) -> Result<Vec<i32>> {
        let mut dir = nix::dir::Dir::openat(
            &self.0,
            path,
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut found: Vec<i32> =
            dir.iter().filter_map(|e| e.ok()?.file_name().to_str().ok()?.parse().ok()).collect();
        found.sort_unstable();
        Ok(found)
    }
}

/// Pids of one process from the procfs' namespace down to its own, from the `NSpid` value of its status file.
pub fn parse_nspid(value: &str) -> Vec<i32> {
    value.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect()
}

/// `tty_nr` as ps(1) shows it: `?` or `pts/N`.
pub fn tty_name(tty_nr: i32) -> String {
    let device = tty_nr as u32;
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

/// A line of `/proc/<pid>/net/dev` (proc_pid_net(5)); `None` for its headings.
fn parse_interface(line: &str) -> Option<NetworkInterface> {
    let (name, numbers) = line.rsplit_once(':')?;
    let n: Vec<u64> = numbers.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
    if n.len() < 16 {
        return None;
    }
    Some(NetworkInterface {
        name: name.trim().to_owned(),
        rx_bytes: n[0],
        rx_packets: n[1],
        rx_errors: n[2],
        rx_dropped: n[3],
        tx_bytes: n[8],
        tx_packets: n[9],
        tx_errors: n[10],
        tx_dropped: n[11],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_net_dev_is_read_and_headings_are_not() {
        let line = "  eth0: 100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0";
        let i = parse_interface(line).unwrap();
        assert_eq!(
            (i.name.as_str(), i.rx_bytes, i.rx_dropped, i.tx_bytes, i.tx_errors),
            ("eth0", 100, 4, 500, 7)
        );
        assert!(parse_interface(" face |bytes    packets errs").is_none());
    }
    use proptest::prelude::*;

    #[test]
    fn a_hostile_name_does_not_shift_the_fields() {
        let text = "42 (a) b ) R 1) S 7 8 9 34816 10 0 0 0 0 0 11 12 0 0 20 0 1 0 999 0 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.comm, "a) b ) R 1");
        assert_eq!((stat.state, stat.ppid, stat.pgrp, stat.starttime), ('S', 7, 8, 999));
        assert_eq!(tty_name(stat.tty_nr), "pts/0");
    }

    #[test]
    fn own_process_is_found() {
        let proc: OwnedFd = File::open("/proc").unwrap().into();
        let proc = ProcFs::new(proc);
        let me = std::process::id() as i32;
        assert!(proc.pids().unwrap().contains(&me));
        assert_eq!(proc.stat(me).unwrap().ppid, std::os::unix::process::parent_id() as i32);
        let nspid = proc.status_field(me, "NSpid").unwrap().unwrap();
        assert_eq!(parse_nspid(&nspid).last(), Some(&me));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,200}") {
            let _ = Stat::parse(&text);
        }
    }
}
