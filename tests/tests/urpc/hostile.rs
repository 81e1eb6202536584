//! Clients that break rules: descriptors of wrong types, too many of them, hang-ups; and the graceful stop.
use super::*;
use airlock_tests::urpc::Urpc;
use airlock_tests::{leaks, need};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::os::unix::net::UnixStream;
use std::path::Path;

fn path_only(directory: &Path) -> OwnedFd {
    nix::fcntl::open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
}

#[test]
fn stdio_of_any_type_is_passed_on_and_no_terminal_is_made_of_what_is_none() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let loader = sandbox.loader();
    let before = leaks::idle(loader);
    let (null, etc) = (null(), path_only(Path::new("/etc")));
    for mut caller in sandbox.both() {
        // As with any runtime: what the caller gives is what the program has.
        let own = UnixStream::connect(sandbox.socket()).unwrap();
        for fd in [etc.as_fd(), own.as_fd(), null.as_fd()] {
            let args = exec_args(&sandbox.id, &["/bin/true"]);
            let pid = caller.ok("containerManager.ExecuteAsync", &args, &[fd, fd, fd]);
            let wait = json!({"PID": pid, "CID": sandbox.id});
            assert_eq!(caller.ok("containerManager.WaitPID", &wait, &[]), json!(0));
        }
        let mut args = exec_args(&sandbox.id, &["/bin/true"]);
        args["StdioIsPty"] = json!(true);
        let n = null.as_fd();
        let text = caller.fails("containerManager.ExecuteAsync", &args, &[n, n, n]);
        assert!(text.contains("terminal"), "{text}");
    }
    leaks::idle_as_before(loader, before);
}

#[test]
fn a_rootfs_must_be_a_mount() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let loader = sandbox.loader();
    let before = leaks::idle(loader);
    let null = null();
    let n = null.as_fd();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let directory = File::open(sandbox.bundle.rootfs()).unwrap();
    let path_only = path_only(&sandbox.bundle.rootfs());
    let own = UnixStream::connect(sandbox.socket()).unwrap();
    for mut caller in sandbox.both() {
        let mut refuse = |edit: &dyn Fn(&mut Value), fds: &[_]| {
            let cid = unique("wrong");
            caller.ok("containerManager.CreateSubcontainer", &json!({"CID": cid}), &[]);
            let mut arg = start_args(&cid, &["/bin/true"]);
            edit(&mut arg);
            let text = caller.fails("containerManager.StartSubcontainer", &arg, fds);
            assert!(!text.contains('\n'), "{text}");
            assert_eq!(caller.ok("containerManager.ContainerRuntimeState", &json!(cid), &[]), json!(3));
            caller.ok("containerManager.DestroySubcontainer", &json!(cid), &[]);
            text
        };
        for wrong in [pipe.as_fd(), n, own.as_fd(), directory.as_fd(), path_only.as_fd()] {
            let text = refuse(&|_| (), &[n, n, n, wrong]);
            assert!(text.contains("root"), "{text}");
        }
        // One mount too many, and one too few.
        let (first, second) = (sandbox.rootfs(), sandbox.rootfs());
        refuse(&|_| (), &[n, n, n, first.as_fd(), second.as_fd()]);
        let rootfs = sandbox.rootfs();
        let bind = json!({"destination": "/tmp", "type": "bind", "source": "/tmp", "options": ["bind"]});
        let with_bind = |a: &mut Value| a["Spec"]["mounts"].as_array_mut().unwrap().push(bind.clone());
        let text = refuse(&with_bind, &[n, n, n, rootfs.as_fd()]);
        assert!(text.contains("mount"), "{text}");
    }
    drop(own);
    leaks::idle_as_before(loader, before);
}

