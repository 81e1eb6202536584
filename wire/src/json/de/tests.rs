use crate::api::airlock::PrepareArgs;
use crate::api::boot::{Fd, Namespace};
use crate::api::container_manager::*;
use crate::api::lifecycle::SignalContainerArgs;
use crate::api::logging::{LogLevel, LoggingArgs};
use crate::api::types::*;
use crate::json::from_slice;

fn signal(text: &str) -> Result<SignalArgs, String> {
    from_slice(text.as_bytes()).map_err(|e| e.message)
}

#[test]
fn go_rules_for_members() {
    let full = SignalArgs { cid: "a".into(), signo: 9, pid: 0, mode: 1 };
    for text in [
        r#"{"CID":"a","Signo":9,"PID":0,"Mode":1}"#,
        r#"{"cid":"a","SIGNO":9,"mode":1}"#,
        r#"{"CID":"a","Signo":9,"PID":null,"Mode":1,"New":{"x":[1]}}"#,
        r#"{"CID":"b","Mode":1,"Signo":1,"Signo":9,"cId":"a"}"#,
        r#"{"CID":"a","Signo":9,"Mode":1,"CID":null}"#,
    ] {
        assert_eq!(signal(text).as_ref(), Ok(&full), "{text}");
    }
    assert_eq!(signal("null"), Ok(SignalArgs::default()));
    assert_eq!(signal("{}"), Ok(SignalArgs::default()));
}

