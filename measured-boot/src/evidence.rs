//! What a host hands out to be attested, and the verdict on it.
//!
//! 1. The verifier gets [`Keys`]: the TPM's endorsement key with its maker's certificate, and the attestation key.
//! 2. It sends a [`Request`]: a fresh nonce, and a secret for the TPM with that endorsement key ([`crate::credential`]).
//! 3. It gets [`Evidence`]: that secret, a quote, the PCRs and the log that leads to them.
//!
//! The quote's qualifying data is the hash of the nonce and the TLS key of the connection, so that a host cannot pass on
//! what another one says.

use crate::{
    Hash, QUOTED,
    credential::{self, Challenge, ChallengeError},
    expected::{self, Difference, Expected},
    key::{AttestationKey, EndorsementKey, KeyError},
    log::{EventLog, LogError},
    quote::{self, Clock, QuoteError},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longest document of this module in JSON, in bytes.
pub const MAX_DOCUMENT: usize = 4 << 20;

/// Bytes that are base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// 32 bytes that are hexadecimal in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hex(#[serde(with = "hex::serde")] pub [u8; 32]);

/// The host's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Version of this structure: 1.
    pub version: u32,
    /// TPMT_PUBLIC of the endorsement key.
    pub endorsement_key: Bytes,
    /// Its certificate by the TPM's maker (X.509, DER), if the TPM has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endorsement_certificate: Option<Bytes>,
    /// TPMT_PUBLIC of the attestation key.
    pub attestation_key: Bytes,
}

/// What a verifier asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Version of this structure: 1.
    pub version: u32,
    /// Fresh random bytes.
    pub nonce: Hex,
    /// [`Challenge::credential`].
    pub credential: Bytes,
    /// [`Challenge::seed`].
    pub seed: Bytes,
}

/// What the host answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Version of this structure: 1.
    pub version: u32,
    /// The secret of the challenge.
    pub activated: Hex,
    /// TPMS_ATTEST.
    pub quote: Bytes,
    /// TPMT_SIGNATURE.
    pub signature: Bytes,
    /// Values of the PCRs [`QUOTED`], SHA-256 bank.
    pub pcrs: BTreeMap<u8, Hex>,
    /// The log, as Linux gives it.
    pub event_log: Bytes,
}

/// A whole exchange, to be judged again later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this structure: 1.
    pub version: u32,
    /// When, in seconds since 1970, by the verifier's clock.
    pub fetched_unix_s: u64,
    /// SHA-256 of the SubjectPublicKeyInfo of the TLS key that the host showed.
    pub tls_key_sha256: Hex,
    /// The host's keys.
    pub keys: Keys,
    /// What was asked.
    pub request: Request,
    /// The secret in the challenge.
    pub secret: Hex,
    /// What was answered.
    pub evidence: Evidence,
}

/// What a quote for this nonce over a connection with this TLS key has as qualifying data.
pub fn qualifying(nonce: &[u8; 32], tls_key_sha256: &[u8; 32]) -> Hash {
    let domain = b"redoubt host attestation 1\0";
    Sha256::new().chain_update(domain).chain_update(nonce).chain_update(tls_key_sha256).finalize().into()
}

/// Which TPMs are believed.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// [`crate::key::Key::fingerprint`] of endorsement keys, learned when the machines were set up.
    pub endorsement_keys: Vec<Hash>,
    /// Certificates of TPM makers: roots and intermediates, X.509 in DER.
    pub makers: Vec<Vec<u8>>,
    /// Any key at all. This proves nothing of the hardware: a program can play a TPM.
    pub any: bool,
}

/// Why a TPM is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Believed {
    /// Its endorsement key was given.
    Pinned,
    /// A certificate by this maker.
    Certified(String),
    /// Because any is.
    Any,
}

/// Evidence is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Another version of these structures.
    #[error("the evidence has version {0}, only 1 is known; use a build that knows it")]
    Version(u32),
    /// The keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Nobody vouches for the TPM.
    #[error(
        "the TPM with the endorsement key {fingerprint} is not believed: {reason}; give its fingerprint if you know the machine, or the certificates of its TPM's maker"
    )]
    Tpm {
        /// The key's fingerprint, hexadecimal.
        fingerprint: String,
        /// Why.
        reason: &'static str,
    },
    /// The challenge.
    #[error(transparent)]
    Challenge(#[from] ChallengeError),
    /// The attestation key is another TPM's, or none's.
    #[error(
        "the TPM did not open the secret that was made for its endorsement and attestation keys: they are not in one TPM; do not believe this host"
    )]
    Activation,
    /// The quote.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Refusal {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Version(_) => "evidence-version",
            Self::Key(KeyError::Signature) => "quote-signature-wrong",
            Self::Key(_) | Self::Challenge(_) => "tpm-key-unsuitable",
            Self::Tpm { .. } => "tpm-unknown",
            Self::Activation => "tpm-keys-apart",
            Self::Quote(error) => error.code(),
            Self::Log(LogError::Bank(_)) => "log-wrong-bank",
            Self::Log(_) => "log-malformed",
        }
    }
}

/// The host's keys, read and believed.
#[derive(Debug, Clone)]
pub struct Known {
    /// The endorsement key.
    pub endorsement: EndorsementKey,
    /// The attestation key; not yet known to be in the same TPM.
    pub attestation: AttestationKey,
    /// Why the TPM is believed.
    pub believed: Believed,
}

