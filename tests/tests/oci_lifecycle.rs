//! `runtime.md` of the OCI runtime spec: operations in every state, what they print, and what they refuse.
//! (`lifecycle.rs` has pids, descriptors and consoles as callers see them, `cli_surface.rs` the command line.)
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::fds::FdSocket;
use airlock_tests::oci::{BASE, Ran, chown_all, field, in_user_namespace, refused};
use airlock_tests::{Bundle, State, leaks, need, unique, wait};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

struct One {
    state: State,
    bundle: Bundle,
    id: String,
}

impl One {
    fn created(args: &[&str]) -> Self {
        Self::with(args, |_| {})
    }

    fn with(args: &[&str], edit: impl FnOnce(&mut Value)) -> Self {
        let one = Self { state: State::new(), bundle: Bundle::with(args, edit), id: unique("oci") };
        one.state.detached(&["create", "--bundle", one.bundle.text(), &one.id]);
        one
    }

    fn running(args: &[&str]) -> Self {
        let one = Self::created(args);
        one.state.ok(["start", &one.id]);
        one
    }

    fn stop(&self) {
        self.state.ok(["kill", &self.id, "KILL"]);
        wait::until("stopped", || (self.state.status(&self.id) == "stopped").then_some(()));
    }

    fn ok(&self, args: &[&str]) -> String {
        self.state.ok(args)
    }

    /// Runs a command that must fail, which leaves one line and the state as it was.
    #[track_caller]
    fn refuses(&self, args: &[&str], said: &str) {
        let before = self.state.status(&self.id);
        let told = self.state.fails(args);
        assert!(told.contains(said) && told.lines().count() == 1, "{args:?}: {told}");
        assert_eq!(self.state.status(&self.id), before, "{args:?}");
    }

    fn exec(&self, args: &[&str]) -> Ran {
        self.state.run([&["exec", &self.id], args].concat()).into()
    }
}

#[test]
fn a_created_container() {
    need!("busybox");
    let one = One::created(&["sleep", "1000"]);
    let id = one.id.as_str();
    let seen = one.state.state(id);
    assert_eq!(
        (&seen["status"], &seen["id"], &seen["ociVersion"]),
        (&json!("created"), &json!(id), &json!("1.0.2"))
    );
    assert_eq!(
        (&seen["bundle"], &seen["rootfs"], &seen["owner"]),
        (&json!(one.bundle.path()), &json!(one.bundle.rootfs()), &json!("root"))
    );
    assert!(seen["pid"].as_i64().unwrap() > 0 && seen["created"].as_str().unwrap().ends_with('Z'), "{seen}");
    // The program does not run, but other programs may.
    assert!(!one.ok(&["ps", id]).contains("sleep"));
    assert_eq!(one.exec(&["echo", "in created"]).stdout, "in created\n");
    one.refuses(&["create", "--bundle", one.bundle.text(), id], "container with given ID already exists");
    one.refuses(&["run", "--bundle", one.bundle.text(), id], "container with given ID already exists");
    one.refuses(&["resume", id], "container not paused");
    one.ok(&["start", id]);
    assert_eq!(one.state.status(id), "running");
    let other = One::created(&["true"]);
    other.ok(&["delete", &other.id]);
    assert_eq!(other.ok(&["list", "-q"]), "");
}

#[test]
fn a_running_container() {
    need!("busybox");
    let one = One::running(&["sleep", "1000"]);
    let id = one.id.as_str();
    one.refuses(&["start", id], "cannot start an already running container");
    one.refuses(&["delete", id], "cannot delete container");
    one.refuses(&["resume", id], "container not paused");
    one.refuses(&["kill", id, "NOSUCH"], "unknown signal");
    one.refuses(&["kill", id, "65"], "unknown signal");
    one.refuses(&["kill", "--pid", "9999999", id, "TERM"], "no such process");
    // Signal 0 asks, and PID 1 of a namespace ignores what it does not handle.
    one.ok(&["kill", id, "0"]);
    one.ok(&["kill", id]);
    assert_eq!(one.state.status(id), "running");
    one.ok(&["delete", "--force", id]);
    assert!(one.state.fails(["state", id]).contains("container does not exist"));
}

