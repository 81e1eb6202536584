use super::*;
use airlock_wire::error::Kind;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A configuration that has every item of the spec which is honoured.
fn full() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": true, "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 1000, "gid": 1000, "umask": 18, "additionalGids": [5, 5, 6]},
            "args": ["sh", "-c", "true"], "env": ["PATH=/bin", "A"], "cwd": "/tmp",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
                "inheritable": [], "ambient": []},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
            "noNewPrivileges": true, "oomScoreAdj": -1000,
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 7},
            "scheduler": {"policy": "SCHED_OTHER", "nice": 19},
            "execCPUAffinity": {"initial": "0-1", "final": "0"},
            "apparmorProfile": "unconfined", "selinuxLabel": ""
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "h", "domainname": "d",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "relative", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/b", "type": "bind", "source": "/tmp", "options": ["rbind", "rro", "rslave"]},
            {"destination": "/i", "source": "/tmp", "options": ["bind", "idmap"],
                "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
                "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}]}
        ],
        "hooks": {"prestart": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 1}],
            "createRuntime": [{"path": "/bin/true"}], "createContainer": [{"path": "/bin/true"}],
            "startContainer": [{"path": "/bin/true"}], "poststart": [{"path": "/bin/true"}],
            "poststop": [{"path": "/bin/true"}]},
        "annotations": {"org.example.key": ""},
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}, {"type": "ipc"},
                {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "user"}, {"type": "time"}],
            "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}],
            "gidMappings": [{"containerID": 0, "hostID": 100_000, "size": 1},
                {"containerID": 1, "hostID": 5, "size": 10}],
            "timeOffsets": {"monotonic": {"secs": -7, "nanosecs": 1}, "boottime": {"secs": 9}},
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0},
                {"path": "/dev/pipe", "type": "p"}],
            "cgroupsPath": "system.slice:airlock:c",
            "resources": {
                "devices": [{"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 10, "minor": -1, "access": "rw"}],
                "memory": {"limit": 1 << 30, "swap": 1i64 << 31, "reservation": 5, "swappiness": 100},
                "cpu": {"shares": 1024, "quota": -1, "period": 100_000, "idle": 0, "cpus": "0-1,3", "mems": "0"},
                "pids": {"limit": 100},
                "blockIO": {"weight": 10, "weightDevice": [{"major": 8, "minor": 0, "weight": 1000}],
                    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 9}],
                "network": {"classID": 1, "priorities": [{"name": "lo", "priority": 1}]},
                "unified": {"memory.high": "max"}
            },
            "rootfsPropagation": "rslave", "personality": {"domain": "LINUX32"},
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
            "sysctl": {"net.ipv4.ip_forward": "1", "net/ipv4/conf/eth0.1/forwarding": "1", "kernel.shmmax": "1",
                "fs.mqueue.msg_max": "5", "kernel.domainname": "d"},
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent", "listenerMetadata": "m",
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}
        },
        "windows": {"layerFolders": []}, "vm": {"kernel": {"path": "/x"}}
    })
}

fn parse(value: &Value) -> Spec {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value:#}"))
}

/// `full` with the items at JSON pointers replaced; `null` removes an item of an object.
fn with(changes: &[(&str, Value)]) -> Value {
    let mut value = full();
    for (pointer, new) in changes {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        match value.pointer_mut(parent).unwrap_or_else(|| panic!("{parent} is not in the configuration")) {
            Value::Object(map) if new.is_null() => drop(map.remove(key)),
            Value::Object(map) => drop(map.insert(key.to_owned(), new.clone())),
            Value::Array(list) if key == "-" => list.push(new.clone()),
            Value::Array(list) => list[key.parse::<usize>().expect("an index")] = new.clone(),
            _ => panic!("{parent} has no items"),
        }
    }
    value
}

#[track_caller]
fn accepted(changes: &[(&str, Value)]) {
    if let Err(e) = validate(&parse(&with(changes))) {
        panic!("{changes:?} is refused: {e}");
    }
}

