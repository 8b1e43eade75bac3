//! A JSON schema of the specification files, for editors: they treat TOML as the same data.

use crate::fact::{Fact, Kind};
use serde_json::{Map, Value, json};

/// JSON schema (draft 2020-12) of a specification. `spec.schema.json` holds it.
pub fn schema() -> Value {
    let words = |meaning: &str| json!({ "type": "string", "maxLength": 1000, "description": meaning });
    let number = json!({ "type": "integer", "minimum": 0 });
    let share = |meaning: &str, most: u32| json!({ "type": "integer", "minimum": 1, "maximum": most, "description": meaning });
    let texts = json!({ "type": "array", "items": { "type": "string", "minLength": 1 }, "minItems": 1 });
    let with = |schema: &Value, meaning: &str| {
        let mut schema = schema.clone();
        schema["description"] = meaning.into();
        schema
    };
    let facts: Vec<Value> = Fact::ALL
        .iter()
        .map(|fact| {
            let text = format!("{} ({})", fact.meaning(), fact.kind().describe());
            json!({ "const": fact.name(), "description": text })
        })
        .collect();
    let conditions = json!({
        "at_least": with(&number, "A number, this or more; may stand beside at_most."),
        "at_most": with(&number, "A number, this or less; may stand beside at_least."),
        "floor_by_generation": {
            "type": "object", "additionalProperties": number, "minProperties": 1,
            "description": "A number, at least the one for the processor's generation.",
        },
        "floor_by_stepping": {
            "type": "array", "items": number, "minItems": 1,
            "description": "Microcode revisions, each at least the one for its stepping.",
        },
        "version_at_least": { "type": "string", "pattern": "^[0-9]", "description": "A version, this or later." },
        "one_of": with(&texts, "A text, one of these."),
        "contains_one_of": with(&texts, "A text with one of these in it."),
        "any_of": with(&texts, "A set with at least one of these."),
        "includes": with(&texts, "A set with each of these."),
        "only": {
            "type": "array", "items": { "type": "string" },
            "description": "A set with nothing but these.",
        },
        "is": { "type": "boolean", "description": "A flag." },
    });
    let mut properties = json!({
        "id": { "type": "string", "pattern": "^[a-z0-9-]{1,64}$", "description": "Unique name of the check." },
        "fact": { "oneOf": facts, "description": "What is looked at." },
        "severity": { "enum": ["required", "recommended"], "description": "Not met, the check fails or warns." },
        "fix": { "type": "string", "minLength": 1, "maxLength": 1000, "description": "What to do if it is not met." },
        "source": words("Where the requirement comes from."),
    });
    if let (Some(all), Some(conditions)) = (properties.as_object_mut(), conditions.as_object()) {
        all.extend(conditions.clone());
    }
    // Which conditions fit which facts: one rule for each kind.
    let rules: Vec<Value> = KINDS
        .iter()
        .map(|(example, keys)| {
            let names: Vec<String> = Fact::ALL
                .iter()
                .filter(|fact| std::mem::discriminant(&fact.kind()) == std::mem::discriminant(example))
                .map(|fact| fact.name())
                .collect();
            let required: Vec<Value> = keys.iter().map(|key| json!({ "required": [key] })).collect();
            json!({
                "if": { "properties": { "fact": { "enum": names } }, "required": ["fact"] },
                "then": { "anyOf": required },
            })
        })
        .collect();
    // Exactly one condition; the two bounds count as one.
    let single: Vec<Value> = conditions
        .as_object()
        .unwrap_or(&Map::new())
        .keys()
        .filter(|key| !matches!(key.as_str(), "at_least" | "at_most"))
        .map(|key| json!({ "required": [key] }))
        .chain([json!({ "anyOf": [{ "required": ["at_least"] }, { "required": ["at_most"] }] })])
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Redoubt hardware specification",
        "type": "object",
        "additionalProperties": false,
        "required": ["name", "description", "check"],
        "properties": {
            "name": words("Name in reports."),
            "description": words("One line for people."),
            "guest": {
                "type": "object",
                "additionalProperties": false,
                "required": ["vcpus", "host_cores", "host_memory_mib", "pin", "huge_pages"],
                "description": "How the machine is divided between host and guest.",
                "properties": {
                    "vcpus": share("Virtual processors; the release needs a measurement for this number.", 4096),
                    "host_cores": share("Cores that only the host uses.", 4096),
                    "host_memory_mib": share("Memory that the host keeps, in MiB; the guest gets the rest.", 1 << 24),
                    "pin": { "type": "boolean", "description": "Each virtual processor stays on a processor of its own, and memory beside them." },
                    "huge_pages": { "type": "boolean", "description": "Memory of huge pages, where the platform can." },
                },
            },
            "check": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["id", "fact", "severity", "fix"],
                    "properties": properties,
                    "oneOf": single,
                    "allOf": rules,
                },
            },
        },
    })
}

/// An example of each kind, and the conditions that fit it.
const KINDS: [(Kind, &[&str]); 6] = [
    (Kind::Number(crate::Unit::Count), &["at_least", "at_most", "floor_by_generation"]),
    (Kind::Each(crate::Unit::Count), &["at_least", "at_most", "floor_by_stepping"]),
    (Kind::Text, &["one_of", "contains_one_of"]),
    (Kind::Version, &["version_at_least"]),
    (Kind::Set, &["any_of", "includes", "only"]),
    (Kind::Flag, &["is"]),
];
