//! `exec`: a further process in a running container.

#![forbid(unsafe_code)]

use super::create::this_program;
use super::run::status;
use crate::cli::ExecArgs;
use crate::global::Global;
use airlock::container::{self, ExecOptions, Executed, ProcessFlags, ProcessObject, Stdio, passed};
use airlock::state::StateDir;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Executes the process; its exit status becomes ours unless it is detached.
pub fn run(global: &Global, args: ExecArgs) -> Result<ExitCode> {
    if !args.cgroup.is_empty() {
        return Err(Error::unsupported(
            "--cgroup: a process always runs in its container's cgroup; leave the option away",
        ));
    }
    let dir = StateDir::open(&global.root)?;
    let process = match &args.process {
        Some(_) if !args.command.is_empty() => {
            return Err(Error::invalid_argument("give a command or a --process file, not both"));
        }
        Some(path) => ProcessObject::from_file(path, args.tty)?,
        None => {
            // Names the container if it is missing, rather than one of its files.
            dir.load(&args.id)?;
            ProcessObject::from_config(&dir.config(&args.id)?, &flags(&args)?)?
        }
    };
    let listen = passed::listen_fds();
    let options = ExecOptions {
        process: process.text,
        terminal: process.terminal,
        stdio: Some(Stdio::inherit()?),
        console_socket: args.console_socket,
        pidfd_socket: args.pidfd_socket,
        pass: passed::collect(listen, args.preserve_fds, &args.pass_fd)?,
        exec: passed::program(args.exec_fd)?,
        pid_file: args.pid_file,
        internal_pid_file: args.internal_pid_file,
        ignore_paused: args.ignore_paused,
        detach: args.detach,
        sandbox: this_program(),
        ..ExecOptions::default()
    };
    match container::exec(&dir, &args.id, options)? {
        Executed::Ended(wait_status) => Ok(status(wait_status)),
        Executed::Detached(_) => Ok(ExitCode::SUCCESS),
    }
}

fn flags(args: &ExecArgs) -> Result<ProcessFlags> {
    let cwd = args.cwd.as_ref().map(|cwd| {
        cwd.to_str()
            .filter(|cwd| cwd.starts_with('/'))
            .map(str::to_owned)
            .ok_or_else(|| Error::invalid_argument(format!("--cwd {}: give an absolute path", cwd.display())))
    });
    Ok(ProcessFlags {
        args: args.command.clone(),
        cwd: cwd.transpose()?,
        env: args.env.iter().map(|e| e.0.clone()).collect(),
        user: args.user,
        additional_gids: args.additional_gids.clone(),
        terminal: args.tty,
        caps: args.cap.clone(),
        no_new_privs: args.no_new_privs,
        label: args.process_label.clone(),
        apparmor: args.apparmor.clone(),
    })
}
