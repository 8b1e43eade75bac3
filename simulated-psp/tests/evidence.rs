//! The simulated chip's evidence before the real verifier: accepted under the simulation's root, and refused, by name,
//! for everything that is wrong with it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use attestation::{
    Evidence, EvidenceKind, Measurement, Policy, Product, Refusal, TrustAnchors, Verified, binding,
    measurement::{Launch, VcpuType},
    policy::{self, CrlDemand, Demand, SignedIdBlock},
    report::GuestPolicy,
    verify,
};
use simulated_psp::{
    chip::{CHIP_ID_PREFIX, Chip, IdBlock, LaunchContext, Psp},
    protocol::{Bytes, FieldSelect, KeyRequest, KeyRoot, Request, Response, Status},
    root,
};
use std::path::Path;
use tempfile::TempDir;

/// 2026-11-15, in seconds since 1970.
const NOW: u64 = 1_794_700_800;
const NONCE: [u8; 32] = [0x11; 32];
const SPKI: &[u8] = b"SubjectPublicKeyInfo of the replica";
const HOST_DATA: [u8; 32] = [0x22; 32];

fn measurement() -> Measurement {
    let firmware = vec![0x90; 256 * 1024];
    let launch = Launch {
        firmware: &firmware,
        kernel: b"kernel",
        initrd: b"initrd",
        command_line: "console=ttyS0 redoubt.profile=virtual",
        vcpus: 2,
        vcpu_type: VcpuType::EPYC_V4,
        guest_features: 1,
    };
    launch.measurement().unwrap()
}

fn context() -> LaunchContext {
    LaunchContext::new(measurement(), HOST_DATA)
}

fn psp(folder: &Path, context: LaunchContext) -> Psp {
    Chip::open_or_create(folder).unwrap().launch(context).unwrap()
}

fn report_data() -> [u8; 64] {
    binding::report_data(EvidenceKind::SimSnp, &NONCE, SPKI)
}

fn evidence_with(psp: &Psp, report_data: [u8; 64], vmpl: u32) -> Evidence {
    let request = Request::Report { report_data: Bytes(report_data), vmpl };
    let Response::Report { report, certificates } = psp.handle(&request) else { panic!("refused") };
    Evidence::from_tsm(EvidenceKind::SimSnp, report.0.to_vec(), &certificates.0).unwrap()
}

fn evidence(psp: &Psp) -> Evidence {
    evidence_with(psp, report_data(), 0)
}

/// The strict policy: nothing about a simulation needs a wider one.
fn policy() -> Policy {
    let mut policy = Policy::new([measurement()], report_data());
    policy.host_data = Demand::only([HOST_DATA]);
    // A simulation's root has no revocation list.
    policy.revocation.crl = CrlDemand::IfGiven;
    policy
}

fn judge(evidence: &Evidence, policy: &Policy) -> Result<Verified, Refusal> {
    verify(evidence, policy, &root::trust_anchors(), NOW)
}

fn codes(result: Result<Verified, Refusal>) -> Vec<&'static str> {
    match result {
        Ok(_) => vec![],
        Err(refusal) => refusal.codes().collect(),
    }
}

struct Node {
    folder: TempDir,
    psp: Psp,
}

fn node(context: LaunchContext) -> Node {
    let folder = tempfile::tempdir().unwrap();
    let psp = psp(folder.path(), context);
    Node { folder, psp }
}

#[test]
fn sound_evidence_passes_the_strict_policy() {
    let node = node(context());
    let json = evidence(&node.psp).to_json().unwrap();
    let verified = judge(&Evidence::from_json(json.as_bytes()).unwrap(), &policy()).unwrap();
    assert_eq!(verified.kind(), EvidenceKind::SimSnp);
    assert_eq!(verified.product(), Product::Genoa);
    assert_eq!(verified.measurement(), measurement());
    let report = verified.report();
    assert_eq!((report.version(), report.vmpl(), report.policy()), (5, 0, GuestPolicy(0x30000)));
    assert!(report.chip_id().starts_with(CHIP_ID_PREFIX));
}

