#![allow(clippy::unwrap_used)]

mod damage;
mod forged;
mod fuzz;
mod writing;

use super::fuzzing::{file, seed};
use super::*;
use std::fs::File;

const KEY: &[u8] = b"a key of any length";

fn create(key: Option<&[u8]>, compression: Compression) -> (File, Writer) {
    let file = file(b"");
    let options = WriterOptions { key: key.map(<[u8]>::to_vec), compression, sync: true };
    let writer = Writer::create(file.try_clone().unwrap(), options).unwrap();
    (file, writer)
}

fn open(file: &File, key: Option<&[u8]>) -> Result<Reader> {
    Reader::open(file.try_clone().unwrap(), key)
}

fn open_bytes(bytes: &[u8], key: Option<&[u8]>) -> Result<Reader> {
    Reader::open(file(bytes), key)
}

/// Everything an image says; the first error otherwise.
fn read_all(bytes: &[u8], key: Option<&[u8]>) -> Result<Vec<(String, Vec<u8>)>> {
    let reader = open_bytes(bytes, key)?;
    let mut all = vec![("metadata".to_owned(), reader.metadata().encode()?)];
    for section in reader.sections() {
        if section.form != Form::Raw {
            all.push((section.tag.clone(), reader.read(&section.tag, 1 << 30)?));
        }
    }
    for finding in reader.verify(None, &|_| {}) {
        if let Some(e) = finding.error {
            return Err(e);
        }
    }
    Ok(all)
}

fn text<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}
