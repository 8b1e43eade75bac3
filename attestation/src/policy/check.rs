//! Holds a report against a policy, field by field.

use super::{Bit, ChipId, CrlDemand, Dotted, Hex, IdBlock, Policy, SignedIdBlock, machine};
use crate::{
    Product, Report,
    authenticity::Examined,
    failure::{Code, Failures},
    report::{GuestPolicy, PlatformInfo, SigningKey},
};

const SECONDS_A_DAY: i64 = 24 * 60 * 60;

/// Fix of whatever the guest's launch parameters decide.
const LAUNCH: &str = "start the guest with the policy and ID block of its release";

impl Policy {
    /// Records everything in which the evidence differs from what is demanded. `now` is in seconds since 1970.
    pub(crate) fn check(&self, examined: &Examined, now: i64, failures: &mut Failures) {
        for problem in self.problems() {
            failures.add(
                Code::PolicyUnusable,
                "a policy of which every value can be used",
                problem,
                "correct the policy",
            );
        }
        self.check_revocation(examined, now, failures);
        let Some(report) = &examined.report else { return };
        let listed = |versions: &mut dyn Iterator<Item = &u32>| {
            versions.map(u32::to_string).collect::<Vec<_>>().join(", ")
        };
        failures.require(
            self.report_versions.contains(&report.version()),
            Code::ReportVersionNotAllowed,
            format_args!("a report of version {}", listed(&mut self.report_versions.iter())),
            report.version(),
            "update the SNP firmware of the node's machine",
        );
        failures.require(
            self.vmpl.contains(&report.vmpl()),
            Code::VmplMismatch,
            format_args!("VMPL {}", listed(&mut self.vmpl.iter())),
            report.vmpl(),
            "ask the guest's own level for the report",
        );
        self.check_chip(report, examined.product(), failures);
        match examined.product().and_then(|product| Some((product, self.products.get(product)?))) {
            Some((product, demands)) => machine::check(report, product, demands, failures),
            None => failures.add(
                Code::ProductNotAllowed,
                self.products
                    .allowed()
                    .map(|(product, _)| product.to_string())
                    .collect::<Vec<_>>()
                    .join(" or "),
                examined.product().map_or("unknown".to_owned(), |product| product.to_string()),
                "use a machine of an allowed product, or allow this one in the policy knowing its weaknesses",
            ),
        }
        self.check_keys(report, examined.provider(), failures);
        self.check_guest_policy(report.policy(), report.platform_info(), failures);
        self.check_identity(report, failures);
        self.check_id_block(report, failures);
    }

    fn check_revocation(&self, examined: &Examined, now: i64, failures: &mut Failures) {
        let needed = match self.revocation.crl {
            CrlDemand::Require => true,
            CrlDemand::IfGiven => examined.crls_given,
            CrlDemand::Ignore => false,
        };
        if !needed {
            return;
        }
        let maximum_age = self.revocation.maximum_age_days.map(|days| i64::from(days) * SECONDS_A_DAY);
        // A list without an end needs one from the policy.
        let end = |this_update: i64, next_update: Option<i64>| {
            let by_age = maximum_age.map(|age| this_update.saturating_add(age));
            [next_update, by_age].into_iter().flatten().min().unwrap_or(i64::MIN)
        };
        let current = |this_update, next_update| this_update <= now && now <= end(this_update, next_update);
        if examined.crls.is_empty() {
            failures.add(
                Code::CrlMissing,
                "a revocation list of the chain's root",
                "none",
                "fetch the product's list from AMD's key distribution service (/vcek/v1/{product}/crl) and give it to the verifier",
            );
        } else if !examined.crls.iter().any(|crl| current(crl.this_update, crl.next_update)) {
            let found = examined.crls.iter().map(|crl| {
                let next = crl.next_update.map_or("an open end".to_owned(), |time| time.to_string());
                format!("one from {} to {next}", crl.this_update)
            });
            failures.add(
                Code::CrlStale,
                format_args!("a revocation list that is current at {now} (seconds since 1970)"),
                found.collect::<Vec<_>>().join(", "),
                "fetch the list again, and set this machine's clock",
            );
        }
    }

    fn check_chip(&self, report: &Report, product: Option<Product>, failures: &mut Failures) {
        const CUSTODY: &str =
            "add the chip to the list only if the machine has been in known custody since its first boot";
        let chip = ChipId(report.chip_id());
        match &self.chips.allow {
            Some(allowed) => failures.require(
                allowed.allows(&chip),
                Code::ChipNotAllowed,
                "a chip of the allow-list",
                chip,
                CUSTODY,
            ),
            None => failures.require(
                product != Some(Product::Milan),
                Code::ChipNotAllowed,
                "an allow-list of chips, which Milan needs",
                chip,
                CUSTODY,
            ),
        }
        failures.require(
            !self.chips.deny.contains(&chip),
            Code::ChipDenied,
            "a chip that is not on the deny-list",
            chip,
            "use another machine",
        );
    }

