//! Checksums of page data: so cheap that they are always made (XXH3), or as strong as the seal (BLAKE3).
#![forbid(unsafe_code)]

use super::input::{Cursor, read_at};
use super::{ImageError, Result, parallel};
use serde::{Deserialize, Serialize};
use std::fs::File;
use twox_hash::XxHash3_128;

/// Bytes of page data that one checksum covers unless said otherwise: 1 MiB.
pub const SUMS_CHUNK: u32 = 1 << 20;
const CHUNK_RANGE: std::ops::RangeInclusive<u32> = 4096..=16 << 20;
const HEADER: usize = 16;

/// What the checksums are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SumKind {
    /// XXH3, 128 bits, seed 0, little-endian: against accidents; some 25 GB/s on a core.
    Xxh3,
    /// BLAKE3, 256 bits: against intent too, together with a sealed statefile; some 3 GB/s on a core.
    Blake3,
}

/// A checksum; of XXH3 the first half only, the rest is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum([u8; 32]);

impl SumKind {
    /// The kind that fits: strong if there is a key.
    pub fn for_key(sealed: bool) -> Self {
        if sealed { Self::Blake3 } else { Self::Xxh3 }
    }

    /// The checksum of a chunk.
    pub fn sum(self, chunk: &[u8]) -> Sum {
        match self {
            Self::Xxh3 => {
                let mut sum = [0; 32];
                sum[..16].copy_from_slice(&XxHash3_128::oneshot(chunk).to_le_bytes());
                Sum(sum)
            }
            Self::Blake3 => Sum(*blake3::hash(chunk).as_bytes()),
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Xxh3 => 16,
            Self::Blake3 => 32,
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Xxh3 => 1,
            Self::Blake3 => 2,
        }
    }
}

/// The checksums of a range of page data, cut into chunks of equal length; the last may be shorter.
///
/// As a section: kind (u32: 1 XXH3, 2 BLAKE3), chunk size (u32), length of the data (u64), then the checksums, 16 or 32
/// bytes each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSums {
    kind: SumKind,
    chunk: u32,
    len: u64,
    sums: Vec<Sum>,
}

impl PageSums {
    /// From checksums that were made while the data was written, in order: `sums[i]` covers the bytes from `i * chunk`.
    ///
    /// # Errors
    /// `chunk` is no power of two between 4 KiB and 16 MiB, or the number of checksums does not fit `len`.
    pub fn new(kind: SumKind, chunk: u32, len: u64, sums: Vec<Sum>) -> Result<Self> {
        check_chunk_size(chunk)?;
        if len.div_ceil(u64::from(chunk)) != sums.len() as u64 {
            return Err(ImageError::Misuse(format!(
                "{} page checksums do not cover {len} bytes of page data",
                sums.len()
            )));
        }
        Ok(Self { kind, chunk, len, sums })
    }

    /// Reads the data (`len` bytes at `offset`) and makes the checksums, on all cores. Pages that were just written are in
    /// the page cache.
    ///
    /// # Errors
    /// See [`Self::new`]; I/O.
    pub fn compute(file: &File, offset: u64, len: u64, kind: SumKind, chunk: u32) -> Result<Self> {
        check_chunk_size(chunk)?;
        let empty = Self { kind, chunk, len, sums: Vec::new() };
        let count = len.div_ceil(u64::from(chunk));
        let sums = each_chunk(&empty, count, |index| {
            let mut sum = Sum::default();
            with_chunk(file, offset, &empty, index, |bytes| {
                sum = kind.sum(bytes);
                Ok(())
            })?;
            Ok(sum)
        })?;
        Self::new(kind, chunk, len, sums)
    }

    /// What the checksums are.
    pub fn kind(&self) -> SumKind {
        self.kind
    }

    /// Bytes that each covers.
    pub fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Bytes covered.
    pub fn covers(&self) -> u64 {
        self.len
    }

    /// Where the chunk `index` is in the data, and how long it is.
    pub fn range(&self, index: u64) -> (u64, usize) {
        let start = index.saturating_mul(u64::from(self.chunk));
        (start, self.len.saturating_sub(start).min(u64::from(self.chunk)) as usize)
    }

