//! Marking of stores: the code section, rewritten so that every change of memory 0 is noted before it happens.
//!
//! Memory [`MARKS`] is added to the module, laid out as [`layout`] says: one byte, the card, for each 4 KiB of memory
//! 0, and beside that room for notes. Before a store, the card of the page in which it begins is looked at; if it is
//! zero, an added function, the marker, is called. It writes a note itself if the engine granted it some, and asks the
//! imported function `redoubt.mark` otherwise. So each page costs one call per message, and every further store a load
//! and a branch that is hardly ever taken, and that the compiler is told to lay out of the way. The marker is a function
//! of the module because calling one of those needs fewer registers than calling an import. A store that runs into the next page leaves that one unmarked: the
//! collector finds out by the page's first bytes (see `crate::working`). For the same reason one mark serves several
//! stores close behind each other (see `cover`). Bulk instructions mark all their pages.
//!
//! The address of a mark is computed as that of the store, without its checks: where it wraps or lies outside, the
//! store traps, and a mark too many does no harm.
//!
//! What is added must not count as instructions of the program. The engine's table of costs therefore makes every
//! instruction free except `nop`, which costs one; here each instruction that counts gets a `nop` before it, and
//! the program's own are left out. The count is that of the uploaded module, instruction for instruction.

use wasm_encoder::reencode::Reencode;
use wasm_encoder::{BlockType, BranchHint, BranchHints, CodeSection, Function, Instruction, MemArg, ValType};
use wasmparser::{FunctionBody, Operator};

use super::PrepareError;
use super::cover::{Cover, REACH};
use super::tables::Changes;
use crate::working::layout;

/// Index of the added memory; uploaded modules have at most one.
pub(super) const MARKS: u32 = 1;
/// Address bits within a page.
const PAGE_BITS: i32 = heap::PAGE.trailing_zeros() as i32;
/// Added imports: `redoubt.mark`, `redoubt.mark_range` and `redoubt.table_changed`.
pub(super) const ADDED_IMPORTS: u32 = 3;

/// Indices of functions, with the added imports after the uploaded module's.
#[derive(Clone, Copy)]
pub(super) struct Renumber {
    /// Imported functions of the uploaded module.
    pub(super) imported: u32,
    /// Functions added after them.
    pub(super) added: u32,
}

impl Reencode for Renumber {
    type Error = std::convert::Infallible;

    fn function_index(&mut self, index: u32) -> Result<u32, wasm_encoder::reencode::Error<Self::Error>> {
        Ok(self.function(index))
    }
}

impl Renumber {
    pub(super) fn function(self, index: u32) -> u32 {
        if index < self.imported { index } else { index + self.added }
    }
}

/// The rewritten bodies.
pub(super) struct Tracking {
    pub(super) renumber: Renumber,
    /// Index of the marker.
    marker: u32,
    pub(super) memory64: bool,
    /// Stores are marked; otherwise there is no memory, or its changes are not to be tracked.
    pub(super) mark: bool,
    pub(super) code: CodeSection,
    pub(super) hints: BranchHints,
    bodies: u32,
}

/// What an instruction writes, and how.
enum Write {
    /// A store of a value of this type at the address plus offset, and how many bytes it writes.
    Store(ValType, u64, u64),
    Fill,
    Copy,
    Init,
}

fn write_of(operator: &Operator<'_>) -> Option<Write> {
    use Operator as O;
    let (ty, bytes, memarg) = match operator {
        O::I32Store8 { memarg } => (ValType::I32, 1, memarg),
        O::I32Store16 { memarg } => (ValType::I32, 2, memarg),
        O::I32Store { memarg } => (ValType::I32, 4, memarg),
        O::I64Store8 { memarg } => (ValType::I64, 1, memarg),
        O::I64Store16 { memarg } => (ValType::I64, 2, memarg),
        O::I64Store32 { memarg } => (ValType::I64, 4, memarg),
        O::I64Store { memarg } => (ValType::I64, 8, memarg),
        O::F32Store { memarg } => (ValType::F32, 4, memarg),
        O::F64Store { memarg } => (ValType::F64, 8, memarg),
        O::V128Store8Lane { memarg, .. } => (ValType::V128, 1, memarg),
        O::V128Store16Lane { memarg, .. } => (ValType::V128, 2, memarg),
        O::V128Store32Lane { memarg, .. } => (ValType::V128, 4, memarg),
        O::V128Store64Lane { memarg, .. } => (ValType::V128, 8, memarg),
        O::V128Store { memarg } => (ValType::V128, 16, memarg),
        O::MemoryFill { .. } => return Some(Write::Fill),
        O::MemoryCopy { .. } => return Some(Write::Copy),
        O::MemoryInit { .. } => return Some(Write::Init),
        _ => return None,
    };
    Some(Write::Store(ty, memarg.offset, bytes))
}

