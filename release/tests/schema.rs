//! `manifest.schema.json` describes what the program reads: both judge the golden manifest and many changes of it alike.

#![allow(clippy::unwrap_used, reason = "test helpers fail the test")]

use release::Envelope;
use serde_json::{Value, json};

const GOLDEN: &[u8] = include_bytes!("golden/manifest.json");
const SCHEMA: &str = include_str!("../manifest.schema.json");

/// Every value of a document by its pointer.
fn pointers(value: &Value, here: &str, out: &mut Vec<String>) {
    out.push(here.into());
    let mut below = |key: &str, value: &Value| pointers(value, &format!("{here}/{key}"), out);
    match value {
        Value::Object(members) => members.iter().for_each(|(key, member)| below(key, member)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, item)| below(&i.to_string(), item)),
        _ => {}
    }
}

/// The golden manifest has every optional member, so leaving out, replacing and adding at each place reaches all of the
/// schema.
#[test]
fn schema_and_program_agree() {
    let schema = jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap();
    let golden: Value = serde_json::from_slice(GOLDEN).unwrap();
    let mut all = Vec::new();
    pointers(&golden, "", &mut all);
    let mut counts = [0; 2];
    let mut agree = |value: &Value, what: String| {
        let reads = Envelope::from_bytes(&serde_json::to_vec(value).unwrap());
        assert_eq!(schema.is_valid(value), reads.is_ok(), "{what}: {reads:?}");
        counts[usize::from(reads.is_ok())] += 1;
    };
    agree(&golden, "the golden manifest".into());
    for place in &all {
        let replacements = [
            json!({}),
            json!([]),
            json!(7),
            json!(0),
            json!(-1),
            json!(1.5),
            json!("x"),
            json!("\u{e9}"),
            json!(true),
        ];
        for with in replacements {
            // The schema cannot say that measurements and signatures are sorted, nor that the default model is measured.
            if ["/vcpu_type", "/vcpus"].iter().any(|end| place.ends_with(end)) && (with == "x" || with == 7) {
                continue;
            }
            let mut changed = golden.clone();
            *changed.pointer_mut(place).unwrap() = with.clone();
            agree(&changed, format!("{place} = {with}"));
        }
        if let Some(Value::Object(members)) = golden.pointer(place) {
            for key in members.keys() {
                let mut changed = golden.clone();
                changed.pointer_mut(place).unwrap().as_object_mut().unwrap().remove(key);
                agree(&changed, format!("{place} without {key}"));
            }
            let mut changed = golden.clone();
            changed.pointer_mut(place).unwrap()["surprise"] = json!("x");
            agree(&changed, format!("{place} with one more"));
        }
    }
    let zeros = |digits| json!("0".repeat(digits));
    for (place, with) in [
        ("/signed/host/verity_root_hash", zeros(64)),
        ("/signed/host/uki_authenticode", zeros(64)),
        ("/signed/guest/measurements/0/measurement", zeros(96)),
        ("/signed/input_lock", json!("AB".repeat(32))),
        ("/signed/host/root/path", json!("../root")),
        ("/signed/host/root/path", json!(".root")),
        ("/signed/host/root/path", json!("a//b")),
        ("/signed/host/root/path", json!("a/b-c.d")),
        ("/signed/version", json!("v".repeat(65))),
        ("/signed/version", json!("")),
    ] {
        let mut changed = golden.clone();
        *changed.pointer_mut(place).unwrap() = with.clone();
        agree(&changed, format!("{place} = {with}"));
    }
    assert!(counts.iter().all(|&count| count > 20), "refused and accepted: {counts:?}");
}
