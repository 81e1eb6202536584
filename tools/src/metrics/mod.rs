//! Metrics of sandboxes for Prometheus: as text (OpenMetrics 1.0), and over HTTP.
//!
//! A sandbox is asked for a snapshot (`Metrics.Export`). What it answers is taken with care: one that was taken over must not
//! be able to forge the figures of others, or to spoil the text that they are in.

#![forbid(unsafe_code)]

pub mod server;

use airlock_wire::api::metrics::{Data, Metric, Snapshot};
use airlock_wire::error::{Error, Result};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;

/// The MIME type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The label by which sandboxes are told apart.
pub const SANDBOX: &str = "sandbox";
/// The most values that are taken of one snapshot.
const MAX_VALUES: usize = 100_000;
/// The longest name, help or label value that is taken, in bytes.
const MAX_TEXT: usize = 1024;

type Labels = Vec<(String, String)>;

/// Values of several sandboxes, metric by metric.
#[derive(Debug, Default)]
pub struct Metrics(BTreeMap<String, Family>);

#[derive(Debug)]
struct Family {
    kind: i32,
    help: String,
    values: BTreeMap<Labels, Data>,
}

impl Metrics {
    /// Adds what a sandbox answered. `labels` are added to each value and stand above the sandbox's own. What cannot be a
    /// metric is left out: names that Prometheus does not allow, a kind that another sandbox's metric of that name
    /// contradicts, values beyond the first 100000.
    pub fn add(&mut self, snapshot: Snapshot, prefix: &str, labels: &[(&str, &str)]) {
        for data in snapshot.data.into_iter().take(MAX_VALUES) {
            let name = format!("{prefix}{}", data.metric.name);
            let fits = matches!(data.metric.kind, Metric::GAUGE | Metric::COUNTER | Metric::HISTOGRAM)
                && data.value.is_some() == (data.metric.kind != Metric::HISTOGRAM)
                && data.histogram.is_some() == (data.metric.kind == Metric::HISTOGRAM)
                && is_name(&name)
                && data.labels.iter().all(|(name, value)| is_label(name) && value.len() <= MAX_TEXT);
            if !fits {
                continue;
            }
            let mut all = data.labels.clone();
            all.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            let family = self.0.entry(name).or_insert_with(|| Family {
                kind: data.metric.kind,
                help: one_line(&data.metric.help),
                values: BTreeMap::new(),
            });
            if family.kind == data.metric.kind {
                family.values.insert(all.into_iter().collect(), data);
            }
        }
    }

