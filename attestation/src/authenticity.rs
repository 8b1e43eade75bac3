//! Who made a report: the signature, the chain to a pinned root, and that the endorsement key is the one of this chip
//! at this TCB. Says nothing about what the report states, nor about dates: that is the policy's part.

use crate::{
    Evidence, EvidenceKind, Fingerprint, Product, Refusal, Report, TrustAnchors,
    certificate::Certificate,
    crl::{self, Crl},
    failure::{Code, Failures},
    report::{SigningKey, TcbLayout},
};

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

/// Checks who made the report, and nothing else: neither dates nor what it states. Revocation lists of the anchors are
/// heeded, whatever their age.
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
    /// Whether the verifier has any revocation list, of whatever issuer.
    pub(crate) crls_given: bool,
    /// Those of the root.
    pub(crate) crls: Vec<Crl>,
    /// By the root, when it is a pinned one.
    product: Option<Product>,
}

impl Examined {
    /// Best knowledge of the product: the root's, else the report's.
    pub(crate) fn product(&self) -> Option<Product> {
        self.product.or_else(|| self.report.as_ref()?.product())
    }

    /// Cloud provider whose key signed, by the endorsement certificate.
    pub(crate) fn provider(&self) -> Option<&str> {
        self.certificates.iter().find_map(|(_, certificate)| certificate.amd.csp_id.as_deref())
    }

    pub(crate) fn authentic(self) -> Option<Authentic> {
        Some(Authentic { kind: self.kind, product: self.product?, report: self.report? })
    }
}

/// Looks at everything that can be looked at and records each failure.
pub(crate) fn examine(evidence: &Evidence, anchors: &TrustAnchors, failures: &mut Failures) -> Examined {
    failures.require(
        evidence.kind == anchors.kind(),
        Code::KindNotAllowed,
        format_args!("evidence of kind {}", anchors.kind()),
        evidence.kind,
        "evidence of a simulation proves nothing: check a real node, or name the simulation's root to the verifier",
    );
    let report = match Report::parse(&evidence.report) {
        Ok(report) => Some(report),
        Err(error) => {
            failures.add(
                error.failure(),
                "a canonical report of version 2 to 5",
                error,
                "fetch the evidence again, byte for byte as the guest gives it; a report like this was altered or is of firmware newer than this verifier",
            );
            None
        }
    };
    let ark = parse("ark", &evidence.certificates.ark, failures);
    let ask = parse("ask", &evidence.certificates.ask, failures);
    let vek = parse("vek", &evidence.certificates.vek, failures);

    let root = Fingerprint::of(&evidence.certificates.ark);
    let product = anchors.product_of(root);
    failures.require(
        product.is_some() || ark.is_none(),
        Code::UnknownRoot,
        "one of the pinned root certificates",
        format_args!("a root with SHA-256 {root}"),
        "whoever made this chain is not the manufacturer: do not trust the node",
    );
    let intermediate = Fingerprint::of(&evidence.certificates.ask);
    failures.require(
        // Below an unknown root nothing is known.
        anchors.knows_intermediate(intermediate) || ask.is_none() || product.is_none(),
        Code::UnknownIntermediate,
        "one of the pinned ASK and ASVK certificates",
        format_args!("an intermediate with SHA-256 {intermediate}"),
        "leave the intermediate out: the verifier has the manufacturer's; one that it does not have needs a newer verifier",
    );
    if let (Some(ark), Some(ask), Some(vek)) = (&ark, &ask, &vek) {
        check_chain(ark, ask, vek, failures);
    }
    if let (Some(report), Some(vek)) = (&report, &vek) {
        check_products(product, report, vek, failures);
        check_binding(report, vek, ask.as_ref(), failures);
        failures.require(
            vek.signed_report(report.signed_bytes(), &report.signature()),
            Code::SignatureInvalid,
            "a signature of the endorsement key over the report",
            "one that does not verify",
            "the report was altered, or the certificate is of another chip or TCB: fetch both from the node again",
        );
    }
    let certificates = [("ark", ark), ("ask", ask), ("vek", vek)];
    let certificates: Vec<_> =
        certificates.into_iter().filter_map(|(name, certificate)| Some((name, certificate?))).collect();
    let crls = crl::examine(anchors.crls(), &certificates, failures);
    let crls_given = !anchors.crls().is_empty();
    Examined { kind: evidence.kind, report, certificates, crls_given, crls, product }
}

