//! containerManager.FSSave, WaitFSCheckpoint, WaitFSRestore, Airlock.RestoreFilesystems; `fscheckpoint`.
use super::*;
use airlock_tests::{need, oci};
use std::os::fd::BorrowedFd;
use std::path::Path;

/// A container with an overlay in memory and a tmpfs at `/data`, which notes something in both.
fn bundle() -> Bundle {
    let bundle = Bundle::with(&["/bin/sleep", "1000"], |config| {
        oci::mount(config, "/data", "tmpfs", "tmpfs", &["mode=755"]);
    });
    std::fs::write(bundle.rootfs().join("etc/gone"), "x").unwrap();
    std::fs::create_dir(bundle.rootfs().join("data")).unwrap();
    bundle
}

fn start(state: &State, bundle: &Bundle, options: &[&str]) -> String {
    let id = unique("fssave");
    let args =
        [&["run", "--detach", "--overlay2", "root:memory", "--bundle", bundle.text()], options, &[&id]]
            .concat();
    state.detached(&args);
    id
}

fn shell(state: &State, id: &str, script: &str) -> String {
    state.ok(["exec", id, "/bin/sh", "-c", script])
}

const WRITE: &str =
    "echo new >/etc/new; rm /etc/gone; mkdir -p /a/b; ln /etc/new /a/b/link; echo data >/data/file";
const LOOK: &str =
    "cat /etc/new; ls /etc/gone 2>&1 | grep -c No; stat -c %h /a/b/link; cat /data/file 2>/dev/null; true";

fn files(dir: &Path) -> Vec<File> {
    let new =
        |name: &str| File::options().read(true).write(true).create(true).truncate(true).open(dir.join(name));
    ["fscheckpoint.pb", "multitar.img", "pages_meta.img", "pages.img"].map(|n| new(n).unwrap()).into()
}

