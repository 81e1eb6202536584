use super::*;
use airlock_wire::json;
use proptest::prelude::*;

fn config(text: &str) -> SessionConfig {
    serde_json::from_str(text).unwrap()
}

fn refused(text: &str) -> String {
    plan(&config(text)).unwrap_err().message
}

#[test]
fn it_is_refused_in_gvisors_words() {
    let cases = [
        (r#"{"name":"Other"}"#, r#"only a single "Default" session is supported"#),
        (r#"{}"#, r#"only a single "Default" session is supported"#),
        (r#"{"name":"Default","points":[{"name":"no/such"}]}"#, r#"point "no/such" not found"#),
        (
            r#"{"name":"Default","points":[{"name":"sentry/clone","optional_fields":["env"]}]}"#,
            r#"configuring point "sentry/clone": field "env" not found"#,
        ),
        (
            r#"{"name":"Default","points":[{"name":"sentry/exit_notify_parent","context_fields":["cwd"]}]}"#,
            r#"configuring point "sentry/exit_notify_parent": field "cwd" not found"#,
        ),
        (r#"{"name":"Default","sinks":[{"name":"void"}]}"#, r#"sink "void" not found"#),
        (
            r#"{"name":"Default","sinks":[{"name":"remote","config":{"retries":"x"}}]}"#,
            r#"creating event sink: retries "x" is not an int"#,
        ),
        (
            r#"{"name":"Default","sinks":[{"name":"remote","config":{"backoff":"2s","backoff_max":"1s"}}]}"#,
            "creating event sink: initial backoff (2s) cannot be larger than max backoff (1s)",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(refused(text), message, "{text}");
    }
    let hash = r#"{"name":"Default","points":[{"name":"sentry/execve","optional_fields":["binary_sha256"]}]"#;
    assert!(plan(&config(&format!("{hash}}}"))).is_ok());
    // Sinks are never missing in silence.
    assert!(
        refused(r#"{"name":"Default","ignore_missing":true,"sinks":[{"name":"void"}]}"#).contains("void")
    );
}

#[test]
fn points_say_where_to_look() {
    let (plan, sinks) = plan(&config(
        r#"{"name":"Default","ignore_missing":true,
            "points":[{"name":"sentry/clone","context_fields":["time","cwd","nothing"]},{"name":"no/such"},
                      {"name":"sentry/task_exit"},{"name":"sentry/exit_notify_parent"},
                      {"name":"syscall/openat/enter","optional_fields":["fd_path"]},
                      {"name":"syscall/sysno/39/exit"}],
            "sinks":[{"name":"remote","config":{"endpoint":"/x","retries":3,"backoff":"25us"}},{"name":"null"}]}"#,
    ))
    .unwrap();
    assert_eq!(plan.points.len(), 5);
    assert_eq!(plan.needs(), Needs { cwd: true, ..Needs::default() });
    assert_eq!(plan.probes(), [Probe::Clone, Probe::Exit, Probe::Enter, Probe::Leave]);
    let syscalls = plan.syscalls();
    let openat = syscalls[&crate::seccomp::syscalls::native_number("openat").unwrap()];
    assert!(openat.enter && !openat.leave && openat.fd == Some(0));
    assert!(syscalls[&39].leave && !syscalls[&39].enter);
    let retries = Retries { times: 3, backoff: Duration::from_micros(25), max: Duration::from_millis(10) };
    assert_eq!(sinks, [SinkPlan::Remote(retries), SinkPlan::Null]);
}

#[test]
fn durations_are_gos() {
    for (text, micros) in
        [("25us", 25), ("1ms", 1000), ("1.5ms", 1500), ("1s5ms", 1_005_000), ("0", 0), ("2µs", 2)]
    {
        assert_eq!(go_duration(text), Some(Duration::from_micros(micros)), "{text}");
    }
    for text in ["", "5", "-1s", "1 s", "1x", "s", "1.2.3s", "99999999999999999999h"] {
        assert_eq!(go_duration(text), None, "{text}");
    }
}

/// What runsc of 2022 and of 2026 sends.
#[test]
fn runscs_argument_is_understood() {
    let text = r#"{"Config":{"name":"Default","points":[{"name":"container/start","optional_fields":["env"],"context_fields":["time","container_id"]}],"ignore_missing":true,"sinks":[{"name":"remote","config":{"backoff":"25us","endpoint":"/path/sink.sock","retries":3},"status":{"DroppedCount":0}}]},"Force":true}"#;
    let args: airlock_wire::api::trace::CreateTraceSessionArgs = json::from_slice(text.as_bytes()).unwrap();
    assert!(args.force && plan(&args.config).is_ok());
    assert_eq!(serde_json::to_string(&args).unwrap(), text);
}

proptest! {
    /// Whatever is sent for a configuration is either understood or refused.
    #[test]
    fn configurations_never_panic(
        name in "(Default)?", point in "[a-z/]{0,12}", field in "[a-z_]{0,8}", sink in "(remote|null|file|x)",
        key in "(retries|backoff|backoff_max|endpoint)", value in "[-0-9.a-zµ\"{}]{0,8}", ignore in any::<bool>(),
    ) {
        let text = serde_json::json!({
            "name": name, "ignore_missing": ignore,
            "points": [{"name": point, "optional_fields": [field], "context_fields": null}],
            "sinks": [{"name": sink, "config": {key: value}}],
        });
        let config: SessionConfig = serde_json::from_value(text).unwrap();
        if let Ok((plan, _)) = plan(&config) {
            let _ = (plan.needs(), plan.probes(), plan.syscalls());
        }
        let _ = go_duration(&value);
    }
}
