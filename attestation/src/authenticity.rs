//! Who made a report: the signature, the chain to a pinned root, and that the endorsement key is the one of this chip
//! at this TCB. Says nothing about what the report states, nor about dates: that is the policy's part.

use crate::{
    Evidence, EvidenceKind, Product, Refusal, Report, certificate::Certificate, failure::Failures,
    report::SigningKey,
};
use ring::digest::{SHA256, digest};

/// SHA-256 of a certificate's DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of a certificate in DER.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(bytes)
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The roots that a verifier believes, each by the fingerprint of its whole certificate. All are of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustAnchors {
    kind: EvidenceKind,
    roots: Vec<(Product, Fingerprint)>,
}

impl TrustAnchors {
    /// AMD's root keys, as published by its key distribution service under `/vcek/v1/{product}/cert_chain`.
    #[must_use]
    pub fn amd() -> Self {
        let roots = vec![
            (Product::Milan, Fingerprint(ARK_MILAN)),
            (Product::Genoa, Fingerprint(ARK_GENOA)),
            (Product::Turin, Fingerprint(ARK_TURIN)),
        ];
        Self { kind: EvidenceKind::Snp, roots }
    }

    /// One root of a simulation, which proves nothing. These anchors refuse evidence of real processors, as AMD's
    /// refuse evidence of a simulation.
    #[must_use]
    pub fn of_simulation(product: Product, root: Fingerprint) -> Self {
        Self { kind: EvidenceKind::SimSnp, roots: vec![(product, root)] }
    }

    /// Kind of evidence that these anchors can vouch for.
    #[must_use]
    pub const fn kind(&self) -> EvidenceKind {
        self.kind
    }

    fn product_of(&self, root: Fingerprint) -> Option<Product> {
        self.roots.iter().find(|(_, pinned)| *pinned == root).map(|(product, _)| *product)
    }
}

/// 69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd
const ARK_MILAN: [u8; 32] = [
    0x69, 0xd0, 0x63, 0xb4, 0x53, 0x44, 0xd2, 0x6a, 0x2e, 0x94, 0xe1, 0xf4, 0x21, 0x0d, 0xe4, 0x9e, 0xf5,
    0x55, 0x30, 0x82, 0x87, 0xd4, 0xc1, 0x74, 0x44, 0x5c, 0x95, 0x63, 0x9a, 0x54, 0x0b, 0xcd,
];
/// 4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1
const ARK_GENOA: [u8; 32] = [
    0x4c, 0x65, 0x98, 0xd1, 0x9c, 0x18, 0x71, 0x9c, 0x5d, 0xfd, 0x4a, 0x7d, 0x33, 0x5f, 0x67, 0x4e, 0x5b,
    0xfe, 0x1d, 0x8f, 0x80, 0x0c, 0xea, 0x2c, 0xf2, 0x70, 0xc1, 0x0d, 0x10, 0x3d, 0xb2, 0xf1,
];
/// 1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a
const ARK_TURIN: [u8; 32] = [
    0x1f, 0x08, 0x41, 0x61, 0xa4, 0x4b, 0xb6, 0xd9, 0x37, 0x78, 0xa9, 0x04, 0x87, 0x7d, 0x48, 0x19, 0xca,
    0xfa, 0x5d, 0x05, 0xef, 0x41, 0x93, 0xb2, 0xde, 0xd9, 0xdd, 0x9c, 0x73, 0xdd, 0x3f, 0x6a,
];

/// Evidence whose report was signed by a key that one of the anchors endorses for this chip and TCB.
/// Made by [`authenticate`] only. Dates and the contents of the report are not judged.
#[derive(Debug, Clone)]
pub struct Authentic {
    kind: EvidenceKind,
    product: Product,
    report: Report,
}

impl Authentic {
    /// What made the report.
    #[must_use]
    pub const fn kind(&self) -> EvidenceKind {
        self.kind
    }

    /// Report, endorsement certificate and root agree on it.
    #[must_use]
    pub const fn product(&self) -> Product {
        self.product
    }

    /// The report.
    #[must_use]
    pub const fn report(&self) -> &Report {
        &self.report
    }
}

