use super::*;
use crate::report::TcbVersion;
use serde_json::Value;
use std::{fs, path::Path};

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The published schema is what the types say. To write it anew: `UPDATE_SCHEMA=1 cargo test -p attestation schema`.
#[test]
fn the_schema_is_the_types() {
    let schema =
        schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Policy>();
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    let path = folder().join("policy.schema.json");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(fs::read_to_string(path).unwrap(), text, "run with UPDATE_SCHEMA=1");
}

fn validates(text: &str) -> bool {
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(folder().join("policy.schema.json")).unwrap()).unwrap();
    let policy: Value = toml::from_str(text).unwrap();
    jsonschema::validator_for(&schema).unwrap().is_valid(&policy)
}

#[test]
fn the_examples_are_policies() {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder().join("policies")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        Policy::from_toml(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(validates(&text), "{} against the schema", path.display());
        names.push(path.file_name().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(names, ["all-products.toml", "cloud-vlek.toml", "own-milan.toml", "release.toml"]);
}

#[test]
fn an_empty_text_is_the_strict_policy() {
    assert_eq!(Policy::from_toml("").unwrap(), Policy::default());
    assert!(validates(""));
    let milan = Policy::from_toml("[products.genoa]").unwrap().products;
    assert!(milan.genoa.is_some() && milan.turin.is_none(), "naming a product leaves out the others");
}

/// Each text that has the wrong form, for reader and schema alike.
#[test]
fn what_has_another_form_is_refused() {
    for text in [
        "debug = true",
        "measurements = \"none\"",
        "measurements = [\"00\"]",
        &format!("measurements = [\"{}\"]", "AB".repeat(48)),
        "host_data = \"\"",
        "vmpl = 0",
        "id_block = \"signed\"",
        "id_block = { absent = { id_keys = [] } }",
        "[id_block.signed]\nid_keys = []",
        "[guest_policy]\ndebug = false",
        "[guest_policy]\nminimum_abi = \"1\"",
        "[products.rome]",
        "[products.genoa.platform]\necc = true",
        "[products.genoa.minimum_tcb]\nsnp = 3",
        "[products.genoa.minimum_tcb.every]\nsnp = 256",
        "[products.genoa]\nadvisories = \"some\"",
        "[chips]\nallow = \"all\"",
        "[chips]\ndeny = [\"00\"]",
        "[signing_key]\nvlek = true",
        "[revocation]\ncrl = \"maybe\"",
    ] {
        assert!(matches!(Policy::from_toml(text), Err(PolicyError::Toml(_))), "{text}");
        assert!(!validates(text), "{text} against the schema");
    }
    // What the schema's patterns do not tell apart.
    for text in
        ["[guest_policy]\nminimum_abi = \"01.55\"", "[products.genoa]\nminimum_firmware = \"1.55.256\""]
    {
        assert!(matches!(Policy::from_toml(text), Err(PolicyError::Toml(_))), "{text}");
    }
}

/// Each value that could never be used, or contradicts another, and a word of the problem.
#[test]
fn what_cannot_be_used_is_refused() {
    let chip = "66".repeat(64);
    for (text, word) in [
        ("report_versions = []", "report_versions"),
        ("report_versions = [3, 6]", "report_versions"),
        ("vmpl = []", "vmpl"),
        ("vmpl = [4]", "vmpl"),
        ("products = {}", "products allows none"),
        ("[products.milan]", "chips.allow"),
        (&format!("products.milan = {{}}\nchips.deny = [\"{chip}\"]"), "chips.allow"),
        ("[products.milan]\n[products.turin]\n[chips]\nallow = [\"0123456789abcdef\"]", "chips.allow"),
        ("[chips]\nallow = []", "chips.allow lists no chip"),
        (&format!("[chips]\nallow = [\"{chip}\"]\ndeny = [\"{chip}\"]"), "both allows and denies"),
        ("[products.genoa]\n[chips]\ndeny = [\"0123456789abcdef\"]", "none of the allowed products"),
        (&format!("[products.turin]\n[chips]\nallow = [\"{chip}\"]"), "none of the allowed products"),
        (&format!("[chips]\nallow = [\"{}\"]", "00".repeat(64)), "zeros"),
        ("[guest_policy]\nminimum_abi = \"1.58\"\nmaximum_abi = \"1.55\"", "maximum_abi"),
        ("[signing_key]\nvcek = false", "neither"),
        ("[signing_key]\nvlek = []", "no provider"),
        ("[revocation]\ncrl = \"ignore\"\nmaximum_age_days = 3", "maximum_age_days"),
        (
            "[id_block.signed]\nid_keys = []\nfamily_id = \"any\"\nimage_id = \"any\"\nminimum_guest_svn = 0",
            "id_keys lists no key",
        ),
        (
            &format!(
                "[id_block.signed]\nid_keys = [\"{}\"]\nauthor_keys = []\nfamily_id = \"any\"\nimage_id = \"any\"\nminimum_guest_svn = 0",
                "22".repeat(48)
            ),
            "author_keys lists no key",
        ),
        ("[products.genoa.minimum_tcb.launch]\nfmc = 1", "no FMC"),
        ("report_versions = [3]\n[products.genoa]\nlaunch_mitigations = 1", "mitigations"),
        ("[products.genoa]\nadvisories = [\"AMD-SB-1\"]", "no advisory AMD-SB-1"),
        ("[products.genoa]\nadvisories = [\"AMD-SB-3030\"]", "no confirmed TCB floor"),
        ("[products.turin]\nadvisories = [\"AMD-SB-3019\"]", "no confirmed TCB floor"),
    ] {
        match Policy::from_toml(text) {
            Err(PolicyError::Unusable(problems)) => {
                assert!(problems.iter().any(|problem| problem.contains(word)), "{text}: {problems:?}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let several = Policy::from_toml("vmpl = []\nreport_versions = []").unwrap_err().to_string();
    assert!(several.contains("vmpl") && several.contains("report_versions"), "all problems: {several}");
}

#[test]
fn parts_of_floors_and_versions_go_by_the_same_names() {
    let tcb = TcbVersion { fmc: None, bootloader: 0, tee: 0, snp: 0, microcode: 0 };
    assert_eq!(tcb.parts().map(|(name, _)| name), TcbFloor::default().parts().map(|(name, _)| name));
}

proptest::proptest! {
    #[test]
    fn reading_never_panics(text in "\\PC{0,200}") {
        let _ = Policy::from_toml(&text);
    }
}
