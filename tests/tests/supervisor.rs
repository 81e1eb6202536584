//! The supervisor (`docs/SUPERVISOR.md`) on the real binary: every method, field and error, in both dialects.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "supervisor/configure.rs"]
mod configure;
#[path = "supervisor/events.rs"]
mod events;
#[path = "supervisor/life.rs"]
mod life;
#[path = "supervisor/logs.rs"]
mod logs;
#[path = "supervisor/processes.rs"]
mod processes;
#[path = "supervisor/restore.rs"]
mod restore;

use airlock_loader::sys::mount;
use airlock_tests::urpc::Caller;
use airlock_tests::{Bundle, State, read_all, unique, wait};
use airlock_wire::api::supervisor::Deadline;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, PipeReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

/// A sandbox whose root container sleeps: the parent of domains.
struct Host {
    state: State,
    bundle: Bundle,
    id: String,
}

impl Host {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(edit: impl FnOnce(&mut Value)) -> Self {
        Self::of(Bundle::with(&["/bin/sleep", "1000000"], edit))
    }

    fn of(bundle: Bundle) -> Self {
        let (state, id) = (State::new(), unique("sup"));
        state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
        Self { state, bundle, id }
    }

    fn socket(&self) -> PathBuf {
        self.state.control_socket(&self.id)
    }

    fn json(&self) -> Caller {
        Caller::json(&self.socket())
    }

    fn both(&self) -> [Caller; 2] {
        Caller::both(&self.socket())
    }

    fn loader(&self) -> i32 {
        self.state.state(&self.id)["pid"].as_i64().unwrap() as i32
    }

    /// The root filesystem as a detached mount, new for each.
    fn rootfs(&self) -> OwnedFd {
        tree(&self.bundle.rootfs())
    }

    /// Configures a new domain with the host's root filesystem for a root, and with `more`; its name.
    fn configured(&self, caller: &mut Caller, more: Value) -> String {
        let domain = unique("dom");
        let rootfs = self.rootfs();
        caller.ok("Supervisor.Configure", &root(&domain, more), &[rootfs.as_fd()]);
        domain
    }

    fn started(&self, caller: &mut Caller) -> String {
        let domain = self.configured(caller, json!({}));
        caller.ok("Supervisor.Start", &json!({"domain": domain}), &[]);
        domain
    }

    /// The text of a control file of a domain's cgroup.
    fn cgroup_file(&self, controller: &str, domain: &str, file: &str) -> Option<String> {
        let leaf = format!("airlock-{domain}");
        let found = airlock_tests::leaks::cgroups(&leaf);
        let dir = found.iter().find(|path| path.starts_with(&format!("/sys/fs/cgroup/{controller}/")))?;
        Some(std::fs::read_to_string(format!("{dir}/{file}")).unwrap().trim().to_owned())
    }
}

fn tree(path: &std::path::Path) -> OwnedFd {
    mount::open_tree(nix::fcntl::AT_FDCWD, path, mount::OPEN_TREE_CLONE).unwrap()
}

/// A request to configure `domain`, whose root comes as the first descriptor, with the members of `more`.
fn root(domain: &str, mut more: Value) -> Value {
    let mut mounts = vec![json!({"type": "bind", "source": "rootfs", "destination": "/"})];
    mounts.extend(more["mounts"].take().as_array().into_iter().flatten().cloned());
    more["domain"] = json!(domain);
    more["mounts"] = json!(mounts);
    more
}

/// A request to execute `args` as `name`.
fn exec(domain: &str, name: &str, args: &[&str]) -> Value {
    json!({
        "name": name, "domain": domain, "path": args[0], "args": args[1..], "env": {"PATH": "/bin"},
        "log_config": {"managed": {"topic": "", "formats": null}},
    })
}

fn soon() -> String {
    Deadline::after(Duration::from_secs(60)).to_string()
}

fn past() -> &'static str {
    "2001-02-03T04:05:06.5+01:00"
}

/// An error's kind (empty in the binary dialect's text) and message.
fn told(text: &str) -> (String, String) {
    match serde_json::from_str::<Value>(text) {
        Ok(e) => (e["error_kind"].as_str().unwrap().to_owned(), e["message"].as_str().unwrap().to_owned()),
        Err(_) => (String::new(), text.to_owned()),
    }
}

/// Checks an error's kind where the dialect shows it, and that its message has `part` in it.
#[track_caller]
fn refused(text: &str, kind: &str, part: &str) {
    let (actual, message) = told(text);
    assert!(actual.is_empty() || actual == kind, "{text}: want {kind}");
    assert!(message.contains(part), "{message:?} has no {part:?}");
}

/// Runs a shell script in a domain; what it wrote to both streams, once all that have them are gone.
fn shell(caller: &mut Caller, domain: &str, script: &str) -> String {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut request = exec(domain, &unique("sh"), &["/bin/sh", "-c", script]);
    request["stdout"] = json!(true);
    request["stderr"] = json!(true);
    caller.ok("Supervisor.Exec", &request, &[writer.as_fd(), writer.as_fd()]);
    drop(writer);
    read_all(std::fs::File::from(OwnedFd::from(reader)))
}

/// Starts a program whose output nobody wants.
fn spawn(caller: &mut Caller, domain: &str, args: &[&str]) -> String {
    let name = unique("p");
    caller.ok("Supervisor.Exec", &exec(domain, &name, args), &[]);
    name
}

/// A domain as `Supervisor.Domains` describes it.
fn info(caller: &mut Caller, domain: &str) -> Value {
    let all = caller.ok("Supervisor.Domains", &Value::Null, &[]);
    let found = all.as_array().unwrap().iter().find(|d| d["domain"] == domain);
    found.unwrap_or_else(|| panic!("{domain} is not in {all}")).clone()
}

/// Reads events of a domain from now on.
fn listen(caller: &mut Caller, domain: &str) -> BufReader<PipeReader> {
    let (_, fds) = caller.call_for_fds("Supervisor.Events", &json!({"domain": domain}), &[]).unwrap();
    let [fd] = fds.try_into().unwrap();
    BufReader::new(PipeReader::from(fd))
}

fn next(events: &mut impl BufRead) -> Value {
    let mut line = String::new();
    events.read_line(&mut line).unwrap();
    assert!(line.ends_with('\n'), "no event came: {line:?}");
    let event: Value = serde_json::from_str(&line).unwrap();
    assert!(event["timestamp_millis"].as_u64().unwrap() > 1_700_000_000_000);
    event["event"].clone()
}

fn fds<const N: usize>(all: &[OwnedFd; N]) -> [BorrowedFd<'_>; N] {
    std::array::from_fn(|i| all[i].as_fd())
}
