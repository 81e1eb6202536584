//! What the host and the server inside the sandbox say to each other: one JSON object a line, on the standard input and
//! output of the server. (A restored sandbox gets new ones; a connection to the outside would be cut.)

use serde::{Deserialize, Serialize};
use std::io::{self, Write};

/// Name of the runtime that the server itself has started.
pub const OWN: &str = "own";

/// One invocation of the function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invocation {
    /// Its id.
    pub id: String,
    /// The event, as JSON text.
    pub event: String,
    /// When it has to be done, milliseconds of the Unix epoch.
    pub deadline_ms: u64,
}

/// The host to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Give the runtime this invocation.
    Invoke(Invocation),
    /// The runtime is gone: forget its connections and what it was at.
    Reset,
    /// The sandbox was restored: let the runtime go on behind `/restore/next`.
    Restored,
}

/// The server to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "news", rename_all = "snake_case")]
pub enum News {
    /// The server listens.
    Listening,
    /// The runtime asks for an invocation: it is initialised, or done with the last one.
    Idle,
    /// The runtime is initialised and asks to be saved (`/restore/next`).
    ReadyForSnapshot,
    /// The function's result.
    Response {
        /// The invocation.
        id: String,
        /// The result, JSON as a rule.
        body: String,
    },
    /// The function failed.
    FunctionError {
        /// The invocation.
        id: String,
        /// Class of the error.
        kind: String,
        /// `{"errorMessage": …, "errorType": …, "stackTrace": …}`.
        body: String,
    },
    /// The runtime could not be initialised, or could not go on after a restore; it ends now.
    InitError {
        /// Class of the error.
        kind: String,
        /// As in `FunctionError`.
        body: String,
    },
    /// `Reset` is done.
    ResetDone,
    /// The runtime that the server itself has started wrote a line.
    Log {
        /// The line.
        line: String,
    },
    /// A runtime has ended.
    Ended {
        /// Which one: its name in the domain, or [`OWN`].
        name: String,
        /// How, as `exit status 1`.
        status: String,
    },
}

/// Writes a message.
///
/// # Errors
/// What writing says; the other side is gone.
pub fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    to.write_all(line.as_bytes())?;
    to.flush()
}
