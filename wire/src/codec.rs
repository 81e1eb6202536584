//! The only user of bincode.
