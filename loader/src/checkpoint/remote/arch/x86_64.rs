//! x86-64: registers, how a call is made, and the code that runs a table of calls.

use airlock_wire::error::{Error, Result};

/// Bytes of the instruction that makes a system call (`syscall`).
pub const GADGET: &[u8] = &[0x0f, 0x05];

/// Size of what [`Regs::save_block`] returns.
pub const SAVE_BLOCK: usize = 152;

/// Offset in [`BLOB`] of the instruction that makes the calls of the table.
pub const BLOB_GADGET: u64 = 0x6d;

/// Offset in [`BLOB`] of the instruction before which it stops when it is done.
pub const BLOB_DONE: u64 = 0xa8;

/// Offset in [`BLOB`] behind the instruction that traps when it could not stop as intended.
pub const BLOB_TRAPPED: u64 = 0xad;

/// Position-independent code that makes the calls of a table. It lies at the start of a region, whose data begin 4096
/// bytes further on.
///
/// In: `rbx` = first entry, `r12` = end of the table. An entry is nine 64-bit words: number, flags, six arguments,
/// result (see `batch`). Flag bit 0: end when this call fails. Flag bits 8 to 13: argument 0 to 5 is the address of the
/// word to pass. Out: `rbx` = the entry that failed, or the table's end.
///
/// It ends by sending its own thread a SIGURG, of which the tracer is told. When there is no tracer any more, nothing
/// happens by that (or a handler runs for nothing), and what follows is run: it takes the thread's own registers and
/// signal mask from the start of the data (see [`Regs::save_block`]), so that the program goes on unharmed. A trap
/// instruction would be simpler, but kills a thread that is not traced, and changes what the program does on SIGTRAP.
///
/// It uses no stack: the target's may be unmapped. The flags are restored before what must not change them any more;
/// signals stay blocked until the stack pointer is right. A test assembles the listing and compares.
#[rustfmt::skip]
pub const BLOB: &[u8] = &[
                                               // next:
    0x4c, 0x39, 0xe3,                          //  cmp rbx, r12
    0x0f, 0x83, 0x81, 0x00, 0x00, 0x00,        //  jae end
    0x48, 0x8b, 0x7b, 0x10,                    //  mov rdi, [rbx + 16]
    0x48, 0x8b, 0x73, 0x18,                    //  mov rsi, [rbx + 24]
    0x48, 0x8b, 0x53, 0x20,                    //  mov rdx, [rbx + 32]
    0x4c, 0x8b, 0x53, 0x28,                    //  mov r10, [rbx + 40]
    0x4c, 0x8b, 0x43, 0x30,                    //  mov r8, [rbx + 48]
    0x4c, 0x8b, 0x4b, 0x38,                    //  mov r9, [rbx + 56]
    0x4c, 0x8b, 0x6b, 0x08,                    //  mov r13, [rbx + 8]
    0x41, 0xf7, 0xc5, 0x00, 0x3f, 0x00, 0x00,  //  test r13d, 0x3f00
    0x74, 0x3c,                                //  jz go
    0x41, 0x0f, 0xba, 0xe5, 0x08,              //  bt r13d, 8
    0x73, 0x03,                                //  jnc 1f
    0x48, 0x8b, 0x3f,                          //  mov rdi, [rdi]
    0x41, 0x0f, 0xba, 0xe5, 0x09,              //  1: bt r13d, 9
    0x73, 0x03,                                //  jnc 1f
    0x48, 0x8b, 0x36,                          //  mov rsi, [rsi]
    0x41, 0x0f, 0xba, 0xe5, 0x0a,              //  1: bt r13d, 10
    0x73, 0x03,                                //  jnc 1f
    0x48, 0x8b, 0x12,                          //  mov rdx, [rdx]
    0x41, 0x0f, 0xba, 0xe5, 0x0b,              //  1: bt r13d, 11
    0x73, 0x03,                                //  jnc 1f
    0x4d, 0x8b, 0x12,                          //  mov r10, [r10]
    0x41, 0x0f, 0xba, 0xe5, 0x0c,              //  1: bt r13d, 12
    0x73, 0x03,                                //  jnc 1f
    0x4d, 0x8b, 0x00,                          //  mov r8, [r8]
    0x41, 0x0f, 0xba, 0xe5, 0x0d,              //  1: bt r13d, 13
    0x73, 0x03,                                //  jnc go
    0x4d, 0x8b, 0x09,                          //  mov r9, [r9]
                                               // go:
    0x48, 0x8b, 0x03,                          //  mov rax, [rbx]
    0x0f, 0x05,                                //  syscall
    0x48, 0x89, 0x43, 0x40,                    //  mov [rbx + 64], rax
    0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff,        //  cmp rax, -4095
    0x72, 0x06,                                //  jb ok
    0x41, 0xf6, 0xc5, 0x01,                    //  test r13b, 1
    0x75, 0x09,                                //  jnz end
                                               // ok:
    0x48, 0x83, 0xc3, 0x48,                    //  add rbx, 72
    0xe9, 0x76, 0xff, 0xff, 0xff,              //  jmp next
                                               // end:
    0xb8, 0x27, 0x00, 0x00, 0x00,              //  mov eax, 39
    0x0f, 0x05,                                //  syscall
    0x89, 0xc7,                                //  mov edi, eax
    0xb8, 0xba, 0x00, 0x00, 0x00,              //  mov eax, 186
    0x0f, 0x05,                                //  syscall
    0x89, 0xc6,                                //  mov esi, eax
    0xba, 0x17, 0x00, 0x00, 0x00,              //  mov edx, 23
    0xb8, 0xea, 0x00, 0x00, 0x00,              //  mov eax, 234
    0x0f, 0x05,                                //  syscall
    0x85, 0xc0,                                //  test eax, eax
    0x74, 0x01,                                //  jz 1f
    0xcc,                                      //  int3
    0x48, 0x8d, 0x25, 0x4c, 0x0f, 0x00, 0x00,  //  1: lea rsp, [rip + next + 4096]
    0x9d,                                      //  popfq
    0x48, 0x8b, 0x25, 0x4c, 0x0f, 0x00, 0x00,  //  mov rsp, [rip + next + 4104]
    0xbf, 0x02, 0x00, 0x00, 0x00,              //  mov edi, 2
    0x48, 0x8d, 0x35, 0x48, 0x0f, 0x00, 0x00,  //  lea rsi, [rip + next + 4112]
    0xba, 0x00, 0x00, 0x00, 0x00,              //  mov edx, 0
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00,        //  mov r10d, 8
    0xb8, 0x0e, 0x00, 0x00, 0x00,              //  mov eax, 14
    0x0f, 0x05,                                //  syscall
    0x4c, 0x8b, 0x3d, 0x37, 0x0f, 0x00, 0x00,  //  mov r15, [rip + next + 4120]
    0x4c, 0x8b, 0x35, 0x38, 0x0f, 0x00, 0x00,  //  mov r14, [rip + next + 4128]
    0x4c, 0x8b, 0x2d, 0x39, 0x0f, 0x00, 0x00,  //  mov r13, [rip + next + 4136]
    0x4c, 0x8b, 0x25, 0x3a, 0x0f, 0x00, 0x00,  //  mov r12, [rip + next + 4144]
    0x48, 0x8b, 0x2d, 0x3b, 0x0f, 0x00, 0x00,  //  mov rbp, [rip + next + 4152]
    0x48, 0x8b, 0x1d, 0x3c, 0x0f, 0x00, 0x00,  //  mov rbx, [rip + next + 4160]
    0x4c, 0x8b, 0x1d, 0x3d, 0x0f, 0x00, 0x00,  //  mov r11, [rip + next + 4168]
    0x4c, 0x8b, 0x15, 0x3e, 0x0f, 0x00, 0x00,  //  mov r10, [rip + next + 4176]
    0x4c, 0x8b, 0x0d, 0x3f, 0x0f, 0x00, 0x00,  //  mov r9, [rip + next + 4184]
    0x4c, 0x8b, 0x05, 0x40, 0x0f, 0x00, 0x00,  //  mov r8, [rip + next + 4192]
    0x48, 0x8b, 0x05, 0x41, 0x0f, 0x00, 0x00,  //  mov rax, [rip + next + 4200]
    0x48, 0x8b, 0x0d, 0x42, 0x0f, 0x00, 0x00,  //  mov rcx, [rip + next + 4208]
    0x48, 0x8b, 0x15, 0x43, 0x0f, 0x00, 0x00,  //  mov rdx, [rip + next + 4216]
    0x48, 0x8b, 0x35, 0x44, 0x0f, 0x00, 0x00,  //  mov rsi, [rip + next + 4224]
    0x48, 0x8b, 0x3d, 0x45, 0x0f, 0x00, 0x00,  //  mov rdi, [rip + next + 4232]
    0xff, 0x25, 0x47, 0x0f, 0x00, 0x00,        //  jmp [rip + next + 4240]
];

