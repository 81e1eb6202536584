//! What descriptors and mappings refer to, in words.

#![forbid(unsafe_code)]

use airlock_loader::checkpoint::inet::address;
use airlock_loader::checkpoint::state::{
    FileKind, FileState, MmState, PathFile, SandboxState, SocketState, TcpPeer, Vma, VmaKind,
};

/// One word for the kind, and what it is exactly.
pub fn file(state: &SandboxState, file: &FileState) -> (&'static str, String) {
    match &file.kind {
        FileKind::None => ("none", String::new()),
        FileKind::External { stream, tty, reopened, .. } => {
            let name = match stream {
                0 => "standard input".to_owned(),
                1 => "standard output".to_owned(),
                2 => "standard error".to_owned(),
                n => format!("descriptor {n}"),
            };
            let tty = if tty.is_some() { ", a terminal" } else { "" };
            let again = if *reopened { ", opened again" } else { "" };
            ("external", format!("{name} as the restorer gives it{tty}{again}"))
        }
        FileKind::Path(path) => (path_kind(path), path.path.clone()),
        FileKind::Fifo { file, data, .. } => ("fifo", format!("{}{}", file.path, waiting(data.len()))),
        FileKind::Deleted { file, link, .. } => {
            let link = link.as_ref().map_or_else(String::new, |link| format!(", also {link}"));
            ("deleted", format!("{}, {} bytes{link}", file.path, file.size))
        }
        FileKind::Memfd(id) => match state.shmems.get(*id as usize) {
            Some(memory) => ("memfd", format!("{:?}, {} bytes", memory.name, memory.size)),
            None => ("memfd", String::new()),
        },
        FileKind::Pipe { pipe, write, data, .. } => {
            let end = if *write { "write" } else { "read" };
            ("pipe", format!("[{pipe}], {end} end{}", waiting(data.len())))
        }
        FileKind::Eventfd { count, semaphore } => {
            ("eventfd", format!("count {count}{}", if *semaphore { ", semaphore" } else { "" }))
        }
        FileKind::Timerfd { clock, remaining_ns, interval_ns, .. } => {
            ("timerfd", format!("clock {clock}, {}", timer(*remaining_ns, *interval_ns)))
        }
        FileKind::Signalfd { mask } => ("signalfd", format!("signals {}", signals(*mask))),
        FileKind::Epoll { targets } => {
            let fds: Vec<String> = targets.iter().map(|target| target.fd.to_string()).collect();
            (
                "epoll",
                format!("watches {}", if fds.is_empty() { "nothing".to_owned() } else { fds.join(", ") }),
            )
        }
        FileKind::Inotify { watches, .. } => {
            let paths: Vec<&str> = watches.iter().map(|(_, path, _)| path.as_str()).collect();
            ("inotify", format!("watches {}", paths.join(", ")))
        }
        FileKind::Fanotify { marks, .. } => ("fanotify", format!("{} marks", marks.len())),
        FileKind::Pidfd { pid: 0, .. } => ("pidfd", "of a process that has ended".to_owned()),
        FileKind::Pidfd { pid, .. } => ("pidfd", format!("of process {pid}")),
        FileKind::Namespace { kind, pid } => ("namespace", format!("{kind}, of process {pid}")),
        FileKind::Pty { index, master, input, .. } => {
            let side = if *master { "master of" } else { "slave" };
            ("pty", format!("{side} /dev/pts/{index}{}", waiting(input.len())))
        }
        FileKind::ControllingTty { index } => match index {
            Some(index) => ("tty", format!("/dev/tty, which is /dev/pts/{index}")),
            None => ("tty", "/dev/tty, which is the console".to_owned()),
        },
        FileKind::Socket(socket) => (family(socket), describe_socket(socket)),
        FileKind::Anon { name } => ("anon", name.clone()),
        FileKind::Mqueue { name } => ("mqueue", name.clone()),
    }
}

fn path_kind(path: &PathFile) -> &'static str {
    match path.mode & libc::S_IFMT {
        libc::S_IFDIR => "dir",
        libc::S_IFCHR => "chr",
        libc::S_IFBLK => "blk",
        libc::S_IFLNK => "link",
        libc::S_IFIFO => "fifo",
        libc::S_IFSOCK => "socket",
        _ => "file",
    }
}

fn waiting(bytes: usize) -> String {
    if bytes == 0 { String::new() } else { format!(", {bytes} bytes wait") }
}

fn timer(remaining_ns: u64, interval_ns: u64) -> String {
    match (remaining_ns, interval_ns) {
        (0, _) => "not armed".to_owned(),
        (left, 0) => format!("in {:.3} s", left as f64 / 1e9),
        (left, each) => format!("in {:.3} s, then every {:.3} s", left as f64 / 1e9, each as f64 / 1e9),
    }
}

/// Numbers of the signals in a mask.
fn signals(mask: u64) -> String {
    let all: Vec<String> =
        (0..64).filter(|bit| mask >> bit & 1 == 1).map(|bit| (bit + 1).to_string()).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(",") }
}

