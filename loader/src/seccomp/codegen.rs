#![forbid(unsafe_code)]
//! Instructions for a [`Policy`].
//!
//! Call numbers with equal outcomes are merged into ranges and found by binary search: both the kernel's walk
//! over all numbers when a filter is loaded (it caches what is always allowed, since 5.11) and a call that is not
//! cached take a dozen instructions. Only instructions that this walk understands come before an argument is
//! looked at: word loads, `JEQ`/`JGT`/`JGE`/`JSET`/`JA`, and returns.
//!
//! Classic BPF jumps only forwards, so the program is written from its end: a jump's targets exist before it.

use super::arch::{AUDIT_X86_64, Abi, X32_BIT};
use super::policy::{AbiPolicy, BAD_ARCH, Compare, Condition, Outcome, Policy, Rule};
use libc::sock_filter;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JA: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JGT: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JGE: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JSET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// A conditional jump reaches 255 instructions; bringing one target near may push the other two further.
const REACH: usize = 253;

/// Instructions in reverse: the last one of the program first.
struct Writer<'a> {
    policy: &'a Policy,
    reversed: Vec<sock_filter>,
    /// Where an action was returned last.
    returns: Vec<(u32, Label)>,
    /// Where a list of rules was written: list, low halves only.
    blocks: Vec<(u32, bool, Label)>,
}

/// Index into [`Writer::reversed`].
type Label = usize;

/// Numbers from `start` up to the next range's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range<T> {
    start: u32,
    outcome: T,
}

/// Adds a range, unless it goes on as the last one does.
fn extend<T: PartialEq>(ranges: &mut Vec<Range<T>>, start: u32, outcome: T) {
    if ranges.last().is_none_or(|last| last.outcome != outcome) {
        ranges.push(Range { start, outcome });
    }
}

/// Turns a finished policy into a program.
pub(super) fn generate(policy: &Policy) -> Vec<sock_filter> {
    let mut writer =
        Writer { policy, reversed: Vec::with_capacity(512), returns: Vec::new(), blocks: Vec::new() };
    writer.program();
    writer.reversed.reverse();
    writer.reversed
}

/// The ranges of one ABI, covering all numbers from its base.
fn ranges(policy: &Policy, abi: &AbiPolicy) -> Vec<Range<Outcome>> {
    let base = abi.abi.base();
    let (named, tail) = match policy.beyond(abi) {
        Some((highest, action)) => (usize::from(highest) + 1, Outcome::Action(action)),
        None => (abi.outcomes.len(), Outcome::Action(policy.default)),
    };
    let mut ranges = Vec::with_capacity(128);
    let numbered = abi.outcomes.iter().copied().take(named).chain([tail]);
    for (number, outcome) in (base..).zip(numbered) {
        extend(&mut ranges, number, outcome);
    }
    ranges
}

/// The values below 2³² for which one of `rules` holds, as ranges over all 32-bit values, if these rules are all
/// comparisons of `arg` alone that lead to `action` and no greater value satisfies them.
fn value_set<'a>(
    rules: impl Iterator<Item = &'a Rule>,
    arg: u8,
    action: u32,
    low_only: bool,
) -> (usize, Vec<Range<bool>>) {
    let mut accepted: Vec<(u64, u64)> = Vec::new();
    for rule in rules {
        let [c] = rule.conditions.as_slice() else { break };
        let value = if low_only { c.value & u64::from(u32::MAX) } else { c.value };
        if c.arg != arg || rule.action != action || c.mask != u64::MAX || value > u64::from(u32::MAX) {
            break;
        }
        accepted.push(match c.op {
            Compare::Eq => (value, value + 1),
            Compare::Lt => (0, value),
            Compare::Le => (0, value + 1),
            _ => break,
        });
    }
    let count = accepted.len();
    accepted.sort_unstable();
    let mut ranges = Vec::with_capacity(2 * count + 1);
    // Up to here values are decided; ends are exclusive.
    let mut decided = 0u64;
    for (start, end) in accepted {
        let from = start.max(decided);
        if from < end {
            if decided < from {
                extend(&mut ranges, decided as u32, false);
            }
            extend(&mut ranges, from as u32, true);
            decided = end;
        }
    }
    if decided <= u64::from(u32::MAX) {
        extend(&mut ranges, decided as u32, false);
    }
    (count, ranges)
}

