//! System V IPC (sysvipc(7)) and POSIX message queues (mq_overview(7)), by the calling thread's IPC namespace.
//!
//! Thin: each function is one system call, and errors are the kernel's. Nothing here blocks.

use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

type Result<T> = std::result::Result<T, Errno>;

const IPC_RMID: i32 = 0;
const IPC_SET: i32 = 1;
const IPC_STAT: i32 = 2;

/// Bit of a segment's mode: it goes when nobody has it attached any more.
pub const SHM_DEST: u32 = 0o1000;
/// Bit of a segment's mode: it is not swapped.
pub const SHM_LOCKED: u32 = 0o2000;
/// Flag of [`shm_make`]: made of huge pages.
pub const SHM_HUGETLB: i32 = 0o4000;

/// A kind of object: numbers of its system calls and commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Shared memory.
    Segment,
    /// Semaphore sets.
    Semaphores,
    /// Message queues.
    Queue,
}

/// What the kernel says of an object. Fields that its kind has not are 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Object {
    /// Its id.
    pub id: i32,
    /// Its key.
    pub key: i32,
    /// Owner.
    pub owner: (u32, u32),
    /// Creator.
    pub creator: (u32, u32),
    /// Permissions, and for segments `SHM_*`.
    pub mode: u32,
    /// Bytes of a segment, number of semaphores of a set, messages in a queue.
    pub size: u64,
    /// Bytes in a queue.
    pub bytes: u64,
    /// Bytes that a queue may hold.
    pub max_bytes: u64,
}

/// `struct shmid64_ds` and its like: longer than any.
type Record = [u8; 256];

impl Kind {
    fn call(self) -> i64 {
        match self {
            Self::Segment => libc::SYS_shmctl,
            Self::Semaphores => libc::SYS_semctl,
            Self::Queue => libc::SYS_msgctl,
        }
    }

    /// Commands that answer the highest index in use, and the record at an index.
    fn listing(self) -> (i32, i32) {
        match self {
            Self::Segment => (14, 15),    // SHM_INFO, SHM_STAT_ANY
            Self::Semaphores => (19, 20), // SEM_INFO, SEM_STAT_ANY
            Self::Queue => (12, 13),      // MSG_INFO, MSG_STAT_ANY
        }
    }

    fn control(self, id: i32, command: i32, record: &mut Record) -> Result<i32> {
        // SAFETY: the kernel reads or writes no more than the record of the kind, which is shorter than `record`;
        // semctl(2) has the index of a semaphore before it.
        Errno::result(unsafe {
            match self {
                Self::Semaphores => libc::syscall(self.call(), id, 0, command, record.as_mut_ptr()),
                _ => libc::syscall(self.call(), id, command, record.as_mut_ptr()),
            }
        })
        .map(|n| n as i32)
    }

    fn read(self, id: i32, record: &Record) -> Object {
        let word =
            |at: usize| u32::from_ne_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let mut object = Object {
            id,
            key: word(0) as i32,
            owner: (word(4), word(8)),
            creator: (word(12), word(16)),
            mode: word(20),
            ..Object::default()
        };
        // Behind `struct ipc64_perm` of 48 bytes.
        match self {
            Self::Segment => object.size = long(48),
            // x86-64 keeps room beside each time.
            Self::Semaphores => object.size = long(if cfg!(target_arch = "x86_64") { 80 } else { 64 }),
            Self::Queue => (object.bytes, object.size, object.max_bytes) = (long(72), long(80), long(88)),
        }
        object
    }

