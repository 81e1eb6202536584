//! Descriptors and what they refer to.
#![forbid(unsafe_code)]

use super::{Bytes, Id, SocketState};
use serde::{Deserialize, Serialize};

/// A descriptor table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FdTable {
    /// Descriptors, by number.
    pub fds: Vec<FdEntry>,
}

/// A descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FdEntry {
    /// Number.
    pub fd: i32,
    /// FD_CLOEXEC.
    pub cloexec: bool,
    /// Open file description.
    pub file: Id,
}

/// Current directory, root and umask of threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FsState {
    /// Current directory as the container sees it; "(deleted)" ones are refused or made anew and removed.
    pub cwd: String,
    /// Root directory as the container sees it; `/` unless it did chroot(2).
    pub root: String,
    /// umask(2).
    pub umask: u32,
    /// cwd no longer exists.
    pub cwd_deleted: bool,
}

/// An open file description.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileState {
    /// What it is.
    pub kind: FileKind,
    /// F_GETFL.
    pub flags: i32,
    /// File offset, where it has one.
    pub pos: i64,
    /// F_GETOWN_EX: type (0 tid, 1 pid, 2 pgrp) and id; F_GETSIG.
    pub owner: Option<(i32, i32, i32)>,
    /// Locks held through it.
    pub locks: Vec<FileLock>,
    /// Container in whose mount namespace its path is.
    pub container: Id,
}

/// What an open file description is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Nothing: never in a valid image.
    #[default]
    None,
    /// Came from outside and is given anew at restore: a standard stream of a container (0, 1, 2), or its console.
    External {
        /// Container ID index.
        container: Id,
        /// Its number in the container's init at the start: 0, 1, 2, or that of a passed descriptor.
        stream: i32,
        /// Not the description that came from outside, but one that was opened anew from it (`/dev/tty`,
        /// `/dev/stdout`, `/proc/self/fd/1`).
        #[serde(default)]
        reopened: bool,
        /// Terminal settings, if it is one.
        tty: Option<TtyState>,
    },
    /// A regular file, directory, symlink (O_PATH) or device node by path.
    Path(PathFile),
    /// A FIFO by path.
    Fifo {
        /// Where it is.
        file: PathFile,
        /// Number that all who opened it share.
        pipe: u64,
        /// F_GETPIPE_SZ.
        size: u32,
        /// Unread data (at one of the openings only).
        data: Bytes,
        /// Packet boundaries, if it was opened with O_DIRECT: lengths.
        #[serde(default)]
        packets: Vec<u32>,
        /// Its path no longer leads to it.
        #[serde(default)]
        deleted: bool,
    },
    /// A deleted file, made anew from its contents (kept in `shmems`/page index or, when small, here) and removed again.
    Deleted {
        /// What it is: mode, path it had.
        file: PathFile,
        /// Contents, for small files.
        content: Option<Bytes>,
        /// Contents in the page index under this object.
        shmem: Option<Id>,
        /// It still has another name: the path of that.
        link: Option<String>,
    },
    /// memfd_create(2).
    Memfd(Id),
    /// One end of a pipe.
    Pipe {
        /// Which pipe: number that both ends share.
        pipe: u64,
        /// Write end.
        write: bool,
        /// F_GETPIPE_SZ.
        size: u32,
        /// Unread data (at one of the ends only).
        data: Bytes,
        /// Packet boundaries of an O_DIRECT pipe: lengths.
        packets: Vec<u32>,
        /// Owner: who may open it anew through `/proc/self/fd`.
        #[serde(default)]
        owner: (u32, u32),
    },
    /// eventfd(2).
    Eventfd {
        /// Counter.
        count: u64,
        /// EFD_SEMAPHORE.
        semaphore: bool,
    },
    /// timerfd_create(2).
    Timerfd {
        /// Clock ID.
        clock: i32,
        /// TFD_TIMER_* as set.
        settime_flags: u32,
        /// Unread expirations.
        ticks: u64,
        /// Time to the next expiry, nanoseconds; 0: disarmed.
        remaining_ns: u64,
        /// Interval, nanoseconds.
        interval_ns: u64,
        /// Set to an absolute time of a clock that shows the time of day (TFD_TIMER_ABSTIME): when it expires,
        /// nanoseconds since the epoch.
        #[serde(default)]
        expires_ns: Option<u64>,
    },
    /// signalfd(2).
    Signalfd {
        /// Signals it delivers.
        mask: u64,
    },
    /// epoll_create(2).
    Epoll {
        /// What it watches.
        targets: Vec<EpollTarget>,
    },
    /// inotify_init(2).
    Inotify {
        /// Watches: (descriptor number, path, mask). `#n` for a path: open file n of the image, which has none.
        watches: Vec<(i32, String, u32)>,
        /// Bytes of events that were not read; they are lost.
        #[serde(default)]
        unread: u32,
    },
    /// fanotify_init(2).
    Fanotify {
        /// fanotify_init flags and event_f_flags.
        flags: (u32, u32),
        /// Marks: (path, flags, mask, ignored mask).
        marks: Vec<(String, u32, u64, u64)>,
    },
    /// pidfd_open(2) of a process of the same pid namespace.
    Pidfd {
        /// Its pid in the container (its thread id, for a single thread); 0: it has ended and was reaped.
        pid: i32,
        /// PIDFD_THREAD.
        thread: bool,
    },
    /// A namespace file.
    Namespace {
        /// `net`, `mnt`, …
        kind: String,
        /// A process of the container that is in it.
        pid: i32,
    },
    /// A pseudo terminal of the container's own devpts.
    Pty {
        /// Index.
        index: u32,
        /// Master side.
        master: bool,
        /// Settings (kept with the master).
        tty: TtyState,
        /// Packet mode, lock (TIOCSPTLCK).
        packet: bool,
        /// Locked slave.
        locked: bool,
        /// What waits to be read at the other end: what was written to the master, for the slave to read (kept with
        /// a slave), or the other way round (kept with the master).
        input: Bytes,
        /// Its master has been closed: reads and writes fail.
        #[serde(default)]
        hung_up: bool,
        /// The slave had been opened and is not open any more (master only).
        #[serde(default)]
        slave_closed: bool,
        /// Mode of the slave's node.
        #[serde(default)]
        mode: u32,
        /// Owner of the slave's node.
        #[serde(default)]
        owner: (u32, u32),
    },
    /// `/dev/tty` opened: the controlling terminal.
    ControllingTty {
        /// Index of the pty of the container that it stands for; none: the container's console.
        index: Option<u32>,
    },
    /// A socket.
    Socket(SocketState),
    /// bpf, perf and other objects are refused; what is left without state is made anew by name (userfaultfd, landlock…).
    Anon {
        /// As in `/proc/pid/fd`: `[name]`.
        name: String,
    },
    /// POSIX message queue opened by name.
    Mqueue {
        /// Name with its slash.
        name: String,
    },
}

