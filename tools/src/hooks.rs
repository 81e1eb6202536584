//! Runs the OCI hooks that belong in the runtime's namespaces: prestart, createRuntime, poststart, poststop.
//!
//! (`createContainer` and `startContainer` run in the container's namespaces; the sandbox does that.)
//! Source: OCI runtime spec, config.md "POSIX-platform Hooks" and runtime.md "State".

#![forbid(unsafe_code)]

use crate::state::{State, Status};
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::Hook;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The state that a hook reads from its standard input (OCI runtime.md, "State").
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState<'a> {
    /// The configuration's `ociVersion`.
    pub oci_version: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: Status,
    /// The OCI pid; left out when the container has none.
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: i32,
    /// The bundle directory.
    pub bundle: &'a Path,
    /// The configuration's annotations.
    pub annotations: &'a BTreeMap<String, String>,
}

fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

impl<'a> HookState<'a> {
    /// What hooks of this container read when its status is `status` and its pid is `pid`.
    pub fn new(state: &'a State, status: Status, pid: i32) -> Self {
        Self {
            oci_version: &state.oci_version,
            id: &state.id,
            status,
            pid,
            bundle: &state.bundle,
            annotations: &state.annotations,
        }
    }
}

/// Runs `hooks` one after the other and stops at the first that fails. `kind` is the list's name in the spec, for errors.
/// Blocks until the last has ended; a hook that exceeds its timeout is killed and has failed.
pub fn run(kind: &str, hooks: &[Hook], state: &HookState<'_>) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let json =
        serde_json::to_vec(state).map_err(|e| Error::failure(format!("encode state for hooks: {e}")))?;
    for (number, hook) in hooks.iter().enumerate() {
        airlock_loader::hook::run(hook, &json, Some(state.bundle))
            .map_err(|e| e.context(format!("{kind} hook #{number} ({})", hook.path().display())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    /// A hook that runs `script` in sh.
    fn hook(script: &str, env: &[&str], timeout: Option<i64>) -> Hook {
        let json = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": env, "timeout": timeout});
        serde_json::from_value(json).unwrap()
    }

    fn with_state<T>(bundle: &Path, annotation: &str, f: impl FnOnce(&HookState<'_>) -> T) -> T {
        let annotations = BTreeMap::from([("note".to_owned(), annotation.to_owned())]);
        f(&HookState {
            oci_version: "1.0.2",
            id: "c1",
            status: Status::Creating,
            pid: 42,
            bundle,
            annotations: &annotations,
        })
    }

    #[test]
    fn a_hook_gets_its_state_and_environment() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = [hook("cat >state; env >env; pwd >pwd", &["A=1", "B=x=y", "PATH=/bin:/usr/bin"], None)];
        with_state(dir.path(), "n", |s| run("prestart", &hooks, s)).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let state: serde_json::Value = serde_json::from_str(&read("state")).unwrap();
        assert_eq!(
            state,
            serde_json::json!({"ociVersion": "1.0.2", "id": "c1", "status": "creating", "pid": 42,
                "bundle": dir.path(), "annotations": {"note": "n"}})
        );
        let env = read("env");
        assert!(env.contains("A=1\n") && env.contains("B=x=y\n") && !env.contains("HOME="), "{env}");
        assert_eq!(Path::new(read("pwd").trim()), dir.path());
    }

    #[test]
    fn the_first_failure_stops_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = [
            hook("true", &[], None),
            hook("echo 'no  such\nthing' >&2; exit 3", &[], None),
            hook(": >third", &[], None),
        ];
        let error = with_state(dir.path(), "", |s| run("poststart", &hooks, s)).unwrap_err();
        assert_eq!(error.message, "poststart hook #1 (/bin/sh): exit status 3; it said: no such thing");
        assert!(!dir.path().join("third").exists());
        let killed = [hook("kill -9 $$", &[], None)];
        let error = with_state(dir.path(), "", |s| run("prestart", &killed, s)).unwrap_err();
        assert!(error.message.contains("killed by signal 9"), "{error}");
    }

    #[test]
    fn a_hook_is_killed_at_its_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        let hooks = [hook("echo $$ >pid; exec sleep 1000", &["PATH=/bin:/usr/bin"], Some(1))];
        let error = with_state(dir.path(), "", |s| run("createRuntime", &hooks, s)).unwrap_err();
        assert!(error.message.contains("timeout of 1 s"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(20));
        let pid: i32 = std::fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
        assert!(crate::process::ProcessId::of(pid).is_err());
        for wrong in [0, -1] {
            let error =
                with_state(dir.path(), "", |s| run("x", &[hook("true", &[], Some(wrong))], s)).unwrap_err();
            assert!(error.message.contains("timeout must be"), "{error}");
        }
    }

    #[test]
    fn pipes_do_not_block() {
        let dir = tempfile::tempdir().unwrap();
        // Neither a state that nobody reads, nor a great deal of output, nor a descendant that keeps the pipe open.
        let large = "x".repeat(1 << 20);
        let hooks = [
            hook("exit 0", &[], None),
            hook("head -c 1000000 /dev/zero; sleep 35 & exit 0", &["PATH=/bin:/usr/bin"], Some(60)),
        ];
        let begin = Instant::now();
        with_state(dir.path(), &large, |s| run("prestart", &hooks, s)).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn bad_hooks_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let hook = |path: &str| serde_json::from_value(serde_json::json!({"path": path})).unwrap();
        let error = with_state(dir.path(), "", |s| run("prestart", &[hook("true")], s)).unwrap_err();
        assert!(error.message.contains("absolute"), "{error}");
        let missing = dir.path().join("missing");
        let error = with_state(dir.path(), "", |s| run("prestart", &[hook(missing.to_str().unwrap())], s))
            .unwrap_err();
        assert!(error.message.contains("missing") && error.message.contains("No such file"), "{error}");
        std::fs::write(&missing, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&missing, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = with_state(dir.path(), "", |s| run("prestart", &[hook(missing.to_str().unwrap())], s))
            .unwrap_err();
        assert!(error.message.contains("Permission denied"), "{error}");
    }
}
