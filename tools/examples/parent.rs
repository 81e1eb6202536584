//! A parent runtime: makes a sandbox, runs a second container in it with its output on a pipe, waits, and cleans up.
//!
//! As root: `cargo run --example parent -- target/debug/airlock /path/to/rootfs /bin/echo hello`
//! (a busybox root filesystem will do).

use airlock::client::{Airlock, WaitTarget};
use airlock::container::{CreateOptions, DeleteOptions, Stdio};
use airlock::podspec::Bundle;
use airlock::sandbox::SandboxOptions;
use std::error::Error;
use std::io::Read;
use std::path::PathBuf;

/// A configuration that runs `args` over `rootfs`; with `pod`, as a further container of that sandbox.
fn bundle(rootfs: &str, args: &[&str], pod: Option<&str>) -> Result<Bundle, Box<dyn Error>> {
    let annotations = match pod {
        None => serde_json::json!({ "io.kubernetes.cri.container-type": "sandbox" }),
        Some(id) => serde_json::json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": id,
        }),
    };
    let spaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| serde_json::json!({ "type": kind }));
    let config = serde_json::json!({
        "ociVersion": "1.2.1",
        "root": { "path": rootfs, "readonly": true },
        "process": { "args": args, "cwd": "/", "env": ["PATH=/bin:/usr/bin"], "user": { "uid": 0, "gid": 0 } },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "annotations": annotations,
        "linux": { "namespaces": spaces },
    });
    Ok(Bundle::from_text(PathBuf::from("/"), config.to_string())?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [binary, rootfs, command @ ..] = words.as_slice() else {
        return Err("usage: parent AIRLOCK ROOTFS COMMAND [ARGUMENT…]".into());
    };
    let rootfs = std::fs::canonicalize(rootfs)?.display().to_string();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let options = || CreateOptions {
        sandbox: SandboxOptions { airlock_binary: Some(binary.into()) },
        ..Default::default()
    };
    let root = std::env::temp_dir().join(format!("airlock-parent-{}", std::process::id()));
    let airlock = Airlock::open(&root)?;

    // The sandbox: its root container only holds the namespaces that the others share.
    airlock.create("pod", &bundle(&rootfs, &["sleep", "1000000"], None)?, options())?;
    let outcome = (|| -> Result<i32, Box<dyn Error>> {
        airlock.start("pod")?;

        // The container: what it prints comes through a descriptor that we donate.
        let (mut output, writer) = std::io::pipe()?;
        let [stdin, ..] = Stdio::null()?.fds;
        let stdio = Stdio { fds: [stdin, writer.try_clone()?.into(), writer.into()] };
        let task = bundle(&rootfs, &command, Some("pod"))?;
        airlock.create("task", &task, CreateOptions { stdio: Some(stdio), ..options() })?;
        airlock.start("task")?;
        let code = airlock.wait("task", WaitTarget::Init)?;
        airlock.delete("task", DeleteOptions { force: true })?;

        let mut text = String::new();
        output.read_to_string(&mut text)?;
        print!("{text}");
        Ok(code)
    })();
    airlock.delete("pod", DeleteOptions { force: true })?;
    std::fs::remove_dir_all(&root)?;
    println!("the container ended with {}", outcome?);
    Ok(())
}