fn parse(name: &'static str, der: &[u8], failures: &mut Failures) -> Option<Certificate> {
    if der.is_empty() {
        failures.add(
            Code::CertificateMissing,
            format_args!("a certificate as {name}"),
            "none",
            "fetch the endorsement certificate of the chip and TCB from AMD's key distribution service; its chain is built in for real ones",
        );
        return None;
    }
    Certificate::parse(der)
        .inspect_err(|error| {
            failures.add(
                Code::CertificateMalformed,
                format_args!("a certificate of AMD's form as {name}"),
                error,
                "fetch the chain from AMD's key distribution service again",
            );
        })
        .ok()
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
                Code::ChainBroken,
                format_args!("{name} issued by {issuer_name}"),
                found,
                "fetch ASK (or ASVK) and the endorsement certificate of the same product from AMD's key distribution service",
            );
        }
    }
    failures.require(
        !vek.may_issue && vek.has_report_key(),
        Code::ChainBroken,
        "an endorsement certificate with a key on P-384 that may not issue certificates",
        "another kind of certificate",
        "give the chip's VCEK as the last certificate",
    );
}

/// Root, endorsement certificate and report name the same product. Version 2 of the report names none.
fn check_products(root: Option<Product>, report: &Report, vek: &Certificate, failures: &mut Failures) {
    // Version 2 does not name it, but its encoding must be the product's.
    let assumed = root.filter(|root| TcbLayout::of(*root) == report.tcb_layout());
    let named = [root, vek.amd.product, report.product().or(assumed)];
    let show = |product: Option<Product>| product.map_or("none".to_owned(), |product| product.to_string());
    failures.require(
        named[0].is_some() && named[0] == named[1] && named[0] == named[2],
        Code::ProductMismatch,
        "one product in root, endorsement certificate and report",
        format_args!("{}, {}, {}", show(named[0]), show(named[1]), show(named[2])),
        "certificates of one product vouch for nothing on another: fetch the chain of the chip's own product",
    );
}

/// The endorsement key is the one that KEY_INFO names, of this chip, for the reported TCB.
fn check_binding(report: &Report, vek: &Certificate, ask: Option<&Certificate>, failures: &mut Failures) {
    // A simulation's names have a prefix.
    let certified = match (vek.common_name.as_str(), &vek.amd.hwid, &vek.amd.csp_id) {
        (name, Some(_), None) if name.ends_with("SEV-VCEK") => Some(SigningKey::Vcek),
        (name, None, Some(_)) if name.ends_with("SEV-VLEK") => Some(SigningKey::Vlek),
        _ => None,
    };
    failures.require(
        certified == Some(report.key_info().signing_key()),
        Code::SigningKeyMismatch,
        format_args!("a certificate of the key that KEY_INFO names, {}", report.key_info().signing_key()),
        certified
            .map_or("a certificate of neither VCEK nor VLEK".to_owned(), |key| format!("one of a {key}")),
        "give the certificate of the key that signed the report",
    );
    // ASK issues the keys of chips, ASVK (SEV-VLEK-*) those of providers; each has its own revocation list.
    if let (Some(certified), Some(ask)) = (certified, ask) {
        failures.require(
            ask.common_name.contains("VLEK") == (certified == SigningKey::Vlek),
            Code::ChainBroken,
            format_args!("a {certified} issued by the intermediate for keys of its kind"),
            format_args!("one issued by {}", ask.common_name),
            "give ASK with a VCEK and ASVK with a VLEK",
        );
    }
    let tcb = vek.amd.tcb();
    failures.require(
        tcb == Some(report.reported_tcb()),
        Code::VekBinding,
        format_args!("an endorsement certificate for the reported TCB ({})", report.reported_tcb()),
        tcb.map_or("one without a whole TCB of this product".to_owned(), |tcb| format!("one for {tcb}")),
        "fetch the certificate for the TCB that the report states",
    );
    if let Some(hwid) = &vek.amd.hwid {
        failures.require(
            hwid_is_chip(hwid, &report.chip_id(), vek.amd.product),
            Code::VekBinding,
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
