//! Random changes of a valid envelope: none may verify, none may panic.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use proptest::prelude::*;
use release::{Envelope, Root, development, verify};
use serde_json::Value;

const GOLDEN: &[u8] = include_bytes!("golden/manifest.json");

#[derive(Debug, Clone)]
enum Change {
    Flip { at: prop::sample::Index, bit: u8 },
    Replace { at: prop::sample::Index, byte: u8 },
    Insert { at: prop::sample::Index, bytes: Vec<u8> },
    Remove { at: prop::sample::Index, count: usize },
    Repeat { at: prop::sample::Index, count: usize },
    Swap { a: prop::sample::Index, b: prop::sample::Index },
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        match self {
            Change::Flip { at, bit } => bytes[at.index(length)] ^= 1 << bit,
            Change::Replace { at, byte } => bytes[at.index(length)] = *byte,
            Change::Insert { at, bytes: new } => {
                let at = at.index(length);
                bytes.splice(at..at, new.iter().copied());
            }
            Change::Remove { at, count } => {
                let at = at.index(length);
                bytes.drain(at..(at + count).min(length));
            }
            Change::Repeat { at, count } => {
                let at = at.index(length);
                let part = bytes[at..(at + count).min(length)].to_vec();
                bytes.splice(at..at, part);
            }
            Change::Swap { a, b } => bytes.swap(a.index(length), b.index(length)),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    // Bytes that mean something in JSON come up often.
    let byte = || prop_oneof![any::<u8>(), prop::sample::select(br#"{}[]",:\ 019aef.-"#.to_vec())];
    prop_oneof![
        (index(), 0..8u8).prop_map(|(at, bit)| Change::Flip { at, bit }),
        (index(), byte()).prop_map(|(at, byte)| Change::Replace { at, byte }),
        (index(), prop::collection::vec(byte(), 1..5)).prop_map(|(at, bytes)| Change::Insert { at, bytes }),
        (index(), 1..200usize).prop_map(|(at, count)| Change::Remove { at, count }),
        (index(), 1..200usize).prop_map(|(at, count)| Change::Repeat { at, count }),
        (index(), index()).prop_map(|(a, b)| Change::Swap { a, b }),
    ]
}

/// Pointers to every value of a document, the document itself included.
fn pointers(value: &Value, here: &str, out: &mut Vec<String>) {
    out.push(here.into());
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                pointers(member, &format!("{here}/{}", key.replace('~', "~0").replace('/', "~1")), out);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                pointers(item, &format!("{here}/{i}"), out);
            }
        }
        _ => {}
    }
}

fn root() -> Root {
    development::root().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_bytes_never_verify(changes in prop::collection::vec(change(), 1..4)) {
        let mut bytes = GOLDEN.to_vec();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        prop_assert_eq!(verify(&bytes, &root()).is_ok(), bytes == GOLDEN);
    }

    /// Changes that leave canonical JSON: one value of the document takes the place of another.
    #[test]
    fn changed_values_never_verify(from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
        let golden: Value = serde_json::from_slice(GOLDEN).unwrap();
        let mut all = Vec::new();
        pointers(&golden, "", &mut all);
        let value = golden.pointer(&all[from.index(all.len())]).unwrap().clone();
        let mut changed = golden.clone();
        *changed.pointer_mut(&all[to.index(all.len())]).unwrap() = value;
        let bytes = serde_json::to_vec(&changed).unwrap();
        prop_assert_eq!(verify(&bytes, &root()).is_ok(), bytes == GOLDEN);
    }

    /// What is read is written as the same bytes: there is no second way to write it.
    #[test]
    fn one_representation(changes in prop::collection::vec(change(), 1..3)) {
        let mut bytes = GOLDEN.to_vec();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        if let Ok(envelope) = Envelope::from_bytes(&bytes) {
            prop_assert_eq!(envelope.to_bytes(), bytes);
        }
    }

    #[test]
    fn changed_roots_never_equal_the_root(changes in prop::collection::vec(change(), 1..4)) {
        let mut bytes = development::ROOT.to_vec();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        if let Ok(changed) = Root::from_bytes(&bytes) {
            prop_assert_eq!(changed == root(), bytes == development::ROOT);
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(verify(&bytes, &root()).is_err());
        prop_assert!(Root::from_bytes(&bytes).is_err());
    }
}
