//! The sandbox itself is killed: all its containers die, clients get a last word, `state` says stopped.
use super::*;
use airlock_tests::need;
use airlock_tests::urpc::{Caller, Urpc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Stdio;

struct Pod {
    state: State,
    pod: String,
    sub: String,
    _bundles: [Bundle; 2],
}

/// A sandbox with two containers and an executed process, all of which sleep.
fn pod() -> Pod {
    let (state, pod, sub) = (State::new(), unique("doomed"), unique("doomed"));
    let root = Bundle::new(&["/bin/sleep", "1000"]);
    state.detached(&["run", "--detach", "--bundle", root.text(), &pod]);
    let second = Bundle::with(&["/bin/sleep", "1001"], |c| {
        c["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": pod
        });
    });
    state.detached(&["run", "--detach", "--bundle", second.text(), &sub]);
    state.detached(&["exec", "--detach", &sub, "/bin/sleep", "1002"]);
    Pod { state, pod, sub, _bundles: [root, second] }
}

impl Pod {
    fn pids(&self) -> Vec<i32> {
        [&self.pod, &self.sub]
            .iter()
            .flat_map(|id| {
                serde_json::from_str::<Vec<i32>>(&self.state.ok(["ps", "--format", "json", id])).unwrap()
            })
            .collect()
    }

    fn loader(&self) -> i32 {
        self.state.state(&self.pod)["pid"].as_i64().unwrap() as i32
    }

    /// The spawner is the parent of the root container's init.
    fn spawner(&self) -> i32 {
        let init = self.pids()[0];
        let stat = std::fs::read_to_string(format!("/proc/{init}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn all_dies_after_killing(&self, victim: i32) {
        let pids = self.pids();
        assert!(pids.len() >= 3, "{pids:?}");
        // Blocked clients: a wait in each dialect, and commands.
        let loader = self.loader();
        let socket = self.state.control_socket(&self.pod);
        let mut json = Urpc::connect(&socket);
        json.send("containerManager.Wait", &json!(self.sub), &[]);
        let id = self.pod.clone();
        let other = socket.clone();
        let binary =
            std::thread::spawn(move || Caller::binary(&other).call("containerManager.Wait", &json!(id), &[]));
        let command = |args: &[&str]| {
            self.state.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let waiting = command(&["wait", &self.pod]);
        let exec = command(&["exec", &self.sub, "/bin/sleep", "1003"]);
        // The main thread, three waits, the supervision of two proxies and of the exec.
        wait::until("all wait", || (leaks::threads_polling(loader) == 7).then_some(()));

        kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();

        // An answer or a clean hang-up, but in any case an end.
        if let Some(reply) = json.receive() {
            assert!(!reply.success || reply.result == json!(9), "{reply:?}");
        }
        if let Ok(status) = binary.join().unwrap() {
            assert_eq!(status, json!(9));
        }
        let out = waiting.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&out.stdout).trim(),
            format!(r#"{{"id":"{}","exitStatus":137}}"#, self.pod)
        );
        let out = exec.wait_with_output().unwrap();
        assert!(!out.status.success(), "{out:?}");
        for id in [&self.pod, &self.sub] {
            wait::until("it is stopped", || (self.state.status(id) == "stopped").then_some(()));
        }
        for pid in pids {
            wait::until("the containers' processes are gone", || {
                let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                (state.is_empty() || state.contains(") Z")).then_some(())
            });
        }
        for args in
            [vec!["exec", &self.pod, "/bin/true"], vec!["kill", &self.sub, "9"], vec!["pause", &self.pod]]
        {
            let text = one_line(&attempt(&self.state, &args));
            assert!(text.contains("not running") || text.contains("stopped"), "{text}");
        }
        self.state.ok(["delete", &self.sub]);
        self.state.ok(["delete", &self.pod]);
        leaks::nothing_left(&self.state, &self.sub);
        leaks::nothing_left(&self.state, &self.pod);
    }
}

#[test]
fn a_killed_loader_takes_everything_along() {
    need!("busybox");
    let pod = pod();
    pod.all_dies_after_killing(pod.loader());
}

#[test]
fn a_killed_spawner_takes_everything_along() {
    need!("busybox");
    let pod = pod();
    pod.all_dies_after_killing(pod.spawner());
}

#[test]
fn a_root_that_ends_takes_everything_along() {
    need!("busybox");
    let pod = pod();
    let init = pod.pids()[0];
    pod.all_dies_after_killing(init);
}

#[test]
fn a_loader_killed_before_the_start_leaves_a_stopped_container() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["/bin/sleep", "1000"]), unique("doomed"));
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    let loader = state.state(&id)["pid"].as_i64().unwrap() as i32;
    kill(Pid::from_raw(loader), Signal::SIGKILL).unwrap();
    wait::until("it is stopped", || (state.status(&id) == "stopped").then_some(()));
    let text = one_line(&attempt(&state, ["start", &id]));
    assert!(text.contains("stopped") || text.contains("not created"), "{text}");
    state.ok(["delete", &id]);
    leaks::nothing_left(&state, &id);
}

#[test]
fn a_stopped_loader_does_not_hang_delete_force() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["/bin/sleep", "1000"]), unique("stuck"));
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let loader = state.state(&id)["pid"].as_i64().unwrap() as i32;
    kill(Pid::from_raw(loader), Signal::SIGSTOP).unwrap();
    state.ok(["delete", "--force", &id]);
    leaks::nothing_left(&state, &id);
}

#[test]
fn commands_that_meet_a_dying_sandbox_find_it_stopped() {
    need!("busybox");
    let state = State::new();
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let commands: [&[&str]; 12] = [
        &["state"],
        &["list"],
        &["ps"],
        &["wait"],
        &["kill", "ID", "9"],
        &["pause"],
        &["resume"],
        &["exec", "ID", "/bin/true"],
        &["update", "--pids-limit", "20"],
        &["events", "--stats"],
        &["start"],
        &["delete"],
    ];
    for (i, command) in commands.into_iter().cycle().take(48).enumerate() {
        let id = unique("dying");
        state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
        let loader = state.state(&id)["pid"].as_i64().unwrap() as i32;
        let init: Vec<i32> = serde_json::from_str(&state.ok(["ps", "--format", "json", &id])).unwrap();
        let mut args: Vec<&str> = command.iter().map(|arg| if *arg == "ID" { &id } else { *arg }).collect();
        if !command.contains(&"ID") && command != ["list"] {
            args.push(&id);
        }
        // Killed from outside it says nothing any more; its container's end it reports.
        let victim = if (i / commands.len()).is_multiple_of(2) { loader } else { init[0] };
        kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
        let out = attempt(&state, &args);
        let (text, said) = (String::from_utf8_lossy(&out.stderr), String::from_utf8_lossy(&out.stdout));
        let stopped = ["not running", "stopped", "paused", "already running"];
        // The command may have been faster than the end.
        let expected = out.status.success() || stopped.iter().any(|words| text.contains(words));
        assert!(expected, "{args:?} of {victim} ({i}): {}: {said}{text}", out.status);
        if matches!(command[0], "state" | "list" | "ps" | "wait") {
            assert!(out.status.success(), "{args:?}: {text}");
        }
        if command == ["wait"] {
            assert!(said.contains("137"), "{said}");
        }
        wait::until("it is stopped", || {
            (!state.root().join(&id).exists() || state.status(&id) == "stopped").then_some(())
        });
        state.ok(["delete", "--force", &id]);
    }
}