fn family(socket: &SocketState) -> &'static str {
    match (socket.family, socket.kind & 0xf) {
        (libc::AF_UNIX, _) => "unix",
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM) => "tcp",
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM) => "udp",
        (libc::AF_INET | libc::AF_INET6, _) => "inet",
        (libc::AF_NETLINK, _) => "netlink",
        (libc::AF_PACKET, _) => "packet",
        _ => "socket",
    }
}

fn describe_socket(socket: &SocketState) -> String {
    let mut parts = Vec::new();
    if socket.family == libc::AF_UNIX {
        parts.push(match socket.kind & 0xf {
            libc::SOCK_STREAM => "stream".to_owned(),
            libc::SOCK_DGRAM => "datagram".to_owned(),
            libc::SOCK_SEQPACKET => "seqpacket".to_owned(),
            other => format!("type {other}"),
        });
        parts.push(format!("[{}]", socket.inode));
        let name = socket.unix.as_ref().and_then(|unix| unix.path.clone());
        parts.extend(name.or_else(|| unix_name(&socket.local)));
        if let Some(unix) = socket.unix.as_ref().filter(|unix| unix.peer != 0) {
            parts.push(format!("to [{}]", unix.peer));
        }
    } else {
        let text = |bytes: &[u8]| address::parse_as_is(bytes).map(|address| address.to_string());
        parts.extend(text(&socket.local));
        parts.extend(text(&socket.remote).map(|remote| format!("to {remote}")));
    }
    if socket.listen.is_some() {
        parts.push("listens".to_owned());
    }
    match socket.tcp.as_ref().map(|tcp| tcp.peer) {
        Some(TcpPeer::Outside) if !socket.remote.is_empty() => parts.push("outside".to_owned()),
        Some(TcpPeer::Lost) => parts.push("breaks at restore".to_owned()),
        _ => {}
    }
    let bytes: usize = socket.queue.iter().map(|message| message.data.len()).sum();
    let bytes = bytes + socket.tcp.as_ref().map_or(0, |tcp| tcp.recv_data.len());
    format!("{}{}", parts.join(" "), waiting(bytes))
}

/// The name in a `sockaddr_un`; abstract ones with `@` for their first byte.
fn unix_name(address: &[u8]) -> Option<String> {
    let name = address.get(2..).filter(|name| !name.is_empty())?;
    match name.strip_prefix(&[0]) {
        Some(rest) => Some(format!("@{}", String::from_utf8_lossy(rest))),
        None => {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            Some(String::from_utf8_lossy(&name[..end]).into_owned())
        }
    }
}

/// How an open file description may be used.
pub fn flags(file: &FileState, cloexec: bool) -> String {
    let mut words = vec![match file.flags & libc::O_ACCMODE {
        _ if file.flags & libc::O_PATH != 0 => "path",
        libc::O_RDONLY => "r",
        libc::O_WRONLY => "w",
        _ => "rw",
    }];
    let known = [(libc::O_APPEND, "append"), (libc::O_NONBLOCK, "nonblock"), (libc::O_DIRECT, "direct")];
    words.extend(known.iter().filter(|(bit, _)| file.flags & bit != 0).map(|(_, word)| *word));
    if cloexec {
        words.push("cloexec");
    }
    if !file.locks.is_empty() {
        words.push("locks");
    }
    words.join(",")
}

/// What is mapped.
pub fn mapping(state: &SandboxState, mm: &MmState, vma: &Vma) -> String {
    let mut text = match &vma.kind {
        VmaKind::Anonymous if vma.start < mm.layout.brk.1 && vma.end > mm.layout.brk.0 => "[heap]".to_owned(),
        VmaKind::Anonymous => String::new(),
        VmaKind::File(id) => state.files.get(*id as usize).map_or_else(String::new, |f| file(state, f).1),
        VmaKind::Shmem(id) => match state.shmems.get(*id as usize) {
            Some(memory) if !memory.name.is_empty() => format!("[shared {id} {}]", memory.name),
            _ => format!("[shared {id}]"),
        },
        VmaKind::Vdso => "[vdso]".to_owned(),
        VmaKind::Vvar => "[vvar]".to_owned(),
        VmaKind::Kernel => "[kernel]".to_owned(),
        VmaKind::Aio => "[aio]".to_owned(),
    };
    if let Some(name) = &vma.name {
        text += &format!("[anon:{name}]");
    }
    if vma.grows_down {
        text += "[stack]";
    }
    if vma.huge_page_size != 0 {
        text += &format!(" (pages of {} KiB)", vma.huge_page_size / 1024);
    }
    text.trim_start().to_owned()
}

/// As in `/proc/pid/maps`.
pub fn permissions(vma: &Vma) -> String {
    let bit = |bit: i32, letter: char| if vma.prot & bit as u32 != 0 { letter } else { '-' };
    let shared = if vma.shared { 's' } else { 'p' };
    [bit(libc::PROT_READ, 'r'), bit(libc::PROT_WRITE, 'w'), bit(libc::PROT_EXEC, 'x'), shared]
        .iter()
        .collect()
}

/// Bytes for people: exact below 10 KiB, else with three digits.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 10 << 10 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.*} {}", if value < 100.0 { 1 } else { 0 }, UNITS[unit])
}
