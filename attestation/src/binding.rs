//! What REPORT_DATA stands for: who holds which key, towards whom, and how fresh that is.
//!
//! REPORT_DATA is SHA-512 over seven fields, in this order, each preceded by its length in bytes as u32 little endian:
//!
//! | field | bytes |
//! |---|---|
//! | domain | differs by [`EvidenceKind`], so that a simulation's report can never be taken for a real one |
//! | version | 2, u32 little endian |
//! | role | name of the [`Role`] |
//! | freshness | tag `nonce` or `time` |
//! | its value | the 32 bytes of the nonce, or seconds since 1970 as u64 little endian |
//! | key | SHA-256 of the own TLS key (SubjectPublicKeyInfo, DER) |
//! | peer | SHA-256 of the peer's TLS key, or nothing where the peer has none |
//!
//! Lengths make the encoding injective: no two different inputs give the same bytes to hash.

use crate::EvidenceKind;
use ring::digest::{Context, SHA256, SHA512, digest};

/// Version of this binding.
const VERSION: u32 = 2;

/// What the holder of the key is, so that evidence for one part of the protocol is worthless in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The replica of a guest, towards clients.
    Replica,
    /// The host agent's end of a channel into a guest.
    Host,
    /// The running guest that gives its storage key to its successor.
    HandOverOld,
    /// The guest that takes it over.
    HandOverNew,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Replica, Self::Host, Self::HandOverOld, Self::HandOverNew];

    /// As it is hashed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replica => "replica",
            Self::Host => "host",
            Self::HandOverOld => "hand-over old",
            Self::HandOverNew => "hand-over new",
        }
    }
}

/// What shows that a report was not made long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// The asker's random number: the report is younger than the question.
    Nonce([u8; 32]),
    /// Seconds since 1970 by the guest's clock when it asked for the report, for evidence in a TLS handshake, where
    /// no nonce can be asked for. The host sets the guest's clock, so this bounds how long a stolen TLS key is of use,
    /// and no more: a verifier that must know asks with a nonce.
    IssuedAt(u64),
}

/// Everything that a report binds beside what the firmware puts into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Binding<'a> {
    /// What makes the report.
    pub kind: EvidenceKind,
    /// What the holder of the key is.
    pub role: Role,
    /// Why the report is not an old one.
    pub freshness: Freshness,
    /// The own TLS key, as SubjectPublicKeyInfo in DER.
    pub key: &'a [u8],
    /// The peer's TLS key, where both sides prove themselves.
    pub peer: Option<&'a [u8]>,
}

impl Binding<'_> {
    /// REPORT_DATA.
    #[must_use]
    pub fn report_data(&self) -> [u8; 64] {
        let mut data = [0; 64];
        let mut context = Context::new(&SHA512);
        self.encode(|part| context.update(part));
        data.copy_from_slice(context.finish().as_ref());
        data
    }

    fn encode(&self, mut put: impl FnMut(&[u8])) {
        let domain: &[u8] = match self.kind {
            EvidenceKind::Snp => b"redoubt report data, SEV-SNP",
            EvidenceKind::SimSnp => b"redoubt report data, SIMULATED",
        };
        let time;
        let (tag, freshness): (&[u8], &[u8]) = match &self.freshness {
            Freshness::Nonce(nonce) => (b"nonce", nonce),
            Freshness::IssuedAt(seconds) => {
                time = seconds.to_le_bytes();
                (b"time", &time)
            }
        };
        let key = digest(&SHA256, self.key);
        let peer = self.peer.map(|peer| digest(&SHA256, peer));
        let peer: &[u8] = peer.as_ref().map_or(&[], AsRef::as_ref);
        let version = VERSION.to_le_bytes();
        for field in [domain, &version, self.role.name().as_bytes(), tag, freshness, key.as_ref(), peer] {
            // No field has more than 32 bytes.
            put(&(field.len() as u32).to_le_bytes());
            put(field);
        }
    }
}

