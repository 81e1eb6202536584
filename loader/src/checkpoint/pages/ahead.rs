//! Reading ahead in page data that is not in the page cache.
//!
//! Several threads read one file in turns, which the kernel takes for random reads. So it is told. Pages are always read
//! through the page cache: several restores of one image at the same time, and those that follow, share what was read
//! once, while direct reads of each would take the disk many times.
#![forbid(unsafe_code)]

use super::Image;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes asked for at a time.
const BLOCK: u64 = 4 << 20;
/// Blocks asked for beyond the one that is being read.
const BLOCKS: u64 = 3;
/// From so much in the cache on, nothing is asked for.
const CACHED: f64 = 0.95;

/// What has been asked for of an image's page data.
#[derive(Debug, Default)]
pub(super) struct Ahead(Vec<AtomicBool>);

impl Ahead {
    pub(super) fn new(image: &Image) -> Self {
        let len = image.index.data_len;
        if len < BLOCK || image.cached().unwrap_or(0.0) >= CACHED {
            return Self::default();
        }
        // The length was compared with the file's.
        Self((0..len.div_ceil(BLOCK)).map(|_| AtomicBool::new(false)).collect())
    }

    /// Somebody is about to read here.
    pub(super) fn read(&self, image: &Image, offset: u64) {
        let first = offset / BLOCK;
        for block in first..=first + BLOCKS {
            let Some(asked) = usize::try_from(block).ok().and_then(|b| self.0.get(b)) else { return };
            if asked.load(Ordering::Relaxed) || asked.swap(true, Ordering::Relaxed) {
                continue;
            }
            let at = i64::try_from(image.base.saturating_add(block * BLOCK));
            if let Ok(at) = at {
                // Only a hint.
                let _ = posix_fadvise(&image.file, at, BLOCK as i64, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
            }
        }
    }
}
