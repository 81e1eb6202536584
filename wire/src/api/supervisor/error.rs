//! Errors of the supervisor.

use crate::error::{Error, Kind};
use crate::method::ErrorText;
use serde::{Deserialize, Serialize};

/// What went wrong, in the supervisor's terms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The domain or process is unknown.
    NoSuchEntity,
    /// Its state does not allow the call.
    InvalidState,
    /// The argument cannot be decoded.
    Serde,
    /// Anything else.
    #[default]
    Failure,
}

/// An error as the supervisor tells it; in the JSON dialect, as JSON in the reply's `err`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SupervisorError {
    /// Its kind.
    #[serde(rename = "error_kind")]
    pub kind: ErrorKind,
    /// One line for people.
    pub message: Option<String>,
}

impl From<&Error> for SupervisorError {
    fn from(e: &Error) -> Self {
        let kind = match e.kind {
            Kind::NoSuchEntity => ErrorKind::NoSuchEntity,
            Kind::InvalidState => ErrorKind::InvalidState,
            Kind::Serde => ErrorKind::Serde,
            _ => ErrorKind::Failure,
        };
        Self { kind, message: Some(e.message.clone()) }
    }
}

impl From<SupervisorError> for Error {
    fn from(e: SupervisorError) -> Self {
        let (kind, word) = match e.kind {
            ErrorKind::NoSuchEntity => (Kind::NoSuchEntity, "no_such_entity"),
            ErrorKind::InvalidState => (Kind::InvalidState, "invalid_state"),
            ErrorKind::Serde => (Kind::Serde, "serde"),
            ErrorKind::Failure => (Kind::Failure, "failure"),
        };
        Self::new(kind, e.message.unwrap_or_else(|| word.to_owned()))
    }
}

impl ErrorText for SupervisorError {
    fn text(e: &Error) -> String {
        let mut text = Vec::new();
        match crate::json::encode(&Self::from(e), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(_) => e.message.clone(),
        }
    }

    fn error(text: &str) -> Error {
        match text.starts_with('{').then(|| crate::json::from_slice::<Self>(text.as_bytes())) {
            Some(Ok(e)) => e.into(),
            _ => Error::failure(text),
        }
    }
}