/// Whether this takes an address and a value from the stack and writes to memory.
pub(super) fn is_store(operator: &Operator<'_>) -> bool {
    matches!(write_of(operator), Some(Write::Store(..)))
}

/// Instructions that cost nothing: those for which no code is made, and those that only shape the control flow,
/// as in wasmtime's own table.
fn free(operator: &Operator<'_>) -> bool {
    use Operator as O;
    matches!(
        operator,
        O::Nop
            | O::Drop
            | O::Block { .. }
            | O::Loop { .. }
            | O::Unreachable
            | O::Return
            | O::Else
            | O::End
            // Taken out below.
            | O::DataDrop { .. }
            | O::ElemDrop { .. }
    )
}

/// Added locals of one function.
#[derive(Clone, Copy)]
struct Locals {
    /// Index of the first.
    first: u32,
}

impl Locals {
    /// Types in the order of the indices below; `address` stands for the address type.
    fn types(address: ValType) -> [(u32, ValType); 6] {
        use ValType::{F32, F64, I32, I64, V128};
        [(3, address), (4, I32), (1, I64), (1, F32), (1, F64), (1, V128)]
    }
    fn address(self) -> u32 {
        self.first
    }
    fn source(self) -> u32 {
        self.first + 1
    }
    fn length(self) -> u32 {
        self.first + 2
    }
    fn page(self) -> u32 {
        self.first + 3
    }
    fn last_page(self) -> u32 {
        self.first + 4
    }
    fn word(self) -> u32 {
        self.first + 5
    }
    fn short_length(self) -> u32 {
        self.first + 6
    }
    fn value(self, ty: ValType) -> u32 {
        match ty {
            ValType::I64 => self.first + 7,
            ValType::F32 => self.first + 8,
            ValType::F64 => self.first + 9,
            ValType::V128 => self.first + 10,
            _ => self.word(),
        }
    }
}

/// One function while it is being written.
struct Body<'a> {
    out: Function,
    locals: Locals,
    tracking: &'a Tracking,
    hints: Vec<BranchHint>,
}

impl Tracking {
    /// For a module with so many functions, imported ones included.
    pub(super) fn new(renumber: Renumber, functions: u32, memory64: bool, mark: bool) -> Self {
        let marker = functions.saturating_add(renumber.added);
        Self {
            renumber,
            marker,
            memory64,
            mark,
            code: CodeSection::new(),
            hints: BranchHints::new(),
            bodies: 0,
        }
    }

    fn address(&self) -> ValType {
        if self.memory64 { ValType::I64 } else { ValType::I32 }
    }

