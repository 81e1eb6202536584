//! The programs themselves: one for each place in the kernel that a session looks at.
#![forbid(unsafe_code)]

use super::asm::{Asm, Cond, Helper, Op, Reg, Size};
use super::btf::{Btf, Kind};
use super::kernel::Kernel;
use super::program::{FILE, Maps, OWN, OWN2, Writer};
pub use super::program::{Needs, Scope};
use super::record::{self, tag};
use crate::sys::tracing::{self, Hook, MapKind};
use airlock_wire::error::{Error, Result};
use std::os::fd::{AsFd, OwnedFd};

use Reg::{R0, R1, R2, R3, R6, R7, R8, R9, R10};

/// Number of system calls that can be asked for, by their numbers.
pub const SYSCALLS: u32 = 512;

/// A place in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    /// A thread was made.
    Clone,
    /// A program was executed.
    Exec {
        /// With standard input, output and error.
        stdio: bool,
    },
    /// A thread ends.
    Exit,
    /// A system call begins.
    Enter,
    /// A system call ends.
    Leave,
}

/// What is taken of what a system call's argument points to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Capture {
    /// Nothing.
    #[default]
    None,
    /// A text behind this argument.
    Text(u8),
    /// As many bytes behind this argument.
    Bytes(u8, u8),
    /// A socket address behind this argument; its length is the next one.
    Address(u8),
    /// The same; the next argument points to its length.
    AddressOut(u8),
    /// An array of pointers to texts.
    Texts(u8),
}

impl Capture {
    fn encode(self) -> [u8; 4] {
        match self {
            Self::None => [0; 4],
            Self::Text(arg) => [1, arg, 0, 0],
            Self::Bytes(arg, len) => [2, arg, len, 0],
            Self::Address(arg) => [3, arg, 0, 0],
            Self::AddressOut(arg) => [4, arg, 0, 0],
            Self::Texts(arg) => [5, arg, 0, 0],
        }
    }
}

/// What is wanted of one system call, as the programs read it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyscallEntry {
    /// Its beginning.
    pub enter: bool,
    /// Its end.
    pub leave: bool,
    /// The argument that is a descriptor whose path is wanted.
    pub fd: Option<u8>,
    /// The end counts only if this argument has one of these bits.
    pub only: Option<(u8, u8)>,
    /// What is taken at the beginning.
    pub entering: [Capture; 3],
    /// What is taken at the end.
    pub leaving: [Capture; 3],
}

const WANT_ENTER: i32 = 1;
const WANT_LEAVE: i32 = 2;
/// Bytes of an encoded [`SyscallEntry`].
pub const ENTRY: usize = 32;

impl SyscallEntry {
    /// For the map.
    pub fn encode(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[0] = (u8::from(self.enter) * WANT_ENTER as u8) | (u8::from(self.leave) * WANT_LEAVE as u8);
        bytes[4] = self.fd.map_or(0, |arg| arg + 1);
        (bytes[5], bytes[6]) = self.only.map_or((0, 0), |(arg, mask)| (arg + 1, mask));
        for (i, capture) in self.entering.into_iter().chain(self.leaving).enumerate() {
            bytes[8 + 4 * i..12 + 4 * i].copy_from_slice(&capture.encode());
        }
        bytes
    }
}

