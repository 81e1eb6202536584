//! The OCI `process` object of an `exec`, made of the container's own and what the caller changes.

#![forbid(unsafe_code)]

use crate::podspec::read_bounded;
use airlock_loader::oci::compat::adapt_process;
use airlock_wire::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What the caller of `exec` changes of the container's own process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessFlags {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// `NAME=VALUE` entries on top of the container's.
    pub env: Vec<String>,
    /// User id, and group id (without one: 0).
    pub user: Option<(u32, Option<u32>)>,
    /// Additional group ids on top of the container's.
    pub additional_gids: Vec<u32>,
    /// The process has a terminal.
    pub terminal: bool,
    /// Capabilities to add, as `CAP_KILL`, `kill` or `ALL`… are written.
    pub caps: Vec<String>,
    /// Forbids gaining privileges, whatever the container does.
    pub no_new_privs: bool,
    /// SELinux label.
    pub label: Option<String>,
    /// AppArmor profile.
    pub apparmor: Option<String>,
}

/// An OCI `process` object, and whether it wants a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessObject {
    /// As JSON text.
    pub text: String,
    /// Its `terminal`.
    pub terminal: bool,
}

impl ProcessObject {
    /// Reads the object from a file. `terminal` is set if the caller asks for a terminal in another way.
    pub fn from_file(path: &Path, terminal: bool) -> Result<Self> {
        let text = read_bounded(path)?;
        let bad = |what: String| Error::invalid_argument(format!("{}: {what}", path.display()));
        let mut process: Value =
            serde_json::from_str(&text).map_err(|e| bad(format!("not an OCI process object: {e}")))?;
        let changed = adapt_process(&mut process);
        let Value::Object(mut process) = process else {
            return Err(bad("not an OCI process object: it has no fields".to_owned()));
        };
        if process.get("args").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            return Err(bad("process.args is missing or empty: name the program".to_owned()));
        }
        let wanted = process.get("terminal").and_then(Value::as_bool).unwrap_or(false);
        let forced = terminal && !wanted;
        if forced {
            process.insert("terminal".to_owned(), true.into());
        }
        if forced || changed {
            return Self::encode(process, forced || wanted);
        }
        Ok(Self { text, terminal: wanted })
    }

    /// Changes the `process` of the container's configuration as `flags` say.
    pub fn from_config(config: &str, flags: &ProcessFlags) -> Result<Self> {
        if flags.args.is_empty() {
            return Err(Error::invalid_argument("no command given: name the program, or a --process file"));
        }
        let mut config: Map<String, Value> = serde_json::from_str(config)
            .map_err(|e| Error::failure(format!("the container's configuration is damaged: {e}")))?;
        let mut process = match config.remove("process") {
            Some(Value::Object(process)) => process,
            _ => Map::new(),
        };
        process.insert("args".to_owned(), json!(flags.args));
        process.insert("terminal".to_owned(), json!(flags.terminal));
        process.remove("commandLine");
        if let Some(cwd) = &flags.cwd {
            process.insert("cwd".to_owned(), json!(cwd));
        }
        process.entry("cwd").or_insert_with(|| json!("/"));
        append(&mut process, "env", flags.env.iter().map(|e| json!(e)).collect())?;
        if let Some((uid, gid)) = flags.user {
            let user = object(&mut process, "user")?;
            user.insert("uid".to_owned(), json!(uid));
            user.insert("gid".to_owned(), json!(gid.unwrap_or(0)));
        }
        if !flags.additional_gids.is_empty() {
            let gids = flags.additional_gids.iter().map(|g| json!(g)).collect();
            append(object(&mut process, "user")?, "additionalGids", gids)?;
        }
        if !flags.caps.is_empty() {
            add_capabilities(object(&mut process, "capabilities")?, &flags.caps)?;
        }
        if flags.no_new_privs {
            process.insert("noNewPrivileges".to_owned(), json!(true));
        }
        if let Some(label) = &flags.label {
            process.insert("selinuxLabel".to_owned(), json!(label));
        }
        if let Some(profile) = &flags.apparmor {
            process.insert("apparmorProfile".to_owned(), json!(profile));
        }
        Self::encode(process, flags.terminal)
    }

    fn encode(process: Map<String, Value>, terminal: bool) -> Result<Self> {
        let text = serde_json::to_string(&process)
            .map_err(|e| Error::failure(format!("encode the process object: {e}")))?;
        Ok(Self { text, terminal })
    }
}

fn damaged(key: &str) -> Error {
    Error::failure(format!("the container's configuration is damaged: process.{key} has the wrong type"))
}

fn object<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Map<String, Value>> {
    let value = parent.entry(key).or_insert_with(|| json!({}));
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or_else(|| damaged(key))
}

fn append(parent: &mut Map<String, Value>, key: &str, more: Vec<Value>) -> Result<()> {
    if more.is_empty() {
        return Ok(());
    }
    let value = parent.entry(key).or_insert_with(|| json!([]));
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or_else(|| damaged(key))?.extend(more);
    Ok(())
}

