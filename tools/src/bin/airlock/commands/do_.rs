//! `do`: a command in a sandbox over the host's files.

#![forbid(unsafe_code)]

use super::create::this_program;
use super::run::status;
use crate::cli::{DoArgs, DoNetwork};
use crate::global::Global;
use airlock::console::SignalBlock;
use airlock::container::{self, CreateOptions, HostCommand, Stdio};
use airlock::process::ProcessId;
use airlock::state::StateDir;
use airlock_wire::error::{Error, Result};
use nix::unistd::isatty;
use std::path::PathBuf;
use std::process::ExitCode;

/// Log level of a sandbox whose debug log is asked for.
const DEBUG: u8 = 4;

/// Runs the command; its exit status becomes ours.
pub fn run(global: &Global, args: DoArgs) -> Result<ExitCode> {
    let env = if args.env.is_empty() {
        // What is no text cannot be told in a configuration.
        std::env::vars_os().filter_map(|(k, v)| Some(format!("{}={}", k.to_str()?, v.to_str()?))).collect()
    } else {
        args.env.iter().map(|e| e.0.clone()).collect()
    };
    let (uid, gid) = args.user.map_or((0, 0), |(uid, gid)| (uid, gid.unwrap_or(0)));
    let command = HostCommand {
        args: args.command,
        root: args.root_dir,
        cwd: args.cwd,
        env,
        host_network: args.network == DoNetwork::Host,
        volumes: args.volume.iter().map(|v| volume(v)).collect::<Result<_>>()?,
        user: (uid, gid),
        terminal: isatty(std::io::stdin()).unwrap_or(false) && isatty(std::io::stdout()).unwrap_or(false),
    };
    let dir = StateDir::open(&global.root)?;
    let own = ProcessId::current()?;
    let id = format!("do-{}-{}", own.pid, own.start);
    let (bundle, mounts) = command.prepare()?;
    let log = global.open_debug_log(&id)?;
    let options = CreateOptions {
        stdio: Some(Stdio::inherit()?),
        autostart: true,
        attached: true,
        mounts: Some(mounts),
        log_level: if log.is_some() { DEBUG } else { 0 },
        log: log.map(Into::into),
        profile: global.args.profile,
        panic_log: global.open_panic_log(&id)?.map(Into::into),
        systemd_cgroup: global.args.systemd_cgroup,
        sandbox: this_program(),
        ..CreateOptions::default()
    };
    let block = SignalBlock::forwardable()?;
    let created = container::create(&dir, &id, &bundle, options)?;
    let outcome = container::run_foreground(&dir, created, block, false)?;
    Ok(status(outcome.wait_status))
}

/// Reads `HOST:GUEST[:ro]`.
fn volume(text: &str) -> Result<(PathBuf, PathBuf, bool)> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [host, guest] if !host.is_empty() && !guest.is_empty() => {
            Ok(((*host).into(), (*guest).into(), false))
        }
        [host, guest, mode @ ("ro" | "rw")] if !host.is_empty() && !guest.is_empty() => {
            Ok(((*host).into(), (*guest).into(), *mode == "ro"))
        }
        _ => Err(Error::invalid_argument(format!("--volume {text}: write HOST:GUEST or HOST:GUEST:ro"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read() {
        assert_eq!(volume("/a:/b").unwrap(), ("/a".into(), "/b".into(), false));
        assert_eq!(volume("a:/b:ro").unwrap(), ("a".into(), "/b".into(), true));
        for bad in ["", "/a", ":/b", "/a:", "/a:/b:x", "/a:/b:ro:z"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }
}
