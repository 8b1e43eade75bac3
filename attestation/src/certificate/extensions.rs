//! Extensions: who may issue, and what AMD says about a chip's or provider's key.

use super::CertificateError;
use crate::{Product, report::TcbVersion};
use x509_parser::{
    certificate::X509Certificate,
    der_parser::{
        asn1_rs::{FromDer, Ia5String, Integer},
        oid,
    },
    extensions::ParsedExtension,
    oid_registry::Oid,
};

/// What the extensions of a certificate say.
pub(super) struct Extensions {
    pub(super) may_issue: bool,
    pub(super) may_revoke: bool,
    pub(super) amd: AmdExtensions,
}

/// AMD's extensions of an endorsement certificate, as far as they are there (AMD document 57230, table of the VCEK's
/// extensions; the OIDs are below 1.3.6.1.4.1.3704.1).
#[derive(Debug, Default)]
pub(crate) struct AmdExtensions {
    /// productName, .2.
    pub(crate) product: Option<Product>,
    /// HWID, .4: 64 bytes, or 8 on Turin.
    pub(crate) hwid: Option<Vec<u8>>,
    /// CSP_ID, .5: only in a VLEK.
    pub(crate) csp_id: Option<String>,
    bootloader: Option<u8>,
    tee: Option<u8>,
    snp: Option<u8>,
    microcode: Option<u8>,
    fmc: Option<u8>,
    /// .3.4 to .3.7 are reserved bytes of the TCB version.
    reserved_spl: bool,
}

impl Extensions {
    pub(super) fn read(x509: &X509Certificate<'_>) -> Result<Self, CertificateError> {
        const AMD: Oid<'_> = oid!(1.3.6.1.4.1.3704.1);
        let mut seen: Vec<&Oid<'_>> = Vec::new();
        let (mut is_ca, mut signs_certificates, mut may_revoke) = (false, false, false);
        let mut amd = AmdExtensions::default();
        for extension in x509.extensions() {
            let malformed = || CertificateError::Extension(extension.oid.to_id_string());
            if seen.contains(&&extension.oid) {
                return Err(malformed());
            }
            seen.push(&extension.oid);
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(constraints) => is_ca = constraints.ca,
                ParsedExtension::KeyUsage(usage) => {
                    (signs_certificates, may_revoke) = (usage.key_cert_sign(), usage.crl_sign());
                }
                ParsedExtension::ParseError { .. } => return Err(malformed()),
                _ if extension.oid.starts_with(&AMD) => {
                    amd.take(&extension.oid, extension.value).ok_or_else(malformed)?;
                }
                _ if extension.critical => {
                    return Err(CertificateError::UnknownCritical(extension.oid.to_id_string()));
                }
                _ => {}
            }
        }
        Ok(Self { may_issue: is_ca && signs_certificates, may_revoke, amd })
    }
}

impl AmdExtensions {
    /// TCB for which the key was issued; none unless every part is there.
    pub(crate) fn tcb(&self) -> Option<TcbVersion> {
        if self.reserved_spl || (self.product == Some(Product::Turin)) != self.fmc.is_some() {
            return None;
        }
        Some(TcbVersion {
            fmc: self.fmc,
            bootloader: self.bootloader?,
            tee: self.tee?,
            snp: self.snp?,
            microcode: self.microcode?,
        })
    }

    /// Takes one extension; `None` when its value is malformed, or of a kind that would change what the others mean
    /// (a newer structure, another part of the TCB).
    fn take(&mut self, oid: &Oid<'_>, value: &[u8]) -> Option<()> {
        // An arc beyond u64 is none of AMD's.
        let arcs: Vec<u64> = oid.iter()?.skip(8).collect();
        match arcs.as_slice() {
            // Structure version: 0 before Turin, 1 since.
            [1] if integer(value)? > 1 => return None,
            [2] => self.product = Some(Product::from_certificate_name(&ia5(value)?)?),
            [3, 1] => self.bootloader = Some(integer(value)?),
            [3, 2] => self.tee = Some(integer(value)?),
            [3, 3] => self.snp = Some(integer(value)?),
            [3, 4..=7] => self.reserved_spl |= integer(value)? != 0,
            [3, 8] => self.microcode = Some(integer(value)?),
            [3, 9] => self.fmc = Some(integer(value)?),
            [3, ..] => return None,
            [4] => self.hwid = Some(hwid(value)?),
            [5] => self.csp_id = Some(ia5(value)?),
            _ => {}
        }
        Some(())
    }
}