#[test]
fn a_paused_container() {
    need!("busybox");
    let one = One::running(&["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/tmp/count; done"]);
    let id = one.id.as_str();
    let count = one.bundle.rootfs().join("tmp/count");
    let number = || std::fs::read_to_string(&count).ok().filter(|t| t.ends_with('\n'));
    wait::until("the first number", number);
    one.ok(&["pause", id]);
    assert_eq!(one.state.status(id), "paused");
    let before = std::fs::read(&count).unwrap();
    one.refuses(&["pause", id], "paused already");
    one.refuses(&["exec", id, "true"], "cannot exec in a paused container");
    one.refuses(&["delete", id], "cannot delete container");
    one.refuses(&["start", id], "cannot start an already running container");
    assert_eq!(std::fs::read(&count).unwrap(), before, "it stands still");
    // A program that was started all the same goes on with the others.
    let mut early = one
        .state
        .command(["exec", "--ignore-paused", id, "echo", "later"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    one.ok(&["resume", id]);
    let mut text = String::new();
    early.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(early.wait().unwrap().success() && text == "later\n", "{text}");
    wait::until("another number", || number().filter(|n| n.as_bytes() != before));
    // Of a paused one nothing stays either.
    one.ok(&["pause", id]);
    one.ok(&["delete", "--force", id]);
}

#[test]
fn a_stopped_container() {
    need!("busybox");
    let one = One::running(&["sh", "-c", "exit 7"]);
    let id = one.id.as_str();
    wait::until("stopped", || (one.state.status(id) == "stopped").then_some(()));
    let seen = one.state.state(id);
    assert_eq!((&seen["status"], &seen["pid"]), (&json!("stopped"), &json!(0)));
    one.refuses(&["start", id], "cannot start a container that has stopped");
    one.refuses(&["kill", id, "KILL"], "container not running");
    one.refuses(&["exec", id, "true"], "cannot exec in a stopped container");
    one.refuses(&["pause", id], "container not running");
    one.refuses(&["resume", id], "container not running");
    // The status stays readable, as often as one asks.
    for _ in 0..2 {
        let waited: Value = serde_json::from_str(&one.ok(&["wait", id])).unwrap();
        assert_eq!(waited, json!({"id": id, "exitStatus": 7}));
    }
    one.ok(&["delete", id]);
    assert!(one.state.fails(["delete", id]).contains("container does not exist"));
}

#[test]
fn exit_status_of_run_and_of_signals() {
    need!("busybox");
    let state = State::new();
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("exit 255", 255)] {
        let bundle = Bundle::new(&["sh", "-c", script]);
        assert_eq!(state.run(["run", "--bundle", bundle.text(), &unique("oci")]).status.code(), Some(code));
    }
    // A signal that nobody handles; the shell is a child of the program here, which dies of the same.
    let one = One::running(&["sleep", "1000"]);
    one.stop();
    let waited: Value = serde_json::from_str(&one.ok(&["wait", &one.id])).unwrap();
    assert_eq!(waited["exitStatus"], 128 + 9);
}

#[test]
fn run_with_keep_leaves_a_stopped_container() {
    need!("busybox");
    let (state, id) = (State::new(), unique("oci"));
    let bundle = Bundle::new(&["sh", "-c", "exit 3"]);
    assert_eq!(state.run(["run", "--keep", "--bundle", bundle.text(), &id]).status.code(), Some(3));
    assert_eq!(state.status(&id), "stopped");
    state.ok(["delete", &id]);
    let pid_file = bundle.path().join("pid");
    state.run(["run", "--pid-file", pid_file.to_str().unwrap(), "--bundle", bundle.text(), &id]);
    let text = std::fs::read_to_string(&pid_file).unwrap();
    assert!(!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()), "{text:?}");
    assert_eq!(state.ok(["list", "-q"]), "");
}

#[test]
fn a_program_that_cannot_be_executed_is_told_by_create_or_start() {
    need!("busybox");
    let state = State::new();
    let id = unique("oci");
    let missing = Bundle::new(&["/no/such/program"]);
    let told = state.fails(["create", "--bundle", missing.text(), &id]);
    assert!(told.contains("no such file or directory"), "{told}");
    assert_eq!(state.ok(["list", "-q"]), "");
    // What only execve(2) finds out.
    let broken = Bundle::new(&["/bin/broken"]);
    airlock_tests::write_program(&broken.rootfs().join("bin/broken"), "no program\n");
    state.detached(&["create", "--bundle", broken.text(), &id]);
    let told = state.fails(["start", &id]);
    assert!(told.contains("exec format error"), "{told}");
    wait::until("stopped", || (state.status(&id) == "stopped").then_some(()));
}

