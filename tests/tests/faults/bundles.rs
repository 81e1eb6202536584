//! Malformed bundles: each gets one line that names what is wrong, exit code 1, and leaves nothing.
use super::*;
use airlock_tests::need;
use serde_json::Value;
use std::os::unix::fs::symlink;

/// Collects what was wrong, so that one run shows all of it.
#[derive(Default)]
struct Table(Vec<String>);

impl Drop for Table {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.0.is_empty(), "{}", self.0.join("\n"));
        }
    }
}

impl Table {
    /// `create` and `run` of the bundle must fail with all of `words` in the error.
    fn bundle(&mut self, bundle: &Bundle, words: &[&str]) {
        let state = State::new();
        for command in ["create", "run"] {
            let id = unique("malformed");
            let out = attempt(&state, [command, "--bundle", bundle.text(), &id]);
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            let lower = text.to_lowercase();
            let good = out.status.code() == Some(1)
                && text.trim_end().lines().count() == 1
                && text.len() < 16_000
                && !lower.contains("panicked")
                && words.iter().all(|w| lower.contains(&w.to_lowercase()));
            if !good {
                let text: String = text.chars().take(300).collect();
                self.0.push(format!("{command}, wanted {words:?}: {}: {text}", out.status));
                let _ = state.run(["delete", "--force", &id]);
            }
            leaks::nothing_left(&state, &id);
            assert!(state.ok(["list", "-q"]).is_empty());
        }
    }

    fn config(&mut self, edit: impl FnOnce(&mut Value), words: &[&str]) {
        self.bundle(&Bundle::with(&["/bin/true"], edit), words);
    }

    fn text(&mut self, text: &[u8], words: &[&str]) {
        let bundle = Bundle::new(&["/bin/true"]);
        std::fs::write(bundle.path().join("config.json"), text).unwrap();
        self.bundle(&bundle, words);
    }
}

#[test]
fn no_configuration() {
    need!("busybox");
    let mut t = Table::default();
    let bundle = Bundle::new(&["/bin/true"]);
    let config = bundle.path().join("config.json");
    std::fs::remove_file(&config).unwrap();
    t.bundle(&bundle, &["config.json", "no such file"]);
    std::fs::create_dir(&config).unwrap();
    t.bundle(&bundle, &["config.json", "not a regular file"]);
    std::fs::remove_dir(&config).unwrap();
    symlink("config.json", &config).unwrap();
    t.bundle(&bundle, &["config.json"]);
    std::fs::remove_file(&config).unwrap();
    symlink("/dev/zero", &config).unwrap();
    t.bundle(&bundle, &["config.json", "not a regular file"]);
    let state = State::new();
    let text = one_line(&attempt(&state, ["create", "--bundle", "/no/such/bundle", &unique("malformed")]));
    assert!(text.contains("/no/such/bundle"), "{text}");
}

#[test]
fn no_json() {
    need!("busybox");
    let mut t = Table::default();
    t.text(b"", &["config.json"]);
    t.text(b"{", &["config.json"]);
    t.text(b"\xff\xfe{}", &["config.json"]);
    t.text(b"[]", &["ociVersion"]);
    t.text(b"[1]", &["config.json"]);
    t.text(b"{}{}", &["config.json"]);
    t.text("[".repeat(1 << 20).as_bytes(), &["config.json"]);
    t.text(&vec![b' '; (16 << 20) + 1], &["config.json", "at most"]);
    t.text(b"{}", &["ociVersion"]);
}

#[test]
fn wrong_types() {
    need!("busybox");
    let mut t = Table::default();
    for (pointer, value) in [
        ("/process", json!([])),
        ("/process/args", json!("/bin/true")),
        ("/process/env", json!({"A": "b"})),
        ("/process/user/uid", json!(-1)),
        ("/process/user/uid", json!(1u64 << 33)),
        ("/process/cwd", json!(7)),
        ("/root/path", json!(null)),
        ("/mounts", json!({})),
        ("/mounts/0/options", json!("ro")),
        ("/linux/namespaces", json!("pid")),
        ("/linux/namespaces/0/type", json!("planet")),
        ("/linux/maskedPaths", json!([1])),
        ("/linux/resources", json!(5)),
        ("/hostname", json!(["x"])),
    ] {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let set = |c: &mut Value| match c.pointer_mut(parent).unwrap() {
            Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
            object => object[key] = value,
        };
        t.config(set, &["config.json"]);
        assert!(t.0.is_empty(), "{pointer}: {:?}", t.0);
    }
}