#[test]
fn what_was_written_is_there_in_a_new_container() {
    need!("busybox");
    let (state, bundle, images) = (State::new(), bundle(), tempfile::tempdir().unwrap());
    let id = start(&state, &bundle, &[]);
    shell(&state, &id, WRITE);
    let image = images.path().join("image").display().to_string();
    // Somebody waits for it.
    let socket = state.control_socket(&id);
    let waiter = std::thread::spawn(move || {
        Caller::json(&socket).call("containerManager.WaitFSCheckpoint", &Value::Null, &[])
    });
    let loader = state.state(&id)["pid"].as_i64().unwrap() as i32;
    wait::until("the waiter", || (airlock_tests::leaks::threads_polling(loader) >= 2).then_some(()));
    state.ok([
        "fscheckpoint",
        "--leave-running",
        "--path",
        "/",
        "--path",
        "/data",
        "--image-path",
        &image,
        &id,
    ]);
    assert_eq!(waiter.join().unwrap(), Ok(json!({})));
    assert_eq!(shell(&state, &id, "echo still; echo late >/etc/new"), "still\n");
    let copy = start(&state, &bundle, &["--fs-restore-image-path", &image]);
    assert_eq!(shell(&state, &copy, LOOK), "new\n1\n2\ndata\n");
    state.ok(["wait", "--fsrestore", &copy]);
    assert!(state.fails(["wait", "--fsrestore", &id]).contains("filesystem restore is not enabled"));
    // Only the upper layer, and the end of the container.
    let second = images.path().join("second").display().to_string();
    state.ok(["fscheckpoint", "--image-path", &second, &copy]);
    let now = state.state(&copy);
    assert_eq!((&now["status"], &now["reason"]), (&json!("stopped"), &json!("checkpointed")));
    assert_eq!(state.ok(["wait", &copy]).trim(), format!(r#"{{"id":{copy:?},"exitStatus":0}}"#));
    let third = start(&state, &bundle, &["--fs-restore-image-path", &second]);
    assert_eq!(shell(&state, &third, LOOK), "new\n1\n2\n");
    // Everything by its kind.
    state.ok(["fscheckpoint", "--leave-running", "--path", "all-tmpfs", "--image-path", &second, &id]);
    let fourth = start(&state, &bundle, &["--fs-restore-image-path", &second]);
    assert_eq!(shell(&state, &fourth, "cat /data/file; ls /etc/new 2>&1 | grep -c No"), "data\n1\n");
}

/// Every container of a pod by its name, saved together and restored into the containers of another pod.
#[test]
fn containers_of_a_pod_are_saved_and_restored() {
    need!("busybox");
    let (state, images) = (State::new(), tempfile::tempdir().unwrap());
    let image = images.path().join("image").display().to_string();
    let member = |pod: &str, name: &str| {
        let bundle = Bundle::with(&["/bin/sleep", "1000"], |config| {
            oci::mount(config, "/data", "tmpfs", "tmpfs", &["mode=755"]);
            config["annotations"] = json!({
                "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": pod,
                "io.kubernetes.cri.container-name": name,
            });
        });
        std::fs::create_dir(bundle.rootfs().join("data")).unwrap();
        bundle
    };
    let pod = |options: &[&str]| {
        let root = bundle();
        let id = start(&state, &root, options);
        let members = ["web", "db"].map(|name| {
            let bundle = member(&id, name);
            let member = start(&state, &bundle, options);
            (member, bundle)
        });
        (id, root, members)
    };
    let (id, _root, members) = pod(&[]);
    for (container, _) in &members {
        shell(&state, container, &format!("echo {container} >/data/file; echo {container} >/etc/new"));
    }
    shell(&state, &id, "echo root >/data/file");
    let [web, db] = members.each_ref().map(|(id, _)| id.as_str());
    let paths = [format!("{web}:/data"), format!("{web}:/"), format!("{db}:/data")];
    let args = [
        "fscheckpoint",
        "--leave-running",
        "--image-path",
        &image,
        "--path",
        &paths[0],
        "--path",
        &paths[1],
        "--path",
        &paths[2],
        &id,
    ];
    assert_eq!(state.ok(args), "");
    for container in [&id, web, db] {
        assert_eq!(shell(&state, container, "echo on"), "on\n");
    }
    // Each of the new containers finds what the one of its name had; the root container has none in the image.
    let root = bundle();
    let new = start(&state, &root, &[]);
    let image_option = ["--fs-restore-image-path", image.as_str()];
    let bundles = ["db", "web"].map(|name| member(&new, name));
    let restored = bundles.each_ref().map(|bundle| start(&state, bundle, &image_option));
    let look = "cat /data/file; cat /etc/new 2>/dev/null || echo none";
    assert_eq!(shell(&state, &restored[1], look), format!("{web}\n{web}\n"));
    assert_eq!(shell(&state, &restored[0], look), format!("{db}\nnone\n"));
    state.ok(["wait", "--fsrestore", &restored[0]]);
    let stranger = member(&new, "other");
    let mut args = vec!["create", "--overlay2", "root:memory", "--bundle", stranger.text()];
    args.extend(image_option);
    let id_of_it = unique("stranger");
    args.push(&id_of_it);
    let error = state.fails(args);
    assert!(error.contains("no filesystems restored for container"), "{error}");
    // Without --leave-running all of the pod ends, whoever was saved.
    let second = images.path().join("second").display().to_string();
    state.ok(["fscheckpoint", "--image-path", &second, "--path", &paths[2], &id]);
    for container in [&id, web, db] {
        assert_eq!(state.status(container), "stopped");
    }
}

#[test]
fn the_calls_alone_save_and_restore() {
    need!("busybox");
    let (state, bundle, dir) = (State::new(), bundle(), tempfile::tempdir().unwrap());
    let id = start(&state, &bundle, &[]);
    shell(&state, &id, WRITE);
    for mut caller in Caller::both(&state.control_socket(&id)) {
        let made = files(dir.path());
        let fds: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).collect();
        let both =
            json!({"paths": [{"container_name": "", "path": "/"}, {"container_name": id, "path": "/data"}]});
        assert_eq!(caller.ok("containerManager.FSSave", &both, &fds), json!({}));
        let copy = unique("fssave");
        state.detached(&["create", "--overlay2", "root:memory", "--bundle", bundle.text(), &copy]);
        let mut new = match caller {
            Caller::Json(_) => Caller::json(&state.control_socket(&copy)),
            Caller::Binary(_) => Caller::binary(&state.control_socket(&copy)),
        };
        assert_eq!(new.ok("Airlock.RestoreFilesystems", &json!({"cid": copy}), &fds[..2]), json!([]));
        assert_eq!(new.ok("containerManager.WaitFSRestore", &json!({"CID": copy}), &[]), json!({}));
        let nobody = new.fails("containerManager.WaitFSRestore", &json!({"CID": "nobody"}), &[]);
        assert_eq!(nobody, "no filesystems restored for container nobody");
        state.ok(["start", &copy]);
        assert_eq!(shell(&state, &copy, LOOK), "new\n1\n2\ndata\n");
    }
}

#[test]
fn errors_are_gvisors_and_the_containers_go_on() {
    need!("busybox");
    let (state, bundle, dir) = (State::new(), bundle(), tempfile::tempdir().unwrap());
    let id = start(&state, &bundle, &[]);
    let plain = Sandbox::sleeping();
    let root = json!({"paths": [{"container_name": "", "path": "/"}], "exit_after_saving": true});
    let null = null();
    for mut caller in Caller::both(&state.control_socket(&id)) {
        let made = files(dir.path());
        let fds: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).collect();
        let mut fails = |arg: &Value, fds: &[BorrowedFd<'_>], expected: &str| {
            let text = caller.fails("containerManager.FSSave", arg, fds);
            assert!(text.starts_with(expected), "{text:?} instead of {expected:?}");
        };
        fails(&root, &fds[..3], "got 3 files, want 4");
        fails(&root, &[], "got 0 files, want 4");
        fails(&root, &[null.as_fd(), fds[1], fds[2], fds[3]], "the manifest is no regular file");
        fails(&json!({"use_checkpoint_gofer": true}), &fds[..1], "use_checkpoint_gofer: ");
        let path =
            |container: &str, path: &str| json!({"paths": [{"container_name": container, "path": path}]});
        for nothing in
            [path("", "/no"), path("nobody", "/"), path("", ""), path("", "/proc"), path("", "/data/..")]
        {
            fails(&nothing, &fds, "no checkpointable filesystems");
        }
        let read_only = File::open(dir.path().join("multitar.img")).unwrap();
        fails(&root, &[fds[0], read_only.as_fd(), fds[2], fds[3]], "");
        assert_eq!(state.status(&id), "running");
        let nothing = caller.fails("containerManager.WaitFSRestore", &json!({"CID": id}), &[]);
        assert_eq!(nothing, "filesystem restore is not enabled");
        let late = caller.fails("Airlock.RestoreFilesystems", &json!({"cid": id}), &fds[..2]);
        assert!(late.starts_with("filesystems are restored before a container starts"), "{late}");
        assert_eq!(
            caller.fails("Airlock.RestoreFilesystems", &json!({"cid": id}), &fds),
            "got 4 files, want 2"
        );
    }
    let made = files(dir.path());
    let fds: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).collect();
    assert_eq!(plain.json().fails("containerManager.FSSave", &root, &fds), "no checkpointable filesystems");
    assert_eq!(plain.shell("echo alive"), "alive\n");
    // Images that are none, or of somebody else.
    let image = dir.path().join("image").display().to_string();
    let copy = unique("fssave");
    let created = |expected: &str| {
        let args = [
            "create",
            "--overlay2",
            "root:memory",
            "--fs-restore-image-path",
            &image,
            "--bundle",
            bundle.text(),
            &copy,
        ];
        let text = state.fails(args);
        assert!(text.contains(expected), "{text:?} instead of {expected:?}");
    };
    created("fscheckpoint.pb of a filesystem checkpoint");
    state.ok(["fscheckpoint", "--leave-running", "--image-path", &image, &id]);
    let manifest = dir.path().join("image/fscheckpoint.pb");
    let good = std::fs::read_to_string(&manifest).unwrap();
    let altered = |from: &str, to: &str, expected: &str| {
        std::fs::write(&manifest, good.replace(from, to)).unwrap();
        created(expected);
    };
    altered("filesystems 1", "filesystems 9", "is of format");
    altered("__no_name_0", "other", &format!("no filesystems restored for container {copy}"));
    altered(r#""section":0"#, r#""section":7"#, "filesystem at /");
    altered(r#""path":"/""#, r#""path":"/etc""#, "filesystem at /etc");
    std::fs::write(&manifest, "").unwrap();
    created("not completed");
    std::fs::write(&manifest, &good).unwrap();
    let trees = dir.path().join("image/multitar.img");
    let mut bytes = std::fs::read(&trees).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    std::fs::write(&trees, bytes).unwrap();
    created("");
    assert!(state.fails(["state", "x"]).contains("does not exist"));
}
