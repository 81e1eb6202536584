//! Types that several receivers share.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
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

/// JSON text that is passed on unread: an object in the JSON dialect, a string in the binary one.
pub type RawJson = SpecJson;

/// Nothing: the argument or result of methods that have none. JSON `{}`; `null` or anything else is read as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Empty {}

impl Serialize for Empty {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        serde::ser::SerializeStruct::end(s.serialize_struct("Empty", 0)?)
    }
}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            serde::de::IgnoredAny::deserialize(d)?;
        }
        Ok(Self {})
    }
}

/// A list whose empty form is JSON `null`, as Go encodes a slice that nothing was appended to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> List<T> {
    /// True without an item; for fields that are left out then.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self(items)
    }
}

impl<T> std::ops::Deref for List<T> {
    type Target = Vec<T>;
    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T: Serialize> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() && s.is_human_readable() { s.serialize_none() } else { self.0.serialize(s) }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            Ok(Self(Option::deserialize(d)?.unwrap_or_default()))
        } else {
            Vec::deserialize(d).map(Self)
        }
    }
}

/// A value that travels as JSON text in the binary dialect, because its encoding leaves fields out (`omitempty`) or
/// has no fixed shape. Transparent in the JSON dialect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T> From<T> for Json<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T> std::ops::Deref for Json<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> std::ops::DerefMut for Json<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Serialize> Serialize for Json<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            self.0.serialize(s)
        } else {
            serde_json::to_string(&self.0).map_err(serde::ser::Error::custom)?.serialize(s)
        }
    }
}

impl<'de, T: serde::de::DeserializeOwned> Deserialize<'de> for Json<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            T::deserialize(d).map(Self)
        } else {
            let text = String::deserialize(d)?;
            serde_json::from_str(&text).map(Self).map_err(serde::de::Error::custom)
        }
    }
}

/// Bytes that JSON has as base64 text (RFC 4648, padded), as Go encodes a `[]byte`; plain bytes in the binary dialect.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

/// Secrets travel in it: their length is all that is shown.
impl std::fmt::Debug for Base64 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.serialize_str(&STANDARD.encode(&self.0)) } else { self.0.serialize(s) }
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            let text = String::deserialize(d)?;
            STANDARD
                .decode(&text)
                .map(Self)
                .map_err(|e| serde::de::Error::custom(format!("illegal base64 data: {e}")))
        } else {
            Vec::deserialize(d).map(Self)
        }
    }
}

/// Maps a donated descriptor to a number in the container (gVisor's `boot.FDMapping`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FdMapping {
    /// The number that the container sees, 0 or more.
    #[serde(rename = "Guest")]
    pub guest: i32,
    /// Index of the descriptor in the message.
    #[serde(rename = "Host")]
    pub host: i32,
}

/// How one gofer mount was made (gVisor's `GoferMountConf`, March 2025).
///
/// The `OverlayMediums` of August 2024 were plain numbers, the upper layer's medium; JSON reads those as well, with
/// a directory tree below.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct GoferMountConf {
    /// 0 none, 1 a directory tree (gVisor: lisafs), 2 an erofs image.
    pub lower: u8,
    /// Overlay medium: 0 none, 1 memory, 2 self, 3 anon directory.
    pub upper: u8,
    /// Size limit of a memory upper layer in bytes; 0 for none.
    pub size: u64,
}

/// The field-by-field form of [`GoferMountConf`].
#[derive(Default, Deserialize)]
#[serde(default)]
struct GoferMountFields {
    lower: u8,
    upper: u8,
    #[serde(deserialize_with = "size_or_text")]
    size: u64,
}

impl From<GoferMountFields> for GoferMountConf {
    fn from(f: GoferMountFields) -> Self {
        Self { lower: f.lower, upper: f.upper, size: f.size }
    }
}

impl<'de> Deserialize<'de> for GoferMountConf {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if !d.is_human_readable() {
            return GoferMountFields::deserialize(d).map(Self::from);
        }
        struct Either;
        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = GoferMountConf;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a gofer mount configuration or the number of an overlay medium")
            }
            fn visit_unit<E>(self) -> Result<GoferMountConf, E> {
                Ok(GoferMountConf::default())
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<GoferMountConf, E> {
                let upper = u8::try_from(v).map_err(|_| {
                    E::invalid_value(serde::de::Unexpected::Unsigned(v), &"an overlay medium, 0 to 3")
                })?;
                Ok(GoferMountConf { lower: 1, upper, size: 0 })
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<GoferMountConf, A::Error> {
                GoferMountFields::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    .map(Into::into)
            }
        }
        d.deserialize_any(Either)
    }
}

/// A size in bytes as a number, or as text with an optional suffix k, m, g or t (powers of 1024; gVisor's newest
/// spelling, as tmpfs(5) writes it).
fn size_or_text<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    if !d.is_human_readable() {
        return u64::deserialize(d);
    }
    struct Either;
    impl serde::de::Visitor<'_> for Either {
        type Value = u64;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a size in bytes, as a number or as text with a suffix k, m, g or t")
        }
        fn visit_u64<E>(self, v: u64) -> Result<u64, E> {
            Ok(v)
        }
        fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<u64, E> {
            let digits = v.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let shift = match v[digits.len()..].to_ascii_lowercase().as_str() {
                "" => 0,
                "k" => 10,
                "m" => 20,
                "g" => 30,
                "t" => 40,
                _ => return Err(E::invalid_value(serde::de::Unexpected::Str(v), &self)),
            };
            match digits {
                "" if shift == 0 => Ok(0),
                _ => digits
                    .parse::<u64>()
                    .ok()
                    .and_then(|n| n.checked_mul(1 << shift))
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(v), &self)),
            }
        }
    }
    d.deserialize_any(Either)
}
