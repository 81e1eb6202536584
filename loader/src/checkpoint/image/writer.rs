//! Writing a statefile.
#![forbid(unsafe_code)]

use super::compress::Compression;
use super::digest::{Digest, Generation};
use super::directory::{self, Chunk, Form, RAW_ALIGN, SECTIONS_MAX, Section};
use super::header::{self, Header};
use super::metadata::{Metadata, PagesIn, Sums};
use super::{ImageError, Result, input, parallel};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// Bytes of content in a chunk of a section.
const CHUNK: u32 = 1 << 20;

/// How a statefile is written.
#[derive(Debug, Clone, Default)]
pub struct WriterOptions {
    /// Seals the image. Any length but zero.
    pub key: Option<Vec<u8>>,
    /// Compression of the sections that are not raw.
    pub compression: Compression,
    /// Waits until everything is on the disk before the file is marked complete, and again afterwards, so that a power
    /// cut leaves no image that looks complete and is not. Costs nothing on tmpfs. Files of pages are the caller's to
    /// sync, before [`Writer::finish`].
    pub sync: bool,
}

/// Writes one statefile. Until [`Writer::finish`] has returned, what is in the file says that it is incomplete.
#[derive(Debug)]
pub struct Writer {
    file: File,
    options: WriterOptions,
    generation: Generation,
    sections: Vec<Section>,
    /// Where the next section begins.
    at: u64,
    /// Up to where something was written.
    written: u64,
    /// A raw section that was begun: name and beginning.
    raw: Option<(String, u64)>,
    failed: bool,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Size of the statefile, bytes.
    pub size: u64,
    /// Identity of the image.
    pub generation: Generation,
    /// The header's checksum.
    pub checksum: Digest,
}

impl Writer {
    /// Empties the file and marks it incomplete. `file` is a regular file or a memfd, open for writing (reading is needed
    /// by nobody here), without O_APPEND and O_DIRECT; its position does not matter.
    ///
    /// # Errors
    /// Another kind of file; an empty key; I/O.
    pub fn create(file: File, options: WriterOptions) -> Result<Self> {
        input::check_file(&file, true)?;
        if options.key.as_ref().is_some_and(Vec::is_empty) {
            return Err(ImageError::Misuse("the key is empty".to_owned()));
        }
        let generation =
            Generation::new().map_err(ImageError::io("get random bytes for the image's generation id"))?;
        file.set_len(0).map_err(ImageError::io("empty the statefile"))?;
        let writer = Self {
            file,
            options,
            generation,
            sections: Vec::new(),
            at: header::LEN,
            written: header::LEN,
            raw: None,
            failed: false,
        };
        writer.write_at(&Header::incomplete(generation), 0)?;
        Ok(writer)
    }

    /// Identity that the image will have.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Writes a whole section.
    ///
    /// # Errors
    /// A name that is none or was used; I/O.
    pub fn put(&mut self, tag: &str, content: &[u8]) -> Result<()> {
        let mut section = self.section(tag)?;
        section.add(content)?;
        section.finish()
    }

    /// Writes a section as a JSON document.
    ///
    /// # Errors
    /// See [`Self::put`]; the value cannot be serialised.
    pub fn put_json(&mut self, tag: &str, value: &impl serde::Serialize) -> Result<()> {
        let text = serde_json::to_vec(value)
            .map_err(|e| ImageError::Misuse(format!("section {tag:?} cannot be written as JSON: {e}")))?;
        self.put(tag, &text)
    }