/// The error for one change must begin with `path`.
#[track_caller]
fn refused(changes: &[(&str, Value)], path: &str) -> Error {
    let error = validate(&parse(&with(changes))).expect_err(path);
    assert!(error.message.starts_with(path), "{changes:?}: {error}");
    assert!(matches!(error.kind, Kind::InvalidArgument | Kind::Unsupported), "{error:?}");
    error
}

#[test]
fn everything_that_is_honoured_is_accepted() {
    accepted(&[]);
}

#[test]
fn what_runtimes_generate_is_accepted() {
    for text in [RUNC_SPEC, CRUN_SPEC, PODMAN_RUN] {
        let spec: Spec = serde_json::from_str(text).expect("a configuration");
        validate(&spec).expect("is valid");
    }
}

#[test]
fn versions_are_semantic_and_of_the_first_major() {
    for version in ["1.0.0", "1.0.2-dev", "1.2.0", "1.3.0-rc.1+build.7", "1.99.0"] {
        accepted(&[("/ociVersion", json!(version))]);
    }
    for version in
        ["", "1", "1.0", "1.0.0.0", "01.0.0", "v1.0.0", "1.0.x", "1.0.0-", "1.0.0-01", "1.0.0+", "invalid"]
    {
        refused(&[("/ociVersion", json!(version))], "ociVersion: ");
    }
    assert_eq!(refused(&[("/ociVersion", json!("2.0.0"))], "ociVersion: ").kind, Kind::Unsupported);
    assert_eq!(refused(&[("/ociVersion", json!("0.2.0"))], "ociVersion: ").kind, Kind::Unsupported);
}

#[test]
fn what_is_required_is_missed() {
    refused(&[("/process", Value::Null)], "process: is missing");
    refused(&[("/root", Value::Null)], "root: is missing");
    refused(&[("/root/path", json!(""))], "root.path: ");
    refused(&[("/process/args", json!([]))], "process.args: args must not be empty");
    refused(&[("/process/args", Value::Null)], "process.args: ");
    refused(
        &[("/linux", Value::Null), ("/hostname", Value::Null), ("/domainname", Value::Null)],
        "linux.namespaces: ",
    );
}

#[test]
fn nul_bytes_are_refused_wherever_they_are() {
    for (pointer, path) in [
        ("/process/args/1", "process.args[1]"),
        ("/process/env/0", "process.env[0]"),
        ("/process/cwd", "process.cwd"),
        ("/root/path", "root.path"),
        ("/hostname", "hostname"),
        ("/domainname", "domainname"),
        ("/mounts/0/destination", "mounts[0]: destination"),
        ("/mounts/0/type", "mounts[0]: type"),
        ("/mounts/2/source", "mounts[2]: source"),
        ("/mounts/2/options/1", "mounts[2]: options[1]"),
        ("/hooks/prestart/0/path", "hooks.prestart[0]: path"),
        ("/hooks/prestart/0/args/0", "hooks.prestart[0]: args[0]"),
        ("/hooks/prestart/0/env/0", "hooks.prestart[0]: env[0]"),
        ("/annotations/org.example.key", "annotations["),
        ("/linux/namespaces/1/path", "linux.namespaces[1].path"),
        ("/linux/devices/0/path", "linux.devices[0]: path"),
        ("/linux/cgroupsPath", "linux.cgroupsPath"),
        ("/linux/maskedPaths/0", "linux.maskedPaths[0]"),
        ("/linux/readonlyPaths/0", "linux.readonlyPaths[0]"),
        ("/linux/sysctl/kernel.shmmax", "linux.sysctl["),
        ("/linux/resources/unified/memory.high", "linux.resources.unified["),
        ("/linux/seccomp/listenerPath", "linux.seccomp.listenerPath"),
        ("/linux/seccomp/listenerMetadata", "linux.seccomp.listenerMetadata"),
        ("/process/apparmorProfile", "process.apparmorProfile"),
    ] {
        let error = refused(&[(pointer, json!("/a\0b"))], path);
        assert!(error.message.contains("NUL"), "{error}");
    }
}

