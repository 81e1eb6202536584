//! The listing of methods as a document: `docs/API.md`.

#![forbid(unsafe_code)]

use crate::method::MethodInfo;
use serde_json::Value;
use std::fmt::Write;

const HEAD: &str = "\
# The control API

Generated from the declarations in `wire/src/api/` by `airlock call --list --markdown`; do not edit. [WIRE.md](WIRE.md)
says how a call travels. Shapes name each field and its type as Go would; `?` marks what may be null.

Every call may also fail because its argument cannot be read (`json: …`), because a descriptor that it names did not come,
because the sandbox ends meanwhile, or with `unknown method` in a sandbox of another version. Calls answer at once unless
they say otherwise; one that waits blocks only its own connection, and ends when its client hangs up.
";

/// The document for `methods`, which come receiver by receiver.
pub fn document(methods: &[MethodInfo]) -> String {
    let mut text = HEAD.to_owned();
    let mut receiver = "";
    for method in methods {
        let (own, _) = method.name.split_once('.').unwrap_or((&method.name, ""));
        if own != receiver {
            receiver = own;
            // Writing to a string does not fail.
            let _ = write!(text, "\n## {receiver}\n");
        }
        let _ = write!(text, "\n### {}\n\n{}\n\n", method.name, method.doc);
        let mut row = |what: &str, value: &str| {
            if !value.is_empty() {
                let _ = writeln!(text, "- {what}: {value}");
            }
        };
        row("argument", &shape(&method.arg));
        row("result", &shape(&method.result));
        row("descriptors", &method.fds);
        row("errors", &method.errors);
        row("blocks", &method.blocks);
        row("from", &method.source);
    }
    text
}

/// A shape on one line.
fn shape(shape: &Value) -> String {
    match shape {
        Value::Object(fields) if fields.is_empty() => "none".to_owned(),
        Value::String(name) => format!("`{name}`"),
        other => format!("`{}`", compact(other)),
    }
}

fn compact(shape: &Value) -> String {
    match shape {
        Value::Object(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(name, shape)| format!("{name}: {}", compact(shape))).collect();
            format!("{{{}}}", fields.join(", "))
        }
        Value::String(name) => name.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_in_docs_is_this_one() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/API.md");
        let document = document(&crate::api::all_methods());
        let known = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            known == document,
            "docs/API.md is out of date: airlock call --list --markdown > docs/API.md"
        );
    }

    #[test]
    fn every_method_says_where_it_comes_from() {
        for method in crate::api::all_methods() {
            assert!(!method.source.is_empty(), "{}: `from` is missing in its declaration", method.name);
        }
    }
}
