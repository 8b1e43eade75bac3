//! Credential activation (TPM 2.0 Library, Part 1, 24): a secret that only the TPM with a certain endorsement key can
//! open, and only if it also holds the named attestation key.

use crate::{
    key::{AttestationKey, EndorsementKey},
    reader::sized,
};
use aes::cipher::{BlockEncrypt, KeyInit};
use ring::hmac;
use rsa::{
    BigUint, Oaep, RsaPublicKey,
    rand_core::{CryptoRng, Error, RngCore},
};
use sha2::Sha256;

/// What the host's TPM is given: TPM2_ActivateCredential's two parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// TPMS_ID_OBJECT, the content of a TPM2B_ID_OBJECT: integrity and encrypted secret.
    pub credential: Vec<u8>,
    /// The content of a TPM2B_ENCRYPTED_SECRET: the seed, encrypted to the endorsement key.
    pub seed: Vec<u8>,
}

/// The endorsement key cannot be encrypted to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nothing can be encrypted to the host's endorsement key ({0}); do not believe this host")]
pub struct ChallengeError(String);

/// TPM2_MakeCredential outside of a TPM: `secret` for the TPM with this endorsement key, if it has this attestation key.
/// `random` are fresh: a seed, and the randomness of its encryption.
pub fn make(
    endorsement: &EndorsementKey,
    attestation: &AttestationKey,
    secret: &[u8; 32],
    random: [&[u8; 32]; 2],
) -> Result<Challenge, ChallengeError> {
    let wrong = |error: rsa::Error| ChallengeError(error.to_string());
    let modulus = BigUint::from_bytes_be(endorsement.modulus());
    let key = RsaPublicKey::new(modulus, BigUint::from(endorsement.exponent())).map_err(wrong)?;
    let [seed, rest] = random;
    // The label ends with a zero byte (Part 1, B.4).
    let padding = Oaep::new_with_label::<Sha256, _>("IDENTITY\0");
    let mut rest = Given { bytes: rest, short: false };
    let encrypted = key.encrypt(&mut rest, padding, seed).map_err(wrong)?;
    if rest.short {
        return Err(ChallengeError("its padding takes more than 32 random bytes".to_owned()));
    }

    let name = attestation.key().name();
    let storage = kdfa(seed, b"STORAGE", &name, 128);
    let mut identity = sized(secret);
    cfb(&storage, &mut identity)?;
    let integrity = hmac::Key::new(hmac::HMAC_SHA256, &kdfa(seed, b"INTEGRITY", &[], 256));
    let mut tag = hmac::Context::with_key(&integrity);
    tag.update(&identity);
    tag.update(&name);
    let mut credential = sized(tag.sign().as_ref());
    credential.extend(identity);
    Ok(Challenge { credential, seed: encrypted })
}

/// Random bytes that the caller brought.
struct Given<'a> {
    bytes: &'a [u8],
    /// More were asked for.
    short: bool,
}

impl RngCore for Given<'_> {
    fn next_u32(&mut self) -> u32 {
        rsa::rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rsa::rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        match self.bytes.split_at_checked(out.len()) {
            Some((given, rest)) => {
                out.copy_from_slice(given);
                self.bytes = rest;
            }
            None => self.short = true,
        }
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(out);
        Ok(())
    }
}

impl CryptoRng for Given<'_> {}

/// KDFa by HMAC-SHA-256 (Part 1, 11.4.10.2), for at most one block.
fn kdfa(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Vec<u8> {
    let mut input = 1_u32.to_be_bytes().to_vec();
    input.extend(label);
    input.push(0);
    input.extend(context);
    input.extend(bits.to_be_bytes());
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &input);
    tag.as_ref().iter().copied().take(bits as usize / 8).collect()
}

/// AES-128 in CFB mode, from an initialisation vector of zeros: the key is used once.
fn cfb(key: &[u8], data: &mut [u8]) -> Result<(), ChallengeError> {
    let cipher = aes::Aes128::new_from_slice(key).map_err(|error| ChallengeError(error.to_string()))?;
    let mut block = aes::Block::default();
    for chunk in data.chunks_mut(16) {
        cipher.encrypt_block(&mut block);
        for (byte, mask) in chunk.iter_mut().zip(block.iter_mut()) {
            *byte ^= *mask;
            *mask = *byte;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cfb_is_as_nist_says() {
        // NIST SP 800-38A, F.3.13, with the vector's first block run in front of it: E(0) xor x = IV.
        let key =
            [0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6, 0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c];
        let mut first = [0; 16];
        cfb(&key, &mut first).unwrap();
        let vector: [u8; 16] = std::array::from_fn(|at| at as u8);
        let mut data: Vec<u8> = first.iter().zip(vector).map(|(mask, byte)| mask ^ byte).collect();
        data.extend(hex::decode("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51").unwrap());
        cfb(&key, &mut data).unwrap();
        assert_eq!(
            hex::encode(&data[16..]),
            "3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3a93fcde3cdad9f1ce58b"
        );
    }
}
