//! Puts a container's cgroups into the message to its sandbox.
#![forbid(unsafe_code)]

use super::{CreateOptions, Manager, owner_of, views};
use crate::sandbox::FdList;
use airlock_wire::api::boot::{CgroupDir, CgroupFds};
use airlock_wire::error::Result;
use oci_spec::runtime::Spec;

impl Manager {
    /// Makes the planned cgroups, sets the spec's limits and adds the descriptors to a message. `sandbox` is true for
    /// a root container: the message is then one that makes a sandbox, which joins the cgroups.
    ///
    /// # Errors
    /// As [`Manager::make_dirs`], [`Manager::apply_new`] and [`Manager::open`]. On error the cgroups are removed.
    pub fn make(&mut self, spec: &Spec, fds: &mut FdList, sandbox: bool) -> Result<CgroupFds> {
        let created = self.make_dirs(CreateOptions { owner: owner_of(spec) })?;
        let prepared = self.apply_new(spec.linux().as_ref().and_then(|l| l.resources().as_ref()));
        let opened = match prepared.and_then(|()| self.open(sandbox, &views(spec, self.v2()))) {
            Ok(opened) => opened,
            Err(e) => {
                created.undo();
                *self = Self::default();
                return Err(e);
            }
        };
        created.keep();
        let dirs = opened.dirs.into_iter();
        // Named by no index: the loader closes what it was not told to use once the container runs.
        for kept in opened.kept {
            fds.push(kept);
        }
        Ok(CgroupFds {
            v2: opened.v2,
            dirs: dirs
                .map(|d| CgroupDir { name: d.name, dir: fds.push(d.dir), join: d.join.map(|j| fds.push(j)) })
                .collect(),
            mounts: opened.mounts.into_iter().map(|m| fds.push(m)).collect(),
        })
    }
}
