//! Evidence in a TLS certificate (RA-TLS): a client attests in the handshake, before it sends anything.
//!
//! The certificate carries one extension id-pe-cmw (1.3.6.1.5.5.7.1.35; RFC 9999, RATS Conceptual Message Wrapper,
//! section on X.509), not critical, in its CBOR form: a record of media type, value and the bit for Evidence. The value
//! is what Linux' configfs-tsm gives: the report, then the certificate table. The older extension of TCG DICE
//! (2.23.133.5.4.9) wraps the same messages; the IETF's was chosen because its structure is published as a standard.
//!
//! Nothing else in the certificate is believed: names, issuer, signature and end of validity mean nothing. REPORT_DATA
//! binds the certificate's key and the beginning of its validity, which is when the guest asked for the report
//! ([`Freshness::IssuedAt`]). That the peer holds the key is shown by the handshake itself.

use crate::{
    Evidence, EvidenceError, EvidenceKind, Failure, Policy, Refusal, TrustAnchors, Verified, authenticate,
    binding::{Binding, Freshness, Role},
    certificate_table,
    failure::Code,
    report, verify,
};
use x509_parser::{certificate::X509Certificate, der_parser::asn1_rs::FromDer, der_parser::oid};

/// Arcs of the extension's object identifier, id-pe-cmw.
pub const OID: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 1, 35];
/// Age in seconds above which a verifier should refuse evidence in a handshake, unless it knows better. Guests renew it
/// well before.
pub const MAX_AGE: u64 = 3600;
/// Seconds by which the guest's clock may be ahead of the verifier's.
const MAX_AHEAD: u64 = 300;
/// Longest certificate that is looked at, in bytes.
const MAX_LENGTH: usize = 32 * 1024;

/// A record of three items in CBOR (RFC 8949), as far as it is always the same.
const RECORD: u8 = 0x83;
/// The bit for Evidence in the record's third item.
const EVIDENCE: u8 = 1 << 2;

const fn media_type(kind: EvidenceKind) -> &'static [u8] {
    match kind {
        EvidenceKind::Snp => b"application/vnd.redoubt.sev-snp",
        EvidenceKind::SimSnp => b"application/vnd.redoubt.sim-sev-snp",
    }
}

/// All that stands before the report, for a value of this length. Only this encoding is read.
fn head(kind: EvidenceKind, length: u16) -> Vec<u8> {
    let media_type = media_type(kind);
    let mut record = vec![RECORD, 0x78, media_type.len() as u8];
    record.extend_from_slice(media_type);
    record.push(0x59);
    record.extend_from_slice(&length.to_be_bytes());
    // The record, its value and one last byte, as an OCTET STRING with a length of two bytes.
    let total = record.len() + usize::from(length) + 1;
    let mut head = vec![4, 0x82, (total >> 8) as u8, total as u8];
    head.append(&mut record);
    head
}

/// Content of the extension in DER: `CMW ::= CHOICE { json UTF8String, cbor OCTET STRING }`. `None` for evidence that
/// is longer than any real one.
#[must_use]
pub fn extension(evidence: &Evidence) -> Option<Vec<u8>> {
    let value = [evidence.report.as_slice(), &certificate_table::encode(&evidence.certificates)].concat();
    if value.len() > MAX_LENGTH {
        return None;
    }
    let mut content = head(evidence.kind, u16::try_from(value.len()).ok()?);
    content.extend_from_slice(&value);
    content.push(EVIDENCE);
    Some(content)
}

/// Why a certificate carries no evidence.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Not X.509.
    #[error("it is no X.509 certificate of at most {MAX_LENGTH} bytes")]
    Malformed,
    /// No extension, or more than one.
    #[error("it has {0} extensions with evidence (id-pe-cmw) instead of one")]
    Count(usize),
    /// Some other message, or another encoding of it.
    #[error("its extension id-pe-cmw holds no SEV-SNP evidence of this form")]
    Form,
    /// The certificate table in it.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
}

