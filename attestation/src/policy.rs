//! What a verifier demands of an authentic report. Whatever a policy does not name is decided strictly.

use crate::{
    Measurement, Product, Report,
    failure::Failures,
    report::{GuestPolicy, PlatformInfo, SigningKey, TcbVersion},
};
use std::collections::{BTreeMap, BTreeSet};

/// Demands on a report. [`Policy::new`] gives the strict ones; widen a field to allow more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Launch digests that are allowed. Empty allows none.
    pub measurements: BTreeSet<Measurement>,
    /// REPORT_DATA: see [`crate::binding::report_data`].
    pub report_data: [u8; 64],
    /// HOST_DATA; `None` leaves it to the caller, who reads it from [`crate::Verified`].
    pub host_data: Option<[u8; 32]>,
    /// Products that are allowed, and what each must have. Strict: Genoa and Turin.
    pub products: BTreeMap<Product, ProductPolicy>,
    /// Chips that are allowed; `None` allows every chip of an allowed product but Milan, whose endorsement keys can be
    /// extracted in software (arXiv 2605.12990): Milan needs this list.
    pub chips: Option<BTreeSet<[u8; 64]>>,
    /// Least version of the report. Strict: 3, the first that states the alias check.
    pub minimum_report_version: u32,
    /// Bits of [`GuestPolicy`] that must be set beside the reserved one. Strict: none.
    pub guest_policy_required: u64,
    /// Of the bits of [`GuestPolicy`] that widen what the host may do (SMT, MIGRATE_MA, DEBUG, CXL_ALLOW), those that
    /// may be set. Strict: SMT, without which no guest starts on most platforms.
    pub guest_policy_allowed: u64,
    /// Least ABI version that the guest's policy demands of the firmware: major, minor.
    pub minimum_abi: (u8, u8),
    /// VMPL of the asker. Strict: 0.
    pub vmpl: u32,
    /// Whether a cloud provider's key may vouch instead of the chip's. Strict: no.
    pub vlek_allowed: bool,
    /// ID block. Strict: absent, as with a guest that is identified by its measurement alone.
    pub id_block: IdBlock,
    /// Bits that must be set in LAUNCH_MIT_VECTOR and CURRENT_MIT_VECTOR (version 5). Strict: none.
    pub mitigations: u64,
}

/// Demands on one product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductPolicy {
    /// Bits of [`PlatformInfo`] that must be set.
    pub platform: u64,
    /// Least TCB, part by part, for the reported, committed, current and launch TCB.
    pub minimum_tcb: Option<TcbVersion>,
}

/// What the ID block must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdBlock {
    /// None was given at launch.
    Absent,
    /// Not looked at.
    Any,
    /// Signed by a known key.
    Signed(Box<SignedIdBlock>),
}

/// Demands on a signed ID block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedIdBlock {
    /// SHA-384 of the ID keys that are allowed.
    pub id_keys: BTreeSet<[u8; 48]>,
    /// SHA-384 of the author keys of which one must have certified the ID key; `None`: there must be no author key.
    pub author_keys: Option<BTreeSet<[u8; 48]>>,
    /// FAMILY_ID.
    pub family_id: [u8; 16],
    /// IMAGE_ID.
    pub image_id: [u8; 16],
    /// Least GUEST_SVN.
    pub minimum_guest_svn: u32,
}

impl Policy {
    /// The strict policy for these launch digests and this REPORT_DATA.
    #[must_use]
    pub fn new(measurements: impl IntoIterator<Item = Measurement>, report_data: [u8; 64]) -> Self {
        let genoa = PlatformInfo::ECC | PlatformInfo::ALIAS_CHECK_COMPLETE;
        let turin = genoa | PlatformInfo::RAPL_DIS | PlatformInfo::CIPHERTEXT_HIDING;
        let products = [(Product::Genoa, genoa), (Product::Turin, turin)]
            .map(|(product, platform)| (product, ProductPolicy { platform, minimum_tcb: None }));
        Self {
            measurements: measurements.into_iter().collect(),
            report_data,
            host_data: None,
            products: products.into(),
            chips: None,
            minimum_report_version: 3,
            guest_policy_required: 0,
            guest_policy_allowed: GuestPolicy::SMT,
            minimum_abi: (0, 0),
            vmpl: 0,
            vlek_allowed: false,
            id_block: IdBlock::Absent,
            mitigations: 0,
        }
    }

    /// Records everything in which the report differs from what is demanded.
    pub(crate) fn check(&self, report: &Report, product: Option<Product>, failures: &mut Failures) {
        failures.require(
            report.version() >= self.minimum_report_version,
            "report-version-too-old",
            format_args!("version {} or newer", self.minimum_report_version),
            report.version(),
            "update the SNP firmware of the node's machine",
        );
        self.check_product(report, product, failures);
        self.check_guest_policy(report.policy(), report.platform_info(), failures);
        self.check_keys(report, failures);
        self.check_identity(report, failures);
        self.check_id_block(report, failures);
    }

