//! Reading a statefile.
#![forbid(unsafe_code)]

use super::directory::{self, Form, Section};
use super::header::{self, Header};
use super::metadata::Metadata;
use super::stream::{self, SectionReader};
use super::{Digest, Generation, ImageError, Result, input, parallel};
use serde::de::DeserializeOwned;
use std::fs::File;

/// How far a reader may be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Sealed, and the seal fits the key that was given.
    Sealed,
    /// Not sealed: no accident has changed it; intent would go unnoticed.
    Unsealed,
    /// Sealed, but no key was given to check it with.
    Unchecked,
}

/// An open statefile whose frame was checked. Reads by offset only: the descriptor's position is neither used nor moved.
#[derive(Debug)]
pub struct Reader {
    file: File,
    header: Header,
    metadata: Metadata,
    sections: Vec<Section>,
    trust: Trust,
}

impl Reader {
    /// Opens an image to restore it. With a key the seal is checked before metadata or directory are looked at, and then
    /// every section but page data, whose checksums are in the page index.
    ///
    /// # Errors
    /// Not a statefile, incomplete, truncated, damaged (see [`ImageError`]); sealed and no key, or a key and not sealed.
    pub fn open(file: File, key: Option<&[u8]>) -> Result<Self> {
        let reader = Self::frame(file, key)?;
        match reader.trust {
            Trust::Unchecked => Err(ImageError::MissingKey),
            Trust::Unsealed => Ok(reader),
            Trust::Sealed => {
                reader.check_sections(&|_| {})?;
                Ok(reader)
            }
        }
    }

