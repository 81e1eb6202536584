//! The calling end.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::method::Method;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How a message is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// gVisor's urpc.
    Json,
    /// airlock's own frames.
    Binary,
}

/// A successful reply: the result, and the descriptors that came with it (owned by the receiver).
#[derive(Debug)]
pub struct Reply<T> {
    /// The result.
    pub value: T,
    /// The descriptors, in the order that the method documents.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a server; one call at a time.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    dialect: Dialect,
}

impl Client {
    /// Connects to the socket at `path`; `@name` is an abstract name.
    pub fn connect(path: &Path, dialect: Dialect) -> Result<Self> {
        Ok(Self::from_stream(UnixStream::connect(path)?, dialect))
    }
    /// Uses a connected stream.
    pub fn from_stream(stream: UnixStream, dialect: Dialect) -> Self {
        Self { stream, dialect }
    }
    /// Calls a method and waits for its reply.
    pub fn call<M: Method>(&mut self, _arg: &M::Arg, _fds: &[BorrowedFd<'_>]) -> Result<Reply<M::Reply>> {
        Err(Error::unsupported(format!("Client::call in {:?}: on its way", self.dialect)))
    }
    /// Calls any method by name, in the JSON dialect.
    pub fn call_raw(
        &mut self,
        _method: &str,
        _arg: &serde_json::Value,
        _fds: &[BorrowedFd<'_>],
    ) -> Result<Reply<serde_json::Value>> {
        Err(Error::unsupported("Client::call_raw: on its way"))
    }
    /// Limits how long a call may wait for the server; `None` waits for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<()> {
        Ok(self.stream.set_read_timeout(timeout)?)
    }
    /// The connection.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
    /// Gives the connection back.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }
}
