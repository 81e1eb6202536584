//! The small controllers: pids, hugetlb, network classes, rdma; and v2's `unified` keys.
#![forbid(unsafe_code)]

use crate::cgroup::files::{self, Files, set};
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{LinuxHugepageLimit, LinuxNetwork, LinuxPids, LinuxRdma};
use std::collections::HashMap;

/// `pids.max`; zero and less is no limit. The sandbox's own few threads count too.
///
/// # Errors
/// The kernel's refusal.
pub fn pids(files: &dyn Files, pids: &LinuxPids) -> Result<()> {
    match pids.limit() {
        limit if limit > 0 => set(files, "pids.max", limit),
        _ => set(files, "pids.max", "max"),
    }
}

/// Huge page limits; negative is no limit. The reservation limit, where the kernel has one, is set to the same, as
/// reserved pages would otherwise fault with SIGBUS.
///
/// # Errors
/// The kernel's refusal; a page size that is no size, or that the machine does not have.
pub fn hugetlb(files: &dyn Files, v2: bool, limits: &[LinuxHugepageLimit]) -> Result<()> {
    for limit in limits {
        let size = limit.page_size();
        let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
        let unit = size.get(digits.len()..).unwrap_or_default();
        let sound = digits.parse::<u32>().is_ok_and(|n| n > 0) && matches!(unit, "KB" | "MB" | "GB");
        if !sound {
            return Err(Error::invalid_argument(format!(
                "linux.resources.hugepageLimits: page size {size:?} is not a number with KB, MB or GB (as 2MB, 1GB)"
            )));
        }
        let (end, rsvd, none) =
            if v2 { ("max", "rsvd.max", "max") } else { ("limit_in_bytes", "rsvd.limit_in_bytes", "-1") };
        let value = if limit.limit() < 0 { none.to_owned() } else { limit.limit().to_string() };
        set(files, &format!("hugetlb.{size}.{end}"), &value)?;
        let reserved = format!("hugetlb.{size}.{rsvd}");
        if files.exists(&reserved) {
            set(files, &reserved, &value)?;
        }
    }
    Ok(())
}

/// v1 `net_cls.classid`.
///
/// # Errors
/// The kernel's refusal.
pub fn net_cls(files: &dyn Files, network: &LinuxNetwork) -> Result<()> {
    network.class_id().filter(|id| *id != 0).map_or(Ok(()), |id| set(files, "net_cls.classid", id))
}

/// v1 `net_prio.ifpriomap`.
///
/// # Errors
/// The kernel's refusal; a name that is no interface name.
pub fn net_prio(files: &dyn Files, network: &LinuxNetwork) -> Result<()> {
    for one in network.priorities().iter().flatten() {
        let name = one.name();
        let bad =
            name.is_empty() || name.len() > 15 || !name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if bad {
            return Err(Error::invalid_argument(format!(
                "linux.resources.network.priorities: {name:?} is not the name of an interface"
            )));
        }
        set(files, "net_prio.ifpriomap", format!("{name} {}", one.priority()))?;
    }
    Ok(())
}

/// v2 has neither network classes nor priorities.
///
/// # Errors
/// [`airlock_wire::error::Kind::Unsupported`] when one is asked for.
pub fn refuse_network(network: &LinuxNetwork) -> Result<()> {
    let priorities = network.priorities().as_ref().is_some_and(|p| !p.is_empty());
    if priorities || network.class_id().is_some_and(|id| id != 0) {
        return Err(Error::unsupported(
            "linux.resources.network: classID and priorities need cgroup v1; use nftables socket cgroupv2 matches \
             and leave them out",
        ));
    }
    Ok(())
}

/// `rdma.max`, the same in v1 and v2.
///
/// # Errors
/// The kernel's refusal; a device name with spaces.
pub fn rdma(files: &dyn Files, limits: &HashMap<String, LinuxRdma>) -> Result<()> {
    for (device, limit) in limits {
        if device.is_empty() || device.len() > 64 || !device.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::invalid_argument(format!(
                "linux.resources.rdma: {device:?} is not the name of an RDMA device"
            )));
        }
        let mut line = device.clone();
        for (key, value) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
            if let Some(value) = value {
                line.push_str(&format!(" {key}={value}"));
            }
        }
        if line.len() > device.len() {
            set(files, "rdma.max", line)?;
        }
    }
    Ok(())
}

/// v2 `unified`: file names and what to write, sorted by name; a text of several lines is written line by line.
///
/// # Errors
/// The kernel's refusal; a key that is no file name, or that moves, freezes or kills processes.
pub fn unified(files: &dyn Files, keys: &HashMap<String, String>) -> Result<()> {
    const REFUSED: [&str; 6] = [
        "cgroup.procs",
        "cgroup.threads",
        "cgroup.kill",
        "cgroup.freeze",
        "cgroup.type",
        "cgroup.subtree_control",
    ];
    let mut sorted: Vec<_> = keys.iter().collect();
    sorted.sort_unstable();
    for (file, text) in sorted {
        if !files::valid_file_name(file) || !file.contains('.') {
            return Err(Error::invalid_argument(format!(
                "linux.resources.unified: {file:?} is not the name of a cgroup v2 file (as memory.high)"
            )));
        }
        if REFUSED.contains(&file.as_str()) {
            return Err(Error::invalid_argument(format!(
                "linux.resources.unified: {file} is not a limit; the runtime writes it itself"
            )));
        }
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        if lines.is_empty() {
            set(files, file, text)?;
        }
        for line in lines {
            set(files, file, line)?;
        }
    }
    Ok(())
}
