//! Address spaces of real programs, torn down and made anew in place.

use super::*;
use crate::checkpoint::dump::{context as dumped, mm as described, smaps as parsed};
use crate::checkpoint::order::DumpOrder;
use crate::checkpoint::state::{FileKind, Life};
use crate::procfs::ProcFs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

fn vma(start: u64, end: u64) -> Vma {
    Vma { start, end, prot: 1, ..Vma::default() }
}

#[test]
fn the_region_is_put_where_nobody_has_anything() {
    let mm = MmState {
        vmas: vec![vma(0x40_0000, 0x50_0000), vma(0x7fff_0000_0000, 0x7fff_0000_1000)],
        ..MmState::default()
    };
    let taken = [(0x1000_0000_0000, 0x3000_0000_0000)];
    let at = free_address([&mm].into_iter(), &taken, 0x10000).unwrap();
    assert!((0x3000_0000_0000..0x7fff_0000_0000 - 0x10000).contains(&at), "{at:#x}");
    let full = MmState { vmas: vec![vma(0x10000, TASK_END)], ..MmState::default() };
    assert_eq!(free_address([&full].into_iter(), &[], 0x1000), None);
}

#[test]
fn only_ranges_with_pages_to_come_are_made_writable() {
    let content = [(0x3000, 0x4000), (0x9000, 0xb000)];
    assert_eq!(filling(&vma(0x1000, 0x3000), &content), 1);
    assert_eq!(filling(&vma(0x3000, 0x5000), &content), 3);
    assert_eq!(filling(&vma(0x4000, 0x9000), &content), 1);
    assert_eq!(filling(&vma(0xa000, 0xc000), &content), 3);
    assert_eq!(filling(&Vma { shared: true, ..vma(0x3000, 0x5000) }, &content), 1);
}

/// Addresses and protections, as few pieces as possible.
fn protections(maps: &str) -> Vec<(u64, u64, String)> {
    let mut all: Vec<(u64, u64, String)> = Vec::new();
    for line in maps.lines().filter(|l| l.bytes().next().is_some_and(|b| !b.is_ascii_uppercase())) {
        let mut words = line.split(' ');
        let (start, end) = words.next().unwrap().split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let perms = words.next().unwrap().to_owned();
        match all.last_mut() {
            Some(last) if last.1 == start && last.2 == perms => last.1 = end,
            _ => all.push((start, end, perms)),
        }
    }
    all
}

const PROGRAM: &str = "
import sys, hashlib, mmap, time
blob = bytes(range(256)) * 40000
anon = mmap.mmap(-1, 1 << 20)
anon[1000:1005] = b'hello'
print('ready', flush=True)
for line in sys.stdin:
    t = time.monotonic()
    print(hashlib.sha256(blob).hexdigest()[:8], anon[1000:1005].decode(), open('/proc/self/comm').read().strip(),
          'hashlib' in open('/proc/self/cmdline').read(), t > 0, flush=True)
";

