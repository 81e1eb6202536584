//! `fscheckpoint`: filesystems of a sandbox into an image.

#![forbid(unsafe_code)]

use crate::cli::FscheckpointArgs;
use crate::global::Global;
use airlock_wire::api::container_manager::FsPath;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Saves them.
pub fn run(global: &Global, args: FscheckpointArgs) -> Result<ExitCode> {
    let paths = args.path.iter().map(|text| path(text)).collect::<Result<_>>()?;
    let airlock = global.airlock()?;
    airlock.fscheckpoint(&args.id, &args.image_path, paths, args.leave_running).map(|()| ExitCode::SUCCESS)
}

/// Reads `[CONTAINER:]PATH`.
fn path(text: &str) -> Result<FsPath> {
    let (container, path) = match text.split_once(':') {
        Some((container, path)) if !container.contains('/') => (container, path),
        _ => ("", text),
    };
    if !path.starts_with('/') && path != "all-tmpfs" {
        return Err(Error::invalid_argument(format!(
            "--path {text}: write [CONTAINER:]PATH with an absolute path, or all-tmpfs"
        )));
    }
    Ok(FsPath { container_name: container.to_owned(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_may_name_a_container() {
        let is = |text: &str, container: &str, at: &str| {
            let read = path(text).unwrap();
            assert_eq!((read.container_name.as_str(), read.path.as_str()), (container, at));
        };
        is("/", "", "/");
        is("web:/data", "web", "/data");
        is("/a:b", "", "/a:b");
        is("web:all-tmpfs", "web", "all-tmpfs");
        assert!(path("data").is_err() && path("").is_err() && path("web:").is_err());
    }
}
