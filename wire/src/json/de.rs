//! Decodes JSON values as Go's `encoding/json` does, so that the types in [`api`](crate::api) need no tricks of their
//! own: unknown members are ignored, names match exactly or else in any case, `null` leaves a member at its zero
//! value (as does its absence, by `#[serde(default)]`), the last of repeated members counts, and type errors read
//! like Go's.

use super::Node;
use serde::de::value::StrDeserializer;
use serde::de::{self, Deserializer, IntoDeserializer, Visitor};
use std::borrow::Cow;
use std::fmt;

/// A value of the wrong type, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    value: Cow<'static, str>,
    expected: Cow<'static, str>,
    /// The structure, and the path of the member from the outermost structure on.
    field: Option<(&'static str, String)>,
}

impl Mismatch {
    pub(super) fn new(found: &Node<'_>, expected: impl Into<Cow<'static, str>>) -> Self {
        let value = match found {
            Node::Null => "null",
            Node::Bool(_) => "bool",
            Node::Unsigned(_) | Node::Negative(_) | Node::Float(_) => "number",
            Node::String(_) => "string",
            Node::Array(_) => "array",
            Node::Object(_) => "object",
        };
        Self { value: value.into(), expected: expected.into(), field: None }
    }

    /// Adds the structure and the member in which the value was found.
    pub(super) fn of(mut self, structure: &'static str, member: &str) -> Self {
        self.field = Some(match self.field {
            None => (structure, member.to_owned()),
            Some((inner, path)) => (inner, format!("{member}.{path}")),
        });
        self
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "json: cannot unmarshal {} into Go ", self.value)?;
        match &self.field {
            Some((structure, path)) => write!(f, "struct field {structure}.{path} of type {}", self.expected),
            None => write!(f, "value of type {}", self.expected),
        }
    }
}

/// Why a value could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The value has the wrong type.
    #[error("{0}")]
    Type(Mismatch),
    /// The type itself refused the value.
    #[error("json: {0}")]
    Other(String),
}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self::Other(what.to_string())
    }
}

type Result<T> = std::result::Result<T, DecodeError>;