    /// Begins a section whose length need not be known. Nothing is kept of it unless [`SectionWriter::finish`] is called.
    ///
    /// # Errors
    /// A name that is none or was used; a raw section is open.
    pub fn section(&mut self, tag: &str) -> Result<SectionWriter<'_>> {
        self.begin(tag)?;
        Ok(SectionWriter {
            tag: tag.to_owned(),
            offset: self.at,
            at: self.at,
            len: 0,
            chunks: Vec::new(),
            pending: Vec::new(),
            writer: self,
        })
    }

    /// Begins a raw section and gives the offset from which on the caller writes it, in any order, to [`Self::file`]. The
    /// offset is a multiple of 4096. [`Self::end_raw`] has to follow before anything else.
    ///
    /// # Errors
    /// A name that is none or was used; a raw section is open.
    pub fn raw(&mut self, tag: &str) -> Result<u64> {
        self.begin(tag)?;
        let start = directory::align(self.at)
            .ok_or_else(|| ImageError::Misuse("the statefile is as long as a file can be".to_owned()))?;
        self.raw = Some((tag.to_owned(), start));
        Ok(start)
    }

    /// The file, for [`Self::raw`].
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Ends a raw section of `len` bytes. Bytes of it that were never written are zero.
    ///
    /// # Errors
    /// There is none; I/O.
    pub fn end_raw(&mut self, len: u64) -> Result<()> {
        let (tag, offset) =
            self.raw.take().ok_or_else(|| ImageError::Misuse("no raw section was begun".to_owned()))?;
        let end = offset.checked_add(len);
        self.at = end.ok_or_else(|| ImageError::Misuse(format!("section {tag:?} is too long")))?;
        self.written = self.at;
        // The bytes up to here are the section's, whether they were written or not.
        self.file.set_len(self.at).map_err(ImageError::io(format!("end section {tag:?}")))?;
        self.sections.push(Section { tag, offset, stored: len, len, form: Form::Raw });
        Ok(())
    }

    /// Writes metadata and directory, and then takes the mark off. `metadata.format` and `metadata.generation` are set
    /// here. When this fails the file stays incomplete.
    ///
    /// # Errors
    /// A raw section is open, a section failed; there is a key and page data without strong checksums; metadata longer
    /// than 64 MiB; I/O.
    pub fn finish(mut self, mut metadata: Metadata) -> Result<Finished> {
        if let Some((tag, _)) = &self.raw {
            return Err(ImageError::Misuse(format!("section {tag:?} was not ended")));
        }
        if self.failed {
            return Err(ImageError::Misuse(
                "a section could not be written; the image is of no use".to_owned(),
            ));
        }
        if self.options.key.is_some()
            && metadata.pages.location != PagesIn::Nowhere
            && metadata.pages.sums != Sums::Blake3
        {
            return Err(ImageError::Misuse("a sealed image needs BLAKE3 checksums of its pages".to_owned()));
        }
        self.trim()?;
        metadata.format = format!("{}.{}", super::FORMAT_MAJOR, super::FORMAT_MINOR);
        metadata.generation = self.generation;
        let (text, directory) = (metadata.encode()?, directory::encode(&self.sections));
        let (size, limit) = (directory.len() as u64, header::DIRECTORY_MAX);
        if size > limit {
            return Err(ImageError::TooLarge { what: "the directory of sections".to_owned(), size, limit });
        }
        let places = ((self.at, text.len() as u64), (self.at + text.len() as u64, size));
        let total = places.1.0 + size;
        self.write_at(&text, places.0.0)?;
        self.write_at(&directory, places.1.0)?;
        self.sync()?;
        let header = Header {
            minor: super::FORMAT_MINOR,
            total,
            metadata: places.0,
            directory: places.1,
            generation: self.generation,
            ..Header::default()
        };
        let (header, checksum) = header.complete(&text, &directory, self.options.key.as_deref());
        // One write of less than a page: whoever looks sees the mark or the complete header.
        self.write_at(&header, 0)?;
        self.sync()?;
        self.at = total;
        Ok(Finished { size: total, generation: self.generation, checksum })
    }

    fn begin(&mut self, tag: &str) -> Result<()> {
        if let Some((open, _)) = &self.raw {
            return Err(ImageError::Misuse(format!("section {tag:?} begins before {open:?} has ended")));
        }
        if !directory::tag_is_good(tag) {
            return Err(ImageError::Misuse(format!("{tag:?} cannot be the name of a section")));
        }
        if self.sections.len() >= SECTIONS_MAX || self.sections.iter().any(|section| section.tag == tag) {
            return Err(ImageError::Misuse(format!("section {tag:?} exists, or there are too many")));
        }
        self.trim()
    }

    /// Takes away what a section wrote that was given up.
    fn trim(&mut self) -> Result<()> {
        if self.written > self.at {
            self.file.set_len(self.at).map_err(ImageError::io("shorten the statefile"))?;
            self.written = self.at;
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let what = || format!("write {} bytes of the statefile at offset {offset}", bytes.len());
        self.file.write_all_at(bytes, offset).map_err(|e| ImageError::Io { what: what(), source: e })
    }

    fn sync(&self) -> Result<()> {
        if !self.options.sync {
            return Ok(());
        }
        self.file.sync_all().map_err(ImageError::io("bring the statefile to the disk"))
    }
}

