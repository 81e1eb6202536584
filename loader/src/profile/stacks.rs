//! Stacks that were seen on the processor, counted while they come in and named at the end.
#![forbid(unsafe_code)]

use super::flame::Flame;
use super::pprof::{Function, Label, Profile};
use super::samples::Sample;
use crate::procfs::ProcFs;
use crate::stacks::{Files, Names, Space, Where};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

/// How often the memory map of one process is read again, at most.
const READ_AGAIN: Duration = Duration::from_millis(50);
/// Most different stacks that are kept; what comes later counts as lost.
const MOST_STACKS: usize = 1 << 18;

/// A place in a program, not yet named.
#[derive(Debug)]
enum Site {
    Kernel(u64),
    User {
        pid: i32,
        address: u64,
        at: Where,
    },
    /// The process had ended before its memory map was read.
    Gone,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Kernel(u64),
    File(usize, u64),
    Other(i32, u64),
    Gone,
}

/// Where the samples of one profile go.
#[derive(Debug)]
pub struct Seen<'a> {
    procfs: &'a ProcFs,
    files: Files,
    spaces: HashMap<i32, (Instant, Option<Space>)>,
    sites: Vec<Site>,
    by_key: HashMap<Key, u32>,
    threads: HashMap<(i32, i32), Rc<str>>,
    /// By process, its name, and sites from the inside out.
    stacks: HashMap<(i32, Rc<str>, Vec<u32>), u64>,
    /// Samples that are in no stack.
    lost: u64,
}

/// A counted stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The process, in the sandbox's pid namespace.
    pub pid: i32,
    /// Name of the thread's program.
    pub name: String,
    /// Innermost function first.
    pub functions: Vec<Function>,
    /// In how many samples.
    pub count: u64,
}

impl<'a> Seen<'a> {
    /// Nothing yet.
    pub fn new(procfs: &'a ProcFs) -> Self {
        Self {
            procfs,
            files: Files::default(),
            spaces: HashMap::new(),
            sites: Vec::new(),
            by_key: HashMap::new(),
            threads: HashMap::new(),
            stacks: HashMap::new(),
            lost: 0,
        }
    }

    /// Takes in one sample. To be called soon: the process may end, and with it its memory map.
    pub fn add(&mut self, sample: &Sample) {
        let mut sites: Vec<u32> =
            sample.kernel.iter().map(|a| self.site(Key::Kernel(*a), || Site::Kernel(*a))).collect();
        let user = self.walk(sample);
        sites.extend(user);
        let name = self.name(sample);
        let stack = (sample.pid, name, sites);
        if self.stacks.len() >= MOST_STACKS && !self.stacks.contains_key(&stack) {
            self.lost += 1;
            return;
        }
        *self.stacks.entry(stack).or_default() += 1;
    }

    /// A process has another program now.
    pub fn forget(&mut self, pid: i32) {
        self.spaces.remove(&pid);
        self.threads.retain(|(process, _), _| *process != pid);
    }

    /// So many samples were lost on their way.
    pub fn lost(&mut self, more: u64) {
        self.lost += more;
    }

    fn site(&mut self, key: Key, site: impl FnOnce() -> Site) -> u32 {
        let next = self.sites.len() as u32;
        *self.by_key.entry(key).or_insert_with(|| {
            self.sites.push(site());
            next
        })
    }

    fn name(&mut self, sample: &Sample) -> Rc<str> {
        let id = (sample.pid, sample.tid);
        let read = || {
            let name = self.procfs.read_path(&format!("{}/task/{}/comm", sample.pid, sample.tid));
            let name = name.unwrap_or_else(|_| "[ended]".to_owned());
            Rc::from(name.trim_end().replace(char::is_control, "?"))
        };
        self.threads.entry(id).or_insert_with(read).clone()
    }

    fn walk(&mut self, sample: &Sample) -> Vec<u32> {
        let Some(frame) = sample.user else { return Vec::new() };
        let pid = sample.pid;
        let unknown = |space: &Space| matches!(space.find(frame.ip), Where::Nowhere);
        let stale = match self.spaces.get(&pid) {
            None => true,
            // It has mapped more since, or is another process.
            Some((read, space)) => space.as_ref().is_none_or(unknown) && read.elapsed() > READ_AGAIN,
        };
        if stale {
            let space = Space::read(self.procfs, pid, &mut self.files).ok();
            self.spaces.insert(pid, (Instant::now(), space));
        }
        let Some((_, Some(space))) = self.spaces.get_mut(&pid) else {
            return vec![self.site(Key::Gone, || Site::Gone)];
        };
        let (addresses, _) = space.unwind(frame, |address| sample.word(address));
        let found: Vec<(u64, Where)> = addresses.into_iter().map(|a| (a, space.find(a))).collect();
        let site = |(address, at): (u64, Where)| {
            let key = match &at {
                Where::File(elf, at) => Key::File(Rc::as_ptr(elf).addr(), *at),
                _ => Key::Other(pid, address),
            };
            self.site(key, || Site::User { pid, address, at })
        };
        found.into_iter().map(site).collect()
    }

