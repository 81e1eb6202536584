//! airlock's parent side as a library: make sandboxes, donate descriptors to them, call them, and clean up.
//!
//! The command line (`bin/airlock`) is a thin layer over this crate. Nothing here keeps global state or needs a
//! single-threaded program, except where a function says so.

pub mod inherited;
pub mod process;
mod sys;
