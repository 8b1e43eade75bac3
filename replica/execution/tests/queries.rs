//! Queries on other threads: each sees one committed state as a whole, while updates go on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Node, numbers, upgrade};
use execution::{ErrorCode, Queries, QueryMessage, QueryReply};
use ic_management_canister_types::WasmMemoryPersistence::Keep;

/// 40 counters, each in a page of its own, and one in stable memory; they go up together. The query says the least
/// and the greatest, and leaves rubbish behind.
const COUNTERS: &str = r#"(module
    (import "ic0" "msg_reply" (func $reply))
    (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
    (import "ic0" "stable64_grow" (func $stable_grow (param i64) (result i64)))
    (import "ic0" "stable64_write" (func $stable_write (param i64 i64 i64)))
    (import "ic0" "stable64_read" (func $stable_read (param i64 i64 i64)))
    (memory 4)
    (global $count (mut i64) (i64.const 0))
    (func (export "canister_init") (drop (call $stable_grow (i64.const 1))))
    (func $all (param $add i64) (result i64 i64)
        (local $at i32) (local $least i64) (local $most i64) (local $value i64)
        (local.set $least (global.get $count))
        (local.set $most (global.get $count))
        (loop $next
            (local.set $at (i32.add (local.get $at) (i32.const 4096)))
            (local.set $value (i64.load (local.get $at)))
            (i64.store (local.get $at) (i64.add (local.get $value) (local.get $add)))
            (if (i64.lt_u (local.get $value) (local.get $least)) (then (local.set $least (local.get $value))))
            (if (i64.gt_u (local.get $value) (local.get $most)) (then (local.set $most (local.get $value))))
            (br_if $next (i32.lt_u (local.get $at) (i32.const 163840))))
        (call $stable_read (i64.const 8) (i64.const 0) (i64.const 8))
        (local.set $value (i64.load (i32.const 8)))
        (if (i64.lt_u (local.get $value) (local.get $least)) (then (local.set $least (local.get $value))))
        (if (i64.gt_u (local.get $value) (local.get $most)) (then (local.set $most (local.get $value))))
        (local.get $least)
        (local.get $most))
    (func (export "canister_update step")
        (local $most i64)
        (call $all (i64.const 1))
        (local.set $most)
        (drop)
        (global.set $count (i64.add (global.get $count) (i64.const 1)))
        (i64.store (i32.const 8) (i64.add (local.get $most) (i64.const 1)))
        (call $stable_write (i64.const 0) (i64.const 8) (i64.const 8))
        (call $reply))
    (func (export "canister_update grow") (drop (memory.grow (i32.const 1))) (call $reply))
    (func (export "canister_query read")
        (local $least i64) (local $most i64)
        (call $all (i64.const 1000000))
        (local.set $most)
        (local.set $least)
        (drop (memory.grow (i32.const 1)))
        (i64.store (i32.const 16) (local.get $least))
        (i64.store (i32.const 24) (local.get $most))
        (call $append (i32.const 16) (i32.const 16))
        (global.set $count (i64.const 5))
        (call $reply))
    (func (export "canister_query spin") (loop $again (br $again))))"#;

fn ask(queries: &Queries, canister: candid::Principal, method: &str) -> QueryReply {
    let message = QueryMessage {
        sender: common::controller(),
        canister,
        method: method.to_owned(),
        arg: Vec::new(),
        data_certificate: None,
    };
    queries.query(message, 1_700_000_000 * common::SECOND)
}

fn count(queries: &Queries, canister: candid::Principal) -> u64 {
    match ask(queries, canister, "read") {
        QueryReply::Replied(reply) => {
            let [least, most] = numbers(&reply)[..] else { panic!("{reply:?}") };
            assert_eq!(least, most, "a torn state");
            least
        }
        QueryReply::Rejected(reject) => panic!("{reject}"),
    }
}

fn readers_see_whole_states(lazy: bool) {
    let mut node = Node::choosing(common::limits(), 64 << 20, lazy);
    let module = wat::parse_str(COUNTERS).unwrap();
    let canister = node.deploy(&module);
    node.engine.publish();
    let (done, least, asked) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let queries = node.engine.queries();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let (queries, done, least, asked) = (&queries, &done, &least, &asked);
            let read = move || {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let promised = least.load(Ordering::SeqCst);
                    let count = count(queries, canister);
                    assert!(count >= promised, "what was published is seen");
                    assert!(count >= last, "time goes one way");
                    last = count;
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            };
            std::thread::Builder::new().stack_size(8 << 20).spawn_scoped(scope, read).unwrap();
        }
        for step in 1..=300 {
            node.update(canister, "step", vec![]).unwrap();
            match step % 40 {
                10 => drop(node.update(canister, "grow", vec![]).unwrap()),
                20 => drop(node.install(canister, upgrade(Some(Keep)), &module).unwrap_err()),
                30 => drop(node.update(canister, "no_such_method", vec![]).unwrap_err()),
                _ => {}
            }
            node.engine.publish();
            least.store(step, Ordering::SeqCst);
        }
        while asked.load(Ordering::Relaxed) < 30 {
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(count(&queries, canister), 300);
}

#[test]
fn readers_see_whole_states_page_by_page() {
    readers_see_whole_states(true);
}

#[test]
fn readers_see_whole_states_loaded_at_once() {
    readers_see_whole_states(false);
}

#[test]
fn a_state_can_be_read_after_others_followed() {
    let mut node = Node::new();
    let canister = node.deploy_wat(COUNTERS);
    node.engine.publish();
    let queries = node.engine.queries();
    let before = queries.published();
    for _ in 0..5 {
        node.update(canister, "step", vec![]).unwrap();
    }
    assert_eq!(count(&queries, canister), 0, "not published yet");
    node.engine.publish();
    assert_eq!(count(&queries, canister), 5);
    let message = QueryMessage {
        sender: common::controller(),
        canister,
        method: "read".into(),
        arg: Vec::new(),
        data_certificate: None,
    };
    let QueryReply::Replied(reply) = queries.query_at(&before, message, node.now) else { panic!() };
    assert_eq!(numbers(&reply), [0, 0]);
    assert_eq!(count(&queries, canister), 5);
}

#[test]
fn a_query_without_end_is_ended_and_others_do_not_wait() {
    let mut node = Node::new();
    let canister = node.deploy_wat(COUNTERS);
    node.engine.publish();
    let queries = node.engine.queries();
    std::thread::scope(|scope| {
        let spinning = scope.spawn(|| ask(&queries, canister, "spin"));
        assert_eq!(count(&queries, canister), 0);
        let QueryReply::Rejected(reject) = spinning.join().unwrap() else { panic!() };
        assert_eq!(reject.error_code, ErrorCode::CanisterInstructionLimitExceeded);
    });
    let QueryReply::Rejected(reject) = ask(&queries, common::nobody(), "read") else { panic!() };
    assert_eq!(reject.error_code, ErrorCode::CanisterNotFound);
}
