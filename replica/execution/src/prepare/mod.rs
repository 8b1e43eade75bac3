//! Preparation of an uploaded module: checked, then rewritten so that its whole state can be read and set.
//!
//! A canister's state must survive the process and be taken back after a trap, but wasmtime shows only what a
//! module exports, and runs data segments and the start function at each instantiation. So the module that is
//! compiled differs from the one uploaded:
//! - memory 0, table 0 and every mutable global are exported under names starting with [`RESERVED`], and all tables
//!   of a program that changes them;
//! - the start function is exported instead of run;
//! - active data segments are emptied (their content is kept here and written once, at installation);
//! - `data.drop` and `elem.drop` do nothing, since whether a segment was dropped would be state that cannot be read;
//! - what changes memory 0 is noted, and instructions are counted, as [`track`] says; what changes a table is told as
//!   [`tables`] says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use wasm_encoder::reencode::Reencode;
use wasm_encoder::{
    DataSection, ElementSection, EntityType, ExportKind, ExportSection, FunctionSection, GlobalSection,
    ImportSection, MemorySection, MemoryType, Module, Section, TableSection, TypeSection,
};
use wasmparser::{
    DataKind, ExternalKind, FunctionBody, Operator, Parser, Payload, TypeRef, ValType, Validator,
    WasmFeatures,
};

use crate::api::Metadata;
use crate::state::WASM_PAGE;
use crate::working::layout;

pub(crate) mod cover;
mod tables;
#[cfg(test)]
mod tests;
mod track;

use tables::Changes;
use track::{ADDED_IMPORTS, Renumber, Tracking};

/// What exports added by the preparation start with; uploaded modules may not use it.
pub(crate) const RESERVED: &str = "redoubt:";
/// The exported memory.
pub(crate) const MEMORY: &str = "redoubt:memory";
/// The exported table 0, through which callbacks are called; with a colon and its number, any table of a program that
/// changes them.
pub(crate) const TABLE: &str = "redoubt:table";
/// The exported table of the functions to which a table's entry may refer, if the program changes tables.
pub(crate) const DIRECTORY: &str = "redoubt:functions";
/// The exported start function.
pub(crate) const START: &str = "redoubt:start";
/// Module of the imports that the preparation adds.
pub(crate) const ADDED: &str = "redoubt";
/// Tells that a page, by its number, is about to change.
pub(crate) const MARK: &str = "mark";
/// Tells that a range, by address and length, is about to change.
pub(crate) const MARK_RANGE: &str = "mark_range";
/// Tells that entries of a table, by its number, the first of them and how many, have changed.
pub(crate) const TABLE_CHANGED: &str = "table_changed";

const MAX_FUNCTIONS: u32 = 50_000;
const MAX_GLOBALS: usize = 1_000;
const MAX_METADATA_BYTES: usize = 1 << 20;
const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::MEMORY64)
    .union(WasmFeatures::FLOATS);

/// How a method may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MethodKind {
    Update,
    Query,
    CompositeQuery,
}

/// Type of a mutable global.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GlobalType {
    I32,
    I64,
    F32,
    F64,
    V128,
}

/// A checked and rewritten module, with what the engine must know of it.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The rewritten module.
    pub(crate) wasm: Vec<u8>,
    /// The memory has 64-bit addresses; system calls take pointers of that width.
    pub(crate) memory64: bool,
    /// Former active data segments: address, content.
    pub(crate) data: Vec<(u64, Vec<u8>)>,
    /// Methods by name.
    pub(crate) methods: BTreeMap<String, MethodKind>,
    /// `canister_inspect_message` is exported.
    pub(crate) inspects: bool,
    /// `canister_heartbeat` is exported.
    pub(crate) heartbeat: bool,
    /// Names and types of the exported mutable globals, in order of their index.
    pub(crate) globals: Vec<(String, GlobalType)>,
    /// The tables, if the program changes them.
    pub(crate) tables: Option<ChangingTables>,
    /// Custom sections `icp:public NAME` and `icp:private NAME`.
    pub(crate) metadata: BTreeMap<String, Metadata>,
}

/// The tables of a program that changes them.
#[derive(Debug)]
pub(crate) struct ChangingTables {
    /// How many there are.
    pub(crate) count: u32,
    /// Functions that an entry may refer to, by their numbers in the uploaded module, in the directory's order.
    pub(crate) functions: Vec<u32>,
}

