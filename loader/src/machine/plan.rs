//! What a specification means for control files: checked first, then written by [`crate::cgroup::resources`].
#![forbid(unsafe_code)]

use super::fields;
use crate::cgroup::files::{Dir, set};
use crate::cgroup::resources::devices::Rule;
use crate::cgroup::tree::Node;
use airlock_wire::api::container::spec::{
    BlockIoSpec, ContainerSpec, CpuSpec, LimitType, MemorySpec, OpType, SchedulingLatency,
};
use airlock_wire::api::container::status::Code;
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, LinuxThrottleDeviceBuilder,
    LinuxWeightDeviceBuilder,
};
use std::collections::BTreeMap;

/// Period of CPU quotas, microseconds.
const PERIOD: u64 = 100_000;
/// The kernel's least quota, in thousandths of a processor.
const LEAST_MAX_LIMIT: u64 = 10;
/// What the kernel gives a cgroup that says nothing.
const DEFAULT_SHARES: u64 = 1024;

/// What is written to a container's control files.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Controllers that the container's directories are needed in.
    pub controllers: Vec<&'static str>,
    resources: LinuxResources,
    /// Values that OCI has no word for: controller, file, value.
    more: Vec<(&'static str, &'static str, String)>,
    /// Files that take what the parent has.
    inherited: Vec<&'static str>,
    /// Rules for devices, if the specification has any.
    pub devices: Option<Vec<Rule>>,
}

impl Plan {
    /// Checks a specification, and plans for `tree`'s kind of hierarchy. With `before`, what a container has so far, all
    /// that is absent is reset.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` and `OUT_OF_RANGE` for what makes no sense, `UNIMPLEMENTED` for what lmctfy or the kernel does
    /// not have, naming the field.
    pub(super) fn new(spec: &ContainerSpec, before: Option<&ContainerSpec>, tree: &Node) -> Result<Self> {
        fields::refuse_unimplemented(spec)?;
        let mut plan = Self::default();
        let v2 = tree.v2();
        if let Some(cpu) = &spec.cpu {
            plan.cpu(cpu, before.is_some(), tree)?;
        }
        if let Some(memory) = &spec.memory {
            plan.memory(memory, before.is_some(), v2)?;
        }
        if let Some(limit) = spec.children_limit {
            plan.controllers.push("pids");
            let limit = match limit {
                -1 | 1.. => limit,
                n => return Err(range("children_limit", n, "is at least 1, or -1 for no limit")),
            };
            let mut pids = LinuxPids::default();
            pids.set_limit(limit);
            plan.resources.set_pids(Some(pids));
        }
        if let Some(io) = &spec.blockio {
            plan.controllers.push(if v2 { "io" } else { "blkio" });
            plan.blockio(io, before.and_then(|b| b.blockio.as_ref()))?;
        }
        if let Some(device) = &spec.device {
            if !v2 {
                plan.controllers.push("devices");
            }
            plan.devices = Some(fields::device_rules(device)?);
        }
        Ok(plan)
    }

    /// Writes everything but device rules.
    ///
    /// # Errors
    /// The first that is refused, naming file and value; earlier ones stay.
    pub(super) fn write(&self, node: &Node, parent: &Node) -> Result<()> {
        for file in &self.inherited {
            let (Some(dir), Some(above)) = (node.dir("cpuset")?, parent.nearest("cpuset")?) else { continue };
            let value = crate::cgroup::files::Files::read(&Dir(above), file).unwrap_or_default();
            set(&Dir(dir), file, value.trim())?;
        }
        node.apply(&self.resources)?;
        for (controller, file, value) in &self.more {
            if let Some(dir) = node.dir(controller)? {
                set(&Dir(dir), file, value)?;
            }
        }
        Ok(())
    }

