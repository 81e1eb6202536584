//! Listing the processes of containers, as `containerManager.Processes` and `Proc.Ps` show them.
#![forbid(unsafe_code)]

use super::Loader;
use crate::procfs::{Stat, tty_name};
use crate::worker::{ProcfsDump, ProcfsDumped};
use airlock_wire::api::container_manager::Process;
use airlock_wire::api::procfs::ProcessProcfsDump;
use airlock_wire::api::types::List;
use airlock_wire::error::Result;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Clock ticks a second in procfs; the kernel's ABI fixes it at 100 on every architecture airlock runs on.
const TICKS: u64 = 100;

impl Loader {
    /// Processes of container `cid`, or of all containers when it is empty; an unknown container has none. Pids are
    /// those of the sandbox's pid namespace, ascending.
    ///
    /// # Errors
    /// When the cgroup cannot be read.
    pub fn processes(&self, cid: &str) -> Result<Vec<Process>> {
        let pids = self.pids(cid)?;
        let uptime = self.procfs().uptime();
        let now = SystemTime::now();
        // A process that ends while it is looked at is left out.
        Ok(pids.into_iter().filter_map(|pid| self.describe(pid, uptime, now).ok()).collect())
    }

    /// What procfs shows of every process of every container, ascending by pid. Blocks until a worker has read it.
    ///
    /// # Errors
    /// When a cgroup cannot be read; those of [`Loader::work`].
    pub fn procfs_dump(&self) -> Result<Vec<ProcessProcfsDump>> {
        let (ProcfsDumped { dumps, skipped }, ..) = self.work(ProcfsDump(self.pids("")?), &[])?;
        for (pid, why) in skipped {
            log::warn!("skipping procfs dump for PID {pid}: {why}");
        }
        Ok(dumps.into_iter().map(|dump| dump.0).collect())
    }

    /// Pids of container `cid`, or of all containers when it is empty, ascending.
    fn pids(&self, cid: &str) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for container in self.containers() {
            if cid.is_empty() || container.cid == cid {
                pids.extend(self.pids_of(&container)?);
            }
        }
        pids.sort_unstable();
        Ok(pids)
    }

    fn describe(&self, pid: i32, uptime: Duration, now: SystemTime) -> Result<Process> {
        let procfs = self.procfs();
        let stat = procfs.stat(pid)?;
        let uid = procfs.status_field(pid, "Uid")?.unwrap_or_default();
        let age = uptime.saturating_sub(ticks(stat.starttime));
        Ok(Process {
            uid: uid.split_ascii_whitespace().next().and_then(|u| u.parse().ok()).unwrap_or(0),
            pid,
            ppid: stat.ppid,
            pgid: stat.pgrp,
            threads: List(procfs.threads(pid)?),
            c: cpu_share(&stat, age),
            tty: tty_name(stat.tty_nr),
            stime: start_text(now, age),
            time: go_duration(ticks(stat.stime)),
            cmd: stat.comm,
        })
    }
}

pub(super) fn ticks(n: u64) -> Duration {
    Duration::from_millis(n.saturating_mul(1000 / TICKS))
}

/// Share of one CPU over the process' life, 0 to 99.
fn cpu_share(stat: &Stat, age: Duration) -> i32 {
    let used = ticks(stat.utime.saturating_add(stat.stime)).as_millis();
    match age.as_millis() {
        0 => 0,
        age => (used * 100 / age).min(99) as i32,
    }
}

/// Start time as ps(1) has it: `15:04` on the same day, `Jan02` in the same year, else the year (UTC).
fn start_text(now: SystemTime, age: Duration) -> String {
    let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let start = seconds(now.checked_sub(age).unwrap_or(UNIX_EPOCH));
    let (today, day) = (seconds(now) / 86_400, start / 86_400);
    let (year, month, date) = civil(day);
    if day == today {
        return format!("{:02}:{:02}", start % 86_400 / 3600, start % 3600 / 60);
    }
    if year == civil(today).0 {
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        return format!("{}{date:02}", MONTHS[month as usize - 1]);
    }
    year.to_string()
}

/// Year, month and day of a number of days since 1970 (proleptic Gregorian calendar).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days from 0000-03-01, so that leap days end their year
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// A duration as Go prints it: `0s`, `10ms`, `1.5s`, `1m3.2s`, `2h0m5s`.
fn go_duration(d: Duration) -> String {
    if d.is_zero() {
        return "0s".to_owned();
    }
    if d < Duration::from_secs(1) {
        return format!("{}ms", d.as_millis());
    }
    let fraction = match d.subsec_millis() {
        0 => String::new(),
        ms => format!(".{ms:03}").trim_end_matches('0').to_owned(),
    };
    let (h, m, s) = (d.as_secs() / 3600, d.as_secs() % 3600 / 60, d.as_secs() % 60);
    match (h, m) {
        (0, 0) => format!("{s}{fraction}s"),
        (0, m) => format!("{m}m{s}{fraction}s"),
        (h, m) => format!("{h}h{m}m{s}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_does() {
        let cases = [(0, "0s"), (10, "10ms"), (1500, "1.5s"), (63_200, "1m3.2s"), (7_205_000, "2h0m5s")];
        for (ms, text) in cases {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn start_times_lose_precision_with_age() {
        let now = UNIX_EPOCH + Duration::from_secs(1_795_360_500); // 2026-11-22 15:15 UTC
        assert_eq!(start_text(now, Duration::from_secs(60)), "15:14");
        assert_eq!(start_text(now, Duration::from_secs(86_400)), "Nov21");
        assert_eq!(start_text(now, Duration::from_secs(400 * 86_400)), "2025");
        assert_eq!(civil(11_016), (2000, 2, 29));
    }
}
