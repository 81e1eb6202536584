//! Replays exchanges that were recorded between gVisor's runsc and its sandboxes, byte for byte.
//!
//! `data/urpc-2022.txt` comes from Debian's runsc 20221219, `data/urpc-2026.txt` from gVisor's source of August 2026:
//! requests and replies in turn, one a line.

#![allow(clippy::unwrap_used)]

use airlock_wire::api::{container_manager as cm, debug, lifecycle, logging, proc, usage};
use airlock_wire::{Client, Dialect, Error, Method, Registry, Server, ServerOptions, json};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

const SUCCESS: &str = r#"{"success":true,"err":"","result":"#;

fn exchanges(text: &str) -> Vec<(&str, &str)> {
    let lines: Vec<&str> = text.lines().collect();
    let pairs: Vec<_> = lines.chunks(2).map(|pair| (pair[0], pair[1])).collect();
    assert!(pairs.len() > 20);
    pairs
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.values().all(is_zero),
    }
}

/// What we understood of `theirs` says the same, apart from what we do not know.
fn assert_understood(ours: &Value, theirs: &Value) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (key, value) in ours {
                match theirs.get(key) {
                    Some(theirs) => assert_understood(value, theirs),
                    None => assert!(is_zero(value), "{key}: {value} was never sent"),
                }
            }
        }
        (ours, Value::Null) => assert!(is_zero(ours), "{ours} was read from null"),
        (Value::Array(ours), Value::Array(theirs)) => {
            assert_eq!(ours.len(), theirs.len());
            ours.iter().zip(theirs).for_each(|(o, t)| assert_understood(o, t));
        }
        (ours, theirs) => assert_eq!(ours, theirs),
    }
}

/// The exchange that is being replayed.
type Current = Arc<Mutex<(Value, String)>>;

fn on<M: Method + 'static>(registry: &mut Registry, current: &Current) {
    let current = current.clone();
    registry.on::<M>(move |_, arg| {
        let (request, reply) = &*current.lock().unwrap();
        assert_understood(&serde_json::to_value(&arg).unwrap(), &request["arg"]);
        match reply.strip_prefix(SUCCESS).and_then(|r| r.strip_suffix('}')) {
            Some(result) => json::from_slice(result.as_bytes()),
            None => {
                Err(Error::failure(serde_json::from_str::<Value>(reply).unwrap()["err"].as_str().unwrap()))
            }
        }
    });
}

/// Answers every recorded method as the recording says.
fn replaying(current: &Current) -> Server {
    let mut r = Registry::new();
    on::<cm::StartRoot>(&mut r, current);
    on::<cm::CreateSubcontainer>(&mut r, current);
    on::<cm::StartSubcontainer>(&mut r, current);
    on::<cm::DestroySubcontainer>(&mut r, current);
    on::<cm::ExecuteAsync>(&mut r, current);
    on::<cm::Processes>(&mut r, current);
    on::<cm::Signal>(&mut r, current);
    on::<cm::Wait>(&mut r, current);
    on::<cm::WaitPID>(&mut r, current);
    on::<cm::Pause>(&mut r, current);
    on::<cm::Resume>(&mut r, current);
    on::<cm::Event>(&mut r, current);
    on::<cm::CreateTraceSession>(&mut r, current);
    on::<cm::ListTraceSessions>(&mut r, current);
    on::<cm::DeleteTraceSession>(&mut r, current);
    on::<cm::ContainerRuntimeState>(&mut r, current);
    on::<lifecycle::Pause>(&mut r, current);
    on::<lifecycle::Resume>(&mut r, current);
    on::<logging::Change>(&mut r, current);
    on::<usage::Collect>(&mut r, current);
    on::<proc::Ps>(&mut r, current);
    on::<debug::Stacks>(&mut r, current);
    Server::new(r, ServerOptions::default())
}

/// runsc's requests, sent to our server, get runsc's replies. `newer` lists what our replies say besides.
fn replay(text: &str, newer: &[&str]) {
    let current = Current::default();
    let server = replaying(&current);
    for (request, reply) in exchanges(text) {
        *current.lock().unwrap() = (serde_json::from_str(request).unwrap(), reply.to_owned());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        server.serve_stream(theirs).unwrap();
        ours.write_all(request.as_bytes()).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        ours.read_to_string(&mut answer).unwrap();
        for field in newer {
            answer = answer.replace(field, "");
        }
        assert_eq!(answer, reply, "to {request}");
    }
}