macro_rules! regs {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// General purpose registers of a thread (`struct user_regs_struct`; the set NT_PRSTATUS).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Regs {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Regs {
            /// How many bytes the register set has.
            pub const SIZE: usize = 8 * [$(stringify!($name)),*].len();

            /// The names of the registers in the order of [`Regs::to_bytes`].
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// As the kernel lays the set out.
            pub fn to_bytes(&self) -> Vec<u8> {
                let mut bytes = Vec::with_capacity(Self::SIZE);
                $(bytes.extend_from_slice(&self.$name.to_ne_bytes());)*
                bytes
            }

            /// Takes apart what the kernel (or an image) laid out.
            ///
            /// # Errors
            /// `Unsupported` when it has another size: that of a 32-bit task, for one.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
                if bytes.len() != Self::SIZE {
                    return Err(Error::unsupported(format!(
                        "a register set of {} bytes where x86-64 has {}: 32-bit programs are not supported",
                        bytes.len(),
                        Self::SIZE
                    )));
                }
                let mut words = bytes.chunks_exact(8).map(|w| {
                    w.try_into().map(u64::from_ne_bytes).unwrap_or_default()
                });
                Ok(Self { $($name: words.next().unwrap_or_default(),)* })
            }
        }
    };
}

regs! {
    /// General purpose.
    r15,
    /// General purpose.
    r14,
    /// General purpose.
    r13,
    /// General purpose.
    r12,
    /// General purpose.
    rbp,
    /// General purpose.
    rbx,
    /// General purpose; a system call leaves the flags in it.
    r11,
    /// General purpose; fourth argument of a system call.
    r10,
    /// General purpose; sixth argument of a system call.
    r9,
    /// General purpose; fifth argument of a system call.
    r8,
    /// Result of a system call.
    rax,
    /// General purpose; a system call leaves the return address in it.
    rcx,
    /// Third argument of a system call.
    rdx,
    /// Second argument of a system call.
    rsi,
    /// First argument of a system call.
    rdi,
    /// Number of the system call that the thread is in, or -1.
    orig_rax,
    /// Instruction pointer.
    rip,
    /// Code segment.
    cs,
    /// Flags.
    eflags,
    /// Stack pointer.
    rsp,
    /// Stack segment.
    ss,
    /// Base of segment fs: the C library's thread-local storage.
    fs_base,
    /// Base of segment gs.
    gs_base,
    /// Data segment.
    ds,
    /// Extra segment.
    es,
    /// Segment fs.
    fs,
    /// Segment gs.
    gs,
}