    /// All objects of the kind.
    ///
    /// # Errors
    /// `ENOSYS` without System V IPC; `EINVAL` before Linux 4.17.
    pub fn list(self) -> Result<Vec<Object>> {
        let (info, stat) = self.listing();
        let mut record = [0; 256];
        let highest = self.control(0, info, &mut record)?;
        let mut all = Vec::new();
        for index in 0..=highest {
            match self.control(index, stat, &mut record) {
                Ok(id) => all.push(self.read(id, &record)),
                // Nothing at this index.
                Err(Errno::EINVAL | Errno::EIDRM) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// What the kernel says of one object.
    ///
    /// # Errors
    /// `EINVAL`: there is no such object.
    pub fn stat(self, id: i32) -> Result<Object> {
        let mut record = [0; 256];
        self.control(id, IPC_STAT, &mut record)?;
        Ok(self.read(id, &record))
    }

    /// Sets owner, permissions and, of a queue, how many bytes it may hold.
    ///
    /// # Errors
    /// `EPERM`; `EINVAL`.
    pub fn set(self, object: &Object) -> Result<()> {
        let mut record = [0; 256];
        self.control(object.id, IPC_STAT, &mut record)?;
        record[4..8].copy_from_slice(&object.owner.0.to_ne_bytes());
        record[8..12].copy_from_slice(&object.owner.1.to_ne_bytes());
        record[20..24].copy_from_slice(&(object.mode & 0o777).to_ne_bytes());
        if self == Self::Queue {
            record[88..96].copy_from_slice(&object.max_bytes.to_ne_bytes());
        }
        self.control(object.id, IPC_SET, &mut record).map(drop)
    }

    /// Removes an object; a segment goes when nobody has it attached any more.
    ///
    /// # Errors
    /// `EINVAL`, `EPERM`.
    pub fn remove(self, id: i32) -> Result<()> {
        self.control(id, IPC_RMID, &mut [0; 256]).map(drop)
    }
}

/// Makes a segment of `size` bytes; `flags` are its mode and `SHM_*`. Answers its id.
///
/// # Errors
/// `EEXIST`: there is one with that key; `EINVAL`, `ENOSPC`, `ENOMEM`, `EPERM` (huge pages).
pub fn shm_make(key: i32, size: u64, flags: i32) -> Result<i32> {
    let flags = flags | libc::IPC_CREAT | libc::IPC_EXCL;
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::shmget(key, size as usize, flags) })
}

/// Locks a segment into memory.
///
/// # Errors
/// `EPERM`, `ENOMEM`.
pub fn shm_lock(id: i32) -> Result<()> {
    const SHM_LOCK: i32 = 11;
    Kind::Segment.control(id, SHM_LOCK, &mut [0; 256]).map(drop)
}

/// A segment, attached somewhere in this process for as long as this lives.
#[derive(Debug)]
pub struct Attached {
    address: usize,
    size: usize,
}

impl Attached {
    /// Attaches segment `id` of `size` bytes.
    ///
    /// # Errors
    /// `EACCES`, `EINVAL`, `ENOMEM`.
    pub fn new(id: i32, size: u64) -> Result<Self> {
        // SAFETY: a null address has the kernel choose one that nothing is mapped at.
        let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        if at as isize == -1 {
            return Err(Errno::last());
        }
        Ok(Self { address: at as usize, size: size as usize })
    }

    /// First address, and the one after the last.
    pub fn range(&self) -> (usize, usize) {
        // SAFETY: sysconf(3) has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        (self.address, self.address + self.size.next_multiple_of(page))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the memory; this type gives out numbers only.
        unsafe { libc::shmdt(self.address as *const libc::c_void) };
    }
}

/// Makes a set of `count` semaphores; `flags` are its mode.
///
/// # Errors
/// `EEXIST`, `EINVAL`, `ENOSPC`.
pub fn sem_make(key: i32, count: i32, flags: i32) -> Result<i32> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::semget(key, count, flags | libc::IPC_CREAT | libc::IPC_EXCL) })
}

/// Values of all `count` semaphores of a set.
///
/// # Errors
/// `EINVAL`, `EACCES`.
pub fn sem_values(id: i32, count: usize) -> Result<Vec<u16>> {
    const GETALL: i32 = 13;
    let now = Kind::Semaphores.stat(id)?.size;
    if now != count as u64 {
        return Err(Errno::EINVAL);
    }
    let mut values = vec![0u16; count];
    // SAFETY: a set keeps its number of semaphores, and `values` has room for as many.
    Errno::result(unsafe { libc::syscall(libc::SYS_semctl, id, 0, GETALL, values.as_mut_ptr()) })?;
    Ok(values)
}

/// Sets all semaphores of a set.
///
/// # Errors
/// `EINVAL`: `values` is not as long as the set; `ERANGE`.
pub fn sem_set_values(id: i32, values: &[u16]) -> Result<()> {
    const SETALL: i32 = 17;
    if Kind::Semaphores.stat(id)?.size != values.len() as u64 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the kernel reads as many values as the set has, which is the length of `values`.
    Errno::result(unsafe { libc::syscall(libc::SYS_semctl, id, 0, SETALL, values.as_ptr()) }).map(drop)
}

/// Adds `change` to semaphore `number` of a set, without undo and without waiting.
///
/// # Errors
/// `EAGAIN`: it would become negative; `ERANGE`: too large.
pub fn sem_change(id: i32, number: u16, change: i16) -> Result<()> {
    let mut operation = libc::sembuf { sem_num: number, sem_op: change, sem_flg: libc::IPC_NOWAIT as i16 };
    // SAFETY: one operation is passed.
    Errno::result(unsafe { libc::semop(id, &raw mut operation, 1) }).map(drop)
}

