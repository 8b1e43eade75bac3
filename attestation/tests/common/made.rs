//! Evidence that tests make themselves, of every product and with either key: a chain of AMD's form under a root of
//! the test's own, so that nothing but the code is needed to test all of it.

use super::der::{self, integer, oid, sequence, tagged};
use attestation::{
    Certificates, Evidence, EvidenceKind, Fingerprint, Measurement, Policy, Product, Refusal, TrustAnchors,
    Verified,
    policy::{CrlDemand, Demand, ProductPolicy},
    report::{LENGTH, SIGNED, TcbVersion, offset},
    verify,
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PSS_SHA384, RsaKeyPair},
};
use rsa::pkcs8::EncodePrivateKey;
use std::sync::OnceLock;

/// 2026-11-15, in seconds since 1970.
pub(crate) const NOW: u64 = 1_794_700_800;
pub(crate) const MEASUREMENT: [u8; 48] = [0x4d; 48];
pub(crate) const REPORT_DATA: [u8; 64] = [0x52; 64];
pub(crate) const HOST_DATA: [u8; 32] = [0x48; 32];
const AMD: [u32; 8] = [1, 3, 6, 1, 4, 1, 3704, 1];

/// Who holds a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    Ark,
    Ask,
    Vek,
    Stranger,
}

struct Keys {
    rsa: [RsaKeyPair; 3],
    p384: [EcdsaKeyPair; 2],
}

/// Made once for each test program: RSA keys take long.
fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let rsa = |_| {
            let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
            RsaKeyPair::from_pkcs8(key.to_pkcs8_der().unwrap().as_bytes()).unwrap()
        };
        let p384 = |_| {
            let random = SystemRandom::new();
            let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random).unwrap();
            EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, key.as_ref(), &random).unwrap()
        };
        Keys { rsa: [0, 1, 2].map(rsa), p384: [0, 1].map(p384) }
    })
}

fn rsa_key(holder: Holder) -> &'static RsaKeyPair {
    &keys().rsa[match holder {
        Holder::Ark => 0,
        Holder::Ask => 1,
        Holder::Vek | Holder::Stranger => 2,
    }]
}

fn p384_key(holder: Holder) -> &'static EcdsaKeyPair {
    &keys().p384[usize::from(holder == Holder::Stranger)]
}

fn rsa_sign(holder: Holder, message: &[u8]) -> Vec<u8> {
    let key = rsa_key(holder);
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PSS_SHA384, &SystemRandom::new(), message, &mut signature).unwrap();
    signature
}

