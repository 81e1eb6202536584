//! What a description from a file may say, and what a spec asks for.

use super::*;
use airlock_wire::error::Kind;
use std::fs;

#[test]
fn hostile_descriptions_are_refused() {
    Manager::default().check().unwrap();
    Manager::default().kill_all().unwrap();
    Manager::default().remove().unwrap();
    assert!(Manager::default().procs().unwrap().is_empty());
    let text = r#"{"cid":"c","v2":false,"hierarchies":[{"name":"freezer","mount":"/sys/fs/cgroup/freezer",
        "path":"/sys/fs/cgroup/freezer/c","leaf":true,"v2_files":false}],"made":["/sys/fs/cgroup/freezer/c"],
        "complete":true}"#;
    let good: Manager = serde_json::from_str(text).unwrap();
    good.check().unwrap();
    for (from, to) in [
        ("/sys/fs/cgroup/freezer/c\",\"leaf", "/sys/fs/cgroup/freezer/../../../../etc\",\"leaf"),
        ("/sys/fs/cgroup/freezer/c\",\"leaf", "/sys/fs/cgroup/freezer\",\"leaf"),
        ("/sys/fs/cgroup/freezer/c\",\"leaf", "/etc\",\"leaf"),
        ("\"made\":[\"/sys/fs/cgroup/freezer/c", "\"made\":[\"/sys/fs/cgroup/freezer"),
        ("\"made\":[\"/sys/fs/cgroup/freezer/c", "\"made\":[\"/home"),
        ("\"cid\":\"c\"", "\"cid\":\"../x\""),
    ] {
        let bad = text.replace(from, to);
        assert_ne!(bad, text);
        let bad: Manager = serde_json::from_str(&bad).unwrap();
        for e in [
            bad.check(),
            bad.remove(),
            bad.kill_all(),
            bad.procs().map(drop),
            bad.open(true, &[View::Limits]).map(drop),
        ] {
            assert_eq!(e.unwrap_err().kind, Kind::InvalidArgument);
        }
    }
    // A plain path that is no cgroup.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::create_dir_all(elsewhere.path().join("c/airlock-c")).unwrap();
    let bad = text.replace("/sys/fs/cgroup/freezer", elsewhere.path().to_str().unwrap());
    let bad: Manager = serde_json::from_str(&bad).unwrap();
    assert_eq!(bad.remove().unwrap_err().kind, Kind::InvalidArgument);
    assert!(elsewhere.path().join("c/airlock-c").is_dir());
}

#[test]
fn systemd_driver_without_systemd() {
    if Path::new("/run/systemd/system").exists() {
        return eprintln!("skipped: systemd_driver_without_systemd needs a machine without systemd");
    }
    let e = Manager::plan_path("c", Some(Path::new("system.slice:x:c")), true).unwrap_err();
    assert!(e.kind == Kind::Unsupported && e.message.contains("systemd does not run"), "{e}");
}

#[test]
fn what_a_spec_asks_for() {
    let spec = |linux: &str, mounts: &str| -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.2.0","linux":{linux},"mounts":{mounts}}}"#))
            .unwrap()
    };
    let cgroup = r#"[{"destination":"/sys/fs/cgroup","type":"cgroup"}]"#;
    let by_path = r#"{"namespaces":[{"type":"cgroup","path":"/proc/1/ns/cgroup"}]}"#;
    let own = r#"{"namespaces":[{"type":"cgroup"}]}"#;
    assert_eq!(views(&spec("{}", cgroup), false), [View::Limits]);
    assert_eq!(views(&spec(by_path, cgroup), false), [View::Limits]);
    assert_eq!(views(&spec(own, cgroup), false), []);
    for v2 in [false, true] {
        let bind = r#"[{"destination":"/sys/fs/cgroup","type":"cgroup","source":"/x","options":["bind"]}]"#;
        assert_eq!(views(&spec("{}", "[]"), v2), []);
        assert_eq!(views(&spec("{}", bind), v2), []);
    }
    let several = r#"[{"destination":"/a","type":"cgroup","options":["ro"]},{"destination":"/b","type":"cgroup2"},
        {"destination":"/c","type":"tmpfs"},{"destination":"/d","type":"cgroup","options":["ro","rw"]},
        {"destination":"/e","type":"cgroup2","options":["rro"]}]"#;
    for linux in ["{}", by_path, own] {
        assert_eq!(
            views(&spec(linux, several), true),
            [View::Limits, View::Leaf, View::Leaf, View::Limits],
            "{linux}"
        );
    }
    let maps = r#""uidMappings":[{"containerID":0,"hostID":1000,"size":9}],
        "gidMappings":[{"containerID":5,"hostID":1,"size":1},{"containerID":0,"hostID":2000,"size":1}]"#;
    let user = format!(r#"{{"namespaces":[{{"type":"user"}}],{maps}}}"#);
    assert_eq!(owner_of(&spec(&user, "[]")), Some((1000, 2000)));
    assert_eq!(owner_of(&spec(&format!("{{{maps}}}"), "[]")), None);
}
