//! Device rules: what an OCI list of them means, and how v1 cgroups are told.
//!
//! Of all rules that name a device and an access, the last one decides; without one the device is denied. v2 has
//! no files for this: [`super::devices_bpf`] makes a program of the rules. v1 keeps a default and a set of
//! exceptions, which cannot express a hole in a wildcard rule: such lists are refused, as the kernel would ignore
//! the hole without a word.
#![forbid(unsafe_code)]

use crate::cgroup::files::{Files, explain, set};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Access to a device, as bits of `BPF_DEVCG_ACC_*` (linux/bpf.h).
pub type Access = u8;
/// Make a device node.
pub const MKNOD: Access = 1;
/// Open it for reading.
pub const READ: Access = 2;
/// Open it for writing.
pub const WRITE: Access = 4;
/// All of them.
pub const ALL: Access = MKNOD | READ | WRITE;

/// Kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Node {
    /// Block device.
    Block,
    /// Character device.
    Char,
}

impl Node {
    fn letter(self) -> char {
        match self {
            Self::Block => 'b',
            Self::Char => 'c',
        }
    }
}

/// One rule: `None` is a wildcard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Whether the access is given or taken.
    pub allow: bool,
    /// Kind; `None` for both.
    pub node: Option<Node>,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// Which accesses; never 0.
    pub access: Access,
}

impl Rule {
    const fn char(major: u32, minor: Option<u32>) -> Self {
        Self { allow: true, node: Some(Node::Char), major: Some(major), minor, access: ALL }
    }
    const fn mknod(node: Node) -> Self {
        Self { allow: true, node: Some(node), major: None, minor: None, access: MKNOD }
    }
    /// Whether the rule speaks of every device and every access.
    pub fn covers_all(&self) -> bool {
        self.node.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

/// Devices that every container may use (OCI runtime spec, "Default Devices"): they follow the spec's own rules, so
/// that the usual leading `deny all` leaves them. Nodes of any device may be made, not used. The system's console
/// (5:1) is not among them: a container's `/dev/console` is a pty.
pub const DEFAULT: [Rule; 10] = [
    Rule::mknod(Node::Char),
    Rule::mknod(Node::Block),
    Rule::char(1, Some(3)), // null
    Rule::char(1, Some(5)), // zero
    Rule::char(1, Some(7)), // full
    Rule::char(1, Some(8)), // random
    Rule::char(1, Some(9)), // urandom
    Rule::char(5, Some(0)), // tty
    Rule::char(5, Some(2)), // ptmx
    Rule::char(136, None),  // pts
];

/// Reads the spec's rules and adds [`DEFAULT`].
///
/// # Errors
/// [`Kind::InvalidArgument`] naming the rule: an unknown access letter, an allow rule without access, a number out
/// of range, a FIFO.
pub fn rules(spec: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let mut rules = Vec::with_capacity(spec.len() + DEFAULT.len());
    for (index, rule) in spec.iter().enumerate() {
        let bad = |why: String| Error::invalid_argument(format!("linux.resources.devices[{index}]: {why}"));
        let node = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(Node::Block),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(Node::Char),
            Some(LinuxDeviceType::P) => return Err(bad("type p: a FIFO is no device".into())),
        };
        let number = |what: &str, n: Option<i64>| match n {
            None | Some(-1) => Ok(None),
            Some(n) => match u32::try_from(n) {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(bad(format!("{what} {n} is out of range (-1 for any, else 0 to 4294967295)"))),
            },
        };
        let access = match rule.access().as_deref() {
            None | Some("") if !rule.allow() => ALL,
            None | Some("") => return Err(bad("access is missing: give letters of \"rwm\"".into())),
            Some(text) => {
                let mut access = 0;
                for letter in text.chars() {
                    access |= match letter {
                        'r' => READ,
                        'w' => WRITE,
                        'm' => MKNOD,
                        _ => return Err(bad(format!("access {text:?} has letters other than \"rwm\""))),
                    };
                }
                access
            }
        };
        rules.push(Rule {
            allow: rule.allow(),
            node,
            major: number("major", rule.major())?,
            minor: number("minor", rule.minor())?,
            access,
        });
    }
    rules.extend(DEFAULT);
    Ok(rules)
}

/// The rules that a v1 devices cgroup has, as its `devices.list` tells them: one that allows by default hides what it denies.
///
/// # Errors
/// As reading; [`Kind::Failure`] for a list that is not understood.
pub fn listed(files: &dyn Files) -> Result<Vec<Rule>> {
    let list = files.read("devices.list").map_err(|e| explain("reading devices.list", "devices.list", e))?;
    let policy = Policy::parse(&list)
        .ok_or_else(|| Error::failure(format!("devices.list is not understood: {:?}", list.trim())))?;
    let everything = Rule { allow: policy.default_allow, node: None, major: None, minor: None, access: ALL };
    let exception = |(key, access): (&Key, &Access)| Rule {
        allow: !policy.default_allow,
        node: Some(key.node),
        major: key.major,
        minor: key.minor,
        access: *access,
    };
    Ok(std::iter::once(everything).chain(policy.exceptions.iter().map(exception)).collect())
}

/// A device or a wildcard set of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Kind.
    pub node: Node,
    /// Major number, `None` for any.
    pub major: Option<u32>,
    /// Minor number, `None` for any.
    pub minor: Option<u32>,
}

