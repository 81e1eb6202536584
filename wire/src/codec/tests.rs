use super::*;
use crate::api::airlock::*;
use crate::api::boot::*;
use crate::api::checkpoint::*;
use crate::api::container_manager::*;
use crate::api::logging::*;
use crate::api::types::{Base64, Empty, FdMapping, GoferMountConf, Json, List, SpecJson};
use crate::json;
use proptest::prelude::*;
use std::fmt::Debug;

fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(value, &mut out).unwrap();
    out
}

/// The encoding is part of the protocol: these bytes are in docs/WIRE.md.
#[test]
fn the_encoding_is_fixed() {
    assert_eq!(bytes(&SignalArgs { cid: "web".into(), signo: 15, pid: 0, mode: 1 }), b"\x03web\x1e\x00\x02");
    assert_eq!(bytes(&Empty {}), b"");
    assert_eq!(bytes(&250u32), [250]);
    assert_eq!(bytes(&251u32), [251, 251, 0]);
    assert_eq!(bytes(&65_536u32), [252, 0, 0, 1, 0]);
    assert_eq!(bytes(&u64::MAX), [253, 255, 255, 255, 255, 255, 255, 255, 255]);
    assert_eq!(bytes(&-1i32), [1]);
    assert_eq!(bytes(&(true, Some(7u8), None::<u8>)), [1, 1, 7, 0]);
    assert_eq!(bytes(&List(vec!["a".to_owned()])), b"\x01\x01a");
    assert_eq!(bytes(&RuntimeState::Running), [4]);
    assert_eq!(bytes(&LogLevel::Debug), [2]);
    assert_eq!(bytes(&SpecJson(Some("{}".into()))), b"\x01\x02{}");
    assert_eq!(bytes(&Json(vec![1])), b"\x03[1]");
    assert_eq!(bytes(&Error::no_such_entity("x")), b"\x01\x01x");
    assert_eq!(bytes(&Error::new(Kind::Timeout, "")), [11, 0]);
}

#[test]
fn what_is_left_over_or_cut_short_is_an_error() {
    assert_eq!(decode::<u32>(&[1, 2]).unwrap_err().message, "decoding u32: 1 bytes left over");
    assert!(decode::<String>(&[5, b'a']).unwrap_err().message.ends_with("it is cut short"));
    let huge = [253, 255, 255, 255, 255, 255, 255, 255, 127];
    assert!(decode::<String>(&huge).unwrap_err().message.ends_with("a length in it is too large"));
    assert!(decode::<Vec<String>>(&huge).is_err());
    assert!(decode::<bool>(&[2]).is_err());
    assert_eq!(split_str(&huge).unwrap_err().kind, Kind::Serde);
}

#[test]
fn long_values_fit() {
    let numbers: Vec<u64> = vec![1; SMALL_BODY - 3];
    assert_eq!(decode::<Vec<u64>>(&bytes(&numbers)).unwrap(), numbers);
    let text = "x".repeat(15 << 20);
    assert_eq!(decode::<String>(&bytes(&text)).unwrap(), text);
}

/// A value survives both dialects.
fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    assert_eq!(&decode::<T>(&bytes(value)).unwrap(), value);
    let mut text = Vec::new();
    json::encode(value, &mut text).unwrap();
    assert_eq!(&json::from_slice::<T>(&text).unwrap(), value, "{}", String::from_utf8_lossy(&text));
}

fn fds() -> impl Strategy<Value = Vec<Fd>> {
    prop::collection::vec(any::<u16>().prop_map(Fd), 0..4)
}

