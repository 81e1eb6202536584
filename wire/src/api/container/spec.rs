//! What a container is to be: lmctfy's messages, with its field names.
//!
//! Only what is given is isolated. Every message has its fields in JSON and in lmctfy's own text form ([`super::text`]);
//! unknown ones are errors in both. Fields that lmctfy never implemented are read, and refused by name when they are used.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

/// Reads a message whose unknown fields are errors, also where the dialect would pass over them.
pub(super) fn strict<'de, D: Deserializer<'de>, T: DeserializeOwned>(d: D) -> Result<T, D::Error> {
    let value = serde_json::Value::deserialize(d)?;
    serde_json::from_value(value).map_err(serde::de::Error::custom)
}

pub(super) fn absent<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Declares messages: all fields may be absent, and are left out then.
macro_rules! messages {
    ($( $(#[doc = $doc:literal])+ $name:ident { $( $(#[$meta:meta])+ $field:ident : $type:ty, )* } )+) => { $(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[$meta])+
                #[serde(skip_serializing_if = "super::spec::absent")]
                pub $field: $type,
            )*
        }
    )+ };
}
pub(super) use messages;

/// Declares enumerations, named as lmctfy names their values.
macro_rules! choices {
    ($( $(#[doc = $doc:literal])+ $name:ident { $( $(#[$meta:meta])+ $value:ident, )+ } )+) => { $(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        pub enum $name { $( $(#[$meta])+ $value, )+ }
    )+ };
}
pub(super) use choices;

messages! {
    /// What a container isolates, and how.
    ContainerSpec {
        /// User id that owns the container; the caller's when absent.
        owner: Option<i64>,
        /// Group id that owns the container; the caller's when absent.
        owner_group: Option<i64>,
        /// Most threads and processes in it and below.
        children_limit: Option<i64>,
        /// Processors.
        cpu: Option<CpuSpec>,
        /// Memory.
        memory: Option<MemorySpec>,
        /// Network: isolated with a virtual host only.
        network: Option<NetworkSpec>,
        /// Block devices.
        blockio: Option<BlockIoSpec>,
        /// Performance counters.
        monitoring: Option<MonitoringSpec>,
        /// Root filesystem.
        filesystem: Option<FilesystemSpec>,
        /// Devices.
        device: Option<DeviceSpec>,
        /// A machine of its own: isolated processes, IPC and mounts.
        virtual_host: Option<VirtualHostSpec>,
        /// Security modules.
        #[serde(alias = "security")]
        security_spec: Option<SecuritySpec>,
    }

    /// Processors.
    CpuSpec {
        /// How soon it gets a processor; cannot be updated.
        scheduling_latency: Option<SchedulingLatency>,
        /// What it asks for, in thousandths of a processor.
        limit: Option<u64>,
        /// What it is throttled above, in thousandths of a processor.
        max_limit: Option<u64>,
        /// On which processors; its parent's when absent.
        mask: Option<CpuMask>,
    }

    /// A set of processors.
    CpuMask {
        /// Bits, 64 a word, the lowest first.
        data: Vec<u64>,
    }

    /// Memory, in bytes; -1 is no limit.
    MemorySpec {
        /// 0 to 10000, 5000 when absent; the higher, the less likely it is evicted.
        eviction_priority: Option<i32>,
        /// What it asks for; no limit when absent.
        limit: Option<i64>,
        /// Never implemented: the limit is hard.
        max_limit: Option<i64>,
        /// What it is to keep; 0 when absent.
        reservation: Option<i64>,
        /// Never implemented.
        hugetlbfs_path: Option<String>,
        /// Never implemented.
        tmpfs: Option<TmpfsSpec>,
        /// Swap alone; no limit when absent.
        swap_limit: Option<i64>,
        /// Only in Google's kernel.
        compression_sampling_ratio: Option<i32>,
        /// Only in Google's kernel; seconds.
        stale_page_age: Option<i32>,
        /// Only in Google's kernel.
        dirty: Option<DirtySpec>,
        /// Kernel memory counts towards the limit.
        kmem_charge_usage: Option<bool>,
    }

    /// Memory file systems.
    TmpfsSpec {
        /// Absolute paths.
        path: Vec<String>,
    }

    /// Dirty pages: either ratios (percent) or limits (bytes).
    DirtySpec {
        /// Percent.
        ratio: Option<i32>,
        /// Bytes.
        limit: Option<i32>,
        /// Percent.
        background_ratio: Option<i32>,
        /// Bytes.
        background_limit: Option<i32>,
    }

    /// Block devices as a whole.
    BlockIoSpec {
        /// Shares of device time.
        device_limit_set: Option<DeviceLimitSet>,
        /// Rates.
        max_device_limit_set: Option<MaxLimitSet>,
    }

    /// Shares of device time.
    DeviceLimitSet {
        /// For all devices, 1 to 100 percent.
        default_limit: Option<u32>,
        /// For some.
        device_limits: Vec<DeviceLimit>,
    }

    /// A number for one device.
    DeviceLimit {
        /// Which.
        device: Option<Device>,
        /// Percent of device time, or bytes or operations a second.
        limit: Option<u64>,
    }

    /// A block device.
    Device {
        /// Its major number.
        major: Option<i64>,
        /// Its minor number.
        minor: Option<i64>,
    }

    /// Rates.
    MaxLimitSet {
        /// Each of a kind.
        max_limits: Vec<MaxLimit>,
    }

    /// Rates of one kind.
    MaxLimit {
        /// By device.
        limits: Vec<DeviceLimit>,
        /// Of what.
        op_type: Option<OpType>,
        /// In what.
        limit_type: Option<LimitType>,
    }

    /// Network.
    NetworkSpec {}

    /// Performance counters.
    MonitoringSpec {
        /// Never implemented.
        enable_perf_counters: Option<bool>,
    }

    /// Files.
    FilesystemSpec {
        /// Never implemented.
        fd_limit: Option<u64>,
        /// The root, with a virtual host only.
        rootfs: Option<String>,
        /// Never implemented.
        mounts: Option<Mounts>,
    }

    /// What is mounted.
    Mounts {
        /// Each.
        mount: Vec<Mount>,
    }

    /// One mount.
    Mount {
        /// From where.
        source: Option<String>,
        /// To where.
        target: Option<String>,
        /// Not to be written to.
        read_only: Option<bool>,
        /// Its own propagation.
        private: Option<bool>,
    }

    /// Devices.
    DeviceSpec {
        /// Rules; the last that applies decides, the parent's hold in any case.
        restrictions_set: Option<DeviceRestrictionsSet>,
    }

    /// Rules for devices.
    DeviceRestrictionsSet {
        /// In their order.
        restrictions: Vec<DeviceRestrictions>,
    }

    /// A rule for devices.
    DeviceRestrictions {
        /// Which way.
        permission: Option<DevicePermission>,
        /// What kind; DEVICE_ALL is about all devices and all access.
        #[serde(rename = "type")]
        kind: Option<DeviceType>,
        /// What for.
        access: Vec<DeviceAccess>,
        /// Any when absent.
        major: Option<i64>,
        /// Any when absent.
        minor: Option<i64>,
    }

    /// A machine of its own.
    VirtualHostSpec {
        /// Never implemented.
        virtual_hostname: Option<String>,
        /// Its first process; one that has the kernel reap and waits when absent.
        init: Option<VirtualHostInit>,
        /// Its network.
        network: Option<VirtualNetwork>,
    }

    /// The first process of a virtual host.
    VirtualHostInit {
        /// Its path and arguments.
        init_argv: Vec<String>,
        /// How it runs.
        run_spec: Option<RunSpec>,
    }

    /// The network of a virtual host.
    VirtualNetwork {
        /// An interface of the machine that is moved into it.
        interface: Option<String>,
        /// Or a new one.
        connection: Option<Connection>,
        /// Its address.
        virtual_ip: Option<VirtualIp>,
    }

    /// A pair of interfaces, and what the outer one is connected to.
    Connection {
        /// Their names.
        veth_pair: Option<VethPair>,
        /// Where the outer one goes.
        bridge: Option<Bridge>,
    }

    /// A pair of interfaces.
    VethPair {
        /// On the machine.
        outside: Option<String>,
        /// In the virtual host.
        inside: Option<String>,
    }

    /// A bridge.
    Bridge {
        /// Its name.
        name: Option<String>,
        /// Its kind.
        #[serde(rename = "type")]
        kind: Option<BridgeType>,
    }

    /// The address of a virtual host.
    VirtualIp {
        /// The address.
        ip: Option<String>,
        /// Its network.
        netmask: Option<String>,
        /// The way out.
        gateway: Option<String>,
        /// Longest packet, bytes.
        mtu: Option<i32>,
        /// It forwards packets.
        ip_forward: Option<bool>,
    }

    /// Security modules.
    SecuritySpec {
        /// Never implemented.
        apparmor_profile: Option<AppArmorProfile>,
    }

    /// A profile of AppArmor.
    AppArmorProfile {
        /// Its name.
        name: Option<String>,
    }

    /// How a program runs.
    RunSpec {
        /// What descriptors it has; INHERIT when absent.
        fd_policy: Option<FdPolicy>,
        /// Never implemented.
        console: Option<ConsoleSpec>,
        /// Only with AppArmor.
        apparmor_profile: Option<String>,
    }

    /// A terminal.
    ConsoleSpec {
        /// The pty's name below /dev/pts.
        slave_pty: Option<String>,
    }

    /// An event; exactly one field.
    EventSpec {
        /// The container is out of memory.
        oom: Option<OomEvent>,
        /// Its memory in use crosses a threshold.
        memory_threshold: Option<MemoryThreshold>,
        /// No process is in it any more. Never implemented in lmctfy; it is here.
        container_empty: Option<ContainerEmpty>,
    }

    /// Out of memory.
    OomEvent {}

    /// Crossed upwards or downwards.
    MemoryThreshold {
        /// Bytes.
        usage: Option<i64>,
    }

    /// Without processes, its own and those below.
    ContainerEmpty {}

    /// What InitMachine is to find.
    InitSpec {
        /// Where hierarchies are mounted; wherever they are when absent.
        cgroup_mount: Vec<CgroupMount>,
    }

    /// Where hierarchies are mounted.
    CgroupMount {
        /// The mount point.
        mount_path: Option<String>,
        /// What is mounted there.
        #[serde(alias = "hierarchies")]
        hierarchy: Vec<CgroupHierarchy>,
    }
}

choices! {
    /// How soon a container gets a processor.
    SchedulingLatency {
        /// No guarantee.
        BestEffort,
        /// It makes progress.
        Normal,
        /// Soon; this is the default.
        Priority,
        /// At once.
        Premier,
    }

    /// What a rate is of.
    OpType {
        /// Reading.
        Read,
        /// Writing.
        Write,
    }

    /// What a rate is in.
    LimitType {
        /// Bytes.
        BytesPerSecond,
        /// Operations.
        IoPerSecond,
    }

    /// Which way a rule for devices goes.
    DevicePermission {
        /// It may.
        Allow,
        /// It may not.
        Deny,
    }

    /// Kind of a device.
    DeviceType {
        /// Character device.
        DeviceChar,
        /// Block device.
        DeviceBlock,
        /// Both, with all access.
        DeviceAll,
    }

    /// What a device is opened for.
    DeviceAccess {
        /// Reading.
        Read,
        /// Writing.
        Write,
        /// Making a node of it.
        Mknod,
    }

    /// Kind of a bridge.
    BridgeType {
        /// The kernel's.
        Eth,
        /// Open vSwitch.
        Ovs,
    }

    /// What descriptors a program has.
    FdPolicy {
        /// No policy.
        Unknown,
        /// Those that came with the call.
        Inherit,
        /// `/dev/null`.
        Detached,
    }

    /// A controller of cgroups, as lmctfy calls it.
    CgroupHierarchy {
        /// None.
        CgroupUnknown,
        /// `cpu`.
        CgroupCpu,
        /// `cpuacct`.
        CgroupCpuacct,
        /// `cpuset`.
        CgroupCpuset,
        /// `freezer`.
        CgroupFreezer,
        /// `blkio`.
        CgroupIo,
        /// Google's; here `pids`.
        CgroupJob,
        /// `memory`.
        CgroupMemory,
        /// `net_cls`.
        CgroupNet,
        /// `perf_event`.
        CgroupPerfEvent,
        /// Google's; there is none.
        CgroupRlimit,
        /// `devices`.
        CgroupDevice,
    }
}