/// Checks who made the report, and nothing else: neither dates nor what it states.
pub fn authenticate(evidence: &Evidence, anchors: &TrustAnchors) -> Result<Authentic, Refusal> {
    let mut failures = Failures::default();
    let examined = examine(evidence, anchors, &mut failures);
    failures.conclude(examined.authentic())
}

/// What could be read from the evidence. It is authentic only when no failure was recorded.
pub(crate) struct Examined {
    kind: EvidenceKind,
    pub(crate) report: Option<Report>,
    /// Named, from root to leaf; those that could be parsed.
    pub(crate) certificates: Vec<(&'static str, Certificate)>,
    /// By the root, when it is a pinned one.
    product: Option<Product>,
}

impl Examined {
    /// Best knowledge of the product: the root's, else the report's.
    pub(crate) fn product(&self) -> Option<Product> {
        self.product.or_else(|| self.report.as_ref()?.product())
    }

    pub(crate) fn authentic(self) -> Option<Authentic> {
        Some(Authentic { kind: self.kind, product: self.product?, report: self.report? })
    }
}

/// Looks at everything that can be looked at and records each failure.
pub(crate) fn examine(evidence: &Evidence, anchors: &TrustAnchors, failures: &mut Failures) -> Examined {
    failures.require(
        evidence.kind == anchors.kind,
        "kind-not-allowed",
        format_args!("evidence of kind {}", anchors.kind),
        evidence.kind,
        "evidence of a simulation proves nothing: check a real node, or name the simulation's root to the verifier",
    );
    let report = match Report::parse(&evidence.report) {
        Ok(report) => Some(report),
        Err(error) => {
            failures.add(
                error.code(),
                "a canonical report of version 2 to 5",
                error,
                "fetch the evidence again, byte for byte as the guest gives it; a report like this was altered or is of firmware newer than this verifier",
            );
            None
        }
    };
    let mut parse = |name: &'static str, der: &[u8]| match Certificate::parse(der) {
        Ok(certificate) => Some(certificate),
        Err(error) => {
            failures.add(
                "certificate-malformed",
                format_args!("a certificate of AMD's form as {name}"),
                error,
                "fetch the chain from AMD's key distribution service again",
            );
            None
        }
    };
    let ark = parse("ark", &evidence.certificates.ark);
    let ask = parse("ask", &evidence.certificates.ask);
    let vek = parse("vek", &evidence.certificates.vek);

    let root = Fingerprint::of(&evidence.certificates.ark);
    let product = anchors.product_of(root);
    failures.require(
        product.is_some(),
        "unknown-root",
        "one of the pinned root certificates",
        format_args!("a root with SHA-256 {root}"),
        "whoever made this chain is not the manufacturer: do not trust the node",
    );
    if let (Some(ark), Some(ask), Some(vek)) = (&ark, &ask, &vek) {
        check_chain(ark, ask, vek, failures);
    }
    if let (Some(report), Some(vek)) = (&report, &vek) {
        check_products(product, report, vek, failures);
        check_binding(report, vek, failures);
        failures.require(
            vek.signed_report(report.signed_bytes(), &report.signature()),
            "signature-invalid",
            "a signature of the endorsement key over the report",
            "one that does not verify",
            "the report was altered, or the certificate is of another chip or TCB: fetch both from the node again",
        );
    }
    let certificates = [("ark", ark), ("ask", ask), ("vek", vek)];
    let certificates =
        certificates.into_iter().filter_map(|(name, certificate)| Some((name, certificate?))).collect();
    Examined { kind: evidence.kind, report, certificates, product }
}

/// Root to leaf. The root's own signature says nothing beyond its pinned fingerprint and is not looked at.
fn check_chain(ark: &Certificate, ask: &Certificate, vek: &Certificate, failures: &mut Failures) {
    for (issuer_name, issuer, name, subject) in [("ark", ark, "ask", ask), ("ask", ask, "vek", vek)] {
        let found = if !issuer.may_issue {
            Some(format!("{issuer_name} is not allowed to issue certificates"))
        } else if subject.issuer != issuer.subject {
            Some(format!("{name} names another issuer than {issuer_name}"))
        } else if !issuer.signed(subject) {
            Some(format!("the signature of {issuer_name} under {name} does not verify"))
        } else {
            None
        };
        if let Some(found) = found {
            failures.add(
                "chain-broken",
                format_args!("{name} issued by {issuer_name}"),
                found,
                "fetch ASK (or ASVK) and the endorsement certificate of the same product from AMD's key distribution service",
            );
        }
    }
    failures.require(
        !vek.may_issue && vek.has_report_key(),
        "chain-broken",
        "an endorsement certificate with a key on P-384 that may not issue certificates",
        "another kind of certificate",
        "give the chip's VCEK as the last certificate",
    );
}

