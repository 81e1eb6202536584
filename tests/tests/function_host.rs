//! The function host of `tools/examples/function_host`, with Amazon's own Python runtime.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::{State, airlock, example, has_limits, leaks, need, skip, unique, workspace};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Amazon's runtime client. A version that is known, so that no test changes by itself.
const PACKAGE: &str = "awslambdaric==4.2.2";
const PYTHON: &str = "/usr/bin/python3";

/// Installs the package into a folder that is kept in `target/`. The reason, where that is not possible.
fn packages() -> Result<PathBuf, String> {
    let ask = ["-c", "import sys; print('%d.%d' % sys.version_info[:2])"];
    let version = Command::new(PYTHON).args(ask).output().map_err(|e| format!("{PYTHON}: {e}"))?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let dir = workspace().join(format!("target/{}-python{version}", PACKAGE.replace("==", "-")));
    if dir.is_dir() {
        return Ok(dir);
    }
    let fresh = dir.with_extension(unique("new"));
    let mut why = String::new();
    for pip in [vec![PYTHON, "-m", "pip"], vec!["python3", "-m", "pip"], vec!["pip3"]] {
        let installed = Command::new(pip[0])
            .args(&pip[1..])
            .args([
                "install",
                "--quiet",
                "--no-input",
                "--disable-pip-version-check",
                "--timeout",
                "20",
                "--retries",
                "1",
            ])
            .args(["--only-binary", ":all:", "--python-version", &version, "--target"])
            .arg(&fresh)
            .arg(PACKAGE)
            .stdin(Stdio::null())
            .output();
        match installed {
            Ok(out) if out.status.success() => {
                // Somebody else may have been faster.
                let _ = std::fs::rename(&fresh, &dir);
                let _ = std::fs::remove_dir_all(&fresh);
                return Ok(dir);
            }
            Ok(out) => {
                why = String::from_utf8_lossy(&out.stderr).lines().last().unwrap_or_default().to_owned()
            }
            Err(e) => why = format!("{}: {e}", pip[0]),
        }
        let _ = std::fs::remove_dir_all(&fresh);
    }
    Err(why)
}

/// Ends a test where a function cannot be run.
macro_rules! packages_or_skip {
    () => {{
        need!("python3");
        if !has_limits() {
            skip!("needs the cgroup controllers cpu and memory");
        }
        match packages() {
            Ok(packages) => packages,
            Err(why) => skip!("needs {PACKAGE} from PyPI: {why}"),
        }
    }};
}

/// What a run told: its reports, and what the function wrote.
struct Told {
    reports: Vec<Value>,
    written: String,
}

#[track_caller]
fn host(packages: &Path, options: &[&str], events: &[&str]) -> Told {
    let state = State::new();
    let child = Command::new(example("function_host"))
        .arg("--airlock")
        .arg(airlock())
        .arg("--root")
        .arg(state.root())
        .arg("--packages")
        .arg(packages)
        .args(options)
        .args(events)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let out = child.wait_with_output().unwrap();
    let written = String::from_utf8_lossy(&out.stderr).into_owned();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}: {text}{written}", out.status);
    assert_eq!(state.ok(["list", "-q"]), "");
    assert!(leaks::cgroups(&format!("function-host-{pid}")).is_empty());
    Told { reports: text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), written }
}

impl Told {
    #[track_caller]
    fn steps(&self, step: &str) -> Vec<&Value> {
        let found: Vec<_> = self.reports.iter().filter(|r| r["step"] == step).collect();
        assert!(!found.is_empty(), "no {step}: {:?}", self.reports);
        found
    }
}

#[track_caller]
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// What must hold for the metrics of every cycle.
#[track_caller]
fn plausible(metrics: &Value) {
    let of = |name: &str| number(&metrics[name]);
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(of("domain_run_ns") > 0, "{metrics}");
    // Counters of processor time are of ticks in places: 10 ms may be counted too early.
    let most = (of("domain_run_ns") + 20_000_000) * cpus;
    for name in ["domain_cpu_run_ns", "service_cpu_run_ns", "microvm_cpu_run_ns", "idle_cpu_run_ns"] {
        assert!(of(name) <= most, "{name}: {metrics}");
    }
    assert!(of("domain_max_memory_usage_bytes") < 1 << 30, "{metrics}");
    assert!(metrics["microvm_network_interfaces"]["lo"].is_object(), "{metrics}");
}

