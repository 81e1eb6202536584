//! `Logging`: changes what a running sandbox logs.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

crate::methods! {
    receiver "Logging", from "gVisor pkg/sentry/control/logging.go; seed 001";
    /// Changes the log level; each group of fields applies only if its `Set…` flag is on. The result is always 0.
    Change: LoggingArgs => i32, errors "`error configuring strace: syscall \"x\" not found…`, also without a log; `error configuring event strace: …`; `unknown level …`";
}

/// Argument of [`Change`] (gVisor's `control.LoggingArgs`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoggingArgs {
    /// Apply `level`.
    #[serde(rename = "SetLevel")]
    pub set_level: bool,
    /// The new level.
    #[serde(rename = "Level")]
    pub level: LogLevel,
    /// Apply `log_packets`.
    #[serde(rename = "SetLogPackets")]
    pub set_log_packets: bool,
    /// Log network packets.
    #[serde(rename = "LogPackets")]
    pub log_packets: bool,
    /// Apply `enable_strace` and `strace_allowlist`.
    #[serde(rename = "SetStrace")]
    pub set_strace: bool,
    /// Log the containers' system calls, whatever the level is; off ends that.
    #[serde(rename = "EnableStrace")]
    pub enable_strace: bool,
    /// Names of the system calls to log; `None` or empty for all.
    #[serde(rename = "StraceAllowlist", alias = "StraceWhitelist")]
    pub strace_allowlist: Option<Vec<String>>,
    /// Apply `strace_event_allowlist`.
    #[serde(rename = "SetEventStrace")]
    pub set_event_strace: bool,
    /// Names of the system calls to report as events. Refused: trace sessions do this.
    #[serde(rename = "StraceEventAllowlist", alias = "StraceEventWhitelist")]
    pub strace_event_allowlist: Option<Vec<String>>,
}

/// A log level: JSON `"warning"`, `"info"` or `"debug"`; 0, 1 and 2 are read as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Warnings and errors only.
    #[default]
    Warning,
    /// And what happens in general.
    Info,
    /// And every detail.
    Debug,
}

impl LogLevel {
    /// The level's name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    /// The level of a name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Warning, Self::Info, Self::Debug].into_iter().find(|l| l.name().eq_ignore_ascii_case(name))
    }

    fn from_number(n: u64) -> Option<Self> {
        [Self::Warning, Self::Info, Self::Debug].into_iter().find(|l| *l as u64 == n)
    }
}

impl Serialize for LogLevel {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.serialize_str(self.name()) } else { s.serialize_u8(*self as u8) }
    }
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if !d.is_human_readable() {
            let n = u8::deserialize(d)?;
            return Self::from_number(n.into()).ok_or_else(|| D::Error::custom(unknown(&n)));
        }
        struct Either;
        impl serde::de::Visitor<'_> for Either {
            type Value = LogLevel;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a log level: warning, info or debug")
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<LogLevel, E> {
                LogLevel::from_name(v).ok_or_else(|| E::custom(unknown(&v)))
            }
            fn visit_u64<E: Error>(self, v: u64) -> Result<LogLevel, E> {
                LogLevel::from_number(v).ok_or_else(|| E::custom(unknown(&v)))
            }
        }
        d.deserialize_any(Either)
    }
}

fn unknown(what: &dyn std::fmt::Debug) -> String {
    format!("unknown level {what:?}")
}
