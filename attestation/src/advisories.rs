//! Known weaknesses, and the TCB versions that are free of them: a data file with the manufacturer's bulletin as source.
//!
//! An entry without a floor is one whose floor could not be confirmed, or that no TCB version tells: such a weakness is
//! shown as not decided by the TCB ([`assess`]), never as fixed.

use crate::{Product, Report, policy::TcbFloor, report::TcbVersion};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{collections::BTreeSet, fmt, sync::LazyLock};

/// The file.
pub const DATA: &str = include_str!("../data/advisories.toml");

/// A weakness that the manufacturer published.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advisory {
    /// Of the bulletin, such as AMD-SB-3019.
    pub id: String,
    /// What it is, with the name that it is known by.
    pub title: String,
    /// CVE numbers.
    #[serde(default)]
    pub cves: Vec<String>,
    /// Address of the bulletin.
    pub source: String,
    /// What else stops it.
    #[serde(default)]
    pub also: Option<String>,
    /// What is known for each product.
    #[serde(rename = "product")]
    pub products: Vec<Entry>,
}

/// What is known of a weakness on some processors of a product. The first entry that fits a processor counts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Product.
    pub name: Product,
    /// Combined CPUID model; left out: all.
    #[serde(default)]
    pub model: Option<u8>,
    /// CPUID stepping; left out: all. Microcode is numbered by stepping.
    #[serde(default)]
    pub stepping: Option<u8>,
    /// Whether the floor is quoted from the bulletin.
    pub confirmed: bool,
    /// TCB free of the weakness; only when confirmed.
    #[serde(default)]
    pub floor: Option<TcbFloor>,
    /// Where the bulletin's number is quoted, or why there is none.
    pub note: String,
}

/// Advisories whose floors count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Selection {
    /// Every one with a confirmed floor.
    #[default]
    All,
    /// None.
    None,
    /// These.
    Listed(BTreeSet<String>),
}

static ADVISORIES: LazyLock<Vec<Advisory>> = LazyLock::new(|| {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        advisory: Vec<Advisory>,
    }
    #[expect(clippy::expect_used, reason = "the file is part of the program, and a test reads it")]
    let file: File = toml::from_str(DATA).expect("advisories.toml is sound");
    file.advisory
});

/// Every advisory of the file.
#[must_use]
pub fn all() -> &'static [Advisory] {
    &ADVISORIES
}

impl Advisory {
    /// What is known for a processor; `cpuid` is family, model and stepping, where the report states them.
    fn entry(&self, product: Product, cpuid: Option<[u8; 3]>) -> Option<&Entry> {
        self.products.iter().find(|entry| {
            let fits = |wanted: Option<u8>, index: usize| {
                wanted.is_none_or(|wanted| cpuid.is_some_and(|cpuid| cpuid[index] == wanted))
            };
            entry.name == product && fits(entry.model, 1) && fits(entry.stepping, 2)
        })
    }
}

/// Floors of the selected advisories for a processor.
pub(crate) fn floors(
    selection: &Selection,
    product: Product,
    cpuid: Option<[u8; 3]>,
) -> impl Iterator<Item = (&'static str, TcbFloor)> {
    let selected = |advisory: &&Advisory| match selection {
        Selection::All => true,
        Selection::None => false,
        Selection::Listed(ids) => ids.contains(&advisory.id),
    };
    all()
        .iter()
        .filter(selected)
        .filter_map(move |advisory| Some((advisory.id.as_str(), advisory.entry(product, cpuid)?.floor?)))
}

/// Why a selection cannot be used for a product, in words.
pub(crate) fn problems(product: Product, selection: &Selection) -> Vec<String> {
    let Selection::Listed(ids) = selection else { return Vec::new() };
    let problem = |id: &String| {
        let Some(advisory) = all().iter().find(|advisory| advisory.id == *id) else {
            return Some(format!("no advisory {id} is known"));
        };
        let has_floor = advisory.products.iter().any(|entry| entry.name == product && entry.floor.is_some());
        (!has_floor)
            .then(|| format!("{id} has no confirmed TCB floor for {product}, so the TCB cannot decide it"))
    };
    ids.iter().filter_map(problem).collect()
}

/// Where a machine stands with one advisory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Assessment {
    /// Of the bulletin.
    pub id: &'static str,
    /// What it is.
    pub title: &'static str,
    /// Address of the bulletin.
    pub source: &'static str,
    /// What the TCB says of it.
    pub status: Status,
    /// Why, in words.
    pub reason: String,
    /// What else stops it.
    pub also: Option<&'static str>,
}

/// What the TCB says of a weakness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// All four TCB versions are at or above the floor.
    AtOrAboveFloor,
    /// One of them is below.
    BelowFloor,
    /// Nothing: no floor is confirmed, or there is none.
    NotDecidedByTcb,
}

