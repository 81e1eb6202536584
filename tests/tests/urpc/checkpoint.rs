//! Checkpoint and restore: states, files, errors, and who waits. What is saved of programs is looked at elsewhere.
use super::*;
use airlock_tests::urpc::Urpc;
use airlock_tests::{leaks, need};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

const CHECKPOINT: &str = "containerManager.Checkpoint";
const RESTORE: &str = "containerManager.Restore";
const RESTORE_SUB: &str = "containerManager.RestoreSubcontainer";
const WAIT_CHECKPOINT: &str = "containerManager.WaitCheckpoint";
const WAIT_RESTORE: &str = "containerManager.WaitRestore";
const SAVINGS: &str = "containerManager.GetSavings";
const STATE: &str = "containerManager.ContainerRuntimeState";
const WAIT: &str = "containerManager.Wait";
const OWN_CHECKPOINT: &str = "Airlock.Checkpoint";
const OWN_RESTORE: &str = "Airlock.Restore";
const PROGRESS: &str = "Airlock.CheckpointProgress";

fn memory() -> File {
    memfd_create("image", MFdFlags::MFD_CLOEXEC).unwrap().into()
}

/// Statefile, pages' metadata, pages.
struct Image([File; 3]);

impl Image {
    fn new() -> Self {
        Self([memory(), memory(), memory()])
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }

    /// Of a container that goes on.
    fn of(caller: &mut Caller) -> Self {
        let image = Self::new();
        caller.ok(CHECKPOINT, &json!({"have_pages_file": true, "Resume": true}), &image.fds());
        image
    }
}

/// A sandbox that is created and not started.
struct Created {
    state: State,
    _bundle: Bundle,
    id: String,
}

impl Created {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(edit: impl FnOnce(&mut Value)) -> Self {
        let (state, id) = (State::new(), unique("urpc"));
        let bundle = Bundle::with(&["/bin/sleep", "1000"], edit);
        state.detached(&["create", "--bundle", bundle.text(), &id]);
        Self { state, _bundle: bundle, id }
    }

    fn both(&self) -> [Caller; 2] {
        Caller::both(&self.state.control_socket(&self.id))
    }

    fn json(&self) -> Caller {
        Caller::json(&self.state.control_socket(&self.id))
    }
}

#[test]
fn what_a_checkpoint_is_given_is_checked() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let (file, image) = (memory(), Image::new());
    let one = [file.as_fd()];
    for mut caller in sandbox.both() {
        for (arg, fds, error) in [
            (json!({}), &[][..], "got 0 files, wanted 1"),
            (json!(null), &[][..], "got 0 files, wanted 1"),
            (json!({"have_pages_file": true}), &one[..], "got 1 files, wanted 3"),
            (json!({"key": null, "metadata": null}), &image.fds()[..], "got 3 files, wanted 1"),
            (json!({"metadata": {"compression": "rar"}}), &one[..], "compression \"rar\" is not known"),
            (json!({"use_checkpoint_gofer": true}), &one[..], "use_checkpoint_gofer: "),
            (json!({"ExecOpts": {"Argv": "/bin/true"}}), &one[..], "ExecOpts: "),
            (json!({"cuda_checkpoint_path": "/cuda"}), &one[..], "cuda_checkpoint_path"),
        ] {
            for method in [CHECKPOINT, "State.Save"] {
                let told = caller.fails(method, &arg, fds);
                assert!(told.starts_with(error), "{method} {arg}: {told}");
            }
        }
        let told =
            caller.fails(OWN_CHECKPOINT, &json!({"parent": true, "save": {"have_pages_file": true}}), &one);
        assert_eq!(told, "got 1 files, wanted 6");
        assert_eq!(caller.ok(PROGRESS, &json!(null), &[])["work"], "");
        assert_eq!(caller.ok(SAVINGS, &json!(null), &[]), json!({"CPUTimeSaved": 0, "WallTimeSaved": 0}));
        assert_eq!(caller.ok(STATE, &json!(sandbox.id), &[]), json!(2));
    }
}

