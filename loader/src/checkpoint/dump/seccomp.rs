//! Seccomp filters: which there are, and whether calls can be injected in spite of them.
#![forbid(unsafe_code)]

use super::status::Status;
use crate::checkpoint::order::DumpOrder;
use crate::checkpoint::remote::Tracee;
use crate::checkpoint::state::{Id, SeccompFilter};
use crate::seccomp;
use airlock_wire::error::{Kind, Result};
use oci_spec::runtime::Spec;

const MODE_STRICT: u32 = 1;
const MODE_FILTER: u32 = 2;

/// Filter programs, each kept once.
#[derive(Debug, Default)]
pub struct Filters {
    /// The container's profile as this program compiles it, by container.
    profiles: Vec<Option<Profile>>,
}

#[derive(Debug)]
struct Profile {
    program: Vec<u8>,
    needs_listener: bool,
}

/// What a thread's filters are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Strict mode.
    pub strict: bool,
    /// Filters, the one installed first first.
    pub filters: Vec<Id>,
    /// Why they cannot be saved, or the thread not be asked: kind and text.
    pub refusal: Option<(&'static str, String)>,
}

impl Filters {
    /// Compiles the profiles of the containers.
    pub fn new(order: &DumpOrder) -> Self {
        let compile = |spec: &str| {
            let spec: Spec = serde_json::from_str(spec).ok()?;
            let profile = spec.linux().as_ref()?.seccomp().as_ref()?;
            let program = seccomp::compile(profile, &seccomp::Options::default()).ok()?;
            Some(Profile { program: bytes_of(&program), needs_listener: program.needs_listener })
        };
        Self { profiles: order.containers.iter().map(|c| compile(&c.spec)).collect() }
    }

    /// Finds out what filters a thread has, and turns them off for injected calls. `all` are the filters of all
    /// threads, to which new ones are added.
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn collect(
        &self,
        tracee: &mut Tracee,
        status: &Status,
        container: Id,
        all: &mut Vec<SeccompFilter>,
    ) -> Result<Found> {
        let mut found = Found { strict: status.seccomp == MODE_STRICT, ..Found::default() };
        if status.seccomp == 0 {
            return Ok(found);
        }
        let profile = self.profiles.get(container as usize).and_then(Option::as_ref);
        let suspended = match tracee.suspend_seccomp(true) {
            Ok(()) => true,
            Err(e) if matches!(e.kind, Kind::Permission | Kind::Unsupported) => false,
            Err(e) => return Err(e),
        };
        if found.strict {
            found.refusal = (!suspended).then(|| {
                let what = "strict mode lets nobody ask the thread for its state without CAP_SYS_ADMIN";
                ("seccomp", what.to_owned())
            });
            return Ok(found);
        }
        if status.seccomp != MODE_FILTER {
            found.refusal = Some(("seccomp", format!("mode {} is not known", status.seccomp)));
            return Ok(found);
        }
        let filters = match tracee.seccomp_filters() {
            Ok(filters) => filters,
            Err(e) if matches!(e.kind, Kind::Permission | Kind::Unsupported) => {
                match (profile, status.filters) {
                    (Some(profile), Some(1)) => {
                        let program = profile.program.clone().into();
                        found.filters.push(known(all, SeccompFilter { program, flags: 0, from_spec: true }));
                        found.refusal = (!suspended).then(|| self.gate(profile)).flatten();
                    }
                    (_, count) => {
                        let count = count.map_or("some".to_owned(), |n| n.to_string());
                        let what = format!(
                            "it has {count} filters and only that of the container's profile can be saved by a sandbox \
                             without CAP_SYS_ADMIN in the initial user namespace ({e})"
                        );
                        found.refusal = Some(("seccomp", what));
                    }
                }
                return Ok(found);
            }
            Err(e) => return Err(e),
        };
        for (i, filter) in filters.into_iter().enumerate() {
            let program = filter.program.concat();
            let from_spec = i == 0 && profile.is_some_and(|p| p.program == program);
            if from_spec && profile.is_some_and(|p| p.needs_listener) {
                let what =
                    "the container's profile sends calls to a listener, which a restored one would not have";
                found.refusal = Some(("seccomp listener", what.to_owned()));
            }
            let filter = SeccompFilter { program: program.into(), flags: filter.flags, from_spec };
            found.filters.push(known(all, filter));
        }
        Ok(found)
    }

