//! `restore`: a container from an image.

#![forbid(unsafe_code)]

use super::create::Created;
use super::image::Image;
use super::{CreateOptions, create};
use crate::podspec::Bundle;
use crate::state::StateDir;
use airlock_wire::api::airlock as api;
use airlock_wire::api::checkpoint::{Report, RestoreArgs, RestoreOpts};
use airlock_wire::api::types::Base64;
use airlock_wire::client::Client;
use airlock_wire::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A key file longer than this is no key.
const MAX_KEY: u64 = 64 << 10;
/// By which memory can be brought to running programs (userfaultfd(2)).
const USERFAULTFD: &str = "/dev/userfaultfd";

/// From what, and how, a container is restored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreOptions {
    /// Directory of the image.
    pub image: PathBuf,
    /// The programs run first, their memory follows.
    pub background: bool,
    /// File with the key that the image was made with.
    pub key_file: Option<PathBuf>,
    /// Keep TCP connections that leave the sandbox.
    pub tcp_established: bool,
    /// Where a log of what was done goes, `restore.log`.
    pub work_path: Option<PathBuf>,
}

/// When memory of an image comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Memory {
    /// Before the programs run.
    #[default]
    First,
    /// When the programs ask for it: what they do not touch stays in the image alone.
    OnDemand,
}

/// The source of a restore, opened.
#[derive(Debug)]
pub(super) struct Source {
    image: Image,
    args: RestoreArgs,
    log: Option<PathBuf>,
}

impl Source {
    /// What a container is to be restored from while it is created; `None` if that comes later, or never.
    pub fn of(options: &mut CreateOptions) -> Result<Option<Self>> {
        match (options.image.take(), &options.restore) {
            (Some((image, memory)), _) => Ok(Some(Self::new(image).with(memory))),
            (None, Some(restore)) if options.autostart => Self::open(restore).map(Some),
            _ => Ok(None),
        }
    }

    /// Opens what `options` names.
    pub fn open(options: &RestoreOptions) -> Result<Self> {
        let image = Image::open(&options.image)?;
        let key = options.key_file.as_deref().map(read_key).transpose()?;
        let mut source = Self::new(image);
        source.args.restore.background = options.background;
        if options.background {
            source.image.open_working_set(&options.image);
        }
        source.args.restore.key = key.map(Base64);
        source.args.tcp_established = options.tcp_established;
        source.log = options.work_path.clone();
        Ok(source)
    }

    /// A restore of an image at hand.
    pub fn new(image: Image) -> Self {
        let args = RestoreArgs {
            restore: RestoreOpts { have_pages_file: image.pages.is_some(), ..RestoreOpts::default() },
            parents: image.parents.len() as u32,
            ..RestoreArgs::default()
        };
        Self { image, args, log: None }
    }

    fn with(mut self, memory: Memory) -> Self {
        self.args.restore.background = memory == Memory::OnDemand;
        self.args.on_demand = memory == Memory::OnDemand;
        self
    }

    /// Has the sandbox behind `client` restore its root container.
    pub fn restore(self, client: &mut Client) -> Result<Report> {
        let Self { image, mut args, log } = self;
        let device = if args.restore.background { open_device() } else { None };
        args.restore.have_device_file = device.is_some();
        let mut fds = vec![image.statefile.as_fd()];
        fds.extend(image.pages.iter().flatten().map(AsFd::as_fd));
        fds.extend(device.iter().map(AsFd::as_fd));
        fds.extend(image.parents.iter().flatten().map(AsFd::as_fd));
        args.working_set = image.working_set.is_some() && args.restore.background;
        fds.extend(image.working_set.iter().filter(|_| args.working_set).map(AsFd::as_fd));
        let outcome = client.call::<api::Restore>(&args, &fds).map(|reply| reply.value);
        if let Some(dir) = log {
            write_log(&dir, "restore.log", &outcome);
        }
        outcome.map_err(|e| explain(e).context("restore"))
    }
}

/// A sandbox that ends in the middle of a restore can say nothing more: the kernel may have taken it for the one that uses too
/// much memory.
fn explain(mut error: Error) -> Error {
    if error.kind == Kind::Disconnected {
        error.message += ": it was killed, by somebody or by the kernel (is memory short?)";
    }
    error
}

/// Without it the sandbox uses userfaultfd(2) itself, as far as the kernel lets it.
fn open_device() -> Option<OwnedFd> {
    OpenOptions::new().read(true).write(true).open(USERFAULTFD).ok().map(OwnedFd::from)
}

/// Reads a key: all bytes of the file.
///
/// # Errors
/// It cannot be read, is empty, or longer than 64 KiB.
pub fn read_key(path: &Path) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::from(e).context(format!("--key-file {}", path.display()));
    let file = OpenOptions::new().read(true).open(path).map_err(failed)?;
    let mut key = Vec::new();
    file.take(MAX_KEY + 1).read_to_end(&mut key).map_err(failed)?;
    match key.len() as u64 {
        1..=MAX_KEY => Ok(key),
        n => Err(Error::invalid_argument(format!(
            "--key-file {}: a key has 1 to {MAX_KEY} bytes, this one {n} or more",
            path.display()
        ))),
    }
}

/// Writes what was done to a file of `dir`, as users of CRIU look for it. A log that cannot be written is no failure.
pub fn write_log(dir: &Path, name: &str, outcome: &Result<Report>) {
    let mut text = String::new();
    match outcome {
        Ok(report) => {
            for (phase, us) in &report.phases {
                text += &format!("({us:>9} us) {phase}\n");
            }
            for warning in &report.warnings {
                text += &format!("Warn: {warning}\n");
            }
            text += &format!(
                "{} processes, {} threads, {} pages ({} zero, {} in the parent), {} bytes, stood still for {} us\n",
                report.processes,
                report.threads,
                report.pages,
                report.zero_pages,
                report.parent_pages,
                report.bytes,
                report.pause_us
            );
        }
        Err(e) => text += &format!("Error: {e}\n"),
    }
    let path = dir.join(name);
    let written = std::fs::create_dir_all(dir).and_then(|()| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())
    });
    if let Err(e) = written {
        log::warn!("write {}: {e}", path.display());
    }
}

/// Creates container `id` of `bundle` and restores it. The container of a pod is restored together with its sandbox: this
/// returns as soon as it is set up unless it is the last one.
///
/// # Errors
/// As [`create`]; what the sandbox says of the image. Nothing is left then.
pub fn restore(
    dir: &StateDir,
    id: &str,
    bundle: &Bundle,
    options: CreateOptions,
    restore: RestoreOptions,
) -> Result<Created> {
    create(dir, id, bundle, CreateOptions { autostart: true, restore: Some(restore), ..options })
}
