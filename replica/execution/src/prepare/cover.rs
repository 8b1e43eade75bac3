//! Which stores need no mark of their own, because one before them on the same straight piece of code told of them.
//!
//! A program that fills an object stores at constant offsets from one address, which it keeps in a local. A mark for
//! the first of these stores serves all that end within [`REACH`] bytes of its start: they lie in the marked page or in
//! the first bytes of the next, and those the collector compares anyway (see `crate::working`).
//!
//! Only offsets within the instruction count, since their sum does not wrap; and whatever could be reached by
//! another path (the end of a block, the start of a loop) is forgotten. What is not known needs a mark.

use std::collections::HashMap;

use wasmparser::Operator;

/// Bytes from the start of a marked store within which changes are found.
pub(crate) const REACH: u64 = 64;

/// The value that a local had at some moment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Value {
    local: u32,
    /// How often the local was set before.
    version: u32,
}

/// What is known at one place of a function's body.
#[derive(Default)]
pub(super) struct Cover {
    /// The operands on top of the stack; what lies below is unknown.
    stack: Vec<Option<Value>>,
    versions: HashMap<u32, u32>,
    /// Offset of the last marked store at each address.
    marked: HashMap<Value, u64>,
}

impl Cover {
    fn pop(&mut self, count: usize) {
        self.stack.truncate(self.stack.len().saturating_sub(count));
    }

    fn value_of(&self, local: u32) -> Value {
        Value { local, version: self.versions.get(&local).copied().unwrap_or(0) }
    }

    fn set(&mut self, local: u32) {
        *self.versions.entry(local).or_insert(0) += 1;
    }

    /// Whether the store that comes next, of `bytes` bytes at the address below the value plus `offset`, needs a
    /// mark. If so it is taken to get one.
    pub(super) fn store(&mut self, offset: u64, bytes: u64) -> bool {
        let address = self.stack.len().checked_sub(2).and_then(|at| self.stack[at]);
        let Some(address) = address else { return true };
        if let Some(from) = self.marked.get(&address) {
            let end = offset.saturating_add(bytes);
            if offset >= *from && end <= from.saturating_add(REACH) {
                return false;
            }
        }
        self.marked.insert(address, offset);
        true
    }

    /// Goes past an instruction.
    pub(super) fn pass(&mut self, operator: &Operator<'_>) {
        use Operator as O;
        match operator {
            O::LocalGet { local_index } => self.stack.push(Some(self.value_of(*local_index))),
            O::LocalSet { local_index } => {
                self.pop(1);
                self.set(*local_index);
            }
            O::LocalTee { local_index } => {
                self.pop(1);
                self.set(*local_index);
                self.stack.push(Some(self.value_of(*local_index)));
            }
            O::I32Const { .. }
            | O::I64Const { .. }
            | O::F32Const { .. }
            | O::F64Const { .. }
            | O::V128Const { .. }
            | O::GlobalGet { .. } => self.stack.push(None),
            O::Drop | O::GlobalSet { .. } => self.pop(1),
            _ if is_unary(operator) => {
                self.pop(1);
                self.stack.push(None);
            }
            _ if is_binary(operator) => {
                self.pop(2);
                self.stack.push(None);
            }
            _ if super::track::is_store(operator) => self.pop(2),
            O::Nop => {}
            // Other code may come from elsewhere to what follows.
            O::Loop { .. } | O::Else | O::End => {
                self.stack.clear();
                self.marked.clear();
            }
            _ => self.stack.clear(),
        }
    }
}

