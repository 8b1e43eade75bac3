//! Tables of programs that change them, beside the same module in wasmtime as it is.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use candid::Principal;
use common::{Node, numbers, upgrade};
use execution::{ErrorCode, QueryMessage, QueryReply};
use ic_management_canister_types::{
    CanisterInstallMode, LoadCanisterSnapshotArgs, Snapshot, TakeCanisterSnapshotArgs,
};
use proptest::prelude::*;
use wasmtime::{Caller, Engine, Extern, Instance, Linker, Memory, Module, Store};

const TABLES: &str = include_str!("wat/tables.wat");

/// Number and three operands.
type Op = [u64; 4];
/// Operations of one message.
type Ops = Vec<Op>;

fn bytes(ops: &[Op]) -> Vec<u8> {
    ops.iter().flatten().copied().flat_map(u64::to_le_bytes).collect()
}

/// The module as it is uploaded, in wasmtime without anything of ours.
struct Oracle {
    engine: Engine,
    module: Module,
}

#[derive(Default)]
struct Io {
    arg: Vec<u8>,
    reply: Vec<u8>,
}

fn memory(caller: &mut Caller<'_, Io>) -> Memory {
    caller.get_export("memory").and_then(Extern::into_memory).unwrap()
}

impl Oracle {
    fn new() -> Self {
        let engine = Engine::default();
        let text = TABLES.replacen("(memory 4)", "(memory (export \"memory\") 4)", 1);
        let module = Module::new(&engine, wat::parse_str(text).unwrap()).unwrap();
        Self { engine, module }
    }

    /// What an entry replies after these messages, none of which trapped. `None` if it traps.
    fn run(&self, messages: &[Ops], entry: &str, ops: &[Op]) -> Option<Vec<u8>> {
        let mut linker: Linker<Io> = Linker::new(&self.engine);
        let size = |caller: Caller<'_, Io>| caller.data().arg.len() as i32;
        linker.func_wrap("ic0", "msg_arg_data_size", size).unwrap();
        let copy = |mut caller: Caller<'_, Io>, at: i32, from: i32, length: i32| {
            let piece = caller.data().arg[from as usize..(from + length) as usize].to_vec();
            memory(&mut caller).write(&mut caller, at as usize, &piece).unwrap();
        };
        linker.func_wrap("ic0", "msg_arg_data_copy", copy).unwrap();
        let append = |mut caller: Caller<'_, Io>, from: i32, length: i32| {
            let mut piece = vec![0; length as usize];
            memory(&mut caller).read(&caller, from as usize, &mut piece).unwrap();
            caller.data_mut().reply.extend(piece);
        };
        linker.func_wrap("ic0", "msg_reply_data_append", append).unwrap();
        linker.func_wrap("ic0", "msg_reply", || {}).unwrap();
        let mut store = Store::new(&self.engine, Io::default());
        let instance = linker.instantiate(&mut store, &self.module).unwrap();
        for message in messages {
            call(&mut store, &instance, "canister_update change", message).unwrap();
        }
        call(&mut store, &instance, entry, ops).ok()?;
        Some(store.into_data().reply)
    }
}

fn call(store: &mut Store<Io>, instance: &Instance, entry: &str, ops: &[Op]) -> wasmtime::Result<()> {
    *store.data_mut() = Io { arg: bytes(ops), reply: Vec::new() };
    instance.get_typed_func::<(), ()>(&mut *store, entry).unwrap().call(store, ())
}

