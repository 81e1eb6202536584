//! The answering end.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::registry::Registry;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

/// Limits of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Who may connect besides root and this process's own effective user.
    pub allowed_uids: Vec<u32>,
    /// Connections beyond this number are closed at once.
    pub max_connections: usize,
    /// Longest request in bytes.
    pub max_body: usize,
    /// Default grace period of a stop.
    pub grace: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            allowed_uids: Vec::new(),
            max_connections: 4096,
            max_body: 16 << 20,
            grace: Duration::from_secs(15),
        }
    }
}

/// Answers calls, one thread a connection. Clones share everything.
#[derive(Debug, Clone)]
pub struct Server {
    registry: Arc<Registry>,
}

impl Server {
    /// A server that answers the methods of `registry`.
    pub fn new(registry: Registry, _options: ServerOptions) -> Self {
        Self { registry: Arc::new(registry) }
    }
    /// Accepts one connection and serves it on a thread of its own.
    pub fn accept(&self, _listener: &UnixListener) -> Result<()> {
        Err(Error::unsupported(format!("Server::accept of {:?}: on its way", self.registry)))
    }
    /// Serves a connected stream on a thread of its own.
    pub fn serve_stream(&self, _stream: UnixStream) -> Result<()> {
        Err(Error::unsupported("Server::serve_stream: on its way"))
    }
    /// Serves a connected stream on this thread until it ends.
    pub fn serve_blocking(&self, _stream: UnixStream) -> Result<()> {
        Err(Error::unsupported("Server::serve_blocking: on its way"))
    }
    /// Refuses new connections and calls, lets calls in flight finish for `grace`, then closes everything.
    pub fn stop(&self, _grace: Duration) {}
    /// Answers from `registry` from now on; calls in flight keep their handlers.
    pub fn replace_registry(&self, _registry: Registry) {}
    /// Number of connections.
    pub fn connections(&self) -> usize {
        0
    }
}
