//! What proc(5) shows of processes, of which most is for the privileged: `containerManager.ProcfsDump`.
//!
//! Names, paths, arguments and environment are the container's: they are taken as hostile text.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker};
use crate::procfs::ProcFs;
use airlock_wire::api::procfs::{
    Access, AddressRange, CgroupEntry, FdInfo, Ids, Limit, Mapping, ProcessProcfsDump, Stat, Status,
};
use airlock_wire::api::types::Json;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::fstatat;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::str::SplitAsciiWhitespace;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most bytes of JSON that an answer has: a message holds 16 MiB.
const BUDGET: usize = 14 << 20;

/// Dumps processes, given by their pids in the sandbox's pid namespace. Takes no descriptors.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ProcfsDump(pub Vec<i32>);

/// What became of a [`ProcfsDump`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ProcfsDumped {
    /// The processes that could be read, in the order asked for.
    pub dumps: Vec<Json<ProcessProcfsDump>>,
    /// The others, and why.
    pub skipped: Vec<(i32, String)>,
}

impl Task for ProcfsDump {
    type Reply = ProcfsDumped;

    fn run(self, worker: &Worker, _: Vec<OwnedFd>) -> Result<Done<Self::Reply>> {
        let mut reply = ProcfsDumped::default();
        let mut left = BUDGET;
        for pid in self.0 {
            let sized = dump(&worker.procfs, pid).and_then(|dump| {
                let size = serde_json::to_vec(&dump).map_err(|e| Error::failure(e.to_string()))?.len();
                left = left
                    .checked_sub(size)
                    .ok_or_else(|| Error::failure(format!("an answer holds {BUDGET} bytes")))?;
                Ok(dump)
            });
            match sized {
                Ok(dump) => reply.dumps.push(Json(dump)),
                Err(e) => reply.skipped.push((pid, e.to_string())),
            }
        }
        Ok(Done::with(reply))
    }
}

/// Reads what procfs has of one process. What it forbids or lacks is left empty (a kernel that hides it, a zombie).
///
/// # Errors
/// The process is gone.
fn dump(procfs: &ProcFs, pid: i32) -> Result<ProcessProcfsDump> {
    let text = |name: &str| {
        procfs.read_whole(pid, name).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    };
    let link = |name: &str| {
        let target = readlinkat(procfs.root(), format!("{pid}/{name}").as_str());
        target.map(|t| String::from_utf8_lossy(t.as_bytes()).into_owned()).unwrap_or_default()
    };
    let stat = procfs.stat(pid)?;
    Ok(ProcessProcfsDump {
        exe: link("exe"),
        args: strings(&text("cmdline")),
        env: strings(&text("environ")),
        cwd: link("cwd"),
        fds: descriptors(procfs, pid),
        start_time: start_time(procfs, stat.starttime).unwrap_or(0),
        root: link("root"),
        limits: limits(&text("limits")),
        cgroup: text("cgroup").lines().filter_map(cgroup).collect(),
        status: status(pid, &stat, &text("status")),
        stat: Stat { pgid: stat.pgrp, sid: stat.session },
        maps: text("maps").lines().filter_map(mapping).collect(),
    })
}

/// Texts that end with a zero each.
fn strings(text: &str) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    text.strip_suffix('\0').unwrap_or(text).split('\0').map(str::to_owned).collect()
}

fn descriptors(procfs: &ProcFs, pid: i32) -> Vec<FdInfo> {
    let describe = |number: i32| {
        let name = format!("{pid}/fd/{number}");
        let target = readlinkat(procfs.root(), name.as_str()).ok()?;
        let mode = fstatat(procfs.root(), name.as_str(), AtFlags::empty()).map_or(0, |s| s.st_mode);
        let path = String::from_utf8_lossy(target.as_bytes()).into_owned();
        // A mode has 16 bits.
        Some(FdInfo { number, path, mode: mode as u16 })
    };
    procfs.descriptors(pid).unwrap_or_default().into_iter().filter_map(describe).collect()
}

/// Ticks after boot as nanoseconds since 1970.
fn start_time(procfs: &ProcFs, ticks: u64) -> Option<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let boot = now.checked_sub(procfs.uptime())?;
    i64::try_from((boot + Duration::from_millis(ticks.saturating_mul(10))).as_nanos()).ok()
}

/// Lines of `/proc/<pid>/limits`: a name in 26 columns, the soft limit, the hard one, perhaps a unit.
fn limits(text: &str) -> BTreeMap<String, Limit> {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "RLIMIT_CPU"),
        ("Max file size", "RLIMIT_FSIZE"),
        ("Max data size", "RLIMIT_DATA"),
        ("Max stack size", "RLIMIT_STACK"),
        ("Max core file size", "RLIMIT_CORE"),
        ("Max resident set", "RLIMIT_RSS"),
        ("Max processes", "RLIMIT_NPROC"),
        ("Max open files", "RLIMIT_NOFILE"),
        ("Max locked memory", "RLIMIT_MEMLOCK"),
        ("Max address space", "RLIMIT_AS"),
        ("Max file locks", "RLIMIT_LOCKS"),
        ("Max pending signals", "RLIMIT_SIGPENDING"),
        ("Max msgqueue size", "RLIMIT_MSGQUEUE"),
        ("Max nice priority", "RLIMIT_NICE"),
        ("Max realtime priority", "RLIMIT_RTPRIO"),
        ("Max realtime timeout", "RLIMIT_RTTIME"),
    ];
    let value = |word: Option<&str>| match word? {
        "unlimited" => Some(u64::MAX),
        n => n.parse().ok(),
    };
    text.lines()
        .filter_map(|line| {
            let (shown, name) = NAMES.iter().find(|(shown, _)| line.starts_with(shown))?;
            let mut words = line.get(shown.len()..)?.split_ascii_whitespace();
            Some(((*name).to_owned(), Limit { cur: value(words.next())?, max: value(words.next())? }))
        })
        .collect()
}

