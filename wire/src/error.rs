//! Errors that cross the wire: a stable kind and a message for people.

use serde::{Deserialize, Serialize};

/// What went wrong, in terms that a program can act on. The binary dialect carries it as a number; the JSON
/// dialect carries the message only, as gVisor's urpc does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Kind {
    /// Anything without a kind of its own.
    Failure,
    /// The container, process, session or file that was named does not exist.
    NoSuchEntity,
    /// The entity exists, but its state does not allow the call.
    InvalidState,
    /// The arguments decode but make no sense (range, combination, descriptor count or type).
    InvalidArgument,
    /// The message could not be decoded.
    Serde,
    /// The caller may not do this.
    Permission,
    /// The kernel or this build cannot do it.
    Unsupported,
    /// The peer broke the framing rules; the connection is of no further use.
    Protocol,
    /// The peer is gone.
    Disconnected,
    /// No receiver or method of that name.
    UnknownMethod,
    /// A handler panicked; the sandbox goes on.
    Panic,
    /// The peer did not answer in the time that the caller allowed; the connection is of no further use.
    Timeout,
}

/// An error with a [`Kind`] and a one-line message that says what was tried, on what, and why it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Error {
    /// The stable kind.
    pub kind: Kind,
    /// One line for people.
    pub message: String,
}

/// Result with the wire's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an error of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
    /// An error of kind [`Kind::Failure`].
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Kind::Failure, message)
    }
    /// An error of kind [`Kind::NoSuchEntity`].
    pub fn no_such_entity(message: impl Into<String>) -> Self {
        Self::new(Kind::NoSuchEntity, message)
    }
    /// An error of kind [`Kind::InvalidState`].
    pub fn invalid_state(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidState, message)
    }
    /// An error of kind [`Kind::InvalidArgument`].
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }
    /// An error of kind [`Kind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }
    /// Puts `what` in front of the message: `what: message`.
    pub fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => Kind::NoSuchEntity,
            std::io::ErrorKind::PermissionDenied => Kind::Permission,
            std::io::ErrorKind::UnexpectedEof
            | std::io::ErrorKind::BrokenPipe
            | std::io::ErrorKind::ConnectionRefused
            | std::io::ErrorKind::ConnectionReset => Kind::Disconnected,
            _ => Kind::Failure,
        };
        Self::new(kind, e.to_string())
    }
}

impl From<nix::errno::Errno> for Error {
    fn from(e: nix::errno::Errno) -> Self {
        std::io::Error::from(e).into()
    }
}
