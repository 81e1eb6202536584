//! Images that build upon each other, and reading pages from them.
#![forbid(unsafe_code)]

use super::ahead::Ahead;
use super::index::Index;
use super::pool::Buffer;
use super::{Layout, Object, PAGE, Piece, Place, Source};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// An index and the file with its page data.
#[derive(Debug)]
pub struct Image {
    /// Says what is where.
    pub index: Index,
    /// Holds the page data.
    pub file: File,
    /// Where in the file they begin: 0 in a pages file, a page boundary in a statefile.
    pub base: u64,
}

/// An image and its ancestors, the newest first. Usable from several threads at once.
#[derive(Debug)]
pub struct Chain {
    images: Vec<Image>,
    ahead: Vec<Ahead>,
}

fn wrong(kind: Kind, text: String) -> Error {
    Error::new(kind, text)
}

impl Chain {
    /// Puts images together, the newest first: each builds upon the one behind it.
    ///
    /// # Errors
    /// One is not the parent of the one before it, one is missing, a file is shorter than its index says.
    pub fn new(images: Vec<Image>) -> Result<Self> {
        let mut wanted = None;
        for (i, image) in images.iter().enumerate() {
            if i > 0 && wanted != Some(image.index.id) {
                let text = "an image given as parent is not the one that the image was made upon".to_owned();
                return Err(wrong(Kind::InvalidArgument, text));
            }
            let len =
                image.file.metadata().map_err(|e| Error::from(e).context("look at the pages file"))?.len();
            let want = image.base.checked_add(image.index.data_len);
            if want.is_none_or(|w| len < w) {
                let text = format!(
                    "the pages file has {len} bytes, and its index refers to {}: it was cut at offset {len}, or belongs \
                     to another image",
                    want.unwrap_or(u64::MAX)
                );
                return Err(wrong(Kind::Serde, text));
            }
            wanted = image.index.parent;
        }
        if wanted.is_some() {
            let text = "the image builds upon a parent image, which was not given".to_owned();
            return Err(wrong(Kind::InvalidArgument, text));
        }
        let ahead = images.iter().map(Ahead::new).collect();
        Ok(Self { images, ahead })
    }

    /// The images.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Takes it apart.
    pub fn into_images(self) -> Vec<Image> {
        self.images
    }

    /// True when the newest image has the object, even without pages.
    pub fn contains(&self, object: Object) -> bool {
        self.images.first().is_some_and(|i| i.index.contains(object))
    }

    /// Follows all references: what the object consists of. An object that the image does not have is empty.
    ///
    /// # Errors
    /// A reference leads to pages that are not there.
    pub fn layout(&self, object: Object) -> Result<Layout> {
        let mut layout = Layout::default();
        if let Some(image) = self.images.first() {
            for entry in image.index.entries(object) {
                self.resolve(0, object, entry.start..entry.end(), None, &mut layout)?;
            }
        }
        Ok(layout)
    }

    /// Adds what the pages of `range` are, all of which the index `level` has. `huge`: what the referring entry says.
    fn resolve(
        &self,
        level: usize,
        object: Object,
        range: Range<u64>,
        huge: Option<bool>,
        layout: &mut Layout,
    ) -> Result<()> {
        let missing = |at: u64| {
            let of = if level == 0 { "the image" } else { "the parent image" };
            wrong(
                Kind::Serde,
                format!("a reference to page {at:#x} of {object} leads nowhere: {of} has no such page"),
            )
        };
        let Some(image) = self.images.get(level) else { return Err(missing(range.start)) };
        let mut at = range.start;
        for (entry, part) in image.index.within(object, range.clone()) {
            if part.start != at {
                break;
            }
            at = part.end;
            let huge = Some(huge.unwrap_or(entry.huge));
            let image = level as u32;
            let source = match entry.place {
                Place::Zero => Source::Zero,
                Place::Raw { offset } => Source::Raw { image, offset, sum: entry.sum },
                Place::Packed { offset, len } => {
                    Source::Packed { image, offset, len, pages: entry.pages as u32, skip: 0, sum: entry.sum }
                }
                // Only to objects that come earlier, so this ends.
                Place::Like(other) => {
                    self.resolve(level, other, part, huge, layout)?;
                    continue;
                }
                Place::Parent(other) => {
                    self.resolve(level + 1, other, part, huge, layout)?;
                    continue;
                }
            };
            let whole = Piece { start: entry.start, pages: entry.pages, huge: huge == Some(true), source };
            layout.push(whole.part(part));
        }
        if at == range.end { Ok(()) } else { Err(missing(at)) }
    }

