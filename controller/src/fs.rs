//! `Fs`, and `containerManager.Mount`: files and mounts of containers.

use airlock_loader::container::Container;
use airlock_loader::loader::Loader;
use airlock_loader::sys::mount::{
    MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
};
use airlock_loader::worker::{Filesystem, Mount, ReadFiles, Unmount};
use airlock_wire::api::container_manager::{Mount as MountImage, MountArgs};
use airlock_wire::api::fs::{
    Cat, Mount as FsMount, MountOpts, Read, ReadOpts, TarRootfsUpperLayer, Umount, UmountOpts,
};
use airlock_wire::api::types::Empty;
use airlock_wire::error::{Error, Result};
use airlock_wire::registry::{Call, Registry};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<Cat>(move |call, opts| {
        let files = ReadFiles { paths: opts.files, ..ReadFiles::default() };
        read(&l, call, "", files)
    });
    let l = loader.clone();
    registry.on::<Read>(move |call, opts| {
        let ReadOpts { container_id, path, offset, size } = opts;
        let number = |n: i64| u64::try_from(n).map_err(|_| Error::invalid_argument("invalid argument"));
        let files = ReadFiles { paths: vec![path], offset: number(offset)?, size: number(size)? };
        read(&l, call, &container_id, files)
    });
    let l = loader.clone();
    registry.on::<TarRootfsUpperLayer>(move |call, opts| {
        let out = one_file(call)?;
        let wait = |fd: std::os::fd::BorrowedFd<'_>| call.wait_readable(fd);
        l.tar_upper(&name(&l, &opts.container_id), &out, &wait).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<FsMount>(move |call, opts| mount(&l, call, &opts));
    let l = loader.clone();
    registry.on::<Umount>(move |_, opts| {
        let UmountOpts { container_id, target, flags } = opts;
        let failed = |e: Error| e.context(format!("failed to unmount {target}"));
        l.unmount(&name(&l, &container_id), Unmount { path: target.clone(), flags })
            .map(|()| Empty {})
            .map_err(failed)
    });
    let l = loader.clone();
    registry.on::<MountImage>(move |call, args| mount_image(&l, call, args));
}

/// The root container's for an empty ID.
fn name<'a>(loader: &'a Loader, cid: &'a str) -> std::borrow::Cow<'a, str> {
    if cid.is_empty() { loader.id().into() } else { cid.into() }
}

fn one_file(call: &mut Call<'_>) -> Result<OwnedFd> {
    match call.fd_count() {
        1 => call.take_fd(0),
        _ => Err(Error::invalid_argument("exactly one file must be provided")),
    }
}

fn read(loader: &Loader, call: &mut Call<'_>, cid: &str, files: ReadFiles) -> Result<Empty> {
    let out = one_file(call)?;
    loader.read_files(&name(loader, cid), files, &out, &|fd| call.wait_readable(fd)).map(|()| Empty {})
}

/// gVisor's order of checks.
fn mount_image(loader: &Loader, call: &mut Call<'_>, args: MountArgs) -> Result<Empty> {
    let cid = &args.container_id;
    let container: Arc<Container> =
        loader.container(cid).map_err(|_| Error::no_such_entity(format!("container {cid} is deleted")))?;
    match container.init() {
        Some(init) if container.state().runs() && init.status().is_none() => {}
        Some(init) if init.status().is_some() => {
            return Err(Error::invalid_state("failed to find init process"));
        }
        _ => return Err(Error::invalid_state(format!("container {cid} isn't started"))),
    }
    if !args.destination.starts_with('/') {
        return Err(Error::invalid_argument("absolute path must be provided for destination"));
    }
    if args.fs_type != "erofs" {
        return Err(Error::unsupported(format!("unsupported filesystem type: {}", args.fs_type)));
    }
    if call.fd_count() != 1 {
        return Err(Error::invalid_argument("exactly one image file must be provided"));
    }
    let image = call.take_fd(0)?;
    let failed = |e: Error| e.context(format!("mounting {} at {}", args.source, args.destination));
    let mount =
        Mount { filesystem: Filesystem::Erofs, path: args.destination.clone(), attrs: 0, make: false };
    loader.mount(cid, mount, Some(&image)).map(|()| Empty {}).map_err(failed)
}

fn mount(loader: &Loader, call: &mut Call<'_>, opts: &MountOpts) -> Result<Empty> {
    let attrs = attrs(opts.flags)?;
    let MountOpts { target, fs_type, .. } = opts;
    if !target.starts_with('/') {
        return Err(Error::invalid_argument(format!("target must be an absolute path: {target:?}")));
    }
    let failed = |e: Error| match e.message.starts_with("parent ") {
        true => e,
        false => e.context(format!("failed to mount {fs_type} at {target}")),
    };
    let filesystem = match fs_type.as_str() {
        "tmpfs" => Filesystem::Tmpfs(opts.options()),
        "erofs" => Filesystem::Erofs,
        "bind" | "gofer" | "9p" => Filesystem::Detached,
        other => return Err(failed(Error::unsupported(format!("unsupported filesystem type: {other}")))),
    };
    let given = match (&filesystem, call.fd_count()) {
        (Filesystem::Tmpfs(_), 0) => None,
        (Filesystem::Erofs | Filesystem::Detached, 1) => Some(call.take_fd(0)?),
        (Filesystem::Tmpfs(_), _) => return Err(failed(Error::invalid_argument("a tmpfs takes no file"))),
        _ => return Err(failed(Error::invalid_argument("exactly one file must be provided"))),
    };
    if let (Filesystem::Detached, Some(fd)) = (&filesystem, &given)
        && nix::sys::socket::getsockopt(fd, nix::sys::socket::sockopt::SockType).is_ok()
    {
        return Err(failed(Error::unsupported(
            "a gofer's socket cannot be mounted, because the kernel has no client for it: donate a detached mount (open_tree(2))",
        )));
    }
    // Slashes at the end would hide the name that is to be made.
    let path = Path::new(target).components().as_path().display().to_string();
    let mount = Mount { filesystem, path, attrs, make: true };
    loader.mount(&name(loader, &opts.container_id), mount, given.as_ref()).map(|()| Empty {}).map_err(failed)
}

/// `MS_*` of mount(2) as `MOUNT_ATTR_*` of mount_setattr(2).
fn attrs(flags: u64) -> Result<u64> {
    const KNOWN: [(u64, u64); 5] = [
        (libc::MS_RDONLY, MOUNT_ATTR_RDONLY),
        (libc::MS_NOSUID, MOUNT_ATTR_NOSUID),
        (libc::MS_NODEV, MOUNT_ATTR_NODEV),
        (libc::MS_NOEXEC, MOUNT_ATTR_NOEXEC),
        (libc::MS_NOATIME, MOUNT_ATTR_NOATIME),
    ];
    if KNOWN.iter().fold(flags, |left, (flag, _)| left & !flag) != 0 {
        return Err(Error::invalid_argument("invalid argument"));
    }
    Ok(KNOWN.iter().filter(|(flag, _)| flags & flag != 0).fold(0, |all, (_, attr)| all | attr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_that_gvisor_takes() {
        assert_eq!(attrs(0), Ok(0));
        assert_eq!(attrs(libc::MS_RDONLY | libc::MS_NOATIME), Ok(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME));
        for wrong in [libc::MS_BIND, libc::MS_REMOUNT, libc::MS_MOVE, 1 << 40, u64::MAX] {
            assert!(attrs(wrong | libc::MS_RDONLY).is_err(), "{wrong:#x}");
        }
    }
}
