//! The metadata of an image: what can be known of it without reading its state.
#![forbid(unsafe_code)]

use super::compress::Compression;
use super::digest::{Digest, Generation};
use super::{ImageError, Result};
use crate::checkpoint::state::{Clocks, Machine};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// JSON object. Keys that a reader does not know are left alone, keys that are missing have their default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Version of the airlock that made the image.
    pub airlock_version: String,
    /// Version of the format, `major.minor`. [`super::Writer::finish`] sets it.
    pub format: String,
    /// Identity of this image; every checkpoint makes a new one. [`super::Writer::finish`] sets it.
    pub generation: Generation,
    /// When the checkpoint was taken: RFC 3339, UTC.
    pub created: String,
    /// ID of the sandbox.
    pub sandbox: String,
    /// How many containers there are, as decimal digits (gVisor's key and form).
    pub container_count: Option<String>,
    /// OCI specs by container name (gVisor's key).
    pub container_specs: BTreeMap<String, SpecText>,
    /// IDs and names of the containers, the root container first.
    pub containers: Vec<ContainerName>,
    /// Kernel and CPU that the programs ran on.
    pub machine: Machine,
    /// Clocks at the consistency point.
    pub clocks: Clocks,
    /// Processes in the image.
    pub processes: u32,
    /// Threads in the image.
    pub threads: u32,
    /// Compression of sections and pages, if any is compressed.
    pub compression: Compression,
    /// Where the memory is.
    pub pages: PagesInfo,
    /// The images that this one builds upon, the nearest first: unchanged pages are in them.
    pub parents: Vec<Parent>,
    /// The programs ran on afterwards: outside state that they share with this image may have moved on.
    pub resumed: bool,
    /// A pre-dump: memory only; serves as a parent, and cannot be restored.
    pub pre_dump: bool,
    /// The caller's own metadata (`SaveOpts.Metadata`).
    pub user: BTreeMap<String, String>,
    /// What the supervisor knew of its domains, as JSON text; empty without any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub supervisor: String,
}

/// A container of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerName {
    /// ID at the checkpoint.
    pub id: String,
    /// Name by which it is found at restore.
    pub name: String,
}

/// Where page data is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PagesIn {
    /// There is none.
    #[default]
    Nowhere,
    /// In the sections `pages-index` and `pages` of the statefile.
    Statefile,
    /// In files of their own: `pages_meta.img` and `pages.img`.
    Files,
}

/// What is known of the page data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PagesInfo {
    /// Where it is.
    pub location: PagesIn,
    /// Pages stored, of 4096 bytes.
    pub count: u64,
    /// The page index, when it is a file.
    pub index: Option<FileIdentity>,
    /// Size of the page data, bytes, wherever it is.
    pub size: u64,
    /// Checksums of the page data, which are in the page index.
    pub sums: Sums,
}

/// What the checksums of page data are good for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sums {
    /// There are none.
    #[default]
    None,
    /// XXH3: accidents are noticed.
    Xxh3,
    /// BLAKE3: intent is noticed too, if the statefile is sealed.
    Blake3,
}

/// By which a file is known to be the right one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Bytes.
    pub size: u64,
    /// Of all of them.
    pub digest: Digest,
}

impl FileIdentity {
    /// Of a file's whole content.
    ///
    /// # Errors
    /// I/O.
    pub fn of(file: &std::fs::File, what: &str) -> Result<Self> {
        let size = file.metadata().map_err(ImageError::io(format!("look at {what}")))?.len();
        let (mut hasher, mut buffer, mut at) = (blake3::Hasher::new(), vec![0; 1 << 20], 0);
        while at < size {
            let n = buffer.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
            super::input::read_at(file, &mut buffer[..n], at, what)?;
            hasher.update(&buffer[..n]);
            at += n as u64;
        }
        Ok(Self { size, digest: Digest(*hasher.finalize().as_bytes()) })
    }

    /// Of content at hand.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self { size: bytes.len() as u64, digest: Digest::of(bytes) }
    }

    /// Checks that content at hand is the one meant.
    ///
    /// # Errors
    /// It is not: `what` is named.
    pub fn check(&self, bytes: &[u8], what: &str) -> Result<()> {
        if bytes.len() as u64 != self.size {
            return Err(ImageError::damaged(format!(
                "{what} has {} bytes instead of {}: it belongs to another image, or was cut",
                bytes.len(),
                self.size
            )));
        }
        if !Digest::of(bytes).same(&self.digest) {
            return Err(ImageError::damaged(format!(
                "{what} is not the one that belongs to the statefile, or was altered"
            )));
        }
        Ok(())
    }
}

/// An image below this one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Parent {
    /// Its [`Metadata::generation`].
    pub generation: Generation,
    /// Its page index, by which it is known to be the right one: so a seal speaks for its pages too.
    pub index: FileIdentity,
    /// Where it was, seen from this image's directory (`--parent-path`); empty if nobody told. A hint for people.
    pub path: String,
}

impl Metadata {
    /// Writes it as JSON.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| ImageError::Misuse(format!("the metadata cannot be written: {e}")))?;
        let (size, limit) = (text.len() as u64, super::header::METADATA_MAX);
        if size > limit {
            return Err(ImageError::TooLarge { what: "the metadata".to_owned(), size, limit });
        }
        Ok(text)
    }

    pub(super) fn decode(text: &[u8]) -> Result<Self> {
        serde_json::from_slice(text)
            .map_err(|e| ImageError::damaged(format!("the metadata cannot be read: {e}")))
    }

    /// Refuses an image of another version of airlock: what a state means is defined by the version that wrote it.
    ///
    /// # Errors
    /// [`ImageError::Version`].
    pub fn check_version(&self, current: &str) -> Result<()> {
        if self.airlock_version == current {
            return Ok(());
        }
        Err(ImageError::Version { checkpoint: self.airlock_version.clone(), current: current.to_owned() })
    }

    /// Reads [`Self::container_count`]; an image without one has one container, as in gVisor.
    ///
    /// # Errors
    /// Not a number, below 1, or not the number of [`Self::containers`] when those are named.
    pub fn count_containers(&self) -> Result<u32> {
        let Some(text) = &self.container_count else { return Ok(1) };
        let count: i64 = text
            .parse()
            .map_err(|e| ImageError::Metadata(format!("invalid container count: {text:?}: {e}")))?;
        match u32::try_from(count) {
            Ok(count @ 1..) if self.containers.is_empty() || self.containers.len() == count as usize => {
                Ok(count)
            }
            Ok(1..) => Err(ImageError::Metadata(format!(
                "invalid container count value: {count}, but {} are named",
                self.containers.len()
            ))),
            _ => Err(ImageError::Metadata(format!("invalid container count value: {count}"))),
        }
    }
}

/// The text of an OCI spec, as an object inside the metadata's JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecText(pub String);

impl Serialize for SpecText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let raw = RawValue::from_string(self.0.clone()).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SpecText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Ok(Self(Box::<RawValue>::deserialize(deserializer)?.get().to_owned()))
    }
}
