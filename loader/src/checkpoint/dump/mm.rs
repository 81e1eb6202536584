//! Address spaces: what is mapped where, and which of it the page engine has to save.
#![forbid(unsafe_code)]

use super::context::{Context, Extent, Space};
use super::smaps::RawVma;
use crate::checkpoint::state::{
    AioRing, FileKind, FileState, Id, MmLayout, MmState, PathFile, ShmemKind, ShmemState, Vma, VmaKind,
};
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use std::os::fd::OwnedFd;

/// What the kernel shows as the path of a memfd begins so.
const MEMFD: &str = "/memfd:";

/// Position of a file that is mapped and not open: it has none.
pub const MAPPED: i64 = -1;

/// Describes the address space of process `index` by its mappings, without the region, and takes note of what the page
/// engine has to look through. `brk` is its program break.
///
/// # Errors
/// When `/proc` does not tell. What cannot be saved is refused, which is no error.
pub fn collect(ctx: &mut Context, index: usize, vmas: &[RawVma], brk: u64) -> Result<Id> {
    let Some(proc) = ctx.procs.get(index) else { return Err(Error::failure("no such process")) };
    let target = Target { index, pid: proc.task(), container: proc.container };
    let mut mm = MmState {
        layout: layout(&ctx.procfs, target.pid, brk)?,
        auxv: ctx.procfs.read_whole(target.pid, "auxv")?.into(),
        coredump_filter: ctx
            .procfs
            .read(target.pid, "coredump_filter")
            .ok()
            .and_then(|t| u64::from_str_radix(t.trim(), 16).ok())
            .unwrap_or(0x33),
        ..MmState::default()
    };
    mm.exe = exe(ctx, target)?;
    let mut extents = Vec::new();
    for raw in vmas {
        let Some(vma) = mapping(ctx, target, raw, &mut mm.aio)? else { continue };
        let save = match vma.kind {
            VmaKind::Anonymous => !vma.droppable,
            VmaKind::File(_) | VmaKind::Shmem(_) => !vma.shared,
            _ => false,
        };
        let file_pages =
            raw.inode != 0 && raw.deleted && matches!(vma.kind, VmaKind::Anonymous) && !zeros(raw);
        // Pages that nobody has touched are no content; a mapping without any need not be looked through. Pages of a fixed
        // huge size are not counted.
        if save && (raw.rss > 0 || raw.has(b"lo") || raw.has(b"ht") || swapped(raw) || file_pages) {
            extents.push(Extent {
                start: vma.start,
                end: vma.end,
                huge: raw.anon_huge > 0 || raw.has(b"hg"),
                page_size: raw.page_size,
                backed: !matches!(vma.kind, VmaKind::Anonymous),
                file_pages,
            });
        }
        mm.vmas.push(vma);
    }
    let id = ctx.state.mms.len() as Id;
    ctx.state.mms.push(mm);
    ctx.spaces.push(Space { mm: id, proc: index, extents, early: None });
    Ok(id)
}

/// The process whose address space is described.
#[derive(Debug, Clone, Copy)]
struct Target {
    index: usize,
    /// Pid in the sandbox's namespace.
    pid: i32,
    container: Id,
}

/// Memory may be swapped out as a whole; only the page tables know.
fn swapped(raw: &RawVma) -> bool {
    raw.has(b"ac") || raw.has(b"nr")
}

fn layout(procfs: &ProcFs, pid: i32, brk: u64) -> Result<MmLayout> {
    let text = procfs.read(pid, "stat")?;
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
        brk: (start_brk, brk.max(start_brk)),
        stack: field(28),
        args: (field(48), field(49)),
        env: (field(50), field(51)),
    })
}