#[test]
fn process_values_are_in_range() {
    refused(&[("/process/cwd", json!("tmp"))], "process.cwd: ");
    refused(&[("/process/cwd", json!(""))], "process.cwd: ");
    refused(&[("/process/user/uid", json!(u32::MAX))], "process.user.uid: ");
    refused(&[("/process/user/additionalGids/1", json!(u32::MAX))], "process.user.additionalGids: ");
    refused(&[("/process/user/additionalGids", json!(vec![1; 65_537]))], "process.user.additionalGids: ");
    refused(&[("/process/user/umask", json!(0o1000))], "process.user.umask: ");
    refused(&[("/process/consoleSize/width", json!(65_536))], "process.consoleSize: ");
    accepted(&[("/process/consoleSize/width", json!(65_536)), ("/process/terminal", json!(false))]);
    refused(&[("/process/oomScoreAdj", json!(1001))], "process.oomScoreAdj: ");
    refused(&[("/process/ioPriority/priority", json!(8))], "process.ioPriority.priority: ");
    refused(&[("/process/ioPriority/priority", json!(-1))], "process.ioPriority.priority: ");
    let twice = json!({"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1});
    refused(&[("/process/rlimits/-", twice)], "process.rlimits[2]: RLIMIT_NOFILE is there twice");
    refused(&[("/process/rlimits/0/soft", json!(21))], "process.rlimits[0]: ");
}

#[test]
fn schedulers_are_checked_against_their_policy() {
    let scheduler = |value: Value| [("/process/scheduler", value)];
    accepted(&scheduler(json!({"policy": "SCHED_FIFO", "priority": 99})));
    accepted(&scheduler(json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3})));
    accepted(&scheduler(json!({"policy": "SCHED_IDLE"})));
    for (value, path) in [
        (json!({"policy": "SCHED_OTHER", "nice": 20}), "process.scheduler.nice"),
        (json!({"policy": "SCHED_OTHER", "nice": -21}), "process.scheduler.nice"),
        (json!({"policy": "SCHED_OTHER", "priority": 1}), "process.scheduler.priority"),
        (json!({"policy": "SCHED_RR"}), "process.scheduler.priority"),
        (json!({"policy": "SCHED_FIFO", "priority": 100}), "process.scheduler.priority"),
        (json!({"policy": "SCHED_BATCH", "period": 1}), "process.scheduler: "),
        (json!({"policy": "SCHED_DEADLINE", "runtime": 3, "deadline": 2}), "process.scheduler: "),
        (json!({"policy": "SCHED_DEADLINE"}), "process.scheduler: "),
        (json!({"policy": "SCHED_ISO"}), "process.scheduler.policy"),
    ] {
        refused(&scheduler(value), path);
    }
}

#[test]
fn labels_are_refused_by_name() {
    for (pointer, path) in [
        ("/process/apparmorProfile", "process.apparmorProfile: "),
        ("/process/selinuxLabel", "process.selinuxLabel: "),
        ("/linux/mountLabel", "linux.mountLabel: "),
    ] {
        assert_eq!(refused(&[(pointer, json!("x"))], path).kind, Kind::Unsupported);
    }
}

#[test]
fn what_airlock_does_not_implement_is_refused_by_name() {
    for (pointer, value, path) in [
        ("/linux/intelRdt", json!({"closID": "c"}), "linux.intelRdt: "),
        ("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0"}), "linux.memoryPolicy: "),
        ("/linux/netDevices", json!({"eth0": {"name": "e"}}), "linux.netDevices: "),
        ("/linux/personality/flags", json!(["x"]), "linux.personality.flags: "),
    ] {
        assert_eq!(refused(&[(pointer, value)], path).kind, Kind::Unsupported);
    }
    accepted(&[("/linux/netDevices", json!({}))]);
}

#[test]
fn names_need_a_uts_namespace() {
    let host_uts = ("/linux/namespaces/3", json!({"type": "time"}));
    let changes = [host_uts.clone(), ("/linux/namespaces/7", json!({"type": "uts"}))];
    accepted(&changes);
    let without = [
        ("/linux/namespaces", json!([{"type": "mount"}, {"type": "ipc"}, {"type": "network"}])),
        ("/linux/uidMappings", Value::Null),
        ("/linux/gidMappings", Value::Null),
        ("/linux/timeOffsets", Value::Null),
    ];
    refused(&without, "hostname: unable to set it without a private UTS namespace");
    let mut domain = without.to_vec();
    domain.push(("/hostname", Value::Null));
    refused(&domain, "domainname: ");
    refused(&[("/hostname", json!("h".repeat(65)))], "hostname: ");
}

