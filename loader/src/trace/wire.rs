//! Messages: fields with numbers and names, encoded as protobuf (version 3, as gVisor's sinks have it) or as JSON.
#![forbid(unsafe_code)]

use serde_json::{Map, Value as Json};
use std::fmt::Write;

/// A field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub value: Value,
}

impl Field {
    /// A field.
    pub fn new(number: u32, name: &'static str, value: Value) -> Self {
        Self { number, name, value }
    }
}

/// What a field says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `int32` or `int64`.
    Int(i64),
    /// `uint32` or `uint64`.
    Uint(u64),
    /// `bool`.
    Bool(bool),
    /// `string`.
    Text(String),
    /// `bytes`.
    Bytes(Vec<u8>),
    /// `repeated string`.
    Texts(Vec<String>),
    /// A message within the message.
    Message(Vec<Field>),
}

/// Appends `fields` as a protobuf message (protobuf.dev/programming-guides/encoding): zeros and empty texts are left out.
pub fn protobuf(fields: &[Field], out: &mut Vec<u8>) {
    const VARINT: u32 = 0;
    const LEN: u32 = 2;
    for Field { number, value, .. } in fields {
        let mut bytes = |content: &[u8]| {
            varint(u64::from(number << 3 | LEN), out);
            varint(content.len() as u64, out);
            out.extend_from_slice(content);
        };
        match value {
            Value::Int(0) | Value::Uint(0) | Value::Bool(false) => {}
            Value::Int(n) => {
                varint(u64::from(number << 3 | VARINT), out);
                varint(*n as u64, out);
            }
            Value::Uint(n) => {
                varint(u64::from(number << 3 | VARINT), out);
                varint(*n, out);
            }
            Value::Bool(true) => {
                varint(u64::from(number << 3 | VARINT), out);
                varint(1, out);
            }
            Value::Text(text) if text.is_empty() => {}
            Value::Text(text) => bytes(text.as_bytes()),
            Value::Bytes(content) if content.is_empty() => {}
            Value::Bytes(content) => bytes(content),
            Value::Texts(texts) => texts.iter().for_each(|text| bytes(text.as_bytes())),
            Value::Message(fields) => {
                let mut content = Vec::new();
                protobuf(fields, &mut content);
                bytes(&content);
            }
        }
    }
}

/// Appends `n` in groups of seven bits, the lowest first.
pub fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// The same fields as a JSON object. Bytes are hexadecimal; empty texts, lists and bytes are left out, numbers never.
pub fn json(fields: &[Field]) -> Map<String, Json> {
    let mut object = Map::new();
    for Field { name, value, .. } in fields {
        let value = match value {
            Value::Int(n) => Json::from(*n),
            Value::Uint(n) => Json::from(*n),
            Value::Bool(b) => Json::from(*b),
            Value::Text(text) if text.is_empty() => continue,
            Value::Text(text) => Json::from(text.as_str()),
            Value::Bytes(content) if content.is_empty() => continue,
            Value::Bytes(content) => {
                let mut text = String::with_capacity(2 * content.len());
                content.iter().for_each(|b| {
                    // Writing to memory does not fail.
                    let _ = write!(text, "{b:02x}");
                });
                Json::from(text)
            }
            Value::Texts(texts) if texts.is_empty() => continue,
            Value::Texts(texts) => texts.iter().map(String::as_str).collect(),
            Value::Message(fields) => Json::Object(json(fields)),
        };
        object.insert((*name).to_owned(), value);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_as_the_guide_says() {
        // The examples of the encoding guide: 150 in field 1, "testing" in field 2, a message in field 3; and -2.
        let inner = vec![Field::new(1, "a", Value::Int(150))];
        let fields = vec![
            Field::new(1, "a", Value::Int(150)),
            Field::new(2, "b", Value::Text("testing".to_owned())),
            Field::new(3, "c", Value::Message(inner)),
            Field::new(4, "d", Value::Texts(vec!["x".to_owned(), String::new()])),
            Field::new(5, "e", Value::Uint(0)),
            Field::new(6, "f", Value::Int(-2)),
            Field::new(7, "g", Value::Bool(true)),
            Field::new(8, "h", Value::Bytes(vec![0xff, 0])),
        ];
        let mut out = Vec::new();
        protobuf(&fields, &mut out);
        let mut expected = vec![0x08, 0x96, 0x01, 0x12, 0x07];
        expected.extend(b"testing");
        expected.extend([0x1a, 0x03, 0x08, 0x96, 0x01, 0x22, 0x01, b'x', 0x22, 0x00]);
        expected.extend([0x30, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        expected.extend([0x38, 0x01, 0x42, 0x02, 0xff, 0x00]);
        assert_eq!(out, expected);
        let text = Json::Object(json(&fields)).to_string();
        assert_eq!(
            text,
            r#"{"a":150,"b":"testing","c":{"a":150},"d":["x",""],"e":0,"f":-2,"g":true,"h":"ff00"}"#
        );
    }
}