#[test]
fn a_function_is_invoked_frozen_and_begun_from_a_snapshot() {
    let packages = packages_or_skip!();
    let events = [
        r#"{"a":1}"#,
        r#"{"do":"spin","seconds":0.2}"#,
        r#"{"do":"fail"}"#,
        r#"{"do":"exit"}"#,
        r#"{"a":2}"#,
    ];
    let told = host(&packages, &["--timeout", "30", "--instances", "2"], &events);

    assert_eq!(told.steps("cold start")[0]["error"], Value::Null);
    let cycles = told.steps("invocation");
    assert_eq!(cycles.len(), events.len());
    for report in &told.reports {
        if !report["cycle_delta_metrics"].is_null() {
            plausible(&report["cycle_delta_metrics"]);
        }
    }
    let [first, spun, failed, left, again] = cycles.as_slice() else { panic!() };
    assert_eq!(first["response"]["echo"]["a"], 1);
    assert_eq!((&first["response"]["count"], &spun["response"]["count"]), (&1.into(), &2.into()));
    assert_eq!(first["response"]["nonce"], spun["response"]["nonce"]);
    assert_eq!(failed["error"]["errorType"], "ValueError");
    assert_eq!(failed["error"]["errorMessage"], "as you wish");
    assert_eq!(left["error"]["errorType"], "Runtime.ExitError");
    let message = left["error"]["errorMessage"].as_str().unwrap();
    assert!(message.ends_with("Error: Runtime exited with error: exit status 3"), "{message}");
    // A new runtime, initialised again.
    assert_eq!((&again["response"]["echo"]["a"], &again["response"]["count"]), (&2.into(), &1.into()));
    assert_ne!(again["response"]["nonce"], first["response"]["nonce"]);

    let cpu = |cycle: &Value| number(&cycle["cycle_delta_metrics"]["domain_cpu_run_ns"]);
    assert!(cpu(spun) >= 190_000_000, "{spun}");
    assert!(cpu(first) < cpu(spun), "{first}");
    let metrics = &told.steps("initialisation")[0]["cycle_delta_metrics"];
    assert!(number(&metrics["domain_max_memory_usage_bytes"]) > 4 << 20, "{metrics}");
    assert!(number(&metrics["microvm_network_interfaces"]["lo"]["received_bytes"]) > 0, "{metrics}");
    told.steps("stop");

    // What was logged as one came as one.
    assert!(told.written.contains("invocation 1\\nof two lines"), "{}", told.written);
    assert!(told.written.contains("line: I leave\n"), "{}", told.written);

    // Both instances go on behind one and the same initialisation, and are not the same instance.
    let instances = told.steps("instance");
    let [one, two] = [&instances[0]["response"], &instances[1]["response"]];
    assert_eq!(one["nonce"], two["nonce"]);
    assert_ne!(one["nonce"], first["response"]["nonce"]);
    assert_ne!(one["generation"], two["generation"]);
    assert_eq!((&one["count"], &one["restored"]), (&1.into(), &1.into()));
    assert_eq!((&two["count"], &two["restored"]), (&1.into(), &1.into()));
    assert_eq!(one["echo"]["a"], 1);
    assert_eq!(instances[0]["second_response"]["count"], 2);
    assert_eq!(instances[0]["second_response"]["nonce"], one["nonce"]);
    let initialised = told.written.matches("initialised ").count();
    assert_eq!(
        initialised, 3,
        "the first, the one after the exit, and the one that was saved: {}",
        told.written
    );
}

#[test]
fn a_function_that_takes_too_long_is_killed() {
    let packages = packages_or_skip!();
    let events = [r#"{"do":"sleep","seconds":1000}"#, r#"{"a":1}"#];
    let told = host(&packages, &["--timeout", "4", "--instances", "0"], &events);
    let [late, next] = told.steps("invocation")[..] else { panic!() };
    assert_eq!(late["error"]["errorType"], "Sandbox.Timedout");
    let message = late["error"]["errorMessage"].as_str().unwrap();
    assert!(message.ends_with("Task timed out after 4.00 seconds"), "{message}");
    assert_eq!((&next["response"]["echo"]["a"], &next["response"]["count"]), (&1.into(), &1.into()));
}

#[test]
fn a_function_that_cannot_be_initialised_is_told() {
    let packages = packages_or_skip!();
    let options = ["--handler", "missing.handler", "--instances", "0"];
    let told = host(&packages, &options, &[r#"{"a":1}"#]);
    let cold = &told.steps("cold start")[0]["error"];
    assert_eq!(cold["errorType"], "Runtime.ImportModuleError", "{cold}");
    // It is tried again, and fails again.
    assert_eq!(told.steps("invocation")[0]["error"]["errorType"], "Runtime.ImportModuleError");
    assert!(told.written.contains("Unable to import module 'missing'"), "{}", told.written);
}
