//! Metrics and events as people and programs get them: text, HTTP, a real Prometheus, the stream of events, runsc's words.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::{Bundle, State, need, skip, unique, wait};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleeping(state: &State) -> (Bundle, String) {
    let (bundle, id) = (Bundle::new(&["/bin/sleep", "1000"]), unique("metrics"));
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    (bundle, id)
}

/// A sample: name, labels as they stand, value.
type Samples = BTreeMap<(String, String), f64>;

/// Reads OpenMetrics text, and checks what Prometheus would refuse: order, kinds, names, the end.
fn parse(text: &str) -> Samples {
    let mut samples = Samples::new();
    let (mut families, mut family) = (BTreeSet::new(), (String::new(), String::new()));
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "# EOF" {
            assert_eq!(lines.next(), None, "text after the end");
            return samples;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned()), "{name} comes twice");
            family = (name.to_owned(), kind.to_owned());
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        let (name, labels) =
            series.split_once('{').map_or((series, ""), |(n, l)| (n, l.trim_end_matches('}')));
        let suffix = name.strip_prefix(&family.0).unwrap_or_else(|| panic!("{name} among {}", family.0));
        let allowed: &[&str] = match family.1.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_sum", "_count", "_bucket"],
            other => panic!("a {other}"),
        };
        assert!(allowed.contains(&suffix), "{line}");
        let known = samples.insert((name.to_owned(), labels.to_owned()), value.parse().unwrap());
        assert_eq!(known, None, "twice: {line}");
    }
    panic!("no end: {text}");
}

fn value(samples: &Samples, name: &str, label: &str) -> f64 {
    let found = samples.iter().find(|((n, labels), _)| n == name && labels.contains(label));
    *found.unwrap_or_else(|| panic!("{name} with {label} in {samples:?}")).1
}

#[test]
fn metrics_of_a_sandbox_as_text_and_json() {
    need!("busybox");
    let state = State::new();
    let (_bundle, id) = sleeping(&state);
    for command in ["export-metrics", "metric-export"] {
        let samples = parse(&state.ok([command, &id]));
        assert_eq!(value(&samples, "airlock_container_state", "state=\"running\""), 1.0);
        assert!(value(&samples, "airlock_container_cpu_seconds_total", &format!("container=\"{id}\"")) > 0.0);
        assert!(value(&samples, "airlock_sandbox_start_time_seconds", &id) > 1.7e9);
    }
    let filter = ["--sandbox-metrics-filter", "_pids", "--exporter-prefix", "x_"];
    let some = parse(&state.ok([&["export-metrics"], &filter[..], &[id.as_str()]].concat()));
    assert!(!some.is_empty() && some.keys().all(|(name, _)| name.starts_with("x_airlock_container_pids")));
    let exported: Value =
        serde_json::from_str(&state.ok(["export-metrics", "--format", "json", &id])).unwrap();
    let data = exported["snapshot"]["data"].as_array().unwrap();
    let listed = |args: &[&str]| -> BTreeSet<String> {
        let text = state.ok([&["metric-metadata"], args].concat());
        let json: Value = serde_json::from_str(&text).unwrap();
        json["metrics"].as_array().unwrap().iter().map(|m| m["prometheus_name"].to_string()).collect()
    };
    let known = listed(&[]);
    assert_eq!(known, listed(&[&id]));
    assert!(data.iter().all(|d| known.contains(&d["metric"]["name"].to_string())));
    assert!(
        state
            .fails(["export-metrics", "--sandbox-metrics-filter", "(", &id])
            .contains("cannot compile regexp")
    );
    assert!(state.fails(["export-metrics", "nobody"]).contains("does not exist"));
}

