//! Who a container process is: ids, capabilities, limits, scheduling, and the final execve.
#![forbid(unsafe_code)]

use crate::sys::{misc, process};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use oci_spec::runtime::{
    Capability, IOPriorityClass, LinuxCapabilities, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    PosixRlimitType, Process,
};
use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Number of a capability, as in `<linux/capability.h>`.
pub fn capability_number(cap: Capability) -> u32 {
    const ORDER: [Capability; 41] = [
        Capability::Chown,
        Capability::DacOverride,
        Capability::DacReadSearch,
        Capability::Fowner,
        Capability::Fsetid,
        Capability::Kill,
        Capability::Setgid,
        Capability::Setuid,
        Capability::Setpcap,
        Capability::LinuxImmutable,
        Capability::NetBindService,
        Capability::NetBroadcast,
        Capability::NetAdmin,
        Capability::NetRaw,
        Capability::IpcLock,
        Capability::IpcOwner,
        Capability::SysModule,
        Capability::SysRawio,
        Capability::SysChroot,
        Capability::SysPtrace,
        Capability::SysPacct,
        Capability::SysAdmin,
        Capability::SysBoot,
        Capability::SysNice,
        Capability::SysResource,
        Capability::SysTime,
        Capability::SysTtyConfig,
        Capability::Mknod,
        Capability::Lease,
        Capability::AuditWrite,
        Capability::AuditControl,
        Capability::Setfcap,
        Capability::MacOverride,
        Capability::MacAdmin,
        Capability::Syslog,
        Capability::WakeAlarm,
        Capability::BlockSuspend,
        Capability::AuditRead,
        Capability::Perfmon,
        Capability::Bpf,
        Capability::CheckpointRestore,
    ];
    ORDER.iter().position(|c| *c == cap).unwrap_or(63) as u32
}

/// Capability by number, the inverse of [`capability_number`]; `None` above the last known one.
pub fn capability_name(number: u32) -> Option<String> {
    const NAMES: [&str; 41] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];
    Some(format!("CAP_{}", NAMES.get(number as usize)?))
}

#[derive(Debug, Default, Clone, Copy)]
struct CapabilitySets {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

fn mask(set: Option<&HashSet<Capability>>) -> u64 {
    set.into_iter().flatten().map(|c| 1u64 << capability_number(*c)).fold(0, |a, b| a | b)
}

impl CapabilitySets {
    fn from_spec(caps: Option<&LinuxCapabilities>) -> Self {
        let Some(caps) = caps else { return Self::default() };
        Self {
            bounding: mask(caps.bounding().as_ref()),
            effective: mask(caps.effective().as_ref()),
            permitted: mask(caps.permitted().as_ref()),
            inheritable: mask(caps.inheritable().as_ref()),
            ambient: mask(caps.ambient().as_ref()),
        }
    }
}

/// A process specification, checked and turned into what execve wants. Everything that can fail for lack of a
/// file or a bad string fails here, while errors can still be told well.
#[derive(Debug)]
pub struct Program {
    args: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    umask: Option<u32>,
    caps: CapabilitySets,
    no_new_privileges: bool,
    file: ProgramFile,
}

#[derive(Debug)]
enum ProgramFile {
    Path(CString),
    Fd(OwnedFd),
}

fn cstring(what: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid_argument(format!("{what} contains a NUL byte: {text:?}")))
}

impl Program {
    /// Checks `process` and finds its program in the current root directory; `exec` overrides the lookup.
    ///
    /// # Errors
    /// In the words that callers of OCI runtimes match: `exec: "x": executable file not found in $PATH`,
    /// `exec: "/x": stat /x: no such file or directory`, `… permission denied`.
    pub fn resolve(process: &Process, exec: Option<OwnedFd>) -> Result<Self> {
        let args = process.args().as_deref().unwrap_or_default();
        let first = args.first().ok_or_else(|| Error::invalid_argument("process.args is empty"))?;
        let env_texts = process.env().as_deref().unwrap_or_default();
        let mut env = env_texts.iter().map(|e| cstring("process.env", e)).collect::<Result<Vec<_>>>()?;
        if !env_texts.iter().any(|e| e.starts_with("HOME=")) {
            env.push(cstring("HOME", &format!("HOME={}", home_of(process.user().uid())))?);
        }
        let file = match exec {
            Some(fd) => ProgramFile::Fd(fd),
            None => {
                let path = env_texts.iter().rev().find_map(|e| e.strip_prefix("PATH="));
                ProgramFile::Path(cstring("process.args", &look_up(first, path, process.cwd())?)?)
            }
        };
        let user = process.user();
        let cwd =
            process.cwd().to_str().ok_or_else(|| Error::invalid_argument("process.cwd is not UTF-8"))?;
        Ok(Self {
            args: args.iter().map(|a| cstring("process.args", a)).collect::<Result<Vec<_>>>()?,
            env,
            cwd: cstring("process.cwd", cwd)?,
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask(),
            caps: CapabilitySets::from_spec(process.capabilities().as_ref()),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            file,
        })
    }

