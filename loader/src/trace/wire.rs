//! Messages: fields with numbers and names, encoded as protobuf (version 3, as gVisor's sinks have it) or as JSON.
#![forbid(unsafe_code)]

use std::io::Write;

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

/// Appends the same fields as members of a JSON object, each with a comma before it unless it is the first there. Bytes are
/// hexadecimal; empty texts, lists and bytes are left out, numbers never.
pub fn json(fields: &[Field], mut first: bool, out: &mut Vec<u8>) {
    for Field { name, value, .. } in fields {
        let empty = match value {
            Value::Text(text) => text.is_empty(),
            Value::Bytes(bytes) => bytes.is_empty(),
            Value::Texts(texts) => texts.is_empty(),
            _ => false,
        };
        if empty {
            continue;
        }
        if !first {
            out.push(b',');
        }
        first = false;
        json_text(name, out);
        out.push(b':');
        // Writing to memory does not fail.
        let _ = match value {
            Value::Int(n) => write!(out, "{n}"),
            Value::Uint(n) => write!(out, "{n}"),
            Value::Bool(b) => write!(out, "{b}"),
            Value::Text(text) => {
                json_text(text, out);
                Ok(())
            }
            Value::Bytes(bytes) => {
                out.push(b'"');
                let written = bytes.iter().try_for_each(|b| write!(out, "{b:02x}"));
                out.push(b'"');
                written
            }
            Value::Texts(texts) => {
                for (n, text) in texts.iter().enumerate() {
                    out.push(if n == 0 { b'[' } else { b',' });
                    json_text(text, out);
                }
                out.push(b']');
                Ok(())
            }
            Value::Message(fields) => {
                out.push(b'{');
                json(fields, true, out);
                out.push(b'}');
                Ok(())
            }
        };
    }
}

/// Appends a JSON string.
pub fn json_text(text: &str, out: &mut Vec<u8>) {
    // Writing a text to memory does not fail.
    let _ = serde_json::to_writer(out, text);
}

/// The fields, as whoever reads the JSON has them.
#[cfg(any(test, feature = "fuzzing"))]
pub fn parsed(fields: &[Field]) -> Option<serde_json::Value> {
    let mut out = vec![b'{'];
    json(fields, true, &mut out);
    out.push(b'}');
    serde_json::from_slice(&out).ok()
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
        let mut out = Vec::new();
        json(&[vec![Field::new(9, "i", Value::Texts(Vec::new()))], fields].concat(), true, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#""a":150,"b":"testing","c":{"a":150},"d":["x",""],"e":0,"f":-2,"g":true,"h":"ff00""#
        );
    }
}
