#![forbid(unsafe_code)]
//! OCI seccomp profiles as classic BPF, without libseccomp.
//!
//! [`compile`] turns `linux.seccomp` of the runtime spec into a [`Program`]; [`Program::install`] puts it on the
//! calling thread. The meaning is that of runc with libseccomp: see [`compile`]. `listenerPath` and
//! `listenerMetadata` are the caller's business: it gets the listener's descriptor.

mod arch;
mod codegen;
mod loader_filter;
mod policy;
pub mod syscalls;
#[cfg(test)]
mod tests;

pub use loader_filter::loader_filter;

use crate::sys;
use libc::sock_filter;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use policy::{Compare, Condition, Policy};
use std::io;
use std::os::fd::OwnedFd;

/// The most instructions that the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// A filter, ready for the kernel.
#[derive(Clone)]
pub struct Program {
    /// Classic BPF over `struct seccomp_data`, at most [`MAX_INSTRUCTIONS`].
    pub filter: Vec<sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*` bits that the profile asks for: only `LOG`, `SPEC_ALLOW` and, with a listener,
    /// `WAIT_KILLABLE_RECV`. [`Program::install`] adds `NEW_LISTENER`.
    pub flags: u32,
    /// The filter may answer `SECCOMP_RET_USER_NOTIF`, so that somebody has to hold its listener.
    pub needs_listener: bool,
}

/// What [`compile`] must know of its caller.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Calls that the caller itself makes between installing the filter and handing over the listener: a profile
    /// that sends them to the listener would make the start hang, so it is refused. By default `write`, as in runc,
    /// and `sendmsg`, by which our inits hand it over.
    pub notify_refused: &'a [&'a str],
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { notify_refused: &["write", "sendmsg"] }
    }
}

/// Why a profile or an encoded program is no good. Paths are those of the runtime configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SeccompError {
    /// The default action must not need a listener: the runtime could not finish the start.
    #[error("linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action")]
    NotifyDefault,
    /// See [`Options::notify_refused`].
    #[error(
        "linux.seccomp.syscalls[{index}]: SCMP_ACT_NOTIFY cannot be used for the {name} syscall, \
         which the runtime needs to hand over the listener"
    )]
    NotifyRefused {
        /// Entry of `syscalls`.
        index: usize,
        /// The call.
        name: String,
    },
    /// The spec demands an error for an error number that the action has no use for.
    #[error(
        "{path}: action {action} takes no error number; remove it or use SCMP_ACT_ERRNO or SCMP_ACT_TRACE"
    )]
    ErrnoUnsupported {
        /// Where the number is.
        path: String,
        /// The action's name.
        action: String,
    },
    /// The kernel has no such error number.
    #[error("{path}: {value} is out of range, at most {max} is possible")]
    ErrnoRange {
        /// Where the number is.
        path: String,
        /// The number.
        value: u32,
        /// The largest possible one.
        max: u32,
    },
    /// System calls have six arguments.
    #[error(
        "linux.seccomp.syscalls[{index}].args[{arg}].index: {value} is out of range, at most 5 is possible"
    )]
    ArgumentIndex {
        /// Entry of `syscalls`.
        index: usize,
        /// Entry of its `args`.
        arg: usize,
        /// What it says.
        value: usize,
    },
    /// A name is empty.
    #[error("linux.seccomp.syscalls[{index}].names: an empty string is not a valid syscall")]
    EmptyName {
        /// Entry of `syscalls`.
        index: usize,
    },
    /// A `syscalls` entry without names.
    #[error("linux.seccomp.syscalls[{index}].names: at least one name is required")]
    NoNames {
        /// Entry of `syscalls`.
        index: usize,
    },
    /// The kernel would refuse the program.
    #[error(
        "linux.seccomp: the profile needs {instructions} BPF instructions and the kernel takes {MAX_INSTRUCTIONS}; \
         use fewer rules with arguments"
    )]
    TooLarge {
        /// Its length.
        instructions: usize,
    },
    /// Bytes that [`Program::to_bytes`] did not write.
    #[error("encoded seccomp program: {0}")]
    Malformed(&'static str),
}

/// Compiles a profile for this machine's architecture.
///
/// * Covered are the native ABI and those of `architectures` that this kernel can run; calls of other ABIs kill
///   the thread. Other known architectures are accepted and have no effect.
/// * Names that no ABI has are ignored. Rules whose action is the default action are dropped.
/// * A rule without arguments decides its calls, the first if there are several; else the first rule whose
///   arguments match does; else the default action.
/// * Conditions of one rule must all hold, unless two of them are about the same argument: then each is a rule
///   of its own. i386 and x32 compare low halves only.
/// * If the default action denies, calls newer than the newest one that the profile names get ENOSYS.
/// * On i386, rules for socket and System V IPC calls also cover `socketcall` and `ipc`.
/// * Without `flags`, `SPEC_ALLOW` is set; `TSYNC` is accepted and has no effect, the installing process having
///   one thread.
///
/// # Errors
/// See [`SeccompError`].
pub fn compile(profile: &LinuxSeccomp, opts: &Options<'_>) -> Result<Program, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret(), || {
        "linux.seccomp.defaultErrnoRet".to_owned()
    })?;
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(SeccompError::NotifyDefault);
    }
    let mut policy = Policy::new(default, arch::covered(profile.architectures().as_ref()));
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let action =
            action(rule.action(), rule.errno_ret(), || format!("linux.seccomp.syscalls[{index}].errnoRet"))?;
        let alternatives = conditions(index, rule.args().as_deref().unwrap_or_default())?;
        if rule.names().is_empty() {
            return Err(SeccompError::NoNames { index });
        }
        for name in rule.names() {
            if name.is_empty() {
                return Err(SeccompError::EmptyName { index });
            }
            if rule.action() == LinuxSeccompAction::ScmpActNotify
                && opts.notify_refused.contains(&name.as_str())
            {
                return Err(SeccompError::NotifyRefused { index, name: name.clone() });
            }
            let Some(call) = syscalls::lookup(name) else {
                log::debug!("linux.seccomp: unknown syscall {name} ignored");
                continue;
            };
            for conditions in &alternatives {
                policy.add(&call, conditions, action);
            }
        }
    }
    let program = assemble(&mut policy, profile.flags().as_deref());
    if program.filter.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLarge { instructions: program.filter.len() });
    }
    Ok(program)
}

fn assemble(policy: &mut Policy, flags: Option<&[LinuxSeccompFilterFlag]>) -> Program {
    policy.finish();
    let filter = codegen::generate(policy);
    let needs_listener = filter.iter().any(returns_notify);
    Program { filter, flags: filter_flags(flags, needs_listener), needs_listener }
}

fn returns_notify(instruction: &sock_filter) -> bool {
    u32::from(instruction.code) == libc::BPF_RET | libc::BPF_K
        && instruction.k == libc::SECCOMP_RET_USER_NOTIF
}

fn filter_flags(flags: Option<&[LinuxSeccompFilterFlag]>, needs_listener: bool) -> u32 {
    let Some(flags) = flags else { return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32 };
    flags.iter().fold(0, |all, flag| {
        all | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
            // The kernel refuses it without a listener, where it means nothing.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if needs_listener => {
                libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32
            }
            _ => 0,
        }
    })
}

/// The `SECCOMP_RET_*` value of an OCI action.
fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    path: impl FnOnce() -> String,
) -> Result<u32, SeccompError> {
    // `MAX_ERRNO` of the kernel, which clamps larger ones; a tracer gets 16 bits of data.
    let (base, max) = match action {
        LinuxSeccompAction::ScmpActErrno => (libc::SECCOMP_RET_ERRNO, Some(4095)),
        LinuxSeccompAction::ScmpActTrace => (libc::SECCOMP_RET_TRACE, Some(0xffff)),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            (libc::SECCOMP_RET_KILL_THREAD, None)
        }
        LinuxSeccompAction::ScmpActKillProcess => (libc::SECCOMP_RET_KILL_PROCESS, None),
        LinuxSeccompAction::ScmpActTrap => (libc::SECCOMP_RET_TRAP, None),
        LinuxSeccompAction::ScmpActNotify => (libc::SECCOMP_RET_USER_NOTIF, None),
        LinuxSeccompAction::ScmpActLog => (libc::SECCOMP_RET_LOG, None),
        LinuxSeccompAction::ScmpActAllow => (libc::SECCOMP_RET_ALLOW, None),
    };
    match (errno, max) {
        (None, None) => Ok(base),
        (None, Some(_)) => Ok(base | libc::EPERM as u32),
        (Some(_), None) => Err(SeccompError::ErrnoUnsupported { path: path(), action: action.to_string() }),
        (Some(value), Some(max)) if value > max => Err(SeccompError::ErrnoRange { path: path(), value, max }),
        (Some(value), Some(_)) => Ok(base | value),
    }
}

/// The alternatives that a rule's arguments stand for; each is a list of conditions that must all hold.
fn conditions(index: usize, args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let mut all = Vec::with_capacity(args.len());
    for (arg, spec) in args.iter().enumerate() {
        let value = spec.index();
        let Some(position) = u8::try_from(value).ok().filter(|&p| p < 6) else {
            return Err(SeccompError::ArgumentIndex { index, arg, value });
        };
        let plain = |op| Condition::plain(position, op, spec.value());
        all.push(match spec.op() {
            LinuxSeccompOperator::ScmpCmpNe => plain(Compare::Ne),
            LinuxSeccompOperator::ScmpCmpLt => plain(Compare::Lt),
            LinuxSeccompOperator::ScmpCmpLe => plain(Compare::Le),
            LinuxSeccompOperator::ScmpCmpEq => plain(Compare::Eq),
            LinuxSeccompOperator::ScmpCmpGe => plain(Compare::Ge),
            LinuxSeccompOperator::ScmpCmpGt => plain(Compare::Gt),
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                Condition::masked(position, spec.value(), spec.value_two().unwrap_or(0))
            }
        });
    }
    let repeated = all.iter().enumerate().any(|(i, c)| all[..i].iter().any(|earlier| earlier.arg == c.arg));
    Ok(if repeated { all.into_iter().map(|c| vec![c]).collect() } else { vec![all] })
}

/// First bytes of an encoded program.
const MAGIC: [u8; 4] = *b"sbpf";
const HEADER: usize = 12;

impl Program {
    /// Installs the filter on the calling thread, which needs `no_new_privs` or CAP_SYS_ADMIN (seccomp(2)).
    /// Returns the listener, owned by the caller and close-on-exec, if the filter has one. Does not block.
    ///
    /// # Errors
    /// What seccomp(2) says; `EBUSY` if the thread already has a filter with a listener.
    pub fn install(&self) -> io::Result<Option<OwnedFd>> {
        let listener = if self.needs_listener { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 } else { 0 };
        Ok(sys::seccomp::set_filter(&self.filter, self.flags | listener)?)
    }

    /// Encodes the program for another process of the same machine.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + 8 * self.filter.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.flags.to_le_bytes());
        bytes.extend_from_slice(&u32::from(self.needs_listener).to_le_bytes());
        for i in &self.filter {
            bytes.extend_from_slice(&i.code.to_le_bytes());
            bytes.extend_from_slice(&[i.jt, i.jf]);
            bytes.extend_from_slice(&i.k.to_le_bytes());
        }
        bytes
    }

    /// Decodes what [`Program::to_bytes`] wrote, from anyone: only programs that the kernel takes pass.
    ///
    /// # Errors
    /// [`SeccompError::Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SeccompError> {
        let malformed = SeccompError::Malformed;
        let rest = bytes.strip_prefix(&MAGIC).ok_or(malformed("does not begin with its magic number"))?;
        let word =
            |at: usize| -> Option<u32> { Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?)) };
        let (Some(flags), Some(needs_listener)) = (word(0), word(4)) else {
            return Err(malformed("is shorter than its header"));
        };
        let known = (libc::SECCOMP_FILTER_FLAG_LOG
            | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) as u32;
        if flags & !known != 0 {
            return Err(malformed("asks for unknown filter flags"));
        }
        let code = &bytes[HEADER..];
        if code.is_empty() || !code.len().is_multiple_of(8) || code.len() / 8 > MAX_INSTRUCTIONS {
            return Err(malformed("is not 1 to 4096 whole instructions"));
        }
        let filter: Vec<sock_filter> = code
            .chunks_exact(8)
            .map(|b| sock_filter {
                code: u16::from_le_bytes([b[0], b[1]]),
                jt: b[2],
                jf: b[3],
                k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
            })
            .collect();
        codegen::check(&filter).map_err(malformed)?;
        if needs_listener != u32::from(filter.iter().any(returns_notify)) {
            return Err(malformed("says wrongly whether it needs a listener"));
        }
        Ok(Self { filter, flags, needs_listener: needs_listener == 1 })
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program")
            .field("instructions", &self.filter.len())
            .field("flags", &self.flags)
            .field("needs_listener", &self.needs_listener)
            .finish()
    }
}