/// Holds a report against every advisory for its product.
#[must_use]
pub fn assess(report: &Report, product: Product) -> Vec<Assessment> {
    let assess = |advisory: &'static Advisory| {
        let (status, reason) = match advisory.entry(product, report.cpuid()) {
            None if advisory.products.iter().all(|entry| entry.name != product) => return None,
            None => (Status::NotDecidedByTcb, "nothing is known of this model and stepping".to_owned()),
            Some(Entry { floor: None, note, .. }) => (Status::NotDecidedByTcb, note.clone()),
            Some(Entry { floor: Some(floor), .. }) => {
                let low: Vec<_> = tcbs(report)
                    .iter()
                    .filter(|(_, tcb)| !below(*tcb, *floor).is_empty())
                    .map(|(name, _)| *name)
                    .collect();
                let floor = words(*floor);
                if low.is_empty() {
                    (Status::AtOrAboveFloor, format!("every TCB version has at least {floor}"))
                } else {
                    (Status::BelowFloor, format!("{} TCB below {floor}", low.join(", ")))
                }
            }
        };
        let Advisory { id, title, source, also, .. } = advisory;
        Some(Assessment { id, title, source, status, reason, also: also.as_deref() })
    };
    all().iter().filter_map(assess).collect()
}

/// The four TCB versions of a report, named.
pub(crate) fn tcbs(report: &Report) -> [(&'static str, TcbVersion); 4] {
    [
        ("reported", report.reported_tcb()),
        ("committed", report.committed_tcb()),
        ("current", report.current_tcb()),
        ("launch", report.launch_tcb()),
    ]
}

/// Parts that are below the floor. A part that only the floor has is below it.
pub(crate) fn below(tcb: TcbVersion, floor: TcbFloor) -> Vec<&'static str> {
    let parts = tcb.parts().into_iter().zip(floor.parts());
    parts.filter(|((_, has), (_, least))| has < least).map(|((name, _), _)| name).collect()
}

/// A floor in words.
pub(crate) fn words(floor: TcbFloor) -> String {
    let part = |(name, least): (&str, Option<u8>)| Some(format!("{name} {}", least?));
    floor.parts().into_iter().filter_map(part).collect::<Vec<_>>().join(", ")
}

impl<'de> Deserialize<'de> for Selection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Selection;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"all\", \"none\" or a list of advisories")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Selection, E> {
                match text {
                    "all" => Ok(Selection::All),
                    "none" => Ok(Selection::None),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Selection, A::Error> {
                BTreeSet::deserialize(de::value::SeqAccessDeserializer::new(list)).map(Selection::Listed)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Selection {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Selection".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let ids: Vec<_> = all().iter().map(|advisory| &advisory.id).collect();
        schemars::json_schema!({
            "description": "Advisories whose floors count.",
            "anyOf": [
                { "enum": ["all", "none"] },
                { "type": "array", "items": { "enum": ids }, "uniqueItems": true },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_says_where_each_number_is_from() {
        let mut ids = BTreeSet::new();
        for advisory in all() {
            assert!(ids.insert(&advisory.id), "{} twice", advisory.id);
            let number = advisory.id.strip_prefix("AMD-SB-").unwrap();
            let page =
                format!("https://www.amd.com/en/resources/product-security/bulletin/amd-sb-{number}.html");
            assert_eq!(advisory.source, page);
            assert!(!advisory.products.is_empty(), "{}", advisory.id);
            for entry in &advisory.products {
                let Entry { name, confirmed, floor, note, .. } = entry;
                assert_eq!(*confirmed, floor.is_some(), "{} {name}: a number without a source", advisory.id);
                assert!(!note.is_empty(), "{} {name}", advisory.id);
                if let Some(floor) = floor {
                    assert!(floor.parts().iter().any(|(_, part)| part.is_some()), "{} {name}", advisory.id);
                    assert!(floor.fmc.is_none() || *name == Product::Turin, "{} {name}", advisory.id);
                }
            }
        }
    }

    #[test]
    fn a_high_part_does_not_pay_for_a_low_one() {
        let floor =
            TcbFloor { bootloader: Some(4), snp: Some(24), microcode: Some(213), ..TcbFloor::default() };
        let tcb = TcbVersion { fmc: None, bootloader: 4, tee: 0, snp: 24, microcode: 213 };
        assert!(below(tcb, floor).is_empty());
        assert_eq!(below(TcbVersion { bootloader: 9, snp: 23, ..tcb }, floor), ["snp"]);
        assert_eq!(
            below(TcbVersion { microcode: 0, bootloader: 3, ..tcb }, floor),
            ["bootloader", "microcode"]
        );
        assert_eq!(below(tcb, TcbFloor { fmc: Some(0), ..floor }), ["fmc"]);
    }

    #[test]
    fn microcode_floors_follow_the_stepping() {
        let stackwarp = Selection::Listed(["AMD-SB-3027".to_owned()].into());
        let microcode = |cpuid| {
            let floors: Vec<_> = floors(&stackwarp, Product::Genoa, cpuid).collect();
            floors.first().and_then(|(_, floor)| floor.microcode)
        };
        assert_eq!(microcode(Some([0x19, 0x11, 1])), Some(0x56), "Genoa");
        assert_eq!(microcode(Some([0x19, 0x11, 2])), Some(0x51), "Genoa-X");
        assert_eq!(microcode(Some([0x19, 0xa0, 2])), None, "Bergamo: not confirmed");
        assert_eq!(microcode(None), None, "version 2 of the report names no stepping");
    }
}
