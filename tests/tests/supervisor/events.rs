//! Events.
use super::*;
use airlock_tests::leaks;
use std::io::Read;
use std::os::unix::net::UnixStream;

#[test]
fn readers_hear_of_ends_in_order() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let (domain, other) = (host.started(&mut caller), host.started(&mut caller));
        // One gets a descriptor back, one donates a socket, one listens to all domains.
        let mut returned = listen(&mut caller, &domain);
        let (ours, theirs) = UnixStream::pair().unwrap();
        caller.ok("Supervisor.Events", &json!({"domain": domain}), &[theirs.as_fd()]);
        drop(theirs);
        let mut donated = BufReader::new(ours);
        let (all, writer) = std::io::pipe().unwrap();
        caller.ok("Supervisor.Events", &json!({"domain": ""}), &[writer.as_fd()]);
        drop(writer);
        let mut all = BufReader::new(all);

        let ends = [
            ("exit 0", json!(null), json!(0)),
            ("exit 255", json!(null), json!(255)),
            ("kill -6 $$", json!(6), json!(null)),
        ];
        for (n, (script, signo, status)) in ends.iter().enumerate() {
            let name = format!("n{n}");
            caller.ok("Supervisor.Exec", &exec(&domain, &name, &["/bin/sh", "-c", script]), &[]);
            let expected = json!({
                "type": "process_termination", "domain": domain, "name": name, "signo": signo, "exit_status": status,
                "cause": if status.is_null() { "signaled" } else { "exited" }, "size": null,
            });
            assert_eq!(next(&mut returned), expected);
            assert_eq!(next(&mut donated), expected);
            assert_eq!(next(&mut all), expected);
        }
        caller.ok("Supervisor.Exec", &exec(&other, "elsewhere", &["/bin/true"]), &[]);
        assert_eq!(next(&mut all)["domain"], other);
        // Those of one domain have heard nothing of that, and hear of the next thing there.
        caller.ok("Supervisor.Exec", &exec(&domain, "last", &["/bin/true"]), &[]);
        assert_eq!(next(&mut returned)["name"], "last");
        assert_eq!(next(&mut donated)["name"], "last");
    }
}

#[test]
fn descriptors_that_cannot_be_written_to_are_refused() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let domain = host.configured(&mut caller, json!({}));
        let by = json!({"domain": domain});
        let (reader, writer) = std::io::pipe().unwrap();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        refused(
            &caller.fails("Supervisor.Events", &by, &[reader.as_fd()]),
            "failure",
            "not open for writing",
        );
        refused(
            &caller.fails("Supervisor.Events", &by, &[file.as_fd()]),
            "failure",
            "neither a pipe nor a socket",
        );
        let two = caller.fails("Supervisor.Events", &by, &[writer.as_fd(), writer.as_fd()]);
        refused(&two, "failure", "2 descriptors came, want one at most");
    }
}

#[test]
fn a_reader_that_vanishes_is_let_go_and_one_that_never_reads_blocks_nobody() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let mut caller = host.json();
    let domain = host.started(&mut caller);
    let loader = host.loader();
    let before = leaks::descriptors(loader).len();
    for _ in 0..3 {
        drop(listen(&mut caller, &domain));
    }
    // Fewer, when what started the domain had not let go of everything at the first count.
    wait::until("they are let go", || (leaks::descriptors(loader).len() <= before).then_some(()));
    let _never = listen(&mut caller, &domain);
    for n in 0..20 {
        caller.ok("Supervisor.Exec", &exec(&domain, &format!("n{n}"), &["/bin/true"]), &[]);
        caller.ok(
            "Supervisor.Kill",
            &json!({"domain": domain, "name": format!("n{n}"), "deadline": soon()}),
            &[],
        );
    }
    // As many readers as there may be, and one more.
    let mut readers = Vec::new();
    let text = loop {
        let (reader, writer) = UnixStream::pair().unwrap();
        match caller.call("Supervisor.Events", &json!({"domain": domain}), &[writer.as_fd()]) {
            Ok(_) => readers.push(reader),
            Err(text) => break text,
        }
        assert!(readers.len() < 100);
    };
    refused(&text, "failure", "64 readers of events are as many as there may be");
    assert_eq!(readers.len(), 63);
}

/// Names of 255 bytes fill the reader's queue of 1 MiB and a pipe of one page soon; each end is told or counted.
#[test]
fn a_reader_that_reads_late_is_told_exactly_what_it_lost() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let mut caller = Caller::binary(&host.socket());
    let domain = host.started(&mut caller);
    let (reader, writer) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    caller.ok("Supervisor.Events", &json!({"domain": domain}), &[writer.as_fd()]);
    drop(writer);
    // The first one goes with the writing thread; the others queue up.
    let mut watcher = listen(&mut caller, &domain);
    let pushed = 2700;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (host, domain) = (&host, &domain);
            scope.spawn(move || {
                let mut caller = Caller::binary(&host.socket());
                for n in 0..pushed / 4 {
                    let name = format!("{thread}-{n}-{}", "x".repeat(240));
                    caller.ok("Supervisor.Exec", &exec(domain, &name, &["/bin/true"]), &[]);
                }
            });
        }
        for _ in 0..pushed {
            next(&mut watcher);
        }
    });
    caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);
    let mut events = BufReader::new(reader);
    let (mut told, mut lost) = (0, 0);
    while told + lost < pushed {
        let event = next(&mut events);
        if event["type"] == "event_loss" {
            assert_eq!(event["domain"], json!(null));
            lost += event["size"].as_u64().unwrap();
        } else {
            told += 1;
        }
    }
    assert!(told > 0);
    assert_eq!(told + lost, pushed, "told {told}, lost {lost}");
    drop(host);
    let mut rest = String::new();
    let _ = events.get_mut().take(0).read_to_string(&mut rest);
}
