//! ptrace(2) and its neighbours: waiting for traced threads, and reading and writing another process' memory.
//!
//! Thin: each function is one system call, and errors are the kernel's. ptrace is bound to the *thread* that
//! attached: every call here must be made by the thread that seized `tid`, or it fails with `ESRCH`. `tid` is a
//! thread id in the caller's pid namespace. No function needs the memory of the tracee to be trustworthy.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

/// Reports of system calls are distinguishable from a real SIGTRAP.
pub const O_TRACESYSGOOD: u64 = 0x01;
/// Children made with fork(2) are traced from birth.
pub const O_TRACEFORK: u64 = 0x02;
/// Children made with vfork(2) are traced from birth.
pub const O_TRACEVFORK: u64 = 0x04;
/// Children and threads made with clone(2) are traced from birth.
pub const O_TRACECLONE: u64 = 0x08;
/// The tracee is killed when its tracer ends.
pub const O_EXITKILL: u64 = 0x10_0000;
/// The tracee's seccomp filters do not apply while it is traced (needs CAP_SYS_ADMIN in the initial user
/// namespace, a tracer without filters, and CONFIG_CHECKPOINT_RESTORE).
pub const O_SUSPEND_SECCOMP: u64 = 0x20_0000;

/// Stop event: fork(2).
pub const EVENT_FORK: i32 = 1;
/// Stop event: vfork(2).
pub const EVENT_VFORK: i32 = 2;
/// Stop event: clone(2).
pub const EVENT_CLONE: i32 = 3;
/// Stop event: PTRACE_INTERRUPT, a group stop, or the first stop of a child that was traced from birth.
pub const EVENT_STOP: i32 = 128;

/// Register set: general purpose registers.
pub const NT_PRSTATUS: u32 = 1;
/// Register set: the x86 extended state (FPU, vector registers, PKRU) in XSAVE layout.
pub const NT_X86_XSTATE: u32 = 0x202;
/// Register set: the x86 shadow stack.
pub const NT_X86_SHSTK: u32 = 0x204;

mod request {
    pub const PEEKDATA: u32 = 2;
    pub const POKEDATA: u32 = 5;
    pub const CONT: u32 = 7;
    pub const DETACH: u32 = 17;
    pub const SYSCALL: u32 = 24;
    pub const SINGLESTEP: u32 = 9;
    pub const SETOPTIONS: u32 = 0x4200;
    pub const GETEVENTMSG: u32 = 0x4201;
    pub const GETSIGINFO: u32 = 0x4202;
    pub const GETREGSET: u32 = 0x4204;
    pub const SETREGSET: u32 = 0x4205;
    pub const SEIZE: u32 = 0x4206;
    pub const INTERRUPT: u32 = 0x4207;
    pub const PEEKSIGINFO: u32 = 0x4209;
    pub const GETSIGMASK: u32 = 0x420a;
    pub const SETSIGMASK: u32 = 0x420b;
    pub const SECCOMP_GET_FILTER: u32 = 0x420c;
    pub const SECCOMP_GET_METADATA: u32 = 0x420d;
    pub const GET_RSEQ_CONFIGURATION: u32 = 0x420f;
    pub const SET_SYSCALL_USER_DISPATCH: u32 = 0x4210;
    pub const GET_SYSCALL_USER_DISPATCH: u32 = 0x4211;
}

/// # Safety
/// `addr` and `data` must be what `request` wants: integers, or pointers to memory of the right size that
/// outlives the call.
unsafe fn ptrace(request: u32, tid: i32, addr: usize, data: usize) -> Result<i64> {
    // SAFETY: the caller's promise; the raw call, because libc's wrapper treats PEEK requests differently.
    Errno::result(unsafe { libc::syscall(libc::SYS_ptrace, request as u64, tid as i64, addr, data) })
}

/// A request whose arguments are integers.
fn plain(request: u32, tid: i32, data: usize) -> Result<()> {
    // SAFETY: only used with requests that take no pointers.
    unsafe { ptrace(request, tid, 0, data) }.map(drop)
}

/// Attaches to thread `tid` without stopping it.
///
/// # Errors
/// `ESRCH` (gone), `EPERM` (not allowed, a zombie, or traced by somebody already).
pub fn seize(tid: i32, options: u64) -> Result<()> {
    plain(request::SEIZE, tid, options as usize)
}

/// Asks a seized thread to stop; wait for it with [`wait`]. On one that is stopped already: it will look for
/// work (signals, restarts of system calls) when it is resumed.
///
/// # Errors
/// `ESRCH`.
pub fn interrupt(tid: i32) -> Result<()> {
    plain(request::INTERRUPT, tid, 0)
}

