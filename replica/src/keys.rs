//! The node's keys, all derived from its one 32-byte secret, and their public forms.

use blst::BLST_ERROR;
use blst::min_sig::{PublicKey, SecretKey, Signature};
use candid::Principal;
use ring::hkdf;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

/// Ciphersuite of certificate signatures: BLS12-381 with signatures in G1 (48 bytes) and keys in G2 (96 bytes).
const BLS_SUITE: &[u8] = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_";
/// DER of a SubjectPublicKeyInfo up to the 96 bytes of a BLS key.
const BLS_DER_PREFIX: [u8; 37] = [
    0x30, 0x81, 0x82, 0x30, 0x1d, 0x06, 0x0d, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0xdc, 0x7c, 0x05, 0x03,
    0x01, 0x02, 0x01, 0x06, 0x0c, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0xdc, 0x7c, 0x05, 0x03, 0x02, 0x01,
    0x03, 0x61, 0x00,
];
/// DER of a SubjectPublicKeyInfo up to the 32 bytes of an Ed25519 key (RFC 8410).
pub(crate) const ED25519_DER_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key could not be derived.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// HKDF or a key generator refused.
    #[error("the {0} key cannot be derived from the node's secret; the cryptographic library is broken")]
    Derivation(&'static str),
    /// The secret is not a secret.
    #[error("the node's secret is 32 zero bytes; give 32 bytes from a secure generator")]
    ZeroSecret,
}

/// The node's secret: 32 bytes, wiped when dropped.
#[derive(ZeroizeOnDrop)]
pub struct NodeSecret([u8; 32]);

impl NodeSecret {
    /// Takes the secret and wipes the caller's copy.
    pub fn take(bytes: &mut [u8; 32]) -> Result<Self, KeyError> {
        if *bytes == [0; 32] {
            return Err(KeyError::ZeroSecret);
        }
        let secret = Self(*bytes);
        bytes.zeroize();
        Ok(secret)
    }

    /// 32 bytes for one purpose: HKDF-SHA256 with a fixed salt, the purpose as info.
    fn derive(&self, purpose: &'static str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        self.derive_one_of(purpose, "")
    }

    /// The same with something behind the purpose.
    fn derive_one_of(&self, purpose: &'static str, which: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        let mut key = Zeroizing::new([0; 32]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"redoubt-replica-keys-1")
            .extract(&self.0)
            .expand(&[purpose.as_bytes(), which.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|output| output.fill(&mut *key))
            .map_err(|_| KeyError::Derivation(purpose))?;
        Ok(key)
    }

    /// Keys that seal the persistent heap, one after the other, by number: 0 has the purpose `heap`, others `heap 1`
    /// and so on.
    pub fn heap_key(&self, number: u64) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        let which = if number == 0 { String::new() } else { format!(" {number}") };
        self.derive_one_of("heap", &which)
    }

    /// Key that signs certificates.
    pub fn subnet_key(&self) -> Result<SubnetKey, KeyError> {
        let seed = self.derive("subnet BLS12-381")?;
        let secret = SecretKey::key_gen(&*seed, &[]).map_err(|_| KeyError::Derivation("subnet BLS12-381"))?;
        Ok(SubnetKey { public: secret.sk_to_pk().compress(), secret })
    }

    /// Key that signs query responses.
    pub fn node_key(&self) -> Result<NodeKey, KeyError> {
        let seed = self.derive("node Ed25519")?;
        Ed25519KeyPair::from_seed_unchecked(&*seed)
            .map(NodeKey)
            .map_err(|_| KeyError::Derivation("node Ed25519"))
    }
}

/// The subnet's BLS key. While the subnet is one node this node holds it whole, and it is its own root of trust.
pub struct SubnetKey {
    secret: SecretKey,
    public: [u8; 96],
}

impl SubnetKey {
    /// Signs a message that carries its domain separator.
    pub fn sign(&self, message: &[u8]) -> [u8; 48] {
        self.secret.sign(message, BLS_SUITE, &[]).compress()
    }

    /// Public key, DER, 133 bytes.
    pub fn public_key_der(&self) -> Vec<u8> {
        [&BLS_DER_PREFIX[..], &self.public].concat()
    }

    /// Subnet id: the self-authenticating principal of the public key.
    pub fn subnet_id(&self) -> Principal {
        Principal::self_authenticating(self.public_key_der())
    }
}

/// Whether `signature` (48 bytes) on `message` is valid under a public key in DER (133 bytes).
pub fn verify_bls(public_key_der: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let key = public_key_der.strip_prefix(&BLS_DER_PREFIX).and_then(|key| PublicKey::key_validate(key).ok());
    let (Some(key), Ok(signature)) = (key, Signature::sig_validate(signature, true)) else { return false };
    signature.verify(true, message, BLS_SUITE, &[], &key, false) == BLST_ERROR::BLST_SUCCESS
}

/// This node's Ed25519 key.
pub struct NodeKey(Ed25519KeyPair);

impl NodeKey {
    /// Signs a message that carries its domain separator.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }

    /// Public key, DER, 44 bytes.
    pub fn public_key_der(&self) -> Vec<u8> {
        [&ED25519_DER_PREFIX[..], self.0.public_key().as_ref()].concat()
    }

    /// Node id: the self-authenticating principal of the public key.
    pub fn node_id(&self) -> Principal {
        Principal::self_authenticating(self.public_key_der())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_stable_and_distinct() {
        let secret = |byte| NodeSecret::take(&mut [byte; 32]).unwrap();
        let (one, two) = (secret(1), secret(2));
        // `redoubt heap` derives the same key, and has the same value in its test.
        let name = |number| heap::Key::new(*one.heap_key(number).unwrap()).id().to_string();
        assert_eq!(name(0), "782ceac38f8347fe67d3c2987bdf209e");
        assert_eq!(name(1), "16b2ee60eaa00fd7d0ccaa7760d73877");
        assert_eq!(*one.heap_key(1).unwrap(), *secret(1).heap_key(1).unwrap());
        assert_ne!(*one.heap_key(0).unwrap(), *two.heap_key(0).unwrap());
        assert_ne!(one.subnet_key().unwrap().subnet_id(), two.subnet_key().unwrap().subnet_id());
        assert_ne!(one.node_key().unwrap().node_id(), two.node_key().unwrap().node_id());
    }

    #[test]
    fn an_independent_implementation_accepts_our_bls_signatures() {
        let key = NodeSecret::take(&mut [7; 32]).unwrap().subnet_key().unwrap();
        let der = key.public_key_der();
        assert_eq!(der.len(), 133);
        let signature = key.sign(b"message");
        ic_verify_bls_signature::verify_bls_signature(&signature, b"message", &der[37..]).unwrap();
        assert!(ic_verify_bls_signature::verify_bls_signature(&signature, b"massage", &der[37..]).is_err());
        assert!(verify_bls(&der, b"message", &signature));
        assert!(!verify_bls(&der, b"massage", &signature));
    }

    #[test]
    fn the_secret_is_taken_and_zero_is_refused() {
        let mut bytes = [9; 32];
        NodeSecret::take(&mut bytes).unwrap();
        assert_eq!(bytes, [0; 32]);
        assert!(matches!(NodeSecret::take(&mut bytes), Err(KeyError::ZeroSecret)));
    }
}
