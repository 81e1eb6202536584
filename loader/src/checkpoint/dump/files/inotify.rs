//! What inotify instances watch.
#![forbid(unsafe_code)]

use super::search::Wanted;
use super::{Collector, Later, search};
use crate::checkpoint::state::FileKind;
use crate::sys::files as call;
use airlock_wire::error::Result;
use std::collections::BTreeMap;
use std::os::fd::AsFd;

impl Collector<'_> {
    pub(super) fn describe_inotify(&mut self, index: usize) -> Result<()> {
        let fd = self.open(index)?;
        let unread = call::ioctl_get(fd.as_fd(), call::FIONREAD)?.max(0) as u32;
        let mut watches = self.found[index].raw.info.watches();
        // Numbers have to be given in this order again.
        watches.sort_unstable_by_key(|w| w.wd);
        if unread > 0 {
            let (pid, fd) = self
                .ctx
                .procs
                .get(self.found[index].process)
                .map_or((0, None), |p| (p.ns_pid, self.found[index].number()));
            self.ctx.warn(format!(
                "process {pid}, descriptor {}: {unread} bytes of inotify events that were not read are lost",
                fd.unwrap_or(-1)
            ));
        }
        for (slot, w) in watches.iter().enumerate() {
            let wanted = Wanted { dev: w.dev, ino: w.ino, handle: w.handle.clone() };
            self.later.push((Later::Watch(index, slot), wanted));
        }
        let watches = watches.into_iter().map(|w| (w.wd, String::new(), w.mask)).collect();
        self.state(index).kind = FileKind::Inotify { watches, unread };
        Ok(())
    }

    /// Finds the paths of inodes that were asked for.
    pub(super) fn find_paths(&mut self) -> Result<()> {
        let mut by_container: BTreeMap<u32, Vec<(Later, Wanted)>> = BTreeMap::new();
        for (who, wanted) in std::mem::take(&mut self.later) {
            let (Later::Watch(index, _) | Later::OtherName(index)) = who;
            by_container.entry(self.found[index].container).or_default().push((who, wanted));
        }
        for (container, wanted) in by_container {
            let Some(order) = self.ctx.order.containers.get(container as usize) else { continue };
            let known: Vec<String> = self.known_paths(container);
            let mounts = self.mounts.get(container as usize).map_or(&[][..], Vec::as_slice);
            let (who, wanted): (Vec<Later>, Vec<Wanted>) = wanted.into_iter().unzip();
            let paths = search::find(&self.ctx.procfs, order.init, mounts, &known, &wanted)?;
            for ((who, wanted), path) in who.into_iter().zip(wanted).zip(paths) {
                self.found_path(who, &wanted, path);
            }
        }
        Ok(())
    }

    /// Paths near which watched files are likely to be.
    fn known_paths(&self, container: u32) -> Vec<String> {
        let files = self.found.iter().filter(|f| f.container == container).map(|f| f.raw.link.as_str());
        let dirs = self.ctx.state.fs.iter().map(|f| f.cwd.as_str());
        let mut known: Vec<String> =
            files.chain(dirs).filter(|p| p.starts_with('/')).map(str::to_owned).collect();
        known.sort_unstable();
        known.dedup();
        known
    }

    fn found_path(&mut self, who: Later, wanted: &Wanted, path: Option<String>) {
        match who {
            Later::Watch(index, slot) => {
                let path = path.or_else(|| self.nameless(wanted));
                let missing = path.is_none();
                if let FileKind::Inotify { watches, .. } = &mut self.state(index).kind
                    && let Some(watch) = watches.get_mut(slot)
                {
                    watch.1 = path.unwrap_or_default();
                }
                if missing {
                    let (major, minor) =
                        (nix::sys::stat::major(wanted.dev), nix::sys::stat::minor(wanted.dev));
                    self.refuse(
                        index,
                        "inotify watch",
                        format!(
                            "no path was found for inode {} of device {major}:{minor}, which it watches",
                            wanted.ino
                        ),
                    );
                }
            }
            Later::OtherName(index) => {
                if path.is_none() {
                    let name = self.found[index].raw.link.clone();
                    self.ctx.warn(format!(
                        "{name}: its other hard links were not found; after a restore it is a file of its own"
                    ));
                }
                if let FileKind::Deleted { link, .. } = &mut self.state(index).kind {
                    *link = path;
                }
            }
        }
    }

    /// A file that was removed, and that somebody still has open: by its number in the image.
    fn nameless(&self, wanted: &Wanted) -> Option<String> {
        let same = |f: &&super::Found| {
            f.raw.info.ino == Some(wanted.ino) && f.raw.stat.st_dev == wanted.dev && f.raw.stat.st_nlink == 0
        };
        self.found.iter().find(same).map(|f| format!("#{}", f.id))
    }
}