/// A file by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathFile {
    /// Path as the container sees it.
    pub path: String,
    /// st_mode.
    pub mode: u32,
    /// st_size, for checks.
    pub size: u64,
    /// st_mtime nanoseconds since the epoch, for checks of mapped programs and libraries.
    pub mtime_ns: i64,
    /// GNU build-id of an ELF file that is mapped, hexadecimal; empty: none.
    pub build_id: String,
    /// st_rdev of a device node.
    pub rdev: u64,
    /// Owner.
    pub owner: (u32, u32),
    /// st_dev and st_ino at the dump.
    pub identity: (u64, u64),
}

/// A lock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileLock {
    /// `flock`, `posix`, `ofd` or `lease`.
    pub kind: String,
    /// F_RDLCK 0, F_WRLCK 1.
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Bytes; 0: to the end.
    pub len: u64,
    /// Pid of the holder in the container (posix locks).
    pub pid: i32,
}

/// What an epoll instance watches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EpollTarget {
    /// Descriptor number it was added under.
    pub fd: i32,
    /// Open file description; it need not be under that number any more.
    pub file: Id,
    /// EPOLL*.
    pub events: u32,
    /// `epoll_event.data`.
    pub data: u64,
}

/// Settings of a terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TtyState {
    /// `struct termios` (TCGETS2) bytes.
    pub termios: Bytes,
    /// TIOCGLCKTRMIOS bytes.
    pub locked_termios: Bytes,
    /// Rows, columns, x pixels, y pixels.
    pub winsize: (u16, u16, u16, u16),
    /// Session it controls (in the container), 0: none.
    pub sid: i32,
    /// Foreground process group, 0: none.
    pub pgrp: i32,
    /// TIOCGEXCL.
    pub exclusive: bool,
}