    /// Gives up every privilege that the process shall not have and executes it. Returns only on failure.
    ///
    /// `seccomp` installs the container's filter; it is called while the process may still do so and as late as
    /// that allows. Of the descriptors from 3 on, the new program keeps those whose numbers are in `passed`.
    pub fn execute(self, passed: &[i32], mut seccomp: impl FnMut() -> Result<()>) -> Error {
        match self.become_user(&mut seccomp) {
            Ok(()) => {}
            Err(e) => return e,
        }
        let highest = passed.iter().copied().max().unwrap_or(2).max(2);
        for fd in 3..=highest {
            if !passed.contains(&fd) {
                process::set_cloexec(fd);
            }
        }
        if let Err(e) = process::cloexec_from(highest + 1) {
            return Error::from(e).context("marking descriptors close-on-exec");
        }
        let (errno, name) = match &self.file {
            ProgramFile::Path(path) => {
                (process::execve(path, &self.args, &self.env), path.to_string_lossy().into_owned())
            }
            ProgramFile::Fd(fd) => {
                (process::execveat(fd.as_fd(), &self.args, &self.env), "the donated program".to_owned())
            }
        };
        exec_error(&name, errno)
    }

    fn become_user(&self, seccomp: &mut impl FnMut() -> Result<()>) -> Result<()> {
        if !self.no_new_privileges {
            // Without no_new_privs only CAP_SYS_ADMIN may load a filter, so it has to come first.
            seccomp()?;
        }
        let own = process::cap_permitted()?;
        for cap in 0..64 {
            if own & (1 << cap) != 0 && self.caps.bounding & (1 << cap) == 0 {
                match process::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) {
                    // Without CAP_SETPCAP (an exec by a caller that has none) the set cannot be trimmed further.
                    Ok(_) | Err(Errno::EINVAL | Errno::EPERM) => {}
                    Err(e) => return Err(Error::from(e).context("dropping the capability bounding set")),
                }
            }
        }
        // The user of the container may lack the right to enter the directory that it shall start in, and root may lack
        // it on a network file system: either will do, as in runc.
        let entered = self.enter_cwd();
        // A group in a namespace whose setgroups is denied: only an empty list can be meant.
        let groups_denied = self.groups.is_empty();
        process::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)?;
        match process::set_groups(&self.groups) {
            Err(Errno::EPERM) if groups_denied => {}
            other => other.map_err(|e| Error::from(e).context("setting additional groups"))?,
        }
        process::set_uid_gid(self.uid, self.gid).map_err(|e| {
            Error::from(e).context(format!("becoming uid {} gid {} (are they mapped?)", self.uid, self.gid))
        })?;
        if let Some(umask) = self.umask {
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
        }
        match entered {
            Err(e) if e.kind == Kind::Permission => self.enter_cwd()?,
            other => other?,
        }
        let limit = own & self.caps.bounding;
        let permitted = self.caps.permitted & limit;
        process::capset(self.caps.effective & permitted, permitted, self.caps.inheritable & limit)
            .map_err(|e| Error::from(e).context("setting capabilities"))?;
        process::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0)?;
        let _ = process::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0, 0);
        for cap in 0..64u64 {
            if self.caps.ambient & (1 << cap) != 0 {
                // As in runc: what cannot be raised (not inheritable) is left out.
                let _ = process::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, cap, 0, 0);
            }
        }
        if self.no_new_privileges {
            process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)?;
            seccomp()?;
        }
        Ok(())
    }

    /// Enters the working directory and makes sure that it is inside the root (CVE-2024-21626: a directory
    /// reached through a leaked descriptor is not).
    fn enter_cwd(&self) -> Result<()> {
        let shown = self.cwd.to_string_lossy().into_owned();
        nix::unistd::chdir(self.cwd.as_c_str()).map_err(|e| {
            Error::from(e).context(format!("chdir to cwd ({shown:?}) set in config.json failed"))
        })?;
        let actual = nix::unistd::getcwd()
            .map_err(|e| Error::from(e).context(format!("cwd {shown:?} is outside the container's root")))?;
        if !actual.is_absolute() {
            return Err(Error::new(
                Kind::Permission,
                format!("cwd {shown:?} is outside the container's root"),
            ));
        }
        Ok(())
    }
}

