#![forbid(unsafe_code)]
//! What differs between architectures: which ABIs a kernel of this architecture can run, how each looks to a
//! seccomp filter, and the calls that multiplex others. Everything else here is the same on all of them.

use oci_spec::runtime::Arch;

/// `AUDIT_ARCH_X86_64` of `linux/audit.h`; x32 calls report it too.
pub(super) const AUDIT_X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386`.
pub(super) const AUDIT_I386: u32 = 0x4000_0003;
/// `AUDIT_ARCH_AARCH64`.
pub(super) const AUDIT_AARCH64: u32 = 0xc000_00b7;
/// `__X32_SYSCALL_BIT`: set in the number of every x32 call.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// A way to enter the kernel that has its own call numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Abi {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86: `int 0x80` and `sysenter`.
    X86,
    /// x86-64 with 32-bit pointers.
    X32,
    /// 64-bit ARM.
    Aarch64,
}

/// The ABI of this build.
pub(super) const NATIVE: Abi = if cfg!(target_arch = "aarch64") { Abi::Aarch64 } else { Abi::X86_64 };

impl Abi {
    /// Value of `seccomp_data.arch`.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => AUDIT_X86_64,
            Self::X86 => AUDIT_I386,
            Self::Aarch64 => AUDIT_AARCH64,
        }
    }

    /// Column of [`super::syscalls`]'s table.
    pub(super) fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::X86 => 1,
            Self::X32 => 2,
            Self::Aarch64 => 3,
        }
    }

    /// What is added to a table number to get `seccomp_data.nr`.
    pub(super) fn base(self) -> u32 {
        if self == Self::X32 { X32_BIT } else { 0 }
    }

    /// Whether only the low halves of arguments are compared, as libseccomp does for its 32-bit architectures:
    /// a profile's sign-extended `-1` then matches what a 32-bit program passes.
    pub(super) fn compares_low_half(self) -> bool {
        matches!(self, Self::X86 | Self::X32)
    }
}

/// Set in [`multiplexed`]'s result for `ipc`.
const BY_IPC: u8 = 0x80;

/// How i386 also reaches the call `name`: 0 for not at all, else the first argument of `socketcall`, or that of
/// `ipc` with the top bit set. [`Multiplexed::of`] explains a result.
pub(super) const fn multiplexed(name: &[u8]) -> u8 {
    let code = find(SOCKETCALL, name);
    if code != 0 {
        return code;
    }
    let code = find(IPC, name);
    if code != 0 { code | BY_IPC } else { 0 }
}

const fn find(table: &[(&str, u8)], name: &[u8]) -> u8 {
    let mut i = 0;
    while i < table.len() {
        let call = table[i].0.as_bytes();
        if call.len() == name.len() {
            let mut k = 0;
            while k < name.len() && call[k] == name[k] {
                k += 1;
            }
            if k == name.len() {
                return table[i].1;
            }
        }
        i += 1;
    }
    0
}

/// What a call through a multiplexer looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Multiplexed {
    /// `socketcall` or `ipc`.
    pub by: &'static str,
    /// What its first argument must be, under `mask`.
    pub code: u64,
    /// Which bits of the first argument count.
    pub mask: u64,
}

impl Multiplexed {
    /// Explains a result of [`multiplexed`].
    pub(super) fn of(code: u8) -> Option<Self> {
        match code {
            0 => None,
            // The kernel takes the interface version from the upper half of `ipc`'s first argument, so that a
            // plain comparison could be evaded.
            ipc if ipc & BY_IPC != 0 => {
                Some(Self { by: "ipc", code: u64::from(ipc & !BY_IPC), mask: 0xffff })
            }
            socket => Some(Self { by: "socketcall", code: u64::from(socket), mask: u64::MAX }),
        }
    }
}

/// `linux/net.h`: `SYS_SOCKET` and its siblings.
const SOCKETCALL: &[(&str, u8)] = &[
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// `linux/ipc.h`: `SEMOP` and its siblings.
const IPC: &[(&str, u8)] = &[
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// The ABIs that a profile's `architectures` cover on this kernel, the native one first: it is always covered,
/// as with libseccomp. Architectures that this kernel cannot run are accepted and have no effect.
pub(super) fn covered(architectures: Option<&Vec<Arch>>) -> Vec<Abi> {
    let mut abis = vec![NATIVE];
    for arch in architectures.into_iter().flatten() {
        let abi = match arch {
            Arch::ScmpArchX86_64 => Abi::X86_64,
            Arch::ScmpArchX86 => Abi::X86,
            Arch::ScmpArchX32 => Abi::X32,
            Arch::ScmpArchAarch64 => Abi::Aarch64,
            _ => continue,
        };
        let runs_here = match NATIVE {
            Abi::Aarch64 => abi == Abi::Aarch64,
            _ => abi != Abi::Aarch64,
        };
        if runs_here && !abis.contains(&abi) {
            abis.push(abi);
        }
    }
    abis
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_is_covered_whatever_the_profile_lists() {
        assert_eq!(covered(None), [NATIVE]);
        assert_eq!(covered(Some(&vec![Arch::ScmpArchMips, Arch::ScmpArchNative])), [NATIVE]);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn x86_runs_three_abis() {
        let listed = vec![Arch::ScmpArchX86, Arch::ScmpArchX32, Arch::ScmpArchX86_64, Arch::ScmpArchX86];
        assert_eq!(covered(Some(&listed)), [Abi::X86_64, Abi::X86, Abi::X32]);
    }

    #[test]
    fn multiplexers_are_explained() {
        let semop = Multiplexed::of(multiplexed(b"semop"));
        assert_eq!(semop, Some(Multiplexed { by: "ipc", code: 1, mask: 0xffff }));
        let accept4 = Multiplexed::of(multiplexed(b"accept4"));
        assert_eq!(accept4, Some(Multiplexed { by: "socketcall", code: 18, mask: u64::MAX }));
        assert_eq!(Multiplexed::of(multiplexed(b"read")), None);
    }
}