impl Prepared {
    /// The program keeps its memory across upgrades (Motoko's enhanced orthogonal persistence).
    pub(crate) fn keeps_memory(&self) -> bool {
        self.metadata.get("enhanced-orthogonal-persistence").is_some_and(|section| !section.public)
    }
}

/// Why a module is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error("module is larger than {0} bytes; make it smaller")]
    TooLarge(u64),
    #[error("gzip stream of the module is damaged: {0}; compress it again")]
    Gzip(String),
    #[error("not a valid WebAssembly module: {0}")]
    Invalid(String),
    #[error("import {0}.{1} is not offered; only functions of module ic0 are")]
    Import(String, String),
    #[error("export {0:?} is not allowed: {1}")]
    Export(String, &'static str),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("module has too many or too large {0}; the limit is {1}")]
    Limit(&'static str, usize),
}

impl From<wasmparser::BinaryReaderError> for PrepareError {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// Unpacks a module if it is gzip'd; `limit` is the largest size in bytes, before and after.
fn unpack(upload: &[u8], limit: u64) -> Result<std::borrow::Cow<'_, [u8]>, PrepareError> {
    if upload.len() as u64 > limit {
        return Err(PrepareError::TooLarge(limit));
    }
    if !upload.starts_with(&[0x1f, 0x8b]) {
        return Ok(upload.into());
    }
    let mut wasm = Vec::new();
    flate2::read::GzDecoder::new(upload)
        .take(limit.saturating_add(1))
        .read_to_end(&mut wasm)
        .map_err(|error| PrepareError::Gzip(error.to_string()))?;
    if wasm.len() as u64 > limit { Err(PrepareError::TooLarge(limit)) } else { Ok(wasm.into()) }
}

/// Checks and rewrites a module, which may be gzip'd.
pub(crate) fn prepare(upload: &[u8], limit: u64) -> Result<Prepared, PrepareError> {
    rewrite(upload, limit, true)
}

/// The same without marks, to see what they cost. What such a program changes cannot be committed.
#[cfg(feature = "bench")]
pub(crate) fn prepare_untracked(upload: &[u8], limit: u64) -> Result<Prepared, PrepareError> {
    rewrite(upload, limit, false)
}

fn rewrite(upload: &[u8], limit: u64, mark: bool) -> Result<Prepared, PrepareError> {
    let wasm = unpack(upload, limit)?;
    let valid = |features| Validator::new_with_features(features).validate_all(&wasm);
    if let Err(error) = valid(FEATURES) {
        return Err(match valid(FEATURES | WasmFeatures::GC_TYPES) {
            Ok(_) => PrepareError::Unsupported("externref, a reference to something of the host,"),
            Err(_) => error.into(),
        });
    }
    let mut rewriter = Rewriter { mark, ..Rewriter::default() };
    for payload in Parser::new(0).parse_all(&wasm) {
        rewriter.payload(payload?)?;
    }
    rewriter.finish()
}

#[derive(Default)]
struct Rewriter<'a> {
    /// Stores are to be marked.
    mark: bool,
    type_section: TypeSection,
    import_section: ImportSection,
    function_section: FunctionSection,
    tables_reader: Option<wasmparser::TableSectionReader<'a>>,
    memory_section: MemorySection,
    globals_reader: Option<wasmparser::GlobalSectionReader<'a>>,
    elements_reader: Option<wasmparser::ElementSectionReader<'a>>,
    /// Functions that references may be to.
    referred: BTreeSet<u32>,
    data_count: Option<u32>,
    bodies: Vec<FunctionBody<'a>>,
    data_section: DataSection,
    /// Names, kinds and old indices.
    exports: Vec<(String, ExportKind, u32)>,
    memory64: bool,
    has_memory: bool,
    has_table: bool,
    data: Vec<(u64, Vec<u8>)>,
    methods: BTreeMap<String, MethodKind>,
    /// Parameters and results of each function type.
    types: Vec<(usize, usize)>,
    /// Type of each function, imported ones first.
    functions: Vec<u32>,
    imported: u32,
    /// `canister_…` exports and the function behind each.
    entries: Vec<(String, u32)>,
    globals: Vec<(String, GlobalType)>,
    metadata: BTreeMap<String, Metadata>,
    metadata_bytes: usize,
}

