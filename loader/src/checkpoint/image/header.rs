//! The first bytes of a statefile.
#![forbid(unsafe_code)]

use super::digest::{Digest, Generation};
use super::input::Cursor;
use super::{ImageError, Result};

/// First eight bytes of every statefile. The last, Ctrl-Z, ends it for those who print it by mistake on old systems.
pub const MAGIC: [u8; 8] = *b"airlock\x1a";
/// A reader refuses other major versions.
pub const FORMAT_MAJOR: u16 = 1;
/// A later minor version only adds: sections and metadata keys that a reader does not know.
pub const FORMAT_MINOR: u16 = 0;

/// Length of the header.
pub(super) const LEN: u64 = 160;
/// Metadata may not be longer: 64 MiB.
pub(super) const METADATA_MAX: u64 = 64 << 20;
/// The directory may not be longer: 64 MiB, enough for sections of 1.8 TiB together.
pub(super) const DIRECTORY_MAX: u64 = 64 << 20;

/// The file is being written, or was when its writer died.
const INCOMPLETE: u32 = 1;
/// There is a seal.
const SEALED: u32 = 2;
/// Part of the header that the checksum covers.
const SUMMED: usize = 96;
/// Part of the header that the seal covers.
const SEALED_PART: usize = 128;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub minor: u16,
    pub sealed: bool,
    /// Size of the whole file.
    pub total: u64,
    pub metadata: (u64, u64),
    pub directory: (u64, u64),
    pub generation: Generation,
    pub checksum: Digest,
    /// Zero when not sealed.
    pub seal: Digest,
}

impl Header {
    /// The bytes of a file that is not complete.
    pub fn incomplete(generation: Generation) -> Vec<u8> {
        Self { minor: FORMAT_MINOR, generation, ..Self::default() }.encode(INCOMPLETE)
    }

    /// The bytes of a complete file: computes checksum and seal.
    pub fn complete(mut self, metadata: &[u8], directory: &[u8], key: Option<&[u8]>) -> (Vec<u8>, Digest) {
        self.sealed = key.is_some();
        let flags = if self.sealed { SEALED } else { 0 };
        self.checksum = self.sum(flags, metadata, directory);
        self.seal = Digest::default();
        if let Some(key) = key {
            self.seal = Digest::sealed(key, &self.encode(flags)[..SEALED_PART]);
        }
        (self.encode(flags), self.checksum)
    }

    fn sum(&self, flags: u32, metadata: &[u8], directory: &[u8]) -> Digest {
        Digest::of_parts(&[&self.encode(flags)[..SUMMED], metadata, directory])
    }

    /// Checks metadata and directory, which were read from where the header says.
    pub fn check(&self, metadata: &[u8], directory: &[u8]) -> Result<()> {
        let flags = if self.sealed { SEALED } else { 0 };
        if !self.sum(flags, metadata, directory).same(&self.checksum) {
            return Err(ImageError::damaged("the checksum of header, metadata and directory does not match"));
        }
        Ok(())
    }

    /// Checks the seal, after [`Self::check`].
    pub fn check_seal(&self, key: &[u8]) -> Result<()> {
        if !self.sealed {
            return Err(ImageError::UnexpectedKey);
        }
        if !Digest::sealed(key, &self.encode(SEALED)[..SEALED_PART]).same(&self.seal) {
            return Err(ImageError::WrongKey);
        }
        Ok(())
    }

    fn encode(&self, flags: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(LEN as usize);
        out.extend(MAGIC);
        out.extend(FORMAT_MAJOR.to_le_bytes());
        out.extend(self.minor.to_le_bytes());
        out.extend(flags.to_le_bytes());
        out.extend((LEN as u32).to_le_bytes());
        out.extend([0; 4]);
        let (metadata, directory) = (self.metadata, self.directory);
        for number in [self.total, metadata.0, metadata.1, directory.0, directory.1] {
            out.extend(number.to_le_bytes());
        }
        out.extend(self.generation.0);
        out.resize(SUMMED, 0);
        out.extend(self.checksum.0);
        out.extend(self.seal.0);
        out
    }

