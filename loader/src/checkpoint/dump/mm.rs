//! Address spaces: what is mapped where, and which of it the page engine has to save.
#![forbid(unsafe_code)]

use super::smaps::{self, RawVma};
use crate::checkpoint::state::{
    AioRing, FileKind, FileState, Id, MmLayout, MmState, PathFile, Refusal, SandboxState, ShmemKind,
    ShmemState, Vma, VmaKind,
};
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use std::os::fd::OwnedFd;

/// The process whose address space is described.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Pid in the sandbox's namespace.
    pub pid: i32,
    /// Pid in the container, for messages.
    pub ns_pid: i32,
    /// Command name, for messages.
    pub comm: &'a str,
    /// Container ID, for messages.
    pub cid: &'a str,
    /// Index of its container.
    pub container: Id,
    /// Its program break, as brk(0) answers.
    pub brk: u64,
}

/// Where findings go.
#[derive(Debug)]
pub struct World<'a> {
    /// The image's state.
    pub state: &'a mut SandboxState,
    /// What cannot be saved.
    pub refusals: &'a mut Vec<Refusal>,
    /// Memory objects whose content has to be read from these descriptors.
    pub contents: &'a mut Vec<(Id, OwnedFd)>,
    /// Files that mappings show and that have no path any more, with a descriptor of each.
    pub orphans: &'a mut Vec<(Id, OwnedFd)>,
}

/// Memory of a mapping that the page engine looks through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Transparent huge pages are in it or wanted.
    pub huge: bool,
    /// Page size.
    pub page_size: u64,
    /// Pages of the file below belong to the content (the file will not be there).
    pub file_pages: bool,
}

/// Describes the address space of a stopped process. Returns its id and what has to be looked through.
///
/// # Errors
/// When `/proc` does not tell. What cannot be saved is a [`Refusal`], not an error.
pub fn collect(procfs: &ProcFs, target: Target<'_>, world: &mut World<'_>) -> Result<(Id, Vec<Extent>)> {
    let text = String::from_utf8_lossy(&procfs.read_whole(target.pid, "smaps")?).into_owned();
    let mut mm = MmState {
        layout: layout(procfs, target)?,
        auxv: procfs.read_whole(target.pid, "auxv")?.into(),
        coredump_filter: procfs
            .read(target.pid, "coredump_filter")
            .ok()
            .and_then(|t| u64::from_str_radix(t.trim(), 16).ok())
            .unwrap_or(0x33),
        ..MmState::default()
    };
    mm.exe = exe(procfs, target, world)?;
    let mut extents = Vec::new();
    for raw in smaps::parse(&text)? {
        let Some(vma) = mapping(procfs, target, &raw, world, &mut mm.aio)? else { continue };
        let save = match vma.kind {
            VmaKind::Anonymous => !raw.has(b"dp"),
            VmaKind::File(_) | VmaKind::Shmem(_) => !vma.shared,
            _ => false,
        };
        // Pages that nobody has touched are no content; a mapping without any need not be looked through.
        if save && (raw.rss > 0 || raw.has(b"lo") || swapped(&raw)) {
            extents.push(Extent {
                start: vma.start,
                end: vma.end,
                huge: raw.anon_huge > 0 || raw.has(b"hg"),
                page_size: raw.page_size,
                file_pages: raw.deleted && matches!(vma.kind, VmaKind::Anonymous),
            });
        }
        mm.vmas.push(vma);
    }
    let id = world.state.mms.len() as Id;
    world.state.mms.push(mm);
    Ok((id, extents))
}

/// Memory may be swapped out as a whole; only the page tables know.
fn swapped(raw: &RawVma) -> bool {
    raw.has(b"ac") || raw.has(b"nr")
}

fn layout(procfs: &ProcFs, target: Target<'_>) -> Result<MmLayout> {
    let text = procfs.read(target.pid, "stat")?;
    // Fields are counted after the command name, which may hold anything.
    let tail = text.rsplit_once(')').map(|(_, t)| t).unwrap_or_default();
    let fields: Vec<u64> =
        tail.split_ascii_whitespace().skip(1).map(|f| f.parse::<i64>().unwrap_or(0) as u64).collect();
    // `fields[0]` is the fourth field of proc_pid_stat(5).
    let field = |n: usize| fields.get(n - 4).copied().unwrap_or(0);
    let start_brk = field(47);
    Ok(MmLayout {
        code: (field(26), field(27)),
        data: (field(45), field(46)),
        brk: (start_brk, target.brk.max(start_brk)),
        stack: field(28),
        args: (field(48), field(49)),
        env: (field(50), field(51)),
    })
}

