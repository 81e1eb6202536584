//! Domains in an image of their sandbox.
use super::*;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Statefile, pages' metadata, pages.
fn image() -> [OwnedFd; 3] {
    std::array::from_fn(|_| memfd_create("image", MFdFlags::MFD_CLOEXEC).unwrap())
}

/// A domain with a program that has something in memory, one that sleeps, and one that has ended.
fn filled(host: &Host, caller: &mut Caller) -> String {
    let domain = host.started(caller);
    let script = "n=0; trap 'n=$((n+1)); echo asked $n > /tmp/asked; test $n = 2 && exit 7' TERM; echo ready > /tmp/ready; \
                  while true; do usleep 10000; done";
    caller.ok("Supervisor.Exec", &exec(&domain, "program", &["/bin/sh", "-c", script]), &[]);
    spawn_named(caller, &domain, "sleeper", &["/bin/sleep", "1000000"]);
    let mut events = listen(caller, &domain);
    spawn_named(caller, &domain, "ended", &["/bin/sh", "-c", "exit 3"]);
    assert_eq!(next(&mut events)["name"], "ended");
    file(host, "tmp/ready", "ready\n");
    caller.ok("Supervisor.Terminate", &json!({"domain": domain, "name": "program"}), &[]);
    file(host, "tmp/asked", "asked 1\n");
    domain
}

fn spawn_named(caller: &mut Caller, domain: &str, name: &str, args: &[&str]) {
    caller.ok("Supervisor.Exec", &exec(domain, name, args), &[]);
}

#[track_caller]
fn file(host: &Host, path: &str, text: &str) {
    let path = host.bundle.rootfs().join(path);
    wait::until(&format!("{} has {text:?}", path.display()), || {
        (std::fs::read_to_string(&path).ok()? == text).then_some(())
    });
}

/// A sandbox in which `domain` is what `image` of `host` says, by the supervisor's own calls.
fn restored(host: &Host, domain: &str, image: &[OwnedFd; 3], caller: &mut Option<Caller>) -> State {
    let (state, id) = (State::new(), unique("sup"));
    state.detached(&["create", "--bundle", host.bundle.text(), &id]);
    let mut new = Caller::json(&state.control_socket(&id));
    let report = new.ok("Airlock.Restore", &json!({"restore": {"HavePagesFile": true}}), &fds(image));
    assert_eq!(report["missing"], 1);
    let rootfs = host.rootfs();
    new.ok("Supervisor.Configure", &root(domain, json!({})), &[rootfs.as_fd()]);
    new.ok("Supervisor.Start", &json!({"domain": domain}), &[]);
    *caller = Some(new);
    state
}

#[test]
fn a_restored_sandbox_knows_its_domains_and_their_processes() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let mut caller = host.json();
    let domain = filled(&host, &mut caller);
    let before = info(&mut caller, &domain);
    let image = image();
    caller.ok("containerManager.Checkpoint", &json!({"have_pages_file": true, "Resume": true}), &fds(&image));
    // It goes on, all of it.
    assert_eq!(info(&mut caller, &domain), before);
    caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);

    let mut new = None;
    let _state = restored(&host, &domain, &image, &mut new);
    let mut caller = new.unwrap();
    assert_eq!(info(&mut caller, &domain), before);
    let mut events = listen(&mut caller, &domain);
    let again = caller.fails("Supervisor.Exec", &exec(&domain, "ended", &["/bin/true"]), &[]);
    refused(&again, "invalid_state", "has a process \"ended\" already");
    // It counts on from what it had in memory.
    caller.ok("Supervisor.Terminate", &json!({"domain": domain, "name": "program"}), &[]);
    let event = next(&mut events);
    assert_eq!((&event["name"], &event["exit_status"]), (&json!("program"), &json!(7)));
    file(&host, "tmp/asked", "asked 2\n");
    caller.ok("Supervisor.Freeze", &json!({"domain": domain}), &[]);
    caller.ok("Supervisor.Thaw", &json!({"domain": domain}), &[]);
    caller.ok("Supervisor.Kill", &json!({"domain": domain, "name": "sleeper", "deadline": soon()}), &[]);
    let event = next(&mut events);
    assert_eq!((&event["name"], &event["signo"]), (&json!("sleeper"), &json!(9)));
    assert_eq!(shell(&mut caller, &domain, "echo new"), "new\n");
    caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);
    assert_eq!(info(&mut caller, &domain)["state"], "stopped");
}

#[test]
fn a_frozen_domain_is_frozen_in_the_image_too() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let mut caller = host.json();
    let domain = filled(&host, &mut caller);
    caller.ok("Supervisor.Freeze", &json!({"domain": domain}), &[]);
    let image = image();
    caller.ok("containerManager.Checkpoint", &json!({"have_pages_file": true, "Resume": true}), &fds(&image));
    assert_eq!(info(&mut caller, &domain)["state"], "frozen");
    caller.ok("Supervisor.Thaw", &json!({"domain": domain}), &[]);
    caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);

    // Two instances of one image, one after the other and then both.
    let (mut one, mut two) = (None, None);
    let _one = restored(&host, &domain, &image, &mut one);
    let _two = restored(&host, &domain, &image, &mut two);
    for mut caller in [one.unwrap(), two.unwrap()] {
        assert_eq!(info(&mut caller, &domain)["state"], "frozen");
        caller.ok("Supervisor.Thaw", &json!({"domain": domain}), &[]);
        assert_eq!(info(&mut caller, &domain)["state"], "thawed");
        caller.ok("Supervisor.Kill", &json!({"domain": domain, "name": "program", "deadline": soon()}), &[]);
        caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);
    }
}

#[test]
fn what_leads_out_of_a_domain_is_named_when_it_is_saved() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let mut caller = host.json();
    let domain = host.started(&mut caller);
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut request = exec(&domain, "outside", &["/bin/sleep", "1000000"]);
    request["stdout"] = json!(true);
    caller.ok("Supervisor.Exec", &request, &[writer.as_fd()]);
    let image = image();
    let text = caller.fails(
        "containerManager.Checkpoint",
        &json!({"have_pages_file": true, "Resume": true}),
        &fds(&image),
    );
    assert!(text.contains("pipe to the outside"), "{text}");
    assert_eq!(info(&mut caller, &domain)["state"], "started");
    caller.ok("Supervisor.Kill", &json!({"domain": domain, "name": "outside", "deadline": soon()}), &[]);
    caller.ok("containerManager.Checkpoint", &json!({"have_pages_file": true, "Resume": true}), &fds(&image));
}
