//! `Metrics`: what the sandbox and its containers count, by name.
//!
//! Nothing is counted for this but calls (see [`airlock_wire::calls`]): the rest is read from the kernel when somebody asks.

mod definitions;

use airlock_loader::container::Container;
use airlock_loader::loader::Loader;
use airlock_wire::api::airlock as own;
use airlock_wire::api::container_manager as cm;
use airlock_wire::api::metrics::{
    Bucket, Data, Export, Exported, GetRegisteredMetrics, Histogram, Metric, Number, Registered,
    Registration, Snapshot,
};
use airlock_wire::api::state;
use airlock_wire::api::types::{Empty, Json};
use airlock_wire::calls::{self, Calls, Count};
use airlock_wire::error::Error;
use airlock_wire::method::Method;
use airlock_wire::registry::Registry;
use definitions::{ALL, Definition};
use regex_lite::RegexBuilder;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The largest compiled regular expression, in bytes.
const MAX_REGEXP: usize = 1 << 20;
/// The methods that save a sandbox.
const CHECKPOINTS: [&str; 3] = [cm::Checkpoint::NAME, own::Checkpoint::NAME, state::Save::NAME];
/// The methods that restore one.
const RESTORES: [&str; 4] =
    [cm::Restore::NAME, cm::RestoreSubcontainer::NAME, own::Restore::NAME, own::RestoreContainer::NAME];

/// Every metric that a sandbox of this build has.
pub fn registered() -> Registered {
    let metrics = ALL.iter().map(|definition| definition.metadata()).collect();
    Registered { registered: Registration { metrics, stages: Vec::new() } }
}

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    registry.on::<GetRegisteredMetrics>(|_, Empty {}| Ok(Json(registered())));
    let (l, calls) = (loader.clone(), registry.calls().clone());
    registry.on::<Export>(move |_, args| {
        let wanted = &args.only_metrics;
        let pattern = RegexBuilder::new(wanted)
            .size_limit(MAX_REGEXP)
            .build()
            .map_err(|e| Error::invalid_argument(format!("cannot compile regexp {wanted:?}: {e}")))?;
        let mut values = Values::default();
        of_sandbox(&l, &calls, &mut values);
        for container in l.containers() {
            of_container(&l, &container, &mut values);
        }
        let when = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        Ok(Json(Exported { snapshot: Snapshot { when, data: values.sorted(|name| pattern.is_match(name)) } }))
    });
}

/// Values as they come.
#[derive(Default)]
struct Values(BTreeMap<&'static str, (&'static Definition, Vec<Data>)>);

impl Values {
    fn data(&mut self, definition: &'static Definition, labels: &[(&str, &str)]) -> &mut Data {
        let metric = Metric {
            name: definition.name.to_owned(),
            kind: definition.kind,
            help: definition.help.to_owned(),
        };
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let list = &mut self.0.entry(definition.name).or_insert_with(|| (definition, Vec::new())).1;
        list.push(Data { metric, labels, ..Data::default() });
        let last = list.len() - 1;
        &mut list[last]
    }

    fn number(&mut self, definition: &'static Definition, labels: &[(&str, &str)], value: Number) {
        self.data(definition, labels).value = Some(value);
    }

    fn histogram(&mut self, definition: &'static Definition, labels: &[(&str, &str)], count: &Count) {
        let bucket = |(index, n): (usize, &u64)| Bucket {
            le: calls::bound(index).map_or(Number::INFINITY, Number::seconds),
            n: *n,
        };
        self.data(definition, labels).histogram = Some(Histogram {
            total: Number::seconds(count.nanoseconds),
            buckets: count.buckets.iter().enumerate().map(bucket).collect(),
            ..Histogram::default()
        });
    }

    /// Those whose names are wanted, metric by metric.
    fn sorted(self, wanted: impl Fn(&str) -> bool) -> Vec<Data> {
        self.0.into_iter().filter(|(name, _)| wanted(name)).flat_map(|(_, (_, data))| data).collect()
    }
}

fn seconds_since_1970(time: Option<SystemTime>) -> Option<Number> {
    let since = time?.duration_since(UNIX_EPOCH).ok()?;
    Some(Number { float: since.as_secs_f64(), int: 0 })
}