fn cgroup(line: &str) -> Option<CgroupEntry> {
    let mut parts = line.splitn(3, ':');
    Some(CgroupEntry {
        hierarchy_id: parts.next()?.parse().ok()?,
        controllers: parts.next()?.to_owned(),
        path: parts.next()?.to_owned(),
    })
}

fn status(pid: i32, stat: &crate::procfs::Stat, text: &str) -> Status {
    let field = |name: &str| {
        let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_default().split_ascii_whitespace()
    };
    let number = |mut words: SplitAsciiWhitespace<'_>| words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let ids = |name: &str| {
        let all: Vec<u32> = field(name).filter_map(|n| n.parse().ok()).collect();
        let at = |i: usize| all.get(i).copied().unwrap_or(0);
        Ids { real: at(0), effective: at(1), saved: at(2) }
    };
    Status {
        comm: stat.comm.clone(),
        pid,
        ppid: stat.ppid,
        uid: ids("Uid"),
        gid: ids("Gid"),
        vm_size: number(field("VmSize")),
        vm_rss: number(field("VmRSS")),
    }
}

/// Reads a text as each of the files that are taken apart here.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz(text: &str) {
    let _ = (strings(text), limits(text));
    for line in text.lines() {
        let _ = (cgroup(line), mapping(line));
    }
    if let Some(stat) = crate::procfs::Stat::parse(text) {
        let _ = status(1, &stat, text);
    }
}

/// `start-end rwxp offset major:minor inode   name`, hexadecimal but for the inode; the name may have blanks.
fn mapping(line: &str) -> Option<Mapping> {
    let mut parts = line.splitn(6, ' ');
    let (start, end) = parts.next()?.split_once('-')?;
    let flags = parts.next()?;
    let offset = parts.next()?;
    let (major, minor) = parts.next()?.split_once(':')?;
    let inode = parts.next()?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(Mapping {
        address: AddressRange { start: hex(start)?, end: hex(end)? },
        permissions: Access {
            read: flags.contains('r'),
            write: flags.contains('w'),
            execute: flags.contains('x'),
        },
        private: flags.get(3..4)?.to_owned(),
        offset: hex(offset)?,
        device_major: hex(major)? as u32,
        device_minor: hex(minor)? as u32,
        inode: inode.parse().ok()?,
        pathname: parts.next().unwrap_or_default().trim_start().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;

    #[test]
    fn this_process_is_described() {
        let procfs = ProcFs::new(File::open("/proc").unwrap().into());
        let me = std::process::id() as i32;
        let dump = dump(&procfs, me).unwrap();
        assert_eq!(dump.exe, std::env::current_exe().unwrap().to_str().unwrap());
        assert_eq!(dump.args, std::env::args().collect::<Vec<_>>());
        assert_eq!(dump.cwd, std::env::current_dir().unwrap().to_str().unwrap());
        assert_eq!((dump.status.pid, dump.root.as_str()), (me, "/"));
        assert!(dump.env.iter().any(|e| e.starts_with("PATH=")));
        assert!(dump.fds.iter().any(|fd| fd.number == 0 && fd.mode != 0));
        assert_eq!(dump.limits.len(), 16);
        assert!(dump.maps.iter().any(|m| m.permissions.execute && m.pathname == dump.exe && m.inode > 0));
        assert!(dump.status.vm_size >= dump.status.vm_rss && dump.status.vm_rss > 0);
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64 - dump.start_time;
        assert!((-100_000_000..3_600_000_000_000).contains(&age), "{age}");
    }

    #[test]
    fn lines_of_procfs_are_read() {
        let line = "7f00-7f10 r-xs 0000a000 fe:01 4711                       /a b\\012c (deleted)";
        let m = mapping(line).unwrap();
        assert_eq!((m.address.start, m.address.end, m.offset), (0x7f00, 0x7f10, 0xa000));
        assert_eq!((m.private.as_str(), m.device_major, m.device_minor, m.inode), ("s", 0xfe, 1, 4711));
        assert_eq!(m.pathname, "/a b\\012c (deleted)");
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 unlimited            files     \n";
        let limits = limits(text);
        assert_eq!(limits["RLIMIT_NOFILE"], Limit { cur: 1024, max: u64::MAX });
        assert_eq!(cgroup("0::/a:b").unwrap().path, "/a:b");
        assert_eq!(strings("a\0\0b\0"), ["a", "", "b"]);
        assert!(strings("").is_empty());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,200}") {
            let _ = (mapping(&text), cgroup(&text), limits(&text), strings(&text));
            let _ = status(1, &crate::procfs::Stat::default(), &text);
        }
    }
}
