//! Device rules as a `BPF_PROG_TYPE_CGROUP_DEVICE` program (v2): assembled here, no compiler needed.
//!
//! The kernel runs the program at each open(2) and mknod(2) of a device node, and at each cgroup above too: all
//! must return 1. Context: `struct bpf_cgroup_dev_ctx` of linux/bpf.h, `access << 16 | type`, major, minor.
#![forbid(unsafe_code)]

use super::devices::{ALL, Node, Rule};
use crate::sys::bpf;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd};

/// How our programs are called, so that an update replaces ours and leaves systemd's.
pub const PROGRAM_NAME: &str = "airlock_dev";

/// One instruction of linux/bpf.h: `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u8,
    /// Destination register.
    pub dst: u8,
    /// Source register.
    pub src: u8,
    /// Jump distance or memory offset.
    pub off: i16,
    /// Immediate operand.
    pub imm: i32,
}

impl Insn {
    /// The kernel's form, in native byte order.
    pub fn encode(self) -> u64 {
        let registers =
            if cfg!(target_endian = "little") { self.dst | self.src << 4 } else { self.dst << 4 | self.src };
        let ([a, b], [c, d, e, f]) = (self.off.to_ne_bytes(), self.imm.to_ne_bytes());
        u64::from_ne_bytes([self.code, registers, a, b, c, d, e, f])
    }
}

/// `BPF_LDX | BPF_MEM | BPF_W`: dst = *(u32 *)(src + off).
pub const LOAD: u8 = 0x61;
/// `BPF_ALU | BPF_MOV | BPF_K`: dst = imm (32 bits).
pub const MOVE: u8 = 0xb4;
/// `BPF_ALU | BPF_MOV | BPF_X`: dst = src (32 bits).
pub const COPY: u8 = 0xbc;
/// `BPF_ALU | BPF_AND | BPF_K`: dst &= imm (32 bits).
pub const AND: u8 = 0x54;
/// `BPF_ALU | BPF_RSH | BPF_K`: dst >>= imm (32 bits).
pub const SHIFT: u8 = 0x74;
/// `BPF_JMP32 | BPF_JNE | BPF_K`: jump when dst != imm.
pub const JUMP_NE: u8 = 0x56;
/// `BPF_JMP32 | BPF_JEQ | BPF_K`: jump when dst == imm.
pub const JUMP_EQ: u8 = 0x16;
/// `BPF_JMP | BPF_EXIT`: return r0.
pub const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// `BPF_DEVCG_DEV_BLOCK` and `_CHAR`.
fn type_number(node: Node) -> i32 {
    match node {
        Node::Block => 1,
        Node::Char => 2,
    }
}

/// Makes a program of the rules. It goes from the last rule to the first with the accesses that are not decided
/// yet: an allow rule takes its accesses out, a deny rule that holds one of them ends it.
pub fn assemble(rules: &[Rule]) -> Vec<Insn> {
    let insn = |code, dst, src, off, imm| Insn { code, dst, src, off, imm };
    let mut program = vec![
        insn(LOAD, TYPE, CONTEXT, 0, 0),
        insn(COPY, WANTED, TYPE, 0, 0),
        insn(SHIFT, WANTED, 0, 0, 16),
        insn(AND, TYPE, 0, 0, 0xffff),
        insn(LOAD, MAJOR, CONTEXT, 4, 0),
        insn(LOAD, MINOR, CONTEXT, 8, 0),
    ];
    let mut default_allow = false;
    for rule in rules.iter().rev() {
        if rule.covers_all() {
            default_allow = rule.allow;
            break;
        }
        let mut block = Vec::with_capacity(8);
        let conditions = [
            (TYPE, rule.node.map(type_number)),
            // The 32-bit comparison takes the number's bit pattern.
            (MAJOR, rule.major.map(u32::cast_signed)),
            (MINOR, rule.minor.map(u32::cast_signed)),
        ];
        for (register, value) in conditions {
            if let Some(value) = value {
                block.push(insn(JUMP_NE, register, 0, 0, value));
            }
        }
        if rule.allow {
            block.push(insn(AND, WANTED, 0, 0, i32::from(ALL & !rule.access)));
            block.push(insn(JUMP_NE, WANTED, 0, 0, 0));
        } else {
            block.push(insn(COPY, RESULT, WANTED, 0, 0));
            block.push(insn(AND, RESULT, 0, 0, i32::from(rule.access)));
            block.push(insn(JUMP_EQ, RESULT, 0, 0, 0));
        }
        block.push(insn(MOVE, RESULT, 0, 0, i32::from(rule.allow)));
        block.push(insn(EXIT, 0, 0, 0, 0));
        // Every jump leads to the next rule. A block has at most 8 instructions.
        let length = block.len();
        for (at, i) in block.iter_mut().enumerate().filter(|(_, i)| matches!(i.code, JUMP_NE | JUMP_EQ)) {
            i.off = i16::try_from(length - at - 1).unwrap_or(0);
        }
        program.append(&mut block);
    }
    program.push(insn(MOVE, RESULT, 0, 0, i32::from(default_allow)));
    program.push(insn(EXIT, 0, 0, 0, 0));
    program
}

/// Attaches a program for `rules` to the v2 cgroup, in the place of the one that an earlier call attached.
///
/// # Errors
/// [`Kind::Permission`] without `CAP_SYS_ADMIN` and `CAP_BPF` in the first user namespace, [`Kind::Unsupported`]
/// when the kernel has no BPF device programs.
pub fn apply(cgroup: BorrowedFd<'_>, rules: &[Rule]) -> Result<()> {
    let program: Vec<u64> = assemble(rules).into_iter().map(Insn::encode).collect();
    let program = bpf::load_cgroup_device(&program, PROGRAM_NAME).map_err(|e| explain("loading", e))?;
    let mut ours = Vec::new();
    for id in bpf::attached(cgroup).map_err(|e| explain("listing", e))? {
        // A program that went away meanwhile is of no interest.
        let Ok(old) = bpf::program_by_id(id) else { continue };
        if bpf::program_name(old.as_fd()).is_ok_and(|name| name == PROGRAM_NAME) {
            ours.push(old);
        }
    }
    let replaced = ours.pop();
    let replace = replaced.as_ref().map(|p| p.as_fd());
    bpf::attach(cgroup, program.as_fd(), replace).map_err(|e| explain("attaching", e))?;
    for old in &ours {
        bpf::detach(cgroup, old.as_fd()).map_err(|e| explain("detaching", e))?;
    }
    Ok(())
}

fn explain(what: &str, errno: Errno) -> Error {
    let (kind, hint) = match errno {
        Errno::EPERM | Errno::EACCES => (
            Kind::Permission,
            "device rules on cgroup v2 need CAP_SYS_ADMIN and CAP_BPF outside user namespaces",
        ),
        Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP => {
            (Kind::Unsupported, "the kernel must have CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF")
        }
        Errno::E2BIG => {
            (Kind::InvalidArgument, "too many device rules, or more than 64 programs at this cgroup")
        }
        _ => (Kind::Failure, "linux.resources.devices cannot be enforced"),
    };
    Error::new(kind, format!("cgroup: {what} the device program: {} ({hint})", errno.desc()))
}

#[cfg(test)]
#[path = "devices_bpf_tests.rs"]
mod tests;
