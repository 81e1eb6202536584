//! Shapes of arguments and results for the machine-readable method listing.

#![forbid(unsafe_code)]

use serde::ser::{self, Impossible, Serialize};
use serde_json::{Map, Value};

/// The shape of `T`: an object of field name to shape for structures, a type name for everything else.
///
/// It is read off the default value, so that it cannot differ from what is really sent. Names follow Go's, as
/// gVisor's documentation writes them (`int32`, `[]string`, `map[string]uint64`); `?` marks what may be null.
pub fn of<T: Serialize + Default>() -> Value {
    shape(&T::default())
}

fn shape<T: Serialize + ?Sized>(value: &T) -> Value {
    let name = type_name(std::any::type_name::<T>());
    match value.serialize(Shape { name: &name }) {
        Ok(shape) => shape,
        Err(Unknown) => Value::String(name),
    }
}

/// Turns a Rust type's full name into a short one in Go's manner.
fn type_name(rust: &str) -> String {
    let rust = rust.trim();
    if let Some(inner) = rust.strip_prefix('(').and_then(|r| r.strip_suffix(')')) {
        return format!("({})", arguments(inner).iter().map(|a| type_name(a)).collect::<Vec<_>>().join(", "));
    }
    let (path, generic) = match rust.split_once('<') {
        Some((path, rest)) => (path, arguments(rest.strip_suffix('>').unwrap_or(rest))),
        None => (rust, Vec::new()),
    };
    let generic: Vec<String> = generic.iter().map(|a| type_name(a)).collect();
    let short = path.rsplit("::").next().unwrap_or(path);
    match (short, generic.as_slice()) {
        ("String" | "str", _) => "string".to_owned(),
        ("i8" | "i16" | "i32" | "i64", _) => format!("int{}", &short[1..]),
        ("u8" | "u16" | "u32" | "u64", _) => format!("uint{}", &short[1..]),
        ("Vec" | "List", [item]) => format!("[]{item}"),
        ("Option", [item]) => format!("{item}?"),
        ("Json", [item]) => item.clone(),
        ("BTreeMap", [key, value]) => format!("map[{key}]{value}"),
        ("SpecJson", _) => "object?".to_owned(),
        ("Base64", _) => "base64".to_owned(),
        ("Ip", _) => "IP address".to_owned(),
        ("LogLevel", _) => "warning|info|debug".to_owned(),
        ("RuntimeState", _) => "int32".to_owned(),
        ("Value", _) => "any".to_owned(),
        _ => short.to_owned(),
    }
}

/// Splits a type argument list at its top-level commas.
fn arguments(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0usize, 0, Vec::new());
    for (i, c) in list.char_indices() {
        match c {
            '<' | '(' => depth += 1,
            '>' | ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&list[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts.into_iter().map(str::trim).filter(|p| !p.is_empty()).collect()
}

/// The shape cannot be read off the value.
#[derive(Debug, thiserror::Error)]
#[error("no shape")]
struct Unknown;

impl ser::Error for Unknown {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self
    }
}

/// Serializes a value into its shape; `name` is the type's.
struct Shape<'a> {
    name: &'a str,
}

impl Shape<'_> {
    fn named(self) -> Result<Value, Unknown> {
        Ok(Value::String(self.name.to_owned()))
    }
}

macro_rules! named {
    ($($method:ident: $type:ty),+ $(,)?) => {
        $(fn $method(self, _: $type) -> Result<Value, Unknown> { self.named() })+
    };
}

impl ser::Serializer for Shape<'_> {
    type Ok = Value;
    type Error = Unknown;
    type SerializeSeq = Impossible<Value, Unknown>;
    type SerializeTuple = Impossible<Value, Unknown>;
    type SerializeTupleStruct = Impossible<Value, Unknown>;
    type SerializeTupleVariant = Impossible<Value, Unknown>;
    type SerializeMap = Impossible<Value, Unknown>;
    type SerializeStruct = Fields;
    type SerializeStructVariant = Impossible<Value, Unknown>;

    named! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_f32: f32,
        serialize_f64: f64, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8],
        serialize_unit_struct: &'static str,
    }

    fn serialize_none(self) -> Result<Value, Unknown> {
        self.named()
    }
    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<Value, Unknown> {
        self.named()
    }
    fn serialize_unit(self) -> Result<Value, Unknown> {
        self.named()
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<Value, Unknown> {
        self.named()
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Value, Unknown> {
        Ok(shape(value))
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<Value, Unknown> {
        self.named()
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, Unknown> {
        Err(Unknown)
    }
    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Unknown> {
        Err(Unknown)
    }
    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, Unknown> {
        Err(Unknown)
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Unknown> {
        Err(Unknown)
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Unknown> {
        Err(Unknown)
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields, Unknown> {
        Ok(Fields(Map::new()))
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Unknown> {
        Err(Unknown)
    }
}

struct Fields(Map<String, Value>);

impl ser::SerializeStruct for Fields {
    type Ok = Value;
    type Error = Unknown;
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), Unknown> {
        self.0.insert(key.to_owned(), shape(value));
        Ok(())
    }
    /// A field that the default leaves out (`omitempty`) exists all the same, but its type is not known here.
    fn skip_field(&mut self, key: &'static str) -> Result<(), Unknown> {
        self.0.insert(key.to_owned(), Value::String("omitted when zero".to_owned()));
        Ok(())
    }
    fn end(self) -> Result<Value, Unknown> {
        Ok(Value::Object(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::container_manager::{EventOut, ExecArgs, Process, SignalArgs, StartArgs};
    use crate::api::types::{Empty, Json, List};
    use serde_json::json;

    #[test]
    fn shapes_name_every_field_and_its_type() {
        assert_eq!(of::<String>(), json!("string"));
        assert_eq!(of::<Empty>(), json!({}));
        assert_eq!(
            of::<SignalArgs>(),
            json!({"CID": "string", "Signo": "int32", "PID": "int32", "Mode": "int32"})
        );
        assert_eq!(of::<StartArgs>()["Spec"], json!("object?"));
        assert_eq!(of::<StartArgs>()["GoferMountConfs"], json!("[]GoferMountConf"));
        assert_eq!(of::<ExecArgs>()["argv"], json!("[]string"));
        assert_eq!(of::<ExecArgs>()["GuestFDs"], json!("[]int32?"));
        assert_eq!(of::<ExecArgs>()["Capabilities"], json!("TaskCapabilities?"));
        assert_eq!(of::<List<Process>>(), json!("[]Process"));
        assert_eq!(of::<Json<EventOut>>()["containerUsage"], json!("map[string]uint64"));
        assert_eq!(of::<crate::api::airlock::PrepareArgs>()["fds"]["devices"], json!("[](string, Fd)"));
        assert_eq!(of::<crate::api::logging::LoggingArgs>()["Level"], json!("warning|info|debug"));
    }

    #[test]
    fn every_declared_method_is_listed_once() {
        let all = crate::api::all_methods();
        let mut names: Vec<_> = all.iter().map(|m| m.name.as_str()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(all.iter().all(|m| m.doc.ends_with('.') && !m.doc.contains("  ")), "{all:#?}");
    }
}