/// Makes a message queue; `flags` are its mode.
///
/// # Errors
/// `EEXIST`, `ENOSPC`.
pub fn msg_make(key: i32, flags: i32) -> Result<i32> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::msgget(key, flags | libc::IPC_CREAT | libc::IPC_EXCL) })
}

/// Type and data of message number `index` of a queue, which stays there. `longest` is how long it may be.
///
/// # Errors
/// `ENOMSG`: there are fewer; `ENOSYS`: the kernel cannot (CONFIG_CHECKPOINT_RESTORE).
pub fn msg_peek(id: i32, index: i64, longest: usize) -> Result<(i64, Vec<u8>)> {
    const MSG_COPY: i32 = 0o40000;
    let mut buffer = vec![0u8; 8 + longest];
    // SAFETY: the buffer has room for the type and `longest` bytes of data.
    let len = Errno::result(unsafe {
        libc::msgrcv(id, buffer.as_mut_ptr().cast(), longest, index, MSG_COPY | libc::IPC_NOWAIT)
    })? as usize;
    let mut kind = [0; 8];
    kind.copy_from_slice(&buffer[..8]);
    Ok((i64::from_ne_bytes(kind), buffer[8..8 + len.min(longest)].to_vec()))
}

/// Appends a message to a queue, without waiting.
///
/// # Errors
/// `EAGAIN`: it is full; `EINVAL`: `kind` is not positive, or too long.
pub fn msg_send(id: i32, kind: i64, data: &[u8]) -> Result<()> {
    let mut buffer = kind.to_ne_bytes().to_vec();
    buffer.extend(data);
    // SAFETY: the buffer holds the type and as many bytes of data as the length says.
    Errno::result(unsafe { libc::msgsnd(id, buffer.as_ptr().cast(), data.len(), libc::IPC_NOWAIT) }).map(drop)
}

/// Runs `work` with this thread's effective user and group being `user` and `group`.
///
/// # Errors
/// `EPERM`.
pub fn as_user<T>(user: u32, group: u32, work: impl FnOnce() -> T) -> Result<T> {
    const SAME: u32 = u32::MAX;
    // The raw calls concern the calling thread alone, unlike libc's.
    let set = |call: i64, id: u32| {
        // SAFETY: no pointers.
        Errno::result(unsafe { libc::syscall(call, SAME, id, SAME) }).map(drop)
    };
    // SAFETY: these cannot fail.
    let before = unsafe { (libc::geteuid(), libc::getegid()) };
    set(libc::SYS_setresgid, group)?;
    let done = set(libc::SYS_setresuid, user).map(|()| work());
    set(libc::SYS_setresuid, before.0)?;
    set(libc::SYS_setresgid, before.1)?;
    done
}

/// `struct mq_attr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueAttributes {
    /// Messages it may hold.
    pub max_messages: i64,
    /// Longest message, bytes.
    pub message_size: i64,
    /// Messages it holds.
    pub messages: i64,
}

type RawAttributes = [i64; 8];

/// What a POSIX message queue is like.
///
/// # Errors
/// `EBADF`: it is none.
pub fn mq_attributes(queue: BorrowedFd<'_>) -> Result<QueueAttributes> {
    let mut raw: RawAttributes = [0; 8];
    // SAFETY: `raw` has the size of `struct mq_attr`; nothing is set.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), std::ptr::null::<i64>(), raw.as_mut_ptr())
    })?;
    Ok(QueueAttributes { max_messages: raw[1], message_size: raw[2], messages: raw[3] })
}

/// Makes a POSIX message queue, `name` without a slash; it does not block and is close-on-exec.
///
/// # Errors
/// `EEXIST`; `EINVAL`: beyond the limits of the namespace; `EMFILE`: beyond RLIMIT_MSGQUEUE.
pub fn mq_make(name: &CStr, mode: u32, attributes: QueueAttributes) -> Result<OwnedFd> {
    let raw: RawAttributes = [0, attributes.max_messages, attributes.message_size, 0, 0, 0, 0, 0];
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: `name` is a C string, and `raw` has the size of `struct mq_attr`.
    let fd =
        Errno::result(unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, mode, raw.as_ptr()) })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes the oldest of the messages with the highest priority: priority and data. The queue must not block.
///
/// # Errors
/// `EAGAIN`: it is empty; `EMSGSIZE`: `longest` is less than its message size.
pub fn mq_receive(queue: BorrowedFd<'_>, longest: usize) -> Result<(u32, Vec<u8>)> {
    let mut buffer = vec![0u8; longest];
    let mut priority = 0u32;
    // SAFETY: `buffer` is writable for the length that is passed; no time-out is passed.
    let len = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mq_timedreceive,
            queue.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut priority,
            std::ptr::null::<libc::timespec>(),
        )
    })?;
    buffer.truncate(len as usize);
    Ok((priority, buffer))
}