/// Runs a program in the calling task that tells what only the kernel knows of it: how deep its pid namespace is, and the
/// address of the inode of the program that it runs.
///
/// # Errors
/// `EPERM`, `ENOMEM`; the verifier's objections.
pub fn survey(kernel: &Kernel) -> Result<(u32, u64)> {
    let map = tracing::create_map(MapKind::Array, 4, 8, 1)?;
    let mut a = Asm::default();
    let out = a.label();
    a.call(Helper::GetCurrentTaskBtf);
    a.mov_reg(R9, R0);
    a.store_imm(Size::B8, R10, -8, 0);
    a.map(R1, map.as_fd());
    a.mov_reg(R2, R10);
    a.op(Op::Add, R2, -8);
    a.call(Helper::MapLookup);
    a.jump_if(Cond::Eq, R0, 0, out);
    a.load(Size::B8, R1, R9, kernel.task_mm);
    a.load(Size::B8, R1, R1, kernel.mm_exe);
    a.load(Size::B8, R1, R1, kernel.file_inode);
    a.store(Size::B8, R0, 0, R1);
    a.here(out);
    a.load(Size::B8, R1, R9, kernel.task_pid);
    a.load(Size::B4, R0, R1, kernel.pid_level);
    a.exit();
    let program = load(a.finish(), Hook::Test, "airlock_survey")?;
    let level = tracing::run_once(program.as_fd())?;
    Ok((level, tracing::get(map.as_fd(), 0)?))
}

/// Assembles, loads and attaches the program of a probe. Returns the program and what keeps it attached.
///
/// # Errors
/// The kernel lacks the place, or refuses.
pub fn assemble(
    probe: Probe,
    btf: &Btf,
    kernel: &Kernel,
    maps: &Maps,
    scope: Scope,
    needs: Needs,
) -> Result<(OwnedFd, OwnedFd)> {
    let tracepoint = |name: &str| btf.id(Kind::Typedef, &format!("btf_trace_{name}")).map(Hook::Tracepoint);
    // A record of its own for each: one program may be cut short by another on the same CPU, but not by itself.
    let scratch = tracing::create_map(MapKind::PerCpuArray, 4, record::ROOM, 1)?;
    let w = Writer::new(kernel, maps, scope);
    let (name, hook, code) = match probe {
        Probe::Clone => ("airlock_clone", tracepoint("sched_process_fork")?, clone(w, &scratch, needs)),
        Probe::Exec { stdio } => {
            ("airlock_exec", tracepoint("sched_process_exec")?, exec(w, &scratch, needs, stdio))
        }
        Probe::Exit => ("airlock_exit", tracepoint("sched_process_exit")?, exit(w, &scratch, needs)),
        Probe::Enter => ("airlock_enter", tracepoint("sys_enter")?, enter(w, &scratch, needs)),
        Probe::Leave => ("airlock_leave", tracepoint("sys_exit")?, leave(w, &scratch, needs)),
    };
    let program = load(code, hook, name)?;
    let link = tracing::attach(program.as_fd())
        .map_err(|e| Error::from(e).context(format!("attaching the program {name}")))?;
    Ok((program, link))
}

fn load(code: Option<Vec<u64>>, hook: Hook, name: &str) -> Result<OwnedFd> {
    let code =
        code.ok_or_else(|| Error::failure(format!("the program {name} has a label that is nowhere")))?;
    tracing::load(&code, hook, name).map_err(|refused| {
        let why = if refused.why.is_empty() { String::new() } else { format!(": {}", refused.why) };
        let mut error = Error::from(refused.errno);
        error.message += &why;
        error.context(format!("loading the program {name}"))
    })
}

/// Puts a register into argument `n` of the record.
fn argument(a: &mut Asm, n: i16, value: Reg) {
    a.store(Size::B8, R7, record::ARGS + 8 * n, value);
}

