//! What the fuzz targets `statefile` and `state` in `fuzz/` run, kept here so that `cargo test` compiles it and replays the corpus.
//!
//! Each function takes arbitrary bytes and panics if a rule of the format's implementation is broken.
#![forbid(unsafe_code)]
// A panic is how a fuzz target reports.
#![allow(clippy::missing_panics_doc, clippy::unwrap_used)]

use super::directory::{self, Form};
use super::header::Header;
use super::{Compression, Digest, Metadata, Reader, SECTION_STATE, Writer, WriterOptions, header};
use crate::checkpoint::state::SandboxState;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

/// No content of a fuzzed file may be larger than this, bytes.
const LIMIT: u64 = 32 << 20;

/// A file in memory with that content.
pub fn file(content: &[u8]) -> File {
    let mut file = File::from(memfd_create(c"statefile", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(content).unwrap();
    file
}

/// The whole content of a file.
pub fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A small image of every kind of section, for seeds.
pub fn seed(compression: Compression, key: Option<&[u8]>) -> Vec<u8> {
    let file = file(b"");
    let options = WriterOptions { key: key.map(<[u8]>::to_vec), compression, sync: false };
    let mut writer = Writer::create(file.try_clone().unwrap(), options).unwrap();
    writer
        .put(SECTION_STATE, br#"{"containers":[{"cid":"c"}],"warnings":["none none none none none"]}"#)
        .unwrap();
    writer.put(&super::fs_section(0), &b"content ".repeat(50)).unwrap();
    writer.put("empty", b"").unwrap();
    let pages = [7; 100];
    let offset = writer.raw(super::SECTION_PAGES).unwrap();
    writer.file().write_all_at(&pages, offset).unwrap();
    writer.end_raw(pages.len() as u64).unwrap();
    let mut metadata = Metadata { airlock_version: "1.2.3".to_owned(), ..Metadata::default() };
    metadata.container_count = Some("1".to_owned());
    metadata.container_specs.insert("c".to_owned(), super::SpecText(r#"{"ociVersion":"1.0.0"}"#.to_owned()));
    metadata.pages.location = super::PagesIn::Statefile;
    metadata.pages.size = pages.len() as u64;
    metadata.pages.sums = super::Sums::Blake3;
    writer.finish(metadata).unwrap();
    content(&file)
}

/// Reads `data` as a statefile, as it is and with its checksums put right; what can be read must be as its own description
/// says.
pub fn statefile(data: &[u8]) {
    read(data, None);
    read(data, Some(b"key"));
    if let Some(repaired) = repair(data) {
        read(&repaired, None);
    }
}

/// Reads `data` as the state of a sandbox; what can be read must survive being written, and is checked without a panic.
pub fn state(data: &[u8]) {
    let Ok(state) = serde_json::from_slice::<SandboxState>(data) else { return };
    let text = serde_json::to_vec(&state).unwrap();
    assert!(serde_json::from_slice::<SandboxState>(&text).unwrap() == state);
    drop(state.check());
}

/// Reads everything in a file.
pub fn read(data: &[u8], key: Option<&[u8]>) {
    let file = file(data);
    let Ok(reader) = Reader::inspect(file.try_clone().unwrap(), key) else {
        assert!(Reader::open(file, key).is_err());
        return;
    };
    let opened = Reader::open(file, key);
    drop(reader.metadata().count_containers());
    for section in reader.sections() {
        assert!(section.offset + section.stored <= data.len() as u64);
        if let Form::Raw = section.form {
            let (offset, len) = reader.raw(&section.tag).unwrap();
            assert!(offset % 4096 == 0 && offset + len <= data.len() as u64);
            continue;
        }
        let whole = reader.read(&section.tag, LIMIT);
        if section.len > LIMIT {
            assert!(whole.is_err());
            continue;
        }
        let mut streamed = Vec::new();
        let result = reader.stream(&section.tag).unwrap().read_to_end(&mut streamed);
        assert_eq!(whole.is_ok(), result.is_ok());
        if let Ok(whole) = whole {
            assert!(whole == streamed && whole.len() as u64 == section.len);
        } else {
            assert!(key.is_none() || opened.is_err(), "a sealed image opens although a section is damaged");
        }
    }
    let total = reader.sections().iter().map(|section| section.len).fold(0u64, u64::saturating_add);
    if total <= LIMIT {
        let findings = reader.verify(None, &|_| {});
        assert!(!findings.is_empty());
    }
}

/// The same file with all checksums put right, as somebody would who forges one. `None` where it has no directory that
/// makes sense.
pub fn repair(data: &[u8]) -> Option<Vec<u8>> {
    let mut data = data.to_vec();
    let head = Header::decode(data.get(..header::LEN as usize)?, data.len() as u64).ok()?;
    let range = |(at, len): (u64, u64)| at as usize..(at + len) as usize;
    if let Ok(mut sections) = directory::decode(&data[range(head.directory)], head.metadata.0) {
        for section in &mut sections {
            let Form::Chunked { chunks, .. } = &mut section.form else { continue };
            let mut at = section.offset as usize;
            for chunk in chunks {
                let end = at + chunk.stored as usize;
                chunk.digest = Digest::of(&data[at..end]);
                at = end;
            }
        }
        data[range(head.directory)].copy_from_slice(&directory::encode(&sections));
    }
    let (start, _) = head.complete(&data[range(head.metadata)], &data[range(head.directory)], None);
    data[..start.len()].copy_from_slice(&start);
    Some(data)
}
