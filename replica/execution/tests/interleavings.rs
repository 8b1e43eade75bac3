//! The engine and queries in many orders of their steps, chosen by shuttle at every lock: a query sees one committed
//! state, never an older one than was published when it began, and none that a trap or another query left behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

mod common;

use common::{Node, SECOND, numbers};
use execution::{Queries, QueryMessage, QueryReply};
use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

/// `step` adds one to a global and to words of two pages; `read` shows all three, after changing them as well.
const COUNTERS: &str = r#"(module
    (import "ic0" "msg_reply" (func $reply))
    (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
    (memory 1)
    (global $steps (mut i64) (i64.const 0))
    (func $add (param $at i32)
        (i64.store (local.get $at) (i64.add (i64.load (local.get $at)) (i64.const 1))))
    (func $step
        (call $add (i32.const 4096))
        (global.set $steps (i64.add (global.get $steps) (i64.const 1)))
        (call $add (i32.const 8192)))
    (func (export "canister_update step") (call $step) (call $reply))
    (func (export "canister_update trap") (call $step) (unreachable))
    (func (export "canister_update grow") (call $step) (drop (memory.grow (i32.const 1))) (call $reply))
    (func (export "canister_query read")
        (i64.store (i32.const 0) (i64.load (i32.const 4096)))
        (i64.store (i32.const 8) (i64.load (i32.const 8192)))
        (i64.store (i32.const 16) (global.get $steps))
        (call $step)
        (call $append (i32.const 0) (i32.const 24))
        (call $reply)))"#;

fn read(queries: &Queries, canister: candid::Principal) -> u64 {
    let (sender, method) = (common::controller(), "read".to_owned());
    let message = QueryMessage { sender, canister, method, arg: Vec::new(), data_certificate: None };
    match queries.query(message, 1_700_000_000 * SECOND) {
        QueryReply::Replied(reply) => {
            let [one, other, global] = numbers(&reply)[..] else { panic!("{reply:?}") };
            assert!(one == other && other == global, "a torn state: {one}, {other}, {global}");
            one
        }
        QueryReply::Rejected(reject) => panic!("{reject}"),
    }
}

fn run() {
    let mut node = Node::choosing(common::limits(), 4 << 20, false);
    // Decoding Candid looks how much stack is left, and does not know shuttle's.
    let canister = stacker::grow(1 << 20, || node.deploy_wat(COUNTERS));
    node.engine.publish();
    let (queries, published) = (node.engine.queries(), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (queries, published) = (queries.clone(), published.clone());
            let work = move || {
                let mut last = 0;
                for _ in 0..3 {
                    let least = published.load(Ordering::SeqCst).max(last);
                    last = read(&queries, canister);
                    assert!(last >= least, "{last} was seen after {least}");
                }
            };
            thread::Builder::new().stack_size(8 << 20).spawn(work).unwrap()
        })
        .collect();
    for (count, method) in (1..).zip(["step", "grow", "step"]) {
        node.update(canister, "trap", vec![]).unwrap_err();
        node.update(canister, method, vec![]).unwrap();
        node.engine.publish();
        published.store(count, Ordering::SeqCst);
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_eq!(read(&queries, canister), 3);
}

/// Programs run on the stacks of shuttle's threads.
fn runner(
    scheduler: impl shuttle::scheduler::Scheduler + 'static,
) -> shuttle::Runner<impl shuttle::scheduler::Scheduler> {
    let mut config = shuttle::Config::new();
    config.stack_size = 8 << 20;
    shuttle::Runner::new(scheduler, config)
}

#[test]
fn queries_see_one_state_whoever_goes_next() {
    runner(shuttle::scheduler::RandomScheduler::new(150)).run(run);
    runner(shuttle::scheduler::PctScheduler::new(3, 150)).run(run);
}