    /// Reads the pages of a piece (at most [`super::UNIT`]) into the front of `buffer`, and checks them.
    ///
    /// # Errors
    /// I/O, with the offset; `Serde` when a page is not what was stored: position and offset are named.
    pub(super) fn read<'b>(&self, piece: &Piece, buffer: &'b mut Buffer) -> Result<&'b [u8]> {
        let len = (piece.pages * PAGE) as usize;
        match piece.source {
            Source::Zero => {
                let pages = buffer.pages(len)?;
                pages.fill(0);
                Ok(pages)
            }
            Source::Raw { image, offset, sum } => {
                let image = self.image(image, offset)?;
                let pages = buffer.pages(len)?;
                image.read_at(pages, offset, piece.start)?;
                image.check(pages, sum, offset, piece.start)?;
                Ok(pages)
            }
            Source::Packed { image, offset, len: packed, pages, skip, sum } => {
                let image = self.image(image, offset)?;
                let whole = image.unpack(offset, packed as usize, pages, piece.start, buffer)?;
                let from = skip as usize * PAGE as usize;
                let part = whole.get(from..from + len).ok_or_else(|| {
                    wrong(Kind::Serde, format!("the compressed pages at offset {offset} are too few"))
                })?;
                image.check(part, sum + u64::from(skip), offset, piece.start)?;
                Ok(part)
            }
        }
    }

    /// An image that is about to be read at an offset of its page data.
    fn image(&self, number: u32, offset: u64) -> Result<&Image> {
        let image = self
            .images
            .get(number as usize)
            .ok_or_else(|| wrong(Kind::Serde, "a page refers to an image that is not there".to_owned()))?;
        if let Some(ahead) = self.ahead.get(number as usize) {
            ahead.read(image, offset);
        }
        Ok(image)
    }

    /// Reads all page data of the newest image and checks it. Calls `progress` with pages checked so far.
    ///
    /// # Errors
    /// The first page that is damaged, or I/O.
    pub fn verify(&self, mut progress: impl FnMut(u64)) -> Result<u64> {
        let mut buffer = Buffer::new();
        let (mut pages, objects) = (0, self.images.first().map(|i| i.index.objects.as_slice()));
        for (object, _) in objects.unwrap_or_default() {
            let layout = self.layout(*object)?;
            for piece in layout.pieces().iter().flat_map(super::unit::pieces) {
                self.read(&piece, &mut buffer).map_err(|e| e.context(object))?;
                pages += piece.pages;
                progress(pages);
            }
        }
        Ok(pages)
    }
}

impl Image {
    /// Reads page data exactly.
    fn read_at(&self, buffer: &mut [u8], offset: u64, position: u64) -> Result<()> {
        let at = self.base.saturating_add(offset);
        self.file.read_exact_at(buffer, at).map_err(|e| {
            let text = match e.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    let len = self.file.metadata().map_or(0, |m| m.len());
                    format!("the pages file ends at offset {len}, before the {} bytes at {at}", buffer.len())
                }
                _ => format!("read {} bytes at offset {at} of the pages file: {e}", buffer.len()),
            };
            wrong(Error::from(e).kind, format!("{text} (pages from {position:#x} on)"))
        })
    }

    /// Checks pages against their checksums.
    fn check(&self, pages: &[u8], sum: u64, offset: u64, position: u64) -> Result<()> {
        let (kind, seed) = (self.index.sum_kind, self.index.seed);
        if kind.width() == 0 {
            return Ok(());
        }
        for (i, page) in pages.chunks_exact(PAGE as usize).enumerate() {
            let right = self.index.sum(sum + i as u64).is_some_and(|s| kind.matches(seed, page, s));
            if !right {
                let (at, by) = (self.base.saturating_add(offset), i as u64 * PAGE);
                let where_ = match self.index.compression {
                    crate::checkpoint::image::Compression::None => {
                        format!("offset {}", at.saturating_add(by))
                    }
                    _ => format!("the pages stored at offset {at}"),
                };
                return Err(wrong(
                    Kind::Serde,
                    format!(
                        "the pages file is damaged at {where_}: page {:#x} does not have its checksum",
                        position + by
                    ),
                ));
            }
        }
        Ok(())
    }

    fn unpack<'b>(
        &self,
        offset: u64,
        len: usize,
        pages: u32,
        position: u64,
        buffer: &'b mut Buffer,
    ) -> Result<&'b [u8]> {
        let content = pages as usize * PAGE as usize;
        let (stored, room) = buffer.stored(len)?;
        self.read_at(stored, offset, position)?;
        *room = self.index.compression.decompress(stored, content).map_err(|e| {
            wrong(Kind::Serde, format!("the compressed pages at offset {offset} of the pages file: {e}"))
        })?;
        Ok(room)
    }

    /// How much of the page data is in the page cache, 0 to 1; `None` when the kernel does not tell (before Linux 6.5).
    pub fn cached(&self) -> Option<f64> {
        if self.index.data_len == 0 {
            return Some(1.0);
        }
        match crate::sys::pagemap::cached_pages(self.file.as_fd(), self.base, self.index.data_len) {
            Ok(pages) => Some((pages * PAGE) as f64 / self.index.data_len as f64),
            Err(Errno::ENOSYS | Errno::EOPNOTSUPP) => None,
            Err(_) => None,
        }
    }
}
