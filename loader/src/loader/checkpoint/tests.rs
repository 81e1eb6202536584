use super::conversation::{Agent, Dumped, Turns};
use super::save::names;
use super::*;
use crate::checkpoint::order::{DumpOrder, Event, Order, Report};
use crate::checkpoint::state::Refusal;
use airlock_wire::binary;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// An agent that does what a test says.
fn agent(script: impl FnOnce(&UnixStream) + Send + 'static) -> (Agent, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || script(&theirs));
    (Agent { channel: ours, process: None, kept: Mutex::default() }, thread)
}

fn tell(channel: &UnixStream, event: &Event) {
    binary::send(channel, event, &[]).unwrap();
}

fn hear(channel: &UnixStream) -> Order {
    binary::recv(channel).unwrap().0
}

/// Writes down what happens.
#[derive(Default)]
struct Diary {
    seen: Vec<String>,
    thaw_fails: bool,
    kill: bool,
}

impl Turns for Diary {
    fn progress(&mut self, progress: Progress) {
        self.seen.push(format!("{} {}/{}", progress.phase, progress.pages, progress.total));
    }
    fn interrupted(&mut self) -> Result<()> {
        self.seen.push("thaw".to_owned());
        if self.thaw_fails { Err(Error::failure("no thaw")) } else { Ok(()) }
    }
    fn stopped(&mut self) {
        self.seen.push("stopped".to_owned());
    }
    fn detaching(&mut self) {
        self.seen.push("freeze".to_owned());
    }
    fn untrack(&mut self) -> Vec<OwnedFd> {
        self.seen.push("untrack".to_owned());
        Vec::new()
    }

    fn resumed(&mut self, pause_us: u64) {
        self.seen.push(format!("resumed {pause_us}"));
    }
    fn saved(&mut self, report: &Report, fds: Vec<OwnedFd>) -> bool {
        self.seen.push(format!("saved {} {}", report.pages, fds.len()));
        self.kill
    }
}

fn dump(agent: &Agent, diary: &mut Diary) -> Result<Dumped> {
    agent.dump(&Order::Dump(DumpOrder::default()), &[], diary)
}

#[test]
fn a_dump_is_talked_through_to_the_agents_end() {
    let (agent, thread) = agent(|channel| {
        assert!(matches!(hear(channel), Order::Dump(_)));
        tell(channel, &Event::Log { level: 9, text: "hello".to_owned() });
        tell(channel, &Event::Interrupted);
        assert!(matches!(hear(channel), Order::Continue));
        tell(channel, &Event::Stopped);
        assert!(matches!(hear(channel), Order::Continue));
        tell(channel, &Event::Progress(Progress { phase: "pages".into(), pages: 1, total: 2 }));
        tell(channel, &Event::Detaching);
        assert!(matches!(hear(channel), Order::Continue));
        tell(channel, &Event::Resumed { pause_us: 7 });
        let file = std::fs::File::open("/dev/null").unwrap();
        let report = Report { pages: 2, ..Report::default() };
        binary::send(channel, &Event::Saved(report), &[file.as_fd()]).unwrap();
        assert!(matches!(hear(channel), Order::Release { kill: false }));
    });
    let mut diary = Diary::default();
    let report = Report { pages: 2, ..Report::default() };
    assert_eq!(dump(&agent, &mut diary).unwrap(), Dumped::Saved(report, false));
    assert_eq!(diary.seen, ["thaw", "stopped", "pages 1/2", "freeze", "resumed 7", "saved 2 1"]);
    thread.join().unwrap();
}

#[test]
fn what_goes_wrong_after_the_image_is_complete_is_told() {
    for kill in [true, false] {
        let (agent, thread) = agent(move |channel| {
            hear(channel);
            tell(channel, &Event::Saved(Report::default()));
            assert!(matches!(hear(channel), Order::Release { kill: k } if k == kill));
            tell(channel, &Event::Failed(Error::failure("cannot let go")));
        });
        let mut diary = Diary { kill, ..Diary::default() };
        assert_eq!(dump(&agent, &mut diary).unwrap_err().message, "cannot let go");
        thread.join().unwrap();
    }
}

#[test]
fn an_agent_that_cannot_go_on_is_let_go() {
    let (agent, thread) = agent(|channel| {
        hear(channel);
        tell(channel, &Event::Interrupted);
        // The loader hangs up instead of answering; what is traced is let go with the freezers in order.
        assert!(binary::recv::<Order>(channel).is_err());
        tell(channel, &Event::Detaching);
        tell(channel, &Event::Failed(Error::failure("the loader is gone")));
    });
    let mut diary = Diary { thaw_fails: true, ..Diary::default() };
    assert_eq!(dump(&agent, &mut diary).unwrap_err().message, "no thaw");
    assert_eq!(diary.seen, ["thaw", "freeze"]);
    thread.join().unwrap();
}

#[test]
fn refusals_and_dry_runs_come_through() {
    let refusal = Refusal { pid: 3, kind: "io_uring".into(), ..Refusal::default() };
    let sent = refusal.clone();
    let (first, thread) = agent(move |channel| {
        hear(channel);
        tell(channel, &Event::Refused(vec![sent]));
    });
    assert_eq!(dump(&first, &mut Diary::default()).unwrap(), Dumped::Refused(vec![refusal]));
    thread.join().unwrap();
    let (second, thread) = agent(|channel| {
        hear(channel);
        tell(channel, &Event::DryRun(Report { processes: 4, ..Report::default() }));
    });
    assert!(matches!(dump(&second, &mut Diary::default()), Ok(Dumped::Possible(r)) if r.processes == 4));
    thread.join().unwrap();
}

