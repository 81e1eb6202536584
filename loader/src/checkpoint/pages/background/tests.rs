//! Tests of bringing pages in while a program runs: step by step, and all at once.

use super::space::Space;
use super::*;
use crate::checkpoint::pages::descriptor::{self, Purpose};
use crate::checkpoint::pages::testing::{Program, range};
use crate::checkpoint::pages::{Content, Image, PAGE, Task, Writer, scan};
use crate::checkpoint::remote::Tracee;

const AT: u64 = 0x1000_0000_0000;
const MM: Object = Object::Memory(0);

/// An image of `pages` pages at [`AT`], of which every 50th was not touched, and a program that has as many pages there,
/// with one megabyte free around.
fn image(pages: u64) -> Option<(Chain, Program)> {
    let mut from = Program::start()?;
    from.run(&format!("anon({pages}, {AT}); put({AT}, 1, [i for i in range({pages}) if i % 50 != 49])"));
    let memory = from.memory();
    let runs = scan(&memory, &[range(AT, pages)]).unwrap();
    let mut writer = Writer::new(tempfile::tempfile().unwrap(), 0, Default::default()).unwrap();
    let task = Task { object: MM, content: Content::Memory(&memory, &runs), like: None, known: None };
    writer.add(&[task], None).unwrap();
    let (file, index) = writer.finish().unwrap();
    let mut to = Program::start()?;
    to.run(&format!("anon({pages}, {AT})"));
    Some((Chain::new(vec![Image { index, file, base: 0 }]).unwrap(), to))
}

/// `None`, with a note, where faults cannot be answered.
fn waiting(chain: &Chain, program: &Program, pages: u64) -> Option<Waiting> {
    let mut tracee = Tracee::seize(program.pid()).unwrap();
    let Some(uffd) = descriptor::make(&mut tracee, Purpose::Faults, None).unwrap() else {
        eprintln!("skipped: needs a userfaultfd for faults of the kernel (root)");
        return None;
    };
    let layout = chain.layout(MM).unwrap();
    Some(Waiting { object: MM, pid: program.pid(), uffd, layout, ranges: vec![range(AT, pages)] })
}

/// An address space in which nothing happens but what the test does.
struct Steps {
    chain: Chain,
    space: Space,
    program: Program,
    buffer: Buffer,
}

impl Steps {
    fn new(pages: u64) -> Option<Self> {
        let (chain, program) = image(pages)?;
        let waiting = waiting(&chain, &program, pages)?;
        let space = Space::register(waiting, &[]).unwrap();
        Some(Self { chain, space, program, buffer: Buffer::new() })
    }

    /// Runs a statement of the program, answering its events; gives its answer and the children that it made.
    fn run(&mut self, code: &str) -> (String, Vec<Space>) {
        self.program.send(code);
        let mut children = Vec::new();
        loop {
            let uffd = self.space.descriptor().unwrap();
            let mut fds = [
                PollFd::new(uffd.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.program.output(), PollFlags::POLLIN),
            ];
            poll(&mut fds, PollTimeout::from(20_000u16)).unwrap();
            if fds[0].any() == Some(true) {
                let served = self.space.read_events().unwrap();
                children.extend(served.children);
                for address in served.faults {
                    self.space.answer(&self.chain, address, &mut self.buffer).unwrap();
                }
            } else {
                assert_eq!(fds[1].any(), Some(true), "{code}: nothing happens");
                let answer = self.program.answer();
                assert!(!answer.starts_with("failed"), "{code}: {answer}");
                return (answer, children);
            }
        }
    }

    /// Brings in all that is left.
    fn rest(&mut self) {
        while self.space.bring(&self.chain, &mut self.buffer).unwrap().is_some() {}
        assert!(self.space.finish().unwrap().is_some());
    }
}

/// Statement that checks pages `pages` (an expression) at `at`, which were saved as pages `shift` less.
fn expect(at: u64, pages: &str, shift: u64) -> String {
    format!(
        "r = [i for i in {pages} if ctypes.string_at({at} + i * P, P) != \
         (bytes(P) if (i - {shift}) % 50 == 49 else page(1, i - {shift}))]"
    )
}

