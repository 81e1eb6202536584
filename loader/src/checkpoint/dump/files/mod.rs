//! Descriptors: which tables there are, what each descriptor refers to, and what that takes to be made again.
#![forbid(unsafe_code)]

pub mod fdinfo;
