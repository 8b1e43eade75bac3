//! The largest memories that the Internet Computer allows, of which little is touched; and a machine without memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use common::{Node, numbers};
use execution::{ErrorCode, Limits};

const GIB: u64 = 1 << 30;

/// `grow` grows the memory to `PAGES` wasm pages and writes to both ends; `more` asks for one page more; `show` says
/// how long the memory is and what is at both ends.
const LARGE: &str = r#"(module
    (import "ic0" "msg_reply" (func $reply))
    (import "ic0" "msg_reply_data_append" (func $append (param WIDTH WIDTH)))
    (memory WIDTH 1)
    (func (export "canister_update grow")
        (drop (memory.grow (WIDTH.sub (WIDTH.const PAGES) (memory.size))))
        (i64.store (WIDTH.const 100) (i64.add (i64.load (WIDTH.const 100)) (i64.const 1)))
        (i64.store (WIDTH.const LAST) (i64.add (i64.load (WIDTH.const LAST)) (i64.const 2)))
        (call $reply))
    (func (export "canister_update grow_and_trap")
        (drop (memory.grow (WIDTH.sub (WIDTH.const PAGES) (memory.size))))
        (i64.store (WIDTH.const LAST) (i64.const 7))
        (unreachable))
    (func (export "canister_update more")
        (i64.store (WIDTH.const 100) (EXTEND (memory.grow (WIDTH.const 1))))
        (call $append (WIDTH.const 100) (WIDTH.const 8))
        (call $reply))
    (func (export "canister_query show")
        (i64.store (WIDTH.const 0) (EXTEND (memory.size)))
        (i64.store (WIDTH.const 8) (i64.load (WIDTH.const 100)))
        (i64.store (WIDTH.const 16) (i64.load (WIDTH.const LAST)))
        (call $append (WIDTH.const 0) (WIDTH.const 24))
        (call $reply)))"#;

fn grows_to(width: &str, bytes: u64) {
    let pages = bytes / 65536;
    let extend = if width == "i32" { "i64.extend_i32_s" } else { "i64.add (i64.const 0)" };
    let module = LARGE.replace("WIDTH", width).replace("EXTEND", extend);
    let module = module.replace("PAGES", &pages.to_string()).replace("LAST", &(bytes - 8).to_string());
    for lazy in [true, false] {
        let mut node = Node::choosing(Limits::default(), 8 << 20, lazy);
        let canister = node.deploy_wat(&module);
        let reject = node.update(canister, "grow_and_trap", vec![]).unwrap_err();
        assert_eq!(reject.error_code, ErrorCode::CanisterTrapped);
        for count in 1..=3 {
            node.update(canister, "grow", vec![]).unwrap();
            assert_eq!(numbers(&node.query(canister, "show").unwrap()), [pages, count, 2 * count]);
            node.update(canister, "grow_and_trap", vec![]).unwrap_err();
            node.reopen();
            assert_eq!(numbers(&node.query(canister, "show").unwrap()), [pages, count, 2 * count]);
        }
        assert_eq!(numbers(&node.update(canister, "more", vec![]).unwrap()), [u64::MAX]);
        assert_eq!(numbers(&node.query(canister, "show").unwrap())[0], pages);
    }
}

#[test]
fn a_memory_of_32_bits_grows_to_4_gib() {
    grows_to("i32", 4 * GIB);
}

#[test]
fn a_memory_of_64_bits_grows_to_6_gib() {
    grows_to("i64", 6 * GIB);
}