#[test]
fn only_a_running_sandbox_is_saved_and_only_a_created_one_restored() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let created = Created::new();
    let file = memory();
    for mut caller in created.both() {
        let told = caller.fails(CHECKPOINT, &json!({}), &[file.as_fd()]);
        assert!(told.starts_with("cannot checkpoint a container in state=created"), "{told}");
        assert_eq!(caller.fails(RESTORE, &json!({}), &[]), "at least one file must be passed to Restore");
        assert_eq!(caller.fails(RESTORE, &json!({}), &[file.as_fd()]), "statefile cannot be empty");
        let told = caller.fails(RESTORE, &json!({}), &[file.as_fd(), file.as_fd()]);
        assert_eq!(told, "more files passed to Restore than expected");
        let told = caller.fails(RESTORE, &json!({"HavePagesFile": true}), &[file.as_fd()]);
        assert!(told.starts_with("got 1 files, wanted 3"), "{told}");
        let told = caller.fails(WAIT_RESTORE, &json!(null), &[]);
        assert_eq!(told, "sandbox is not being restored, cannot wait for restore: state=created");
    }
    // None of that has done any harm.
    created.state.ok(["start", &created.id]);
    for mut caller in sandbox.both() {
        let told = caller.fails(RESTORE, &json!({}), &[file.as_fd()]);
        assert!(
            told.starts_with("cannot restore a started container") && told.ends_with("state=started"),
            "{told}"
        );
        let told = caller.fails(WAIT_RESTORE, &json!(null), &[]);
        assert_eq!(told, "sandbox is not being restored, cannot wait for restore: state=started");
        let told = caller.fails(RESTORE_SUB, &start_args("x", &["/bin/sleep"]), &[]);
        assert_eq!(told, "sandbox is not being restored, cannot restore subcontainer: state=started");
        let told = caller.fails("Airlock.RestoreContainer", &json!({"cid": sandbox.id}), &[]);
        assert_eq!(told, "sandbox is not being restored, cannot restore subcontainer: state=started");
    }
    sandbox.json().ok(STATE, &json!(sandbox.id), &[]);
}

#[test]
fn a_sandbox_that_cannot_be_restored_stays_to_tell_of_it() {
    need!("busybox");
    for i in 0..2 {
        let created = Created::new();
        let mut waiting = Urpc::connect(&created.state.control_socket(&created.id));
        let mut caller = created.both().into_iter().nth(i).unwrap();
        let mut file = memory();
        file.write_all(b"gVisorSF and more that no airlock has written").unwrap();
        let told = caller.fails(RESTORE, &json!({}), &[file.as_fd()]);
        assert!(told.contains("gVisor"), "{told}");
        assert_eq!(caller.fails(WAIT_RESTORE, &json!(null), &[]), told);
        assert_eq!(caller.ok(STATE, &json!(created.id), &[]), json!(3));
        assert_eq!(caller.ok(WAIT, &json!(created.id), &[]), json!(1));
        waiting.send(WAIT, &json!(created.id), &[]);
        assert_eq!(waiting.receive().unwrap().result, json!(1));
        let again = caller.fails(RESTORE, &json!({}), &[file.as_fd()]);
        assert_eq!(again, "cannot restore a container in state=restoreFailed");
        assert!(created.state.fails(["start", &created.id]).contains("stopped"));
        assert_eq!(created.state.status(&created.id), "stopped");
        created.state.ok(["delete", &created.id]);
    }
}

#[test]
fn differences_of_configurations_are_all_told() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let image = Image::of(&mut sandbox.json());
    let created = Created::with(|c| {
        c["process"]["args"] = json!(["/bin/sleep", "77"]);
        c["hostname"] = json!("other");
        c["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"destination": "/extra", "type": "tmpfs", "source": "tmpfs"}));
    });
    let told = created.json().fails(RESTORE, &json!({"HavePagesFile": true}), &image.fds());
    for part in ["process.args was", "77", "mounts: /extra is new"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(!told.contains("hostname"), "{told}");
}

#[test]
fn who_waits_for_a_checkpoint_hears_of_the_next_one() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let wait = |n: usize| -> Vec<Urpc> {
        let waiters = (0..n).map(|_| {
            let mut urpc = Urpc::connect(&sandbox.socket());
            urpc.send(WAIT_CHECKPOINT, &json!(null), &[]);
            urpc
        });
        let waiters = waiters.collect();
        wait::until("they wait", || (leaks::threads_polling(sandbox.loader()) > n).then_some(()));
        waiters
    };
    // Nobody waits for a dry run, or for what was refused before it began.
    let mut waiters = wait(3);
    let report = sandbox.json().ok(OWN_CHECKPOINT, &json!({"dry_run": true}), &[]);
    assert_eq!(report["refusals"], json!([]));
    sandbox.json().fails(CHECKPOINT, &json!({}), &[]);
    drop(waiters.pop());
    Image::of(&mut sandbox.json());
    for mut waiter in waiters {
        assert!(waiter.receive().unwrap().success);
    }
    // What is no file to write to makes a checkpoint fail, and all who wait hear why.
    let waiters = wait(2);
    let (socket, _other) = UnixStream::pair().unwrap();
    let told = sandbox.json().fails(CHECKPOINT, &json!({}), &[socket.as_fd()]);
    for mut waiter in waiters {
        assert_eq!(waiter.receive().unwrap().err, told);
    }
    assert_eq!(sandbox.json().ok(STATE, &json!(sandbox.id), &[]), json!(2));
}

