//! `Cgroups`: control files of the containers' cgroups (gVisor's `pkg/sentry/control/cgroups.go`).

use serde::{Deserialize, Serialize};

crate::methods! {
    receiver "Cgroups", from "gVisor pkg/sentry/control/cgroups.go; seed 001";
    /// Reads control files of the containers' cgroups, one result for each, in order.
    ReadControlFiles: ReadArgs => Results, errors "more than 1024 files; otherwise what fails is a result with `is_error`: an unknown controller, a cgroup that is not there, `no such control file`, a path or name that leaves the sandbox's cgroups";
    /// Writes control files of the containers' cgroups, one result for each, in order.
    WriteControlFiles: WriteArgs => Results, errors "more than 1024 files; otherwise what fails is a result with `is_error`, as in ReadControlFiles; also a value that the kernel refuses, and files that move processes or run programs on the host";
}

/// Names a control file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControlFile {
    /// A controller (`memory`, `cpuacct`), which picks the hierarchy in v1 and must belong to `name` in v2; empty or
    /// `cgroup` for the files that each cgroup has.
    pub controller: String,
    /// The cgroup: `/` is the root container's, `/<id>` that of container `<id>`, and what follows is below it.
    pub path: String,
    /// The file (`memory.limit_in_bytes`).
    pub name: String,
}

/// One file to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadArg {
    /// The file.
    pub file: ControlFile,
}

/// Argument of [`ReadControlFiles`]: at most 1024 files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadArgs {
    /// The files.
    pub args: Vec<ReadArg>,
}

/// One file to write.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WriteArg {
    /// The file.
    pub file: ControlFile,
    /// What to write, with one write(2).
    pub value: String,
}

/// Argument of [`WriteControlFiles`]: at most 1024 files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WriteArgs {
    /// The files.
    pub args: Vec<WriteArg>,
}

/// What came of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileResult {
    /// The file's text without white space around it (empty after a write), or what went wrong.
    pub value: String,
    /// It went wrong.
    pub is_error: bool,
}

/// Result of both methods, in the order of the argument.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Results {
    /// One for each file.
    pub results: Vec<FileResult>,
}