/// A certificate to be made.
#[derive(Debug, Clone)]
pub(crate) struct Cert {
    pub(crate) version: u8,
    pub(crate) serial: u8,
    pub(crate) issuer: String,
    pub(crate) subject: String,
    pub(crate) validity: [&'static str; 2],
    pub(crate) key: Holder,
    /// basicConstraints CA:TRUE.
    pub(crate) ca: bool,
    /// keyUsage: 4 is keyCertSign, 2 is cRLSign.
    pub(crate) usage: u8,
    /// Further extensions.
    pub(crate) extensions: Vec<Vec<u8>>,
    pub(crate) salt: u8,
    pub(crate) signer: Holder,
}

/// One extension, not critical.
pub(crate) fn extension(id: &[u32], value: &[u8]) -> Vec<u8> {
    sequence(&[&oid(id), &der::octets(value)])
}

/// One of AMD's extensions.
pub(crate) fn amd(id: &[u32], value: &[u8]) -> Vec<u8> {
    extension(&[AMD.as_slice(), id].concat(), value)
}

fn critical(id: &[u32], value: &[u8]) -> Vec<u8> {
    sequence(&[&oid(id), &[1, 1, 0xff], &der::octets(value)])
}

impl Cert {
    fn der(&self) -> Vec<u8> {
        let key = match self.key {
            Holder::Vek => {
                let algorithm = sequence(&[&oid(&[1, 2, 840, 10_045, 2, 1]), &oid(&[1, 3, 132, 0, 34])]);
                sequence(&[&algorithm, &der::bits(0, p384_key(Holder::Vek).public_key().as_ref())])
            }
            holder => {
                let algorithm = sequence(&[&oid(&[1, 2, 840, 113_549, 1, 1, 1]), &[5, 0]]);
                sequence(&[&algorithm, &der::bits(0, rsa_key(holder).public_key().as_ref())])
            }
        };
        let mut extensions = self.extensions.concat();
        if self.ca {
            extensions.extend(critical(&[2, 5, 29, 19], &sequence(&[&[1, 1, 0xff]])));
        }
        if self.usage != 0 {
            let unused = self.usage.trailing_zeros() as u8;
            extensions.extend(critical(&[2, 5, 29, 15], &der::bits(unused, &[self.usage])));
        }
        let algorithm = der::pss(self.salt);
        let signed = sequence(&[
            &tagged(0, &integer(self.version)),
            &integer(self.serial),
            &algorithm,
            &der::name(&self.issuer),
            &sequence(&[&der::time(self.validity[0]), &der::time(self.validity[1])]),
            &der::name(&self.subject),
            &key,
            &tagged(3, &sequence(&[&extensions])),
        ]);
        sequence(&[&signed, &algorithm, &der::bits(0, &rsa_sign(self.signer, &signed))])
    }
}

/// A revocation list to be made.
#[derive(Debug, Clone)]
pub(crate) struct List {
    pub(crate) issuer: String,
    pub(crate) this_update: &'static str,
    pub(crate) next_update: Option<&'static str>,
    pub(crate) revoked: Vec<u8>,
    pub(crate) extensions: Vec<Vec<u8>>,
    pub(crate) signer: Holder,
}

impl List {
    pub(crate) fn der(&self) -> Vec<u8> {
        let algorithm = der::pss(48);
        let entries: Vec<u8> = self
            .revoked
            .iter()
            .flat_map(|serial| sequence(&[&integer(*serial), &der::time(self.this_update)]))
            .collect();
        let entries = if entries.is_empty() { entries } else { sequence(&[&entries]) };
        let number = extension(&[2, 5, 29, 20], &integer(1));
        let signed = sequence(&[
            &integer(1), // version 2
            &algorithm,
            &der::name(&self.issuer),
            &der::time(self.this_update),
            &self.next_update.map(der::time).unwrap_or_default(),
            &entries,
            &tagged(0, &sequence(&[&number, &self.extensions.concat()])),
        ]);
        sequence(&[&signed, &algorithm, &der::bits(0, &rsa_sign(self.signer, &signed))])
    }
}

/// Evidence to be made, the policy that accepts it, and what a verifier has.
pub(crate) struct Made {
    /// Before it is signed.
    pub(crate) report: Vec<u8>,
    pub(crate) report_signer: Holder,
    pub(crate) ark: Cert,
    pub(crate) ask: Cert,
    pub(crate) vek: Cert,
    pub(crate) crls: Vec<Vec<u8>>,
    /// Fingerprint of another root is pinned.
    pub(crate) other_root: bool,
    /// Done to the signed evidence.
    pub(crate) tamper: fn(&mut Evidence),
    pub(crate) policy: Policy,
    pub(crate) now: u64,
    product: Product,
}

pub(crate) fn tcb(product: Product) -> TcbVersion {
    // At or above the floor of every advisory.
    match product {
        Product::Milan => TcbVersion { fmc: None, bootloader: 4, tee: 0, snp: 0x1b, microcode: 0xde },
        Product::Genoa => TcbVersion { fmc: None, bootloader: 10, tee: 0, snp: 0x1b, microcode: 0x56 },
        Product::Turin => TcbVersion { fmc: Some(1), bootloader: 1, tee: 1, snp: 4, microcode: 0x51 },
    }
}

pub(crate) fn chip(product: Product) -> [u8; 64] {
    let mut chip = [0xc5; 64];
    if product == Product::Turin {
        chip[8..].fill(0);
    }
    chip
}

/// AMD's extensions of an endorsement certificate, `provider` being that of a VLEK.
pub(crate) fn amd_extensions(
    product: Product,
    tcb: TcbVersion,
    chip: &[u8; 64],
    provider: Option<&str>,
) -> Vec<Vec<u8>> {
    let spl = |number: u32, value: u8| amd(&[3, number], &integer(value));
    let mut list = vec![
        amd(&[1], &integer(u8::from(product == Product::Turin))),
        amd(&[2], &der::ia5(&product.to_string())),
        spl(1, tcb.bootloader),
        spl(2, tcb.tee),
        spl(3, tcb.snp),
        spl(5, 0),
        spl(6, 0),
        spl(7, 0),
        spl(8, tcb.microcode),
    ];
    list.push(tcb.fmc.map_or_else(|| spl(4, 0), |fmc| spl(9, fmc)));
    list.push(match provider {
        Some(provider) => amd(&[5], &der::ia5(provider)),
        None => amd(&[4], if product == Product::Turin { &chip[..8] } else { chip }),
    });
    list
}

impl Made {
    /// With the chip's key.
    pub(crate) fn of(product: Product) -> Self {
        Self::with(product, None)
    }

