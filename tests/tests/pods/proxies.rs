//! The process in a pid file ends exactly as the container, and passes signals on. A caller such as conmon is the
//! subreaper of what the command line leaves behind: a process of its own, made by executing this test binary again.
use super::*;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

const COMMAND: &str = "AIRLOCK_TEST_REAPER_COMMAND";
const PID_FILE: &str = "AIRLOCK_TEST_REAPER_PID_FILE";

/// Not a test of its own but what [`Reaper`] executes: runs a command, then waits for the process in its pid file and
/// tells how that ended.
#[test]
fn reaper() {
    let (Ok(command), Ok(pid_file)) = (std::env::var(COMMAND), std::env::var(PID_FILE)) else { return };
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let words: Vec<String> = serde_json::from_str(&command).unwrap();
    let status = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .unwrap();
    assert!(status.success(), "{words:?}: {status}");
    let text = std::fs::read_to_string(pid_file).unwrap();
    assert!(text.bytes().all(|b| b.is_ascii_digit()), "{text:?}");
    let pid = Pid::from_raw(text.parse().unwrap());
    println!("reaper: pid {pid}");
    match waitpid(pid, None).unwrap() {
        WaitStatus::Exited(_, code) => println!("reaper: exit {code}"),
        WaitStatus::Signaled(_, signal, _) => println!("reaper: signal {}", signal as i32),
        other => panic!("{other:?}"),
    }
}

struct Reaper {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    /// The process in the pid file.
    pid: Pid,
    _dir: tempfile::TempDir,
}

impl Reaper {
    /// Runs an airlock command that takes `--pid-file`; `args` come before and after it.
    fn start(state: &State, before: &[&str], after: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let pid_option = ["--pid-file", pid_file.to_str().unwrap()];
        let airlock = state.command(before.iter().chain(&pid_option).chain(after).copied());
        let words: Vec<&str> = std::iter::once(airlock.get_program())
            .chain(airlock.get_args())
            .map(|w| w.to_str().unwrap())
            .collect();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "proxies::reaper", "--nocapture", "--test-threads=1"])
            .env(COMMAND, json!(words).to_string())
            .env(PID_FILE, &pid_file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let pid = Self::line(&mut output, "pid ").parse().unwrap();
        Self { child, output, pid: Pid::from_raw(pid), _dir: dir }
    }

    fn line(output: &mut impl BufRead, what: &str) -> String {
        let mut all = String::new();
        loop {
            let start = all.len();
            assert!(output.read_line(&mut all).unwrap() > 0, "no {what:?} in {all}");
            // The harness writes on the same line.
            if let Some((_, rest)) = all[start..].split_once("reaper: ")
                && let Some(value) = rest.strip_prefix(what)
            {
                return value.trim().to_owned();
            }
        }
    }

    /// `exit N` or `signal N`.
    fn end(mut self) -> String {
        let end = Self::line(&mut self.output, "");
        self.output.read_to_string(&mut String::new()).unwrap();
        assert!(self.child.wait().unwrap().success());
        end
    }
}

/// `create` of a member by a reaper.
fn create(pod: &Pod, args: &[&str], edit: impl FnOnce(&mut Value)) -> (Member, Reaper) {
    let (id, bundle) = (unique("member"), member(&pod.id, CRI, args, edit));
    let reaper = Reaper::start(&pod.state, &["create", "--bundle", bundle.text()], &[&id]);
    assert_eq!(pod.pid(&id), reaper.pid.as_raw());
    (Member { id, bundle }, reaper)
}

#[test]
fn a_proxy_exits_with_the_containers_code() {
    need!("busybox");
    let pod = Pod::new();
    for code in [0, 7, 255] {
        let (member, reaper) = create(&pod, &["/bin/sh", "-c", &format!("exit {code}")], |_| {});
        pod.state.ok(["start", &member.id]);
        assert_eq!(reaper.end(), format!("exit {code}"));
        assert_eq!(pod.state.status(&member.id), "stopped");
        let words = std::fs::read_to_string(pod.state.root().join(&member.id).join("exit.json")).unwrap();
        let words: Value = serde_json::from_str(&words).unwrap();
        assert_eq!(words["status"], json!(code << 8), "{words}");
        pod.state.ok(["delete", &member.id]);
    }
}

#[test]
fn a_proxy_dies_of_the_same_signal() {
    need!("busybox");
    let pod = Pod::new();
    for signal in [9, 15, 6, 10] {
        // Without a pid namespace of its own the program is not process 1, which ignores what it does not handle.
        let (member, reaper) = create(&pod, &["/bin/sleep", "1000"], without_pid_namespace);
        pod.state.ok(["start", &member.id]);
        pod.state.ok(["kill", &member.id, &signal.to_string()]);
        assert_eq!(reaper.end(), format!("signal {signal}"));
        pod.state.ok(["delete", &member.id]);
    }
}

