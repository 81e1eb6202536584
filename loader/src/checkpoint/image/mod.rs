//! The statefile: one file that says everything of a saved sandbox but, as a rule, its pages.
//!
//! The layout is specified in `docs/CHECKPOINT.md`. In short: a header of fixed size, sections, the metadata (JSON), a
//! directory of the sections, end. A section is cut into chunks that are compressed and checksummed each on its own, so
//! that large ones are written and read by all cores and never held whole; the directory holds the chunks' digests, and
//! the header a checksum of itself, the metadata and the directory. So a few small reads show that the frame of the file
//! is sound, and each chunk is checked when it is used. With a key a seal over that checksum shows who made the image.
//!
//! ```text
//! Writer::create ─ marks the file incomplete
//!   put | section | raw …        one section after the other
//! finish ─ metadata, directory, then the header without the mark
//!
//! Reader::open ─ frame and, with a key, seal and every chunk
//!   metadata | read | stream | raw | verify
//! ```
//!
//! A reader trusts nothing: not the lengths, not the layout, not the content of what is decompressed.

mod compress;
mod digest;
mod directory;
mod error;
mod header;
mod input;
mod metadata;
mod parallel;
mod reader;
mod stream;
mod verify;
mod writer;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;

pub use compress::{CHUNK_MAX, Compression};
pub use digest::{Digest, Generation};
pub use directory::{Chunk, Form, Section};
pub use error::{ImageError, Result};
pub use header::{FORMAT_MAJOR, FORMAT_MINOR, MAGIC};
pub use metadata::{ContainerName, FileIdentity, Metadata, PagesIn, PagesInfo, Parent, SpecText, Sums};
pub use reader::{Reader, Trust};
pub use stream::SectionReader;
pub use verify::Finding;
pub use writer::{Finished, SectionWriter, Writer, WriterOptions};

/// Name of the statefile in an image directory, as runsc names it.
pub const STATEFILE: &str = "checkpoint.img";
/// Name of the page index in an image directory.
pub const PAGES_META: &str = "pages_meta.img";
/// Name of the file of page data in an image directory.
pub const PAGES: &str = "pages.img";

/// Section with `state::SandboxState` as JSON.
pub const SECTION_STATE: &str = "state";
/// Section with the page index, when pages are not in files of their own.
pub const SECTION_PAGES_INDEX: &str = "pages-index";
/// Raw section with page data, when pages are not in files of their own. Begins on a page boundary of the file.
pub const SECTION_PAGES: &str = "pages";

/// Name of the section with the content of the `n`-th filesystem.
pub fn fs_section(n: u32) -> String {
    format!("fs:{n}")
}

#[cfg(test)]
mod tests;
