//! Names of unix sockets.
//!
//! What getsockname(2) tells is what bind(2) was given, to the letter: perhaps a relative path, or one below another root.
//! The file itself was found at another path, which does not change. To have both again, a thread goes where the name
//! leads to the file.
#![forbid(unsafe_code)]

use crate::checkpoint::state::{SocketState, UnixSocket};
use crate::sys::{files as call, mount, net};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, chroot, fchdir, fchownat, unlinkat};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

const FAMILY: [u8; 2] = (libc::AF_UNIX as u16).to_ne_bytes();

/// The path in an address.
pub(super) fn path_in(address: &[u8]) -> Option<&Path> {
    let name = address.get(2..)?;
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    (end > 0).then(|| Path::new(std::ffi::OsStr::from_bytes(&name[..end])))
}

/// An address for messages.
pub(super) fn show(address: &[u8]) -> String {
    match (path_in(address), address.get(3..)) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(name)) => format!("@{}", String::from_utf8_lossy(name)),
        _ => "an unnamed socket".to_owned(),
    }
}

/// How a socket can be reached, whatever has become of its path: an address that is good as long as this lives, on
/// threads whose current directory is the procfs' root.
#[derive(Debug)]
pub(super) struct Reach {
    pub address: Vec<u8>,
    _file: Option<OwnedFd>,
}

impl Reach {
    /// The way to a socket of ours that has the name `local`.
    pub(super) fn to(fd: BorrowedFd<'_>, local: &[u8]) -> Result<Self> {
        if path_in(local).is_none() {
            return Ok(Self { address: local.to_vec(), _file: None });
        }
        let file = call::ioctl_open(fd, call::SIOCUNIXFILE)
            .map_err(|e| Error::from(e).context("asking a unix socket for its file (needs CAP_NET_ADMIN)"))?;
        let path = format!("self/fd/{}", file.as_raw_fd());
        Ok(Self { address: [&FAMILY[..], path.as_bytes(), &[0]].concat(), _file: Some(file) })
    }
}

/// The calling thread's root and current directory, to come back to.
struct Home {
    root: OwnedFd,
    cwd: OwnedFd,
}

impl Home {
    fn remember() -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self {
            root: openat(AT_FDCWD, "/", flags, Mode::empty())?,
            cwd: openat(AT_FDCWD, ".", flags, Mode::empty())?,
        })
    }

    fn go_back(&self) -> Result<()> {
        fchdir(&self.root)?;
        chroot(".")?;
        Ok(fchdir(&self.cwd)?)
    }
}

/// Binds `fd` to the name that it had. A file that is there from before is replaced, if it is a socket's.
///
/// # Errors
/// When something else is there, or the directory is missing.
pub(super) fn bind(fd: BorrowedFd<'_>, socket: &SocketState, unix: &UnixSocket) -> Result<()> {
    let local = &socket.local;
    let failed = |e: Error| e.context(format!("binding it to {}", show(local)));
    let (Some(name), Some(real)) = (path_in(local), unix.path.as_deref()) else {
        return net::bind(fd, local).map_err(|e| failed(e.into()));
    };
    if unix.unlinked {
        return bind_anywhere(fd, local).map_err(failed);
    }
    bind_file(fd, local, name, Path::new(real)).map_err(failed)?;
    let (uid, gid) = (unix.owner.0.into(), unix.owner.1.into());
    fchownat(AT_FDCWD, real, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
        .and_then(|()| {
            fchmodat(
                AT_FDCWD,
                real,
                Mode::from_bits_truncate(unix.mode & 0o7777),
                FchmodatFlags::FollowSymlink,
            )
        })
        .map_err(|e| failed(e.into()))
}

fn bind_file(fd: BorrowedFd<'_>, local: &[u8], name: &Path, real: &Path) -> Result<()> {
    match fstatat(AT_FDCWD, real, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => {}
        Ok(stat) if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFSOCK => {
            unlinkat(AT_FDCWD, real, UnlinkatFlags::NoRemoveDir)?;
        }
        Ok(_) => return Err(Error::invalid_argument("something that is no socket has that name now")),
        Err(e) => return Err(e.into()),
    }
    let home = Home::remember()?;
    let result = go_where_it_leads(name, real).and_then(|()| Ok(net::bind(fd, local)?));
    home.go_back()?;
    result
}

/// Changes the thread's root or current directory so that `name` leads to `real`.
fn go_where_it_leads(name: &Path, real: &Path) -> Result<()> {
    let lost = || Error::invalid_argument(format!("the name does not lead to {} any more", real.display()));
    let (parent, last) = (real.parent().ok_or_else(lost)?, real.file_name());
    let same = |a: &Path, b: &Path| match (
        fstatat(AT_FDCWD, a, AtFlags::empty()),
        fstatat(AT_FDCWD, b, AtFlags::empty()),
    ) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    };
    if name.is_absolute() {
        if name.file_name() == last && name.parent().is_some_and(|p| same(p, parent)) {
            return Ok(());
        }
        // It was bound by a process with another root.
        let tail = name.strip_prefix("/").map_err(|_| lost())?;
        let root = strip_suffix(real, tail).ok_or_else(lost)?;
        return Ok(chroot(root)?);
    }
    let tail: PathBuf = name.components().filter(|c| !matches!(c, Component::CurDir)).collect();
    let cwd = strip_suffix(real, &tail).ok_or_else(lost)?;
    Ok(nix::unistd::chdir(cwd)?)
}

