//! `Proc`: processes of the whole sandbox.

use airlock_loader::loader::Loader;
use airlock_wire::api::container_manager::Process;
use airlock_wire::api::proc::{Exec, Ps, SignalProcess};
use airlock_wire::api::types::Empty;
use airlock_wire::error::{Error, Result};
use airlock_wire::registry::Registry;
use std::fmt::Write;
use std::os::fd::AsFd;
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<Exec>(move |call, mut args| {
        if args.container_id.is_empty() {
            l.id().clone_into(&mut args.container_id);
        }
        let process = crate::container_manager::execute(&l, call, &args)?;
        let status = crate::container_manager::wait_for(call, &process);
        // As in gVisor, such a process is not there for WaitPID.
        if let Ok(container) = l.container(&args.container_id) {
            container.forget_process(process.ns_pid(), &process);
        }
        status
    });
    let l = loader.clone();
    registry.on::<Ps>(move |_, args| {
        let processes = l.processes("")?;
        if args.json {
            return serde_json::to_string_pretty(&processes).map_err(|e| Error::failure(e.to_string()));
        }
        Ok(table(&processes))
    });
    let l = loader.clone();
    registry.on::<SignalProcess>(move |_, args| signal_process(&l, args.pid, args.signo).map(|()| Empty {}));
}

fn signal_process(loader: &Loader, pid: i32, signo: i32) -> Result<()> {
    let missing = || Error::no_such_entity(format!("no such process with PID {pid}"));
    let owner = loader.owner_of(pid)?.ok_or_else(missing)?;
    let container = loader.container(&owner)?;
    let pidfd = loader.open_member(&container, pid)?;
    airlock_loader::sys::process::pidfd_send_signal(pidfd.as_fd(), signo).map_err(|_| missing())
}

/// gVisor's table: columns separated by tabs of at least one space, padded to the longest cell.
fn table(processes: &[Process]) -> String {
    let mut rows =
        vec![["UID", "PID", "PPID", "PGID", "C", "TTY", "STIME", "TIME", "CMD"].map(str::to_owned)];
    rows.extend(processes.iter().map(|p| {
        [
            p.uid.to_string(),
            p.pid.to_string(),
            p.ppid.to_string(),
            p.pgid.to_string(),
            p.c.to_string(),
            p.tty.clone(),
            p.stime.clone(),
            p.time.clone(),
            p.cmd.clone(),
        ]
    }));
    let mut widths = [9; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        if i > 0 {
            text.push('\n');
        }
        for (j, (cell, width)) in row.iter().zip(widths).enumerate() {
            let _ = if j == 8 { write!(text, "{cell}") } else { write!(text, "{cell:<width$} ") };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_process_and_aligned_columns() {
        let p = Process { pid: 12, cmd: "sleep".into(), tty: "?".into(), ..Process::default() };
        let text = table(&[p]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].find("CMD"), lines[1].find("sleep"));
    }
}
