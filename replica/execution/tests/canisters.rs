//! What canisters rely on: messages commit as a whole or leave nothing, and survive a restart.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use candid::Principal;
use common::{Node, SECOND, controller, nobody, numbers, upgrade};
use execution::{ErrorCode, IngressStatus, Limits, RejectCode, SubmitError};
use ic_management_canister_types::{CanisterIdRecord, CanisterInstallMode, CanisterStatusResult};

const COUNTER: &str = include_str!("wat/counter.wat");
const PROXY: &str = include_str!("wat/proxy.wat");

#[test]
fn an_update_counts_everywhere_and_survives_a_restart() {
    let mut node = Node::new();
    let id = node.deploy_wat(COUNTER);
    assert_eq!(numbers(&node.update(id, "inc", vec![]).unwrap()), [1, 1, 1, 1, 1]);
    assert_eq!(numbers(&node.update(id, "inc", vec![]).unwrap()), [2, 2, 2, 1, 1]);
    assert_eq!(numbers(&node.update(id, "grow", vec![]).unwrap()), [2, 2, 2, 6, 1]);
    node.reopen();
    assert_eq!(numbers(&node.query(id, "get").unwrap()), [2, 2, 2, 6, 1]);
    assert_eq!(numbers(&node.update(id, "inc", vec![]).unwrap()), [3, 3, 3, 6, 1]);
}

#[test]
fn a_trap_leaves_no_trace_and_says_why() {
    let mut node = Node::new();
    let id = node.deploy_wat(COUNTER);
    node.update(id, "inc", vec![]).unwrap();
    let cases = [
        ("inc_then_trap", ErrorCode::CanisterCalledTrap, "enough is enough"),
        ("grow_then_trap", ErrorCode::CanisterTrapped, "unreachable"),
        ("spin", ErrorCode::CanisterInstructionLimitExceeded, "50000000 instructions"),
        ("spin_by_copying", ErrorCode::CanisterInstructionLimitExceeded, "50000000 instructions"),
        ("recurse", ErrorCode::CanisterTrapped, "stack"),
        ("silent", ErrorCode::CanisterDidNotReply, "did not reply"),
        ("out_of_bounds", ErrorCode::CanisterTrapped, "out of bounds"),
        ("no_such_method", ErrorCode::CanisterMethodNotFound, "no_such_method"),
    ];
    for (method, code, text) in cases {
        let reject = node.update(id, method, vec![]).unwrap_err();
        assert_eq!(reject.error_code, code, "{method}: {reject}");
        assert!(reject.message.contains(text), "{method}: {reject}");
        assert_eq!(reject.code, RejectCode::CanisterError);
        assert_eq!(numbers(&node.query(id, "get").unwrap()), [1, 1, 1, 1, 1], "after {method}");
        assert!(node.engine.canister(&id).unwrap().certified_data.is_empty());
    }
    node.reopen();
    assert_eq!(numbers(&node.query(id, "get").unwrap()), [1, 1, 1, 1, 1]);
    node.update(id, "certify", vec![]).unwrap();
    assert_eq!(node.engine.canister(&id).unwrap().certified_data, b"enough is enough");
}

#[test]
fn a_query_changes_nothing_even_as_an_update() {
    let mut node = Node::new();
    let id = node.deploy_wat(COUNTER);
    for _ in 0..2 {
        assert_eq!(numbers(&node.query(id, "inc_as_query").unwrap()), [1, 1, 1, 2, 1]);
        assert_eq!(numbers(&node.update(id, "inc_as_query", vec![]).unwrap()), [1, 1, 1, 2, 1]);
    }
    assert_eq!(numbers(&node.query(id, "get").unwrap()), [0, 0, 0, 1, 1]);
    assert_eq!(node.query(id, "inc").unwrap_err().error_code, ErrorCode::CanisterMethodNotFound);
}

fn target(callee: Principal, method: &str) -> Vec<u8> {
    [callee.as_slice(), method.as_bytes()].concat()
}

/// Replies, rejects and cleanups seen by the proxy, and its cycles.
fn seen(node: &mut Node, proxy: Principal) -> Vec<u64> {
    numbers(&node.query(proxy, "seen").unwrap())
}