#[test]
fn real_and_simulated_never_mix() {
    let node = node(context());
    let sound = evidence(&node.psp);
    let amd = |evidence: &Evidence| codes(verify(evidence, &policy(), &TrustAnchors::amd(), NOW));
    assert_eq!(amd(&sound), ["kind-not-allowed", "unknown-root", "product-mismatch"]);
    let relabelled = Evidence { kind: EvidenceKind::Snp, ..sound };
    assert_eq!(amd(&relabelled), ["unknown-root", "product-mismatch"]);
    assert_eq!(codes(judge(&relabelled, &policy())), ["kind-not-allowed"]);
    // The report itself answers another question than a real one would.
    let real = policy().with_report_data(binding::report_data(EvidenceKind::Snp, &NONCE, SPKI));
    assert_eq!(codes(judge(&relabelled, &real)), ["kind-not-allowed", "report-data-mismatch"]);
}

#[test]
fn each_wrong_thing_has_its_code() {
    let node = node(context());
    let sound = evidence(&node.psp);
    let with = |policy: &Policy| codes(judge(&sound, policy));
    let nonce = binding::report_data(EvidenceKind::SimSnp, &[0x12; 32], SPKI);
    assert_eq!(with(&policy().with_report_data(nonce)), ["report-data-mismatch"]);
    let key = binding::report_data(EvidenceKind::SimSnp, &NONCE, b"another key");
    assert_eq!(with(&policy().with_report_data(key)), ["report-data-mismatch"]);
    let other = Demand::only([Measurement([1; 48])]);
    assert_eq!(with(&Policy { measurements: other, ..policy() }), ["measurement-not-allowed"]);
    assert_eq!(with(&Policy { host_data: Demand::none(), ..policy() }), ["host-data-mismatch"]);
    let all = Policy { host_data: Demand::none(), measurements: Demand::none(), ..policy() };
    let all = all.with_report_data([0; 64]);
    assert_eq!(with(&all), ["measurement-not-allowed", "host-data-mismatch", "report-data-mismatch"]);

    let at = |now| codes(verify(&sound, &policy(), &root::trust_anchors(), now));
    assert_eq!(at(1_735_689_599), ["certificate-not-yet-valid"; 3], "the second before 2025");
    assert_eq!(at(1_735_689_600), [""; 0]);
    assert_eq!(at(2_524_607_999), [""; 0]);
    assert_eq!(at(2_524_608_000), ["certificate-expired"; 3], "2050");

    assert_eq!(codes(judge(&evidence_with(&node.psp, report_data(), 1), &policy())), ["vmpl-mismatch"]);
}

#[test]
fn guests_launched_otherwise_are_refused() {
    let launched = |change: fn(&mut LaunchContext)| {
        let mut context = context();
        change(&mut context);
        codes(judge(&evidence(&node(context).psp), &policy()))
    };
    assert_eq!(launched(|c| c.measurement.0[47] ^= 1), ["measurement-not-allowed"]);
    assert_eq!(launched(|c| c.host_data[0] ^= 1), ["host-data-mismatch"]);
    assert_eq!(launched(|c| c.policy.0 |= GuestPolicy::DEBUG), ["debug-allowed"]);
    assert_eq!(launched(|c| c.policy.0 |= GuestPolicy::MIGRATE_MA), ["migration-allowed"]);
    assert_eq!(launched(|c| c.policy.0 |= GuestPolicy::CXL_ALLOW), ["cxl-allowed"]);
    assert_eq!(launched(|c| c.policy.0 &= !GuestPolicy::RESERVED_ONE), ["guest-policy-reserved"]);
    assert_eq!(launched(|c| c.policy.0 |= 1 << 26), ["guest-policy-reserved"]);
    assert_eq!(launched(|c| c.id_block = Some(id_block())), ["id-block-unexpected"]);
}

fn id_block() -> IdBlock {
    IdBlock { family_id: [1; 16], image_id: [2; 16], guest_svn: 7, id_key_digest: [3; 48] }
}

