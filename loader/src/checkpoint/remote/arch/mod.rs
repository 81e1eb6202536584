//! What differs between processors: the layout of the registers, the instruction that makes a call, the code that runs
//! a table of calls, and how an interrupted call is put right. One module for each architecture, all with the same
//! items; where there is none yet, everything compiles and answers `Unsupported`.

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(not(target_arch = "x86_64"), path = "other.rs")]
mod this;

pub use this::*;
