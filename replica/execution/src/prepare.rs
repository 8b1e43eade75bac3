//! Preparation of an uploaded module: checked, then rewritten so that its whole state can be read and set.
//!
//! A canister's state must survive the process and be taken back after a trap, but wasmtime shows only what a
//! module exports, and runs data segments and the start function at each instantiation. So the module that is
//! compiled differs from the one uploaded:
//! - memory 0, table 0 and every mutable global are exported under names starting with [`RESERVED`];
//! - the start function is exported instead of run;
//! - active data segments are emptied (their content is kept here and written once, at installation);
//! - `data.drop` does nothing, since whether a segment was dropped would be state that cannot be read.
//!
//! Tables keep what their element segments gave them: instructions that change a table are refused.

use std::collections::BTreeMap;
use std::io::Read;

use wasm_encoder::{DataSection, ExportKind, ExportSection, Module, RawSection, SectionId};
use wasmparser::{
    DataKind, ExternalKind, Operator, Parser, Payload, TypeRef, ValType, Validator, WasmFeatures,
};

use crate::api::Metadata;

/// What exports added by the preparation start with; uploaded modules may not use it.
pub(crate) const RESERVED: &str = "redoubt:";
/// The exported memory.
pub(crate) const MEMORY: &str = "redoubt:memory";
/// The exported table 0, through which callbacks are called.
pub(crate) const TABLE: &str = "redoubt:table";
/// The exported start function.
pub(crate) const START: &str = "redoubt:start";

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
    /// Custom sections `icp:public NAME` and `icp:private NAME`.
    pub(crate) metadata: BTreeMap<String, Metadata>,
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
    #[error("instruction {0} changes a table, which is not supported yet; build without reference types")]
    Table(&'static str),
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
    let wasm = unpack(upload, limit)?;
    Validator::new_with_features(FEATURES).validate_all(&wasm)?;
    let mut rewriter = Rewriter::default();
    for payload in Parser::new(0).parse_all(&wasm) {
        rewriter.payload(&wasm, payload?)?;
    }
    rewriter.finish()
}

#[derive(Default)]
struct Rewriter {
    sections: Vec<(u8, Vec<u8>)>,
    exports: ExportSection,
    memory64: bool,
    has_memory: bool,
    has_table: bool,
    data: Vec<(u64, Vec<u8>)>,
    methods: BTreeMap<String, MethodKind>,
    /// Parameters and results of each function type.
    types: Vec<(usize, usize)>,
    /// Type of each function, imported ones first.
    functions: Vec<u32>,
    /// `canister_…` exports and the function behind each.
    entries: Vec<(String, u32)>,
    globals: Vec<(String, GlobalType)>,
    metadata: BTreeMap<String, Metadata>,
    metadata_bytes: usize,
}

