//! What a container uses: lmctfy's messages. What the kernel does not tell is absent.

use super::spec::{choices, messages};
use serde::{Deserialize, Serialize};

messages! {
    /// Use of the resources that a container isolates.
    ContainerStats {
        /// Processors.
        cpu: Option<CpuStats>,
        /// Memory.
        memory: Option<MemoryStats>,
        /// Network: nothing is counted.
        network: Option<NetworkStats>,
        /// Block devices: nothing is counted.
        blockio: Option<BlockIoStats>,
        /// Performance counters: nothing is counted.
        monitoring: Option<MonitoringStats>,
        /// Files: only in Google's kernel.
        filesystem: Option<FilesystemStats>,
    }

    /// Processors.
    CpuStats {
        /// Time.
        usage: Option<CpuUsage>,
        /// Runnable threads: only in Google's kernel.
        load: Option<i32>,
        /// How a quota bit.
        throttling_data: Option<ThrottlingData>,
        /// Only in Google's kernel.
        histograms: Vec<HistogramMap>,
    }

    /// Processor time.
    CpuUsage {
        /// Nanoseconds.
        total: Option<u64>,
        /// Nanoseconds by processor (cgroup v1).
        per_cpu: Vec<i64>,
        /// Microseconds in user mode.
        user: Option<i64>,
        /// Microseconds in the kernel.
        system: Option<i64>,
    }

    /// How a quota bit.
    ThrottlingData {
        /// Periods in which it ran.
        periods: Option<i64>,
        /// Periods in which it was stopped.
        throttled_periods: Option<i64>,
        /// How long it was stopped, nanoseconds.
        throttled_time: Option<i64>,
    }

    /// A histogram of the scheduler.
    HistogramMap {
        /// Of what.
        #[serde(rename = "type")]
        kind: Option<CpuHistogramType>,
        /// Its buckets.
        stat: Vec<Bucket>,
    }

    /// One bucket.
    Bucket {
        /// Where it begins.
        bucket: Option<i32>,
        /// What is in it.
        value: Option<i64>,
    }

    /// Memory, in bytes.
    MemoryStats {
        /// The container's limit; -1 for none.
        limit: Option<i64>,
        /// The lowest of its own and those above it.
        effective_limit: Option<i64>,
        /// What it is to keep.
        reservation: Option<i64>,
        /// In use.
        usage: Option<i64>,
        /// The most that was in use.
        max_usage: Option<i64>,
        /// In use and not idle: without inactive pages of files.
        working_set: Option<i64>,
        /// The container alone (cgroup v1).
        container_data: Option<MemoryData>,
        /// With its subcontainers.
        hierarchical_data: Option<MemoryData>,
        /// As effective_limit, as the kernel says it.
        hierarchical_memory_limit: Option<i64>,
        /// By node.
        numa: Option<NumaStats>,
        /// Only in Google's kernel.
        idle_page: Option<IdlePageStats>,
        /// Only in Google's kernel.
        compression_sampling: Option<CompressionSamplingStats>,
        /// How often the limit was reached.
        fail_count: Option<i64>,
    }

    /// Memory by what it is used for, in bytes; counters of events.
    MemoryData {
        /// Pages of files.
        cache: Option<i64>,
        /// Anonymous memory.
        rss: Option<i64>,
        /// Huge pages of it.
        rss_huge: Option<i64>,
        /// Files that are mapped.
        mapped_file: Option<i64>,
        /// Pages that were charged.
        pgpgin: Option<i64>,
        /// Pages that were given back.
        pgpgout: Option<i64>,
        /// Page faults.
        pgfault: Option<i64>,
        /// Page faults that waited for a device.
        pgmajfault: Option<i64>,
        /// To be written.
        dirty: Option<i64>,
        /// Being written.
        writeback: Option<i64>,
        /// Not used lately.
        inactive_anon: Option<i64>,
        /// Used lately.
        active_anon: Option<i64>,
        /// Not used lately.
        inactive_file: Option<i64>,
        /// Used lately.
        active_file: Option<i64>,
        /// Locked.
        unevictable: Option<i64>,
        /// Huge pages.
        thp: Option<Thp>,
        /// The kernel's.
        kernel: Option<KernelMemory>,
        /// Only in Google's kernel.
        kernel_noncharged: Option<KernelMemory>,
        /// Only in Google's kernel.
        compressed_pool_pages: Option<i64>,
        /// Only in Google's kernel.
        compressed_stored_pages: Option<i64>,
        /// Only in Google's kernel.
        compressed_reject_compress_poor: Option<i64>,
        /// Only in Google's kernel.
        zswap_zsmalloc_fail: Option<i64>,
        /// Only in Google's kernel.
        zswap_kmemcache_fail: Option<i64>,
        /// Only in Google's kernel.
        zswap_duplicate_entry: Option<i64>,
        /// Only in Google's kernel.
        zswap_compressed_pages: Option<i64>,
        /// Only in Google's kernel.
        zswap_decompressed_pages: Option<i64>,
        /// Only in Google's kernel.
        zswap_compression_nsec: Option<i64>,
        /// Only in Google's kernel.
        zswap_decompression_nsec: Option<i64>,
    }

    /// Huge pages (cgroup v2).
    Thp {
        /// Faults that got one.
        fault_alloc: Option<i64>,
        /// Only in Google's kernel.
        fault_fallback: Option<i64>,
        /// Made of small pages.
        collapse_alloc: Option<i64>,
        /// Only in Google's kernel.
        collapse_alloc_failed: Option<i64>,
        /// Only in Google's kernel.
        split: Option<i64>,
    }

    /// Memory of the kernel.
    KernelMemory {
        /// All of it.
        memory: Option<i64>,
        /// Slabs (cgroup v2).
        slab_memory: Option<i64>,
        /// Stacks (cgroup v2).
        stack_memory: Option<i64>,
        /// Page tables (cgroup v2).
        pgtable_memory: Option<i64>,
        /// vmalloc (cgroup v2).
        vmalloc_memory: Option<i64>,
        /// Only in Google's kernel.
        misc_memory: Option<i64>,
        /// Only in Google's kernel.
        targeted_slab_memory: Option<i64>,
        /// Only in Google's kernel.
        compressed_memory: Option<i64>,
    }

    /// Pages by node.
    NumaStats {
        /// The container alone (cgroup v1).
        container_data: Option<NumaData>,
        /// With its subcontainers.
        hierarchical_data: Option<NumaData>,
    }

    /// Pages by kind and node.
    NumaData {
        /// All.
        total: Option<NumaStat>,
        /// Of files.
        file: Option<NumaStat>,
        /// Anonymous.
        anon: Option<NumaStat>,
        /// Locked.
        unevictable: Option<NumaStat>,
    }

    /// Pages by node.
    NumaStat {
        /// By node.
        node: Vec<NumaNode>,
        /// Of all nodes.
        total_page_count: Option<i64>,
    }

    /// Pages of one node.
    NumaNode {
        /// Its number.
        level: Option<i32>,
        /// Pages.
        page_count: Option<i64>,
    }

    /// Idle pages.
    IdlePageStats {
        /// By age.
        stats: Vec<IdlePages>,
        /// How often it was looked.
        scans: Option<i64>,
        /// Pages that are old.
        stale: Option<i64>,
    }

    /// Idle pages of one age.
    IdlePages {
        /// Seconds.
        age_in_secs: Option<i32>,
        /// Clean.
        clean: Option<i64>,
        /// To be written to files.
        dirty_file: Option<i64>,
        /// To be written to swap.
        dirty_swap: Option<i64>,
    }

    /// What compression would give.
    CompressionSamplingStats {
        /// Before.
        raw_size: Option<i64>,
        /// After.
        compressed_size: Option<i64>,
        /// Samples that were lost.
        fifo_overflow: Option<i64>,
    }

    /// Block devices.
    BlockIoStats {}

    /// Network.
    NetworkStats {}

    /// Performance counters.
    MonitoringStats {}

    /// Files.
    FilesystemStats {
        /// Descriptors.
        fd_usage: Option<i64>,
        /// The most there were.
        fd_max_usage: Option<i64>,
        /// How often there were no more.
        fd_fail_count: Option<i64>,
    }
}

choices! {
    /// What a histogram is of.
    CpuHistogramType {
        /// Runnable.
        Serve,
        /// On a processor in one stretch.
        Oncpu,
        /// Asleep.
        Sleep,
        /// Waiting for one of the same container.
        QueueSelf,
        /// Waiting for one of another container.
        QueueOther,
    }
}