/// Lets a stopped tracee run, delivering `signal` (0: none) if it is in a signal-delivery stop.
///
/// # Errors
/// `ESRCH` when it is not stopped.
pub fn cont(tid: i32, signal: i32) -> Result<()> {
    plain(request::CONT, tid, signal as usize)
}

/// As [`cont`], but stops at the next entry to or exit from a system call.
///
/// # Errors
/// `ESRCH` when it is not stopped.
pub fn cont_to_syscall(tid: i32, signal: i32) -> Result<()> {
    plain(request::SYSCALL, tid, signal as usize)
}

/// As [`cont`], but stops with SIGTRAP after one instruction.
///
/// # Errors
/// `ESRCH` when it is not stopped.
pub fn step(tid: i32, signal: i32) -> Result<()> {
    plain(request::SINGLESTEP, tid, signal as usize)
}

/// Lets a stopped tracee go, delivering `signal` (0: none).
///
/// # Errors
/// `ESRCH` when it is not stopped.
pub fn detach(tid: i32, signal: i32) -> Result<()> {
    plain(request::DETACH, tid, signal as usize)
}

/// Replaces the options of a stopped tracee.
///
/// # Errors
/// `EPERM` for `O_SUSPEND_SECCOMP` without the right to it, `EINVAL` for options that the kernel does not know.
pub fn set_options(tid: i32, options: u64) -> Result<()> {
    plain(request::SETOPTIONS, tid, options as usize)
}

/// What the last event stop was about: for `EVENT_CLONE` and its kin the child's thread id, in the caller's pid
/// namespace.
///
/// # Errors
/// `ESRCH`.
pub fn event_message(tid: i32) -> Result<u64> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the kernel stores one unsigned long in `message`, which outlives the call.
    unsafe { ptrace(request::GETEVENTMSG, tid, 0, &raw mut message as usize) }?;
    Ok(message)
}

/// Reads one word at `addr`, whatever the protection of its page.
///
/// # Errors
/// `EIO`/`EFAULT` where nothing is mapped.
pub fn peek(tid: i32, addr: u64) -> Result<u64> {
    let mut word: libc::c_long = 0;
    // SAFETY: the raw request stores one long in `word`, which outlives the call.
    unsafe { ptrace(request::PEEKDATA, tid, addr as usize, &raw mut word as usize) }?;
    Ok(word as u64)
}

/// Writes one word at `addr`, whatever the protection of its page (a private page is copied first).
///
/// # Errors
/// `EIO`/`EFAULT` where nothing is mapped or the mapping is shared and not writable.
pub fn poke(tid: i32, addr: u64, word: u64) -> Result<()> {
    // SAFETY: both arguments are integers to this process.
    unsafe { ptrace(request::POKEDATA, tid, addr as usize, word as usize) }.map(drop)
}

/// Reads register set `kind` into `buffer`; returns how many bytes the set has (at most the buffer's length).
///
/// # Errors
/// `ENODEV` when the thread or the machine has no such set, `EINVAL` for a set of an unknown kind.
pub fn regset(tid: i32, kind: u32, buffer: &mut [u8]) -> Result<usize> {
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `iov` describes `buffer`; both outlive the call, which stores at most `iov_len` bytes.
    unsafe { ptrace(request::GETREGSET, tid, kind as usize, &raw mut iov as usize) }?;
    Ok(iov.iov_len)
}

/// Writes register set `kind`.
///
/// # Errors
/// `EINVAL`/`EFAULT` when the kernel finds the contents invalid, `EIO` for registers that may not have such values.
pub fn set_regset(tid: i32, kind: u32, bytes: &[u8]) -> Result<()> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the kernel only reads the bytes; `iov` and `bytes` outlive the call.
    unsafe { ptrace(request::SETREGSET, tid, kind as usize, &raw mut iov as usize) }.map(drop)
}

/// The siginfo of the signal whose delivery stopped the tracee.
///
/// # Errors
/// `EINVAL` when it is not in such a stop.
pub fn siginfo(tid: i32) -> Result<[u8; 128]> {
    let mut info = [0u8; 128];
    // SAFETY: a siginfo_t has 128 bytes on every architecture.
    unsafe { ptrace(request::GETSIGINFO, tid, 0, info.as_mut_ptr() as usize) }?;
    Ok(info)
}

