//! Notifications.

use super::{create, name, need_v1};
use airlock_tests::machine::{Machine, number, output, run};
use airlock_tests::urpc::Caller;
use airlock_tests::{need, skip};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Lines, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;

/// The records of one notification.
struct Feed(Lines<BufReader<PipeReader>>);

impl Feed {
    /// Registers for events of a container.
    #[track_caller]
    fn of(c: &mut Caller, name: &str, spec: Value) -> (u64, Self) {
        let (reader, writer) = std::io::pipe().unwrap();
        let id =
            c.ok("Container.RegisterNotification", &json!({"name": name, "spec": spec}), &[writer.as_fd()]);
        (id.as_u64().unwrap(), Self(BufReader::new(reader).lines()))
    }

    /// The next record; `None` when nothing writes any more.
    fn next(&mut self) -> Option<Value> {
        self.0.next().map(|line| serde_json::from_str(&line.unwrap()).unwrap())
    }
}

/// Runs a program that takes memory until it is killed.
fn take_memory(c: &mut Caller, name: &str) {
    let (_, status) = output(c, name, &["/bin/sh", "-c", "exec tail /dev/zero"]);
    assert_eq!(status, 9, "the OOM killer's");
}

#[test]
fn out_of_memory_threshold_and_empty_are_told() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({"memory": {"limit": 16_777_216, "swap_limit": 0}}));
    let (oom, mut out_of_memory) = Feed::of(&mut c, "/a", json!({"oom": {}}));
    let (half, mut threshold) = Feed::of(&mut c, "/a", json!({"memory_threshold": {"usage": 8_388_608}}));
    let (empty, mut emptied) = Feed::of(&mut c, "/a", json!({"container_empty": {}}));
    assert!(oom != half && half != empty && oom != empty);
    take_memory(&mut c, "/a");
    let record = |id: u64, event: &str, status: &str| json!({"notification_id": id, "container": "/a", "event": event, "status": status, "lost": 0});
    assert_eq!(out_of_memory.next().unwrap(), record(oom, "oom", "OK"));
    // Upwards and downwards.
    assert_eq!(threshold.next().unwrap(), record(half, "memory_threshold", "OK"));
    assert_eq!(threshold.next().unwrap(), record(half, "memory_threshold", "OK"));
    assert_eq!(emptied.next().unwrap(), record(empty, "container_empty", "OK"));
    // Once more, with more than one process, one of which is further down.
    create(&mut c, "/a/b", json!({}));
    let (first, second) =
        (run(&mut c, "/a", &["/bin/sleep", "1000"]), run(&mut c, "/a/b", &["/bin/sleep", "1000"]));
    for pid in [first, second] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    assert_eq!(emptied.next().unwrap(), record(empty, "container_empty", "OK"));
    c.ok("Container.UnregisterNotification", &json!({"name": "/a", "notification_id": half}), &[]);
    assert_eq!(threshold.next(), None, "nobody writes any more");
    // All end with their container.
    c.ok("ContainerApi.Destroy", &name("/a"), &[]);
    for (feed, id, event) in [(&mut out_of_memory, oom, "oom"), (&mut emptied, empty, "container_empty")] {
        let last = std::iter::from_fn(|| feed.next()).last().unwrap();
        assert_eq!(last, record(id, event, "NOT_FOUND"));
    }
}

#[test]
fn the_command_line_prints_records() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({"memory": {"limit": 16_777_216, "swap_limit": 0}}));
    let pipes =
        || airlock_tests::leaks::descriptors(machine.pid()).iter().filter(|d| d.contains("pipe:")).count();
    for words in [&["memory", "oom", "/a"][..], &["memory", "threshold", "/a", "8000000"]] {
        let before = pipes();
        let mut notify = machine.state.command([&["container", "notify"], words].concat());
        let mut notify = notify.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(notify.stdout.take().unwrap()).lines();
        airlock_tests::wait::until("it is registered", || (pipes() > before).then_some(()));
        take_memory(&mut c, "/a");
        let first = lines.next().unwrap().unwrap();
        assert!(first.contains("\"status\":\"OK\""), "{first}");
        notify.kill().unwrap();
        notify.wait().unwrap();
        airlock_tests::wait::until("the server lets go", || (pipes() == before).then_some(()));
    }
    let before = pipes();
    let mut notify = machine.state.command(["container", "notify", "empty", "/a"]);
    let mut notify = notify.stdout(std::process::Stdio::piped()).spawn().unwrap();
    airlock_tests::wait::until("it is registered", || (pipes() > before).then_some(()));
    c.ok("ContainerApi.Destroy", &name("/a"), &[]);
    let mut text = String::new();
    notify.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("\"status\":\"NOT_FOUND\""), "{text}");
    assert!(notify.wait().unwrap().success());
}

