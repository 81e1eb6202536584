#![forbid(unsafe_code)]
//! What a profile means, call by call: the step between names and instructions.
//!
//! Precedence is libseccomp's: a rule without conditions decides its call whatever else the profile says of it,
//! and of several such rules the first; only where there is none are rules with conditions tried, here in the
//! profile's order (libseccomp leaves the order of overlapping conditions undefined).

use super::arch::{Abi, Multiplexed};
use super::syscalls::{self, Call, NUMBERS};
use std::collections::HashMap;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Compare {
    /// Equal under the mask.
    Eq,
    /// Not equal.
    Ne,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
}

/// One comparison of an argument, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    /// Which argument, 0 to 5.
    pub arg: u8,
    /// The comparison.
    pub op: Compare,
    /// Bits of the argument that count; all of them unless `op` is [`Compare::Eq`].
    pub mask: u64,
    /// What the argument is compared with; has no bit outside `mask`.
    pub value: u64,
}

impl Condition {
    /// `arg == value` on the bits of `mask`.
    pub(super) fn masked(arg: u8, mask: u64, value: u64) -> Self {
        // Bits of the value outside the mask are ignored, as libseccomp does: otherwise nothing could match.
        Self { arg, op: Compare::Eq, mask, value: value & mask }
    }

    /// Any comparison of all 64 bits.
    pub(super) fn plain(arg: u8, op: Compare, value: u64) -> Self {
        Self { arg, op, mask: u64::MAX, value }
    }

    /// This condition as `abi` sees it; `None` if it holds for every value.
    fn on(self, abi: Abi) -> Option<Self> {
        let keep = if abi.compares_low_half() { u64::from(u32::MAX) } else { u64::MAX };
        (self.mask & keep != 0).then_some(self)
    }
}

/// An action and what must hold for it: all of the conditions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    /// Not empty; in the profile's order.
    pub conditions: Vec<Condition>,
    /// A `SECCOMP_RET_*` value with its data.
    pub action: u32,
}

/// What happens to one call number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    /// Always this `SECCOMP_RET_*` value.
    Action(u32),
    /// The rules of [`Policy::lists`] under this index, in order, else the default action.
    Rules(u32),
}

/// All numbers of one ABI.
#[derive(Debug)]
pub(super) struct AbiPolicy {
    /// The ABI.
    pub abi: Abi,
    /// By table number (without [`Abi::base`]).
    pub outcomes: Vec<Outcome>,
    /// Highest number that the profile names, whatever it says of it.
    highest: u16,
}

/// A profile, resolved.
#[derive(Debug)]
pub(super) struct Policy {
    /// Action of everything that no rule decides.
    pub default: u32,
    /// The covered ABIs, native first; calls of any other get [`BAD_ARCH`].
    pub abis: Vec<AbiPolicy>,
    /// Every distinct rule.
    pub rules: Vec<Rule>,
    /// Lists of indices into `rules`.
    pub lists: Vec<Vec<u32>>,
    rule_ids: HashMap<Rule, u32>,
}

/// What a call of an ABI gets that the profile does not cover: libseccomp's default, which runc keeps.
pub(super) const BAD_ARCH: u32 = libc::SECCOMP_RET_KILL_THREAD;

const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

impl Policy {
    /// A policy without rules.
    pub(super) fn new(default: u32, abis: impl IntoIterator<Item = Abi>) -> Self {
        let outcomes = vec![Outcome::Action(default); NUMBERS];
        let abis =
            abis.into_iter().map(|abi| AbiPolicy { abi, outcomes: outcomes.clone(), highest: 0 }).collect();
        Self { default, abis, rules: Vec::new(), lists: Vec::new(), rule_ids: HashMap::new() }
    }

    /// Adds a rule for `call`. A rule that says what the default says anyway is dropped, as runc does, but still
    /// counts as naming the call.
    pub(super) fn add(&mut self, call: &Call, conditions: &[Condition], action: u32) {
        for at in 0..self.abis.len() {
            let abi = self.abis[at].abi;
            if let Some(number) = call.number(abi.column()) {
                self.abis[at].highest = self.abis[at].highest.max(number);
                if action != self.default {
                    self.add_number(at, number, conditions, action);
                }
            }
            if abi == Abi::X86 && action != self.default {
                self.add_multiplexed(at, call, conditions, action);
            }
        }
    }

    /// i386 programs reach sockets and System V IPC through one call each as well. Other conditions on the first
    /// argument cannot be checked there (arguments are in memory) and are dropped, as libseccomp does.
    fn add_multiplexed(&mut self, at: usize, call: &Call, conditions: &[Condition], action: u32) {
        let Some(by) = Multiplexed::of(call.multiplexed) else { return };
        let Some(number) = syscalls::lookup(by.by).and_then(|c| c.number(Abi::X86.column())) else { return };
        let mut all = vec![Condition::masked(0, by.mask, by.code)];
        all.extend(conditions.iter().filter(|c| c.arg != 0));
        self.add_number(at, number, &all, action);
    }

    fn add_number(&mut self, at: usize, number: u16, conditions: &[Condition], action: u32) {
        let abi = self.abis[at].abi;
        let number = usize::from(number);
        let conditions: Vec<Condition> = conditions.iter().filter_map(|c| c.on(abi)).collect();
        let undecided = Outcome::Action(self.default);
        let list = match self.abis[at].outcomes[number] {
            _ if conditions.is_empty() => {
                if !matches!(self.abis[at].outcomes[number], Outcome::Action(a) if a != self.default) {
                    self.abis[at].outcomes[number] = Outcome::Action(action);
                }
                return;
            }
            Outcome::Rules(list) => list,
            outcome if outcome == undecided => {
                let list = self.lists.len() as u32;
                self.lists.push(Vec::new());
                self.abis[at].outcomes[number] = Outcome::Rules(list);
                list
            }
            Outcome::Action(_) => return,
        };
        let id = self.rule_id(Rule { conditions, action });
        let list = &mut self.lists[list as usize];
        if !list.contains(&id) {
            list.push(id);
        }
    }

    fn rule_id(&mut self, rule: Rule) -> u32 {
        let next = self.rules.len() as u32;
        *self.rule_ids.entry(rule).or_insert_with_key(|rule| {
            self.rules.push(rule.clone());
            next
        })
    }

    /// Makes equal lists one, so that neighbouring calls with equal rules become one range. Call it once, after
    /// the last rule.
    pub(super) fn finish(&mut self) {
        if self.lists.is_empty() {
            return;
        }
        let mut first: HashMap<&[u32], u32> = HashMap::new();
        let canonical: Vec<u32> =
            self.lists.iter().zip(0..).map(|(list, id)| *first.entry(list).or_insert(id)).collect();
        for outcome in self.abis.iter_mut().flat_map(|abi| &mut abi.outcomes) {
            if let Outcome::Rules(list) = outcome {
                *list = canonical[*list as usize];
            }
        }
    }

    /// What numbers above the highest that the profile names get. A profile that denies by default was written
    /// before those calls existed; programs fall back from ENOSYS, but not from EPERM, so runc says ENOSYS.
    pub(super) fn beyond(&self, abi: &AbiPolicy) -> Option<(u16, u32)> {
        let permissive = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG, libc::SECCOMP_RET_TRACE];
        let denies = !permissive.contains(&(self.default & libc::SECCOMP_RET_ACTION_FULL));
        (denies && abi.highest > 0).then_some((abi.highest, ENOSYS))
    }
}
