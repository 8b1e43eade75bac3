//! Whatever is uploaded or sent, the engine refuses or runs it and goes on.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::cell::RefCell;

use candid::Principal;
use common::{Node, numbers};
use execution::{ErrorCode, Limits, effective_canister_id};
use ic_management_canister_types::CanisterInstallMode;
use proptest::prelude::*;

const COUNTER: &str = include_str!("wat/counter.wat");

fn limits() -> Limits {
    let limits = common::limits();
    Limits {
        update_instructions: 100_000,
        install_instructions: 100_000,
        inspect_instructions: 100_000,
        ..limits
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// A module with some bytes changed is refused or runs, and its neighbour does not notice.
    #[test]
    fn damaged_modules(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        thread_local!(static NODE: RefCell<Option<(Node, Principal, Principal)>> = const { RefCell::new(None) });
        NODE.with_borrow_mut(|node| {
            let (node, neighbour, victim) = node.get_or_insert_with(|| {
                let mut node = Node::with(limits(), 256 << 20);
                let (neighbour, victim) = (node.deploy_wat(COUNTER), node.create());
                (node, neighbour, victim)
            });
            let mut module = wat::parse_str(COUNTER).unwrap();
            for (index, byte) in &edits {
                let index = index.index(module.len());
                module[index] = *byte;
            }
            if node.install(*victim, CanisterInstallMode::Reinstall, &module).is_ok() {
                for method in ["inc", "grow_then_trap", "set_timer", "inc"] {
                    let _ = node.update(*victim, method, vec![0; 8]);
                }
            }
            prop_assert_eq!(numbers(&node.query(*neighbour, "get").unwrap()), [0, 0, 0, 1, 1]);
            Ok(())
        })?;
    }

    /// Any bytes as argument of any management method give an answer.
    #[test]
    fn damaged_arguments(method in "(install_code|update_settings|canister_status|upload_chunk|provisional_create_canister_with_cycles|raw_rand|x)", bytes in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
        let mut arg = if magic { b"DIDL".to_vec() } else { Vec::new() };
        arg.extend(bytes);
        let _ = effective_canister_id(&method, &arg);
        thread_local!(static NODE: RefCell<Node> = RefCell::new(Node::with(limits(), 256 << 20)));
        NODE.with_borrow_mut(|node| {
            let message = node.message(Principal::management_canister(), &method, arg.clone());
            let _ = node.engine.accept(&message, node.now);
            let reject = node.update(Principal::management_canister(), &method, arg);
            prop_assert!(reject.is_err() || method.starts_with("provisional"));
            Ok(())
        })?;
    }
}

#[test]
fn memory_beyond_the_limit_is_not_given() {
    let limits = Limits {
        memory32_bytes: 10 << 16,
        memory64_bytes: 20 << 16,
        stable_bytes: 3 << 16,
        ..common::limits()
    };
    let mut node = Node::with(limits, 16 << 20);
    for (width, pages) in [("i32", 10), ("i64", 20)] {
        let text = r#"(module
            (import "ic0" "msg_reply" (func $reply))
            (import "ic0" "msg_reply_data_append" (func $append (param WIDTH WIDTH)))
            (import "ic0" "stable64_grow" (func $stable (param i64) (result i64)))
            (memory WIDTH 1)
            (func (export "canister_update grow")
                (loop $more (br_if $more (WIDTH.ne (memory.grow (WIDTH.const 1)) (WIDTH.const -1))))
                (i64.store (WIDTH.const 8) (call $stable (i64.const 3)))
                (i64.store (WIDTH.const 16) (call $stable (i64.const 1)))
                (WIDTH.store (WIDTH.const 0) (memory.size))
                (call $append (WIDTH.const 0) (WIDTH.const 24))
                (call $reply)))"#;
        let id = node.deploy_wat(&text.replace("WIDTH", width));
        assert_eq!(numbers(&node.update(id, "grow", vec![]).unwrap()), [pages, 0, u64::MAX]);
        node.reopen();
        let too_large = format!("(module (memory {width} 21))");
        let id = node.create();
        let reject =
            node.install(id, CanisterInstallMode::Install, &wat::parse_str(too_large).unwrap()).unwrap_err();
        assert_eq!(reject.error_code, ErrorCode::CanisterInvalidWasm, "{reject}");
    }
}