#[test]
fn namespaces_are_unique_and_complete() {
    refused(
        &[("/linux/namespaces/-", json!({"type": "ipc"}))],
        "linux.namespaces[8]: type ipc is there twice",
    );
    refused(&[("/linux/namespaces/1/path", json!("proc/1/ns/net"))], "linux.namespaces[1].path: ");
    refused(
        &[("/linux/namespaces/4", json!({"type": "mount", "path": "/proc/1/ns/mnt"}))],
        "linux.namespaces: ",
    );
    // An empty path means a new namespace, as with runc.
    accepted(&[("/linux/namespaces/2/path", json!(""))]);
}

#[test]
fn id_mappings_are_sound() {
    let map = |container: u32, host: u32, size: u32| json!({"containerID": container, "hostID": host, "size": size});
    let uids = |list: Value| [("/linux/uidMappings", list)];
    accepted(&uids(json!([map(0, 0, u32::MAX)])));
    accepted(&uids(json!([map(10, 0, 5), map(0, 5, 10)])));
    refused(&uids(json!([])), "linux.uidMappings: a new user namespace needs");
    refused(&uids(json!([map(0, 0, 0)])), "linux.uidMappings[0].size: ");
    refused(&uids(json!([map(0, 1, u32::MAX)])), "linux.uidMappings[0]: ");
    refused(
        &uids(json!([map(0, 0, 5), map(4, 100, 1)])),
        "linux.uidMappings[1]: overlaps with linux.uidMappings[0]",
    );
    refused(&uids(json!([map(0, 10, 5), map(100, 14, 1)])), "linux.uidMappings[1]: overlaps");
    let many: Vec<Value> = (0..341).map(|i| map(i, i, 1)).collect();
    refused(&uids(json!(many)), "linux.uidMappings: has 341 entries");
    let none = [("/linux/namespaces/6", json!({"type": "user", "path": "/proc/1/ns/user"}))];
    accepted(&[none[0].clone(), ("/linux/uidMappings", json!([])), ("/linux/gidMappings", json!([]))]);
    let mut without: Vec<Value> = full()["linux"]["namespaces"].as_array().expect("a list").clone();
    without.remove(6);
    refused(&[("/linux/namespaces", json!(without))], "linux.uidMappings: is specified, but");
}

#[test]
fn time_offsets_need_a_new_time_namespace() {
    let joined = json!({"type": "time", "path": "/proc/1/ns/time"});
    refused(&[("/linux/namespaces/7", joined)], "linux.timeOffsets: ");
    refused(&[("/linux/timeOffsets/realtime", json!({"secs": 1}))], "linux.timeOffsets: ");
    refused(
        &[("/linux/timeOffsets/boottime/nanosecs", json!(1_000_000_000))],
        "linux.timeOffsets.boottime.nanosecs: ",
    );
    let mut without: Vec<Value> = full()["linux"]["namespaces"].as_array().expect("a list").clone();
    without.remove(7);
    refused(&[("/linux/namespaces", json!(without))], "linux.timeOffsets: is specified, but");
}

#[test]
fn mounts_are_understood() {
    refused(&[("/mounts/0/destination", json!(""))], "mounts[0]: destination: ");
    refused(&[("/mounts/2/source", Value::Null)], "mounts[2]: source: ");
    refused(&[("/mounts/0/type", Value::Null)], "mounts[0]: type: ");
    refused(&[("/mounts/3/gidMappings", Value::Null)], "mounts[3]: uidMappings: needs gidMappings");
    refused(&[("/mounts/3/uidMappings/0/size", json!(0))], "mounts[3]: uidMappings[0].size: ");
    refused(&[("/mounts/1/options/0", json!("idmap"))], "mounts[1]: options: only bind mounts");
    let inherit = [("/mounts/3/uidMappings", Value::Null), ("/mounts/3/gidMappings", Value::Null)];
    accepted(&inherit);
    let mut lost = inherit.to_vec();
    let mut namespaces: Vec<Value> = full()["linux"]["namespaces"].as_array().expect("a list").clone();
    namespaces.remove(6);
    lost.push(("/linux/namespaces", json!(namespaces)));
    lost.extend([("/linux/uidMappings", Value::Null), ("/linux/gidMappings", Value::Null)]);
    refused(&lost, "mounts[3]: options: idmap needs");
}