    /// All stacks with names, those seen most first, and how many samples were lost.
    pub fn finish(self) -> (Vec<Counted>, u64) {
        let mut names = Names::default();
        let any_kernel = self.sites.iter().any(|s| matches!(s, Site::Kernel(_)));
        let kernel = if any_kernel { kernel_symbols(self.procfs) } else { Vec::new() };
        let named = |site: &Site| match site {
            Site::Gone => plain("[process ended before it could be looked at]"),
            Site::Kernel(address) => kernel_function(&kernel, *address),
            Site::User { pid, address, at } => {
                let place = names.of(self.procfs, *pid, at, *address);
                Function { name: place.function, file: place.file, offset: place.offset }
            }
        };
        let functions: Vec<Function> = self.sites.iter().map(named).collect();
        let mut all: Vec<Counted> = self
            .stacks
            .into_iter()
            .map(|((pid, name, sites), count)| Counted {
                pid,
                name: name.to_string(),
                functions: sites.iter().filter_map(|s| functions.get(*s as usize).cloned()).collect(),
                count,
            })
            .collect();
        all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.pid.cmp(&b.pid)));
        (all, self.lost)
    }
}

fn plain(name: &str) -> Function {
    Function { name: name.to_owned(), ..Function::default() }
}

/// Functions of the kernel by address; none where their addresses are hidden (`kernel.kptr_restrict`).
fn kernel_symbols(procfs: &ProcFs) -> Vec<(u64, String)> {
    let Ok(file) = procfs.read_whole_path("kallsyms") else { return Vec::new() };
    let parse = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let address = u64::from_str_radix(fields.next()?, 16).ok().filter(|a| *a != 0)?;
        let code = matches!(fields.next()?, "t" | "T" | "w" | "W");
        code.then(|| fields.next().map(|name| (address, name.to_owned()))).flatten()
    };
    let mut all: Vec<_> = String::from_utf8_lossy(&file).lines().filter_map(parse).collect();
    all.sort_unstable();
    all
}

fn kernel_function(symbols: &[(u64, String)], address: u64) -> Function {
    let i = symbols.partition_point(|(start, _)| *start <= address);
    match i.checked_sub(1).and_then(|i| symbols.get(i)) {
        // As perf marks them, so that a flame graph can colour them.
        Some((start, name)) => {
            Function { name: format!("{name}_[k]"), file: "[kernel]".to_owned(), offset: address - start }
        }
        None => plain("[kernel]"),
    }
}

/// A pprof profile of stacks, of which each sample stands for `period` nanoseconds of processor time.
pub fn to_pprof(stacks: &[Counted], period: u64, begun: SystemTime, took: Duration) -> Profile {
    const CPU: (&str, &str) = ("cpu", "nanoseconds");
    let mut profile = Profile::new(&[("samples", "count"), CPU], (CPU, period as i64));
    profile.set_time(begun, took);
    for stack in stacks {
        let values = [stack.count as i64, (stack.count * period) as i64];
        let labels =
            [("process", Label::Text(stack.name.clone())), ("pid", Label::Number(i64::from(stack.pid)))];
        profile.add(&stack.functions, &values, &labels);
    }
    profile
}

/// A flame graph of stacks, with the name of each program at the bottom.
pub fn to_flame(stacks: &[Counted]) -> Flame {
    let mut flame = Flame::default();
    for stack in stacks {
        let functions = stack.functions.iter().rev().map(|f| f.name.as_str());
        flame.add(std::iter::once(stack.name.as_str()).chain(functions), stack.count);
    }
    flame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_functions_by_address() {
        let symbols = vec![(0x100, "first".to_owned()), (0x200, "second".to_owned())];
        assert_eq!(kernel_function(&symbols, 0x1ff).name, "first_[k]");
        assert_eq!(kernel_function(&symbols, 0x200).offset, 0);
        assert_eq!(kernel_function(&symbols, 0x10).name, "[kernel]");
    }
}
