//! `Usage`: memory of a sandbox.

use serde::{Deserialize, Serialize};

crate::methods! {
    receiver "Usage";
    /// Memory usage of the whole sandbox by category, in bytes.
    Collect: MemoryUsageOpts => MemoryUsage;
}

/// Argument of [`Collect`] (gVisor's `control.MemoryUsageOpts`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryUsageOpts {
    /// Break the total down by category instead of putting it under `unknown`; takes longer.
    #[serde(rename = "Full")]
    pub full: bool,
}

/// Result of [`Collect`] (gVisor's `control.MemoryUsage`); all in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryUsage {
    /// Memory that is not broken down.
    #[serde(rename = "Unknown")]
    pub unknown: u64,
    /// The sandbox's own and the kernel's on its behalf.
    #[serde(rename = "System")]
    pub system: u64,
    /// Anonymous memory.
    #[serde(rename = "Anonymous")]
    pub anonymous: u64,
    /// Page cache.
    #[serde(rename = "PageCache")]
    pub page_cache: u64,
    /// Mapped files.
    #[serde(rename = "Mapped")]
    pub mapped: u64,
    /// Memory file systems.
    #[serde(rename = "Tmpfs")]
    pub tmpfs: u64,
    /// Always 0; gVisor's field.
    #[serde(rename = "Ramdiskfs")]
    pub ramdiskfs: u64,
    /// The sum of all.
    #[serde(rename = "Total")]
    pub total: u64,
}
