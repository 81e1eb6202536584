//! `update`: new resource limits for a container that exists.

#![forbid(unsafe_code)]

use crate::cli::UpdateArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder,
};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

/// Longer texts are no resources object.
const MAX_RESOURCES: u64 = 1 << 20;

/// Changes the limits.
pub fn run(global: &Global, args: UpdateArgs) -> Result<ExitCode> {
    let resources = match &args.resources {
        Some(path) => read(path)?,
        None => from_options(&args)?,
    };
    global.airlock()?.update(&args.id, &resources).map(|()| ExitCode::SUCCESS)
}

/// An OCI resources object from a file, or from standard input for `-`.
fn read(path: &Path) -> Result<LinuxResources> {
    let failed = |e: std::io::Error| Error::from(e).context(format!("--resources {}", path.display()));
    let source: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(File::open(path).map_err(failed)?)
    };
    let mut text = String::new();
    source.take(MAX_RESOURCES).read_to_string(&mut text).map_err(failed)?;
    let refuse = |why: String| {
        Error::invalid_argument(format!("--resources {}: not an OCI resources object: {why}", path.display()))
    };
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| refuse(e.to_string()))?;
    if !json.is_object() {
        // A list would be taken for the fields in their order.
        return Err(refuse("it has no fields".to_owned()));
    }
    serde_json::from_value(json).map_err(|e| refuse(e.to_string()))
}

/// A resources object with what the options name, and nothing else.
fn from_options(args: &UpdateArgs) -> Result<LinuxResources> {
    let built = |e: OciSpecError| Error::failure(format!("build the resources: {e}"));
    let mut resources = LinuxResourcesBuilder::default();

    let mut cpu = LinuxCpuBuilder::default();
    if let Some(value) = args.cpu_share {
        cpu = cpu.shares(value);
    }
    if let Some(value) = args.cpu_quota {
        cpu = cpu.quota(value);
    }
    if let Some(value) = args.cpu_period {
        cpu = cpu.period(value);
    }
    if let Some(value) = args.cpu_burst {
        cpu = cpu.burst(value);
    }
    if let Some(value) = args.cpu_idle {
        cpu = cpu.idle(value);
    }
    if let Some(value) = args.cpu_rt_runtime {
        cpu = cpu.realtime_runtime(value);
    }
    if let Some(value) = args.cpu_rt_period {
        cpu = cpu.realtime_period(value);
    }
    if let Some(value) = &args.cpuset_cpus {
        cpu = cpu.cpus(value.clone());
    }
    if let Some(value) = &args.cpuset_mems {
        cpu = cpu.mems(value.clone());
    }
    let cpu = cpu.build().map_err(built)?;
    if cpu != LinuxCpuBuilder::default().build().map_err(built)? {
        resources = resources.cpu(cpu);
    }

    let mut memory = LinuxMemoryBuilder::default();
    if let Some(value) = args.memory {
        memory = memory.limit(value);
    }
    if let Some(value) = args.memory_reservation {
        memory = memory.reservation(value);
    }
    if let Some(value) = args.memory_swap {
        memory = memory.swap(value);
    }
    let memory = memory.build().map_err(built)?;
    if memory != LinuxMemoryBuilder::default().build().map_err(built)? {
        resources = resources.memory(memory);
    }

    if let Some(limit) = args.pids_limit {
        resources = resources.pids(LinuxPidsBuilder::default().limit(limit).build().map_err(built)?);
    }
    if let Some(weight) = args.blkio_weight {
        resources = resources.block_io(LinuxBlockIoBuilder::default().weight(weight).build().map_err(built)?);
    }
    let resources = resources.build().map_err(built)?;
    if resources == LinuxResourcesBuilder::default().build().map_err(built)? {
        return Err(Error::invalid_argument(
            "nothing to change: give a limit, or --resources FILE ('airlock update --help' lists the limits)",
        ));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_a_resources_object() {
        let args = UpdateArgs {
            cpu_quota: Some(-1),
            cpu_idle: Some(1),
            cpuset_cpus: Some("0-1".to_owned()),
            memory: Some(1 << 20),
            memory_swap: Some(-1),
            pids_limit: Some(7),
            blkio_weight: Some(100),
            ..UpdateArgs::default()
        };
        let json = serde_json::to_value(from_options(&args).unwrap()).unwrap();
        assert_eq!(json["cpu"], serde_json::json!({"quota": -1, "idle": 1, "cpus": "0-1"}));
        assert_eq!(json["memory"], serde_json::json!({"limit": 1 << 20, "swap": -1}));
        assert_eq!(json["pids"]["limit"], 7);
        assert_eq!(json["blockIO"]["weight"], 100);
        assert!(from_options(&UpdateArgs::default()).unwrap_err().message.contains("nothing to change"));
    }

    #[test]
    fn what_is_not_named_stays_out() {
        let args = UpdateArgs { pids_limit: Some(-1), ..UpdateArgs::default() };
        let resources = from_options(&args).unwrap();
        assert!(resources.cpu().is_none() && resources.memory().is_none() && resources.block_io().is_none());
        // An absent device list must not read as "no devices at all".
        assert!(resources.devices().is_none());
    }

    #[test]
    fn files_are_read_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        std::fs::write(&path, r#"{"memory":{"limit":4096},"unknown":1}"#).unwrap();
        assert_eq!(read(&path).unwrap().memory().as_ref().unwrap().limit(), Some(4096));
        std::fs::write(&path, "[]").unwrap();
        assert!(read(&path).is_err());
        assert!(read(&dir.path().join("missing")).is_err());
    }
}
