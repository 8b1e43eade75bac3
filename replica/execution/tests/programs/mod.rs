//! Programs for tests: those of the Motoko compiler, and generated ones.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use proptest::prelude::*;

/// Where the compiled Motoko programs are: the directory that REDOUBT_MOTOKO_WASM names, or they are compiled with
/// the npm package `motoko` below the workspace's tests/js. `None` without either.
pub fn motoko() -> Option<&'static Path> {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    DIRECTORY.get_or_init(find).as_deref()
}

fn find() -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os("REDOUBT_MOTOKO_WASM") {
        return Some(directory.into());
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = here.join("../../tests/js/node_modules");
    if !modules.join("motoko").exists() {
        // Past what captures the output of tests.
        let text = format!("SKIPPED: no Motoko compiler in {}; run npm install there", modules.display());
        let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
        return None;
    }
    let out = here.join("../../target/tmp/motoko");
    std::fs::create_dir_all(&out).unwrap();
    let script = here.join("tests/motoko/compile.js");
    let status =
        Command::new("node").arg(script).args([modules.canonicalize().unwrap(), out.clone()]).status();
    assert!(status.unwrap().success(), "the Motoko compiler failed");
    Some(out)
}

/// One thing that a generated program does.
#[derive(Debug, Clone)]
pub enum Statement {
    /// Stores with this instruction, operand and static offset.
    Store {
        instruction: usize,
        address: u64,
        offset: u64,
    },
    /// Stores at these offsets from one address; then the first again, and one behind it, at another.
    Object {
        address: u64,
        stores: Vec<(usize, u64)>,
        then: Option<u64>,
    },
    Fill {
        address: u64,
        length: u64,
    },
    Copy {
        address: u64,
        length: u64,
    },
    Init {
        address: u64,
        length: u64,
    },
    Grow,
    /// One of `TABLES`.
    Table(usize),
    /// Stores at every `stride`th address, so many times.
    Loop {
        instruction: usize,
        address: u64,
        stride: u64,
        times: u64,
    },
    /// In a branch, depending on what is in memory.
    If {
        address: u64,
        then: Box<Statement>,
    },
}

const STORES: [(&str, &str); 14] = [
    ("i32.store", "(i32.const 77)"),
    ("i64.store", "(i64.const 77)"),
    ("f32.store", "(f32.const 77)"),
    ("f64.store", "(f64.const 77)"),
    ("i32.store8", "(i32.const 77)"),
    ("i32.store16", "(i32.const 77)"),
    ("i64.store8", "(i64.const 77)"),
    ("i64.store16", "(i64.const 77)"),
    ("i64.store32", "(i64.const 77)"),
    ("v128.store", "(v128.const i64x2 7 8)"),
    ("v128.store8_lane", "3 (v128.const i64x2 7 8)"),
    ("v128.store16_lane", "3 (v128.const i64x2 7 8)"),
    ("v128.store32_lane", "3 (v128.const i64x2 7 8)"),
    ("v128.store64_lane", "1 (v128.const i64x2 7 8)"),
];

const TABLES: [&str; 7] = [
    "(table.set $small (i32.const 3) (ref.func $all))",
    "(table.set $small (i32.const 9) (ref.null func))",
    "(drop (table.grow $small (ref.null func) (i32.const 2)))",
    "(drop (table.grow $large (ref.func $all) (i64.const 2000000)))",
    "(table.fill $large (i64.const 1) (ref.func $all) (i64.const 5))",
    "(table.copy $small $large (i32.const 0) (i64.const 2) (i32.const 4))",
    "(table.init $large $items (i64.const 6) (i32.const 0) (i32.const 1))",
];

