//! lmctfy's status codes. Messages begin with one (`NOT_FOUND: container "/a" does not exist`), so that clients of the
//! JSON dialect, which has a text alone, can tell as well.

use crate::error::{Error, Kind};
use crate::method::ErrorText;

/// A status code of lmctfy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The container, thread or notification does not exist.
    NotFound,
    /// The container exists.
    AlreadyExists,
    /// The argument is wrong whatever the container's state.
    InvalidArgument,
    /// The state does not allow it.
    FailedPrecondition,
    /// A number is out of its range.
    OutOfRange,
    /// lmctfy, the kernel or this build does not have it.
    Unimplemented,
    /// It failed.
    Internal,
    /// Not now; it may succeed later.
    Unavailable,
}

/// All of them, with their names and the wire's kinds.
const ALL: [(Code, &str, Kind); 8] = [
    (Code::NotFound, "NOT_FOUND", Kind::NoSuchEntity),
    (Code::AlreadyExists, "ALREADY_EXISTS", Kind::InvalidState),
    (Code::InvalidArgument, "INVALID_ARGUMENT", Kind::InvalidArgument),
    (Code::FailedPrecondition, "FAILED_PRECONDITION", Kind::InvalidState),
    (Code::OutOfRange, "OUT_OF_RANGE", Kind::InvalidArgument),
    (Code::Unimplemented, "UNIMPLEMENTED", Kind::Unsupported),
    (Code::Internal, "INTERNAL", Kind::Failure),
    (Code::Unavailable, "UNAVAILABLE", Kind::Timeout),
];

impl Code {
    /// Its name, as in `NOT_FOUND`.
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(code, ..)| *code == self).map_or("INTERNAL", |(_, name, _)| name)
    }

    /// The wire's kind of errors with this code.
    pub fn kind(self) -> Kind {
        ALL.iter().find(|(code, ..)| *code == self).map_or(Kind::Failure, |(_, _, kind)| *kind)
    }

    /// An error with this code.
    pub fn error(self, message: impl std::fmt::Display) -> Error {
        Error::new(self.kind(), format!("{}: {message}", self.name()))
    }

    /// The code of an error: the one that its message begins with, or what its kind amounts to.
    pub fn of(error: &Error) -> Self {
        named(&error.message).unwrap_or(match error.kind {
            Kind::NoSuchEntity => Self::NotFound,
            Kind::InvalidArgument | Kind::Serde => Self::InvalidArgument,
            Kind::InvalidState | Kind::Permission => Self::FailedPrecondition,
            Kind::Unsupported | Kind::UnknownMethod => Self::Unimplemented,
            Kind::Timeout | Kind::Disconnected => Self::Unavailable,
            Kind::Failure | Kind::Protocol | Kind::Panic => Self::Internal,
        })
    }
}

fn named(message: &str) -> Option<Code> {
    let (word, _) = message.split_once(": ")?;
    ALL.iter().find(|(_, name, _)| *name == word).map(|(code, ..)| *code)
}

/// The error with its code in front of the message.
pub fn coded(error: Error) -> Error {
    match named(&error.message) {
        Some(_) => error,
        None => Error::new(error.kind, format!("{}: {}", Code::of(&error).name(), error.message)),
    }
}

/// The form of these errors in the JSON dialect.
#[derive(Debug, Clone, Copy)]
pub struct Coded;

impl ErrorText for Coded {
    fn text(error: &Error) -> String {
        coded(error.clone()).message
    }
    fn error(text: &str) -> Error {
        Error::new(named(text).map_or(Kind::Failure, Code::kind), text)
    }
}
