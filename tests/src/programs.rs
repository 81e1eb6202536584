//! Real programs in containers: the host's own, seen read-only, driven by those of `tests/programs`.
use crate::oci::mount;
use crate::{Bundle, unique, which, workspace};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a container of [`host_bundle`] finds programs.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A bundle that runs `args` on the host's programs and libraries, with `tests/programs` as `/programs` and a tmpfs of its
/// own as `/data`. It has no other place to write to but `/tmp`, so that several containers can be made of one image.
pub fn host_bundle(args: &[&str], edit: impl FnOnce(&mut Value)) -> Bundle {
    let bundle = Bundle::with(args, |config| {
        for name in ["usr", "bin", "sbin", "lib", "lib64", "etc/alternatives", "etc/ssl"] {
            // Links are followed here: what they lead to may be called otherwise in the container.
            if let Ok(source) = Path::new("/").join(name).canonicalize() {
                bind(config, &format!("/{name}"), &source);
            }
        }
        for entry in std::fs::read_dir("/etc").unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("java-") {
                bind(config, &format!("/etc/{name}"), &entry.path());
            }
        }
        bind(config, "/programs", &workspace().join("tests/programs"));
        for place in ["/data", "/tmp"] {
            mount(config, place, "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=1777", "size=2g"]);
        }
        config["process"]["env"] = json!([PATH, "HOME=/data", "LC_ALL=C", "PYTHONDONTWRITEBYTECODE=1"]);
        // Some of these programs would bring the machine down if something went wrong with them.
        config["linux"]["resources"]["pids"] = json!({"limit": 1000});
        // What a sandbox has open is opened by one process at a restore, which may have no more either.
        config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}]);
        edit(config);
    });
    // These are folders here, not links.
    for name in ["sbin", "lib", "lib64", "usr", "programs", "data"] {
        std::fs::create_dir_all(bundle.rootfs().join(name)).unwrap();
    }
    bundle
}

fn bind(config: &mut Value, place: &str, source: &Path) {
    mount(config, place, "bind", source.to_str().unwrap(), &["rbind", "ro"]);
}

/// [`host_bundle`] that runs a driver of `tests/programs` with python3, for a user who is not root.
pub fn python(driver: &str, args: &[&str]) -> Bundle {
    let script = format!("/programs/{driver}.py");
    let mut all = vec!["/usr/bin/python3", script.as_str()];
    all.extend(args);
    host_bundle(&all, |config| config["process"]["user"] = json!({"uid": 1000, "gid": 1000}))
}

/// The first of these programs that containers would not find.
pub fn missing<'a>(programs: &[&'a str]) -> Option<&'a str> {
    let there = |name: &str| PATH[5..].split(':').any(|dir| Path::new(dir).join(name).is_file());
    programs.iter().find(|name| !there(name)).copied()
}

/// Skips the calling test unless it runs as root and containers find all named programs.
#[macro_export]
macro_rules! need_inside {
    ($($program:literal),* $(,)?) => {{
        $crate::need!("busybox");
        if let Some(program) = $crate::programs::missing(&[$($program),*]) {
            $crate::skip!("needs the program {program}");
        }
    }};
}

/// A folder with what a compiler made of a file of `tests/programs`; `compiler` gets the source and the folder.
///
/// # Panics
/// When it does not compile.
pub fn compiled(source: &str, compiler: impl FnOnce(&Path, &Path) -> Command) -> PathBuf {
    let dir = workspace().join("target/programs");
    std::fs::create_dir_all(&dir).unwrap();
    let made = dir.join(source.replace('.', "-"));
    let source = workspace().join("tests/programs").join(source);
    let age = |p: &Path| p.metadata().and_then(|m| m.modified()).ok();
    if age(&made).is_some_and(|m| age(&source).is_some_and(|s| m > s)) {
        return made;
    }
    // Tests run at the same time, and in several processes.
    let fresh = dir.join(unique("compiling"));
    std::fs::create_dir(&fresh).unwrap();
    let out = compiler(&source, &fresh).output().unwrap();
    assert!(out.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&out.stderr));
    let _ = std::fs::remove_dir_all(&made);
    if std::fs::rename(&fresh, &made).is_err() {
        // Another one was faster.
        std::fs::remove_dir_all(&fresh).unwrap();
    }
    made
}

/// Shows a folder to the container, read-only.
pub fn show(bundle: &Bundle, place: &str, source: &Path) {
    let mut config = bundle.config();
    bind(&mut config, place, source);
    bundle.write_config(&config);
    std::fs::create_dir_all(bundle.rootfs().join(&place[1..])).unwrap();
}

/// The folder of PostgreSQL's programs, of the newest version.
pub fn postgresql() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let newest = versions.max_by_key(|e| e.file_name().to_string_lossy().parse().unwrap_or(0))?;
    Some(newest.path().join("bin")).filter(|dir| dir.join("postgres").is_file())
}

/// A rust compiler.
pub fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| which("rustc").unwrap_or("rustc".into()).into()))
}
