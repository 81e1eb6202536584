//! How the limits of `linux.resources` are written to the control files of one cgroup directory (OCI runtime spec,
//! "Control groups"). Only what is given is written, in the order that the kernel accepts whether a limit rises or
//! falls.
#![forbid(unsafe_code)]

pub mod cpu;
pub mod devices;
pub mod devices_bpf;
pub mod io;
pub mod memory;
pub mod misc;

use super::files::{Dir, Files};
use airlock_wire::error::{Error, Kind, Result};
use oci_spec::runtime::LinuxResources;
use std::os::fd::BorrowedFd;

/// Writes what `resources` says about the controllers of one hierarchy.
///
/// `name` is the hierarchy as [`super::Cgroup`] calls it (`cpu,cpuacct`); with `v2` it is not looked at and all
/// controllers are written. `resources.devices` given as a list replaces the device rules (the default devices are
/// added); absent, they stay as they are.
///
/// # Errors
/// The first refusal, naming the file and the value; earlier writes stay.
pub fn apply_dir(v2: bool, name: &str, dir: BorrowedFd<'_>, resources: &LinuxResources) -> Result<()> {
    let files = Dir(dir);
    let v1_devices = |files: &dyn Files| match resources.devices() {
        Some(list) => devices::apply_v1(files, &devices::rules(list)?),
        None => Ok(()),
    };
    if v2 {
        apply_v2(&files, resources)?;
        return match resources.devices() {
            Some(list) => devices_bpf::apply(dir, &devices::rules(list)?),
            None => Ok(()),
        };
    }
    refuse_unified(resources)?;
    for controller in name.split(',') {
        match controller {
            "cpu" => each(resources.cpu().as_ref(), |c| cpu::v1(&files, c)),
            "cpuset" => each(resources.cpu().as_ref(), |c| cpu::set_cpuset(&files, c)),
            "memory" => each(resources.memory().as_ref(), |m| memory::v1(&files, m)),
            "pids" => each(resources.pids().as_ref(), |p| misc::pids(&files, p)),
            "blkio" => each(resources.block_io().as_ref(), |b| io::v1(&files, b)),
            "hugetlb" => each(resources.hugepage_limits().as_ref(), |h| misc::hugetlb(&files, false, h)),
            "net_cls" => each(resources.network().as_ref(), |n| misc::net_cls(&files, n)),
            "net_prio" => each(resources.network().as_ref(), |n| misc::net_prio(&files, n)),
            "rdma" => each(resources.rdma().as_ref(), |r| misc::rdma(&files, r)),
            "devices" => v1_devices(&files),
            _ => Ok(()),
        }?;
    }
    Ok(())
}

/// The v2 files of everything but devices.
fn apply_v2(files: &dyn Files, resources: &LinuxResources) -> Result<()> {
    if let Some(network) = resources.network() {
        misc::refuse_network(network)?;
    }
    each(resources.cpu().as_ref(), |c| {
        cpu::v2(files, c)?;
        cpu::set_cpuset(files, c)
    })?;
    each(resources.memory().as_ref(), |m| memory::v2(files, m))?;
    each(resources.pids().as_ref(), |p| misc::pids(files, p))?;
    each(resources.block_io().as_ref(), |b| io::v2(files, b))?;
    each(resources.hugepage_limits().as_ref(), |h| misc::hugetlb(files, true, h))?;
    each(resources.rdma().as_ref(), |r| misc::rdma(files, r))?;
    each(resources.unified().as_ref(), |u| misc::unified(files, u))
}

fn each<T>(given: Option<&T>, apply: impl FnOnce(&T) -> Result<()>) -> Result<()> {
    given.map_or(Ok(()), apply)
}

fn refuse_unified(resources: &LinuxResources) -> Result<()> {
    match resources.unified() {
        Some(keys) if !keys.is_empty() => {
            let mut names: Vec<_> = keys.keys().map(String::as_str).collect();
            names.sort_unstable();
            Err(Error::unsupported(format!(
                "linux.resources.unified ({}) needs cgroup v2, and this machine's controllers are mounted as v1: \
                 use the fields of linux.resources instead",
                names.join(", ")
            )))
        }
        _ => Ok(()),
    }
}

/// The v1 controllers that the given limits need, in the words of `/proc/self/cgroup`: a missing one is an error
/// before anything is written.
pub fn needed_v1(resources: &LinuxResources) -> Vec<&'static str> {
    let mut names = Vec::new();
    if let Some(cpu) = resources.cpu() {
        let bandwidth = [cpu.shares().is_some_and(|n| n != 0), cpu.quota().is_some_and(|n| n != 0)];
        let more = [
            cpu.period().is_some_and(|n| n != 0),
            cpu.burst().is_some(),
            cpu.idle().is_some(),
            cpu.realtime_runtime().is_some_and(|n| n != 0),
            cpu.realtime_period().is_some_and(|n| n != 0),
        ];
        if bandwidth.into_iter().chain(more).any(|given| given) {
            names.push("cpu");
        }
        if [cpu.cpus(), cpu.mems()].into_iter().flatten().any(|s| !s.is_empty()) {
            names.push("cpuset");
        }
    }
    if resources.memory().as_ref().is_some_and(memory::any_v1) {
        names.push("memory");
    }
    if resources.pids().is_some() {
        names.push("pids");
    }
    if resources.block_io().as_ref().is_some_and(io::any) {
        names.push("blkio");
    }
    if resources.hugepage_limits().as_ref().is_some_and(|l| !l.is_empty()) {
        names.push("hugetlb");
    }
    if let Some(network) = resources.network() {
        if network.class_id().is_some_and(|id| id != 0) {
            names.push("net_cls");
        }
        if network.priorities().as_ref().is_some_and(|p| !p.is_empty()) {
            names.push("net_prio");
        }
    }
    if resources.rdma().as_ref().is_some_and(|r| !r.is_empty()) {
        names.push("rdma");
    }
    if resources.devices().is_some() {
        names.push("devices");
    }
    names
}

/// Checks that the hierarchies `names` (`cpu,cpuacct`, `memory`, …) have every v1 controller that `resources`
/// needs, and that no v2-only key is given.
///
/// # Errors
/// [`Kind::Unsupported`] naming the missing controller and how to mount it.
pub fn check_v1<'a>(names: impl Iterator<Item = &'a str> + Clone, resources: &LinuxResources) -> Result<()> {
    refuse_unified(resources)?;
    for controller in needed_v1(resources) {
        if !names.clone().any(|name| name.split(',').any(|c| c == controller)) {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "linux.resources has limits for the {controller} controller, which is not mounted: mount it \
                     (mount -t cgroup -o {controller} {controller} /sys/fs/cgroup/{controller}) or leave the \
                     limits out"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
