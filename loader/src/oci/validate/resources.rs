#![forbid(unsafe_code)]
//! `linux.resources`: ranges that hold on every kernel. What depends on the cgroup version or on a controller is told
//! by [`crate::cgroup`] when the limits are written.

use super::{invalid, text};
use crate::cgroup::resources::devices;
use airlock_wire::error::Result;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

const PATH: &str = "linux.resources";

pub(super) fn check(resources: &LinuxResources) -> Result<()> {
    devices::rules(resources.devices().as_deref().unwrap_or_default())?;
    resources.memory().as_ref().map_or(Ok(()), memory)?;
    resources.cpu().as_ref().map_or(Ok(()), cpu)?;
    resources.block_io().as_ref().map_or(Ok(()), block_io)?;
    let limits = resources.hugepage_limits().as_deref().unwrap_or_default();
    for (i, limit) in limits.iter().enumerate() {
        text(format_args!("{PATH}.hugepageLimits[{i}].pageSize"), limit.page_size())?;
        if limits[..i].iter().any(|l| l.page_size() == limit.page_size()) {
            return Err(invalid(
                format_args!("{PATH}.hugepageLimits[{i}]"),
                format_args!("page size {} is there twice", limit.page_size()),
            ));
        }
    }
    for (key, value) in resources.unified().iter().flatten() {
        let path = format_args!("{PATH}.unified[{key:?}]");
        text(path, key)?;
        text(path, value)?;
        if key.is_empty() || key.contains('/') {
            return Err(invalid(path, "is not the name of a cgroup v2 file (as memory.high)"));
        }
    }
    Ok(())
}

fn memory(memory: &LinuxMemory) -> Result<()> {
    match memory.swappiness() {
        Some(n) if n > 100 => Err(invalid(
            format_args!("{PATH}.memory.swappiness"),
            format_args!("is {n}: it goes from 0 to 100"),
        )),
        _ => Ok(()),
    }
}

fn cpu(cpu: &LinuxCpu) -> Result<()> {
    if let Some(idle) = cpu.idle().filter(|idle| !(0..=1).contains(idle)) {
        return Err(invalid(
            format_args!("{PATH}.cpu.idle"),
            format_args!("is {idle}: only 0 and 1 have a meaning"),
        ));
    }
    for (name, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        // The kernel's own list format; it has strides as well (`0-7:2/4`).
        let sound = |c: char| c.is_ascii_digit() || matches!(c, ',' | '-' | ':' | '/' | ' ');
        if let Some(list) = list.as_deref().filter(|l| !l.trim_end().chars().all(sound)) {
            return Err(invalid(
                format_args!("{PATH}.cpu.{name}"),
                format_args!("{list:?} is not a list such as 0-3,7"),
            ));
        }
    }
    Ok(())
}

fn block_io(io: &LinuxBlockIo) -> Result<()> {
    let weight = |path: String, weight: Option<u16>| match weight {
        // 0 stands for "not given".
        Some(w) if w != 0 && !(10..=1000).contains(&w) => {
            Err(invalid(path, format_args!("is {w}: weights go from 10 to 1000")))
        }
        _ => Ok(()),
    };
    weight(format!("{PATH}.blockIO.weight"), io.weight())?;
    weight(format!("{PATH}.blockIO.leafWeight"), io.leaf_weight())?;
    for (i, device) in io.weight_device().iter().flatten().enumerate() {
        let path = format!("{PATH}.blockIO.weightDevice[{i}]");
        weight(format!("{path}.weight"), device.weight())?;
        weight(format!("{path}.leafWeight"), device.leaf_weight())?;
        number(&path, device.major(), device.minor())?;
    }
    let rates = [
        ("throttleReadBpsDevice", io.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", io.throttle_write_bps_device()),
        ("throttleReadIOPSDevice", io.throttle_read_iops_device()),
        ("throttleWriteIOPSDevice", io.throttle_write_iops_device()),
    ];
    for (name, list) in rates {
        for (i, device) in list.iter().flatten().enumerate() {
            number(&format!("{PATH}.blockIO.{name}[{i}]"), device.major(), device.minor())?;
        }
    }
    Ok(())
}

fn number(path: &str, major: i64, minor: i64) -> Result<()> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(_), Ok(_)) => Ok(()),
        _ => Err(invalid(path, format_args!("{major}:{minor} is no device number"))),
    }
}
