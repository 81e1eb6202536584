//! An image that is looked at: found, opened, and read as far as somebody asks.

#![forbid(unsafe_code)]

use airlock::container::image::Image;
use airlock_loader::checkpoint::image::{
    PAGES, PAGES_META, PagesIn, Reader, SECTION_PAGES, SECTION_PAGES_INDEX, SECTION_STATE, STATEFILE,
};
use airlock_loader::checkpoint::pages::{self, Chain, Index, Object};
use airlock_loader::checkpoint::state::SandboxState;
use airlock_wire::error::{Error, Kind, Result};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// No state is longer than this, bytes.
const STATE_MAX: u64 = 1 << 30;
/// No page index is longer than this, bytes.
const INDEX_MAX: u64 = 4 << 30;

/// An image of which the frame was checked.
#[derive(Debug)]
pub struct Opened {
    /// The statefile.
    pub path: PathBuf,
    /// Where its other files are.
    pub dir: PathBuf,
    /// Reads it.
    pub reader: Reader,
}

impl Opened {
    /// Opens an image directory or a statefile. A sealed one may be looked at without its key.
    pub fn open(image: &Path, key: Option<&[u8]>) -> Result<Self> {
        let (path, dir) = if image.is_dir() {
            (image.join(STATEFILE), image.to_path_buf())
        } else {
            (image.to_path_buf(), image.parent().unwrap_or(Path::new("")).to_path_buf())
        };
        let file = open_file(&path).map_err(|e| match e.kind {
            Kind::NoSuchEntity if image.is_dir() => Error::no_such_entity(format!(
                "there is no image in {}: {STATEFILE} is missing",
                image.display()
            )),
            _ => e,
        })?;
        let reader = Reader::inspect(file, key).map_err(|e| Error::from(e).context(path.display()))?;
        Ok(Self { path, dir, reader })
    }

    /// The state, with all its indexes checked.
    pub fn state(&self) -> Result<SandboxState> {
        let read = || -> Result<SandboxState> {
            let state: SandboxState = self.reader.read_json(SECTION_STATE, STATE_MAX)?;
            state.check()?;
            Ok(state)
        };
        read().map_err(|e| e.context(self.path.display()))
    }

    /// A file beside the statefile, if it is there.
    pub fn beside(&self, name: &str) -> Result<Option<File>> {
        match open_file(&self.dir.join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind == Kind::NoSuchEntity => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The page index; `None` when the image has no pages, or the file with it is not there.
    pub fn index(&self) -> Result<Option<Index>> {
        self.read_index().map_err(|e| e.context(self.path.display()))
    }

    fn read_index(&self) -> Result<Option<Index>> {
        match self.index_bytes()? {
            Some(bytes) => Index::decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    fn index_bytes(&self) -> Result<Option<Vec<u8>>> {
        let info = &self.reader.metadata().pages;
        Ok(match info.location {
            PagesIn::Nowhere => None,
            PagesIn::Statefile => Some(self.reader.read(SECTION_PAGES_INDEX, INDEX_MAX)?),
            PagesIn::Files => {
                let Some(file) = self.beside(PAGES_META)? else { return Ok(None) };
                let name = self.dir.join(PAGES_META);
                let bytes = read_file(file, &name)?;
                if let Some(identity) = &info.index {
                    identity.check(&bytes, &name.display().to_string())?;
                }
                Some(bytes)
            }
        })
    }

    /// The image with those that it builds upon, so that its pages can be read. `None` as for [`Self::index`].
    pub fn chain(&self) -> Result<Option<Chain>> {
        let Some(index) = self.index()? else { return Ok(None) };
        let mut images = Vec::new();
        if self.reader.metadata().pages.location == PagesIn::Statefile {
            let (base, _) = self.reader.raw(SECTION_PAGES)?;
            let file = self.reader.file().try_clone().map_err(Error::from)?;
            images.push(pages::Image { index, file, base });
        } else {
            let Some(file) = self.beside(PAGES)? else { return Ok(None) };
            images.push(pages::Image { index, file, base: 0 });
        }
        if images.iter().any(|image| image.index.parent.is_some()) {
            let mut indexes = Vec::new();
            for [meta, data] in Image::open(&self.dir)?.parents {
                let bytes = read_file(File::from(meta), &self.dir.join("parent"))?;
                images.push(pages::Image { index: Index::decode(&bytes)?, file: File::from(data), base: 0 });
                indexes.push(bytes);
            }
            let parents: Vec<&[u8]> = indexes.iter().map(Vec::as_slice).collect();
            self.reader.check_parents(&parents)?;
        }
        Chain::new(images).map(Some).map_err(|e| e.context(self.path.display()))
    }
}

/// Pages of an object in a range that are stored: in the image or one below it, and not zeros.
pub fn stored(index: &Index, object: Object, range: std::ops::Range<u64>) -> u64 {
    index
        .within(object, range)
        .filter(|(entry, _)| entry.place != pages::Place::Zero)
        .map(|(_, part)| (part.end - part.start) / pages::PAGE)
        .sum()
}

fn read_file(file: File, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.take(INDEX_MAX).read_to_end(&mut bytes);
    read.map_err(|e| Error::from(e).context(format!("read {}", path.display())))?;
    Ok(bytes)
}

/// Never blocks on what is no file: the reader says what it thinks of that.
fn open_file(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path).map_err(|e| Error::from(e).context(format!("open {}", path.display())))
}