#[test]
fn id_blocks_are_held_against_the_policy() {
    let node = node(LaunchContext { id_block: Some(id_block()), ..context() });
    let sound = evidence(&node.psp);
    let wanted = SignedIdBlock {
        id_keys: [[3; 48].into()].into(),
        author_keys: None,
        family_id: Demand::only([[1; 16]]),
        image_id: Demand::only([[2; 16]]),
        minimum_guest_svn: 7,
    };
    let with = |change: fn(&mut SignedIdBlock)| {
        let mut block = wanted.clone();
        change(&mut block);
        let policy = Policy { id_block: policy::IdBlock::Signed(Box::new(block)), ..policy() };
        codes(judge(&sound, &policy))
    };
    assert_eq!(with(|_| ()), [""; 0]);
    assert_eq!(with(|block| block.id_keys = [[4; 48].into()].into()), ["id-key-not-allowed"]);
    assert_eq!(with(|block| block.author_keys = Some(Demand::only([[0; 48]]))), ["author-key-not-allowed"]);
    assert_eq!(with(|block| block.family_id = Demand::only([[9; 16]])), ["family-mismatch"]);
    assert_eq!(with(|block| block.image_id = Demand::only([[9; 16]])), ["image-mismatch"]);
    assert_eq!(with(|block| block.minimum_guest_svn = 8), ["guest-svn-too-low"]);
}

