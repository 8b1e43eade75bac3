//! Probes and specifications from anyone: refused by name or judged, never a panic.

#![allow(clippy::unwrap_used, reason = "test helpers fail the test")]

use hwspec::{Probe, ProbeError, Spec, Status, check};
use proptest::prelude::*;
use serde_json::{Value, json};

const RECORDED: &str = include_str!("probes/cloud-turin-debian12.json");

fn changed(pointer: &str, value: Value) -> Result<Probe, ProbeError> {
    let mut probe: Value = serde_json::from_str(RECORDED).unwrap();
    *probe.pointer_mut(pointer).unwrap() = value;
    Probe::from_json(&serde_json::to_vec(&probe).unwrap())
}

#[test]
fn defects_are_named() {
    assert!(matches!(Probe::from_json(b"{"), Err(ProbeError::Json(_))));
    assert!(matches!(Probe::from_json(&b"[".repeat(100_000)), Err(ProbeError::Json(_))));
    assert_eq!(Probe::from_json(&vec![b' '; 256 * 1024 + 1]), Err(ProbeError::TooLong(256 * 1024 + 1)));
    assert_eq!(changed("/cpu/vendor", json!("\u{1b}[2J")), Err(ProbeError::Text));
    assert_eq!(changed("/cpu/vendor", json!("x".repeat(129))), Err(ProbeError::Text));
    assert_eq!(changed("/nvme_bytes", json!(vec![0; 4097])), Err(ProbeError::TooManyItems(4097)));
    assert_eq!(Probe::from_json(br#"{"\u001b[2J": 1}"#), Err(ProbeError::Text));
    for (pointer, value) in [
        ("/cpu/threads", json!(-1)),
        ("/cpu/threads", json!(1.5)),
        ("/cpu/threads", json!("2")),
        ("/kvm_device", json!(1)),
        ("/cpu", json!({"colour": "red"})),
        ("/cpu", json!(null)),
    ] {
        assert!(matches!(changed(pointer, value.clone()), Err(ProbeError::Json(_))), "{pointer} {value}");
    }
}

#[test]
fn absent_facts_are_unknown() {
    assert_eq!(Probe::from_json(b"{}").unwrap(), Probe::default());
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u64>().prop_map(Value::from),
        Just(Value::from(u64::MAX)),
        Just(Value::from(0)),
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
    ]
}

fn text() -> impl Strategy<Value = Value> {
    prop_oneof![
        "[ -~]{0,20}".prop_map(Value::from),
        "[0-9]{0,12}(\\.[0-9]{0,12}){0,4}".prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
        Just(Value::Null),
    ]
}

/// The recorded probe with any of its values replaced by another of roughly its type.
fn probes() -> impl Strategy<Value = Value> {
    let pointers = |value: &Value| -> Vec<String> {
        let mut all = Vec::new();
        for (key, member) in value.as_object().unwrap() {
            all.push(format!("/{key}"));
            if let Some(members) = member.as_object() {
                all.extend(members.keys().map(|inner| format!("/{key}/{inner}")));
            }
        }
        all
    };
    let recorded: Value = serde_json::from_str(RECORDED).unwrap();
    let replacement = prop_oneof![
        number(),
        text(),
        any::<bool>().prop_map(Value::from),
        prop::collection::vec(number(), 0..5).prop_map(Value::from),
        prop::collection::vec(text(), 0..5).prop_map(Value::from),
    ];
    let change = (prop::sample::select(pointers(&recorded)), replacement);
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut probe = recorded.clone();
        for (pointer, value) in changes {
            // An earlier change may have removed what this one is about.
            if let Some(place) = probe.pointer_mut(&pointer) {
                *place = value;
            }
        }
        probe
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn changed_probes_are_refused_or_judged(value in probes()) {
        if let Ok(probe) = Probe::from_json(&serde_json::to_vec(&value).unwrap()) {
            for name in Spec::names() {
                let report = check(&Spec::named(name).unwrap(), &probe);
                for check in &report.checks {
                    prop_assert!(check.found.bytes().all(|byte| matches!(byte, 0x20..=0x7e)));
                    prop_assert_eq!(check.status == Status::Pass, check.fix.is_empty());
                }
            }
            let again = Probe::from_json(&serde_json::to_vec(&probe).unwrap());
            prop_assert_eq!(again, Ok(probe));
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "(?s).{0,200}") {
        let _ = Probe::from_json(&bytes);
        let _ = Spec::from_toml(&text);
    }

    /// A built-in specification with a part of it cut out or repeated.
    #[test]
    fn broken_specs_never_panic(from in 0..8000usize, length in 0..300usize, repeat: bool) {
        let text = include_str!("../specs/gen2.toml");
        let (from, to) = (from.min(text.len()), (from + length).min(text.len()));
        if let (Some(head), Some(part), Some(tail)) = (text.get(..from), text.get(from..to), text.get(to..)) {
            let broken = if repeat { [head, part, part, tail].concat() } else { [head, tail].concat() };
            let _ = Spec::from_toml(&broken);
        }
    }
}