    /// Reads the beginning of a file: `start` is at most [`LEN`] bytes and shorter only if the file of `size` bytes is.
    pub fn decode(start: &[u8], size: u64) -> Result<Self> {
        if size == 0 || start.is_empty() {
            return Err(ImageError::Empty);
        }
        recognise(start)?;
        let truncated = || ImageError::Truncated { have: size, want: LEN };
        let mut from = Cursor::new(start.get(MAGIC.len()..).ok_or_else(truncated)?, "header");
        let short = |_| truncated();
        let (major, minor) = (from.u16().map_err(short)?, from.u16().map_err(short)?);
        if major != FORMAT_MAJOR {
            return Err(if major > FORMAT_MAJOR {
                ImageError::FutureFormat { major, minor }
            } else {
                ImageError::damaged(format!("there is no format {major}.{minor}"))
            });
        }
        let flags = from.u32().map_err(short)?;
        let (len, reserved) = (from.u32().map_err(short)?, from.u32().map_err(short)?);
        if flags & INCOMPLETE != 0 {
            return Err(ImageError::Incomplete);
        }
        if flags & !SEALED != 0 || u64::from(len) != LEN || reserved != 0 {
            return Err(ImageError::damaged("the header has flags or fields that format 1 does not know"));
        }
        let mut numbers = [0; 5];
        for number in &mut numbers {
            *number = from.u64().map_err(short)?;
        }
        let [total, metadata, metadata_len, directory, directory_len] = numbers;
        let generation = Generation(from.array().map_err(short)?);
        let padding: [u8; SUMMED - 80] = from.array().map_err(short)?;
        let header = Self {
            minor,
            sealed: flags & SEALED != 0,
            total,
            metadata: (metadata, metadata_len),
            directory: (directory, directory_len),
            generation,
            checksum: Digest(from.array().map_err(short)?),
            seal: Digest(from.array().map_err(short)?),
        };
        if padding.iter().any(|byte| *byte != 0) || (!header.sealed && header.seal != Digest::default()) {
            return Err(ImageError::damaged("reserved bytes of the header are not zero"));
        }
        header.check_layout(size)?;
        Ok(header)
    }

    fn check_layout(&self, size: u64) -> Result<()> {
        let ((metadata, metadata_len), (directory, directory_len)) = (self.metadata, self.directory);
        for (what, size, limit) in
            [("the metadata", metadata_len, METADATA_MAX), ("the directory", directory_len, DIRECTORY_MAX)]
        {
            if size > limit {
                return Err(ImageError::TooLarge { what: what.to_owned(), size, limit });
            }
        }
        if metadata < LEN
            || metadata.checked_add(metadata_len) != Some(directory)
            || directory.checked_add(directory_len) != Some(self.total)
        {
            return Err(ImageError::damaged("the places that the header names do not follow one another"));
        }
        match size.cmp(&self.total) {
            std::cmp::Ordering::Less => Err(ImageError::Truncated { have: size, want: self.total }),
            std::cmp::Ordering::Greater => Err(ImageError::Trailing { extra: size - self.total }),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }
}

/// Checks the magic, and names what it is if it is something else that people have at hand.
fn recognise(start: &[u8]) -> Result<()> {
    if start.starts_with(&MAGIC) {
        return Ok(());
    }
    if MAGIC.starts_with(start) {
        return Err(ImageError::Truncated { have: start.len() as u64, want: LEN });
    }
    let word = start.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    // CRIU's images begin with one of two words of include/magic.h (common, service), its older ones with their own.
    let what = match word {
        Some(0x5456_4319 | 0x5510_5940 | 0x5831_3116) => {
            "it is an image of CRIU; restore it with criu or runc"
        }
        _ if start.starts_with(b"gVisorSF") => "it is a statefile of gVisor; restore it with runsc",
        _ if start.starts_with(b"ALPAGES\0") => {
            "it is the page index of an image (pages_meta.img); the statefile is checkpoint.img"
        }
        _ if start.starts_with(&[0x1f, 0x8b]) => "it is compressed with gzip; unpack it first",
        _ if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) => "it is compressed with zstd; unpack it first",
        _ if start.starts_with(&[0x04, 0x22, 0x4d, 0x18]) => "it is compressed with lz4; unpack it first",
        _ if start.starts_with(b"\x7fELF") => "it is a program",
        _ if start.iter().all(|byte| *byte == 0) => {
            "it begins with zeros, as a file does that was never written"
        }
        _ => "it does not begin as one",
    };
    Err(ImageError::Foreign(what.to_owned()))
}