#[test]
fn a_sandbox_that_was_saved_ends_well_and_all_hear_of_it() {
    need!("busybox");
    for i in 0..2 {
        let sandbox = Sandbox::sleeping();
        let mut caller = sandbox.both().into_iter().nth(i).unwrap();
        let session = sandbox.spawn(&mut caller, &["/bin/sleep", "1000"]);
        let mut waiting = [Urpc::connect(&sandbox.socket()), Urpc::connect(&sandbox.socket())];
        waiting[0].send(WAIT, &json!(sandbox.id), &[]);
        waiting[1].send("containerManager.WaitPID", &json!({"PID": session, "CID": sandbox.id}), &[]);
        wait::until("they wait", || (leaks::threads_polling(sandbox.loader()) >= 3).then_some(()));
        let image = Image::new();
        assert_eq!(caller.ok(CHECKPOINT, &json!({"have_pages_file": true}), &image.fds()), json!({}));
        assert!(image.0[0].metadata().unwrap().len() > 0);
        assert_eq!(waiting[0].receive().unwrap().result, json!(0), "it lives on in the image");
        // The session does not.
        assert!(waiting[1].receive().is_none_or(|reply| !reply.success || reply.result == json!(9)));
        sandbox.until_stopped();
        let state = sandbox.state.state(&sandbox.id);
        assert_eq!(state["reason"], "checkpointed");
        let waited: Value = serde_json::from_str(&sandbox.state.ok(["wait", &sandbox.id])).unwrap();
        assert_eq!(waited, json!({"id": sandbox.id, "exitStatus": 0}));
    }
}

#[test]
fn a_caller_that_is_gone_when_the_image_is_complete_costs_no_program() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let arg = json!({"commit": true, "save": {"have_pages_file": true}});
    // It hangs up instead of saying that the files have their names.
    for early in [true, false] {
        let image = Image::new();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut fds = image.fds();
        fds.push(theirs.as_fd());
        let mut waiter = Urpc::connect(&sandbox.socket());
        waiter.send(WAIT_CHECKPOINT, &json!(null), &[]);
        let mut caller = Urpc::connect(&sandbox.socket());
        if early {
            drop(ours);
            let reply = caller.call(OWN_CHECKPOINT, &arg, &fds);
            assert!(reply.err.contains("the containers go on"), "{}", reply.err);
        } else {
            caller.send(OWN_CHECKPOINT, &arg, &fds);
            std::io::Read::read_exact(&mut &ours, &mut [0]).unwrap();
            drop(caller);
        }
        assert!(!waiter.receive().unwrap().success);
        assert_eq!(sandbox.json().ok(STATE, &json!(sandbox.id), &[]), json!(2));
        assert_eq!(sandbox.shell("echo alive"), "alive\n");
    }
    let image = Image::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut fds = image.fds();
    fds.push(theirs.as_fd());
    let mut caller = Urpc::connect(&sandbox.socket());
    caller.send(OWN_CHECKPOINT, &arg, &fds);
    drop(fds);
    drop(theirs);
    std::io::Read::read_exact(&mut ours, &mut [0]).unwrap();
    assert_eq!(sandbox.state.status(&sandbox.id), "running", "it waits for the word");
    ours.write_all(b"c").unwrap();
    let report = caller.receive().unwrap();
    assert!(report.success && report.result["processes"] == json!(1), "{}", report.err);
    sandbox.until_stopped();
}

#[test]
fn a_paused_sandbox_stays_paused() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    sandbox.state.ok(["pause", &sandbox.id]);
    for _ in 0..3 {
        Image::of(&mut sandbox.json());
        assert_eq!(sandbox.state.status(&sandbox.id), "paused");
    }
    sandbox.state.ok(["resume", &sandbox.id]);
    assert_eq!(sandbox.shell("echo alive"), "alive\n");
}

#[test]
fn a_restore_is_waited_for_and_counted() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let image = Image::of(&mut sandbox.json());
    for i in 0..2 {
        let created = Created::new();
        let mut caller = created.both().into_iter().nth(i).unwrap();
        assert_eq!(caller.ok(RESTORE, &json!({"HavePagesFile": true}), &image.fds()), json!({}));
        assert_eq!(caller.ok(WAIT_RESTORE, &json!(null), &[]), json!({}));
        assert_eq!(caller.ok(STATE, &json!(created.id), &[]), json!(2));
        assert!(caller.ok(SAVINGS, &json!(null), &[])["WallTimeSaved"].as_u64().unwrap() > 0);
        let told = caller.fails(RESTORE, &json!({"HavePagesFile": true}), &image.fds());
        assert!(told.ends_with("cannot restore a container in state=restored"), "{told}");
        // It can be saved, and end, as any other.
        let second = Image::of(&mut caller);
        assert!(second.0[0].metadata().unwrap().len() > 0);
        created.state.ok(["kill", &created.id, "KILL"]);
        let waited: Value = serde_json::from_str(&created.state.ok(["wait", &created.id])).unwrap();
        assert_eq!(waited, json!({"id": created.id, "exitStatus": 137}));
    }
}