/// A section could not be written anew.
fn invalid(error: wasm_encoder::reencode::Error<std::convert::Infallible>) -> PrepareError {
    PrepareError::Invalid(format!("{error:?}"))
}

/// Writes sections anew that name no function.
const SAME: Renumber = Renumber { imported: u32::MAX, added: 0 };

impl<'a> Rewriter<'a> {
    fn payload(&mut self, payload: Payload<'a>) -> Result<(), PrepareError> {
        let mut same = SAME;
        match payload {
            Payload::TypeSection(reader) => {
                for ty in reader.clone().into_iter_err_on_gc_types() {
                    let ty = ty?;
                    self.types.push((ty.params().len(), ty.results().len()));
                }
                same.parse_type_section(&mut self.type_section, reader).map_err(invalid)?;
            }
            Payload::ImportSection(reader) => {
                for import in reader.clone().into_imports() {
                    let import = import?;
                    match import.ty {
                        TypeRef::Func(ty) if import.module == "ic0" => self.functions.push(ty),
                        _ => return Err(PrepareError::Import(import.module.into(), import.name.into())),
                    }
                }
                self.imported = self.functions.len() as u32;
                same.parse_import_section(&mut self.import_section, reader).map_err(invalid)?;
            }
            Payload::FunctionSection(reader) => {
                if reader.count() > MAX_FUNCTIONS {
                    return Err(PrepareError::Limit("functions", MAX_FUNCTIONS as usize));
                }
                for ty in reader {
                    let ty = ty?;
                    self.functions.push(ty);
                    self.function_section.function(ty);
                }
            }
            Payload::TableSection(reader) => {
                self.has_table = reader.count() > 0;
                self.tables_reader = Some(reader);
            }
            Payload::MemorySection(reader) => {
                for memory in reader.clone() {
                    self.has_memory = true;
                    self.memory64 = memory?.memory64;
                }
                same.parse_memory_section(&mut self.memory_section, reader).map_err(invalid)?;
            }
            Payload::GlobalSection(reader) => {
                if reader.count() as usize > MAX_GLOBALS {
                    return Err(PrepareError::Limit("globals", MAX_GLOBALS));
                }
                for (index, global) in (0..).zip(reader.clone()) {
                    let global = global?;
                    tables::functions_in(&global.init_expr, &mut self.referred)?;
                    let ty = global.ty;
                    if !ty.mutable {
                        continue;
                    }
                    let ty = match ty.content_type {
                        ValType::I32 => GlobalType::I32,
                        ValType::I64 => GlobalType::I64,
                        ValType::F32 => GlobalType::F32,
                        ValType::F64 => GlobalType::F64,
                        ValType::V128 => GlobalType::V128,
                        ValType::Ref(_) => {
                            return Err(PrepareError::Unsupported("a mutable global that holds a reference"));
                        }
                    };
                    let name = format!("{RESERVED}global:{index}");
                    self.exports.push((name.clone(), ExportKind::Global, index));
                    self.globals.push((name, ty));
                }
                self.globals_reader = Some(reader);
            }
            Payload::ExportSection(reader) => {
                for export in reader {
                    let export = export?;
                    self.export(export.name, export.kind, export.index)?;
                }
            }
            Payload::StartSection { func, .. } => {
                self.exports.push((START.to_owned(), ExportKind::Func, func));
            }
            Payload::ElementSection(reader) => {
                tables::functions_of(reader.clone(), &mut self.referred)?;
                self.elements_reader = Some(reader);
            }
            Payload::DataCountSection { count, .. } => self.data_count = Some(count),
            Payload::CodeSectionEntry(body) => self.bodies.push(body),
            Payload::DataSection(reader) => {
                for data in reader {
                    let data = data?;
                    match data.kind {
                        DataKind::Passive => self.data_section.passive(data.data.iter().copied()),
                        DataKind::Active { offset_expr, .. } => {
                            let mut reader = offset_expr.get_operators_reader();
                            let address = match reader.read()? {
                                // Addresses are unsigned; the instructions' immediates are signed.
                                Operator::I32Const { value } => u64::from(value.cast_unsigned()),
                                Operator::I64Const { value } => value.cast_unsigned(),
                                _ => {
                                    return Err(PrepareError::Unsupported(
                                        "a data segment at a computed address",
                                    ));
                                }
                            };
                            self.data.push((address, data.data.to_vec()));
                            self.data_section.passive([])
                        }
                    };
                }
            }
            Payload::CustomSection(reader) => self.custom(reader.name(), reader.data())?,
            _ => {}
        }
        Ok(())
    }