/// `sched_process_fork(parent, child)`.
fn clone(mut w: Writer<'_>, scratch: &OwnedFd, needs: Needs) -> Option<Vec<u64>> {
    let k = w.kernel;
    w.member();
    w.head(scratch, record::Kind::Clone, needs);
    w.asm.load(Size::B8, R8, R6, 8);
    w.asm.load(Size::B8, R1, R8, k.task_start);
    argument(&mut w.asm, 2, R1);
    // The numbers have 32 bits; the upper halves are cleared.
    for (n, of_process) in [(0, false), (1, true)] {
        w.asm.store_imm(Size::B8, R7, record::ARGS + 8 * n, 0);
        if of_process {
            w.asm.load(Size::B8, R1, R8, k.task_signal);
            w.asm.load(Size::B8, R1, R1, k.tgid_pid);
        } else {
            w.asm.load(Size::B8, R1, R8, k.task_pid);
        }
        w.number(record::ARGS + 8 * n);
    }
    // Which call made it, and its first argument, tell the flags.
    w.registers();
    w.asm.mov_reg(R8, R0);
    w.asm.load(Size::B8, R1, R8, regs::NUMBER);
    argument(&mut w.asm, 3, R1);
    w.asm.load(Size::B8, R3, R8, regs::ARGS[0]);
    argument(&mut w.asm, 4, R3);
    w.asm.store_imm(Size::B8, R7, record::ARGS + 8 * 5, 0);
    let a = &mut w.asm;
    a.mov_reg(R1, R7);
    a.op(Op::Add, R1, i32::from(record::ARGS + 8 * 5));
    a.mov(R2, 8);
    a.call(Helper::ProbeReadUser);
    w.send()
}

/// `sched_process_exec(task, old_pid, program)`.
fn exec(mut w: Writer<'_>, scratch: &OwnedFd, needs: Needs, stdio: bool) -> Option<Vec<u64>> {
    let k = w.kernel;
    w.member();
    w.head(scratch, record::Kind::Exec, needs);
    w.asm.load(Size::B8, R1, R6, 16);
    w.asm.store(Size::B8, R10, OWN2, R1);
    w.asm.load(Size::B8, R3, R1, k.program_name);
    w.text(tag::FILENAME, Helper::ProbeReadKernelStr, record::MAX_TEXT);
    for (start, end, tag) in
        [(k.mm_arg_start, k.mm_arg_end, tag::ARGV), (k.mm_env_start, k.mm_env_end, tag::ENVIRON)]
    {
        let a = &mut w.asm;
        a.load(Size::B8, R1, R9, k.task_mm);
        a.load(Size::B8, R3, R1, start);
        a.load(Size::B8, R2, R1, end);
        a.op_reg(Op::Sub, R2, R3);
        w.bytes(tag, record::MAX_TEXT);
    }
    w.follow(OWN2, k.program_file, FILE);
    w.file(tag::FILE);
    if stdio {
        for n in 0..3 {
            w.asm.store_imm(Size::B8, R10, FILE, 0);
            w.asm.mov(R8, n);
            w.descriptor(tag::STDIO + n as u16);
            w.socket(tag::STDIO + n as u16);
        }
    }
    w.send()
}

/// `sched_process_exit(task, …)`.
fn exit(mut w: Writer<'_>, scratch: &OwnedFd, needs: Needs) -> Option<Vec<u64>> {
    let k = w.kernel;
    w.member();
    w.head(scratch, record::Kind::Exit, needs);
    let a = &mut w.asm;
    a.load(Size::B4, R1, R9, k.task_exit_code);
    argument(a, 0, R1);
    a.load(Size::B8, R8, R9, k.task_signal);
    for (n, field) in [(1, k.signal_live), (2, k.signal_flags), (3, k.signal_exit_code)] {
        a.load(Size::B4, R1, R8, field);
        argument(a, n, R1);
    }
    w.send()
}

/// `sys_enter(registers, number)`.
fn enter(mut w: Writer<'_>, scratch: &OwnedFd, needs: Needs) -> Option<Vec<u64>> {
    w.asm.load(Size::B8, R8, R6, 8);
    w.syscall(WANT_ENTER);
    w.head(scratch, record::Kind::Enter, needs);
    w.arguments();
    w.captures(0);
    w.send()
}