#[test]
fn pages_come_when_they_are_asked_for() {
    let Some(mut s) = Steps::new(300) else { return };
    assert_eq!(s.run(&expect(AT, "[7, 49, 123, 200]", 0)).0, "[]");
    // The kernel asks too.
    let (answer, _) =
        s.run(&format!("rd, wr = os.pipe(); r = os.write(wr, ctypes.string_at({AT} + 250 * P, 10))"));
    assert_eq!(answer, "10");
    assert_eq!(
        s.run(&format!(
            "libc.write(wr, ctypes.c_void_p({AT} + 150 * P), P); r = os.read(rd, 5000)[10:] == page(1, 150)"
        ))
        .0,
        "True"
    );
    // Writes stay.
    s.run(&format!("put({AT}, 5, [30])"));
    s.rest();
    assert_eq!(s.program.run(&expect(AT, "[*range(30), *range(31, 300)]", 0)), "[]");
    assert_eq!(s.program.run(&format!("r = same({AT}, 5, [30])")), "[]");
}

#[test]
fn what_is_given_up_does_not_come_back() {
    let Some(mut s) = Steps::new(300) else { return };
    s.run(&expect(AT, "[100]", 0));
    s.run(&format!("advise({AT} + 90 * P, 20, 4); advise({AT} + 200 * P, 5, 4)"));
    s.run(&format!("unmap({AT} + 150 * P, 10)"));
    let zero = |at: u64, n: u64| format!("r = any(ctypes.string_at({AT} + {at} * P, {n} * P))");
    assert_eq!(s.run(&zero(100, 5)).0, "False");
    // Another mapping in the hole.
    s.run(&format!("anon(10, {AT} + 150 * P)"));
    s.rest();
    for (at, n) in [(90, 20), (150, 10), (200, 5)] {
        assert_eq!(s.program.run(&zero(at, n)), "False", "{at}");
    }
    let others = "[*range(90), *range(110, 150), *range(160, 200), *range(205, 300)]";
    assert_eq!(s.program.run(&expect(AT, others, 0)), "[]");
}

#[test]
fn pages_follow_what_is_moved() {
    let Some(mut s) = Steps::new(300) else { return };
    let to = AT + 4096 * PAGE;
    s.run(&expect(AT, "[60]", 0));
    s.run(&format!("move({AT} + 50 * P, 100, {to})"));
    assert_eq!(s.run(&expect(to - 50 * PAGE, "[60, 61, 149]", 0)).0, "[]");
    // Back, but not all of it, to another place.
    s.run(&format!("move({to} + 20 * P, 30, {AT} + 100 * P)"));
    s.rest();
    assert_eq!(s.program.run(&expect(AT, "[*range(50), *range(150, 300)]", 0)), "[]");
    assert_eq!(s.program.run(&expect(to - 50 * PAGE, "[*range(50, 70), *range(100, 150)]", 0)), "[]");
    assert_eq!(s.program.run(&expect(AT, "range(100, 130)", 30)), "[]");
}

#[test]
fn a_child_gets_what_its_parent_had_not_yet() {
    let Some(mut s) = Steps::new(300) else { return };
    s.run(&format!("put({AT}, 9, [3])"));
    s.run(&expect(AT, "[20]", 0));
    // The child looks at its memory when it is told to.
    let check = expect(AT, "[*range(3), *range(4, 300)]", 0).replacen("r = ", "", 1);
    let code = format!(
        "rd, wr = os.pipe(); rd2, wr2 = os.pipe(); r = os.fork(); \
         r or (os.read(rd, 1), os.write(wr2, repr(({check}, same({AT}, 9, [3]))).encode()), os._exit(0))"
    );
    let (_, mut children) = s.run(&code);
    assert_eq!(children.len(), 1);
    let child = children.remove(0);
    // The parent gives up what the child still has.
    s.run(&format!("advise({AT} + 100 * P, 50, 4)"));
    s.rest();
    while child.bring(&s.chain, &mut s.buffer).unwrap().is_some() {}
    assert!(child.finish().unwrap().is_some());
    assert_eq!(s.program.run("os.write(wr, b'x'); r = os.read(rd2, 5000).decode()"), "([], [])");
    assert_eq!(s.program.run(&format!("r = any(ctypes.string_at({AT} + 100 * P, 50 * P))")), "False");
}

