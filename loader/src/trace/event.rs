//! Records of the programs, read.
#![forbid(unsafe_code)]

use super::bpf::record::{self, Kind, tag};

/// A record. Times are nanoseconds since boot, pids those of the sandbox's pid namespace.
#[derive(Debug)]
pub struct Event<'a> {
    /// What happened.
    pub kind: Kind,
    /// Number of the container.
    pub container: u32,
    /// When.
    pub time: u64,
    /// To which thread.
    pub tid: i32,
    /// Its process.
    pub tgid: i32,
    /// When the thread was made.
    pub thread_start: u64,
    /// When the process was made.
    pub group_start: u64,
    /// The parent process.
    pub parent: i32,
    /// The process' ancestor that the spawner forked.
    pub ancestor: i32,
    /// uid, gid, suid, sgid, euid, egid.
    pub credentials: [u32; 6],
    /// Name of the thread.
    pub name: &'a [u8],
    /// What depends on the kind.
    pub args: [u64; record::ARG_COUNT],
    items: &'a [u8],
}

/// A file, as an item describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct File {
    /// Inode number.
    pub inode: u64,
    /// `st_mode`.
    pub mode: u32,
    /// Magic number of the file system.
    pub magic: u32,
    /// Device of the file system, as the kernel numbers it.
    pub device: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: i64,
    /// Last change of the inode.
    pub ctime: (i64, u32),
    /// Links to it.
    pub links: u32,
}

/// Magic number of the file system of pipes (linux/magic.h).
pub const PIPEFS: u32 = 0x5049_5045;
/// And of sockets.
pub const SOCKFS: u32 = 0x534f_434b;

/// A socket, as an item describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// `AF_*`
    pub family: u16,
    /// Own address and port, if it is of the internet.
    pub local: Option<(Vec<u8>, u16)>,
    /// The peer's; zeros while there is none.
    pub remote: Option<(Vec<u8>, u16)>,
}

fn u16_at(bytes: &[u8], at: i16) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at as usize..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: i16) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at as usize..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: i16) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at as usize..)?.first_chunk()?))
}