fn exe(ctx: &mut Context, target: Target) -> Result<Option<Id>> {
    let link = format!("{}/exe", target.pid);
    let path = match nix::fcntl::readlinkat(ctx.procfs.root(), link.as_str()) {
        Ok(path) => path.to_string_lossy().into_owned(),
        Err(nix::errno::Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(Error::from(e).context(format!("reading exe of process {}", target.pid))),
    };
    let fd = openat(ctx.procfs.root(), link.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| {
            Error::from(e).context(format!("opening the program {path:?} of process {}", target.pid))
        })?;
    let (path, deleted) = match path.strip_suffix(" (deleted)") {
        Some(path) => (path.to_owned(), true),
        None => (path, false),
    };
    let stat = fstat(&fd)?;
    Ok(Some(file(ctx, target, &path, deleted.then_some(fd), libc::O_RDONLY, &stat)))
}

/// Registers a file that is mapped or executed, once. One that has no path any more comes with a descriptor.
fn file(
    ctx: &mut Context,
    target: Target,
    path: &str,
    orphan: Option<OwnedFd>,
    flags: i32,
    stat: &FileStat,
) -> Id {
    let identity = (stat.st_dev, stat.st_ino);
    let deleted = orphan.is_some();
    let same = |f: &FileState| match &f.kind {
        FileKind::Path(p) => {
            !deleted && p.identity == identity && p.path == path && f.container == target.container
        }
        FileKind::Deleted { file, .. } => deleted && file.identity == identity,
        FileKind::Memfd(id) => ctx.state.shmems.get(*id as usize).is_some_and(|s| s.identity == identity),
        _ => false,
    };
    // Only files of mappings: those of descriptors have positions of their own.
    let known = ctx.state.files.iter().position(|f| f.flags == flags && f.pos == MAPPED && same(f));
    if let Some(i) = known {
        return i as Id;
    }
    let file = PathFile {
        path: path.to_owned(),
        mode: stat.st_mode,
        size: stat.st_size as u64,
        mtime_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec),
        rdev: stat.st_rdev,
        owner: (stat.st_uid, stat.st_gid),
        identity,
        ..PathFile::default()
    };
    let kind = match orphan {
        Some(fd) => {
            let shmem = ctx.shmem(identity).unwrap_or_else(|| {
                let object = ShmemState {
                    kind: ShmemKind::Memfd,
                    name: path.strip_prefix(MEMFD).unwrap_or_else(|| file_name(path)).to_owned(),
                    size: file.size,
                    mode: stat.st_mode & 0o7777,
                    owner: file.owner,
                    identity,
                    ..ShmemState::default()
                };
                ctx.add_shmem(object, fd)
            });
            // What never had a path is made anew as what it was. A file on a disk could be executed only while nobody
            // may write to it, which does not count for whoever made a memfd.
            if path.starts_with(MEMFD) {
                FileKind::Memfd(shmem)
            } else {
                FileKind::Deleted { file, content: None, shmem: Some(shmem), link: None }
            }
        }
        None => FileKind::Path(file),
    };
    let id = ctx.state.files.len() as Id;
    ctx.state.files.push(FileState {
        kind,
        flags,
        pos: MAPPED,
        container: target.container,
        ..FileState::default()
    });
    id
}

