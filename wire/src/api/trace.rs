//! Trace sessions (gVisor's `pkg/sentry/seccheck`): which points of a sandbox's life are told, with which fields, and to
//! whom.

use super::types::List;
use serde::{Deserialize, Serialize};

/// The only session that there is.
pub const DEFAULT_SESSION: &str = "Default";

/// What a session tells and to whom. JSON as gVisor's: empty fields are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionConfig {
    /// Must be `Default`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What is told.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub points: List<PointConfig>,
    /// Points and fields that are unknown are left out instead of refused.
    #[serde(skip_serializing_if = "is_false")]
    pub ignore_missing: bool,
    /// To whom.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub sinks: List<SinkConfig>,
    /// Settings of single points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<SessionOptions>,
}

/// Settings of single points.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionOptions {
    /// Of how many executed files the hashes are remembered: 1024 without it, 65536 at most.
    #[serde(skip_serializing_if = "is_zero")]
    pub execve_hash_cache_capacity: i64,
}

/// A point, with fields beyond those that it always has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PointConfig {
    /// Its name, as `syscall/openat/enter`.
    pub name: String,
    /// What it tells of itself if asked.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub optional_fields: List<String>,
    /// What it tells of the task.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub context_fields: List<String>,
}

/// Somebody who is told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SinkConfig {
    /// Its kind: `remote`, `null`, or airlock's own `file`.
    pub name: String,
    /// Settings of that kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Map<String, serde_json::Value>>,
    /// The session goes on without it when it cannot be set up.
    #[serde(skip_serializing_if = "is_false")]
    pub ignore_setup_error: bool,
    /// How it does; told, not asked.
    pub status: SinkStatus,
}

/// How a sink does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SinkStatus {
    /// Events that it did not get, since the session was made.
    #[serde(rename = "DroppedCount")]
    pub dropped_count: u64,
}

/// Argument of `CreateTraceSession`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CreateTraceSessionArgs {
    /// The session.
    pub config: SessionConfig,
    /// It replaces one that exists.
    pub force: bool,
}

/// A file for `--pod-init-config` (gVisor's `boot.InitConfig`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InitConfig {
    /// A session that is there before the root container starts.
    pub trace_session: SessionConfig,
}

fn is_false(b: &bool) -> bool {
    !*b
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}