    /// Whether the profile lets the calls through that are injected when its filter cannot be turned off.
    fn gate(&self, profile: &Profile) -> Option<(&'static str, String)> {
        const RET_ALLOW: u32 = 0x7fff_0000;
        const RET_LOG: u32 = 0x7ffc_0000;
        const RET_ERRNO: u32 = 0x0005_0000;
        let blocked = INJECTED.into_iter().find(|nr| {
            let action = answer(&profile.program, *nr as u32).map(|a| a & 0xffff_0000);
            let allowed = matches!(action, Some(RET_ALLOW | RET_LOG));
            // One that fails without harm is missed by the program's state only if it asks for something essential.
            !(allowed || (action == Some(RET_ERRNO) && HARMLESS.contains(nr)))
        })?;
        let name = seccomp::syscalls::native_name(blocked).unwrap_or("?");
        let what = format!(
            "the container's profile blocks {name}, which the thread must call to tell its state; a sandbox with \
             CAP_SYS_ADMIN in the initial user namespace could turn the filter off meanwhile"
        );
        Some(("seccomp", what))
    }
}

/// Calls that are injected into every thread or process.
const INJECTED: [i64; 13] = [
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_prctl,
    libc::SYS_getitimer,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_brk,
    libc::SYS_membarrier,
    libc::SYS_modify_ldt,
    libc::SYS_arch_prctl,
];

/// Those of them that may be refused with an error.
const HARMLESS: [i64; 5] = [
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_membarrier,
    libc::SYS_modify_ldt,
    libc::SYS_arch_prctl,
];

/// Index of a filter, which is added if it is new.
fn known(all: &mut Vec<SeccompFilter>, filter: SeccompFilter) -> Id {
    let place = all.iter().position(|f| *f == filter).unwrap_or_else(|| {
        all.push(filter);
        all.len() - 1
    });
    place as Id
}

/// A compiled profile as the kernel gives filters: instructions of 8 bytes.
pub fn bytes_of(program: &seccomp::Program) -> Vec<u8> {
    let one = |i: &libc::sock_filter| {
        let mut bytes = [0u8; 8];
        bytes[..2].copy_from_slice(&i.code.to_ne_bytes());
        bytes[2] = i.jt;
        bytes[3] = i.jf;
        bytes[4..].copy_from_slice(&i.k.to_ne_bytes());
        bytes
    };
    program.filter.iter().flat_map(one).collect()
}

/// What a filter answers to native call `nr` with arguments that are all zero; `None` when it uses instructions that
/// our compiler does not make, or does not end.
fn answer(program: &[u8], nr: u32) -> Option<u32> {
    const AUDIT_ARCH: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
    let (mut at, mut a) = (0usize, 0u32);
    for _ in 0..program.len() {
        let i = program.get(8 * at..8 * at + 8)?;
        let code = u16::from_ne_bytes([i[0], i[1]]);
        let k = u32::from_ne_bytes([i[4], i[5], i[6], i[7]]);
        let branch = |taken: bool| 1 + usize::from(if taken { i[2] } else { i[3] });
        at += match code {
            0x20 => {
                a = match k {
                    0 => nr,
                    4 => AUDIT_ARCH,
                    _ => 0,
                };
                1
            }
            0x54 => {
                a &= k;
                1
            }
            0x05 => 1 + k as usize,
            0x15 => branch(a == k),
            0x25 => branch(a > k),
            0x35 => branch(a >= k),
            0x45 => branch(a & k != 0),
            0x06 => return Some(k),
            _ => return None,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(profile: &str) -> DumpOrder {
        let spec = format!(r#"{{"ociVersion":"1.0.2","linux":{{"seccomp":{profile}}}}}"#);
        let container = crate::checkpoint::order::DumpContainer { spec, ..Default::default() };
        DumpOrder { containers: vec![container], ..DumpOrder::default() }
    }

    #[test]
    fn a_profile_that_would_kill_is_named_with_the_call() {
        let open = Filters::new(&order(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["membarrier"],"action":"SCMP_ACT_ERRNO"}]}"#,
        ));
        let profile = open.profiles[0].as_ref().unwrap();
        assert_eq!(open.gate(profile), None);
        for action in ["SCMP_ACT_KILL", "SCMP_ACT_TRAP", "SCMP_ACT_ERRNO"] {
            let shut = Filters::new(&order(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["sigaltstack"],"action":"{action}"}}]}}"#
            )));
            let (kind, what) = shut.gate(shut.profiles[0].as_ref().unwrap()).unwrap();
            assert!(kind == "seccomp" && what.contains("sigaltstack"), "{what}");
        }
        assert!(Filters::new(&order("null")).profiles[0].is_none());
    }

    proptest! {
        #[test]
        fn forged_programs_do_no_harm(program: Vec<u8>, nr: u32) {
            let _ = answer(&program, nr);
        }
    }
}
