//! Whether a container with one configuration may be restored from an image of a container with another.
//!
//! A restored program keeps what it had: its arguments, identity, filters, and what it saw of its file system. What the
//! restorer decides anew may differ: names, where mounts come from, descriptors, limits, hooks, annotations. What neither
//! can do differently has to be the same, or the program would find itself in another world than its own.
#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// What has to be the same. Everything else may differ: names and versions, environment (a program keeps its own),
/// limits, cgroups, hooks, annotations, sources of mounts, paths of namespaces.
const SAME: &[&str] = &[
    "root.readonly",
    "process.terminal",
    "process.args",
    "process.cwd",
    "process.user",
    "process.capabilities",
    "process.noNewPrivileges",
    "process.apparmorProfile",
    "process.selinuxLabel",
    "linux.uidMappings",
    "linux.gidMappings",
    "linux.devices",
    "linux.maskedPaths",
    "linux.readonlyPaths",
    "linux.rootfsPropagation",
    "linux.mountLabel",
    "linux.personality",
    "linux.seccomp",
    "linux.sysctl",
];

/// Lists in which the order counts.
const ORDERED: &[&str] = &["process.args", "linux.seccomp"];

/// Kinds of namespaces of which it counts whether they are made or joined. A program notices no other.
const MADE_OR_JOINED: &[&str] = &["user", "pid", "time"];

/// The longest text of a value in an error, in characters.
const MAX_SHOWN: usize = 160;

/// Checks that a container with configuration `new` may become what one with `old` was; both are OCI configurations as
/// JSON text.
///
/// # Errors
/// Names every difference that matters.
pub fn check(old: &str, new: &str) -> Result<()> {
    let parse = |text: &str, whose: &str| -> Result<Value> {
        serde_json::from_str(text)
            .map_err(|e| Error::invalid_argument(format!("the configuration {whose} is not JSON: {e}")))
    };
    let found = differences(&parse(old, "in the statefile")?, &parse(new, "of the container")?);
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "its configuration differs from that in the statefile where it may not: {}",
        found.join("; ")
    )))
}

/// The differences that matter, each as a line for people.
fn differences(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for path in SAME {
        let sort = !ORDERED.contains(path);
        let value = |spec| normal(at(spec, path), sort);
        compare(&mut found, path, &value(old), &value(new));
    }
    mounts(&mut found, old, new);
    namespaces(&mut found, old, new);
    found
}

fn compare(found: &mut Vec<String>, what: &str, old: &Value, new: &Value) {
    if old != new {
        found.push(format!("{what} was {} and is {}", shown(old), shown(new)));
    }
}

fn shown(value: &Value) -> String {
    if value.is_null() {
        return "not set".to_owned();
    }
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// The value at a dotted path; null if it is not there.
fn at<'a>(spec: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(spec, |value, key| value.get(key).unwrap_or(&Value::Null))
}

/// A value in a form in which equal meanings are equal: members with the zero value are left out, and lists sorted.
fn normal(value: &Value, sort: bool) -> Value {
    let zero = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_u64() == Some(0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) => false,
    };
    let value = match value {
        Value::Array(items) => {
            let mut items: Vec<_> = items.iter().map(|item| normal_item(item, sort)).collect();
            if sort {
                items.sort_by_cached_key(Value::to_string);
            }
            Value::Array(items)
        }
        Value::Object(members) => Value::Object(
            members
                .iter()
                .map(|(key, value)| (key.clone(), normal(value, sort)))
                .filter(|(_, value)| !value.is_null())
                .collect(),
        ),
        other => other.clone(),
    };
    if zero(&value) { Value::Null } else { value }
}

/// As [`normal`], but an item of a list counts even if it is zero.
fn normal_item(item: &Value, sort: bool) -> Value {
    match item {
        Value::Array(_) | Value::Object(_) => normal(item, sort),
        other => other.clone(),
    }
}

/// What is mounted where: kind and options, not the source.
fn mounts(found: &mut Vec<String>, old: &Value, new: &Value) {
    let by_place = |spec| {
        let mut all: BTreeMap<String, Vec<(String, Vec<String>)>> = BTreeMap::new();
        for mount in at(spec, "mounts").as_array().into_iter().flatten() {
            let text = |key| mount.get(key).and_then(Value::as_str).unwrap_or_default();
            let mut options: Vec<String> = mount
                .get("options")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|o| o.as_str().map(str::to_owned))
                .collect();
            options.sort();
            options.dedup();
            let bind = options.iter().any(|o| o == "bind" || o == "rbind");
            let kind = if bind { "bind" } else { text("type") };
            let place = format!("/{}", text("destination").trim_matches('/'));
            all.entry(place).or_default().push((kind.to_owned(), options));
        }
        all
    };
    let (old, new) = (by_place(old), by_place(new));
    for (place, was) in &old {
        match new.get(place) {
            None => found.push(format!("mounts: {place} is missing")),
            Some(is) if was != is => {
                let show = |list: &[(String, Vec<String>)]| {
                    let texts: Vec<_> = list
                        .iter()
                        .map(|(kind, options)| format!("{kind} ({})", options.join(",")))
                        .collect();
                    texts.join(" below ")
                };
                found.push(format!("mounts: {place} was {} and is {}", show(was), show(is)));
            }
            Some(_) => {}
        }
    }
    for place in new.keys().filter(|place| !old.contains_key(*place)) {
        found.push(format!("mounts: {place} is new"));
    }
}