const CYCLES: u64 = 100_000_000_000_000;

#[test]
fn calls_between_canisters_are_answered_and_conserve_cycles() {
    let mut node = Node::new();
    let (counter, proxy) = (node.deploy_wat(COUNTER), node.deploy_wat(PROXY));

    let reply = node.update(proxy, "call", target(counter, "inc")).unwrap();
    assert_eq!(numbers(&reply), [1, 1, 1, 1, 1, 5000]);
    assert_eq!(seen(&mut node, proxy), [1, 0, 0, CYCLES]);

    // 16 bytes of cycles accepted, then 8 of cycles that came back.
    let reply = node.update(proxy, "call", target(counter, "take_cycles")).unwrap();
    assert_eq!(numbers(&reply), [1000, 0, 4000]);
    assert_eq!(seen(&mut node, proxy), [2, 0, 0, CYCLES - 1000]);

    let reject = node.update(proxy, "call", target(counter, "inc_then_trap")).unwrap_err();
    assert_eq!(
        (reject.code, reject.error_code),
        (RejectCode::CanisterReject, ErrorCode::CanisterRejectedMessage)
    );
    assert!(reject.message.contains("enough is enough"), "{reject}");
    assert_eq!(seen(&mut node, proxy), [2, 1, 0, CYCLES - 1000]);

    let reject = node.update(proxy, "call", target(nobody(), "inc")).unwrap_err();
    assert!(reject.message.contains("not found"), "{reject}");
    assert_eq!(seen(&mut node, proxy), [2, 2, 0, CYCLES - 1000]);

    // A call that was begun and never made gives its cycles back; one that trapped was never made.
    node.update(proxy, "begin_and_drop", target(counter, "inc")).unwrap();
    node.update(proxy, "call_then_trap", target(counter, "inc")).unwrap_err();
    assert_eq!(seen(&mut node, proxy), [2, 2, 0, CYCLES - 1000]);
    assert_eq!(numbers(&node.query(counter, "get").unwrap())[0], 2);
}

#[test]
fn a_trap_in_a_callback_runs_cleanup_and_answers() {
    let mut node = Node::new();
    let (counter, proxy) = (node.deploy_wat(COUNTER), node.deploy_wat(PROXY));
    let reject = node.update(proxy, "call_bad_callback", target(counter, "inc")).unwrap_err();
    assert_eq!(reject.error_code, ErrorCode::CanisterTrapped);
    // What the callback did is undone, what cleanup did stays, and so does what the callee did.
    assert_eq!(seen(&mut node, proxy), [0, 0, 1, CYCLES]);
    assert_eq!(numbers(&node.query(counter, "get").unwrap())[0], 1);

    let reject = node.update(proxy, "call_no_callback", target(counter, "inc")).unwrap_err();
    assert_eq!(reject.error_code, ErrorCode::CanisterContractViolation);
    assert_eq!(seen(&mut node, proxy), [0, 0, 2, CYCLES]);
}

#[test]
fn a_call_under_way_goes_on_after_a_restart_at_every_step() {
    // One message per run, so that the restart falls between any two.
    let limits = Limits { round_instructions: 1, ..common::limits() };
    for restart_after in 0..4 {
        let mut node = Node::with(limits.clone(), 64 << 20);
        let (counter, proxy) = (node.deploy_wat(COUNTER), node.deploy_wat(PROXY));
        let id = node.send(proxy, "call", target(counter, "inc"));
        for _ in 0..restart_after {
            node.engine.run(node.now).unwrap();
        }
        if restart_after == 1 {
            assert_eq!(node.engine.status(&id), Some(&IngressStatus::Processing));
        }
        node.reopen();
        node.run();
        assert_eq!(
            numbers(&node.answer(&id).unwrap()),
            [1, 1, 1, 1, 1, 5000],
            "restart after {restart_after}"
        );
        assert_eq!(seen(&mut node, proxy), [1, 0, 0, CYCLES]);
    }
}

