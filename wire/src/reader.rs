//! Reads messages of either dialect off a stream.