fn of_sandbox(loader: &Loader, calls: &Calls, values: &mut Values) {
    values.number(&definitions::BUILD, &[("version", env!("CARGO_PKG_VERSION"))], Number::of(1));
    let created = loader.root().ok().and_then(|root| seconds_since_1970(root.times().created));
    if let Some(created) = created {
        values.number(&definitions::START, &[], created);
    }
    of_loader(loader, values);
    let (mut saved, mut restored) = (Count::default(), Count::default());
    for (method, count) in calls.counts() {
        if CHECKPOINTS.contains(&method) {
            saved.add(&count);
        }
        if RESTORES.contains(&method) {
            restored.add(&count);
        }
        let all = count.calls();
        if all == 0 {
            continue;
        }
        for (result, n) in [("ok", all.saturating_sub(count.errors)), ("error", count.errors)] {
            values.number(&definitions::RPC_CALLS, &[("method", method), ("result", result)], Number::of(n));
        }
        values.histogram(&definitions::RPC_DURATION, &[("method", method)], &count);
    }
    values.number(&definitions::RPC_UNKNOWN, &[], Number::of(calls.unknown()));
    values.histogram(&definitions::CHECKPOINT, &[], &saved);
    values.histogram(&definitions::RESTORE, &[], &restored);
}

fn of_loader(loader: &Loader, values: &mut Values) {
    let own = std::process::id() as i32;
    let procfs = loader.procfs();
    let resident = procfs.status_field(own, "VmRSS").ok().flatten();
    let resident = resident.and_then(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok());
    if let Some(kib) = resident {
        values.number(&definitions::LOADER_MEMORY, &[], Number::of(kib * 1024));
    }
    if let Ok(threads) = procfs.threads(own) {
        values.number(&definitions::LOADER_THREADS, &[], Number::of(threads.len() as u64));
    }
    if let Ok(descriptors) = procfs.descriptors(own) {
        values.number(&definitions::LOADER_FDS, &[], Number::of(descriptors.len() as u64));
    }
}

fn of_container(loader: &Loader, container: &Container, values: &mut Values) {
    let cid = ("container", container.cid.as_str());
    let status = crate::airlock::status_of(loader, container);
    values.number(&definitions::STATE, &[cid, ("state", status)], Number::of(1));
    if let Some(started) = seconds_since_1970(container.times().started) {
        values.number(&definitions::CONTAINER_START, &[cid], started);
    }
    let inits = u64::from(container.init().is_some());
    for (kind, n) in [("init", inits), ("exec", container.executed())] {
        values.number(&definitions::PROCESSES, &[cid, ("kind", kind)], Number::of(n));
    }
    for interface in crate::usage::interfaces(loader, container) {
        for (direction, bytes, packets, errors, drops) in [
            ("receive", interface.rx_bytes, interface.rx_packets, interface.rx_errors, interface.rx_dropped),
            ("transmit", interface.tx_bytes, interface.tx_packets, interface.tx_errors, interface.tx_dropped),
        ] {
            let labels = [cid, ("interface", interface.name.as_str()), ("direction", direction)];
            values.number(&definitions::NETWORK_BYTES, &labels, Number::of(bytes));
            values.number(&definitions::NETWORK_PACKETS, &labels, Number::of(packets));
            values.number(&definitions::NETWORK_ERRORS, &labels, Number::of(errors));
            values.number(&definitions::NETWORK_DROPS, &labels, Number::of(drops));
        }
    }
    match container.cgroup().and_then(|cgroup| cgroup.stats()) {
        Ok(stats) => of_cgroup(cid, &stats, values),
        Err(e) => log::debug!("metrics of container {:?}: {e}", container.cid),
    }
}