impl Node<'_> {
    fn mismatch<T>(&self, expected: impl Into<Cow<'static, str>>) -> Result<T> {
        Err(DecodeError::Type(Mismatch::new(self, expected)))
    }

    /// A number that does not fit is named in the error.
    fn out_of_range<T>(&self, expected: &'static str) -> Result<T> {
        let mut mismatch = Mismatch::new(self, expected);
        match self {
            Node::Unsigned(n) => mismatch.value = format!("number {n}").into(),
            Node::Negative(n) => mismatch.value = format!("number {n}").into(),
            Node::Float(n) => mismatch.value = format!("number {n}").into(),
            _ => {}
        }
        Err(DecodeError::Type(mismatch))
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ident $go:literal),+ $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            let fits = match &self {
                Node::Null => Some(0),
                Node::Unsigned(n) => $type::try_from(*n).ok(),
                Node::Negative(n) => $type::try_from(*n).ok(),
                _ => None,
            };
            match fits {
                Some(n) => visitor.$visit(n),
                None => self.out_of_range($go),
            }
        })+
    };
}

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = DecodeError;

    integers! {
        deserialize_i8 visit_i8 i8 "int8", deserialize_i16 visit_i16 i16 "int16",
        deserialize_i32 visit_i32 i32 "int32", deserialize_i64 visit_i64 i64 "int64",
        deserialize_u8 visit_u8 u8 "uint8", deserialize_u16 visit_u16 u16 "uint16",
        deserialize_u32 visit_u32 u32 "uint32", deserialize_u64 visit_u64 u64 "uint64",
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self {
            Node::Null => visitor.visit_unit(),
            Node::Bool(b) => visitor.visit_bool(b),
            Node::Unsigned(n) => visitor.visit_u64(n),
            Node::Negative(n) => visitor.visit_i64(n),
            Node::Float(n) => visitor.visit_f64(n),
            Node::String(Cow::Borrowed(s)) => visitor.visit_borrowed_str(s),
            Node::String(Cow::Owned(s)) => visitor.visit_string(s),
            Node::Array(items) => visitor.visit_seq(Items(items.into_iter())),
            Node::Object(members) => visitor.visit_map(Members { rest: members.into_iter(), value: None }),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self {
            Node::Null => visitor.visit_bool(false),
            Node::Bool(b) => visitor.visit_bool(b),
            other => other.mismatch("bool"),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self {
            Node::Null => visitor.visit_f64(0.0),
            Node::Unsigned(n) => visitor.visit_f64(n as f64),
            Node::Negative(n) => visitor.visit_f64(n as f64),
            Node::Float(n) => visitor.visit_f64(n),
            other => other.mismatch("float64"),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self {
            Node::Null => visitor.visit_borrowed_str(""),
            Node::String(Cow::Borrowed(s)) => visitor.visit_borrowed_str(s),
            Node::String(Cow::Owned(s)) => visitor.visit_string(s),
            other => other.mismatch("string"),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, _: V) -> Result<V::Value> {
        self.mismatch("[]uint8")
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self {
            Node::Null => visitor.visit_none(),
            some => visitor.visit_some(some),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self {
            Node::Null => visitor.visit_seq(Items(Vec::new().into_iter())),
            Node::Array(items) => visitor.visit_seq(Items(items.into_iter())),
            other => other.mismatch("slice"),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self {
            Node::Null => visitor.visit_map(Members { rest: Vec::new().into_iter(), value: None }),
            Node::Object(members) => visitor.visit_map(Members { rest: members.into_iter(), value: None }),
            other => other.mismatch("map"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let members = match self {
            Node::Null => Vec::new(),
            Node::Object(members) => members,
            other => return other.mismatch(name),
        };
        let mut found: Vec<Option<Node<'de>>> = Vec::new();
        found.resize_with(fields.len(), || None);
        for (key, value) in members {
            let index = fields
                .iter()
                .position(|f| *f == key)
                .or_else(|| fields.iter().position(|f| f.eq_ignore_ascii_case(&key)));
            if let (Some(index), false) = (index, value == Node::Null) {
                found[index] = Some(value);
            }
        }
        visitor.visit_map(Fields {
            structure: name,
            names: fields,
            found: found.into_iter(),
            at: 0,
            value: None,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        match self {
            Node::String(variant) => visitor.visit_enum(variant.as_ref().into_deserializer()),
            Node::Object(members) => visitor.visit_enum(de::value::MapAccessDeserializer::new(Members {
                rest: members.into_iter(),
                value: None,
            })),
            other => other.mismatch(name),
        }
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }
}

impl<'de> IntoDeserializer<'de, DecodeError> for Node<'de> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

struct Items<'de>(std::vec::IntoIter<Node<'de>>);

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = DecodeError;
    fn next_element_seed<T: de::DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        self.0.next().map(|item| seed.deserialize(item)).transpose()
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

/// The members of an object that is a map.
struct Members<'de> {
    rest: std::vec::IntoIter<(Cow<'de, str>, Node<'de>)>,
    value: Option<Node<'de>>,
}

impl<'de> de::MapAccess<'de> for Members<'de> {
    type Error = DecodeError;
    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(Node::String(key)).map(Some)
    }
    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value> {
        seed.deserialize(self.value.take().unwrap_or(Node::Null))
    }
}

/// The members of an object that is a structure: at most one for each of its fields.
struct Fields<'de> {
    structure: &'static str,
    names: &'static [&'static str],
    found: std::vec::IntoIter<Option<Node<'de>>>,
    at: usize,
    value: Option<Node<'de>>,
}

impl<'de> de::MapAccess<'de> for Fields<'de> {
    type Error = DecodeError;
    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        for value in self.found.by_ref() {
            self.at += 1;
            if value.is_some() {
                self.value = value;
                let name: StrDeserializer<'_, DecodeError> = self.names[self.at - 1].into_deserializer();
                return seed.deserialize(name).map(Some);
            }
        }
        Ok(None)
    }
    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value> {
        seed.deserialize(self.value.take().unwrap_or(Node::Null)).map_err(|e| match e {
            DecodeError::Type(mismatch) => {
                DecodeError::Type(mismatch.of(self.structure, self.names[self.at - 1]))
            }
            other => other,
        })
    }
}

#[cfg(test)]
mod tests;