#[test]
fn our_server_answers_runsc_of_2022() {
    replay(include_str!("data/urpc-2022.txt"), &[r#""pgid":0,"#, r#","network_interfaces":null"#]);
}

#[test]
fn our_server_answers_runsc_of_2026() {
    replay(include_str!("data/urpc-2026.txt"), &[]);
}

/// Sends `request`'s argument with our client to a sandbox that answers `reply`; returns what was sent.
fn ask<M: Method>(request: &Value, reply: &str) -> (String, Result<M::Reply, Error>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            let arg = json::from_slice(request["arg"].to_string().as_bytes())?;
            Client::from_stream(ours, Dialect::Json).call::<M>(&arg, &[]).map(|r| r.value)
        });
        let mut buf = vec![0; 64 << 10];
        let n = theirs.read(&mut buf).unwrap();
        theirs.write_all(reply.as_bytes()).unwrap();
        (String::from_utf8(buf[..n].to_vec()).unwrap(), call.join().unwrap())
    })
}

/// Our request is runsc's, and its reply is understood.
fn check<M: Method>(request: &str, reply: &str, exact: bool) {
    let theirs: Value = serde_json::from_str(request).unwrap();
    let (sent, result) = ask::<M>(&theirs, reply);
    match exact {
        true => assert_eq!(sent, request),
        false => {
            let ours: Value = serde_json::from_str(&sent).unwrap();
            assert_eq!(ours["method"], theirs["method"]);
            assert_understood(&ours["arg"], &theirs["arg"]);
        }
    }
    let reply: Value = serde_json::from_str(reply).unwrap();
    match result {
        Ok(value) => assert_understood(&serde_json::to_value(&value).unwrap(), &reply["result"]),
        Err(e) => assert_eq!(e.message, reply["err"].as_str().unwrap()),
    }
}

#[test]
fn our_client_speaks_as_runsc_does() {
    for text in [include_str!("data/urpc-2022.txt"), include_str!("data/urpc-2026.txt")] {
        for (request, reply) in exchanges(text) {
            let method = request.split('"').nth(3).unwrap();
            match method {
                "containerManager.StartRoot" => check::<cm::StartRoot>(request, reply, true),
                "containerManager.CreateSubcontainer" => {
                    check::<cm::CreateSubcontainer>(request, reply, true)
                }
                "containerManager.DestroySubcontainer" => {
                    check::<cm::DestroySubcontainer>(request, reply, true)
                }
                "containerManager.Processes" => check::<cm::Processes>(request, reply, true),
                "containerManager.Signal" => check::<cm::Signal>(request, reply, true),
                "containerManager.Wait" => check::<cm::Wait>(request, reply, true),
                "containerManager.WaitPID" => check::<cm::WaitPID>(request, reply, true),
                "containerManager.ContainerRuntimeState" => {
                    check::<cm::ContainerRuntimeState>(request, reply, true)
                }
                "containerManager.CreateTraceSession" => {
                    check::<cm::CreateTraceSession>(request, reply, true)
                }
                "containerManager.ListTraceSessions" => check::<cm::ListTraceSessions>(request, reply, false),
                "containerManager.DeleteTraceSession" => {
                    check::<cm::DeleteTraceSession>(request, reply, true)
                }
                "Logging.Change" => check::<logging::Change>(request, reply, true),
                "Usage.Collect" => check::<usage::Collect>(request, reply, true),
                "containerManager.Event" => check::<cm::Event>(request, reply, false),
                "containerManager.ExecuteAsync" => check::<cm::ExecuteAsync>(request, reply, false),
                "containerManager.StartSubcontainer" => check::<cm::StartSubcontainer>(request, reply, false),
                "containerManager.Pause" => check::<cm::Pause>(request, reply, false),
                "containerManager.Resume" => check::<cm::Resume>(request, reply, false),
                "Lifecycle.Pause" => check::<lifecycle::Pause>(request, reply, false),
                "Lifecycle.Resume" => check::<lifecycle::Resume>(request, reply, false),
                other => panic!("{other} is not checked"),
            }
        }
    }
}
