//! What the programs have in common: who it is that runs, the record with its head, and items for texts, files and paths.
//!
//! Registers: `R6` the program's context, `R7` the record, `R9` the task; `R8` and `R0` to `R5` are anybody's. Numbers
//! that the verifier cannot know (they come from memory) are all the same to it: that is why the length of the record is
//! in the record and the parts of a path on the stack, and why it takes no time to check the programs.
#![forbid(unsafe_code)]

use super::asm::{Asm, Cond, Helper, Label, Op, Reg, Size};
use super::kernel::Kernel;
use super::record::{self, tag};
use std::os::fd::{AsFd, OwnedFd};

mod files;

use Reg::{R0, R1, R2, R3, R4, R6, R7, R8, R9, R10};

/// A task that has not executed anything since it was forked (`PF_FORKNOEXEC`).
const PF_FORKNOEXEC: i32 = 0x40;
/// Cgroups above a task's that are looked up: containers may make some below their own.
const CLIMB: usize = 4;
/// Processes above a task's that are looked at for the one that the spawner made.
const ANCESTORS: usize = 16;

// Places on the stack.
const KEY: i16 = -8;
const WORD: i16 = -16;
const DENTRY: i16 = -24;
const MOUNT: i16 = -32;
const ROOT_DENTRY: i16 = -40;
const ROOT_MOUNT: i16 = -48;
/// A file that is to be described.
pub const FILE: i16 = -56;
/// The program's own.
pub const OWN: i16 = -64;
/// The program's own.
pub const OWN2: i16 = -72;
const INODE: i16 = -80;
const PARENT: i16 = -88;

/// Maps that the programs of a session share.
#[derive(Debug)]
pub struct Maps {
    /// Number of a container by the ID of its cgroup.
    pub containers: OwnedFd,
    /// Records.
    pub ring: OwnedFd,
    /// One number: records that found no room.
    pub dropped: OwnedFd,
    /// What is wanted of each system call ([`super::SyscallEntry`]).
    pub syscalls: OwnedFd,
}

/// What belongs to the sandbox.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// How deep the sandbox's pid namespace is below the first.
    pub level: u32,
    /// Address of the inode of airlock's own program: what runs it and has executed nothing is not the container yet.
    pub program: u64,
    /// Cgroups are in the v2 hierarchy.
    pub v2: bool,
}

/// Which parts of the head a session needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Start times.
    pub starts: bool,
    /// The parent process.
    pub parent: bool,
    /// The ancestor that the spawner forked.
    pub ancestor: bool,
    /// Credentials.
    pub credentials: bool,
    /// The thread's name.
    pub name: bool,
    /// The current folder.
    pub cwd: bool,
}

/// A program that is being written.
pub(super) struct Writer<'a> {
    pub asm: Asm,
    pub kernel: &'a Kernel,
    pub maps: &'a Maps,
    pub scope: Scope,
    /// Where a program goes that has nothing to say.
    pub out: Label,
}

impl<'a> Writer<'a> {
    pub fn new(kernel: &'a Kernel, maps: &'a Maps, scope: Scope) -> Self {
        let mut asm = Asm::default();
        let out = asm.label();
        asm.mov_reg(R6, R1);
        Self { asm, kernel, maps, scope, out }
    }

    /// `R9` becomes the running task. Ends the program unless it belongs to a container; leaves the container's number in
    /// [`OWN`].
    pub fn member(&mut self) {
        let (k, out) = (self.kernel, self.out);
        let a = &mut self.asm;
        a.call(Helper::GetCurrentTaskBtf);
        a.mov_reg(R9, R0);
        if self.scope.level > 0 {
            // Most of the machine is not in a pid namespace as deep as the sandbox's.
            a.load(Size::B8, R1, R9, k.task_pid);
            a.load(Size::B4, R1, R1, k.pid_level);
            a.jump_if(Cond::Lt, R1, self.scope.level as i32, out);
        }
        a.load(Size::B8, R8, R9, k.task_cgroups);
        match (self.scope.v2, k.freezer) {
            (false, Some(freezer)) => {
                a.load(Size::B8, R8, R8, freezer);
                a.load(Size::B8, R8, R8, k.css_cgroup);
            }
            _ => a.load(Size::B8, R8, R8, k.set_cgroup),
        }
        let found = a.label();
        for i in 0..=CLIMB {
            a.load(Size::B8, R1, R8, k.cgroup_node);
            a.load(Size::B8, R1, R1, k.node_id);
            a.store(Size::B8, R10, KEY, R1);
            a.map(R1, self.maps.containers.as_fd());
            a.mov_reg(R2, R10);
            a.op(Op::Add, R2, KEY.into());
            a.call(Helper::MapLookup);
            a.jump_if(Cond::Ne, R0, 0, found);
            if i < CLIMB {
                a.load(Size::B8, R8, R8, k.cgroup_parent);
                a.load(Size::B8, R8, R8, k.css_cgroup);
            }
        }
        a.jump(out);
        a.here(found);
        a.load(Size::B4, R1, R0, 0);
        a.store(Size::B8, R10, OWN, R1);
        // airlock's own code, which prepares a container's process, is not the container's.
        let started = a.label();
        a.load(Size::B4, R1, R9, k.task_flags);
        a.op(Op::And, R1, PF_FORKNOEXEC);
        a.jump_if(Cond::Eq, R1, 0, started);
        a.load(Size::B8, R1, R9, k.task_mm);
        a.load(Size::B8, R1, R1, k.mm_exe);
        a.load(Size::B8, R1, R1, k.file_inode);
        a.mov64(R2, self.scope.program);
        a.jump_if_reg(Cond::Eq, R1, R2, out);
        a.here(started);
    }

