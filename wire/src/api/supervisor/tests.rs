use super::*;
use crate::client::Dialect;
use crate::error::Kind;
use crate::method::{ErrorText, Method};
use crate::{Client, Server, ServerOptions, testing};
use std::fmt::Debug;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

fn text<T: Serialize>(value: &T) -> String {
    let mut out = Vec::new();
    crate::json::encode(value, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// What `json` is as a `T`; checks that it is written the same, and that the binary dialect keeps it.
fn same<T: Serialize + serde::de::DeserializeOwned + PartialEq + Debug>(json: &str) -> T {
    let value: T = crate::json::from_slice(json.as_bytes()).unwrap();
    assert_eq!(text(&value), json);
    let mut bytes = Vec::new();
    crate::codec::encode_into(&value, &mut bytes).unwrap();
    assert_eq!(crate::codec::decode::<T>(&bytes).unwrap(), value);
    value
}

fn check(name: &str, json: &str) {
    match name {
        "domain" => {
            same::<StartRequest>(json);
            same::<FreezeRequest>(json);
            same::<ThawRequest>(json);
            same::<EventsRequest>(json);
        }
        "named" => drop(same::<TerminateRequest>(json)),
        "kill" => drop(same::<KillRequest>(json)),
        "stop" => drop(same::<StopRequest>(json)),
        "configure" => drop(same::<Json<ConfigureRequest>>(json)),
        "execute" => drop(same::<Json<ExecRequest>>(json)),
        "event" => drop(same::<Event>(json)),
        "failure" => drop(same::<SupervisorError>(json)),
        "response" => {
            same::<StopResponse>(json);
            same::<FreezeResponse>(json);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn every_message_is_as_gos_encoder_writes_it() {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/supervisor/testdata/peer.go");
    let mut go = Command::new("go");
    go.args(["run", source]).stdin(Stdio::piped()).stdout(Stdio::piped());
    if std::env::var_os("HOME").is_none() {
        go.env("GOCACHE", std::env::temp_dir().join("airlock-gocache"));
    }
    let Ok(mut peer) = go.spawn() else {
        eprintln!("skipped: go (Debian golang-go) is not installed");
        return;
    };
    let ours = [
        ("configure", text(&configure())),
        ("execute", text(&execute())),
        ("event", text(&Event { time: 7, event: EventData::termination("d", "p", 15) })),
        ("event", text(&Event { time: 8, event: EventData::termination("d", "p", 0x0300) })),
        ("event", text(&Event { time: 9, event: EventData::loss(12) })),
        (
            "kill",
            text(&KillRequest { deadline: Deadline::after(Duration::from_secs(1)), ..Default::default() }),
        ),
        ("failure", SupervisorError::text(&crate::Error::invalid_state("\"d\" & more"))),
        ("response", text(&FreezeResponse::default())),
    ];
    let mut input = peer.stdin.take().unwrap();
    for (name, json) in &ours {
        writeln!(input, "{name}\t{json}").unwrap();
    }
    drop(input);
    let output = peer.wait_with_output().unwrap();
    assert!(output.status.success());
    let lines: Vec<(&str, &str)> = std::str::from_utf8(&output.stdout)
        .unwrap()
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .collect();
    assert!(lines.len() > 2 * ours.len());
    let (theirs, echoed) = lines.split_at(lines.len() - ours.len());
    theirs.iter().for_each(|(name, json)| check(name, json));
    for ((name, json), (sent_name, sent)) in echoed.iter().zip(&ours) {
        assert_eq!((name, *json), (sent_name, sent.as_str()));
    }
}

fn configure() -> ConfigureRequest {
    let drive = DriveMount {
        source: "/img".to_owned(),
        destination: "/d".to_owned(),
        fs_type: "erofs".to_owned(),
        options: vec!["ro".to_owned()],
        chowner: Some((1, 2)),
        chmode: 0o700,
    };
    ConfigureRequest {
        domain: "d".to_owned(),
        mounts: vec![Mount::Drive(drive), Mount::Bind(BindMount::default())].into(),
        capabilities: Some(Capabilities {
            ambient: vec!["CAP_KILL".to_owned()].into(),
            ..Default::default()
        }),
        seccomp_filters: vec!["default".to_owned()].into(),
        cgroup_profiles: Some(CgroupProfiles {
            throttled: CgroupProfile { cpu_limit: 1e-7, memory_limit_bytes: u64::MAX },
            unthrottled: CgroupProfile { cpu_limit: 3.0, memory_limit_bytes: 1 },
        }),
        start_profile: ProfileName::Throttled,
        exec_user: Some(ExecUser { uid: None, gid: Some(3) }),
        additional_start_hooks: vec![Hook { env: Some(BTreeMap::new()), ..Default::default() }].into(),
        log_topics: List::default(),
    }
}

fn execute() -> ExecRequest {
    ExecRequest {
        name: "p".to_owned(),
        args: vec!["\u{2028}".to_owned()].into(),
        cwd: Some("/".to_owned()),
        env: Some(BTreeMap::from([("K".to_owned(), "V".to_owned())])),
        logging: Logging {
            managed: ManagedLogging { topic: Topic::Runtime, formats: vec![Format::Message].into() },
        },
        ..Default::default()
    }
}

#[test]
fn messages_have_the_models_members() {
    // Fixed, so that they are checked without Go as well.
    for (name, json) in [
        ("domain", r#"{"domain":"d"}"#),
        ("kill", r#"{"name":"","domain":"","deadline":"0001-01-01T00:00:00Z"}"#),
        ("kill", r#"{"name":"p","domain":"d","deadline":"2026-11-28T12:00:00.000000001+01:30"}"#),
        ("configure", r#"{"domain":""}"#),
        (
            "configure",
            r#"{"domain":"d","mounts":[{"type":"drive","chowner":[0,1],"chmode":488},{"type":"bind","source":"/s"}],"exec_user":{"uid":null,"gid":0},"additional_start_hooks":[{"name":"h","path":"/h","envs":null}]}"#,
        ),
        (
            "configure",
            r#"{"domain":"d","cgroup_profiles":{"throttled":{"cpu_limit":0.5,"memory_limit_bytes":0},"unthrottled":{"cpu_limit":2,"memory_limit_bytes":9}},"start_profile":"throttled"}"#,
        ),
        (
            "execute",
            r#"{"name":"","domain":"","path":"","log_config":{"managed":{"topic":"","formats":null}}}"#,
        ),
        (
            "execute",
            r#"{"name":"p","domain":"d","path":"/p","cwd":"","env":{},"log_config":{"managed":{"topic":"runtime_extension","formats":["message","line"]}}}"#,
        ),
        (
            "event",
            r#"{"timestamp_millis":1,"event":{"type":"event_loss","domain":null,"name":null,"cause":null,"signo":null,"exit_status":null,"size":4}}"#,
        ),
        ("failure", r#"{"error_kind":"failure","message":null}"#),
    ] {
        check(name, json);
    }
}

#[test]
fn what_airlock_adds_is_left_out_unless_it_is_used() {
    let exec = ExecRequest { stdout: true, stderr: true, ..Default::default() };
    same::<Json<ExecRequest>>(&text(&exec));
    assert!(text(&exec).ends_with(r#","stdout":true,"stderr":true}"#));
    let configure = ConfigureRequest { log_topics: vec![Topic::Runtime].into(), ..Default::default() };
    assert_eq!(text(&configure), r#"{"domain":"","log_topics":["runtime"]}"#);
    same::<Json<ConfigureRequest>>(&text(&configure));
}

#[test]
fn what_makes_no_sense_is_not_decoded() {
    for json in [
        r#"{"mounts":[{"type":"tape"}]}"#,
        r#"{"mounts":[{}]}"#,
        r#"{"mounts":[{"type":"bind","chmode":1}]}"#,
        r#"{"mounts":[{"type":"drive","chowner":[1]}]}"#,
        r#"{"mounts":[{"type":"drive","chowner":[1,2,3]}]}"#,
        r#"{"mounts":[{"type":"drive","chowner":[-1,2]}]}"#,
        r#"{"start_profile":"fast"}"#,
        r#"{"cgroup_profiles":{"throttled":{"memory_limit_bytes":0.5}}}"#,
        r#"{"exec_user":{"uid":4294967296}}"#,
        r#"{"domain":5}"#,
    ] {
        let e = crate::json::from_slice::<ConfigureRequest>(json.as_bytes()).unwrap_err();
        assert_eq!(e.kind, Kind::Serde, "{json}: {e}");
    }
    for deadline in [
        "",
        "tomorrow",
        "2026-11-28",
        "2026-11-28T12:00:00",
        "2026-11-28T25:00:00Z",
        "2026-11-28T12:00:00+99:00",
    ] {
        let json = text(&BTreeMap::from([("deadline", deadline)]));
        assert_eq!(
            crate::json::from_slice::<StopRequest>(json.as_bytes()).unwrap_err().kind,
            Kind::Serde,
            "{deadline}"
        );
    }
    let json = br#"{"log_config":{"managed":{"topic":"kernel"}}}"#;
    assert_eq!(crate::json::from_slice::<ExecRequest>(json).unwrap_err().kind, Kind::Serde);
}

#[test]
fn deadlines_tell_how_long_is_left() {
    let at = |text: &str| text.parse::<Deadline>().unwrap();
    assert_eq!(at("2001-02-03T04:05:06Z"), at("2001-02-03T05:35:06+01:30"));
    assert_eq!(Deadline::default().left(), None);
    assert_eq!(at("2001-02-03T04:05:06Z").left(), None);
    let left = Deadline::after(Duration::from_secs(60)).left().unwrap();
    assert!((Duration::from_secs(1)..=Duration::from_secs(60)).contains(&left));
    assert!(Deadline::after(Duration::MAX).left().unwrap() > Duration::from_secs(1 << 30));
}

fn serve(registry: crate::Registry, dialect: Dialect) -> (Server, Client) {
    let server = Server::new(registry, ServerOptions::default());
    let (ours, theirs) = testing::pair();
    server.serve_stream(theirs).unwrap();
    (server, Client::from_stream(ours, dialect))
}

#[test]
fn errors_keep_their_kind_in_both_dialects() {
    for dialect in [Dialect::Json, Dialect::Binary] {
        let mut registry = crate::Registry::new();
        registry.on::<Thaw>(|_, args| match args.domain.as_str() {
            "a" => Err(crate::Error::no_such_entity("domain \"a\" does not exist")),
            "b" => Err(crate::Error::invalid_state("not frozen")),
            "c" => Err(crate::Error::new(Kind::Serde, "not text")),
            "d" => Err(crate::Error::failure("broken")),
            _ => Ok(Empty {}),
        });
        let (_server, mut client) = serve(registry, dialect);
        let mut thaw = |domain: &str| {
            let e = client.call::<Thaw>(&ThawRequest { domain: domain.to_owned() }, &[]).unwrap_err();
            (e.kind, e.message)
        };
        assert_eq!(thaw("a"), (Kind::NoSuchEntity, "domain \"a\" does not exist".to_owned()));
        assert_eq!(thaw("b"), (Kind::InvalidState, "not frozen".to_owned()));
        assert_eq!(thaw("c"), (Kind::Serde, "not text".to_owned()));
        assert_eq!(thaw("d"), (Kind::Failure, "broken".to_owned()));
    }
    // Undecodable input, as somebody sees it who does not use this client.
    let mut registry = crate::Registry::new();
    registry.on::<Thaw>(|_, _| Ok(Empty {}));
    let (_server, mut client) = serve(registry, Dialect::Json);
    let e = client.call_raw(Thaw::NAME, &serde_json::json!({"domain": 5}), &[]).unwrap_err();
    let told: SupervisorError = serde_json::from_str(&e.message).unwrap();
    assert_eq!(told.kind, ErrorKind::Serde);
    assert!(told.message.unwrap().contains("ThawRequest.domain"));
    assert_eq!(SupervisorError::error(r#"{"error_kind":"serde","message":null}"#).message, "serde");
    assert_eq!(SupervisorError::error("{no json").kind, Kind::Failure);
}
