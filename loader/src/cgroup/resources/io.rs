//! Block I/O weights and rates.
#![forbid(unsafe_code)]

use crate::cgroup::files::{Files, set};
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

/// A list of rates and the file (v1) or key (v2) that it goes to.
type Rates<'a> = (&'static str, &'static str, &'a Option<Vec<LinuxThrottleDevice>>);

fn rates(io: &LinuxBlockIo) -> [Rates<'_>; 4] {
    [
        ("blkio.throttle.read_bps_device", "rbps", io.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", "wbps", io.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", "riops", io.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", "wiops", io.throttle_write_iops_device()),
    ]
}

/// Whether anything is given.
pub(super) fn any(io: &LinuxBlockIo) -> bool {
    io.weight().is_some_and(|w| w != 0)
        || io.leaf_weight().is_some_and(|w| w != 0)
        || io.weight_device().as_ref().is_some_and(|l| !l.is_empty())
        || rates(io).iter().any(|(_, _, list)| list.as_ref().is_some_and(|l| !l.is_empty()))
}

fn device(major: i64, minor: i64) -> Result<String> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(Error::invalid_argument(format!(
            "linux.resources.blockIO: {major}:{minor} is no device number"
        ))),
    }
}

fn no_weights(files: &str) -> Error {
    Error::unsupported(format!(
        "linux.resources.blockIO.weight: this kernel has none of {files} here; load the BFQ scheduler (modprobe bfq) \
         or leave the weight out"
    ))
}

/// v1 `blkio`: weights by CFQ's names where they exist, else by BFQ's.
///
/// # Errors
/// The kernel's refusal; [`airlock_wire::error::Kind::Unsupported`] when no scheduler has weights.
pub fn v1(files: &dyn Files, io: &LinuxBlockIo) -> Result<()> {
    let find = |names: [&'static str; 2]| {
        names.into_iter().find(|n| files.exists(n)).ok_or_else(|| no_weights(&names.join(" and ")))
    };
    if let Some(weight) = io.weight().filter(|w| *w != 0) {
        set(files, find(["blkio.weight", "blkio.bfq.weight"])?, weight)?;
    }
    if let Some(weight) = io.leaf_weight().filter(|w| *w != 0) {
        set(files, "blkio.leaf_weight", weight)?;
    }
    for one in io.weight_device().iter().flatten() {
        let device = device(one.major(), one.minor())?;
        if let Some(weight) = one.weight().filter(|w| *w != 0) {
            let file = find(["blkio.weight_device", "blkio.bfq.weight_device"])?;
            set(files, file, format!("{device} {weight}"))?;
        }
        if let Some(weight) = one.leaf_weight().filter(|w| *w != 0) {
            set(files, "blkio.leaf_weight_device", format!("{device} {weight}"))?;
        }
    }
    for (file, _, list) in rates(io) {
        for one in list.iter().flatten() {
            // A rate of 0 takes the limit away.
            set(files, file, format!("{} {}", device(one.major(), one.minor())?, one.rate()))?;
        }
    }
    Ok(())
}

/// Converts a v1 weight (10 to 1000) to `io.weight` (1 to 10000), linearly.
pub fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

/// v2 `io`: `io.bfq.weight` where it exists (same scale), else `io.weight`; `io.max`.
///
/// # Errors
/// As [`v1`]; leaf weights, which v2 does not have.
pub fn v2(files: &dyn Files, io: &LinuxBlockIo) -> Result<()> {
    let leaf = io.weight_device().iter().flatten().any(|d| d.leaf_weight().is_some_and(|w| w != 0));
    if leaf || io.leaf_weight().is_some_and(|w| w != 0) {
        return Err(Error::unsupported(
            "linux.resources.blockIO.leafWeight: cgroup v2 has none; leave it out",
        ));
    }
    let weight = |weight: u16| -> Result<(&'static str, u64)> {
        if files.exists("io.bfq.weight") {
            Ok(("io.bfq.weight", u64::from(weight)))
        } else if files.exists("io.weight") {
            Ok(("io.weight", io_weight(weight)))
        } else {
            Err(no_weights("io.bfq.weight and io.weight"))
        }
    };
    if let Some(given) = io.weight().filter(|w| *w != 0) {
        let (file, value) = weight(given)?;
        set(files, file, value)?;
    }
    for one in io.weight_device().iter().flatten() {
        if let Some(given) = one.weight().filter(|w| *w != 0) {
            let (file, value) = weight(given)?;
            set(files, file, format!("{} {value}", device(one.major(), one.minor())?))?;
        }
    }
    for (_, key, list) in rates(io) {
        for one in list.iter().flatten() {
            let rate = if one.rate() == 0 { "max".to_owned() } else { one.rate().to_string() };
            set(files, "io.max", format!("{} {key}={rate}", device(one.major(), one.minor())?))?;
        }
    }
    Ok(())
}