    /// `R7` becomes this CPU's record, with its head. The container's number is in [`OWN`].
    pub fn head(&mut self, scratch: &OwnedFd, kind: record::Kind, needs: Needs) {
        let (k, out) = (self.kernel, self.out);
        let a = &mut self.asm;
        a.store_imm(Size::B8, R10, KEY, 0);
        a.map(R1, scratch.as_fd());
        a.mov_reg(R2, R10);
        a.op(Op::Add, R2, KEY.into());
        a.call(Helper::MapLookup);
        a.jump_if(Cond::Eq, R0, 0, out);
        a.mov_reg(R7, R0);
        a.store_imm(Size::B4, R7, record::KIND, kind as i32);
        a.load(Size::B8, R1, R10, OWN);
        a.store(Size::B4, R7, record::CONTAINER, R1);
        a.store_imm(Size::B8, R7, record::LENGTH, record::HEAD.into());
        a.call(Helper::KtimeGetBootNs);
        a.store(Size::B8, R7, record::TIME, R0);
        a.load(Size::B8, R1, R9, k.task_pid);
        self.number(record::TID);
        let a = &mut self.asm;
        a.load(Size::B8, R1, R9, k.task_signal);
        a.load(Size::B8, R1, R1, k.tgid_pid);
        self.number(record::TGID);
        if needs.starts {
            let a = &mut self.asm;
            a.load(Size::B8, R1, R9, k.task_start);
            a.store(Size::B8, R7, record::THREAD_START, R1);
            a.load(Size::B8, R1, R9, k.task_leader);
            a.load(Size::B8, R1, R1, k.task_start);
            a.store(Size::B8, R7, record::GROUP_START, R1);
        }
        if needs.parent {
            let a = &mut self.asm;
            a.load(Size::B8, R1, R9, k.task_parent);
            a.load(Size::B8, R1, R1, k.task_signal);
            a.load(Size::B8, R1, R1, k.tgid_pid);
            self.number(record::PARENT);
        }
        if needs.credentials {
            let a = &mut self.asm;
            a.load(Size::B8, R1, R9, k.task_cred);
            for i in 0..6 {
                a.load(Size::B4, R2, R1, k.cred_uid + 4 * i);
                a.store(Size::B4, R7, record::CREDENTIALS + 4 * i, R2);
            }
        }
        if needs.name {
            let a = &mut self.asm;
            for i in 0..2 {
                a.load(Size::B8, R1, R9, k.task_comm + 8 * i);
                a.store(Size::B8, R7, record::NAME + 8 * i, R1);
            }
        }
        if needs.ancestor {
            self.ancestor();
        }
        if needs.cwd {
            self.asm.load(Size::B8, R1, R9, k.task_fs);
            self.path_at(k.fs_pwd, tag::CWD);
        }
    }

    /// Puts the number that the `struct pid` in `R1` has in the sandbox's pid namespace into the record; 0 if it has none.
    pub fn number(&mut self, field: i16) {
        let level = self.scope.level;
        let (level_at, numbers) = (self.kernel.pid_level, self.kernel.pid_numbers);
        let a = &mut self.asm;
        let none = a.label();
        a.store_imm(Size::B4, R7, field, 0);
        a.load(Size::B4, R2, R1, level_at);
        if level > 0 {
            a.jump_if(Cond::Lt, R2, level as i32, none);
        }
        a.mov_reg(R3, R1);
        // struct upid { int nr; struct pid_namespace *ns; }
        a.op(Op::Add, R3, i32::from(numbers) + 16 * level as i32);
        a.mov_reg(R1, R7);
        a.op(Op::Add, R1, field.into());
        a.mov(R2, 4);
        a.call(Helper::ProbeReadKernel);
        a.here(none);
    }

