//! Tests of shadows.

use super::shadow::{Apart, Shadow};
use super::testing::{Program, procfs};
use super::{PAGE, scan};
use crate::checkpoint::remote::{Region, Tracee};

fn children(p: &Program) -> String {
    std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", p.pid())).unwrap()
}

#[test]
fn a_shadow_keeps_what_the_program_changes_and_leaves_no_trace() {
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(300);
    let start = r.start;
    p.run(&format!("put({start}, 1, range(300))"));
    // Mappings that a fork leaves out or wipes, and a handler that counts children.
    p.run(&format!("advise({start} + 100 * P, 50, 10); advise({start} + 200 * P, 50, 18)"));
    p.run("import signal; got = []; signal.signal(signal.SIGCHLD, lambda *a: got.append(1))");
    let apart = [
        (start + 100 * PAGE..start + 150 * PAGE, Apart::DontFork),
        (start + 200 * PAGE..start + 250 * PAGE, Apart::WipeOnFork),
    ];
    let flags = |p: &Program| {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", p.pid())).unwrap();
        smaps.lines().filter(|l| l.starts_with("VmFlags")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = flags(&p);

    let mut tracee = Tracee::seize(p.pid()).unwrap();
    let region = Region::map(&mut tracee, None).unwrap();
    let shadow = Shadow::make(&procfs(), &mut tracee, &region, &apart).unwrap().unwrap();
    region.unmap(&mut tracee).unwrap();
    tracee.detach(0).unwrap();
    assert_eq!(flags(&p), before, "advice is as it was");

    // The program goes on, and changes everything.
    p.run(&format!("put({start}, 2, range(300))"));
    let none = "r = 0\ntry: os.waitpid(-1, os.WNOHANG)\nexcept ChildProcessError: r = 'none'";
    assert_eq!(p.run(&format!("exec({none:?}, globals())")), "none", "it has no child that it can see");
    assert_eq!(children(&p).trim(), shadow.pid().to_string());
    let runs = scan(shadow.memory(), &[r]).unwrap();
    assert_eq!(runs.iter().map(|r| r.pages).sum::<u64>(), 300);
    let mut page = vec![0; PAGE as usize];
    for i in [0, 99, 100, 149, 199, 200, 249, 299] {
        shadow.memory().read(start + i * PAGE, &mut page).unwrap();
        assert_eq!(page[..8], (1u64 << 32 | i).to_le_bytes(), "page {i}");
    }
    let pid = shadow.pid();
    shadow.end(&procfs(), None).unwrap();
    assert_eq!(children(&p), "");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(p.run("r = len(got)"), "0", "no signal came of it");
    assert_eq!(p.run(&format!("r = same({start}, 2, range(300))")), "[]");
}

#[test]
fn a_dropped_shadow_is_dead() {
    let Some(p) = Program::start() else { return };
    let mut tracee = Tracee::seize(p.pid()).unwrap();
    let region = Region::map(&mut tracee, None).unwrap();
    let shadow = Shadow::make(&procfs(), &mut tracee, &region, &[]).unwrap().unwrap();
    let pid = shadow.pid();
    drop(shadow);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert!(stat.contains(") Z "), "{stat}");
    region.unmap(&mut tracee).unwrap();
}

#[test]
fn shadows_are_ended_after_their_programs() {
    let Some(mut p) = Program::start() else { return };
    // A grandchild: its parent ends, and this one inherits the shadow.
    p.run("libc.prctl(36, 1)");
    let child = "rd, wr = os.pipe(); r = os.fork(); r or (os.close(wr), os.read(rd, 1), os._exit(0))";
    let child: i32 = p.run(child).parse().unwrap();
    let mut tracee = Tracee::seize(child).unwrap();
    let region = Region::map(&mut tracee, None).unwrap();
    let shadow = Shadow::make(&procfs(), &mut tracee, &region, &[]).unwrap().unwrap();
    region.unmap(&mut tracee).unwrap();
    tracee.detach(0).unwrap();
    p.run(&format!("os.write(wr, b'x'); os.waitpid({child}, 0)"));
    let pid = shadow.pid();
    shadow.end(&procfs(), None).unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(children(&p), "");
}

#[test]
fn a_program_that_may_not_fork_cannot_be_shadowed() {
    let Some(mut p) = Program::start() else { return };
    // Root is exempt from the limit, so this needs to be somebody else.
    p.run("import resource; os.setresgid(65534, 65534, 65534); os.setresuid(54321, 54321, 54321); resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))");
    let mut tracee = Tracee::seize(p.pid()).unwrap();
    let region = Region::map(&mut tracee, None).unwrap();
    assert!(Shadow::make(&procfs(), &mut tracee, &region, &[]).unwrap().is_none());
    region.unmap(&mut tracee).unwrap();
}