fn exec_error(path: &str, errno: Errno) -> Error {
    let kind = match errno {
        Errno::ENOENT => Kind::NoSuchEntity,
        Errno::EACCES | Errno::EPERM | Errno::EISDIR => Kind::Permission,
        _ => Kind::Failure,
    };
    Error::new(kind, format!("exec {path}: {}", describe(errno)))
}

fn describe(errno: Errno) -> &'static str {
    // Callers of OCI runtimes match these in lower case, as Go prints them.
    match errno {
        Errno::ENOENT => "no such file or directory",
        Errno::EACCES => "permission denied",
        Errno::EPERM => "operation not permitted",
        Errno::ENOEXEC => "exec format error",
        Errno::ENOTDIR => "not a directory",
        // execve(2) says EACCES; podman turns those words into exit status 126.
        Errno::EISDIR => "is a directory: permission denied",
        other => other.desc(),
    }
}

/// Finds the program as execvp(3) would, in the current root; relative names with a slash are relative to `cwd`.
fn look_up(name: &str, path: Option<&str>, cwd: &Path) -> Result<String> {
    if name.is_empty() {
        return Err(Error::new(Kind::NoSuchEntity, "exec: \"\": executable file not found in $PATH"));
    }
    if name.contains('/') {
        let full: PathBuf = cwd.join(name);
        return match check_executable(&full) {
            Ok(()) => Ok(full.to_string_lossy().into_owned()),
            Err(e) => {
                let verb = if e == Errno::ENOENT { format!("stat {name}: ") } else { String::new() };
                let error = exec_error("", e);
                Err(Error::new(error.kind, format!("exec: {name:?}: {verb}{}", describe(e))))
            }
        };
    }
    let mut denied = false;
    for dir in path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").split(':') {
        let full = cwd.join(if dir.is_empty() { "." } else { dir }).join(name);
        match check_executable(&full) {
            Ok(()) => return Ok(full.to_string_lossy().into_owned()),
            Err(Errno::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    if denied {
        return Err(Error::new(Kind::Permission, format!("exec: {name:?}: permission denied")));
    }
    Err(Error::new(Kind::NoSuchEntity, format!("exec: {name:?}: executable file not found in $PATH")))
}

fn check_executable(path: &Path) -> std::result::Result<(), Errno> {
    use std::os::unix::fs::PermissionsExt;
    let meta =
        std::fs::metadata(path).map_err(|e| e.raw_os_error().map_or(Errno::ENOENT, Errno::from_raw))?;
    if meta.is_dir() {
        return Err(Errno::EISDIR);
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    Ok(())
}

/// Home directory of `uid` from the container's `/etc/passwd`; `/` when it is not there.
fn home_of(uid: u32) -> String {
    use std::io::Read;
    const LIMIT: u64 = 1 << 20; // the image writes this file
    let mut text = String::new();
    let read = std::fs::File::open("/etc/passwd").and_then(|f| {
        if !f.metadata()?.is_file() {
            return Ok(0);
        }
        f.take(LIMIT).read_to_string(&mut text)
    });
    if read.is_err() {
        return "/".to_owned();
    }
    home_in(&text, uid).unwrap_or_else(|| if uid == 0 { "/root".to_owned() } else { "/".to_owned() })
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() >= 6 && fields[2].parse() == Ok(uid) && fields[5].starts_with('/'))
            .then(|| fields[5].to_owned())
    })
}