/// What a certificate presents. Nothing about it is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// The evidence.
    pub evidence: Evidence,
    /// SubjectPublicKeyInfo of the certificate, DER.
    pub key: Vec<u8>,
    /// Beginning of the validity, seconds since 1970: when the evidence says that it was made.
    pub issued_unix_s: u64,
}

impl Presented {
    /// Reads a certificate in DER.
    pub fn from_certificate(der: &[u8]) -> Result<Self, HandshakeError> {
        if der.len() > MAX_LENGTH {
            return Err(HandshakeError::Malformed);
        }
        let (rest, x509) = X509Certificate::from_der(der).map_err(|_| HandshakeError::Malformed)?;
        let issued_unix_s = u64::try_from(x509.validity().not_before.timestamp()).unwrap_or(0);
        let oid = oid!(1.3.6.1.5.5.7.1.35);
        let found: Vec<_> = x509.extensions().iter().filter(|extension| extension.oid == oid).collect();
        let [extension] = found.as_slice() else { return Err(HandshakeError::Count(found.len())) };
        if !rest.is_empty() {
            return Err(HandshakeError::Malformed);
        }
        let evidence = decode(extension.value)?;
        Ok(Self { evidence, key: x509.public_key().raw.to_vec(), issued_unix_s })
    }

    /// REPORT_DATA that the evidence must have.
    #[must_use]
    pub fn report_data(&self) -> [u8; 64] {
        let freshness = Freshness::IssuedAt(self.issued_unix_s);
        let kind = self.evidence.kind;
        Binding { kind, role: Role::Replica, freshness, key: &self.key, peer: None }.report_data()
    }

    /// Whether it is authentic evidence for the certificate's key, made not longer than `max_age_s` ago. Says nothing
    /// of what the report states.
    pub fn authenticate(
        &self,
        anchors: &TrustAnchors,
        now_unix_s: u64,
        max_age_s: u64,
    ) -> Result<crate::Authentic, Refusal> {
        let authentic = authenticate(&self.evidence, anchors);
        let mut failures = self.stale(now_unix_s, max_age_s);
        if let Ok(authentic) = &authentic
            && authentic.report().report_data() != self.report_data()
        {
            failures.push(Failure {
                code: Code::ReportDataMismatch.name(),
                expected: hex::encode(self.report_data()),
                found: hex::encode(authentic.report().report_data()),
                fix: "the evidence is of another TLS key or time than the certificate: someone stands in between",
            });
        }
        Refusal::join(failures, authentic)
    }

    /// The verdict on the evidence. REPORT_DATA of the policy does not count: it follows from the certificate.
    pub fn verify(
        &self,
        policy: &Policy,
        anchors: &TrustAnchors,
        now_unix_s: u64,
        max_age_s: u64,
    ) -> Result<Verified, Refusal> {
        let policy = policy.clone().with_report_data(self.report_data());
        Refusal::join(self.stale(now_unix_s, max_age_s), verify(&self.evidence, &policy, anchors, now_unix_s))
    }

    fn stale(&self, now: u64, max_age: u64) -> Vec<Failure> {
        let issued = self.issued_unix_s;
        let failure = |code, expected, fix| Failure {
            code,
            expected,
            found: format!("issued at {issued} (seconds since 1970), now {now}"),
            fix,
        };
        if now.saturating_sub(issued) > max_age {
            let expected = format!("evidence in the certificate of at most {max_age} s of age");
            let fix = "connect again; if it stays, the guest or somebody between keeps old evidence: ask with a nonce";
            return vec![failure(Code::HandshakeStale.name(), expected, fix)];
        }
        if issued.saturating_sub(now) > MAX_AHEAD {
            let expected = format!("evidence issued at most {MAX_AHEAD} s ahead of this machine's clock");
            let fix = "set the clocks of this machine and of the node's host, or ask with a nonce";
            return vec![failure(Code::HandshakeEarly.name(), expected, fix)];
        }
        Vec::new()
    }
}

