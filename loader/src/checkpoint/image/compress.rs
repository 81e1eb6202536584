//! Compression of chunks.
#![forbid(unsafe_code)]

use super::{ImageError, Result};
use serde::{Deserialize, Serialize};

/// Chunks are at most this long, bytes: 16 MiB.
pub const CHUNK_MAX: u32 = 16 << 20;

/// How content is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4 blocks: fast.
    Lz4,
    /// Zstandard frames, level 1: smaller.
    Zstd,
}

impl Compression {
    /// Reads what callers write: `none`, `lz4`, `zstd`, and gVisor's `flate-best-speed`, whose purpose lz4 serves here.
    /// Empty means none.
    ///
    /// # Errors
    /// Another word; the message lists these.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "" | "none" => Ok(Self::None),
            "lz4" | "flate-best-speed" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            other => Err(ImageError::Misuse(format!(
                "unknown compression {other:?}: there are none, lz4, zstd and flate-best-speed (served by lz4)"
            ))),
        }
    }

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        [Self::None, Self::Lz4, Self::Zstd].into_iter().find(|c| c.number() == number)
    }

    /// Compresses one chunk; `None` when it does not become shorter.
    ///
    /// # Errors
    /// The compressor fails, which would be a defect of it.
    pub fn compress(self, content: &[u8]) -> Result<Option<Vec<u8>>> {
        let out = match self {
            Self::None => return Ok(None),
            Self::Lz4 => lz4_flex::block::compress(content),
            Self::Zstd => {
                let failed = |e| ImageError::Misuse(format!("zstd cannot compress a chunk: {e}"));
                let mut out = Vec::new();
                let mut compressor =
                    zstd_rs::Compressor::new(zstd_rs::CompressionConfig::FAST).map_err(failed)?;
                compressor.compress(content, None, &mut out).map_err(failed)?;
                out
            }
        };
        Ok((out.len() < content.len()).then_some(out))
    }

    /// Decompresses one chunk whose content has exactly `len` bytes, at most [`CHUNK_MAX`]. Never makes more than that.
    ///
    /// # Errors
    /// The chunk is not what it should be.
    pub fn decompress(self, stored: &[u8], len: usize) -> Result<Vec<u8>> {
        let failed =
            |e: &dyn std::fmt::Display| ImageError::damaged(format!("a chunk cannot be decompressed: {e}"));
        if len > CHUNK_MAX as usize {
            return Err(failed(&"it is too large"));
        }
        let content = match self {
            Self::None => stored.to_vec(),
            Self::Lz4 => {
                let mut content = vec![0; len];
                let made = lz4_flex::block::decompress_into(stored, &mut content).map_err(|e| failed(&e))?;
                content.truncate(made);
                content
            }
            Self::Zstd => {
                let mut content = Vec::with_capacity(len);
                let mut decompressor = zstd_rs::Decompressor::new();
                decompressor.decompress(stored, None, len, &mut content).map_err(|e| failed(&e))?;
                content
            }
        };
        if content.len() != len {
            return Err(failed(&format_args!("it has {} bytes of content instead of {len}", content.len())));
        }
        Ok(content)
    }
}
