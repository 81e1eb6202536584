//! Checks that an image's indexes lead somewhere.
#![forbid(unsafe_code)]

use super::{FileKind, Id, SandboxState, VmaKind};
use airlock_wire::error::{Error, Result};

impl SandboxState {
    /// Checks every index and the order of processes, so that later code may rely on them.
    ///
    /// # Errors
    /// What is wrong first, by name.
    pub fn check(&self) -> Result<()> {
        let within = |what: &str, id: Id, len: usize| {
            if (id as usize) < len {
                Ok(())
            } else {
                Err(Error::invalid_argument(format!("the statefile is damaged: {what} {id} of {len}")))
            }
        };
        if self.containers.is_empty() {
            return Err(Error::invalid_argument("the statefile is damaged: it has no container"));
        }
        let containers = self.containers.len();
        for c in &self.containers {
            within("pid namespace of container", c.pid_namespace, containers)?;
            within("IPC namespace of container", c.ipc_owner, containers)?;
            c.network.map_or(Ok(()), |n| within("network", n, self.networks.len()))?;
        }
        for p in &self.processes {
            within("container", p.container, containers)?;
            p.mm.map_or(Ok(()), |mm| within("address space", mm, self.mms.len()))?;
            if p.threads.is_empty() {
                return Err(Error::invalid_argument(format!(
                    "the statefile is damaged: process {} has no thread",
                    p.pid
                )));
            }
            for t in &p.threads {
                if p.mm.is_some() {
                    within("descriptor table", t.fd_table, self.fd_tables.len())?;
                    within("directory", t.fs, self.fs.len())?;
                }
                for f in &t.seccomp {
                    within("seccomp filter", *f, self.seccomp_filters.len())?;
                }
            }
        }
        for mm in &self.mms {
            let mut last = 0;
            for vma in &mm.vmas {
                if vma.start < last || vma.end <= vma.start || (vma.start | vma.end) & 0xfff != 0 {
                    return Err(Error::invalid_argument(format!(
                        "the statefile is damaged: mapping {:#x}-{:#x} after {last:#x}",
                        vma.start, vma.end
                    )));
                }
                last = vma.end;
                match vma.kind {
                    VmaKind::File(id) => within("mapped file", id, self.files.len())?,
                    VmaKind::Shmem(id) => within("memory object", id, self.shmems.len())?,
                    _ => {}
                }
            }
            mm.exe.map_or(Ok(()), |f| within("program file", f, self.files.len()))?;
        }
        for table in &self.fd_tables {
            for entry in &table.fds {
                within("open file", entry.file, self.files.len())?;
            }
        }
        for file in &self.files {
            within("container of a file", file.container, containers)?;
            match &file.kind {
                FileKind::External { container, .. } => within("container", *container, containers)?,
                FileKind::Memfd(id) => within("memory object", *id, self.shmems.len())?,
                FileKind::Deleted { shmem: Some(id), .. } => within("memory object", *id, self.shmems.len())?,
                FileKind::Epoll { targets } => {
                    for t in targets {
                        within("watched file", t.file, self.files.len())?;
                    }
                }
                FileKind::Socket(s) => {
                    if !self.networks.is_empty() {
                        within("network", s.network, self.networks.len())?;
                    }
                    for f in s.queue.iter().flat_map(|m| &m.files) {
                        within("file in a message", *f, self.files.len())?;
                    }
                    for f in s.tcp.iter().flat_map(|t| &t.accept_queue) {
                        within("waiting connection", *f, self.files.len())?;
                    }
                }
                _ => {}
            }
        }
        for s in &self.ipc.segments {
            within("memory object", s.shmem, self.shmems.len())?;
        }
        for f in &self.filesystems {
            within("container of a filesystem", f.container, containers)?;
        }
        Ok(())
    }
}