fn namespaces(found: &mut Vec<String>, old: &Value, new: &Value) {
    let kinds = |spec| {
        let list = at(spec, "linux.namespaces").as_array().cloned().unwrap_or_default();
        let kinds: BTreeMap<String, bool> = list
            .iter()
            .filter_map(|ns| {
                let joined = ns.get("path").and_then(Value::as_str).is_some_and(|p| !p.is_empty());
                Some((ns.get("type")?.as_str()?.to_owned(), joined))
            })
            .collect();
        kinds
    };
    let (old, new) = (kinds(old), kinds(new));
    for (kind, was_joined) in &old {
        match new.get(kind) {
            None => found.push(format!("linux.namespaces: {kind} is missing")),
            Some(joined) if joined != was_joined && MADE_OR_JOINED.contains(&kind.as_str()) => {
                let how = |joined| if joined { "joined by path" } else { "of its own" };
                found.push(format!(
                    "linux.namespaces: {kind} was {} and is {}",
                    how(*was_joined),
                    how(*joined)
                ));
            }
            Some(_) => {}
        }
    }
    for kind in new.keys().filter(|kind| !old.contains_key(*kind)) {
        found.push(format!("linux.namespaces: {kind} is new"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "hostname": "a",
            "root": {"path": "rootfs", "readonly": true},
            "process": {
                "args": ["sleep", "", "1"], "cwd": "/", "env": ["A=1"], "user": {"uid": 0, "gid": 0},
                "capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}]
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/a", "options": ["rbind", "ro"]}
            ],
            "annotations": {"a": "b"},
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}, {"type": "mount"}],
                "resources": {"memory": {"limit": 1}},
                "maskedPaths": ["/a", "/b"]
            }
        })
    }

    fn changed(path: &str, value: Value) -> Value {
        let mut spec = spec();
        let place = path.split('.').fold(&mut spec, |place, key| match key.parse::<usize>() {
            Ok(index) if place.is_array() => &mut place[index],
            _ => &mut place[key],
        });
        *place = value;
        spec
    }

    #[test]
    fn what_the_restorer_decides_may_differ() {
        for (path, value) in [
            ("ociVersion", json!("1.1.0")),
            ("hostname", json!("b")),
            ("domainname", json!("c")),
            ("root.path", json!("/other")),
            ("process.env", json!(["A=2"])),
            ("process.consoleSize", json!({"height": 3, "width": 4})),
            ("process.rlimits", json!([])),
            ("process.oomScoreAdj", json!(5)),
            ("mounts.1.source", json!("/b")),
            ("mounts.1.options", json!(["ro", "rbind"])),
            ("mounts.1.type", json!("none")),
            ("annotations", json!({})),
            ("hooks", json!({"poststart": [{"path": "/bin/true"}]})),
            ("linux.resources", json!({})),
            ("linux.cgroupsPath", json!("/x")),
            ("linux.namespaces.1", json!({"type": "network"})),
            ("linux.maskedPaths", json!(["/b", "/a"])),
            ("process.capabilities.bounding", json!(["CAP_CHOWN", "CAP_KILL"])),
            ("process.user", json!({"uid": 0})),
            ("linux.seccomp", Value::Null),
            ("unknown", json!(1)),
        ] {
            let new = changed(path, value);
            assert_eq!(differences(&spec(), &new), Vec::<String>::new(), "{path}");
            assert_eq!(differences(&new, &spec()), Vec::<String>::new(), "{path}");
        }
    }

    #[test]
    fn what_the_program_relies_on_may_not() {
        for (path, value, error) in [
            ("root.readonly", json!(false), "root.readonly was true and is not set"),
            (
                "process.args",
                json!(["sleep", "1"]),
                r#"process.args was ["sleep","","1"] and is ["sleep","1"]"#,
            ),
            ("process.args", json!(["1", "", "sleep"]), "process.args"),
            ("process.terminal", json!(true), "process.terminal was not set and is true"),
            ("process.cwd", json!("/tmp"), "process.cwd"),
            ("process.user.uid", json!(1000), "process.user"),
            ("process.capabilities.bounding", json!(["CAP_KILL"]), "process.capabilities"),
            ("process.noNewPrivileges", json!(true), "process.noNewPrivileges"),
            ("mounts.0.destination", json!("/proc2"), "mounts: /proc is missing"),
            ("mounts.1.options", json!(["rbind"]), "mounts: /data was bind (rbind,ro) and is bind (rbind)"),
            ("mounts.0.type", json!("tmpfs"), "mounts: /proc was proc () and is tmpfs ()"),
            ("linux.namespaces.0", json!({"type": "ipc"}), "linux.namespaces: pid is missing"),
            (
                "linux.namespaces.0",
                json!({"type": "pid", "path": "/x"}),
                "linux.namespaces: pid was of its own and is joined by path",
            ),
            ("linux.uidMappings", json!([{"containerID": 0, "hostID": 1, "size": 1}]), "linux.uidMappings"),
            ("linux.seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"}), "linux.seccomp"),
            ("linux.sysctl", json!({"net.ipv4.ip_forward": "1"}), "linux.sysctl"),
        ] {
            let found = differences(&spec(), &changed(path, value)).join("; ");
            assert!(found.starts_with(error), "{path}: {found}");
        }
    }

    #[test]
    fn all_differences_are_told_at_once_and_none_at_length() {
        let mut new = changed("process.args", json!(["x".repeat(5000)]));
        new["mounts"] = json!([{"destination": "proc/", "type": "proc"}, {"destination": "/new"}]);
        let error = check(&spec().to_string(), &new.to_string()).unwrap_err().message;
        for part in ["process.args", "mounts: /data is missing", "mounts: /new is new"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains("/proc") && error.len() < 700, "{error}");
        assert!(check("{", "{}").unwrap_err().message.contains("in the statefile"));
        assert!(check("{}", "").unwrap_err().message.contains("of the container"));
    }
}
