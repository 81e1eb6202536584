use super::*;
use crate::trace::bpf::record;
use crate::trace::config;
use crate::trace::wire::parsed;
use serde_json::{Value as Json, json};

/// A record with arguments and items.
fn record(kind: Kind, args: &[u64], items: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; record::HEAD as usize];
    let mut put =
        |at: i16, value: &[u8]| bytes[at as usize..at as usize + value.len()].copy_from_slice(value);
    put(record::KIND, &(kind as u32).to_ne_bytes());
    put(record::CONTAINER, &1u32.to_ne_bytes());
    put(record::TIME, &500u64.to_ne_bytes());
    put(record::TID, &21u32.to_ne_bytes());
    put(record::TGID, &20u32.to_ne_bytes());
    put(record::ANCESTOR, &20u32.to_ne_bytes());
    put(record::NAME, b"sh\0junk");
    for (n, arg) in (0..).zip(args) {
        put(record::ARGS + 8 * n, &arg.to_ne_bytes());
    }
    for (tag, content) in items {
        bytes.extend(tag.to_ne_bytes());
        bytes.extend((content.len() as u16).to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

fn told(points: Json, bytes: &[u8]) -> Vec<(String, u16, Json)> {
    let config = json!({"name": "Default", "points": points});
    let (plan, _) = config::plan(&serde_json::from_value(config).unwrap()).unwrap();
    let mut teller = Teller::new(plan);
    teller.know(Known { number: 1, cid: "c1".to_owned(), root: true, cgroup: 9, init: Some(7) });
    let messages = teller.tell(&Event::parse(bytes).unwrap(), &Found::default(), 1_000);
    messages.into_iter().map(|m| (m.point.name(), m.kind, parsed(&m.fields).unwrap())).collect()
}

#[test]
fn an_end_is_told_of_thread_and_process() {
    let points = json!([
        {"name": "sentry/task_exit", "context_fields": ["time", "thread_id", "container_id", "process_name", "is_exec_session"]},
        {"name": "sentry/exit_notify_parent", "context_fields": ["thread_id"]},
    ]);
    let last = record(Kind::Exit, &[9, 0, 4, 3 << 8], &[]);
    let context = json!({"time_ns": 1500, "thread_id": 21, "container_id": "c1", "process_name": "sh",
        "is_exec_session": true});
    assert_eq!(
        told(points.clone(), &last),
        [
            ("sentry/task_exit".to_owned(), 5, json!({"context_data": context, "exit_status": 9})),
            (
                "sentry/exit_notify_parent".to_owned(),
                4,
                json!({"context_data": {"thread_id": 20}, "exit_status": 768})
            ),
        ]
    );
    let other = record(Kind::Exit, &[9, 1, 0, 0], &[]);
    assert_eq!(told(points, &other).len(), 1, "a thread of a process that lives on");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn calls_are_told_by_name_and_by_number() {
    let points = json!([
        {"name": "syscall/openat/exit", "optional_fields": ["fd_path"]},
        {"name": "syscall/sysno/257/exit"}, {"name": "syscall/sysno/257/enter"},
    ]);
    let items: &[(u16, &[u8])] = &[(tag::FD, b""), (tag::CAPTURE, b"/etc/x\0")];
    let bytes = record(Kind::Leave, &[257, 5, 0x1000, 0x8000, 0o644, 0, 0, -2i64 as u64], items);
    let exit = json!({"result": -2, "errorno": 2});
    let open = json!({"exit": exit, "sysno": 257, "fd": 5, "fd_path": "[err: FD not found]",
        "pathname": "/etc/x", "flags": 0x8000, "mode": 0o644});
    let raw = json!({"exit": exit, "sysno": 257, "arg1": 5, "arg2": 0x1000, "arg3": 0x8000, "arg4": 0o644,
        "arg5": 0, "arg6": 0});
    assert_eq!(
        told(points, &bytes),
        [("syscall/openat/exit".to_owned(), 7, open), ("syscall/sysno/257/exit".to_owned(), 6, raw)]
    );
}

#[test]
fn an_interrupted_call_ends_as_its_program_sees_it() {
    assert_eq!(parsed(&[ended(-512)]).unwrap(), json!({"exit": {"result": -4, "errorno": 4}}));
    assert_eq!(parsed(&[ended(7)]).unwrap(), json!({"exit": {"result": 7, "errorno": 0}}));
}

#[test]
fn arguments_of_a_program_are_taken_apart() {
    let items: &[(u16, &[u8])] =
        &[(tag::ARGV, b"sh\0-c\0\0"), (tag::ENVIRON, b"A=1\0B=cu"), (tag::FILENAME, b"./sh\0")];
    let bytes = record(Kind::Exec, &[], items);
    let all = told(json!([{"name": "sentry/execve"}]), &bytes);
    assert_eq!(all[0].2, json!({"argv": ["sh", "-c", ""], "env": ["A=1", "B=cu"], "execfn": "./sh"}));
}
