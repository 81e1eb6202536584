//! Damaged state: files of the state directory that are cut off, foreign, stale or in the way.
use super::*;
use airlock_tests::need;
use std::os::unix::net::UnixListener;

/// A running container and its state directory.
fn container() -> (State, Bundle, String) {
    let (state, bundle, id) = (State::new(), Bundle::new(&["/bin/sleep", "1000"]), unique("damaged"));
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    (state, bundle, id)
}

#[test]
fn a_damaged_state_file_is_named_and_delete_force_helps() {
    need!("busybox");
    for (i, text) in ["", "{", "null", "[]", "{}", "\u{0}\u{0}", "x"].into_iter().enumerate() {
        let (state, _bundle, id) = container();
        let path = state.root().join(&id).join("state.json");
        if i % 2 == 0 {
            std::fs::write(&path, text).unwrap();
        } else {
            // Cut off.
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        }
        for args in
            [vec!["state", &id], vec!["start", &id], vec!["exec", &id, "/bin/true"], vec!["delete", &id]]
        {
            let text = one_line(&attempt(&state, &args));
            assert!(text.contains("damaged") && text.contains("delete --force"), "{args:?}: {text}");
        }
        assert_eq!(state.ok(["list", "-q"]).trim(), id);
        state.ok(["list"]);
        state.ok(["delete", "--force", &id]);
        leaks::nothing_left(&state, &id);
    }
}

#[test]
fn a_state_file_of_another_container_is_refused() {
    need!("busybox");
    let (state, _bundle, id) = container();
    let other = unique("other");
    std::fs::create_dir(state.root().join(&other)).unwrap();
    std::fs::copy(state.root().join(&id).join("state.json"), state.root().join(&other).join("state.json"))
        .unwrap();
    let text = one_line(&attempt(&state, ["kill", &other, "9"]));
    assert!(text.contains("describes container"), "{text}");
    state.ok(["delete", "--force", &other]);
    // The one that it described lives on.
    assert_eq!(state.status(&id), "running");
}

#[test]
fn a_pid_that_was_used_again_is_not_touched() {
    need!("busybox");
    let (state, _bundle, id) = container();
    let path = state.root().join(&id).join("state.json");
    let loader = state.state(&id)["pid"].as_i64().unwrap() as i32;
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // As after a reboot: the recorded pid belongs to somebody else now, who started at another time (in clock ticks).
    let recorded = text["loader"]["start"].as_u64().unwrap();
    let mut bystander = wait::until("a process that started later", || {
        let mut child = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let start = airlock::process::ProcessId::of(child.id() as i32).map(|id| id.start);
        if start.is_ok_and(|start| start != recorded) {
            return Some(child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        None
    });
    text["loader"]["pid"] = json!(bystander.id());
    text["pid"] = json!(bystander.id());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(loader), nix::sys::signal::Signal::SIGKILL).unwrap();
    std::fs::write(&path, text.to_string()).unwrap();
    assert_eq!(state.status(&id), "stopped");
    let text = one_line(&attempt(&state, ["kill", &id, "9"]));
    assert!(text.contains("not running"), "{text}");
    state.ok(["delete", "--force", &id]);
    assert!(bystander.try_wait().unwrap().is_none(), "a foreign process was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn a_stale_lock_or_socket_is_no_obstacle() {
    need!("busybox");
    let (state, _bundle, id) = container();
    let dir = state.root().join(&id);
    // A lock file nobody holds, with whatever in it; and none at all.
    std::fs::write(dir.join("lock"), "12345").unwrap();
    state.ok(["pause", &id]);
    std::fs::remove_file(dir.join("lock")).unwrap();
    state.ok(["resume", &id]);
    // A socket that nobody listens on.
    std::fs::remove_file(dir.join("control.sock")).unwrap();
    drop(UnixListener::bind(dir.join("control.sock")).unwrap());
    let text = one_line(&attempt(&state, ["exec", &id, "/bin/true"]));
    assert!(text.contains("connect to sandbox"), "{text}");
    state.ok(["delete", "--force", &id]);
    leaks::nothing_left(&state, &id);
}

#[test]
fn a_socket_that_never_answers_does_not_hang_delete_force() {
    need!("busybox");
    let (state, _bundle, id) = container();
    let socket = state.control_socket(&id);
    std::fs::remove_file(&socket).unwrap();
    let _mute = UnixListener::bind(&socket).unwrap();
    state.ok(["delete", "--force", &id]);
    leaks::nothing_left(&state, &id);
}

#[test]
fn leftovers_of_dead_commands_are_cleared_and_those_of_living_ones_are_not() {
    need!("busybox");
    let (state, _bundle, id) = container();
    let dead = state.root().join(".new-999999-1-0");
    std::fs::create_dir(&dead).unwrap();
    std::fs::write(dead.join("state.json"), "{").unwrap();
    let me = std::process::id();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap().to_owned();
    let living = state.root().join(format!(".new-{me}-{start}-0"));
    std::fs::create_dir(&living).unwrap();
    assert_eq!(state.ok(["list", "-q"]).trim(), id);
    assert!(!dead.exists() && living.exists());
    std::fs::remove_dir(&living).unwrap();
}

#[test]
fn a_state_directory_that_is_none() {
    need!("busybox");
    let (dir, bundle) = (tempfile::tempdir().unwrap(), Bundle::new(&["/bin/true"]));
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for root in [file.clone(), file.join("below"), std::path::PathBuf::from("/proc/airlock")] {
        let out = std::process::Command::new(airlock_tests::airlock())
            .args(["--root", root.to_str().unwrap(), "run", "--bundle", bundle.text(), &unique("nowhere")])
            .output()
            .unwrap();
        let text = one_line(&out);
        assert!(text.contains(root.to_str().unwrap()), "{text}");
    }
}
