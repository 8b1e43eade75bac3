//! A medium that is full.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use candid::Principal;
use common::{Node, limits, numbers};
use execution::{ErrorCode, Reject};
use ic_management_canister_types::CanisterIdRecord;

/// `take` writes 16 pages of stable memory that were never written, `touch` one; `size` says how far that went.
const TAKER: &str = r#"(module
    (import "ic0" "msg_reply" (func $reply))
    (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
    (import "ic0" "stable64_grow" (func $grow (param i64) (result i64)))
    (import "ic0" "stable64_size" (func $size (result i64)))
    (import "ic0" "stable64_write" (func $write (param i64 i64 i64)))
    (memory 2)
    (func (export "canister_update take")
        (memory.fill (i32.const 1024) (i32.const 7) (i32.const 65536))
        (call $write (i64.mul (call $grow (i64.const 1)) (i64.const 65536)) (i64.const 1024) (i64.const 65536))
        (call $reply))
    (func (export "canister_update touch")
        (call $write (i64.mul (call $grow (i64.const 1)) (i64.const 65536)) (i64.const 1024) (i64.const 4096))
        (call $reply))
    (func (export "canister_query size")
        (i64.store (i32.const 0) (call $size))
        (call $append (i32.const 0) (i32.const 8))
        (call $reply)))"#;

/// Calls, and lets queries see it, as the replica does after each round: what they see cannot be used again.
fn update(node: &mut Node, canister: Principal, method: &str) -> Result<Vec<u8>, Reject> {
    let answer = node.update(canister, method, vec![]);
    node.engine.publish();
    answer
}

/// Calls until it is refused; how often it was not.
fn until_refused(node: &mut Node, canister: Principal, method: &str) -> (u64, Reject) {
    for count in 0.. {
        if let Err(reject) = update(node, canister, method) {
            return (count, reject);
        }
    }
    panic!("never refused");
}

#[test]
fn messages_are_refused_nothing_is_lost_and_freed_space_makes_it_go_on() {
    let mut node = Node::with(limits(), 16 << 20);
    let (kept, taker) = (node.deploy_wat(TAKER), node.deploy_wat(TAKER));
    node.update(kept, "take", vec![]).unwrap();
    let (taken, reject) = until_refused(&mut node, taker, "take");
    assert!(taken > 100, "only {taken} messages were stored");
    assert_eq!(reject.error_code, ErrorCode::SubnetOversubscribed);
    assert!(reject.message.contains("medium is full"), "{reject:?}");
    // Smaller ones go on, until they do not either.
    let (mut touched, _) = until_refused(&mut node, taker, "touch");
    assert!(touched > 0);
    // However often it is tried, there is room to say no.
    let mut refused = 0;
    while refused < 100 {
        match update(&mut node, taker, "touch") {
            Ok(_) => touched += 1,
            Err(reject) => {
                assert_eq!(reject.error_code, ErrorCode::SubnetOversubscribed, "{reject:?}");
                refused += 1;
            }
        }
    }
    let size = |node: &mut Node, canister| numbers(&node.query(canister, "size").unwrap())[0];
    assert_eq!((size(&mut node, taker), size(&mut node, kept)), (taken + touched, 1));
    node.reopen();
    assert_eq!((size(&mut node, taker), size(&mut node, kept)), (taken + touched, 1));
    node.manage("uninstall_code", CanisterIdRecord { canister_id: taker }).unwrap();
    node.engine.publish();
    // What was deleted is freed in steps, with the commits that follow.
    for _ in 0..20 {
        node.manage("canister_status", CanisterIdRecord { canister_id: kept }).unwrap();
        node.engine.publish();
    }
    let fresh = node.deploy_wat(TAKER);
    for _ in 0..taken / 2 {
        update(&mut node, fresh, "take").unwrap();
    }
    node.reopen();
    assert_eq!((size(&mut node, fresh), size(&mut node, kept)), (taken / 2, 1));
}