fn json_text() -> impl Strategy<Value = SpecJson> {
    prop::option::of(Just(r#"{"a":[1,null,"<x>"],"b":{"c":true}}"#.to_owned())).prop_map(SpecJson)
}

prop_compose! {
    fn cgroup()(
        v2: bool, name: String, dirs in prop::collection::vec((".*", any::<u16>(), prop::option::of(any::<u16>())), 0..3),
        mounts in fds(),
    ) -> CgroupFds {
        let dirs = dirs.into_iter().map(|(n, dir, join)| CgroupDir { name: n + &name, dir: Fd(dir), join: join.map(Fd) });
        CgroupFds { v2, dirs: dirs.collect(), mounts }
    }
}

prop_compose! {
    fn container()(
        stdio in fds(), gofer in fds(), filestores in fds(), cgroup in cgroup(),
        devices in prop::collection::vec((".*", any::<u16>().prop_map(Fd)), 0..3),
        join in prop::collection::vec((prop::sample::select(vec![Namespace::User, Namespace::Time]), any::<u16>().prop_map(Fd)), 0..3),
        pass in prop::collection::vec(any::<(i32, i32)>().prop_map(|(guest, host)| FdMapping { guest, host }), 0..3),
        exec: Option<u16>, tty: Option<u16>,
    ) -> ContainerFds {
        ContainerFds { stdio, gofer, filestores, devices, cgroup, join, pass, exec: exec.map(Fd), tty: tty.map(Fd) }
    }
}

fn mounts() -> impl Strategy<Value = Vec<GoferMountConf>> {
    let conf = any::<(u8, u8, u64)>().prop_map(|(lower, upper, size)| GoferMountConf { lower, upper, size });
    prop::collection::vec(conf, 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn start_args(spec in json_text(), conf in json_text(), cid: String, n: i32, dev: bool, tar: bool, confs in mounts()) {
        survives(&StartArgs {
            spec, conf, cid, num_gofer_filestore_fds: n, is_dev_io_file_present: dev, gofer_mount_confs: confs,
            is_rootfs_upper_tar_file_present: tar,
        });
    }

    #[test]
    fn exec_args(
        filename: String, argv: Vec<String>, envv: Vec<String>, wd: String, ids: (u32, u32), extra: Vec<u32>,
        flags: (bool, bool, bool), caps: Option<(u64, u64, u64, u64, u64)>, guest_fds: Option<Vec<i32>>, cid: String,
    ) {
        survives(&ExecArgs {
            filename, argv, envv, working_directory: wd, kuid: ids.0, kgid: ids.1, extra_kgids: extra,
            no_new_privileges: flags.0, stdio_is_pty: flags.1, support_ttys: flags.2,
            capabilities: caps.map(|(permitted, inheritable, effective, bounding, ambient)| TaskCapabilities {
                permitted, inheritable, effective, bounding, ambient,
            }),
            guest_fds, container_id: cid,
        });
    }

    #[test]
    fn small_arguments(cid: String, a: i32, b: i32, c: i32, names: Option<Vec<String>>) {
        survives(&SignalArgs { cid: cid.clone(), signo: a, pid: b, mode: c });
        survives(&WaitPidArgs { pid: a, cid: cid.clone() });
        survives(&SuperviseArgs { cid: cid.clone(), pid: a });
        survives(&SignalForwardArgs { cid: cid.clone(), pid: a, signo: b });
        survives(&Prepared { init_pid: a, has_console: b > 0, has_seccomp_listener: c > 0 });
        survives(&RuntimeState::from(a.rem_euclid(4)));
        survives(&LoggingArgs { strace_allowlist: names, level: LogLevel::Info, ..LoggingArgs::default() });
        survives(&(cid, Empty {}));
    }

    #[test]
    fn checkpoints(
        key: Option<Vec<u8>>, metadata: Option<std::collections::BTreeMap<String, String>>, text: String, flags: [bool; 5], n: u64,
    ) {
        let key = key.map(Base64);
        survives(&CheckpointArgs {
            save: SaveOpts {
                key: key.clone(), metadata, have_pages_file: flags[0], resume: flags[1], cuda_checkpoint_path: text.clone(),
                ..SaveOpts::default()
            },
            dry_run: flags[2], parent: flags[3], commit: flags[4], ..CheckpointArgs::default()
        });
        survives(&RestoreArgs {
            on_demand: flags[0], working_set: flags[1],
            restore: RestoreOpts { key, background: flags[0], ..RestoreOpts::default() }, tcp_established: flags[1],
            parents: n as u32,
        });
        let refusal = Refusal { comm: text.clone(), fd: flags[0].then_some(n as i32), ..Refusal::default() };
        survives(&Report { pages: n, phases: vec![(text.clone(), n)], refusals: vec![refusal], ..Report::default() });
        survives(&Progress { work: text, pages: n, ..Progress::default() });
    }

    #[test]
    fn results(cid: String, uid: u32, n: i32, threads: Vec<i32>, usage: u64, raw in prop::collection::btree_map(".*", any::<u64>(), 0..3), exit: Option<u32>) {
        survives(&List(vec![
            Process { uid, pid: n, threads: List(threads), cmd: cid.clone(), ..Process::default() };
            (usage % 3) as usize
        ]));
        let stats = Stats {
            cpu: Cpu { usage: CpuUsage { total: usage, percpu: vec![usage; (usage % 3) as usize], ..CpuUsage::default() } },
            memory: Memory { cache: usage, raw: raw.clone(), ..Memory::default() },
            network_interfaces: List(vec![NetworkInterface { name: cid.clone(), rx_bytes: usage, ..NetworkInterface::default() }]),
            ..Stats::default()
        };
        survives(&Json(EventOut {
            event: StatsEvent { kind: "stats".into(), id: cid.clone(), data: stats }, container_usage: raw,
        }));
        survives(&vec![ContainerInfo { cid, init_pid: n, exit_status: exit, ..ContainerInfo::default() }]);
    }

    #[test]
    fn preparations(cid: String, spec in json_text(), bundle: String, fds in container(), confs in mounts()) {
        survives(&ExecRequest { cid: cid.clone(), process: spec.clone(), fds: fds.clone() });
        survives(&PrepareArgs { cid, spec, bundle, fds, gofer_mount_confs: confs });
    }

    #[test]
    fn boot(id: String, spec in json_text(), fds in container(), confs in mounts(), numbers: (u8, u64), flags: (bool, bool, bool), listener: Option<u16>, uids: Vec<u32>) {
        let (log_level, stop_grace_ms) = numbers;
        let (host_pid, autostart, hold) = flags;
        let to_restore = hold;
        let args = BootArgs {
            id: id.clone(), spec, bundle: id.clone(), fds, gofer_mount_confs: confs,
            shared_mounts: listener.map(|n| (id.clone(), Fd(n))).into_iter().collect(), trace: None, listener: listener.map(Fd), exit_file: None,
            log: listener.map(Fd), log_level, profile: true, panic_log: None, user_log: None, self_exe: None, host_pid, autostart, hold, to_restore,
            allowed_uids: uids, stop_grace_ms,
        };
        prop_assert_eq!(&decode::<BootArgs>(&bytes(&args)).unwrap(), &args);
        for reply in [
            BootReply::MapIds { pid: 5 }, BootReply::Stage { loader_pid: 7 }, BootReply::Held,
            BootReply::Ready { init_pid: 2, has_console: host_pid, has_seccomp_listener: hold },
            BootReply::Failed(Error::failure(id)),
        ] {
            prop_assert_eq!(&decode::<BootReply>(&bytes(&reply)).unwrap(), &reply);
        }
    }
}

/// Every declared method's default argument and result survives both dialects.
#[test]
fn defaults_of_every_method() {
    assert!(crate::api::all_methods().iter().all(|m| !m.arg.is_null() && !m.result.is_null()));
    survives(&Json(crate::api::all_methods()));
    struct Defaults;
    impl crate::method::Visitor for Defaults {
        fn visit<M: crate::Method + 'static>(&mut self) {
            crate::fuzzing::stays_the_same(&M::Arg::default());
            crate::fuzzing::stays_the_same(&M::Reply::default());
        }
    }
    crate::api::visit_methods(&mut Defaults);
}

/// The frames that docs/WIRE.md shows are what this crate sends.
#[test]
fn the_documents_examples_are_true() {
    let text = include_str!("../../../docs/WIRE.md");
    let arg = SignalArgs { cid: "web".into(), signo: 15, pid: 0, mode: 1 };
    let request = crate::fuzzing::request("containerManager.Signal", &arg, 0);
    let mut error = Vec::new();
    crate::binary::begin(&mut error);
    encode_into(&Error::no_such_entity("container \"web\" not found"), &mut error).unwrap();
    crate::binary::finish(&mut error, crate::binary::FrameKind::Error, 0).unwrap();
    for frame in [request, error] {
        let hex: Vec<String> = frame.iter().map(|b| format!("{b:02x}")).collect();
        let block: String = hex.chunks(16).map(|line| format!("    {}\n", line.join(" "))).collect();
        assert!(text.contains(&block), "docs/WIRE.md should show:\n{block}");
    }
    let mut json = Vec::new();
    json::encode_request("containerManager.Signal", &arg, &mut json).unwrap();
    assert!(text.contains(std::str::from_utf8(&json).unwrap()));
    for (number, kind) in [
        Kind::Failure,
        Kind::NoSuchEntity,
        Kind::InvalidState,
        Kind::InvalidArgument,
        Kind::Serde,
        Kind::Permission,
        Kind::Unsupported,
        Kind::Protocol,
        Kind::Disconnected,
        Kind::UnknownMethod,
        Kind::Panic,
        Kind::Timeout,
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(bytes(&kind), [number as u8]);
        assert!(text.contains(&format!("| {number} | `{kind:?}` |")), "{kind:?}");
    }
}
