//! The program against the meaning of its rules, in an interpreter and in the kernel.

use super::super::devices::tests::{any_rule, meaning};
use super::super::devices::{self, MKNOD, READ, WRITE};
use super::*;
use crate::cgroup::tests::{Scratch, unified_root};
use proptest::prelude::*;

/// Runs a program as the kernel would. Panics where the verifier would refuse it.
fn interpret(program: &[Insn], node: Node, major: u32, minor: u32, wanted: u8) -> bool {
    let context = [u32::from(wanted) << 16 | type_number(node).cast_unsigned(), major, minor];
    let mut registers = [None::<u32>; 6];
    let mut at = 0usize;
    for _ in 0..program.len() {
        let i = program[at];
        at += 1;
        let dst = usize::from(i.dst);
        let imm = i.imm.cast_unsigned();
        match i.code {
            LOAD => registers[dst] = Some(context[usize::try_from(i.off).unwrap() / 4]),
            MOVE => registers[dst] = Some(imm),
            COPY => registers[dst] = Some(registers[usize::from(i.src)].unwrap()),
            AND => registers[dst] = Some(registers[dst].unwrap() & imm),
            SHIFT => registers[dst] = Some(registers[dst].unwrap() >> imm),
            JUMP_NE if registers[dst].unwrap() != imm => at += usize::try_from(i.off).unwrap(),
            JUMP_EQ if registers[dst].unwrap() == imm => at += usize::try_from(i.off).unwrap(),
            JUMP_NE | JUMP_EQ => {}
            EXIT => return registers[0].unwrap() == 1,
            code => panic!("unknown instruction {code:#x}"),
        }
    }
    panic!("the program loops");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn program_means_what_the_rules_say(rules in prop::collection::vec(any_rule(), 0..10)) {
        let program = assemble(&rules);
        for node in [Node::Block, Node::Char] {
            for major in [0, 1, 2, 3, 9, u32::MAX] {
                for minor in [0, 1, 2, 3, 9, u32::MAX] {
                    for wanted in 1..=ALL {
                        let expected = meaning(&rules, node, major, minor, wanted);
                        let got = interpret(&program, node, major, minor, wanted);
                        prop_assert_eq!(got, expected, "{:?} {}:{} {}", node, major, minor, wanted);
                    }
                }
            }
        }
    }
}

#[test]
fn encoding_is_the_kernels() {
    let insn = Insn { code: JUMP_NE, dst: 4, src: 1, off: 3, imm: -2 };
    if cfg!(target_endian = "little") {
        assert_eq!(insn.encode().to_le_bytes(), [0x56, 0x14, 3, 0, 0xfe, 0xff, 0xff, 0xff]);
    }
}

#[test]
fn kernel_enforces_program() {
    let Some(root) = unified_root() else {
        return eprintln!("skipped: kernel_enforces_program needs root and a v2 cgroup mount");
    };
    let scratch = Scratch::new(&root, "bpf");
    let cgroup = scratch.open();
    let allow = |minor, access| Rule {
        allow: true,
        node: Some(Node::Char),
        major: Some(1),
        minor: Some(minor),
        access,
    };
    // null for reading and writing; zero for reading only; full not at all; no node may be made.
    apply(cgroup.as_fd(), &[allow(3, READ | WRITE), allow(5, READ)]).unwrap();
    let script = "r=; (: </dev/null) && r=${r}A; (: >/dev/null) && r=${r}B; (: </dev/zero) && r=${r}C; \
                  (: >/dev/zero) && r=${r}D; (: </dev/full) && r=${r}E; echo $r";
    assert_eq!(scratch.run(script), "ABC");
    let node = scratch.node_path();
    assert_ne!(scratch.run(&format!("mknod {node} c 1 3 && echo made")), "made");
    // An update replaces the program; it does not add one.
    apply(cgroup.as_fd(), &devices::DEFAULT).unwrap();
    assert_eq!(bpf::attached(cgroup.as_fd()).unwrap().len(), 1);
    assert_eq!(scratch.run(script), "ABCDE");
    assert_eq!(scratch.run(&format!("mknod {node} c 1 3 && echo made; rm {node}")), "made");
    let _ = MKNOD;
}
