//! Probes and specifications from anyone: refused by name or judged, never a panic.

#![allow(clippy::unwrap_used, reason = "test helpers fail the test")]

mod common;

use common::{files, good, recorded};
use hwspec::probe::{MAX_ITEMS, MAX_PROBE, MAX_TEXT};
use hwspec::smbios::Smbios;
use hwspec::{Probe, ProbeError, Seen, Spec, Status, check};
use proptest::prelude::*;
use serde_json::{Value, json};

fn changed(pointer: &str, value: Value) -> Result<Probe, ProbeError> {
    let mut probe = serde_json::to_value(good("gen2")).unwrap();
    *probe.pointer_mut(pointer).unwrap() = value;
    Probe::from_json(&serde_json::to_vec(&probe).unwrap())
}

#[test]
fn defects_are_named() {
    assert!(matches!(Probe::from_json(b"{"), Err(ProbeError::Json(_))));
    assert!(matches!(Probe::from_json(&b"[".repeat(100_000)), Err(ProbeError::Json(_))));
    assert_eq!(Probe::from_json(&vec![b' '; MAX_PROBE + 1]), Err(ProbeError::TooLong(MAX_PROBE + 1)));
    assert_eq!(changed("/cpu/vendor", json!("\u{1b}[2J")), Err(ProbeError::Text));
    assert_eq!(changed("/cpu/vendor", json!("x".repeat(MAX_TEXT + 1))), Err(ProbeError::Text));
    assert_eq!(changed("/sev/smee", json!({ "unknown": "\u{1b}[2J" })), Err(ProbeError::Text));
    assert_eq!(changed("/nvme", json!(vec![0; MAX_ITEMS + 1])), Err(ProbeError::TooManyItems(MAX_ITEMS + 1)));
    assert_eq!(Probe::from_json(br#"{"\u001b[2J": 1}"#), Err(ProbeError::Text));
    for (pointer, value) in [
        ("/cpu/threads", json!(-1)),
        ("/cpu/threads", json!(1.5)),
        ("/cpu/threads", json!("2")),
        ("/cpu/threads", json!(null)),
        ("/cpu/threads", json!({ "unknown": 1 })),
        ("/cpu/threads", json!({ "unknown": "x", "known": 1 })),
        ("/cpu/microcode", json!([4_294_967_296u64])),
        ("/kernel/kvm_device", json!(1)),
        ("/nvme/0/smart", json!({ "used": 256 })),
        ("/nvme/0", json!({ "colour": "red" })),
        ("/cpu", json!({ "colour": "red" })),
        ("/cpu", json!(null)),
    ] {
        assert!(matches!(changed(pointer, value.clone()), Err(ProbeError::Json(_))), "{pointer} {value}");
    }
}

#[test]
fn absent_facts_are_unknown() {
    let empty = Probe::from_json(b"{}").unwrap();
    assert_eq!(empty, Probe::default());
    assert_eq!(empty.cpu.threads, Seen::Unknown("not in this probe".into()));
    for name in Spec::names() {
        let report = check(&Spec::named(name).unwrap(), &empty);
        assert!(report.checks.iter().all(|check| check.status == Status::Unknown && !check.fix.is_empty()));
        assert!(!report.meets_spec());
    }
}

/// What the fuzz targets found or were given to begin with.
#[test]
fn the_fuzz_corpus() {
    for (folder, feed) in [
        ("probe", (|bytes| probe(bytes)) as fn(&[u8])),
        ("spec", |bytes| _ = Spec::from_toml(&String::from_utf8_lossy(bytes))),
        ("smbios", |bytes| _ = Smbios::parse(bytes)),
    ] {
        let files = files(&format!("fuzz/corpus/{folder}"));
        assert!(!files.is_empty(), "{folder}");
        for file in files {
            feed(&std::fs::read(file).unwrap());
        }
    }
}

/// Reads a probe, and judges it if it can be read.
fn probe(bytes: &[u8]) {
    if let Ok(probe) = Probe::from_json(bytes) {
        for name in Spec::names() {
            check(&Spec::named(name).unwrap(), &probe);
        }
    }
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u64>().prop_map(Value::from),
        Just(Value::from(u64::MAX)),
        Just(Value::from(0)),
        any::<u8>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
    ]
}

fn text() -> impl Strategy<Value = Value> {
    prop_oneof![
        "[ -~]{0,20}".prop_map(Value::from),
        "[0-9]{0,12}(\\.[0-9]{0,12}){0,4}".prop_map(Value::from),
        "(P|CPU|NODE |_|-| |CHANNEL|DIMM|[A-Z]|[0-9]){0,8}".prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ]
}

/// All places in a value.
fn pointers(value: &Value, prefix: &str, all: &mut Vec<String>) {
    let mut member = |key: &str, value: &Value| {
        let pointer = format!("{prefix}/{key}");
        all.push(pointer.clone());
        pointers(value, &pointer, all);
    };
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| member(key, value)),
        Value::Array(items) => {
            items.iter().take(2).enumerate().for_each(|(i, value)| member(&i.to_string(), value))
        }
        _ => {}
    }
}

/// A probe with some of its values replaced by others of roughly their type.
fn probes() -> impl Strategy<Value = Value> {
    let whole = serde_json::to_value(recorded("hand-made-gen2-turin")).unwrap();
    let mut places = Vec::new();
    pointers(&whole, "", &mut places);
    let replacement = prop_oneof![
        number(),
        number(),
        text(),
        text(),
        any::<bool>().prop_map(Value::from),
        Just(json!({ "unknown": "hidden" })),
        Just(Value::Null),
        prop::collection::vec(number(), 0..5).prop_map(Value::from),
        prop::collection::vec(text(), 0..5).prop_map(Value::from),
    ];
    let change = (prop::sample::select(places), replacement);
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut probe = whole.clone();
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
                    prop_assert!(check.found.len() < 4096);
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
    fn broken_specs_never_panic(from in 0..40_000usize, length in 0..300usize, repeat: bool) {
        let text = include_str!("../specs/gen2.toml");
        let (from, to) = (from.min(text.len()), (from + length).min(text.len()));
        if let (Some(head), Some(part), Some(tail)) = (text.get(..from), text.get(from..to), text.get(to..)) {
            let broken = if repeat { [head, part, part, tail].concat() } else { [head, tail].concat() };
            let _ = Spec::from_toml(&broken);
        }
    }
}
