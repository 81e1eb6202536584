//! Trace sessions: what containers do, told to sinks outside while they do it.
//!
//! ```text
//! points, config   what there is, and what a session wants of it
//! bpf/             programs that the kernel runs at tracepoints, and the records that they leave in a ring
//! event            records, read
//! afterwards       what is looked up when an event is told
//! message, wire    what is told of an event, and how it is encoded: gVisor's messages in protobuf, or JSON
//! sink             to whom it is told
//! strace           the sink that writes system calls into the sandbox's log
//! session          all of it together, in a worker
//! ```
//!
//! `docs/TRACE.md` says why it is done this way and what differs from gVisor.
#![forbid(unsafe_code)]

pub mod afterwards;
pub mod bpf;
pub mod calls;
pub mod config;
pub mod event;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod message;
pub mod points;
pub mod session;
pub mod sink;
pub mod strace;
pub mod wire;
