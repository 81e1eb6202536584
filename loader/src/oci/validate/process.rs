#![forbid(unsafe_code)]
//! `process`.

use super::{absolute, invalid, text, texts, unsupported};
use airlock_wire::error::Result;
use oci_spec::runtime::{LinuxSchedulerPolicy, Process, Scheduler, User};

/// The kernel takes this many additional groups (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

pub(super) fn check(process: &Process) -> Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(invalid("process.args", "args must not be empty"));
    }
    texts("process.args", process.args().as_deref())?;
    texts("process.env", process.env().as_deref())?;
    absolute("process.cwd", process.cwd())?;
    user(process.user())?;
    if process.terminal() == Some(true)
        && let Some(size) = process.console_size()
        && size.height().max(size.width()) > u64::from(u16::MAX)
    {
        return Err(invalid(
            "process.consoleSize",
            format_args!("{}x{}: terminals have at most 65535 rows and columns", size.height(), size.width()),
        ));
    }
    rlimits(process)?;
    if let Some(score) = process.oom_score_adj().filter(|score| !(-1000..=1000).contains(score)) {
        return Err(invalid("process.oomScoreAdj", format_args!("is {score}: it goes from -1000 to 1000")));
    }
    if let Some(io) = process.io_priority() {
        let level = io.priority();
        if !(0..=7).contains(&level) {
            return Err(invalid(
                "process.ioPriority.priority",
                format_args!("is {level}: it goes from 0 to 7"),
            ));
        }
    }
    if let Some(scheduler) = process.scheduler() {
        check_scheduler(scheduler)?;
    }
    labels(process)
}

fn user(user: &User) -> Result<()> {
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    let ids = [("uid", user.uid()), ("gid", user.gid())];
    for (name, id) in ids.into_iter().chain(groups.iter().map(|gid| ("additionalGids", *gid))) {
        // -1 stands for "unchanged" in setresuid(2) and its like.
        if id == u32::MAX {
            return Err(invalid(format_args!("process.user.{name}"), format_args!("{id} is no id")));
        }
    }
    if groups.len() > MAX_GROUPS {
        return Err(invalid(
            "process.user.additionalGids",
            format_args!("has {} entries, the kernel takes {MAX_GROUPS}", groups.len()),
        ));
    }
    match user.umask() {
        Some(mask) if mask > 0o777 => Err(invalid(
            "process.user.umask",
            format_args!("is {mask:#o}: it has permission bits only (at most 0o777)"),
        )),
        _ => Ok(()),
    }
}

fn rlimits(process: &Process) -> Result<()> {
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (i, limit) in limits.iter().enumerate() {
        let path = format_args!("process.rlimits[{i}]");
        if limits[..i].iter().any(|l| l.typ() == limit.typ()) {
            return Err(invalid(path, format_args!("{} is there twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            return Err(invalid(
                path,
                format_args!("{}: soft {} is above hard {}", limit.typ(), limit.soft(), limit.hard()),
            ));
        }
    }
    Ok(())
}

/// sched_setattr(2).
fn check_scheduler(scheduler: &Scheduler) -> Result<()> {
    use LinuxSchedulerPolicy as Policy;
    let path = |name: &str| format!("process.scheduler.{name}");
    let policy = scheduler.policy();
    if *policy == Policy::SchedIso {
        return Err(unsupported(path("policy"), "SCHED_ISO is reserved: no kernel implements it"));
    }
    if let Some(nice) = scheduler.nice().filter(|nice| !(-20..=19).contains(nice)) {
        return Err(invalid(path("nice"), format_args!("is {nice}: it goes from -20 to 19")));
    }
    let priority = scheduler.priority().unwrap_or(0);
    if matches!(policy, Policy::SchedFifo | Policy::SchedRr) {
        if !(1..=99).contains(&priority) {
            return Err(invalid(
                path("priority"),
                format_args!("is {priority}: {policy:?} needs one from 1 to 99"),
            ));
        }
    } else if priority != 0 {
        return Err(invalid(path("priority"), "can only be specified for SCHED_FIFO and SCHED_RR"));
    }
    let times = [scheduler.runtime(), scheduler.deadline(), scheduler.period()].map(|t| t.unwrap_or(0));
    let [runtime, deadline, period] = times;
    if *policy == Policy::SchedDeadline {
        // Without a period, the deadline is the period.
        if runtime == 0 || runtime > deadline || (period != 0 && deadline > period) {
            return Err(invalid(
                "process.scheduler",
                format_args!(
                    "SCHED_DEADLINE needs 0 < runtime <= deadline <= period, and they are {runtime}, {deadline}, {period}"
                ),
            ));
        }
    } else if times != [0; 3] {
        return Err(invalid(
            "process.scheduler",
            "runtime, deadline and period can only be specified for SCHED_DEADLINE",
        ));
    }
    Ok(())
}

/// Labels of security modules that airlock does not set: a program that was meant to be confined must not run
/// without.
fn labels(process: &Process) -> Result<()> {
    let profile = process.apparmor_profile().as_deref().unwrap_or("");
    text("process.apparmorProfile", profile)?;
    if !matches!(profile, "" | "unconfined") {
        return Err(unsupported(
            "process.apparmorProfile",
            format_args!(
                "{profile:?} cannot be applied: airlock does not set AppArmor profiles; leave it out or use \"unconfined\""
            ),
        ));
    }
    let label = process.selinux_label().as_deref().unwrap_or("");
    if !label.is_empty() {
        return Err(unsupported(
            "process.selinuxLabel",
            format_args!("{label:?} cannot be applied: airlock does not set SELinux labels; leave it out"),
        ));
    }
    Ok(())
}