#[test]
fn no_bit_of_a_report_can_be_turned() {
    let node = node(context());
    let mut evidence = evidence(&node.psp);
    for bit in 0..evidence.report.len() * 8 {
        evidence.report[bit / 8] ^= 1 << (bit % 8);
        let refused = codes(judge(&evidence, &policy()));
        assert!(!refused.is_empty(), "bit {} of byte {:#x}", bit % 8, bit / 8);
        evidence.report[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(codes(judge(&evidence, &policy())), [""; 0]);
}

#[test]
fn certificates_of_another_chip_or_root_do_not_vouch() {
    let (one, other) = (node(context()), node(context()));
    let (mut mixed, theirs) = (evidence(&one.psp), evidence(&other.psp));
    mixed.certificates.vek.clone_from(&theirs.certificates.vek);
    assert_eq!(codes(judge(&mixed, &policy())), ["vek-binding", "signature-invalid"]);

    let mut swapped = evidence(&one.psp);
    swapped.certificates.ask.clone_from(&swapped.certificates.ark);
    assert_eq!(
        codes(judge(&swapped, &policy())),
        ["chain-broken"],
        "the root did not issue the chip's certificate"
    );
    let mut as_root = evidence(&one.psp);
    as_root.certificates.ark.clone_from(&as_root.certificates.ask);
    let refused = codes(judge(&as_root, &policy()));
    assert_eq!(refused, ["unknown-root", "chain-broken", "product-mismatch"]);
    // A chip's certificate cannot issue others.
    let mut longer = evidence(&one.psp);
    longer.certificates.ask.clone_from(&longer.certificates.vek);
    assert_eq!(codes(judge(&longer, &policy())), ["chain-broken", "chain-broken"]);
}

fn key_request() -> KeyRequest {
    KeyRequest { root: KeyRoot::Vcek, fields: FieldSelect(0), vmpl: 0, guest_svn: 0, tcb_version: 0 }
}

fn key(psp: &Psp, request: KeyRequest) -> [u8; 32] {
    match psp.handle(&Request::DerivedKey(request)) {
        Response::DerivedKey { key } => key.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_chip_survives_restarts_and_differs_from_others() {
    let first = node(context());
    let again = psp(first.folder.path(), context());
    let other = node(context());
    let report = |psp: &Psp| judge(&evidence(psp), &policy()).unwrap().report().clone();
    let (before, after, elsewhere) = (report(&first.psp), report(&again), report(&other.psp));
    assert_eq!(before.chip_id(), after.chip_id());
    assert_ne!(before.chip_id(), elsewhere.chip_id());
    assert_ne!(before.report_id(), after.report_id(), "a new launch");
    assert_eq!(key(&first.psp, key_request()), key(&again, key_request()));
    assert_ne!(key(&first.psp, key_request()), key(&other.psp, key_request()));
}

#[test]
fn derived_keys_follow_exactly_the_selected_fields() {
    type Change = fn(&mut LaunchContext);
    fn block(context: &mut LaunchContext) -> &mut IdBlock {
        context.id_block.as_mut().unwrap()
    }
    let base = LaunchContext { id_block: Some(id_block()), ..context() };
    let first = node(base.clone());
    let changes: [(FieldSelect, Change); 4] = [
        (FieldSelect::GUEST_POLICY, |c| c.policy.0 |= GuestPolicy::SINGLE_SOCKET),
        (FieldSelect::IMAGE_ID, |c| block(c).image_id[0] ^= 1),
        (FieldSelect::FAMILY_ID, |c| block(c).family_id[0] ^= 1),
        (FieldSelect::MEASUREMENT, |c| c.measurement.0[0] ^= 1),
    ];
    for (field, change) in changes {
        let mut context = base.clone();
        change(&mut context);
        let changed = psp(first.folder.path(), context);
        let with = KeyRequest { fields: field, ..key_request() };
        let without = KeyRequest { fields: FieldSelect(FieldSelect::DEFINED.0 & !field.0), ..key_request() };
        assert_ne!(key(&first.psp, with.clone()), key(&changed, with), "{field:?}");
        assert_eq!(key(&first.psp, without.clone()), key(&changed, without), "{field:?}");
    }
    let mut context = base.clone();
    block(&mut context).id_key_digest[0] ^= 1;
    let other_signer = psp(first.folder.path(), context);
    assert_ne!(key(&first.psp, key_request()), key(&other_signer, key_request()));

    let asked = |change: &dyn Fn(&mut KeyRequest)| {
        let mut request = key_request();
        change(&mut request);
        key(&first.psp, request)
    };
    let plain = asked(&|_| ());
    assert_ne!(asked(&|r| r.root = KeyRoot::Vmrk), plain);
    assert_ne!(asked(&|r| r.vmpl = 1), plain);
    assert_eq!(asked(&|r| r.guest_svn = 7), plain, "not selected");
    assert_eq!(asked(&|r| r.tcb_version = 10), plain, "not selected");
    let all: Vec<_> = (0..64).map(|fields| asked(&|r| r.fields = FieldSelect(fields))).collect();
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), 64, "each selection gives its own key");
    let svn = |value| asked(&|r| (r.fields, r.guest_svn) = (FieldSelect::GUEST_SVN, value));
    assert_ne!(svn(6), svn(7));
    let tcb = |value| asked(&|r| (r.fields, r.tcb_version) = (FieldSelect::TCB_VERSION, value));
    assert_ne!(tcb(9), tcb(10));
}

#[test]
fn requests_beyond_the_guest_are_refused() {
    let node = node(LaunchContext { id_block: Some(id_block()), ..context() });
    let committed = judge(&evidence(&node.psp), &Policy { id_block: policy::IdBlock::Any, ..policy() })
        .unwrap()
        .report()
        .committed_tcb();
    let status = |request: &Request| match node.psp.handle(request) {
        Response::Refused { status, reason } => {
            assert!(!reason.is_empty());
            Some(status)
        }
        _ => None,
    };
    let asked = |change: &dyn Fn(&mut KeyRequest)| {
        let mut request = key_request();
        change(&mut request);
        status(&Request::DerivedKey(request))
    };
    let invalid = Some(Status::InvalidParameter);
    assert_eq!(asked(&|r| r.guest_svn = 7), None);
    assert_eq!(asked(&|r| r.guest_svn = 8), invalid);
    assert_eq!(asked(&|r| r.tcb_version = u64::from_le_bytes(committed.encode())), None);
    for above in [
        attestation::report::TcbVersion { bootloader: committed.bootloader + 1, ..committed },
        attestation::report::TcbVersion { tee: committed.tee + 1, ..committed },
        attestation::report::TcbVersion { snp: committed.snp + 1, ..committed },
        attestation::report::TcbVersion { microcode: committed.microcode + 1, ..committed },
    ] {
        assert_eq!(asked(&|r| r.tcb_version = u64::from_le_bytes(above.encode())), invalid, "{above}");
    }
    assert_eq!(asked(&|r| r.tcb_version = 1 << 16), invalid, "reserved byte");
    assert_eq!(asked(&|r| r.fields = FieldSelect(0x40)), invalid);
    assert_eq!(asked(&|r| r.vmpl = 4), invalid);
    let report = |vmpl| status(&Request::Report { report_data: Bytes([0; 64]), vmpl });
    assert_eq!((report(3), report(4)), (None, invalid));
}
