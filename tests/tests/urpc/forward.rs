//! containerManager.PortForward.
use super::*;
use airlock_tests::{leaks, need, need_inside, programs};
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

/// A sandbox with the servers of `tests/programs/servers.py`, all of them there.
fn servers() -> Sandbox {
    let bundle = programs::host_bundle(&["/usr/bin/python3", "/programs/servers.py"], |_| {});
    let sandbox = Sandbox::of(bundle);
    let mut caller = sandbox.json();
    wait::until("the servers", || try_forward(&mut caller, &sandbox.id, 7001).ok());
    sandbox
}

fn arg(cid: &str, port: u16) -> Value {
    json!({"ContainerID": cid, "Port": port})
}

fn try_forward(caller: &mut Caller, cid: &str, port: u16) -> Result<UnixStream, String> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    caller.call("containerManager.PortForward", &arg(cid, port), &[theirs.as_fd()])?;
    ours.set_read_timeout(Some(wait::LIMIT)).unwrap();
    Ok(ours)
}

fn to_end(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    need_inside!("python3");
    let sandbox = servers();
    for mut caller in sandbox.both() {
        for port in [7001, 7002] {
            let mut stream = try_forward(&mut caller, &sandbox.id, port).unwrap();
            stream.write_all(b"over and ").unwrap();
            let mut heard = [0; 9];
            stream.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"over and ");
            stream.write_all(b"out").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(to_end(stream), "out");
        }
        // The server answers only when it has heard the end.
        let mut stream = try_forward(&mut caller, &sandbox.id, 7003).unwrap();
        let sent = vec![7; 3 << 20];
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(to_end(stream), format!("{} {}\n", sent.len(), 7 * sent.len()));
        let mut stream = try_forward(&mut caller, &sandbox.id, 8000).unwrap();
        stream.write_all(b"GET /programs/ HTTP/1.0\r\n\r\n").unwrap();
        let page = to_end(stream);
        assert!(page.starts_with("HTTP/1.0 200") && page.contains("servers.py"), "{page}");
    }
}

#[test]
fn errors_are_gvisors() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let null = null();
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for mut caller in sandbox.both() {
        let cid = unique("sub");
        caller.ok("containerManager.CreateSubcontainer", &json!({"CID": cid}), &[]);
        let (stream, _peer) = UnixStream::pair().unwrap();
        let stream = stream.as_fd();
        let mut fails = |arg: &Value, fds: &[std::os::fd::BorrowedFd<'_>], expected: &str| {
            let text = caller.fails("containerManager.PortForward", arg, fds);
            assert!(text.starts_with(expected), "{text:?} instead of {expected:?}");
        };
        let own = arg(&sandbox.id, 80);
        fails(&own, &[], "stream FD is required for port forward");
        fails(&own, &[stream, stream], "stream FD is required for port forward");
        let unknown = r#"failed to get threadgroup from "nobody": container "nobody" not found"#;
        fails(&arg("nobody", 80), &[stream], unknown);
        fails(&arg(&cid, 80), &[stream], &format!("container {cid:?} not started"));
        let refused =
            "creating netstack port forward connection: connecting endpoint: connection was refused";
        fails(&own, &[stream], refused);
        fails(&arg(&sandbox.id, 0), &[stream], "creating netstack port forward connection: port 0");
        for (fd, why) in [
            (null.as_fd(), "no socket"),
            (datagram.as_fd(), "a socket of another type"),
            (listener.as_fd(), "not connected"),
        ] {
            fails(&own, &[fd], &format!("a connected stream socket is needed, and this is {why}"));
        }
        caller.ok("containerManager.DestroySubcontainer", &json!(cid), &[]);
    }
    let text = sandbox.json().fails("containerManager.PortForward", &json!({"Port": 65536}), &[]);
    assert_eq!(
        text,
        "json: cannot unmarshal number 65536 into Go struct field PortForwardOpts.Port of type uint16"
    );
}

