use super::*;
use airlock_wire::error::Kind;
use std::os::unix::fs::FileTypeExt;
use std::sync::mpsc;
use std::time::Duration;

/// A state directory that is thrown away.
fn dir() -> (tempfile::TempDir, StateDir) {
    let temporary = tempfile::tempdir().unwrap();
    let dir = StateDir::open(&temporary.path().join("a/root")).unwrap();
    (temporary, dir)
}

/// A process that has ended.
fn dead() -> ProcessId {
    ProcessId { start: 1, ..ProcessId::current().unwrap() }
}

fn state(id: &str, phase: Phase) -> State {
    State {
        id: id.into(),
        sandbox_id: id.into(),
        oci_version: "1.0.2".into(),
        bundle: "/b".into(),
        rootfs: "/b/rootfs".into(),
        pid: 0,
        pid_start: 0,
        loader: ProcessId::default(),
        created: "2026-01-01T00:00:00Z".into(),
        owner: "root".into(),
        annotations: BTreeMap::from([("a".into(), "b".into())]),
        terminal: false,
        cgroup: crate::cgroups::Manager::default(),
        filestores: Vec::new(),
        taken: None,
        overlay: None,
        restore: None,
        domains: BTreeMap::new(),
        poststart: Vec::new(),
        poststop: Vec::new(),
        phase,
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o777
}

#[test]
fn ids_are_checked() {
    for good in ["a", "A_b+c-d.e", "0", &"x".repeat(MAX_ID)] {
        check_id(good).unwrap();
    }
    for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "a\0", "a\n", &"x".repeat(MAX_ID + 1)] {
        assert_eq!(check_id(bad).unwrap_err().kind, Kind::InvalidArgument, "{bad:?}");
    }
    let (_t, dir) = dir();
    assert!(dir.load("../x").is_err() && dir.lock("..").is_err() && dir.remove("a/b").is_err());
}

#[test]
fn a_container_comes_and_goes() {
    let (_t, dir) = dir();
    assert!(dir.load("c").unwrap_err().message.contains("container does not exist"));
    assert!(dir.lock("c").unwrap_err().message.contains("container does not exist"));
    let mut s = state("c", Phase::Creating { by: ProcessId::current().unwrap() });
    let lock = dir.create(&s).unwrap();
    assert!(dir.create(&s).unwrap_err().message.contains("container with given ID already exists"));
    assert_eq!(dir.list().unwrap(), ["c"]);
    assert_eq!(dir.status(&dir.load("c").unwrap()).unwrap(), Status::Creating);
    s.pid = 7;
    dir.save(&s).unwrap();
    dir.save_config("c", b"{}").unwrap();
    let loaded = dir.load("c").unwrap();
    assert_eq!((loaded.pid, loaded.annotations.len(), dir.config("c").unwrap().as_str()), (7, 1, "{}"));
    drop(lock);
    let _lock = dir.lock("c").unwrap();
    dir.remove("c").unwrap();
    dir.remove("c").unwrap();
    assert!(dir.list().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(dir.root()).unwrap().count(), 0);
}

#[test]
fn nobody_else_can_read_what_is_written() {
    let (_t, dir) = dir();
    let _lock = dir.create(&state("c", Phase::Created)).unwrap();
    dir.save(&state("c", Phase::Created)).unwrap();
    dir.save_config("c", b"{}").unwrap();
    drop(dir.make_exit_file("c").unwrap());
    let listener = dir.bind_control_socket("c").unwrap();
    assert_eq!(mode(dir.root()), 0o700);
    assert_eq!(mode(&dir.dir("c")), 0o700);
    for name in ["state.json", "config.json", "lock", "exit.json", "control.sock"] {
        assert_eq!(mode(&dir.dir("c").join(name)), 0o600, "{name}");
    }
    drop(listener);
}

#[test]
fn a_dead_create_is_a_stopped_container() {
    let (_t, dir) = dir();
    drop(dir.create(&state("c", Phase::Creating { by: dead() })).unwrap());
    assert_eq!(dir.status(&dir.load("c").unwrap()).unwrap(), Status::Stopped);
    // Made, but its sandbox has gone.
    drop(dir.create(&state("d", Phase::Created)).unwrap());
    assert_eq!(dir.status(&dir.load("d").unwrap()).unwrap(), Status::Stopped);
}

