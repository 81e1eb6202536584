//! From a message to text.

use super::Wrong;
use crate::error::{Error, Kind, Result};
use serde::ser::{self, Impossible, Serialize, Serializer};

/// Writes a message in text form, one field a line.
///
/// # Errors
/// [`Kind::Serde`] for a type that is no message.
pub fn to_text<T: Serialize>(message: &T) -> Result<String> {
    let mut out = String::new();
    let writer = Writer { out: &mut out, depth: 0, name: "" };
    message.serialize(writer).map_err(|e| Error::new(Kind::Serde, e.0))?;
    Ok(out)
}

impl ser::Error for Wrong {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Writes the value of field `name`; without a name, the whole message.
struct Writer<'a> {
    out: &'a mut String,
    depth: usize,
    name: &'a str,
}

impl Writer<'_> {
    fn line(self, value: impl std::fmt::Display) -> std::result::Result<(), Wrong> {
        if self.name.is_empty() {
            return Err(Wrong("only messages can be written as text".to_owned()));
        }
        self.out.push_str(&format!("{}{}: {value}\n", "  ".repeat(self.depth), self.name));
        Ok(())
    }
}

/// The fields of a message, or the values of a repeated field.
struct Inner<'a> {
    out: &'a mut String,
    depth: usize,
    name: &'a str,
    braces: bool,
}

impl ser::SerializeStruct for Inner<'_> {
    type Ok = ();
    type Error = Wrong;
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> std::result::Result<(), Wrong> {
        value.serialize(Writer { out: self.out, depth: self.depth, name })
    }
    fn end(self) -> std::result::Result<(), Wrong> {
        if self.braces {
            self.out.push_str(&format!("{}}}\n", "  ".repeat(self.depth - 1)));
        }
        Ok(())
    }
}

impl ser::SerializeSeq for Inner<'_> {
    type Ok = ();
    type Error = Wrong;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> std::result::Result<(), Wrong> {
        value.serialize(Writer { out: self.out, depth: self.depth, name: self.name })
    }
    fn end(self) -> std::result::Result<(), Wrong> {
        Ok(())
    }
}

fn no<T>() -> std::result::Result<T, Wrong> {
    Err(Wrong("there is no text form for a value of this type".to_owned()))
}

impl<'a> Serializer for Writer<'a> {
    type Ok = ();
    type Error = Wrong;
    type SerializeSeq = Inner<'a>;
    type SerializeTuple = Impossible<(), Wrong>;
    type SerializeTupleStruct = Impossible<(), Wrong>;
    type SerializeTupleVariant = Impossible<(), Wrong>;
    type SerializeMap = Impossible<(), Wrong>;
    type SerializeStruct = Inner<'a>;
    type SerializeStructVariant = Impossible<(), Wrong>;

    fn serialize_bool(self, v: bool) -> std::result::Result<(), Wrong> {
        self.line(v)
    }
    fn serialize_i8(self, v: i8) -> std::result::Result<(), Wrong> {
        self.line(v)
    }
    fn serialize_i16(self, v: i16) -> std::result::Result<(), Wrong> {
        self.line(v)
    }
    fn serialize_i32(self, v: i32) -> std::result::Result<(), Wrong> {
        self.line(v)
    }
    fn serialize_i64(self, v: i64) -> std::result::Result<(), Wrong> {
        self.line(v)
    }
    fn serialize_u8(self, v: u8) -> std::result::Result<(), Wrong> {
        self.line(v)
    }
    fn serialize_u16(self, v: u16) -> std::result::Result<(), Wrong> {
        self.line(v)
    }
    fn serialize_u32(self, v: u32) -> std::result::Result<(), Wrong> {
        self.line(v)
    }
    fn serialize_u64(self, v: u64) -> std::result::Result<(), Wrong> {
        self.line(v)
    }
    fn serialize_f32(self, _: f32) -> std::result::Result<(), Wrong> {
        no()
    }
    fn serialize_f64(self, _: f64) -> std::result::Result<(), Wrong> {
        no()
    }
    fn serialize_char(self, _: char) -> std::result::Result<(), Wrong> {
        no()
    }
    fn serialize_str(self, v: &str) -> std::result::Result<(), Wrong> {
        let mut quoted = String::with_capacity(v.len() + 2);
        quoted.push('"');
        for c in v.chars() {
            match c {
                '"' | '\\' => {
                    quoted.push('\\');
                    quoted.push(c);
                }
                '\n' => quoted.push_str("\\n"),
                c if c.is_ascii_control() => quoted.push_str(&format!("\\{:03o}", c as u32)),
                c => quoted.push(c),
            }
        }
        quoted.push('"');
        self.line(quoted)
    }
    fn serialize_bytes(self, _: &[u8]) -> std::result::Result<(), Wrong> {
        no()
    }
    fn serialize_none(self) -> std::result::Result<(), Wrong> {
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> std::result::Result<(), Wrong> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> std::result::Result<(), Wrong> {
        no()
    }
    fn serialize_unit_struct(self, _: &'static str) -> std::result::Result<(), Wrong> {
        no()
    }
    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
    ) -> std::result::Result<(), Wrong> {
        self.line(name)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> std::result::Result<(), Wrong> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> std::result::Result<(), Wrong> {
        no()
    }
    fn serialize_seq(self, _: Option<usize>) -> std::result::Result<Inner<'a>, Wrong> {
        Ok(Inner { out: self.out, depth: self.depth, name: self.name, braces: false })
    }
    fn serialize_tuple(self, _: usize) -> std::result::Result<Self::SerializeTuple, Wrong> {
        no()
    }
    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> std::result::Result<Self::SerializeTupleStruct, Wrong> {
        no()
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> std::result::Result<Self::SerializeTupleVariant, Wrong> {
        no()
    }
    fn serialize_map(self, _: Option<usize>) -> std::result::Result<Self::SerializeMap, Wrong> {
        no()
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> std::result::Result<Inner<'a>, Wrong> {
        let braces = !self.name.is_empty();
        if braces {
            self.out.push_str(&format!("{}{} {{\n", "  ".repeat(self.depth), self.name));
        }
        Ok(Inner { out: self.out, depth: self.depth + usize::from(braces), name: "", braces })
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> std::result::Result<Self::SerializeStructVariant, Wrong> {
        no()
    }
}
