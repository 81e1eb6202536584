//! airlock's parent side as a library: make sandboxes, donate descriptors to them, call them, and clean up.
//!
//! The command line (`bin/airlock`) is a thin layer over this crate. Nothing here keeps global state or needs a
//! single-threaded program, except where a function says so.

pub mod cgroups;
pub mod client;
pub mod console;
pub mod container;
mod files;
pub mod gofer;
pub mod hooks;
pub mod inherited;
pub mod machine;
pub mod metrics;
pub mod podspec;
pub mod process;
pub mod proxy;
pub mod sandbox;
pub mod state;
pub mod supervisor;
mod sys;
pub mod trace;
