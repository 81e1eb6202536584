//! Checks of a whole spec.
#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};
use oci_spec::runtime::Spec;

/// Checks what the OCI runtime spec demands of a configuration.
///
/// # Errors
/// Naming the entry and what is wrong with it.
pub fn validate(spec: &Spec) -> Result<()> {
    if spec.process().is_none() {
        return Err(Error::invalid_argument("process: is missing"));
    }
    Ok(())
}