/// REPORT_DATA of a replica that answers a question with this nonce over TLS with this key.
#[must_use]
pub fn report_data(kind: EvidenceKind, nonce: &[u8; 32], key: &[u8]) -> [u8; 64] {
    Binding { kind, role: Role::Replica, freshness: Freshness::Nonce(*nonce), key, peer: None }.report_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// From Python's hashlib: `f = lambda *p: sha512(b''.join(pack('<I', len(x)) + x for x in p))`.
    #[test]
    fn known_answers() {
        assert_eq!(hex::encode(report_data(EvidenceKind::Snp, &[1; 32], b"key")), REPLICA);
        let binding = Binding {
            kind: EvidenceKind::SimSnp,
            role: Role::HandOverNew,
            freshness: Freshness::IssuedAt(1_794_700_800),
            key: b"key",
            peer: Some(b"peer"),
        };
        assert_eq!(hex::encode(binding.report_data()), HAND_OVER);
    }

    const REPLICA: &str = "5b88f92175ef24b6555c4c72b2587d0905109fa5e31c20cfc7d01dc71dc395f8c6f36fde19a14a2d49a54fc7306b57dc2cd90fc3199601b85605eef5798d3b04";
    const HAND_OVER: &str = "86054c614329d6a5eec31e20c1c50f0d0a6a39fbc28ced53201b532539fdbd75a81dfef9d123cfe29341d5edbd13c5a24c3a671685057b0d5bc7a108e91e203a";

    #[test]
    fn every_input_counts() {
        let freshness = [Freshness::Nonce([1; 32]), Freshness::Nonce([2; 32]), Freshness::IssuedAt(1)];
        let mut seen = BTreeSet::new();
        let mut count = 0;
        for kind in [EvidenceKind::Snp, EvidenceKind::SimSnp] {
            for role in Role::ALL {
                for freshness in freshness {
                    for key in [&b"one"[..], b"two", b""] {
                        for peer in [None, Some(&b"one"[..]), Some(b"two"), Some(b"")] {
                            seen.insert(Binding { kind, role, freshness, key, peer }.report_data());
                            count += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(seen.len(), count);
    }

    fn freshness() -> impl Strategy<Value = Freshness> {
        prop_oneof![
            any::<[u8; 32]>().prop_map(Freshness::Nonce),
            any::<u64>().prop_map(Freshness::IssuedAt),
            // Values of the one that begin like the other's.
            any::<u64>().prop_map(|seconds| {
                let mut nonce = [0; 32];
                nonce[..8].copy_from_slice(&seconds.to_le_bytes());
                Freshness::Nonce(nonce)
            }),
        ]
    }

    type Owned = (EvidenceKind, Role, Freshness, Vec<u8>, Option<Vec<u8>>);

    fn binding() -> impl Strategy<Value = Owned> {
        let kind = prop_oneof![Just(EvidenceKind::Snp), Just(EvidenceKind::SimSnp)];
        let role = proptest::sample::select(Role::ALL.to_vec());
        // Few different bytes, so that equal and shifted keys are frequent.
        let key = || proptest::collection::vec(0_u8..2, 0..4);
        (kind, role, freshness(), key(), proptest::option::of(key()))
    }

    fn encoded((kind, role, freshness, key, peer): &Owned) -> Vec<u8> {
        let binding = Binding { kind: *kind, role: *role, freshness: *freshness, key, peer: peer.as_deref() };
        let mut bytes = Vec::new();
        binding.encode(|part| bytes.extend_from_slice(part));
        bytes
    }

    proptest! {
        /// What is hashed tells everything that went in, and no encoding is the beginning of another one: nothing
        /// moves from one field to the next.
        #[test]
        fn two_bindings_are_encoded_alike_only_if_they_are_equal(a in binding(), b in binding()) {
            let (first, second) = (encoded(&a), encoded(&b));
            prop_assert_eq!(a == b, first == second);
            prop_assert!(a == b || !first.starts_with(&second));
        }

        #[test]
        fn the_fields_can_be_read_back(a in binding()) {
            let bytes = encoded(&a);
            let mut rest = bytes.as_slice();
            let mut fields = Vec::new();
            while let Some((length, after)) = rest.split_first_chunk::<4>() {
                let (field, after) = after.split_at(u32::from_le_bytes(*length) as usize);
                fields.push(field);
                rest = after;
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(fields.len(), 7);
            prop_assert_eq!(fields[2], a.1.name().as_bytes());
            let key = digest(&SHA256, &a.3);
            prop_assert_eq!(fields[5], key.as_ref());
            prop_assert_eq!(fields[6].is_empty(), a.4.is_none());
        }
    }
}
