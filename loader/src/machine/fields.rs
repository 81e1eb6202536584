//! Single fields of specifications: what is refused by name, masks, device rules.
#![forbid(unsafe_code)]

use super::plan::{missing, range};
use crate::cgroup::resources::devices::{ALL, Access, MKNOD, Node, READ, Rule, WRITE};
use airlock_wire::api::container::spec::{
    ContainerSpec, CpuMask, Device, DeviceAccess, DevicePermission, DeviceSpec, DeviceType, EventSpec,
    MemorySpec,
};
use airlock_wire::api::container::status::Code;
use airlock_wire::error::Result;

/// Refuses the fields that lmctfy never implemented, and those that no kernel has but Google's.
pub(super) fn refuse_unimplemented(spec: &ContainerSpec) -> Result<()> {
    let MemorySpec {
        eviction_priority,
        max_limit,
        hugetlbfs_path,
        tmpfs,
        compression_sampling_ratio,
        stale_page_age,
        dirty,
        kmem_charge_usage,
        ..
    } = spec.memory.clone().unwrap_or_default();
    if let Some(priority) = eviction_priority.filter(|p| !(0..=10_000).contains(p)) {
        return Err(range("memory.eviction_priority", priority, "is 0 to 10000"));
    }
    if let Some(dirty) = &dirty {
        let ratios = dirty.ratio.is_some() || dirty.background_ratio.is_some();
        let limits = dirty.limit.is_some() || dirty.background_limit.is_some();
        if ratios && limits {
            return Err(Code::InvalidArgument
                .error("memory.dirty has ratios and limits: only one of them is possible"));
        }
    }
    let filesystem = spec.filesystem.clone().unwrap_or_default();
    let host = spec.virtual_host.clone().unwrap_or_default();
    let no_host = spec.virtual_host.is_none();
    let run = host.init.as_ref().and_then(|init| init.run_spec.clone()).unwrap_or_default();
    let never = "lmctfy never implemented it";
    let no_apparmor = "no machine at hand has AppArmor to show that it works";
    let kernel = "the kernel has no such thing for a cgroup";
    let refused = [
        ("memory.eviction_priority", eviction_priority.is_some(), kernel),
        (
            "memory.max_limit",
            max_limit.is_some(),
            "lmctfy never implemented it; memory.limit is a hard limit",
        ),
        ("memory.hugetlbfs_path", hugetlbfs_path.is_some(), never),
        ("memory.tmpfs", tmpfs.is_some(), never),
        ("memory.compression_sampling_ratio", compression_sampling_ratio.is_some(), kernel),
        ("memory.stale_page_age", stale_page_age.is_some(), kernel),
        ("memory.dirty", dirty.is_some(), kernel),
        (
            "memory.kmem_charge_usage: false",
            kmem_charge_usage == Some(false),
            "the kernel always charges its memory",
        ),
        (
            "network",
            spec.network.is_some(),
            "it has no fields, and networks are isolated by containers of airlock",
        ),
        ("monitoring", spec.monitoring.is_some(), never),
        ("filesystem.fd_limit", filesystem.fd_limit.is_some(), never),
        ("filesystem.mounts", filesystem.mounts.is_some(), never),
        ("virtual_host.virtual_hostname", host.virtual_hostname.is_some(), never),
        (
            "virtual_host.network",
            host.network.is_some(),
            "a virtual host has the machine's network; for another one run a container of airlock whose \
             linux.cgroupsPath is in this tree",
        ),
        ("virtual_host.init.run_spec.console", run.console.is_some(), never),
        ("virtual_host.init.run_spec.apparmor_profile", run.apparmor_profile.is_some(), no_apparmor),
        ("security_spec", spec.security_spec.is_some(), no_apparmor),
    ];
    if let Some((field, _, why)) = refused.iter().find(|(_, given, _)| *given) {
        return Err(Code::Unimplemented.error(format_args!("{field}: {why}; leave it out")));
    }
    if spec.filesystem.is_some() && no_host {
        return Err(Code::InvalidArgument.error("filesystem.rootfs needs a virtual_host"));
    }
    for (field, id) in [("owner", spec.owner), ("owner_group", spec.owner_group)] {
        if let Some(id) = id.filter(|id| !(0..i64::from(u32::MAX)).contains(id)) {
            return Err(range(field, id, "is a user or group id, 0 to 4294967294"));
        }
    }
    Ok(())
}

/// A mask as the kernel lists processors (`0-2,5`).
pub(super) fn cpu_list(mask: &CpuMask) -> Result<String> {
    /// More than any kernel has.
    const MOST_WORDS: usize = 128;
    if mask.data.len() > MOST_WORDS {
        return Err(range("cpu.mask", mask.data.len(), "has at most 128 words of 64 processors"));
    }
    let set = |cpu: usize| mask.data.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1);
    let mut ranges = Vec::new();
    let mut cpu = 0;
    while cpu < mask.data.len() * 64 {
        let first = cpu;
        while set(cpu) {
            cpu += 1;
        }
        match cpu - first {
            0 => {}
            1 => ranges.push(first.to_string()),
            _ => ranges.push(format!("{first}-{}", cpu - 1)),
        }
        cpu += 1;
    }
    if ranges.is_empty() {
        return Err(Code::InvalidArgument.error("cpu.mask has no processor"));
    }
    Ok(ranges.join(","))
}

