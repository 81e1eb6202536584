//! Asking about and setting what the kernel keeps for a thread, from outside of it: scheduling, I/O priority, limits,
//! robust futexes, sharing. A thread id of 0 means the caller.

use super::misc::SchedAttr;
use nix::errno::Errno;
use std::cmp::Ordering;

type Result<T> = std::result::Result<T, Errno>;

/// CPUs that can be told apart here; what the kernel's own limit is on all usual configurations.
pub const MAX_CPUS: usize = 8192;

/// Compares the address spaces of two tasks (kcmp(2) `KCMP_VM`): an order that lasts until reboot.
///
/// # Errors
/// `EPERM` without the right to trace them, `ESRCH`; `ENOSYS` on kernels without CONFIG_KCMP.
pub fn compare_memory(first: i32, second: i32) -> Result<Ordering> {
    kcmp(first, second, 1)
}

/// As [`compare_memory`], for tables of signal actions (`KCMP_SIGHAND`).
///
/// # Errors
/// As [`compare_memory`].
pub fn compare_sighand(first: i32, second: i32) -> Result<Ordering> {
    kcmp(first, second, 4)
}

fn kcmp(first: i32, second: i32, kind: i32) -> Result<Ordering> {
    // SAFETY: no pointers are passed: kinds without a descriptor ignore the last two arguments.
    let order = Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, first, second, kind, 0, 0) })?;
    Ok(match order {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        _ => Ordering::Greater,
    })
}

/// [`SchedAttr`] with the utilisation clamps (Linux 5.3) behind it.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Extended {
    attr: SchedAttr,
    clamps: [u32; 2],
}

/// Scheduling of a thread (sched_getattr(2)), and its least and greatest utilisation; both 0: the kernel has no clamps.
///
/// # Errors
/// `ESRCH`.
pub fn sched_getattr(tid: i32) -> Result<(SchedAttr, [u32; 2])> {
    let mut all = Extended::default();
    let size = size_of::<Extended>();
    // SAFETY: the kernel stores at most `size` bytes in `all`, which has its layout.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut all, size, 0) })?;
    Ok((all.attr, all.clamps))
}

/// sched_setattr(2). The clamps matter only with `SCHED_FLAG_UTIL_CLAMP_*` among the flags.
///
/// # Errors
/// `EPERM`, `EINVAL`, `EOPNOTSUPP` for clamps, `EBUSY` (deadline admission), `ESRCH`.
pub fn sched_setattr(tid: i32, attr: SchedAttr, clamps: Option<[u32; 2]>) -> Result<()> {
    let size = if clamps.is_some() { size_of::<Extended>() } else { size_of::<SchedAttr>() };
    let attr = SchedAttr { size: size as u32, ..attr };
    let all = Extended { attr, clamps: clamps.unwrap_or_default() };
    // SAFETY: `all` has the kernel's layout, carries its size and outlives the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const all, 0) }).map(drop)
}

/// Nice value of a thread (getpriority(2)).
///
/// # Errors
/// `ESRCH`.
pub fn nice(tid: i32) -> Result<i32> {
    // SAFETY: no pointers are passed; the raw call, which answers 20 - nice, so that errors can be told.
    let value = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid) };
    Errno::result(value).map(|v| 20 - v as i32)
}

/// Numbers of the CPUs that a thread may run on, ascending (sched_getaffinity(2)).
///
/// # Errors
/// `ESRCH`; `EINVAL` on a kernel with more than [`MAX_CPUS`].
pub fn affinity(tid: i32) -> Result<Vec<u32>> {
    let mut mask = [0u8; MAX_CPUS / 8];
    // SAFETY: the kernel stores at most the given number of bytes in `mask`.
    let n = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, mask.len(), mask.as_mut_ptr()) };
    let bits = 8 * Errno::result(n)? as u32;
    Ok((0..bits).filter(|cpu| mask[*cpu as usize / 8] & (1 << (cpu % 8)) != 0).collect())
}