fn is_unary(operator: &Operator<'_>) -> bool {
    use Operator as O;
    matches!(
        operator,
        O::I32Load { .. }
            | O::I32Load8S { .. }
            | O::I32Load8U { .. }
            | O::I32Load16S { .. }
            | O::I32Load16U { .. }
            | O::I64Load { .. }
            | O::I64Load8S { .. }
            | O::I64Load8U { .. }
            | O::I64Load16S { .. }
            | O::I64Load16U { .. }
            | O::I64Load32S { .. }
            | O::I64Load32U { .. }
            | O::F32Load { .. }
            | O::F64Load { .. }
            | O::V128Load { .. }
            | O::I32Eqz
            | O::I64Eqz
            | O::I32WrapI64
            | O::I64ExtendI32S
            | O::I64ExtendI32U
    )
}

fn is_binary(operator: &Operator<'_>) -> bool {
    use Operator as O;
    matches!(
        operator,
        O::I32Add
            | O::I32Sub
            | O::I32Mul
            | O::I32And
            | O::I32Or
            | O::I32Xor
            | O::I32Shl
            | O::I32ShrS
            | O::I32ShrU
            | O::I32Eq
            | O::I32Ne
            | O::I32LtS
            | O::I32LtU
            | O::I64Add
            | O::I64Sub
            | O::I64Mul
            | O::I64And
            | O::I64Or
            | O::I64Xor
            | O::I64Shl
            | O::I64ShrS
            | O::I64ShrU
            | O::F32Add
            | O::F32Sub
            | O::F32Mul
            | O::F64Add
            | O::F64Sub
            | O::F64Mul
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmparser::MemArg;

    const STORE: Operator<'_> =
        Operator::I64Store { memarg: MemArg { align: 0, max_align: 3, offset: 0, memory: 0 } };

    /// Puts an address and a value on the stack, and asks about a store of 8 bytes.
    fn store(cover: &mut Cover, local_index: u32, offset: u64) -> bool {
        cover.pass(&Operator::LocalGet { local_index });
        cover.pass(&Operator::I64Const { value: 1 });
        let needed = cover.store(offset, 8);
        cover.pass(&STORE);
        needed
    }

    #[test]
    fn a_mark_reaches_no_further_than_what_is_compared() {
        let mut cover = Cover::default();
        assert!(store(&mut cover, 0, 8));
        assert!(!store(&mut cover, 0, 8));
        assert!(!store(&mut cover, 0, 64));
        assert!(store(&mut cover, 0, 65));
        assert!(store(&mut cover, 0, 0), "a store before the marked one");
        assert!(store(&mut cover, 1, 8), "another address");
    }

    #[test]
    fn a_local_that_is_set_is_another_address() {
        for set in [Operator::LocalSet { local_index: 0 }, Operator::LocalTee { local_index: 0 }] {
            let mut cover = Cover::default();
            assert!(store(&mut cover, 0, 0));
            cover.pass(&Operator::I32Const { value: 9 });
            cover.pass(&set);
            assert!(store(&mut cover, 0, 0));
        }
    }

    #[test]
    fn the_address_is_that_of_the_moment_it_was_put_on_the_stack() {
        let mut cover = Cover::default();
        assert!(store(&mut cover, 0, 0));
        cover.pass(&Operator::LocalGet { local_index: 0 });
        cover.pass(&Operator::I32Const { value: 7 });
        cover.pass(&Operator::LocalTee { local_index: 0 });
        assert!(!cover.store(0, 4), "the local's earlier value is marked");
        cover.pass(&STORE);
        assert!(store(&mut cover, 0, 0), "its new one is not");
    }

    #[test]
    fn nothing_is_known_where_paths_meet_or_the_stack_is_unknown() {
        for meets in [Operator::End, Operator::Else, Operator::Loop { blockty: wasmparser::BlockType::Empty }]
        {
            let mut cover = Cover::default();
            assert!(store(&mut cover, 0, 0));
            cover.pass(&meets);
            assert!(store(&mut cover, 0, 0));
        }
        let mut cover = Cover::default();
        assert!(store(&mut cover, 0, 0));
        cover.pass(&Operator::LocalGet { local_index: 0 });
        cover.pass(&Operator::Call { function_index: 1 });
        assert!(cover.store(0, 8), "what the call left on the stack");
    }
}