    fn check_product(&self, report: &Report, product: Option<Product>, failures: &mut Failures) {
        let chip = report.chip_id();
        let listed = self.chips.as_ref().map(|chips| chips.contains(&chip));
        // Without a list every chip will do, but for the product whose chips cannot keep their keys.
        failures.require(
            listed.unwrap_or(product != Some(Product::Milan)),
            "chip-not-allowed",
            if listed.is_some() {
                "a chip of the allow-list"
            } else {
                "an allow-list of chips, which Milan needs"
            },
            hex::encode(chip),
            "add the chip to the list only if the machine has been in known custody since its first boot",
        );
        let Some((product, demands)) = product.and_then(|product| self.products.get_key_value(&product))
        else {
            let allowed = self.products.keys().map(Product::to_string).collect::<Vec<_>>().join(", ");
            failures.add(
                "product-not-allowed",
                format_args!("one of {allowed}"),
                product.map_or("unknown".to_owned(), |product| product.to_string()),
                "use a machine of an allowed product, or allow this one in the policy knowing its weaknesses",
            );
            return;
        };
        for (bit, code, name, fix) in PLATFORM_BITS {
            failures.require(
                demands.platform & bit == 0 || report.platform_info().has(*bit),
                code,
                format_args!("{name} on {product}"),
                format_args!("PLATFORM_INFO {:#x}", report.platform_info().0),
                fix,
            );
        }
        let Some(floor) = demands.minimum_tcb else { return };
        for (name, tcb) in [
            ("reported", report.reported_tcb()),
            ("committed", report.committed_tcb()),
            ("current", report.current_tcb()),
            ("launch", report.launch_tcb()),
        ] {
            let below = tcb.below(floor);
            failures.require(
                below.is_empty(),
                "tcb-too-low",
                format_args!("{name} TCB at least {floor}"),
                format_args!("{tcb}: {} too low", below.join(", ")),
                "update firmware and microcode of the node's machine, commit them, and start the guest again",
            );
        }
    }

    fn check_guest_policy(&self, policy: GuestPolicy, platform: PlatformInfo, failures: &mut Failures) {
        for (bit, code, name) in GUEST_POLICY_BITS {
            failures.require(
                !policy.has(*bit) || self.guest_policy_allowed & bit != 0,
                code,
                format_args!("a guest launched without {name}"),
                format_args!("POLICY {:#x}", policy.0),
                "start the guest with the policy of its release",
            );
        }
        failures.require(
            policy.has(GuestPolicy::RESERVED_ONE) && policy.0 & GuestPolicy::RESERVED_ZERO == 0,
            "guest-policy-reserved",
            "reserved bit 17 set, bits 26 to 63 clear",
            format_args!("POLICY {:#x}", policy.0),
            "start the guest with the policy of its release; newer bits need a newer verifier",
        );
        failures.require(
            policy.has(self.guest_policy_required),
            "guest-policy-missing",
            format_args!("POLICY with all bits of {:#x}", self.guest_policy_required),
            format_args!("POLICY {:#x}", policy.0),
            "start the guest with the policy of its release",
        );
        failures.require(
            policy.has(GuestPolicy::SMT) || !platform.has(PlatformInfo::SMT),
            "smt-inconsistent",
            "SMT off on the platform, as the guest's policy demands",
            format_args!("POLICY {:#x}, PLATFORM_INFO {:#x}", policy.0, platform.0),
            "genuine firmware refuses such a launch: do not trust the node",
        );
        let (major, minor) = policy.abi();
        failures.require(
            policy.abi() >= self.minimum_abi,
            "abi-too-low",
            format_args!("POLICY demanding ABI {}.{} or newer", self.minimum_abi.0, self.minimum_abi.1),
            format_args!("{major}.{minor}"),
            "start the guest with the policy of its release",
        );
    }

    fn check_keys(&self, report: &Report, failures: &mut Failures) {
        let key = report.key_info();
        failures.require(
            key.signing_key() == SigningKey::Vcek || self.vlek_allowed,
            "vlek-not-allowed",
            "a report signed by the chip's own key (VCEK)",
            key.signing_key(),
            "remove the loaded key (VLEK) from the platform, or allow the provider's key in the policy",
        );
        failures.require(
            !key.chip_key_masked(),
            "chip-key-masked",
            "MASK_CHIP_KEY clear",
            format_args!("KEY_INFO {:#x}", key.0),
            "set MaskChipKey to 0 in the platform's configuration",
        );
        failures.require(
            report.report_id_ma() == [0xff; 32],
            "migration-agent-bound",
            "no migration agent (REPORT_ID_MA all 0xff)",
            hex::encode(report.report_id_ma()),
            "start the guest without a migration agent",
        );
        for (name, vector) in
            [("LAUNCH", report.launch_mit_vector()), ("CURRENT", report.current_mit_vector())]
        {
            failures.require(
                vector & self.mitigations == self.mitigations,
                "mitigation-missing",
                format_args!("{name}_MIT_VECTOR with all bits of {:#x}", self.mitigations),
                format_args!("{vector:#x}"),
                "update the SNP firmware of the node's machine and start the guest again",
            );
        }
    }

