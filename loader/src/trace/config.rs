//! What a session's configuration comes to, in gVisor's words when it is refused.
#![forbid(unsafe_code)]

use super::bpf::{Needs, Probe, SyscallEntry};
use super::calls::CALLS;
use super::points::{CONTEXT, Fields, Point, SINKS};
use airlock_wire::api::trace::{DEFAULT_SESSION, PointConfig, SessionConfig, SinkConfig};
use airlock_wire::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Points that one session may name, each once or more.
const MAX_POINTS: usize = 4096;
/// Sinks that one session may have.
const MAX_SINKS: usize = 16;
/// Longest time for which one event may be held up by a sink.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// What a point tells beyond what it always does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of the point's optional fields.
    pub optional: Fields,
    /// Of [`CONTEXT`].
    pub context: Fields,
}

/// The points of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// With what each tells.
    pub points: BTreeMap<Point, Wanted>,
    /// What is taken of system calls beyond what their points need: the log tells of it.
    pub extra: BTreeMap<u32, SyscallEntry>,
}

/// A sink of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkPlan {
    /// Gets everything and keeps nothing.
    Null,
    /// gVisor's: messages over a socket.
    Remote(Retries),
    /// Lines of JSON into a file.
    File,
}

/// How often and how soon something is tried again that cannot be sent at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Times.
    pub times: u32,
    /// After this, twice as long each time,
    pub backoff: Duration,
    /// but never longer than this.
    pub max: Duration,
}

impl SinkPlan {
    /// Whether it takes a descriptor.
    pub fn takes_descriptor(&self) -> bool {
        *self != Self::Null
    }

    /// Its kind's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Remote(_) => SINKS[0],
            Self::Null => SINKS[1],
            Self::File => SINKS[2],
        }
    }
}

/// Checks a configuration: its name first, then points, then sinks, as gVisor does.
///
/// # Errors
/// In gVisor's words.
pub fn plan(config: &SessionConfig) -> Result<(Plan, Vec<SinkPlan>)> {
    if config.name != DEFAULT_SESSION {
        return Err(Error::invalid_argument(format!(
            "only a single {DEFAULT_SESSION:?} session is supported"
        )));
    }
    if config.points.len() > MAX_POINTS || config.sinks.len() > MAX_SINKS {
        return Err(Error::invalid_argument(format!(
            "a session has at most {MAX_POINTS} points and {MAX_SINKS} sinks"
        )));
    }
    let mut plan = Plan::default();
    for point in &*config.points {
        let Some(found) = Point::from_name(&point.name) else {
            if config.ignore_missing {
                continue;
            }
            return Err(Error::invalid_argument(format!("point {:?} not found", point.name)));
        };
        let wanted = wanted(found, point, config.ignore_missing)
            .map_err(|e| e.context(format!("configuring point {:?}", point.name)))?;
        let all = plan.points.entry(found).or_default();
        all.optional = all.optional.and(wanted.optional);
        all.context = all.context.and(wanted.context);
    }
    let sinks = config.sinks.iter().map(sink).collect::<Result<_>>()?;
    Ok((plan, sinks))
}

fn wanted(point: Point, config: &PointConfig, ignore_missing: bool) -> Result<Wanted> {
    let mut wanted = Wanted::default();
    let missing = |field: &str| Error::invalid_argument(format!("field {field:?} not found"));
    for field in &*config.optional_fields {
        match point.optional().iter().position(|f| f == field) {
            Some(n) => wanted.optional = wanted.optional.with(n),
            None if ignore_missing => {}
            None => return Err(missing(field)),
        }
    }
    for field in &*config.context_fields {
        match CONTEXT.iter().position(|f| f == field).filter(|n| point.has_context(*n)) {
            Some(n) => wanted.context = wanted.context.with(n),
            None if ignore_missing => {}
            None => return Err(missing(field)),
        }
    }
    Ok(wanted)
}

fn sink(config: &SinkConfig) -> Result<SinkPlan> {
    match config.name.as_str() {
        "null" => Ok(SinkPlan::Null),
        "file" => Ok(SinkPlan::File),
        "remote" => retries(config).map(SinkPlan::Remote).map_err(|e| e.context("creating event sink")),
        name => Err(Error::invalid_argument(format!("sink {name:?} not found"))),
    }
}

fn retries(config: &SinkConfig) -> Result<Retries> {
    let value = |name: &str| config.config.as_ref().and_then(|c| c.get(name));
    let times = match value("retries") {
        None => 0,
        Some(value) => {
            // Go reads numbers as floats.
            let n = value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(n));
            n.ok_or_else(|| {
                let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                Error::invalid_argument(format!("retries {shown:?} is not an int"))
            })? as u32
        }
    };
    let duration = |name: &str, default| match value(name) {
        None => Ok(default),
        Some(Value::String(text)) => go_duration(text).filter(|d| *d <= MAX_BACKOFF).ok_or_else(|| {
            Error::invalid_argument(format!(
                "{name} {text:?} is not a duration of at most 10s, as 25us or 10ms"
            ))
        }),
        Some(other) => Err(Error::invalid_argument(format!("{name} {other} is not a duration, as \"25us\""))),
    };
    let backoff = duration("backoff", Duration::from_micros(25))?;
    let max = duration("backoff_max", Duration::from_millis(10))?;
    if backoff > max {
        return Err(Error::invalid_argument(format!(
            "initial backoff ({backoff:?}) cannot be larger than max backoff ({max:?})"
        )));
    }
    Ok(Retries { times, backoff, max })
}