impl Key {
    fn covers(&self, other: &Self) -> bool {
        let dimension = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        self.node == other.node && dimension(self.major, other.major) && dimension(self.minor, other.minor)
    }
    fn overlap(&self, other: &Self) -> Option<Self> {
        let dimension = |a: Option<u32>, b: Option<u32>| match (a, b) {
            (None, x) | (x, None) => Some(x),
            (a, b) if a == b => Some(a),
            _ => None,
        };
        (self.node == other.node).then_some(())?;
        Some(Self {
            node: self.node,
            major: dimension(self.major, other.major)?,
            minor: dimension(self.minor, other.minor)?,
        })
    }
    /// As `devices.allow` takes it.
    fn text(&self, access: Access) -> String {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let mut letters = String::new();
        for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
            if access & bit != 0 {
                letters.push(letter);
            }
        }
        format!("{} {}:{} {letters}", self.node.letter(), number(self.major), number(self.minor))
    }
}

/// The state of a v1 devices cgroup: a default and what differs from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// What happens to devices without an exception.
    pub default_allow: bool,
    /// The exceptions: allowed accesses, or denied ones when `default_allow`.
    pub exceptions: BTreeMap<Key, Access>,
}

impl Policy {
    /// The policy that a list of rules amounts to.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a hole in a wildcard rule.
    pub fn new(rules: &[Rule]) -> Result<Self> {
        let mut policy = Self::default();
        for rule in rules {
            if rule.covers_all() {
                policy = Self { default_allow: rule.allow, exceptions: BTreeMap::new() };
                continue;
            }
            let both = [Node::Block, Node::Char];
            for node in both.into_iter().filter(|n| rule.node.is_none_or(|r| r == *n)) {
                let key = Key { node, major: rule.major, minor: rule.minor };
                if rule.allow == policy.default_allow {
                    policy.remove(key, rule.access)?;
                } else {
                    *policy.exceptions.entry(key).or_default() |= rule.access;
                }
            }
        }
        policy.close();
        Ok(policy)
    }

    fn remove(&mut self, key: Key, access: Access) -> Result<()> {
        for (held, bits) in &mut self.exceptions {
            if *bits & access == 0 || held.overlap(&key).is_none() {
                continue;
            }
            if !key.covers(held) {
                return Err(Error::unsupported(format!(
                    "linux.resources.devices: {} after {}: v1 device cgroups cannot make a hole in a wildcard rule; \
                     list the devices one by one, or boot with cgroup v2",
                    key.text(access),
                    held.text(*bits)
                )));
            }
            *bits &= !access;
        }
        self.exceptions.retain(|_, bits| *bits != 0);
        Ok(())
    }

