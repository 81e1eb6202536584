//! What can be wrong with an image.
#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Kind};
use std::io;

/// Result with [`ImageError`].
pub type Result<T> = std::result::Result<T, ImageError>;

/// Why an image cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file has no bytes: nothing was ever written, or the wrong descriptor was passed.
    #[error("statefile cannot be empty")]
    Empty,
    /// Not something that can be written and read at any offset.
    #[error("a statefile has to be a regular file or a memfd, but the descriptor is {0}")]
    NotAFile(&'static str),
    /// The descriptor was opened in a way that does not do.
    #[error("the descriptor does not do for a statefile: it was opened {0}")]
    OpenedWrong(&'static str),
    /// Another program's file.
    #[error("not a statefile of airlock: {0}")]
    Foreign(String),
    /// Written by a later airlock, with a format that this one does not know.
    #[error("the statefile has format {major}.{minor}, and this airlock reads format {own}: restore with the airlock that made it", own = super::FORMAT_MAJOR)]
    FutureFormat {
        /// Major version in the file.
        major: u16,
        /// Minor version in the file.
        minor: u16,
    },
    /// The checkpoint did not come to its end.
    #[error(
        "the statefile is incomplete: the checkpoint that wrote it was interrupted. It can not be restored; make a new one"
    )]
    Incomplete,
    /// The end is missing.
    #[error("the statefile is truncated: {have} of {want} bytes are there")]
    Truncated {
        /// Size of the file.
        have: u64,
        /// Size that it should have.
        want: u64,
    },
    /// Something was appended.
    #[error("the statefile has {extra} bytes after its end: it was altered, or written over a longer file")]
    Trailing {
        /// How many.
        extra: u64,
    },
    /// A checksum does not match, or the content contradicts itself.
    #[error("the image is damaged: {0}")]
    Damaged(String),
    /// Sealed, but no key was given.
    #[error("the statefile is sealed with a key: give the key that the checkpoint was made with")]
    MissingKey,
    /// Not sealed, but a key was given.
    #[error(
        "a key was given, but the statefile is not sealed with one: it is not the image that was made with the key"
    )]
    UnexpectedKey,
    /// The seal does not match.
    #[error(
        "the key does not fit the statefile: another key was used to make it, or somebody without the key altered it"
    )]
    WrongKey,
    /// Made by another version of airlock (gVisor's words for the same).
    #[error(
        "airlock version does not match across checkpoint restore, checkpoint: {checkpoint} current: {current}"
    )]
    Version {
        /// Version in the image.
        checkpoint: String,
        /// Ours.
        current: String,
    },
    /// The metadata says something that makes no sense.
    #[error("{0}")]
    Metadata(String),
    /// More than is allowed.
    #[error("{what} is {size} bytes; {limit} are allowed")]
    TooLarge {
        /// What.
        what: String,
        /// Its size, bytes.
        size: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// The image does not contain it.
    #[error("the statefile has no section {0:?}")]
    NoSection(String),
    /// A mistake of the caller, not of the image.
    #[error("{0}")]
    Misuse(String),
    /// The operating system says no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl ImageError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }

    pub(super) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}

impl From<ImageError> for Error {
    fn from(e: ImageError) -> Self {
        let kind = match &e {
            ImageError::Io { .. } => Kind::Failure,
            ImageError::FutureFormat { .. } => Kind::Unsupported,
            ImageError::MissingKey | ImageError::UnexpectedKey | ImageError::WrongKey => Kind::Permission,
            ImageError::NoSection(_) => Kind::NoSuchEntity,
            _ => Kind::InvalidArgument,
        };
        Self::new(kind, e.to_string())
    }
}

/// For use behind `Read` and `Write`, whose errors are the standard library's.
impl From<ImageError> for io::Error {
    fn from(e: ImageError) -> Self {
        match e {
            ImageError::Io { what, source } => Self::new(source.kind(), format!("{what}: {source}")),
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}
