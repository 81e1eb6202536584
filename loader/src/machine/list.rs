//! What is in a container.
#![forbid(unsafe_code)]

use super::{Machine, Name, hosts, no_container};
use crate::cgroup::tree::Node;
use airlock_wire::api::container::ListPolicy;
use airlock_wire::error::{Kind, Result};

impl Machine {
    /// Names of the containers in a container, sorted (seed 003, `ListSubcontainers`).
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn subcontainers(&self, name: &Name, policy: ListPolicy) -> Result<Vec<Name>> {
        fn list(node: &Node, name: &Name, policy: ListPolicy, all: &mut Vec<Name>) -> Result<()> {
            if hosts::is_host(node) {
                return Ok(());
            }
            for part in node.children()? {
                let child = name.child(&part);
                if policy == ListPolicy::ListRecursive {
                    match node.child(&part) {
                        Ok(node) => list(&node, &child, policy, all)?,
                        Err(e) if e.kind == Kind::NoSuchEntity => continue,
                        Err(e) => return Err(e),
                    }
                }
                all.push(child);
            }
            Ok(())
        }
        self.on(name, false, |_, node| {
            let mut all = Vec::new();
            list(node, name, policy, &mut all)?;
            all.sort_unstable();
            Ok(all)
        })
    }

    /// Thread ids in a container, ascending (seed 003, `ListThreads`).
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn threads(&self, name: &Name, policy: ListPolicy) -> Result<Vec<i32>> {
        self.listed(name, |node| match policy {
            ListPolicy::ListSelf if !hosts::is_host(node) => node.threads(),
            _ => node.threads_below(),
        })
    }

    /// Process ids in a container, ascending (seed 003, `ListProcesses`).
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn processes(&self, name: &Name, policy: ListPolicy) -> Result<Vec<i32>> {
        self.listed(name, |node| match policy {
            ListPolicy::ListSelf if !hosts::is_host(node) => node.processes(),
            _ => node.processes_below(),
        })
    }

    /// A listing that is empty may be that of a container which is gone.
    fn listed(&self, name: &Name, list: impl FnOnce(&Node) -> Result<Vec<i32>>) -> Result<Vec<i32>> {
        self.on(name, false, |_, node| match list(node) {
            Ok(none) if none.is_empty() && node.gone() => Err(no_container(name)),
            other => other,
        })
    }
}