    fn check_keys(&self, report: &Report, provider: Option<&str>, failures: &mut Failures) {
        let key = report.key_info();
        let (is_vcek, is_vlek) =
            (key.signing_key() == SigningKey::Vcek, key.signing_key() == SigningKey::Vlek);
        failures.require(
            !is_vcek || self.signing_key.vcek,
            Code::VcekNotAllowed,
            "a report signed by a provider's key (VLEK)",
            key.signing_key(),
            "load the provider's key into the platform, or allow the chip's key in the policy",
        );
        match &self.signing_key.vlek {
            None => failures.require(
                is_vcek,
                Code::VlekNotAllowed,
                "a report signed by the chip's own key (VCEK)",
                key.signing_key(),
                "remove the loaded key (VLEK) from the platform, or allow the provider's key in the policy",
            ),
            Some(providers) => failures.require(
                !is_vlek || provider.is_some_and(|provider| providers.allows(&provider.to_owned())),
                Code::VlekProviderNotAllowed,
                format_args!("a key of {providers}"),
                provider.unwrap_or("no provider"),
                "use a machine of an allowed provider",
            ),
        }
        failures.require(
            !key.chip_key_masked(),
            Code::ChipKeyMasked,
            "MASK_CHIP_KEY clear",
            format_args!("KEY_INFO {:#x}", key.0),
            "set MaskChipKey to 0 in the platform's configuration",
        );
    }

    fn check_guest_policy(&self, policy: GuestPolicy, platform: PlatformInfo, failures: &mut Failures) {
        let demands = &self.guest_policy;
        for (demand, bit, code, name) in [
            (demands.smt, GuestPolicy::SMT, Code::SmtAllowed, "SMT"),
            (
                demands.migrate_ma,
                GuestPolicy::MIGRATE_MA,
                Code::MigrationAllowed,
                "MIGRATE_MA, which lets a migration agent move it",
            ),
            (
                demands.debug,
                GuestPolicy::DEBUG,
                Code::DebugAllowed,
                "DEBUG, which lets the host read its memory",
            ),
            (demands.single_socket, GuestPolicy::SINGLE_SOCKET, Code::GuestPolicyForbidden, "SINGLE_SOCKET"),
            (demands.cxl_allow, GuestPolicy::CXL_ALLOW, Code::CxlAllowed, "CXL_ALLOW"),
            (
                demands.mem_aes_256_xts,
                GuestPolicy::MEM_AES_256_XTS,
                Code::GuestPolicyForbidden,
                "MEM_AES_256_XTS",
            ),
            (demands.rapl_dis, GuestPolicy::RAPL_DIS, Code::GuestPolicyForbidden, "RAPL_DIS"),
            (
                demands.ciphertext_hiding,
                GuestPolicy::CIPHERTEXT_HIDING,
                Code::GuestPolicyForbidden,
                "CIPHERTEXT_HIDING",
            ),
            (
                demands.page_swap_disable,
                GuestPolicy::PAGE_SWAP_DISABLE,
                Code::GuestPolicyForbidden,
                "PAGE_SWAP_DISABLE",
            ),
        ] {
            let (holds, code, word) = match demand {
                Bit::Any => continue,
                Bit::Required => (policy.has(bit), Code::GuestPolicyMissing, "with"),
                Bit::Forbidden => (!policy.has(bit), code, "without"),
            };
            failures.require(
                holds,
                code,
                format_args!("a guest launched {word} {name}"),
                format_args!("POLICY {:#x}", policy.0),
                LAUNCH,
            );
        }
        failures.require(
            policy.has(GuestPolicy::RESERVED_ONE) && policy.0 & GuestPolicy::RESERVED_ZERO == 0,
            Code::GuestPolicyReserved,
            "reserved bit 17 set, bits 26 to 63 clear",
            format_args!("POLICY {:#x}", policy.0),
            "start the guest with the policy of its release; newer bits need a newer verifier",
        );
        failures.require(
            policy.has(GuestPolicy::SMT) || !platform.has(PlatformInfo::SMT),
            Code::SmtInconsistent,
            "SMT off on the platform, as the guest's policy demands",
            format_args!("POLICY {:#x}, PLATFORM_INFO {:#x}", policy.0, platform.0),
            "genuine firmware refuses such a launch: do not trust the node",
        );
        let (major, minor) = policy.abi();
        let abi = Dotted([major, minor]);
        for (limit, holds, code, word) in [
            (
                demands.minimum_abi,
                demands.minimum_abi.is_none_or(|least| abi >= least),
                Code::AbiTooLow,
                "newer",
            ),
            (
                demands.maximum_abi,
                demands.maximum_abi.is_none_or(|most| abi <= most),
                Code::AbiTooHigh,
                "older",
            ),
        ] {
            let limit = limit.map_or_else(String::new, |limit| limit.to_string());
            failures.require(
                holds,
                code,
                format_args!("POLICY demanding ABI {limit} or {word}"),
                abi,
                LAUNCH,
            );
        }
    }

