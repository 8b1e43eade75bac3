//! Verdicts on reports of real processors and on forgeries, against two independent implementations' verdicts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use attestation::{
    Evidence, EvidenceKind, Fingerprint, IdBlock, Measurement, Policy, Product, ProductPolicy, Refusal,
    Report, TrustAnchors, authenticate, report::PlatformInfo, verify,
};
use common::{evidence, evidence_of, folder, manifest, pem};
use std::{fs, path::Path};

/// 2026-11-15, in seconds since 1970: every VCEK of the folder is valid.
const NOW: u64 = 1_794_700_800;

/// A policy that asks for no identity beyond what the report itself says, on all products.
fn policy_for(report: &[u8]) -> Policy {
    // Evidence without a readable report is refused whatever the policy.
    let Ok(report) = Report::parse(report) else { return Policy::new([], [0; 64]) };
    let mut policy = Policy::new([report.measurement()], report.report_data());
    let demands = ProductPolicy { platform: PlatformInfo::ALIAS_CHECK_COMPLETE, minimum_tcb: None };
    policy.products = [Product::Milan, Product::Genoa, Product::Turin].map(|p| (p, demands.clone())).into();
    policy.chips = Some([report.chip_id()].into());
    policy.id_block = IdBlock::Any;
    policy
}

fn codes(refusal: &Refusal) -> Vec<&'static str> {
    refusal.codes().collect()
}

#[test]
fn who_made_it_is_judged_as_by_others() {
    let Some(folder) = folder() else { return };
    let mut judged = [0, 0];
    for row in manifest(&folder) {
        let (id, verdict) = (&row["id"], &row["crypto_verdict"]);
        let result = authenticate(&evidence(&folder, &row), &TrustAnchors::amd());
        judged[usize::from(verdict == "authentic")] += 1;
        if verdict == "authentic" {
            let authentic = result.unwrap_or_else(|refusal| panic!("{id}: {refusal}"));
            assert_eq!(authentic.product().to_string(), row["product"], "{id}");
            let report = authentic.report();
            assert_eq!(report.version().to_string(), row["report_version"], "{id}");
            assert_eq!(format!("{:#x}", report.platform_info().0), row["platform_info"], "{id}");
            assert_eq!(format!("{:#x}", report.policy().0), row["policy"], "{id}");
            continue;
        }
        let refusal = result.map(|_| ()).expect_err(id);
        // Of several reasons one is enough: a report that is not canonical is not looked at further.
        let wanted: Vec<_> = row["crypto_reason"]
            .split(';')
            .map(|reason| match reason {
                "signature" if id == "neg-zeros" => "signature-algorithm",
                "signature" => "signature-invalid",
                "hwid" | "vek-tcb" => "vek-binding",
                "version" => "report-version-unknown",
                "chain" => "unknown-root",
                reason if reason.contains("canonical") => "report-not-canonical",
                _ if id.ends_with("-short") => "report-length",
                _ => "certificate-malformed",
            })
            .collect();
        assert!(
            codes(&refusal).iter().any(|code| wanted.contains(code)),
            "{id}: wanted {wanted:?}: {refusal}"
        );
    }
    assert!(judged[0] > 15 && judged[1] > 10, "{judged:?}");
}

#[test]
fn what_it_states_is_judged_as_by_others() {
    let Some(folder) = folder() else { return };
    for row in manifest(&folder) {
        let (id, verdict) = (&row["id"], &row["strict_policy_verdict"]);
        let evidence = evidence(&folder, &row);
        let result = verify(&evidence, &policy_for(&evidence.report), &TrustAnchors::amd(), NOW);
        if verdict == "pass" {
            result.unwrap_or_else(|refusal| panic!("{id}: {refusal}"));
            continue;
        }
        let refusal = result.map(|_| ()).expect_err(id);
        for (reason, code) in [
            ("DEBUG", "debug-allowed"),
            ("report v2", "report-version-too-old"),
            ("report v2", "alias-check-missing"),
            ("length", "report-length"),
        ] {
            if verdict.contains(reason) {
                assert!(codes(&refusal).contains(&code), "{id}: {refusal}");
            }
        }
    }
}

#[test]
fn the_pinned_roots_are_the_published_ones() {
    let Some(folder) = folder() else { return };
    let evidence = evidence_of(&folder, "oak-genoa-oc");
    for product in ["Milan", "Genoa", "Turin"] {
        let mut evidence = evidence.clone();
        evidence.certificates.ark = pem(&folder.join("roots").join(format!("ARK-{product}.pem")));
        let known = authenticate(&evidence, &TrustAnchors::amd());
        if product == "Genoa" {
            known.unwrap();
        } else {
            // Known, but not the root of this chain and product.
            assert_eq!(codes(&known.unwrap_err()), ["chain-broken", "product-mismatch"], "{product}");
        }
    }
}

