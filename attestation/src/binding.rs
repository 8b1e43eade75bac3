//! What REPORT_DATA stands for.

use crate::EvidenceKind;
use ring::digest::{Context, SHA256, SHA512, digest};

/// Version of this binding.
const VERSION: u32 = 1;

/// REPORT_DATA of a replica's evidence: binds the asker's nonce and the key of the TLS connection over which it asks.
///
/// SHA-512 over five fields, each preceded by its length in bytes as u32 little endian: domain (differs by kind, so
/// that a simulation's report can never be taken for a real one), version as u32 little endian, role, nonce, and
/// SHA-256 of the key as SubjectPublicKeyInfo in DER.
#[must_use]
pub fn report_data(kind: EvidenceKind, nonce: &[u8; 32], tls_spki_der: &[u8]) -> [u8; 64] {
    let domain: &[u8] = match kind {
        EvidenceKind::Snp => b"redoubt report data, SEV-SNP",
        EvidenceKind::SimSnp => b"redoubt report data, SIMULATED",
    };
    let key = digest(&SHA256, tls_spki_der);
    let mut context = Context::new(&SHA512);
    for field in [domain, &VERSION.to_le_bytes(), b"replica", nonce, key.as_ref()] {
        // No field has more than 32 bytes.
        context.update(&(field.len() as u32).to_le_bytes());
        context.update(field);
    }
    let mut data = [0; 64];
    data.copy_from_slice(context.finish().as_ref());
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Python's hashlib: `f = lambda *p: sha512(b''.join(pack('<I', len(x)) + x for x in p))`.
    #[test]
    fn known_answer() {
        let data = report_data(EvidenceKind::Snp, &[1; 32], b"key");
        assert_eq!(hex::encode(data), KNOWN);
    }

    const KNOWN: &str = "46d08e44f27aef9a62cb252dd60b17288ee546d5d57a6f573f3b2d3ac4e4ba8240bc73f677e5abd7008030200e1e904a675708c489e43854cc3af4c8173fcaa6";

    #[test]
    fn every_input_counts() {
        let base = report_data(EvidenceKind::Snp, &[1; 32], b"key");
        assert_ne!(base, report_data(EvidenceKind::SimSnp, &[1; 32], b"key"));
        assert_ne!(base, report_data(EvidenceKind::Snp, &[2; 32], b"key"));
        assert_ne!(base, report_data(EvidenceKind::Snp, &[1; 32], b"kez"));
    }
}
