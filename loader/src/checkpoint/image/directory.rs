//! Which sections there are, and the digests of their chunks.
#![forbid(unsafe_code)]

use super::compress::{CHUNK_MAX, Compression};
use super::digest::Digest;
use super::input::Cursor;
use super::{ImageError, Result, header};

/// Sections per file at most.
pub(super) const SECTIONS_MAX: usize = 65_536;
/// Longest name of a section, bytes.
pub(super) const TAG_MAX: usize = 200;
/// Raw sections begin at multiples of this, so that they can be mapped.
pub(super) const RAW_ALIGN: u64 = 4096;
/// Smallest chunk size.
const CHUNK_MIN: u32 = 4096;
/// Bit of a chunk's length that says it is compressed.
const COMPRESSED: u32 = 1 << 31;

/// How a section is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// In chunks, each compressed and checksummed alone.
    Chunked {
        /// What compressed chunks are compressed with.
        compression: Compression,
        /// Bytes of content in each chunk but the last.
        chunk_size: u32,
        /// The chunks.
        chunks: Vec<Chunk>,
    },
    /// As it is, aligned to pages, without checksums here: those of page data are in the page index.
    Raw,
}

/// A piece of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes in the file.
    pub stored: u32,
    /// They are compressed.
    pub compressed: bool,
    /// Of the bytes in the file.
    pub digest: Digest,
}

/// A section of a statefile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub tag: String,
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub stored: u64,
    /// Bytes of content.
    pub len: u64,
    /// How it is stored.
    pub form: Form,
}

impl Section {
    /// Bytes of content in the chunk `index`.
    pub(super) fn chunk_len(&self, index: usize, chunk_size: u32) -> usize {
        let before = (index as u64).saturating_mul(u64::from(chunk_size));
        self.len.saturating_sub(before).min(u64::from(chunk_size)) as usize
    }
}

/// Names are for people and programs alike: letters, digits and a little punctuation.
pub(super) fn tag_is_good(tag: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ":._-".contains(c);
    !tag.is_empty() && tag.len() <= TAG_MAX && tag.chars().all(good)
}

pub(super) fn align(offset: u64) -> Option<u64> {
    offset.checked_next_multiple_of(RAW_ALIGN)
}

pub(super) fn encode(sections: &[Section]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend((sections.len() as u32).to_le_bytes());
    for section in sections {
        out.extend((section.tag.len() as u16).to_le_bytes());
        out.extend(section.tag.as_bytes());
        let (form, chunk_size, chunks) = match &section.form {
            Form::Raw => (0, 0, &[][..]),
            Form::Chunked { compression, chunk_size, chunks } => {
                (1 + compression.number(), *chunk_size, chunks.as_slice())
            }
        };
        out.push(form);
        for number in [section.offset, section.stored, section.len] {
            out.extend(number.to_le_bytes());
        }
        out.extend(chunk_size.to_le_bytes());
        out.extend((chunks.len() as u32).to_le_bytes());
        for chunk in chunks {
            let flag = if chunk.compressed { COMPRESSED } else { 0 };
            out.extend((chunk.stored | flag).to_le_bytes());
            out.extend(chunk.digest.0);
        }
    }
    out
}

/// Reads a directory and checks that sections follow one another up to `end`, where the metadata begins.
pub(super) fn decode(bytes: &[u8], end: u64) -> Result<Vec<Section>> {
    let mut from = Cursor::new(bytes, "directory");
    let count = from.u32()? as usize;
    if count > SECTIONS_MAX {
        return Err(ImageError::damaged(format!("{count} sections; at most {SECTIONS_MAX} are allowed")));
    }
    let mut sections: Vec<Section> = Vec::new();
    let mut tags = std::collections::HashSet::new();
    let mut at = header::LEN;
    for _ in 0..count {
        let section = decode_section(&mut from)?;
        let expected = if section.form == Form::Raw { align(at) } else { Some(at) };
        let next = section.offset.checked_add(section.stored);
        match (expected, next) {
            (Some(offset), Some(next)) if offset == section.offset && next <= end => at = next,
            _ => {
                let tag = &section.tag;
                return Err(ImageError::damaged(format!("section {tag:?} is not where it should be")));
            }
        }
        if !tags.insert(section.tag.clone()) {
            return Err(ImageError::damaged(format!("there are two sections {:?}", section.tag)));
        }
        sections.push(section);
    }
    from.end()?;
    if at != end {
        return Err(ImageError::damaged("between the last section and the metadata are unknown bytes"));
    }
    Ok(sections)
}

fn decode_section(from: &mut Cursor<'_>) -> Result<Section> {
    let len = usize::from(from.u16()?);
    let tag = std::str::from_utf8(from.bytes(len)?).ok().filter(|tag| tag_is_good(tag));
    let tag = tag.ok_or_else(|| ImageError::damaged("a section has a name that is none"))?.to_owned();
    let form = from.u8()?;
    let (offset, stored, len) = (from.u64()?, from.u64()?, from.u64()?);
    let (chunk_size, count) = (from.u32()?, from.u32()?);
    let wrong = |what: &str| ImageError::damaged(format!("section {tag:?}: {what}"));
    let Some(compression) = form.checked_sub(1) else {
        if chunk_size != 0 || count != 0 || stored != len {
            return Err(wrong("it is raw and has chunks"));
        }
        return Ok(Section { tag, offset, stored, len, form: Form::Raw });
    };
    let compression = Compression::from_number(compression)
        .ok_or_else(|| wrong("it is compressed in a way that this airlock does not know"))?;
    if !(CHUNK_MIN..=CHUNK_MAX).contains(&chunk_size) || !chunk_size.is_power_of_two() {
        return Err(wrong("its chunks have an impossible size"));
    }
    if len.div_ceil(u64::from(chunk_size)) != u64::from(count) {
        return Err(wrong("its length does not match the number of its chunks"));
    }
    // Each chunk takes bytes of the directory, which is bounded: no more than that is reserved.
    let mut section = Section { tag, offset, stored, len, form: Form::Raw };
    let (mut chunks, mut sum) = (Vec::new(), 0u64);
    for index in 0..count as usize {
        let word = from.u32()?;
        let chunk = Chunk {
            stored: word & !COMPRESSED,
            compressed: word & COMPRESSED != 0,
            digest: Digest(from.array()?),
        };
        let raw = section.chunk_len(index, chunk_size);
        let good = match (chunk.compressed, compression) {
            (true, Compression::None) => false,
            (true, _) => (chunk.stored as usize) < raw,
            (false, _) => chunk.stored as usize == raw,
        };
        if !good {
            let tag = &section.tag;
            return Err(ImageError::damaged(format!(
                "section {tag:?}: chunk {index} has an impossible length"
            )));
        }
        sum += u64::from(chunk.stored);
        chunks.push(chunk);
    }
    if sum != stored {
        return Err(ImageError::damaged(format!(
            "section {:?}: its chunks are not as long as it is",
            section.tag
        )));
    }
    section.form = Form::Chunked { compression, chunk_size, chunks };
    Ok(section)
}