#[test]
fn a_timer_runs_once_when_due() {
    let mut node = Node::new();
    let id = node.deploy_wat(COUNTER);
    assert_eq!(node.engine.next_wakeup(), None);
    let due = node.now + 10 * SECOND;
    node.update(id, "set_timer", due.to_le_bytes().to_vec()).unwrap();
    assert_eq!(node.engine.next_wakeup(), Some(due));
    node.run();
    assert_eq!(numbers(&node.query(id, "get").unwrap())[0], 0);
    node.reopen();
    node.now = due;
    node.run();
    node.run();
    assert_eq!(numbers(&node.query(id, "get").unwrap())[0], 1);
    assert_eq!(node.engine.next_wakeup(), None);
}

#[test]
fn heartbeats_and_failing_timers() {
    let mut node = Node::new();
    let id = node.deploy_wat(
        r#"(module
            (import "ic0" "msg_reply" (func $reply))
            (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
            (import "ic0" "global_timer_set" (func $timer (param i64) (result i64)))
            (memory 1)
            (func (export "canister_init") (drop (call $timer (i64.const 1))))
            (func (export "canister_heartbeat")
                (i64.store (i32.const 0) (i64.add (i64.load (i32.const 0)) (i64.const 1))))
            (func (export "canister_global_timer") unreachable)
            (func (export "canister_query beats") (call $append (i32.const 0) (i32.const 8)) (call $reply)))"#,
    );
    let beats = |node: &mut Node| numbers(&node.query(id, "beats").unwrap())[0];
    for expected in 1..4 {
        node.now += SECOND;
        node.run();
        node.run();
        assert_eq!(beats(&mut node), expected);
    }
    // The timer trapped once and is not tried again: only the heartbeat is left.
    assert_eq!(node.engine.next_wakeup(), Some(node.now + SECOND));
}

#[test]
fn an_upgrade_keeps_stable_memory_and_a_failed_one_keeps_all() {
    let mut node = Node::new();
    let id = node.deploy_wat(COUNTER);
    node.update(id, "inc", vec![]).unwrap();
    let next = COUNTER.replace("enough is enough", "never say never!");

    // pre_upgrade of the installed program changes everything, and the new one traps at its end.
    let pre = next.replace(
        "(func $recurse",
        r#"(func (export "canister_pre_upgrade") (call $inc) (drop (memory.grow (i32.const 1)))) (func $recurse"#,
    );
    node.install(id, upgrade(None), &wat::parse_str(&pre).unwrap()).unwrap();
    assert_eq!(numbers(&node.query(id, "get").unwrap()), [0, 0, 1, 1, 1]);
    node.update(id, "inc", vec![]).unwrap();
    let before = node.engine.canister(&id).unwrap().module_hash.copied();
    for fault in ["(func (export \"canister_post_upgrade\") unreachable)", "(func $s unreachable) (start $s)"]
    {
        let bad = next.replace("(func $recurse", &format!("{fault} (func $recurse"));
        let reject = node.install(id, upgrade(None), &wat::parse_str(&bad).unwrap()).unwrap_err();
        assert_eq!(reject.error_code, ErrorCode::CanisterTrapped, "{reject}");
        assert_eq!(numbers(&node.query(id, "get").unwrap()), [1, 1, 2, 1, 1]);
        assert_eq!(node.engine.canister(&id).unwrap().module_hash.copied(), before);
    }
    // A good one commits what pre_upgrade wrote to stable memory.
    node.install(id, upgrade(None), &wat::parse_str(&next).unwrap()).unwrap();
    assert_eq!(numbers(&node.query(id, "get").unwrap()), [0, 0, 3, 1, 1]);
    node.reopen();
    assert_eq!(numbers(&node.query(id, "get").unwrap()), [0, 0, 3, 1, 1]);
    assert!(node.update(id, "inc_then_trap", vec![]).unwrap_err().message.contains("never say never!"));

    node.install(id, CanisterInstallMode::Reinstall, &wat::parse_str(COUNTER).unwrap()).unwrap();
    assert_eq!(numbers(&node.query(id, "get").unwrap()), [0, 0, 0, 1, 1]);
    let again =
        node.install(id, CanisterInstallMode::Install, &wat::parse_str(COUNTER).unwrap()).unwrap_err();
    assert_eq!(again.error_code, ErrorCode::CanisterNonEmpty);
    let bad = node.install(id, upgrade(None), b"\0asm\x01\0\0\0\xff").unwrap_err();
    assert_eq!(bad.error_code, ErrorCode::CanisterInvalidWasm);
    let unknown = r#"(module (import "ic0" "no_such_call" (func)))"#;
    let bad = node.install(id, upgrade(None), &wat::parse_str(unknown).unwrap()).unwrap_err();
    assert!(bad.message.contains("no_such_call"), "{bad}");
    let mistyped = r#"(module (import "ic0" "msg_reply" (func (param i32))))"#;
    let bad = node.install(id, upgrade(None), &wat::parse_str(mistyped).unwrap()).unwrap_err();
    assert!(bad.message.contains("msg_reply"), "{bad}");
}