/// `/a/b/c` without `b/c`.
fn strip_suffix<'a>(path: &'a Path, tail: &Path) -> Option<&'a Path> {
    path.ends_with(tail).then(|| path.ancestors().nth(tail.components().count())).flatten()
}

/// Binds a socket to a name that nobody can reach it by: paths lead to a filesystem of their own.
///
/// # Errors
/// `EADDRINUSE` for an abstract name that somebody has.
pub(super) fn bind_anywhere(fd: BorrowedFd<'_>, local: &[u8]) -> Result<()> {
    let Some(name) = path_in(local) else { return Ok(net::bind(fd, local)?) };
    let context = mount::fsopen("tmpfs")?;
    mount::fsconfig_create(context.as_fd())?;
    let scratch = mount::fsmount(context.as_fd(), 0)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(0o700);
    let mut dir = openat(&scratch, ".", flags, Mode::empty())?;
    // A name that leads upwards begins further down.
    let up = name.components().filter(|c| matches!(c, Component::ParentDir)).count();
    for _ in 0..up {
        mkdirat(&dir, "d", mode)?;
        dir = openat(&dir, "d", flags, Mode::empty())?;
    }
    let start = dir.try_clone()?;
    for part in name.parent().into_iter().flat_map(Path::components) {
        match part {
            Component::Normal(part) => {
                match mkdirat(&dir, part, mode) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(e) => return Err(e.into()),
                }
                dir = openat(&dir, part, flags, Mode::empty())?;
            }
            Component::ParentDir => dir = openat(&dir, "..", flags, Mode::empty())?,
            _ => {}
        }
    }
    let home = Home::remember()?;
    fchdir(&start)?;
    if name.is_absolute() {
        chroot(".")?;
    }
    let result = net::bind(fd, local);
    home.go_back()?;
    Ok(result?)
}

/// True when `fd` is a socket's file at `path` of the calling thread's root.
#[cfg(test)]
fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| {
        use std::os::unix::fs::FileTypeExt;
        m.file_type().is_socket()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::inside;
    use crate::sys::process;

    /// Runs `work` on a thread with root and current directory of its own.
    fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> T {
        let me = process::pidfd_open(std::process::id() as i32).unwrap();
        inside::run(me.as_fd(), libc::CLONE_NEWNS, work).unwrap()
    }

    fn socket_at(local: &[u8], path: Option<String>) -> (SocketState, UnixSocket) {
        let socket = SocketState { local: local.into(), ..SocketState::default() };
        (socket, UnixSocket { path, mode: 0o640, owner: (3, 4), ..UnixSocket::default() })
    }

    fn named(path: &str) -> Vec<u8> {
        [&FAMILY[..], path.as_bytes(), &[0]].concat()
    }

    /// Connects to a listener.
    fn reach(listener: BorrowedFd<'_>) {
        let reach = Reach::to(listener, &net::local(listener).unwrap()).unwrap();
        nix::unistd::chdir("/proc").unwrap();
        let client = net::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        net::connect(client.as_fd(), &reach.address).unwrap();
    }

    #[test]
    fn names_lead_to_the_file_whatever_they_are_relative_to() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("run/sub")).unwrap();
        std::os::unix::fs::symlink(base.join("run"), base.join("var")).unwrap();
        let base = base.to_str().unwrap();
        for (name, real) in [
            (format!("{base}/run/a"), format!("{base}/run/a")),
            (format!("{base}/var/b"), format!("{base}/run/b")),
            ("./sub/c".to_owned(), format!("{base}/run/sub/c")),
            ("d".to_owned(), format!("{base}/run/d")),
            ("/run/e".to_owned(), format!("{base}/run/e")),
        ] {
            // One that is left from before does not matter.
            drop(std::os::unix::net::UnixListener::bind(&real).unwrap());
            apart(|| {
                let fd = net::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
                let (socket, unix) = socket_at(&named(&name), Some(real.clone()));
                bind(fd.as_fd(), &socket, &unix)?;
                net::listen(fd.as_fd(), 1)?;
                assert_eq!(path_in(&net::local(fd.as_fd())?), Some(Path::new(&name)));
                reach(fd.as_fd());
                Ok(())
            });
            let meta = std::fs::symlink_metadata(&real).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 3, 4), "{name}");
            assert!(is_socket(Path::new(&real)));
        }
        std::fs::write(format!("{base}/run/file"), "").unwrap();
        let error = apart(|| {
            let fd = net::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
            let (socket, unix) = socket_at(&named("file"), Some(format!("{base}/run/file")));
            Ok(bind(fd.as_fd(), &socket, &unix).unwrap_err())
        });
        assert!(error.message.contains("no socket"), "{error}");
    }

    #[test]
    fn names_that_lead_nowhere_are_told_all_the_same() {
        for name in ["/run/gone/socket", "a/b/c", "../up", "x"] {
            let got = apart(|| {
                let fd = net::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
                bind_anywhere(fd.as_fd(), &named(name))?;
                net::listen(fd.as_fd(), 1)?;
                reach(fd.as_fd());
                Ok(net::local(fd.as_fd())?)
            });
            assert_eq!(path_in(&got), Some(Path::new(name)));
            assert!(!Path::new(name).exists());
        }
    }

    #[test]
    fn paths_longer_than_an_address_can_be_reached() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let real = deep.join("s").to_str().unwrap().to_owned();
        apart(|| {
            let fd = net::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
            let (socket, unix) = socket_at(&named("s"), Some(real));
            bind(fd.as_fd(), &socket, &unix)?;
            net::listen(fd.as_fd(), 1)?;
            reach(fd.as_fd());
            Ok(())
        });
    }
}
