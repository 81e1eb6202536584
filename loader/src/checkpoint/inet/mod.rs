//! What saving and making sockets again have in common: addresses, options, TCP's repair mode, the kernel's tables.
#![forbid(unsafe_code)]

pub mod address;
pub mod netlink;
pub mod options;
pub mod repair;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;
