//! Mount hints: `dev.gvisor.spec.mount.*` annotations of the root container.
use super::*;

/// A pod whose root container says that `source` is one tmpfs for all.
fn pod_with_hint(source: &str, options: &str) -> Pod {
    Pod::with(|c| {
        for (field, value) in [("source", source), ("type", "tmpfs"), ("share", "pod"), ("options", options)]
        {
            c["annotations"][format!("dev.gvisor.spec.mount.scratch.{field}")] = json!(value);
        }
    })
}

fn with_mount(source: &str, options: &[&str]) -> impl FnOnce(&mut Value) {
    let entry = json!({"destination": "/scratch", "type": "bind", "source": source, "options": options});
    move |c| c["mounts"].as_array_mut().unwrap().push(entry)
}

#[test]
fn members_share_a_tmpfs_that_is_nowhere_on_the_host() {
    need!("busybox");
    let host = tempfile::tempdir().unwrap();
    let source = host.path().to_str().unwrap();
    let pod = pod_with_hint(source, "rw,size=1m,mode=1777");
    let writer = pod.add(with_mount(source, &["rbind", "rw"]));
    let reader = pod.add(with_mount(source, &["rbind", "ro"]));
    pod.shell(&writer.id, "echo shared > /scratch/file");
    if host.path().join("file").exists() {
        // Before Linux 6.15 a mount that is attached nowhere cannot be copied: the host's directory is shared.
        assert_eq!(pod.shell(&reader.id, "cat /scratch/file"), "shared");
        return;
    }
    assert_eq!(pod.shell(&reader.id, "cat /scratch/file"), "shared");
    assert_eq!(pod.shell(&reader.id, "stat -f -c %T /scratch"), "tmpfs");
    assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 0);
    let out = pod.state.run(["exec", &reader.id, "/bin/touch", "/scratch/more"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("Read-only"), "{out:?}");
    // The size limit is of the one file system.
    let out = pod.state.run([
        "exec",
        &writer.id,
        "/bin/dd",
        "if=/dev/zero",
        "of=/scratch/big",
        "bs=1k",
        "count=2048",
    ]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("No space"), "{out:?}");
    // It outlives its containers, as long as the pod lives.
    for id in [&writer.id, &reader.id] {
        pod.state.ok(["delete", "--force", id]);
    }
    let late = pod.add(with_mount(source, &["rbind"]));
    assert_eq!(pod.shell(&late.id, "cat /scratch/file"), "shared");
    // Another pod with the same hint has another.
    let other = pod_with_hint(source, "rw");
    let stranger = other.add(with_mount(source, &["rbind"]));
    assert_eq!(other.shell(&stranger.id, "ls /scratch"), "");
}

#[test]
fn the_root_container_may_mount_it_too() {
    need!("busybox");
    let host = tempfile::tempdir().unwrap();
    let source = host.path().to_str().unwrap().to_owned();
    let pod = Pod::with(|c| {
        for (field, value) in [("source", &source[..]), ("type", "tmpfs"), ("share", "pod")] {
            c["annotations"][format!("dev.gvisor.spec.mount.scratch.{field}")] = json!(value);
        }
        with_mount(&source, &["rbind"])(c);
    });
    pod.shell(&pod.id, "echo from the root > /scratch/file");
    let member = pod.add(with_mount(&source, &["rbind"]));
    assert_eq!(pod.shell(&member.id, "cat /scratch/file"), "from the root");
}

#[test]
fn a_member_may_not_have_more_than_the_shared_mount_gives() {
    need!("busybox");
    let host = tempfile::tempdir().unwrap();
    let source = host.path().to_str().unwrap();
    let pod = pod_with_hint(source, "ro,noexec");
    let bundle = member(&pod.id, CRI, &["/bin/true"], with_mount(source, &["rbind", "rw"]));
    let text = pod.state.fails(["create", "--bundle", bundle.text(), &unique("member")]);
    assert!(text.contains("read-only") && text.contains("scratch"), "{text}");
    pod.add(with_mount(source, &["rbind", "ro", "noexec"]));
}

#[test]
fn other_sources_and_other_hints_are_ordinary_binds() {
    need!("busybox");
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("file"), "of the host").unwrap();
    let source = host.path().to_str().unwrap();
    let pod = Pod::with(|c| {
        for (field, value) in [("source", source), ("type", "bind"), ("share", "shared")] {
            c["annotations"][format!("dev.gvisor.spec.mount.scratch.{field}")] = json!(value);
        }
    });
    let member = pod.add(with_mount(source, &["rbind"]));
    assert_eq!(pod.shell(&member.id, "cat /scratch/file"), "of the host");
    let broken = Bundle::with(&["/bin/true"], |c| {
        c["annotations"] = json!({"dev.gvisor.spec.mount.nonsense": "x"});
    });
    let text = pod.state.fails(["create", "--bundle", broken.text(), &unique("broken")]);
    assert!(text.contains("dev.gvisor.spec.mount.nonsense"), "{text}");
}