/// Puts a message into a queue that does not block.
///
/// # Errors
/// `EAGAIN`: it is full; `EMSGSIZE`, `EINVAL`.
pub fn mq_send(queue: BorrowedFd<'_>, priority: u32, data: &[u8]) -> Result<()> {
    // SAFETY: `data` is readable for the length that is passed; no time-out is passed.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mq_timedsend,
            queue.as_raw_fd(),
            data.as_ptr(),
            data.len(),
            priority,
            std::ptr::null::<libc::timespec>(),
        )
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::paths::testing::{in_namespace, root_or_skip};
    use std::os::fd::AsFd;

    #[test]
    fn objects_are_listed_as_they_were_made() {
        if !root_or_skip("objects_are_listed_as_they_were_made") {
            return;
        }
        in_namespace(|| {
            assert_eq!(Kind::Segment.list(), Ok(vec![]));
            let shm = as_user(5, 6, || shm_make(0x51, 5000, 0o640)).unwrap().unwrap();
            let sem = sem_make(0x52, 3, 0o600).unwrap();
            let msg = msg_make(0x53, 0o622).unwrap();
            sem_set_values(sem, &[1, 20, 300]).unwrap();
            sem_change(sem, 1, -3).unwrap();
            assert_eq!(sem_change(sem, 0, -3), Err(Errno::EAGAIN));
            msg_send(msg, 7, b"first").unwrap();
            msg_send(msg, 8, b"").unwrap();
            let segment = Object {
                id: shm,
                key: 0x51,
                owner: (5, 6),
                creator: (5, 6),
                mode: 0o640,
                size: 5000,
                ..Object::default()
            };
            assert_eq!(Kind::Segment.list().unwrap(), [segment]);
            let sets = Kind::Semaphores.list().unwrap();
            assert_eq!((sets[0].id, sets[0].key, sets[0].size), (sem, 0x52, 3));
            assert_eq!(sem_values(sem, 3).unwrap(), [1, 17, 300]);
            assert_eq!(sem_values(sem, 4), Err(Errno::EINVAL));
            let queues = Kind::Queue.list().unwrap();
            assert_eq!((queues[0].id, queues[0].size, queues[0].bytes, queues[0].mode), (msg, 2, 5, 0o622));
            for _ in 0..2 {
                assert_eq!(msg_peek(msg, 0, 5).unwrap(), (7, b"first".to_vec()));
                assert_eq!(msg_peek(msg, 1, 5).unwrap(), (8, vec![]));
            }
            assert_eq!(msg_peek(msg, 2, 5), Err(Errno::ENOMSG));
            Kind::Queue
                .set(&Object { id: msg, owner: (9, 8), mode: 0o600, max_bytes: 77, ..queues[0] })
                .unwrap();
            let set = Kind::Queue.stat(msg).unwrap();
            assert_eq!((set.owner, set.creator, set.mode, set.max_bytes), ((9, 8), (0, 0), 0o600, 77));
            let attached = Attached::new(shm, 5000).unwrap();
            let (start, end) = attached.range();
            assert_eq!(end - start, 8192);
            for (kind, id) in [(Kind::Segment, shm), (Kind::Semaphores, sem), (Kind::Queue, msg)] {
                kind.remove(id).unwrap();
            }
            assert_eq!(Kind::Segment.list().unwrap()[0].mode & SHM_DEST, SHM_DEST);
            drop(attached);
            assert_eq!(Kind::Segment.list(), Ok(vec![]));
        });
    }

    #[test]
    fn posix_queues_hold_messages_by_priority() {
        if !root_or_skip("posix_queues_hold_messages_by_priority") {
            return;
        }
        in_namespace(|| {
            let attributes = QueueAttributes { max_messages: 3, message_size: 10, messages: 0 };
            let queue = mq_make(c"queue", 0o600, attributes).unwrap();
            let queue = queue.as_fd();
            mq_send(queue, 1, b"low").unwrap();
            mq_send(queue, 9, b"high").unwrap();
            mq_send(queue, 1, b"").unwrap();
            assert_eq!(mq_send(queue, 1, b"x"), Err(Errno::EAGAIN));
            assert_eq!(mq_attributes(queue), Ok(QueueAttributes { messages: 3, ..attributes }));
            let all: Vec<_> = (0..3).map(|_| mq_receive(queue, 10).unwrap()).collect();
            assert_eq!(all, [(9, b"high".to_vec()), (1, b"low".to_vec()), (1, vec![])]);
            assert_eq!(mq_receive(queue, 10), Err(Errno::EAGAIN));
        });
    }
}
