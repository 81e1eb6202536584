//! `ProcfsDump`.
use super::*;
use airlock_tests::interop::RunscView;
use airlock_tests::urpc::Caller;
use airlock_tests::{need, skip, wait};
use serde_json::{Value, json};

const DUMP: &str = "containerManager.ProcfsDump";

/// The dump of the process that runs `comm`.
fn find<'a>(dump: &'a Value, comm: &str) -> Option<&'a Value> {
    dump.as_array()?.iter().find(|p| p["status"]["comm"] == comm)
}

#[test]
fn every_field_of_every_process() {
    need!("busybox");
    let script = "cd /tmp; ulimit -S -n 77; touch marker; exec 9<marker; X='a b' sleep 1001 & wait";
    let bundle = Bundle::with(&["sh", "-c", script], |config| {
        config["process"]["user"] = json!({"uid": 0, "gid": 7});
        config["process"]["env"] = json!(["PATH=/bin", "EMPTY="]);
    });
    let sandbox = Sandbox::of(bundle);
    let socket = sandbox.state.control_socket(&sandbox.id);
    for mut caller in Caller::both(&socket) {
        let dump = wait::until("the child to execute", || {
            let dump = caller.ok(DUMP, &Value::Null, &[]);
            find(&dump, "sleep").is_some().then_some(dump)
        });
        let (shell, sleep) = (find(&dump, "sh").unwrap(), find(&dump, "sleep").unwrap());
        assert_eq!(dump.as_array().unwrap().len(), 2, "no process of the sandbox itself: {dump}");
        assert_eq!(shell["args"], json!(["sh", "-c", script]));
        assert_eq!(sleep["args"], json!(["sleep", "1001"]));
        assert_eq!(
            (&sleep["exe"], &sleep["cwd"], &sleep["root"]),
            (&json!("/bin/busybox"), &json!("/tmp"), &json!("/"))
        );
        let env = sleep["env"].as_array().unwrap();
        assert!(env.contains(&json!("X=a b")) && env.contains(&json!("EMPTY=")), "{env:?}");
        let fds = sleep["fdlist"].as_array().unwrap();
        let marker = fds.iter().find(|fd| fd["number"] == 9).unwrap();
        assert_eq!(marker["path"], "/tmp/marker");
        assert_eq!(marker["mode"].as_u64().unwrap() & 0o170_000, 0o100_000);
        assert_eq!(sleep["limits"]["RLIMIT_NOFILE"]["cur"], 77);
        let (status, stat) = (&sleep["status"], &sleep["stat"]);
        assert_eq!(status["ppid"], shell["status"]["pid"]);
        assert_eq!(status["gid"], json!({"real": 7, "effective": 7, "saved": 7}));
        assert_eq!(status["uid"]["effective"], 0);
        assert_eq!(stat["sid"], shell["status"]["pid"]);
        assert_eq!(stat["pgid"], shell["stat"]["pgid"]);
        assert!(
            status["vm_rss"].as_u64().unwrap() > 0 && status["vm_size"].as_u64() >= status["vm_rss"].as_u64()
        );
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let made = sleep["clone_ts"].as_u64().unwrap();
        assert!(made < now + 1_000_000_000 && now - made.min(now) < 600_000_000_000, "{made} of {now}");
        assert!(
            sleep["cgroup"]
                .as_array()
                .unwrap()
                .iter()
                .any(|c| c["path"].as_str().unwrap().contains(&sandbox.id))
        );
        let maps = sleep["maps"].as_array().unwrap();
        let code = maps
            .iter()
            .find(|m| m["permissions"]["Execute"] == true && m["pathname"] == "/bin/busybox")
            .unwrap();
        assert!(code["address"]["Start"].as_u64() < code["address"]["End"].as_u64());
        assert_eq!((&code["private"], code["permissions"]["Write"].as_bool()), (&json!("p"), Some(false)));
        assert!(code["inode"].as_u64().unwrap() > 0);
    }
}

#[test]
fn our_command_line_and_runscs_print_the_same() {
    need!("busybox");
    let sandbox = Sandbox::start(&["sleep", "1000"]);
    let ours = sandbox.state.ok(["trace", "procfs", &sandbox.id]);
    let mut parts = ours.split("\n\n");
    assert_eq!(parts.next(), Some("PROCFS DUMP"));
    let mut process: Value = serde_json::from_str(parts.next().unwrap()).unwrap();
    assert_eq!((&process["args"], parts.next()), (&json!(["sleep", "1000"]), None));
    assert!(sandbox.state.fails(["trace", "procfs", "nobody"]).contains("container does not exist"));
    if airlock_tests::which("runsc").is_none() {
        skip!("needs the program runsc");
    }
    let theirs = RunscView::new(&sandbox.state, &sandbox.id).ok(&["trace", "procfs", &sandbox.id]);
    let mut theirs: Value = serde_json::from_str(theirs.strip_prefix("PROCFS DUMP\n\n").unwrap()).unwrap();
    // Each is computed anew from a clock.
    process["clone_ts"] = Value::Null;
    theirs["clone_ts"] = Value::Null;
    assert_eq!(process, theirs);
}
