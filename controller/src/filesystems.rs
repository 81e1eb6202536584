//! `containerManager.FSSave` and those who wait for it; `Airlock.RestoreFilesystems`.

use crate::checkpoint::wait_notice;
use airlock_loader::checkpoint::filesystems::Wanted;
use airlock_loader::loader::Loader;
use airlock_wire::api::airlock::RestoreFilesystems;
use airlock_wire::api::container_manager::{FSSave, FsSaveOpts, WaitFSCheckpoint, WaitFSRestore};
use airlock_wire::api::types::Empty;
use airlock_wire::error::{Error, Result};
use airlock_wire::registry::{Call, Registry};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// What is saved unless the caller says so: the root filesystems' upper layers.
const ROOT: &str = "/";

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<FSSave>(move |call, opts| save(&l, call, opts));
    let l = loader.clone();
    registry.on::<WaitFSCheckpoint>(move |call, Empty {}| {
        wait_notice(call, &*l.next_filesystems()?).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<WaitFSRestore>(move |call, args| {
        wait_notice(call, &*l.filesystems_restored(&args.cid)?).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<RestoreFilesystems>(move |call, args| {
        if call.fd_count() != 2 {
            return Err(Error::invalid_argument(format!("got {} files, want 2", call.fd_count())));
        }
        l.restore_filesystems(&args.cid, [call.take_fd(0)?, call.take_fd(1)?])
    });
}

fn save(loader: &Loader, call: &mut Call<'_>, opts: FsSaveOpts) -> Result<Empty> {
    if opts.use_checkpoint_gofer {
        return Err(Error::unsupported(
            "use_checkpoint_gofer: images are written to files: donate the four of them",
        ));
    }
    if call.fd_count() != 4 {
        return Err(Error::invalid_argument(format!("got {} files, want 4", call.fd_count())));
    }
    let files: [OwnedFd; 4] = [call.take_fd(0)?, call.take_fd(1)?, call.take_fd(2)?, call.take_fd(3)?];
    for (file, what) in files.iter().zip(["manifest", "multi-tar", "pages metadata", "pages"]) {
        let regular = nix::sys::stat::fstat(file).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFREG);
        if !regular {
            let number = file.as_raw_fd();
            log::debug!("FSSave: descriptor {number} is no file");
            return Err(Error::invalid_argument(format!("the {what} is no regular file")));
        }
    }
    let mut wanted: Vec<Wanted> =
        opts.paths.into_iter().map(|p| Wanted { container: p.container_name, path: p.path }).collect();
    if wanted.is_empty() {
        wanted.push(Wanted { path: ROOT.to_owned(), ..Wanted::default() });
    }
    // Content is where the trees are: the files for pages stay empty.
    let [manifest, trees, _, _] = files;
    let saved = loader
        .save_filesystems(wanted, [manifest, trees], opts.exit_after_saving, &|fd| call.wait_readable(fd))?;
    log::info!(
        "filesystem checkpoint: {} files, {} bytes; the containers stood still for {} us",
        saved.captured.files,
        saved.captured.bytes,
        saved.pause_us
    );
    Ok(Empty {})
}
