//! `Fs`: files and mounts of containers (gVisor's `pkg/sentry/control/fs.go`).

use super::types::Empty;
use serde::{Deserialize, Serialize};

crate::methods! {
    receiver "Fs", from "gVisor pkg/sentry/control/fs.go";
    /// Writes files of the root container to a descriptor, one after the other.
    Cat: CatOpts => Empty, fds "in: where to", errors "`exactly one file must be provided`; `cannot read from file P: failed to open file P: …`", blocks "while it is written; ends when the caller hangs up";
    /// Writes a file of a container, or a part of it, to a descriptor. What would block is not waited for.
    Read: ReadOpts => Empty, fds "in: where to", errors "`exactly one file must be provided`; `cannot read from file P: failed to open file P: …`; `invalid argument`", blocks "while it is written; ends when the caller hangs up";
    /// Writes the upper layer of a container's root filesystem as a tar archive, with `.wh.` entries for what is gone. All
    /// containers stand still meanwhile.
    TarRootfsUpperLayer: TarRootfsUpperLayerOpts => Empty, fds "in: where to", errors "`exactly one file must be provided`; `rootfs is not an overlayfs`; `failed to find process associated with container X`", blocks "while it is written; ends when the caller hangs up";
    /// Mounts something in a running container; the directory is made if it is missing. fs_type is `tmpfs`, `erofs` (with an
    /// image), or `bind`, `gofer` or `9p` (with a detached mount).
    Mount: MountOpts => Empty, fds "in: none, an erofs image, or a detached mount", errors "`invalid argument`; `target must be an absolute path: T`; `parent directory P does not exist: …`; `parent P is not a directory`; `failed to mount T at P: …`";
    /// Unmounts what is mounted at a place in a running container (umount2(2)).
    Umount: UmountOpts => Empty, errors "`failed to unmount T: …`";
}

/// Argument of [`Cat`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CatOpts {
    /// Paths in the root container.
    pub files: Vec<String>,
}

/// Argument of [`Read`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadOpts {
    /// The container's ID; empty for the root container.
    pub container_id: String,
    /// Path in the container.
    pub path: String,
    /// Where to begin, bytes; more than 0 only in what can be sought.
    pub offset: i64,
    /// How much, bytes; 0: to the end.
    pub size: i64,
}

/// Argument of [`TarRootfsUpperLayer`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TarRootfsUpperLayerOpts {
    /// The container's ID; empty for the root container.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
}

/// Argument of [`Mount`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountOpts {
    /// The container's ID; empty for the root container.
    pub container_id: String,
    /// What is mounted, for messages.
    pub source: String,
    /// Where: an absolute path in the container.
    pub target: String,
    /// See [`Mount`].
    pub fs_type: String,
    /// `MS_RDONLY`, `MS_NOSUID`, `MS_NODEV`, `MS_NOEXEC`, `MS_NOATIME` of mount(2).
    pub flags: u64,
    /// Options of a tmpfs, as mount(2) takes them.
    pub data: String,
}

/// Argument of [`Umount`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UmountOpts {
    /// The container's ID; empty for the root container.
    pub container_id: String,
    /// Where: a path in the container.
    pub target: String,
    /// Flags of umount2(2).
    pub flags: u32,
}

impl MountOpts {
    /// Options of a tmpfs as (name, value).
    pub fn options(&self) -> Vec<(String, Option<String>)> {
        let words = self.data.split(',').filter(|word| !word.is_empty());
        words
            .map(|word| match word.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (word.to_owned(), None),
            })
            .collect()
    }
}
