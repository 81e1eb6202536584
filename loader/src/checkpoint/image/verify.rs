//! Checking all of an image, as far as anything can be checked.
#![forbid(unsafe_code)]

use super::metadata::FileIdentity;
use super::reader::Reader;
use super::{Form, ImageError, Result, Trust, stream};
use std::fs::File;

/// What checking one part came to.
#[derive(Debug)]
pub struct Finding {
    /// The part: `frame`, `seal`, a section's name, `page index`.
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
    /// Checks everything but page data, whose checksums are in the page index, and goes on after errors. `index` is the
    /// page index, if the image has one in a file of its own. `progress` gets the number of bytes after each piece.
    pub fn verify(&self, index: Option<&File>, progress: &dyn Fn(u64)) -> Vec<Finding> {
        let frame = "checksum of header, metadata and directory matches";
        let mut findings = vec![Finding::new("frame", self.size(), frame, Ok(()))];
        let seal = match self.trust() {
            Trust::Sealed => "the key fits",
            Trust::Unsealed => "there is none: intended changes cannot be noticed",
            Trust::Unchecked => "not checked: no key was given",
        };
        findings.push(Finding::new("seal", 0, seal, Ok(())));
        for section in self.sections() {
            if section.form == Form::Raw {
                continue;
            }
            let offsets = stream::offsets(section);
            let result = offsets.iter().enumerate().try_for_each(|(index, at)| {
                progress(stream::chunk(self.file(), section, index, *at)?.len() as u64);
                Ok(())
            });
            findings.push(Finding::new(&section.tag, section.len, "BLAKE3", result));
        }
        if let Some(wanted) = &self.metadata().pages.index {
            let (how, result) = match index {
                Some(file) => ("BLAKE3", check_index(file, wanted)),
                None => ("not checked: it is not there", Ok(())),
            };
            findings.push(Finding::new("page index", wanted.size, how, result));
        }
        findings
    }
}

fn check_index(file: &File, wanted: &FileIdentity) -> Result<()> {
    let found = FileIdentity::of(file, "the page index")?;
    if found != *wanted {
        return Err(ImageError::damaged(
            "the page index is not the one that belongs to the statefile, or was altered",
        ));
    }
    Ok(())
}
