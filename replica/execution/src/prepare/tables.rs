//! Instructions that change tables: replaced by calls of added functions, each of which does what the instruction
//! does and then tells `redoubt.table_changed` which entries it was.
//!
//! After and not before: what traps has changed nothing, and what succeeded has been paid for by the entry, so that
//! telling costs no more than the program spent.

use std::collections::{BTreeMap, BTreeSet};

use wasm_encoder::reencode::Reencode;
use wasm_encoder::{
    CodeSection, ConstExpr, ElementSection, Elements, Function, FunctionSection, Instruction, RefType,
    TableSection, TableType, TypeSection, ValType,
};
use wasmparser::{ElementItems, ElementSectionReader, Operator, TableSectionReader};

use super::track::Renumber;
use super::{MAX_FUNCTIONS, PrepareError, invalid};

/// One instruction, with the tables and the segment that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Set { table: u32 },
    Grow { table: u32 },
    Fill { table: u32 },
    Copy { table: u32, from: u32 },
    Init { table: u32, segment: u32 },
}

impl Change {
    fn of(operator: &Operator<'_>) -> Option<Self> {
        Some(match *operator {
            Operator::TableSet { table } => Self::Set { table },
            Operator::TableGrow { table } => Self::Grow { table },
            Operator::TableFill { table } => Self::Fill { table },
            Operator::TableCopy { dst_table: table, src_table: from } => Self::Copy { table, from },
            Operator::TableInit { table, elem_index: segment } => Self::Init { table, segment },
            _ => return None,
        })
    }

    fn table(self) -> u32 {
        match self {
            Self::Set { table }
            | Self::Grow { table }
            | Self::Fill { table }
            | Self::Copy { table, .. }
            | Self::Init { table, .. } => table,
        }
    }

    fn instruction(self) -> Instruction<'static> {
        match self {
            Self::Set { table } => Instruction::TableSet(table),
            Self::Grow { table } => Instruction::TableGrow(table),
            Self::Fill { table } => Instruction::TableFill(table),
            Self::Copy { table, from } => Instruction::TableCopy { src_table: from, dst_table: table },
            Self::Init { table, segment } => Instruction::TableInit { elem_index: segment, table },
        }
    }
}

/// Type of a table: that of its indices and of its entries.
#[derive(Debug, Clone, Copy)]
struct Of {
    index: ValType,
    entry: ValType,
}

/// What is added for the instructions of a module that change its tables.
#[derive(Debug)]
pub(super) struct Changes {
    tables: Vec<Of>,
    /// Index of the import that is told.
    tell: u32,
    /// Index of the first added function.
    first: u32,
    /// The functions, by what they do, numbered from 0.
    added: BTreeMap<Change, u32>,
}

impl Changes {
    pub(super) fn new(
        tables: Option<TableSectionReader<'_>>,
        tell: u32,
        first: u32,
    ) -> Result<Self, PrepareError> {
        let mut of = Vec::new();
        for table in tables.into_iter().flatten() {
            let ty = table?.ty;
            let mut same = super::SAME;
            let entry = ValType::Ref(same.ref_type(ty.element_type).map_err(invalid)?);
            of.push(Of { index: if ty.table64 { ValType::I64 } else { ValType::I32 }, entry });
        }
        Ok(Self { tables: of, tell, first, added: BTreeMap::new() })
    }

    /// The function to call instead of an instruction, if that changes a table.
    pub(super) fn instead(&mut self, operator: &Operator<'_>) -> Result<Option<u32>, PrepareError> {
        let Some(change) = Change::of(operator) else { return Ok(None) };
        let next = self.added.len() as u32;
        if next >= MAX_FUNCTIONS {
            return Err(PrepareError::Limit("different changes of tables", MAX_FUNCTIONS as usize));
        }
        Ok(Some(self.first + *self.added.entry(change).or_insert(next)))
    }

