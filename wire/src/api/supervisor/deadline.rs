//! Moments, as Go writes them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A moment by the wall clock: RFC 3339 with any offset, and up to nine digits of a second. It is told again with the
/// offset that it came with, as Go's `time.Time` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(OffsetDateTime);

/// Go's zero time, the first moment of the year 1, in seconds since 1970.
const ZERO: i64 = -62_135_596_800;

impl Default for Deadline {
    /// Go's zero time: long past.
    fn default() -> Self {
        Self(OffsetDateTime::from_unix_timestamp(ZERO).unwrap_or(OffsetDateTime::UNIX_EPOCH))
    }
}

impl Deadline {
    /// `duration` from now; the end of time when that is too far away.
    pub fn after(duration: Duration) -> Self {
        Self(
            OffsetDateTime::from(SystemTime::now())
                .saturating_add(duration.try_into().unwrap_or(time::Duration::MAX)),
        )
    }

    /// The time from now until then; `None` when it is not in the future.
    pub fn left(&self) -> Option<Duration> {
        let left = self.0 - OffsetDateTime::from(SystemTime::now());
        Duration::try_from(left).ok().filter(|left| !left.is_zero())
    }
}

impl std::str::FromStr for Deadline {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        OffsetDateTime::parse(text, &Rfc3339)
            .map(Self)
            .map_err(|e| format!("{text:?} is no RFC 3339 time such as 2026-11-28T12:00:00.5+01:00: {e}"))
    }
}

impl std::fmt::Display for Deadline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.format(&Rfc3339).map_err(|_| std::fmt::Error)?)
    }
}

impl Serialize for Deadline {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.format(&Rfc3339).map_err(serde::ser::Error::custom)?.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Deadline {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