#[test]
fn hooks_are_absolute_and_end() {
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        let item = |name: &str| format!("/hooks/{kind}/0/{name}");
        refused(&[(&item("path"), json!("true"))], &format!("hooks.{kind}[0]: path: "));
        refused(&[(&item("timeout"), json!(0))], &format!("hooks.{kind}[0]: timeout: "));
        refused(&[(&item("timeout"), json!(-1))], &format!("hooks.{kind}[0]: timeout: "));
    }
}

#[test]
fn annotations_have_keys() {
    refused(&[("/annotations/", json!("x"))], "annotations: a key is empty");
}

#[test]
fn sysctls_stay_in_namespaces() {
    let one = |name: &str| [("/linux/sysctl", json!({name: "1"}))];
    for name in
        ["vm.swappiness", "kernel.core_pattern", "kernel.shm", "fs.file-max", "kernel/core_pattern", "net"]
    {
        let error = refused(&one(name), "linux.sysctl[");
        assert!(error.message.contains("not in a separate kernel namespace"), "{error}");
    }
    for name in
        ["net.ipv4./../x", "net/../kernel/core_pattern", "net./", "net..x", ".net.x", "net.ipv4.", "net/./x"]
    {
        refused(&one(name), "linux.sysctl[");
    }
    refused(&one("kernel.hostname"), "linux.sysctl[\"kernel.hostname\"]: conflicts with the field hostname");
    for (kind, name) in
        [("ipc", "kernel.sem"), ("ipc", "fs.mqueue.queues_max"), ("network", "net.core.somaxconn")]
    {
        let mut namespaces: Vec<Value> = full()["linux"]["namespaces"].as_array().expect("a list").clone();
        namespaces.retain(|n| n["type"] != kind);
        let error =
            refused(&[("/linux/namespaces", json!(namespaces)), one(name)[0].clone()], "linux.sysctl[");
        assert!(error.message.contains(&format!("host's {kind} namespace")), "{error}");
    }
}

#[test]
fn sysctls_of_the_callers_own_namespace_are_refused_on_the_host() {
    let join = |path: &str| {
        with(&[
            ("/linux/namespaces/1/path", json!(path)),
            ("/linux/sysctl", json!({"net.core.somaxconn": "1"})),
        ])
    };
    let error = validate_host(&parse(&join("/proc/self/ns/net"))).expect_err("the host's network");
    assert!(
        error.message.starts_with("linux.sysctl[\"net.core.somaxconn\"]: not allowed in host net"),
        "{error}"
    );
    validate_host(&parse(&join("/proc/self/ns/uts"))).expect("another file");
    validate_host(&parse(&join("/nonexistent"))).expect("whoever opens it will tell");
    validate_host(&parse(&full())).expect("nothing is joined that has a sysctl");
}

#[test]
fn devices_paths_and_words_are_sound() {
    refused(&[("/linux/devices/0/path", json!("dev/fuse"))], "linux.devices[0]: path: ");
    refused(&[("/linux/devices/0/type", json!("a"))], "linux.devices[0]: type: ");
    refused(&[("/linux/devices/0/major", json!(4096))], "linux.devices[0]: major: ");
    refused(&[("/linux/devices/0/minor", json!(-1))], "linux.devices[0]: minor: ");
    refused(&[("/linux/maskedPaths/0", json!("proc/kcore"))], "linux.maskedPaths[0]: ");
    refused(&[("/linux/readonlyPaths/0", json!("sys"))], "linux.readonlyPaths[0]: ");
    refused(&[("/linux/rootfsPropagation", json!("sharedd"))], "linux.rootfsPropagation: ");
    for path in ["../x", "/a/../../x", "/a/.."] {
        refused(&[("/linux/cgroupsPath", json!(path))], "linux.cgroupsPath: ");
    }
    accepted(&[("/linux/cgroupsPath", json!("/a/b..c"))]);
}

