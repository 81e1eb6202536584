//! airlock's control protocol: blocking calls over a Unix stream socket that also carry file descriptors.
//!
//! Two dialects share one socket and are told apart by the first byte of each message: gVisor's urpc (JSON) and
//! airlock's own binary frames. `docs/WIRE.md` describes both so that a client can be written in any language.
//!
//! - [`api`]: every method's typed arguments and result, one module a receiver;
//! - [`client`] and [`server`]: the two ends; [`registry`] connects methods with their handlers;
//! - [`binary`] and [`json`]: the dialects; [`scm`]: descriptors on sockets (the only unsafe code here);
//! - [`codec`]: the only user of bincode.

#![deny(unsafe_code)]

pub mod addr;
pub mod api;
pub mod binary;
pub mod calls;
pub mod client;
pub mod codec;
pub mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod json;
pub mod markdown;
pub mod method;
pub mod observe;
mod reader;
pub mod registry;
pub mod schema;
#[allow(unsafe_code)]
pub mod scm;
pub mod server;
#[cfg(test)]
mod testing;

pub use client::{Client, Dialect, Reply};
pub use error::{Error, Kind, Result};
pub use method::{Method, MethodInfo};
pub use registry::{Call, Registry};
pub use scm::PeerCred;
pub use server::{Server, ServerOptions, StandBy};
