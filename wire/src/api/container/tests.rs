//! Messages in JSON, and codes.

use super::spec::*;
use super::stats::*;
use super::status::{Code, Coded, coded};
use super::*;
use crate::error::{Error, Kind};
use crate::method::ErrorText;

#[test]
fn absent_fields_are_left_out() {
    let spec = ContainerSpec { cpu: Some(CpuSpec::default()), ..ContainerSpec::default() };
    assert_eq!(serde_json::to_string(&spec).unwrap(), r#"{"cpu":{}}"#);
    let stats = ContainerStats {
        memory: Some(MemoryStats { usage: Some(0), ..MemoryStats::default() }),
        cpu: None,
        ..ContainerStats::default()
    };
    assert_eq!(serde_json::to_string(&stats).unwrap(), r#"{"memory":{"usage":0}}"#);
    let args: UpdateArgs = serde_json::from_str(r#"{"name": "a", "policy": "UPDATE_REPLACE"}"#).unwrap();
    assert_eq!((args.policy, args.spec), (UpdatePolicy::UpdateReplace, ContainerSpec::default()));
    let rule = r#"{"permission":"ALLOW","type":"DEVICE_CHAR","access":["READ","MKNOD"],"major":1}"#;
    let read: DeviceRestrictions = serde_json::from_str(rule).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), rule);
    assert!(serde_json::from_str::<ContainerSpec>(r#"{"memory":{"limits":1}}"#).is_err());
    let both: ContainerSpec = serde_json::from_str(r#"{"security":{}}"#).unwrap();
    assert_eq!(both.security_spec, Some(SecuritySpec::default()));
}

#[test]
fn codes_survive_both_dialects() {
    for code in [
        Code::NotFound,
        Code::AlreadyExists,
        Code::InvalidArgument,
        Code::FailedPrecondition,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
    ] {
        let error = code.error("what it is about: why");
        assert_eq!((Code::of(&error), error.kind), (code, code.kind()));
        assert_eq!(Coded::error(&Coded::text(&error)), error);
    }
    let plain = Error::no_such_entity("there is no cgroup: gone");
    assert_eq!(coded(plain.clone()).message, "NOT_FOUND: there is no cgroup: gone");
    assert_eq!(Coded::text(&plain), "NOT_FOUND: there is no cgroup: gone");
    assert_eq!(Coded::error("no code").kind, Kind::Failure);
}