#[test]
fn resources_are_in_range() {
    let at = |name: &str| format!("/linux/resources/{name}");
    for (name, value, path) in [
        ("memory/swappiness", json!(101), "linux.resources.memory.swappiness"),
        ("cpu/idle", json!(2), "linux.resources.cpu.idle"),
        ("cpu/cpus", json!("0-1;2"), "linux.resources.cpu.cpus"),
        ("cpu/mems", json!("x"), "linux.resources.cpu.mems"),
        ("blockIO/weight", json!(9), "linux.resources.blockIO.weight"),
        ("blockIO/leafWeight", json!(1001), "linux.resources.blockIO.leafWeight"),
        ("blockIO/weightDevice/0/weight", json!(1), "linux.resources.blockIO.weightDevice[0].weight"),
        ("blockIO/weightDevice/0/major", json!(-1), "linux.resources.blockIO.weightDevice[0]"),
        (
            "blockIO/throttleReadBpsDevice/0/minor",
            json!(-2),
            "linux.resources.blockIO.throttleReadBpsDevice[0]",
        ),
        ("hugepageLimits/-", json!({"pageSize": "2MB", "limit": 1}), "linux.resources.hugepageLimits[1]"),
        ("unified/a~1b", json!("x"), "linux.resources.unified["),
        ("devices/1/access", json!("rx"), "linux.resources.devices[1]"),
        ("devices/1/type", json!("p"), "linux.resources.devices[1]"),
    ] {
        let name = name.replace("~1", "/");
        if name.starts_with("unified") {
            refused(&[("/linux/resources/unified", json!({"a/b": "x"}))], path);
        } else {
            refused(&[(&at(&name), value)], path);
        }
    }
    accepted(&[("/linux/resources/blockIO/weight", json!(0))]);
    accepted(&[("/linux/resources/cpu/cpus", json!(""))]);
}

#[test]
fn seccomp_profiles_are_compiled_and_their_listener_is_known() {
    refused(&[("/linux/seccomp/syscalls/0/names/0", json!("write"))], "linux.seccomp.syscalls[0]: ");
    refused(&[("/linux/seccomp/defaultErrnoRet", json!(1))], "linux.seccomp.defaultErrnoRet: ");
    let no_listener = [("/linux/seccomp/listenerPath", Value::Null)];
    refused(&no_listener, "linux.seccomp.listenerMetadata: is specified without");
    refused(
        &[no_listener[0].clone(), ("/linux/seccomp/listenerMetadata", Value::Null)],
        "linux.seccomp.listenerPath: ",
    );
    let args = json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]);
    refused(&[("/linux/seccomp/syscalls/0/args", args)], "linux.seccomp.syscalls[0].args[0].index: ");
}

/// Every place of a JSON value, as pointers.
fn places(value: &Value, here: &str, all: &mut Vec<String>) {
    all.push(here.to_owned());
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, v)| places(v, &format!("{here}/{}", key.replace('/', "~1")), all));
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, v)| places(v, &format!("{here}/{i}"), all))
        }
        _ => {}
    }
}

