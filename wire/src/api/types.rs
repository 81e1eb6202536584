//! Types that several receivers share.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An OCI runtime configuration as JSON text. In the JSON dialect it is an ordinary JSON object inside the
/// message, in the binary dialect a string: the OCI types are not bincode-safe. `None` is JSON `null`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecJson(pub Option<String>);

impl Serialize for SpecJson {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            let value: Option<serde_json::Value> = match &self.0 {
                Some(text) => Some(serde_json::from_str(text).map_err(serde::ser::Error::custom)?),
                None => None,
            };
            value.serialize(s)
        } else {
            self.0.serialize(s)
        }
    }
}

impl<'de> Deserialize<'de> for SpecJson {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            let value: Option<serde_json::Value> = Option::deserialize(d)?;
            Ok(Self(value.map(|v| v.to_string())))
        } else {
            Option::<String>::deserialize(d).map(Self)
        }
    }
}

/// Maps a donated descriptor to a number in the container (gVisor's `boot.FDMapping`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdMapping {
    /// The number that the container sees, 0 or more.
    #[serde(rename = "Guest")]
    pub guest: i32,
    /// Index of the descriptor in the message.
    #[serde(rename = "Host")]
    pub host: i32,
}

/// How one gofer mount was made (gVisor's `GoferMountConf`, March 2025).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GoferMountConf {
    /// 0 none, 1 a directory tree (gVisor: lisafs), 2 an erofs image.
    pub lower: u8,
    /// Overlay medium: 0 none, 1 memory, 2 self, 3 anon directory.
    pub upper: u8,
    /// Size limit of a memory upper layer in bytes; 0 for none.
    pub size: u64,
}