#[test]
fn exec_takes_its_process_from_the_container_and_from_options() {
    need!("busybox");
    let one = One::with(&["sleep", "1000"], |c| {
        c["process"]["env"] = json!(["PATH=/bin", "A=container"]);
        c["process"]["cwd"] = json!("/tmp");
    });
    one.ok(&["start", &one.id]);
    assert_eq!(one.exec(&["sh", "-c", "pwd; echo $A; id -u"]).stdout, "/tmp\ncontainer\n0\n");
    let with = |options: &[&str], script: &str| {
        one.state.ok([&["exec"], options, &[one.id.as_str(), "sh", "-c", script]].concat())
    };
    let changed = with(
        &["--cwd", "/etc", "-e", "A=exec", "-e", "B=2", "-u", "1000:1001", "-g", "5", "-g", "6"],
        "pwd; echo $A $B; id -u; id -g; cat /proc/self/status",
    );
    assert!(changed.starts_with("/etc\nexec 2\n1000\n1001\n"), "{changed}");
    assert_eq!(field(&changed, "Groups"), "5 6");
    let caps = with(&["--cap", "CAP_SYS_TIME"], "cat /proc/self/status");
    let bounding = u64::from_str_radix(field(&caps, "CapBnd"), 16).unwrap();
    assert!(bounding & (1 << 25) != 0 && bounding & (1 << 5) != 0, "{bounding:x}");
    // CVE-2022-29162: nothing inheritable comes of it.
    assert_eq!(u64::from_str_radix(field(&caps, "CapInh"), 16).unwrap(), 0);
    assert!(one.state.fails(["exec", "--cap", "CAP_NOPE", &one.id, "true"]).contains("CAP_NOPE"));

    let file = one.bundle.path().join("process.json");
    std::fs::write(&file, json!({"args": ["sh", "-c", "pwd; env | sort; id -u; umask"], "cwd": "/bin", "env": ["X=1", "PATH=/bin"],
        "user": {"uid": 7, "gid": 8, "umask": 0o027}, "terminal": false}).to_string()).unwrap();
    let seen = one.ok(&["exec", "--process", file.to_str().unwrap(), &one.id]);
    assert!(seen.starts_with("/bin\n") && seen.contains("X=1\n") && seen.ends_with("7\n0027\n"), "{seen}");
    std::fs::write(&file, "{}").unwrap();
    assert_eq!(
        one.state.run(["exec", "--process", file.to_str().unwrap(), &one.id]).status.code(),
        Some(255)
    );
}

#[test]
fn exec_ends_as_its_program() {
    need!("busybox");
    let one = One::running(&["sleep", "1000"]);
    assert_eq!(one.exec(&["sh", "-c", "exit 9"]).code, Some(9));
    assert_eq!(one.exec(&["sh", "-c", "kill -USR1 $$"]).code, Some(128 + 10));
    for (program, said) in [
        ("no-such-program", "executable file not found in $PATH"),
        ("/no/such", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        let ran = one.exec(&[program]);
        assert!(ran.code == Some(255) && ran.stderr.contains(said), "{program}: {}", ran.stderr);
    }
    // Its pid in the container is told, and can be waited for and signalled.
    let file = one.bundle.path().join("internal");
    one.state.detached(&[
        "exec",
        "--detach",
        "--internal-pid-file",
        file.to_str().unwrap(),
        &one.id,
        "sh",
        "-c",
        "echo $$ >/tmp/own; sleep 1000; exit 3",
    ]);
    let pid = std::fs::read_to_string(&file).unwrap();
    let own = wait::until("its own idea", || {
        std::fs::read_to_string(one.bundle.rootfs().join("tmp/own")).ok().filter(|t| t.ends_with('\n'))
    });
    assert_eq!(pid, own.trim());
    assert!(one.ok(&["ps", &one.id]).contains("sleep 1000; exit 3"));
    let mut waiting =
        one.state.command(["wait", "--pid", &pid, &one.id]).stdout(Stdio::piped()).spawn().unwrap();
    // Once it has ended, it is whoever supervises it who hears of it, and nobody after that.
    let loader = i32::try_from(one.state.state(&one.id)["pid"].as_i64().unwrap()).unwrap();
    wait::until("the command waits, and who stands for it", || {
        (leaks::threads_polling(loader) == 3).then_some(())
    });
    one.ok(&["exec", &one.id, "kill", "-9", &pid]);
    let mut text = String::new();
    waiting.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    waiting.wait().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["exitStatus"], 128 + 9);
}

#[test]
fn ps_lists_pids_and_tables() {
    need!("busybox", "ps");
    let one = One::running(&["sleep", "1000"]);
    one.state.detached(&["exec", "-d", &one.id, "sleep", "2000"]);
    let pids: Vec<i32> = serde_json::from_str(&one.ok(&["ps", "--format", "json", &one.id])).unwrap();
    assert_eq!(pids.len(), 2);
    for pid in &pids {
        assert_eq!(
            std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(),
            "sleep\n",
            "pids are the caller's"
        );
    }
    let table = one.ok(&["ps", &one.id]);
    assert!(
        table.lines().next().unwrap().contains("PID")
            && table.contains("sleep 1000")
            && table.contains("sleep 2000"),
        "{table}"
    );
    let columns = one.ok(&["ps", &one.id, "-o", "pid,args"]);
    assert_eq!(columns.lines().count(), 3, "{columns}");
    one.stop();
}