#[test]
fn a_root_container_ends_as_itself_too() {
    need!("busybox");
    let state = State::new();
    for (script, end) in [("exit 3", "exit 3"), ("kill -9 $$; sleep 1000", "signal 9")] {
        let id = unique("root");
        // In the host's pid namespace, so that a signal to itself counts.
        let bundle = Bundle::with(&["/bin/sh", "-c", script], without_pid_namespace);
        let reaper = Reaper::start(&state, &["create", "--bundle", bundle.text()], &[&id]);
        state.ok(["start", &id]);
        assert_eq!(reaper.end(), end);
        state.ok(["delete", &id]);
        leaks::nothing_left(&state, &id);
    }
    // Real-time signals too.
    let bundle = Bundle::with(&["/bin/sh", "-c", "kill -40 $$; sleep 1000"], without_pid_namespace);
    let out = state.run(["run", "--bundle", bundle.text(), &unique("root")]);
    assert_eq!(out.status.code(), Some(128 + 40), "{out:?}");
}

#[test]
fn signals_to_the_proxy_are_the_containers() {
    need!("busybox");
    let pod = Pod::new();
    let script = "trap 'exit 3' TERM; trap 'touch /tmp/usr1' USR1; touch /tmp/ready; while :; do sleep 1000 & wait; done";
    let (member, reaper) = create(&pod, &["/bin/sh", "-c", script], |_| {});
    pod.state.ok(["start", &member.id]);
    let tmp = member.bundle.rootfs().join("tmp");
    wait::until("the traps", || tmp.join("ready").exists().then_some(()));
    kill(reaper.pid, Signal::SIGUSR1).unwrap();
    wait::until("USR1 is handled", || tmp.join("usr1").exists().then_some(()));
    kill(reaper.pid, Signal::SIGTERM).unwrap();
    assert_eq!(reaper.end(), "exit 3");
}

#[test]
fn a_container_that_waits_for_its_start_ends_by_the_proxys_signal() {
    need!("busybox");
    let pod = Pod::new();
    let (member, reaper) = create(&pod, &["/bin/sleep", "1000"], |_| {});
    kill(reaper.pid, Signal::SIGTERM).unwrap();
    assert!(reaper.end().starts_with("signal "));
    pod.until_stopped(&member.id);
    pod.state.ok(["delete", &member.id]);
    leaks::nothing_left(&pod.state, &member.id);
}

#[test]
fn a_killed_proxy_takes_its_container_along() {
    need!("busybox");
    let pod = Pod::new();
    let (member, reaper) = create(&pod, &["/bin/sleep", "1000"], |_| {});
    pod.state.ok(["start", &member.id]);
    kill(reaper.pid, Signal::SIGKILL).unwrap();
    assert_eq!(reaper.end(), "signal 9");
    pod.until_stopped(&member.id);
    assert_eq!(pod.state.status(&pod.id), "running");
    pod.state.ok(["delete", &member.id]);
    leaks::nothing_left(&pod.state, &member.id);
}

#[test]
fn an_executed_process_has_a_proxy_as_well() {
    need!("busybox");
    let pod = Pod::new();
    let member = pod.add(|_| {});
    let exec = |script: &str| {
        Reaper::start(&pod.state, &["exec", "--detach"], &[&member.id, "/bin/sh", "-c", script])
    };
    assert_eq!(exec("exit 4").end(), "exit 4");
    assert_eq!(exec("kill -15 $$; sleep 1000").end(), "signal 15");
    let forwarded = exec("trap 'exit 6' HUP; touch /tmp/ready; while :; do sleep 1000 & wait; done");
    wait::until("the trap", || member.bundle.rootfs().join("tmp/ready").exists().then_some(()));
    kill(forwarded.pid, Signal::SIGHUP).unwrap();
    assert_eq!(forwarded.end(), "exit 6");
    let killed = exec("exec sleep 3000");
    kill(killed.pid, Signal::SIGKILL).unwrap();
    assert_eq!(killed.end(), "signal 9");
    wait::until("its process is gone", || {
        let all = pod.shell(&member.id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
        (!all.contains("sleep 3000")).then_some(())
    });
    assert_eq!(pod.state.status(&member.id), "running");
}

#[test]
fn proxies_end_with_their_sandbox() {
    need!("busybox");
    let pod = Pod::new();
    let (member, reaper) = create(&pod, &["/bin/sleep", "1000"], |_| {});
    pod.state.ok(["start", &member.id]);
    kill(Pid::from_raw(pod.pid(&pod.id)), Signal::SIGKILL).unwrap();
    assert_eq!(reaper.end(), "signal 9");
    pod.until_stopped(&member.id);
}