    /// The process' ancestor (or itself) whose parent is the spawner, PID 1 of the sandbox.
    fn ancestor(&mut self) {
        let k = self.kernel;
        let done = self.asm.label();
        // Three fields serve as notes: the parent's number, then that of the process below it.
        self.asm.load(Size::B4, R1, R7, record::TGID);
        self.asm.store(Size::B4, R7, record::ANCESTOR, R1);
        self.asm.load(Size::B8, R8, R9, k.task_leader);
        for _ in 0..ANCESTORS {
            self.asm.load(Size::B8, R8, R8, k.task_parent);
            self.asm.load(Size::B8, R1, R8, k.task_signal);
            self.asm.load(Size::B8, R1, R1, k.tgid_pid);
            self.number(record::LENGTH + 4);
            let a = &mut self.asm;
            a.load(Size::B4, R1, R7, record::LENGTH + 4);
            a.jump_if(Cond::Le, R1, 1, done);
            a.store(Size::B4, R7, record::ANCESTOR, R1);
        }
        self.asm.store_imm(Size::B4, R7, record::ANCESTOR, 0);
        self.asm.here(done);
    }

    /// Appends a text (or `len` bytes) at `R3`, of the kernel or of the task; nothing if it cannot be read.
    pub fn text(&mut self, tag: u16, helper: Helper, len: i32) {
        let skip = self.asm.label();
        self.room(skip);
        let a = &mut self.asm;
        a.mov(R2, len);
        a.call(helper);
        a.jump_if(Cond::Slt, R0, 0, skip);
        match helper {
            Helper::ProbeReadUserStr | Helper::ProbeReadKernelStr => {}
            _ => a.mov(R0, len),
        }
        self.close_item(tag);
        self.asm.here(skip);
    }

    /// Appends as many bytes at `R3` of the task as `R2` says, at most `most`.
    pub fn bytes(&mut self, tag: u16, most: i32) {
        let a = &mut self.asm;
        let (skip, fits) = (a.label(), a.label());
        a.jump_if(Cond::Le, R2, most, fits);
        a.mov(R2, most);
        a.here(fits);
        a.store(Size::B8, R10, WORD, R2);
        self.room(skip);
        let a = &mut self.asm;
        a.load(Size::B8, R2, R10, WORD);
        // Once more, for the verifier, which forgets it on the stack's way when it was no constant.
        let fits = a.label();
        a.jump_if(Cond::Le, R2, most, fits);
        a.mov(R2, most);
        a.here(fits);
        a.call(Helper::ProbeReadUser);
        a.jump_if(Cond::Ne, R0, 0, skip);
        a.load(Size::B8, R0, R10, WORD);
        a.op(Op::And, R0, 0x1fff);
        self.close_item(tag);
        self.asm.here(skip);
    }

    /// `R8` becomes the place of a new item, `R1` that of its content; goes to `full` when there is no room.
    fn room(&mut self, full: Label) {
        let a = &mut self.asm;
        a.load(Size::B4, R8, R7, record::LENGTH);
        a.jump_if(Cond::Gt, R8, record::FULL, full);
        a.mov_reg(R1, R7);
        a.op_reg(Op::Add, R1, R8);
        a.op(Op::Add, R1, 8);
    }

    /// Completes the item at `R8`, whose content has `R0` bytes.
    fn close_item(&mut self, tag: u16) {
        let a = &mut self.asm;
        a.mov_reg(R1, R7);
        a.op_reg(Op::Add, R1, R8);
        a.store_imm(Size::B2, R1, 0, tag.into());
        a.store(Size::B2, R1, 2, R0);
        a.store_imm(Size::B4, R1, 4, 0);
        a.op_reg(Op::Add, R8, R0);
        a.op(Op::Add, R8, 15);
        a.op(Op::And, R8, -8);
        a.store(Size::B4, R7, record::LENGTH, R8);
    }

    /// An item without content.
    pub fn mark(&mut self, tag: u16) {
        let full = self.asm.label();
        self.room(full);
        self.asm.mov(R0, 0);
        self.close_item(tag);
        self.asm.here(full);
    }

    /// Reads `size` bytes of the kernel at `R3` to a place on the stack.
    fn peek(&mut self, to: i16, size: i32) {
        let a = &mut self.asm;
        a.mov_reg(R1, R10);
        a.op(Op::Add, R1, to.into());
        a.mov(R2, size);
        a.call(Helper::ProbeReadKernel);
    }

