//! What surrounds the programs of a checkpoint: overlays, mounts, the network outside.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::revive::Running;
use airlock_tests::{Bundle, State, need, unique, wait};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A shell that does `set_up`, says `ready`, and on SIGUSR1 does `verify`, which has to say `ok`.
fn shell(set_up: &str, verify: &str) -> String {
    format!("trap '{verify}; exit' USR1; {set_up}; echo ready; while :; do sleep 1000 & wait; done")
}

fn may_mount(config: &mut Value) {
    for set in ["bounding", "effective", "permitted"] {
        let all = ["SYS_ADMIN", "MKNOD", "CHOWN", "DAC_OVERRIDE", "FOWNER"].map(|c| format!("CAP_{c}"));
        config["process"]["capabilities"][set] = all.to_vec().into();
    }
}

/// Starts a bundle with `more` arguments.
#[track_caller]
fn start<'a>(state: &'a State, bundle: &Bundle, dir: &Path, more: &[&str]) -> Running<'a> {
    let args = [&["run", "--detach", "--bundle", bundle.text()], more].concat();
    Running::launch(state, dir, &args)
}

#[test]
fn what_was_written_to_an_overlay_in_memory_travels() {
    need!("busybox");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("old"), "of the host").unwrap();
    let script = shell(
        "echo changed > /etc/config; rm /etc/gone; rm -r /old; mkdir /old; echo new > /old/new; \
         ln /old/new /old/link; echo mine > /vol/new; echo more >> /vol/old; echo x > /file",
        "cat /etc/config /old/* /vol/* /file; ls /etc /old; test -e /etc/gone || test -e /old/deep || echo ok",
    );
    let bundle = Bundle::with(&["sh", "-c", &script], |config| {
        airlock_tests::oci::mount(config, "/vol", "bind", volume.path().to_str().unwrap(), &["bind"]);
        let file = volume.path().join("old");
        airlock_tests::oci::mount(config, "/file", "bind", file.to_str().unwrap(), &["bind"]);
    });
    fs::create_dir_all(bundle.rootfs().join("old/deep")).unwrap();
    fs::create_dir_all(bundle.rootfs().join("etc")).unwrap();
    fs::write(bundle.rootfs().join("etc/config"), "original").unwrap();
    fs::write(bundle.rootfs().join("etc/gone"), "original").unwrap();
    let overlay = ["--overlay2", "all:memory"];
    let first = start(&state, &bundle, dir.path(), &overlay);
    first.wait_for("ready\n");
    let image = dir.path().join("image");
    first.checkpoint(&image, &[]);
    first.delete();

    let copy = Running::restore(&state, &bundle, &image, dir.path(), &overlay);
    copy.verify();
    assert!(copy.output().starts_with("changed\nnew\nnew\nmine\nof the hostmore\nx\n"), "{}", copy.output());
    copy.delete();
    assert_eq!(fs::read_to_string(bundle.rootfs().join("etc/config")).unwrap(), "original");
    assert_eq!(fs::read_to_string(volume.path().join("old")).unwrap(), "of the host");
    assert!(!volume.path().join("new").exists());

    // It must not be written to the host instead.
    let image = image.to_str().unwrap();
    let id = unique("none");
    let error = state.fails(["restore", "--detach", "--bundle", bundle.text(), "--image-path", image, &id]);
    assert!(error.contains("overlay in memory") && error.contains("same overlays"), "{error}");
    assert_eq!(fs::read_to_string(bundle.rootfs().join("etc/config")).unwrap(), "original");
    assert!(bundle.rootfs().join("old/deep").exists());
}