#[test]
fn an_exact_name_is_preferred_to_another_case() {
    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default)]
    struct Cases {
        name: i32,
        #[serde(rename = "NAME")]
        upper: i32,
    }
    assert_eq!(from_slice::<Cases>(br#"{"NAME":1}"#).unwrap(), Cases { name: 0, upper: 1 });
    assert_eq!(from_slice::<Cases>(br#"{"Name":1}"#).unwrap(), Cases { name: 1, upper: 0 });
}

#[test]
fn type_errors_read_like_gos() {
    let e = |text| signal(text).unwrap_err();
    assert_eq!(e("7"), "json: cannot unmarshal number into Go value of type SignalArgs");
    assert_eq!(
        e(r#"{"Signo":"x"}"#),
        "json: cannot unmarshal string into Go struct field SignalArgs.Signo of type int32"
    );
    assert_eq!(
        e(r#"{"Signo":1.5}"#),
        "json: cannot unmarshal number 1.5 into Go struct field SignalArgs.Signo of type int32"
    );
    assert_eq!(
        e(r#"{"Signo":4294967296}"#),
        "json: cannot unmarshal number 4294967296 into Go struct field SignalArgs.Signo of type int32"
    );
    assert_eq!(
        e(r#"{"cid":true}"#),
        "json: cannot unmarshal bool into Go struct field SignalArgs.CID of type string"
    );
    assert_eq!(
        from_slice::<String>(b"3").unwrap_err().message,
        "json: cannot unmarshal number into Go value of type string"
    );
    assert_eq!(
        from_slice::<EventOut>(br#"{"event":{"data":{"pids":{"current":-1}}}}"#).unwrap_err().message,
        "json: cannot unmarshal number -1 into Go struct field Pids.event.data.pids.current of type uint64"
    );
}

#[test]
fn null_is_the_zero_value_everywhere() {
    assert_eq!(from_slice::<String>(b"null").unwrap(), "");
    assert_eq!(from_slice::<Vec<String>>(br#"["a",null]"#).unwrap(), ["a", ""]);
    assert_eq!(from_slice::<Vec<SignalArgs>>(b"[null]").unwrap(), [SignalArgs::default()]);
    assert_eq!(from_slice::<List<i32>>(b"null").unwrap(), List(vec![]));
    assert_eq!(from_slice::<i32>(b"null").unwrap(), 0);
    assert!(!from_slice::<bool>(b"null").unwrap());
    assert_eq!(from_slice::<RuntimeState>(b"null").unwrap(), RuntimeState::Invalid);
}

#[test]
fn empty_takes_anything() {
    for text in ["null", "{}", r#"{"a":[1,{"b":2}]}"#, "7", r#""x""#, "[]"] {
        assert_eq!(from_slice::<Empty>(text.as_bytes()).unwrap(), Empty {}, "{text}");
    }
}

#[test]
fn start_args_in_every_spelling() {
    let spec = r#"{"ociVersion":"1.0.2","process":{"terminal":false}}"#;
    let of = |text: String| from_slice::<StartArgs>(text.as_bytes()).unwrap();
    let y2022 = of(format!(r#"{{"Spec":{spec},"Conf":{{"RootDir":"/run","Network":2}},"CID":"c"}}"#));
    assert_eq!(y2022.cid, "c");
    let text = |json: &SpecJson| serde_json::from_str::<serde_json::Value>(json.0.as_ref().unwrap()).unwrap();
    assert_eq!(text(&y2022.spec), serde_json::from_str::<serde_json::Value>(spec).unwrap());
    assert_eq!(text(&y2022.conf)["Network"], 2);
    assert_eq!(y2022.num_gofer_filestore_fds, 0);

    let y2024 = of(format!(
        r#"{{"Spec":{spec},"Conf":{{}},"CID":"c","NumOverlayFilestoreFDs":1,"OverlayMediums":[2,0,1]}}"#
    ));
    let y2025 = of(format!(
        r#"{{"Spec":{spec},"Conf":{{}},"CID":"c","NumGoferFilestoreFDs":1,"IsDevIoFilePresent":false,
            "GoferMountConfs":[{{"lower":1,"upper":2}},{{"upper":0,"lower":1}},{{"lower":1,"upper":1}}]}}"#
    ));
    assert_eq!(y2024, y2025);
    let y2026 = of(format!(
        r#"{{"Spec":{spec},"Conf":{{}},"CID":"c","NumGoferFilestoreFDs":0,"IsDevIoFilePresent":true,
            "GoferMountConfs":[{{"lower":2,"upper":1,"size":"64m"}}],"IsRootfsUpperTarFilePresent":true}}"#
    ));
    assert!(y2026.is_dev_io_file_present && y2026.is_rootfs_upper_tar_file_present);
    assert_eq!(y2026.gofer_mount_confs, [GoferMountConf { lower: 2, upper: 1, size: 64 << 20 }]);
    assert_eq!(of(r#"{"Spec":null,"GoferMountConfs":null}"#.into()), StartArgs::default());
    assert!(from_slice::<StartArgs>(br#"{"GoferMountConfs":[{"size":"99999999999t"}]}"#).is_err());
}

#[test]
fn start_descriptors_have_a_fixed_order() {
    let args = StartArgs {
        num_gofer_filestore_fds: 2,
        is_dev_io_file_present: true,
        is_rootfs_upper_tar_file_present: true,
        ..StartArgs::default()
    };
    let layout = args.layout(false, 9).unwrap();
    assert_eq!((layout.stdio, layout.filestores, layout.gofer), (0..3, 3..5, 7..9));
    assert_eq!((layout.dev, layout.rootfs_upper_tar), (Some(5), Some(6)));
    let terminal = StartArgs::default().layout(true, 1).unwrap();
    assert_eq!((terminal.stdio, terminal.gofer, terminal.dev), (0..0, 0..1, None));
    assert_eq!(
        args.layout(false, 7).unwrap_err().message,
        "start arguments must contain at least 8 FDs, but only got 7"
    );
    assert!(StartArgs { num_gofer_filestore_fds: -1, ..args.clone() }.layout(true, 9).is_err());
    assert!(StartArgs { num_gofer_filestore_fds: i32::MAX, ..args }.layout(false, 9).is_err());
}

#[test]
fn exec_args_of_2022_and_2026() {
    let y2022: ExecArgs = from_slice(
        br#"{"filename":"","argv":["/bin/sleep","4"],"envv":["PATH=/bin","A=b"],"MountNamespace":null,"wd":"/tmp","KUID":1000,"KGID":1001,"ExtraKGIDs":[7],"Capabilities":{"PermittedCaps":536871968,"InheritableCaps":0,"EffectiveCaps":536871968,"BoundingCaps":536871968,"AmbientCaps":0},"StdioIsPty":false,"ContainerID":"hrt2","PIDNamespace":null,"Limits":null}"#,
    )
    .unwrap();
    assert_eq!((y2022.kuid, y2022.kgid, y2022.extra_kgids.as_slice()), (1000, 1001, &[7][..]));
    assert_eq!(y2022.capabilities.unwrap().bounding, 536_871_968);
    assert_eq!(y2022.layout(3).unwrap(), ExecLayout { guest: vec![0, 1, 2], program: None });
    let y2026: ExecArgs = from_slice(
        br#"{"filename":"","argv":["true"],"envv":[],"MountNamespace":null,"wd":"/","KUID":0,"KGID":0,"ExtraKGIDs":[],"NoNewPrivileges":true,"Capabilities":null,"StdioIsPty":false,"SupportTTYs":true,"GuestFDs":[0,1,2],"FDTable":null,"ContainerID":"c","PIDNamespace":null,"InitialCgroupV2":null,"CgroupNamespace":null,"Limits":null,"SeccompProgram":null}"#,
    )
    .unwrap();
    assert!(y2026.no_new_privileges && y2026.support_ttys && y2026.capabilities.is_none());
    assert_eq!(y2026.layout(3).unwrap(), ExecLayout { guest: vec![0, 1, 2], program: None });
    assert_eq!(y2026.layout(4).unwrap(), ExecLayout { guest: vec![0, 1, 2], program: Some(3) });
    let message = |args: &ExecArgs, n| args.layout(n).unwrap_err().message;
    let mismatch = "creating fd map: length of payload files does not match length of file descriptor array";
    assert_eq!((message(&y2026, 2), message(&y2026, 5)), (mismatch.to_owned(), mismatch.to_owned()));
    let named = ExecArgs { filename: "/bin/true".into(), ..y2026.clone() };
    assert_eq!(message(&named, 4), "process must either be started from a file or a filename, not both");
    let negative = ExecArgs { guest_fds: Some(vec![0, -1]), ..y2026 };
    assert_eq!(message(&negative, 2), "guest file descriptors must be 0 or greater");
}

#[test]
fn signal_modes() {
    let mode = |mode| SignalArgs { mode, ..SignalArgs::default() }.delivery();
    assert_eq!(mode(0).unwrap(), SignalMode::Process);
    assert_eq!(mode(3).unwrap(), SignalMode::ProcessGroup);
    assert!(mode(4).unwrap_err().message.contains("unknown signal delivery mode 4"));
}

#[test]
fn other_shapes() {
    let level = |text: &str| from_slice::<LoggingArgs>(text.as_bytes()).map(|a| a.level);
    assert_eq!(level(r#"{"Level":"debug"}"#), Ok(LogLevel::Debug));
    assert_eq!(level(r#"{"Level":1}"#), Ok(LogLevel::Info));
    assert_eq!(level(r#"{"Level":null}"#), Ok(LogLevel::Warning));
    assert_eq!(level(r#"{"Level":"loud"}"#).unwrap_err().message, r#"json: unknown level "loud""#);
    let signal: SignalContainerArgs =
        from_slice(br#"{"container_id":"c","signo":15,"signalAll":true}"#).unwrap();
    assert!(signal.signal_all);
    let prepare: PrepareArgs = from_slice(
        br#"{"cid":"c","spec":{"a":[1]},"fds":{"stdio":[0,1,2],"gofer":[3],"devices":[["/dev/null",4]],
            "join":[["user",5]],"cgroup":{"dirs":[{"name":"pids","dir":6,"join":null}]},"pass":[{"Guest":5,"Host":7}]}}"#,
    )
    .unwrap();
    assert_eq!(prepare.fds.stdio, [Fd(0), Fd(1), Fd(2)]);
    assert_eq!(prepare.fds.join, [(Namespace::User, Fd(5))]);
    assert_eq!(prepare.fds.devices, [("/dev/null".to_owned(), Fd(4))]);
    assert_eq!(prepare.fds.pass, [FdMapping { guest: 5, host: 7 }]);
    assert_eq!(prepare.spec.0.as_deref(), Some(r#"{"a":[1]}"#));
}
