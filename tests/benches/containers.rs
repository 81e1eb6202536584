//! What the container API costs over the bare cgroup files: `cargo bench -p airlock-tests --bench containers [create] [list]`
//! (as root, cgroup v1).
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::bench::{Alternative, Goal, interleave, load, report, run, score};
use airlock_tests::machine::Machine;
use airlock_wire::api::container::api::{Create, CreateArgs, Destroy};
use airlock_wire::api::container::spec::{ContainerSpec, CpuSpec, MemorySpec};
use airlock_wire::api::container::{ContainerName, ListArgs, ListPolicy, ListProcesses};
use airlock_wire::api::types::Json;
use airlock_wire::client::{Client, Dialect};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Containers of the listing, 10 of them at each of 100 places.
const CONTAINERS: usize = 1000;
/// Processes in each, a shell and sleepers.
const IN_EACH: usize = 10;

fn main() {
    run(&[("create", create_and_destroy), ("list", list_processes)]);
}

fn client(machine: &Machine) -> Client {
    airlock::client::connect(&machine.socket(), Dialect::Binary).unwrap()
}

/// The directories and files of a container that isolates memory, processors and children, by hand.
fn bare(machine: &Machine) -> bool {
    let make = |hierarchy: &str| {
        let dir = machine.dir(hierarchy, "/bare");
        fs::create_dir(&dir).unwrap();
        dir
    };
    let write = |dir: &Path, file: &str, value: &str| fs::write(dir.join(file), value).unwrap();
    let freezer = make("freezer");
    let memory = make("memory");
    write(&memory, "memory.limit_in_bytes", "33554432");
    let cpu = make("cpu");
    write(&cpu, "cpu.shares", "512");
    let cpuset = make("cpuset");
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let inherited = fs::read_to_string(machine.dir("cpuset", "/").join(file)).unwrap();
        write(&cpuset, file, inherited.trim());
    }
    let cpuacct = make("cpuacct");
    let pids = make("pids");
    write(&pids, "pids.max", "20");
    for dir in [pids, cpuacct, cpuset, cpu, memory, freezer] {
        fs::remove_dir(dir).unwrap();
    }
    true
}

fn create_and_destroy() {
    println!("\nload {}", load());
    let machine = Machine::new();
    let mut client = client(&machine);
    let spec = ContainerSpec {
        cpu: Some(CpuSpec { limit: Some(500), ..CpuSpec::default() }),
        memory: Some(MemorySpec { limit: Some(33_554_432), ..MemorySpec::default() }),
        children_limit: Some(20),
        ..ContainerSpec::default()
    };
    let create = Json(CreateArgs { name: "/made".to_owned(), spec });
    let name = ContainerName { name: "/made".to_owned() };
    let by_api = || client.call::<Create>(&create, &[]).is_ok() && client.call::<Destroy>(&name, &[]).is_ok();
    let mut both =
        [Alternative::new("Create + Destroy", by_api), Alternative::new("bare files", || bare(&machine))];
    let times = interleave(&mut both, 300, Duration::from_millis(1));
    report("Create and Destroy of a container, against its bare cgroup files", &times);
    let ratio = times[0].median().as_secs_f64() / times[1].median().as_secs_f64();
    score("Create + Destroy over bare mkdir, write and rmdir", ratio, "×", Goal::AtMost(2.0));
}

/// A shell in a container with sleepers as its children.
fn populate(dir: &Path) -> Child {
    let script = format!(
        "echo $$ > {}/cgroup.procs && for i in $(seq {}); do sleep 100000 & done; echo; wait",
        dir.display(),
        IN_EACH - 1
    );
    let mut shell = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.as_mut().unwrap()), &mut line)
        .unwrap();
    shell
}

fn list_processes() {
    let machine = Machine::new();
    let mut client = client(&machine);
    let mut files: Vec<PathBuf> = Vec::with_capacity(CONTAINERS);
    let mut shells = Vec::with_capacity(CONTAINERS);
    for n in 0..CONTAINERS {
        let name = if n % 10 == 0 { format!("/l{n}") } else { format!("/l{}/m{n}", n - n % 10) };
        let create = Json(CreateArgs { name: name.clone(), spec: ContainerSpec::default() });
        client.call::<Create>(&create, &[]).unwrap();
        let dir = machine.dir("freezer", &name);
        shells.push(populate(&dir));
        files.push(dir.join("cgroup.procs"));
    }
    let list = ListArgs { name: "/".to_owned(), policy: ListPolicy::ListRecursive };
    let count = client.call::<ListProcesses>(&list, &[]).unwrap().value.len();
    println!("\n{count} processes in {CONTAINERS} containers, load {}", load());
    let by_hand = || {
        let mut pids: Vec<i32> = Vec::new();
        for file in &files {
            let text = fs::read_to_string(file).unwrap();
            pids.extend(text.lines().map(|line| line.parse::<i32>().unwrap()));
        }
        pids.sort_unstable();
        pids.len() == count
    };
    let times = {
        let by_api =
            || client.call::<ListProcesses>(&list, &[]).is_ok_and(|reply| reply.value.len() == count);
        let mut both =
            [Alternative::new("ListProcesses", by_api), Alternative::new("reading the files", by_hand)];
        interleave(&mut both, 100, Duration::from_millis(1))
    };
    report("ListProcesses of everything, against reading cgroup.procs of every container", &times);
    let ratio = times[0].median().as_secs_f64() / times[1].median().as_secs_f64();
    score("ListProcesses over reading the cgroup files", ratio, "×", Goal::AtMost(1.5));
    for n in (0..CONTAINERS).step_by(10) {
        client.call::<Destroy>(&ContainerName { name: format!("/l{n}") }, &[]).unwrap();
    }
    shells.iter_mut().for_each(|shell| drop(shell.wait()));
}