#[test]
fn more_descriptors_than_a_message_may_have() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let loader = sandbox.loader();
    let before = leaks::idle(loader);
    let null = null();
    for count in [129, 200, 253] {
        let mut urpc = Urpc::connect(&sandbox.socket());
        urpc.send("containerManager.Processes", &json!(sandbox.id), &vec![null.as_fd(); count]);
        // The kernel cuts them off. Whether the reply arrives before the connection closes, nothing was executed.
        if let Some(reply) = urpc.receive() {
            assert!(!reply.success && reply.err.contains("more than 128"), "{reply:?}");
        }
    }
    let mut urpc = Urpc::connect(&sandbox.socket());
    let reply = urpc.call("containerManager.Processes", &json!(sandbox.id), &[null.as_fd(); 128]);
    assert!(reply.success, "{reply:?}");
    drop(urpc);
    leaks::idle_as_before(loader, before);
}

#[test]
fn broken_messages_end_their_connection_and_no_other() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let loader = sandbox.loader();
    let before = leaks::idle(loader);
    let mut bystander = sandbox.json();
    let deep = format!(r#"{{"method":"no.Such","arg":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for bytes in [
        &b"{\"method\":\"containerManager.Processes\",\"arg\":"[..],
        b"garbage",
        b"{\"method\":5,\"arg\":null}",
        b"\xff\xfe\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        b"[]",
        deep.as_bytes(),
    ] {
        let mut urpc = Urpc::connect(&sandbox.socket());
        let null = null();
        // It may close before it has read all.
        let _ = urpc.send_bytes(bytes, &[null.as_fd()]);
        let _ = urpc.stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = urpc.stream.read_to_end(&mut rest);
        assert!(!String::from_utf8_lossy(&rest).contains(r#""success":true"#));
    }
    bystander.ok("containerManager.Processes", &json!(""), &[]);
    drop(bystander);
    leaks::idle_as_before(loader, before);
}

#[test]
fn a_start_goes_on_when_its_client_hangs_up() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let (null, rootfs) = (null(), sandbox.rootfs());
    let cid = unique("gone");
    let mut urpc = Urpc::connect(&sandbox.socket());
    assert!(urpc.call("containerManager.CreateSubcontainer", &json!({"CID": cid}), &[]).success);
    let n = null.as_fd();
    let arg = start_args(&cid, &["/bin/sleep", "1000"]);
    urpc.send("containerManager.StartSubcontainer", &arg, &[n, n, n, rootfs.as_fd()]);
    drop(urpc);
    let mut caller = sandbox.json();
    wait::until("the container runs", || {
        (caller.ok("containerManager.ContainerRuntimeState", &json!(cid), &[]) == json!(2)).then_some(())
    });
    caller.ok("containerManager.DestroySubcontainer", &json!(cid), &[]);
}

#[test]
fn a_stop_answers_calls_in_flight_and_closes_the_rest() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let loader = sandbox.loader();
    let sub = sandbox.sub(&mut sandbox.json(), &["/bin/sleep", "1000"]);
    let mut idle = Urpc::connect(&sandbox.socket());
    assert!(idle.call("containerManager.Processes", &json!(""), &[]).success);
    let (mut root_wait, mut sub_wait) = (Urpc::connect(&sandbox.socket()), Urpc::connect(&sandbox.socket()));
    root_wait.send("containerManager.Wait", &json!(sandbox.id), &[]);
    sub_wait.send("containerManager.Wait", &json!(sub), &[]);
    wait::until("both wait", || (leaks::threads_polling(loader) == 3).then_some(()));
    let kill = json!({"CID": sandbox.id, "Signo": 9, "PID": 0, "Mode": 1});
    sandbox.json().ok("containerManager.Signal", &kill, &[]);
    let last_words = |urpc: &mut Urpc| urpc.receive().map(|r| r.result);
    assert_eq!(last_words(&mut root_wait), Some(json!(9)));
    // The subcontainer ends with its sandbox.
    assert_eq!(last_words(&mut sub_wait), Some(json!(9)));
    assert!(idle.receive().is_none());
    sandbox.until_stopped();
    assert!(UnixStream::connect(sandbox.socket()).is_err());
}
