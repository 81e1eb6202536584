//! Buffers for page data.
#![forbid(unsafe_code)]

use super::{PAGE, UNIT};
use airlock_wire::error::{Error, Result};

/// Room for a unit of pages, on a page boundary (O_DIRECT wants that), and for what it is compressed to.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    stored: Vec<u8>,
    unpacked: Vec<u8>,
}

impl Buffer {
    pub(super) fn new() -> Self {
        let bytes = vec![0; ((UNIT + 1) * PAGE) as usize];
        let start = bytes.as_ptr().align_offset(PAGE as usize);
        Self { bytes, start, stored: Vec::new(), unpacked: Vec::new() }
    }

    /// The first `len` bytes, at most a unit.
    pub(super) fn pages(&mut self, len: usize) -> Result<&mut [u8]> {
        let end = self.start.checked_add(len).filter(|_| len <= (UNIT * PAGE) as usize);
        end.and_then(|end| self.bytes.get_mut(self.start..end))
            .ok_or_else(|| Error::failure(format!("a piece of {len} bytes is too large")))
    }

    /// Room for `len` bytes of compressed data, and the place for what comes of them.
    pub(super) fn stored(&mut self, len: usize) -> Result<(&mut [u8], &mut Vec<u8>)> {
        if len > (UNIT * PAGE) as usize {
            return Err(Error::failure(format!("a compressed piece of {len} bytes is too large")));
        }
        self.stored.resize(len, 0);
        Ok((&mut self.stored, &mut self.unpacked))
    }
}