#[test]
fn a_reader_that_never_reads_costs_nothing() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({"memory": {"limit": 16_777_216, "swap_limit": 0}}));
    let (reader, writer) = std::io::pipe().unwrap();
    let filled = fill(&writer);
    let register = json!({"name": "/a", "spec": {"oom": {}}});
    c.ok("Container.RegisterNotification", &register, &[writer.as_fd()]);
    drop(writer);
    // A second one that is read shows when the first could have been written.
    let (_, mut read) = Feed::of(&mut c, "/a", json!({"oom": {}}));
    for _ in 0..3 {
        take_memory(&mut c, "/a");
        assert_eq!(read.next().unwrap()["lost"], 0);
    }
    let mut rest = BufReader::new(reader);
    std::io::copy(&mut rest.by_ref().take(filled), &mut std::io::sink()).unwrap();
    take_memory(&mut c, "/a");
    let mut line = String::new();
    rest.read_line(&mut line).unwrap();
    let record: Value = serde_json::from_str(&line).unwrap();
    assert!(record["lost"].as_u64().unwrap() >= 3 && record["status"] == "OK", "{record}");
    // A reader that is gone ends its notification.
    let pipes =
        || airlock_tests::leaks::descriptors(machine.pid()).iter().filter(|d| d.contains("pipe:")).count();
    let before = pipes();
    drop(rest);
    airlock_tests::wait::until("the server lets go of the pipe", || (pipes() < before).then_some(()));
}

/// Fills a pipe; how many bytes are in it.
fn fill(writer: &PipeWriter) -> u64 {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut filled = 0;
    let mut writer = writer;
    for size in [4096, 1] {
        while let Ok(n) = writer.write(&vec![b'\n'; size]) {
            filled += n as u64;
        }
    }
    fcntl(writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    filled
}

#[test]
fn out_of_memory_while_paused() {
    need_v1!();
    need!("python3");
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({"memory": {"limit": 67_108_864, "swap_limit": 0}}));
    create(&mut c, "/a/still", json!({}));
    create(&mut c, "/a/busy", json!({}));
    let (_, mut feed) = Feed::of(&mut c, "/a", json!({"oom": {}}));
    let hold = "b = bytearray(40 << 20)\nimport time\ntime.sleep(1000)";
    let python = airlock_tests::which("python3").unwrap().display().to_string();
    let still = run(&mut c, "/a/still", &[&python, "-c", hold]);
    let used = || machine.file("memory", "/a", "memory.usage_in_bytes").parse::<u64>().unwrap() > 40 << 20;
    airlock_tests::wait::until("it holds its memory", || used().then_some(()));
    c.ok("Container.Pause", &name("/a/still"), &[]);
    // One of both is killed, whichever the kernel chooses; the other goes on, paused or not.
    let busy =
        run(&mut c, "/a/busy", &[&python, "-c", "b = bytearray(60 << 20)\nimport time\ntime.sleep(1000)"]);
    assert_eq!(feed.next().unwrap()["event"], "oom");
    airlock_tests::wait::until("one is killed", || {
        let left = c.ok("Container.ListProcesses", &json!({"name": "/a", "policy": "LIST_RECURSIVE"}), &[]);
        (left.as_array().unwrap().len() == 1).then_some(())
    });
    c.ok("Container.Resume", &name("/a/still"), &[]);
    c.ok("ContainerApi.Destroy", &name("/a"), &[]);
    let statuses = [still, busy].map(|pid| number(&c.ok("Container.Wait", &json!({"pid": pid}), &[])));
    assert_eq!(statuses, [9, 9]);
}

#[test]
fn an_event_of_an_outsider_ends_the_notification() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({"memory": {}}));
    let (_, mut feed) = Feed::of(&mut c, "/a", json!({"oom": {}}));
    // Somebody removes the cgroup without asking the server.
    for hierarchy in ["memory", "freezer"] {
        std::fs::remove_dir(machine.dir(hierarchy, "/a")).unwrap();
    }
    assert_eq!(feed.next().unwrap()["status"], "NOT_FOUND");
    assert_eq!(feed.next(), None);
    assert!(c.fails("Container.Stats", &name("/a"), &[]).starts_with("NOT_FOUND: "));
    create(&mut c, "/a", json!({}));
}