#[test]
fn the_containers_of_a_pod_are_restored_when_all_have_come() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let mut caller = sandbox.json();
    for _ in 0..3 {
        sandbox.sub(&mut caller, &["/bin/sleep", "2000"]);
    }
    let image = Image::of(&mut caller);
    let arg = json!({"restore": {"HavePagesFile": true}});

    let created = Created::new();
    let mut caller = created.json();
    let report = caller.ok(OWN_RESTORE, &arg, &image.fds());
    assert_eq!(report["missing"], json!(3));
    assert_eq!(caller.ok(STATE, &json!(created.id), &[]), json!(1));
    assert!(created.state.fails(["start", &created.id]).contains("restoringUnstarted"));
    let again = caller.fails(OWN_RESTORE, &arg, &image.fds());
    assert!(again.starts_with("restore is already in progress"), "{again}");
    let mut waiting = Urpc::connect(&created.state.control_socket(&created.id));
    waiting.send(WAIT_RESTORE, &json!(null), &[]);
    let rootfs =
        || mount::open_tree(nix::fcntl::AT_FDCWD, &sandbox.bundle.rootfs(), mount::OPEN_TREE_CLONE).unwrap();
    let null = null();
    // One that airlock's own command line has created, one as gVisor's restores it, and one that is just started.
    let own = unique("sub");
    let (spec, fds) = (own::own_spec(&["/bin/sleep", "2000"]), json!({"stdio": [0, 1, 2], "gofer": [3]}));
    let prepare = json!({"cid": own, "spec": spec, "bundle": "/b", "fds": fds});
    let root = rootfs();
    let parts = [null.as_fd(), null.as_fd(), null.as_fd(), root.as_fd()];
    caller.ok("Airlock.PrepareSubcontainer", &prepare, &parts);
    let report = caller.ok("Airlock.RestoreContainer", &json!({"cid": own}), &[]);
    assert_eq!(report["missing"], json!(2));
    let mut come = |last: bool| {
        let cid = unique("sub");
        caller.ok("containerManager.CreateSubcontainer", &json!({"CID": cid}), &[]);
        let rootfs = rootfs();
        let fds = [null.as_fd(), null.as_fd(), null.as_fd(), rootfs.as_fd()];
        let arg = start_args(&cid, &["/bin/sleep", "2000"]);
        let few = caller.fails(RESTORE_SUB, &arg, &fds[..3]);
        assert_eq!(few, "restore arguments must contain at least 4 FDs, but only got 3");
        let answer = if last {
            caller.ok("containerManager.StartSubcontainer", &arg, &fds)
        } else {
            caller.ok(RESTORE_SUB, &arg, &fds)
        };
        assert_eq!(answer, json!({}));
        assert_eq!(caller.ok(STATE, &json!(cid), &[]), json!(if last { 2 } else { 1 }));
    };
    come(false);
    come(true);
    assert!(waiting.receive().unwrap().success);
    assert_eq!(caller.ok(STATE, &json!(created.id), &[]), json!(2));
    assert_eq!(caller.ok("containerManager.Processes", &json!(""), &[]).as_array().unwrap().len(), 4);
}

#[test]
fn one_container_too_many_or_unlike_its_image_fails_the_whole_restore() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let mut caller = sandbox.json();
    sandbox.sub(&mut caller, &["/bin/sleep", "2000"]);
    let image = Image::of(&mut caller);
    let created = Created::new();
    let mut caller = created.json();
    caller.ok(RESTORE, &json!({"HavePagesFile": true}), &image.fds());
    let cid = unique("sub");
    caller.ok("containerManager.CreateSubcontainer", &json!({"CID": cid}), &[]);
    let rootfs =
        mount::open_tree(nix::fcntl::AT_FDCWD, &sandbox.bundle.rootfs(), mount::OPEN_TREE_CLONE).unwrap();
    let null = null();
    let fds = [null.as_fd(), null.as_fd(), null.as_fd(), rootfs.as_fd()];
    let told = caller.fails(RESTORE_SUB, &start_args(&cid, &["/bin/sleep", "3000"]), &fds);
    assert!(told.contains("process.args was"), "{told}");
    for container in [&created.id, &cid] {
        assert_eq!(caller.ok(STATE, &json!(container), &[]), json!(3));
        assert_eq!(caller.ok(WAIT, &json!(container), &[]), json!(1));
    }
    assert_eq!(caller.fails(WAIT_RESTORE, &json!(null), &[]), told);
}