/// Writes the content of one section. Compresses and checksums on all cores once there is enough of it.
#[derive(Debug)]
pub struct SectionWriter<'a> {
    writer: &'a mut Writer,
    tag: String,
    offset: u64,
    at: u64,
    len: u64,
    chunks: Vec<Chunk>,
    /// Content that is not written yet.
    pending: Vec<u8>,
}

impl SectionWriter<'_> {
    /// Adds content.
    ///
    /// # Errors
    /// I/O. The image is of no use afterwards, and [`Writer::finish`] refuses it.
    pub fn add(&mut self, mut content: &[u8]) -> Result<()> {
        let batch = CHUNK as usize * parallel::cores();
        while !content.is_empty() {
            if self.pending.is_empty() && content.len() >= batch {
                // Whole chunks need not be collected first.
                let (now, later) = content.split_at(batch);
                self.store(now)?;
                content = later;
                continue;
            }
            let (now, later) = content.split_at(content.len().min(batch - self.pending.len()));
            self.pending.extend_from_slice(now);
            content = later;
            if self.pending.len() == batch {
                self.store_pending()?;
            }
        }
        Ok(())
    }

    /// Ends the section.
    ///
    /// # Errors
    /// I/O, see [`Self::add`].
    pub fn finish(mut self) -> Result<()> {
        self.store_pending()?;
        let section = Section {
            tag: std::mem::take(&mut self.tag),
            offset: self.offset,
            stored: self.at - self.offset,
            len: self.len,
            form: Form::Chunked {
                compression: self.writer.options.compression,
                chunk_size: CHUNK,
                chunks: std::mem::take(&mut self.chunks),
            },
        };
        self.writer.at = self.at;
        self.writer.sections.push(section);
        Ok(())
    }

    fn store_pending(&mut self) -> Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        let done = self.store(&pending);
        pending.clear();
        self.pending = pending;
        done
    }

    /// Writes whole chunks, and at the end of the section what is left.
    fn store(&mut self, content: &[u8]) -> Result<()> {
        let done = self.try_store(content);
        self.writer.failed |= done.is_err();
        done
    }

    fn try_store(&mut self, content: &[u8]) -> Result<()> {
        let pieces: Vec<&[u8]> = content.chunks(CHUNK as usize).collect();
        let compression = self.writer.options.compression;
        let done = parallel::map(parallel::cores(), pieces.len(), |index| {
            let packed = compression.compress(pieces[index])?;
            let digest = Digest::of(packed.as_deref().unwrap_or(pieces[index]));
            Ok::<_, ImageError>((packed, digest))
        })?;
        for (piece, (packed, digest)) in pieces.iter().zip(done) {
            let bytes = packed.as_deref().unwrap_or(piece);
            self.writer.write_at(bytes, self.at)?;
            self.chunks.push(Chunk { stored: bytes.len() as u32, compressed: packed.is_some(), digest });
            self.at += bytes.len() as u64;
            self.writer.written = self.at;
            self.len += piece.len() as u64;
        }
        Ok(())
    }
}

impl Write for SectionWriter<'_> {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        self.add(content)?;
        Ok(content.len())
    }

    /// Does nothing: chunks are written when they are full.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const _: () = assert!(RAW_ALIGN.is_power_of_two() && header::LEN < RAW_ALIGN);
