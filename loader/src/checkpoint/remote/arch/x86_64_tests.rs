use super::*;

fn in_call(nr: i64, rax: i64) -> Regs {
    Regs {
        orig_rax: nr as u64,
        rax: rax as u64,
        rip: 0x1002,
        rdi: 1,
        rsi: 2,
        rdx: 3,
        r10: 4,
        ..Regs::default()
    }
}

#[test]
fn registers_go_through_bytes() {
    let regs = Regs { r15: 1, rax: 2, gs: 3, rip: u64::MAX, ..Regs::default() };
    let bytes = regs.to_bytes();
    assert_eq!(bytes.len(), 216);
    assert_eq!((bytes[0], bytes[80], bytes[208]), (1, 2, 3));
    assert_eq!(Regs::from_bytes(&bytes).unwrap(), regs);
    assert!(Regs::from_bytes(&bytes[..68]).unwrap_err().message.contains("32-bit"));
}

#[test]
fn calls_that_the_kernel_restarts_are_left_to_it() {
    for code in [-512, -513, -514] {
        let regs = in_call(libc::SYS_read, code);
        assert_eq!(regs.for_image(), regs);
        let back = regs.restarted();
        assert_eq!((back.rip, back.rax, back.orig_rax), (0x1000, libc::SYS_read as u64, u64::MAX));
    }
}

#[test]
fn results_that_look_like_codes_outside_a_call_are_left_alone() {
    for code in [-512, -513, -514, -516, -4] {
        let regs = in_call(-1, code);
        assert_eq!(regs.for_image(), regs);
        assert_eq!(regs.restarted(), regs);
    }
    let done = in_call(libc::SYS_read, 17);
    assert_eq!(done.restarted(), done);
}

#[test]
fn sleeps_go_on_with_the_time_that_remains() {
    let regs = in_call(libc::SYS_nanosleep, -516).for_image();
    assert_eq!((regs.rdi, regs.rax as i64, regs.orig_rax as i64), (2, -514, libc::SYS_nanosleep));
    let regs = in_call(libc::SYS_clock_nanosleep, -516);
    let relative = Regs { rsi: 0, ..regs }.for_image();
    assert_eq!((relative.rdx, relative.rax as i64), (4, -514));
    let absolute = Regs { rsi: 1, ..regs }.for_image();
    assert_eq!((absolute.rdx, absolute.rax as i64), (3, -514));
    let nowhere = Regs { rsi: 0, r10: 0, ..regs }.for_image();
    assert_eq!(nowhere.rdx, 3);
    let nowhere = Regs { rsi: 0, ..in_call(libc::SYS_nanosleep, -516) }.restarted();
    assert_eq!((nowhere.rdi, nowhere.rip, nowhere.rax as i64), (1, 0x1000, libc::SYS_nanosleep));
    let poll = in_call(libc::SYS_poll, -516).restarted();
    assert_eq!((poll.rip, poll.rax as i64, poll.rdi), (0x1000, libc::SYS_poll, 1));
}

#[test]
fn endless_waits_do_not_see_our_interruption() {
    let wait = |nr, r10: i64, rdx| Regs { r10: r10 as u64, rdx, ..in_call(nr, -4) }.for_image().rax as i64;
    assert_eq!(wait(libc::SYS_epoll_wait, -1, 9), -514);
    assert_eq!(wait(libc::SYS_epoll_wait, 0xffff_ffff, 9), -514); // an int in a 64-bit register
    assert_eq!(wait(libc::SYS_epoll_wait, 1000, 9), -4);
    assert_eq!(wait(libc::SYS_epoll_pwait, -1, 9), -514);
    assert_eq!(wait(libc::SYS_epoll_pwait2, 0, 9), -514);
    assert_eq!(wait(libc::SYS_epoll_pwait2, 0x7000, 9), -4);
    assert_eq!(wait(libc::SYS_semop, 77, 9), -514);
    assert_eq!(wait(libc::SYS_semtimedop, 77, 9), -4);
    assert_eq!(wait(libc::SYS_io_getevents, 8, 9), -514);
    assert_eq!(wait(libc::SYS_rt_sigtimedwait, 8, 0), -514);
    assert_eq!(wait(libc::SYS_rt_sigtimedwait, 8, 0x7000), -4);
    assert_eq!(wait(libc::SYS_connect, 0, 0), -4);
}

/// The listing beside the bytes says what the bytes are.
#[test]
fn the_blob_is_its_listing() {
    use std::process::Command;
    if ["as", "objcopy"].iter().any(|tool| Command::new(tool).arg("--version").output().is_err()) {
        eprintln!("skipped: binutils are not installed");
        return;
    }
    let source = include_str!("x86_64.rs");
    let start = source.find("pub const BLOB: &[u8]").unwrap();
    let end = start + source[start..].find("];").unwrap();
    let mut text = ".intel_syntax noprefix\n".to_owned();
    for line in source[start..end].lines().skip(1) {
        text.push_str(line.split_once("//").unwrap().1.trim());
        text.push('\n');
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("blob.s"), text).unwrap();
    let run = |program: &str, args: &[&str]| {
        let done = Command::new(program).args(args).current_dir(dir.path()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    run("as", &["blob.s", "-o", "blob.o"]);
    run("objcopy", &["-O", "binary", "-j", ".text", "blob.o", "blob.bin"]);
    assert_eq!(std::fs::read(path("blob.bin")).unwrap(), BLOB);
    assert_eq!(&BLOB[BLOB_GADGET as usize..][..2], GADGET);
    assert_eq!(&BLOB[BLOB_DONE as usize - 2..][..2], GADGET);
    assert_eq!(BLOB[BLOB_TRAPPED as usize - 1], 0xcc);
}
