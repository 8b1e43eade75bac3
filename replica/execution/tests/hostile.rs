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
const TABLES: &str = include_str!("wat/tables.wat");

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
    fn damaged_modules(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        tables: bool,
    ) {
        thread_local!(static NODE: RefCell<Option<(Node, Principal, Principal)>> = const { RefCell::new(None) });
        NODE.with_borrow_mut(|node| {
            let (node, neighbour, victim) = node.get_or_insert_with(|| {
                let mut node = Node::with(limits(), 256 << 20);
                let (neighbour, victim) = (node.deploy_wat(COUNTER), node.create());
                (node, neighbour, victim)
            });
            let mut module = wat::parse_str(if tables { TABLES } else { COUNTER }).unwrap();
            for (index, byte) in &edits {
                let index = index.index(module.len());
                module[index] = *byte;
            }
            if node.install(*victim, CanisterInstallMode::Reinstall, &module).is_ok() {
                for method in ["inc", "grow_then_trap", "set_timer", "inc"] {
                    let _ = node.update(*victim, method, vec![0; 8]);
                }
                // Sets, grows, fills, copies and initialises tables.
                for number in 0..12u64 {
                    let op: Vec<u8> = [number, 1, 2, 3].into_iter().flat_map(u64::to_le_bytes).collect();
                    let _ = node.update(*victim, "change", op);
                }
                let _ = node.query(*victim, "peek");
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

#[test]
fn bytes_moved_by_the_engine_count_as_instructions() {
    let mut node = Node::new();
    let id = node.deploy_wat(
        r#"(module
            (import "ic0" "msg_reply" (func $reply))
            (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
            (import "ic0" "performance_counter" (func $counter (param i32) (result i64)))
            (memory 1)
            (func (export "canister_query cost")
                (call $append (i32.const 8) (i32.const 60000))
                (i64.store (i32.const 0) (call $counter (i32.const 0)))
                (call $append (i32.const 0) (i32.const 8))
                (call $reply)))"#,
    );
    let reply = node.query(id, "cost").unwrap();
    let cost = u64::from_le_bytes(reply[60000..].try_into().unwrap());
    assert!((60_000..61_000).contains(&cost), "{cost}");
}

/// The engine may be made on one thread and owned by another.
#[test]
fn the_engine_can_move_to_its_thread() {
    fn movable<T: Send>() {}
    movable::<execution::Engine>();
}

/// The URL of a call must name the canister that it is about, so that must be found in large arguments too.
#[test]
fn the_canister_of_a_large_argument_is_found_and_asked() {
    use ic_management_canister_types::{ChunkHash, InstallChunkedCodeArgs, InstallCodeArgs, UploadChunkArgs};
    let mut node = Node::new();
    let canister_id = node.create();
    let mode = CanisterInstallMode::Install;
    let (wasm_module, arg) = (vec![7; 2 << 20], vec![8; 1 << 20]);
    let install =
        InstallCodeArgs { mode, canister_id, wasm_module, arg: arg.clone(), sender_canister_version: None };
    let chunked = InstallChunkedCodeArgs {
        mode,
        target_canister: canister_id,
        store_canister: None,
        chunk_hashes_list: vec![ChunkHash { hash: vec![1; 32] }; 100],
        wasm_module_hash: vec![2; 32],
        arg,
        sender_canister_version: None,
    };
    let chunk = UploadChunkArgs { canister_id, chunk: vec![3; 1 << 20] };
    let cases = [
        ("install_code", candid::encode_one(install).unwrap()),
        ("install_chunked_code", candid::encode_one(chunked).unwrap()),
        ("upload_chunk", candid::encode_one(chunk).unwrap()),
    ];
    for (method, arg) in cases {
        assert_eq!(effective_canister_id(method, &arg), Some(canister_id), "{method}");
        let mut message = node.message(Principal::management_canister(), method, arg);
        node.engine.accept(&message, node.now).unwrap();
        message.sender = Principal::anonymous();
        let reject = node.engine.accept(&message, node.now).unwrap_err();
        assert_eq!(reject.error_code, ErrorCode::CanisterInvalidController);
    }
}

#[test]
fn code_installs_from_chunks() {
    use ic_management_canister_types::{ChunkHash, InstallChunkedCodeArgs, UploadChunkArgs};
    use sha2::Digest as _;
    let mut node = Node::new();
    let canister_id = node.create();
    let module = wat::parse_str(COUNTER).unwrap();
    let mut hashes = Vec::new();
    for chunk in module.chunks(300) {
        let reply =
            node.manage("upload_chunk", UploadChunkArgs { canister_id, chunk: chunk.to_vec() }).unwrap();
        hashes.push(candid::decode_one::<ChunkHash>(&reply).unwrap());
    }
    node.reopen();
    let mut args = InstallChunkedCodeArgs {
        mode: CanisterInstallMode::Install,
        target_canister: canister_id,
        store_canister: None,
        chunk_hashes_list: hashes,
        wasm_module_hash: vec![0; 32],
        arg: Vec::new(),
        sender_canister_version: None,
    };
    let reject = node.manage("install_chunked_code", args.clone()).unwrap_err();
    assert_eq!(reject.error_code, ErrorCode::InvalidManagementPayload);
    args.wasm_module_hash = sha2::Sha256::digest(&module).to_vec();
    node.manage("install_chunked_code", args).unwrap();
    assert_eq!(numbers(&node.update(canister_id, "inc", vec![]).unwrap()), [1, 1, 1, 1, 1]);
}
