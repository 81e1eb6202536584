//! The points that there are, with their fields (gVisor's `seccheck` and `runsc trace metadata`, August 2026).
#![forbid(unsafe_code)]

use super::calls::{CALLS, Call};

/// System calls that have points by number: 0 up to and without this (gVisor's table for amd64).
pub const NUMBERED: u32 = 442;

/// What a point may tell of the task; the bits of [`Fields`].
pub const CONTEXT: [&str; 11] = [
    "time",
    "thread_id",
    "task_start_time",
    "group_id",
    "thread_group_start_time",
    "container_id",
    "credentials",
    "cwd",
    "process_name",
    "parent_thread_group_id",
    "is_exec_session",
];

/// A set of fields: bit `n` is the `n`th of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fields(pub u16);

impl Fields {
    /// Whether the `n`th is in it.
    pub fn has(self, n: usize) -> bool {
        self.0 & 1 << n != 0
    }

    /// With the `n`th.
    #[must_use]
    pub fn with(self, n: usize) -> Self {
        Self(self.0 | 1 << n)
    }

    /// Without the `n`th.
    #[must_use]
    pub fn without(self, n: usize) -> Self {
        Self(self.0 & !(1 << n))
    }

    /// With those of another.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a point is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// `container/start`
    ContainerStart,
    /// `sentry/clone`
    Clone,
    /// `sentry/execve`
    Execve,
    /// `sentry/exit_notify_parent`
    ExitNotifyParent,
    /// `sentry/mmap`
    Mmap,
    /// `sentry/task_exit`
    TaskExit,
    /// `syscall/<name>/enter` and `exit`: index into [`CALLS`], and whether it is the end.
    Call(usize, bool),
    /// `syscall/sysno/<number>/enter` and `exit`.
    Number(u32, bool),
}

/// The points that are not of system calls, with their optional fields.
const OTHERS: [(Point, &str, &[&str]); 6] = [
    (Point::ContainerStart, "container/start", &["env"]),
    (Point::Clone, "sentry/clone", &[]),
    (
        Point::Execve,
        "sentry/execve",
        &["binary_info", "binary_sha256", "binary_sha1", "fd_info", "pipe_proc_info"],
    ),
    (Point::ExitNotifyParent, "sentry/exit_notify_parent", &[]),
    (Point::Mmap, "sentry/mmap", &[]),
    (Point::TaskExit, "sentry/task_exit", &[]),
];

impl Point {
    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        if let Some((point, ..)) = OTHERS.iter().find(|(_, n, _)| *n == name) {
            return Some(*point);
        }
        let (call, side) = name.strip_prefix("syscall/")?.rsplit_once('/')?;
        let leave = match side {
            "enter" => false,
            "exit" => true,
            _ => return None,
        };
        if let Some(number) = call.strip_prefix("sysno/") {
            let n = number.parse().ok().filter(|n| *n < NUMBERED)?;
            // No other spelling of it, as +1 or 01.
            return (number == format!("{n}")).then_some(Self::Number(n, leave));
        }
        let index = CALLS.iter().position(|c| c.name == call && c.number().is_some())?;
        Some(Self::Call(index, leave))
    }

    /// Its name.
    pub fn name(self) -> String {
        let side = |leave| if leave { "exit" } else { "enter" };
        match self {
            Self::Call(index, leave) => {
                let name = CALLS.get(index).map_or("", |c| c.name);
                format!("syscall/{name}/{}", side(leave))
            }
            Self::Number(n, leave) => format!("syscall/sysno/{n}/{}", side(leave)),
            other => {
                let found = OTHERS.iter().find(|(point, ..)| *point == other);
                found.map_or_else(String::new, |(_, name, _)| (*name).to_owned())
            }
        }
    }

    /// What it tells of itself if asked, in gVisor's order.
    pub fn optional(self) -> &'static [&'static str] {
        match self {
            Self::Call(index, _) => CALLS.get(index).map_or(&[], Call::optional),
            Self::Number(..) => &[],
            other => OTHERS.iter().find(|(point, ..)| *point == other).map_or(&[], |(.., fields)| fields),
        }
    }

    /// Whether it can tell the `n`th of [`CONTEXT`].
    pub fn has_context(self, n: usize) -> bool {
        // A process that has ended has no folder.
        self != Self::ExitNotifyParent || !matches!(CONTEXT.get(n), Some(&"cwd" | &"is_exec_session"))
    }

    /// All there are, by name.
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = OTHERS.iter().map(|(point, ..)| *point).collect();
        for leave in [false, true] {
            all.extend(
                (0..CALLS.len()).filter(|i| CALLS[*i].number().is_some()).map(|i| Self::Call(i, leave)),
            );
            all.extend((0..NUMBERED).map(|n| Self::Number(n, leave)));
        }
        all.sort_by_key(|point| point.name());
        all
    }
}

/// Kinds of sinks; the last is airlock's own.
pub const SINKS: [&str; 3] = ["remote", "null", "file"];

/// The text of `trace metadata`.
pub fn metadata() -> String {
    let all = Point::all();
    let mut text = format!("POINTS ({})\n", all.len());
    for point in all {
        let context: Vec<&str> =
            CONTEXT.iter().enumerate().filter(|(n, _)| point.has_context(*n)).map(|(_, f)| *f).collect();
        text += &format!(
            "Name: {}, optional fields: [{}], context fields: [{}]\n",
            point.name(),
            point.optional().join("|"),
            context.join("|")
        );
    }
    text += &format!("\nSINKS ({})\n", SINKS.len());
    for sink in SINKS {
        text += &format!("Name: {sink}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_points_belong_together() {
        let all = Point::all();
        for point in &all {
            assert_eq!(Point::from_name(&point.name()), Some(*point));
        }
        #[cfg(target_arch = "x86_64")]
        assert_eq!(all.len(), 998, "as many as gVisor has");
        for wrong in
            ["", "syscall/sysno/442/enter", "syscall/sysno/+1/enter", "syscall/sysno/01/exit", "syscall/read"]
        {
            assert_eq!(Point::from_name(wrong), None, "{wrong}");
        }
    }

    /// The reference that the founders took from gVisor's own `trace metadata`; it is not part of the repository.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn metadata_says_what_gvisors_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/reference/trace-points.txt");
        let Ok(theirs) = std::fs::read_to_string(path) else {
            eprintln!("SKIPPED: no {path}");
            return;
        };
        let lines = |text: &str| -> Vec<String> {
            text.lines()
                .filter(|l| l.starts_with("Name: ") && l.contains("fields"))
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(lines(&metadata()), lines(&theirs));
    }

    proptest! {
        #[test]
        fn whatever_is_found_has_that_name(name in "(syscall/)?[a-z0-9_/]{0,20}(/enter|/exit)?") {
            if let Some(point) = Point::from_name(&name) {
                prop_assert_eq!(point.name(), name);
            }
        }
    }
}