    fn custom(&mut self, name: &str, data: &[u8]) -> Result<(), PrepareError> {
        let Some((visibility, name)) = name.strip_prefix("icp:").and_then(|name| name.split_once(' ')) else {
            return Ok(());
        };
        let public = match visibility {
            "public" => true,
            "private" => false,
            _ => return Ok(()),
        };
        self.metadata_bytes += name.len() + data.len();
        if self.metadata_bytes > MAX_METADATA_BYTES {
            return Err(PrepareError::Limit("custom sections", MAX_METADATA_BYTES));
        }
        let section = Metadata { public, content: data.to_vec() };
        match self.metadata.insert(name.to_owned(), section) {
            None => Ok(()),
            Some(_) => Err(PrepareError::Export(name.to_owned(), "a custom section has this name already")),
        }
    }

    fn export(&mut self, name: &str, kind: ExternalKind, index: u32) -> Result<(), PrepareError> {
        let refuse = |why| Err(PrepareError::Export(name.to_owned(), why));
        if name.starts_with(RESERVED) {
            return refuse("the prefix is reserved");
        }
        if name.starts_with("canister_") {
            if kind != ExternalKind::Func {
                return refuse("it must be a function");
            }
            self.entries.push((name.to_owned(), index));
            let method = match name.split_once(' ') {
                Some(("canister_update", method)) => Some((method, MethodKind::Update)),
                Some(("canister_query", method)) => Some((method, MethodKind::Query)),
                Some(("canister_composite_query", method)) => Some((method, MethodKind::CompositeQuery)),
                _ => None,
            };
            match (method, name) {
                (Some((method, kind)), _) => {
                    if self.methods.insert(method.to_owned(), kind).is_some() {
                        return refuse("a method of this name is exported already");
                    }
                }
                (
                    None,
                    "canister_init"
                    | "canister_pre_upgrade"
                    | "canister_post_upgrade"
                    | "canister_heartbeat"
                    | "canister_global_timer"
                    | "canister_inspect_message"
                    | "canister_on_low_wasm_memory",
                ) => {}
                (None, _) => return refuse("the prefix canister_ is for the names of the system interface"),
            }
        }
        // Other exports are kept: they may be any functions, and cost nothing.
        let kind = match kind {
            ExternalKind::Func => {
                self.referred.insert(index);
                ExportKind::Func
            }
            ExternalKind::Table => ExportKind::Table,
            ExternalKind::Memory => ExportKind::Memory,
            ExternalKind::Global => ExportKind::Global,
            _ => return refuse("this kind of export is not supported"),
        };
        self.exports.push((name.to_owned(), kind, index));
        Ok(())
    }

