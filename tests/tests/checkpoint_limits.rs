//! Checkpoints where there is less than usual: fewer privileges, memory or CPUs, and state that nobody can save.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_loader::checkpoint::image::{Reader, STATEFILE};
use airlock_loader::checkpoint::state::SandboxState;
use airlock_tests::oci::{BASE, all_capabilities, chown_all, in_user_namespace, mount};
use airlock_tests::programs::host_bundle;
use airlock_tests::revive::{Running, Way, revive, row_bundle};
use airlock_tests::{Bundle, State, leaks, need, need_inside, unique, wait};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

/// The bundle of a row in a user namespace.
fn mapped(name: &str) -> Bundle {
    let bundle = row_bundle(name, &[], |config| {
        in_user_namespace(config);
        all_capabilities(config);
    });
    chown_all(&bundle.rootfs(), BASE);
    bundle
}

#[test]
fn a_container_in_a_user_namespace() {
    need!("gcc", "busybox");
    for name in ["threads", "process", "pipes", "zombies", "pidfd", "unixsock"] {
        println!("{name}");
        revive(&mapped(name), &[Way::Plain, Way::Background]);
    }
}

#[test]
fn in_a_user_namespace_memory_comes_before_the_program_runs() {
    need!("gcc", "busybox");
    let (state, dir, bundle) = (State::new(), tempfile::tempdir().unwrap(), mapped("threads"));
    let (image, work) = (dir.path().join("image"), dir.path().join("work"));
    fs::create_dir(&work).unwrap();
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    first.checkpoint(&image, &[]);
    first.delete();
    let more = ["--background", "--work-path", work.to_str().unwrap()];
    let copy = Running::restore(&state, &bundle, &image, dir.path(), &more);
    let log = fs::read_to_string(work.join("restore.log")).unwrap();
    assert!(log.contains("memory was restored before the program ran"), "{log}");
    copy.verify();
    copy.delete();
}

