//! The rules of the OCI runtime spec: what its entries mean and which are refused.

pub mod compat;
pub mod mounts;
pub mod namespaces;
pub mod validate;