fn any_leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-2i64..300).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!("\0")),
        Just(json!("/a\0")),
        Just(json!("..")),
        Just(json!("")),
        Just(json!([])),
        Just(json!({})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn changed_configurations_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_leaf()), 1..4),
    ) {
        let mut value = full();
        for (index, new) in changes {
            let mut all = Vec::new();
            places(&value, "", &mut all);
            if let Some(place) = value.pointer_mut(index.get(&all).as_str()) {
                *place = new;
            }
        }
        if let Ok(spec) = serde_json::from_value::<Spec>(value) {
            if let Err(error) = validate(&spec) {
                prop_assert!(error.message.contains(": "), "names no item: {}", error);
                prop_assert!(!error.message.contains('\n') && !error.message.contains('\0'), "{:?}", error);
            }
            let _ = validate_host(&spec);
        }
    }

    #[test]
    fn versions_never_panic(text in "[0-9a-z.+-]{0,20}") {
        let _ = semver_major(&text);
    }

    #[test]
    fn sysctl_names_that_pass_stay_below_their_directory(name in "(net|kernel|fs)?[./][a-z0-9./]{0,12}") {
        let spec = parse(&with(&[("/linux/sysctl", json!({name.clone(): "1"}))]));
        if validate(&spec).is_ok() {
            let dotted = sysctl::with_dots(&name);
            let path: Vec<String> = dotted.split('.').map(|part| part.replace('/', ".")).collect();
            prop_assert!(path.iter().all(|part| !matches!(part.as_str(), "" | "." | "..")), "{:?}", path);
            prop_assert!(matches!(path[0].as_str(), "net" | "kernel" | "fs"), "{:?}", path);
        }
    }
}

/// What `runc spec` of runc 1.1 writes.
const RUNC_SPEC: &str = include_str!("../../../../tests/data/config-runc-spec.json");
/// What podman 4.3 writes for `run` with limits, a device, a sysctl and its default seccomp profile.
const PODMAN_RUN: &str = include_str!("../../../../tests/data/config-podman-run.json");
/// What `crun spec` of crun 1.8 writes.
const CRUN_SPEC: &str = include_str!("../../../../tests/data/config-crun-spec.json");

/// `docs/OCI.md` lists every item of the spec, and names tests that exist.
mod documentation {
    use super::*;
    use std::path::{Path, PathBuf};

    fn workspace() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn page() -> String {
        std::fs::read_to_string(workspace().join("docs/OCI.md")).expect("docs/OCI.md")
    }

    /// What stands between backticks.
    fn code(page: &str) -> Vec<&str> {
        page.split('`').skip(1).step_by(2).collect()
    }

    fn sources(dir: &Path, all: &mut String) {
        for entry in std::fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry").path()) {
            if entry.is_dir() {
                sources(&entry, all);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                all.push_str(&std::fs::read_to_string(&entry).unwrap_or_default());
            }
        }
    }

    #[test]
    fn its_tests_exist() {
        let page = page();
        let mut all = String::new();
        for dir in ["loader/src", "tools/src", "controller/src", "tests"] {
            sources(&workspace().join(dir), &mut all);
        }
        let named: Vec<_> = code(&page).into_iter().filter(|c| c.contains("::")).collect();
        assert!(named.len() > 60, "only {} tests are named", named.len());
        for name in named {
            let function = name.rsplit("::").next().unwrap_or(name);
            assert!(
                all.contains(&format!("fn {function}(")),
                "docs/OCI.md names {name}, which does not exist"
            );
        }
    }

    #[test]
    fn no_item_is_missing() {
        let page = page();
        let items = code(&page);
        let known = |key: &str| items.iter().any(|item| item.rsplit(['.', ' ']).next() == Some(key));
        let spec = full();
        let mut keys: Vec<&String> = Vec::new();
        for pointer in [
            "",
            "/process",
            "/process/user",
            "/root",
            "/mounts/3",
            "/hooks",
            "/linux",
            "/linux/resources",
            "/linux/seccomp",
        ] {
            keys.extend(spec.pointer(pointer).and_then(Value::as_object).expect("an object").keys());
        }
        let parts = [
            "memory",
            "cpu",
            "pids",
            "blockIO",
            "linux",
            "mounts",
            "hooks",
            "root",
            "user",
            "resources",
            "seccomp",
            "network",
            "syscalls",
        ];
        for key in keys.into_iter().filter(|key| !parts.contains(&key.as_str())) {
            let listed = known(key) || items.iter().any(|item| item.ends_with(&format!("[].{key}")));
            assert!(listed, "docs/OCI.md does not list {key}");
        }
        for group in ["memory", "cpu", "pids", "blockIO", "network"] {
            assert!(
                items.iter().any(|item| item.starts_with(&format!("{group}."))),
                "docs/OCI.md lacks {group}"
            );
        }
    }
}
