//! A small assembler for eBPF (RFC 9669): instructions with labels, encoded for bpf(2).
#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

/// A register. `R0` has results, `R1` to `R5` arguments (lost in a call), `R6` to `R9` stay, `R10` is the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R6 = 6,
    R7,
    R8,
    R9,
    R10,
}

/// Bytes of an access to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    B1,
    B2,
    B4,
    B8,
}

/// What is compared, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cond {
    Eq = 0x1,
    Gt = 0x2,
    Ge = 0x3,
    Ne = 0x5,
    Lt = 0xa,
    Le = 0xb,
    /// Signed: smaller.
    Slt = 0xc,
}

/// Arithmetic on 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Add = 0x0,
    Sub = 0x1,
    And = 0x5,
    Lsh = 0x6,
    Rsh = 0x7,
    Mov = 0xb,
}

/// Helper functions of the kernel, by their numbers in `bpf_helper_defs.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    MapLookup = 1,
    ProbeReadUser = 112,
    ProbeReadKernel = 113,
    ProbeReadUserStr = 114,
    ProbeReadKernelStr = 115,
    KtimeGetBootNs = 125,
    RingbufOutput = 130,
    GetCurrentTaskBtf = 158,
    TaskPtRegs = 175,
}

/// A place in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// A program that is being written.
#[derive(Debug, Default)]
pub struct Asm {
    code: Vec<u64>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

const ALU64: u8 = 0x07;
const JMP: u8 = 0x05;
const LDX: u8 = 0x61;
const ST: u8 = 0x62;
const STX: u8 = 0x63;
const FROM_REG: u8 = 0x08;
/// `BPF_PSEUDO_MAP_FD`.
const MAP_FD: u8 = 1;

fn size_bits(size: Size) -> u8 {
    match size {
        Size::B4 => 0x00,
        Size::B2 => 0x08,
        Size::B1 => 0x10,
        Size::B8 => 0x18,
    }
}

impl Asm {
    fn emit(&mut self, op: u8, dst: Reg, src: u8, off: i16, imm: i32) {
        self.code.push(
            u64::from(op)
                | u64::from(dst as u8) << 8
                | u64::from(src) << 12
                | u64::from(off as u16) << 16
                | u64::from(imm as u32) << 32,
        );
    }

    /// A place to be set later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label means what comes next.
    pub fn here(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// `dst = dst OP value`.
    pub fn op(&mut self, op: Op, dst: Reg, value: i32) {
        self.emit(ALU64 | (op as u8) << 4, dst, 0, 0, value);
    }

    /// `dst = dst OP src`.
    pub fn op_reg(&mut self, op: Op, dst: Reg, src: Reg) {
        self.emit(ALU64 | FROM_REG | (op as u8) << 4, dst, src as u8, 0, 0);
    }

    /// `dst = value`.
    pub fn mov(&mut self, dst: Reg, value: i32) {
        self.op(Op::Mov, dst, value);
    }

    /// `dst = src`.
    pub fn mov_reg(&mut self, dst: Reg, src: Reg) {
        self.op_reg(Op::Mov, dst, src);
    }

    /// `dst = value`, of 64 bits.
    pub fn mov64(&mut self, dst: Reg, value: u64) {
        self.emit(0x18, dst, 0, 0, value as i32);
        self.code.push((value >> 32) << 32);
    }

    /// `dst` = a map, for a helper.
    pub fn map(&mut self, dst: Reg, map: BorrowedFd<'_>) {
        self.emit(0x18, dst, MAP_FD, 0, map.as_raw_fd());
        self.code.push(0);
    }

    /// `dst = *(src + off)`.
    pub fn load(&mut self, size: Size, dst: Reg, src: Reg, off: i16) {
        self.emit(LDX | size_bits(size), dst, src as u8, off, 0);
    }

    /// `*(dst + off) = src`.
    pub fn store(&mut self, size: Size, dst: Reg, off: i16, src: Reg) {
        self.emit(STX | size_bits(size), dst, src as u8, off, 0);
    }

    /// `*(dst + off) = value`.
    pub fn store_imm(&mut self, size: Size, dst: Reg, off: i16, value: i32) {
        self.emit(ST | size_bits(size), dst, 0, off, value);
    }

    /// Goes to `to`.
    pub fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(JMP, Reg::R0, 0, 0, 0);
    }

    /// Goes to `to` if `dst COND value`.
    pub fn jump_if(&mut self, cond: Cond, dst: Reg, value: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(JMP | (cond as u8) << 4, dst, 0, 0, value);
    }

    /// Goes to `to` if `dst COND src`.
    pub fn jump_if_reg(&mut self, cond: Cond, dst: Reg, src: Reg, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(JMP | FROM_REG | (cond as u8) << 4, dst, src as u8, 0, 0);
    }

    /// `*(dst + off) += src` of 64 bits, at once for all CPUs.
    pub fn atomic_add(&mut self, dst: Reg, off: i16, src: Reg) {
        self.emit(0xdb, dst, src as u8, off, 0);
    }

    /// Calls a helper.
    pub fn call(&mut self, helper: Helper) {
        self.emit(0x85, Reg::R0, 0, 0, helper as i32);
    }

    /// Ends the program with the value of `R0`.
    pub fn exit(&mut self) {
        self.emit(0x95, Reg::R0, 0, 0, 0);
    }

    /// The encoded instructions; `None` when a label was not set or is too far away.
    pub fn finish(mut self) -> Option<Vec<u64>> {
        for (at, label) in self.jumps {
            let target = (*self.labels.get(label.0)?)?;
            let offset = i16::try_from(target as i64 - at as i64 - 1).ok()?;
            *self.code.get_mut(at)? |= u64::from(offset as u16) << 16;
        }
        Some(self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_encoded_as_the_standard_says() {
        let mut asm = Asm::default();
        let end = asm.label();
        asm.mov(Reg::R0, -1);
        asm.jump_if(Cond::Eq, Reg::R0, 7, end);
        asm.load(Size::B4, Reg::R1, Reg::R10, -8);
        asm.store(Size::B8, Reg::R10, -16, Reg::R1);
        asm.here(end);
        asm.exit();
        let bytes: Vec<[u8; 8]> = asm.finish().unwrap().into_iter().map(u64::to_le_bytes).collect();
        assert_eq!(bytes[0], [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(bytes[1], [0x15, 0, 2, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[2], [0x61, 0xa1, 0xf8, 0xff, 0, 0, 0, 0]);
        assert_eq!(bytes[3], [0x7b, 0x1a, 0xf0, 0xff, 0, 0, 0, 0]);
        assert_eq!(bytes[4], [0x95, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_label_that_is_nowhere_is_a_mistake() {
        let mut asm = Asm::default();
        let nowhere = asm.label();
        asm.jump(nowhere);
        assert!(asm.finish().is_none());
    }
}
