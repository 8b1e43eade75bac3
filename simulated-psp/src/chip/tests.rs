//! What the verifier says to reports and certificates that no firmware would give, though their signatures are good:
//! a development key can make what a real one never would.

use super::{Chip, LaunchContext, TCB, certificate};
use crate::{
    protocol::{Bytes, REPORT_LENGTH, Request, Response},
    root,
};
use attestation::{
    Evidence, EvidenceKind, Measurement, Policy,
    policy::{CrlDemand, Demand, ProductPolicy, Products, TcbFloor, TcbFloors},
    report::{GuestPolicy, PlatformInfo, TcbVersion, offset},
    verify,
};
use ring::signature::KeyPair;

/// 2026-11-15, in seconds since 1970.
const NOW: u64 = 1_794_700_800;

fn chip() -> Chip {
    Chip::open_or_create(tempfile::tempdir().unwrap().path()).unwrap()
}

fn evidence(chip: &Chip) -> Evidence {
    let psp = chip.launch(LaunchContext::new(Measurement([1; 48]), [2; 32])).unwrap();
    let request = Request::Report { report_data: Bytes([3; 64]), vmpl: 0 };
    let Response::Report { report, certificates } = psp.handle(&request) else { panic!("refused") };
    Evidence::from_tsm(EvidenceKind::SimSnp, report.0.to_vec(), &certificates.0).unwrap()
}

/// The verdict of the strict policy, or of a changed one.
fn codes_with(evidence: &Evidence, change: impl Fn(&mut Policy)) -> Vec<&'static str> {
    let mut policy = Policy::new([Measurement([1; 48])], [3; 64]);
    policy.host_data = Demand::only([[2; 32]]);
    policy.revocation.crl = CrlDemand::IfGiven;
    change(&mut policy);
    let verdict = verify(evidence, &policy, &root::trust_anchors(), NOW);
    verdict.map_or_else(|refusal| refusal.codes().collect(), |_| vec![])
}

fn codes(evidence: &Evidence) -> Vec<&'static str> {
    codes_with(evidence, |_| ())
}

#[test]
fn a_certificate_vouches_for_one_chip_and_one_tcb() {
    let chip = chip();
    let sound = evidence(&chip);
    assert_eq!(codes(&sound), [""; 0]);
    let issued = |chip_id: [u8; 64], tcb: TcbVersion| {
        let mut evidence = sound.clone();
        let key = chip.0.key.public_key();
        evidence.certificates.vek = certificate::issue(key.as_ref(), &chip_id, tcb, &chip.0.random).unwrap();
        codes(&evidence)
    };
    assert_eq!(issued(chip.chip_id(), TCB), [""; 0]);
    let mut other = chip.chip_id();
    other[63] ^= 1;
    assert_eq!(issued(other, TCB), ["vek-binding"]);
    for tcb in [
        TcbVersion { bootloader: TCB.bootloader + 1, ..TCB },
        TcbVersion { tee: TCB.tee + 1, ..TCB },
        TcbVersion { snp: TCB.snp - 1, ..TCB },
        TcbVersion { microcode: TCB.microcode - 1, ..TCB },
    ] {
        assert_eq!(issued(chip.chip_id(), tcb), ["vek-binding"], "{tcb}");
    }
}