/// `sys_exit(registers, result)`.
fn leave(mut w: Writer<'_>, scratch: &OwnedFd, needs: Needs) -> Option<Vec<u64>> {
    w.asm.load(Size::B8, R1, R6, 0);
    w.asm.load(Size::B8, R8, R1, regs::NUMBER);
    w.syscall(WANT_LEAVE);
    w.head(scratch, record::Kind::Leave, needs);
    w.arguments();
    w.asm.load(Size::B8, R1, R6, 8);
    argument(&mut w.asm, 7, R1);
    let all = w.asm.label();
    w.asm.load(Size::B8, R1, R10, OWN2);
    w.asm.load(Size::B1, R1, R1, 5);
    w.asm.jump_if(Cond::Eq, R1, 0, all);
    w.chosen(R8, 5, 1, 0);
    let (a, out) = (&mut w.asm, w.out);
    a.load(Size::B8, R1, R10, OWN2);
    a.load(Size::B1, R1, R1, 6);
    a.op_reg(Op::And, R8, R1);
    a.jump_if(Cond::Eq, R8, 0, out);
    a.here(all);
    w.captures(3);
    w.send()
}

/// Where `struct pt_regs` has a system call's number and its arguments.
#[cfg(target_arch = "x86_64")]
mod regs {
    /// `orig_ax`.
    pub const NUMBER: i16 = 120;
    /// `di`, `si`, `dx`, `r10`, `r8`, `r9`.
    pub const ARGS: [i16; 6] = [112, 104, 96, 56, 72, 64];
}
#[cfg(target_arch = "aarch64")]
mod regs {
    /// `syscallno`.
    pub const NUMBER: i16 = 280;
    /// `orig_x0` (`x0` has the result at the end), `x1` to `x5`.
    pub const ARGS: [i16; 6] = [272, 8, 16, 24, 32, 40];
}