impl Known {
    /// Reads the keys and decides whether the TPM is believed, at this time (seconds since 1970).
    pub fn judge(keys: &Keys, trust: &Trust, now_unix_s: u64) -> Result<Self, Refusal> {
        if keys.version != 1 {
            return Err(Refusal::Version(keys.version));
        }
        let endorsement = EndorsementKey::parse(&keys.endorsement_key.0)?;
        let attestation = AttestationKey::parse(&keys.attestation_key.0)?;
        let certificate = keys.endorsement_certificate.as_ref().map(|bytes| bytes.0.as_slice());
        let fingerprint = endorsement.key().fingerprint();
        let believed = if trust.endorsement_keys.contains(&fingerprint) {
            Ok(Believed::Pinned)
        } else {
            certified(&endorsement, certificate, &trust.makers, now_unix_s).map(Believed::Certified)
        };
        let believed = match believed {
            Ok(believed) => believed,
            Err(_) if trust.any => Believed::Any,
            Err(reason) => return Err(Refusal::Tpm { fingerprint: hex::encode(fingerprint), reason }),
        };
        Ok(Self { endorsement, attestation, believed })
    }

    /// A request, and the secret in its challenge, out of fresh random bytes.
    pub fn request(&self, random: &[[u8; 32]; 4]) -> Result<(Request, Hex), Refusal> {
        let [nonce, secret, seed, padding] = random;
        let Challenge { credential, seed } =
            credential::make(&self.endorsement, &self.attestation, secret, [seed, padding])?;
        let request =
            Request { version: 1, nonce: Hex(*nonce), credential: Bytes(credential), seed: Bytes(seed) };
        Ok((request, Hex(*secret)))
    }
}

/// Who certifies that this key is in one of its TPMs.
fn certified(
    endorsement: &EndorsementKey,
    certificate: Option<&[u8]>,
    makers: &[Vec<u8>],
    now_unix_s: u64,
) -> Result<String, &'static str> {
    use x509_parser::public_key::PublicKey;
    /// Certificates between a TPM and the maker's root.
    const DEPTH: usize = 4;

    let certificate = certificate.ok_or("it has no certificate, and its key was not given")?;
    let (rest, leaf) = X509Certificate::from_der(certificate).map_err(|_| "its certificate is none")?;
    // In NVRAM of a TPM a certificate may be followed by fill bytes.
    if rest.iter().any(|byte| ![0, 0xff].contains(byte)) {
        return Err("something follows its certificate");
    }
    match leaf.public_key().parsed() {
        Ok(PublicKey::RSA(key))
            if key.modulus.strip_prefix(&[0]).unwrap_or(key.modulus) == endorsement.modulus()
                && key.try_exponent().ok() == Some(endorsement.exponent().into()) => {}
        _ => return Err("its certificate is for another key"),
    }
    let makers: Vec<X509Certificate<'_>> =
        makers.iter().filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect();
    let now = i64::try_from(now_unix_s).unwrap_or(i64::MAX);
    let valid = |certificate: &X509Certificate<'_>| {
        let validity = certificate.validity();
        validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp()
    };
    let mut subject = &leaf;
    for _ in 0..DEPTH {
        if !valid(subject) {
            return Err("its certificate, or its maker's, is not valid now");
        }
        let issuer = makers.iter().find(|maker| {
            maker.subject() == subject.issuer()
                && maker.is_ca()
                && subject.verify_signature(Some(maker.public_key())).is_ok()
        });
        let issuer = issuer.ok_or("none of the given makers signed its certificate")?;
        if issuer.subject() == issuer.issuer() {
            return if valid(issuer) {
                Ok(issuer.subject().to_string())
            } else {
                Err("its certificate, or its maker's, is not valid now")
            };
        }
        subject = issuer;
    }
    Err("its certificate has too many above it")
}

/// What was proved, and how it differs from what was expected.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Why the TPM is believed.
    pub believed: Believed,
    /// The endorsement key's fingerprint: which TPM it is.
    pub endorsement_key: Hash,
    /// The attestation key's fingerprint.
    pub attestation_key: Hash,
    /// The PCRs that the TPM vouches for.
    pub pcrs: BTreeMap<u8, Hash>,
    /// Its clock.
    pub clock: Clock,
    /// The log; only as true as there are no differences.
    pub log: EventLog,
    /// All differences; the host was started from the release only if there are none.
    pub differences: Vec<Difference>,
}

impl Record {
    /// Judges the exchange, at the time when it was.
    pub fn judge(&self, trust: &Trust, expected: &Expected) -> Result<Verdict, Refusal> {
        for version in [self.version, self.request.version, self.evidence.version] {
            if version != 1 {
                return Err(Refusal::Version(version));
            }
        }
        let known = Known::judge(&self.keys, trust, self.fetched_unix_s)?;
        let evidence = &self.evidence;
        // Not secret any more; a comparison in constant time would gain nothing.
        if evidence.activated != self.secret {
            return Err(Refusal::Activation);
        }
        let qualifying = qualifying(&self.request.nonce.0, &self.tls_key_sha256.0);
        let values = evidence.pcrs.iter().map(|(pcr, value)| (*pcr, value.0)).collect();
        let (quote, signature) = (&evidence.quote.0, &evidence.signature.0);
        let quoted = quote::verify(quote, signature, &known.attestation, &qualifying, &QUOTED, &values)?;
        let log = EventLog::parse(&evidence.event_log.0)?;
        let differences = expected::compare(&log, &quoted.pcrs, expected);
        Ok(Verdict {
            believed: known.believed,
            endorsement_key: known.endorsement.key().fingerprint(),
            attestation_key: known.attestation.key().fingerprint(),
            pcrs: quoted.pcrs,
            clock: quoted.clock,
            log,
            differences,
        })
    }
}