    fn cpu(&mut self, spec: &CpuSpec, reset: bool, tree: &Node) -> Result<()> {
        self.controllers.push("cpu");
        // Beside it on v1, for statistics and masks.
        self.controllers.extend(["cpuacct", "cpuset"].iter().filter(|c| tree.offers(c)));
        let mut cpu = LinuxCpu::default();
        match spec.scheduling_latency {
            Some(SchedulingLatency::BestEffort) => {
                cpu.set_idle(Some(1));
            }
            Some(SchedulingLatency::Premier) => {
                return Err(Code::Unimplemented.error(
                    "cpu.scheduling_latency: PREMIER: the kernel has no such guarantee; use PRIORITY, or a mask",
                ));
            }
            Some(SchedulingLatency::Normal | SchedulingLatency::Priority) | None => {}
        }
        if let Some(limit) = spec.limit {
            if limit == 0 || limit > 1_000_000 {
                return Err(range("cpu.limit", limit, "is 1 to 1000000 thousandths of a processor"));
            }
            cpu.set_shares(Some((limit * DEFAULT_SHARES / 1000).max(2)));
        } else if reset {
            cpu.set_shares(Some(DEFAULT_SHARES));
        }
        if let Some(max) = spec.max_limit {
            if !(LEAST_MAX_LIMIT..=1_000_000).contains(&max) {
                return Err(range("cpu.max_limit", max, "is 10 to 1000000 thousandths of a processor"));
            }
            if spec.limit.is_some_and(|limit| max < limit) {
                return Err(Code::InvalidArgument.error(format_args!(
                    "cpu.max_limit {max} is below cpu.limit {}: it would be throttled before it has what it asks for",
                    spec.limit.unwrap_or_default()
                )));
            }
            cpu.set_period(Some(PERIOD));
            cpu.set_quota(Some((max * PERIOD / 1000) as i64));
        } else if reset {
            cpu.set_quota(Some(-1));
        }
        match &spec.mask {
            Some(mask) => {
                cpu.set_cpus(Some(fields::cpu_list(mask)?));
            }
            None if reset && tree.v2() => self.more.push(("cpuset", "cpuset.cpus", "\n".to_owned())),
            None if reset => self.inherited.push("cpuset.cpus"),
            None => {}
        }
        self.resources.set_cpu(Some(cpu));
        Ok(())
    }

    fn memory(&mut self, spec: &MemorySpec, reset: bool, v2: bool) -> Result<()> {
        self.controllers.push("memory");
        for (field, value) in [("limit", spec.limit), ("swap_limit", spec.swap_limit)] {
            let least = if field == "limit" { 1 } else { 0 };
            if value.is_some_and(|n| n != -1 && n < least) {
                return Err(range(
                    &format!("memory.{field}"),
                    value.unwrap_or_default(),
                    "is a number of bytes, or -1 for no limit",
                ));
            }
        }
        if let Some(reservation) = spec.reservation {
            if reservation < 0 {
                return Err(range("memory.reservation", reservation, "is a number of bytes"));
            }
            if let Some(limit) = spec.limit.filter(|limit| *limit >= 0 && *limit < reservation) {
                return Err(Code::InvalidArgument
                    .error(format_args!("memory.reservation {reservation} is above memory.limit {limit}")));
            }
        }
        let mut memory = LinuxMemory::default();
        let limit = spec.limit.or(reset.then_some(-1));
        memory.set_limit(limit);
        match (spec.swap_limit, v2) {
            (Some(swap), true) => {
                self.more.push((
                    "memory",
                    "memory.swap.max",
                    if swap < 0 { "max".to_owned() } else { swap.to_string() },
                ));
            }
            // v1 has one limit for both together.
            (Some(-1), false) => {
                memory.set_swap(Some(-1));
            }
            (Some(swap), false) => match spec.limit {
                Some(limit) if limit >= 0 => {
                    memory.set_swap(Some(limit.saturating_add(swap)));
                }
                _ => {
                    return Err(Code::InvalidArgument.error(
                        "memory.swap_limit needs a memory.limit: cgroup v1 limits swap together with memory only",
                    ));
                }
            },
            (None, _) if reset => {
                memory.set_swap(Some(-1));
            }
            (None, _) => {}
        }
        self.resources.set_memory(Some(memory));
        // 0 is a value here, and none to OCI.
        let (file, none) = if v2 { ("memory.low", "0") } else { ("memory.soft_limit_in_bytes", "-1") };
        match spec.reservation {
            Some(0) => self.more.push(("memory", file, none.to_owned())),
            Some(bytes) => self.more.push(("memory", file, bytes.to_string())),
            None if reset => self.more.push(("memory", file, none.to_owned())),
            None => {}
        }
        Ok(())
    }

