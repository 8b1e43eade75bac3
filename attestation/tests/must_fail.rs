//! One attack for each test, and the codes by which it is refused, on evidence made by the tests themselves. Every code
//! of the crate is met.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use attestation::{
    EvidenceKind, Product,
    failure::CODES,
    policy::{Bit, CrlDemand, Demand, Dotted, IdBlock, ProductPolicy, SignedIdBlock, TcbFloor},
    report::{GuestPolicy, PlatformInfo, offset},
};
use common::der;
use common::made::{Holder, Made, amd, amd_extensions, chip, extension, sign, tcb};
use std::collections::BTreeSet;

/// Declares the attacks on sound evidence of Genoa: a test for each, and the list of all codes that they meet.
macro_rules! must_fail {
    ($($(#[$doc:meta])* $name:ident: [$($code:literal),+] = $attack:expr;)+) => {
        $(
            $(#[$doc])*
            #[test]
            fn $name() {
                let mut made = Made::of(Product::Genoa);
                let attack: fn(&mut Made) = $attack;
                attack(&mut made);
                let refusal = made.verify().expect_err("the attack passed");
                assert_eq!(refusal.codes().collect::<Vec<_>>(), [$($code),+], "{refusal}");
            }
        )+
        const MET: &[&[&str]] = &[$(&[$($code),+]),+];
    };
}

fn genoa(made: &mut Made) -> &mut ProductPolicy {
    made.policy.products.genoa.as_mut().unwrap()
}

fn platform(made: &mut Made, bits: u64) {
    made.put(offset::PLATFORM_INFO, &bits.to_le_bytes());
}

fn guest_policy(made: &mut Made, bits: u64) {
    made.put(offset::POLICY, &(GuestPolicy::RESERVED_ONE | GuestPolicy::SMT | bits).to_le_bytes());
}

fn id_block(made: &mut Made, change: fn(&mut SignedIdBlock)) {
    made.put(offset::ID_KEY_DIGEST, &[1; 48]);
    made.put(offset::FAMILY_ID, &[2; 16]);
    made.put(offset::IMAGE_ID, &[3; 16]);
    made.put(offset::GUEST_SVN, &[4]);
    let mut block = SignedIdBlock {
        id_keys: [[1; 48].into()].into(),
        author_keys: None,
        family_id: Demand::only([[2; 16]]),
        image_id: Demand::only([[3; 16]]),
        minimum_guest_svn: 4,
    };
    change(&mut block);
    made.policy.id_block = IdBlock::Signed(Box::new(block));
}

fn all_but(bit: u64) -> u64 {
    0x3f & !bit
}

must_fail! {
    // Bytes.
    a_truncated_report: ["report-length"] = |made| made.tamper = |evidence| evidence.report.truncate(1183);
    an_overlong_report: ["report-length"] = |made| made.tamper = |evidence| evidence.report.push(0);
    a_report_in_hexadecimal: ["report-length"] = |made| {
        made.tamper = |evidence| evidence.report = hex::encode(&evidence.report).into_bytes();
    };
    an_unknown_version: ["report-version-unknown"] = |made| made.put(offset::VERSION, &[6]);
    an_unknown_processor: ["product-unknown"] = |made| made.put(offset::CPUID_FAMILY, &[0x17]);
    an_unknown_signature_algorithm: ["signature-algorithm"] = |made| made.put(offset::SIGNATURE_ALGO, &[2]);
    a_reserved_byte_of_the_tcb: ["report-not-canonical"] = |made| made.put(offset::REPORTED_TCB + 3, &[1]);
    a_reserved_bit_of_key_info: ["report-not-canonical"] = |made| made.put(offset::KEY_INFO, &[1 << 5]);
    padding_of_the_signature: ["report-not-canonical"] = |made| {
        made.tamper = |evidence| evidence.report[offset::SIGNATURE_R + 48] = 1;
    };
    bytes_after_the_signature: ["report-not-canonical"] = |made| {
        made.tamper = |evidence| evidence.report[1183] = 1;
    };
    // Signature.
    a_report_signed_by_another_key: ["signature-invalid"] = |made| made.report_signer = Holder::Stranger;
    a_changed_byte: ["signature-invalid", "measurement-not-allowed"] = |made| {
        made.tamper = |evidence| evidence.report[offset::MEASUREMENT] ^= 1;
    };
    a_signature_of_zeros: ["signature-invalid"] = |made| {
        made.tamper = |evidence| evidence.report[offset::SIGNATURE_R..].fill(0);
    };
    a_scalar_not_below_the_order: ["signature-invalid"] = |made| {
        made.tamper = |evidence| evidence.report[offset::SIGNATURE_S..offset::SIGNATURE_S + 48].fill(0xff);
    };
    // Certificates.
    no_endorsement_certificate: ["certificate-missing"] = |made| {
        made.tamper = |evidence| evidence.certificates.vek.clear();
    };
    an_empty_pem: ["certificate-malformed"] = |made| {
        made.tamper = |evidence| evidence.certificates.vek = b"-----BEGIN CERTIFICATE-----".to_vec();
    };
    a_certificate_with_bytes_behind: ["certificate-malformed"] = |made| {
        made.tamper = |evidence| evidence.certificates.ask.push(0);
    };
    a_truncated_certificate: ["certificate-malformed"] = |made| {
        made.tamper = |evidence| evidence.certificates.vek.truncate(600);
    };
    a_certificate_of_version_1: ["certificate-malformed"] = |made| made.vek.version = 1;
    a_certificate_with_another_salt: ["certificate-malformed"] = |made| made.vek.salt = 32;
    an_extension_twice: ["certificate-malformed"] = |made| {
        let first = made.vek.extensions[2].clone();
        made.vek.extensions.push(first);
    };
    a_part_of_the_tcb_that_nobody_knows: ["certificate-malformed"] = |made| {
        made.vek.extensions.push(amd(&[3, 10], &[2, 1, 9]));
    };
    a_newer_structure_of_extensions: ["certificate-malformed"] = |made| {
        made.vek.extensions[0] = amd(&[1], &[2, 1, 2]);
    };
    an_unknown_critical_extension: ["certificate-malformed"] = |made| {
        let mut critical = extension(&[2, 5, 29, 99], &[0]);
        // OID of 5 bytes, then BOOLEAN TRUE.
        critical.splice(7..7, [1, 1, 0xff]);
        critical[1] += 3;
        made.vek.extensions.push(critical);
    };
    /// A complete chain with the right names that somebody else made.
    a_root_that_is_not_pinned: ["unknown-root", "product-mismatch"] = |made| made.other_root = true;
    an_intermediate_by_somebody_else: ["chain-broken"] = |made| made.ask.signer = Holder::Stranger;
    an_endorsement_by_somebody_else: ["chain-broken"] = |made| made.vek.signer = Holder::Stranger;
    an_endorsement_by_the_root_itself: ["chain-broken"] = |made| made.vek.signer = Holder::Ark;
    another_issuers_name: ["chain-broken"] = |made| made.vek.issuer = "SEV-Milan".to_owned();
    an_intermediate_that_is_no_authority: ["chain-broken"] = |made| made.ask.ca = false;
    an_intermediate_without_the_key_usage: ["chain-broken"] = |made| made.ask.usage = 2;
    an_endorsement_key_that_issues: ["chain-broken"] = |made| (made.vek.ca, made.vek.usage) = (true, 4);
    an_endorsement_key_of_rsa: ["chain-broken", "signature-invalid"] = |made| made.vek.key = Holder::Stranger;
    a_chips_key_from_the_issuer_of_providers_keys: ["chain-broken"] = |made| {
        made.ask.subject = "TEST-SEV-VLEK-Genoa".to_owned();
        made.vek.issuer.clone_from(&made.ask.subject);
    };
    a_root_that_may_not_issue: ["chain-broken"] = |made| made.ark.usage = 2;
    // Products.
    an_endorsement_of_another_product: ["product-mismatch"] = |made| {
        made.vek.extensions = amd_extensions(Product::Milan, tcb(Product::Genoa), &chip(Product::Genoa), None);
    };
    a_report_of_another_product: ["product-mismatch"] = |made| made.put(offset::CPUID_FAMILY, &[0x19, 1, 1]);
    // Binding.
    an_endorsement_of_another_chip: ["vek-binding"] = |made| {
        made.vek.extensions = amd_extensions(Product::Genoa, tcb(Product::Genoa), &[9; 64], None);
    };
    an_endorsement_of_a_masked_chip: ["vek-binding"] = |made| {
        made.put(offset::CHIP_ID, &[0; 64]);
        made.vek.extensions = amd_extensions(Product::Genoa, tcb(Product::Genoa), &[0; 64], None);
    };
    an_endorsement_of_another_tcb: ["vek-binding"] = |made| {
        let mut newer = tcb(Product::Genoa);
        newer.snp += 1;
        made.vek.extensions = amd_extensions(Product::Genoa, newer, &chip(Product::Genoa), None);
    };
    an_endorsement_without_a_tcb: ["vek-binding"] = |made| {
        made.vek.extensions.remove(2);
    };
    a_key_that_key_info_does_not_name: ["signing-key-mismatch", "vlek-not-allowed"] = |made| {
        made.put(offset::KEY_INFO, &[1 << 2]);
    };
    an_unsigned_report: ["signing-key-mismatch", "vlek-not-allowed"] = |made| made.put(offset::KEY_INFO, &[7 << 2]);
    an_endorsement_of_neither_kind: ["signing-key-mismatch"] = |made| made.vek.subject = "SEV-OTHER".to_owned();
    an_endorsement_of_both_kinds: ["signing-key-mismatch"] = |made| {
        made.vek.extensions.push(amd(&[5], &der::ia5("provider")));
    };
    // A simulation is not the real thing, nor the reverse.
    another_kind_of_evidence: ["kind-not-allowed"] = |made| {
        made.tamper = |evidence| evidence.kind = EvidenceKind::Snp;
    };
    // Dates.
    an_endorsement_before_its_time: ["certificate-not-yet-valid"] = |made| made.now = 1_735_689_599;
    an_expired_endorsement: ["certificate-expired"] = |made| made.now = 1_956_528_001;
    // Revocation.
    a_revoked_intermediate: ["certificate-revoked"] = |made| {
        let mut list = made.list();
        list.revoked = vec![9, 2];
        made.crls.push(list.der());
    };
    a_revoked_root: ["certificate-revoked"] = |made| {
        let mut list = made.list();
        list.revoked = vec![1];
        made.crls.push(list.der());
    };
    /// By a list of its own issuer, should the manufacturer ever let intermediates sign lists.
    a_revoked_endorsement: ["certificate-revoked"] = |made| {
        made.ask.usage = 6;
        let mut list = made.list();
        (list.issuer, list.signer, list.revoked) = (made.ask.subject.clone(), Holder::Ask, vec![0]);
        made.crls = vec![made.list().der(), list.der()];
    };
    a_list_by_somebody_else: ["crl-untrusted", "crl-missing"] = |made| {
        let mut list = made.list();
        list.signer = Holder::Stranger;
        made.crls.push(list.der());
    };
    a_list_by_one_who_may_not: ["crl-untrusted", "crl-missing"] = |made| {
        let mut list = made.list();
        (list.issuer, list.signer) = (made.ask.subject.clone(), Holder::Ask);
        made.crls.push(list.der());
    };
    a_list_that_is_none: ["crl-malformed", "crl-missing"] = |made| made.crls.push(b"no list".to_vec());
    a_list_with_bytes_behind: ["crl-malformed", "crl-missing"] = |made| {
        made.crls.push([made.list().der(), vec![0]].concat());
    };
    a_list_of_limited_scope: ["crl-malformed", "crl-missing"] = |made| {
        let mut list = made.list();
        let mut scope = extension(&[2, 5, 29, 28], &[0x30, 0]);
        scope.splice(7..7, [1, 1, 0xff]);
        scope[1] += 3;
        list.extensions.push(scope);
        made.crls.push(list.der());
    };
    no_list_where_one_is_needed: ["crl-missing"] = |made| made.policy.revocation.crl = CrlDemand::Require;
    a_list_of_another_root_only: ["crl-missing"] = |made| {
        let mut list = made.list();
        list.issuer = "ARK-Milan".to_owned();
        made.crls.push(list.der());
    };
    a_list_past_its_next_update: ["crl-stale"] = |made| {
        let mut list = made.list();
        list.next_update = Some("261110000000Z");
        made.crls.push(list.der());
    };
    a_list_from_the_future: ["crl-stale"] = |made| {
        let mut list = made.list();
        list.this_update = "261120000000Z";
        made.crls.push(list.der());
    };
    a_list_older_than_the_policy_allows: ["crl-stale"] = |made| {
        made.crls.push(made.list().der());
        made.policy.revocation.maximum_age_days = Some(13);
    };
    a_list_without_an_end: ["crl-stale"] = |made| {
        let mut list = made.list();
        list.next_update = None;
        made.crls.push(list.der());
    };
    // The policy.
    a_policy_that_contradicts_itself: ["policy-unusable"] = |made| {
        made.policy.chips.deny = [[9; 64].into()].into();
        made.policy.chips.allow = Some(Demand::only([[9; 64], chip(Product::Genoa)]));
    };
    // The machine.
    a_version_without_the_alias_check: ["report-version-not-allowed", "alias-check-missing"] = |made| {
        made.put(offset::VERSION, &[2]);
        made.put(offset::CPUID_FAMILY, &[0; 3]);
        made.put(offset::LAUNCH_MIT_VECTOR, &[0; 16]);
        platform(made, PlatformInfo::SMT | PlatformInfo::ECC);
    };
    a_product_that_is_not_listed: ["product-not-allowed"] = |made| made.policy.products.genoa = None;
    a_chip_that_is_not_listed: ["chip-not-allowed"] = |made| {
        made.policy.chips.allow = Some(Demand::only([[9; 64]]));
    };
    a_chip_that_is_denied: ["chip-denied"] = |made| made.policy.chips.deny = [chip(Product::Genoa).into()].into();
    a_chips_key_where_a_providers_is_wanted: ["vcek-not-allowed"] = |made| {
        made.policy.signing_key.vcek = false;
        made.policy.signing_key.vlek = Some(Demand::Any);
    };
    a_masked_chip_key: ["chip-key-masked"] = |made| made.put(offset::KEY_INFO, &[2]);
    /// CacheWarp, EntrySign, RMPocalypse and others come back with old firmware.
    a_machine_below_an_advisory: ["vek-binding", "tcb-too-low", "tcb-too-low", "tcb-too-low", "tcb-too-low"] = |made| {
        let mut old = tcb(Product::Genoa);
        old.snp = 0x16;
        for at in [offset::CURRENT_TCB, offset::REPORTED_TCB, offset::COMMITTED_TCB, offset::LAUNCH_TCB] {
            made.put(at, &old.encode());
        }
    };
    /// The host can go back below the floor at its next boot.
    a_committed_tcb_below_the_floor: ["tcb-too-low", "firmware-provisional"] = |made| {
        made.put(offset::COMMITTED_TCB + 7, &[0x55]);
    };
    /// The host updated its firmware under a guest that was started on the old one.
    a_launch_on_old_firmware: ["tcb-too-low"] = |made| made.put(offset::LAUNCH_TCB + 6, &[0x1a]);
    a_current_tcb_below_the_policys_own_floor: ["tcb-too-low"] = |made| {
        genoa(made).minimum_tcb.current = TcbFloor { bootloader: Some(11), ..TcbFloor::default() };
    };
    a_high_bootloader_for_an_old_microcode: ["tcb-too-low"] = |made| {
        made.put(offset::LAUNCH_TCB, &[0xff]);
        made.put(offset::LAUNCH_TCB + 7, &[0x55]);
    };
    old_snp_firmware: ["firmware-too-old", "firmware-too-old"] = |made| {
        genoa(made).minimum_firmware = Some(Dotted([1, 55, 50]));
    };
    firmware_that_can_be_taken_back: ["firmware-provisional"] = |made| made.put(offset::COMMITTED_VERSION, &[48]);
    a_mitigation_that_was_off_at_launch: ["mitigation-missing"] = |made| genoa(made).launch_mitigations = 1 << 2;
    a_mitigation_that_is_off_now: ["mitigation-missing"] = |made| {
        made.put(offset::CURRENT_MIT_VECTOR, &[1]);
        genoa(made).current_mitigations = 3;
    };
    /// Version 4 has bytes in the vectors' place that nobody defined.
    mitigations_by_a_version_that_does_not_state_them: ["mitigation-missing"] = |made| {
        made.put(offset::VERSION, &[4]);
        genoa(made).launch_mitigations = 1;
    };
    memory_without_tsme: ["tsme-missing"] = |made| {
        platform(made, all_but(PlatformInfo::TSME));
        genoa(made).platform.tsme = Some(Bit::Required);
    };
    memory_without_ecc: ["ecc-missing"] = |made| platform(made, all_but(PlatformInfo::ECC));
    power_readings: ["rapl-enabled"] = |made| {
        platform(made, all_but(PlatformInfo::RAPL_DIS));
        genoa(made).platform.rapl_dis = Some(Bit::Required);
    };
    visible_ciphertext: ["ciphertext-hiding-missing"] = |made| {
        platform(made, all_but(PlatformInfo::CIPHERTEXT_HIDING));
        genoa(made).platform.ciphertext_hiding = Some(Bit::Required);
    };
    /// BadRAM.
    memory_not_checked_for_aliases: ["alias-check-missing"] = |made| {
        platform(made, all_but(PlatformInfo::ALIAS_CHECK_COMPLETE));
    };
    an_iommu_that_may_write_anywhere: ["iommu-write-unsafe"] = |made| {
        genoa(made).platform.iommu_write_safe = Some(Bit::Required);
    };
    a_platform_without_trusted_io: ["platform-bit-missing"] = |made| genoa(made).platform.tio = Some(Bit::Required);
    a_platform_with_smt: ["platform-bit-forbidden"] = |made| genoa(made).platform.smt = Some(Bit::Forbidden);
    a_platform_in_an_unknown_state: ["platform-bits-unknown"] = |made| platform(made, 0x3f | 1 << 8);
    // The guest.
    a_guest_that_may_share_cores: ["smt-allowed"] = |made| made.policy.guest_policy.smt = Bit::Forbidden;
    a_guest_on_shared_cores_that_forbids_it: ["smt-inconsistent"] = |made| {
        made.put(offset::POLICY + 2, &[2]);
    };
    a_guest_that_may_migrate: ["migration-allowed"] = |made| guest_policy(made, GuestPolicy::MIGRATE_MA);
    a_guest_that_the_host_may_read: ["debug-allowed"] = |made| guest_policy(made, GuestPolicy::DEBUG);
    a_guest_with_cxl: ["cxl-allowed"] = |made| guest_policy(made, GuestPolicy::CXL_ALLOW);
    a_guest_on_several_sockets: ["guest-policy-missing"] = |made| {
        made.policy.guest_policy.single_socket = Bit::Required;
    };
    a_guest_without_aes_256_xts: ["guest-policy-missing"] = |made| {
        made.policy.guest_policy.mem_aes_256_xts = Bit::Required;
    };
    a_guest_with_power_readings: ["guest-policy-missing"] = |made| made.policy.guest_policy.rapl_dis = Bit::Required;
    a_guest_with_visible_ciphertext: ["guest-policy-missing"] = |made| {
        made.policy.guest_policy.ciphertext_hiding = Bit::Required;
    };
    /// Heracles.
    a_guest_whose_pages_may_be_swapped: ["guest-policy-missing"] = |made| {
        made.policy.guest_policy.page_swap_disable = Bit::Required;
    };
    a_guest_on_one_socket_where_it_must_not_be: ["guest-policy-forbidden"] = |made| {
        guest_policy(made, GuestPolicy::SINGLE_SOCKET);
        made.policy.guest_policy.single_socket = Bit::Forbidden;
    };
    a_guest_policy_from_the_future: ["guest-policy-reserved"] = |made| guest_policy(made, 1 << 26);
    a_guest_policy_without_its_fixed_bit: ["guest-policy-reserved"] = |made| made.put(offset::POLICY + 2, &[1]);
    a_guest_for_an_old_abi: ["abi-too-low"] = |made| {
        made.policy.guest_policy.minimum_abi = Some(Dotted([0, 1]));
    };
    a_guest_for_a_new_abi: ["abi-too-high"] = |made| {
        made.put(offset::POLICY, &[56, 1]);
        made.policy.guest_policy.maximum_abi = Some(Dotted([1, 55]));
    };
    a_bound_migration_agent: ["migration-agent-bound"] = |made| made.put(offset::REPORT_ID_MA, &[7; 32]);
    another_instance: ["report-id-mismatch"] = |made| made.policy.report_id = Demand::only([[9; 32]]);
    a_report_for_a_lower_level: ["vmpl-mismatch"] = |made| made.put(offset::VMPL, &[1]);
    a_report_for_the_host: ["vmpl-mismatch"] = |made| made.put(offset::VMPL, &[0xff; 4]);
    another_guest: ["measurement-not-allowed"] = |made| made.put(offset::MEASUREMENT, &[9; 48]);
    a_policy_that_names_no_guest: ["measurement-not-allowed"] = |made| made.policy.measurements = Demand::none();
    another_configuration: ["host-data-mismatch"] = |made| made.put(offset::HOST_DATA, &[9; 32]);
    an_old_report: ["report-data-mismatch"] = |made| made.put(offset::REPORT_DATA, &[9; 64]);
    a_verifier_without_a_nonce: ["report-data-mismatch"] = |made| made.policy.report_data = Demand::none();
    an_id_block_where_none_is_wanted: ["id-block-unexpected"] = |made| {
        id_block(made, |_| ());
        made.policy.id_block = IdBlock::Absent;
    };
    an_id_block_by_another_key: ["id-key-not-allowed"] = |made| {
        id_block(made, |block| block.id_keys = [[9; 48].into()].into());
    };
    no_id_block_where_one_is_wanted:
        ["id-key-not-allowed", "family-mismatch", "image-mismatch", "guest-svn-too-low"] = |made| {
        let clean = made.report.clone();
        id_block(made, |_| ());
        made.report = clean;
    };
    no_author_key_where_one_is_wanted: ["author-key-not-allowed"] = |made| {
        id_block(made, |block| block.author_keys = Some(Demand::Any));
    };
    another_author_key: ["author-key-not-allowed"] = |made| {
        id_block(made, |block| block.author_keys = Some(Demand::only([[5; 48]])));
        made.put(offset::KEY_INFO, &[1]);
        made.put(offset::AUTHOR_KEY_DIGEST, &[6; 48]);
    };
    an_author_key_where_none_is_wanted: ["author-key-not-allowed"] = |made| {
        id_block(made, |_| ());
        made.put(offset::KEY_INFO, &[1]);
        made.put(offset::AUTHOR_KEY_DIGEST, &[6; 48]);
    };
    /// The digest without the flag that gives it a meaning.
    an_author_key_that_only_seems_to_be_there: ["author-key-not-allowed"] = |made| {
        id_block(made, |_| ());
        made.put(offset::AUTHOR_KEY_DIGEST, &[6; 48]);
    };
    another_family: ["family-mismatch"] = |made| id_block(made, |block| block.family_id = Demand::only([[9; 16]]));
    another_image: ["image-mismatch"] = |made| id_block(made, |block| block.image_id = Demand::only([[9; 16]]));
    an_older_release: ["guest-svn-too-low"] = |made| id_block(made, |block| block.minimum_guest_svn = 5);
}

/// Attacks on evidence of other products and keys.
#[test]
fn a_providers_key() {
    let vlek = |change: fn(&mut Made)| {
        let mut made = Made::with(Product::Genoa, Some("provider"));
        change(&mut made);
        made.codes()
    };
    assert_eq!(vlek(|_| ()), [""; 0]);
    assert_eq!(vlek(|made| made.policy.signing_key.vlek = None), ["vlek-not-allowed"]);
    let other = |made: &mut Made| made.policy.signing_key.vlek = Some(Demand::only(["other".to_owned()]));
    assert_eq!(vlek(other), ["vlek-provider-not-allowed"]);
    assert_eq!(vlek(|made| made.policy.signing_key.vlek = Some(Demand::Any)), [""; 0]);
    // A provider may hide the chip: nothing of the endorsement names it.
    assert_eq!(vlek(|made| made.put(offset::CHIP_ID, &[0; 64])), [""; 0]);
    let intermediate = |made: &mut Made| {
        made.ask.subject = "TEST-SEV-Genoa".to_owned();
        made.vek.issuer.clone_from(&made.ask.subject);
    };
    assert_eq!(vlek(intermediate), ["chain-broken"], "ASK does not issue providers' keys");
    assert_eq!(vlek(|made| made.now = 1_956_528_001), ["certificate-expired"]);
}

#[test]
fn milans_keys_can_be_extracted() {
    let milan = |change: fn(&mut Made)| {
        let mut made = Made::of(Product::Milan);
        change(&mut made);
        made.codes()
    };
    assert_eq!(milan(|_| ()), [""; 0]);
    assert_eq!(milan(|made| made.policy.chips.allow = None), ["policy-unusable", "chip-not-allowed"]);
    assert_eq!(milan(|made| made.policy.chips.allow = Some(Demand::Any)), [""; 0], "said explicitly");
    let strict = |made: &mut Made| (made.policy.products.milan, made.policy.chips.allow) = (None, None);
    assert_eq!(milan(strict), ["chip-not-allowed", "product-not-allowed"]);
}

#[test]
fn turins_encodings() {
    let turin = |change: fn(&mut Made)| {
        let mut made = Made::of(Product::Turin);
        change(&mut made);
        made.codes()
    };
    assert_eq!(turin(|_| ()), [""; 0]);
    assert_eq!(turin(|made| platform(made, 0x27)), ["rapl-enabled", "ciphertext-hiding-missing"]);
    // Bytes of CHIP_ID that nobody vouched for.
    assert_eq!(turin(|made| made.put(offset::CHIP_ID + 8, &[1])), ["vek-binding"]);
    let fmc = |made: &mut Made| {
        made.policy.products.turin.as_mut().unwrap().minimum_tcb.every =
            TcbFloor { fmc: Some(2), ..TcbFloor::default() };
    };
    assert_eq!(turin(fmc), ["tcb-too-low"; 4]);
    assert_eq!(turin(|made| made.put(offset::REPORTED_TCB + 5, &[1])), ["report-not-canonical"]);
    let without_fmc = |made: &mut Made| {
        let nine = amd(&[3, 9], &[2, 1, 1]);
        made.vek.extensions.retain(|extension| *extension != nine);
    };
    assert_eq!(turin(without_fmc), ["vek-binding"]);
}

/// The one code that needs AMD's own anchors: their ASK and ASVK are pinned, not whatever the root may have signed.
#[test]
fn an_intermediate_that_is_not_pinned() {
    let root = env!("CARGO_MANIFEST_DIR").to_owned() + "/roots/";
    let read = |name: &str| std::fs::read(root.clone() + name).unwrap();
    let made = Made::of(Product::Genoa);
    let (mut evidence, _) = made.build();
    evidence.kind = EvidenceKind::Snp;
    evidence.certificates.ark = read("ark-genoa.der");
    let anchors = attestation::TrustAnchors::amd();
    let codes = |evidence: &attestation::Evidence| -> Vec<&'static str> {
        attestation::authenticate(evidence, &anchors).unwrap_err().codes().collect()
    };
    assert_eq!(codes(&evidence), ["unknown-intermediate", "chain-broken"]);
    evidence.certificates.ask = read("ask-genoa.der");
    assert_eq!(codes(&evidence), ["chain-broken"]);
}

/// What sound lists change, and in which form they come.
#[test]
fn revocation_lists_that_do_not_stand_in_the_way() {
    let accepted = |change: &dyn Fn(&mut Made)| {
        let mut made = Made::of(Product::Genoa);
        change(&mut made);
        assert_eq!(made.codes(), [""; 0]);
    };
    accepted(&|made| {
        made.policy.revocation.crl = CrlDemand::Require;
        made.crls.push(made.list().der());
    });
    accepted(&|made| {
        made.policy.revocation.crl = CrlDemand::Require;
        made.crls.push(der::pem("X509 CRL", &made.list().der()));
    });
    // One current list is enough, and others' lists say nothing.
    accepted(&|made| {
        let (mut old, mut other) = (made.list(), made.list());
        old.next_update = Some("261105000000Z");
        other.issuer = "ARK-Milan".to_owned();
        made.crls = vec![old.der(), other.der(), made.list().der()];
    });
    accepted(&|made| {
        let mut endless = made.list();
        (endless.next_update, endless.revoked) = (None, vec![7]);
        made.policy.revocation.maximum_age_days = Some(14);
        made.crls.push(endless.der());
    });
    // Serial numbers are an issuer's own: AMD gives every endorsement certificate the number 0.
    accepted(&|made| {
        let mut list = made.list();
        list.revoked = vec![0];
        made.crls.push(list.der());
    });
    accepted(&|made| {
        let mut old = made.list();
        old.next_update = Some("261105000000Z");
        made.policy.revocation.crl = CrlDemand::Ignore;
        made.crls.push(old.der());
    });
}

#[test]
fn every_code_is_met() {
    let elsewhere = [
        "vlek-provider-not-allowed", // a_providers_key
        "unknown-intermediate",      // an_intermediate_that_is_not_pinned
        // src/handshake.rs
        "handshake-evidence",
        "handshake-stale",
        "handshake-early",
    ];
    let met: BTreeSet<&str> = MET.iter().copied().flatten().copied().chain(elsewhere).collect();
    let all: BTreeSet<&str> = CODES.iter().map(|(name, _)| *name).collect();
    assert_eq!(met, all);
}

/// Whatever bit of sound evidence is turned, of any product and key, in the report or a certificate, it is refused.
#[test]
fn no_bit_can_be_turned() {
    for (product, provider) in
        [(Product::Milan, None), (Product::Genoa, Some("provider")), (Product::Turin, None)]
    {
        let made = Made::with(product, provider);
        let (mut evidence, anchors) = made.build();
        let passes = |evidence: &attestation::Evidence| attestation::authenticate(evidence, &anchors).is_ok();
        assert!(passes(&evidence));
        for bit in 0..evidence.report.len() * 8 {
            evidence.report[bit / 8] ^= 1 << (bit % 8);
            assert!(!passes(&evidence), "{product}: bit {} of byte {:#x}", bit % 8, bit / 8);
            evidence.report[bit / 8] ^= 1 << (bit % 8);
        }
        let length = evidence.certificates.vek.len();
        for bit in (0..length * 8).step_by(3) {
            evidence.certificates.vek[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !passes(&evidence),
                "{product}: bit {} of the certificate's byte {:#x}",
                bit % 8,
                bit / 8
            );
            evidence.certificates.vek[bit / 8] ^= 1 << (bit % 8);
        }
        // Whoever signs again without the key gets no further.
        sign(&mut evidence.report, Holder::Stranger);
        assert!(!passes(&evidence));
    }
}

/// A refusal tells everything at once, also to programs.
#[test]
fn refusals_are_complete_and_readable_by_programs() {
    let mut made = Made::of(Product::Genoa);
    guest_policy(&mut made, GuestPolicy::DEBUG);
    made.put(offset::MEASUREMENT, &[9; 48]);
    made.put(offset::VMPL, &[1]);
    let refusal = made.verify().unwrap_err();
    let json = serde_json::to_value(&refusal).unwrap();
    let codes: Vec<_> = json.as_array().unwrap().iter().map(|failure| failure["code"].clone()).collect();
    assert_eq!(codes, ["vmpl-mismatch", "debug-allowed", "measurement-not-allowed"]);
    assert_eq!(json[2]["found"], "09".repeat(48));
    assert_eq!(json[2]["expected"], "4d".repeat(48));
    for failure in refusal.failures() {
        assert!(
            !failure.fix.is_empty() && !failure.expected.is_empty() && !failure.found.is_empty(),
            "{failure}"
        );
        assert!(refusal.to_string().contains(&failure.to_string()));
    }
}
