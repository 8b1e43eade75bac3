//! Programs of the official Motoko compiler, with enhanced orthogonal persistence.
//!
//! The modules come from the directory that REDOUBT_MOTOKO_WASM names, or are compiled with the npm package
//! `motoko` below the workspace's tests/js; without either, these tests say that they skip.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;
mod programs;

use candid::{CandidType, Decode, Nat};
use common::{Node, upgrade};
use execution::{ErrorCode, Limits};
use ic_management_canister_types::{CanisterInstallMode, WasmMemoryPersistence::*};
use serde::Deserialize;

fn module(name: &str) -> Vec<u8> {
    std::fs::read(programs::motoko().unwrap().join(name).with_extension("wasm")).unwrap()
}

fn node() -> Option<Node> {
    programs::motoko()?;
    Some(Node::with(Limits::default(), 256 << 20))
}

fn arg() -> Vec<u8> {
    candid::encode_args(()).unwrap()
}

fn decode<T: CandidType + for<'a> Deserialize<'a>>(reply: &[u8]) -> T {
    Decode!(reply, T).unwrap()
}

impl Node {
    fn ask<T: CandidType + for<'a> Deserialize<'a>>(&mut self, id: candid::Principal, method: &str) -> T {
        let message = execution::QueryMessage {
            sender: common::controller(),
            canister: id,
            method: method.to_owned(),
            arg: arg(),
            data_certificate: None,
        };
        match self.engine.query(message, self.now) {
            execution::QueryReply::Replied(reply) => decode(&reply),
            execution::QueryReply::Rejected(reject) => panic!("{reject}"),
        }
    }
}

#[test]
fn a_counter_counts_traps_and_survives() {
    let Some(mut node) = node() else { return };
    let id = node.deploy(&module("counter_v1"));
    for expected in 1..4u32 {
        let count: Nat = decode(&node.update(id, "inc", arg()).unwrap());
        assert_eq!(count, Nat::from(expected));
        assert_eq!(node.ask::<Nat>(id, "get"), Nat::from(expected));
    }
    let reject = node.update(id, "fail", arg()).unwrap_err();
    assert_eq!(reject.error_code, ErrorCode::CanisterCalledTrap);
    assert!(reject.message.contains("assertion failed"), "{reject}");
    assert_eq!(node.ask::<Nat>(id, "get"), Nat::from(3u32));
    node.reopen();
    assert_eq!(node.ask::<Nat>(id, "get"), Nat::from(3u32));
    let count: Nat = decode(&node.update(id, "inc", arg()).unwrap());
    assert_eq!(count, Nat::from(4u32));
}

#[test]
fn upgrades_keep_data_or_are_refused() {
    let Some(mut node) = node() else { return };
    let id = node.deploy(&module("counter_v1"));
    node.update(id, "inc", arg()).unwrap();
    // The memory to keep must be found after a restart, too.
    node.reopen();
    let reject = node.install(id, upgrade(None), &module("counter_v2")).unwrap_err();
    assert_eq!(reject.error_code, ErrorCode::CanisterContractViolation);
    assert!(reject.message.contains("Missing upgrade option"), "{reject}");

    let plain = wat::parse_str("(module (memory i64 1))").unwrap();
    let reject = node.install(id, upgrade(Some(Keep)), &plain).unwrap_err();
    assert!(reject.message.contains("Invalid upgrade option"), "{reject}");

    let reject = node.install(id, upgrade(Some(Keep)), &module("counter_bad")).unwrap_err();
    assert!(reject.message.contains("incompatible"), "{reject}");
    assert_eq!(node.ask::<Nat>(id, "get"), Nat::from(1u32));

    node.install(id, upgrade(Some(Keep)), &module("counter_v2")).unwrap();
    assert_eq!(node.ask::<Nat>(id, "get"), Nat::from(1u32));
    assert_eq!(node.ask::<String>(id, "title"), "two");
    let count: Nat = decode(&node.update(id, "inc", arg()).unwrap());
    assert_eq!(count, Nat::from(2u32));

    // Back to the first version would drop a variable.
    node.install(id, upgrade(Some(Keep)), &module("counter_v1")).unwrap_err();
    assert_eq!(node.ask::<Nat>(id, "get"), Nat::from(2u32));
    node.install(id, upgrade(Some(Replace)), &module("counter_v2")).unwrap();
    assert_eq!(node.ask::<Nat>(id, "get"), Nat::from(0u32));
    node.install(id, CanisterInstallMode::Reinstall, &module("counter_bad")).unwrap();
    assert_eq!(node.ask::<String>(id, "get"), "");
}

#[test]
fn awaiting_the_management_canister_and_oneself() {
    let Some(mut node) = node() else { return };
    let id = node.deploy(&module("system"));
    let random: Vec<u8> = decode(&node.update(id, "random", arg()).unwrap());
    assert_eq!(random, [1; 32]);
    assert_eq!(node.ask::<Vec<u8>>(id, "get"), [1; 32]);
    let four: Nat = decode(&node.update(id, "four", arg()).unwrap());
    assert_eq!(four, Nat::from(4u32));
}
