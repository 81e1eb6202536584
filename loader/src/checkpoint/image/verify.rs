//! Checking all of an image, as far as anything can be checked.
#![forbid(unsafe_code)]

use super::metadata::{FileIdentity, PagesIn};
use super::reader::Reader;
use super::sums::{PageSums, SumKind};
use super::{Form, ImageError, Result, SECTION_PAGE_SUMS, SECTION_PAGES, Trust, stream};
use std::fs::File;

/// A list of page checksums may not be longer, bytes: 1 GiB, for 32 TiB of page data.
const SUMS_MAX: u64 = 1 << 30;

/// The files of pages that belong to an image.
#[derive(Debug)]
pub struct PagesFiles {
    /// The page index.
    pub index: File,
    /// Page data.
    pub data: File,
}

/// What checking one part came to.
#[derive(Debug)]
pub struct Finding {
    /// The part: `frame`, `seal`, a section's name, `page index`, `page data`.
    pub part: String,
    /// Its size, bytes.
    pub size: u64,
    /// What was checked, or why it could not be.
    pub how: String,
    /// What is wrong.
    pub error: Option<ImageError>,
}

impl Finding {
    fn new(part: impl Into<String>, size: u64, how: impl Into<String>, result: Result<()>) -> Self {
        Self { part: part.into(), size, how: how.into(), error: result.err() }
    }
}

impl Reader {
    /// Checks everything and goes on after errors. `pages` are the files beside the statefile, if the image has some.
    /// `progress` gets the number of bytes after each piece.
    pub fn verify(&self, pages: Option<&PagesFiles>, progress: &(dyn Fn(u64) + Sync)) -> Vec<Finding> {
        let frame = "checksum of header, metadata and directory matches";
        let mut findings = vec![Finding::new("frame", self.size(), frame, Ok(()))];
        let seal = match self.trust() {
            Trust::Sealed => "the key fits",
            Trust::Unsealed => "there is none: intended changes cannot be noticed",
            Trust::Unchecked => "not checked: no key was given",
        };
        findings.push(Finding::new("seal", 0, seal, Ok(())));
        for section in &self.sections {
            if section.form == Form::Raw {
                continue;
            }
            let offsets = stream::offsets(section);
            let result = offsets.iter().enumerate().try_for_each(|(index, at)| {
                progress(stream::chunk(&self.file, section, index, *at)?.len() as u64);
                Ok(())
            });
            findings.push(Finding::new(&section.tag, section.len, "BLAKE3", result));
        }
        self.verify_pages(pages, progress, &mut findings);
        findings
    }

    /// The checksums of the page data, if the image has some.
    ///
    /// # Errors
    /// Damaged; the image has page data, is sealed, and has no BLAKE3 checksums of them.
    pub fn page_sums(&self) -> Result<Option<PageSums>> {
        let sums = match self.read(SECTION_PAGE_SUMS, SUMS_MAX) {
            Ok(content) => Some(PageSums::decode(&content)?),
            Err(ImageError::NoSection(_)) => None,
            Err(e) => return Err(e),
        };
        let strong = sums.as_ref().is_some_and(|sums| sums.kind() == SumKind::Blake3);
        if self.trust() == Trust::Sealed && self.metadata().pages.location != PagesIn::Nowhere && !strong {
            return Err(ImageError::damaged(
                "the image is sealed, but its page data has no BLAKE3 checksums",
            ));
        }
        Ok(sums)
    }

    fn verify_pages(
        &self,
        files: Option<&PagesFiles>,
        progress: &(dyn Fn(u64) + Sync),
        findings: &mut Vec<Finding>,
    ) {
        let info = &self.metadata().pages;
        let (file, offset) = match (info.location, files) {
            (PagesIn::Nowhere, _) => return,
            (PagesIn::Statefile, _) => match self.raw(SECTION_PAGES) {
                Ok((offset, len)) if len == info.size => (&self.file, offset),
                Ok((_, len)) => {
                    let wrong = format!("section {SECTION_PAGES:?} has {len} bytes instead of {}", info.size);
                    return findings.push(Finding::new(
                        SECTION_PAGES,
                        len,
                        "",
                        Err(ImageError::Damaged(wrong)),
                    ));
                }
                Err(e) => return findings.push(Finding::new(SECTION_PAGES, 0, "", Err(e))),
            },
            (PagesIn::Files, Some(files)) => {
                if let Some(index) = &info.index {
                    let result = FileIdentity::of(&files.index, "the page index").and_then(|found| {
                        if found == *index {
                            return Ok(());
                        }
                        Err(ImageError::damaged(
                            "the page index is not the one that belongs to the statefile",
                        ))
                    });
                    findings.push(Finding::new("page index", index.size, "BLAKE3", result));
                }
                (&files.data, 0)
            }
            (PagesIn::Files, None) => {
                let how = "not checked: the files of pages are not there";
                return findings.push(Finding::new("page data", info.size, how, Ok(())));
            }
        };
        let finding = match self.page_sums() {
            Err(e) => Finding::new("page data", info.size, "", Err(e)),
            Ok(None) => Finding::new("page data", info.size, "not checked: it has no checksums", Ok(())),
            Ok(Some(sums)) if sums.covers() != info.size => {
                let wrong = format!("{} of {} bytes of page data have checksums", sums.covers(), info.size);
                Finding::new("page data", info.size, "", Err(ImageError::Damaged(wrong)))
            }
            Ok(Some(sums)) => {
                let how = match sums.kind() {
                    SumKind::Xxh3 => "XXH3",
                    SumKind::Blake3 => "BLAKE3",
                };
                Finding::new("page data", info.size, how, sums.verify_with(file, offset, progress))
            }
        };
        findings.push(finding);
    }
}
