//! The image that is restored: opened, checked, its pages at hand.
#![forbid(unsafe_code)]

use crate::checkpoint::agent::next_fd;
use crate::checkpoint::image::{self, PagesIn, Reader};
use crate::checkpoint::order::RestoreOrder;
use crate::checkpoint::pages::background::Positions;
use crate::checkpoint::pages::{Chain, Image, Index, Object, SumKind, working_set};
use crate::checkpoint::state::SandboxState;
use airlock_wire::error::{Error, Result};
use std::fs::File;
use std::os::fd::OwnedFd;

/// A state or page index that is larger than this is not an image's.
const PART_MAX: u64 = 1 << 30;

/// An open image.
#[derive(Debug)]
pub struct Source {
    /// The statefile.
    pub reader: Reader,
    /// Pages.
    pub chain: Chain,
    /// `/dev/userfaultfd`, if it was donated.
    pub device: Option<OwnedFd>,
    /// Which pages the programs asked for first when the image was restored before, and in what file that is noted.
    pub working_set: WorkingSet,
}

/// What the restores of an image know of each other.
#[derive(Debug, Default)]
pub struct WorkingSet {
    /// The file, if one was donated.
    file: Option<File>,
    generation: [u8; 16],
    /// What it records.
    known: Option<Positions>,
}

impl WorkingSet {
    fn read(file: Option<File>, generation: [u8; 16]) -> Self {
        let known = file.as_ref().and_then(|file| working_set::read(file, generation));
        Self { file, generation, known }
    }

    /// Pages to begin with.
    pub fn first(&mut self) -> Positions {
        self.known.clone().unwrap_or_default()
    }

    /// Notes what was asked for, if nobody did so before.
    ///
    /// # Errors
    /// I/O.
    pub fn note(&self, order: &[(Object, u64)]) -> Result<()> {
        match (&self.file, &self.known) {
            (Some(file), None) => working_set::write(file, self.generation, order),
            _ => Ok(()),
        }
    }
}

impl Source {
    /// Opens the image from the descriptors that came with the order. Answers its state, too, whose indexes are checked.
    ///
    /// # Errors
    /// What is wrong with the image.
    pub fn open(order: &RestoreOrder, fds: Vec<OwnedFd>) -> Result<(Self, SandboxState)> {
        let mut fds = fds.into_iter();
        let statefile = File::from(next_fd(&mut fds, "statefile")?);
        let reader = Reader::open(statefile, order.key.as_deref())?;
        let metadata = reader.metadata();
        metadata.check_version(env!("CARGO_PKG_VERSION"))?;
        if metadata.pre_dump {
            return Err(Error::invalid_argument(
                "the image is a pre-dump, which holds memory only: restore the checkpoint that was made upon it",
            ));
        }
        let files = if order.have_pages_file {
            let meta = File::from(next_fd(&mut fds, "pages metadata file")?);
            Some((meta, File::from(next_fd(&mut fds, "pages file")?)))
        } else {
            None
        };
        let device = if order.have_device_file { Some(next_fd(&mut fds, "device file")?) } else { None };
        let mut images = vec![newest(&reader, files)?];
        let mut indexes = Vec::new();
        for _ in 0..order.parents {
            let meta = File::from(next_fd(&mut fds, "pages metadata file of a parent image")?);
            let file = File::from(next_fd(&mut fds, "pages file of a parent image")?);
            let bytes = whole(&meta, "the parent's pages metadata")?;
            images.push(Image { index: Index::decode(&bytes)?, file, base: 0 });
            indexes.push(bytes);
        }
        let record = if order.working_set { Some(next_fd(&mut fds, "working set")?) } else { None };
        let working_set = WorkingSet::read(record.map(File::from), metadata.generation.0);
        reader.check_parents(&indexes.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        if order.key.is_some()
            && images.iter().any(|i| i.index.data_len > 0 && i.index.sum_kind != SumKind::Blake3)
        {
            return Err(Error::invalid_argument(
                "the image is sealed, but not its pages: their checksums prove accidents, not intent",
            ));
        }
        let state: SandboxState = reader.read_json(image::SECTION_STATE, PART_MAX)?;
        state.check()?;
        Ok((Self { chain: Chain::new(images)?, reader, device, working_set }, state))
    }
}

fn newest(reader: &Reader, files: Option<(File, File)>) -> Result<Image> {
    let info = &reader.metadata().pages;
    match (info.location, files) {
        (PagesIn::Files, Some((meta, file))) => {
            let bytes = whole(&meta, "the pages metadata file")?;
            if let Some(identity) = info.index {
                identity.check(&bytes, "the pages metadata file")?;
            }
            Ok(Image { index: Index::decode(&bytes)?, file, base: 0 })
        }
        (PagesIn::Files, None) => Err(Error::invalid_argument(
            "the image keeps its pages in files of their own: pages metadata file and pages file have to be given",
        )),
        (PagesIn::Statefile, None) => {
            let index = Index::decode(&reader.read(image::SECTION_PAGES_INDEX, PART_MAX)?)?;
            let (base, _) = reader.raw(image::SECTION_PAGES)?;
            Ok(Image { index, file: reader.file().try_clone()?, base })
        }
        (PagesIn::Nowhere, None) => {
            Ok(Image { index: Index::default(), file: reader.file().try_clone()?, base: 0 })
        }
        (PagesIn::Statefile | PagesIn::Nowhere, Some(_)) => Err(Error::invalid_argument(
            "a pages file was given, but the image keeps its pages in the statefile",
        )),
    }
}

/// Reads a file of limited size whole.
///
/// # Errors
/// I/O; a size beyond reason.
pub(in crate::checkpoint) fn whole(file: &File, what: &str) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt as _;
    let len = file.metadata().map_err(|e| Error::from(e).context(format!("looking at {what}")))?.len();
    if len > PART_MAX {
        return Err(Error::invalid_argument(format!("{what} has {len} bytes, more than any has")));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| Error::from(e).context(format!("reading {what}")))?;
    Ok(bytes)
}
