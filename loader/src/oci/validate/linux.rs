#![forbid(unsafe_code)]
//! `linux`, but for namespaces and resources.

use super::namespaces::Namespaces;
use super::{absolute, invalid, path_text, resources, sysctl, text, unsupported};
use crate::oci::mounts::parse_propagation;
use crate::seccomp;
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxSeccomp, LinuxSeccompAction};
use std::path::Component;

pub(super) fn check(linux: &Linux, namespaces: &Namespaces<'_>) -> Result<()> {
    refused(linux)?;
    sysctl::check(linux, namespaces)?;
    for (name, list) in
        [("linux.maskedPaths", linux.masked_paths()), ("linux.readonlyPaths", linux.readonly_paths())]
    {
        for (i, path) in list.iter().flatten().enumerate() {
            absolute(format_args!("{name}[{i}]"), path.as_ref())?;
        }
    }
    for (i, one) in linux.devices().iter().flatten().enumerate() {
        device(one).map_err(|e| e.context(format_args!("linux.devices[{i}]")))?;
    }
    if let Some(word) = linux.rootfs_propagation().as_deref().filter(|w| !w.is_empty())
        && parse_propagation(word).is_none()
    {
        return Err(invalid(
            "linux.rootfsPropagation",
            format_args!("{word:?} is none of private, shared, slave, unbindable and their r… forms"),
        ));
    }
    if linux.personality().as_ref().is_some_and(|p| p.flags().as_ref().is_some_and(|f| !f.is_empty())) {
        return Err(unsupported(
            "linux.personality.flags",
            "the runtime spec defines no flag yet: leave it out",
        ));
    }
    if let Some(path) = linux.cgroups_path().as_deref().filter(|p| !p.as_os_str().is_empty()) {
        path_text("linux.cgroupsPath", path)?;
        if path.components().any(|c| c == Component::ParentDir) {
            return Err(invalid("linux.cgroupsPath", "must not lead upwards with \"..\""));
        }
    }
    if let Some(given) = linux.resources() {
        resources::check(given)?;
    }
    linux.seccomp().as_ref().map_or(Ok(()), check_seccomp)
}

/// Items of the spec that airlock does not implement.
fn refused(linux: &Linux) -> Result<()> {
    if linux.intel_rdt().is_some() {
        return Err(unsupported(
            "linux.intelRdt",
            "airlock does not manage Intel RDT (resctrl): leave it out",
        ));
    }
    if linux.memory_policy().is_some() {
        return Err(unsupported(
            "linux.memoryPolicy",
            "airlock does not set NUMA memory policies: leave it out, or run the program with numactl",
        ));
    }
    if linux.net_devices().as_ref().is_some_and(|d| !d.is_empty()) {
        return Err(unsupported(
            "linux.netDevices",
            "airlock does not move network devices: move them in a createRuntime hook (ip link set … netns …)",
        ));
    }
    if let Some(label) = linux.mount_label().as_deref().filter(|l| !l.is_empty()) {
        return Err(unsupported(
            "linux.mountLabel",
            format_args!("{label:?} cannot be applied: airlock does not set SELinux labels; leave it out"),
        ));
    }
    Ok(())
}

fn device(device: &LinuxDevice) -> Result<()> {
    absolute("path", device.path())?;
    if device.typ() == LinuxDeviceType::A {
        return Err(invalid("type", "a stands for all devices and cannot be made: use c, b, u or p"));
    }
    if device.typ() != LinuxDeviceType::P {
        // The kernel's device numbers have 12 and 20 bits.
        for (name, number, bits) in [("major", device.major(), 12), ("minor", device.minor(), 20)] {
            if !(0..1 << bits).contains(&number) {
                return Err(invalid(
                    name,
                    format_args!("{number} is out of range (0 to {})", (1 << bits) - 1),
                ));
            }
        }
    }
    // Callers leave type bits of several kinds in fileMode: only the permissions count, as in runc.
    Ok(())
}

fn check_seccomp(profile: &LinuxSeccomp) -> Result<()> {
    const LISTENER: &str = "linux.seccomp.listenerPath";
    seccomp::compile(profile, &seccomp::Options::default())
        .map_err(|e| Error::invalid_argument(e.to_string()))?;
    let listener = profile.listener_path().as_deref().filter(|p| !p.as_os_str().is_empty());
    if let Some(path) = listener {
        path_text(LISTENER, path)?;
    }
    if let Some(metadata) = profile.listener_metadata() {
        text("linux.seccomp.listenerMetadata", metadata)?;
        if listener.is_none() && !metadata.is_empty() {
            return Err(invalid("linux.seccomp.listenerMetadata", "is specified without listenerPath"));
        }
    }
    let notifies =
        profile.syscalls().iter().flatten().any(|s| s.action() == LinuxSeccompAction::ScmpActNotify);
    if notifies && listener.is_none() {
        return Err(invalid(
            LISTENER,
            "is missing, but a rule's action is SCMP_ACT_NOTIFY: nobody would answer",
        ));
    }
    Ok(())
}