#[test]
fn the_program_of_a_container_may_be_gone() {
    need!("busybox");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let bundle = Bundle::new(&["/own/sh", "-c", &shell("cd /", "echo ok")]);
    let own = bundle.rootfs().join("own");
    fs::create_dir(&own).unwrap();
    fs::copy(bundle.rootfs().join("bin/busybox"), own.join("sh")).unwrap();
    let first = start(&state, &bundle, dir.path(), &[]);
    first.wait_for("ready\n");
    fs::remove_dir_all(&own).unwrap();
    let image = dir.path().join("image");
    first.checkpoint(&image, &[]);
    first.delete();
    let copy = Running::restore(&state, &bundle, &image, dir.path(), &[]);
    copy.verify();
    copy.delete();
    // One that is restored by `start`; and one that is not restored at all needs its program.
    let later = dir.path().to_path_buf();
    let create = |image: &[&str]| {
        let id = unique("gone");
        let out = later.join(&id);
        let args = [&["create", "--bundle", bundle.text()], image, &[id.as_str()]].concat();
        let status =
            state.command(args).stdout(fs::File::create(&out).unwrap()).stderr(Stdio::null()).status();
        (Running { state: &state, id, out }, status.unwrap().success())
    };
    let (copy, made) = create(&["--image-path", image.to_str().unwrap()]);
    assert!(made);
    state.ok(["start", &copy.id]);
    copy.verify();
    copy.delete();
    assert!(!create(&[]).1);
}

#[test]
fn a_layer_on_a_disk_has_to_be_the_same() {
    need!("busybox");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let layers = tempfile::tempdir().unwrap();
    let medium = format!("root:dir={}", layers.path().display());
    let bundle = Bundle::new(&["sh", "-c", &shell("echo x > /written", "echo ok")]);
    let first = start(&state, &bundle, dir.path(), &["--overlay2", &medium]);
    first.wait_for("ready\n");
    let image = dir.path().join("image");
    first.checkpoint(&image, &["--leave-running"]);
    let id = unique("other");
    let image = image.to_str().unwrap();
    let args =
        ["restore", "--detach", "--bundle", bundle.text(), "--image-path", image, "--overlay2", &medium, &id];
    let error = state.fails(args);
    assert!(error.contains("outside the image") && error.contains("not what it was"), "{error}");
    first.verify();
    first.delete();
}

#[test]
fn mounts_that_cannot_be_made_again_are_refused_by_name() {
    need!("busybox");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let script = shell(
        "mkdir /dev/a /dev/b /dev/c /dev/here /dev/there; mount -t tmpfs x /dev/a; mkdir /dev/a/up /dev/a/work; \
         mount -t overlay -o lowerdir=/bin,upperdir=/dev/a/up,workdir=/dev/a/work over /dev/b; \
         mount -t devpts -o newinstance pts /dev/c",
        "umount /dev/b /dev/c && echo ok",
    );
    let bundle = Bundle::with(&["sh", "-c", &script], may_mount);
    let first = start(&state, &bundle, dir.path(), &[]);
    first.wait_for("ready\n");
    let image = dir.path().join("image");
    for option in ["--dry-run", "--leave-running"] {
        let out = state.run(["checkpoint", option, "--image-path", image.to_str().unwrap(), &first.id]);
        assert!(!out.status.success());
        // A dry run's findings are its result.
        let error = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
        for expected in ["/dev/b", "overlay", "/dev/c", "devpts"] {
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(!error.contains("/dev/a\""), "{error}");
    }
    first.verify();
    first.delete();
}

/// Two network namespaces, connected by a pair of interfaces: one for containers, and one with a server that answers
/// each line with it. Neither is the host's.
struct Network {
    inside: Child,
    server: Child,
}

impl Network {
    fn new() -> Self {
        let hold = |command: &mut Command| {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "there\n");
            child
        };
        let unshare = |script: &str| {
            hold(Command::new("unshare").args(["--net", "sh", "-c", &format!("echo there; {script}")]))
        };
        let inside = unshare("exec cat");
        let server = r#"
import socket, sys, threading
listener = socket.create_server(("10.77.0.1", 7000))
print("there", flush=True)
def serve(peer):
    try:
        for line in peer.makefile("rb"):
            peer.sendall(line)
        print("end", flush=True)
    except ConnectionResetError:
        print("reset", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;
        let set_up = format!(
            "ip link add v0 type veth peer name eth0 netns {} && ip addr add 10.77.0.1/24 dev v0 && \
             ip link set v0 up && exec python3 -c '{server}'",
            inside.id()
        );
        let server = hold(Command::new("unshare").args(["--net", "sh", "-c", &set_up]));
        let pid = inside.id().to_string();
        let ip = |args: &str| {
            let args = format!("-t {pid} -n ip {args}");
            assert!(Command::new("nsenter").args(args.split(' ')).status().unwrap().success(), "{args}");
        };
        ip("addr add 10.77.0.2/24 dev eth0");
        ip("link set eth0 up");
        ip("link set lo up");
        Self { inside, server }
    }

    fn join(&self, config: &mut Value) {
        let path = format!("/proc/{}/ns/net", self.inside.id());
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                *namespace = json!({"type": "network", "path": path});
            }
        }
    }

    /// What the server says next.
    fn says(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.inside] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Connects, has a line answered, waits for SIGUSR1, and says whether another line is answered.
