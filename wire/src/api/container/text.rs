//! lmctfy's own form of messages: protobuf's text format (`memory:{limit:100000000}`).
//!
//! Fields as `name: value` or `name { … }` (`< … >` means the same), separated by white space, commas or semicolons;
//! repeated fields one by one or as `[a, b]`; strings in either quotes with C's escapes, adjacent ones put together;
//! numbers decimal, octal or hexadecimal; values of enumerations by name; `#` begins a comment. A message is parsed by
//! its type ([`from_text`]), so what is no field of it is an error, as is a field that is there twice and not repeated.

mod parse;
mod write;

pub use write::to_text;

use crate::error::{Error, Kind, Result};
use parse::{Field, Message, Value};
use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use std::fmt;

/// Longest text in bytes.
pub const MAX_TEXT: usize = 1 << 20;
/// How deep messages may be nested.
pub const MAX_DEPTH: usize = 32;

/// Reads a message.
///
/// # Errors
/// [`Kind::Serde`] saying where and what is wrong.
pub fn from_text<T: DeserializeOwned>(text: &str) -> Result<T> {
    let wrong = |e: Wrong| Error::new(Kind::Serde, format!("not a message in text form: {}", e.0));
    let message = parse::message(text).map_err(wrong)?;
    T::deserialize(Whole(&message)).map_err(wrong)
}

/// Reads a message in JSON, if it begins with `{`, or in text form. (A text message begins with a field's name.)
///
/// # Errors
/// [`Kind::Serde`] saying where and what is wrong.
pub fn from_json_or_text<T: DeserializeOwned>(text: &str) -> Result<T> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text)
            .map_err(|e| Error::new(Kind::Serde, format!("not a message in JSON: {e}")));
    }
    from_text(text)
}

/// What is wrong.
#[derive(Debug)]
struct Wrong(String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// A message as a value of its type.
struct Whole<'a>(&'a Message);

impl<'de> Deserializer<'de> for Whole<'de> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, Wrong> {
        // Repeated fields in one, in the order of their first.
        let mut fields: Vec<(&str, Repeated<'de>)> = Vec::new();
        for field in &self.0.fields {
            match fields.iter_mut().find(|(name, _)| *name == field.name) {
                Some((_, repeated)) => repeated.0.push(field),
                None => fields.push((&field.name, Repeated(vec![field]))),
            }
        }
        visitor.visit_map(MapDeserializer::new(fields.into_iter()))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// All occurrences of one field.
#[derive(Clone)]
struct Repeated<'a>(Vec<&'a Field>);

impl<'de> IntoDeserializer<'de, Wrong> for Repeated<'de> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Repeated<'de> {
    /// Says which field is wrong.
    fn named<T>(&self, result: std::result::Result<T, Wrong>) -> std::result::Result<T, Wrong> {
        let Some(field) = self.0.first() else { return result };
        result.map_err(|Wrong(why)| match why.strip_prefix('.') {
            Some(inner) => Wrong(format!(".{}.{inner}", field.name)),
            None => Wrong(format!(".{}: line {}: {why}", field.name, field.line)),
        })
    }

    fn single(&self) -> std::result::Result<One<'de>, Wrong> {
        match self.0.as_slice() {
            [field] => Ok(One(&field.value)),
            _ => Err(Wrong("is there more than once, and not a repeated field".to_owned())),
        }
    }
}

impl<'de> Deserializer<'de> for Repeated<'de> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, Wrong> {
        let result = self.single().and_then(|one| one.deserialize_any(visitor));
        self.named(result)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, Wrong> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, Wrong> {
        let values = self.0.iter().flat_map(|field| match &field.value {
            Value::List(list) => list.iter().collect(),
            value => vec![value],
        });
        let values: Vec<One<'de>> = values.map(One).collect();
        let result = visitor.visit_seq(SeqDeserializer::new(values.into_iter()));
        self.named(result)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        values: &'static [&'static str],
        visitor: V,
    ) -> std::result::Result<V::Value, Wrong> {
        let result = self.single().and_then(|one| one.deserialize_enum(name, values, visitor));
        self.named(result)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, Wrong> {
        let result = self.single().and_then(|one| one.deserialize_bool(visitor));
        self.named(result)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, Wrong> {
        let result = self.single().and_then(|one| one.deserialize_string(visitor));
        self.named(result)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str bytes byte_buf unit unit_struct newtype_struct tuple
        tuple_struct map struct identifier ignored_any
    }
}

/// One value.
#[derive(Clone, Copy)]
struct One<'a>(&'a Value);

impl<'de> IntoDeserializer<'de, Wrong> for One<'de> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for One<'de> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, Wrong> {
        match self.0 {
            Value::Message(message) => Whole(message).deserialize_any(visitor),
            Value::Positive(number) => visitor.visit_u64(*number),
            Value::Negative(number) => visitor.visit_i64(*number),
            Value::Word(word) => Err(Wrong(format!("the word {word} is not what belongs here"))),
            Value::Text(_) => Err(Wrong("a string does not belong here".to_owned())),
            Value::List(_) => Err(Wrong("a list is for repeated fields only".to_owned())),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, Wrong> {
        match self.0 {
            Value::Word(word) if matches!(word.as_str(), "true" | "t" | "True") => visitor.visit_bool(true),
            Value::Word(word) if matches!(word.as_str(), "false" | "f" | "False") => {
                visitor.visit_bool(false)
            }
            Value::Positive(number @ 0..=1) => visitor.visit_bool(*number == 1),
            _ => Err(Wrong("true or false belongs here".to_owned())),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, Wrong> {
        match self.0 {
            Value::Text(text) => visitor.visit_str(text),
            _ => Err(Wrong("a string in quotes belongs here".to_owned())),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        values: &'static [&'static str],
        visitor: V,
    ) -> std::result::Result<V::Value, Wrong> {
        match self.0 {
            Value::Word(word) => {
                let word: StrDeserializer<'_, Wrong> = word.as_str().into_deserializer();
                word.deserialize_enum(name, values, visitor)
            }
            _ => Err(Wrong(format!("one of {} belongs here", values.join(", ")))),
        }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests;