fn exe(procfs: &ProcFs, target: Target<'_>, world: &mut World<'_>) -> Result<Option<Id>> {
    let link = format!("{}/exe", target.pid);
    let path = match nix::fcntl::readlinkat(procfs.root(), link.as_str()) {
        Ok(path) => path.to_string_lossy().into_owned(),
        Err(nix::errno::Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(Error::from(e).context(format!("reading exe of process {}", target.ns_pid))),
    };
    let fd = openat(procfs.root(), link.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| {
            Error::from(e).context(format!("opening the program {path:?} of process {}", target.ns_pid))
        })?;
    let (path, deleted) = match path.strip_suffix(" (deleted)") {
        Some(path) => (path.to_owned(), true),
        None => (path, false),
    };
    Ok(Some(file(target, &path, deleted, libc::O_RDONLY, &fstat(&fd)?, Some(fd), world)))
}

/// Registers a file that is mapped or executed, once.
fn file(
    target: Target<'_>,
    path: &str,
    deleted: bool,
    flags: i32,
    stat: &FileStat,
    fd: Option<OwnedFd>,
    world: &mut World<'_>,
) -> Id {
    let identity = (stat.st_dev, stat.st_ino);
    let same = |f: &FileState| match &f.kind {
        FileKind::Path(p) => {
            !deleted && p.identity == identity && p.path == path && f.container == target.container
        }
        FileKind::Deleted { file, .. } => deleted && file.identity == identity,
        _ => false,
    };
    // Only files of mappings: those of descriptors have positions of their own.
    if let Some(i) =
        world.state.files.iter().position(|f| f.flags == flags && f.owner.is_none() && f.pos == -1 && same(f))
    {
        return i as Id;
    }
    let described = PathFile {
        path: path.to_owned(),
        mode: stat.st_mode,
        size: stat.st_size as u64,
        mtime_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec),
        rdev: stat.st_rdev,
        owner: (stat.st_uid, stat.st_gid),
        identity,
        ..PathFile::default()
    };
    let id = world.state.files.len() as Id;
    let kind = if deleted {
        if let Some(fd) = fd {
            world.orphans.push((id, fd));
        }
        FileKind::Deleted { file: described, content: None, shmem: None, link: None }
    } else {
        FileKind::Path(described)
    };
    world.state.files.push(FileState {
        kind,
        flags,
        pos: -1,
        container: target.container,
        ..FileState::default()
    });
    id
}