/// Each demand of the strict policy, broken one at a time on an authentic report.
#[test]
fn each_demand_has_its_own_code() {
    let Some(folder) = folder() else { return };
    let evidence = evidence_of(&folder, "oak-genoa-oc");
    let report = Report::parse(&evidence.report).unwrap();
    let good = Policy::new([report.measurement()], report.report_data());
    let check = |policy: &Policy, now: u64| match verify(&evidence, policy, &TrustAnchors::amd(), now) {
        Ok(_) => vec![],
        Err(refusal) => codes(&refusal),
    };
    assert_eq!(check(&good, NOW), [""; 0], "the strict policy accepts a sound report");
    let broken = |change: &dyn Fn(&mut Policy)| {
        let mut policy = good.clone();
        change(&mut policy);
        check(&policy, NOW)
    };
    assert_eq!(broken(&|p| p.measurements = [Measurement([1; 48])].into()), ["measurement-not-allowed"]);
    assert_eq!(broken(&|p| p.measurements.clear()), ["measurement-not-allowed"]);
    assert_eq!(broken(&|p| p.report_data[63] ^= 1), ["report-data-mismatch"]);
    assert_eq!(broken(&|p| p.host_data = Some([1; 32])), ["host-data-mismatch"]);
    assert_eq!(broken(&|p| p.host_data = Some(report.host_data())), [""; 0]);
    assert_eq!(
        broken(&|p| p.products.retain(|product, _| *product != Product::Genoa)),
        ["product-not-allowed"]
    );
    assert_eq!(broken(&|p| p.chips = Some([[1; 64]].into())), ["chip-not-allowed"]);
    assert_eq!(broken(&|p| p.minimum_report_version = 6), ["report-version-too-old"]);
    assert_eq!(broken(&|p| p.guest_policy_allowed = 0), ["smt-allowed"]);
    assert_eq!(broken(&|p| p.guest_policy_required = 1 << 20), ["guest-policy-missing"]);
    assert_eq!(broken(&|p| p.minimum_abi = (1, 0)), ["abi-too-low"]);
    assert_eq!(broken(&|p| p.vmpl = 1), ["vmpl-mismatch"]);
    assert_eq!(broken(&|p| p.mitigations = 2), ["mitigation-missing", "mitigation-missing"]);
    assert_eq!(broken(&|p| p.mitigations = 1), [""; 0]);
    let platform = |bit| broken(&|p| p.products.get_mut(&Product::Genoa).unwrap().platform |= bit);
    assert_eq!(platform(PlatformInfo::TSME), ["tsme-missing"]);
    assert_eq!(platform(PlatformInfo::RAPL_DIS), ["rapl-enabled"]);
    assert_eq!(platform(PlatformInfo::CIPHERTEXT_HIDING), ["ciphertext-hiding-missing"]);
    let floor = |part: fn(&mut attestation::report::TcbVersion)| {
        let mut tcb = report.reported_tcb();
        part(&mut tcb);
        broken(&|p| p.products.get_mut(&Product::Genoa).unwrap().minimum_tcb = Some(tcb))
    };
    assert_eq!(floor(|_| ()), [""; 0]);
    assert_eq!(floor(|tcb| tcb.microcode += 1), ["tcb-too-low"; 4]);
    assert_eq!(floor(|tcb| tcb.snp += 1), ["tcb-too-low"; 4]);
    assert_eq!(check(&good, 1_700_000_000), ["certificate-not-yet-valid"]);
    assert_eq!(check(&good, 2_000_000_000), ["certificate-expired"]);
    assert_eq!(check(&good, u64::MAX), ["certificate-expired"; 3]);

    let simulation = TrustAnchors::of_simulation(Product::Genoa, Fingerprint([0; 32]));
    assert_eq!(
        codes(&verify(&evidence, &good, &simulation, NOW).unwrap_err()),
        ["kind-not-allowed", "unknown-root", "product-mismatch"]
    );
    let relabelled = Evidence { kind: EvidenceKind::SimSnp, ..evidence.clone() };
    let refusal = verify(&relabelled, &good, &TrustAnchors::amd(), NOW).unwrap_err();
    assert_eq!(codes(&refusal), ["kind-not-allowed"]);
    assert!(refusal.to_string().contains("expected evidence of kind snp, found sim-snp"), "{refusal}");
}

