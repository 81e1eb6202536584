//! `Metrics`: what a sandbox counts (gVisor's `pkg/sentry/control/metrics.go`, `pkg/prometheus`, `pkg/metric`).
//!
//! A snapshot's JSON is that of gVisor's Go structures. All values of airlock's metrics are of the kinds that
//! Prometheus knows; times are seconds, sizes are bytes.

use super::types::{Empty, Json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

crate::methods! {
    receiver "Metrics", from "gVisor pkg/sentry/control/metrics.go; seed 001";
    /// Describes every metric that Export may contain.
    GetRegisteredMetrics: Empty => Json<Registered>;
    /// The values of all metrics now, or of those whose Prometheus names `only_metrics` matches.
    Export: ExportOpts => Json<Exported>, errors "`cannot compile regexp \"R\": …`";
}

/// Result of [`GetRegisteredMetrics`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Registered {
    /// The metrics.
    #[serde(rename = "RegisteredMetrics")]
    pub registered: Registration,
}

/// gVisor's `MetricRegistration`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Registration {
    /// One for each metric.
    pub metrics: Vec<Metadata>,
    /// Names of the stages of start-up whose durations are measured; airlock has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<String>,
}

/// gVisor's `MetricMetadata`; zero values are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Its name as a path: `/airlock/rpc_calls`.
    pub name: String,
    /// Its name in Prometheus' notation: `airlock_rpc_calls`.
    pub prometheus_name: String,
    /// What it says.
    pub description: String,
    /// It never goes down.
    #[serde(skip_serializing_if = "is_false")]
    pub cumulative: bool,
    /// Always false here.
    #[serde(skip_serializing_if = "is_false")]
    pub sync: bool,
    /// 0 a number, 1 a distribution.
    #[serde(rename = "type", skip_serializing_if = "is_zero")]
    pub kind: i32,
    /// 0 none, 1 nanoseconds (airlock's are in seconds, which gVisor has no number for).
    #[serde(skip_serializing_if = "is_zero")]
    pub units: i32,
    /// Its labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Field>,
    /// Lower bounds of a distribution's buckets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub distribution_bucket_lower_bounds: Vec<i64>,
}

/// A label of a metric.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Field {
    /// Its name.
    pub field_name: String,
    /// Its values, where they are known beforehand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_values: Vec<String>,
}

/// Argument of [`Export`] (gVisor's `MetricsExportOpts`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExportOpts {
    /// A regular expression that a part of a metric's Prometheus name must match; empty for all.
    pub only_metrics: String,
}

/// Result of [`Export`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exported {
    /// The values.
    pub snapshot: Snapshot,
}

/// gVisor's `prometheus.Snapshot`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// When, RFC 3339.
    pub when: String,
    /// The values, those of one metric together.
    pub data: Vec<Data>,
}

/// gVisor's `prometheus.Data`: one value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Data {
    /// Of which metric.
    pub metric: Metric,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Further labels, which an exporter adds.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub external_labels: BTreeMap<String, String>,
    /// The value of a gauge or counter.
    #[serde(rename = "val", skip_serializing_if = "Option::is_none")]
    pub value: Option<Number>,
    /// The value of a histogram.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Histogram>,
}

/// gVisor's `prometheus.Metric`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metric {
    /// Its name in Prometheus' notation, a counter's without `_total`.
    pub name: String,
    /// [`Metric::GAUGE`], [`Metric::COUNTER`] or [`Metric::HISTOGRAM`].
    #[serde(rename = "type")]
    pub kind: i32,
    /// What it says.
    pub help: String,
}

impl Metric {
    /// It goes up and down.
    pub const GAUGE: i32 = 1;
    /// It never goes down.
    pub const COUNTER: i32 = 2;
    /// A distribution.
    pub const HISTOGRAM: i32 = 3;
}

/// gVisor's `prometheus.Number`: at most one of the two is not zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Number {
    /// A number with a fraction.
    #[serde(skip_serializing_if = "is_zero_f64")]
    pub float: f64,
    /// A whole number.
    #[serde(skip_serializing_if = "is_zero_i64")]
    pub int: i64,
}

impl Number {
    /// Stands for infinity, which JSON has no number for: the bound of a histogram's last bucket.
    pub const INFINITY: Self = Self { float: 0.0, int: i64::MAX };

    /// A whole number, at most `i64::MAX`.
    pub fn of(n: u64) -> Self {
        Self { float: 0.0, int: i64::try_from(n).unwrap_or(i64::MAX) }
    }

    /// A number of seconds from one of nanoseconds.
    pub fn seconds(nanoseconds: u64) -> Self {
        Self { float: nanoseconds as f64 / 1e9, int: 0 }
    }

    /// The number as Prometheus has them.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::INFINITY => f64::INFINITY,
            Self { float, int: 0 } => float,
            Self { int, .. } => int as f64,
        }
    }
}

/// gVisor's `prometheus.Histogram`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// The sum of all samples.
    pub total: Number,
    /// The smallest sample; 0, it is not kept.
    pub min: Number,
    /// The largest sample; 0, it is not kept.
    pub max: Number,
    /// The sum of squared deviations; 0, it is not kept.
    pub ssd: Number,
    /// The buckets by rising bounds; the last one's is [`Number::INFINITY`].
    pub buckets: Vec<Bucket>,
}

/// gVisor's `prometheus.Bucket`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bucket {
    /// Upper bound, which belongs to the bucket.
    pub le: Number,
    /// Samples in this bucket alone (Prometheus' text adds those of the smaller ones).
    #[serde(skip_serializing_if = "is_zero_u64")]
    pub n: u64,
}

fn is_false(b: &bool) -> bool {
    !b
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

fn is_zero_i64(n: &i64) -> bool {
    *n == 0
}

fn is_zero_u64(n: &u64) -> bool {
    *n == 0
}

fn is_zero_f64(n: &f64) -> bool {
    *n == 0.0
}