#[test]
fn programs_that_end_or_execute_another_are_let_go() {
    let Some(mut s) = Steps::new(300) else { return };
    s.program.send("os.execvp('sleep', ['sleep', '100'])");
    while s.space.bring(&s.chain, &mut s.buffer).unwrap().is_some() {
        let events = s.space.read_events().unwrap();
        for address in events.faults {
            s.space.answer(&s.chain, address, &mut s.buffer).unwrap();
        }
    }
    assert!(s.space.finish().unwrap().is_some());

    let Some(s) = Steps::new(300) else { return };
    let Steps { chain, space, program, mut buffer } = s;
    drop(program);
    while space.bring(&chain, &mut buffer).unwrap().is_some() {}
    space.answer(&chain, AT, &mut buffer).unwrap();
    assert!(space.finish().unwrap().is_some());
    assert!(space.descriptor().is_none());
}

#[test]
fn known_pages_and_small_areas_come_first() {
    let Some((chain, program)) = image(1000) else { return };
    let Some(waiting) = waiting(&chain, &program, 1000) else { return };
    let space =
        Space::register(waiting, &[(MM, AT + 700 * PAGE), (Object::Memory(1), AT), (MM, AT + 701 * PAGE)])
            .unwrap();
    let present = || {
        let runs = scan(&program.memory(), &[range(AT, 1000)]).unwrap();
        runs.iter().map(|r| ((r.start - AT) / PAGE, r.pages)).collect::<Vec<_>>()
    };
    let mut buffer = Buffer::new();
    space.bring(&chain, &mut buffer).unwrap();
    assert!(present().iter().all(|(at, n)| (640..704).contains(at) && at + n <= 750), "{:?}", present());
    // Two of the unit had not been touched.
    assert_eq!(present().iter().map(|r| r.1).sum::<u64>(), 62);
}

