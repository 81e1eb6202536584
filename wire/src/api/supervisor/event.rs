//! What the supervisor tells of itself.

use serde::{Deserialize, Serialize};

/// One line of what [`Events`](super::Events) carries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// When it happened: milliseconds since 1970.
    #[serde(rename = "timestamp_millis")]
    pub time: u64,
    /// What happened.
    pub event: EventData,
}

/// What happened. All members are always there; which are not null depends on `type`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventData {
    /// What kind of event it is.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// The domain.
    pub domain: Option<String>,
    /// Of [`EventType::ProcessTermination`]: the process.
    pub name: Option<String>,
    /// Of [`EventType::ProcessTermination`]: why it ended.
    pub cause: Option<Cause>,
    /// Of [`Cause::Signaled`]: the signal.
    pub signo: Option<i32>,
    /// Of [`Cause::Exited`]: the exit status, 0 to 255.
    pub exit_status: Option<i32>,
    /// Of [`EventType::EventLoss`]: how many events this reader has lost since the line before.
    pub size: Option<u64>,
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// A named process has ended.
    #[default]
    ProcessTermination,
    /// The reader was too slow, and has lost events.
    EventLoss,
}

/// Why a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// By itself.
    Exited,
    /// By a signal that it did not handle.
    Signaled,
}

impl EventData {
    /// A process' end with that wait status.
    pub fn termination(domain: &str, name: &str, status: u32) -> Self {
        let signal = (status & 0x7f).cast_signed();
        let (cause, signo, exit_status) = match signal {
            0 => (Cause::Exited, None, Some((status >> 8 & 0xff).cast_signed())),
            signal => (Cause::Signaled, Some(signal), None),
        };
        Self {
            kind: EventType::ProcessTermination,
            domain: Some(domain.to_owned()),
            name: Some(name.to_owned()),
            cause: Some(cause),
            signo,
            exit_status,
            size: None,
        }
    }

    /// The loss of `size` events.
    pub fn loss(size: u64) -> Self {
        Self { kind: EventType::EventLoss, size: Some(size), ..Self::default() }
    }
}
