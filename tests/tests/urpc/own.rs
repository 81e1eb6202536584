//! `Airlock`: what airlock's own command line calls; and what every receiver says of containers that are not there.
use super::*;
use airlock_tests::need;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// An OCI process object that runs `args`.
fn process(args: &[&str]) -> Value {
    sub_spec(args)["process"].clone()
}

/// A spec for a container to which no cgroups are donated: it sees its own through a namespace.
pub(crate) fn own_spec(args: &[&str]) -> Value {
    let mut spec = sub_spec(args);
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    spec
}

fn status(caller: &mut Caller, cid: &str) -> String {
    caller.ok("Airlock.Info", &json!({"cid": cid}), &[])["status"].as_str().unwrap().to_owned()
}

#[test]
fn a_container_of_the_own_interface_lives_and_ends() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let null = null();
    let n = null.as_fd();
    for mut caller in sandbox.both() {
        let rootfs = sandbox.rootfs();
        let cid = unique("own");
        let named = json!({"cid": cid});
        let spec = own_spec(&["/bin/sleep", "1000"]);
        let fds = json!({"stdio": [0, 1, 2], "gofer": [3]});
        let prepare = json!({"cid": cid, "spec": spec, "bundle": "/b", "fds": fds});
        let parts = [n, n, n, rootfs.as_fd()];
        let prepared = caller.ok("Airlock.PrepareSubcontainer", &prepare, &parts);
        assert!(prepared["init_pid"].as_i64().unwrap() > 0 && prepared["has_console"] == false, "{prepared}");
        let text = caller.fails("Airlock.PrepareSubcontainer", &prepare, &parts);
        assert_eq!(text, format!("container {cid:?} already exists"));
        let mut missing = prepare.clone();
        missing["cid"] = json!(unique("own"));
        let text = caller.fails("Airlock.PrepareSubcontainer", &missing, &[n]);
        assert!(text.contains("descriptor"), "{text}");
        assert_eq!(status(&mut caller, &cid), "created");
        caller.ok("Airlock.StartContainer", &named, &[]);
        let text = caller.fails("Airlock.StartContainer", &named, &[]);
        assert!(text.starts_with(&format!("cannot start container {cid:?}")), "{text}");
        caller.ok("Airlock.PauseContainer", &named, &[]);
        assert_eq!(status(&mut caller, &cid), "paused");
        caller.fails("Airlock.PauseContainer", &named, &[]);
        caller.ok("Airlock.ResumeContainer", &named, &[]);
        assert_eq!(status(&mut caller, &cid), "running");
        caller.fails("Airlock.ResumeContainer", &named, &[]);
        let exec = json!({"cid": cid, "process": process(&["/bin/sh", "-c", "exit 3"]), "fds": {"stdio": [0, 1, 2]}});
        let executed = caller.ok("Airlock.Exec", &exec, &[n, n, n]);
        let supervise = json!({"cid": cid, "pid": executed["pid"]});
        assert_eq!(caller.ok("Airlock.Supervise", &supervise, &[]), json!(3 << 8));
        let text = caller.fails("Airlock.Supervise", &json!({"cid": cid, "pid": 7777}), &[]);
        assert_eq!(text, "no such process with PID 7777");
        let no_program = json!({"cid": cid, "process": process(&["/no/such"]), "fds": {"stdio": [0, 1, 2]}});
        let text = caller.fails("Airlock.Exec", &no_program, &[n, n, n]);
        assert!(text.contains("/no/such"), "{text}");
        let kill = |signo: i32| json!({"cid": cid, "pid": 0, "signo": signo});
        caller.ok("Airlock.SignalForward", &kill(9), &[]);
        assert_eq!(caller.ok("Airlock.Supervise", &named, &[]), json!(9));
        let listed = caller.ok("Airlock.List", &Value::Null, &[]);
        let own = listed.as_array().unwrap().iter().find(|c| c["cid"] == cid.as_str()).unwrap().clone();
        assert_eq!(
            (&own["status"], &own["killed_by"]["by"]),
            (&json!("stopped"), &json!("Airlock.SignalForward"))
        );
        caller.fails("Airlock.SignalForward", &kill(9), &[]);
        caller.ok("containerManager.DestroySubcontainer", &json!(cid), &[]);
        assert!(caller.ok("Airlock.Generation", &Value::Null, &[]).as_str().unwrap().len() >= 16);
        assert_eq!(caller.ok("Airlock.SharedMounts", &Value::Null, &[]), json!([]));
    }
}

#[test]
fn pausing_by_the_older_interface_nests_with_the_newer() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        caller.ok("Lifecycle.Pause", &Value::Null, &[]);
        caller.ok("containerManager.Pause", &Value::Null, &[]);
        caller.ok("containerManager.Resume", &Value::Null, &[]);
        assert_eq!(status(&mut caller, &sandbox.id), "paused");
        caller.ok("Lifecycle.Resume", &Value::Null, &[]);
        assert_eq!(status(&mut caller, &sandbox.id), "running");
        assert_eq!(caller.fails("Lifecycle.Resume", &Value::Null, &[]), "the sandbox is not paused");
        assert_eq!(caller.fails("containerManager.Resume", &Value::Null, &[]), "the sandbox is not paused");
    }
}

#[test]
fn the_older_name_of_the_checkpoint_saves() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        let image = File::from(memfd_create("image", MFdFlags::MFD_CLOEXEC).unwrap());
        caller.ok("State.Save", &json!({"Resume": true}), &[image.as_fd()]);
        assert!(image.metadata().unwrap().len() > 0);
        assert_eq!(caller.fails("State.Save", &json!({"Resume": true}), &[]), "got 0 files, wanted 1");
        assert_eq!(status(&mut caller, &sandbox.id), "running");
    }
}

#[test]
fn containers_that_are_not_there_are_named() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        let not_found = "container \"nobody\" not found";
        let cid = json!({"cid": "nobody"});
        assert_eq!(caller.fails("Airlock.Info", &cid, &[]), not_found);
        assert_eq!(caller.fails("containerManager.Wait", &json!("nobody"), &[]), not_found);
        assert_eq!(caller.fails("containerManager.Event", &json!("nobody"), &[]), not_found);
        assert_eq!(caller.fails("containerManager.DestroySubcontainer", &json!("nobody"), &[]), not_found);
        let text = caller.fails("containerManager.DestroySubcontainer", &json!(sandbox.id), &[]);
        assert!(text.contains("root container"), "{text}");
        let signal = json!({"CID": "nobody", "Signo": 9, "PID": 0, "Mode": 0});
        let text = caller.fails("containerManager.Signal", &signal, &[]);
        assert!(text.ends_with(not_found), "{text}");
        let text = caller.fails("containerManager.CreateSubcontainer", &json!({"CID": sandbox.id}), &[]);
        assert_eq!(text, format!("container {:?} already exists", sandbox.id));
        let args = exec_args("nobody", &["/bin/true"]);
        let null = null();
        let fds = [null.as_fd(), null.as_fd(), null.as_fd()];
        assert_eq!(caller.fails("Proc.Exec", &args, &fds), not_found);
    }
}
