use super::super::*;
use super::*;
use nix::errno::Errno;

#[test]
fn a_thousand_calls_and_ten_thousand() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    let before = (t.regs().unwrap(), t.sigmask().unwrap());
    for count in [1000, 10_000] {
        let mut batch = Batch::new();
        let calls: Vec<CallId> = (0..count)
            .map(|i| match i % 3 {
                0 => batch.must(libc::SYS_getpid, []),
                1 => batch.call(libc::SYS_close, [(5000 + i).into()]),
                _ => batch.must(libc::SYS_umask, [(i % 512).into()]),
            })
            .collect();
        let ran = batch.run(&mut t, &region).unwrap();
        ran.check_musts().unwrap();
        for (i, call) in calls.iter().enumerate() {
            let expected = match i % 3 {
                0 => Ok(program.pid() as u64),
                1 => Err(Errno::EBADF),
                _ => Ok(if i < 3 { ran.result(*call).unwrap() } else { (i as u64 - 3) % 512 }),
            };
            assert_eq!(ran.result(*call), expected, "call {i}");
        }
    }
    assert_eq!(before, (t.regs().unwrap(), t.sigmask().unwrap()));
    region.unmap(&mut t).unwrap();
    t.detach(0).unwrap();
    until("it sleeps again", || program.state() == 'S');
}

#[test]
fn results_and_data_go_from_call_to_call() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "what the file says").unwrap();
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    // A little room, so that the batch is cut in the middle of what belongs together.
    let small = Region { len: 3 * 4096, ..region };
    for (region, filling) in [(region, 0), (small, 100), (small, 107), (small, 108), (small, 3000)] {
        let mut batch = Batch::new();
        let name = batch.text(path.to_str().unwrap());
        let (one, two) = (batch.space(4), batch.space(64));
        let mut iovec = [0u64; 4];
        (iovec[1], iovec[3]) = (4, 64);
        let iovec: Vec<u8> = iovec.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let iovec = batch.data(&iovec);
        batch.pointer(iovec, one);
        batch.pointer(iovec.at(16), two);
        let open = batch.must(libc::SYS_openat, [libc::AT_FDCWD.into(), name, libc::O_RDONLY.into()]);
        for _ in 0..filling {
            batch.must(libc::SYS_getpid, []);
        }
        let read = batch.must(libc::SYS_readv, [open.into(), iovec, 2.into()]);
        let seek = batch.must(libc::SYS_lseek, [open.into(), Arg::NULL, libc::SEEK_CUR.into()]);
        let close = batch.must(libc::SYS_close, [open.into()]);
        let again = batch.call(libc::SYS_close, [open.into()]);
        let ran = batch.run(&mut t, &region).unwrap();
        ran.check_musts().unwrap();
        assert_eq!(ran.output(one, 4), b"what");
        assert_eq!(ran.output(two, 14), b" the file says");
        assert_eq!((ran.result(read), ran.result(seek)), (Ok(18), Ok(18)));
        assert_eq!((ran.result(close), ran.result(again)), (Ok(0), Err(Errno::EBADF)));
        let e = ran.check().unwrap_err();
        assert!(e.message.starts_with("close("), "{e}");
    }
}

#[test]
fn a_call_that_must_not_fail_ends_the_batch() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    for before in [0, 1, 5000] {
        let mut batch = Batch::new();
        for _ in 0..before {
            batch.must(libc::SYS_getpid, []);
        }
        let may = batch.call(libc::SYS_close, [(-1).into()]);
        let name = batch.text("/does/not/exist");
        let must = batch.must(libc::SYS_chdir, [name]);
        let never = batch.must(libc::SYS_exit_group, [1.into()]);
        let ran = batch.run(&mut t, &region).unwrap();
        assert_eq!(ran.result(may), Err(Errno::EBADF));
        assert_eq!(ran.result(must), Err(Errno::ENOENT));
        assert_eq!(ran.result(never), Err(Errno::ECANCELED));
        let e = ran.check_musts().unwrap_err();
        assert!(e.message.starts_with("chdir(\"/does/not/exist\", "), "{e}");
        assert!(e.message.contains("(sleep)"), "{e}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    let mut batch = Batch::new();
    let big = batch.space(region.data_len() as usize);
    batch.call(libc::SYS_read, [0.into(), big, 1.into()]);
    assert!(batch.run(&mut t, &region).unwrap_err().message.contains("larger"));
    let mut other = Batch::new();
    let foreign = other.space(100).at(1000);
    other.call(libc::SYS_read, [0.into(), foreign, 1.into()]);
    assert!(other.run(&mut t, &region).unwrap_err().message.contains("data"));
    let mut later = Batch::new();
    let id = later.call(libc::SYS_getpid, []);
    let mut batch = Batch::new();
    batch.call(libc::SYS_close, [id.into()]);
    assert!(batch.run(&mut t, &region).unwrap_err().message.contains("later"));
    assert!(Batch::new().run(&mut t, &region).unwrap().check().is_ok());
}

/// Much data in both directions.
#[test]
fn big_data_needs_a_big_region() {
    let program = Program::sleep("1000");
    let mut t = Tracee::seize(program.pid()).unwrap();
    let region = Region::map_sized(&mut t, None, 3 << 20).unwrap();
    let bytes: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut batch = Batch::new();
    let name = batch.text("");
    let (source, target) = (batch.data(&bytes), batch.space(bytes.len()));
    let file = batch.must(libc::SYS_memfd_create, [name, Arg::NULL]);
    batch.must(libc::SYS_pwrite64, [file.into(), source, bytes.len().into(), Arg::NULL]);
    batch.must(libc::SYS_pread64, [file.into(), target, bytes.len().into(), Arg::NULL]);
    let ran = batch.run(&mut t, &region).unwrap();
    ran.check().unwrap();
    assert!(ran.output(target, bytes.len()) == bytes);
}