#[test]
fn in_a_user_namespace_shared_memory_is_refused_before_anything_is_disturbed() {
    need!("gcc", "busybox");
    let (state, dir, bundle) = (State::new(), tempfile::tempdir().unwrap(), mapped("memfd"));
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    let image = dir.path().join("image");
    let told = state.fails(["checkpoint", "--image-path", image.to_str().unwrap(), &first.id]);
    for words in ["nothing was disturbed", "process 1", "shared memory", "CAP_CHECKPOINT_RESTORE"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    first.verify();
    first.delete();
}

/// A program with 64 MiB that are like no others, and which it verifies; `first` comes before it says `ready`.
fn heavy(first: &str, edit: impl FnOnce(&mut Value)) -> Bundle {
    let program = format!(
        "import os, signal, hashlib
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
memory = os.urandom(64 << 20)
sum = hashlib.md5(memory).digest()
{first}
print('ready', flush=True)
signal.sigwait([signal.SIGUSR1])
print('cpus', sorted(os.sched_getaffinity(0)), flush=True)
print('ok' if hashlib.md5(memory).digest() == sum else 'memory is not as it was', flush=True)"
    );
    host_bundle(&["/usr/bin/python3", "-c", &program], edit)
}

/// Starts a bundle, saves it, and has its configuration changed.
fn saved(bundle: &Bundle, dir: &Path, edit: impl FnOnce(&mut Value)) -> State {
    let state = State::new();
    let first = Running::start(&state, bundle, dir);
    first.wait_for("ready\n");
    first.checkpoint(&dir.join("image"), &[]);
    first.delete();
    let mut config = bundle.config();
    edit(&mut config);
    bundle.write_config(&config);
    state
}

fn little_memory(config: &mut Value) {
    config["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
}

#[test]
fn a_restore_with_too_little_memory_fails_and_leaves_nothing() {
    need_inside!("python3");
    let (bundle, dir) = (heavy("", |_| {}), tempfile::tempdir().unwrap());
    let state = saved(&bundle, dir.path(), little_memory);
    let image = dir.path().join("image");
    for more in [&[][..], &["--background"]] {
        let id = unique("tight");
        let args =
            ["restore", "--detach", "--bundle", bundle.text(), "--image-path", image.to_str().unwrap()];
        let out = state.command([&args, more, &[id.as_str()]].concat()).output().unwrap();
        let told = if more.is_empty() {
            assert!(!out.status.success());
            String::from_utf8_lossy(&out.stderr).into_owned()
        } else {
            // It fails as soon as too much of the memory has come, which may be before the command ends.
            wait::until("the container ends", || {
                let listed = state.ok(["list", "-q"]).contains(&id);
                (!listed || state.status(&id) == "stopped").then_some(())
            });
            let reason = state.run(["state", &id]);
            state.run(["delete", "--force", &id]);
            String::from_utf8([reason.stdout, out.stderr].concat()).unwrap()
        };
        assert!(told.contains("is memory short?") || told.contains("oom"), "{more:?}: {told}");
        leaks::nothing_left(&state, &id);
    }
}

#[test]
fn a_restore_with_fewer_cpus() {
    need_inside!("python3");
    if std::thread::available_parallelism().unwrap().get() < 2 {
        airlock_tests::skip!("needs two CPUs");
    }
    for (pinned, expected) in [("os.sched_setaffinity(0, {1})", "cpus [0]"), ("", "cpus [0]")] {
        let (bundle, dir) = (heavy(pinned, |_| {}), tempfile::tempdir().unwrap());
        let state = saved(&bundle, dir.path(), |config| {
            config["linux"]["resources"]["cpu"] = json!({"cpus": "0"});
        });
        for more in [&[][..], &["--background"]] {
            let copy = Running::restore(&state, &bundle, &dir.path().join("image"), dir.path(), more);
            copy.verify();
            assert!(copy.output().contains(expected), "{}", copy.output());
            copy.delete();
        }
    }
}

#[test]
fn all_that_cannot_be_saved_is_named_at_once_and_goes_on() {
    need_inside!("python3");
    let outside = tempfile::tempdir().unwrap();
    let bundle = host_bundle(&["/usr/bin/python3", "/programs/unsavable.py"], |config| {
        all_capabilities(config);
        mount(config, "/outside", "bind", outside.path().to_str().unwrap(), &["bind"]);
    });
    fs::create_dir(bundle.rootfs().join("outside")).unwrap();
    let listener = UnixListener::bind(outside.path().join("socket")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let passed = [reader.as_raw_fd()];
        let passed = [nix::sys::socket::ControlMessage::ScmRights(&passed)];
        let byte = [IoSlice::new(b"x")];
        let flags = nix::sys::socket::MsgFlags::empty();
        nix::sys::socket::sendmsg::<()>(peer.as_raw_fd(), &byte, &passed, flags, None).unwrap();
        let mut line = [0; 11];
        peer.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"still there");
        writer.write_all(b"answer").unwrap();
        peer.write_all(b"answer").unwrap();
    });
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    let said = first.output();
    for option in ["--dry-run", "--leave-running"] {
        let image = dir.path().join("image");
        let out = state.run(["checkpoint", option, "--image-path", image.to_str().unwrap(), &first.id]);
        assert!(!out.status.success());
        // A dry run's findings are its result.
        let told = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
        for line in said.lines() {
            let (fd, kind) = line.split_once(' ').unwrap_or((line, ""));
            let place = match (fd.parse::<u32>(), kind) {
                (Ok(pid), "namespace") => format!("process {pid} (\"python3\")"),
                (Ok(fd), _) => format!("descriptor {fd}:"),
                (Err(_), _) if line == "mapping" => "io_uring: mapping".to_owned(),
                // The kernel has none of these.
                _ => continue,
            };
            // A dry run has a line for each.
            let findings = told.replace("; process ", "\nprocess ");
            let kind = kind.trim_end_matches("_event");
            let named =
                findings.lines().any(|l| l.contains(&place) && l.contains("process") && l.contains(kind));
            assert!(named, "{place} {kind}: {told}");
        }
        assert!(!image.join("checkpoint.img").exists());
    }
    first.verify();
    server.join().unwrap();
    first.delete();
}

/// A shell that answers every line it reads, through a pipe.
const ECHO: &str = "echo ready; while read line; do echo \"$(echo got $line | cat)\"; done";

/// A program with its standard input and output at the test's hands.
struct Spoken {
    id: String,
    input: std::io::PipeWriter,
    output: BufReader<std::io::PipeReader>,
}

impl Spoken {
    fn launch(state: &State, args: &[&str]) -> Self {
        let id = unique("spoken");
        let (stdin, input) = std::io::pipe().unwrap();
        let (output, stdout) = std::io::pipe().unwrap();
        let errors = tempfile::tempfile().unwrap();
        let mut command = state.command(args.iter().copied().chain([id.as_str()]));
        command.stdin(stdin).stdout(stdout).stderr(errors.try_clone().unwrap());
        let status = command.status().unwrap();
        assert!(status.success(), "{args:?}: {}", airlock_tests::read_all(errors));
        Self { id, input, output: BufReader::new(output) }
    }