fn decode(content: &[u8]) -> Result<Evidence, HandshakeError> {
    for kind in [EvidenceKind::Snp, EvidenceKind::SimSnp] {
        let around = head(kind, 0).len() + 1;
        let Some(length) = content.len().checked_sub(around).and_then(|length| u16::try_from(length).ok())
        else {
            continue;
        };
        let value = content.strip_prefix(head(kind, length).as_slice());
        let Some((&EVIDENCE, value)) = value.and_then(<[u8]>::split_last) else { continue };
        let (report, table) = value.split_at_checked(report::LENGTH).ok_or(HandshakeError::Form)?;
        return Ok(Evidence::from_tsm(kind, report.to_vec(), table)?);
    }
    Err(HandshakeError::Form)
}

/// A certificate without usable evidence, as a refusal.
impl From<HandshakeError> for Refusal {
    fn from(error: HandshakeError) -> Self {
        Self::of(Failure {
            code: Code::HandshakeEvidence.name(),
            expected: "a TLS certificate with one piece of SEV-SNP evidence".to_owned(),
            found: error.to_string(),
            fix: "connect to the node itself, without a TLS proxy between; or ask for evidence with a nonce",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Certificates;
    use proptest::prelude::*;

    fn evidence(kind: EvidenceKind) -> Evidence {
        let certificate = |byte| [&[0x30, 0x82, 2, 0x58][..], &[byte; 600]].concat();
        let certificates = Certificates { ark: certificate(1), ask: certificate(2), vek: certificate(3) };
        Evidence { kind, report: vec![9; report::LENGTH], certificates }
    }

    #[test]
    fn an_extension_is_read_as_written_and_in_no_other_form() {
        for kind in [EvidenceKind::Snp, EvidenceKind::SimSnp] {
            let written = extension(&evidence(kind)).unwrap();
            assert_eq!(decode(&written).unwrap(), evidence(kind));
            let head = head(kind, 0).len();
            for at in (0..head).chain([written.len() - 1]) {
                for bit in 0..8 {
                    let mut other = written.clone();
                    other[at] ^= 1 << bit;
                    assert!(decode(&other).is_err(), "bit {bit} of byte {at}");
                }
            }
            assert!(decode(&written[..written.len() - 1]).is_err());
            assert!(decode(&[&written[..], &[0]].concat()).is_err());
        }
    }

    /// By hand from RFC 8949 and X.690: OCTET STRING, array of three, text, bytes, 4.
    #[test]
    fn the_encoding_is_the_standards() {
        let written = extension(&evidence(EvidenceKind::Snp)).unwrap();
        let table = certificate_table::encode(&evidence(EvidenceKind::Snp).certificates);
        let value = report::LENGTH + table.len();
        let total = 1 + 2 + 31 + 3 + value + 1;
        let bytes = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
        assert_eq!(written[..2], [4, 0x82]);
        assert_eq!(written[2..4], bytes(total));
        assert_eq!(written[4..7], [0x83, 0x78, 31]);
        assert_eq!(&written[7..38], b"application/vnd.redoubt.sev-snp");
        assert_eq!(written[38], 0x59);
        assert_eq!(written[39..41], bytes(value));
        assert_eq!(written.len(), 4 + total);
        assert_eq!(written.last(), Some(&4));
    }

    #[test]
    fn age_is_judged_both_ways() {
        let presented =
            Presented { evidence: evidence(EvidenceKind::Snp), key: vec![1], issued_unix_s: 10_000 };
        let codes = |now| presented.stale(now, 3600).iter().map(|f| f.code).collect::<Vec<_>>();
        assert_eq!(codes(10_000), [""; 0]);
        assert_eq!(codes(13_600), [""; 0]);
        assert_eq!(codes(13_601), ["handshake-stale"]);
        assert_eq!(codes(9_700), [""; 0]);
        assert_eq!(codes(9_699), ["handshake-early"]);
        assert_eq!(codes(u64::MAX), ["handshake-stale"]);
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
            let _ = Presented::from_certificate(&bytes);
        }
    }
}
