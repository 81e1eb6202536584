//! Shows what a dump finds out about the descriptors of a process and its descendants, as JSON; they go on afterwards.
//!
//! `cargo run --example files -- PID`: standard streams of PID count as given from outside.

use airlock_loader::checkpoint::dump::context::Context;
use airlock_loader::checkpoint::dump::net::Sockets;
use airlock_loader::checkpoint::dump::{files, task, tree};
use airlock_loader::checkpoint::order::{DumpContainer, DumpOrder};
use airlock_loader::procfs::ProcFs;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pid: i32 = std::env::args().nth(1).ok_or("which process?")?.parse()?;
    let procfs = ProcFs::new(File::open("/proc")?.into());
    let identity = |number: i32| {
        let found = std::fs::metadata(format!("/proc/{pid}/fd/{number}")).ok()?;
        Some((number, found.dev(), found.ino()))
    };
    let origin = (0..3).filter_map(identity).collect();
    let container = DumpContainer {
        cid: "c".to_owned(),
        init: pid,
        origin,
        own_pid_namespace: true,
        ..DumpContainer::default()
    };
    let order = DumpOrder { containers: vec![container], ..DumpOrder::default() };
    let mut ctx = Context::new(order, procfs, vec![]);
    tree::discover(&mut ctx, || Ok(()))?;
    task::collect(&mut ctx)?;
    let start = Instant::now();
    let mut sockets = Sockets::new(&mut ctx)?;
    let result = files::collect(&mut ctx, &mut sockets);
    let took = start.elapsed();
    task::release(&mut ctx)?;
    result?;
    let state = &ctx.state;
    println!(
        "{}",
        serde_json::to_string_pretty(&serde_json::json!({
            "tables": state.fd_tables, "files": state.files, "fs": state.fs, "warnings": state.warnings, "shmems": state.shmems,
            "refusals": ctx.refusals.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }))?
    );
    eprintln!("{took:?}");
    Ok(())
}