#[test]
fn hundreds_at_once_and_nothing_is_left() {
    need_inside!("python3");
    let sandbox = servers();
    let loader = sandbox.loader();
    let before = at_rest(loader);
    let mut caller = sandbox.json();
    let mut streams: Vec<UnixStream> =
        (0..200).map(|_| try_forward(&mut caller, &sandbox.id, 7001).unwrap()).collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&vec![n as u8; 10_000]).unwrap();
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let mut heard = vec![0; 10_000];
        stream.read_exact(&mut heard).unwrap();
        assert!(heard.iter().all(|b| *b == n as u8));
    }
    // One thread and one worker for all of them.
    assert!(leaks::threads(loader) <= leaks::IDLE_THREADS + 2, "{} threads", leaks::threads(loader));
    drop(streams);
    drop(caller);
    assert_eq!(at_rest(loader), before);
}

/// Open descriptors of a loader that forwards nothing, once it knows that its worker has ended.
fn at_rest(loader: i32) -> usize {
    wait::until("the worker to end", || workers(loader).is_empty().then_some(()));
    let fdinfo = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.ok()?.path()).ok();
    wait::until("the loader to hear of it", || {
        let all = std::fs::read_dir(format!("/proc/{loader}/fdinfo")).unwrap();
        let dead = all.filter_map(fdinfo).filter(|info| info.contains("Pid:\t-1")).count();
        (dead == 0).then_some(())
    });
    leaks::idle(loader)
}

/// Workers of a sandbox: children of the spawner, as the host sees them.
fn workers(loader: i32) -> Vec<i32> {
    let namespace = std::fs::read_link(format!("/proc/{loader}/ns/pid")).unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns == namespace)
                && std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|c| c.trim() == "airlock-worker")
        })
        .collect()
}

#[test]
fn whoever_vanishes_leaves_nothing() {
    need_inside!("python3");
    let sandbox = servers();
    let loader = sandbox.loader();
    let before = at_rest(loader);
    let mut caller = sandbox.json();
    // The client is gone; the server never reads, writes or closes.
    let mut stream = try_forward(&mut caller, &sandbox.id, 7004).unwrap();
    stream.write_all(b"hello").unwrap();
    drop(stream);
    // A TCP client that is reset in the middle.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    caller.ok("containerManager.PortForward", &arg(&sandbox.id, 7001), &[accepted.as_fd()]);
    drop(accepted);
    nix::sys::socket::setsockopt(
        &client,
        nix::sys::socket::sockopt::Linger,
        &nix::libc::linger { l_onoff: 1, l_linger: 0 },
    )
    .unwrap();
    drop(client);
    // A client that is gone with the server's answer half delivered.
    let flooded = try_forward(&mut caller, &sandbox.id, 7001).unwrap();
    flooded.set_nonblocking(true).unwrap();
    while (&flooded).write(&[0; 1 << 16]).is_ok() {}
    drop(flooded);
    drop(caller);
    assert_eq!(at_rest(loader), before);
    let (flooded, held) = {
        let mut caller = sandbox.json();
        (
            try_forward(&mut caller, &sandbox.id, 7001).unwrap(),
            try_forward(&mut caller, &sandbox.id, 7004).unwrap(),
        )
    };
    // The servers are gone.
    sandbox.state.ok(["kill", &sandbox.id, "KILL"]);
    assert_eq!((&flooded).read(&mut [0]).unwrap_or(0), 0);
    assert_eq!((&held).read(&mut [0]).unwrap_or(0), 0);
    sandbox.until_stopped();
}

#[test]
fn one_that_depends_on_its_callers_connection_ends_with_it() {
    need_inside!("python3");
    let sandbox = servers();
    for mut caller in sandbox.both() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut dependent = arg(&sandbox.id, 7001);
        dependent["EndsWithConnection"] = true.into();
        caller.ok("containerManager.PortForward", &dependent, &[theirs.as_fd()]);
        let mut other = try_forward(&mut caller, &sandbox.id, 7001).unwrap();
        drop(caller);
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        other.write_all(b"still here").unwrap();
        let mut heard = [0; 10];
        other.read_exact(&mut heard).unwrap();
    }
}