    fn blockio(&mut self, spec: &BlockIoSpec, before: Option<&BlockIoSpec>) -> Result<()> {
        let mut io = LinuxBlockIo::default();
        if let Some(shares) = &spec.device_limit_set {
            if let Some(percent) = shares.default_limit {
                io.set_weight(Some(weight("default_limit", u64::from(percent))?));
            }
            let mut devices = Vec::new();
            for one in &shares.device_limits {
                let (major, minor) =
                    fields::device_number("blockio.device_limit_set.device_limits", one.device.as_ref())?;
                let limit =
                    one.limit.ok_or_else(|| missing("blockio.device_limit_set.device_limits.limit"))?;
                let device = LinuxWeightDeviceBuilder::default().major(major).minor(minor);
                let device = device.weight(weight("device_limits.limit", limit)?).build();
                let device = device.map_err(|e| Error::failure(format!("blockio: {e}")))?;
                devices.push(device);
            }
            io.set_weight_device(Some(devices));
        }
        let mut rates = rates_of(spec)?;
        // What was limited and is not any more.
        for key in before.map(rates_of).transpose()?.unwrap_or_default().into_keys() {
            rates.entry(key).or_insert(0);
        }
        for bytes in [true, false] {
            for read in [true, false] {
                let list = rates.iter().filter(|((b, r, ..), _)| (*b, *r) == (bytes, read));
                let list = list.map(|((.., major, minor), rate)| {
                    LinuxThrottleDeviceBuilder::default().major(*major).minor(*minor).rate(*rate).build()
                });
                let list: std::result::Result<Vec<_>, _> = list.collect();
                let list = list.map_err(|e| Error::failure(format!("blockio: {e}")))?;
                let list = (!list.is_empty()).then_some(list);
                match (bytes, read) {
                    (true, true) => io.set_throttle_read_bps_device(list),
                    (true, false) => io.set_throttle_write_bps_device(list),
                    (false, true) => io.set_throttle_read_iops_device(list),
                    (false, false) => io.set_throttle_write_iops_device(list),
                };
            }
        }
        self.resources.set_block_io(Some(io));
        Ok(())
    }
}

/// Rates by (in bytes, of reading, major, minor).
type Rates = BTreeMap<(bool, bool, i64, i64), u64>;

fn rates_of(spec: &BlockIoSpec) -> Result<Rates> {
    let mut rates = Rates::new();
    for kind in spec.max_device_limit_set.iter().flat_map(|set| &set.max_limits) {
        const PATH: &str = "blockio.max_device_limit_set.max_limits";
        let read = match kind.op_type {
            Some(OpType::Read) => true,
            Some(OpType::Write) => false,
            None => return Err(missing(&format!("{PATH}.op_type"))),
        };
        let bytes = match kind.limit_type {
            Some(LimitType::BytesPerSecond) => true,
            Some(LimitType::IoPerSecond) => false,
            None => return Err(missing(&format!("{PATH}.limit_type"))),
        };
        for one in &kind.limits {
            let (major, minor) = fields::device_number(&format!("{PATH}.limits"), one.device.as_ref())?;
            let rate = one.limit.ok_or_else(|| missing(&format!("{PATH}.limits.limit")))?;
            if rate == 0 {
                return Err(range(&format!("{PATH}.limits.limit"), rate, "is at least 1"));
            }
            if rates.insert((bytes, read, major, minor), rate).is_some_and(|other| other != rate) {
                return Err(Code::InvalidArgument
                    .error(format_args!("{PATH}: two limits of the same kind for device {major}:{minor}")));
            }
        }
    }
    Ok(rates)
}

/// Percent of device time as the kernel's weight.
fn weight(field: &str, percent: u64) -> Result<u16> {
    match percent {
        1..=100 => Ok(percent as u16 * 10),
        n => {
            Err(range(&format!("blockio.device_limit_set.{field}"), n, "is 1 to 100 percent of device time"))
        }
    }
}

pub(super) fn range(field: &str, value: impl std::fmt::Display, what: &str) -> Error {
    Code::OutOfRange.error(format_args!("{field} is {value}: it {what}"))
}

pub(super) fn missing(field: &str) -> Error {
    Code::InvalidArgument.error(format_args!("{field} is missing"))
}
