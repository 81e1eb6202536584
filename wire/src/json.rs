//! The JSON dialect.