#[test]
fn system_calls_are_refused_in_the_wrong_mode() {
    let mut node = Node::new();
    let id = node.deploy_wat(
        r#"(module
            (import "ic0" "msg_reply" (func $reply))
            (import "ic0" "accept_message" (func $accept))
            (import "ic0" "global_timer_set" (func $timer (param i64) (result i64)))
            (func (export "canister_query timer") (drop (call $timer (i64.const 1))))
            (func (export "canister_update accept") (call $accept))
            (func (export "canister_update twice") (call $reply) (call $reply)))"#,
    );
    let reject = node.query(id, "timer").unwrap_err();
    assert!(
        reject.message.contains("\"ic0_global_timer_set\" cannot be executed in non replicated query mode"),
        "{reject}"
    );
    let reject = node.update(id, "accept", vec![]).unwrap_err();
    assert_eq!(reject.error_code, ErrorCode::CanisterContractViolation);
    assert!(node.update(id, "twice", vec![]).unwrap_err().message.contains("answered already"));

    let starting = r#"(module (import "ic0" "time" (func $time (result i64))) (func $s (drop (call $time))) (start $s))"#;
    let id = node.create();
    let reject =
        node.install(id, CanisterInstallMode::Install, &wat::parse_str(starting).unwrap()).unwrap_err();
    assert!(reject.message.contains("in start mode"), "{reject}");
    assert!(node.engine.canister(&id).unwrap().module_hash.is_none());
}

#[test]
fn ingress_is_inspected_deduplicated_and_expires() {
    let mut node = Node::new();
    let id = node.deploy_wat(COUNTER);
    let refused = node.message(id, "not_allowed", vec![]);
    let reject = node.engine.accept(&refused, node.now).unwrap_err();
    assert_eq!(reject.error_code, ErrorCode::CanisterRejectedMessage);
    let good = node.message(id, "inc", vec![]);
    node.engine.accept(&good, node.now).unwrap();
    let stranger = node.message(nobody(), "inc", vec![]);
    assert_eq!(node.engine.accept(&stranger, node.now).unwrap_err().error_code, ErrorCode::CanisterNotFound);

    node.engine.submit(good.clone(), node.now).unwrap();
    assert!(matches!(node.engine.submit(good.clone(), node.now), Err(SubmitError::Duplicate)));
    node.run();
    node.reopen();
    assert!(matches!(node.engine.submit(good.clone(), node.now), Err(SubmitError::Duplicate)));
    assert_eq!(numbers(&node.query(id, "get").unwrap())[0], 1);

    let late = node.message(id, "inc", vec![]);
    let late_id = late.request_id;
    node.engine.submit(late, node.now).unwrap();
    node.now += 121 * SECOND;
    node.run();
    assert_eq!(node.answer(&late_id).unwrap_err().error_code, ErrorCode::IngressMessageTimeout);
    assert!(matches!(node.engine.submit(good.clone(), node.now), Err(SubmitError::Duplicate)));
    node.now += 301 * SECOND;
    node.run();
    assert_eq!(node.engine.status(&late_id), None);
    // Forgotten, but by then also expired, so it cannot run again.
    assert!(matches!(node.engine.submit(good, node.now), Err(SubmitError::Refused(_))));
}