/// Pending signals from number `first` on, at most 64: of the thread, or (`shared`) of its process.
///
/// # Errors
/// The errno of PTRACE_PEEKSIGINFO.
pub fn peek_siginfo(tid: i32, shared: bool, first: u64) -> Result<Vec<[u8; 128]>> {
    #[repr(C)]
    struct Args {
        off: u64,
        flags: u32,
        nr: i32,
    }
    const COUNT: usize = 64;
    let mut found = vec![[0u8; 128]; COUNT];
    let args = Args { off: first, flags: u32::from(shared), nr: COUNT as i32 };
    // SAFETY: `found` has room for the `nr` records that `args` asks for; both outlive the call.
    let count =
        unsafe { ptrace(request::PEEKSIGINFO, tid, &raw const args as usize, found.as_mut_ptr() as usize) }?;
    found.truncate(count as usize);
    Ok(found)
}

/// The signal mask: bit N-1 is signal N. In a call such as sigsuspend(2), the mask that it will restore.
///
/// # Errors
/// `ESRCH`.
pub fn sigmask(tid: i32) -> Result<u64> {
    let mut mask = 0u64;
    // SAFETY: the kernel stores the 8 bytes that the size argument names.
    unsafe { ptrace(request::GETSIGMASK, tid, 8, &raw mut mask as usize) }?;
    Ok(mask)
}

/// Replaces the signal mask; SIGKILL and SIGSTOP are never blocked.
///
/// # Errors
/// `ESRCH`.
pub fn set_sigmask(tid: i32, mask: u64) -> Result<()> {
    // SAFETY: the kernel reads the 8 bytes that the size argument names.
    unsafe { ptrace(request::SETSIGMASK, tid, 8, &raw const mask as usize) }.map(drop)
}

/// A thread's registration for restartable sequences, see rseq(2). All zero: none.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RseqConfiguration {
    /// Address of `struct rseq` in the tracee.
    pub pointer: u64,
    /// Its registered size in bytes.
    pub size: u32,
    /// The four bytes that precede every abort handler.
    pub signature: u32,
    /// Flags of the registration.
    pub flags: u32,
    pad: u32,
}

/// Reads the rseq registration (Linux 5.13).
///
/// # Errors
/// `EIO` on older kernels and those without rseq.
pub fn rseq_configuration(tid: i32) -> Result<RseqConfiguration> {
    let mut config = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>();
    // SAFETY: the kernel stores at most `size` bytes in `config`, which outlives the call.
    unsafe { ptrace(request::GET_RSEQ_CONFIGURATION, tid, size, &raw mut config as usize) }?;
    Ok(config)
}

/// One classic BPF instruction as seccomp(2) takes it: code, jt, jf, k.
pub type Instruction = [u8; 8];

/// The `index`-th seccomp filter, 0 being the one installed first (ptrace(2) says last; the kernel counts from the
/// other end).
///
/// # Errors
/// `ENOENT` past the last, `EACCES`/`EPERM` without the right to it (CAP_SYS_ADMIN in the initial user namespace;
/// no filter on the caller), `EMEDIUMTYPE` for one that is not classic BPF, `EIO` without CONFIG_CHECKPOINT_RESTORE.
pub fn seccomp_filter(tid: i32, index: usize) -> Result<Vec<Instruction>> {
    // SAFETY: a null pointer asks for the number of instructions.
    let count = unsafe { ptrace(request::SECCOMP_GET_FILTER, tid, index, 0) }?;
    let mut filter = vec![[0u8; 8]; count as usize];
    // SAFETY: filters do not change, so the kernel stores `count` instructions of 8 bytes, for which there is room.
    unsafe { ptrace(request::SECCOMP_GET_FILTER, tid, index, filter.as_mut_ptr() as usize) }?;
    Ok(filter)
}

/// The `SECCOMP_FILTER_FLAG_*` of the `index`-th filter (Linux 4.16; only `LOG` is reported).
///
/// # Errors
/// As [`seccomp_filter`].
pub fn seccomp_flags(tid: i32, index: usize) -> Result<u64> {
    let mut metadata = [index as u64, 0];
    // SAFETY: the structure consists of two 64-bit words and its size is passed.
    unsafe { ptrace(request::SECCOMP_GET_METADATA, tid, 16, metadata.as_mut_ptr() as usize) }?;
    Ok(metadata[1])
}

/// A thread's Syscall User Dispatch, see prctl(2) `PR_SET_SYSCALL_USER_DISPATCH`. All zero: off.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct UserDispatch {
    /// `PR_SYS_DISPATCH_ON` (1) or off (0).
    pub mode: u64,
    /// Address of the selector byte.
    pub selector: u64,
    /// Start of the range from which calls are always let through.
    pub offset: u64,
    /// Length of that range.
    pub len: u64,
}

