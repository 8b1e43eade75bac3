//! Whether every value of a policy can be used. A verifier that quietly skips a value leaves its author believing that
//! it was checked.

use super::{ChipId, CrlDemand, Demand, IdBlock, Policy, ProductPolicy, TcbFloor};
use crate::{Product, advisories};
use std::collections::BTreeSet;

impl Policy {
    /// What is wrong with the policy, in words.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut unless = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        unless(
            !self.report_versions.is_empty()
                && self.report_versions.iter().all(|version| (2..=5).contains(version)),
            "report_versions must list some of 2 to 5",
        );
        unless(
            !self.vmpl.is_empty() && self.vmpl.iter().all(|vmpl| *vmpl < 4),
            "vmpl must list some of 0 to 3: others ask on behalf of the host, not of the guest",
        );
        unless(self.products.allowed().next().is_some(), "products allows none");
        let abi = &self.guest_policy;
        unless(
            abi.minimum_abi.zip(abi.maximum_abi).is_none_or(|(minimum, maximum)| minimum <= maximum),
            "guest_policy.minimum_abi is above maximum_abi",
        );
        unless(
            self.signing_key.vcek || self.signing_key.vlek.is_some(),
            "signing_key allows neither the chip's key nor a provider's",
        );
        unless(
            self.signing_key.vlek != Some(Demand::none()),
            "signing_key.vlek lists no provider; leave it out to allow none",
        );
        unless(
            self.revocation.maximum_age_days.is_none() || self.revocation.crl != CrlDemand::Ignore,
            "revocation.maximum_age_days is not used when revocation lists are ignored",
        );
        if let IdBlock::Signed(block) = &self.id_block {
            unless(!block.id_keys.is_empty(), "id_block.signed.id_keys lists no key");
            unless(
                block.author_keys != Some(Demand::none()),
                "id_block.signed.author_keys lists no key; leave it out to allow no author key",
            );
        }
        self.chip_problems(&mut unless);
        for (product, demands) in self.products.allowed() {
            product_problems(product, demands, &self.report_versions, &mut problems);
        }
        problems
    }

    fn chip_problems(&self, unless: &mut impl FnMut(bool, &str)) {
        let products: Vec<Product> = self.products.allowed().map(|(product, _)| product).collect();
        let allow = match &self.chips.allow {
            Some(Demand::OneOf(chips)) => Some(chips),
            Some(Demand::Any) | None => None,
        };
        unless(
            self.products.milan.is_none()
                || self.chips.allow == Some(Demand::Any)
                || allow.is_some_and(|chips| chips.iter().any(|chip| !chip.is_short())),
            "products.milan needs chips.allow with the chips of Milan that are in known custody: their keys can be extracted (arXiv 2605.12990)",
        );
        unless(
            allow != Some(&BTreeSet::new()),
            "chips.allow lists no chip; leave it out to allow every chip",
        );
        for chip in allow.into_iter().flatten().chain(&self.chips.deny) {
            unless(chip.0 != [0; 64], "chips names the chip of zeros, which is how a host hides its chip");
            let usable = products.iter().any(|product| (*product == Product::Turin) == chip.is_short());
            unless(usable, &format!("chips names {chip}, which is of none of the allowed products"));
        }
        for chip in allow.into_iter().flatten().filter(|chip: &&ChipId| self.chips.deny.contains(*chip)) {
            unless(false, &format!("chips both allows and denies {chip}"));
        }
    }
}

fn product_problems(
    product: Product,
    demands: &ProductPolicy,
    report_versions: &BTreeSet<u32>,
    problems: &mut Vec<String>,
) {
    let floors = &demands.minimum_tcb;
    let has_fmc = |floor: &TcbFloor| floor.fmc.is_some();
    let named = [&floors.every, &floors.reported, &floors.committed, &floors.current, &floors.launch];
    if product != Product::Turin && named.into_iter().any(has_fmc) {
        problems.push(format!("{product} has no FMC, so a floor for it in minimum_tcb is never used"));
    }
    if demands.launch_mitigations | demands.current_mitigations != 0 && !report_versions.contains(&5) {
        problems.push(format!(
            "the mitigations demanded of {product} are stated by version 5 of the report only, which report_versions lacks"
        ));
    }
    problems.extend(advisories::problems(product, &demands.advisories));
}
