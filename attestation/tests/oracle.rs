//! The `sev` crate as a second opinion: on the real report of a Milan machine that comes with it, on reports that the
//! tests make, and on published ones. It must agree on what is authentic and on every field; what it lets through
//! beyond that is listed, so that a change on either side shows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use attestation::{
    Evidence, Policy, Product, Report, TrustAnchors, authenticate,
    report::{LENGTH, TcbVersion, describe, offset},
    verify,
};
use common::made::{Made, NOW};
use sev::{
    certs::snp::{Certificate, Chain, Verifiable, builtin, ca},
    firmware::{guest::AttestationReport, host},
    parser::ByteParser,
};
use std::{fs, path::PathBuf, process::Command};

/// The published package of the `sev` crate, which cargo unpacked because these tests need it.
fn package() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let sev = packages.iter().find(|package| package["name"] == "sev").unwrap();
    PathBuf::from(sev["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

/// A report of a real Milan machine with the certificate of its key, and the chain that is built in.
fn published() -> Evidence {
    let data = package().join("tests/certs_data");
    let report = hex::decode(fs::read_to_string(data.join("report_milan.hex")).unwrap().trim()).unwrap();
    Evidence::from_parts(report, &fs::read(data.join("vcek_milan.der")).unwrap(), None, None)
}

fn second_opinion(evidence: &Evidence) -> Result<AttestationReport, String> {
    let report = AttestationReport::from_bytes(&evidence.report).map_err(|error| error.to_string())?;
    let certificates = &evidence.certificates;
    let chain = Chain {
        ca: ca::Chain::from_der(&certificates.ark, &certificates.ask).map_err(|error| error.to_string())?,
        vek: Certificate::from_der(&certificates.vek).map_err(|error| error.to_string())?,
    };
    (&chain, &report).verify().map_err(|error| error.to_string())?;
    Ok(report)
}

fn assert_same_fields(ours: &Report, theirs: &AttestationReport) {
    let same_tcb = |ours: TcbVersion, theirs: host::TcbVersion| {
        let theirs =
            [theirs.fmc, Some(theirs.bootloader), Some(theirs.tee), Some(theirs.snp), Some(theirs.microcode)];
        assert_eq!(ours.parts().map(|(_, part)| part), theirs);
    };
    assert_eq!(
        (ours.version(), ours.guest_svn(), ours.policy().0, ours.vmpl()),
        (theirs.version, theirs.guest_svn, theirs.policy.0, theirs.vmpl)
    );
    assert_eq!((ours.family_id(), ours.image_id()), (theirs.family_id, theirs.image_id));
    same_tcb(ours.current_tcb(), theirs.current_tcb);
    same_tcb(ours.reported_tcb(), theirs.reported_tcb);
    same_tcb(ours.committed_tcb(), theirs.committed_tcb);
    same_tcb(ours.launch_tcb(), theirs.launch_tcb);
    assert_eq!((ours.platform_info().0, ours.key_info().0), (theirs.plat_info.0, theirs.key_info.0));
    assert_eq!((ours.report_data(), ours.measurement().0), (theirs.report_data, theirs.measurement));
    assert_eq!((ours.host_data(), ours.chip_id()), (theirs.host_data, theirs.chip_id));
    assert_eq!(
        (ours.id_key_digest(), ours.author_key_digest()),
        (theirs.id_key_digest, theirs.author_key_digest)
    );
    assert_eq!((ours.report_id(), ours.report_id_ma()), (theirs.report_id, theirs.report_id_ma));
    let cpuid = theirs.cpuid_fam_id.zip(theirs.cpuid_mod_id).zip(theirs.cpuid_step);
    assert_eq!(ours.cpuid(), cpuid.map(|((family, model), stepping)| [family, model, stepping]));
    for (ours, theirs) in
        [(ours.current_version(), theirs.current), (ours.committed_version(), theirs.committed)]
    {
        assert_eq!((ours.major, ours.minor, ours.build), (theirs.major, theirs.minor, theirs.build));
    }
    assert_eq!(
        (ours.launch_mit_vector(), ours.current_mit_vector()),
        (theirs.launch_mit_vector, theirs.current_mit_vector)
    );
}

fn policy(name: &str) -> Policy {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("policies").join(name);
    Policy::from_toml(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_real_report_of_milan() {
    let evidence = published();
    let anchors = TrustAnchors::amd();
    let authentic = authenticate(&evidence, &anchors).unwrap();
    assert_eq!(authentic.product(), Product::Milan);
    assert_same_fields(authentic.report(), &second_opinion(&evidence).unwrap());
    // The chain that was chosen is the one that the other crate has built in.
    let der = |certificate: std::io::Result<Certificate>| certificate.unwrap().to_der().unwrap();
    assert_eq!(evidence.certificates.ark, der(builtin::milan::ark()));
    assert_eq!(evidence.certificates.ask, der(builtin::milan::ask()));
    // It is authentic, and of a version that states too little.
    let refusal = verify(&evidence, &policy("all-products.toml"), &anchors, NOW).unwrap_err();
    assert_eq!(refusal.codes().collect::<Vec<_>>(), ["report-version-not-allowed", "alias-check-missing"]);
    let expired = verify(&evidence, &policy("all-products.toml"), &anchors, 1_956_528_001).unwrap_err();
    assert!(expired.codes().any(|code| code == "certificate-expired"));
}

#[test]
fn no_bit_of_a_real_report_can_be_turned() {
    let mut evidence = published();
    let anchors = TrustAnchors::amd();
    for bit in 0..evidence.report.len() * 8 {
        evidence.report[bit / 8] ^= 1 << (bit % 8);
        assert!(authenticate(&evidence, &anchors).is_err(), "bit {} of byte {:#x}", bit % 8, bit / 8);
        evidence.report[bit / 8] ^= 1 << (bit % 8);
    }
    authenticate(&evidence, &anchors).unwrap();
}

/// The other crate hashes a report that it wrote anew from what it understood, and does not look at everything: these
/// bytes of an authentic report can be changed before it. None of them means anything, but one report would have many
/// forms.
#[test]
fn what_the_other_crate_lets_through() {
    let mut evidence = published();
    let vek = Certificate::from_der(&evidence.certificates.vek).unwrap();
    let accepts = |bytes: &[u8]| {
        AttestationReport::from_bytes(bytes).is_ok_and(|report| (&vek, &report).verify().is_ok())
    };
    assert!(accepts(&evidence.report));
    let tcbs = [offset::CURRENT_TCB, offset::REPORTED_TCB, offset::COMMITTED_TCB, offset::LAUNCH_TCB];
    let known: Vec<usize> = (offset::SIGNATURE_R + 48..offset::SIGNATURE_S)
        .chain(offset::SIGNATURE_S + 48..LENGTH)
        .chain(tcbs.into_iter().flat_map(|tcb| tcb + 2..tcb + 6))
        .collect();
    for byte in 0..LENGTH {
        evidence.report[byte] ^= 1;
        assert_eq!(accepts(&evidence.report), known.contains(&byte), "byte {byte:#x}");
        evidence.report[byte] ^= 1;
    }
}

#[test]
fn made_reports_read_the_same() {
    for product in Product::ALL {
        let (evidence, anchors) = Made::of(product).build();
        let ours = authenticate(&evidence, &anchors).unwrap();
        let theirs = AttestationReport::from_bytes(&evidence.report).unwrap();
        assert_same_fields(ours.report(), &theirs);
        let vek = Certificate::from_der(&evidence.certificates.vek).unwrap();
        (&vek, &theirs).verify().unwrap();
    }
}

#[test]
fn published_reports_are_judged_the_same() {
    let Some(folder) = common::folder() else { return };
    let mut compared = 0;
    for row in common::manifest(&folder).iter().filter(|row| row["crypto_verdict"] == "authentic") {
        let evidence = common::evidence(&folder, row);
        let ours = authenticate(&evidence, &TrustAnchors::amd()).unwrap();
        assert_same_fields(ours.report(), &second_opinion(&evidence).unwrap());
        compared += 1;
    }
    assert!(compared > 10, "{compared}");
    // Which root to believe is left to the caller of the other crate: a whole chain of somebody's own passes.
    let forged = common::evidence_of(&folder, "neg-fake-root");
    assert!(second_opinion(&forged).is_ok());
    assert!(authenticate(&forged, &TrustAnchors::amd()).is_err());
}

/// Each byte of a report that carries something is described, once, and no reserved one.
#[test]
fn the_description_covers_the_report() {
    let report = Report::parse(&Made::of(Product::Turin).build().0.report).unwrap();
    let fields = describe(&report);
    let mut described = [false; LENGTH];
    for field in &fields {
        let raw = hex::decode(&field.raw).unwrap();
        assert_eq!(raw, report.as_bytes()[field.offset..field.offset + raw.len()], "{}", field.name);
        assert!(!field.meaning.is_empty());
        for byte in &mut described[field.offset..field.offset + raw.len()] {
            assert!(!std::mem::replace(byte, true), "{} overlaps", field.name);
        }
    }
    let reserved: Vec<usize> =
        [0x4c..0x50, 0x18b..0x1a0, 0x1eb..0x1ec, 0x1ef..0x1f0, 0x208..0x2a0, 0x330..LENGTH]
            .into_iter()
            .flatten()
            .collect();
    for (byte, described) in described.into_iter().enumerate() {
        assert_eq!(described, !reserved.contains(&byte), "byte {byte:#x}");
    }
    let meaning = |name: &str| &fields.iter().find(|field| field.name == name).unwrap().meaning;
    assert_eq!(meaning("CPUID"), "family 0x1a, model 0x2, stepping 1: Turin");
    assert_eq!(meaning("KEY_INFO"), "signed by the chip's key (VCEK)");
    assert_eq!(
        meaning("POLICY"),
        "firmware ABI 0.0 or newer demanded; SMT allowed; no migration agent; no debugging; no CXL"
    );
    assert_eq!(
        meaning("PLATFORM_INFO"),
        "SMT on; TSME on; ECC memory; power readings off; ciphertext hidden; no aliased memory found"
    );
    assert_eq!(meaning("CURRENT_TCB"), "fmc 1, bootloader 1, tee 1, snp 4, microcode 81: what runs now");
    assert_eq!(meaning("ID_KEY_DIGEST"), "launched without an ID block");
}

/// Where a machine stands with each advisory, in words for people.
#[test]
fn advisories_are_assessed() {
    use attestation::advisories::{Status, all, assess};
    let report = |change: fn(&mut Made)| {
        let mut made = Made::of(Product::Genoa);
        change(&mut made);
        Report::parse(&made.build().0.report).unwrap()
    };
    let status = |report: &Report, id: &str| {
        let list = assess(report, Product::Genoa);
        list.into_iter().find(|assessment| assessment.id == id).map(|found| (found.status, found.reason))
    };
    let fixed = report(|_| ());
    let with_floor = all().iter().filter(|advisory| {
        advisory.products.iter().any(|entry| entry.name == Product::Genoa && entry.floor.is_some())
    });
    for advisory in with_floor {
        assert_eq!(status(&fixed, &advisory.id).unwrap().0, Status::AtOrAboveFloor, "{}", advisory.id);
    }
    let (undecided, why) = status(&fixed, "AMD-SB-3034").unwrap();
    assert_eq!(undecided, Status::NotDecidedByTcb);
    assert!(why.contains("withdrawn"), "{why}");
    assert_eq!(status(&fixed, "AMD-SB-3045"), None, "Milan only");
    let old = report(|made| made.put(offset::LAUNCH_TCB + 6, &[0x16]));
    let (below, why) = status(&old, "AMD-SB-3019").unwrap();
    assert_eq!(below, Status::BelowFloor);
    assert_eq!(why, "launch TCB below snp 23, microcode 84");
}