#[derive(Debug, Clone)]
enum Step {
    Update(Ops),
    Query(Ops),
    Reopen,
    Upgrade,
    Reinstall,
    Take,
    Load(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    // Around the ends of the pages that entries lie on, and of the tables as they are made.
    let index = || {
        prop_oneof![
            4 => 0u64..6,
            2 => 1015u64..1030,
            2 => 2040u64..2060,
            1 => 0u64..3100,
            1 => Just(u64::from(u32::MAX)),
        ]
    };
    let length = || prop_oneof![6 => 0u64..8, 3 => 0u64..900, 1 => Just(1_000_000)];
    // What must not trap too often.
    let number = prop_oneof![30 => 0u64..13, 3 => 13u64..15, 1 => Just(15u64)];
    (number, index(), prop_oneof![3 => 0u64..8, 1 => index()], length()).prop_map(|(number, x, y, z)| {
        // A segment has five items.
        let z = if matches!(number, 10 | 11) { z % 5 } else { z };
        [number, x, y, z]
    })
}

fn step() -> impl Strategy<Value = Step> {
    let ops = || prop::collection::vec(op(), 0..4);
    prop_oneof![
        14 => ops().prop_map(Step::Update),
        4 => ops().prop_map(Step::Query),
        3 => Just(Step::Reopen),
        1 => Just(Step::Upgrade),
        1 => Just(Step::Reinstall),
        1 => Just(Step::Take),
        1 => any::<prop::sample::Index>().prop_map(Step::Load),
    ]
}

fn query(node: &mut Node, canister: Principal, method: &str, ops: &[Op]) -> Option<Vec<u8>> {
    let sender = common::controller();
    let (method, arg) = (method.to_owned(), bytes(ops));
    let message = QueryMessage { sender, canister, method, arg, data_certificate: None };
    match node.engine.query(message, node.now) {
        QueryReply::Replied(reply) => Some(reply),
        QueryReply::Rejected(_) => None,
    }
}

fn take(node: &mut Node, canister_id: Principal) -> Snapshot {
    let args = TakeCanisterSnapshotArgs {
        canister_id,
        replace_snapshot: None,
        uninstall_code: None,
        sender_canister_version: None,
    };
    candid::decode_one(&node.manage("take_canister_snapshot", args).unwrap()).unwrap()
}

fn load(node: &mut Node, canister_id: Principal, snapshot: &Snapshot) {
    let snapshot_id = snapshot.id.clone();
    let args = LoadCanisterSnapshotArgs { canister_id, snapshot_id, sender_canister_version: None };
    node.manage("load_canister_snapshot", args).unwrap();
}

fn check(history: &[Step]) -> Result<(), TestCaseError> {
    let oracle = Oracle::new();
    let wasm = wat::parse_str(TABLES).unwrap();
    let mut node = Node::new();
    let id = node.deploy(&wasm);
    // The messages since the installation that succeeded.
    let mut messages: Vec<Ops> = Vec::new();
    let mut snapshots: Vec<(Snapshot, Vec<Ops>)> = Vec::new();
    for step in history {
        match step {
            Step::Update(ops) => {
                let expected = oracle.run(&messages, "canister_update change", ops);
                let outcome = node.update(id, "change", bytes(ops));
                prop_assert_eq!(outcome.is_ok(), expected.is_some(), "{:?}", outcome);
                if expected.is_some() {
                    messages.push(ops.clone());
                }
            }
            Step::Query(ops) => {
                let expected = oracle.run(&messages, "canister_query peek", ops);
                prop_assert!(query(&mut node, id, "peek", ops) == expected, "a query's own view");
            }
            Step::Reopen => node.reopen(),
            Step::Upgrade => {
                node.install(id, upgrade(None), &wasm).unwrap();
                messages.clear();
            }
            Step::Reinstall => {
                node.install(id, CanisterInstallMode::Reinstall, &wasm).unwrap();
                messages.clear();
            }
            Step::Take if snapshots.len() < 10 => {
                snapshots.push((take(&mut node, id), messages.clone()));
            }
            Step::Load(which) if !snapshots.is_empty() => {
                let (snapshot, then) = which.get(&snapshots);
                load(&mut node, id, snapshot);
                messages.clone_from(then);
            }
            Step::Take | Step::Load(_) => {}
        }
        let expected = oracle.run(&messages, "canister_query peek", &[]);
        prop_assert!(query(&mut node, id, "peek", &[]) == expected, "after {:?}", step);
    }
    Ok(())
}

proptest! {
    // `EXECUTION_HISTORIES=3000` runs longer.
    #![proptest_config(ProptestConfig {
        cases: std::env::var("EXECUTION_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(60),
        ..ProptestConfig::default()
    })]

    #[test]
    fn histories_leave_what_wasmtime_has(history in prop::collection::vec(step(), 1..25)) {
        check(&history)?;
    }
}

/// A canister that calls itself; the callbacks are entries of table 0 that the message before put there.
const CALLBACK: &str = r#"(module
    (import "ic0" "msg_reply" (func $reply))
    (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
    (import "ic0" "canister_self_copy" (func $self_copy (param i32 i32 i32)))
    (import "ic0" "canister_self_size" (func $self_size (result i32)))
    (import "ic0" "call_new" (func $call_new (param i32 i32 i32 i32 i32 i32 i32 i32)))
    (import "ic0" "call_perform" (func $perform (result i32)))
    (memory 1)
    (table $t 1 funcref)
    (table $other 0 funcref)
    (elem declare func $answered $refused)
    (data (i32.const 100) "pong")
    (func $answered (param i32) (call $append (i32.const 100) (i32.const 4)) (call $reply))
    (func $refused (param i32) (unreachable))
    (func (export "canister_update prepare")
        (drop (table.grow $t (ref.func $answered) (i32.const 3000)))
        (table.set $t (i32.const 0) (ref.func $refused))
        (call $reply))
    (func (export "canister_update ping")
        (call $self_copy (i32.const 0) (i32.const 0) (call $self_size))
        (call $call_new (i32.const 0) (call $self_size) (i32.const 100) (i32.const 4)
            (i32.const 3000) (i32.const 0) (i32.const 0) (i32.const 0))
        (if (call $perform) (then (unreachable))))
    (func (export "canister_update pong") (call $reply)))"#;