#[test]
fn a_whole_program_comes_while_it_works() {
    let Some((chain, mut program)) = image(6000) else { return };
    let Some(waiting) = waiting(&chain, &program, 6000) else { return };
    let shared = Arc::new(AtomicU64::new(0));
    let seen = shared.clone();
    let share: Share = Box::new(move |_| {
        seen.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let options = Options { threads: 2, share: Some(share), ..Options::default() };
    let monitor = Monitor::start(chain, vec![waiting], options).unwrap();
    // It touches pages in an order of its own, forks, and gives up and moves what may not be there yet.
    program.run("import random");
    let work = format!(
        "order = list(range(6000)); random.shuffle(order); bad = []; kids = []\n\
         for n, i in enumerate(order):\n\
         \x20   want = bytes(P) if i % 50 == 49 else page(1, i)\n\
         \x20   if ctypes.string_at({AT} + i * P, P) != want: bad.append(i)\n\
         \x20   if n % 1500 == 0:\n\
         \x20       k = os.fork()\n\
         \x20       if k == 0:\n\
         \x20           wrong = [j for j in order[n:] if ctypes.string_at({AT} + j * P, P) != (bytes(P) if j % 50 == 49 else page(1, j))]\n\
         \x20           os._exit(len(wrong) != 0)\n\
         \x20       kids.append(k)\n\
         r = (bad, [os.waitpid(k, 0)[1] for k in kids])"
    );
    assert_eq!(program.run(&format!("exec({work:?}, globals())")), "([], [0, 0, 0, 0])");
    let outcome = monitor.wait(Some(Duration::from_secs(60))).unwrap().unwrap();
    assert!(outcome.pages >= 5880, "{outcome:?}");
    assert_eq!(outcome.order.len() as u64, outcome.faults);
    assert!(shared.load(Ordering::Relaxed) >= 1);
    drop(monitor);
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", program.pid())).unwrap();
    assert!(
        !maps.lines().any(|l| l.starts_with("VmFlags") && l.contains(" um")),
        "nothing is registered any more"
    );
}

#[test]
fn on_demand_only_what_is_asked_for_comes_and_children_are_let_go_of() {
    let Some((chain, mut program)) = image(3000) else { return };
    let Some(waiting) = waiting(&chain, &program, 3000) else { return };
    let kept = Arc::new(Mutex::new((0u64, 0u64)));
    let counted = kept.clone();
    let share: Share = Box::new(move |sharing| {
        let mut counted = lock(&counted);
        match sharing {
            Sharing::Keep(_) => counted.0 += 1,
            Sharing::Forget(_) => counted.1 += 1,
        }
        Ok(())
    });
    let options = Options { threads: 2, share: Some(share), on_demand: true, ..Options::default() };
    let monitor = Monitor::start(chain, vec![waiting], options).unwrap();
    assert_eq!(program.run(&expect(AT, "[7, 49, 2500]", 0)), "[]");
    let there = |program: &Program| -> u64 {
        scan(&program.memory(), &[range(AT, 3000)]).unwrap().iter().map(|r| r.pages).sum()
    };
    assert!(there(&program) <= 3 * 8, "{} pages", there(&program));
    // Children end one after the other, and the descriptors that are for them do not pile up.
    let work = "for i in range(100):\n    k = os.fork()\n    if k == 0: os._exit(0)\n    os.waitpid(k, 0)\nr = 'done'";
    assert_eq!(program.run(&format!("exec({work:?}, globals())")), "done");
    assert!(monitor.shared.spaces().len() < 40, "{}", monitor.shared.spaces().len());
    {
        let kept = lock(&kept);
        assert_eq!(kept.0, 101);
        assert!(kept.1 > 60, "{} forgotten", kept.1);
    }
    assert_eq!(monitor.wait(Some(Duration::ZERO)).unwrap(), None);
    monitor.fetch().unwrap();
    monitor.fetch().unwrap();
    monitor.wait(Some(Duration::from_secs(60))).unwrap().unwrap();
    poll(&mut [PollFd::new(monitor.ended(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
    assert_eq!(there(&program), 2940);
    assert_eq!(program.run(&expect(AT, "range(3000)", 0)), "[]");
    let kept = *lock(&kept);
    assert_eq!(kept.0, kept.1);
}

#[test]
fn damage_is_an_error_and_nobody_sees_wrong_pages() {
    let Some((chain, mut program)) = image(300) else { return };
    let Some(waiting) = waiting(&chain, &program, 300) else { return };
    chain.images()[0].file.set_len(0).unwrap();
    let monitor = Monitor::start(chain, vec![waiting], Options::default()).unwrap();
    let e = monitor.wait(Some(Duration::from_secs(60))).unwrap_err();
    assert!(e.message.contains("ends at offset 0"), "{e}");
    // Whoever asks now waits, rather than seeing zeros.
    program.send(&format!("r = ctypes.string_at({AT}, 8)"));
    let mut fds = [PollFd::new(program.output(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(300u16)).unwrap(), 0);
    drop(program);
    drop(monitor);
}

#[test]
fn mappings_that_cannot_wait_are_told_apart() {
    let Some((chain, _)) = image(300) else { return };
    let layout = chain.layout(MM).unwrap();
    let ranges = [
        range(AT, 100),
        Range { backed: true, ..range(AT + 100 * PAGE, 50) },
        Range { page_size: 2 << 20, ..range(AT + 150 * PAGE, 50) },
        range(AT + 200 * PAGE, 50),
        range(AT + 250 * PAGE, 50),
    ];
    let locked = AT + 210 * PAGE..AT + 211 * PAGE;
    let (lazy, eager) = split(&layout, &ranges, std::slice::from_ref(&locked));
    let spans = |l: &Layout| l.spans().iter().map(|s| (s.start - AT) / PAGE).collect::<Vec<_>>();
    assert_eq!(lazy.pages() + eager.pages(), layout.pages());
    assert!(spans(&lazy).iter().all(|p| *p < 100 || *p >= 250), "{:?}", spans(&lazy));
    assert_eq!(eager.pages(), 3 * 49);
}
