//! `statefile diff`: what two images say differently.

#![forbid(unsafe_code)]

use super::image::Opened;
use super::lists::printable;
use super::view;
use crate::cli::TableFormat;
use crate::output;
use airlock_loader::checkpoint::pages;
use airlock_wire::error::Result;
use serde::Serialize;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Longer values are cut, characters.
const SHOWN: usize = 60;

/// End of the paths of memory contents.
const CONTENT: &str = "/memory content";

/// A place where the images differ.
#[derive(Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Names on the way there, `/` between them.
    pub path: String,
    /// The first image's value; null: it has none.
    pub first: Value,
    /// The second image's.
    pub second: Value,
}

/// Prints the differences; ends with status 1 if there are any.
pub fn run(first: &Opened, second: &Opened, format: TableFormat) -> Result<ExitCode> {
    let found = differences(first, second)?;
    match format {
        TableFormat::Json => output::print_json_line(&found)?,
        TableFormat::Table => output::print(&found.iter().map(line).collect::<String>())?,
    }
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything that differs, memory too as far as the pages are there.
pub fn differences(first: &Opened, second: &Opened) -> Result<Vec<Difference>> {
    let (a, b) = (view::of(first)?, view::of(second)?);
    let mut found = Vec::new();
    compare("", &a.tree, &b.tree, &mut found);
    if let (Some(one), Some(two)) = (first.chain()?, second.chain()?) {
        for (path, here) in &a.memory {
            let Some((_, there)) = b.memory.iter().find(|(other, _)| other == path) else { continue };
            let pages = pages::compare((&one, *here), (&two, *there)).map_err(|e| e.context(path))?;
            if !pages.is_same() {
                let side = |only: u64| json!({ "pages": pages.same + pages.changed + only, "changed": pages.changed, "only_here": only });
                let path = format!("{path}{CONTENT}");
                found.push(Difference {
                    path,
                    first: side(pages.first_only),
                    second: side(pages.second_only),
                });
            }
        }
    }
    Ok(found)
}

/// Adds what differs below `path`.
pub fn compare(path: &str, first: &Value, second: &Value, found: &mut Vec<Difference>) {
    if first == second {
        return;
    }
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
    match (first, second) {
        (Value::Object(a), Value::Object(b)) => {
            for (name, value) in a {
                compare(&below(name), value, b.get(name).unwrap_or(&Value::Null), found);
            }
            for (name, value) in b.iter().filter(|(name, _)| !a.contains_key(*name)) {
                compare(&below(name), &Value::Null, value, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if words(a) && words(b) => {
            let missing = |of: &[Value], from: &[Value]| -> Vec<Value> {
                of.iter().filter(|value| !from.contains(value)).cloned().collect()
            };
            for gone in missing(a, b) {
                found.push(Difference { path: path.to_owned(), first: gone, second: Value::Null });
            }
            for new in missing(b, a) {
                found.push(Difference { path: path.to_owned(), first: Value::Null, second: new });
            }
            let same = |list: &[Value]| list.iter().all(|value| a.contains(value) && b.contains(value));
            if same(a) && same(b) {
                found.push(Difference {
                    path: path.to_owned(),
                    first: first.clone(),
                    second: second.clone(),
                });
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&below(&i.to_string()), a, b, found);
            }
        }
        _ => found.push(Difference { path: path.to_owned(), first: first.clone(), second: second.clone() }),
    }
}

/// A list whose order says little.
fn words(list: &[Value]) -> bool {
    list.iter().all(Value::is_string)
}

fn line(difference: &Difference) -> String {
    let Difference { path, first, second } = difference;
    let number = |of: &Value, name: &str| of[name].as_u64().unwrap_or_default();
    let text = match (first, second) {
        _ if path.ends_with(CONTENT) => format!(
            "~ {path}: {} of {} pages changed, {} gone, {} new",
            number(first, "changed"),
            number(first, "pages"),
            number(first, "only_here"),
            number(second, "only_here")
        ),
        (value, Value::Null) => format!("- {path}{}", after(value)),
        (Value::Null, value) => format!("+ {path}{}", after(value)),
        (first, second) => format!("~ {path}: {} → {}", short(first), short(second)),
    };
    printable(&text) + "\n"
}

fn after(value: &Value) -> String {
    match value {
        // What a process is called says more than all that is known of it.
        Value::Object(map) => match map.get("what").or_else(|| map.get("comm")) {
            Some(what) => format!(": {}", short(what)),
            None => String::new(),
        },
        value => format!(": {}", short(value)),
    }
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], text.len()),
        None => text,
    }
}
