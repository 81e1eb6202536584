//! What an update makes of a specification.
#![forbid(unsafe_code)]

use airlock_wire::api::container::UpdatePolicy;
use airlock_wire::api::container::spec::ContainerSpec;
use airlock_wire::api::container::status::Code;
use airlock_wire::error::{Error, Result};
use serde_json::Value;

/// The resource types that a specification isolates, by the names of its fields.
pub fn isolated(spec: &ContainerSpec) -> Vec<&'static str> {
    let all = [
        ("children_limit", spec.children_limit.is_some()),
        ("cpu", spec.cpu.is_some()),
        ("memory", spec.memory.is_some()),
        ("network", spec.network.is_some()),
        ("blockio", spec.blockio.is_some()),
        ("monitoring", spec.monitoring.is_some()),
        ("filesystem", spec.filesystem.is_some()),
        ("device", spec.device.is_some()),
        ("virtual_host", spec.virtual_host.is_some()),
        ("security_spec", spec.security_spec.is_some()),
    ];
    all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
}

/// The specification after an update (seed 003, `Update`).
///
/// # Errors
/// `INVALID_ARGUMENT` when the set of isolated resource types would change, or the scheduling latency would.
pub fn updated(now: &ContainerSpec, update: &ContainerSpec, policy: UpdatePolicy) -> Result<ContainerSpec> {
    let (has, wants) = (isolated(now), isolated(update));
    if let Some(new) = wants.iter().find(|name| !has.contains(name)) {
        return Err(Code::InvalidArgument.error(format_args!(
            "an update cannot begin to isolate {new}: the container isolates {}",
            list(&has)
        )));
    }
    let latency = |spec: &ContainerSpec| spec.cpu.as_ref().and_then(|cpu| cpu.scheduling_latency);
    if latency(update).is_some_and(|new| Some(new) != latency(now)) {
        return Err(Code::InvalidArgument.error("cpu.scheduling_latency cannot be updated"));
    }
    let new = by_policy(now, update, policy, &has, &wants)?;
    if new.virtual_host != now.virtual_host || new.filesystem != now.filesystem {
        return Err(Code::InvalidArgument.error("virtual_host and filesystem cannot be updated"));
    }
    Ok(new)
}

fn by_policy(
    now: &ContainerSpec,
    update: &ContainerSpec,
    policy: UpdatePolicy,
    has: &[&str],
    wants: &[&str],
) -> Result<ContainerSpec> {
    match policy {
        UpdatePolicy::UpdateDiff => merged(now, update),
        UpdatePolicy::UpdateReplace => {
            if let Some(lost) = has.iter().find(|name| !wants.contains(name)) {
                return Err(Code::InvalidArgument.error(format_args!(
                    "an update that replaces has to have every resource that is isolated ({}): {lost} is missing",
                    list(has)
                )));
            }
            let mut new = update.clone();
            // What cannot be updated stays; an owner always is somebody.
            if let Some(cpu) = &mut new.cpu {
                cpu.scheduling_latency = now.cpu.as_ref().and_then(|cpu| cpu.scheduling_latency);
            }
            new.owner = new.owner.or(now.owner);
            new.owner_group = new.owner_group.or(now.owner_group);
            Ok(new)
        }
    }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// Field by field, at any depth; lists are replaced as a whole.
fn merged(now: &ContainerSpec, update: &ContainerSpec) -> Result<ContainerSpec> {
    fn merge(now: &mut Value, update: Value) {
        match (now, update) {
            (Value::Object(now), Value::Object(update)) => {
                for (key, value) in update {
                    merge(now.entry(key).or_insert(Value::Null), value);
                }
            }
            (now, update) => *now = update,
        }
    }
    let failed = |e: serde_json::Error| Error::failure(format!("merging specifications: {e}"));
    let mut both = serde_json::to_value(now).map_err(failed)?;
    merge(&mut both, serde_json::to_value(update).map_err(failed)?);
    serde_json::from_value(both).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlock_wire::api::container::spec::{CpuSpec, MemorySpec, SchedulingLatency};
    use proptest::prelude::*;

    fn spec() -> impl Strategy<Value = ContainerSpec> {
        let cpu = (any::<Option<u64>>(), any::<Option<u64>>());
        let cpu = cpu.prop_map(|(limit, max_limit)| CpuSpec { limit, max_limit, ..CpuSpec::default() });
        let memory = (any::<Option<i64>>(), any::<Option<i64>>());
        let memory = memory.prop_map(|(limit, reservation)| MemorySpec {
            limit,
            reservation,
            ..MemorySpec::default()
        });
        let children = any::<Option<i64>>();
        (proptest::option::of(cpu), proptest::option::of(memory), children).prop_map(
            |(cpu, memory, children_limit)| ContainerSpec {
                cpu,
                memory,
                children_limit,
                ..ContainerSpec::default()
            },
        )
    }

    /// The model: what a container isolates is a map of fields to numbers, in which an update writes.
    fn fields(spec: &ContainerSpec) -> Vec<(&'static str, Option<i128>)> {
        let cpu = spec.cpu.clone().unwrap_or_default();
        let memory = spec.memory.clone().unwrap_or_default();
        vec![
            ("cpu.limit", cpu.limit.map(i128::from)),
            ("cpu.max_limit", cpu.max_limit.map(i128::from)),
            ("memory.limit", memory.limit.map(i128::from)),
            ("memory.reservation", memory.reservation.map(i128::from)),
            ("children_limit", spec.children_limit.map(i128::from)),
        ]
    }

    proptest! {
        #[test]
        fn updates_follow_the_model(now in spec(), update in spec()) {
            let (has, wants) = (isolated(&now), isolated(&update));
            let diff = updated(&now, &update, UpdatePolicy::UpdateDiff);
            prop_assert_eq!(diff.is_ok(), wants.iter().all(|w| has.contains(w)));
            if let Ok(diff) = diff {
                prop_assert_eq!(isolated(&diff), has.clone());
                let expected = fields(&now).into_iter().zip(fields(&update)).map(|((name, old), (_, new))| (name, new.or(old)));
                prop_assert_eq!(fields(&diff), expected.collect::<Vec<_>>());
            }
            let replace = updated(&now, &update, UpdatePolicy::UpdateReplace);
            prop_assert_eq!(replace.is_ok(), wants == has);
            if let Ok(replace) = replace {
                prop_assert_eq!(fields(&replace), fields(&update));
            }
            // An update by what is there changes nothing.
            for policy in [UpdatePolicy::UpdateDiff, UpdatePolicy::UpdateReplace] {
                prop_assert_eq!(updated(&now, &now, policy).unwrap(), now.clone());
            }
        }
    }

    #[test]
    fn latency_stays() {
        let with = |latency| ContainerSpec {
            cpu: Some(CpuSpec { scheduling_latency: latency, ..CpuSpec::default() }),
            ..ContainerSpec::default()
        };
        let now = with(Some(SchedulingLatency::Normal));
        for policy in [UpdatePolicy::UpdateDiff, UpdatePolicy::UpdateReplace] {
            assert_eq!(updated(&now, &with(None), policy).unwrap(), now);
            assert!(updated(&now, &with(Some(SchedulingLatency::BestEffort)), policy).is_err());
        }
    }
}
