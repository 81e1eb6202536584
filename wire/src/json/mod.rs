//! The JSON dialect: gVisor's urpc, byte for byte.
//!
//! A request is `{"method":M,"arg":A}`, a reply `{"success":b,"err":s,"result":R}`; nothing marks their end but
//! the closing brace. Decoding follows Go's `encoding/json`: see [`de`].

#![forbid(unsafe_code)]

pub mod de;
mod format;
mod node;
mod scan;

pub use node::Node;
pub(crate) use scan::{Scan, is_space};

use crate::error::{Error, Kind, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::borrow::Cow;

/// Deepest nesting of objects and arrays in a message: what `serde_json` takes.
pub const MAX_DEPTH: usize = 127;

/// A request that was received.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Empty when the request names none.
    pub method: Cow<'a, str>,
    /// `None` when the key is missing.
    pub arg: Option<Node<'a>>,
}

/// Takes a request apart. Keys are matched as Go does; the last of equal ones counts.
///
/// An error means broken framing, after which the connection is of no further use.
pub(crate) fn decode_request(body: &[u8]) -> Result<Request<'_>> {
    let mut request = Request { method: Cow::Borrowed(""), arg: None };
    for (key, value) in members(body)? {
        if key.eq_ignore_ascii_case("method") {
            match value {
                Node::String(name) => request.method = name,
                Node::Null => {}
                other => {
                    return Err(protocol(de::Mismatch::new(&other, "string").of("clientCall", "method")));
                }
            }
        } else if key.eq_ignore_ascii_case("arg") {
            request.arg = Some(value);
        }
    }
    Ok(request)
}

/// Takes a reply apart: the result, or the error that the server answered.
pub(crate) fn decode_reply(body: &[u8]) -> Result<Node<'_>> {
    let (mut success, mut err, mut result) = (false, Cow::Borrowed(""), Node::Null);
    for (key, value) in members(body)? {
        match (key.to_ascii_lowercase().as_str(), value) {
            ("success", Node::Bool(b)) => success = b,
            ("err", Node::String(text)) => err = text,
            ("result", value) => result = value,
            ("success" | "err", Node::Null) => {}
            ("success", other) => {
                return Err(protocol(de::Mismatch::new(&other, "bool").of("callResult", "success")));
            }
            ("err", other) => {
                return Err(protocol(de::Mismatch::new(&other, "string").of("callResult", "err")));
            }
            _ => {}
        }
    }
    match (success, &*err) {
        (true, _) => Ok(result),
        (false, UNKNOWN_METHOD) => Err(Error::new(Kind::UnknownMethod, UNKNOWN_METHOD)),
        (false, "") => Err(Error::failure("the call failed; the sandbox gave no reason")),
        (false, text) => Err(Error::failure(text)),
    }
}

/// gVisor's text for a name that is not registered.
pub(crate) const UNKNOWN_METHOD: &str = "unknown method";

fn members(body: &[u8]) -> Result<Vec<(Cow<'_, str>, Node<'_>)>> {
    match node::parse(body).map_err(protocol)? {
        Node::Object(members) => Ok(members),
        other => Err(protocol(de::Mismatch::new(&other, "object"))),
    }
}

fn protocol(why: impl std::fmt::Display) -> Error {
    Error::new(Kind::Protocol, why.to_string())
}

/// Decodes a value by Go's rules.
pub(crate) fn from_node<T: DeserializeOwned>(node: Node<'_>) -> Result<T> {
    T::deserialize(node).map_err(|e| Error::new(Kind::Serde, e.to_string()))
}

/// Decodes JSON text by Go's rules (see [`de`]): unknown members are ignored, names match in any case, missing ones
/// and `null` are zero values.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    from_node(node::parse(text).map_err(|e| Error::new(Kind::Serde, e.to_string()))?)
}

/// Appends a request.
pub(crate) fn encode_request<T: Serialize + ?Sized>(method: &str, arg: &T, out: &mut Vec<u8>) -> Result<()> {
    out.extend_from_slice(br#"{"method":"#);
    encode(method, out)?;
    out.extend_from_slice(br#","arg":"#);
    encode(arg, out)?;
    out.push(b'}');
    Ok(())
}

/// What comes before the result of a successful reply.
pub(crate) const SUCCESS: &[u8] = br#"{"success":true,"err":"","result":"#;

/// Appends a failed reply.
pub(crate) fn encode_error(message: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"success":false,"err":"#);
    if encode(message, out).is_err() {
        out.extend_from_slice(br#""""#);
    }
    out.extend_from_slice(br#","result":null}"#);
}

/// Appends a value, compact and with Go's escapes.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<()> {
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut *out, format::Go))
        .map_err(|e| Error::new(Kind::Serde, format!("encoding {}: {e}", std::any::type_name::<T>())))
}