/// Restricts a thread to some CPUs (sched_setaffinity(2)); numbers of [`MAX_CPUS`] and above are left out.
///
/// # Errors
/// `EINVAL` when the thread may run on none of them, `EPERM`, `ESRCH`.
pub fn set_affinity(tid: i32, cpus: &[u32]) -> Result<()> {
    let mut mask = [0u8; MAX_CPUS / 8];
    for cpu in cpus {
        if let Some(byte) = mask.get_mut(*cpu as usize / 8) {
            *byte |= 1 << (cpu % 8);
        }
    }
    // SAFETY: the kernel reads the given number of bytes of `mask`.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, mask.len(), mask.as_ptr()) })
        .map(drop)
}

const IOPRIO_WHO_PROCESS: i32 = 1;

/// I/O priority of a thread (ioprio_get(2)): class << 13 | priority.
///
/// # Errors
/// `ESRCH`, `ENOSYS` on a kernel without block devices.
pub fn ioprio(tid: i32) -> Result<i32> {
    // SAFETY: no pointers are passed.
    let value = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) };
    Errno::result(value).map(|v| v as i32)
}

/// Sets it (ioprio_set(2)).
///
/// # Errors
/// `EPERM`, `EINVAL`, `ESRCH`.
pub fn set_ioprio(tid: i32, value: i32) -> Result<()> {
    // SAFETY: no pointers are passed.
    let set = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, value) };
    Errno::result(set).map(drop)
}

/// A thread's list of robust futexes: address of its head, and the head's size (get_robust_list(2)).
///
/// # Errors
/// `EPERM` without the right to trace it, `ESRCH`.
pub fn robust_list(tid: i32) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0usize, 0usize);
    // SAFETY: the kernel stores an address and a size, each of the size of usize.
    Errno::result(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) })?;
    Ok((head as u64, len as u64))
}

/// Resource limit of a process: soft and hard (prlimit64(2)).
///
/// # Errors
/// `EPERM` when its user is another one and the caller lacks CAP_SYS_RESOURCE, `ESRCH`, `EINVAL`.
pub fn rlimit(pid: i32, resource: u32) -> Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let none = std::ptr::null::<libc::rlimit64>();
    // SAFETY: the kernel stores one rlimit64 in `limit`.
    Errno::result(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, none, &raw mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Sets it.
///
/// # Errors
/// As [`rlimit`], and `EPERM` for a hard limit that is raised without CAP_SYS_RESOURCE.
pub fn set_rlimit(pid: i32, resource: u32, (soft, hard): (u64, u64)) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let none = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: the kernel reads one rlimit64 from `limit`.
    Errno::result(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, none) })
        .map(drop)
}

/// Sends `signal` (0: existence check) to one process (kill(2)).
///
/// # Errors
/// `ESRCH` (also for numbers that name groups of processes), `EPERM`, `EINVAL`.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    if pid <= 0 {
        return Err(Errno::ESRCH);
    }
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_has_what_it_sets() {
        let cpus = affinity(0).unwrap();
        assert!(!cpus.is_empty());
        set_affinity(0, &cpus[..1]).unwrap();
        assert_eq!(affinity(0).unwrap(), cpus[..1]);
        set_affinity(0, &cpus).unwrap();
        assert_eq!(set_affinity(0, &[MAX_CPUS as u32 + 7]), Err(Errno::EINVAL));
        let (attr, clamps) = sched_getattr(0).unwrap();
        assert_eq!((attr.policy, attr.size), (0, 56));
        sched_setattr(0, attr, None).unwrap();
        assert!(clamps == [0, 0] || clamps[1] > 0);
        assert_eq!(nice(0).unwrap(), attr.nice);
        set_ioprio(0, 2 << 13 | 5).unwrap();
        assert_eq!(ioprio(0).unwrap(), 2 << 13 | 5);
        let (head, len) = robust_list(0).unwrap();
        assert!(head != 0 && len == 24);
        let me = std::process::id() as i32;
        let cores = rlimit(0, libc::RLIMIT_CORE).unwrap();
        set_rlimit(me, libc::RLIMIT_CORE, (0, cores.1)).unwrap();
        assert_eq!(rlimit(me, libc::RLIMIT_CORE).unwrap(), (0, cores.1));
        set_rlimit(0, libc::RLIMIT_CORE, cores).unwrap();
        assert_eq!(compare_memory(me, me).unwrap(), Ordering::Equal);
        assert_ne!(compare_memory(me, std::os::unix::process::parent_id() as i32).unwrap(), Ordering::Equal);
        assert_eq!(compare_sighand(me, me).unwrap(), Ordering::Equal);
    }
}