impl Rewriter {
    fn payload(&mut self, wasm: &[u8], payload: Payload<'_>) -> Result<(), PrepareError> {
        let section = payload.as_section();
        match payload {
            Payload::TypeSection(reader) => {
                for ty in reader.into_iter_err_on_gc_types() {
                    let ty = ty?;
                    self.types.push((ty.params().len(), ty.results().len()));
                }
            }
            Payload::ImportSection(reader) => {
                for import in reader.into_imports() {
                    let import = import?;
                    match import.ty {
                        TypeRef::Func(ty) if import.module == "ic0" => self.functions.push(ty),
                        _ => return Err(PrepareError::Import(import.module.into(), import.name.into())),
                    }
                }
            }
            Payload::FunctionSection(reader) => {
                if reader.count() > MAX_FUNCTIONS {
                    return Err(PrepareError::Limit("functions", MAX_FUNCTIONS as usize));
                }
                for ty in reader {
                    self.functions.push(ty?);
                }
            }
            Payload::TableSection(reader) if reader.count() > 0 => self.has_table = true,
            Payload::MemorySection(reader) => {
                for memory in reader {
                    self.has_memory = true;
                    self.memory64 = memory?.memory64;
                }
            }
            Payload::GlobalSection(reader) => {
                if reader.count() as usize > MAX_GLOBALS {
                    return Err(PrepareError::Limit("globals", MAX_GLOBALS));
                }
                for (index, global) in (0..).zip(reader) {
                    let ty = global?.ty;
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
                    self.exports.export(&name, ExportKind::Global, index);
                    self.globals.push((name, ty));
                }
            }
            Payload::ExportSection(reader) => {
                for export in reader {
                    let export = export?;
                    self.export(export.name, export.kind, export.index)?;
                }
                return Ok(());
            }
            Payload::StartSection { func, .. } => {
                self.exports.export(START, ExportKind::Func, func);
                return Ok(());
            }
            Payload::CodeSectionStart { range, .. } => {
                let body = self.code(wasm, range.clone())?;
                self.sections.push((SectionId::Code as u8, body));
                return Ok(());
            }
            Payload::DataSection(reader) => {
                let mut section = DataSection::new();
                for data in reader {
                    let data = data?;
                    match data.kind {
                        DataKind::Passive => section.passive(data.data.iter().copied()),
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
                            section.passive([])
                        }
                    };
                }
                let mut bytes = Vec::new();
                wasm_encoder::Encode::encode(&section, &mut bytes);
                // `encode` writes the section's length first, `RawSection` will do so again.
                let mut reader = wasmparser::BinaryReader::new(&bytes, 0);
                reader.read_var_u32()?;
                let start = reader.original_position();
                self.sections.push((SectionId::Data as u8, bytes.split_off(start)));
                return Ok(());
            }
            Payload::CustomSection(reader) => {
                self.custom(reader.name(), reader.data())?;
                return Ok(());
            }
            _ => {}
        }
        if let Some((id, range)) = section {
            let bytes = wasm.get(range).ok_or(PrepareError::Unsupported("a section beyond the end"))?;
            // The code section's bodies come as payloads of their own, without a section.
            self.sections.push((id, bytes.to_vec()));
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
            ExternalKind::Func => ExportKind::Func,
            ExternalKind::Table => ExportKind::Table,
            ExternalKind::Memory => ExportKind::Memory,
            ExternalKind::Global => ExportKind::Global,
            _ => return refuse("this kind of export is not supported"),
        };
        self.exports.export(name, kind, index);
        Ok(())
    }

    /// Refuses what would change a table; replaces `data.drop` by as many bytes of `nop`.
    fn code(&self, wasm: &[u8], range: std::ops::Range<usize>) -> Result<Vec<u8>, PrepareError> {
        let section = wasm.get(range.clone()).ok_or(PrepareError::Unsupported("a section beyond the end"))?;
        let mut bytes = section.to_vec();
        let reader = wasmparser::BinaryReader::new(section, range.start);
        for body in wasmparser::CodeSectionReader::new(reader)? {
            let mut operators = body?.get_operators_reader()?;
            while !operators.eof() {
                let start = operators.original_position();
                match operators.read()? {
                    Operator::TableSet { .. } => return Err(PrepareError::Table("table.set")),
                    Operator::TableGrow { .. } => return Err(PrepareError::Table("table.grow")),
                    Operator::TableFill { .. } => return Err(PrepareError::Table("table.fill")),
                    Operator::TableCopy { .. } => return Err(PrepareError::Table("table.copy")),
                    Operator::TableInit { .. } => return Err(PrepareError::Table("table.init")),
                    Operator::ElemDrop { .. } => return Err(PrepareError::Table("elem.drop")),
                    Operator::DataDrop { .. } => {
                        let instruction = start - range.start..operators.original_position() - range.start;
                        if let Some(bytes) = bytes.get_mut(instruction) {
                            bytes.fill(0x01);
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(bytes)
    }

    fn finish(mut self) -> Result<Prepared, PrepareError> {
        for (name, function) in &self.entries {
            let ty = self.functions.get(*function as usize).and_then(|ty| self.types.get(*ty as usize));
            if ty != Some(&(0, 0)) {
                return Err(PrepareError::Export(name.clone(), "it must have no parameters and no results"));
            }
        }
        if self.has_memory {
            self.exports.export(MEMORY, ExportKind::Memory, 0);
        }
        if self.has_table {
            self.exports.export(TABLE, ExportKind::Table, 0);
        }
        let mut module = Module::new();
        let mut exports = Some(self.exports);
        for (id, data) in &self.sections {
            let after_exports = [SectionId::Element, SectionId::DataCount, SectionId::Code, SectionId::Data]
                .iter()
                .any(|section| *section as u8 == *id);
            if after_exports && let Some(exports) = exports.take() {
                module.section(&exports);
            }
            module.section(&RawSection { id: *id, data });
        }
        if let Some(exports) = exports {
            module.section(&exports);
        }
        let exports = |name: &str| self.entries.iter().any(|(entry, _)| entry == name);
        Ok(Prepared {
            wasm: module.finish(),
            memory64: self.memory64,
            data: self.data,
            inspects: exports("canister_inspect_message"),
            heartbeat: exports("canister_heartbeat"),
            methods: self.methods,
            globals: self.globals,
            metadata: self.metadata,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare_wat(text: &str) -> Result<Prepared, PrepareError> {
        prepare(&wat::parse_str(text).unwrap(), 1 << 20)
    }

    #[test]
    fn state_becomes_exports_and_nothing_runs_by_itself() {
        let prepared = prepare_wat(
            r#"(module
                (import "ic0" "trap" (func (param i64 i64)))
                (memory i64 1)
                (table 1 funcref)
                (global i32 (i32.const 1))
                (global (mut i64) (i64.const 2))
                (func $start (data.drop $drop))
                (func (export "canister_update go"))
                (func (export "canister_heartbeat"))
                (start $start)
                (elem (i32.const 0) $start)
                (data (i64.const 7) "seven")
                (data $drop "passive")
                (@custom "icp:private enhanced-orthogonal-persistence" "x"))"#,
        )
        .unwrap();
        Validator::new_with_features(FEATURES).validate_all(&prepared.wasm).unwrap();
        assert!(prepared.memory64 && prepared.heartbeat && !prepared.inspects && prepared.keeps_memory());
        assert_eq!(prepared.data, [(7, b"seven".to_vec())]);
        assert_eq!(prepared.globals, [(format!("{RESERVED}global:1"), GlobalType::I64)]);
        assert_eq!(prepared.methods["go"], MethodKind::Update);
        let mut exports = Vec::new();
        for payload in Parser::new(0).parse_all(&prepared.wasm) {
            match payload.unwrap() {
                Payload::StartSection { .. } => panic!("start function is left"),
                Payload::ExportSection(reader) => {
                    exports.extend(reader.into_iter().map(|export| export.unwrap().name.to_owned()));
                }
                Payload::CodeSectionEntry(body) => {
                    for operator in body.get_operators_reader().unwrap() {
                        assert!(!matches!(operator.unwrap(), Operator::DataDrop { .. }));
                    }
                }
                Payload::DataSection(reader) => {
                    let sizes: Vec<_> = reader.into_iter().map(|data| data.unwrap().data.len()).collect();
                    assert_eq!(sizes, [0, 7]);
                }
                _ => {}
            }
        }
        for name in [MEMORY, TABLE, START] {
            assert!(exports.iter().any(|export| export == name), "{name} is not exported");
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        let cases = [
            (r#"(module (import "env" "f" (func)))"#, "import env.f"),
            (r#"(module (import "ic0" "m" (memory 1)))"#, "import ic0.m"),
            (r#"(module (func (export "canister_update a")) (func (export "canister_query a")))"#, "already"),
            (r#"(module (func (export "canister_update a") (param i32)))"#, "no parameters"),
            (r#"(module (func (export "canister_foo")))"#, "system interface"),
            (r#"(module (func (export "redoubt:start")))"#, "reserved"),
            (r#"(module (memory 1) (export "canister_init" (memory 0)))"#, "must be a function"),
            (r#"(module (table 1 funcref) (func (table.set (i32.const 0) (ref.null func))))"#, "table.set"),
            (r#"(module (memory 1) (memory 1))"#, "multiple memories"),
            (r#"(module (memory 1 1 shared))"#, "threads"),
            (r#"(module (global (mut funcref) (ref.null func)))"#, "holds a reference"),
        ];
        for (module, expected) in cases {
            let error = prepare_wat(module).unwrap_err().to_string();
            assert!(error.contains(expected), "{module}: {error}");
        }
        assert_eq!(prepare(&[0; 9], 8).unwrap_err(), PrepareError::TooLarge(8));
    }

    #[test]
    fn a_bomb_in_gzip_is_not_unpacked() {
        let mut packer =
            flate2::read::GzEncoder::new(std::io::repeat(0).take(1 << 20), flate2::Compression::best());
        let mut bomb = Vec::new();
        packer.read_to_end(&mut bomb).unwrap();
        assert!(bomb.len() < 4096);
        assert_eq!(prepare(&bomb, 4096).unwrap_err(), PrepareError::TooLarge(4096));
        assert!(matches!(prepare(&[0x1f, 0x8b, 1, 2], 99), Err(PrepareError::Gzip(_))));
    }
}
