//! What `/proc/<tid>/status` and `/proc/<pid>/stat` say of a stopped task.
#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};

/// `/proc/<tid>/status` (proc_pid_status(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Thread ids from the procfs' namespace to the innermost; likewise process, group and session.
    pub pids: Vec<i32>,
    /// Process ids.
    pub tgids: Vec<i32>,
    /// Process group ids.
    pub pgids: Vec<i32>,
    /// Session ids.
    pub sids: Vec<i32>,
    /// Who traces it; 0: nobody.
    pub tracer: i32,
    /// Real, effective, saved, filesystem user.
    pub uids: [u32; 4],
    /// The same of the group.
    pub gids: [u32; 4],
    /// Additional groups.
    pub groups: Vec<u32>,
    /// Pending: the thread's own, the process'.
    pub pending: (u64, u64),
    /// Inheritable, permitted, effective, bounding, ambient.
    pub caps: [u64; 5],
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Seccomp mode: 0 none, 1 strict, 2 filters.
    pub seccomp: u32,
    /// Number of filters (Linux 5.9).
    pub filters: Option<u32>,
    /// Uses a shadow stack.
    pub shadow_stack: bool,
}

impl Status {
    /// Takes the file's text apart.
    ///
    /// # Errors
    /// When a line that every kernel since 5.15 has is missing or malformed.
    pub fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        let need = |name: &str| {
            field(name).ok_or_else(|| Error::failure(format!("/proc status has no line {name:?}")))
        };
        let bad = |name: &str| Error::failure(format!("/proc status: line {name:?} cannot be parsed"));
        let pids = |name: &str| -> Result<Vec<i32>> {
            let all: Option<Vec<i32>> =
                need(name)?.split_ascii_whitespace().map(|n| n.parse().ok()).collect();
            all.filter(|a| !a.is_empty()).ok_or_else(|| bad(name))
        };
        let ids = |name: &str| -> Result<Vec<u32>> {
            let all: Option<Vec<u32>> =
                need(name)?.split_ascii_whitespace().map(|n| n.parse().ok()).collect();
            all.ok_or_else(|| bad(name))
        };
        let four = |name: &str| -> Result<[u32; 4]> { ids(name)?.try_into().map_err(|_| bad(name)) };
        let mask = |name: &str| u64::from_str_radix(need(name)?.trim(), 16).map_err(|_| bad(name));
        let number = |name: &str| need(name)?.trim().parse::<u32>().map_err(|_| bad(name));
        Ok(Self {
            pids: pids("NSpid")?,
            tgids: pids("NStgid")?,
            pgids: pids("NSpgid")?,
            sids: pids("NSsid")?,
            tracer: number("TracerPid")? as i32,
            uids: four("Uid")?,
            gids: four("Gid")?,
            groups: ids("Groups")?,
            pending: (mask("SigPnd")?, mask("ShdPnd")?),
            caps: [mask("CapInh")?, mask("CapPrm")?, mask("CapEff")?, mask("CapBnd")?, mask("CapAmb")?],
            no_new_privs: number("NoNewPrivs")? != 0,
            // Absent on kernels without seccomp.
            seccomp: field("Seccomp").and_then(|v| v.trim().parse().ok()).unwrap_or(0),
            filters: field("Seccomp_filters").and_then(|v| v.trim().parse().ok()),
            shadow_stack: field("x86_Thread_features")
                .is_some_and(|v| v.split_whitespace().any(|f| f == "shstk")),
        })
    }

    /// Thread id in the innermost namespace.
    pub fn tid(&self) -> i32 {
        innermost(&self.pids)
    }

    /// Process id in the innermost namespace.
    pub fn pid(&self) -> i32 {
        innermost(&self.tgids)
    }

    /// Process group in the innermost namespace; 0: it is of an outer one.
    pub fn pgid(&self) -> i32 {
        innermost(&self.pgids)
    }

    /// Session in the innermost namespace; 0: it is of an outer one.
    pub fn sid(&self) -> i32 {
        innermost(&self.sids)
    }

    /// How many pid namespaces it is in, from the procfs' one on.
    pub fn depth(&self) -> usize {
        self.pids.len()
    }
}

fn innermost(ids: &[i32]) -> i32 {
    ids.last().copied().unwrap_or(0)
}

/// What of `/proc/<pid>/stat` [`crate::procfs::Stat`] leaves out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ending {
    /// Signal that the parent gets.
    pub exit_signal: i32,
    /// Raw wait status of a zombie. Of a stopped process: the signal, until its parent has been told (Linux 5.19, else 0).
    pub exit_code: i32,
}

impl Ending {
    /// Takes the file's text apart; `None` when it is not of that form.
    pub fn parse(text: &str) -> Option<Self> {
        // Fields are counted after the command name, which may hold anything.
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        // The first of them is the third of proc_pid_stat(5).
        let field = |n: usize| fields.get(n - 3)?.parse::<i32>().ok();
        Some(Self { exit_signal: field(38)?, exit_code: field(52)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_own_status_is_understood() {
        let status = Status::parse(&std::fs::read_to_string("/proc/self/status").unwrap()).unwrap();
        assert_eq!(status.pid(), std::process::id() as i32);
        assert_eq!(status.sid(), nix::unistd::getsid(None).unwrap().as_raw());
        assert_eq!(status.uids[1], nix::unistd::geteuid().as_raw());
        assert_eq!(status.depth(), status.tgids.len());
        let ending = Ending::parse(&std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        assert_eq!(ending, Ending { exit_signal: libc::SIGCHLD, exit_code: 0 });
    }

    #[test]
    fn a_missing_or_mangled_line_is_named() {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let e = Status::parse(&text.replace("CapBnd", "CapXxx")).unwrap_err();
        assert!(e.message.contains("CapBnd"), "{e}");
        let e = Status::parse(&text.replace("NSsid:\t", "NSsid:\tx")).unwrap_err();
        assert!(e.message.contains("NSsid"), "{e}");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,300}") {
            let _ = (Status::parse(&text), Ending::parse(&text));
        }
    }
}