    /// With the chip's key, or the key of a provider.
    pub(crate) fn with(product: Product, provider: Option<&str>) -> Self {
        let authority = |name: &str, issuer: &str, serial, usage, key| Cert {
            version: 2,
            serial,
            issuer: issuer.to_owned(),
            subject: name.to_owned(),
            validity: ["220101000000Z", "471231235959Z"],
            key,
            ca: true,
            usage,
            extensions: Vec::new(),
            salt: 48,
            signer: Holder::Ark,
        };
        let root = format!("TEST-ARK-{product}");
        let ask = format!("TEST-SEV-{}{product}", if provider.is_some() { "VLEK-" } else { "" });
        let vek = Cert {
            validity: ["250101000000Z", "320101000000Z"],
            ca: false,
            usage: 0,
            extensions: amd_extensions(product, tcb(product), &chip(product), provider),
            signer: Holder::Ask,
            subject: if provider.is_some() { "SEV-VLEK" } else { "SEV-VCEK" }.to_owned(),
            ..authority("", &ask, 0, 0, Holder::Vek)
        };
        let mut policy = Policy::new([Measurement(MEASUREMENT)], REPORT_DATA);
        policy.host_data = Demand::only([HOST_DATA]);
        policy.revocation.crl = CrlDemand::IfGiven;
        if product == Product::Milan {
            policy.products.milan = Some(ProductPolicy::default());
            policy.chips.allow = Some(Demand::only([chip(product)]));
        }
        if let Some(provider) = provider {
            policy.signing_key.vlek = Some(Demand::only([provider.to_owned()]));
        }
        Self {
            report: report(product, provider.is_some()),
            report_signer: Holder::Vek,
            ark: authority(&root, &root, 1, 6, Holder::Ark),
            ask: authority(&ask, &root, 2, 4, Holder::Ask),
            vek,
            crls: Vec::new(),
            other_root: false,
            tamper: |_| (),
            policy,
            now: NOW,
            product,
        }
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.report[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The root's list, current, which revokes nothing.
    pub(crate) fn list(&self) -> List {
        List {
            issuer: self.ark.subject.clone(),
            this_update: "261101000000Z",
            next_update: Some("261201000000Z"),
            revoked: Vec::new(),
            extensions: Vec::new(),
            signer: Holder::Ark,
        }
    }

    /// The evidence, and anchors that pin its root.
    pub(crate) fn build(&self) -> (Evidence, TrustAnchors) {
        let mut report = self.report.clone();
        sign(&mut report, self.report_signer);
        let certificates = Certificates { ark: self.ark.der(), ask: self.ask.der(), vek: self.vek.der() };
        let root = if self.other_root { Fingerprint([7; 32]) } else { Fingerprint::of(&certificates.ark) };
        let mut evidence = Evidence { kind: EvidenceKind::SimSnp, report, certificates };
        (self.tamper)(&mut evidence);
        let anchors = TrustAnchors::of_simulation(self.product, root);
        (evidence, self.crls.iter().fold(anchors, |anchors, crl| anchors.with_crl(crl)))
    }

    pub(crate) fn verify(&self) -> Result<Verified, Refusal> {
        let (evidence, anchors) = self.build();
        verify(&evidence, &self.policy, &anchors, self.now)
    }

    pub(crate) fn codes(&self) -> Vec<&'static str> {
        self.verify().map_or_else(|refusal| refusal.codes().collect(), |_| vec![])
    }
}

/// Signs a report in place.
pub(crate) fn sign(report: &mut [u8], signer: Holder) {
    let signature = p384_key(signer).sign(&SystemRandom::new(), &report[SIGNED]).unwrap();
    for (at, scalar) in
        [offset::SIGNATURE_R, offset::SIGNATURE_S].into_iter().zip(signature.as_ref().chunks(48))
    {
        report[at..at + 48].copy_from_slice(scalar);
        report[at..at + 48].reverse();
    }
}

fn report(product: Product, vlek: bool) -> Vec<u8> {
    let mut report = vec![0; LENGTH];
    let mut put = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
    put(offset::VERSION, &[5]);
    put(offset::POLICY, &[0, 0, 3]);
    put(offset::SIGNATURE_ALGO, &[1]);
    // SMT, TSME and every protection.
    put(offset::PLATFORM_INFO, &[0x3f]);
    put(offset::KEY_INFO, &[u8::from(vlek) << 2]);
    put(offset::REPORT_DATA, &REPORT_DATA);
    put(offset::MEASUREMENT, &MEASUREMENT);
    put(offset::HOST_DATA, &HOST_DATA);
    put(offset::REPORT_ID, &[0x1d; 32]);
    put(offset::REPORT_ID_MA, &[0xff; 32]);
    put(
        offset::CPUID_FAMILY,
        match product {
            Product::Milan => &[0x19, 1, 1],
            Product::Genoa => &[0x19, 0x11, 1],
            Product::Turin => &[0x1a, 2, 1],
        },
    );
    put(offset::CHIP_ID, &chip(product));
    for at in [offset::CURRENT_TCB, offset::REPORTED_TCB, offset::COMMITTED_TCB, offset::LAUNCH_TCB] {
        put(at, &tcb(product).encode());
    }
    for at in [offset::CURRENT_VERSION, offset::COMMITTED_VERSION] {
        put(at, &[49, 55, 1]);
    }
    put(offset::LAUNCH_MIT_VECTOR, &[3]);
    put(offset::CURRENT_MIT_VECTOR, &[3]);
    report
}