/// Anything that a program may do, mostly inside its memory of four wasm pages.
pub fn statement() -> impl Strategy<Value = Statement> {
    let address = || prop_oneof![8 => 0u64..260_000, 6 => (1u64..64, 0u64..80).prop_map(|(page, back)| page * 4096 - back), 1 => 262_100u64..262_200];
    let length = || prop_oneof![0u64..100, 0u64..20_000];
    let instruction = || 0..STORES.len();
    let simple = prop_oneof![
        8 => (instruction(), address(), prop_oneof![Just(0u64), 0u64..5000])
            .prop_map(|(instruction, address, offset)| Statement::Store { instruction, address, offset }),
        6 => (address(), prop::collection::vec((instruction(), 0u64..100), 1..6), prop::option::of(address()))
            .prop_map(|(address, stores, then)| Statement::Object { address, stores, then }),
        2 => (address(), length()).prop_map(|(address, length)| Statement::Fill { address, length }),
        2 => (address(), length()).prop_map(|(address, length)| Statement::Copy { address, length }),
        1 => (address(), 0u64..20).prop_map(|(address, length)| Statement::Init { address, length }),
        1 => Just(Statement::Grow),
        3 => (0..TABLES.len()).prop_map(Statement::Table),
        2 => (instruction(), address(), 1u64..9000, 1u64..30).prop_map(
            |(instruction, address, stride, times)| Statement::Loop { instruction, address, stride, times }
        ),
    ];
    (simple, prop::option::of(address())).prop_map(|(then, condition)| match condition {
        Some(address) => Statement::If { address, then: Box::new(then) },
        None => then,
    })
}

fn text(statement: &Statement, out: &mut String) {
    let store = |instruction: usize, offset: u64, address: &str| {
        let (name, value) = STORES[instruction];
        // The lane comes before the operands.
        let (lane, value) = match value.split_once(' ') {
            Some((lane, rest)) if lane.len() == 1 => (lane, rest),
            _ => ("", value),
        };
        format!("({name} offset={offset} {lane} {address} {value})")
    };
    match statement {
        Statement::Store { instruction, address, offset } => {
            *out += &store(*instruction, *offset, &format!("(WIDTH.const {address})"));
        }
        Statement::Object { address, stores, then } => {
            *out += &format!("(local.set $at (WIDTH.const {address}))");
            for (instruction, offset) in stores {
                *out += &store(*instruction, *offset, "(local.get $at)");
            }
            if let (Some(then), Some((instruction, offset))) = (then, stores.first()) {
                let change = format!("(local.tee $at (WIDTH.const {then}))");
                *out += &store(*instruction, *offset, &change);
                *out += &store(*instruction, *offset + 3, "(local.get $at)");
            }
        }
        Statement::Fill { address, length } => {
            *out += &format!(
                "(memory.fill (WIDTH.const {address}) (i32.const 5) (WIDTH.add (WIDTH.const {length}) (local.get $zero)))"
            );
        }
        Statement::Copy { address, length } => {
            *out +=
                &format!("(memory.copy (WIDTH.const {address}) (WIDTH.const 100000) (WIDTH.const {length}))");
        }
        Statement::Init { address, length } => {
            *out +=
                &format!("(memory.init $data (WIDTH.const {address}) (i32.const 0) (i32.const {length}))");
        }
        Statement::Table(number) => *out += TABLES[*number],
        Statement::Grow => *out += "(drop (memory.grow (WIDTH.const 1)))",
        Statement::Loop { instruction, address, stride, times } => {
            *out += &format!(
                "(local.set $at (WIDTH.const {address})) (local.set $left (i32.const {times})) (loop $again {} \
                 (local.set $at (WIDTH.add (local.get $at) (WIDTH.const {stride}))) \
                 (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))",
                store(*instruction, 0, "(local.get $at)")
            );
        }
        Statement::If { address, then } => {
            *out += &format!("(if (i32.load8_u (WIDTH.const {address})) (then ");
            text(then, out);
            *out += ") (else ";
            text(then, out);
            *out += "))";
        }
    }
    out.push('\n');
}

/// The program, as text: it does all of them in `canister_update go`, by way of a second function.
pub fn module(statements: &[Statement], memory64: bool) -> String {
    let mut body = String::new();
    for statement in statements {
        text(statement, &mut body);
    }
    let module = format!(
        "(module (memory WIDTH 4 8) (data $data \"0123456789abcdef\")
            (table $small 8 12 funcref) (table $large i64 8 funcref) (elem $items func $all)
            (func $all (param $zero WIDTH) (local $at WIDTH) (local $left i32) {body})
            (func (export \"canister_update go\") (call $all (WIDTH.const 0))))"
    );
    module.replace("WIDTH", if memory64 { "i64" } else { "i32" })
}