/// 64 bytes or, on Turin, 8: bare, as AMD's service writes them, or as the OCTET STRING of the specification.
fn hwid(value: &[u8]) -> Option<Vec<u8>> {
    match value {
        [4, 64, rest @ ..] if rest.len() == 64 => Some(rest.to_vec()),
        [4, 8, rest @ ..] if rest.len() == 8 => Some(rest.to_vec()),
        _ if matches!(value.len(), 8 | 64) => Some(value.to_vec()),
        _ => None,
    }
}

fn ia5(value: &[u8]) -> Option<String> {
    let (rest, text) = Ia5String::from_der(value).ok()?;
    rest.is_empty().then(|| text.string())
}

/// An INTEGER of 0 to 255, such as a security patch level, in its shortest form.
fn integer(value: &[u8]) -> Option<u8> {
    let (rest, integer) = Integer::from_der(value).ok()?;
    let level = integer.as_u8().ok()?;
    let shortest = if level < 0x80 { value.len() == 3 } else { value.len() == 4 };
    (rest.is_empty() && shortest).then_some(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcb_is_whole_or_none() {
        let whole = || AmdExtensions {
            product: Some(Product::Genoa),
            bootloader: Some(1),
            tee: Some(2),
            snp: Some(3),
            microcode: Some(4),
            ..AmdExtensions::default()
        };
        let tcb = TcbVersion { fmc: None, bootloader: 1, tee: 2, snp: 3, microcode: 4 };
        assert_eq!(whole().tcb(), Some(tcb));
        assert_eq!(AmdExtensions { microcode: None, ..whole() }.tcb(), None);
        assert_eq!(AmdExtensions { reserved_spl: true, ..whole() }.tcb(), None);
        assert_eq!(AmdExtensions { fmc: Some(0), ..whole() }.tcb(), None, "only Turin has one");
        assert_eq!(AmdExtensions { product: Some(Product::Turin), ..whole() }.tcb(), None, "Turin has one");
    }

    #[test]
    fn patch_levels_fit_a_byte() {
        assert_eq!(integer(&[2, 1, 0x17]), Some(0x17));
        assert_eq!(integer(&[2, 2, 0, 0xd5]), Some(0xd5));
        for bad in [
            &[2, 2, 1, 0][..],
            &[2, 1, 0xff],
            &[2, 1, 1, 0],
            &[4, 1, 1],
            &[2, 1],
            &[],
            &[2, 2, 0, 0x17],
            &[2, 0x81, 1, 1],
        ] {
            assert_eq!(integer(bad), None, "{bad:x?}");
        }
    }

    #[test]
    fn what_would_change_the_meaning_is_refused() {
        let take = |oid: Oid<'_>, value: &[u8]| AmdExtensions::default().take(&oid, value);
        assert_eq!(take(oid!(1.3.6.1.4.1.3704.1.1), &[2, 1, 1]), Some(()));
        assert_eq!(take(oid!(1.3.6.1.4.1.3704.1.1), &[2, 1, 2]), None, "a newer structure");
        assert_eq!(
            take(oid!(1.3.6.1.4.1.3704.1.3.10), &[2, 1, 0]),
            None,
            "a part of the TCB that is not known"
        );
        assert_eq!(take(oid!(1.3.6.1.4.1.3704.1.2), b"\x16\x04Rome"), None);
        assert_eq!(take(oid!(1.3.6.1.4.1.3704.1.9), b"anything"), Some(()));
    }

    #[test]
    fn hardware_ids_have_two_forms() {
        let chip = [7; 64];
        assert_eq!(hwid(&chip).as_deref(), Some(&chip[..]));
        assert_eq!(hwid(&[&[4, 64], &chip[..]].concat()).as_deref(), Some(&chip[..]));
        assert_eq!(hwid(&[4, 8, 7, 7, 7, 7, 7, 7, 7, 7]).as_deref(), Some(&chip[..8]));
        // 64 bare bytes may begin like an OCTET STRING.
        let mut odd = chip;
        odd[..2].copy_from_slice(&[4, 64]);
        assert_eq!(hwid(&odd).as_deref(), Some(&odd[..]));
        for bad in [&chip[..63], &[], &[4, 8, 7], &[4, 63, 1]] {
            assert_eq!(hwid(bad), None);
        }
    }
}
