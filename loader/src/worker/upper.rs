//! The upper layer of a container's root filesystem as a tar archive, as a layer of an OCI image has it.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker, exactly};
use crate::checkpoint::content::{MAX_DEPTH, extents, names, xattrs};
use crate::init::paths;
use crate::sys::{process, xattr};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// What says in a layer that a file of the layers below is gone (OCI image-spec, layer.md).
const WHITEOUT: &[u8] = b".wh.";
/// What says that nothing of a directory below is seen.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Where an overlay has its own attributes: with privileges, and in a user namespace.
const OVERLAY: [&str; 2] = ["trusted.overlay.", "user.overlay."];
const BLOCK: usize = 512;
/// GNU tar reads in records of this size, and takes a shorter last one for damage when it skips something.
const RECORD: u64 = 20 * BLOCK as u64;

/// Writes an overlay's upper layer as a tar archive. Descriptors: the layer, and where to. What is gone is a `.wh.` entry;
/// owners, modes, times to the nanosecond, extended attributes and hard links are kept, holes are left out (GNU sparse
/// format 1.0). Sockets are not in it. Nobody should write to the layer meanwhile.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct TarUpper {
    /// The descriptor is that of the directory that has the layer as `upper`.
    pub on_disk: bool,
}

impl Task for TarUpper {
    type Reply = ();

    fn run(self, _: &Worker, fds: Vec<OwnedFd>) -> Result<Done<()>> {
        // A reader that is gone is an error, not a death.
        process::block_signals();
        let [layer, out] = exactly(fds)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let name = if self.on_disk { "upper" } else { "." };
        let upper = openat(&layer, name, flags, Mode::empty())
            .map_err(|e| Error::from(e).context("opening the upper layer"))?;
        let mut out = BufWriter::with_capacity(1 << 20, File::from(out));
        write_layer(upper, &mut out)?;
        out.flush()?;
        Ok(Done::with(()))
    }
}

/// Writes the layer below `upper` to `out`.
///
/// # Errors
/// The path, and why it cannot be read or be in a layer.
pub fn write_layer(upper: OwnedFd, out: &mut dyn Write) -> Result<()> {
    let device = fstat(&upper)?.st_dev;
    let builder = Builder::new(Counted { out, written: 0 });
    let mut archive = Archive { builder, device, links: HashMap::new() };
    archive.directory(&upper, b"", MAX_DEPTH)?;
    let Counted { out, written } = archive.builder.into_inner()?;
    let end = written.next_multiple_of(RECORD);
    Ok(io::copy(&mut io::repeat(0).take(end - written), out).map(drop)?)
}

/// Counts what is written.
struct Counted<'a> {
    out: &'a mut dyn Write,
    written: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct Archive<'a> {
    builder: Builder<Counted<'a>>,
    device: u64,
    /// First path of files with several names, by inode.
    links: HashMap<u64, Vec<u8>>,
}

/// What goes before an entry (POSIX.1-2001 pax format).
type Extensions = Vec<(String, Vec<u8>)>;

