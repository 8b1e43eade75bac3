//! Upgrades: one state machine as data, and the hand-over of storage keys. Plain functions over plain data, no I/O.
//!
//! | module | holds |
//! |---|---|
//! | [`machine`] | the transitions of one part, host or guest, with slots A and B |
//! | [`node`] | both parts together: what is booted, and what one part's upgrade forbids the other |
//! | [`record`] | how a part is kept on a disk so that a power cut leaves the old or the new |
//! | [`audit`] | what happened, in a chain of hashes |
//! | [`hand_over`] | who may be given the storage key, and from whom it may be taken |
//! | [`exchange`] | the messages in which two guests show that, and the key passes |
//!
//! Each transition makes at most one durable change, so "a crash between any two writes" and "a crash after any transition"
//! are the same. `tests/explore.rs` visits every reachable state of the product of host, guest, releases and faults,
//! `tests/recovery.rs` those of a guest with its recovery release;
//! `tests/model.rs` holds a second model, written for the checker `stateright`, against this one.
//!
//! The host keeps this state, so against the host's owner it proves nothing: what keeps data from unblessed code is
//! [`hand_over`], the sealing of keys to measurements, and the anchors that [`release::Seen`] names.

pub mod audit;
pub mod exchange;
pub mod hand_over;
pub mod machine;
pub mod node;
pub mod record;
