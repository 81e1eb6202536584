//! The process table of a container as `ps -ef` prints it, read from the host's `/proc`: neither the host nor the
//! container needs a `ps` program.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// A process table: what [`Airlock::top`](super::Airlock::top) gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Top {
    /// Names of the columns; `PID` is among them, `CMD` is the last.
    pub headers: Vec<String>,
    /// One row a process, as long as the headers.
    pub processes: Vec<Vec<String>>,
}

/// Clock ticks in a second, as `/proc` counts them: fixed for all of Linux's interfaces (USER_HZ).
const TICKS: u64 = 100;

const HEADERS: [&str; 8] = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];

/// The table of the processes `pids` (as this process sees them), in that order. Those that are gone are left out.
/// Times of day are in UTC.
pub fn table(pids: &[i32]) -> Top {
    let host = Host::read();
    let row = |pid: &i32| Facts::read(*pid).map(|facts| facts.row(&host));
    Top { headers: HEADERS.map(str::to_owned).to_vec(), processes: pids.iter().filter_map(row).collect() }
}

/// What all rows share.
struct Host {
    boot: SystemTime,
    now: SystemTime,
    users: HashMap<u32, String>,
}

impl Host {
    fn read() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = stat.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0);
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self {
            boot: SystemTime::UNIX_EPOCH + Duration::from_secs(boot),
            now: SystemTime::now(),
            users: users(&passwd),
        }
    }
}

/// User names by id; the first entry of an id counts, as in getpwuid(3).
fn users(passwd: &str) -> HashMap<u32, String> {
    let mut users = HashMap::new();
    for line in passwd.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(uid))) = (fields.next(), fields.nth(1).map(str::parse)) {
            users.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    users
}

/// What `/proc` says of one process.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    pid: i32,
    ppid: i32,
    uid: u32,
    tty: u32,
    /// Time used, user and system, in ticks.
    used: u64,
    /// Start after boot, in ticks.
    start: u64,
    command: String,
}

impl Facts {
    fn read(pid: i32) -> Option<Self> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let uid = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().nth(1)?.parse().ok())?;
        Self::parse(&stat, uid, &cmdline)
    }

    /// The command name in `stat` stands in parentheses and may itself hold any byte: the last one ends it.
    fn parse(stat: &[u8], uid: u32, cmdline: &[u8]) -> Option<Self> {
        let open = stat.iter().position(|b| *b == b'(')?;
        let close = stat.iter().rposition(|b| *b == b')')?;
        let pid = std::str::from_utf8(stat.get(..open)?).ok()?.trim().parse().ok()?;
        let fields: Vec<&str> =
            std::str::from_utf8(stat.get(close + 1..)?).ok()?.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let command = match printable(cmdline) {
            text if text.is_empty() => format!("[{}]", printable(stat.get(open + 1..close)?)),
            text => text,
        };
        Some(Self {
            pid,
            ppid: fields.get(1)?.parse().ok()?,
            uid,
            tty: fields.get(4)?.parse::<i32>().ok()?.cast_unsigned(),
            used: number(11)? + number(12)?,
            start: number(19)?,
            command,
        })
    }

    fn row(&self, host: &Host) -> Vec<String> {
        let start = host.boot + Duration::from_millis(self.start * (1000 / TICKS));
        let age = host.now.duration_since(start).unwrap_or_default().as_secs().max(1);
        let user = host.users.get(&self.uid).cloned().unwrap_or_else(|| self.uid.to_string());
        vec![
            user,
            self.pid.to_string(),
            self.ppid.to_string(),
            (self.used * 100 / TICKS / age).min(99).to_string(),
            start_time(start, host.now),
            terminal(self.tty),
            used_time(self.used / TICKS),
            self.command.clone(),
        ]
    }
}

/// Arguments joined by blanks, with whatever could break a table's line replaced.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let joined = text.trim_end_matches('\0').replace('\0', " ");
    joined.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The hour for today, the day for this year, else the year.
fn start_time(start: SystemTime, now: SystemTime) -> String {
    let (start, now) = (
        humantime::format_rfc3339_seconds(start).to_string(),
        humantime::format_rfc3339_seconds(now).to_string(),
    );
    if start[..10] == now[..10] {
        return start[11..16].to_owned();
    }
    if start[..4] != now[..4] {
        return start[..4].to_owned();
    }
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = start[5..7].parse::<usize>().ok().and_then(|m| MONTHS.get(m.checked_sub(1)?)).unwrap_or(&"?");
    format!("{month}{}", &start[8..10])
}

/// Processor time as `[days-]hours:minutes:seconds`.
fn used_time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days > 0 { format!("{days}-{clock}") } else { clock }
}

/// Name of a terminal by its device number (proc_pid_stat(5), field 7; Linux's `devices.txt`).
fn terminal(device: u32) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match major {
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        5 if minor == 1 => "console".to_owned(),
        136..=143 => format!("pts/{}", minor + (major - 136) * 256),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn a_row_as_ps_prints_it() {
        let stat = b"42 (a) S b) S 7 42 42 34817 42 0 0 0 0 0 150 50 0 0 20 0 1 0 100 2 3";
        let facts = Facts::parse(stat, 1000, b"sleep\x0010\x00").unwrap();
        let host = Host {
            boot: at("2026-01-02T03:04:05Z"),
            now: at("2026-01-02T03:04:16Z"),
            users: users("x:x:1000:1::/:\nlater:x:1000:1::/:\n"),
        };
        assert_eq!(facts.row(&host), ["x", "42", "7", "20", "03:04", "pts/1", "00:00:02", "sleep 10"]);
    }

    #[test]
    fn hostile_names_cannot_break_the_table() {
        let facts =
            Facts::parse(b"1 (a\n) 2 (b)) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 2", 0, b"").unwrap();
        assert_eq!(facts.command, "[a?) 2 (b)]");
        let facts =
            Facts::parse(b"1 (a) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 2", 0, b"x\n\x1b[2J\0y\0\0")
                .unwrap();
        assert_eq!(facts.command, "x??[2J y");
        assert!(Facts::parse(b"", 0, b"").is_none());
        assert!(Facts::parse(b"1 (a) S 0", 0, b"").is_none());
        assert!(Facts::parse(b") 1 (", 0, b"").is_none());
    }

    #[test]
    fn times_and_terminals() {
        let now = at("2026-06-15T12:00:00Z");
        assert_eq!(start_time(at("2026-06-15T01:02:03Z"), now), "01:02");
        assert_eq!(start_time(at("2026-02-03T01:02:03Z"), now), "Feb03");
        assert_eq!(start_time(at("2025-12-31T01:02:03Z"), now), "2025");
        assert_eq!(used_time(3723), "01:02:03");
        assert_eq!(used_time(90_061), "1-01:01:01");
        assert_eq!(terminal(0), "?");
        assert_eq!(terminal((4 << 8) | 1), "tty1");
        assert_eq!(terminal((136 << 8) | 255 | (1 << 20)), "pts/511");
    }

    #[test]
    fn this_process_is_found() {
        let own = i32::try_from(std::process::id()).unwrap();
        let top = table(&[own, i32::MAX]);
        assert_eq!(top.headers, HEADERS);
        assert_eq!(top.processes.len(), 1);
        assert_eq!(top.processes[0][1], own.to_string());
    }
}