fn mapping(ctx: &mut Context, target: Target, raw: &RawVma, aio: &mut Vec<AioRing>) -> Result<Option<Vma>> {
    let refuse = |ctx: &mut Context, kind: &str, what: String| ctx.refuse(target.index, None, kind, what);
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
        refuse(ctx, "shadow stack", format!("mapping {place}: control-flow enforcement (CET) is in use"));
        return Ok(Some(vma));
    }
    // Since a pre-dump it is us who watch writes; a program that does so as well is known by its descriptor.
    let watched = raw.has(b"uw") && ctx.order.tracked.is_none();
    if raw.has(b"um") || watched || raw.has(b"ui") {
        let what = "it watches faults of its own memory, and who answers them would not know of the restore";
        refuse(ctx, "userfaultfd", what.to_owned());
    }
    if name.starts_with("anon_inode:") || name.starts_with("socket:") || raw.has(b"io") || raw.has(b"pf") {
        let kind = if name.contains("io_uring") { "io_uring" } else { "device mapping" };
        refuse(ctx, kind, format!("mapping {place} shows memory of a device or of the kernel"));
        return Ok(Some(vma));
    }
    if let Some(anon) = name.strip_prefix("[anon:").or_else(|| name.strip_prefix("[anon_shmem:")) {
        vma.name = Some(anon.trim_end_matches(']').to_owned());
    }
    let zero_device = name == "/dev/zero" && raw.deleted;
    let huge = zeros(raw);
    // The inode of a segment is its id, which may be 0.
    let segment = name.starts_with("/SYSV") && raw.deleted;
    if (raw.inode == 0 && !segment) || (huge && !raw.shared) {
        vma.offset = 0;
        return Ok(Some(vma));
    }
    if name == "/[aio]" {
        vma.kind = VmaKind::Aio;
        let leader = ctx.procs.get(target.index).and_then(|p| p.threads.first());
        match leader.map(|leader| super::aio::ring(leader.mem(), raw.start, raw.end - raw.start)).transpose()
        {
            Ok(ring) => aio.extend(ring),
            Err(e) => refuse(ctx, "asynchronous I/O", e.to_string()),
        }
        return Ok(Some(vma));
    }
    let object = if zero_device || huge || name.starts_with("[anon_shmem:") {
        Some((ShmemKind::Anonymous, ""))
    } else if let Some(name) = name.strip_prefix(MEMFD).filter(|_| raw.deleted) {
        Some((ShmemKind::Memfd, name))
    } else if segment {
        Some((ShmemKind::SysV { shmid: raw.inode as i32 }, ""))
    } else {
        None
    };
    if let Some((kind, name)) = object {
        vma.kind = VmaKind::Shmem(shmem(ctx, target, raw, kind, name));
        return Ok(Some(vma));
    }
    if name == "/dev/zero" && !raw.shared {
        vma.offset = 0;
        return Ok(Some(vma));
    }
    let fd = map_file(&ctx.procfs, target.pid, raw, false);
    if raw.deleted && !raw.shared {
        // Nobody else can change such a file's pages under this mapping in a way the program could rely on.
        vma.offset = 0;
        return Ok(Some(vma));
    }
    let stat = match fd {
        Ok(fd) => fstat(&fd)?,
        Err(e) if raw.deleted => {
            refuse(ctx, "deleted file", format!("mapping {place}: the file cannot be reached ({e})"));
            return Ok(Some(vma));
        }
        // Without the privilege for map_files: the path as the container sees it.
        Err(_) => match ctx.procfs.open_inside(target.pid, name, OFlag::O_PATH) {
            Ok(fd) => fstat(&fd)?,
            Err(e) => {
                refuse(ctx, "mapped file", format!("mapping {place}: the file cannot be found ({e})"));
                return Ok(Some(vma));
            }
        },
    };
    if raw.deleted {
        // A file that two processes may still write to through their mappings: it lives on as a memory object.
        vma.kind = VmaKind::Shmem(shmem(ctx, target, raw, ShmemKind::Memfd, file_name(name)));
        return Ok(Some(vma));
    }
    let flags = if raw.shared && raw.has(b"mw") { libc::O_RDWR } else { libc::O_RDONLY };
    vma.kind = VmaKind::File(file(ctx, target, name, None, flags, &stat));
    Ok(Some(vma))
}

/// Anonymous huge pages of hugetlbfs, which show a file that is none.
fn zeros(raw: &RawVma) -> bool {
    raw.name == "/anon_hugepage" && raw.deleted
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

fn shmem(ctx: &mut Context, target: Target, raw: &RawVma, kind: ShmemKind, name: &str) -> Id {
    let identity = (raw.dev, raw.inode);
    if let Some(id) = ctx.shmem(identity) {
        return id;
    }
    let mut object = ShmemState {
        kind,
        name: name.to_owned(),
        size: raw.offset + (raw.end - raw.start),
        huge_page_size: if raw.has(b"ht") { raw.page_size } else { 0 },
        mode: 0o600,
        identity,
        ..ShmemState::default()
    };
    let opened = map_file(&ctx.procfs, target.pid, raw, false).and_then(|fd| Ok((fstat(&fd)?, fd)));
    match opened {
        Ok((stat, fd)) => {
            object.size = stat.st_size as u64;
            object.mode = stat.st_mode & 0o7777;
            object.owner = (stat.st_uid, stat.st_gid);
            object.seals = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GET_SEALS).unwrap_or(0);
            ctx.add_shmem(object, fd)
        }
        Err(e) => {
            let what = format!(
                "mapping {:#x}-{:#x} cannot be read as an object ({e}); this takes CAP_CHECKPOINT_RESTORE in the initial user namespace",
                raw.start, raw.end
            );
            ctx.refuse(target.index, None, "shared memory", what);
            ctx.state.shmems.push(object);
            ctx.state.shmems.len() as Id - 1
        }
    }
}

/// What madvise(2) has to be told again.
pub(super) fn advice(raw: &RawVma) -> Vec<i32> {
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
