//! A certificate revocation list.
//!
//! AMD's key distribution service offers one for each product and kind of key (`/vcek/v1/{product}/crl`, and `/vlek/…`;
//! AMD document 57230), signed by the ARK: of AMD's certificates only the ARK has the key usage cRLSign. So it can name
//! ARK, ASK and ASVK. An endorsement certificate could only be named by a list of its own issuer, which is looked at in
//! the same way.

use crate::{
    certificate::Certificate,
    failure::{Code, Failures},
    signed::Signed,
};
use std::collections::BTreeSet;
use x509_parser::{
    der_parser::asn1_rs::FromDer, revocation_list::CertificateRevocationList, x509::X509Version,
};

/// Longest list that is looked at, in bytes.
const MAX_LENGTH: usize = 1 << 20;

/// A parsed list. Nothing about it is trusted before its signature is checked.
#[derive(Debug)]
pub(crate) struct Crl {
    signed: Signed,
    /// Name in DER.
    pub(crate) issuer: Vec<u8>,
    /// thisUpdate, in seconds since 1970.
    pub(crate) this_update: i64,
    /// nextUpdate, in seconds since 1970.
    pub(crate) next_update: Option<i64>,
    /// Without leading zeros.
    revoked: BTreeSet<Vec<u8>>,
}

/// Why bytes are no list that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CrlError {
    #[error("it has {0} bytes, more than the {MAX_LENGTH} that are read")]
    TooLong(usize),
    #[error("it is not one DER revocation list of version 2: {0}")]
    NotDer(String),
    #[error("it is not the canonical encoding of a list signed with RSA-PSS, SHA-384 and a salt of 48 bytes")]
    Signature,
    /// Such as a delta list or one of limited scope: it would not say what it seems to say.
    #[error("its critical extension {0} is not known")]
    Critical(String),
}

impl Crl {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > MAX_LENGTH {
            return Err(CrlError::TooLong(der.len()));
        }
        let (rest, list) =
            CertificateRevocationList::from_der(der).map_err(|error| CrlError::NotDer(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CrlError::NotDer("bytes after its end".to_owned()));
        }
        if list.version() != Some(X509Version::V2) {
            return Err(CrlError::NotDer("another version".to_owned()));
        }
        let signed = Signed::new(der, list.tbs_cert_list.as_ref(), &list.signature_value.data);
        let signed = signed.filter(|_| list.signature_algorithm == list.tbs_cert_list.signature);
        let entries = list.iter_revoked_certificates().flat_map(|entry| entry.extensions());
        if let Some(unknown) = list.extensions().iter().chain(entries).find(|extension| extension.critical) {
            return Err(CrlError::Critical(unknown.oid.to_id_string()));
        }
        Ok(Self {
            signed: signed.ok_or(CrlError::Signature)?,
            issuer: list.issuer().as_raw().to_vec(),
            this_update: list.last_update().timestamp(),
            next_update: list.next_update().map(|time| time.timestamp()),
            revoked: list.iter_revoked_certificates().map(|entry| shortest(entry.raw_serial())).collect(),
        })
    }

    fn revokes(&self, certificate: &Certificate) -> bool {
        certificate.issuer == self.issuer && self.revoked.contains(&shortest(&certificate.serial))
    }
}

fn shortest(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().skip_while(|byte| *byte == 0).collect()
}

/// Holds a chain (named, from root to leaf) against lists and gives back the root's own ones. Lists of other issuers say
/// nothing about this chain and are left alone: a verifier of several products has several.
pub(crate) fn examine(
    lists: &[Vec<u8>],
    chain: &[(&'static str, Certificate)],
    failures: &mut Failures,
) -> Vec<Crl> {
    let mut of_root = Vec::new();
    for der in lists {
        let crl = match Crl::parse(der) {
            Ok(crl) => crl,
            Err(error) => {
                failures.add(
                    Code::CrlMalformed,
                    "a certificate revocation list as AMD publishes it",
                    error,
                    "fetch the list from AMD's key distribution service again",
                );
                continue;
            }
        };
        let Some((name, issuer)) = chain.iter().find(|(_, certificate)| certificate.subject == crl.issuer)
        else {
            continue;
        };
        if !issuer.may_revoke || !issuer.made(&crl.signed) {
            failures.add(
                Code::CrlUntrusted,
                format_args!("a revocation list signed by the {name}"),
                "one with its name, but another signature or a key that may not sign lists",
                "fetch the list from AMD's key distribution service again; someone made this one up",
            );
            continue;
        }
        for (name, certificate) in chain.iter().filter(|(_, certificate)| crl.revokes(certificate)) {
            failures.add(
                Code::CertificateRevoked,
                format_args!("{name} that is not revoked"),
                format_args!(
                    "serial number {} on its issuer's revocation list",
                    hex::encode(&certificate.serial)
                ),
                "do not trust the machine; its keys were withdrawn by the manufacturer",
            );
        }
        if *name == "ark" {
            of_root.push(crl);
        }
    }
    of_root
}
