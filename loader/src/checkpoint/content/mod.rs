//! Trees of files that travel in an image: tmpfs, and upper layers of overlays that are kept in memory.
//!
//! A tree is a stream of entries, each before what is below it. An entry is a length (32 bits, little-endian), as many
//! bytes of JSON ([`Entry`]), and then, for a regular file, the bytes of its extents one after the other. A length of 0
//! ends the stream. What lies between extents is zero.
//!
//! A directory names everything that is in it: what is not named is removed where the tree is made again. So a layer
//! above another one needs no signs of its own for what it hides.
#![forbid(unsafe_code)]

mod apply;
mod digest;
mod save;

pub use apply::{Applied, apply};
pub use digest::digest;
pub use save::{Options, Saved, save};
pub(crate) use save::{extents, names, xattrs};

use crate::checkpoint::state::Bytes;
use airlock_wire::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};

/// Longest entry, without content.
const ENTRY_MAX: u32 = 64 << 20;
/// Content is copied in pieces of this size.
const PIECE: usize = 1 << 20;
/// Bounds recursion and open descriptors.
pub(crate) const MAX_DEPTH: u32 = 200;

/// A file, as JSON in the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Path below the root of the tree, without a slash in front; empty: the root itself.
    pub path: Bytes,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions, with the set-id and sticky bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Times of access and modification, nanoseconds since the epoch.
    pub times: (i64, i64),
    /// Extended attributes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<(Bytes, Bytes)>,
}

/// What a file is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A directory, with the names of all that is in it.
    Directory {
        /// Names.
        names: Vec<Bytes>,
    },
    /// A regular file.
    File {
        /// Size, bytes.
        size: u64,
        /// Where it has content: (offset, length), ascending.
        extents: Vec<(u64, u64)>,
    },
    /// Another name of a file that came before.
    Link {
        /// Path of that.
        to: Bytes,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to.
        to: Bytes,
    },
    /// A named pipe.
    #[default]
    Fifo,
    /// A character device.
    Char {
        /// Major and minor number.
        number: (u64, u64),
    },
    /// A block device.
    Block {
        /// Major and minor number.
        number: (u64, u64),
    },
}

impl Entry {
    /// Its path, for messages.
    fn shown(&self) -> String {
        format!("/{}", String::from_utf8_lossy(&self.path))
    }
}

fn write_entry(to: &mut dyn Write, entry: &Entry) -> Result<()> {
    let text = serde_json::to_vec(entry).map_err(|e| Error::failure(format!("{}: {e}", entry.shown())))?;
    let len = u32::try_from(text.len()).ok().filter(|n| *n <= ENTRY_MAX);
    let len =
        len.ok_or_else(|| Error::unsupported(format!("{}: it is in too many pieces", entry.shown())))?;
    to.write_all(&len.to_le_bytes())?;
    Ok(to.write_all(&text)?)
}

/// The next entry; none at the end of the stream.
fn read_entry(from: &mut dyn Read) -> Result<Option<Entry>> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len == 0 {
        return Ok(None);
    }
    if len > ENTRY_MAX {
        return Err(damaged(format!("an entry of {len} bytes")));
    }
    let mut text = Vec::new();
    from.take(len.into()).read_to_end(&mut text)?;
    if text.len() != len as usize {
        return Err(damaged("it ends in the middle of an entry"));
    }
    serde_json::from_slice(&text).map(Some).map_err(|e| damaged(format!("an entry cannot be read: {e}")))
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::invalid_argument(format!("the statefile is damaged: content of a filesystem: {what}"))
}

/// Checks a stream without making anything of it: what the fuzz target runs. Answers how many entries it has.
///
/// # Errors
/// What is wrong with it.
pub fn check(from: &mut dyn Read) -> Result<u64> {
    let mut count = 0;
    while let Some(entry) = read_entry(from)? {
        apply::check_path(&entry.path)?;
        if let EntryKind::File { size, extents } = &entry.kind {
            for (_, len) in apply::check_extents(*size, extents)? {
                let skipped = std::io::copy(&mut from.take(*len), &mut std::io::sink())?;
                if skipped != *len {
                    return Err(damaged("it ends in the middle of a file"));
                }
            }
        }
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests;
