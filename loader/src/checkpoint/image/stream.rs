//! Reading the content of a section.
#![forbid(unsafe_code)]

use super::directory::{Chunk, Form, Section};
use super::{ImageError, Result, input, parallel};
use std::fs::File;
use std::io::{self, Read};

/// Content of the chunk `index` of a section: read, checked, and only then decompressed.
pub(super) fn chunk(file: &File, section: &Section, index: usize, offset: u64) -> Result<Vec<u8>> {
    let Form::Chunked { compression, chunk_size, chunks } = &section.form else {
        return Err(ImageError::Misuse(format!("section {:?} is raw", section.tag)));
    };
    let Some(chunk) = chunks.get(index) else {
        return Err(ImageError::Misuse(format!("section {:?} has no chunk {index}", section.tag)));
    };
    let stored =
        input::read_vec(file, offset, chunk.stored.into(), super::CHUNK_MAX.into(), "content of a section")?;
    if !super::Digest::of(&stored).same(&chunk.digest) {
        return Err(ImageError::damaged(format!(
            "section {:?}: the {} bytes at offset {offset} do not match their checksum",
            section.tag, chunk.stored
        )));
    }
    if !chunk.compressed {
        return Ok(stored);
    }
    compression.decompress(&stored, section.chunk_len(index, *chunk_size))
}

/// Offsets of all chunks of a section.
pub(super) fn offsets(section: &Section) -> Vec<u64> {
    let Form::Chunked { chunks, .. } = &section.form else { return Vec::new() };
    let mut at = section.offset;
    let place = |chunk: &Chunk| {
        let start = at;
        at += u64::from(chunk.stored);
        start
    };
    chunks.iter().map(place).collect()
}

/// Reads a section from front to back, some chunks ahead on all cores. An error that `read` gives has an [`ImageError`]
/// inside; content that was given before it was sound.
#[derive(Debug)]
pub struct SectionReader<'a> {
    file: &'a File,
    section: &'a Section,
    offsets: Vec<u64>,
    /// Chunks that were read, the next one last.
    ready: Vec<Vec<u8>>,
    /// Position in the last of them.
    at: usize,
    next: usize,
}

impl<'a> SectionReader<'a> {
    pub(super) fn new(file: &'a File, section: &'a Section) -> Self {
        Self { file, section, offsets: offsets(section), ready: Vec::new(), at: 0, next: 0 }
    }

    /// Bytes of content in all.
    pub fn len(&self) -> u64 {
        self.section.len
    }

    /// There is no content.
    pub fn is_empty(&self) -> bool {
        self.section.len == 0
    }

    /// The content that can be given without reading more; empty at the end.
    fn fill(&mut self) -> Result<&[u8]> {
        while self.ready.last().is_some_and(|chunk| self.at >= chunk.len()) {
            self.ready.pop();
            self.at = 0;
        }
        if self.ready.is_empty() && self.next < self.offsets.len() {
            let count = (self.offsets.len() - self.next).min(parallel::cores());
            let read = |index: usize| {
                let index = self.next + index;
                chunk(self.file, self.section, index, self.offsets[index])
            };
            self.ready = parallel::map(count, count, read)?;
            self.ready.reverse();
            self.next += count;
        }
        Ok(self.ready.last().map_or(&[], |chunk| &chunk[self.at..]))
    }
}

impl Read for SectionReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let content = self.fill()?;
        let n = content.len().min(buffer.len());
        buffer[..n].copy_from_slice(&content[..n]);
        self.at += n;
        Ok(n)
    }
}