/// Root, endorsement certificate and report name the same product. Version 2 of the report names none.
fn check_products(root: Option<Product>, report: &Report, vek: &Certificate, failures: &mut Failures) {
    let named = [root, vek.amd.product, report.product().or(root)];
    let show = |product: Option<Product>| product.map_or("none".to_owned(), |product| product.to_string());
    failures.require(
        named[0].is_some() && named[0] == named[1] && named[0] == named[2],
        "product-mismatch",
        "one product in root, endorsement certificate and report",
        format_args!("{}, {}, {}", show(named[0]), show(named[1]), show(named[2])),
        "certificates of one product vouch for nothing on another: fetch the chain of the chip's own product",
    );
}

/// The endorsement key is the one that KEY_INFO names, of this chip, for the reported TCB.
fn check_binding(report: &Report, vek: &Certificate, failures: &mut Failures) {
    // A simulation's names have a prefix.
    let certified = match (vek.common_name.as_str(), &vek.amd.hwid, &vek.amd.csp_id) {
        (name, Some(_), None) if name.ends_with("SEV-VCEK") => Some(SigningKey::Vcek),
        (name, None, Some(_)) if name.ends_with("SEV-VLEK") => Some(SigningKey::Vlek),
        _ => None,
    };
    failures.require(
        certified == Some(report.key_info().signing_key()),
        "signing-key-mismatch",
        format_args!("a certificate of the key that KEY_INFO names, {}", report.key_info().signing_key()),
        certified
            .map_or("a certificate of neither VCEK nor VLEK".to_owned(), |key| format!("one of a {key}")),
        "give the certificate of the key that signed the report",
    );
    let tcb = vek.amd.tcb();
    failures.require(
        tcb == Some(report.reported_tcb()),
        "vek-binding",
        format_args!("an endorsement certificate for the reported TCB ({})", report.reported_tcb()),
        tcb.map_or("one without a whole TCB of this product".to_owned(), |tcb| format!("one for {tcb}")),
        "fetch the certificate for the TCB that the report states",
    );
    if let Some(hwid) = &vek.amd.hwid {
        failures.require(
            hwid_is_chip(hwid, &report.chip_id(), vek.amd.product),
            "vek-binding",
            format_args!("an endorsement certificate of chip {}", hex::encode(report.chip_id())),
            format_args!("one of chip {}", hex::encode(hwid)),
            "fetch the certificate of the chip that the report states",
        );
    }
}

/// HWID has the 64 bytes of CHIP_ID; on Turin it has 8, and the rest of CHIP_ID is zero.
fn hwid_is_chip(hwid: &[u8], chip_id: &[u8; 64], product: Option<Product>) -> bool {
    let length = if product == Some(Product::Turin) { 8 } else { 64 };
    let (used, rest) = chip_id.split_at(length);
    hwid == used && rest.iter().all(|byte| *byte == 0) && used.iter().any(|byte| *byte != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_id_is_the_whole_chip_id() {
        let chip = [7; 64];
        assert!(hwid_is_chip(&chip, &chip, Some(Product::Genoa)));
        assert!(!hwid_is_chip(&chip[..8], &chip, Some(Product::Genoa)));
        assert!(
            !hwid_is_chip(&chip[..8], &chip, Some(Product::Turin)),
            "bytes of CHIP_ID that nobody vouched for"
        );
        let mut turin = [0; 64];
        turin[..8].fill(7);
        assert!(hwid_is_chip(&turin[..8], &turin, Some(Product::Turin)));
        assert!(!hwid_is_chip(&turin, &turin, Some(Product::Turin)));
        assert!(!hwid_is_chip(&[0; 64], &[0; 64], Some(Product::Milan)), "a masked chip id is no chip");
    }
}