    fn check_identity(&self, report: &Report, failures: &mut Failures) {
        failures.require(
            report.vmpl() == self.vmpl,
            "vmpl-mismatch",
            format_args!("VMPL {}", self.vmpl),
            report.vmpl(),
            "ask the guest's own level for the report",
        );
        failures.require(
            self.measurements.contains(&report.measurement()),
            "measurement-not-allowed",
            match self.measurements.len() {
                0 => "a launch digest, but the policy allows none".to_owned(),
                1..=4 => self.measurements.iter().map(Measurement::to_string).collect::<Vec<_>>().join(" or "),
                many => format!("one of {many} launch digests"),
            },
            report.measurement(),
            "the guest that runs is not one of the approved release: compare firmware, kernel, initrd, command line and number of vCPUs with the manifest",
        );
        if let Some(expected) = self.host_data {
            failures.require(
                report.host_data() == expected,
                "host-data-mismatch",
                hex::encode(expected),
                hex::encode(report.host_data()),
                "the guest was started with another configuration than the one given",
            );
        }
        failures.require(
            report.report_data() == self.report_data,
            "report-data-mismatch",
            hex::encode(self.report_data),
            hex::encode(report.report_data()),
            "the report answers another nonce or is of another TLS key: ask again over the same connection; if it stays, someone stands in between",
        );
    }

    fn check_id_block(&self, report: &Report, failures: &mut Failures) {
        const FIX: &str = "start the guest with the ID block of its release";
        let author = report.key_info().author_key_enabled().then(|| report.author_key_digest());
        match &self.id_block {
            IdBlock::Any => {}
            IdBlock::Absent => failures.require(
                report.id_key_digest() == [0; 48]
                    && report.author_key_digest() == [0; 48]
                    && author.is_none()
                    && report.family_id() == [0; 16]
                    && report.image_id() == [0; 16]
                    && report.guest_svn() == 0,
                "id-block-unexpected",
                "a guest launched without an ID block",
                format_args!(
                    "ID_KEY_DIGEST {}, GUEST_SVN {}",
                    hex::encode(report.id_key_digest()),
                    report.guest_svn()
                ),
                "start the guest without an ID block, or name its keys in the policy",
            ),
            IdBlock::Signed(block) => {
                failures.require(
                    block.id_keys.contains(&report.id_key_digest()),
                    "id-key-not-allowed",
                    "an ID block signed by a key of the policy",
                    hex::encode(report.id_key_digest()),
                    FIX,
                );
                failures.require(
                    match (&block.author_keys, author) {
                        (None, None) => true,
                        (Some(keys), Some(author)) => keys.contains(&author),
                        _ => false,
                    },
                    "author-key-not-allowed",
                    if block.author_keys.is_some() { "an author key of the policy" } else { "no author key" },
                    author.map_or("no author key".to_owned(), hex::encode),
                    FIX,
                );
                failures.require(
                    report.family_id() == block.family_id && report.image_id() == block.image_id,
                    "image-mismatch",
                    format_args!(
                        "family {}, image {}",
                        hex::encode(block.family_id),
                        hex::encode(block.image_id)
                    ),
                    format_args!(
                        "family {}, image {}",
                        hex::encode(report.family_id()),
                        hex::encode(report.image_id())
                    ),
                    FIX,
                );
                failures.require(
                    report.guest_svn() >= block.minimum_guest_svn,
                    "guest-svn-too-low",
                    format_args!("GUEST_SVN {} or higher", block.minimum_guest_svn),
                    report.guest_svn(),
                    "start a newer release of the guest",
                );
            }
        }
    }
}

/// Bits that a product may demand: bit, code, name, fix.
const PLATFORM_BITS: &[(u64, &str, &str, &str)] = &[
    (PlatformInfo::TSME, "tsme-missing", "TSME", "switch on TSME in the machine's firmware set-up"),
    (PlatformInfo::ECC, "ecc-missing", "ECC memory", "use ECC memory"),
    (
        PlatformInfo::RAPL_DIS,
        "rapl-enabled",
        "RAPL switched off",
        "switch off RAPL in the platform's configuration",
    ),
    (
        PlatformInfo::CIPHERTEXT_HIDING,
        "ciphertext-hiding-missing",
        "ciphertext hiding",
        "switch on ciphertext hiding in the platform's configuration",
    ),
    (
        PlatformInfo::ALIAS_CHECK_COMPLETE,
        "alias-check-missing",
        "the memory alias check (CVE-2024-21944)",
        "update the firmware of the machine and of the SNP firmware; a machine that fails the check may have manipulated memory modules",
    ),
];

/// Bits of the guest's policy that widen what the host may do: bit, code, name.
const GUEST_POLICY_BITS: &[(u64, &str, &str)] = &[
    (GuestPolicy::SMT, "smt-allowed", "SMT"),
    (GuestPolicy::MIGRATE_MA, "migration-allowed", "MIGRATE_MA, which lets a migration agent move it"),
    (GuestPolicy::DEBUG, "debug-allowed", "DEBUG, which lets the host read its memory"),
    (GuestPolicy::CXL_ALLOW, "cxl-allowed", "CXL_ALLOW"),
];
