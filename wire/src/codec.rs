//! Values in the binary dialect. The only module that knows bincode, so that a successor replaces one file.
//!
//! The encoding is bincode 2's standard configuration: little-endian, integers as varints (one byte below 251; 251,
//! 252 or 253 in front of 2, 4 or 8 bytes; signed ones zigzag first), lengths and enum variants as unsigned varints,
//! structures as their fields in order, `Option` as one byte 0 or 1. `docs/WIRE.md` shows it byte by byte.

#![forbid(unsafe_code)]

use crate::error::{Error, Kind, Result};
use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::error::DecodeError;
use serde::{Serialize, de::DeserializeOwned};

type Limited<const N: usize> = Configuration<LittleEndian, Varint, Limit<N>>;

/// Bodies up to this length are decoded under the smaller limit.
const SMALL_BODY: usize = 64 << 10;
/// What a small body may decode to. A varint of one byte counts as the eight that it decodes to, hence the factor.
const SMALL_LIMIT: usize = 8 * SMALL_BODY;
/// What any body may decode to.
const LARGE_LIMIT: usize = 128 << 20;

const SMALL: Limited<SMALL_LIMIT> = bincode::config::standard().with_limit();
const LARGE: Limited<LARGE_LIMIT> = bincode::config::standard().with_limit();

/// Appends the encoding of `value` to `out`, which is left as it was if that fails.
pub fn encode_into<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<()> {
    let before = out.len();
    bincode::serde::encode_into_std_write(value, out, bincode::config::standard()).map(drop).map_err(|e| {
        out.truncate(before);
        Error::new(Kind::Serde, format!("encoding {}: {e}", std::any::type_name::<T>()))
    })
}

/// Decodes a value that fills `bytes` exactly.
///
/// What a length in the bytes claims is checked before memory is taken for it: no more than 512 KiB for bodies of up
/// to 64 KiB, and 128 MiB for longer ones.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let (value, used) = decode_prefix(bytes)?;
    if used != bytes.len() {
        return Err(Error::new(
            Kind::Serde,
            format!("decoding {}: {} bytes left over", std::any::type_name::<T>(), bytes.len() - used),
        ));
    }
    Ok(value)
}

/// Decodes a value from the start of `bytes`; also returns how many bytes it took.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize)> {
    let decoded = if bytes.len() <= SMALL_BODY {
        bincode::serde::decode_from_slice(bytes, SMALL)
    } else {
        bincode::serde::decode_from_slice(bytes, LARGE)
    };
    decoded.map_err(|e| decoding(std::any::type_name::<T>(), &e))
}

/// Takes a string off the start of `bytes` without copying it; also returns the bytes after it.
pub fn split_str(bytes: &[u8]) -> Result<(&str, &[u8])> {
    let (text, used) =
        bincode::serde::borrow_decode_from_slice(bytes, SMALL).map_err(|e| decoding("a method name", &e))?;
    Ok((text, &bytes[used..]))
}

fn decoding(what: &str, e: &DecodeError) -> Error {
    let why = match e {
        DecodeError::UnexpectedEnd { .. } => "it is cut short".to_owned(),
        DecodeError::LimitExceeded => "a length in it is too large".to_owned(),
        DecodeError::OtherString(why) => why.clone(),
        other => other.to_string(),
    };
    Error::new(Kind::Serde, format!("decoding {what}: {why}"))
}

#[cfg(test)]
mod tests;
