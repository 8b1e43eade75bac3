//! Memories larger than what is copied for a rollback, read page by page or as a whole.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use common::{Node, numbers};
use execution::{ErrorCode, Limits};

/// 2048 pages of 4 KiB. `fill` writes the number of the call into each, `sum` adds up what is there.
const PAGES: &str = r#"(module
    (import "ic0" "msg_reply" (func $reply))
    (import "ic0" "msg_reply_data_append" (func $append (param WIDTH WIDTH)))
    (memory WIDTH 128)
    (global $calls (mut i64) (i64.const 0))
    (func $fill
        (local $at WIDTH)
        (global.set $calls (i64.add (global.get $calls) (i64.const 1)))
        (loop $next
            (i64.store offset=40 (local.get $at) (global.get $calls))
            (local.set $at (WIDTH.add (local.get $at) (WIDTH.const 4096)))
            (br_if $next (WIDTH.lt_u (local.get $at) (WIDTH.const 8388608)))))
    (func (export "canister_update fill") (call $fill) (call $reply))
    (func (export "canister_update fill_and_trap") (call $fill) (unreachable))
    (func (export "canister_update fill_grow_and_trap")
        (call $fill)
        (drop (memory.grow (WIDTH.const 1)))
        (i64.store (WIDTH.const 8388608) (i64.const 1))
        (unreachable))
    ;; The last store begins in the last page, which was not touched, and ends behind the memory.
    (func (export "canister_update fill_and_cross_the_end")
        (local $at WIDTH)
        (loop $next
            (i64.store (local.get $at) (i64.const 99))
            (local.set $at (WIDTH.add (local.get $at) (WIDTH.const 4096)))
            (br_if $next (WIDTH.lt_u (local.get $at) (WIDTH.const 8380416))))
        (v128.store (WIDTH.const 8388600) (v128.const i64x2 1 1)))
    (func (export "canister_update run_into")
        (i64.store (WIDTH.const 12284) (i64.const -1))
        (call $reply))
    (func (export "canister_update run_into_and_trap")
        (i64.store (WIDTH.const 20476) (i64.const -1))
        (i64.store (WIDTH.const 20480) (i64.const -1))
        (i64.store (WIDTH.const 28668) (i64.const -1))
        (unreachable))
    (func (export "canister_query sum")
        (local $at WIDTH) (local $sum i64)
        (loop $next
            (local.set $sum (i64.add (local.get $sum) (i64.load offset=40 (local.get $at))))
            (local.set $sum (i64.add (local.get $sum) (i64.load (local.get $at))))
            (local.set $at (WIDTH.add (local.get $at) (WIDTH.const 4096)))
            (br_if $next (WIDTH.lt_u (local.get $at) (WIDTH.const 8388608))))
        (i64.store (WIDTH.const 0) (local.get $sum))
        (i64.store (WIDTH.const 8) (i64.extend_i32_u (i32.load (WIDTH.const 12284))))
        (i64.store (WIDTH.const 16) (i64.extend_i32_u (i32.load (WIDTH.const 12288))))
        (i64.store (WIDTH.const 24) (SIZE))
        (call $append (WIDTH.const 0) (WIDTH.const 32))
        (call $reply)))"#;

fn each(check: impl Fn(Node, candid::Principal)) {
    for lazy in [true, false] {
        for (width, size) in [("i32", "i64.extend_i32_u (memory.size)"), ("i64", "memory.size")] {
            let mut node = Node::choosing(Limits::default(), 64 << 20, lazy);
            assert!(lazy || !node.engine.lazy_memory());
            let module = PAGES.replace("(SIZE)", &format!("({size})")).replace("WIDTH", width);
            let canister = node.deploy_wat(&module);
            check(node, canister);
        }
    }
}

#[test]
fn a_message_that_changes_very_many_pages_is_undone() {
    each(|mut node, canister| {
        node.update(canister, "fill", vec![]).unwrap();
        let expected = [2048, 0, 0, 128];
        for reopen in [false, true, false] {
            for method in ["fill_and_trap", "fill_grow_and_trap", "fill_and_cross_the_end"] {
                if reopen {
                    node.reopen();
                }
                let reject = node.update(canister, method, vec![]).unwrap_err();
                assert_eq!(reject.error_code, ErrorCode::CanisterTrapped);
                assert_eq!(numbers(&node.query(canister, "sum").unwrap()), expected, "{method}");
            }
        }
        node.update(canister, "fill", vec![]).unwrap();
        assert_eq!(numbers(&node.query(canister, "sum").unwrap())[0], 2 * 2048);
        node.reopen();
        assert_eq!(numbers(&node.query(canister, "sum").unwrap())[0], 2 * 2048);
    });
}

#[test]
fn a_store_that_runs_into_the_next_page_is_committed_and_undone() {
    each(|mut node, canister| {
        for _ in 0..2 {
            node.update(canister, "run_into_and_trap", vec![]).unwrap_err();
            assert_eq!(numbers(&node.query(canister, "sum").unwrap()), [0, 0, 0, 128]);
            node.reopen();
        }
        node.update(canister, "run_into", vec![]).unwrap();
        node.update(canister, "run_into_and_trap", vec![]).unwrap_err();
        let half = u64::from(u32::MAX);
        assert_eq!(numbers(&node.query(canister, "sum").unwrap()), [half, half, half, 128]);
        node.reopen();
        assert_eq!(numbers(&node.query(canister, "sum").unwrap()), [half, half, half, 128]);
    });
}

/// Whatever is damaged on the medium while the engine runs, a query is answered right or with a reject.
#[test]
fn damaged_pages_are_answered_with_a_reject() {
    for lazy in [true, false] {
        let mut node = Node::choosing(Limits::default(), 64 << 20, lazy);
        let canister =
            node.deploy_wat(&PAGES.replace("SIZE", "i64.extend_i32_u (memory.size)").replace("WIDTH", "i32"));
        node.update(canister, "fill", vec![]).unwrap();
        node.reopen();
        // Everything behind the first megabyte, where little but pages of memory lies.
        let spoil = |bytes: &mut [u8]| bytes[1 << 20..].iter_mut().for_each(|byte| *byte ^= 1);
        node.media.with_bytes(spoil);
        let reject = node.query(canister, "sum").unwrap_err();
        assert!(reject.message.contains("damaged"), "{reject}");
        node.media.with_bytes(spoil);
        assert_eq!(numbers(&node.query(canister, "sum").unwrap()), [2048, 0, 0, 128]);
        node.update(canister, "fill", vec![]).unwrap();
        assert_eq!(numbers(&node.query(canister, "sum").unwrap())[0], 2 * 2048);
    }
}
