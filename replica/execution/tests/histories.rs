//! Random histories of calls, traps, growth, upgrades, snapshots and restarts, against a model in memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use candid::Principal;
use common::{Node, upgrade};
use execution::{Limits, QueryMessage, QueryReply};
use ic_management_canister_types::{
    CanisterIdRecord, CanisterInstallMode, DeleteCanisterSnapshotArgs, LoadCanisterSnapshotArgs, Snapshot,
    TakeCanisterSnapshotArgs, WasmMemoryPersistence::*,
};
use proptest::prelude::*;

const PAGE: usize = 65536;
const PASSIVE: [u8; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const MEMORY_PAGES: usize = 6;
const STABLE_PAGES: usize = 3;

fn module(memory64: bool) -> Vec<u8> {
    let (width, to64) = if memory64 { ("i64", "") } else { ("i32", "i64.extend_i32_u") };
    let text = include_str!("wat/pokes.wat").replace("WIDTH", width);
    let text = if memory64 {
        text.replace("(TO64 (local.get $address))", "(local.get $address)")
            .replace("(TO64 (local.get $length))", "(local.get $length)")
    } else {
        text.replace("TO64", to64)
    };
    wat::parse_str(text).unwrap()
}

/// One operation of the program.
#[derive(Debug, Clone, Copy)]
struct Op {
    number: u64,
    address: u64,
    value: u64,
    length: u64,
}

#[derive(Debug, Clone)]
enum Step {
    Update(Vec<Op>),
    Query(Vec<Op>),
    Reopen,
    Upgrade { keep: bool },
    Reinstall,
    Take,
    Load(prop::sample::Index),
    Delete(prop::sample::Index),
}

/// What the program's state should be.
#[derive(Debug, Clone, PartialEq)]
struct Model {
    memory: Vec<u8>,
    stable: Vec<u8>,
    globals: Vec<u8>,
}

fn globals(narrow: u32, wide: u64, single: u32, double: u64, vector: [u64; 2]) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    bytes[0..4].copy_from_slice(&narrow.to_le_bytes());
    bytes[8..16].copy_from_slice(&wide.to_le_bytes());
    bytes[16..20].copy_from_slice(&single.to_le_bytes());
    bytes[24..32].copy_from_slice(&double.to_le_bytes());
    bytes[32..40].copy_from_slice(&vector[0].to_le_bytes());
    bytes[40..48].copy_from_slice(&vector[1].to_le_bytes());
    bytes
}

impl Model {
    fn new() -> Self {
        let mut memory = vec![0; 2 * PAGE];
        memory[70000..70006].copy_from_slice(b"active");
        let globals = globals(7, 8, 1.5f32.to_bits(), 2.5f64.to_bits(), [3, 4]);
        Self { memory, stable: Vec::new(), globals }
    }

    /// `None` if the program traps.
    fn perform(&mut self, ops: &[Op]) -> Option<()> {
        for op in ops {
            let Op { number, address, value, length } = *op;
            let mut store = |address: u64, bytes: &[u8]| {
                let start = address as usize;
                self.memory.get_mut(start..start + bytes.len())?.copy_from_slice(bytes);
                Some(())
            };
            let bytes = value.to_le_bytes();
            let narrow = &bytes[..4];
            match number {
                0 | 8 | 10 => store(address, &bytes)?,
                1 => store(address + 5, narrow)?,
                2 | 5 => store(address, &bytes[..2])?,
                3 => store(address + 4096, &bytes[..1])?,
                4 | 7 => store(address, narrow)?,
                6 => store(address, &bytes[..1])?,
                9 => store(address, &[bytes, bytes].concat())?,
                11 => store(address, &vec![bytes[0]; length as usize])?,
                12 => {
                    let source = self.memory.get(65600..65600 + length as usize)?.to_vec();
                    let start = address as usize;
                    self.memory.get_mut(start..start + source.len())?.copy_from_slice(&source);
                }
                13 => store(address, &PASSIVE[3..15])?,
                14 => {
                    if self.memory.len() < MEMORY_PAGES * PAGE {
                        self.memory.resize(self.memory.len() + PAGE, 0);
                    }
                }
                15 => {
                    if self.stable.len() < STABLE_PAGES * PAGE {
                        self.stable.resize(self.stable.len() + PAGE, 0);
                    }
                }
                16 => {
                    let (start, end) = (address as usize, (address + length) as usize);
                    let source = self.memory.get(65536..65536 + length as usize)?;
                    self.stable.get_mut(start..end)?.copy_from_slice(source);
                }
                17 => {
                    let (start, end) = (address as usize, (address + length) as usize);
                    let source = self.stable.get(start..end)?;
                    self.memory.get_mut(66000..66000 + length as usize)?.copy_from_slice(source);
                }
                18 => {
                    let narrow = value as u32;
                    self.globals = globals(narrow, value, narrow, value, [value, value]);
                }
                _ => return None,
            }
        }
        Some(())
    }

    fn shown(&self) -> Vec<u8> {
        let stable = (self.stable.len() / PAGE) as u64;
        [&self.globals[..], &stable.to_le_bytes(), &self.memory[4096..], &self.stable].concat()
    }
}

fn arg(ops: &[Op]) -> Vec<u8> {
    ops.iter()
        .flat_map(|op| [op.number, op.address, op.value, op.length])
        .flat_map(u64::to_le_bytes)
        .collect()
}

