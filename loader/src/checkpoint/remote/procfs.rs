//! Where this process finds the procfs of its own pid namespace.
#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

static ROOT: OnceLock<OwnedFd> = OnceLock::new();

/// Tells this process where its procfs is: the root directory of one that shows the pid namespace which thread ids are
/// given in. To be called once, by a process that has no `/proc` (a sandbox' root is empty); otherwise `/proc` is
/// used. Returns false when it had been called before.
pub fn use_procfs(root: OwnedFd) -> bool {
    ROOT.set(root).is_ok()
}

/// Opens a file by its path in the procfs.
///
/// # Errors
/// `NoSuchEntity` when the task is gone.
pub(super) fn open(path: &str, write: bool) -> Result<File> {
    let flags = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY } | OFlag::O_CLOEXEC;
    let opened = match ROOT.get() {
        Some(root) => openat(root, path, flags, Mode::empty()),
        None => nix::fcntl::open(format!("/proc/{path}").as_str(), flags, Mode::empty()),
    };
    Ok(opened.map_err(|e| Error::from(e).context(format!("open /proc/{path}")))?.into())
}

/// Reads a file whole, at most 64 KiB.
///
/// # Errors
/// As [`open`].
pub(super) fn read(path: &str) -> Result<Vec<u8>> {
    const LIMIT: u64 = 64 << 10;
    let mut bytes = Vec::new();
    open(path, false)?
        .take(LIMIT)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::from(e).context(format!("read /proc/{path}")))?;
    Ok(bytes)
}

/// Value of a line `Name:\tvalue` of `/proc/<tid>/status`.
pub(super) fn status_field(tid: i32, field: &str) -> Option<String> {
    let text = read(&format!("{tid}/status")).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':')).map(|v| v.trim().to_owned())
}

/// State letter of a task; `None` when it is gone.
pub(super) fn state(tid: i32) -> Option<char> {
    let text = read(&format!("{tid}/stat")).ok()?;
    crate::procfs::Stat::parse(&String::from_utf8_lossy(&text)).map(|s| s.state)
}

/// "thread 7 (name)", for messages.
pub(super) fn describe(tid: i32) -> String {
    match read(&format!("{tid}/comm")) {
        Ok(name) => {
            let name: String = String::from_utf8_lossy(&name)
                .trim_end()
                .chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect();
            format!("thread {tid} ({name})")
        }
        Err(_) => format!("thread {tid}"),
    }
}