    /// Checks one chunk that was read: for a restore that checks as it goes.
    ///
    /// # Errors
    /// It does not match; the offset is named.
    pub fn check(&self, index: u64, bytes: &[u8]) -> Result<()> {
        let (start, len) = self.range(index);
        let sum = usize::try_from(index).ok().and_then(|index| self.sums.get(index));
        if sum.is_none_or(|sum| bytes.len() != len || self.kind.sum(bytes) != *sum) {
            return Err(ImageError::damaged(format!(
                "the page data at offset {start}, {len} bytes, does not match its checksum"
            )));
        }
        Ok(())
    }

    /// Reads the data, which begins at `offset`, and checks all of it, on all cores.
    ///
    /// # Errors
    /// The first place found that does not match; I/O; the file is too short.
    pub fn verify(&self, file: &File, offset: u64) -> Result<()> {
        self.verify_with(file, offset, &|_| {})
    }

    /// [`Self::verify`], and tells `progress` after each chunk how many bytes it had. Called from several threads.
    ///
    /// # Errors
    /// See [`Self::verify`].
    pub fn verify_with(&self, file: &File, offset: u64, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
        each_chunk(self, self.sums.len() as u64, |index| {
            with_chunk(file, offset, self, index, |bytes| {
                progress(bytes.len() as u64);
                self.check(index, bytes)
            })
        })
        .map(drop)
    }

    /// As the content of the section `page-sums`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.sums.len() * self.kind.len());
        out.extend(self.kind.number().to_le_bytes());
        out.extend(self.chunk.to_le_bytes());
        out.extend(self.len.to_le_bytes());
        self.sums.iter().for_each(|sum| out.extend(&sum.0[..self.kind.len()]));
        out
    }

    /// Reads the content of a section `page-sums`.
    ///
    /// # Errors
    /// It is not one.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut from = Cursor::new(bytes, "list of page checksums");
        let number = from.u32()?;
        let kind = [SumKind::Xxh3, SumKind::Blake3].into_iter().find(|kind| kind.number() == number);
        let kind =
            kind.ok_or_else(|| ImageError::damaged(format!("unknown kind of page checksums: {number}")))?;
        let (chunk, len) = (from.u32()?, from.u64()?);
        let count = bytes.len().saturating_sub(HEADER) / kind.len();
        let mut sums = Vec::with_capacity(count);
        for _ in 0..count {
            let mut sum = Sum::default();
            sum.0[..kind.len()].copy_from_slice(from.bytes(kind.len())?);
            sums.push(sum);
        }
        from.end()?;
        Self::new(kind, chunk, len, sums).map_err(|e| ImageError::damaged(e.to_string()))
    }
}

fn check_chunk_size(chunk: u32) -> Result<()> {
    if CHUNK_RANGE.contains(&chunk) && chunk.is_power_of_two() {
        return Ok(());
    }
    Err(ImageError::Misuse(format!("page checksums cannot cover {chunk} bytes each")))
}

/// Runs `work` for each chunk on all cores, or here when it is little.
fn each_chunk<T: Send>(
    sums: &PageSums,
    count: u64,
    work: impl Fn(u64) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let threads = if sums.len < 4 << 20 { 1 } else { parallel::cores() };
    let count = usize::try_from(count)
        .map_err(|_| ImageError::Misuse("there is more page data than this machine can count".to_owned()))?;
    parallel::map(threads, count, |index| work(index as u64))
}

fn with_chunk<T>(
    file: &File,
    offset: u64,
    sums: &PageSums,
    index: u64,
    work: impl FnOnce(&[u8]) -> Result<T>,
) -> Result<T> {
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    let (start, len) = sums.range(index);
    let at = offset.checked_add(start).ok_or_else(|| ImageError::damaged("page data is beyond all files"))?;
    // A buffer that is made anew for each chunk costs more than the checksum does.
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(len, 0);
        read_at(file, buffer, at, "page data")?;
        work(buffer)
    })
}