    /// Opens an image to look at it: a sealed one may be read without its key, and nothing but the frame is checked yet.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn inspect(file: File, key: Option<&[u8]>) -> Result<Self> {
        Self::frame(file, key)
    }

    fn frame(file: File, key: Option<&[u8]>) -> Result<Self> {
        let size = input::check_file(&file, false)?;
        if size == 0 {
            return Err(ImageError::Empty);
        }
        let start = input::read_vec(&file, 0, size.min(header::LEN), header::LEN, "header")?;
        let header = Header::decode(&start, size)?;
        let (at, len) = header.metadata;
        let text = input::read_vec(&file, at, len, header::METADATA_MAX, "metadata")?;
        let (at, len) = header.directory;
        let directory = input::read_vec(&file, at, len, header::DIRECTORY_MAX, "directory of sections")?;
        header.check(&text, &directory)?;
        let trust = match key {
            Some(key) => {
                header.check_seal(key)?;
                Trust::Sealed
            }
            None if header.sealed => Trust::Unchecked,
            None => Trust::Unsealed,
        };
        let sections = directory::decode(&directory, header.metadata.0)?;
        let metadata = Metadata::decode(&text)?;
        if metadata.generation != header.generation {
            return Err(ImageError::damaged("header and metadata name different generations"));
        }
        let reader = Self { file, header, metadata, sections, trust };
        reader.check_gaps()?;
        Ok(reader)
    }

    /// The bytes before a raw section, which no checksum covers, have to be zero.
    fn check_gaps(&self) -> Result<()> {
        let mut at = header::LEN;
        for section in &self.sections {
            let gap =
                input::read_vec(&self.file, at, section.offset - at, directory::RAW_ALIGN, "alignment")?;
            if gap.iter().any(|byte| *byte != 0) {
                return Err(ImageError::damaged(format!(
                    "the bytes before section {:?} are not zero",
                    section.tag
                )));
            }
            at = section.offset + section.stored;
        }
        Ok(())
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What the key, or the lack of one, says.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// Identity of the image.
    pub fn generation(&self) -> Generation {
        self.header.generation
    }

    /// Version of the format, major and minor.
    pub fn format(&self) -> (u16, u16) {
        (super::FORMAT_MAJOR, self.header.minor)
    }

    /// Checksum of header, metadata and directory: two statefiles with the same one have the same content, page data
    /// without checksums apart.
    pub fn checksum(&self) -> Digest {
        self.header.checksum
    }

    /// Size of the statefile, bytes.
    pub fn size(&self) -> u64 {
        self.header.total
    }

    /// The sections, in the order of the file.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The file itself, for page data: see [`Self::raw`].
    pub fn file(&self) -> &File {
        &self.file
    }

    /// There is such a section.
    pub fn has(&self, tag: &str) -> bool {
        self.find(tag).is_ok()
    }

    pub(super) fn find(&self, tag: &str) -> Result<&Section> {
        let found = self.sections.iter().find(|section| section.tag == tag);
        found.ok_or_else(|| ImageError::NoSection(tag.to_owned()))
    }

    /// The whole content of a section of at most `limit` bytes.
    ///
    /// # Errors
    /// No such section, or a raw one; longer than `limit`; damaged.
    pub fn read(&self, tag: &str, limit: u64) -> Result<Vec<u8>> {
        let section = self.find(tag)?;
        if section.len > limit {
            return Err(ImageError::TooLarge { what: format!("section {tag:?}"), size: section.len, limit });
        }
        self.stream(tag)?;
        let offsets = stream::offsets(section);
        let threads = if offsets.len() < 4 { 1 } else { parallel::cores() };
        let chunks = parallel::map(threads, offsets.len(), |index| {
            stream::chunk(&self.file, section, index, offsets[index])
        })?;
        match <[Vec<u8>; 1]>::try_from(chunks) {
            Ok([only]) => Ok(only),
            Err(chunks) => Ok(chunks.concat()),
        }
    }

    /// The content of a section that is a JSON document of at most `limit` bytes.
    ///
    /// # Errors
    /// See [`Self::read`]; the document is not what `T` is.
    pub fn read_json<T: DeserializeOwned>(&self, tag: &str, limit: u64) -> Result<T> {
        let text = self.read(tag, limit)?;
        serde_json::from_slice(&text)
            .map_err(|e| ImageError::damaged(format!("section {tag:?} says something unexpected: {e}")))
    }

    /// Reads a section from front to back, whatever its size.
    ///
    /// # Errors
    /// No such section, or a raw one.
    pub fn stream(&self, tag: &str) -> Result<SectionReader<'_>> {
        let section = self.find(tag)?;
        if section.form == Form::Raw {
            return Err(ImageError::damaged(format!("section {tag:?} is raw, which only page data may be")));
        }
        Ok(SectionReader::new(&self.file, section))
    }

    /// Offset, a multiple of 4096, and length of a raw section in [`Self::file`]. Its content was not checked.
    ///
    /// # Errors
    /// No such section, or not a raw one.
    pub fn raw(&self, tag: &str) -> Result<(u64, u64)> {
        let section = self.find(tag)?;
        match section.form {
            Form::Raw => Ok((section.offset, section.len)),
            Form::Chunked { .. } => Err(ImageError::damaged(format!("section {tag:?} cannot be mapped"))),
        }
    }

    /// Checks that a page index that comes in a file of its own is the one that belongs to the image. Only then a seal
    /// speaks for the pages.
    ///
    /// # Errors
    /// It is another image's or was altered; the image has none in a file.
    pub fn check_index(&self, bytes: &[u8]) -> Result<()> {
        let known = self.metadata.pages.index.as_ref().ok_or_else(|| {
            ImageError::damaged("the statefile does not say which page index belongs to it")
        })?;
        known.check(bytes, "the page index")
    }

    /// [`Self::check_index`] for the page indexes of the images that this one builds upon, the nearest first.
    ///
    /// # Errors
    /// One is another image's or was altered; there are more or fewer than the metadata says.
    pub fn check_parents(&self, indexes: &[&[u8]]) -> Result<()> {
        let known = &self.metadata.parents;
        if known.len() != indexes.len() {
            return Err(ImageError::damaged(format!(
                "the image builds upon {} others, and {} were given",
                known.len(),
                indexes.len()
            )));
        }
        for (i, (parent, bytes)) in known.iter().zip(indexes).enumerate() {
            let what =
                format!("the page index of the image {} below (generation {})", i + 1, parent.generation);
            parent.index.check(bytes, &what)?;
        }
        Ok(())
    }

    /// Reads and checks every section that has checksums, on all cores. `progress` gets the size of each piece.
    ///
    /// # Errors
    /// The first damaged piece that was found; I/O.
    pub fn check_sections(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let pieces: Vec<(&Section, usize, u64)> = self
            .sections
            .iter()
            .flat_map(|section| {
                stream::offsets(section).into_iter().enumerate().map(move |(index, at)| (section, index, at))
            })
            .collect();
        let threads = if pieces.len() < 4 { 1 } else { parallel::cores() };
        parallel::map(threads, pieces.len(), |index| {
            let (section, index, at) = pieces[index];
            let content = stream::chunk(&self.file, section, index, at)?;
            progress(content.len() as u64);
            Ok(())
        })
        .map(drop)
    }
}
