//! What all containers use together: memory by category, the live page of `Usage.UsageFD`, giving memory back, waiting
//! for disks.
#![forbid(unsafe_code)]

use super::Loader;
use crate::cgroup::files::{Dir, Files, explain};
use crate::cgroup::stats::Categories;
use crate::container::{Container, lock};
use crate::sys::{files, process};
use airlock_wire::api::usage::UsagePage;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What goes on beside the calls.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// The page, while somebody has it.
    page: Mutex<Option<Arc<File>>>,
    /// A thread reclaims memory.
    reclaiming: AtomicBool,
}

impl Loader {
    /// Memory of all containers by category.
    ///
    /// # Errors
    /// As reading control files; [`airlock_wire::error::Kind::InvalidState`] without cgroups.
    pub fn memory(&self) -> Result<Categories> {
        let mut sum = Categories::default();
        for container in self.memory_cgroups()? {
            sum.add(&container.cgroup()?.stats()?.memory.categories());
        }
        Ok(sum)
    }

    /// One container for each memory cgroup: a pod's containers may have their own or share the root container's.
    fn memory_cgroups(&self) -> Result<Vec<Arc<Container>>> {
        let mut found = vec![self.root()?];
        let mut known = vec![memory_dir(&found[0])?];
        for container in self.containers() {
            if let Ok(dir) = memory_dir(&container)
                && !known.contains(&dir)
            {
                known.push(dir);
                found.push(container);
            }
        }
        Ok(found)
    }

    /// Has the kernel reclaim what it can of the containers' memory. With `wait` it returns when that is done; otherwise
    /// at once, and a call while the kernel is at it does nothing.
    ///
    /// # Errors
    /// The kernel cannot reclaim; no thread can be started.
    pub fn reclaim(self: &Arc<Self>, wait: bool) -> Result<()> {
        let cgroups = self.memory_cgroups()?;
        for container in &cgroups {
            check_reclaimable(container)?;
        }
        if wait {
            return cgroups.iter().try_for_each(|container| reclaim(container));
        }
        if self.usage.reclaiming.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let loader = self.clone();
        let work = move || {
            for container in &cgroups {
                if let Err(e) = reclaim(container) {
                    log::warn!("reclaiming memory of container {:?}: {e}", container.cid);
                }
            }
            loader.usage.reclaiming.store(false, Ordering::Release);
        };
        let started =
            std::thread::Builder::new().name("reclaim".to_owned()).stack_size(256 << 10).spawn(work);
        started.map(drop).map_err(|e| {
            self.usage.reclaiming.store(false, Ordering::Release);
            Error::from(e).context("starting a thread to reclaim memory")
        })
    }

    /// How long the containers' processes have waited for disks. Where the kernel counts that by cgroup (v2) it is the
    /// time in which any of them waited; otherwise the sum over the threads that live now, which is 0 unless the kernel's
    /// delay accounting is on.
    ///
    /// # Errors
    /// When the processes cannot be listed.
    pub fn io_wait(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        let root = self.root()?;
        if root.cgroup.get().is_some_and(crate::cgroup::Cgroup::v2) {
            for container in self.memory_cgroups()? {
                let pressure = container.cgroup()?.read("io", "", "io.pressure").unwrap_or_default();
                sum += pressure_total(&pressure).unwrap_or_default();
            }
            return Ok(sum);
        }
        for container in self.containers() {
            for pid in self.pids_of(&container)? {
                for tid in self.procfs().threads(pid).unwrap_or_default() {
                    let stat = self.procfs().read_path(&format!("{pid}/task/{tid}/stat")).unwrap_or_default();
                    sum += delay_ticks(&stat).map_or(Duration::ZERO, super::processes::ticks);
                }
            }
        }
        Ok(sum)
    }

    /// The live page and the kernel's file with the memory in use, both for reading. A thread keeps the page up to date
    /// for as long as somebody has it open or mapped.
    ///
    /// # Errors
    /// Without cgroups; when there is no descriptor or thread left.
    pub fn usage_page(self: &Arc<Self>) -> Result<(OwnedFd, OwnedFd)> {
        let root = self.root()?;
        let cgroup = root.cgroup()?;
        let name = if cgroup.v2() { "memory.current" } else { "memory.usage_in_bytes" };
        let dir = cgroup.dir("memory").ok_or_else(|| Error::unsupported("no memory cgroup"))?;
        let usage = Dir(dir).open(name, OFlag::O_RDONLY);
        let usage = usage.map_err(|e| explain(&format!("opening {name}"), name, e))?;
        let mut slot = lock(&self.usage.page);
        if let Some(page) = &*slot {
            self.write_page(page)?;
            return Ok((self.procfs().reopen(page.as_fd())?.into(), usage));
        }
        let page = Arc::new(self.new_page()?);
        self.write_page(&page)?;
        let given = self.procfs().reopen(page.as_fd())?;
        let loader = self.clone();
        let kept = page.clone();
        std::thread::Builder::new()
            .name("usage-page".to_owned())
            .stack_size(256 << 10)
            .spawn(move || loader.keep_page(&kept))
            .map_err(|e| Error::from(e).context("starting a thread for the usage page"))?;
        *slot = Some(page);
        Ok((given.into(), usage))
    }