/// A duration as Go writes it: decimal numbers, each with a unit. `None` for anything else, and below 0.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        let units = [
            ("ns", 1e-9),
            ("us", 1e-6),
            ("µs", 1e-6),
            ("μs", 1e-6),
            ("ms", 1e-3),
            ("s", 1.0),
            ("m", 60.0),
            ("h", 3600.0),
        ];
        let after = rest.get(digits..)?;
        let (unit, factor) = units.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        total = total.checked_add(Duration::try_from_secs_f64(number * factor).ok()?)?;
        rest = after.get(unit.len()..)?;
    }
    Some(total)
}

impl Plan {
    /// What a point tells, if it is one of the session's.
    pub fn wants(&self, point: Point) -> Option<Wanted> {
        self.points.get(&point).copied()
    }

    /// What the programs have to note of every task.
    pub fn needs(&self) -> Needs {
        let all = self.points.values().fold(Fields::default(), |all, wanted| all.and(wanted.context));
        let has = |name: &str| CONTEXT.iter().position(|f| *f == name).is_some_and(|n| all.has(n));
        Needs {
            starts: has("task_start_time") || has("thread_group_start_time"),
            parent: has("parent_thread_group_id"),
            ancestor: has("is_exec_session"),
            credentials: has("credentials"),
            name: has("process_name"),
            cwd: has("cwd"),
        }
    }

    /// Where the kernel has to be looked at.
    pub fn probes(&self) -> Vec<Probe> {
        let mut probes: Vec<Probe> = self
            .points
            .iter()
            .filter_map(|(point, wanted)| match point {
                Point::ContainerStart => None,
                Point::Clone => Some(Probe::Clone),
                Point::Execve => Some(Probe::Exec {
                    stdio: wanted.optional.has(FD_INFO) || wanted.optional.has(PIPE_PROC_INFO),
                }),
                Point::ExitNotifyParent | Point::TaskExit => Some(Probe::Exit),
                Point::Call(_, false) | Point::Number(_, false) => Some(Probe::Enter),
                Point::Mmap | Point::Call(_, true) | Point::Number(_, true) => Some(Probe::Leave),
            })
            .collect();
        if self.wants(Point::Mmap).is_some() && !probes.iter().any(|p| matches!(p, Probe::Exec { .. })) {
            // It maps the program.
            probes.push(Probe::Exec { stdio: false });
        }
        probes.sort_unstable();
        probes.dedup();
        probes
    }

    /// What the programs have to take of each system call.
    pub fn syscalls(&self) -> BTreeMap<u32, SyscallEntry> {
        let mut entries: BTreeMap<u32, SyscallEntry> = BTreeMap::new();
        for (point, wanted) in &self.points {
            match point {
                Point::Call(index, leave) => {
                    let Some((call, number)) = CALLS.get(*index).and_then(|c| Some((c, c.number()?))) else {
                        continue;
                    };
                    let fd_path = call.optional().iter().position(|f| *f == "fd_path");
                    let taken = call.entry(fd_path.is_some_and(|n| wanted.optional.has(n)));
                    let entry = entries.entry(number).or_default();
                    entry.fd = entry.fd.or(taken.fd);
                    if *leave {
                        (entry.leave, entry.leaving) = (true, taken.leaving);
                    } else {
                        (entry.enter, entry.entering) = (true, taken.entering);
                    }
                }
                Point::Number(number, leave) => {
                    let entry = entries.entry(*number).or_default();
                    if *leave { entry.leave = true } else { entry.enter = true }
                }
                _ => {}
            }
        }
        if self.wants(Point::Mmap).is_some()
            && let Some((call, number)) =
                CALLS.iter().find(|c| c.name == "mmap").and_then(|c| Some((c, c.number()?)))
        {
            let entry = entries.entry(number).or_default();
            if !entry.leave {
                // Without a point of the call itself only code is of interest.
                entry.only = Some((2, libc::PROT_EXEC as u8));
            }
            entry.leave = true;
            entry.fd = call.entry(true).fd;
        }
        let nothing = SyscallEntry::default();
        for (number, extra) in &self.extra {
            let Some(entry) = entries.get_mut(number) else { continue };
            entry.fd = entry.fd.or(extra.fd);
            if extra.entering != nothing.entering {
                entry.entering = extra.entering;
            }
            if extra.leaving != nothing.leaving {
                entry.leaving = extra.leaving;
            }
        }
        entries
    }
}

/// Optional fields of `sentry/execve`.
pub const BINARY_INFO: usize = 0;
/// See [`BINARY_INFO`].
pub const BINARY_SHA256: usize = 1;
/// See [`BINARY_INFO`].
pub const BINARY_SHA1: usize = 2;
/// See [`BINARY_INFO`].
pub const FD_INFO: usize = 3;
/// See [`BINARY_INFO`].
pub const PIPE_PROC_INFO: usize = 4;

#[cfg(test)]
mod tests;
