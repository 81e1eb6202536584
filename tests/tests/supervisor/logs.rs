//! Managed logging.
use super::*;
use std::fs::File;
use std::io::Read;

fn logged(domain: &str, name: &str, script: &str, topic: &str, formats: Value) -> Value {
    let mut request = exec(domain, name, &["/bin/sh", "-c", script]);
    request["log_config"] = json!({"managed": {"topic": topic, "formats": formats}});
    request
}

/// A domain whose topics come out of the pipes.
fn domain(host: &Host, caller: &mut Caller) -> (String, [PipeReader; 2]) {
    let domain = unique("dom");
    let (runtime, to_runtime) = std::io::pipe().unwrap();
    let (extension, to_extension) = std::io::pipe().unwrap();
    let all: [OwnedFd; 3] = [host.rootfs(), to_runtime.into(), to_extension.into()];
    let request = root(&domain, json!({"log_topics": ["runtime", "runtime_extension"]}));
    caller.ok("Supervisor.Configure", &request, &fds(&all));
    caller.ok("Supervisor.Start", &json!({"domain": domain}), &[]);
    (domain, [runtime, extension])
}

#[test]
fn lines_come_whole_by_topic() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let (domain, [runtime, extension]) = domain(&host, &mut caller);
        let mut runtime = BufReader::new(runtime).lines();
        caller.ok(
            "Supervisor.Exec",
            &logged(&domain, "r", "printf 'a\\nb'; echo c >&2", "runtime", json!(["line"])),
            &[],
        );
        let mut lines = [
            runtime.next().unwrap().unwrap(),
            runtime.next().unwrap().unwrap(),
            runtime.next().unwrap().unwrap(),
        ];
        lines.sort();
        assert_eq!(lines, ["a", "b", "c"]);
        caller.ok(
            "Supervisor.Exec",
            &logged(&domain, "e", "echo ext", "runtime_extension", json!(null)),
            &[],
        );
        assert_eq!(BufReader::new(extension).lines().next().unwrap().unwrap(), "ext");
        // Many at once, of many processes, with writes that end in the middle of lines.
        let script = "i=0; while [ $i -lt 50 ]; do printf '%s' \"$0-\"; echo \"$i-end\"; i=$((i+1)); done";
        for n in 0..8 {
            let mut request = logged(&domain, &format!("w{n}"), script, "runtime", json!(["line"]));
            request["args"] = json!(["-c", script, format!("w{n}")]);
            caller.ok("Supervisor.Exec", &request, &[]);
        }
        let mut seen: Vec<String> = runtime.by_ref().take(400).map(|l| l.unwrap()).collect();
        seen.sort();
        let mut expected: Vec<String> =
            (0..8).flat_map(|n| (0..50).map(move |i| format!("w{n}-{i}-end"))).collect();
        expected.sort();
        assert_eq!(seen, expected);
    }
}

#[test]
fn messages_come_in_their_frames() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let (domain, [mut runtime, _extension]) = domain(&host, &mut caller);
        // Type, length 5, a time, "he\nlo": in two writes. What goes to stdout is not wanted.
        let script = "echo unwanted; eval \"exec 9>&$_LAMBDA_TELEMETRY_LOG_FD\"; \
                      printf '\\245\\132\\000\\003\\000\\000\\000\\005\\000\\000\\000\\000\\000\\000\\000' >&9; printf '\\007he\\nlo' >&9";
        caller.ok("Supervisor.Exec", &logged(&domain, "m", script, "runtime", json!(["message"])), &[]);
        let mut frame = [0; 21];
        runtime.read_exact(&mut frame).unwrap();
        assert_eq!(&frame, b"\xa5\x5a\x00\x03\0\0\0\x05\0\0\0\0\0\0\0\x07he\nlo");
        // Both formats; extra files come before the descriptor for messages.
        let (extra_reader, extra) = std::io::pipe().unwrap();
        let script = "echo line; echo $_LAMBDA_TELEMETRY_LOG_FD >&3";
        let request = logged(&domain, "both", script, "runtime", json!(["line", "message"]));
        caller.ok("Supervisor.Exec", &request, &[extra.as_fd()]);
        drop(extra);
        assert_eq!(read_all(File::from(OwnedFd::from(extra_reader))), "4\n");
        assert_eq!(BufReader::new(runtime).lines().next().unwrap().unwrap(), "line");
    }
}

#[test]
fn a_slow_reader_holds_nobody_up_and_losses_are_counted() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let mut caller = host.json();
    let (domain, [runtime, _extension]) = domain(&host, &mut caller);
    let mut events = listen(&mut caller, &domain);
    // 4 MB of lines that nobody reads: the process ends nevertheless.
    let script =
        "yes 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef | head -n 60000; echo over >&2";
    caller.ok("Supervisor.Exec", &logged(&domain, "much", script, "runtime", json!(["line"])), &[]);
    assert_eq!(next(&mut events)["exit_status"], 0);
    let mut lost_known = 0;
    wait::until("the loss is known", || {
        lost_known = info(&mut caller, &domain)["logs_lost"]["runtime"].as_u64().unwrap();
        (lost_known > 0).then_some(())
    });
    caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);
    let (mut lines, mut lost) = (0, 0);
    for line in BufReader::new(runtime).lines() {
        let line = line.unwrap();
        match serde_json::from_str::<Value>(&line) {
            Ok(record) if record["type"] == "platform.logsDropped" => {
                lost += record["record"]["droppedRecords"].as_u64().unwrap();
            }
            _ => {
                assert!(line == "over" || line.len() == 64, "torn: {line:?}");
                lines += 1;
            }
        }
    }
    assert_eq!(lines + lost, 60_001, "lines {lines}, lost {lost}");
    assert!(lost >= lost_known);
}

#[test]
fn topics_and_descriptors_have_to_fit() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let (reader, writer) = std::io::pipe().unwrap();
        let rootfs = host.rootfs();
        let domain = unique("dom");
        let twice = root(&domain, json!({"log_topics": ["runtime", "runtime"]}));
        let text =
            caller.fails("Supervisor.Configure", &twice, &[rootfs.as_fd(), writer.as_fd(), writer.as_fd()]);
        refused(&text, "failure", "names a topic twice");
        let one = root(&domain, json!({"log_topics": ["runtime"]}));
        let text =
            caller.fails("Supervisor.Configure", &one, &[rootfs.as_fd(), writer.as_fd(), writer.as_fd()]);
        refused(&text, "failure", "3 descriptors came: want 1 for log topics, and none or 1 for mounts");
        let text = caller.fails("Supervisor.Configure", &one, &[rootfs.as_fd(), reader.as_fd()]);
        refused(&text, "failure", "log topic runtime: the descriptor is not open for writing");
        let text = caller.fails("Supervisor.Start", &json!({"domain": domain}), &[]);
        refused(&text, "no_such_entity", "does not exist");
    }
}