    /// Nothing changes a table.
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty()
    }

    /// How many tables the uploaded module has.
    pub(super) fn tables(&self) -> u32 {
        self.tables.len() as u32
    }

    fn of(&self, table: u32) -> Of {
        // Validation made sure that it is there.
        let unknown = Of { index: ValType::I32, entry: ValType::Ref(RefType::FUNCREF) };
        self.tables.get(table as usize).copied().unwrap_or(unknown)
    }

    /// Writes the functions, which come after all others.
    pub(super) fn write(
        &self,
        types: &mut TypeSection,
        functions: &mut FunctionSection,
        code: &mut CodeSection,
    ) {
        let mut added: Vec<(u32, Change)> =
            self.added.iter().map(|(change, number)| (*number, *change)).collect();
        added.sort_unstable();
        for (_, change) in added {
            let Of { index, entry } = self.of(change.table());
            let parameters = match change {
                Change::Set { .. } => vec![index, entry],
                Change::Grow { .. } => vec![entry, index],
                Change::Fill { .. } => vec![index, entry, index],
                Change::Copy { from, .. } => {
                    let from = self.of(from).index;
                    let wide = index == ValType::I64 && from == ValType::I64;
                    vec![index, from, if wide { ValType::I64 } else { ValType::I32 }]
                }
                Change::Init { .. } => vec![index, ValType::I32, ValType::I32],
            };
            let grows = matches!(change, Change::Grow { .. });
            functions.function(types.len());
            types.ty().function(parameters.clone(), grows.then_some(index));
            code.function(&self.body(change, &parameters, index));
        }
    }

    fn body(&self, change: Change, parameters: &[ValType], index: ValType) -> Function {
        use Instruction as I;
        let before = parameters.len() as u32;
        let grows = matches!(change, Change::Grow { .. });
        let mut out = Function::new(grows.then_some((1, index)));
        let mut add = |instructions: &[I<'_>]| {
            for instruction in instructions {
                out.instruction(instruction);
            }
        };
        for parameter in 0..before {
            add(&[I::LocalGet(parameter)]);
        }
        add(&[change.instruction()]);
        if grows {
            add(&[I::LocalSet(before)]);
        }
        // The table, the first entry and how many.
        let get = |local: u32, ty: ValType| {
            let wide = ty == ValType::I64;
            [I::LocalGet(local), if wide { I::Nop } else { I::I64ExtendI32U }]
        };
        // Instructions that are free, for only `nop` costs.
        let free =
            |pair: [I<'static>; 2]| pair.into_iter().filter(|it| !matches!(it, I::Nop)).collect::<Vec<_>>();
        add(&[I::I32Const(change.table().cast_signed())]);
        match change {
            Change::Set { .. } => {
                add(&free(get(0, index)));
                add(&[I::I64Const(1)]);
            }
            Change::Grow { .. } => {
                add(&free(get(before, index)));
                add(&free(get(1, index)));
                // None if there was no room.
                let failed = if index == ValType::I64 {
                    [I::I64Const(-1), I::I64Ne]
                } else {
                    [I::I32Const(-1), I::I32Ne]
                };
                add(&[I::I64Const(0), I::LocalGet(before)]);
                add(&failed);
                add(&[I::Select]);
            }
            Change::Fill { .. } | Change::Copy { .. } | Change::Init { .. } => {
                add(&free(get(0, index)));
                add(&free(get(2, parameters.get(2).copied().unwrap_or(index))));
            }
        }
        add(&[I::Call(self.tell)]);
        if grows {
            add(&[I::LocalGet(before)]);
        }
        add(&[I::End]);
        out
    }
}

/// Notes which functions the items of element segments are, by their numbers in the uploaded module.
pub(super) fn functions_of(
    reader: ElementSectionReader<'_>,
    into: &mut BTreeSet<u32>,
) -> Result<(), PrepareError> {
    for element in reader {
        match element?.items {
            ElementItems::Functions(functions) => {
                for function in functions {
                    into.insert(function?);
                }
            }
            ElementItems::Expressions(_, expressions) => {
                for expression in expressions {
                    functions_in(&expression?, into)?;
                }
            }
        }
    }
    Ok(())
}

/// The same for a constant expression.
pub(super) fn functions_in(
    expression: &wasmparser::ConstExpr<'_>,
    into: &mut BTreeSet<u32>,
) -> Result<(), PrepareError> {
    for operator in expression.get_operators_reader() {
        if let Operator::RefFunc { function_index } = operator? {
            into.insert(function_index);
        }
    }
    Ok(())
}

/// Adds a table that holds these functions, in which the engine looks up what a reference is. Gives its index.
pub(super) fn add_directory(
    functions: &[u32],
    renumber: Renumber,
    tables: &mut TableSection,
    elements: &mut ElementSection,
) -> u32 {
    let index = tables.len();
    let length = functions.len() as u64;
    tables.table(TableType {
        element_type: RefType::FUNCREF,
        table64: false,
        minimum: length,
        maximum: Some(length),
        shared: false,
    });
    let functions: Vec<u32> = functions.iter().map(|function| renumber.function(*function)).collect();
    let items = Elements::Functions(functions.into());
    // Written with the index, which is never 0: there is a table that changes.
    elements.active(Some(index), &ConstExpr::i32_const(0), items);
    index
}