impl Writer<'_> {
    /// `R0` becomes the registers of the running task.
    fn registers(&mut self) {
        self.asm.mov_reg(R1, R9);
        self.asm.call(Helper::TaskPtRegs);
    }

    /// Ends the program unless call number `R8` is wanted and made by a container. Leaves its entry in [`OWN2`].
    fn syscall(&mut self, want: i32) {
        let out = self.out;
        let a = &mut self.asm;
        a.jump_if(Cond::Ge, R8, SYSCALLS as i32, out);
        a.store(Size::B4, R10, OWN, R8);
        a.map(R1, self.maps.syscalls.as_fd());
        a.mov_reg(R2, R10);
        a.op(Op::Add, R2, OWN.into());
        a.call(Helper::MapLookup);
        a.jump_if(Cond::Eq, R0, 0, out);
        a.load(Size::B1, R1, R0, 0);
        a.op(Op::And, R1, want);
        a.jump_if(Cond::Eq, R1, 0, out);
        a.store(Size::B8, R10, OWN2, R0);
        self.member();
        self.native();
    }

    /// Ends the program for calls of a 32-bit program, whose numbers mean something else.
    #[cfg(target_arch = "x86_64")]
    fn native(&mut self) {
        /// `TS_COMPAT`, set during such a call, in `thread_info.status`.
        const TS_COMPAT: i32 = 2;
        let (out, status) = (self.out, self.kernel.task_status);
        self.asm.load(Size::B4, R1, R9, status);
        self.asm.op(Op::And, R1, TS_COMPAT);
        self.asm.jump_if(Cond::Ne, R1, 0, out);
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn native(&mut self) {}

    /// The call's number and arguments become those of the record.
    fn arguments(&mut self) {
        let a = &mut self.asm;
        a.load(Size::B8, R8, R6, 0);
        a.load(Size::B8, R1, R8, regs::NUMBER);
        argument(a, 0, R1);
        for (n, register) in (1..).zip(regs::ARGS) {
            a.load(Size::B8, R1, R8, register);
            argument(a, n, R1);
        }
    }

    /// `to` becomes the argument whose number is at byte `at` of the entry, minus `less`.
    fn chosen(&mut self, to: Reg, at: i16, less: i32, next: i16) {
        let a = &mut self.asm;
        a.load(Size::B8, R1, R10, OWN2);
        a.load(Size::B1, R1, R1, at);
        a.op(Op::Sub, R1, less);
        a.op(Op::And, R1, 7);
        a.op(Op::Lsh, R1, 3);
        a.op_reg(Op::Add, R1, R7);
        a.load(Size::B8, to, R1, record::ARGS + 8 + 8 * next);
    }

    /// Takes what the entry says, from capture `first` on.
    fn captures(&mut self, first: u16) {
        let without = self.asm.label();
        let a = &mut self.asm;
        a.load(Size::B8, R1, R10, OWN2);
        a.load(Size::B1, R1, R1, 4);
        a.jump_if(Cond::Eq, R1, 0, without);
        self.chosen(R8, 4, 1, 0);
        self.descriptor(tag::FD);
        self.asm.here(without);
        for n in 0..3 {
            let at = 8 + 4 * (first + n) as i16;
            let tag = tag::CAPTURE + n;
            let labels: Vec<_> = (0..6).map(|_| self.asm.label()).collect();
            let end = labels[0];
            let a = &mut self.asm;
            a.load(Size::B8, R1, R10, OWN2);
            a.load(Size::B1, R1, R1, at);
            for (kind, label) in (1..).zip(&labels[1..]) {
                a.jump_if(Cond::Eq, R1, kind, *label);
            }
            a.jump(end);

            a.here(labels[1]);
            self.chosen(R3, at + 1, 0, 0);
            self.text(tag, Helper::ProbeReadUserStr, record::MAX_TEXT);
            self.asm.jump(end);

            self.asm.here(labels[2]);
            self.chosen(R3, at + 1, 0, 0);
            self.asm.load(Size::B8, R2, R10, OWN2);
            self.asm.load(Size::B1, R2, R2, at + 2);
            self.bytes(tag, 255);
            self.asm.jump(end);

            self.asm.here(labels[3]);
            self.chosen(R3, at + 1, 0, 0);
            self.chosen(R2, at + 1, 0, 1);
            self.address(tag);
            self.asm.jump(end);

            self.asm.here(labels[4]);
            self.chosen(R3, at + 1, 0, 1);
            let a = &mut self.asm;
            a.store_imm(Size::B8, R10, OWN, 0);
            a.mov_reg(R1, R10);
            a.op(Op::Add, R1, OWN.into());
            a.mov(R2, 4);
            a.call(Helper::ProbeReadUser);
            self.chosen(R3, at + 1, 0, 0);
            self.asm.load(Size::B8, R2, R10, OWN);
            self.address(tag);
            self.asm.jump(end);

            self.asm.here(labels[5]);
            self.chosen(R3, at + 1, 0, 0);
            self.texts(tag);
            self.asm.here(end);
        }
    }

    /// A socket address at `R3` of `R2` bytes, an int.
    fn address(&mut self, tag: u16) {
        /// `sizeof(struct sockaddr_storage)`.
        const MOST: i32 = 128;
        self.asm.op(Op::Lsh, R2, 32);
        self.asm.op(Op::Rsh, R2, 32);
        self.bytes(tag, MOST);
    }

    /// The texts that an array of pointers at `R3` points to.
    fn texts(&mut self, tag: u16) {
        let end = self.asm.label();
        self.asm.store(Size::B8, R10, FILE, R3);
        for _ in 0..record::MAX_ARGV {
            let a = &mut self.asm;
            a.load(Size::B8, R3, R10, FILE);
            a.mov_reg(R1, R10);
            a.op(Op::Add, R1, OWN.into());
            a.mov(R2, 8);
            a.call(Helper::ProbeReadUser);
            a.jump_if(Cond::Ne, R0, 0, end);
            a.load(Size::B8, R3, R10, OWN);
            a.jump_if(Cond::Eq, R3, 0, end);
            self.text(tag, Helper::ProbeReadUserStr, record::MAX_TEXT);
            let a = &mut self.asm;
            a.load(Size::B8, R1, R10, FILE);
            a.op(Op::Add, R1, 8);
            a.store(Size::B8, R10, FILE, R1);
        }
        self.asm.here(end);
    }
}

#[cfg(test)]
mod tests;