    fn check_identity(&self, report: &Report, failures: &mut Failures) {
        failures.require(
            self.measurements.allows(&report.measurement()),
            Code::MeasurementNotAllowed,
            &self.measurements,
            report.measurement(),
            "the guest that runs is not one of the approved release: compare firmware, kernel, initrd, command line and number of vCPUs with the manifest",
        );
        let host_data = Hex(report.host_data());
        failures.require(
            self.host_data.allows(&host_data),
            Code::HostDataMismatch,
            &self.host_data,
            host_data,
            "the guest was started with another configuration than the one given",
        );
        let report_data = Hex(report.report_data());
        failures.require(
            self.report_data.allows(&report_data),
            Code::ReportDataMismatch,
            &self.report_data,
            report_data,
            "the report answers another nonce or is of another TLS key: ask again over the same connection; if it stays, someone stands in between",
        );
        let report_id = Hex(report.report_id());
        failures.require(
            self.report_id.allows(&report_id),
            Code::ReportIdMismatch,
            &self.report_id,
            report_id,
            "the guest was started again since its instance was listed: list the new one",
        );
        let agent = Hex(report.report_id_ma());
        failures.require(
            self.report_id_ma.allows(&agent),
            Code::MigrationAgentBound,
            &self.report_id_ma,
            agent,
            "start the guest without a migration agent, or with one that the policy lists",
        );
    }

    fn check_id_block(&self, report: &Report, failures: &mut Failures) {
        match &self.id_block {
            IdBlock::Any => {}
            IdBlock::Absent => failures.require(
                report.id_key_digest() == [0; 48]
                    && report.author_key_digest() == [0; 48]
                    && !report.key_info().author_key_enabled()
                    && report.family_id() == [0; 16]
                    && report.image_id() == [0; 16]
                    && report.guest_svn() == 0,
                Code::IdBlockUnexpected,
                "a guest launched without an ID block",
                format_args!(
                    "ID_KEY_DIGEST {}, GUEST_SVN {}",
                    Hex(report.id_key_digest()),
                    report.guest_svn()
                ),
                "start the guest without an ID block, or name its keys in the policy",
            ),
            IdBlock::Signed(block) => block.check(report, failures),
        }
    }
}

impl SignedIdBlock {
    fn check(&self, report: &Report, failures: &mut Failures) {
        let id_key = Hex(report.id_key_digest());
        failures.require(
            self.id_keys.contains(&id_key),
            Code::IdKeyNotAllowed,
            "an ID block signed by a key of the policy",
            id_key,
            LAUNCH,
        );
        let author = report.key_info().author_key_enabled().then(|| Hex(report.author_key_digest()));
        failures.require(
            match (&self.author_keys, &author) {
                // Without the flag the digest means nothing and must not look as if it did.
                (None, None) => report.author_key_digest() == [0; 48],
                (Some(keys), Some(author)) => keys.allows(author),
                _ => false,
            },
            Code::AuthorKeyNotAllowed,
            self.author_keys.as_ref().map_or("no author key".to_owned(), ToString::to_string),
            author.map_or("no author key".to_owned(), |author| author.to_string()),
            LAUNCH,
        );
        for (demand, found, code) in [
            (&self.family_id, Hex(report.family_id()), Code::FamilyMismatch),
            (&self.image_id, Hex(report.image_id()), Code::ImageMismatch),
        ] {
            failures.require(demand.allows(&found), code, demand, found, LAUNCH);
        }
        failures.require(
            report.guest_svn() >= self.minimum_guest_svn,
            Code::GuestSvnTooLow,
            format_args!("GUEST_SVN {} or higher", self.minimum_guest_svn),
            report.guest_svn(),
            "start a newer release of the guest",
        );
    }
}