/// Reads the Syscall User Dispatch settings (Linux 6.4).
///
/// # Errors
/// `EIO` on older kernels.
pub fn user_dispatch(tid: i32) -> Result<UserDispatch> {
    let mut config = UserDispatch::default();
    let size = size_of::<UserDispatch>();
    // SAFETY: the kernel stores exactly `size` bytes in `config`.
    unsafe { ptrace(request::GET_SYSCALL_USER_DISPATCH, tid, size, &raw mut config as usize) }?;
    Ok(config)
}

/// Replaces the Syscall User Dispatch settings (Linux 6.4).
///
/// # Errors
/// `EINVAL`, `EFAULT` for a selector outside user memory; `EIO` on older kernels.
pub fn set_user_dispatch(tid: i32, config: &UserDispatch) -> Result<()> {
    let size = size_of::<UserDispatch>();
    // SAFETY: the kernel reads exactly `size` bytes of `config`.
    unsafe { ptrace(request::SET_SYSCALL_USER_DISPATCH, tid, size, std::ptr::from_ref(config) as usize) }
        .map(drop)
}

/// What a traced thread did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It stopped before this signal is delivered.
    Signal(i32),
    /// It stopped at the entry to or exit from a system call.
    Syscall,
    /// It stopped for one of `EVENT_*`; with `EVENT_STOP`, the signal is the one of a group stop, or SIGTRAP.
    Event {
        /// `EVENT_*`.
        event: i32,
        /// The signal number in the report.
        signal: i32,
    },
    /// It ended, with this raw wait status, and has been reaped as far as this process is concerned.
    Ended(i32),
}

/// Takes a report of thread `tid` without blocking; `None` when there is none yet.
///
/// # Errors
/// `ECHILD` when it is no tracee or child of the calling thread (any more).
pub fn wait(tid: i32) -> Result<Option<Change>> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let found =
        unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG) };
    Ok((Errno::result(found)? != 0).then(|| decode(status)))
}

/// As [`wait`], but blocks. A thread group leader that was killed is reported only when its other threads have been
/// waited for, so do not use this where that may happen.
///
/// # Errors
/// `ECHILD` as [`wait`]; `EINTR`.
pub fn wait_blocking(tid: i32) -> Result<Change> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    Errno::result(unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::__WNOTHREAD) })?;
    Ok(decode(status))
}

fn decode(status: i32) -> Change {
    if !libc::WIFSTOPPED(status) {
        return Change::Ended(status);
    }
    let (signal, event) = ((status >> 8) & 0xff, status >> 16);
    match event {
        0 if signal == libc::SIGTRAP | 0x80 => Change::Syscall,
        0 => Change::Signal(signal),
        event => Change::Event { event, signal },
    }
}

/// Copies from `addr` of process (or thread) `tid` into `buffer`; returns how much could be read, which is less than
/// asked for where a page is missing or unreadable.
///
/// # Errors
/// `EFAULT` when not even the first byte can be read, `ESRCH`, `EPERM`.
pub fn read_memory(tid: i32, addr: u64, buffer: &mut [u8]) -> Result<usize> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: addr as usize as *mut libc::c_void, iov_len: buffer.len() };
    // SAFETY: `local` describes `buffer`; `remote` is an address in another process, which the kernel checks.
    let n = unsafe { libc::process_vm_readv(tid, &raw const local, 1, &raw const remote, 1, 0) };
    Errno::result(n).map(|n| n as usize)
}

/// Copies `bytes` to `addr` of process (or thread) `tid`; returns how much could be written, which is less than asked
/// for where a page is missing or not writable.
///
/// # Errors
/// `EFAULT` when not even the first byte can be written, `ESRCH`, `EPERM`.
pub fn write_memory(tid: i32, addr: u64, bytes: &[u8]) -> Result<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: addr as usize as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the kernel only reads through `local`, which describes `bytes`; `remote` is checked by the kernel.
    let n = unsafe { libc::process_vm_writev(tid, &raw const local, 1, &raw const remote, 1, 0) };
    Errno::result(n).map(|n| n as usize)
}

/// Duplicates descriptor `number` of the process behind `pidfd` (pidfd_getfd(2), Linux 5.6), close-on-exec.
///
/// # Errors
/// `EBADF` when the process has no such descriptor, `EPERM`, `ESRCH`.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: i32) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to exactly this thread (tkill(2)).
///
/// # Errors
/// `ESRCH`, `EPERM`, `EINVAL`.
pub fn signal_thread(tid: i32, signal: i32) -> Result<()> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_tkill, tid, signal) }).map(drop)
}