/// The reverse of [`cpu_list`], for what somebody else has set.
pub(super) fn cpu_mask(list: &str) -> CpuMask {
    let mut data: Vec<u64> = Vec::new();
    for range in list.trim().split(',').filter(|r| !r.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else { continue };
        for cpu in first..=last.min(8191) {
            if data.len() <= cpu / 64 {
                data.resize(cpu / 64 + 1, 0);
            }
            data[cpu / 64] |= 1 << (cpu % 64);
        }
    }
    CpuMask { data }
}

/// The numbers of a block device.
pub(super) fn device_number(field: &str, device: Option<&Device>) -> Result<(i64, i64)> {
    let device = device.ok_or_else(|| missing(&format!("{field}.device")))?;
    let number = |name: &str, n: Option<i64>| match n {
        Some(n) if (0..=i64::from(u32::MAX)).contains(&n) => Ok(n),
        Some(n) => Err(range(&format!("{field}.device.{name}"), n, "is a device number")),
        None => Err(missing(&format!("{field}.device.{name}"))),
    };
    Ok((number("major", device.major)?, number("minor", device.minor)?))
}

/// Restrictions as rules, without those of the parent.
pub(super) fn device_rules(device: &DeviceSpec) -> Result<Vec<Rule>> {
    const PATH: &str = "device.restrictions_set.restrictions";
    let mut rules = Vec::new();
    for one in device.restrictions_set.iter().flat_map(|set| &set.restrictions) {
        let allow = match one.permission {
            Some(DevicePermission::Allow) => true,
            Some(DevicePermission::Deny) => false,
            None => return Err(missing(&format!("{PATH}.permission"))),
        };
        let number = |name: &str, n: Option<i64>| match n.map(u32::try_from) {
            None => Ok(None),
            Some(Ok(n)) => Ok(Some(n)),
            Some(Err(_)) => {
                Err(range(&format!("{PATH}.{name}"), n.unwrap_or_default(), "is a device number"))
            }
        };
        let node = match one.kind {
            // About all devices and all access, whatever else is said.
            Some(DeviceType::DeviceAll) => {
                rules.push(Rule { allow, node: None, major: None, minor: None, access: ALL });
                continue;
            }
            Some(DeviceType::DeviceChar) => Node::Char,
            Some(DeviceType::DeviceBlock) => Node::Block,
            None => return Err(missing(&format!("{PATH}.type"))),
        };
        let access = one.access.iter().fold(0, |all: Access, access| {
            all | match access {
                DeviceAccess::Read => READ,
                DeviceAccess::Write => WRITE,
                DeviceAccess::Mknod => MKNOD,
            }
        });
        if access == 0 {
            return Err(missing(&format!("{PATH}.access")));
        }
        rules.push(Rule {
            allow,
            node: Some(node),
            major: number("major", one.major)?,
            minor: number("minor", one.minor)?,
            access,
        });
    }
    Ok(rules)
}

/// The event that is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Out of memory.
    Oom,
    /// Memory in use crosses this many bytes.
    Threshold(u64),
    /// No process is left.
    Empty,
}

impl Event {
    /// As records and specifications name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Oom => "oom",
            Self::Threshold(_) => "memory_threshold",
            Self::Empty => "container_empty",
        }
    }

    /// The one event of a specification.
    pub(super) fn of(spec: &EventSpec) -> Result<Self> {
        match (&spec.oom, &spec.memory_threshold, &spec.container_empty) {
            (Some(_), None, None) => Ok(Self::Oom),
            (None, Some(threshold), None) => match threshold.usage {
                Some(usage @ 1..) => Ok(Self::Threshold(usage.unsigned_abs())),
                Some(usage) => Err(range("memory_threshold.usage", usage, "is a number of bytes")),
                None => Err(missing("memory_threshold.usage")),
            },
            (None, None, Some(_)) => Ok(Self::Empty),
            _ => Err(Code::InvalidArgument
                .error("a notification needs exactly one of oom, memory_threshold and container_empty")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn masks() {
        let list = |data: &[u64]| cpu_list(&CpuMask { data: data.to_vec() });
        assert_eq!(list(&[0b1011]).unwrap(), "0-1,3");
        assert_eq!(list(&[1 << 63, 1]).unwrap(), "63-64");
        assert_eq!(list(&[u64::MAX, 0]).unwrap(), "0-63");
        assert!(list(&[]).is_err() && list(&[0, 0]).is_err() && list(&[1; 129]).is_err());
    }

    proptest! {
        #[test]
        fn masks_come_back(data in proptest::collection::vec(any::<u64>(), 1..4)) {
            prop_assume!(data.last() != Some(&0));
            prop_assert_eq!(cpu_mask(&cpu_list(&CpuMask { data: data.clone() }).unwrap()).data, data);
        }
    }

    #[test]
    fn events() {
        let of = |text: &str| Event::of(&serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"oom":{}}"#).unwrap(), Event::Oom);
        assert_eq!(of(r#"{"memory_threshold":{"usage":5}}"#).unwrap(), Event::Threshold(5));
        for bad in [
            "{}",
            r#"{"oom":{},"container_empty":{}}"#,
            r#"{"memory_threshold":{}}"#,
            r#"{"memory_threshold":{"usage":0}}"#,
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