impl Writer<'_> {
    fn program(&mut self) {
        let bad_arch = self.ret(BAD_ARCH);
        let mut next = bad_arch;
        // The native ABI is first in the policy and written last: closest to the entry.
        for abi in self.policy.abis.iter().rev() {
            if abi.abi == Abi::X32 {
                continue;
            }
            let tree = self.numbers(abi);
            let search = if abi.abi.audit() == AUDIT_X86_64 { self.split_x32(tree) } else { tree };
            let entry = if self.reversed[search].code == RET { search } else { self.load_before(search, NR) };
            next = self.jump(JEQ, abi.abi.audit(), entry, next, None);
        }
        self.load_before(next, ARCH);
    }

    /// x32 calls share `AUDIT_ARCH_X86_64`. The kernel shows a call that a tracer skipped as number -1, which is
    /// no x32 call: libseccomp gives it the default action instead of that for an unknown ABI.
    fn split_x32(&mut self, native: Label) -> Label {
        let x32 = match self.policy.abis.iter().find(|abi| abi.abi == Abi::X32) {
            Some(abi) => self.numbers(abi),
            None => {
                let (bad, skipped) = (self.ret(BAD_ARCH), self.ret(self.policy.default));
                self.jump(JEQ, u32::MAX, skipped, bad, None)
            }
        };
        self.jump(JGE, X32_BIT, x32, native, None)
    }

    fn numbers(&mut self, abi: &AbiPolicy) -> Label {
        let low = abi.abi.compares_low_half();
        self.tree(&ranges(self.policy, abi), &mut |writer, outcome| match outcome {
            Outcome::Action(action) => writer.ret(action),
            Outcome::Rules(list) => writer.rules(list, low),
        })
    }

    /// A search over `ranges`, at least one, for what is in the accumulator.
    fn tree<T: Copy + PartialEq>(
        &mut self,
        ranges: &[Range<T>],
        leaf: &mut impl FnMut(&mut Self, T) -> Label,
    ) -> Label {
        match ranges {
            [one] => leaf(self, one.outcome),
            // One number between two equal ranges needs one comparison instead of two.
            [a, b, c] if a.outcome == c.outcome && b.start + 1 == c.start => {
                let (around, exact) = (leaf(self, a.outcome), leaf(self, b.outcome));
                self.jump(JEQ, b.start, exact, around, None)
            }
            _ => {
                // Left parts of odd length end where that pattern can use them.
                let middle = ((ranges.len() / 2) | 1).min(ranges.len() - 1);
                let (left, right) = ranges.split_at(middle);
                let above = self.tree(right, leaf);
                let below = self.tree(left, leaf);
                self.jump(JGE, right[0].start, above, below, None)
            }
        }
    }

    /// Tries the rules of a list in order, then the default action.
    fn rules(&mut self, list: u32, low: bool) -> Label {
        if let Some(&(.., label)) = self.blocks.iter().find(|&&(l, w, _)| (l, w) == (list, low)) {
            return label;
        }
        let policy = self.policy;
        let rule = |id: &u32| &policy.rules[*id as usize];
        let mut left = policy.lists[list as usize].as_slice();
        let mut next = self.ret(policy.default);
        while let Some((last, before)) = left.split_last() {
            let last = rule(last);
            let mut accept = self.ret(last.action);
            let arg = last.conditions[0].arg;
            let (count, values) = value_set(left.iter().rev().map(rule), arg, last.action, low);
            if count > 1 {
                next = self.member(arg, &values, low, accept, next);
                left = &left[..left.len() - count];
                continue;
            }
            for condition in last.conditions.iter().rev() {
                accept = self.condition(condition, low, accept, next);
            }
            next = accept;
            left = before;
        }
        self.blocks.push((list, low, next));
        next
    }

    /// Goes to `yes` for an argument in the set `values`.
    fn member(&mut self, arg: u8, values: &[Range<bool>], low_only: bool, yes: Label, no: Label) -> Label {
        let (low_at, high_at) = halves(arg);
        let search = self.tree(values, &mut |_, accepted| if accepted { yes } else { no });
        let low = self.load_before(search, low_at);
        if low_only { low } else { self.equal(high_at, u32::MAX, 0, low, no) }
    }

    /// Goes to `yes` or `no`. Arguments are 64 bits wide and the accumulator has 32: high half first.
    fn condition(&mut self, c: &Condition, low_only: bool, yes: Label, no: Label) -> Label {
        let (yes, no) = match c.op {
            Compare::Ne | Compare::Lt | Compare::Le => (no, yes),
            _ => (yes, no),
        };
        let (low_at, high_at) = halves(c.arg);
        let (high_value, low_value) = ((c.value >> 32) as u32, c.value as u32);
        let (high_mask, low_mask) = ((c.mask >> 32) as u32, c.mask as u32);
        match c.op {
            Compare::Eq | Compare::Ne => {
                let low = self.equal(low_at, low_mask, low_value, yes, no);
                if low_only { low } else { self.equal(high_at, high_mask, high_value, low, no) }
            }
            Compare::Gt | Compare::Ge | Compare::Lt | Compare::Le => {
                let code = if matches!(c.op, Compare::Gt | Compare::Le) { JGT } else { JGE };
                let low = self.compare(code, low_at, low_value, yes, no);
                if low_only {
                    return low;
                }
                let same = self.jump(JEQ, high_value, low, no, Some(high_at));
                self.compare(JGT, high_at, high_value, yes, same)
            }
        }
    }

    /// Compares the word at `at` for equality under `mask`.
    fn equal(&mut self, at: u32, mask: u32, value: u32, yes: Label, no: Label) -> Label {
        match (mask, value) {
            (0, _) => yes,
            (u32::MAX, _) => self.compare(JEQ, at, value, yes, no),
            (_, 0) => self.compare(JSET, at, mask, no, yes),
            _ => {
                let test = self.jump(JEQ, value, yes, no, None);
                let and = self.before(test, sock_filter { code: AND, jt: 0, jf: 0, k: mask });
                self.load_before(and, at)
            }
        }
    }

    fn compare(&mut self, code: u16, at: u32, value: u32, yes: Label, no: Label) -> Label {
        let test = self.jump(code, value, yes, no, Some(at));
        self.load_before(test, at)
    }

    /// Writes a conditional jump. `loaded` is the offset of the word that the accumulator still holds at the
    /// targets: one that begins by loading it again is entered after that load.
    fn jump(&mut self, code: u16, k: u32, yes: Label, no: Label, loaded: Option<u32>) -> Label {
        let reversed = &self.reversed;
        let skip_load = |label: Label| match (reversed[label], loaded) {
            (sock_filter { code: LOAD, k, .. }, Some(at)) if k == at => label - 1,
            _ => label,
        };
        let (mut yes, mut no) = (skip_load(yes), skip_load(no));
        if yes == no {
            return yes;
        }
        if self.distance(yes) > REACH {
            yes = self.near(yes);
        }
        if self.distance(no) > REACH {
            no = self.near(no);
        }
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(sock_filter { code, jt, jf, k })
    }

    /// How many instructions the next one to be written would skip to get to `label`.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - 1 - label
    }

    /// A stand-in for `label` right here.
    fn near(&mut self, label: Label) -> Label {
        let target = self.reversed[label];
        if target.code == RET {
            return self.ret(target.k);
        }
        let k = self.distance(label) as u32;
        self.push(sock_filter { code: JA, jt: 0, jf: 0, k })
    }

    /// Somewhere near that returns `action`.
    fn ret(&mut self, action: u32) -> Label {
        let known = self.returns.iter().position(|&(a, _)| a == action);
        if let Some(at) = known
            && self.distance(self.returns[at].1) < REACH / 2
        {
            return self.returns[at].1;
        }
        let label = self.push(sock_filter { code: RET, jt: 0, jf: 0, k: action });
        match known {
            Some(at) => self.returns[at].1 = label,
            None => self.returns.push((action, label)),
        }
        label
    }

    fn load_before(&mut self, next: Label, at: u32) -> Label {
        self.before(next, sock_filter { code: LOAD, jt: 0, jf: 0, k: at })
    }

    /// Writes an instruction that runs on into `next`.
    fn before(&mut self, next: Label, instruction: sock_filter) -> Label {
        let k = self.distance(next) as u32;
        if k > 0 {
            self.push(sock_filter { code: JA, jt: 0, jf: 0, k });
        }
        self.push(instruction)
    }

    fn push(&mut self, instruction: sock_filter) -> Label {
        self.reversed.push(instruction);
        self.reversed.len() - 1
    }
}

/// Offsets of an argument's low and high half in `struct seccomp_data`.
fn halves(arg: u8) -> (u32, u32) {
    let at = ARGS + 8 * u32::from(arg);
    if cfg!(target_endian = "big") { (at + 4, at) } else { (at, at + 4) }
}

/// Checks that a program made of this module's instructions ends in a return on every path and reads nothing
/// outside `struct seccomp_data`.
pub(super) fn check(program: &[sock_filter]) -> Result<(), &'static str> {
    for (at, i) in program.iter().enumerate() {
        let left = program.len() - 1 - at;
        let inside = |skip: u32| (skip as usize) < left;
        let fine = match i.code {
            LOAD => i.k < ARGS + 48 && i.k.is_multiple_of(4) && left > 0,
            AND => left > 0,
            JA => inside(i.k),
            JEQ | JGT | JGE | JSET => inside(i.jt.into()) && inside(i.jf.into()),
            RET => true,
            _ => return Err("contains an instruction that no filter of ours has"),
        };
        if !fine {
            return Err("jumps or reads out of bounds");
        }
    }
    Ok(())
}