#[test]
fn values_that_make_no_sense() {
    need!("busybox");
    let mut t = Table::default();
    t.config(|c| drop(c.as_object_mut().unwrap().remove("root")), &["root"]);
    t.config(|c| c["root"]["path"] = json!("no-such-rootfs"), &["no-such-rootfs", "no such file"]);
    t.config(|c| drop(c.as_object_mut().unwrap().remove("process")), &["process"]);
    t.config(|c| c["process"]["args"] = json!([]), &["args"]);
    t.config(|c| c["process"]["args"] = json!([""]), &["executable file not found"]);
    t.config(|c| c["process"]["args"] = json!(["/bin/true", "a\0b"]), &["args"]);
    t.config(|c| c["process"]["env"] = json!(["A\0=b"]), &["env"]);
    t.config(|c| c["process"]["cwd"] = json!("relative"), &["cwd"]);
    t.config(|c| c["process"]["cwd"] = json!(""), &["cwd"]);
    t.config(
        |c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_WISHES", "hard": 1, "soft": 1}]),
        &["RLIMIT_WISHES"],
    );
    t.config(
        |c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 2}]),
        &["RLIMIT_NOFILE"],
    );
    t.config(|c| c["process"]["oomScoreAdj"] = json!(5000), &["oomScoreAdj"]);
    t.config(|c| c["hostname"] = json!("x".repeat(65)), &["hostname"]);
    t.config(
        |c| c["linux"]["namespaces"][0] = json!({"type": "pid", "path": "/no/such/ns"}),
        &["/no/such/ns"],
    );
    t.config(
        |c| c["linux"]["namespaces"][1] = json!({"type": "network", "path": "/proc/self/ns/ipc"}),
        &["another kind"],
    );
    t.config(|c| c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "pid"})), &["pid"]);
    t.config(
        |c| c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"})),
        &["mapping"],
    );
    t.config(|c| c["linux"]["sysctl"] = json!({"kernel.panic": "1"}), &["kernel.panic"]);
    t.config(|c| c["linux"]["sysctl"] = json!({"net.no.such.thing": "1"}), &["net.no.such.thing"]);
    t.config(|c| c["linux"]["intelRdt"] = json!({"closID": "x"}), &["intelRdt"]);
    t.config(|c| c["linux"]["cgroupsPath"] = json!("/a/../../b"), &["cgroupsPath"]);
    t.config(|c| c["linux"]["rootfsPropagation"] = json!("sideways"), &["rootfsPropagation"]);
    t.config(|c| c["linux"]["resources"]["memory"] = json!({"limit": "much"}), &["config.json"]);
    t.config(|c| c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_LAUGH"}), &["SCMP_ACT_LAUGH"]);
    t.config(|c| c["hooks"] = json!({"createRuntime": [{"path": "relative"}]}), &["hooks"]);
    t.config(|c| c["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]}), &["createRuntime"]);
    t.config(|c| c["hooks"] = json!({"createContainer": [{"path": "/no/such/hook"}]}), &["/no/such/hook"]);
}

#[test]
fn programs_that_cannot_be_executed() {
    need!("busybox");
    let mut t = Table::default();
    t.config(|c| c["process"]["args"] = json!(["/no/such/program"]), &["/no/such/program", "no such file"]);
    t.config(
        |c| c["process"]["args"] = json!(["no-such-program"]),
        &["no-such-program", "not found in $PATH"],
    );
    t.config(|c| c["process"]["args"] = json!(["/etc/passwd"]), &["/etc/passwd", "permission denied"]);
    t.config(|c| c["process"]["args"] = json!(["/tmp"]), &["/tmp", "permission denied"]);
    // The working directory is entered at the start.
    let (state, id) = (State::new(), unique("malformed"));
    let bundle = Bundle::with(&["/bin/true"], |c| c["process"]["cwd"] = json!("/etc/passwd"));
    let text = one_line(&attempt(&state, ["run", "--bundle", bundle.text(), &id]));
    assert!(text.contains("/etc/passwd"), "{text}");
    leaks::nothing_left(&state, &id);
}

#[test]
fn a_program_that_is_none_fails_at_the_start() {
    need!("busybox");
    let bundle = Bundle::new(&["/bin/garbage"]);
    let garbage = bundle.rootfs().join("bin/garbage");
    airlock_tests::write_program(&garbage, "\x7fELF is all that is right here");
    let state = State::new();
    let id = unique("malformed");
    let text = one_line(&attempt(&state, ["run", "--bundle", bundle.text(), &id]));
    assert!(text.contains("/bin/garbage") && text.to_lowercase().contains("exec format"), "{text}");
    leaks::nothing_left(&state, &id);
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    let text = one_line(&attempt(&state, ["start", &id]));
    assert!(text.contains("/bin/garbage"), "{text}");
    state.ok(["delete", "--force", &id]);
    leaks::nothing_left(&state, &id);
}

#[test]
fn a_rootfs_that_is_none() {
    need!("busybox");
    let mut t = Table::default();
    let bundle = Bundle::with(&["/bin/true"], |c| c["root"]["path"] = json!("/dev/null"));
    t.bundle(&bundle, &["/dev/null", "not a directory"]);
    let bundle = Bundle::with(&["/bin/true"], |c| c["root"]["path"] = json!("file"));
    std::fs::write(bundle.path().join("file"), "no image").unwrap();
    t.bundle(&bundle, &["file"]);
    let bundle = Bundle::with(&["/bin/true"], |c| c["root"]["path"] = json!("x/".repeat(3000)));
    t.bundle(&bundle, &["root.path", "name too long"]);
    let bundle = Bundle::with(&["/bin/true"], |c| c["root"]["path"] = json!("a\0b"));
    t.bundle(&bundle, &["root"]);
}

#[test]
fn mounts_that_cannot_be() {
    need!("busybox");
    let mut t = Table::default();
    let mount = |entry: Value| move |c: &mut Value| c["mounts"].as_array_mut().unwrap().push(entry);
    t.config(
        mount(json!({"destination": "/m", "type": "bind", "source": "/no/such/source", "options": ["bind"]})),
        &["/m", "/no/such/source"],
    );
    t.config(mount(json!({"destination": "/m", "type": "no-such-fs", "source": "x"})), &["/m", "no-such-fs"]);
    t.config(
        mount(json!({"destination": "/m", "type": "tmpfs", "source": "x", "options": ["size=many"]})),
        &["/m"],
    );
    t.config(
        mount(json!({"destination": "/etc/passwd/below", "type": "tmpfs", "source": "tmpfs"})),
        &["/etc/passwd/below"],
    );
    t.config(
        mount(json!({"destination": format!("/{}", "d".repeat(5000)), "type": "tmpfs", "source": "tmpfs"})),
        &["name too long"],
    );
    t.config(
        mount(json!({"destination": "/m", "type": "bind", "source": "/etc/passwd", "options": ["bind", "idmap"]})),
        &["mounts[7]", "idmap"],
    );
}

#[test]
fn ids_that_are_none() {
    need!("busybox");
    let (state, bundle) = (State::new(), Bundle::new(&["/bin/true"]));
    let long = "x".repeat(300);
    for id in ["", ".", "..", "a/b", "../x", ".hidden", "a b", "ä", "a\nb", &long] {
        for command in ["create", "run", "state", "start", "delete", "kill"] {
            let args: Vec<&str> = match command {
                "create" | "run" => vec![command, "--bundle", bundle.text(), "--", id],
                "kill" => vec![command, "--", id, "9"],
                _ => vec![command, "--", id],
            };
            let out = attempt(&state, &args);
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(matches!(out.status.code(), Some(1)), "{command} {id:?}: {out:?}");
            assert!(text.contains("id") && text.trim_end().lines().count() == 1, "{command} {id:?}: {text}");
        }
    }
    assert!(state.ok(["list", "-q"]).is_empty());
    assert!(!state.root().parent().unwrap().join("x").exists());
}

#[test]
fn a_taken_id_and_a_missing_one() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["/bin/sleep", "1000"]), unique("taken"));
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    let text = one_line(&attempt(&state, ["create", "--bundle", bundle.text(), &id]));
    assert!(text.contains("already exists"), "{text}");
    assert_eq!(state.status(&id), "created");
    for args in [
        vec!["state"],
        vec!["start"],
        vec!["delete"],
        vec!["pause"],
        vec!["resume"],
        vec!["ps"],
        vec!["wait"],
    ] {
        let text = one_line(&attempt(&state, args.iter().copied().chain(["nobody"])));
        assert!(text.contains("does not exist"), "{args:?}: {text}");
    }
    state.ok(["delete", "--force", "nobody"]);
}
