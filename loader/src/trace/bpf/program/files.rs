//! Items about files and sockets.
#![forbid(unsafe_code)]

use super::*;
use crate::trace::event::SOCKFS;

impl Writer<'_> {
    /// Describes the `struct file` at [`FILE`], with its path.
    pub fn file(&mut self, tag: u16) {
        let k = self.kernel;
        let fields: [(i16, i16, i32); 8] = [
            (k.inode_ino, record::FILE_INODE, 8),
            (k.inode_mode, record::FILE_MODE, 2),
            (k.inode_uid, record::FILE_UID, 4),
            (k.inode_gid, record::FILE_GID, 4),
            (k.inode_size, record::FILE_SIZE, 8),
            (k.inode_ctime, record::FILE_CTIME, 8),
            (k.inode_ctime_nsec, record::FILE_CTIME_NSEC, 4),
            (k.inode_links, record::FILE_LINKS, 4),
        ];
        self.follow(FILE, k.file_inode, INODE);
        let full = self.asm.label();
        self.room(full);
        // The content is made in place; what cannot be read stays 0.
        for i in 0..record::FILE_LEN / 8 {
            self.asm.store_imm(Size::B8, R1, 8 * i, 0);
        }
        self.follow(INODE, k.inode_sb, PARENT);
        for (from, to) in [(k.super_magic, record::FILE_MAGIC), (k.super_dev, record::FILE_DEVICE)] {
            self.follow(PARENT, from, WORD);
            let a = &mut self.asm;
            a.mov_reg(R1, R7);
            a.op_reg(Op::Add, R1, R8);
            a.load(Size::B8, R2, R10, WORD);
            a.store(Size::B4, R1, 8 + to, R2);
        }
        for (from, to, size) in fields {
            self.member_of(INODE, from, to, size);
        }
        self.asm.mov(R0, record::FILE_LEN.into());
        self.close_item(tag);
        self.asm.here(full);
        self.follow(FILE, k.file_path + k.path_dentry, DENTRY);
        self.follow(FILE, k.file_path + k.path_mount, MOUNT);
        self.path(tag + tag::PATH);
    }

    /// Copies `size` bytes at `from` in what the stack points to at `base` to byte `to` of the item at `R8`.
    fn member_of(&mut self, base: i16, from: i16, to: i16, size: i32) {
        let a = &mut self.asm;
        a.mov_reg(R1, R7);
        a.op_reg(Op::Add, R1, R8);
        a.op(Op::Add, R1, i32::from(8 + to));
        a.mov(R2, size);
        a.load(Size::B8, R3, R10, base);
        a.op(Op::Add, R3, from.into());
        a.call(Helper::ProbeReadKernel);
    }

    /// Tells the addresses of the `struct file` at [`FILE`], if there is one and it is a socket.
    pub fn socket(&mut self, tag: u16) {
        let k = self.kernel;
        let none = self.asm.label();
        self.asm.load(Size::B8, R1, R10, FILE);
        self.asm.jump_if(Cond::Eq, R1, 0, none);
        self.follow(FILE, k.file_inode, INODE);
        self.follow(INODE, k.inode_sb, WORD);
        self.follow(WORD, k.super_magic, WORD);
        self.asm.load(Size::B8, R1, R10, WORD);
        self.asm.jump_if(Cond::Ne, R1, SOCKFS as i32, none);
        self.follow(FILE, k.file_private, WORD);
        self.follow(WORD, k.socket_sock, PARENT);
        self.room(none);
        for i in 0..record::SOCKET_LEN / 8 {
            self.asm.store_imm(Size::B8, R1, 8 * i, 0);
        }
        self.member_of(PARENT, k.sock_family, record::SOCKET_FAMILY, 2);
        self.member_of(PARENT, k.sock_local_port, record::SOCKET_LOCAL_PORT, 2);
        self.member_of(PARENT, k.sock_remote_port, record::SOCKET_REMOTE_PORT, 2);
        self.member_of(PARENT, k.sock_local, record::SOCKET_LOCAL_V4, 4);
        self.member_of(PARENT, k.sock_remote, record::SOCKET_REMOTE_V4, 4);
        if let Some((local, remote)) = k.sock_v6 {
            self.member_of(PARENT, local, record::SOCKET_LOCAL_V6, 16);
            self.member_of(PARENT, remote, record::SOCKET_REMOTE_V6, 16);
        }
        self.asm.mov(R0, record::SOCKET_LEN.into());
        self.close_item(tag + tag::SOCKET);
        self.asm.here(none);
    }

    /// Describes the file behind the descriptor number in `R8`: nothing for a negative number, an item without content if
    /// there is no such descriptor.
    pub fn descriptor(&mut self, tag: u16) {
        let k = self.kernel;
        let (missing, end) = (self.asm.label(), self.asm.label());
        let a = &mut self.asm;
        // An int, whatever the upper half of the register has.
        a.op(Op::Lsh, R8, 32);
        a.op(Op::Rsh, R8, 32);
        a.jump_if(Cond::Gt, R8, i32::MAX, end);
        a.load(Size::B8, R1, R9, k.task_files);
        a.load(Size::B8, R1, R1, k.files_table);
        a.load(Size::B4, R2, R1, k.table_max);
        a.jump_if_reg(Cond::Ge, R8, R2, missing);
        a.load(Size::B8, R3, R1, k.table_fd);
        a.op(Op::Lsh, R8, 3);
        a.op_reg(Op::Add, R3, R8);
        self.peek(FILE, 8);
        let a = &mut self.asm;
        a.load(Size::B8, R1, R10, FILE);
        a.jump_if(Cond::Eq, R1, 0, missing);
        self.file(tag);
        self.asm.jump(end);
        self.asm.here(missing);
        self.mark(tag);
        self.asm.here(end);
    }
}
