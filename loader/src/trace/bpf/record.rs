//! What the programs put into the ring: a head of fixed fields, then items. Native byte order; only this build reads it.
#![forbid(unsafe_code)]

/// Which event: a [`Kind`] (u32).
pub const KIND: i16 = 0;
/// Number of the container (u32).
pub const CONTAINER: i16 = 4;
/// Nanoseconds since boot (u64).
pub const TIME: i16 = 8;
/// Thread in the sandbox's pid namespace (u32).
pub const TID: i16 = 16;
/// Its process (u32).
pub const TGID: i16 = 20;
/// When the thread was made, nanoseconds since boot (u64).
pub const THREAD_START: i16 = 24;
/// When the process was made (u64).
pub const GROUP_START: i16 = 32;
/// Parent process (u32).
pub const PARENT: i16 = 40;
/// The process' ancestor that the spawner forked, 0 for none (u32).
pub const ANCESTOR: i16 = 44;
/// Real, saved, effective user and group (u32 each: uid, gid, suid, sgid, euid, egid).
pub const CREDENTIALS: i16 = 48;
/// Name of the thread (16 bytes).
pub const NAME: i16 = 72;
/// What depends on the kind (u64 each).
pub const ARGS: i16 = 88;
/// Number of [`ARGS`].
pub const ARG_COUNT: usize = 11;
/// Bytes used so far (u32), then nothing (u32).
pub const LENGTH: i16 = 176;
/// Where items begin.
pub const HEAD: i16 = 184;

/// Longest text that is taken.
pub const MAX_TEXT: i32 = 4096;
/// A record that is longer than this takes no further item.
pub const FULL: i32 = 28_000;
/// Room for one record.
pub const ROOM: u32 = 32_768;
/// Most parts of a path.
pub const MAX_PARTS: usize = 32;
/// Most arguments of execve(2) that are taken, and as many environment variables.
pub const MAX_ARGV: usize = 32;

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A thread was made. Arguments: thread, process, start (nanoseconds since boot), flags of clone(2).
    Clone = 1,
    /// A program was executed. Arguments as [`FILE`](tag::FILE), then those of the file.
    Exec = 2,
    /// A thread ends. Arguments: exit code, threads of the process that live on, flags and exit code of the group.
    Exit = 3,
    /// A call begins. Arguments: number, six arguments.
    Enter = 4,
    /// A call ends. Arguments: number, six arguments, result.
    Leave = 5,
}

impl Kind {
    /// From its number.
    pub fn from_number(n: u32) -> Option<Self> {
        [Self::Clone, Self::Exec, Self::Exit, Self::Enter, Self::Leave].into_iter().find(|k| *k as u32 == n)
    }
}

/// Items: a tag (u16), a length (u16), a word that depends on the tag (u32), the content, and room up to the next multiple
/// of 8.
pub mod tag {
    /// Parts of a path, the last first. A part without content ends a path that is complete.
    pub const CWD: u16 = 1;
    /// Describes a file: see `FILE_*` in the parent module. The path of item `n` has the tag `n + PATH`.
    pub const FILE: u16 = 2;
    /// File behind the descriptor that a call was given.
    pub const FD: u16 = 3;
    /// Standard input, output, error (three tags).
    pub const STDIO: u16 = 4;
    /// The name that execve(2) was given.
    pub const FILENAME: u16 = 7;
    /// Arguments of a new program, a zero behind each.
    pub const ARGV: u16 = 8;
    /// Its environment, likewise.
    pub const ENVIRON: u16 = 9;
    /// What a call's arguments point to: this plus the number of the capture.
    pub const CAPTURE: u16 = 16;
    /// See [`FILE`].
    pub const PATH: u16 = 64;
    /// Addresses of a socket: see `SOCKET_*` in the parent module. That of file `n` has the tag `n + SOCKET`.
    pub const SOCKET: u16 = 128;
}

/// Inode number (u64) of a file item.
pub const FILE_INODE: i16 = 0;
/// `st_mode` (u32).
pub const FILE_MODE: i16 = 8;
/// Magic number of the file system (u32).
pub const FILE_MAGIC: i16 = 12;
/// Owner (u32).
pub const FILE_UID: i16 = 16;
/// Group (u32).
pub const FILE_GID: i16 = 20;
/// Size (i64).
pub const FILE_SIZE: i16 = 24;
/// Last change of the inode, seconds (i64).
pub const FILE_CTIME: i16 = 32;
/// And nanoseconds (u32).
pub const FILE_CTIME_NSEC: i16 = 40;
/// Number of links (u32).
pub const FILE_LINKS: i16 = 44;
/// Device of the file system (u32: major << 20 | minor), then nothing (u32).
pub const FILE_DEVICE: i16 = 48;
/// Length of a file item.
pub const FILE_LEN: i16 = 56;

/// Family of a socket item (u16).
pub const SOCKET_FAMILY: i16 = 0;
/// Its own port (u16, in the machine's order).
pub const SOCKET_LOCAL_PORT: i16 = 2;
/// The peer's port (u16, the highest byte first).
pub const SOCKET_REMOTE_PORT: i16 = 4;
/// Own IPv4 address (4 bytes).
pub const SOCKET_LOCAL_V4: i16 = 8;
/// The peer's.
pub const SOCKET_REMOTE_V4: i16 = 12;
/// Own IPv6 address (16 bytes).
pub const SOCKET_LOCAL_V6: i16 = 16;
/// The peer's.
pub const SOCKET_REMOTE_V6: i16 = 32;
/// Length of a socket item.
pub const SOCKET_LEN: i16 = 48;