/// Adds to the bounding, effective and permitted sets; to the ambient set only where the container has inheritable
/// capabilities, since the kernel allows it only then. Never to the inheritable set (CVE-2022-29162).
fn add_capabilities(sets: &mut Map<String, Value>, caps: &[String]) -> Result<()> {
    let names: Vec<Value> = caps
        .iter()
        .map(|cap| {
            let upper = cap.to_ascii_uppercase();
            json!(if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") })
        })
        .collect();
    let inheritable = sets.get("inheritable").and_then(Value::as_array).is_some_and(|a| !a.is_empty());
    let mut wanted = vec!["bounding", "effective", "permitted"];
    if inheritable {
        wanted.push("ambient");
    }
    for set in wanted {
        let present = sets.get(set).and_then(Value::as_array).cloned().unwrap_or_default();
        append(sets, set, names.iter().filter(|n| !present.contains(n)).cloned().collect())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"ociVersion":"1.0.2","process":{"terminal":true,"args":["sh"],"cwd":"/w","env":["A=1"],
        "user":{"uid":5,"gid":6,"additionalGids":[7]},"capabilities":{"bounding":["CAP_KILL"]},"rlimits":[]}}"#;

    fn process(config: &str, change: impl FnOnce(&mut ProcessFlags)) -> Value {
        let mut flags = ProcessFlags { args: vec!["id".into(), "-u".into()], ..ProcessFlags::default() };
        change(&mut flags);
        let object = ProcessObject::from_config(config, &flags).unwrap();
        assert_eq!(object.terminal, flags.terminal);
        serde_json::from_str(&object.text).unwrap()
    }

    #[test]
    fn the_containers_process_is_the_base() {
        let p = process(CONFIG, |_| {});
        assert_eq!(
            p,
            json!({"terminal": false, "args": ["id", "-u"], "cwd": "/w", "env": ["A=1"],
                "user": {"uid": 5, "gid": 6, "additionalGids": [7]}, "capabilities": {"bounding": ["CAP_KILL"]},
                "rlimits": []})
        );
    }

    #[test]
    fn flags_change_it() {
        let p = process(CONFIG, |f| {
            f.cwd = Some("/x".into());
            f.env = vec!["B=2".into()];
            f.user = Some((1000, None));
            f.additional_gids = vec![7, 8];
            f.terminal = true;
            f.caps = vec!["CAP_KILL".into(), "sys_time".into()];
            f.no_new_privs = true;
            f.label = Some("l".into());
            f.apparmor = Some("a".into());
        });
        assert_eq!((&p["cwd"], &p["env"]), (&json!("/x"), &json!(["A=1", "B=2"])));
        assert_eq!(p["user"], json!({"uid": 1000, "gid": 0, "additionalGids": [7, 7, 8]}));
        assert_eq!(p["capabilities"]["bounding"], json!(["CAP_KILL", "CAP_SYS_TIME"]));
        assert_eq!(p["capabilities"]["effective"], json!(["CAP_KILL", "CAP_SYS_TIME"]));
        assert!(p["capabilities"].get("inheritable").is_none() && p["capabilities"].get("ambient").is_none());
        assert_eq!((&p["noNewPrivileges"], &p["selinuxLabel"]), (&json!(true), &json!("l")));
        assert_eq!(p["apparmorProfile"], "a");
    }

    #[test]
    fn odd_configurations_are_borne() {
        let p = process(r#"{"process":{"env":null,"user":null}}"#, |f| {
            f.env = vec!["A=1".into()];
            f.user = Some((1, Some(2)));
        });
        assert_eq!(
            (&p["env"], &p["user"], &p["cwd"]),
            (&json!(["A=1"]), &json!({"uid": 1, "gid": 2}), &json!("/"))
        );
        let flags =
            ProcessFlags { args: vec!["a".into()], env: vec!["A=1".into()], ..ProcessFlags::default() };
        assert!(
            ProcessObject::from_config(r#"{"process":{"env":7}}"#, &flags)
                .unwrap_err()
                .message
                .contains("env")
        );
        assert!(ProcessObject::from_config("[", &flags).is_err());
        assert!(
            ProcessObject::from_config("{}", &ProcessFlags::default())
                .unwrap_err()
                .message
                .contains("no command")
        );
    }

    #[test]
    fn files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        let read = |text: &str, terminal| {
            std::fs::write(&path, text).unwrap();
            ProcessObject::from_file(&path, terminal)
        };
        assert!(!read(r#"{"args":["a"]}"#, false).unwrap().terminal);
        assert!(read(r#"{"args":["a"],"terminal":true}"#, false).unwrap().terminal);
        let forced = read(r#"{"args":["a"],"terminal":false}"#, true).unwrap();
        assert!(forced.terminal && forced.text.contains(r#""terminal":true"#));
        for bad in ["", "[]", "{}", r#"{"args":[]}"#, r#"{"args":"a"}"#] {
            assert!(read(bad, false).is_err(), "{bad}");
        }
    }
}