    /// Rewrites one function, which has this many parameters. Without `changes`, changes of tables stay untold.
    pub(super) fn body(
        &mut self,
        parameters: u32,
        body: &FunctionBody<'_>,
        mut changes: Option<&mut Changes>,
    ) -> Result<(), PrepareError> {
        let invalid = |error| PrepareError::Invalid(format!("{error:?}"));
        let mut renumber = self.renumber;
        let mut types = Vec::new();
        let mut first = parameters;
        for local in body.get_locals_reader()? {
            let (count, ty) = local?;
            first = first.saturating_add(count);
            types.push((count, renumber.val_type(ty).map_err(invalid)?));
        }
        let operators = body.get_operators_reader()?;
        let writes = operators.clone().into_iter().any(|it| it.is_ok_and(|it| write_of(&it).is_some()));
        if writes && self.mark {
            types.extend(Locals::types(self.address()));
        }
        let mut body =
            Body { out: Function::new(types), locals: Locals { first }, tracking: self, hints: Vec::new() };
        let mut cover = Cover::default();
        for operator in operators {
            let operator = operator?;
            if !free(&operator) {
                body.out.instruction(&Instruction::Nop);
            }
            // Whether a segment was dropped would be state that cannot be read.
            if matches!(operator, Operator::Nop | Operator::DataDrop { .. } | Operator::ElemDrop { .. }) {
                continue;
            }
            if self.mark {
                match write_of(&operator) {
                    Some(Write::Store(ty, offset, bytes)) if cover.store(offset, bytes) => {
                        body.before_store(ty, offset);
                    }
                    Some(Write::Fill) => body.before_bulk(body.locals.word(), false),
                    Some(Write::Copy) => body.before_bulk(body.locals.source(), false),
                    Some(Write::Init) => body.before_bulk(body.locals.word(), true),
                    // Marked already.
                    Some(Write::Store(..)) | None => {}
                }
                cover.pass(&operator);
            }
            let instead = changes.as_mut().map_or(Ok(None), |changes| changes.instead(&operator))?;
            body.out.instruction(&match instead {
                Some(function) => Instruction::Call(function),
                None => renumber.instruction(operator).map_err(invalid)?,
            });
        }
        let Body { out, hints, .. } = body;
        if !hints.is_empty() {
            let index = self.renumber.imported + self.renumber.added + self.bodies;
            self.hints.function_hints(index, hints);
        }
        self.bodies += 1;
        self.code.function(&out);
        Ok(())
    }
}

/// An access to the added memory.
fn marks(offset: u32) -> MemArg {
    MemArg { offset: offset.into(), align: 0, memory_index: MARKS }
}

impl Tracking {
    /// Writes the marker, which comes after all other functions: it notes that a page, its parameter, changes.
    pub(super) fn marker(&mut self) {
        use Instruction as I;
        use layout::{BEHIND, CARDS, HEAD, NOTE, NOTES, READY};
        let (page, left, note, next) = (0, 1, 2, 3);
        let mut out = Function::new([(2, ValType::I32), (1, self.address())]);
        let mut add = |instruction: I<'_>| {
            out.instruction(&instruction);
        };
        add(I::Block(BlockType::Empty));
        for instruction in [
            // No note is granted, or what lies behind the page must not be looked at.
            I::I32Const(0),
            I::I32Load(marks(0)),
            I::LocalTee(left),
            I::I32Eqz,
            I::BrIf(0),
            I::LocalGet(page),
            I::I32Load8U(marks(READY)),
            I::I32Eqz,
            I::BrIf(0),
            I::LocalGet(page),
            I::I32Const(1),
            I::I32Store8(marks(CARDS)),
            I::I32Const(0),
            I::LocalGet(left),
            I::I32Const(1),
            I::I32Sub,
            I::LocalTee(left),
            I::I32Store(marks(0)),
            I::LocalGet(left),
            I::I32Const(NOTE.cast_signed()),
            I::I32Mul,
            I::LocalTee(note),
            I::LocalGet(page),
            I::I32Store(marks(NOTES)),
            I::LocalGet(note),
            I::LocalGet(page),
            I::I32Load8U(marks(CARDS + 1)),
            I::I32Store8(marks(NOTES + BEHIND)),
            I::LocalGet(page),
        ] {
            add(instruction);
        }
        if self.memory64 {
            add(I::I64ExtendI32U);
            add(I::I64Const(PAGE_BITS.into()));
            add(I::I64Shl);
        } else {
            add(I::I32Const(PAGE_BITS));
            add(I::I32Shl);
        }
        add(I::LocalSet(next));
        for at in (0..REACH as u32).step_by(16) {
            let behind = MemArg { offset: heap::PAGE as u64 + u64::from(at), align: 0, memory_index: 0 };
            add(I::LocalGet(note));
            add(I::LocalGet(next));
            add(I::V128Load(behind));
            add(I::V128Store(marks(NOTES + HEAD + at)));
        }
        add(I::Return);
        add(I::End);
        add(I::LocalGet(page));
        add(I::Call(self.renumber.imported));
        add(I::End);
        self.code.function(&out);
    }
}

