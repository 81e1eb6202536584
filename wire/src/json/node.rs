//! A parsed JSON value that keeps what Go's decoder goes by: the order of members, and repeated ones.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// A JSON value; strings without escapes are borrowed from the message.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without fraction and exponent, 0 or more.
    Unsigned(u64),
    /// A negative number without fraction and exponent.
    Negative(i64),
    /// Any other number.
    Float(f64),
    /// A string.
    String(Cow<'a, str>),
    /// An array.
    Array(Vec<Node<'a>>),
    /// An object's members in order, repeated names included.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

/// Parses a whole text. As in Go, bytes that are not UTF-8 are read as U+FFFD.
pub(super) fn parse(text: &[u8]) -> Result<Node<'_>, serde_json::Error> {
    match std::str::from_utf8(text) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_str(&String::from_utf8_lossy(text)).map(into_owned),
    }
}

fn into_owned(node: Node<'_>) -> Node<'static> {
    match node {
        Node::Null => Node::Null,
        Node::Bool(b) => Node::Bool(b),
        Node::Unsigned(n) => Node::Unsigned(n),
        Node::Negative(n) => Node::Negative(n),
        Node::Float(n) => Node::Float(n),
        Node::String(s) => Node::String(Cow::Owned(s.into_owned())),
        Node::Array(items) => Node::Array(items.into_iter().map(into_owned).collect()),
        Node::Object(members) => Node::Object(
            members.into_iter().map(|(k, v)| (Cow::Owned(k.into_owned()), into_owned(v))).collect(),
        ),
    }
}

/// A member's name, borrowed where the text has it without escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(v.to_owned())))
            }
        }
        d.deserialize_str(NameVisitor)
    }
}

impl<'de> Deserialize<'de> for Node<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct NodeVisitor;
        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Node<'de>, E> {
                Ok(Node::Null)
            }
            fn visit_bool<E>(self, v: bool) -> Result<Node<'de>, E> {
                Ok(Node::Bool(v))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Node<'de>, E> {
                Ok(Node::Unsigned(v))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Node<'de>, E> {
                Ok(u64::try_from(v).map_or(Node::Negative(v), Node::Unsigned))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Node<'de>, E> {
                Ok(Node::Float(v))
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Node<'de>, E> {
                Ok(Node::String(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Node<'de>, E> {
                Ok(Node::String(Cow::Owned(v.to_owned())))
            }
            fn visit_string<E>(self, v: String) -> Result<Node<'de>, E> {
                Ok(Node::String(Cow::Owned(v)))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node<'de>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::Array(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    members.push((name, map.next_value()?));
                }
                Ok(Node::Object(members))
            }
        }
        d.deserialize_any(NodeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_repeated_members_and_borrows() {
        let node = parse(br#"{"b":[1,-2,3.5,null,true],"a":"x\ny","b":"z"}"#).unwrap();
        let Node::Object(members) = node else { panic!("{node:?}") };
        assert_eq!(members.iter().map(|(k, _)| k.as_ref()).collect::<Vec<_>>(), ["b", "a", "b"]);
        assert_eq!(
            members[0].1,
            Node::Array(vec![
                Node::Unsigned(1),
                Node::Negative(-2),
                Node::Float(3.5),
                Node::Null,
                Node::Bool(true)
            ])
        );
        assert_eq!(members[1].1, Node::String("x\ny".into()));
        assert!(matches!(members[2].1, Node::String(Cow::Borrowed("z"))));
    }

    #[test]
    fn bytes_that_are_not_utf8_become_replacement_characters() {
        assert_eq!(parse(b"[\"a\xffb\"]").unwrap(), Node::Array(vec![Node::String("a\u{fffd}b".into())]));
    }
}