    #[track_caller]
    fn hears(&mut self, expected: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{expected}\n"));
    }

    #[track_caller]
    fn answers(&mut self, word: &str) {
        writeln!(self.input, "{word}").unwrap();
        self.hears(&format!("got {word}"));
    }
}

#[test]
fn a_pod_with_its_standard_streams() {
    need!("busybox");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let image = dir.path().join("image");
    let image = image.to_str().unwrap();
    let root = Bundle::with(&["sh", "-c", ECHO], |c| {
        c["annotations"] = json!({"io.kubernetes.cri.container-type": "sandbox"});
    });
    let member = Bundle::new(&["sh", "-c", ECHO]);
    let of = |pod: &Spoken| {
        let mut config = member.config();
        config["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": pod.id,
        });
        member.write_config(&config);
    };
    let mut first = Spoken::launch(&state, &["run", "--detach", "--bundle", root.text()]);
    first.hears("ready");
    of(&first);
    let mut second = Spoken::launch(&state, &["run", "--detach", "--bundle", member.text()]);
    second.hears("ready");
    first.answers("one");
    second.answers("two");
    state.ok(["checkpoint", "--image-path", image, &first.id]);
    for id in [&second.id, &first.id] {
        state.ok(["delete", "--force", id]);
    }
    for more in [&[][..], &["--background"]] {
        let restore = |bundle: &Bundle| {
            let args = ["restore", "--detach", "--bundle", bundle.text(), "--image-path", image];
            Spoken::launch(&state, &[&args, more].concat())
        };
        let mut pod = restore(&root);
        of(&pod);
        let mut member = restore(&member);
        // What they were given now, and none of it to the other.
        pod.answers("three");
        member.answers("four");
        pod.answers("five");
        for id in [&member.id, &pod.id] {
            state.ok(["delete", "--force", id]);
            leaks::nothing_left(&state, id);
        }
    }
}

#[test]
fn a_session_that_runs_at_the_checkpoint_is_no_obstacle() {
    need!("busybox");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let (image, bundle) = (dir.path().join("image"), Bundle::new(&["sh", "-c", ECHO]));
    let image = image.to_str().unwrap();
    let mut first = Spoken::launch(&state, &["run", "--detach", "--bundle", bundle.text()]);
    first.hears("ready");
    let mut session = state.command(["exec", &first.id, "sh", "-c", ECHO]);
    let session = session.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut session = session.spawn().unwrap();
    let mut output = BufReader::new(session.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(next(), "ready\n");
    // It goes on if the container does.
    state.ok(["checkpoint", "--leave-running", "--image-path", image, &first.id]);
    writeln!(session.stdin.as_ref().unwrap(), "still").unwrap();
    assert_eq!(next(), "got still\n");
    first.answers("one");
    // And ends with it.
    state.ok(["checkpoint", "--image-path", image, &first.id]);
    assert!(!session.wait().unwrap().success());
    assert_eq!(next(), "");
    state.ok(["delete", "--force", &first.id]);
    let mut copy =
        Spoken::launch(&state, &["restore", "--detach", "--bundle", bundle.text(), "--image-path", image]);
    copy.answers("two");
    // The shell, and nobody of the session.
    let pids: Vec<i32> = serde_json::from_str(&state.ok(["ps", "--format", "json", &copy.id])).unwrap();
    assert_eq!(pids.len(), 1, "{pids:?}");
}

/// Four waits for [`WAIT`] that the kernel goes on with by itself, each in a thread, all on one CPU.
const WAITS: &str = "
import ctypes, os, struct, threading
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
libc = ctypes.CDLL(None)
time = lambda: ctypes.create_string_buffer(struct.pack('qq', 1000, 0))
event = ctypes.create_string_buffer(struct.pack('ihh', libc.eventfd(0, 0), 1, 0))
calls = [
    lambda: libc.nanosleep(time(), None),
    lambda: libc.clock_nanosleep(1, 0, time(), None),
    lambda: libc.poll(event, 1, 1000000),
    lambda: libc.syscall(202, ctypes.create_string_buffer(8), 128, 0, time(), None, 0),
]
for call in calls:
    threading.Thread(target=call).start()
print('ready', flush=True)
threading.Event().wait()
";
const WAIT: u64 = 1_000_000_000_000;

#[test]
fn waits_for_a_time_go_on_with_what_was_left() {
    need_inside!("python3");
    if !Path::new("/proc/self/sched").exists() {
        airlock_tests::skip!("needs /proc/<pid>/sched (CONFIG_SCHED_DEBUG)");
    }
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let (bundle, image) = (host_bundle(&["/usr/bin/python3", "-c", WAITS], |_| {}), dir.path().join("image"));
    // What all four have left, when that is less than what they had before.
    let left = |running: &Running<'_>, before: &[u64]| {
        wait::until("four waits have less left than before", || {
            running.checkpoint(&image, &["--leave-running"]);
            let reader = Reader::open(fs::File::open(image.join(STATEFILE)).unwrap(), None).unwrap();
            let saved: SandboxState = reader.read_json("state", 64 << 20).unwrap();
            let threads = saved.processes.iter().flat_map(|p| &p.threads);
            let left: Vec<u64> = threads.filter_map(|t| t.wait_left_ns).collect();
            (left.len() == 4 && left.iter().zip(before).all(|(now, before)| now < before)).then_some(left)
        })
    };
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    let before = left(&first, &[WAIT; 4]);
    first.delete();
    let copy = Running::restore(&state, &bundle, &image, dir.path(), &[]);
    left(&copy, &before);
    copy.delete();
}

