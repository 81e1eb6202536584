//! Scheduling, I/O priority and limits, which are set from outside.
#![forbid(unsafe_code)]

use super::bounds::{Bounds, CAP_SYS_NICE, CAP_SYS_RESOURCE};
use crate::checkpoint::state::Sched;
use crate::sys::misc::SchedAttr;
use crate::sys::task;
use nix::errno::Errno;

const SCHED_IDLE: u32 = 5;
const SCHED_DEADLINE: u32 = 6;
/// SCHED_FLAG_RESET_ON_FORK, _RECLAIM, _DL_OVERRUN: what sched_getattr(2) tells.
const FLAGS: u64 = 0x07;
const UTIL_CLAMP_MIN: u64 = 0x20;
const UTIL_CLAMP_MAX: u64 = 0x40;
/// IOPRIO_CLASS_RT.
const CLASS_RT: i32 = 1;

/// Gives thread `tid` its scheduling. `cpus` are those that it may run on here; `all` is how many the machine had on
/// which it was saved. Answers what cannot be as it was.
pub fn restore(tid: i32, saved: &Sched, cpus: &[u32], all: u32, bounds: &Bounds) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(text) = affinity(tid, &saved.affinity, cpus, all) {
        warnings.push(text);
    }
    if let Some(text) = policy(tid, saved, bounds) {
        warnings.push(text);
    }
    if saved.ioprio != task::ioprio(tid).unwrap_or(0) {
        let may = saved.ioprio >> 13 != CLASS_RT || bounds.has(CAP_SYS_NICE);
        let set = if may { task::set_ioprio(tid, saved.ioprio) } else { Err(Errno::EPERM) };
        if let Err(e) = set {
            warnings.push(format!("its I/O priority {:#x} cannot be set: {e}", saved.ioprio));
        }
    }
    warnings
}

/// CPUs: those of the saved ones that are here. Who could run everywhere can do so here.
fn affinity(tid: i32, saved: &[u32], cpus: &[u32], all: u32) -> Option<String> {
    if saved.is_empty() || saved.len() >= all as usize {
        return None;
    }
    let here: Vec<u32> = saved.iter().copied().filter(|c| cpus.contains(c)).collect();
    if here.is_empty() {
        return Some(format!("none of the CPUs {saved:?} that it ran on is here: it runs on all that are"));
    }
    if let Err(e) = task::set_affinity(tid, &here) {
        return Some(format!("it cannot be made to run on the CPUs {here:?}: {e}"));
    }
    (here.len() < saved.len())
        .then(|| format!("of the CPUs {saved:?} that it ran on, only {here:?} are here"))
}

fn policy(tid: i32, saved: &Sched, bounds: &Bounds) -> Option<String> {
    let (now, _) = task::sched_getattr(tid).ok()?;
    let mut flags = saved.flags & FLAGS;
    let clamp = |value: i32, flag: u64, otherwise: u32| match u32::try_from(value) {
        Ok(value) => (value, flag),
        Err(_) => (otherwise, 0),
    };
    let (least, has_least) = clamp(saved.uclamp.0, UTIL_CLAMP_MIN, 0);
    let (most, has_most) = clamp(saved.uclamp.1, UTIL_CLAMP_MAX, 1024);
    flags |= has_least | has_most;
    let real_time = |policy: u32| policy != 0 && policy != 3 && policy != SCHED_IDLE;
    let deadline = saved.policy == SCHED_DEADLINE;
    let attr = SchedAttr {
        size: 0,
        policy: saved.policy,
        flags,
        nice: saved.nice,
        priority: saved.priority,
        // Of ordinary policies, a time slice of its own.
        runtime: saved.deadline.0,
        deadline: if deadline { saved.deadline.1 } else { 0 },
        period: if deadline { saved.deadline.2 } else { 0 },
    };
    let nice = task::nice(tid).unwrap_or(now.nice);
    let same =
        (now.policy, now.flags & FLAGS, nice, now.priority) == (attr.policy, flags, attr.nice, attr.priority);
    if same && saved.deadline == (0, 0, 0) {
        return None;
    }
    let more = (real_time(saved.policy) && !real_time(now.policy)) || saved.nice < nice;
    let may = !more || bounds.has(CAP_SYS_NICE) || limits_allow(tid);
    let clamps = (flags & (UTIL_CLAMP_MIN | UTIL_CLAMP_MAX) != 0).then_some([least, most]);
    let set = || {
        if nice != saved.nice && (real_time(saved.policy) || saved.policy == SCHED_IDLE) {
            // These policies leave the nice value alone.
            task::sched_setattr(tid, SchedAttr { nice: saved.nice, ..SchedAttr::default() }, None)?;
        }
        task::sched_setattr(tid, attr, clamps)
    };
    let set = if may { set() } else { Err(Errno::EPERM) };
    let e = set.err()?;
    Some(format!(
        "scheduling policy {} with priority {} and nice value {} cannot be set: {e}",
        saved.policy, saved.priority, saved.nice
    ))
}