#[test]
fn an_agent_without_last_words_is_explained() {
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id() as i32;
    let process = Arc::new(Process::new(pid, crate::sys::process::pidfd_open(pid).unwrap()).unwrap());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let agent = Agent { channel: ours, process: Some(process.clone()), kept: Mutex::default() };
    child.kill().unwrap();
    process.end(libc::SIGKILL as u32);
    drop(theirs);
    let error = agent.restored(|_| {}).unwrap_err();
    assert!(error.message.contains("without a word: it was killed"), "{error}");
    child.wait().unwrap();
}

#[test]
fn a_restore_has_two_milestones_or_one() {
    let (agent, thread) = agent(|channel| {
        assert!(matches!(hear(channel), Order::Restore(_)));
        tell(channel, &Event::Restored(Report { pages: 1, ..Report::default() }));
        tell(channel, &Event::Progress(Progress { phase: "pages".into(), pages: 1, total: 2 }));
        tell(channel, &Event::PagesIn(Report { pages: 2, ..Report::default() }));
        tell(channel, &Event::Saved(Report::default()));
    });
    agent.order(&Order::Restore(Default::default()), &[]).unwrap();
    let mut steps = 0;
    assert!(matches!(agent.restored(|_| steps += 1).unwrap(), (r, false) if r.pages == 1));
    assert!(matches!(agent.restored(|_| steps += 1).unwrap(), (r, true) if r.pages == 2));
    assert_eq!(steps, 1);
    assert!(agent.restored(|_| {}).unwrap_err().message.contains("out of turn"));
    thread.join().unwrap();
}

#[test]
fn names_are_annotations_or_numbers_of_those_without() {
    let list = [None, Some("web"), None, Some("db")];
    assert_eq!(names(list.into_iter()), ["__no_name_0", "web", "__no_name_1", "db"]);
}

#[test]
fn a_notice_is_heard_by_those_who_come_early_and_late() {
    let notice = Notice::new().unwrap();
    let ready = |n: &Notice| {
        let mut fds = [PollFd::new(n.ready(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    };
    assert!(notice.outcome().is_none() && !ready(&notice));
    notice.set(Err(Error::failure("first")));
    notice.set(Ok(()));
    for _ in 0..3 {
        assert!(ready(&notice));
        assert_eq!(notice.outcome().unwrap().unwrap_err().message, "first");
    }
}

#[test]
fn checkpoints_are_counted_from_the_call_on() {
    let work = Work::new().unwrap();
    let wait = || {
        let notice = Arc::new(Notice::new().unwrap());
        lock(&work.waiting).push(Arc::downgrade(&notice));
        notice
    };
    let (first, gone) = (wait(), wait());
    drop(gone);
    work.notify_checkpoint(&Ok(()));
    assert!(matches!(first.outcome(), Some(Ok(()))));
    let second = wait();
    assert!(second.outcome().is_none());
    work.notify_checkpoint(&Err(Error::failure("disk full")));
    assert_eq!(second.outcome().unwrap().unwrap_err().message, "disk full");
    assert!(matches!(first.outcome(), Some(Ok(()))));
    assert!(lock(&work.waiting).is_empty());
}

#[test]
fn one_thing_at_a_time_and_new_processes_wait() {
    let work = Work::new().unwrap();
    let busy = work.begin(Kind::Checkpoint).unwrap();
    work.set_progress(Progress { phase: "pages".into(), ..Progress::default() });
    let error = work.begin(Kind::Restore).map(drop).unwrap_err();
    assert_eq!(error.message, "a checkpoint is in progress already (now: pages): wait for it");
    work.close();
    std::thread::scope(|scope| {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let work = &work;
        scope.spawn(move || {
            work.wait_open();
            sender.send(()).unwrap();
        });
        assert!(receiver.recv_timeout(std::time::Duration::from_millis(50)).is_err());
        drop(busy);
        receiver.recv().unwrap();
    });
    assert!(work.begin(Kind::Restore).is_ok());
}

#[test]
fn ends_are_postponed_while_containers_are_made_anew() {
    let work = Work::new().unwrap();
    let exited = |pid| Exited { pid, status: 0 };
    assert!(!work.postpones(exited(5)));
    *lock(&work.postponed) = Some(Vec::new());
    assert!(work.postpones(exited(6)) && work.postpones(exited(7)));
    assert_eq!(lock(&work.postponed).take().unwrap(), [exited(6), exited(7)]);
    let me = std::process::id() as i32;
    let agent = Arc::new(Process::new(me, crate::sys::process::pidfd_open(me).unwrap()).unwrap());
    lock(&work.agents).insert(8, agent.clone());
    assert!(work.agent_ended(Exited { pid: 8, status: 256 }) && !work.agent_ended(exited(8)));
    assert_eq!(agent.status(), Some(256));
    assert_eq!(work.ended(), None);
    work.end_sandbox(3);
    work.end_sandbox(4);
    let mut fds = [PollFd::new(work.late_end(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(1));
    assert_eq!(work.ended(), Some(3));
}
