//! Verdicts on reports of real processors and on forgeries, against two independent implementations' verdicts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use attestation::{
    Evidence, EvidenceKind, Fingerprint, Measurement, Policy, Product, Refusal, Report, TrustAnchors,
    authenticate,
    policy::{Bit, CrlDemand, Demand, ProductPolicy, TcbFloor},
    verify,
};
use common::{evidence, evidence_of, folder, manifest, pem};
use std::{fs, path::Path};

/// 2026-11-15, in seconds since 1970: every VCEK of the folder is valid.
const NOW: u64 = 1_794_700_800;

/// The published policy that asks for no identity, on all products.
fn all_products() -> Policy {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/all-products.toml"));
    Policy::from_toml(&text.unwrap()).unwrap()
}

/// The strict policy for what a report says, but for advisories, which the published reports are older than, and lists.
fn strict(report: &Report) -> Policy {
    let mut policy = Policy::new([report.measurement()], report.report_data());
    policy.host_data = Demand::only([report.host_data()]);
    policy.revocation.crl = CrlDemand::IfGiven;
    let older =
        ProductPolicy { advisories: attestation::advisories::Selection::None, ..ProductPolicy::default() };
    policy.products.genoa = Some(older.clone());
    policy.products.turin = Some(older);
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
                _ => "certificate-missing",
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
        let result = verify(&evidence, &all_products(), &TrustAnchors::amd(), NOW);
        if verdict == "pass" {
            result.unwrap_or_else(|refusal| panic!("{id}: {refusal}"));
            continue;
        }
        let refusal = result.map(|_| ()).expect_err(id);
        for (reason, code) in [
            ("DEBUG", "debug-allowed"),
            ("report v2", "report-version-not-allowed"),
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

#[test]
fn strictness_beyond_the_folders_verdict() {
    let Some(folder) = folder() else { return };
    let judge = |id: &str, change: &dyn Fn(&mut Policy, &Report)| {
        let evidence = evidence_of(&folder, id);
        let report = Report::parse(&evidence.report).unwrap();
        let mut policy = strict(&report);
        change(&mut policy, &report);
        verify(&evidence, &policy, &TrustAnchors::amd(), NOW)
            .map_or_else(|refusal| codes(&refusal), |_| vec![])
    };
    assert_eq!(judge("oak-genoa-oc", &|_, _| ()), [""; 0]);
    // Real machines at the time of the published reports lacked what is strictly demanded now.
    let advisories = |policy: &mut Policy, _: &Report| policy.products = Policy::default().products;
    assert_eq!(judge("oak-genoa-oc", &advisories), ["tcb-too-low"; 4]);
    assert_eq!(judge("oak-turin-oc", &|_, _| ()), ["rapl-enabled", "ciphertext-hiding-missing"]);
    let milan = |policy: &mut Policy, _: &Report| policy.products.milan = policy.products.genoa.clone();
    let listed =
        |policy: &mut Policy, report: &Report| policy.chips.allow = Some(Demand::only([report.chip_id()]));
    assert_eq!(judge("dstack-milan", &|_, _| ()), ["chip-not-allowed", "product-not-allowed"]);
    assert_eq!(judge("dstack-milan", &milan), ["policy-unusable", "chip-not-allowed"]);
    assert_eq!(judge("dstack-milan", &listed), ["product-not-allowed"]);
    let both = |policy: &mut Policy, report: &Report| {
        milan(policy, report);
        listed(policy, report);
    };
    assert_eq!(judge("dstack-milan", &both), [""; 0]);
    assert_eq!(judge("trustee-az-v0", &both), ["id-block-unexpected"]);
    let mitigations = |bits: u64| {
        judge("oak-genoa-oc", &|policy, _| {
            policy.products.genoa.as_mut().unwrap().launch_mitigations = bits;
        })
    };
    assert_eq!(mitigations(1), [""; 0]);
    assert_eq!(mitigations(2), ["mitigation-missing"]);
    let tsme = |policy: &mut Policy, _: &Report| {
        policy.products.genoa.as_mut().unwrap().platform.tsme = Some(Bit::Required);
    };
    assert_eq!(judge("oak-genoa-oc", &tsme), ["tsme-missing"]);
    let floor = |microcode: u8| {
        judge("oak-genoa-oc", &|policy, _| {
            let genoa = policy.products.genoa.as_mut().unwrap();
            genoa.minimum_tcb.every = TcbFloor { microcode: Some(microcode), ..TcbFloor::default() };
        })
    };
    assert_eq!(floor(0x54), [""; 0]);
    assert_eq!(floor(0x55), ["tcb-too-low"; 4]);
    assert_eq!(
        judge("oak-genoa-oc", &|policy, _| policy.measurements = Demand::only([Measurement([1; 48])])),
        ["measurement-not-allowed"]
    );
}

#[test]
fn dates_and_kinds_of_real_evidence() {
    let Some(folder) = folder() else { return };
    let evidence = evidence_of(&folder, "oak-genoa-oc");
    let policy = strict(&Report::parse(&evidence.report).unwrap());
    let at = |now| match verify(&evidence, &policy, &TrustAnchors::amd(), now) {
        Ok(_) => vec![],
        Err(refusal) => codes(&refusal),
    };
    assert_eq!(at(1_700_000_000), ["certificate-not-yet-valid"]);
    assert_eq!(at(2_000_000_000), ["certificate-expired"]);
    assert_eq!(at(u64::MAX), ["certificate-expired"; 3]);
    let simulation = TrustAnchors::of_simulation(Product::Genoa, Fingerprint([0; 32]));
    assert_eq!(
        codes(&verify(&evidence, &policy, &simulation, NOW).unwrap_err()),
        ["kind-not-allowed", "unknown-root", "product-mismatch"]
    );
    let relabelled = Evidence { kind: EvidenceKind::SimSnp, ..evidence };
    let refusal = verify(&relabelled, &policy, &TrustAnchors::amd(), NOW).unwrap_err();
    assert_eq!(codes(&refusal), ["kind-not-allowed"]);
    assert!(refusal.to_string().contains("expected evidence of kind snp, found sim-snp"), "{refusal}");
}

/// Report and endorsement certificate are enough: the chain above is built in. PEM is read like DER.
#[test]
fn evidence_from_a_report_and_one_certificate() {
    let Some(folder) = folder() else { return };
    for row in manifest(&folder).iter().filter(|row| row["crypto_verdict"] == "authentic") {
        let whole = evidence(&folder, row);
        let parts = Evidence::from_parts(whole.report.clone(), &whole.certificates.vek, None, None);
        assert_eq!(parts, whole, "{}", row["id"]);
        let pem = |der: &[u8]| {
            use base64::{Engine, engine::general_purpose::STANDARD};
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
                .into_bytes()
        };
        let ark = fs::read(folder.join("roots").join(format!("ARK-{}.pem", row["product"]))).unwrap();
        let parts = Evidence::from_parts(
            whole.report.clone(),
            &pem(&whole.certificates.vek),
            Some(&ark),
            Some(&whole.certificates.ask),
        );
        assert_eq!(parts, whole, "{}", row["id"]);
    }
}

/// Whatever bit of an authentic report is turned, inside the signed range or outside, it is refused.
#[test]
fn no_bit_of_a_report_can_be_turned() {
    let Some(folder) = folder() else { return };
    for id in ["oak-milan-rk-release", "sevcrate-milan", "oak-genoa-oc", "oak-turin-oc"] {
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
        assert_eq!(codes(&refusal), ["unknown-intermediate", "chain-broken", "chain-broken"]);
        let found: Vec<_> = refusal.failures().iter().skip(1).map(|failure| failure.found.as_str()).collect();
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
