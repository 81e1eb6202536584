//! The command line is killed in the middle of everything it does: `delete --force` must always succeed afterwards and
//! leave nothing behind.
//!
//! strace(1) sends SIGKILL at the n-th system call; n goes through each command in even steps. `AIRLOCK_CRASH_POINTS`
//! sets their number (default 12; one a system call takes minutes).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::interop::{alive, finish, processes_with};
use airlock_tests::{Bundle, State, leaks, need, unique, wait};
use std::process::{Command, Stdio};

/// What is to be done before each attempt.
enum Before {
    Nothing,
    Created,
    Running,
}

struct Campaign {
    state: State,
    id: String,
    /// Runs for as long as nobody kills it.
    sleeps: Bundle,
}

impl Campaign {
    fn new() -> Self {
        Self { state: State::new(), id: unique("crash"), sleeps: Bundle::new(&["sleep", "1000"]) }
    }

    fn prepare(&self, before: &Before) {
        match before {
            Before::Nothing => {}
            Before::Created => self.state.detached(&["create", "--bundle", self.sleeps.text(), &self.id]),
            Before::Running => self.state.detached(&["run", "-d", "--bundle", self.sleeps.text(), &self.id]),
        }
    }

    /// Runs a command under strace with these options; returns what strace wrote.
    fn trace(&self, options: &[&str], args: &[&str]) -> String {
        let own = self.state.command(args);
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("strace");
        command.arg("-o").arg(log.path()).args(options).arg(own.get_program()).args(own.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        std::fs::read_to_string(log.path()).unwrap()
    }

    fn clear(&self, point: usize) {
        let deleted = finish(&mut self.state.command(["delete", "--force", &self.id]));
        assert_eq!(deleted.code, 0, "killed at system call {point}: {}", deleted.err);
        assert_eq!(self.state.ok(["list", "-q"]), "", "killed at system call {point}");
        let left = std::fs::read_dir(self.state.root()).map_or(0, Iterator::count);
        assert_eq!(left, 0, "killed at system call {point}");
        wait::until(&format!("no cgroup is left (killed at system call {point})"), || {
            leaks::cgroups(&self.id).is_empty().then_some(())
        });
        wait::until(&format!("no process is left (killed at system call {point})"), || {
            (!processes_with(&self.id).into_iter().any(alive)).then_some(())
        });
    }

    /// Kills `args` at points spread over all its system calls.
    fn run(&self, before: Before, args: &[&str]) {
        self.prepare(&before);
        let all = self.trace(&[], args).lines().filter(|l| l.contains('(')).count();
        assert!(all > 50, "only {all} system calls were seen");
        self.clear(0);
        let points = std::env::var("AIRLOCK_CRASH_POINTS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
        for n in 0..points {
            let point = 1 + n * all / points;
            self.prepare(&before);
            self.trace(&["-e", &format!("inject=all:signal=SIGKILL:when={point}")], args);
            // Whatever is left is something that commands understand.
            let state = finish(&mut self.state.command(["state", &self.id]));
            assert!(state.code == 0 || state.err.contains("does not exist"), "at {point}: {}", state.err);
            self.clear(point);
        }
    }
}

#[test]
fn create_may_be_killed() {
    need!("busybox", "strace");
    let c = Campaign::new();
    c.run(Before::Nothing, &["create", "--bundle", c.sleeps.text(), &c.id]);
}

#[test]
fn run_may_be_killed() {
    need!("busybox", "strace");
    let (c, short) = (Campaign::new(), Bundle::new(&["true"]));
    c.run(Before::Nothing, &["run", "--bundle", short.text(), &c.id]);
    c.run(Before::Nothing, &["run", "-d", "--bundle", c.sleeps.text(), &c.id]);
}

#[test]
fn start_may_be_killed() {
    need!("busybox", "strace");
    let c = Campaign::new();
    c.run(Before::Created, &["start", &c.id]);
}

#[test]
fn exec_may_be_killed() {
    need!("busybox", "strace");
    let c = Campaign::new();
    c.run(Before::Running, &["exec", "-d", &c.id, "sleep", "1000"]);
    c.run(Before::Running, &["exec", &c.id, "true"]);
}

#[test]
fn delete_may_be_killed() {
    need!("busybox", "strace");
    let c = Campaign::new();
    c.run(Before::Running, &["delete", "--force", &c.id]);
    c.run(Before::Created, &["delete", &c.id]);
}