#[test]
fn the_life_of_a_canister() {
    let mut node = Node::new();
    let (counter, proxy) = (node.deploy_wat(COUNTER), node.deploy_wat(PROXY));
    let record = |canister_id| CanisterIdRecord { canister_id };
    let status = |node: &mut Node, id| -> CanisterStatusResult {
        candid::decode_one(&node.manage("canister_status", record(id)).unwrap()).unwrap()
    };
    assert_eq!(status(&mut node, counter).settings.controllers, [controller()]);

    // Stopping waits for the open call, and refuses new ones meanwhile.
    let call = node.send(proxy, "call", target(counter, "inc"));
    let stop = node.send(
        Principal::management_canister(),
        "stop_canister",
        candid::encode_one(record(proxy)).unwrap(),
    );
    let refused = node.send(proxy, "call", target(counter, "inc"));
    node.run();
    assert_eq!(numbers(&node.answer(&call).unwrap())[0], 1);
    node.answer(&stop).unwrap();
    assert_eq!(node.answer(&refused).unwrap_err().error_code, ErrorCode::CanisterStopping);
    assert_eq!(node.query(proxy, "seen").unwrap_err().error_code, ErrorCode::CanisterStopped);
    node.manage("start_canister", record(proxy)).unwrap();
    assert_eq!(seen(&mut node, proxy), [1, 0, 0, CYCLES]);

    let reject = node.manage("delete_canister", record(counter)).unwrap_err();
    assert_eq!(reject.error_code, ErrorCode::CanisterNotStopped);
    node.manage("uninstall_code", record(counter)).unwrap();
    assert_eq!(
        node.update(counter, "inc", vec![]).unwrap_err().error_code,
        ErrorCode::CanisterWasmModuleNotFound
    );
    node.install(counter, CanisterInstallMode::Install, &wat::parse_str(COUNTER).unwrap()).unwrap();
    assert_eq!(numbers(&node.query(counter, "get").unwrap()), [0, 0, 0, 1, 1]);
    node.manage("stop_canister", record(counter)).unwrap();
    node.manage("delete_canister", record(counter)).unwrap();
    node.reopen();
    assert!(node.engine.canister(&counter).is_none());
    assert_eq!(node.engine.canisters().count(), 1);

    let mut foreign = node.message(
        Principal::management_canister(),
        "stop_canister",
        candid::encode_one(record(proxy)).unwrap(),
    );
    foreign.sender = Principal::anonymous();
    assert_eq!(
        node.engine.accept(&foreign, node.now).unwrap_err().error_code,
        ErrorCode::CanisterInvalidController
    );
    let id = foreign.request_id;
    node.engine.submit(foreign, node.now).unwrap();
    node.run();
    assert_eq!(node.answer(&id).unwrap_err().error_code, ErrorCode::CanisterInvalidController);
    assert!(node.query(proxy, "seen").is_ok());
}

#[test]
fn a_full_medium_refuses_the_message_and_nothing_else() {
    let mut node = Node::with(common::limits(), 1 << 20);
    let id = node.deploy_wat(
        r#"(module
            (import "ic0" "msg_reply" (func $reply))
            (memory 32)
            (func (export "canister_update fill") (local $at i32)
                (loop $next
                    (i32.store8 (local.get $at) (i32.const 1))
                    (local.set $at (i32.add (local.get $at) (i32.const 4096)))
                    (br_if $next (i32.lt_u (local.get $at) (i32.const 2097152))))
                (call $reply))
            (func (export "canister_update touch") (i32.store (i32.const 0) (i32.const 1)) (call $reply))
            (func (export "canister_query untouched")
                (if (i32.load (i32.const 4096)) (then unreachable))
                (call $reply)))"#,
    );
    let reject = node.update(id, "fill", vec![]).unwrap_err();
    assert_eq!((reject.code, reject.error_code), (RejectCode::SysTransient, ErrorCode::SubnetOversubscribed));
    node.query(id, "untouched").unwrap();
    node.update(id, "touch", vec![]).unwrap();
    node.reopen();
    node.query(id, "untouched").unwrap();
}