#[test]
fn milan_needs_a_list_of_chips_and_turin_its_hardening() {
    let Some(folder) = folder() else { return };
    let strict = |id: &str, change: fn(&mut Policy, &Report)| {
        let evidence = evidence_of(&folder, id);
        let report = Report::parse(&evidence.report).unwrap();
        let mut policy = Policy::new([report.measurement()], report.report_data());
        change(&mut policy, &report);
        verify(&evidence, &policy, &TrustAnchors::amd(), NOW)
            .map_or_else(|refusal| codes(&refusal), |_| vec![])
    };
    let allow = |policy: &mut Policy, _: &Report| {
        let demands = policy.products[&Product::Genoa].clone();
        policy.products.insert(Product::Milan, demands);
    };
    let list = |policy: &mut Policy, report: &Report| policy.chips = Some([report.chip_id()].into());
    assert_eq!(strict("dstack-milan", |_, _| ()), ["chip-not-allowed", "product-not-allowed"]);
    assert_eq!(strict("dstack-milan", allow), ["chip-not-allowed"]);
    assert_eq!(strict("dstack-milan", list), ["product-not-allowed"]);
    assert_eq!(strict("oak-turin-oc", |_, _| ()), ["rapl-enabled", "ciphertext-hiding-missing"]);
    assert_eq!(
        strict("trustee-az-v0", |policy, report| {
            let demands = policy.products[&Product::Genoa].clone();
            policy.products.insert(Product::Milan, demands);
            policy.chips = Some([report.chip_id()].into());
        }),
        ["id-block-unexpected"]
    );
}

/// Whatever bit of an authentic report is turned, inside the signed range or outside, it is refused.
#[test]
fn no_bit_of_a_report_can_be_turned() {
    let Some(folder) = folder() else { return };
    for id in ["oak-genoa-oc", "oak-turin-oc"] {
        let mut evidence = evidence_of(&folder, id);
        for bit in 0..evidence.report.len() * 8 {
            evidence.report[bit / 8] ^= 1 << (bit % 8);
            let refused = authenticate(&evidence, &TrustAnchors::amd()).is_err();
            assert!(refused, "{id}: bit {} of byte {:#x}", bit % 8, bit / 8);
            evidence.report[bit / 8] ^= 1 << (bit % 8);
        }
        authenticate(&evidence, &TrustAnchors::amd()).unwrap();
    }
}

#[test]
fn no_byte_of_a_certificate_can_be_turned() {
    let Some(folder) = folder() else { return };
    let good = evidence_of(&folder, "oak-genoa-oc");
    type Part = fn(&mut Evidence) -> &mut Vec<u8>;
    let parts: [Part; 3] =
        [|e| &mut e.certificates.ark, |e| &mut e.certificates.ask, |e| &mut e.certificates.vek];
    for (index, part) in parts.into_iter().enumerate() {
        let mut evidence = good.clone();
        for byte in 0..part(&mut evidence).len() {
            part(&mut evidence)[byte] ^= 1 << (byte % 8);
            let refused = authenticate(&evidence, &TrustAnchors::amd()).is_err();
            assert!(refused, "certificate {index}, byte {byte:#x}");
            part(&mut evidence)[byte] ^= 1 << (byte % 8);
        }
        part(&mut evidence).push(0);
        assert!(
            authenticate(&evidence, &TrustAnchors::amd()).is_err(),
            "certificate {index} with a byte more"
        );
    }
}

/// Altered certificates still tell what they are: the reasons add up, and each shows that its check is made.
#[test]
fn an_intermediate_must_be_allowed_to_issue() {
    let Some(folder) = folder() else { return };
    let good = evidence_of(&folder, "oak-genoa-oc");
    // basicConstraints CA:TRUE, pathlen 0; keyUsage keyCertSign, made cRLSign.
    let changes: [(&[u8], &[u8]); 2] = [
        (b"\x30\x06\x01\x01\xff\x02\x01\x00", b"\x30\x06\x01\x01\x00\x02\x01\x00"),
        (b"\xff\x04\x04\x03\x02\x01\x04", b"\xff\x04\x04\x03\x02\x01\x02"),
    ];
    for (from, to) in changes {
        let mut evidence = good.clone();
        let ask = &mut evidence.certificates.ask;
        let at = ask.windows(from.len()).position(|window| window == from).unwrap();
        ask[at..at + to.len()].copy_from_slice(to);
        let refusal = authenticate(&evidence, &TrustAnchors::amd()).unwrap_err();
        let found: Vec<_> = refusal.failures().iter().map(|failure| failure.found.as_str()).collect();
        let expected =
            ["the signature of ark under ask does not verify", "ask is not allowed to issue certificates"];
        assert_eq!(found, expected);
    }
}

#[test]
fn certificates_beside_the_report_are_read_in_pem() {
    let Some(folder) = folder() else { return };
    let own = folder.join("veraison-tsm-genoa");
    let read = |path: &Path| fs::read(path).unwrap();
    let table = read(&own.join("auxblob.bin"));
    let evidence = Evidence::from_tsm(EvidenceKind::Snp, read(&own.join("report.bin")), &table).unwrap();
    assert_eq!(evidence.certificates.ark, pem(&folder.join("roots/ARK-Genoa.pem")));
    authenticate(&evidence, &TrustAnchors::amd()).unwrap();
}