fn of_cgroup(cid: (&str, &str), stats: &airlock_loader::cgroup::Stats, values: &mut Values) {
    let airlock_loader::cgroup::Stats { cpu, memory, pids, blkio, hugetlb } = stats;
    values.number(&definitions::CPU, &[cid], Number::seconds(cpu.total));
    for (mode, time) in [("user", cpu.user), ("system", cpu.kernel)] {
        values.number(&definitions::CPU_MODE, &[cid, ("mode", mode)], Number::seconds(time));
    }
    values.number(&definitions::CPU_PERIODS, &[cid], Number::of(cpu.throttling.periods));
    values.number(&definitions::CPU_THROTTLED_PERIODS, &[cid], Number::of(cpu.throttling.throttled_periods));
    values.number(&definitions::CPU_THROTTLED, &[cid], Number::seconds(cpu.throttling.throttled_time));
    values.number(&definitions::MEMORY, &[cid], Number::of(memory.usage.usage));
    values.number(&definitions::MEMORY_PEAK, &[cid], Number::of(memory.usage.max));
    if memory.usage.limit != 0 && memory.usage.limit < crate::usage::NO_LIMIT {
        values.number(&definitions::MEMORY_LIMIT, &[cid], Number::of(memory.usage.limit));
    }
    let parts = memory.categories();
    for (category, bytes) in [
        ("anonymous", parts.anonymous),
        ("mapped", parts.mapped),
        ("page_cache", parts.page_cache),
        ("tmpfs", parts.tmpfs),
        ("system", parts.system),
    ] {
        values.number(&definitions::MEMORY_CATEGORY, &[cid, ("category", category)], Number::of(bytes));
    }
    values.number(&definitions::MEMORY_FAILURES, &[cid], Number::of(memory.usage.failcnt));
    values.number(&definitions::OOM_KILLS, &[cid], Number::of(memory.oom_kills));
    values.number(&definitions::PIDS, &[cid], Number::of(pids.current));
    if pids.limit != 0 {
        values.number(&definitions::PIDS_LIMIT, &[cid], Number::of(pids.limit));
    }
    for (definition, entries) in [
        (&definitions::IO_BYTES, &blkio.io_service_bytes_recursive),
        (&definitions::IO_OPERATIONS, &blkio.io_serviced_recursive),
    ] {
        for entry in entries.iter().filter(|e| matches!(e.op.as_str(), "Read" | "Write" | "Discard")) {
            let device = format!("{}:{}", entry.major, entry.minor);
            let op = entry.op.to_ascii_lowercase();
            values.number(definition, &[cid, ("device", &device), ("op", &op)], Number::of(entry.value));
        }
    }
    for (size, pages) in hugetlb {
        values.number(&definitions::HUGETLB, &[cid, ("page_size", size)], Number::of(pages.usage));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_the_labels_of_its_definition_and_every_cgroup_metric_a_value() {
        use airlock_loader::cgroup::stats::{BlkioEntry, Stats};
        let mut stats = Stats::default();
        let entry = |op: &str| BlkioEntry { major: 8, minor: 0, op: op.to_owned(), value: 5 };
        stats.blkio.io_service_bytes_recursive = vec![entry("Read"), entry("Sync")];
        stats.blkio.io_serviced_recursive = vec![entry("Write")];
        stats.hugetlb.insert("2MB".to_owned(), Default::default());
        stats.memory.usage.limit = 1 << 20;
        stats.pids.limit = 7;
        let mut values = Values::default();
        of_cgroup(("container", "c"), &stats, &mut values);
        for (name, (definition, data)) in &values.0 {
            assert!(ALL.iter().any(|d| std::ptr::eq(*d, *definition)), "{name} is not in the list");
            for value in data {
                let labels: Vec<&str> = value.labels.keys().map(String::as_str).collect();
                let mut defined = definition.labels.to_vec();
                defined.sort_unstable();
                assert_eq!(labels, defined, "{name}");
            }
        }
        let bytes = values.sorted(|name| name == "airlock_container_io_bytes");
        assert_eq!((bytes.len(), bytes[0].labels["op"].as_str()), (1, "read"));
    }

    #[test]
    fn a_histogram_ends_with_infinity_and_keeps_its_sum() {
        let mut values = Values::default();
        let mut count = Count { nanoseconds: 1_500_000_000, ..Count::default() };
        count.buckets[0] = 2;
        count.buckets[calls::BOUNDS] = 1;
        values.histogram(&definitions::CHECKPOINT, &[], &count);
        let [data] = &values.sorted(|_| true)[..] else { panic!("one value") };
        let histogram = data.histogram.as_ref().unwrap();
        assert_eq!(histogram.total.as_f64(), 1.5);
        let last = histogram.buckets.last().unwrap();
        assert_eq!((last.le, last.n, histogram.buckets[0].le.as_f64()), (Number::INFINITY, 1, 4.096e-6));
    }
}
