//! What a verifier believes from the start: roots, intermediates and revocation lists.

use crate::{EvidenceKind, Product, certificate::Certificate, pem};
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

/// Certificates of one product, in DER.
struct BuiltIn {
    product: Product,
    ark: &'static [u8],
    ask: &'static [u8],
    asvk: &'static [u8],
}

macro_rules! built_in {
    ($product:ident, $name:literal) => {
        BuiltIn {
            product: Product::$product,
            ark: include_bytes!(concat!("../roots/ark-", $name, ".der")),
            ask: include_bytes!(concat!("../roots/ask-", $name, ".der")),
            asvk: include_bytes!(concat!("../roots/asvk-", $name, ".der")),
        }
    };
}

/// As AMD's key distribution service publishes them under `/vcek/v1/{product}/cert_chain` and `/vlek/…`.
const AMD: [BuiltIn; 3] = [built_in!(Milan, "milan"), built_in!(Genoa, "genoa"), built_in!(Turin, "turin")];

/// AMD's ARK and ASK (or ASVK) above an endorsement certificate, by the issuer that it names.
pub(crate) fn above(vek: &[u8]) -> Option<(&'static [u8], &'static [u8])> {
    let issuer = Certificate::parse(vek).ok()?.issuer;
    let mut intermediates = AMD.iter().flat_map(|amd| [(amd.ark, amd.ask), (amd.ark, amd.asvk)]);
    intermediates
        .find(|(_, der)| Certificate::parse(der).is_ok_and(|certificate| certificate.subject == issuer))
}

/// What a verifier believes: roots, each by the fingerprint of its whole certificate, and the revocation lists that it
/// holds. All roots are of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustAnchors {
    kind: EvidenceKind,
    roots: Vec<(Product, Fingerprint)>,
    /// `None`: whatever the root issued.
    intermediates: Option<Vec<Fingerprint>>,
    crls: Vec<Vec<u8>>,
}

impl TrustAnchors {
    /// AMD's keys for Milan, Genoa and Turin: ARK, ASK and ASVK are pinned.
    #[must_use]
    pub fn amd() -> Self {
        Self {
            kind: EvidenceKind::Snp,
            roots: AMD.iter().map(|amd| (amd.product, Fingerprint::of(amd.ark))).collect(),
            intermediates: Some(
                AMD.iter().flat_map(|amd| [amd.ask, amd.asvk]).map(Fingerprint::of).collect(),
            ),
            crls: Vec::new(),
        }
    }

    /// One root of a simulation, which proves nothing. These anchors refuse evidence of real processors, as AMD's
    /// refuse evidence of a simulation.
    #[must_use]
    pub fn of_simulation(product: Product, root: Fingerprint) -> Self {
        Self {
            kind: EvidenceKind::SimSnp,
            roots: vec![(product, root)],
            intermediates: None,
            crls: Vec::new(),
        }
    }

    /// Adds a revocation list in DER or PEM. It is believed only when the certificate that it names signed it.
    #[must_use]
    pub fn with_crl(mut self, crl: &[u8]) -> Self {
        self.crls.push(pem::to_der(crl, "X509 CRL"));
        self
    }

    /// Kind of evidence that these anchors can vouch for.
    #[must_use]
    pub const fn kind(&self) -> EvidenceKind {
        self.kind
    }

    pub(crate) fn crls(&self) -> &[Vec<u8>] {
        &self.crls
    }

    pub(crate) fn product_of(&self, root: Fingerprint) -> Option<Product> {
        self.roots.iter().find(|(_, pinned)| *pinned == root).map(|(product, _)| *product)
    }

    pub(crate) fn knows_intermediate(&self, intermediate: Fingerprint) -> bool {
        self.intermediates.as_ref().is_none_or(|pinned| pinned.contains(&intermediate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From AMD's published certificates, by `sha256sum`.
    const FINGERPRINTS: [[&str; 3]; 3] = [
        [
            "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
            "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
            "c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5",
        ],
        [
            "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
            "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
            "197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372",
        ],
        [
            "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
            "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
            "104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c",
        ],
    ];

    #[test]
    fn the_built_in_certificates_are_amds_and_fit_together() {
        for (amd, fingerprints) in AMD.iter().zip(FINGERPRINTS) {
            let parse = |der| Certificate::parse(der).unwrap();
            let ark = parse(amd.ark);
            assert_eq!(ark.common_name, format!("ARK-{}", amd.product));
            assert!(ark.may_issue && ark.may_revoke && ark.signed(&ark));
            for (der, name) in [(amd.ask, "SEV"), (amd.asvk, "SEV-VLEK")] {
                let intermediate = parse(der);
                assert_eq!(intermediate.common_name, format!("{name}-{}", amd.product));
                assert!(intermediate.may_issue && !intermediate.may_revoke && ark.signed(&intermediate));
            }
            let found = [amd.ark, amd.ask, amd.asvk].map(|der| Fingerprint::of(der).to_string());
            assert_eq!(found, fingerprints);
        }
    }
}