fn op() -> impl Strategy<Value = Op> {
    // Often at the end of a page, or of the memory.
    let near = (1u64..7, 0u64..24).prop_map(|(page, back)| page * PAGE as u64 + 16 - back);
    let small = (1u64..40, 0u64..24).prop_map(|(page, back)| (page + 1) * 4096 + 8 - back);
    let address = prop_oneof![4096..(3 * PAGE as u64), near, small];
    let number = prop_oneof![10 => 0u64..14, 2 => 14u64..19, 1 => Just(19u64)];
    (number, address, any::<u64>(), 0u64..10_000).prop_map(|(number, address, value, length)| {
        // Operations on stable memory, which is smaller.
        let address = if matches!(number, 16 | 17) { address % (2 * PAGE as u64) } else { address };
        Op { number, address, value, length }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => prop::collection::vec(op(), 0..20).prop_map(Step::Update),
        4 => prop::collection::vec(op(), 0..20).prop_map(Step::Query),
        2 => Just(Step::Reopen),
        2 => any::<bool>().prop_map(|keep| Step::Upgrade { keep }),
        1 => Just(Step::Reinstall),
        1 => Just(Step::Take),
        1 => any::<prop::sample::Index>().prop_map(Step::Load),
        1 => any::<prop::sample::Index>().prop_map(Step::Delete),
    ]
}

fn ask(node: &mut Node, canister: Principal, method: &str, ops: &[Op]) -> Option<Vec<u8>> {
    let message = QueryMessage {
        sender: common::controller(),
        canister,
        method: method.to_owned(),
        arg: arg(ops),
        data_certificate: None,
    };
    match node.engine.query(message, node.now) {
        QueryReply::Replied(reply) => Some(reply),
        QueryReply::Rejected(_) => None,
    }
}

fn check(history: &[Step], memory64: bool, lazy: bool) -> Result<(), TestCaseError> {
    let limits = Limits {
        memory32_bytes: (MEMORY_PAGES * PAGE) as u64,
        memory64_bytes: (MEMORY_PAGES * PAGE) as u64,
        stable_bytes: (STABLE_PAGES * PAGE) as u64,
        ..common::limits()
    };
    let mut node = Node::choosing(limits, 64 << 20, lazy);
    let wasm = module(memory64);
    let id = node.deploy(&wasm);
    let mut model = Model::new();
    let mut snapshots: Vec<(Snapshot, Model)> = Vec::new();
    for step in history {
        match step {
            Step::Update(ops) => {
                let mut after = model.clone();
                let expected = after.perform(ops);
                let outcome = node.update(id, "poke", arg(ops));
                prop_assert_eq!(outcome.is_ok(), expected.is_some(), "{:?}", outcome);
                if expected.is_some() {
                    model = after;
                }
            }
            Step::Query(ops) => {
                let mut after = model.clone();
                let expected = after.perform(ops).map(|()| after.shown());
                prop_assert!(ask(&mut node, id, "peek", ops) == expected, "a query's own view");
            }
            Step::Reopen => node.reopen(),
            Step::Upgrade { keep } => {
                node.install(id, upgrade(Some(if *keep { Keep } else { Replace })), &wasm).unwrap();
                let fresh = Model::new();
                model = Model {
                    memory: if *keep { model.memory } else { fresh.memory },
                    stable: model.stable,
                    globals: fresh.globals,
                };
            }
            Step::Reinstall => {
                node.install(id, CanisterInstallMode::Reinstall, &wasm).unwrap();
                model = Model::new();
            }
            Step::Take => {
                let args = TakeCanisterSnapshotArgs {
                    canister_id: id,
                    replace_snapshot: (snapshots.len() >= 3).then(|| snapshots[0].0.id.clone()),
                    uninstall_code: None,
                    sender_canister_version: None,
                };
                let replaced = args.replace_snapshot.is_some();
                let reply = node.manage("take_canister_snapshot", args).unwrap();
                if replaced {
                    snapshots.remove(0);
                }
                snapshots.push((candid::decode_one(&reply).unwrap(), model.clone()));
            }
            Step::Load(which) if !snapshots.is_empty() => {
                let (snapshot, state) = which.get(&snapshots);
                let args = LoadCanisterSnapshotArgs {
                    canister_id: id,
                    snapshot_id: snapshot.id.clone(),
                    sender_canister_version: None,
                };
                node.manage("load_canister_snapshot", args).unwrap();
                model = state.clone();
            }
            Step::Delete(which) if !snapshots.is_empty() => {
                let (snapshot, _) = snapshots.remove(which.index(snapshots.len()));
                let args = DeleteCanisterSnapshotArgs { canister_id: id, snapshot_id: snapshot.id.clone() };
                node.manage("delete_canister_snapshot", args).unwrap();
            }
            Step::Load(_) | Step::Delete(_) => {}
        }
        prop_assert!(ask(&mut node, id, "show", &[]) == Some(model.shown()), "after {:?}", step);
        let list = node.manage("list_canister_snapshots", CanisterIdRecord { canister_id: id }).unwrap();
        let list: Vec<Snapshot> = candid::decode_one(&list).unwrap();
        prop_assert!(list.iter().eq(snapshots.iter().map(|(snapshot, _)| snapshot)));
    }
    Ok(())
}

/// Histories per property; `EXECUTION_HISTORIES=3000` runs longer.
fn cases() -> ProptestConfig {
    let cases = std::env::var("EXECUTION_HISTORIES").ok().and_then(|text| text.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(60), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn histories_leave_what_the_model_says(
        history in prop::collection::vec(step(), 1..25),
        memory64: bool,
        lazy: bool,
    ) {
        check(&history, memory64, lazy)?;
    }
}
