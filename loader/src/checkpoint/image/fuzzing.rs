//! What the fuzz target `statefile` in `fuzz/` runs, kept here so that `cargo test` compiles it and mutates some images.
#![forbid(unsafe_code)]