const ERESTARTSYS: u64 = -512_i64 as u64;
const ERESTARTNOINTR: u64 = -513_i64 as u64;
const ERESTARTNOHAND: u64 = -514_i64 as u64;
const ERESTART_RESTARTBLOCK: u64 = -516_i64 as u64;
const EINTR: u64 = -(libc::EINTR as i64) as u64;

impl Regs {
    /// Instruction pointer.
    pub fn ip(&self) -> u64 {
        self.rip
    }

    /// Sets the instruction pointer.
    pub fn set_ip(&mut self, ip: u64) {
        self.rip = ip;
    }

    /// Stack pointer.
    pub fn sp(&self) -> u64 {
        self.rsp
    }

    /// Frame pointer, in programs that have one.
    pub fn frame_pointer(&self) -> u64 {
        self.rbp
    }

    /// What a call just returned.
    pub fn returned(&self) -> u64 {
        self.rax
    }

    /// Number of the system call that the thread is in, if it is in one.
    pub fn in_syscall(&self) -> Option<u64> {
        ((self.orig_rax as i64) >= 0).then_some(self.orig_rax)
    }

    /// Where the instruction lies that made the call which the thread is in.
    pub fn call_site(&self) -> u64 {
        self.rip.wrapping_sub(GADGET.len() as u64)
    }