/// RLIMIT_NICE or RLIMIT_RTPRIO give the container's programs the right that CAP_SYS_NICE would.
fn limits_allow(tid: i32) -> bool {
    [libc::RLIMIT_NICE, libc::RLIMIT_RTPRIO]
        .into_iter()
        .any(|n| task::rlimit(tid, n).is_ok_and(|(_, hard)| hard > 0))
}

/// Sets resource limits. Hard limits above those that the waiting init had are cut to these unless the container may
/// raise them.
pub fn limits(pid: i32, saved: &[(u64, u64)], bounds: &Bounds) -> Vec<String> {
    let mut warnings = Vec::new();
    for (resource, (soft, hard)) in (0u32..16).zip(saved) {
        let now = task::rlimit(pid, resource);
        if now == Ok((*soft, *hard)) {
            continue;
        }
        let most = now.map_or(*hard, |(_, most)| most);
        let raised = *hard > most;
        let tried = if raised && !bounds.has(CAP_SYS_RESOURCE) {
            Err(Errno::EPERM)
        } else {
            task::set_rlimit(pid, resource, (*soft, *hard))
        };
        if let Err(e) = tried {
            let cut = ((*soft).min(most), (*hard).min(most));
            let what = match task::set_rlimit(pid, resource, cut) {
                Ok(()) => format!("it is {} and {}", cut.0, cut.1),
                Err(e) => format!("it stays as it is: {e}"),
            };
            warnings.push(format!("resource limit {resource} cannot be {soft} and {hard} ({e}); {what}"));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_cpus_are_told_and_none_is_no_reason_to_fail() {
        let cpus = task::affinity(0).unwrap();
        let tid = crate::sys::misc::gettid();
        let gone = crate::sys::task::MAX_CPUS as u32 - 1;
        assert_eq!(affinity(tid, &cpus, &cpus, cpus.len() as u32), None, "who ran everywhere");
        assert_eq!(task::affinity(tid).unwrap(), cpus);
        let text = affinity(tid, &[cpus[0], gone], &cpus, 64).unwrap();
        assert!(text.contains("only"), "{text}");
        assert_eq!(task::affinity(tid).unwrap(), [cpus[0]]);
        task::set_affinity(tid, &cpus).unwrap();
        assert!(affinity(tid, &[gone], &cpus, 64).unwrap().contains("runs on all"));
        assert_eq!(task::affinity(tid).unwrap(), cpus);
    }

    #[test]
    fn limits_are_not_raised_without_the_right() {
        let pid = std::process::id() as i32;
        let (soft, hard) = task::rlimit(pid, libc::RLIMIT_RTTIME).unwrap();
        let mut saved: Vec<_> = (0..16).map(|n| task::rlimit(pid, n).unwrap()).collect();
        assert!(limits(pid, &saved, &Bounds::default()).is_empty());
        let lower = hard.min(1 << 40) - 1;
        saved[libc::RLIMIT_RTTIME as usize] = (lower, lower);
        assert!(limits(pid, &saved, &Bounds::default()).is_empty());
        assert_eq!(task::rlimit(pid, libc::RLIMIT_RTTIME), Ok((lower, lower)));
        saved[libc::RLIMIT_RTTIME as usize] = (soft, hard);
        let told = limits(pid, &saved, &Bounds::default());
        assert!(told.len() == 1 && told[0].contains(&lower.to_string()), "{told:?}");
    }
}