#[test]
fn callbacks_are_entries_that_a_message_before_a_restart_put_there() {
    let mut node = Node::new();
    let canister = node.deploy_wat(CALLBACK);
    let reject = node.update(canister, "ping", vec![]).unwrap_err();
    assert!(reject.message.contains("callback 3000 is not in the table"), "{reject}");
    node.update(canister, "prepare", vec![]).unwrap();
    for _ in 0..2 {
        assert_eq!(node.update(canister, "ping", vec![]).unwrap(), b"pong");
        node.reopen();
    }
}

/// Grows two tables by 500 000 entries each, and replies with what `table.grow` gave and the lengths.
const GROWING: &str = r#"(module
    (import "ic0" "msg_reply" (func $reply))
    (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
    (memory 1)
    (table $a 0 funcref)
    (table $b 0 100 funcref)
    (func $f)
    (elem declare func $f)
    (func $show
        (i64.store (i32.const 8) (i64.extend_i32_u (table.size $a)))
        (i64.store (i32.const 16) (i64.extend_i32_u (table.size $b)))
        (call $append (i32.const 0) (i32.const 24))
        (call $reply))
    (func $grow (param $by i32)
        (i64.store (i32.const 0) (i64.extend_i32_s (table.grow $a (ref.func $f) (local.get $by)))))
    (func (export "canister_update grow") (call $grow (i32.const 500000)) (call $show))
    (func (export "canister_update beyond_its_own_maximum")
        (i64.store (i32.const 0) (i64.extend_i32_s (table.grow $b (ref.func $f) (i32.const 101))))
        (call $show))
    (func (export "canister_update rest") (call $grow (i32.const 48576)) (call $show))
    (func (export "canister_update grow_and_trap") (call $grow (i32.const 500000)) (unreachable)))"#;

#[test]
fn tables_grow_to_the_limit_and_no_further_whatever_happened_before() {
    const NO: u64 = u64::MAX;
    let mut node = Node::with(execution::Limits::default(), 64 << 20);
    let canister = node.deploy_wat(GROWING);
    let grow = |node: &mut Node, method: &str| numbers(&node.update(canister, method, vec![]).unwrap());
    for _ in 0..3 {
        let reject = node.update(canister, "grow_and_trap", vec![]).unwrap_err();
        assert_eq!(reject.error_code, ErrorCode::CanisterTrapped);
        assert_eq!(grow(&mut node, "beyond_its_own_maximum"), [NO, 0, 0]);
    }
    assert_eq!(grow(&mut node, "grow"), [0, 500_000, 0]);
    node.reopen();
    node.update(canister, "grow_and_trap", vec![]).unwrap_err();
    assert_eq!(grow(&mut node, "grow"), [500_000, 1_000_000, 0]);
    for _ in 0..2 {
        assert_eq!(grow(&mut node, "grow"), [NO, 1_000_000, 0]);
        assert_eq!(grow(&mut node, "beyond_its_own_maximum"), [NO, 1_000_000, 0]);
        node.reopen();
    }
    // What is refused takes nothing of the room.
    assert_eq!(grow(&mut node, "beyond_its_own_maximum"), [NO, 1_000_000, 0]);
    assert_eq!(grow(&mut node, "rest"), [1_000_000, 1 << 20, 0]);
    node.reopen();
    assert_eq!(grow(&mut node, "rest"), [NO, 1 << 20, 0]);
}

/// A table may change from the start function on; without a memory, too.
#[test]
fn what_the_start_function_put_into_a_table_is_kept() {
    let mut node = Node::new();
    let canister = node.deploy_wat(
        r#"(module
            (import "ic0" "msg_reply" (func $reply))
            (table $t 1 funcref)
            (func $start (table.set $t (i32.const 0) (ref.func $reply)))
            (elem declare func $reply)
            (start $start)
            (func (export "canister_query ask") (call_indirect $t (i32.const 0)))
            (func (export "canister_update call") (call_indirect $t (i32.const 0)))
            (func (export "canister_update empty") (table.set $t (i32.const 0) (ref.null func)) (call $reply)))"#,
    );
    for _ in 0..2 {
        node.query(canister, "ask").unwrap();
        node.update(canister, "call", vec![]).unwrap();
        node.reopen();
    }
    node.update(canister, "empty", vec![]).unwrap();
    for _ in 0..2 {
        assert_eq!(node.update(canister, "call", vec![]).unwrap_err().error_code, ErrorCode::CanisterTrapped);
        node.query(canister, "ask").unwrap_err();
        node.reopen();
    }
}

#[test]
fn references_of_the_host_are_refused_by_name() {
    let mut node = Node::new();
    let canister = node.create();
    for (module, why) in [
        ("(module (memory 1) (table 1 externref))", "externref"),
        ("(module (memory 1) (global (mut funcref) (ref.null func)))", "holds a reference"),
        ("(module (import \"ic0\" \"t\" (table 1 funcref)))", "import ic0.t"),
    ] {
        let module = wat::parse_str(module).unwrap();
        let reject = node.install(canister, CanisterInstallMode::Install, &module).unwrap_err();
        assert!(reject.message.contains(why), "{reject}");
    }
}