#[test]
fn update_reads_standard_input_and_files() {
    need!("busybox");
    if !std::path::Path::new("/sys/fs/cgroup/pids").exists() {
        airlock_tests::skip!("needs cgroup v1");
    }
    let id = unique("oci-update") + "-end";
    let state = State::new();
    let bundle = Bundle::with(&["sleep", "1000"], |c| c["linux"]["cgroupsPath"] = json!(format!("/{id}")));
    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    let max =
        || std::fs::read_to_string(format!("/sys/fs/cgroup/pids/{id}/pids.max")).unwrap().trim().to_owned();
    let update = |text: &str| {
        let mut child = state
            .command(["update", "--resources=-", &id])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        (out.status.success(), String::from_utf8(out.stderr).unwrap())
    };
    assert_eq!(update(r#"{"pids":{"limit":55}}"#), (true, String::new()));
    assert_eq!(max(), "55");
    for bad in ["", "[]", "{", r#"{"pids":{"limit":"x"}}"#] {
        let (ok, told) = update(bad);
        assert!(!ok && told.contains("--resources") && told.lines().count() == 1, "{bad}: {told}");
    }
    assert_eq!(max(), "55");
    assert!(state.fails(["update", &id]).contains("nothing to change"));
}

#[test]
fn events_come_until_the_end() {
    need!("busybox");
    let one = One::running(&["sleep", "1000"]);
    let mut events =
        one.state.command(["events", "--interval", "50ms", &one.id]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!((&line["type"], &line["id"]), (&json!("stats"), &json!(one.id)));
        assert!(line["data"]["cpu"]["usage"]["total"].is_u64(), "{line}");
    }
    one.stop();
    assert!(lines.all(|l| l.is_ok()), "whole lines only");
    assert!(events.wait().unwrap().success());
}

#[test]
fn a_terminal_has_the_size_and_the_owner_that_were_asked_for() {
    need!("busybox");
    for user in [false, true] {
        let socket = FdSocket::new();
        let state = State::new();
        let id = unique("oci");
        let script =
            "stty size; tty; stat -c %u /dev/pts/0; stat -c '%F %t' /dev/console; echo typed <$(tty) >$(tty)";
        let bundle = Bundle::with(&["sh", "-c", script], |c| {
            c["process"]["terminal"] = json!(true);
            c["process"]["consoleSize"] = json!({"height": 31, "width": 97});
            c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            if user {
                in_user_namespace(c);
            }
        });
        if user {
            chown_all(&bundle.rootfs(), BASE);
        }
        state.detached(&["create", "--console-socket", socket.text(), "--bundle", bundle.text(), &id]);
        let message = socket.receive();
        state.ok(["start", &id]);
        let mut master = std::fs::File::from(message.fds.into_iter().next().unwrap());
        let mut seen = Vec::new();
        let mut bytes = [0; 512];
        // EIO: nobody has the other end any more.
        while let Ok(n @ 1..) = master.read(&mut bytes) {
            seen.extend_from_slice(&bytes[..n]);
        }
        let text = String::from_utf8(seen).unwrap().replace('\r', "");
        assert_eq!(
            text, "31 97\n/dev/pts/0\n1000\ncharacter special file 88\ntyped\n",
            "user namespace {user}"
        );
    }
    let size = json!({"height": 70_000, "width": 1});
    let told = refused(|c| {
        c["process"]["terminal"] = json!(true);
        c["process"]["consoleSize"] = size;
    });
    assert!(told.contains("process.consoleSize"), "{told}");
}

#[test]
fn containers_are_listed() {
    need!("busybox");
    let one = One::created(&["sleep", "1000"]);
    let list: Value = serde_json::from_str(&one.ok(&["list", "--format", "json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0], one.state.state(&one.id));
    let table = one.ok(&["list"]);
    let mut rows = table.lines();
    assert_eq!(
        rows.next().unwrap().split_ascii_whitespace().collect::<Vec<_>>(),
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    );
    let row: Vec<&str> = rows.next().unwrap().split_ascii_whitespace().collect();
    assert_eq!((row[0], row[2], row[3], row[5]), (one.id.as_str(), "created", one.bundle.text(), "root"));
    assert_eq!(State::new().ok(["list", "--format", "json"]).trim(), "[]");
}
