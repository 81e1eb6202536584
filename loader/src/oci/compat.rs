//! Reading configurations that say more than our types know.

#![forbid(unsafe_code)]

use oci_spec::runtime::{Capability, Spec};
use serde::Deserialize;
use serde_json::Value;

/// Flags of `process.scheduler` as the runtime spec writes them, and as the oci-spec crate does.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Parses a configuration. Capabilities that airlock does not know are left out of it, with a warning, as in runc: a
/// newer kernel's, most likely, which an older runtime cannot give. Returns the text as well, in which everything is
/// written so that our types can read it.
///
/// # Errors
/// What is no configuration.
pub fn parse_spec(text: String) -> serde_json::Result<(String, Spec)> {
    let error = match serde_json::from_str(&text) {
        Ok(spec) => return Ok((text, spec)),
        Err(e) => e,
    };
    // Only now the costlier way.
    let mut config: Value = serde_json::from_str(&text)?;
    if !config.get_mut("process").is_some_and(adapt_process) {
        return Err(error);
    }
    let text = serde_json::to_string(&config)?;
    let spec = serde_json::from_str(&text)?;
    Ok((text, spec))
}

/// Changes an OCI process object likewise. True if there was anything to change.
pub fn adapt_process(process: &mut Value) -> bool {
    let unknown = leave_out_unknown_capabilities(process);
    let respelled = respell_scheduler_flags(process);
    unknown || respelled
}

fn leave_out_unknown_capabilities(process: &mut Value) -> bool {
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    let mut unknown = Vec::new();
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut) {
        set.retain(|name| {
            let known = !name.is_string() || Capability::deserialize(name).is_ok();
            if !known {
                unknown.push(name.to_string());
            }
            known
        });
    }
    unknown.sort();
    unknown.dedup();
    if !unknown.is_empty() {
        log::warn!("process.capabilities: ignoring unknown or unavailable {}", unknown.join(", "));
    }
    !unknown.is_empty()
}

fn respell_scheduler_flags(process: &mut Value) -> bool {
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    let mut changed = false;
    for flag in flags.into_iter().flatten() {
        let other = SCHEDULER_FLAGS.iter().find(|(spec, _)| flag.as_str() == Some(spec));
        if let Some((_, ours)) = other {
            *flag = Value::from(*ours);
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(capabilities: Value, flags: Value) -> String {
        json!({"ociVersion": "1.2.0", "x": 7, "process": {"args": ["a"], "cwd": "/", "user": {"uid": 0, "gid": 0},
            "capabilities": capabilities, "scheduler": {"policy": "SCHED_OTHER", "flags": flags}}})
        .to_string()
    }

    #[test]
    fn unknown_capabilities_are_left_out_and_nothing_else() {
        let caps =
            json!({"bounding": ["CAP_KILL", "CAP_FLY", "CAP_FLY"], "ambient": ["CAP_NO"], "effective": null});
        let (text, _) = parse_spec(config(caps, json!([]))).unwrap();
        let left: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            left["process"]["capabilities"],
            json!({"bounding": ["CAP_KILL"], "ambient": [], "effective": null})
        );
        assert_eq!(left["x"], 7);
    }

    #[test]
    fn what_is_known_stays_as_it_was_written_and_what_is_wrong_stays_wrong() {
        let known = config(json!({"bounding": ["CAP_CHOWN"]}), json!(["SCHED_FLAG_KEEP_POLICY"]));
        assert_eq!(parse_spec(known.clone()).unwrap().0, known);
        for wrong in [
            "[".to_owned(),
            config(json!({"bounding": [7]}), json!([])),
            config(json!({"bounding": ["CAP_FLY"]}), json!(["SCHED_FLAG_FLY"])),
        ] {
            assert!(parse_spec(wrong).is_err());
        }
    }

    #[test]
    fn every_scheduler_flag_of_the_spec_is_read() {
        let flags = json!([
            "SCHED_FLAG_RESET_ON_FORK",
            "SCHED_FLAG_RECLAIM",
            "SCHED_FLAG_DL_OVERRUN",
            "SCHED_FLAG_KEEP_POLICY",
            "SCHED_FLAG_KEEP_PARAMS",
            "SCHED_FLAG_UTIL_CLAMP_MIN",
            "SCHED_FLAG_UTIL_CLAMP_MAX"
        ]);
        let (_, spec) = parse_spec(config(json!({}), flags)).unwrap();
        let process = spec.process().clone().unwrap();
        assert_eq!(process.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(), 7);
    }
}
