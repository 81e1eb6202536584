//! An image as one tree of names and values in which things are found by what they are, not by where they are stored:
//! processes by pid, descriptors by number, mappings by address.

#![forbid(unsafe_code)]

use super::image::Opened;
use super::{lists, what};
use airlock_loader::checkpoint::pages::{Index, Object};
use airlock_loader::checkpoint::state::{ProcessState, SandboxState};
use airlock_wire::error::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

fn value(of: &impl Serialize) -> Result<Value> {
    serde_json::to_value(of).map_err(|e| Error::failure(format!("show an image as JSON: {e}")))
}

/// The object of a structure without some fields.
fn object(of: &impl Serialize, without: &[&str]) -> Result<Map<String, Value>> {
    let Value::Object(mut map) = value(of)? else { return Ok(Map::new()) };
    without.iter().for_each(|name| drop(map.remove(*name)));
    Ok(map)
}

/// An image as a tree.
#[derive(Debug)]
pub struct View {
    /// Names and values.
    pub tree: Value,
    /// Where in the tree there is something with pages, and what those belong to.
    pub memory: Vec<(String, Object)>,
}

/// The whole image.
pub fn of(image: &Opened) -> Result<View> {
    let (state, index) = (image.state()?, image.index()?);
    let mut metadata =
        object(image.reader.metadata(), &["generation", "created", "clocks", "machine", "containers"])?;
    // What is in the pages is compared, not how they are stored.
    if let Some(Value::Object(pages)) = metadata.get_mut("pages") {
        pages.remove("index");
    }
    let mut containers = Map::new();
    for container in &state.containers {
        let mut map = object(container, &["mounts", "spec"])?;
        let mut mounts = Map::new();
        for mount in &container.mounts {
            mounts.insert(mount.path.clone(), Value::Object(object(mount, &["id", "parent"])?));
        }
        map.insert("mounts".to_owned(), Value::Object(mounts));
        let spec =
            serde_json::from_str(&container.spec).unwrap_or_else(|_| Value::from(container.spec.as_str()));
        map.insert("spec".to_owned(), spec);
        containers.insert(container.name.clone(), Value::Object(map));
    }
    let (mut processes, mut memory) = (Map::new(), Vec::new());
    for p in &state.processes {
        let name = state.containers.get(p.container as usize).map_or("", |c| c.name.as_str());
        let name = format!("{name}/{}", p.pid);
        memory.extend(p.mm.map(|id| (format!("processes/{name}/memory"), Object::Memory(id))));
        processes.insert(name, process(&state, index.as_ref(), p)?);
    }
    let mut shared = Map::new();
    for (id, object) in state.shmems.iter().enumerate() {
        // Those of one name are told apart by their order.
        let name = |n: usize| format!("{:?} {:?} {n}", object.kind, object.name);
        let name = (0..=id).map(name).find(|name| !shared.contains_key(name)).unwrap_or_default();
        memory.push((format!("shared/{name}"), Object::Shared(id as u32)));
        shared.insert(name, Value::Object(self::object(object, &["identity"])?));
    }
    let mut filesystems = Map::new();
    for f in &state.filesystems {
        let name = state.containers.get(f.container as usize).map_or("", |c| c.name.as_str());
        filesystems.insert(
            format!("{name}{}", f.path),
            Value::Object(object(f, &["container", "path", "section"])?),
        );
    }
    let tree = json!({
        "metadata": metadata,
        "clocks": value(&state.clocks)?,
        "machine": value(&state.machine)?,
        "containers": containers,
        "processes": processes,
        "shared": shared,
        "ipc": value(&state.ipc)?,
        "filesystems": filesystems,
        "networks": value(&state.networks)?,
        "warnings": value(&state.warnings)?,
    });
    Ok(View { tree, memory })
}

fn process(state: &SandboxState, index: Option<&Index>, p: &ProcessState) -> Result<Value> {
    let mut map = object(p, &["container", "pid", "mm", "threads"])?;
    let (mut threads, mut descriptors) = (Map::new(), Map::new());
    for thread in &p.threads {
        let mut fields = object(thread, &["tid", "fd_table", "fs", "seccomp"])?;
        fields.insert("comm".to_owned(), Value::from(String::from_utf8_lossy(&thread.comm)));
        if p.mm.is_some() {
            fields.insert("fs".to_owned(), value(&state.fs.get(thread.fs as usize))?);
            for entry in state.fd_tables.get(thread.fd_table as usize).iter().flat_map(|table| &table.fds) {
                descriptors.insert(entry.fd.to_string(), descriptor(state, entry.file, entry.cloexec)?);
            }
        }
        fields.insert("seccomp_filters".to_owned(), Value::from(thread.seccomp.len()));
        threads.insert(thread.tid.to_string(), Value::Object(fields));
    }
    let comm = p.threads.first().map(|thread| String::from_utf8_lossy(&thread.comm).into_owned());
    map.insert("comm".to_owned(), value(&comm)?);
    map.insert("threads".to_owned(), Value::Object(threads));
    map.insert("descriptors".to_owned(), Value::Object(descriptors));
    if let Some((id, mm)) = p.mm.and_then(|id| Some((id, state.mms.get(id as usize)?))) {
        let mut memory = object(mm, &["vmas", "exe"])?;
        let exe = mm.exe.and_then(|id| state.files.get(id as usize));
        memory.insert("executable".to_owned(), value(&exe.map(|file| what::file(state, file).1))?);
        let mut mappings = Map::new();
        for vma in &mm.vmas {
            let mut fields = object(vma, &["start", "end", "kind", "prot", "shared"])?;
            fields.insert("permissions".to_owned(), Value::from(what::permissions(vma)));
            fields.insert("what".to_owned(), Value::from(what::mapping(state, mm, vma)));
            let stored = index.map(|index| lists::stored_of(index, id, vma));
            fields.insert("stored_pages".to_owned(), value(&stored)?);
            mappings.insert(format!("{:x}-{:x}", vma.start, vma.end), Value::Object(fields));
        }
        memory.insert("mappings".to_owned(), Value::Object(mappings));
        map.insert("memory".to_owned(), Value::Object(memory));
    }
    Ok(Value::Object(map))
}

fn descriptor(state: &SandboxState, id: u32, cloexec: bool) -> Result<Value> {
    let Some(file) = state.files.get(id as usize) else { return Ok(Value::Null) };
    let mut map = object(file, &["container"])?;
    let (kind, text) = what::file(state, file);
    map.insert("what".to_owned(), Value::from(format!("{kind}: {text}")));
    map.insert("cloexec".to_owned(), Value::from(cloexec));
    Ok(Value::Object(map))
}
