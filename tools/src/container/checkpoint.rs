//! `checkpoint`: a sandbox into an image.

#![forbid(unsafe_code)]

use super::image::{Image, NewImage, parent_dir};
use crate::process::wait_ended;
use crate::state::{State, StateDir, Status};
use airlock_wire::api::airlock as api;
use airlock_wire::api::checkpoint::{COMPRESSION_KEY, CheckpointArgs, Progress, Report, SaveOpts};
use airlock_wire::api::types::{Base64, Empty};
use airlock_wire::client::Client;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks at how far a checkpoint is.
const LOOK: u16 = 100;
/// How long a sandbox that was saved may take to end.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// How a checkpoint is made. The default ends the container and compresses nothing.
#[derive(Debug, Clone, Default)]
pub struct CheckpointOptions {
    /// The container goes on.
    pub leave_running: bool,
    /// `none` (also: empty), `lz4`, `zstd`, `flate-best-speed`.
    pub compression: String,
    /// The image's checksum is keyed with these bytes.
    pub key: Option<Vec<u8>>,
    /// Kept in the image.
    pub metadata: BTreeMap<String, String>,
    /// Write pages past the page cache.
    pub direct: bool,
    /// Keep TCP connections that leave the sandbox.
    pub tcp_established: bool,
    /// Save unix sockets that are connected to the outside.
    pub ext_unix_sk: bool,
    /// Save file locks.
    pub file_locks: bool,
    /// Save memory alone and let the container go on: a parent for a later checkpoint.
    pub pre_dump: bool,
    /// Directory of an image to build upon, as seen from the new image's: only changed pages are stored.
    pub parent: Option<PathBuf>,
}

impl CheckpointOptions {
    fn args(&self) -> CheckpointArgs {
        let mut metadata = self.metadata.clone();
        if !self.compression.is_empty() {
            metadata.insert(COMPRESSION_KEY.to_owned(), self.compression.clone());
        }
        CheckpointArgs {
            save: SaveOpts {
                key: self.key.clone().map(Base64),
                metadata: Some(metadata),
                have_pages_file: true,
                resume: self.leave_running || self.pre_dump,
                ..SaveOpts::default()
            },
            direct: self.direct,
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            file_locks: self.file_locks,
            pre_dump: self.pre_dump,
            ..CheckpointArgs::default()
        }
    }
}

/// Whoever wants to see how far it is; called every now and then.
pub type Watcher<'a> = &'a mut dyn FnMut(&Progress);

/// Saves the sandbox of container `id` into the directory `image`. Unless it is to go on, it has ended when this returns.
/// If this process dies before the image is complete, the sandbox goes on and there is no image.
///
/// # Errors
/// `container does not exist`; it is not running, or not its sandbox's root container; what the sandbox says.
pub fn checkpoint(
    dir: &StateDir,
    id: &str,
    image: &Path,
    options: &CheckpointOptions,
    watcher: Option<Watcher<'_>>,
) -> Result<Report> {
    let state = running(dir, id)?;
    let mut args = options.args();
    args.commit = !args.save.resume;
    let parent = match &options.parent {
        None => None,
        Some(path) => {
            args.parent = true;
            let opened = Image::open(&parent_dir(image, path)).map_err(|e| e.context("--parent-path"))?;
            let pages = opened.pages.ok_or_else(|| {
                Error::invalid_argument(format!(
                    "--parent-path {}: an image whose pages are in its statefile cannot be built upon",
                    path.display()
                ))
            })?;
            args.ancestors = opened.parents.len() as u32;
            Some((opened.statefile, pages, opened.parents))
        }
    };
    let new = NewImage::create(image)?;
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::from(e).context("make a socket pair"))?;
    let mut fds = new.as_fds();
    if let Some((statefile, pages, ancestors)) = &parent {
        fds.push(statefile.as_fd());
        fds.extend(pages.iter().chain(ancestors.iter().flatten()).map(AsFd::as_fd));
    }
    if args.commit {
        fds.push(theirs.as_fd());
    }
    let mut call = Running::start(dir, &state, &args, &fds, watcher)?;
    drop(fds);
    drop(theirs);
    if !args.commit {
        let report = call.finish()?;
        new.finish(options.parent.as_deref())?;
        return Ok(report);
    }
    if !call.wait_for(ours.as_fd())? || (&ours).read(&mut [0]).ok() != Some(1) {
        // The sandbox has not come that far, and its answer says why.
        return call
            .finish()
            .and(Err(Error::new(Kind::Protocol, "the sandbox ended without a complete image")));
    }
    let path = new.dir().to_owned();
    new.finish(options.parent.as_deref())?;
    // From here on the image stands for the container.
    let told = (&ours).write_all(b"c").map_err(Error::from);
    let report = told.and_then(|()| call.finish()).inspect_err(|_| {
        // It goes on: two of it would be one too many.
        let _ = std::fs::remove_file(path.join(airlock_loader::checkpoint::image::STATEFILE));
    })?;
    wait_for_end(&state)?;
    Ok(report)
}