    /// Fails for a thread that runs 32-bit code.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn check_mode(&self) -> Result<()> {
        const USER_CS: u64 = 0x33;
        if self.cs == USER_CS {
            return Ok(());
        }
        Err(Error::unsupported(format!("it runs 32-bit code (code segment {:#x})", self.cs)))
    }

    /// Registers that make call `nr` when the thread goes on at `gadget`. The kernel must not take them for those of
    /// an interrupted call, nor the processor for those of a single-stepping one. Should the gadget be that of the blob,
    /// which will go on behind it if the tracer dies, then with an empty table at `entry`.
    pub fn for_call(&self, gadget: u64, nr: i64, args: [u64; 6], entry: u64) -> Self {
        let [rdi, rsi, rdx, r10, r8, r9] = args;
        let (rax, rbx, r12, r13) = (nr as u64, entry, entry, 0);
        Self { rip: gadget, rax, rdi, rsi, rdx, r10, r8, r9, rbx, r12, r13, ..self.injected() }
    }

    /// Registers that run the blob at `blob` over the table from `first` to `end`.
    pub fn for_blob(&self, blob: u64, first: u64, end: u64) -> Self {
        Self { rip: blob, rbx: first, r12: end, ..self.injected() }
    }

    fn injected(&self) -> Self {
        Self { orig_rax: u64::MAX, eflags: 0x202, ..*self }
    }

    /// What the blob needs to put these registers and the signal mask back when there is no tracer any more, as it lies
    /// at the start of a region's data.
    pub fn save_block(&self, mask: u64) -> [u8; SAVE_BLOCK] {
        let r = self.restarted();
        let words = [
            r.eflags, r.rsp, mask, r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax,
            r.rcx, r.rdx, r.rsi, r.rdi, r.rip,
        ];
        let mut block = [0; SAVE_BLOCK];
        for (to, word) in block.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        block
    }

    /// How far the blob came: the table's end, or the entry that failed.
    pub fn blob_progress(&self) -> u64 {
        self.rbx
    }

    /// True when a call returned one of the codes by which the kernel restarts it.
    pub fn wants_restart(&self) -> bool {
        matches!(self.rax, ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK)
    }

    /// True when the thread is in a call whose timer state lives in the kernel only (`-ERESTART_RESTARTBLOCK`).
    pub fn in_restart_block(&self) -> bool {
        self.in_syscall().is_some() && self.rax == ERESTART_RESTARTBLOCK
    }

    /// A stop makes a few calls end with EINTR though no signal handler ran, see signal(7). Where such a call was to
    /// wait for ever, restarting it is the same as never having interrupted it, so programs need not see this.
    /// Calls with a time limit keep EINTR: programs recompute their limits then, whereas a restart would begin the
    /// whole time again.
    pub fn undo_spurious_eintr(&mut self) {
        if self.rax != EINTR {
            return;
        }
        let Some(nr) = self.in_syscall() else { return };
        let endless = match nr as i64 {
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => (self.r10 as i32) < 0,
            libc::SYS_epoll_pwait2 => self.r10 == 0,
            libc::SYS_semop => true,
            libc::SYS_semtimedop => self.r10 == 0,
            libc::SYS_io_getevents => self.r8 == 0,
            libc::SYS_rt_sigtimedwait => self.rdx == 0,
            _ => false,
        };
        if endless {
            // Not "go back to the instruction": should a handler run after all, the kernel makes it EINTR again.
            self.rax = ERESTARTNOHAND;
        }
    }

    /// The registers as an image keeps them.
    ///
    /// A thread in an interrupted call is kept as the kernel has it in flight: the call's number in `orig_rax`, and
    /// in `rax` the code that tells how to restart. `Tracee::detach` makes the kernel finish this after the restore,
    /// and so it is the kernel that decides, with the pending signals and handlers of that moment, between starting
    /// the call again and EINTR. (Setting the instruction pointer back instead would lose the EINTR that a program in
    /// pause(2) needs to see after its handler ran.)
    ///
    /// What the kernel remembers for `-ERESTART_RESTARTBLOCK` does not survive: such calls are made again from their
    /// arguments, or end with EINTR when a handler runs. The two that sleep for a time get as their argument the
    /// time that remains, which the kernel has stored if the program gave a place for it.
    pub fn for_image(&self) -> Self {
        let mut regs = *self;
        regs.undo_spurious_eintr();
        if !regs.in_restart_block() {
            return regs;
        }
        regs.rax = ERESTARTNOHAND;
        match regs.orig_rax as i64 {
            libc::SYS_nanosleep if regs.rsi != 0 => regs.rdi = regs.rsi,
            libc::SYS_clock_nanosleep if regs.r10 != 0 && regs.rsi & libc::TIMER_ABSTIME as u64 == 0 => {
                regs.rdx = regs.r10;
            }
            _ => {}
        }
        regs
    }

    /// As [`Regs::for_image`], but finished without the kernel: the instruction pointer is back at the call. For
    /// readers of images who set registers by other means than ptrace.
    pub fn restarted(&self) -> Self {
        let mut regs = self.for_image();
        if regs.in_syscall().is_some() && regs.wants_restart() {
            regs.rip = regs.call_site();
            regs.rax = regs.orig_rax;
            regs.orig_rax = u64::MAX;
        }
        regs
    }
}

#[cfg(test)]
#[path = "x86_64_tests.rs"]
mod tests;
