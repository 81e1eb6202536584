//! `ps`: the processes of a container.

#![forbid(unsafe_code)]

use crate::cli::{PsArgs, TableFormat};
use crate::global::Global;
use crate::output;
use airlock_wire::error::{Error, Result};
use std::process::{Command, ExitCode};

/// Prints the pids as JSON, or a table: our own, or the host's ps(1) when options for it are given.
pub fn run(global: &Global, args: PsArgs) -> Result<ExitCode> {
    let airlock = global.airlock()?;
    if args.format == TableFormat::Json {
        output::print_json_line(&airlock.ps(&args.id)?)?;
    } else if args.options.is_empty() || args.options == ["-ef"] {
        let top = airlock.top(&args.id)?;
        let rows: Vec<Vec<String>> = std::iter::once(top.headers).chain(top.processes).collect();
        output::print(&output::table(&rows, output::Layout::Ps))?;
    } else {
        let pids = airlock.ps(&args.id)?;
        output::print(&select(&run_ps(&args.options)?, &pids)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the host's ps(1) prints with these options.
fn run_ps(options: &[String]) -> Result<String> {
    let shown = options.join(" ");
    let mut command = Command::new("ps");
    if std::env::var_os("PATH").is_none() {
        // podman calls some commands with hardly any environment.
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    }
    let output = command.args(options).output().map_err(|e| {
        Error::from(e).context(format!("run 'ps {shown}' (without options, airlock needs no ps program)"))
    })?;
    if !output.status.success() {
        let why = crate::logging::one_line(&String::from_utf8_lossy(&output.stderr));
        return Err(Error::invalid_argument(format!("'ps {shown}' fails: {why}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The header and the lines of those processes.
fn select(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let column = header.split_ascii_whitespace().position(|name| name == "PID").ok_or_else(|| {
        Error::invalid_argument("the options give a ps table without a PID column: add 'pid' to the columns")
    })?;
    let ours = |line: &&str| {
        let pid = line.split_ascii_whitespace().nth(column).and_then(|field| field.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Ok(std::iter::once(header).chain(lines.filter(ours)).flat_map(|line| [line, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_processes_are_shown() {
        let table = "  PID CMD\n    1 init\n   12 sleep 1\n    2 x\n";
        assert_eq!(select(table, &[2, 12]).unwrap(), "  PID CMD\n   12 sleep 1\n    2 x\n");
        assert_eq!(select(table, &[]).unwrap(), "  PID CMD\n");
        assert!(select("CMD\ninit\n", &[1]).unwrap_err().message.contains("PID"));
        assert!(select("", &[1]).is_err());
    }
}
