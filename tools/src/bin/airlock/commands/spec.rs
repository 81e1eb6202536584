//! `spec`: a starter configuration for a new bundle.

#![forbid(unsafe_code)]

use crate::OCI_VERSION;
use crate::cli::SpecArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use nix::unistd::{getegid, geteuid};
use oci_spec::runtime::{
    Capability, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder, LinuxNamespace, LinuxNamespaceType,
    LinuxResourcesBuilder, Spec,
};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes `config.json` to the bundle's folder, where there must be none yet.
pub fn run(_global: &Global, args: SpecArgs) -> Result<ExitCode> {
    if !args.cwd.starts_with('/') {
        return Err(Error::invalid_argument(format!("--cwd {}: give an absolute path", args.cwd)));
    }
    let path = args.bundle.join("config.json");
    let text = serde_json::to_string_pretty(&starter(&args)?)
        .map_err(|e| Error::failure(format!("encode the configuration: {e}")))?;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n"))).map_err(
        |e| {
            if e.kind() == std::io::ErrorKind::AlreadyExists {
                Error::invalid_state(format!(
                    "{} exists already: remove it first, or name another folder with --bundle",
                    path.display()
                ))
            } else {
                Error::from(e).context(format!("write {}", path.display()))
            }
        },
    )?;
    Ok(ExitCode::SUCCESS)
}

/// A shell in a read-only root filesystem `rootfs`, with a terminal, three capabilities and all namespaces.
fn starter(args: &SpecArgs) -> Result<Spec> {
    let built = |e: oci_spec::OciSpecError| Error::failure(format!("build the configuration: {e}"));
    let mut spec =
        if args.rootless { Spec::rootless(geteuid().as_raw(), getegid().as_raw()) } else { Spec::default() };
    spec.set_version(OCI_VERSION.to_owned()).set_hostname(Some("airlock".to_owned()));
    if let Some(process) = spec.process_mut() {
        let few: std::collections::HashSet<Capability> =
            [Capability::AuditWrite, Capability::Kill, Capability::NetBindService].into();
        let capabilities = LinuxCapabilitiesBuilder::default()
            .bounding(few.clone())
            .effective(few.clone())
            .permitted(few)
            .inheritable([])
            .ambient([])
            .build()
            .map_err(built)?;
        process
            .set_terminal(Some(true))
            .set_cwd(PathBuf::from(&args.cwd))
            .set_capabilities(Some(capabilities));
        if !args.command.is_empty() {
            process.set_args(Some(args.command.clone()));
        }
    }
    if let Some(linux) = spec.linux_mut() {
        if !args.rootless {
            let none =
                LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build().map_err(built)?;
            let resources = LinuxResourcesBuilder::default().devices([none]).build().map_err(built)?;
            linux.set_resources(Some(resources));
        }
        if let Some(netns) = &args.netns {
            let mut namespaces = linux.namespaces().clone().unwrap_or_default();
            namespaces.retain(|n| n.typ() != LinuxNamespaceType::Network);
            let mut network = LinuxNamespace::default();
            network.set_typ(LinuxNamespaceType::Network).set_path(Some(PathBuf::from(netns)));
            namespaces.push(network);
            linux.set_namespaces(Some(namespaces));
        }
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(change: impl FnOnce(&mut SpecArgs)) -> serde_json::Value {
        let mut args = SpecArgs {
            bundle: PathBuf::from("."),
            rootless: false,
            cwd: "/".to_owned(),
            netns: None,
            command: Vec::new(),
        };
        change(&mut args);
        serde_json::to_value(starter(&args).unwrap()).unwrap()
    }

    #[test]
    fn has_what_callers_edit() {
        let spec = json(|_| {});
        assert_eq!(spec["ociVersion"], OCI_VERSION);
        assert_eq!(spec["process"]["args"], serde_json::json!(["sh"]));
        assert_eq!(spec["process"]["terminal"], true);
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        assert_eq!(spec["process"]["rlimits"][0]["type"], "RLIMIT_NOFILE");
        assert_eq!(spec["root"], serde_json::json!({"path": "rootfs", "readonly": true}));
        assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], false);
        let mounts = spec["mounts"].as_array().unwrap();
        for wanted in ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"] {
            assert!(mounts.iter().any(|m| m["destination"] == wanted), "no {wanted}");
        }
        for set in ["inheritable", "ambient"] {
            assert_eq!(spec["process"]["capabilities"][set], serde_json::json!([]));
        }
    }

    #[test]
    fn rootless_has_a_user_namespace_and_no_network_of_its_own() {
        let spec = json(|args| args.rootless = true);
        let kinds: Vec<&str> = spec["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["type"].as_str().unwrap())
            .collect();
        assert!(kinds.contains(&"user") && !kinds.contains(&"network"));
        assert_eq!(spec["linux"]["uidMappings"][0]["size"], 1);
        assert!(spec["linux"].get("resources").is_none());
    }

    #[test]
    fn netns_and_command_are_taken_over() {
        let spec = json(|args| {
            args.netns = Some("/run/netns/x".to_owned());
            args.command = vec!["/hello".to_owned(), "-x".to_owned()];
        });
        assert_eq!(spec["process"]["args"], serde_json::json!(["/hello", "-x"]));
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        let network: Vec<_> = namespaces.iter().filter(|n| n["type"] == "network").collect();
        assert_eq!(network.len(), 1);
        assert_eq!(network[0]["path"], "/run/netns/x");
    }
}
