//! The tree in a user namespace, where device nodes cannot be made and procfs is given only to who sees one already.

use super::*;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

const VARIABLE: &str = "AIRLOCK_TEST_USERNS";

/// Runs [`in_a_user_namespace`] in a child with namespaces of its own and these descriptors; returns its output.
fn run_child(task: &str, fds: &[(String, OwnedFd)]) -> (bool, String) {
    let mut words = vec![task.to_owned()];
    for (name, fd) in fds {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        words.push(format!("{name}={}", fd.as_raw_fd()));
    }
    let network = (task != "host-network").then_some("--net");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--ipc", "--pid", "--fork", "--cgroup"])
        .args(network)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "init::mounts::tests::userns::in_a_user_namespace", "--nocapture"])
        .env(VARIABLE, words.join(";"))
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
    (output.status.success(), text)
}

fn donated_devices() -> Vec<(String, OwnedFd)> {
    DEFAULT_DEVICES
        .iter()
        .map(|(name, ..)| format!("/dev/{name}"))
        .map(|path| (path.clone(), detached(Path::new(&path))))
        .collect()
}

/// The half that runs in the child; by itself it has nothing to do.
#[test]
fn in_a_user_namespace() {
    let Ok(words) = std::env::var(VARIABLE) else { return };
    let (task, fds) = words.split_once(';').unwrap();
    let mut fds: Vec<_> = fds
        .split(';')
        .map(|word| {
            let (name, number) = word.split_once('=').unwrap();
            // The inherited descriptor stays open beside this one, which is what keeps the mount alive.
            let path = format!("/proc/self/fd/{number}");
            let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap();
            (name.to_owned(), OwnedFd::from(file))
        })
        .collect();
    let (_, rootfs) = fds.remove(0);
    let gofer = fds.extract_if(.., |(name, _)| name == "gofer").map(|(_, fd)| fd).collect();
    let mut config = config();
    let mounts = config["mounts"].as_array_mut().unwrap();
    if task == "bind" {
        mounts.push(
            json!({"destination": "/volume", "type": "bind", "source": "/x", "options": ["bind", "ro"]}),
        );
    }
    let cgroup = CgroupView { v2: false, names: v1_names(), mounts: Vec::new(), new_ns: true };
    let spec = spec(config);
    build(MountInputs {
        spec: &spec,
        rootfs,
        gofer,
        devices: fds,
        cgroup,
        in_userns: true,
        generation: "",
        pre_pivot: Box::new(|| Ok(())),
    })
    .unwrap_or_else(|e| panic!("BUILD: {e}"));
    assert!(line("/proc").contains("- proc "));
    assert!(mount_options("/").starts_with("ro"));
    assert!(line("/dev/pts").contains("- devpts devpts rw,mode=620"), "no gid: {}", line("/dev/pts"));
    for (name, major, minor) in DEFAULT_DEVICES {
        assert!(is_char(&format!("/dev/{name}"), major, minor), "{name}");
    }
    fs::write("/dev/null", "x").unwrap();
    assert!(is_char("/proc/version", 1, 3));
    assert!(fs::write("/proc/sys/kernel/hostname", "x").is_err());
    if task == "bind" {
        assert_eq!(fs::read("/volume/file").unwrap(), b"content");
        assert_eq!(fs::write("/volume/new", "").unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
    println!("CHILD IS DONE");
}

#[test]
fn a_user_namespace_gets_a_whole_tree_with_donated_devices() {
    if !root_or_skip("a_user_namespace_gets_a_whole_tree_with_donated_devices") {
        return;
    }
    let (image, volume) = (image(), tempfile::tempdir().unwrap());
    fs::write(volume.path().join("file"), "content").unwrap();
    let bind = detached(volume.path());
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..Default::default() };
    mount::mount_setattr(bind.as_fd(), &attr, false).unwrap();
    let mut fds = vec![("rootfs".to_owned(), detached(image.path())), ("gofer".to_owned(), bind)];
    fds.extend(donated_devices());
    let (success, text) = run_child("bind", &fds);
    assert!(success && text.contains("CHILD IS DONE"), "{text}");
}

#[test]
fn a_user_namespace_without_donated_devices_is_told_so() {
    if !root_or_skip("a_user_namespace_without_donated_devices_is_told_so") {
        return;
    }
    let image = image();
    let (success, text) = run_child("plain", &[("rootfs".to_owned(), detached(image.path()))]);
    assert!(!success && text.contains("BUILD: device /dev/null: a user namespace cannot make"), "{text}");
}

#[test]
fn a_donated_device_that_is_another_is_refused() {
    if !root_or_skip("a_donated_device_that_is_another_is_refused") {
        return;
    }
    let image = image();
    let mut fds = vec![("rootfs".to_owned(), detached(image.path()))];
    fds.extend(donated_devices());
    fds[1].1 = detached(Path::new("/dev/zero"));
    let (success, text) = run_child("plain", &fds);
    assert!(
        !success && text.contains("device /dev/null: the donated descriptor is another device"),
        "{text}"
    );
}

#[test]
fn a_user_namespace_in_the_hosts_network_is_told_how_to_get_a_sysfs() {
    if !root_or_skip("a_user_namespace_in_the_hosts_network_is_told_how_to_get_a_sysfs") {
        return;
    }
    let image = image();
    let mut fds = vec![("rootfs".to_owned(), detached(image.path()))];
    fds.extend(donated_devices());
    let (success, text) = run_child("host-network", &fds);
    assert!(
        !success && text.contains("mount \"/sys\" (sysfs)") && text.contains("bind mount the host's /sys"),
        "{text}"
    );
}
