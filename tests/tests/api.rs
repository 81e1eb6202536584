//! The listing of methods, walked: each has a test that calls it in a sandbox and sees its result, and if it has errors of
//! its own, one that sees an error.
//!
//! What counts are calls in the sources of the tests: the name of the method, or a constant for it, as the first word of
//! `ok(…)`, `call(…)` or `call_for_fds(…)` for a result (they fail the test when the call fails, or hand the result on), of
//! `fails(…)` for an error, and of `send(…)`, whose reply is taken later, for either. Comments do not count.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Methods that cannot be called on a sandbox's socket, and the test that cannot pass without them.
const BESIDE: [(&str, &str, &str); 1] = [("Airlock.Continue", "tests/oci_hooks.rs", "createRuntime")];

/// What the tests call.
#[derive(Default)]
struct Calls {
    results: BTreeSet<String>,
    errors: BTreeSet<String>,
}

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// The string or constant that `text` begins with.
fn first_word<'a>(text: &'a str, constants: &BTreeMap<&str, &'a str>) -> Option<&'a str> {
    let text = text.trim_start();
    match text.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => {
            let name = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()?;
            constants.get(name).copied()
        }
    }
}

impl Calls {
    fn read(&mut self, source: &str) {
        let code: Vec<&str> = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = code.join("\n");
        let constants: BTreeMap<&str, &str> = code
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("const ")?.split_once(": &str = \""))
            .filter_map(|(name, rest)| Some((name, rest.split('"').next()?)))
            .collect();
        for verb in ["ok(", "call(", "call_for_fds(", "send(", "fails("] {
            let calls = code
                .match_indices(verb)
                .filter(|(at, _)| !code[..*at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'));
            let methods = calls.filter_map(|(at, _)| first_word(&code[at + verb.len()..], &constants));
            let methods = methods.filter(|name| name.contains('.')).map(str::to_owned);
            let methods: Vec<String> = methods.collect();
            // What is sent is received later, be it a result or an error.
            if matches!(verb, "send(" | "fails(") {
                self.errors.extend(methods.iter().cloned());
            }
            if verb != "fails(" {
                self.results.extend(methods);
            }
        }
    }
}

#[test]
fn every_method_has_a_test_of_its_result_and_of_its_errors() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&tests.join("tests"), &mut files);
    let mut calls = Calls::default();
    for file in files.iter().filter(|file| !file.ends_with("api.rs")) {
        calls.read(&std::fs::read_to_string(file).unwrap());
    }
    let mut lacking = Vec::new();
    for method in airlock_wire::api::all_methods() {
        if let Some((_, file, word)) = BESIDE.iter().find(|(name, _, _)| *name == method.name) {
            assert!(std::fs::read_to_string(tests.join(file)).unwrap().contains(word), "{file}");
            continue;
        }
        // What is refused always has no result.
        if !method.errors.starts_with("always") && !calls.results.contains(&method.name) {
            lacking.push(format!("{}: no test of its result", method.name));
        }
        if !method.errors.is_empty() && !calls.errors.contains(&method.name) {
            lacking.push(format!("{}: no test of its errors", method.name));
        }
    }
    assert!(lacking.is_empty(), "{}", lacking.join("\n"));
}

#[test]
fn what_counts_as_a_call() {
    let mut calls = Calls::default();
    calls.read(
        "const WAIT: &str = \"c.Wait\";\n// caller.ok(\"c.Comment\", x)\ncaller.ok(WAIT, x);\n\
         caller.call_for_fds(\n    \"c.Split\", x);\nlook(\"c.Look\");\nlet name = \"c.Name\";\ncaller.fails(\"c.Bad\", x)",
    );
    assert_eq!(calls.results, BTreeSet::from(["c.Wait".to_owned(), "c.Split".to_owned()]));
    assert_eq!(calls.errors, BTreeSet::from(["c.Bad".to_owned()]));
}