    /// The kernel wants one exception to hold all accesses of an open(2): gives each what wider ones hold too.
    fn close(&mut self) {
        if self.default_allow {
            return;
        }
        let given: Vec<(Key, Access)> = self.exceptions.iter().map(|(k, a)| (*k, *a)).collect();
        for (index, (a, _)) in given.iter().enumerate() {
            for (b, _) in given.iter().skip(index + 1) {
                let both = a.overlap(b);
                if let Some(key) = both.filter(|k| k != a && k != b) {
                    self.exceptions.entry(key).or_default();
                }
            }
        }
        for (key, access) in &mut self.exceptions {
            for (wider, bits) in given.iter().filter(|(w, _)| w.covers(key)) {
                // A narrow rule that a wider one contains needs nothing from it.
                if wider != key {
                    *access |= bits;
                }
            }
        }
    }

    /// Reads `devices.list`. `None` when a line is not understood.
    fn parse(list: &str) -> Option<Self> {
        let mut policy = Self::default();
        for line in list.lines() {
            let mut words = line.split_whitespace();
            let (kind, device, letters) = (words.next()?, words.next()?, words.next()?);
            let node = match kind {
                "a" => return Some(Self { default_allow: true, exceptions: BTreeMap::new() }),
                "b" => Node::Block,
                "c" => Node::Char,
                _ => return None,
            };
            let number = |text: &str| match text {
                "*" => Some(None),
                n => n.parse().ok().map(Some),
            };
            let (major, minor) = device.split_once(':')?;
            let key = Key { node, major: number(major)?, minor: number(minor)? };
            let access = letters.chars().fold(0, |a, l| {
                a | match l {
                    'r' => READ,
                    'w' => WRITE,
                    'm' => MKNOD,
                    _ => 0,
                }
            });
            *policy.exceptions.entry(key).or_default() |= access;
        }
        Some(policy)
    }
}

/// Writes the rules to a v1 devices cgroup. Only what differs is written when the cgroup denies by default already,
/// so that an update does not disturb running programs.
///
/// # Errors
/// [`Kind::Permission`] when the parent cgroup forbids a device that is to be allowed, [`Kind::Unsupported`] for
/// rules that v1 cannot express.
pub fn apply_v1(files: &dyn Files, rules: &[Rule]) -> Result<()> {
    let target = Policy::new(rules)?;
    let list = files.read("devices.list").map_err(|e| explain("reading devices.list", "devices.list", e))?;
    let current = Policy::parse(&list);
    // A permissive cgroup lists "a *:* rwm" and hides its exceptions: start anew.
    let base = match current {
        Some(current) if !current.default_allow && !target.default_allow => current.exceptions,
        _ => {
            let file = if target.default_allow { "devices.allow" } else { "devices.deny" };
            set(files, file, "a")?;
            BTreeMap::new()
        }
    };
    let (add, remove) = if target.default_allow {
        ("devices.deny", "devices.allow")
    } else {
        ("devices.allow", "devices.deny")
    };
    let keys: BTreeSet<&Key> = base.keys().chain(target.exceptions.keys()).collect();
    for (file, from, to) in [(add, &base, &target.exceptions), (remove, &target.exceptions, &base)] {
        let mut lines = Vec::new();
        for key in &keys {
            let (from, to) = (from.get(key).unwrap_or(&0), to.get(key).unwrap_or(&0));
            if to & !from != 0 {
                lines.push(key.text(to & !from));
            }
        }
        files.write_each(file, &lines).map_err(|(index, e)| {
            refused(lines.get(index).map(String::as_str).unwrap_or_default(), file, e)
        })?;
    }
    Ok(())
}

fn refused(rule: &str, file: &str, errno: Errno) -> Error {
    match errno {
        Errno::EPERM => Error::new(
            Kind::Permission,
            format!(
                "cgroup: writing {rule:?} to {file}: the cgroup above does not have that device itself, or this \
                 process lacks CAP_SYS_ADMIN"
            ),
        ),
        e => explain(&format!("writing {rule:?} to {file}"), file, e),
    }
}

#[cfg(test)]
#[path = "devices_tests.rs"]
pub(super) mod tests;