    /// The text, with its `# EOF`.
    ///
    /// # Errors
    /// Never, as far as is known: the text is written to memory.
    pub fn to_text(self) -> Result<String> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .map_err(|e| Error::failure(format!("writing metrics as text: {e}")))?;
        Ok(text)
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, family) in &self.0 {
            let kind = match family.kind {
                Metric::COUNTER => MetricType::Counter,
                Metric::HISTOGRAM => MetricType::Histogram,
                _ => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(name, &family.help, None, kind)?;
            for (labels, data) in &family.values {
                encode_value(data, &mut metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

fn encode_value(data: &Data, to: &mut MetricEncoder<'_>) -> fmt::Result {
    if let Some(histogram) = &data.histogram {
        let buckets: Vec<(f64, u64)> = histogram.buckets.iter().map(|b| (b.le.as_f64(), b.n)).collect();
        let count = buckets.iter().fold(0u64, |sum, (_, n)| sum.saturating_add(*n));
        return to.encode_histogram::<NoLabelSet>(histogram.total.as_f64(), count, &buckets, None);
    }
    let value = data.value.unwrap_or_default();
    match (data.metric.kind, value.float == 0.0 && value.int >= 0) {
        // Whole numbers stay exact.
        (Metric::COUNTER, true) => to.encode_counter::<NoLabelSet, u64, u64>(&value.int.unsigned_abs(), None),
        (Metric::COUNTER, false) => to.encode_counter::<NoLabelSet, f64, u64>(&value.as_f64(), None),
        (_, true) => to.encode_gauge(&value.int),
        (_, false) => to.encode_gauge(&value.as_f64()),
    }
}

/// Whether Prometheus takes this as the name of a metric.
fn is_name(name: &str) -> bool {
    let first = |b: u8| b.is_ascii_alphabetic() || matches!(b, b'_' | b':');
    let bytes = name.as_bytes();
    name.len() <= MAX_TEXT
        && bytes.first().is_some_and(|b| first(*b))
        && bytes.iter().all(|b| first(*b) || b.is_ascii_digit())
}

/// Whether Prometheus takes this as the name of a label that is nobody else's.
fn is_label(name: &str) -> bool {
    is_name(name) && !name.contains(':') && !name.starts_with("__") && !matches!(name, "le" | "quantile")
}

fn one_line(help: &str) -> String {
    let clean: String = help.chars().map(|c| if c.is_control() || c == '\\' { ' ' } else { c }).collect();
    clean.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlock_wire::api::metrics::{Bucket, Histogram, Number};

    fn data(name: &str, kind: i32, labels: &[(&str, &str)]) -> Data {
        Data {
            metric: Metric { name: name.to_owned(), kind, help: "What\nit says.".to_owned() },
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            value: (kind != Metric::HISTOGRAM).then(|| Number::of(7)),
            ..Data::default()
        }
    }

    fn text_of(data: Vec<Data>) -> String {
        let mut metrics = Metrics::default();
        metrics.add(Snapshot { data, ..Snapshot::default() }, "", &[(SANDBOX, "s")]);
        metrics.to_text().unwrap()
    }

    #[test]
    fn the_text_has_a_header_for_each_metric_and_a_line_for_each_value() {
        let mut seconds = data("a_seconds", Metric::GAUGE, &[]);
        seconds.value = Some(Number { float: 0.5, int: 0 });
        let mut times = data("a_times", Metric::HISTOGRAM, &[("m", "x\"y")]);
        times.histogram = Some(Histogram {
            total: Number { float: 3.0, int: 0 },
            buckets: vec![
                Bucket { le: Number { float: 0.25, int: 0 }, n: 2 },
                Bucket { le: Number::INFINITY, n: 1 },
            ],
            ..Histogram::default()
        });
        let text = text_of(vec![data("a", Metric::COUNTER, &[]), seconds, times]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "# HELP a What it says.",
                "# TYPE a counter",
                "a_total{sandbox=\"s\"} 7",
                "# HELP a_seconds What it says.",
                "# TYPE a_seconds gauge",
                "a_seconds{sandbox=\"s\"} 0.5",
                "# HELP a_times What it says.",
                "# TYPE a_times histogram",
                "a_times_sum{m=\"x\\\"y\",sandbox=\"s\"} 3.0",
                "a_times_count{m=\"x\\\"y\",sandbox=\"s\"} 3",
                "a_times_bucket{le=\"0.25\",m=\"x\\\"y\",sandbox=\"s\"} 2",
                "a_times_bucket{le=\"+Inf\",m=\"x\\\"y\",sandbox=\"s\"} 3",
                "# EOF",
            ]
        );
    }

    #[test]
    fn a_sandbox_cannot_forge_anothers_figures() {
        let hostile = vec![
            data("a\nb 1", Metric::GAUGE, &[]),
            data("", Metric::GAUGE, &[]),
            data("1a", Metric::GAUGE, &[]),
            data("ok", Metric::GAUGE, &[("sandbox", "other")]),
            data("ok", Metric::COUNTER, &[]),
            data("ok", Metric::GAUGE, &[("bad label", "x")]),
            data("ok", Metric::GAUGE, &[("le", "x")]),
            data("h", Metric::HISTOGRAM, &[]),
            data("k", 9, &[]),
            data("ok", Metric::GAUGE, &[("l", &"x".repeat(2000))]),
        ];
        let text = text_of(hostile);
        assert_eq!(text, "# HELP ok What it says.\n# TYPE ok gauge\nok{sandbox=\"s\"} 7\n# EOF\n");
    }
}
