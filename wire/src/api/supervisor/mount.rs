//! Mounts of a domain: a union by `type`.

use crate::api::types::List;
use serde::{Deserialize, Serialize};

/// A mount of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub enum Mount {
    /// A filesystem (`"type":"drive"`).
    Drive(DriveMount),
    /// A file or directory of another tree (`"type":"bind"`).
    Bind(BindMount),
}

/// A filesystem to mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DriveMount {
    /// The device or image, or what the filesystem's type takes instead.
    pub source: String,
    /// Where it goes in the domain, absolute.
    pub destination: String,
    /// The filesystem's type.
    pub fs_type: String,
    /// Options as mount(8) takes them.
    pub options: Vec<String>,
    /// User and group that its root directory is given to, in the domain's user namespace.
    pub chowner: Option<(u32, u32)>,
    /// Permission bits of its root directory; 0 leaves them.
    pub chmode: u32,
}

/// A file or directory to show in the domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BindMount {
    /// What to show.
    pub source: String,
    /// Where it goes in the domain, absolute.
    pub destination: String,
    /// Options as mount(8) takes them; `rbind` shows what is mounted below as well.
    pub options: Vec<String>,
}

impl Mount {
    /// Where it comes from.
    pub fn source(&self) -> &str {
        match self {
            Self::Drive(m) => &m.source,
            Self::Bind(m) => &m.source,
        }
    }

    /// Where it goes in the domain.
    pub fn destination(&self) -> &str {
        match self {
            Self::Drive(m) => &m.destination,
            Self::Bind(m) => &m.destination,
        }
    }

    /// Its options.
    pub fn options(&self) -> &[String] {
        match self {
            Self::Drive(m) => &m.options,
            Self::Bind(m) => &m.options,
        }
    }
}

/// Both variants' members, in Go's order.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, rename = "Mount")]
struct Fields {
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    source: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    destination: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    fs_type: String,
    #[serde(skip_serializing_if = "List::is_empty")]
    options: List<String>,
    #[serde(skip_serializing_if = "List::is_empty")]
    chowner: List<u32>,
    #[serde(skip_serializing_if = "is_zero")]
    chmode: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl From<Mount> for Fields {
    fn from(mount: Mount) -> Self {
        match mount {
            Mount::Drive(m) => Self {
                kind: "drive".to_owned(),
                source: m.source,
                destination: m.destination,
                fs_type: m.fs_type,
                options: m.options.into(),
                chowner: m.chowner.map(|(uid, gid)| vec![uid, gid]).unwrap_or_default().into(),
                chmode: m.chmode,
            },
            Mount::Bind(m) => Self {
                kind: "bind".to_owned(),
                source: m.source,
                destination: m.destination,
                options: m.options.into(),
                ..Self::default()
            },
        }
    }
}

impl TryFrom<Fields> for Mount {
    type Error = String;
    fn try_from(fields: Fields) -> Result<Self, String> {
        let Fields { kind, source, destination, fs_type, options, chowner, chmode } = fields;
        let options = options.0;
        match kind.as_str() {
            "drive" => {
                let chowner = match chowner.as_slice() {
                    [] => None,
                    [uid, gid] => Some((*uid, *gid)),
                    other => {
                        return Err(format!(
                            "mount at {destination:?}: chowner has {} numbers, want 2",
                            other.len()
                        ));
                    }
                };
                Ok(Self::Drive(DriveMount { source, destination, fs_type, options, chowner, chmode }))
            }
            "bind" if !fs_type.is_empty() || !chowner.is_empty() || chmode != 0 => Err(format!(
                "mount at {destination:?}: fs_type, chowner and chmode are for drives, this is a bind"
            )),
            "bind" => Ok(Self::Bind(BindMount { source, destination, options })),
            other => Err(format!("mount at {destination:?}: its type is {other:?}, want drive or bind")),
        }
    }
}
