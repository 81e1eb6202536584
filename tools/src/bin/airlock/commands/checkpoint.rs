//! `checkpoint`: a sandbox into an image.

#![forbid(unsafe_code)]

use crate::cli::{CheckpointArgs, CriuArgs};
use crate::global::Global;
use crate::output;
use crate::progress::Progress;
use airlock::container::checkpoint::{self, CheckpointOptions};
use airlock::container::restore::{read_key, write_log};
use airlock::state::StateDir;
use airlock_wire::api::checkpoint::{Refusal, Report};
use airlock_wire::error::{Error, Result};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Saves the sandbox, or says what cannot be saved.
pub fn run(global: &Global, args: CheckpointArgs) -> Result<ExitCode> {
    refuse(&args)?;
    let dir = StateDir::open(&global.root)?;
    let options = CheckpointOptions {
        leave_running: args.leave_running,
        compression: args.compression.clone(),
        key: args.key_file.as_deref().map(read_key).transpose()?,
        metadata: metadata(&args)?,
        direct: args.direct,
        tcp_established: args.tcp_established,
        ext_unix_sk: args.ext_unix_sk,
        file_locks: args.file_locks,
        pre_dump: args.pre_dump,
        parent: args.parent_path.clone(),
    };
    if args.dry_run {
        return dry_run(&checkpoint::checkpoint_dry_run(&dir, &args.id, &options)?);
    }
    let mut progress = Progress::new("checkpoint");
    let mut show = |now: &_| progress.show(now);
    let outcome = checkpoint::checkpoint(
        &dir,
        &args.id,
        &args.image_path,
        &options,
        if Progress::wanted() { Some(&mut show) } else { None },
    );
    progress.clear();
    if let Some(work) = &args.work_path {
        write_log(work, "dump.log", &outcome);
    }
    for warning in outcome?.warnings {
        log::warn!("{warning}");
    }
    Ok(ExitCode::SUCCESS)
}

fn metadata(args: &CheckpointArgs) -> Result<BTreeMap<String, String>> {
    args.metadata
        .iter()
        .map(|pair| {
            let (name, value) = pair
                .0
                .split_once('=')
                .ok_or_else(|| Error::invalid_argument(format!("--metadata {}: write NAME=VALUE", pair.0)))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// What CRIU can do and airlock cannot, or need not.
fn refuse(args: &CheckpointArgs) -> Result<()> {
    let refusals = [
        (
            args.page_server.is_some(),
            "--page-server: images are written to files; give an --image-path on a network file system, or copy it",
        ),
        (
            args.lazy_pages,
            "--lazy-pages: a checkpoint writes all pages; 'restore --background' brings them later from the image",
        ),
        (
            args.status_fd.is_some(),
            "--status-fd: there is no page server to become ready; wait for the command's end",
        ),
        (
            args.auto_dedup,
            "--auto-dedup: a complete image is never changed; remove images that are not needed",
        ),
        (
            args.pre_dump && args.dry_run,
            "--pre-dump with --dry-run: a pre-dump saves memory alone, which can always be saved",
        ),
    ];
    match refusals.iter().find(|(given, _)| *given) {
        Some((_, why)) => Err(Error::unsupported(*why)),
        None => check_criu_options(&args.criu),
    }
}

/// Options of CRIU that `checkpoint` and `restore` share.
pub fn check_criu_options(criu: &CriuArgs) -> Result<()> {
    match criu.manage_cgroups_mode.as_deref() {
        None | Some("" | "soft" | "ignore") => {}
        Some(mode) => {
            return Err(Error::unsupported(format!(
                "--manage-cgroups-mode {mode}: a restored container gets the cgroups of its own configuration; use soft or ignore"
            )));
        }
    }
    match criu.empty_ns.iter().find(|kind| *kind != "network") {
        None => Ok(()),
        Some(kind) => {
            Err(Error::unsupported(format!("--empty-ns {kind}: only a network namespace can be left empty")))
        }
    }
}

/// Prints what cannot be saved, one a line; the exit status tells whether there is anything.
fn dry_run(report: &Report) -> Result<ExitCode> {
    let mut text: String = report.refusals.iter().map(line).collect();
    for warning in &report.warnings {
        text += &format!("warning: {warning}\n");
    }
    if report.refusals.is_empty() {
        text += &format!("{} processes, {} threads: can be saved\n", report.processes, report.threads);
    }
    output::print(&text)?;
    Ok(if report.refusals.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(refusal: &Refusal) -> String {
    let Refusal { cid, pid, comm, fd, kind, what } = refusal;
    let fd = fd.map_or_else(String::new, |fd| format!(", descriptor {fd}"));
    format!("container {cid:?}, process {pid} ({comm:?}){fd}: {kind}: {what}\n")
}
