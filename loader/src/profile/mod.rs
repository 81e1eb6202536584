//! Profiles: of the loader itself (`Profile.*`), and of what containers do.
//!
//! | item | is |
//! | --- | --- |
//! | [`own`] | the loader's heap, and what its threads wait for |
//! | [`pprof`] | the file format |
//! | [`flame`] | flame graphs |
//! | [`samples`] | samples of the kernel's, taken apart |
//! | [`stacks`] | stacks that were seen, counted |
//! | [`trace`] | what the loader did, in the order of time |
#![forbid(unsafe_code)]

pub mod flame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod own;
pub mod pprof;
pub mod samples;
pub mod stacks;
pub mod trace;