fn mapping(
    procfs: &ProcFs,
    target: Target<'_>,
    raw: &RawVma,
    world: &mut World<'_>,
    aio: &mut Vec<AioRing>,
) -> Result<Option<Vma>> {
    let refuse = |world: &mut World<'_>, kind: &str, what: String| {
        world.refusals.push(Refusal {
            cid: target.cid.to_owned(),
            pid: target.ns_pid,
            comm: target.comm.to_owned(),
            fd: None,
            kind: kind.to_owned(),
            what,
        });
    };
    let place = format!("{:#x}-{:#x} {}", raw.start, raw.end, raw.name);
    let mut vma = Vma {
        start: raw.start,
        end: raw.end,
        prot: raw.prot,
        shared: raw.shared,
        grows_down: raw.has(b"gd"),
        offset: raw.offset,
        advice: advice(raw),
        locked: if raw.has(b"lf") { 2 } else { u8::from(raw.has(b"lo")) },
        pkey: raw.pkey,
        huge_page_size: if raw.has(b"ht") { raw.page_size } else { 0 },
        droppable: raw.has(b"dp"),
        noreserve: raw.has(b"nr"),
        sealed: raw.has(b"sl"),
        ..Vma::default()
    };
    let name = raw.name.as_str();
    match name {
        "[vsyscall]" | "[uprobes]" => return Ok(None),
        "[vdso]" => {
            vma.kind = VmaKind::Vdso;
            return Ok(Some(vma));
        }
        n if n.starts_with("[vvar") => {
            vma.kind = VmaKind::Vvar;
            return Ok(Some(vma));
        }
        _ => {}
    }
    if raw.has(b"ss") {
        refuse(world, "shadow stack", format!("mapping {place}: control-flow enforcement (CET) is in use"));
        return Ok(Some(vma));
    }
    if raw.has(b"um") || raw.has(b"uw") || raw.has(b"ui") {
        refuse(world, "userfaultfd", format!("mapping {place} is registered with a userfaultfd"));
    }
    if name.starts_with("anon_inode:") || name.starts_with("socket:") || raw.has(b"io") || raw.has(b"pf") {
        let kind = if name.contains("io_uring") { "io_uring" } else { "device mapping" };
        refuse(world, kind, format!("mapping {place} shows memory of a device or of the kernel"));
        return Ok(Some(vma));
    }
    if let Some(anon) = name.strip_prefix("[anon:").or_else(|| name.strip_prefix("[anon_shmem:")) {
        vma.name = Some(anon.trim_end_matches(']').to_owned());
    }
    let zero_device = name == "/dev/zero" && raw.deleted;
    let huge = name == "/anon_hugepage" && raw.deleted;
    if raw.inode == 0 || (huge && !raw.shared) {
        vma.offset = 0;
        return Ok(Some(vma));
    }
    if name == "/[aio]" {
        vma.kind = VmaKind::Aio;
        aio.push(AioRing { id: raw.start, events: 0 });
        return Ok(Some(vma));
    }
    let object = if zero_device || huge || name.starts_with("[anon_shmem:") {
        Some((ShmemKind::Anonymous, ""))
    } else if let Some(name) = name.strip_prefix("/memfd:").filter(|_| raw.deleted) {
        Some((ShmemKind::Memfd, name))
    } else if name.starts_with("/SYSV") && raw.deleted {
        Some((ShmemKind::SysV { shmid: raw.inode as i32 }, ""))
    } else {
        None
    };
    if let Some((kind, name)) = object {
        vma.kind = VmaKind::Shmem(shmem(procfs, target, raw, kind, name, world)?);
        return Ok(Some(vma));
    }
    if name == "/dev/zero" && !raw.shared {
        vma.offset = 0;
        return Ok(Some(vma));
    }
    let fd = map_file(procfs, target.pid, raw, raw.shared && raw.has(b"mw"));
    if raw.deleted && !raw.shared {
        // Nobody else can change such a file's pages under this mapping in a way the program could rely on.
        vma.offset = 0;
        return Ok(Some(vma));
    }
    let (fd, stat) = match fd {
        Ok(fd) => {
            let stat = fstat(&fd)?;
            (Some(fd), stat)
        }
        Err(e) if raw.deleted => {
            refuse(world, "deleted file", format!("mapping {place}: the file cannot be reached ({e})"));
            return Ok(Some(vma));
        }
        // Without the privilege for map_files: the path as the container sees it.
        Err(_) => match procfs.open_inside(target.pid, name, OFlag::O_PATH) {
            Ok(fd) => (None, fstat(&fd)?),
            Err(e) => {
                refuse(world, "mapped file", format!("mapping {place}: the file cannot be found ({e})"));
                return Ok(Some(vma));
            }
        },
    };
    if raw.deleted {
        // A file that two processes may still write to through their mappings: it lives on as a memory object.
        vma.kind = VmaKind::Shmem(shmem(procfs, target, raw, ShmemKind::Memfd, file_name(name), world)?);
        return Ok(Some(vma));
    }
    let flags = if raw.shared && raw.has(b"mw") { libc::O_RDWR } else { libc::O_RDONLY };
    vma.kind = VmaKind::File(file(target, name, false, flags, &stat, fd, world));
    Ok(Some(vma))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The file below a mapping, whatever has become of its name (needs CAP_CHECKPOINT_RESTORE in the initial user
/// namespace).
fn map_file(procfs: &ProcFs, pid: i32, raw: &RawVma, writable: bool) -> nix::Result<OwnedFd> {
    let path = format!("{pid}/map_files/{:x}-{:x}", raw.start, raw.end);
    let access = if writable { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    openat(procfs.root(), path.as_str(), access | OFlag::O_CLOEXEC, Mode::empty())
        .or_else(|_| openat(procfs.root(), path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()))
}

fn shmem(
    procfs: &ProcFs,
    target: Target<'_>,
    raw: &RawVma,
    kind: ShmemKind,
    name: &str,
    world: &mut World<'_>,
) -> Result<Id> {
    let identity = (raw.dev, raw.inode);
    if let Some(i) = world.state.shmems.iter().position(|s| s.identity == identity) {
        return Ok(i as Id);
    }
    let id = world.state.shmems.len() as Id;
    let mut object = ShmemState {
        kind,
        name: name.to_owned(),
        size: raw.offset + (raw.end - raw.start),
        huge_page_size: if raw.has(b"ht") { raw.page_size } else { 0 },
        mode: 0o600,
        identity,
        ..ShmemState::default()
    };
    match map_file(procfs, target.pid, raw, false) {
        Ok(fd) => {
            let stat = fstat(&fd)?;
            object.size = stat.st_size as u64;
            object.mode = stat.st_mode & 0o7777;
            object.owner = (stat.st_uid, stat.st_gid);
            object.seals = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GET_SEALS).unwrap_or(0);
            world.contents.push((id, fd));
        }
        Err(e) => world.refusals.push(Refusal {
            cid: target.cid.to_owned(),
            pid: target.ns_pid,
            comm: target.comm.to_owned(),
            fd: None,
            kind: "shared memory".to_owned(),
            what: format!(
                "mapping {:#x}-{:#x} cannot be read as an object ({e}); this takes CAP_CHECKPOINT_RESTORE in the initial user namespace",
                raw.start, raw.end
            ),
        }),
    }
    world.state.shmems.push(object);
    Ok(id)
}

/// What madvise(2) has to be told again.
fn advice(raw: &RawVma) -> Vec<i32> {
    const DONTFORK: i32 = 10;
    [
        (b"rr", libc::MADV_RANDOM),
        (b"sr", libc::MADV_SEQUENTIAL),
        (b"dc", DONTFORK),
        (b"mg", libc::MADV_MERGEABLE),
        (b"hg", libc::MADV_HUGEPAGE),
        (b"nh", libc::MADV_NOHUGEPAGE),
        (b"dd", libc::MADV_DONTDUMP),
        (b"wf", libc::MADV_WIPEONFORK),
    ]
    .into_iter()
    .filter(|(flag, _)| raw.has(flag))
    .map(|(_, advice)| advice)
    .collect()
}
