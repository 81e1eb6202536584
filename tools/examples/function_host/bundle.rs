//! What the sandbox sees of this machine: the programs of its distribution, the packages, the function; all read-only.

use airlock::podspec::Bundle;
use serde_json::{Value, json};
use std::error::Error;
use std::path::{Path, PathBuf};

/// Where this program is, inside.
pub const PROGRAM: &str = "/opt/function_host";
/// Where the packages are, inside.
const PACKAGES: &str = "/opt/packages";
/// Where the function is, inside.
const TASK: &str = "/var/task";
/// Whom a function runs as.
pub const USER: (u32, u32) = (993, 990);

/// Places on this machine that sandboxes are made of.
#[derive(Debug)]
pub struct Files {
    /// An empty root, with places for mounts; removed in the end.
    root: tempfile::TempDir,
    packages: PathBuf,
    function: PathBuf,
    /// Arguments of the runtime, its program first.
    pub runtime: Vec<String>,
}

impl Files {
    /// Looks for all of it.
    pub fn new(
        packages: &Path,
        function: &Path,
        python: &str,
        handler: &str,
    ) -> Result<Self, Box<dyn Error>> {
        let root = tempfile::tempdir()?;
        for place in ["proc", "dev", "sys", "tmp", "opt/packages", "var/task", "usr"] {
            std::fs::create_dir_all(root.path().join(place))?;
        }
        std::fs::write(root.path().join("opt/function_host"), "")?;
        for place in ["bin", "sbin", "lib", "lib64"] {
            // Links into /usr on most distributions.
            match std::fs::read_link(Path::new("/").join(place)) {
                Ok(target) => std::os::unix::fs::symlink(target, root.path().join(place))?,
                Err(_) => std::fs::create_dir(root.path().join(place))?,
            }
        }
        let canonical = |path: &Path| path.canonicalize().map_err(|e| format!("{}: {e}", path.display()));
        Ok(Self {
            packages: canonical(packages)?,
            function: canonical(function)?,
            runtime: [python, "-m", "awslambdaric", handler].map(str::to_owned).into(),
            root,
        })
    }

    /// What a runtime finds in its environment, as AWS documents it; `more` on top.
    pub fn environment(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let all = [
            ("AWS_LAMBDA_RUNTIME_API", crate::runtime_api::ADDRESS),
            ("AWS_LAMBDA_FUNCTION_NAME", "example"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
            ("LAMBDA_TASK_ROOT", TASK),
            ("PYTHONPATH", "/var/task:/opt/packages"),
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("LANG", "C.UTF-8"),
            ("TZ", ":UTC"),
        ];
        all.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// A container over these files that runs `args`, as `container` of a pod or as what a sandbox begins with.
    pub fn bundle(
        &self,
        args: &[String],
        environment: &[(String, String)],
    ) -> Result<Bundle, Box<dyn Error>> {
        let environment: Vec<String> =
            environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let program = std::env::current_exe()?;
        let mut mounts = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=1m"] }),
            json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777", "size=64m"] }),
            bind(Path::new("/usr"), "/usr"),
            bind(&self.packages, PACKAGES),
            bind(&self.function, TASK),
            bind(&program, PROGRAM),
        ];
        for place in ["/bin", "/sbin", "/lib", "/lib64"] {
            if std::fs::symlink_metadata(place).is_ok_and(|m| m.is_dir()) {
                mounts.push(bind(Path::new(place), place));
            }
        }
        let spaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
        let config = json!({
            "ociVersion": "1.2.1",
            "root": { "path": self.root.path(), "readonly": true },
            "process": {
                "args": args, "cwd": TASK, "env": environment, "noNewPrivileges": true,
                "user": { "uid": USER.0, "gid": USER.1 },
            },
            "mounts": mounts,
            "linux": { "namespaces": spaces, "resources": { "devices": [{ "allow": false, "access": "rwm" }] } },
        });
        Ok(Bundle::from_text(self.root.path().to_owned(), config.to_string())?)
    }

    /// What runs in the parent domain: the Runtime API, and `runtime` if it is to be started by that.
    pub fn server(&self, runtime: &[String]) -> Vec<String> {
        [PROGRAM, "--serve"].map(str::to_owned).into_iter().chain(runtime.iter().cloned()).collect()
    }
}

fn bind(source: &Path, place: &str) -> Value {
    json!({ "destination": place, "type": "bind", "source": source, "options": ["rbind", "ro", "nosuid", "nodev"] })
}
