//! Signing ID blocks. Behind the feature `id-block-signing`: programs that verify have no use for private keys.
//!
//! A key is a P-384 key in PKCS #8, as
//! `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384` makes it.

use super::{IdAuth, IdBlock, IdBlockError, PublicKey, Signature};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use x509_parser::pem::Pem;

/// Why nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// Not a key that can sign ID blocks.
    #[error(
        "this is no P-384 private key in PKCS #8 ({0}); make one with \
         `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384`"
    )]
    Key(String),
    /// The key's public half.
    #[error(transparent)]
    PublicKey(#[from] IdBlockError),
    /// The random number generator or the arithmetic failed.
    #[error("signing failed; try again")]
    Failed,
}

/// A private P-384 key.
#[derive(Debug)]
pub struct SigningKey {
    pair: EcdsaKeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// From PKCS #8 in PEM (label `PRIVATE KEY`).
    pub fn from_pem(text: &str) -> Result<Self, SignError> {
        let pem = Pem::iter_from_buffer(text.as_bytes())
            .flatten()
            .find(|pem| pem.label == "PRIVATE KEY")
            .ok_or_else(|| SignError::Key("there is no PEM block PRIVATE KEY".to_owned()))?;
        Self::from_pkcs8(&pem.contents)
    }

    /// From PKCS #8 in DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, SignError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, der, &SystemRandom::new())
            .map_err(|error| SignError::Key(error.to_string()))?;
        let public = PublicKey::from_point("key", pair.public_key().as_ref())?;
        Ok(Self { pair, public })
    }

    /// Its public half.
    #[must_use]
    pub const fn public_key(&self) -> PublicKey {
        self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Signature, SignError> {
        let signature = self.pair.sign(&SystemRandom::new(), message).map_err(|_| SignError::Failed)?;
        signature.as_ref().try_into().map(Signature).map_err(|_| SignError::Failed)
    }

    /// Signs an ID block, as ID key.
    pub fn sign_block(&self, block: &IdBlock) -> Result<Signature, SignError> {
        self.sign(&block.to_bytes())
    }

    /// Certifies an ID key, as author key.
    pub fn certify(&self, id_key: &PublicKey) -> Result<Signature, SignError> {
        self.sign(&id_key.encode())
    }
}

/// Signs an ID block and, with an author key, certifies the ID key.
pub fn sign(
    block: &IdBlock,
    id_key: &SigningKey,
    author_key: Option<&SigningKey>,
) -> Result<IdAuth, SignError> {
    let author = author_key
        .map(|author| Ok::<_, SignError>((author.public_key(), author.certify(&id_key.public_key())?)))
        .transpose()?;
    Ok(IdAuth { id_key: id_key.public_key(), block_signature: id_key.sign_block(block)?, author })
}
