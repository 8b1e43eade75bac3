//! `spec.schema.json` is the schema of what the program reads.

#![allow(clippy::unwrap_used, reason = "test helpers fail the test")]

use hwspec::{Spec, schema};
use serde_json::Value;

/// With `HWSPEC_WRITE_SCHEMA=1` it writes the file instead.
#[test]
fn the_file_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/spec.schema.json");
    if std::env::var_os("HWSPEC_WRITE_SCHEMA").is_some() {
        std::fs::write(path, format!("{:#}\n", schema())).unwrap();
    }
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(
        file,
        schema(),
        "the schema changed: HWSPEC_WRITE_SCHEMA=1 cargo test -p hwspec --test schema"
    );
}

fn valid(validator: &jsonschema::Validator, text: &str) -> bool {
    let value: toml::Value = toml::from_str(text).unwrap();
    validator.is_valid(&serde_json::to_value(value).unwrap())
}

const GOOD: &str = "name = 'a'\ndescription = 'b'\n[[check]]\nid = 'x'\nfact = 'cpu-threads'\nat_least = 2\n\
                    severity = 'required'\nfix = 'f'\n";

#[test]
fn schema_and_program_agree() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for text in [
        include_str!("../specs/gen1.toml"),
        include_str!("../specs/gen2.toml"),
        include_str!("../specs/virtual.toml"),
        GOOD,
    ] {
        assert!(valid(&validator, text) && Spec::from_toml(text).is_ok());
    }
    let both = GOOD.replace("at_least = 2", "at_least = 2\nat_most = 3");
    assert!(valid(&validator, &both) && Spec::from_toml(&both).is_ok());
    let share = "description = 'b'\n[guest]\nvcpus = 2\nhost_cores = 1\nhost_memory_mib = 1\npin = true\nhuge_pages = false";
    let divided = GOOD.replace("description = 'b'", share);
    assert!(valid(&validator, &divided) && Spec::from_toml(&divided).unwrap().guest.unwrap().pin);
    let fact = |fact: &str, condition: &str| {
        GOOD.replace("'cpu-threads'\nat_least = 2", &format!("'{fact}'\n{condition}"))
    };
    for (bad, why) in [
        (GOOD.replace("at_least = 2", ""), "no condition"),
        (GOOD.replace("at_least = 2", "at_least = 2\nis = true"), "two conditions"),
        (GOOD.replace("at_least = 2", "is = true"), "a flag's condition on a number"),
        (GOOD.replace("at_least = 2", "at_least = -2"), "a negative number"),
        (GOOD.replace("at_least = 2", "at_least = '2'"), "a text for a number"),
        (GOOD.replace("cpu-threads", "cpu-colour"), "no such fact"),
        (GOOD.replace("'x'", "'X'"), "a capital in the id"),
        (GOOD.replace("required", "fatal"), "no such severity"),
        (GOOD.replace("fix = 'f'", ""), "no fix"),
        (GOOD.replace("fix", "surprise = 1\nfix"), "unknown key"),
        (GOOD.replace("name = 'a'", ""), "no name"),
        (divided.replace("vcpus = 2", "vcpus = 0"), "a guest without processors"),
        (divided.replace("vcpus = 2", "vcpus = 5000"), "more processors than any machine has"),
        (divided.replace("pin = true", ""), "a share that does not say all"),
        (divided.replace("pin = true", "pin = true\nnode = 1"), "an unknown key of the share"),
        (fact("tpm", "includes = ['2.0']"), "a set's condition on a text"),
        (fact("cpu-flags", "includes = []"), "nothing to include"),
        (fact("cpu-microcode", "floor_by_generation = { milan = 1 }"), "floors by generation of a revision"),
        (fact("qemu-version", "version_at_least = 'new'"), "no version"),
    ] {
        assert!(!valid(&validator, &bad), "the schema accepts {why}");
        assert!(Spec::from_toml(&bad).is_err(), "the program accepts {why}");
    }
}