impl Archive<'_> {
    fn directory(&mut self, dir: &OwnedFd, path: &[u8], depth: u32) -> Result<()> {
        if depth == 0 {
            return Err(Error::from(Errno::ENAMETOOLONG).context(show(path)));
        }
        for name in names(dir.as_fd()).map_err(|e| Error::from(e).context(show(path)))? {
            let below = join(path, &name);
            self.below(dir, &name, &below, depth).map_err(|e| match e.message.starts_with('/') {
                true => e,
                false => e.context(show(&below)),
            })?;
        }
        Ok(())
    }

    fn below(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8], depth: u32) -> Result<()> {
        let os_name = OsStr::from_bytes(name);
        let status = fstatat(dir, os_name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if status.st_dev != self.device {
            return Ok(());
        }
        let open = |flags: OFlag| {
            let flags = flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
            openat(dir, os_name, flags, Mode::empty())
        };
        let kind = paths::type_of(&status);
        if kind == SFlag::S_IFCHR && status.st_rdev == 0 {
            return self.gone(path);
        }
        if kind != SFlag::S_IFDIR && status.st_nlink > 1 {
            if let Some(first) = self.links.get(&status.st_ino).cloned() {
                return self.link(path, &status, EntryType::Link, &first);
            }
            self.links.insert(status.st_ino, path.to_vec());
        }
        match kind {
            SFlag::S_IFDIR => {
                let dir = open(OFlag::O_DIRECTORY)?;
                refuse(
                    dir.as_fd(),
                    "redirect",
                    "it was renamed, and the overlay keeps what is in it elsewhere",
                )?;
                let mut header = header(&status, EntryType::Directory);
                self.entry(&join(path, b""), &mut header, extensions(&status, dir.as_fd()), io::empty())?;
                if own(dir.as_fd(), "opaque").is_some_and(|value| value == b"y") {
                    self.empty(&join(path, OPAQUE))?;
                }
                self.directory(&dir, path, depth - 1)
            }
            SFlag::S_IFREG => {
                let file = open(OFlag::O_NOATIME).or_else(|_| open(OFlag::empty()))?;
                if status.st_size == 0 && own(file.as_fd(), "whiteout").is_some() {
                    return self.gone(path);
                }
                refuse(file.as_fd(), "metacopy", "only its attributes are in the upper layer")?;
                self.file(path, &status, &File::from(file))
            }
            SFlag::S_IFLNK => {
                let to = readlinkat(dir, os_name)?;
                self.link(path, &status, EntryType::Symlink, to.as_bytes())
            }
            SFlag::S_IFSOCK => Ok(()),
            kind => {
                let mut header = header(
                    &status,
                    match kind {
                        SFlag::S_IFCHR => EntryType::Char,
                        SFlag::S_IFBLK => EntryType::Block,
                        _ => EntryType::Fifo,
                    },
                );
                header.set_device_major(major(status.st_rdev) as u32)?;
                header.set_device_minor(minor(status.st_rdev) as u32)?;
                self.entry(path, &mut header, times(&status), io::empty())
            }
        }
    }

    fn file(&mut self, path: &[u8], status: &FileStat, file: &File) -> Result<()> {
        let size = status.st_size.max(0) as u64;
        let mut parts = extents(file, size)?;
        let stored: u64 = parts.iter().map(|(_, len)| len).sum();
        let mut header = header(status, EntryType::Regular);
        let mut extensions = extensions(status, file.as_fd());
        if stored == size {
            header.set_size(size);
            return self.entry(path, &mut header, extensions, Extents { file, parts: parts.into() });
        }
        // The last part says where the file ends.
        parts.push((size, 0));
        let mut map = format!("{}\n", parts.len());
        for (offset, len) in &parts {
            let _ = write!(map, "{offset}\n{len}\n");
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        header.set_size(map.len() as u64 + stored);
        for (key, value) in [("major", b"1".to_vec()), ("minor", b"0".to_vec()), ("name", path.to_vec())] {
            extensions.push((format!("GNU.sparse.{key}"), value));
        }
        extensions.push(("GNU.sparse.realsize".to_owned(), size.to_string().into_bytes()));
        let data = Cursor::new(map).chain(Extents { file, parts: parts.into() });
        self.entry(&join(b"GNUSparseFile.0", path), &mut header, extensions, data)
    }

    fn link(&mut self, path: &[u8], status: &FileStat, kind: EntryType, to: &[u8]) -> Result<()> {
        let mut header = header(status, kind);
        let mut extensions = times(status);
        if header.set_link_name_literal(to).is_err() {
            extensions.push(("linkpath".to_owned(), to.to_vec()));
        }
        self.entry(path, &mut header, extensions, io::empty())
    }

    /// The file is in a layer below, and is not to be seen.
    fn gone(&mut self, path: &[u8]) -> Result<()> {
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        self.empty(&join(parent, &[WHITEOUT, name].concat()))
    }

    fn empty(&mut self, path: &[u8]) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_size(0);
        self.entry(path, &mut header, Vec::new(), io::empty())
    }

    fn entry(
        &mut self,
        path: &[u8],
        header: &mut Header,
        extensions: Extensions,
        data: impl Read,
    ) -> Result<()> {
        let pairs = extensions.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        if !extensions.is_empty() {
            self.builder.append_pax_extensions(pairs)?;
        }
        Ok(self.builder.append_data(header, Path::new(OsStr::from_bytes(path)), data)?)
    }
}

fn header(status: &FileStat, kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(status.st_mode & 0o7777);
    header.set_uid(status.st_uid.into());
    header.set_gid(status.st_gid.into());
    header.set_mtime(status.st_mtime.max(0) as u64);
    header.set_size(0);
    header
}

/// The time of modification, where it is more than the header can say.
fn times(status: &FileStat) -> Extensions {
    match (status.st_mtime, status.st_mtime_nsec) {
        (0.., 0) => Vec::new(),
        (seconds @ 0.., nanos) => vec![("mtime".to_owned(), format!("{seconds}.{nanos:09}").into_bytes())],
        // Before 1970 a fraction counts towards the future, and is left out.
        (seconds, _) => vec![("mtime".to_owned(), seconds.to_string().into_bytes())],
    }
}

fn extensions(status: &FileStat, fd: BorrowedFd<'_>) -> Extensions {
    let mut all = times(status);
    for (name, value) in xattrs(fd, true) {
        if let Ok(name) = std::str::from_utf8(&name) {
            all.push((format!("SCHILY.xattr.{name}"), value.to_vec()));
        }
    }
    all
}

/// The value of an attribute by which the overlay runs its layers.
fn own(fd: BorrowedFd<'_>, name: &str) -> Option<Vec<u8>> {
    let get = |prefix: &&str| {
        let name = CString::new(format!("{prefix}{name}")).ok()?;
        xattr::get(fd, <CString as AsRef<CStr>>::as_ref(&name)).ok()
    };
    OVERLAY.iter().find_map(get)
}

fn refuse(fd: BorrowedFd<'_>, name: &str, why: &str) -> Result<()> {
    match own(fd, name) {
        None => Ok(()),
        Some(_) => Err(Error::unsupported(format!("it cannot be in a layer of its own: {why}"))),
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn show(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// Parts of a file, one after the other. Where it has become shorter, zeros: the archive must keep its form.
struct Extents<'a> {
    file: &'a File,
    parts: std::collections::VecDeque<(u64, u64)>,
}

impl Read for Extents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.parts.front().is_some_and(|(_, len)| *len == 0) {
            self.parts.pop_front();
        }
        let Some((offset, len)) = self.parts.front_mut() else { return Ok(0) };
        let piece = buffer.len().min(usize::try_from(*len).unwrap_or(usize::MAX));
        let n = match self.file.read_at(&mut buffer[..piece], *offset)? {
            0 => {
                buffer[..piece].fill(0);
                piece
            }
            n => n,
        };
        *offset += n as u64;
        *len -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