#[test]
fn an_address_space_is_made_anew_in_place() {
    let Ok(mut child) =
        Command::new("python3").args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
    else {
        eprintln!("SKIPPED: needs the program python3");
        return;
    };
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut stdin = child.stdin.take().unwrap();
    let mut line = || {
        let mut text = String::new();
        out.read_line(&mut text).unwrap();
        text
    };
    assert_eq!(line(), "ready\n");
    stdin.write_all(b"\n").unwrap();
    let first = line();
    assert!(first.ends_with("hello python3 True True\n"), "{first}");

    let pid = child.id() as i32;
    let procfs = ProcFs::new(std::fs::File::open("/proc").unwrap().into());
    let smaps = String::from_utf8(procfs.read_whole(pid, "smaps").unwrap()).unwrap();
    let mut task = Tracee::seize(pid).unwrap();
    let saved_regs = task.regs().unwrap();
    let brk = task.syscall(libc::SYS_brk, [0; 6]).unwrap().unwrap();
    let mut ctx = dumped::Context::new(DumpOrder::default(), procfs, Vec::new());
    ctx.procs.push(dumped::Proc {
        pid,
        ns_pid: pid,
        container: 0,
        comm: "python3".to_owned(),
        parent: None,
        life: Life::Alive,
        shares_mm_with: None,
        shares_sighand: false,
        leader_gone: false,
        threads: Vec::new(),
        ns_tids: Vec::new(),
        statuses: Vec::new(),
        region: None,
        memory: dumped::MemoryFacts::default(),
    });
    described::collect(&mut ctx, 0, &parsed::parse(&smaps).unwrap(), brk).unwrap();
    assert!(ctx.refusals.is_empty(), "{:?}", ctx.refusals);
    let mm = ctx.state.mms[0].clone();

    // Everything private and readable is kept here; shared anonymous memory is its object's.
    let mut content = Vec::new();
    for vma in &mm.vmas {
        if matches!(vma.kind, VmaKind::Anonymous | VmaKind::File(_)) && !vma.shared && vma.prot & 1 != 0 {
            let bytes = task.mem().bytes(vma.start, (vma.end - vma.start) as usize).unwrap();
            content.push((vma.start, bytes));
        }
    }
    let ranges: Vec<(u64, u64)> = content.iter().map(|(s, b)| (*s, s + b.len() as u64)).collect();

    let at = free_address([&mm].into_iter(), &[], Region::DATA + 4096).unwrap();
    let region = Region::map(&mut task, Some(at)).unwrap();
    let mut fds = MapFds::default();
    let mut batch = Batch::new();
    let mut opened = Vec::new();
    for (i, file) in ctx.state.files.iter().enumerate() {
        let FileKind::Path(path) = &file.kind else { panic!("{file:?}") };
        let path = batch.text(&path.path);
        let call = batch.call(
            libc::SYS_openat,
            [Arg::from(libc::AT_FDCWD), path, Arg::from(file.flags | libc::O_CLOEXEC), Arg::NULL],
        );
        opened.push((i as u32, call));
    }
    let ran = batch.run(&mut task, &region).unwrap();
    for (i, call) in opened {
        fds.files.insert(i, ran.get(call).unwrap() as i32);
    }
    for (i, (_, fd)) in ctx.contents.iter().enumerate() {
        // The object itself, by its link.
        use std::os::fd::AsRawFd;
        let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        let mut batch = Batch::new();
        let path = batch.text(path);
        let call = batch
            .call(libc::SYS_openat, [Arg::from(libc::AT_FDCWD), path, Arg::from(libc::O_RDWR), Arg::NULL]);
        let ran = batch.run(&mut task, &region).unwrap();
        fds.shmems.insert(i as u32, ran.get(call).unwrap() as i32);
    }

    clear(&mut task, &region, &mm).unwrap();
    check_vdso(&String::from_utf8(ctx.procfs.read_whole(pid, "maps").unwrap()).unwrap(), &mm).unwrap();
    map(&mut task, &region, &mm, &ctx.state.shmems, &fds, &ranges).unwrap();
    for (start, bytes) in &content {
        task.mem().write(*start, bytes).unwrap();
    }
    // The program itself stays as it is: the kernel refuses to replace one that is mapped.
    let warnings = finish(&mut task, &region, &mm, None, &ranges).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    region.unmap(&mut task).unwrap();
    let again = String::from_utf8(ctx.procfs.read_whole(pid, "maps").unwrap()).unwrap();
    // Neighbours may have merged that could not before; no address has another protection.
    assert_eq!(protections(&smaps), protections(&again));
    task.set_regs(&saved_regs).unwrap();
    task.detach(0).unwrap();
    stdin.write_all(b"\n").unwrap();
    assert_eq!(line(), first);
    drop(stdin);
    assert!(child.wait().unwrap().success());
}
