//! `Cgroups`: control files of the containers' cgroups, through the directories that the sandbox was given.

use airlock_loader::loader::Loader;
use airlock_wire::api::cgroups::{ControlFile, FileResult, ReadControlFiles, Results, WriteControlFiles};
use airlock_wire::error::{Error, Result};
use airlock_wire::registry::Registry;
use std::sync::Arc;

/// The most files of one call.
const MAX_FILES: usize = 1024;
/// The longest value that is written, in bytes: the kernel takes no more than a page.
const MAX_VALUE: usize = 4096;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<ReadControlFiles>(move |_, args| {
        check_count(args.args.len())?;
        Ok(results(args.args.iter().map(|arg| read(&l, &arg.file))))
    });
    let l = loader.clone();
    registry.on::<WriteControlFiles>(move |_, args| {
        check_count(args.args.len())?;
        Ok(results(args.args.iter().map(|arg| write(&l, &arg.file, &arg.value))))
    });
}

fn check_count(count: usize) -> Result<()> {
    if count > MAX_FILES {
        return Err(Error::invalid_argument(format!("{count} files in one call: at most {MAX_FILES}")));
    }
    Ok(())
}

fn results(each: impl Iterator<Item = Result<String>>) -> Results {
    let result = |outcome: Result<String>| match outcome {
        Ok(text) => FileResult { value: text.trim().to_owned(), is_error: false },
        Err(e) => FileResult { value: e.message, is_error: true },
    };
    Results { results: each.map(result).collect() }
}

fn read(loader: &Loader, file: &ControlFile) -> Result<String> {
    let (cid, below) = place(loader, &file.path);
    loader.container(cid)?.cgroup()?.read(&file.controller, below, &file.name)
}

fn write(loader: &Loader, file: &ControlFile, value: &str) -> Result<String> {
    if value.len() > MAX_VALUE {
        return Err(Error::invalid_argument(format!(
            "a value of {} bytes: at most {MAX_VALUE} are written",
            value.len()
        )));
    }
    let (cid, below) = place(loader, &file.path);
    log::info!("cgroup of {cid:?}: {below}/{} = {value:?}", file.name);
    loader.container(cid)?.cgroup()?.write(&file.controller, below, &file.name, value)?;
    Ok(String::new())
}

/// The container whose cgroup a path begins with, and what is left of the path. A first part that is no container's ID is
/// below the root container's cgroup.
fn place<'a>(loader: &'a Loader, path: &'a str) -> (&'a str, &'a str) {
    let path = path.trim_matches('/');
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    if loader.container(first).is_ok() { (first, rest.trim_matches('/')) } else { (loader.id(), path) }
}
