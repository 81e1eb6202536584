//! What a profile says, read as plainly as possible, and what a program does, instruction by instruction.

use super::super::arch::{AUDIT_I386, AUDIT_X86_64, Multiplexed, X32_BIT};
use super::super::syscalls;
use libc::sock_filter;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

/// The part of `struct seccomp_data` that filters here look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub arch: u32,
    pub nr: u32,
    pub args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.nr,
            4 => self.arch,
            16.. => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
            _ => panic!("instruction pointers are not looked at"),
        }
    }
}

/// Runs classic BPF as the kernel does.
pub(crate) fn run(program: &[sock_filter], call: &Call) -> u32 {
    let (mut pc, mut a) = (0usize, 0u32);
    loop {
        let i = program[pc];
        let branch = |taken: bool| 1 + usize::from(if taken { i.jt } else { i.jf });
        pc += match i.code {
            0x20 => {
                a = call.word(i.k);
                1
            }
            0x54 => {
                a &= i.k;
                1
            }
            0x05 => 1 + i.k as usize,
            0x15 => branch(a == i.k),
            0x25 => branch(a > i.k),
            0x35 => branch(a >= i.k),
            0x45 => branch(a & i.k != 0),
            0x06 => return i.k,
            other => panic!("unknown instruction {other:#x}"),
        };
    }
}

fn value_of(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    action.as_u32(errno)
}

/// The action for `call`, from the profile alone.
pub(crate) fn evaluate(profile: &LinuxSeccomp, call: &Call) -> u32 {
    let default = value_of(profile.default_action(), profile.default_errno_ret());
    let listed = |arch| profile.architectures().iter().flatten().any(|&a| a == arch);
    let (column, nr) = match (call.arch, call.nr) {
        (AUDIT_X86_64, nr) if nr < X32_BIT => (0, nr),
        (AUDIT_X86_64, nr) if listed(Arch::ScmpArchX32) => (2, nr - X32_BIT),
        (AUDIT_X86_64, u32::MAX) => return default,
        (AUDIT_I386, nr) if listed(Arch::ScmpArchX86) => (1, nr),
        _ => return 0,
    };
    let rules: Vec<&LinuxSyscall> = profile.syscalls().iter().flatten().collect();
    let named = rules.iter().flat_map(|r| r.names()).filter_map(|n| syscalls::lookup(n)?.number(column));
    let highest = named.max().map_or(0, u32::from);
    let permissive =
        [LinuxSeccompAction::ScmpActAllow, LinuxSeccompAction::ScmpActLog, LinuxSeccompAction::ScmpActTrace];
    if highest > 0 && nr > highest && !permissive.contains(&profile.default_action()) {
        return LinuxSeccompAction::ScmpActErrno.as_u32(Some(libc::ENOSYS as u32));
    }
    // (names the call directly or through a multiplexer, rule, action) in order
    let mut relevant = Vec::new();
    for rule in rules {
        let action = value_of(rule.action(), rule.errno_ret());
        if action == default {
            continue;
        }
        for name in rule.names() {
            let Some(known) = syscalls::lookup(name) else { continue };
            if known.number(column).map(u32::from) == Some(nr) {
                relevant.push((None, rule, action));
            }
            if column == 1
                && let Some(by) = Multiplexed::of(known.multiplexed)
                && syscalls::lookup(by.by).and_then(|c| c.number(1)).map(u32::from) == Some(nr)
            {
                relevant.push((Some(by), rule, action));
            }
        }
    }
    let low = column == 1 || column == 2;
    let alternatives = |rule: &LinuxSyscall, by: Option<Multiplexed>| -> Vec<Vec<LinuxSeccompArg>> {
        let args = rule.args().clone().unwrap_or_default();
        let repeated = (0..6).any(|i| args.iter().filter(|a| a.index() == i).count() > 1);
        let lists = if repeated { args.into_iter().map(|a| vec![a]).collect() } else { vec![args] };
        let counts = |a: &LinuxSeccompArg| {
            let mask = if low { a.value() as u32 as u64 } else { a.value() };
            (by.is_none() || a.index() != 0) && (a.op() != LinuxSeccompOperator::ScmpCmpMaskedEq || mask != 0)
        };
        lists.into_iter().map(|list| list.into_iter().filter(counts).collect()).collect()
    };
    for (by, rule, action) in &relevant {
        if by.is_none() && alternatives(rule, None).iter().any(Vec::is_empty) {
            return *action;
        }
    }
    for (by, rule, action) in &relevant {
        let through = by.is_none_or(|by| call.args[0] & by.mask & u64::from(u32::MAX) == by.code);
        let holds = |list: &Vec<LinuxSeccompArg>| list.iter().all(|a| matches(a, &call.args, low));
        if through && alternatives(rule, *by).iter().any(holds) {
            return *action;
        }
    }
    default
}

fn matches(arg: &LinuxSeccompArg, args: &[u64; 6], low: bool) -> bool {
    let keep = if low { u64::from(u32::MAX) } else { u64::MAX };
    let (have, want) = (args[arg.index()] & keep, arg.value() & keep);
    match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => have != want,
        LinuxSeccompOperator::ScmpCmpLt => have < want,
        LinuxSeccompOperator::ScmpCmpLe => have <= want,
        LinuxSeccompOperator::ScmpCmpEq => have == want,
        LinuxSeccompOperator::ScmpCmpGe => have >= want,
        LinuxSeccompOperator::ScmpCmpGt => have > want,
        LinuxSeccompOperator::ScmpCmpMaskedEq => have & want == arg.value_two().unwrap_or(0) & want,
    }
}