    fn new_page(&self) -> Result<File> {
        let made = memfd_create(c"memory-usage", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&made, UsagePage::SIZE as i64)?;
        let size = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&made, FcntlArg::F_ADD_SEALS(size))?;
        // Only files that were opened by a path count as open for a lease.
        self.procfs().reopen_writable(made.as_fd())
    }

    fn write_page(&self, page: &File) -> Result<()> {
        let stats = self.root()?.cgroup()?.stats()?;
        let memory = self.memory()?;
        let mut sequence = [0; 8];
        page.read_exact_at(&mut sequence, 8)?;
        let sequence = u64::from_ne_bytes(sequence);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let new = UsagePage {
            mapped: memory.mapped,
            sequence: sequence + 1,
            time: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            total: memory.total(),
            anonymous: memory.anonymous,
            page_cache: memory.page_cache,
            tmpfs: memory.tmpfs,
            system: memory.system,
            cpu: stats.cpu.total,
            pids: stats.pids.current,
            oom_kills: stats.memory.oom_kills,
        };
        page.write_all_at(&new.sequence.to_ne_bytes(), 8)?;
        page.write_all_at(&new.to_bytes(), 0)?;
        page.write_all_at(&(sequence + 2).to_ne_bytes(), 8)?;
        Ok(())
    }

    /// Writes the page again and again until nobody has it any more.
    fn keep_page(&self, page: &File) {
        loop {
            std::thread::sleep(Duration::from_millis(UsagePage::INTERVAL_MS));
            let mut slot = lock(&self.usage.page);
            if !others_have(page) {
                *slot = None;
                return;
            }
            drop(slot);
            if let Err(e) = self.write_page(page) {
                log::debug!("writing the usage page: {e}");
            }
        }
    }
}

/// Device and inode of a container's memory cgroup.
fn memory_dir(container: &Container) -> Result<(u64, u64)> {
    let dir = container.cgroup()?.dir("memory");
    let stat = fstat(dir.ok_or_else(|| Error::unsupported("there is no memory cgroup"))?)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The file that reclaims, and what to write to it: as much as is in use (v2), or anything (v1).
fn reclaimer(container: &Container) -> Result<(Dir<'_>, &'static str)> {
    let cgroup = container.cgroup()?;
    let dir = cgroup.dir("memory").ok_or_else(|| Error::unsupported("there is no memory cgroup"))?;
    Ok((Dir(dir), if cgroup.v2() { "memory.reclaim" } else { "memory.force_empty" }))
}

fn check_reclaimable(container: &Container) -> Result<()> {
    let (dir, file) = reclaimer(container)?;
    if dir.exists(file) {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "this kernel cannot reclaim a container's memory: its cgroup has no {file}"
    )))
}

fn reclaim(container: &Container) -> Result<()> {
    let (dir, file) = reclaimer(container)?;
    let amount =
        if file == "memory.reclaim" { dir.read("memory.current").unwrap_or_default() } else { "0".into() };
    match dir.write(file, amount.trim()) {
        // Not all of it could be had, which was not to be expected either.
        Ok(()) | Err(Errno::EAGAIN | Errno::EBUSY) => Ok(()),
        Err(e) => Err(explain(&format!("writing to {file}"), file, e)),
    }
}

/// Whether anybody else has the file open or mapped: the kernel gives a write lease only to who is alone.
fn others_have(file: &File) -> bool {
    match files::fcntl(file.as_fd(), libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(_) => {
            let _ = files::fcntl(file.as_fd(), libc::F_SETLEASE, libc::F_UNLCK);
            false
        }
        Err(Errno::EAGAIN) => true,
        // No leases here: the page is written until the sandbox ends.
        Err(_) => true,
    }
}

/// `total=` of the line `some` of a pressure file, in microseconds.
fn pressure_total(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?;
    Some(Duration::from_micros(total.parse().ok()?))
}

/// Field 42 of `/proc/<pid>/task/<tid>/stat`.
fn delay_ticks(stat: &str) -> Option<u64> {
    // The name, field 2, may have anything in it; field 3 follows its end.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(42 - 3)?.parse().ok()
}

/// Gives free memory of the loader back to the kernel.
pub fn trim() {
    process::trim_heap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_times_are_read() {
        let text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 total=1\n";
        assert_eq!(pressure_total(text), Some(Duration::from_micros(1234)));
        assert_eq!(pressure_total(""), None);
        let stat =
            format!("7 (a) b) S {} 55 0 0", (4..42).map(|n| n.to_string()).collect::<Vec<_>>().join(" "));
        assert_eq!(delay_ticks(&stat), Some(55));
        assert_eq!(delay_ticks("7 (a) S 1"), None);
    }
}