const CLIENT: &str = r#"
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
static int fd;
static const char *ask(const char *line) {
    static char answer[64];
    if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0)
        return errno == ECONNRESET ? "reset\n" : "cannot send\n";
    ssize_t n = recv(fd, answer, sizeof answer - 1, 0);
    if (n < 0)
        return errno == ECONNRESET ? "reset\n" : "cannot receive\n";
    answer[n] = 0;
    return answer;
}
int main(void) {
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(7000) };
    sigset_t set;
    int signal;
    inet_pton(AF_INET, "10.77.0.1", &at.sin_addr);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) < 0)
        return 2;
    fputs(ask("ready\n"), stdout);
    fflush(stdout);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sigwait(&set, &signal);
    fputs(ask("ok\n"), stdout);
    return 0;
}
"#;

/// A bundle with a program that is connected to the server.
fn connected(network: &Network) -> Bundle {
    let bundle = Bundle::with(&["/bin/client"], |config| network.join(config));
    let source = bundle.path().join("client.c");
    fs::write(&source, CLIENT).unwrap();
    let program = bundle.rootfs().join("bin/client");
    let gcc = Command::new("gcc").args(["-static", "-o"]).args([&program, &source]).status().unwrap();
    assert!(gcc.success());
    bundle
}

#[test]
fn connections_that_leave_the_sandbox_are_closed_with_rst() {
    need!("busybox", "gcc", "ip", "nsenter", "python3", "unshare");
    let mut network = Network::new();
    let (state, dir, bundle) = (State::new(), tempfile::tempdir().unwrap(), connected(&network));
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    let (image, second) = (dir.path().join("image"), dir.path().join("second"));
    // One that goes on keeps its connection.
    first.checkpoint(&second, &["--leave-running"]);
    first.checkpoint(&image, &[]);
    assert_eq!(network.says(), "reset");
    first.delete();
    let copy = Running::restore(&state, &bundle, &image, dir.path(), &[]);
    state.ok(["kill", &copy.id, "USR1"]);
    wait::until("the copy hears of it", || copy.output().contains("reset\n").then_some(()));
    copy.delete();
}

#[test]
fn connections_that_leave_the_sandbox_are_kept_if_asked_for() {
    need!("busybox", "gcc", "ip", "nsenter", "python3", "unshare");
    let mut network = Network::new();
    let (state, dir, bundle) = (State::new(), tempfile::tempdir().unwrap(), connected(&network));
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    let image = dir.path().join("image");
    first.checkpoint(&image, &["--tcp-established", "--leave-running"]);
    first.checkpoint(&image, &["--tcp-established"]);
    first.delete();
    let copy = Running::restore(&state, &bundle, &image, dir.path(), &["--tcp-established"]);
    copy.verify();
    copy.delete();
    assert_eq!(network.says(), "end");
}

#[test]
fn every_copy_has_a_generation_of_its_own() {
    need!("busybox");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let bundle = Bundle::new(&["sh", "-c", &shell("true", "echo ok")]);
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    let image = dir.path().join("image");
    first.checkpoint(&image, &["--leave-running"]);
    let copies: Vec<_> = (0..2).map(|_| Running::restore(&state, &bundle, &image, dir.path(), &[])).collect();
    let mut seen = Vec::new();
    for container in copies.iter().chain([&first]) {
        let inside = state.ok(["exec", &container.id, "cat", "/dev/airlock-generation"]);
        let told = state.ok(["call", "--sandbox", &container.id, "Airlock.Generation"]);
        assert_eq!(inside.trim().len(), 36, "{inside}");
        assert!(told.contains(inside.trim()), "{told} {inside}");
        assert!(!seen.contains(&inside));
        seen.push(inside);
    }
    copies.iter().chain([&first]).for_each(|c| c.delete());
}