/// `grow` grows to 500 GiB and writes a word at both ends, `more` asks for one page more.
const STABLE: &str = r#"(module
    (import "ic0" "msg_reply" (func $reply))
    (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
    (import "ic0" "stable64_grow" (func $grow (param i64) (result i64)))
    (import "ic0" "stable64_size" (func $size (result i64)))
    (import "ic0" "stable64_write" (func $write (param i64 i64 i64)))
    (import "ic0" "stable64_read" (func $read (param i64 i64 i64)))
    (memory 1)
    (func (export "canister_update grow")
        (i64.store (i32.const 0) (call $grow (i64.sub (i64.const 8192000) (call $size))))
        (i64.store (i32.const 8) (i64.const 11))
        (i64.store (i32.const 16) (i64.const 22))
        (call $write (i64.const 0) (i64.const 8) (i64.const 8))
        (call $write (i64.const 536870911992) (i64.const 16) (i64.const 8))
        (call $reply))
    (func (export "canister_update more")
        (i64.store (i32.const 0) (call $grow (i64.const 1)))
        (call $append (i32.const 0) (i32.const 8))
        (call $reply))
    (func (export "canister_update behind")
        (call $write (i64.const 536870911993) (i64.const 16) (i64.const 8))
        (call $reply))
    (func (export "canister_query show")
        (i64.store (i32.const 0) (call $size))
        (call $read (i64.const 8) (i64.const 0) (i64.const 8))
        (call $read (i64.const 16) (i64.const 268435456000) (i64.const 8))
        (call $read (i64.const 24) (i64.const 536870911992) (i64.const 8))
        (call $append (i32.const 0) (i32.const 32))
        (call $reply)))"#;

#[test]
fn stable_memory_grows_to_500_gib() {
    let mut node = Node::with(Limits::default(), 8 << 20);
    let canister = node.deploy_wat(STABLE);
    node.update(canister, "grow", vec![]).unwrap();
    let expected = [500 * GIB / 65536, 11, 0, 22];
    assert_eq!(numbers(&node.query(canister, "show").unwrap()), expected);
    assert_eq!(numbers(&node.update(canister, "more", vec![]).unwrap()), [u64::MAX]);
    let reject = node.update(canister, "behind", vec![]).unwrap_err();
    assert!(reject.message.contains("out of bounds"), "{reject:?}");
    node.reopen();
    assert_eq!(numbers(&node.query(canister, "show").unwrap()), expected);
    assert!(node.engine.heap_status().used < 1 << 20, "only what was written takes room");
}

/// `touch` writes to each page of 32 MiB, `touch_stable` to as much stable memory, `sum` reads all of it.
const TOUCHES: &str = r#"(module
    (import "ic0" "msg_reply" (func $reply))
    (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
    (import "ic0" "stable64_grow" (func $grow (param i64) (result i64)))
    (import "ic0" "stable64_write" (func $write (param i64 i64 i64)))
    (memory 512)
    (func $each (param $by i64) (result i64)
        (local $at i32) (local $sum i64)
        (loop $next
            (local.set $sum (i64.add (local.get $sum) (i64.load (local.get $at))))
            (if (i64.ne (local.get $by) (i64.const 0))
                (then (i64.store (local.get $at) (i64.add (i64.load (local.get $at)) (local.get $by)))))
            (local.set $at (i32.add (local.get $at) (i32.const 4096)))
            (br_if $next (i32.lt_u (local.get $at) (i32.const 33554432))))
        (local.get $sum))
    (func (export "canister_update touch") (drop (call $each (i64.const 1))) (call $reply))
    (func (export "canister_update touch_stable")
        (drop (call $grow (i64.const 512)))
        (call $write (i64.const 0) (i64.const 0) (i64.const 33554432))
        (call $reply))
    (func (export "canister_query sum")
        (i64.store (i32.const 0) (call $each (i64.const 0)))
        (call $append (i32.const 0) (i32.const 8))
        (call $reply)))"#;

#[test]
fn a_machine_without_memory_refuses_the_message_and_nothing_is_lost() {
    let mut node = Node::with(Limits::default(), 128 << 20);
    let canister = node.deploy_wat(TOUCHES);
    node.update(canister, "touch", vec![]).unwrap();
    // No machine has as much.
    node.set_limits(Limits { spare_ram_bytes: u64::MAX, ..Limits::default() });
    for _ in 0..2 {
        for method in ["touch", "touch_stable"] {
            let reject = node.update(canister, method, vec![]).unwrap_err();
            assert!(reject.message.contains("the machine has no memory left"), "{reject:?}");
        }
        let reject = node.query(canister, "sum").unwrap_err();
        assert!(reject.message.contains("the machine has no memory left"), "{reject:?}");
    }
    node.set_limits(Limits::default());
    assert_eq!(numbers(&node.query(canister, "sum").unwrap()), [8192]);
    node.update(canister, "touch", vec![]).unwrap();
    node.update(canister, "touch_stable", vec![]).unwrap();
    assert_eq!(numbers(&node.query(canister, "sum").unwrap()), [2 * 8192]);
}
