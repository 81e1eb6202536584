//! Reading what may be forged: a cursor that cannot run over the end, and reads that say what they were for.
#![forbid(unsafe_code)]

use super::{ImageError, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};

/// Takes little-endian numbers from the front of a slice.
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Cursor<'a> {
    /// `what` is named in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(n) else {
            return Err(ImageError::damaged(format!("the {} ends too early", self.what)));
        };
        self.rest = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn end(self) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(ImageError::damaged(format!("the {} has {n} bytes too many", self.what))),
        }
    }
}

/// Reads exactly `buffer.len()` bytes at `offset`. A file that has become shorter meanwhile is an error, not a signal.
pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64, what: &str) -> Result<()> {
    file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => {
            ImageError::damaged(format!("the {what} ends too early: the file has become shorter"))
        }
        _ => ImageError::Io { what: format!("read the {what} at offset {offset}"), source: e },
    })
}

/// Reads `len` bytes at `offset`.
///
/// # Errors
/// `len` is above `limit`; [`read_at`].
pub(super) fn read_vec(file: &File, offset: u64, len: u64, limit: u64, what: &str) -> Result<Vec<u8>> {
    let size = usize::try_from(len).ok().filter(|_| len <= limit);
    let size = size.ok_or_else(|| ImageError::TooLarge { what: format!("the {what}"), size: len, limit })?;
    let mut buffer = vec![0; size];
    read_at(file, &mut buffer, offset, what)?;
    Ok(buffer)
}

/// Refuses what cannot be read (or, with `write`, written) at any offset. Gives the size.
pub(super) fn check_file(file: &File, write: bool) -> Result<u64> {
    let metadata = file.metadata().map_err(ImageError::io("look at the statefile"))?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        return Err(ImageError::NotAFile(match kind {
            k if k.is_fifo() => "a pipe",
            k if k.is_socket() => "a socket",
            k if k.is_dir() => "a directory",
            k if k.is_char_device() => "a character device",
            k if k.is_block_device() => "a block device",
            _ => "something without content",
        }));
    }
    let flags = fcntl(file, FcntlArg::F_GETFL).map_err(|e| ImageError::Io {
        what: "look at the statefile's descriptor".to_owned(),
        source: e.into(),
    })?;
    let flags = OFlag::from_bits_retain(flags);
    let access = flags & OFlag::O_ACCMODE;
    let wrong = if flags.contains(OFlag::O_PATH) {
        Some("with O_PATH")
    } else if flags.contains(OFlag::O_DIRECT) {
        Some("with O_DIRECT (only the pages file may be)")
    } else if !write && access == OFlag::O_WRONLY {
        Some("for writing only")
    } else if write && access == OFlag::O_RDONLY {
        Some("for reading only")
    } else if write && flags.contains(OFlag::O_APPEND) {
        Some("for appending, and a statefile is not written from front to back")
    } else {
        None
    };
    match wrong {
        Some(how) => Err(ImageError::OpenedWrong(how)),
        None => Ok(metadata.len()),
    }
}