/// A container in a user namespace that runs a script of busybox, which says `ready` when it stands still.
fn script_in_user_namespace(script: &str, edit: impl FnOnce(&mut Value)) -> Bundle {
    let script = format!("{script}; echo ready; while ! [ -e /tmp/go ]; do sleep 0.05; done; ");
    let bundle = Bundle::with(&["/bin/sh", "-c", &script], |config| {
        in_user_namespace(config);
        all_capabilities(config);
        edit(config);
    });
    chown_all(&bundle.rootfs(), BASE);
    fs::set_permissions(bundle.rootfs().join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
        .unwrap();
    bundle
}

/// The kernel's table has the machine's ids; mount(2) wants those of the namespace.
#[test]
fn a_tmpfs_with_owners_that_a_program_in_a_user_namespace_mounted() {
    need!("busybox");
    let script = "mkdir /tmp/m; mount -t tmpfs -o uid=5,gid=6,mode=750 t /tmp/m; echo in >/tmp/m/file; chown 7:8 /tmp/m/file";
    let (state, dir, bundle) =
        (State::new(), tempfile::tempdir().unwrap(), script_in_user_namespace(script, |_| {}));
    let image = dir.path().join("image");
    let look = "stat -c '%u:%g %a' /tmp/m /tmp/m/file; cat /tmp/m/file; grep -c ' /tmp/m tmpfs .*uid=100005,gid=100006' /proc/self/mounts";
    let expected = "5:6 750\n7:8 644\nin\n1\n";
    let shell = |id: &str| state.ok(["exec", id, "/bin/sh", "-c", look]);
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    assert_eq!(shell(&first.id), expected);
    first.checkpoint(&image, &[]);
    first.delete();
    // And once more, of what was restored.
    let second = dir.path().join("second");
    let copy = Running::restore(&state, &bundle, &image, dir.path(), &[]);
    assert_eq!(shell(&copy.id), expected);
    copy.checkpoint(&second, &[]);
    copy.delete();
    let last = Running::restore(&state, &bundle, &second, dir.path(), &[]);
    assert_eq!(shell(&last.id), expected);
    last.delete();
}

/// Programs that changed their user are not dumpable, which is a matter of the user namespace in which they were executed.
#[test]
fn what_was_restored_in_a_user_namespace_with_another_user_is_saved_again() {
    need!("busybox");
    let changed = "su user -c 'sleep 1000' & while ! pidof sleep; do sleep 0.05; done";
    for (script, from_the_start) in [("true", true), (changed, false)] {
        println!("{script}");
        let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
        let bundle = script_in_user_namespace(script, |config| {
            if from_the_start {
                config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            }
        });
        let mut running = Running::start(&state, &bundle, dir.path());
        running.wait_for("ready\n");
        for n in 0..3 {
            let image = dir.path().join(format!("image{n}"));
            running.checkpoint(&image, &[]);
            running.delete();
            running = Running::restore(&state, &bundle, &image, dir.path(), &[]);
        }
        let owners = state.ok(["exec", &running.id, "/bin/ps", "-o", "user,args"]);
        assert!(owners.lines().any(|l| l.starts_with("user")), "{owners}");
        running.delete();
    }
}