#[test]
fn good_signatures_do_not_help_bad_reports() {
    let chip = chip();
    let sound = evidence(&chip);
    let signed = |change: &dyn Fn(&mut [u8; REPORT_LENGTH])| {
        let mut evidence = sound.clone();
        let mut report: [u8; REPORT_LENGTH] = evidence.report.try_into().unwrap();
        change(&mut report);
        chip.0.sign(&mut report).unwrap();
        evidence.report = report.to_vec();
        evidence
    };
    let set = |at: usize, bytes: &[u8]| {
        codes(&signed(&|report| report[at..at + bytes.len()].copy_from_slice(bytes)))
    };
    assert_eq!(set(offset::VERSION, &[5]), [""; 0]);
    // Versions 3 and 4 are the same but for the mitigation vectors, which are zero here.
    assert_eq!(set(offset::VERSION, &[3]), [""; 0]);
    assert_eq!(set(offset::VERSION, &[4]), [""; 0]);
    assert_eq!(set(offset::VERSION, &[6]), ["report-version-unknown"]);
    assert_eq!(set(offset::SIGNATURE_ALGO, &[2]), ["signature-algorithm"]);
    assert_eq!(set(0x04c, &[1]), ["report-not-canonical"]);
    assert_eq!(set(offset::CPUID_FAMILY, &[0x17]), ["product-unknown"]);
    // A Milan's and a Turin's report under a Genoa's root; a Turin's TCB would read otherwise too.
    assert_eq!(set(offset::CPUID_MODEL, &[1]), ["product-mismatch"]);
    assert_eq!(set(offset::CPUID_FAMILY, &[0x1a, 2]), ["report-not-canonical"]);
    assert_eq!(set(offset::KEY_INFO, &[1 << 2]), ["signing-key-mismatch", "vlek-not-allowed"]);
    assert_eq!(set(offset::KEY_INFO, &[7 << 2]), ["signing-key-mismatch", "vlek-not-allowed"]);
    assert_eq!(set(offset::KEY_INFO, &[2]), ["chip-key-masked"]);
    assert_eq!(set(offset::KEY_INFO, &[1]), ["id-block-unexpected"], "an author key without an ID block");
    assert_eq!(set(offset::GUEST_SVN, &[1]), ["id-block-unexpected"]);
    assert_eq!(set(offset::AUTHOR_KEY_DIGEST, &[1]), ["id-block-unexpected"]);
    assert_eq!(set(offset::REPORT_ID_MA, &[0xfe]), ["migration-agent-bound"]);
    assert_eq!(set(offset::CHIP_ID, &[0; 64]), ["vek-binding"], "a masked chip id");
    assert_eq!(set(offset::REPORTED_TCB, &[TCB.bootloader - 1]), ["vek-binding"]);
    assert_eq!(set(offset::CURRENT_TCB, &[TCB.bootloader - 1]), ["firmware-provisional"]);
    let platform = |bits: u64| set(offset::PLATFORM_INFO, &bits.to_le_bytes());
    assert_eq!(platform(PlatformInfo::ALIAS_CHECK_COMPLETE), ["ecc-missing"]);
    assert_eq!(platform(PlatformInfo::ECC), ["alias-check-missing"]);
    let smt = PlatformInfo::SMT | PlatformInfo::ECC | PlatformInfo::ALIAS_CHECK_COMPLETE;
    assert_eq!(platform(smt), [""; 0]);
    let inconsistent = signed(&|report| {
        report[offset::PLATFORM_INFO] |= PlatformInfo::SMT as u8;
        report[offset::POLICY..offset::POLICY + 8].copy_from_slice(&GuestPolicy::RESERVED_ONE.to_le_bytes());
    });
    assert_eq!(codes(&inconsistent), ["smt-inconsistent"]);
    let old = signed(&|report| {
        report[offset::VERSION] = 2;
        report[offset::CPUID_FAMILY..offset::CPUID_FAMILY + 3].fill(0);
    });
    assert_eq!(codes(&old), ["report-version-not-allowed"]);
}

/// COMMITTED stops the host from rolling back, LAUNCH shows on what the guest began: each floor is looked at.
#[test]
fn every_tcb_has_its_floor() {
    let chip = chip();
    let sound = evidence(&chip);
    let floor = |policy: &mut Policy| {
        let TcbVersion { bootloader, tee, snp, microcode, .. } = TCB;
        let (bootloader, tee, snp, microcode) = (Some(bootloader), Some(tee), Some(snp), Some(microcode));
        let every = TcbFloor { fmc: None, bootloader, tee, snp, microcode };
        let minimum_tcb = TcbFloors { every, ..TcbFloors::default() };
        let genoa = ProductPolicy { minimum_tcb, provisional_firmware: true, ..ProductPolicy::default() };
        policy.products = Products { milan: None, genoa: Some(genoa), turin: None };
    };
    assert_eq!(codes_with(&sound, floor), [""; 0]);
    for at in [offset::CURRENT_TCB, offset::COMMITTED_TCB, offset::LAUNCH_TCB] {
        let mut evidence = sound.clone();
        let mut report: [u8; REPORT_LENGTH] = evidence.report.try_into().unwrap();
        // The last byte is the microcode; a higher bootloader does not make up for it.
        report[at] += 1;
        report[at + 7] -= 1;
        chip.0.sign(&mut report).unwrap();
        evidence.report = report.to_vec();
        assert_eq!(codes_with(&evidence, floor), ["tcb-too-low"], "{at:#x}");
    }
}