    fn finish(mut self) -> Result<Prepared, PrepareError> {
        for (name, function) in &self.entries {
            let ty = self.functions.get(*function as usize).and_then(|ty| self.types.get(*ty as usize));
            if ty != Some(&(0, 0)) {
                return Err(PrepareError::Export(name.clone(), "it must have no parameters and no results"));
            }
        }
        if self.has_memory {
            self.exports.push((MEMORY.to_owned(), ExportKind::Memory, 0));
        }
        if self.has_table {
            self.exports.push((TABLE.to_owned(), ExportKind::Table, 0));
        }
        let mark = self.mark && self.has_memory;
        let added = if self.mark { self.add_tracking() } else { 0 };
        let mut renumber = Renumber { imported: self.imported, added };
        let (mut tables, mut globals, mut elements) =
            (TableSection::new(), GlobalSection::new(), ElementSection::new());
        if let Some(reader) = self.tables_reader.clone() {
            renumber.parse_table_section(&mut tables, reader).map_err(invalid)?;
        }
        if let Some(reader) = self.globals_reader.take() {
            renumber.parse_global_section(&mut globals, reader).map_err(invalid)?;
        }
        if let Some(reader) = self.elements_reader.take() {
            renumber.parse_element_section(&mut elements, reader).map_err(invalid)?;
        }
        let functions = self.functions.len() as u32;
        let first_change = functions + added + u32::from(mark);
        let mut changes =
            Changes::new(self.tables_reader.take(), self.imported + ADDED_IMPORTS - 1, first_change)?;
        let mut code = Tracking::new(renumber, functions, self.memory64, mark);
        for (ty, body) in self.functions.iter().skip(self.imported as usize).zip(&self.bodies) {
            let parameters = self.types.get(*ty as usize).map_or(0, |(parameters, _)| *parameters);
            code.body(parameters as u32, body, self.mark.then_some(&mut changes))?;
        }
        if mark {
            code.marker();
        }
        let mut changing = None;
        if !changes.is_empty() {
            changes.write(&mut self.type_section, &mut self.function_section, &mut code.code);
            let (count, functions) = (changes.tables(), self.referred.into_iter().collect::<Vec<_>>());
            let names = (0..count).map(|table| (format!("{TABLE}:{table}"), ExportKind::Table, table));
            self.exports.extend(names);
            let directory = tables::add_directory(&functions, renumber, &mut tables, &mut elements);
            self.exports.push((DIRECTORY.to_owned(), ExportKind::Table, directory));
            changing = Some(ChangingTables { count, functions });
        }
        let mut exports = ExportSection::new();
        for (name, kind, index) in &self.exports {
            let index = if *kind == ExportKind::Func { renumber.function(*index) } else { *index };
            exports.export(name, *kind, index);
        }
        let mut module = Module::new();
        let mut section = |count: usize, section: &dyn AnySection| {
            if count > 0 {
                section.add_to(&mut module);
            }
        };
        section(self.type_section.len() as usize, &self.type_section);
        section(self.import_section.len() as usize, &self.import_section);
        section(self.function_section.len() as usize, &self.function_section);
        section(tables.len() as usize, &tables);
        section(self.memory_section.len() as usize, &self.memory_section);
        section(globals.len() as usize, &globals);
        section(exports.len() as usize, &exports);
        section(elements.len() as usize, &elements);
        if let Some(count) = self.data_count {
            section(1, &wasm_encoder::DataCountSection { count });
        }
        section(code.hints.len() as usize, &code.hints);
        section(code.code.len() as usize, &code.code);
        section(self.data_section.len() as usize, &self.data_section);
        let exports = |name: &str| self.entries.iter().any(|(entry, _)| entry == name);
        Ok(Prepared {
            wasm: module.finish(),
            memory64: self.memory64,
            data: self.data,
            inspects: exports("canister_inspect_message"),
            heartbeat: exports("canister_heartbeat"),
            methods: self.methods,
            globals: self.globals,
            tables: changing,
            metadata: self.metadata,
        })
    }

    /// Adds the imports that are told of changes, and, if there is a memory, that of the marks and the declaration of the
    /// marker; gives the number of imports.
    fn add_tracking(&mut self) -> u32 {
        let address = if self.memory64 { wasm_encoder::ValType::I64 } else { wasm_encoder::ValType::I32 };
        let (narrow, wide) = (wasm_encoder::ValType::I32, wasm_encoder::ValType::I64);
        let parameters = [vec![narrow], vec![address, address], vec![narrow, wide, wide]];
        if self.has_memory {
            // Of the type of the first import.
            self.function_section.function(self.type_section.len());
        }
        for (name, parameters) in [MARK, MARK_RANGE, TABLE_CHANGED].into_iter().zip(parameters) {
            let ty = self.type_section.len();
            self.type_section.ty().function(parameters, []);
            self.import_section.import(ADDED, name, EntityType::Function(ty));
        }
        if !self.has_memory {
            return ADDED_IMPORTS;
        }
        let pages = layout::BYTES as u64 / WASM_PAGE;
        self.memory_section.memory(MemoryType {
            minimum: pages,
            maximum: Some(pages),
            memory64: false,
            shared: false,
            page_size_log2: None,
        });
        ADDED_IMPORTS
    }
}

/// Any section of a module.
trait AnySection {
    fn add_to(&self, module: &mut Module);
}

impl<T: Section> AnySection for T {
    fn add_to(&self, module: &mut Module) {
        module.section(self);
    }
}