/// A metric server, and what its first line of output says after `listening`.
fn serve(state: &State, address: &str) -> (Running, String) {
    let mut command = state.command(["metric-server", "--metric-server", address]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let at = line.trim().strip_prefix("listening").unwrap_or_else(|| panic!("{line:?}"));
    (Running(child), at.trim_start_matches(": http://").trim_end_matches("/metrics").to_owned())
}

/// Sends `request`, returns all that comes back.
fn exchange(mut stream: impl Read + Write, request: &[u8]) -> String {
    // A server that has had enough may not read all of it.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

fn body(answer: &str) -> &str {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    body
}

#[test]
fn the_metric_server_answers_for_all_sandboxes_and_bears_hostile_clients() {
    need!("busybox");
    let state = State::new();
    let (_one, first) = sleeping(&state);
    let (_server, at) = serve(&state, "127.0.0.1:0");
    let connect = || TcpStream::connect(&at).unwrap();
    assert_eq!(value(&parse(body(&exchange(connect(), GET))), "airlock_up", &first), 1.0);
    let (_two, second) = sleeping(&state);
    wait::until("the new sandbox is served", || {
        let samples = parse(body(&exchange(connect(), GET)));
        let up = |id: &str| samples.contains_key(&("airlock_up".to_owned(), format!("sandbox=\"{id}\"")));
        (up(&first) && up(&second)).then_some(())
    });
    // Some that never say anything, and keep their connections.
    let silent: Vec<TcpStream> = (0..8).map(|_| connect()).collect();
    let huge = format!("GET / HTTP/1.1\r\n{}", "x: y\r\n".repeat(3000));
    for (request, status) in [
        (&b"POST /metrics HTTP/1.1\r\n\r\n"[..], "405"),
        (b"GET /etc/passwd HTTP/1.1\r\n\r\n", "404"),
        (b"GET / HTTP/1.0\r\n\r\n", "200"),
        (b"\x16\x03\x01\x02\x00", "400"),
        (huge.as_bytes(), "400"),
    ] {
        let answer = exchange(connect(), request);
        // What was not read when it was closed may have cost us the answer.
        assert!(
            answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{status}: {answer}"
        );
    }
    let head = exchange(connect(), b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(exchange(connect(), GET).contains("airlock_up"));
    drop(silent);
    state.ok(["kill", &second, "KILL"]);
    wait::until("the ended sandbox is left out", || {
        (!exchange(connect(), GET).contains(&second)).then_some(())
    });
}

/// Many at once, over and over, while sandboxes come and go: every answer is whole, and nobody is left without one.
#[test]
fn concurrent_scrapes_are_all_answered() {
    need!("busybox");
    const SCRAPERS: usize = 8;
    const SCRAPES: usize = 25;
    let state = State::new();
    let (_bundle, id) = sleeping(&state);
    let (_server, at) = serve(&state, "127.0.0.1:0");
    let socket = state.control_socket(&id);
    std::thread::scope(|scope| {
        let scrapers: Vec<_> = (0..SCRAPERS)
            .map(|n| {
                let (at, socket, id) = (&at, &socket, &id);
                scope.spawn(move || {
                    let mut calls = 0;
                    for _ in 0..SCRAPES {
                        if n % 2 == 0 {
                            let answer = exchange(TcpStream::connect(at).unwrap(), GET);
                            let samples = parse(body(&answer));
                            assert!(
                                samples.contains_key(&("airlock_up".to_owned(), format!("sandbox=\"{id}\"")))
                            );
                        } else {
                            // The sandbox itself, whose counters never go back.
                            let mut caller = airlock_tests::urpc::Caller::json(socket);
                            let all = caller.ok("Metrics.Export", &json!({"only_metrics": ""}), &[]);
                            let data = all["snapshot"]["data"].as_array().unwrap();
                            let of_this = |d: &&Value| {
                                d["metric"]["name"] == "airlock_rpc_calls"
                                    && d["labels"]["method"] == "Metrics.Export"
                            };
                            let now =
                                data.iter().filter(of_this).filter_map(|d| d["val"]["int"].as_u64()).sum();
                            assert!(calls == 0 || now > calls, "{now} after {calls}");
                            calls = now;
                        }
                    }
                })
            })
            .collect();
        while !scrapers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let (_other, other) = sleeping(&state);
            state.ok(["delete", "--force", &other]);
        }
    });
    let samples = parse(body(&exchange(TcpStream::connect(&at).unwrap(), GET)));
    assert_eq!(value(&samples, "airlock_up", &id), 1.0);
}

#[test]
fn the_metric_server_listens_at_a_path_for_its_owner_only() {
    need!("busybox");
    let state = State::new();
    let (_bundle, id) = sleeping(&state);
    let path = state.dir.path().join("m.sock");
    for _ in 0..2 {
        // The second finds what the first has left.
        let (_server, _) = serve(&state, path.to_str().unwrap());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let stream = UnixStream::connect(&path).unwrap();
        assert_eq!(value(&parse(body(&exchange(stream, GET))), "airlock_up", &id), 1.0);
        let text = state.fails(["metric-server", "--metric-server", path.to_str().unwrap()]);
        assert!(text.contains("in use"), "{text}");
    }
    assert!(state.fails(["metric-server", "--metric-server", "nowhere"]).contains("is no address"));
}

#[test]
fn a_real_prometheus_scrapes_the_metric_server() {
    need!("busybox", "prometheus");
    let state = State::new();
    let (_bundle, id) = sleeping(&state);
    let (_server, at) = serve(&state, "127.0.0.1:0");
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: airlock\n  static_configs:\n  - targets: ['{at}']\n"
    );
    std::fs::write(&config, text).unwrap();
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let prometheus = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address={free}"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    let Ok(prometheus) = prometheus else { skip!("prometheus cannot be executed") };
    let mut prometheus = Running(prometheus);
    let query = |what: &str| -> Option<Value> {
        let stream = TcpStream::connect(free).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let request = format!("GET /api/v1/query?query={what} HTTP/1.0\r\nHost: x\r\n\r\n");
        let answer = exchange(stream, request.as_bytes());
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    };
    let told = wait::until("prometheus has scraped", || {
        if let Ok(Some(status)) = prometheus.0.try_wait() {
            panic!("prometheus: {status}: {}", std::fs::read_to_string(dir.path().join("log")).unwrap());
        }
        query("airlock_up").filter(|answer| answer["data"]["result"][0]["value"][1] == "1")
    });
    assert_eq!(told["data"]["result"][0]["metric"]["sandbox"], id.as_str(), "{told}");
    let cpu = query("airlock_container_cpu_seconds_total").unwrap();
    let seconds: f64 = cpu["data"]["result"][0]["value"][1].as_str().unwrap().parse().unwrap();
    assert!(seconds > 0.0, "{cpu}");
    // The first scrape is the first call that it counts.
    wait::until("prometheus has scraped again", || {
        let p99 = query("histogram_quantile(0.99,airlock_rpc_duration_seconds_bucket)")?;
        (!p99["data"]["result"].as_array()?.is_empty()).then_some(())
    });
}

/// The events of a container as they come.
struct Events {
    _command: Running,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Events {
    fn of(state: &State, id: &str) -> Self {
        let mut command = state.command(["events", "--interval", "1h", id]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut events = Self { _command: Running(child), lines };
        // Kills are heard of from before the first statistics on.
        assert_eq!(events.next().unwrap()["type"], "stats");
        events
    }

    /// The next event that is not of memory: the kernel may have had to kill more than once.
    fn end(&mut self) -> Value {
        std::iter::from_fn(|| self.next()).find(|e| e["type"] != "oom").unwrap()
    }

    fn next(&mut self) -> Option<Value> {
        let line = self.lines.next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")))
    }
}

/// A container that waits for the file /tmp/go, with 32 MiB of memory.
fn limited(state: &State, script: &str) -> Option<(Bundle, String)> {
    let script = format!("while ! [ -e /tmp/go ]; do sleep 0.05; done; {script}");
    let bundle = Bundle::with(&["/bin/sh", "-c", &script], |config| {
        config["linux"]["resources"] = json!({"memory": {"limit": 32 << 20, "swap": 32 << 20}});
    });
    let id = unique("oom");
    let made =
        state.command(["run", "--detach", "--bundle", bundle.text(), &id]).stdout(Stdio::null()).status();
    made.unwrap().success().then_some((bundle, id))
}

#[test]
fn a_kill_for_lack_of_memory_is_told_and_so_is_the_end_that_a_client_asked_for() {
    need!("busybox");
    let state = State::new();
    // The shell goes on when its child was killed.
    let Some((bundle, id)) = limited(&state, "tail /dev/zero; touch /tmp/survived; sleep 1000") else {
        skip!("the memory limit cannot be set here");
    };
    let mut events = Events::of(&state, &id);
    std::fs::write(bundle.rootfs().join("tmp/go"), "").unwrap();
    assert_eq!(events.next().unwrap(), json!({"type": "oom", "id": id}));
    wait::until("the shell goes on", || bundle.rootfs().join("tmp/survived").exists().then_some(()));
    assert_eq!(state.status(&id), "running");
    // Killed by a client afterwards: it was not memory.
    state.ok(["kill", &id, "KILL"]);
    let exit = events.end();
    assert_eq!((&exit["type"], &exit["id"]), (&json!("exit"), &json!(id)));
    let data = &exit["data"];
    assert_eq!(
        (&data["exit_code"], &data["status"], &data["reason"]),
        (&json!(137), &json!(9), &json!("signal 9"))
    );
    assert_eq!(
        (&data["killed_by"]["by"], &data["killed_by"]["uid"]),
        (&json!("containerManager.Signal"), &json!(0))
    );
    assert!(events.next().is_none());
    wait::until("it has stopped", || (state.status(&id) == "stopped").then_some(()));
    let told = state.state(&id);
    assert_eq!((&told["reason"], &told["killedBy"]["signal"]), (&json!("signal 9"), &json!(9)), "{told}");
}

#[test]
fn a_container_that_ran_out_of_memory_says_so() {
    need!("busybox");
    let state = State::new();
    let Some((bundle, id)) = limited(&state, "exec tail /dev/zero") else {
        skip!("the memory limit cannot be set here");
    };
    let mut events = Events::of(&state, &id);
    std::fs::write(bundle.rootfs().join("tmp/go"), "").unwrap();
    assert_eq!(events.next().unwrap()["type"], "oom");
    let exit = events.end();
    assert_eq!(
        (&exit["data"]["reason"], &exit["data"]["killed_by"]),
        (&json!("oom"), &Value::Null),
        "{exit}"
    );
    wait::until("it has stopped", || (state.status(&id) == "stopped").then_some(()));
    assert_eq!(state.state(&id)["reason"], "oom");
}

#[test]
fn an_exit_of_ones_own_is_told_with_its_code() {
    need!("busybox");
    let state = State::new();
    let bundle = Bundle::new(&["/bin/sh", "-c", "while ! [ -e /tmp/go ]; do sleep 0.05; done; exit 7"]);
    let id = unique("exit");
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let mut events = Events::of(&state, &id);
    std::fs::write(bundle.rootfs().join("tmp/go"), "").unwrap();
    let exit = events.next().unwrap();
    assert_eq!((&exit["type"], &exit["data"]["exit_code"]), (&json!("exit"), &json!(7)), "{exit}");
    assert_eq!(exit["data"]["reason"], "exited");
    assert!(events.next().is_none());
}

#[test]
fn memory_and_control_files_on_the_command_line() {
    need!("busybox");
    let state = State::new();
    let (_bundle, id) = sleeping(&state);
    let usage: Value = serde_json::from_str(&state.ok(["usage", "--full", &id])).unwrap();
    assert!(usage["Total"].as_u64().unwrap() > 0 && usage["Unknown"] == 0, "{usage}");
    let page = state.ok(["usage", "--fd", &id]);
    assert!(
        page.starts_with("Mapped ") && page.contains(", Unknown ") && page.contains(", Total "),
        "{page}"
    );
    state.ok(["write-control", &id, "pids", "pids.max", "123"]);
    assert_eq!(state.ok(["read-control", &id, "pids", "pids.max"]), "123\n");
    // As runsc has it, with a path.
    state.ok(["write-control", &id, "pids", "/", "pids.max", "124"]);
    assert_eq!(state.ok(["read-control", &id, "pids", "/", "pids.max"]), "124\n");
    assert!(state.fails(["read-control", &id, "pids", "/..", "pids.max"]).contains("leads out"));
    assert!(state.fails(["write-control", &id, "pids", "cgroup.procs", "1"]).contains("not written"));
    assert!(state.fails(["read-control", &id, "pids", "pids.none"]).contains("no such control file"));
}