/// Finds out what of the sandbox of container `id` could not be saved ([`Report::refusals`]).
///
/// # Errors
/// As [`checkpoint`], but for what cannot be saved.
pub fn checkpoint_dry_run(dir: &StateDir, id: &str, options: &CheckpointOptions) -> Result<Report> {
    let state = running(dir, id)?;
    let args = CheckpointArgs { dry_run: true, ..options.args() };
    Running::start(dir, &state, &args, &[], None)?.finish()
}

/// A checkpoint whose sandbox goes on, into descriptors: statefile, pages' metadata and pages.
pub(super) fn checkpoint_into(dir: &StateDir, state: &State, fds: &[BorrowedFd<'_>]) -> Result<Report> {
    let options = CheckpointOptions { leave_running: true, ..CheckpointOptions::default() };
    Running::start(dir, state, &options.args(), fds, None)?.finish()
}

/// The state of the root container of a sandbox that can be saved.
pub(super) fn running(dir: &StateDir, id: &str) -> Result<State> {
    let state = dir.load(id)?;
    if state.is_subcontainer() {
        return Err(Error::invalid_argument(format!(
            "container {id} lives in sandbox {0}, which is saved as a whole: checkpoint {0}",
            state.sandbox_id
        )));
    }
    match dir.status(&state)? {
        Status::Running | Status::Paused => Ok(state),
        status => Err(Error::invalid_state(format!(
            "container {id:?}: container not running: it is {status}, and cannot be checkpointed"
        ))),
    }
}

/// The sandbox process ends with its containers; whoever deletes, or looks at the state, must find that.
pub(super) fn wait_for_end(state: &State) -> Result<()> {
    match state.loader.open() {
        Some(process) if !wait_ended(process.as_fd(), Some(LAST_BREATH))? => Err(Error::failure(format!(
            "the sandbox of container {} was saved but does not end: look at /proc/{}/stack",
            state.id, state.loader.pid
        ))),
        _ => Ok(()),
    }
}

/// A call in progress.
struct Running<'a> {
    client: Client,
    watcher: Option<(Client, Watcher<'a>)>,
}

impl<'a> Running<'a> {
    fn start(
        dir: &StateDir,
        state: &State,
        args: &CheckpointArgs,
        fds: &[BorrowedFd<'_>],
        watcher: Option<Watcher<'a>>,
    ) -> Result<Self> {
        let mut client = dir.connect(state)?;
        let watcher = match watcher {
            Some(watcher) => Some((dir.connect(state)?, watcher)),
            None => None,
        };
        client.start::<api::Checkpoint>(args, fds)?;
        Ok(Self { client, watcher })
    }

    /// Waits until `fd` is readable (true) or the reply is there (false).
    fn wait_for(&mut self, fd: BorrowedFd<'_>) -> Result<bool> {
        loop {
            let mut fds = [
                PollFd::new(fd, PollFlags::POLLIN),
                PollFd::new(self.client.stream().as_fd(), PollFlags::POLLIN),
            ];
            let timeout = match &self.watcher {
                Some(_) => PollTimeout::from(LOOK),
                None => PollTimeout::NONE,
            };
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::from(e).context("wait for the sandbox")),
            }
            match [0, 1].map(|i: usize| fds[i].any().unwrap_or(false)) {
                [_, true] => return Ok(false),
                [true, _] => return Ok(true),
                _ => self.look(),
            }
        }
    }

    fn look(&mut self) {
        if let Some((client, watcher)) = &mut self.watcher {
            match client.call::<api::CheckpointProgress>(&Empty {}, &[]) {
                Ok(reply) => watcher(&reply.value),
                // What there is to say comes over the other connection.
                Err(_) => self.watcher = None,
            }
        }
    }

    /// Waits for the reply.
    fn finish(mut self) -> Result<Report> {
        let never = UnixStream::pair().map_err(|e| Error::from(e).context("make a socket pair"))?;
        while self.watcher.is_some() && self.wait_for(never.0.as_fd())? {}
        Ok(self.client.finish::<api::Checkpoint>()?.value)
    }
}