impl<'a> Event<'a> {
    /// Reads a record; `None` if it is none.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut args = [0; record::ARG_COUNT];
        for (n, arg) in (0..).zip(&mut args) {
            *arg = u64_at(bytes, record::ARGS + 8 * n)?;
        }
        let mut credentials = [0; 6];
        for (n, id) in (0..).zip(&mut credentials) {
            *id = u32_at(bytes, record::CREDENTIALS + 4 * n)?;
        }
        Some(Self {
            kind: Kind::from_number(u32_at(bytes, record::KIND)?)?,
            container: u32_at(bytes, record::CONTAINER)?,
            time: u64_at(bytes, record::TIME)?,
            tid: u32_at(bytes, record::TID)? as i32,
            tgid: u32_at(bytes, record::TGID)? as i32,
            thread_start: u64_at(bytes, record::THREAD_START)?,
            group_start: u64_at(bytes, record::GROUP_START)?,
            parent: u32_at(bytes, record::PARENT)? as i32,
            ancestor: u32_at(bytes, record::ANCESTOR)? as i32,
            credentials,
            name: bytes.get(record::NAME as usize..record::ARGS as usize)?,
            args,
            items: bytes.get(record::HEAD as usize..)?,
        })
    }

    /// The items: tag and content.
    pub fn items(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.items;
        std::iter::from_fn(move || {
            let tag = u16::from_ne_bytes(*rest.first_chunk()?);
            let len = usize::from(u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?));
            let content = rest.get(8..8 + len)?;
            rest = rest.get((8 + len).next_multiple_of(8)..).unwrap_or_default();
            Some((tag, content))
        })
    }

    /// The first item with a tag.
    pub fn item(&self, wanted: u16) -> Option<&'a [u8]> {
        self.items().find(|(tag, _)| *tag == wanted).map(|(_, content)| content)
    }

    /// The path whose parts have this tag; `None` without any.
    pub fn path(&self, wanted: u16) -> Option<String> {
        let (mut parts, mut complete) = (Vec::new(), false);
        for (_, content) in self.items().filter(|(tag, _)| *tag == wanted) {
            if content.is_empty() {
                complete = true;
            } else {
                parts.push(String::from_utf8_lossy(content.strip_suffix(&[0]).unwrap_or(content)));
            }
        }
        if parts.is_empty() && !complete {
            return None;
        }
        parts.reverse();
        let top = if complete { "/" } else { ".../" };
        Some(format!("{top}{}", parts.join("/")))
    }

    /// The file with this tag. `Some(None)` when there was no such descriptor.
    pub fn file(&self, wanted: u16) -> Option<Option<File>> {
        let bytes = self.item(wanted)?;
        /// `I_CTIME_QUERIED`: since Linux 6.13 the nanoseconds say with it that somebody has looked at them.
        const CTIME_QUERIED: u32 = 1 << 31;
        let read = || {
            Some(File {
                inode: u64_at(bytes, record::FILE_INODE)?,
                mode: u32_at(bytes, record::FILE_MODE)?,
                magic: u32_at(bytes, record::FILE_MAGIC)?,
                device: u32_at(bytes, record::FILE_DEVICE)?,
                uid: u32_at(bytes, record::FILE_UID)?,
                gid: u32_at(bytes, record::FILE_GID)?,
                size: u64_at(bytes, record::FILE_SIZE)? as i64,
                ctime: (
                    u64_at(bytes, record::FILE_CTIME)? as i64,
                    u32_at(bytes, record::FILE_CTIME_NSEC)? & !CTIME_QUERIED,
                ),
                links: u32_at(bytes, record::FILE_LINKS)?,
            })
        };
        Some(read())
    }

    /// The socket behind the file with this tag.
    pub fn socket(&self, wanted: u16) -> Option<Socket> {
        let bytes = self.item(wanted + tag::SOCKET)?;
        let family = u16_at(bytes, record::SOCKET_FAMILY)?;
        let (local, remote, len) = match i32::from(family) {
            libc::AF_INET => (record::SOCKET_LOCAL_V4, record::SOCKET_REMOTE_V4, 4),
            libc::AF_INET6 => (record::SOCKET_LOCAL_V6, record::SOCKET_REMOTE_V6, 16),
            _ => return Some(Socket { family, local: None, remote: None }),
        };
        let ip = |at: i16| Some(bytes.get(at as usize..at as usize + len)?.to_vec());
        let port = u16_at(bytes, record::SOCKET_LOCAL_PORT)?;
        let peer = u16::from_be(u16_at(bytes, record::SOCKET_REMOTE_PORT)?);
        Some(Socket { family, local: Some((ip(local)?, port)), remote: Some((ip(remote)?, peer)) })
    }

    /// The path of the file with this tag, as `/proc/<pid>/fd` would show it.
    pub fn file_path(&self, wanted: u16) -> Option<String> {
        const ANON_INODES: u32 = 0x0904_1934;
        let Some(file) = self.file(wanted)? else {
            // In gVisor's words.
            return Some("[err: FD not found]".to_owned());
        };
        match file.magic {
            PIPEFS => Some(format!("pipe:[{}]", file.inode)),
            SOCKFS => Some(format!("socket:[{}]", file.inode)),
            ANON_INODES => {
                let name = self.path(wanted + tag::PATH).unwrap_or_default();
                Some(format!("anon_inode:{}", name.trim_start_matches('/')))
            }
            _ => self.path(wanted + tag::PATH),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(tag: u16, content: &[u8]) -> Vec<u8> {
        let mut bytes = [tag.to_ne_bytes(), (content.len() as u16).to_ne_bytes(), [0; 2], [0; 2]].concat();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn paths_are_put_together() {
        let mut bytes = vec![0; record::HEAD as usize];
        bytes[0] = Kind::Exec as u8;
        for part in ["c\0", "bb\0", "a\0", ""] {
            bytes.extend(item(tag::CWD, part.as_bytes()));
        }
        bytes.extend(item(tag::FILE + tag::PATH, b"deep\0"));
        bytes.extend(item(tag::STDIO, b""));
        let event = Event::parse(&bytes).unwrap();
        assert_eq!(event.path(tag::CWD).as_deref(), Some("/a/bb/c"));
        assert_eq!(event.path(tag::FILE + tag::PATH).as_deref(), Some(".../deep"));
        assert_eq!(event.path(tag::FD), None);
        assert_eq!(event.file(tag::STDIO), Some(None));
        assert_eq!(event.file_path(tag::STDIO).as_deref(), Some("[err: FD not found]"));
        assert!(Event::parse(&bytes[..100]).is_none());
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 0u8..8) {
            if bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&u32::from(kind).to_ne_bytes());
            }
            if let Some(event) = Event::parse(&bytes) {
                let _ = event.items().count();
                for tag in 0..80 {
                    let _ = (event.path(tag), event.file_path(tag), event.socket(tag));
                }
            }
        }
    }
}