/// Applies rlimits, oom score (through `procfs`), personality, scheduler, I/O priority and CPU affinity.
///
/// # Errors
/// Naming the field and the value that the kernel refused.
pub fn apply_limits(process: &Process) -> Result<()> {
    for limit in process.rlimits().iter().flatten() {
        let (soft, hard) = (limit.soft(), limit.hard());
        process::set_rlimit(rlimit_number(limit.typ()), soft, hard).map_err(|e| {
            Error::from(e).context(format!(
                "error setting rlimit {:?} to {soft}:{hard} (raising a hard limit needs CAP_SYS_RESOURCE)",
                limit.typ()
            ))
        })?;
    }
    if let Some(io) = process.io_priority() {
        let class = match io.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        misc::ioprio_set((class << 13) | io.priority() as i32)
            .map_err(|e| Error::from(e).context("process.ioPriority"))?;
    }
    if let Some(s) = process.scheduler() {
        let policy = match s.policy() {
            LinuxSchedulerPolicy::SchedOther => 0,
            LinuxSchedulerPolicy::SchedFifo => 1,
            LinuxSchedulerPolicy::SchedRr => 2,
            LinuxSchedulerPolicy::SchedBatch => 3,
            LinuxSchedulerPolicy::SchedIso => 4,
            LinuxSchedulerPolicy::SchedIdle => 5,
            LinuxSchedulerPolicy::SchedDeadline => 6,
        };
        let flags = s.flags().iter().flatten().map(|f| match f {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        });
        misc::sched_setattr(misc::SchedAttr {
            policy,
            flags: flags.fold(0, |a, b| a | b),
            nice: s.nice().unwrap_or(0),
            priority: s.priority().unwrap_or(0) as u32,
            runtime: s.runtime().unwrap_or(0),
            deadline: s.deadline().unwrap_or(0),
            period: s.period().unwrap_or(0),
            ..Default::default()
        })
        .map_err(|e| Error::from(e).context("process.scheduler"))?;
    }
    Ok(())
}

/// Pins the process to the CPUs of a list such as `0-2,7`.
///
/// # Errors
/// A malformed list, or `EINVAL` when none of the CPUs exists.
pub fn apply_affinity(list: Option<&String>) -> Result<()> {
    let Some(list) = list.filter(|l| !l.trim().is_empty()) else { return Ok(()) };
    let bad = || Error::invalid_argument(format!("process.execCPUAffinity: {list:?} is not a CPU list"));
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last): (usize, usize) =
            (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
        if first > last || last > 4096 {
            return Err(bad());
        }
        cpus.extend(first..=last);
    }
    misc::set_affinity(&cpus).map_err(|e| Error::from(e).context(format!("process.execCPUAffinity {list:?}")))
}

fn rlimit_number(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_numbers_and_names_agree_with_the_kernel_header() {
        assert_eq!(capability_number(Capability::Chown), 0);
        assert_eq!(capability_number(Capability::SysAdmin), 21);
        assert_eq!(capability_number(Capability::CheckpointRestore), 40);
        assert_eq!(capability_name(21).as_deref(), Some("CAP_SYS_ADMIN"));
        assert_eq!(capability_name(41), None);
        for n in 0..41 {
            let name = serde_json::Value::from(capability_name(n).unwrap());
            assert_eq!(capability_number(serde_json::from_value(name).unwrap()), n);
        }
    }

    #[test]
    fn home_is_read_from_passwd_and_hostile_lines_are_skipped() {
        let passwd = "x:y\nroot:x:0:0:root:/root:/bin/sh\nevil:x:7:0::relative:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh";
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/home/bob"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 5), None);
    }

    #[test]
    fn a_missing_program_is_named_in_the_words_that_callers_match() {
        let e = look_up("no-such-program", Some("/bin"), Path::new("/")).unwrap_err();
        assert_eq!(e.message, "exec: \"no-such-program\": executable file not found in $PATH");
        let e = look_up("/no/such", None, Path::new("/")).unwrap_err();
        assert_eq!(e.message, "exec: \"/no/such\": stat /no/such: no such file or directory");
    }

    #[test]
    fn cpu_lists_are_parsed_strictly() {
        assert!(apply_affinity(Some(&"0-".to_owned())).is_err());
        assert!(apply_affinity(Some(&"3-1".to_owned())).is_err());
        assert!(apply_affinity(Some(&"0".to_owned())).is_ok());
    }
}