impl Body<'_> {
    fn add<const N: usize>(&mut self, instructions: [Instruction<'_>; N]) {
        for instruction in &instructions {
            self.out.instruction(instruction);
        }
    }

    /// Turns the address on the stack into the number of its page, kept in a local and on the stack.
    fn page(&mut self, local: u32) {
        if self.tracking.memory64 {
            let bits = i64::from(PAGE_BITS);
            self.add([Instruction::I64Const(bits), Instruction::I64ShrU, Instruction::I32WrapI64]);
        } else {
            self.add([Instruction::I32Const(PAGE_BITS), Instruction::I32ShrU]);
        }
        self.add([Instruction::LocalTee(local)]);
    }

    /// With address and value on the stack, which stay there.
    fn before_store(&mut self, ty: ValType, offset: u64) {
        let locals = self.locals;
        let (address, value) = (locals.address(), locals.value(ty));
        self.add([
            Instruction::LocalSet(value),
            Instruction::LocalTee(address),
            Instruction::LocalGet(address),
        ]);
        if offset != 0 {
            if self.tracking.memory64 {
                self.add([Instruction::I64Const(offset.cast_signed()), Instruction::I64Add]);
            } else {
                // Validation made sure that it has 32 bits.
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                self.add([Instruction::I32Const(offset.cast_signed()), Instruction::I32Add]);
            }
        }
        self.page(locals.page());
        self.add([Instruction::I32Load8U(marks(layout::CARDS)), Instruction::I32Eqz]);
        let branch_func_offset = u32::try_from(self.out.byte_len()).unwrap_or(u32::MAX);
        self.hints.push(BranchHint { branch_func_offset, branch_hint_value: 0 });
        self.add([
            Instruction::If(BlockType::Empty),
            Instruction::LocalGet(locals.page()),
            Instruction::Call(self.tracking.marker),
            Instruction::End,
            Instruction::LocalGet(value),
        ]);
    }

    /// With destination, a second operand and a length on the stack, which stay there. `short`: the length has 32
    /// bits whatever the addresses have.
    fn before_bulk(&mut self, second: u32, short: bool) {
        let locals = self.locals;
        let (address, length) = (locals.address(), locals.length());
        let wide = self.tracking.memory64;
        if short {
            self.add([Instruction::LocalTee(locals.short_length())]);
            if wide {
                self.add([Instruction::I64ExtendI32U]);
            }
        }
        self.add([
            Instruction::LocalSet(length),
            Instruction::LocalSet(second),
            Instruction::LocalSet(address),
            Instruction::Block(BlockType::Empty),
            Instruction::Block(BlockType::Empty),
            // The last page less the first; a length of zero may give any number.
            Instruction::LocalGet(address),
            Instruction::LocalGet(length),
        ]);
        if wide {
            self.add([Instruction::I64Add, Instruction::I64Const(1), Instruction::I64Sub]);
        } else {
            self.add([Instruction::I32Add, Instruction::I32Const(1), Instruction::I32Sub]);
        }
        self.page(locals.last_page());
        self.add([Instruction::LocalGet(address)]);
        self.page(locals.page());
        let mark_range = self.tracking.renumber.imported + 1;
        self.add([
            Instruction::I32Sub,
            Instruction::I32Const(1),
            Instruction::I32GtU,
            Instruction::BrIf(0),
            // At most two pages: nothing to do if both are marked.
            Instruction::LocalGet(locals.page()),
            Instruction::I32Load8U(marks(layout::CARDS)),
            Instruction::LocalGet(locals.last_page()),
            Instruction::I32Load8U(marks(layout::CARDS)),
            Instruction::I32And,
            Instruction::BrIf(1),
            Instruction::End,
            Instruction::LocalGet(address),
            Instruction::LocalGet(length),
            Instruction::Call(mark_range),
            Instruction::End,
            Instruction::LocalGet(address),
            Instruction::LocalGet(second),
            Instruction::LocalGet(if short { locals.short_length() } else { length }),
        ]);
    }
}