    /// Reads a word at the address that the stack has at `base`, plus `offset`.
    pub fn follow(&mut self, base: i16, offset: i16, to: i16) {
        self.asm.load(Size::B8, R3, R10, base);
        self.asm.op(Op::Add, R3, offset.into());
        self.peek(to, 8);
    }

    /// The path of the `struct path` at `R1` plus `offset`, up to the task's root.
    fn path_at(&mut self, offset: i16, tag: u16) {
        let k = self.kernel;
        let a = &mut self.asm;
        a.store(Size::B8, R10, WORD, R1);
        self.follow(WORD, offset + k.path_dentry, DENTRY);
        self.follow(WORD, offset + k.path_mount, MOUNT);
        self.path(tag);
    }

    /// The path of dentry [`DENTRY`] in mount [`MOUNT`], up to the task's root.
    fn path(&mut self, tag: u16) {
        let k = self.kernel;
        self.asm.load(Size::B8, R1, R9, k.task_fs);
        self.asm.store(Size::B8, R10, WORD, R1);
        self.follow(WORD, k.fs_root + k.path_dentry, ROOT_DENTRY);
        self.follow(WORD, k.fs_root + k.path_mount, ROOT_MOUNT);
        let (complete, end) = (self.asm.label(), self.asm.label());
        for _ in 0..record::MAX_PARTS {
            let (below, climb, next) = (self.asm.label(), self.asm.label(), self.asm.label());
            let a = &mut self.asm;
            a.load(Size::B8, R1, R10, DENTRY);
            a.load(Size::B8, R2, R10, ROOT_DENTRY);
            a.jump_if_reg(Cond::Ne, R1, R2, below);
            a.load(Size::B8, R1, R10, MOUNT);
            a.load(Size::B8, R2, R10, ROOT_MOUNT);
            a.jump_if_reg(Cond::Eq, R1, R2, complete);
            a.here(below);
            self.follow(MOUNT, k.mount_root, WORD);
            let a = &mut self.asm;
            a.load(Size::B8, R1, R10, DENTRY);
            a.load(Size::B8, R2, R10, WORD);
            a.jump_if_reg(Cond::Ne, R1, R2, climb);
            // The top of a mount: on with the mount that it is on. MOUNT is a vfsmount in a struct mount.
            self.follow(MOUNT, k.mount_parent - k.mount_mnt, PARENT);
            self.follow(MOUNT, k.mount_point - k.mount_mnt, DENTRY);
            let a = &mut self.asm;
            a.load(Size::B8, R1, R10, PARENT);
            a.op(Op::Add, R1, k.mount_mnt.into());
            a.load(Size::B8, R2, R10, MOUNT);
            a.store(Size::B8, R10, MOUNT, R1);
            a.jump_if_reg(Cond::Eq, R1, R2, complete);
            a.jump(next);
            a.here(climb);
            self.follow(DENTRY, k.dentry_parent, PARENT);
            self.follow(DENTRY, k.dentry_name, WORD);
            self.asm.load(Size::B8, R3, R10, WORD);
            self.text(tag, Helper::ProbeReadKernelStr, 256);
            let a = &mut self.asm;
            a.load(Size::B8, R1, R10, PARENT);
            a.load(Size::B8, R2, R10, DENTRY);
            a.store(Size::B8, R10, DENTRY, R1);
            // In no folder, as memfds and anonymous inodes.
            a.jump_if_reg(Cond::Eq, R1, R2, complete);
            a.here(next);
        }
        self.asm.jump(end);
        self.asm.here(complete);
        self.mark(tag);
        self.asm.here(end);
    }

    /// Sends the record off, or counts it as dropped; then the end of the program.
    pub fn send(mut self) -> Option<Vec<u64>> {
        let out = self.out;
        let a = &mut self.asm;
        let dropped = a.label();
        a.load(Size::B4, R3, R7, record::LENGTH);
        a.jump_if(Cond::Gt, R3, record::ROOM as i32, dropped);
        a.map(R1, self.maps.ring.as_fd());
        a.mov_reg(R2, R7);
        a.mov(R4, 0);
        a.call(Helper::RingbufOutput);
        a.jump_if(Cond::Eq, R0, 0, out);
        a.here(dropped);
        a.store_imm(Size::B8, R10, KEY, 0);
        a.map(R1, self.maps.dropped.as_fd());
        a.mov_reg(R2, R10);
        a.op(Op::Add, R2, KEY.into());
        a.call(Helper::MapLookup);
        a.jump_if(Cond::Eq, R0, 0, out);
        a.mov(R1, 1);
        a.atomic_add(R0, 0, R1);
        a.here(out);
        a.mov(R0, 0);
        a.exit();
        self.asm.finish()
    }
}
