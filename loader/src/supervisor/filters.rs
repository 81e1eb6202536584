//! Seccomp filters of domains: built-in ones by name, or an OCI object.
#![forbid(unsafe_code)]

use crate::seccomp;
use airlock_wire::error::{Error, Result};
use serde_json::{Value, json};

/// Built-in filters: calls that fail with EPERM; all others are allowed.
const FILTERS: &[(&str, &[&str])] = &[
    (
        // What changes or inspects the machine as a whole, or has been a way into the kernel more than once.
        "default",
        &[
            "acct",
            "add_key",
            "bpf",
            "clock_adjtime",
            "clock_settime",
            "create_module",
            "delete_module",
            "fanotify_init",
            "finit_module",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "init_module",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "ioperm",
            "iopl",
            "kcmp",
            "kexec_file_load",
            "kexec_load",
            "keyctl",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "nfsservctl",
            "open_by_handle_at",
            "open_tree",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "reboot",
            "request_key",
            "setdomainname",
            "sethostname",
            "setns",
            "settimeofday",
            "stime",
            "swapoff",
            "swapon",
            "sysfs",
            "_sysctl",
            "umount",
            "umount2",
            "unshare",
            "uselib",
            "userfaultfd",
            "vhangup",
            "vm86",
            "vm86old",
        ],
    ),
    // Looking into other processes.
    ("no-ptrace", &["kcmp", "pidfd_getfd", "process_vm_readv", "process_vm_writev", "ptrace"]),
];

/// `linux.seccomp` for a list of filters; `None` for an empty one.
///
/// # Errors
/// A name that is not known, an object that is no OCI seccomp profile, or one beside others.
pub(super) fn profile(filters: &[String]) -> Result<Option<Value>> {
    let value = match filters {
        [] => return Ok(None),
        [text] if text.trim_start().starts_with('{') => {
            serde_json::from_str(text).map_err(|e| bad(format!("is no JSON: {e}")))?
        }
        names => {
            let mut denied = Vec::new();
            for name in names {
                if name.trim_start().starts_with('{') {
                    return Err(bad("has an OCI profile beside others: it has to stand alone"));
                }
                let found = FILTERS.iter().find(|(known, _)| known == name).ok_or_else(|| {
                    let known: Vec<_> = FILTERS.iter().map(|(name, _)| *name).collect();
                    bad(format!(
                        "{name:?} is no filter; there are {}, or an OCI seccomp object as JSON",
                        known.join(", ")
                    ))
                })?;
                denied.extend(found.1.iter().copied());
            }
            denied.sort_unstable();
            denied.dedup();
            json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM}],
            })
        }
    };
    let parsed =
        serde_json::from_value(value.clone()).map_err(|e| bad(format!("is no OCI seccomp object: {e}")))?;
    let program = seccomp::compile(&parsed, &seccomp::Options::default()).map_err(|e| bad(e.to_string()))?;
    if program.needs_listener {
        return Err(bad("asks a listener (SCMP_ACT_NOTIFY), which a domain has not"));
    }
    Ok(Some(value))
}

fn bad(why: impl std::fmt::Display) -> Error {
    Error::invalid_argument(format!("seccomp_filters {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(filters: &[&str]) -> Result<Option<Value>> {
        profile(&filters.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn filters_are_known_by_name_or_given_whole() {
        assert_eq!(of(&[]).unwrap(), None);
        let both = of(&["default", "no-ptrace"]).unwrap().unwrap();
        let names = both["syscalls"][0]["names"].as_array().unwrap();
        assert!(names.contains(&json!("mount")) && names.contains(&json!("ptrace")));
        let whole = r#" {"defaultAction":"SCMP_ACT_ALLOW"}"#;
        assert_eq!(of(&[whole]).unwrap().unwrap()["defaultAction"], "SCMP_ACT_ALLOW");
    }

    #[test]
    fn every_call_of_a_built_in_filter_exists() {
        for (name, calls) in FILTERS {
            for call in *calls {
                assert!(seccomp::syscalls::names().any(|known| known == *call), "{name}: {call}");
            }
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_by_name() {
        let why = |filters: &[&str]| of(filters).unwrap_err().message;
        assert!(why(&["fast"]).contains("\"fast\" is no filter; there are default, no-ptrace"));
        assert!(why(&["default", "{}"]).contains("has to stand alone"));
        assert!(why(&["{"]).contains("is no JSON"));
        assert!(why(&["{}"]).contains("is no OCI seccomp object"));
        let notify = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#;
        assert!(why(&[notify]).contains("listener"));
    }
}
