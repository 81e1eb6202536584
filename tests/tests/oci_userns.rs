//! User namespaces of the OCI runtime spec: id mappings, and what belongs to whom inside and outside.
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::oci::{
    BASE, all_capabilities, chown_all, field, in_user_namespace, mount, push, refused, run_in,
};
use airlock_tests::{Bundle, State, need, unique};
use serde_json::json;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

#[test]
fn a_user_namespace_is_joined_by_path() {
    need!("busybox");
    let state = State::new();
    let first = Bundle::with(&["sleep", "1000"], in_user_namespace);
    chown_all(&first.rootfs(), BASE);
    let id = unique("oci");
    state.detached(&["run", "-d", "--bundle", first.text(), &id]);
    let path = format!("/proc/{}/ns/user", state.state(&id)["pid"]);
    let link = std::fs::read_link(&path).unwrap();
    let script = "readlink /proc/self/ns/user; id -u; cat /proc/self/uid_map; touch /root/new";
    let bundle = Bundle::with(&["sh", "-c", script], |c| {
        push(c, "/linux/namespaces", json!({"type": "user", "path": path}));
    });
    chown_all(&bundle.rootfs(), BASE);
    let ran = run_in(&state, &bundle);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let lines: Vec<Vec<&str>> = ran.stdout.lines().map(|l| l.split_ascii_whitespace().collect()).collect();
    assert_eq!(lines, [vec![link.to_str().unwrap()], vec!["0"], vec!["0", "100000", "65536"]]);
}

#[test]
fn user_namespace() {
    need!("busybox");
    let source = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(source.path(), Some(BASE + 7), Some(BASE + 8)).unwrap();
    let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; stat -c %u:%g /bin/busybox /m
        touch /root/new && stat -c %u:%g /root/new; echo x >/dev/null && head -c 2 /dev/zero | od -An -tx1; stat -c '%t:%T %a' /dev/full
        mount -t tmpfs t /tmp && echo mounted; hostname inner && hostname; mknod /tmp/null c 1 3 2>/dev/null || echo no mknod";
    let bundle = Bundle::with(&["sh", "-c", script], |c| {
        in_user_namespace(c);
        mount(c, "/m", "bind", source.path().to_str().unwrap(), &["bind"]);
        all_capabilities(c);
    });
    chown_all(&bundle.rootfs(), BASE);
    let ran = run_in(&State::new(), &bundle);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{}", ran.stdout);
    let lines: Vec<String> =
        ran.stdout.lines().map(|l| l.split_ascii_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "0",
        "0",
        "0 100000 65536",
        "0 100000 65536",
        "0:0",
        "7:8",
        "0:0",
        "00 00",
        "1:7 666",
        "mounted",
        "inner",
        "no mknod",
    ];
    assert_eq!(lines, expected);
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(bundle.rootfs().join("root/new")).unwrap().uid(), BASE);
}

#[test]
fn ids_outside_the_user_namespace_and_inside() {
    need!("busybox");
    let state = State::new();
    let bundle = Bundle::with(&["sleep", "1000"], |c| {
        in_user_namespace(c);
        c["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
    });
    chown_all(&bundle.rootfs(), BASE);
    let id = unique("oci");
    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    let pids: Vec<i32> = serde_json::from_str(&state.ok(["ps", "--format", "json", &id])).unwrap();
    let outside = std::fs::read_to_string(format!("/proc/{}/status", pids[0])).unwrap();
    assert_eq!(field(&outside, "Uid"), "100005\t100005\t100005\t100005");
    assert_eq!(
        (field(&outside, "Gid"), field(&outside, "Groups")),
        ("100006\t100006\t100006\t100006", "100007")
    );
    let inside = state.ok(["exec", &id, "cat", "/proc/self/status"]);
    assert_eq!((field(&inside, "Uid"), field(&inside, "Groups")), ("5\t5\t5\t5", "7"));
}

#[test]
fn wrong_id_mappings_are_refused_by_name() {
    need!("busybox");
    assert!(refused(|c| push(c, "/linux/namespaces", json!({"type": "user"}))).contains("linux.uidMappings"));
    let told = refused(|c| c["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1, "size": 1}]));
    assert!(told.contains("linux.uidMappings") && told.contains("no user namespace"), "{told}");
    let overlap = refused(|c| {
        in_user_namespace(c);
        push(c, "/linux/gidMappings", json!({"containerID": 5, "hostID": 1, "size": 1}));
    });
    assert!(overlap.contains("linux.gidMappings[1]") && overlap.contains("overlaps"), "{overlap}");
    let unmapped = refused(|c| {
        in_user_namespace(c);
        c["process"]["user"]["uid"] = json!(70_000);
    });
    assert!(unmapped.contains("70000"), "{unmapped}");
}

#[test]
fn idmap_by_the_containers_user_namespace() {
    need!("busybox");
    let source = tempfile::tempdir().unwrap();
    std::fs::set_permissions(source.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(source.path().join("file"), "").unwrap();
    let seen = |options: &[&str]| {
        let bundle =
            Bundle::with(&["sh", "-c", "stat -c %u:%g /m/file; touch /m/new; stat -c %u:%g /m/new"], |c| {
                in_user_namespace(c);
                mount(c, "/m", "bind", source.path().to_str().unwrap(), options);
            });
        // Mount points are made by the root of the container.
        chown_all(&bundle.rootfs(), BASE);
        run_in(&State::new(), &bundle)
    };
    let mapped = seen(&["bind", "idmap"]);
    assert_eq!(mapped.stdout, "0:0\n0:0\n", "{}", mapped.stderr);
    let new = std::fs::metadata(source.path().join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (0, 0));
    std::fs::remove_file(source.path().join("new")).unwrap();
    let plain = seen(&["bind"]);
    assert!(
        plain.stdout.starts_with("65534:65534\n") && plain.stderr.contains("Permission denied"),
        "{}",
        plain.stderr
    );
}
