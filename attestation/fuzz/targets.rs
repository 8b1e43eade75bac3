//! What is done with each input. Shared by the fuzz targets and by the test that replays the corpus, so that both do
//! the same. Beside never panicking, each holds what must always be true.
#![allow(dead_code, reason = "each fuzz target uses one function")]

use attestation::{
    Certificates, Evidence, Fingerprint, Policy, Product, Report, TrustAnchors, advisories, authenticate,
    certificate_table, handshake::Presented, report, verify,
};
use std::sync::LazyLock;

/// Sound evidence of a made-up chip of Genoa under a made-up root, and its revocation list.
const EVIDENCE: &[u8] = include_bytes!("corpus/evidence/seed-genoa.json");

fn sound() -> (Evidence, TrustAnchors) {
    // Read once: reading it costs more than what most inputs need.
    static SOUND: LazyLock<(Evidence, TrustAnchors)> = LazyLock::new(|| {
        let evidence = Evidence::from_json(EVIDENCE).expect("the seed is evidence");
        let anchors =
            TrustAnchors::of_simulation(Product::Genoa, Fingerprint::of(&evidence.certificates.ark));
        (evidence, anchors)
    });
    SOUND.clone()
}

/// A report parses to itself or not at all, is described whole, and is authentic only as it was signed.
pub(crate) fn report(data: &[u8]) {
    let (mut evidence, anchors) = sound();
    if let Ok(parsed) = Report::parse(data) {
        assert_eq!(parsed.as_bytes().as_slice(), data);
        assert!(report::describe(&parsed).len() > 20);
        for product in Product::ALL {
            assert!(!advisories::assess(&parsed, product).is_empty());
        }
    }
    let sound = std::mem::replace(&mut evidence.report, data.to_vec());
    assert_eq!(authenticate(&evidence, &anchors).is_ok(), data == sound);
}

/// No other certificate can take the place of any in the chain.
pub(crate) fn certificate(data: &[u8]) {
    let _ = Presented::from_certificate(data);
    let (sound, anchors) = sound();
    let parts: [fn(&mut Certificates) -> &mut Vec<u8>; 3] = [|c| &mut c.ark, |c| &mut c.ask, |c| &mut c.vek];
    for part in parts {
        let mut evidence = sound.clone();
        let was = std::mem::replace(part(&mut evidence.certificates), data.to_vec());
        assert_eq!(authenticate(&evidence, &anchors).is_ok(), data == was);
    }
    let evidence = Evidence::from_parts(sound.report, data, None, None);
    assert!(authenticate(&evidence, &TrustAnchors::amd()).is_err());
}

/// A list never makes evidence acceptable that was not, whatever it says.
pub(crate) fn crl(data: &[u8]) {
    let (mut evidence, anchors) = sound();
    let anchors = anchors.with_crl(data);
    let _ = authenticate(&evidence, &anchors);
    evidence.report[report::offset::MEASUREMENT] ^= 1;
    assert!(authenticate(&evidence, &anchors).is_err());
}

/// A policy is read or refused; one that was read never accepts what is not authentic.
pub(crate) fn policy(data: &[u8]) {
    let Ok(Ok(policy)) = std::str::from_utf8(data).map(Policy::from_toml) else { return };
    let (mut evidence, anchors) = sound();
    let _ = verify(&evidence, &policy, &anchors, 1_794_700_800);
    evidence.report[report::offset::MEASUREMENT] ^= 1;
    assert!(verify(&evidence, &policy, &anchors, 1_794_700_800).is_err());
}

/// Evidence in every form that it travels in. Nothing passes the strict policy, which names no guest.
pub(crate) fn evidence(data: &[u8]) {
    let (sound, anchors) = sound();
    let table = certificate_table::decode(data).map(|certificates| Evidence { certificates, ..sound });
    for evidence in Evidence::from_json(data).into_iter().chain(table) {
        assert!(verify(&evidence, &Policy::default(), &anchors, 1_794_700_800).is_err());
        assert!(authenticate(&evidence, &TrustAnchors::amd()).is_err());
        if let Ok(json) = evidence.to_json()
            && let Ok(again) = Evidence::from_json(json.as_bytes())
        {
            assert_eq!(again, evidence);
        }
    }
}