#[test]
fn the_leavings_of_dead_commands_are_swept() {
    let (_t, dir) = dir();
    let dead = dead();
    let mine = ProcessId::current().unwrap();
    for (id, alive) in [(dead, false), (mine, true)] {
        for kind in ["new", "del"] {
            let path = dir.root().join(format!(".{kind}-{}-{}-0", id.pid, id.start));
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("lock"), "").unwrap();
            dir.list().unwrap();
            assert_eq!(path.exists(), alive, "{}", path.display());
        }
    }
    std::fs::create_dir(dir.root().join(".other")).unwrap();
    assert!(dir.list().unwrap().is_empty());
    assert!(dir.root().join(".other").exists());
}

#[test]
fn damaged_states_are_named() {
    let (_t, dir) = dir();
    drop(dir.create(&state("c", Phase::Created)).unwrap());
    for text in ["", "{", "[]", "{\"id\":\"c\"}"] {
        std::fs::write(dir.dir("c").join("state.json"), text).unwrap();
        let error = dir.load("c").unwrap_err();
        assert!(error.message.contains("damaged") && error.message.contains("delete --force"), "{error}");
    }
    let other = serde_json::to_vec(&state("d", Phase::Created)).unwrap();
    std::fs::write(dir.dir("c").join("state.json"), other).unwrap();
    assert!(dir.load("c").unwrap_err().message.contains("describes container \"d\""));
}

#[test]
fn a_lock_excludes_and_ends_with_its_container() {
    let (_t, dir) = dir();
    let lock = dir.create(&state("c", Phase::Created)).unwrap();
    let (started, wait_started) = mpsc::channel();
    let (got, wait_got) = mpsc::channel();
    let root = dir.root().to_owned();
    let thread = std::thread::spawn(move || {
        let dir = StateDir::open(&root).unwrap();
        started.send(()).unwrap();
        got.send(dir.lock("c").map(drop)).unwrap();
    });
    wait_started.recv().unwrap();
    // Nothing may come while the lock is held; whether the other thread waits already does not matter.
    assert!(wait_got.try_recv().is_err());
    dir.remove("c").unwrap();
    drop(lock);
    // The file that it waited for is gone with the container.
    assert_eq!(wait_got.recv().unwrap().unwrap_err().kind, Kind::NoSuchEntity);
    thread.join().unwrap();
}

#[test]
fn last_words_are_read() {
    let (_t, dir) = dir();
    drop(dir.create(&state("c", Phase::Created)).unwrap());
    assert_eq!(dir.exit_record("c").unwrap(), None);
    drop(dir.make_exit_file("c").unwrap());
    assert_eq!(dir.exit_record("c").unwrap(), None);
    std::fs::write(dir.exit_file("c"), r#"{"id":"c","status":1792,"reason":"exited","time":"t"}"#).unwrap();
    let record = dir.exit_record("c").unwrap().unwrap();
    assert_eq!((record.status, record.code()), (7 << 8, 7));
    assert_eq!((exit_code(9), exit_code(0x80 | 11), exit_code(0)), (137, 139, 0));
}

#[test]
fn long_paths_reach_a_socket() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = StateDir::open(&temporary.path().join("x".repeat(120))).unwrap();
    let _lock = dir.create(&state("c", Phase::Created)).unwrap();
    let listener = dir.bind_control_socket("c").unwrap();
    let path = dir.control_socket("c");
    assert!(path.as_os_str().len() > 107);
    assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
    assert_eq!(mode(&path), 0o600);
    let client = dir.connect(&dir.load("c").unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    drop((client, accepted));
    assert_eq!(connect_stream(Path::new("/nonexistent/x")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_root_must_be_a_directory() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(StateDir::open(&file).unwrap_err().kind, Kind::InvalidArgument);
    assert!(StateDir::open(&file.join("below")).is_err());
}

#[test]
fn waiting_for_a_lock_can_be_limited() {
    let (_t, dir) = dir();
    let lock = dir.create(&state("c", Phase::Created)).unwrap();
    assert!(dir.lock_within("c", Duration::from_millis(20)).unwrap().is_none());
    drop(lock);
    assert!(dir.lock_within("c", Duration::from_secs(10)).unwrap().is_some());
    assert_eq!(dir.lock_within("d", Duration::from_secs(10)).unwrap_err().kind, Kind::NoSuchEntity);
}
