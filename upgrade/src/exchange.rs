//! The messages of a hand-over and the two ends that exchange them, through a host that neither believes. No I/O: a
//! report of the Secure Processor comes from a function that the caller gives.
//!
//! | | from | what | proves |
//! |---|---|---|---|
//! | 1 | new | nonce and X25519 key | |
//! | 2 | old | nonce, X25519 key, evidence over the new guest's nonce and both keys | the old guest is one, runs now, and made this key |
//! | 3 | new | evidence over the old guest's nonce and both keys; roots, manifest, blessing, purpose | the same of the new guest |
//! | 4 | old | what is handed over, sealed with a key from both X25519 keys and the three messages before | |
//!
//! A message is text (JSON), and what is hashed is the text as it came. The sealing key is HKDF-SHA256 over the agreed
//! secret, salted with the SHA-256 of the three messages (each preceded by its length in bytes as u64, little endian); it
//! seals once, with AES-256-GCM and a nonce of zeros. Both X25519 keys are made for one hand-over and forgotten after it,
//! so a later thief of either guest's memory reads nothing of it.
//!
//! The old guest answers each first message with a new nonce and key, and the types let it answer each third message once.
//! The new guest wraps what it got for its own measurement and chip, writes and reads back its keyslot, and says so; only
//! then may the host start it as the node. The old slot is erased after the commit: a crash anywhere leaves at least one
//! blessed guest that can open the storage (`tests/explore.rs`).

use crate::hand_over::{Channel, Facts, Grant, HandOverError, accept_giver, decide};
use attestation::{Evidence, EvidenceKind, TrustAnchors, authenticate, binding::Role};
use release::{
    ApprovedManifest, ManifestError, Purpose, Root, RootContent, RootUpdateError, Roots, Seen, Signed,
    blessing,
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hkdf};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Longest message that is looked at, in bytes.
pub const MAX_MESSAGE: usize = 192 * 1024;
/// Most that can be handed over, in bytes.
pub const MAX_PAYLOAD: usize = 4096;
/// Most roots that are followed at once.
const MAX_ROOTS: usize = 64;
const LABEL: &[u8] = b"redoubt hand-over 1";

/// What a release is vouched for with. The host gives it; each part is signed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Documents {
    /// The roots that follow the one in either guest's image, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<String>,
    /// Manifest of the new guest's release.
    pub manifest: String,
    /// The blessing that names it.
    pub blessing: String,
    /// What the new guest wants the key for; what is handed over says so too, so that nobody uses it for anything else.
    #[serde(default, skip_serializing_if = "is_node")]
    pub purpose: Purpose,
}

fn is_node(purpose: &Purpose) -> bool {
    *purpose == Purpose::Node
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "type")]
enum Message {
    Hello { nonce: Hex32, key: Hex32 },
    Challenge { nonce: Hex32, key: Hex32, evidence: Box<Evidence> },
    Request { evidence: Box<Evidence>, documents: Documents },
    Secret { sealed: String },
}

/// 32 bytes as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Hex32([u8; 32]);

impl From<Hex32> for String {
    fn from(bytes: Hex32) -> String {
        hex::encode(bytes.0)
    }
}

impl TryFrom<String> for Hex32 {
    type Error = hex::FromHexError;
    fn try_from(text: String) -> Result<Hex32, hex::FromHexError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Hex32(bytes))
    }
}

/// A hand-over ends without a key.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Not the message that comes next.
    #[error("the other guest's message is refused: {0}; begin a new hand-over")]
    Message(String),
    /// The other guest may not have it, or not give it.
    #[error(transparent)]
    Refused(#[from] HandOverError),
    /// Nobody vouches for the other guest's report.
    #[error("the other guest's evidence is not authentic")]
    Evidence(#[source] attestation::Refusal),
    /// This guest can prove nothing.
    #[error(
        "this guest has no evidence for the hand-over: {0}; look at the Secure Processor and its certificates"
    )]
    NoEvidence(String),
    /// The chain of roots is broken.
    #[error(
        "root {0} of those brought along does not follow the one before; bring each root from the image's on"
    )]
    Roots(usize, #[source] Box<RootUpdateError>),
    /// A manifest is not signed.
    #[error("the manifest of the {0} guest is refused")]
    Manifest(&'static str, #[source] Box<ManifestError>),
    /// The kernel gives no random bytes, or a fixed length was wrong.
    #[error("the cryptography of the hand-over failed; begin a new one")]
    Cryptography,
}

impl ExchangeError {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Message(_) | Self::Cryptography => "hand-over-message",
            Self::Refused(error) => error.code(),
            Self::Evidence(_) | Self::NoEvidence(_) => "hand-over-evidence",
            Self::Roots(..) => "hand-over-roots",
            Self::Manifest(_, error) => error.code(),
        }
    }
}

/// Makes evidence of this guest with this REPORT_DATA.
pub type Quote<'a> = &'a dyn Fn([u8; 64]) -> Result<Evidence, String>;

/// What a guest judges the other one by: its own evidence's facts, who makes reports, and the root in its image.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// Of this guest.
    pub own: &'a Facts,
    /// Of the machine that makes the reports.
    pub anchors: &'a TrustAnchors,
    /// From which trust in releases starts.
    pub root: &'a Root,
}

impl Judge<'_> {
    fn facts(&self, evidence: &Evidence) -> Result<Facts, ExchangeError> {
        authenticate(evidence, self.anchors)
            .map(|authentic| Facts::from(&authentic))
            .map_err(ExchangeError::Evidence)
    }

    fn kind(&self) -> EvidenceKind {
        self.anchors.kind()
    }

    /// The root in the image and those that follow it. Earlier ones are for a guest with an older image.
    fn roots(&self, roots: &[String]) -> Result<Roots, ExchangeError> {
        if roots.len() > MAX_ROOTS {
            return Err(ExchangeError::Message(format!("it has more than {MAX_ROOTS} roots")));
        }
        let mut chain = Roots::from(self.root.clone());
        for (index, root) in roots.iter().enumerate() {
            let refused = |error| ExchangeError::Roots(index + 1, Box::new(error));
            let read = Signed::<RootContent>::from_bytes(root.as_bytes());
            if read.map_err(|error| refused(error.into()))?.content().version <= self.root.version() {
                continue;
            }
            chain.follow(root.as_bytes()).map_err(refused)?;
        }
        Ok(chain)
    }
}

fn approve(manifest: &str, roots: &Roots, whose: &'static str) -> Result<ApprovedManifest, ExchangeError> {
    roots.verify(manifest.as_bytes()).map_err(|error| ExchangeError::Manifest(whose, Box::new(error)))
}

/// A key and a nonce for one hand-over.
struct Ephemeral {
    private: EphemeralPrivateKey,
    public: [u8; 32],
    nonce: [u8; 32],
}

impl Ephemeral {
    fn new() -> Result<Ephemeral, ExchangeError> {
        let random = SystemRandom::new();
        let failed = |_| ExchangeError::Cryptography;
        let private = EphemeralPrivateKey::generate(&X25519, &random).map_err(failed)?;
        let public = private.compute_public_key().map_err(failed)?;
        let mut nonce = [0; 32];
        random.fill(&mut nonce).map_err(failed)?;
        let public = public.as_ref().try_into().map_err(|_| ExchangeError::Cryptography)?;
        Ok(Ephemeral { private, public, nonce })
    }

    /// The key of the fourth message.
    fn agree(self, peer: [u8; 32], transcript: &[&str; 3]) -> Result<LessSafeKey, ExchangeError> {
        let mut hash = digest::Context::new(&digest::SHA256);
        for message in transcript {
            hash.update(&(message.len() as u64).to_le_bytes());
            hash.update(message.as_bytes());
        }
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, hash.finish().as_ref());
        agree_ephemeral(self.private, &UnparsedPublicKey::new(&X25519, peer), |shared| {
            let key = salt.extract(shared);
            Ok(LessSafeKey::new(UnboundKey::from(key.expand(&[LABEL], &AES_256_GCM)?)))
        })
        .and_then(|key| key)
        .map_err(|_: ring::error::Unspecified| ExchangeError::Cryptography)
    }
}

fn write(message: &Message) -> Result<String, ExchangeError> {
    let text = serde_json::to_string(message).map_err(|error| ExchangeError::Message(error.to_string()))?;
    if text.len() > MAX_MESSAGE {
        return Err(ExchangeError::Message(format!("it has more than {MAX_MESSAGE} bytes")));
    }
    Ok(text)
}

fn read(text: &str) -> Result<Message, ExchangeError> {
    if text.len() > MAX_MESSAGE {
        return Err(ExchangeError::Message(format!("it has more than {MAX_MESSAGE} bytes")));
    }
    serde_json::from_str(text).map_err(|error| ExchangeError::Message(error.to_string()))
}

fn unexpected<T>() -> Result<T, ExchangeError> {
    Err(ExchangeError::Message("it is not the one that comes next".to_owned()))
}

/// Whether a message is a first one: the old guest begins anew with it, whatever it was waiting for.
pub fn begins(message: &str) -> bool {
    matches!(read(message), Ok(Message::Hello { .. }))
}

/// The new guest, before it has sent its first message.
pub struct Receiver {
    ephemeral: Ephemeral,
    hello: String,
}

impl Receiver {
    /// Begins; gives the first message.
    pub fn begin() -> Result<(Receiver, String), ExchangeError> {
        let ephemeral = Ephemeral::new()?;
        let hello = write(&Message::Hello { nonce: Hex32(ephemeral.nonce), key: Hex32(ephemeral.public) })?;
        Ok((Receiver { ephemeral, hello: hello.clone() }, hello))
    }

    /// Judges the second message; gives the third. `giver` is the manifest of the old guest's release: it has to be signed,
    /// and need not be blessed any more, since that may be why it is replaced.
    pub fn request(
        self,
        challenge: &str,
        judge: Judge<'_>,
        giver: &str,
        documents: Documents,
        quote: Quote<'_>,
    ) -> Result<(Waiting, String), ExchangeError> {
        let Message::Challenge { nonce, key, evidence } = read(challenge)? else { return unexpected() };
        let roots = judge.roots(&documents.roots)?;
        let release = approve(giver, &roots, "old")?;
        let channel = Channel { old: &key.0, new: &self.ephemeral.public };
        let peer = judge.facts(&evidence)?;
        accept_giver(judge.own, &peer, channel, self.ephemeral.nonce, &release)?;
        let data = channel.report_data(judge.kind(), Role::HandOverNew, nonce.0);
        let evidence = Box::new(quote(data).map_err(ExchangeError::NoEvidence)?);
        let request = write(&Message::Request { evidence, documents })?;
        let key = self.ephemeral.agree(key.0, &[&self.hello, challenge, &request])?;
        Ok((Waiting { key }, request))
    }
}

/// The new guest, waiting for the fourth message.
pub struct Waiting {
    key: LessSafeKey,
}

impl Waiting {
    /// What was handed over.
    pub fn finish(self, secret: &str) -> Result<Zeroizing<Vec<u8>>, ExchangeError> {
        let Message::Secret { sealed } = read(secret)? else { return unexpected() };
        let mut sealed =
            Zeroizing::new(hex::decode(sealed).map_err(|error| ExchangeError::Message(error.to_string()))?);
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let length = self
            .key
            .open_in_place(nonce, Aad::empty(), &mut sealed)
            .map_err(|_| ExchangeError::Message("it was not sealed for this hand-over".to_owned()))?
            .len();
        sealed.truncate(length);
        Ok(sealed)
    }
}

/// The old guest, after the first message.
pub struct Giver {
    ephemeral: Ephemeral,
    peer: [u8; 32],
    hello: String,
    challenge: String,
}

/// The old guest's consent. The key passes with `message`; before it is sent, `seen` has to be kept.
#[derive(Debug)]
pub struct Given {
    /// To whom.
    pub grant: Grant,
    /// What this node has seen now.
    pub seen: Seen,
    /// The fourth message.
    pub message: String,
}

impl Giver {
    /// Answers the first message.
    pub fn challenge(
        hello: &str,
        kind: EvidenceKind,
        quote: Quote<'_>,
    ) -> Result<(Giver, String), ExchangeError> {
        let Message::Hello { nonce, key } = read(hello)? else { return unexpected() };
        let ephemeral = Ephemeral::new()?;
        let channel = Channel { old: &ephemeral.public, new: &key.0 };
        let data = channel.report_data(kind, Role::HandOverOld, nonce.0);
        let evidence = Box::new(quote(data).map_err(ExchangeError::NoEvidence)?);
        let challenge = write(&Message::Challenge {
            nonce: Hex32(ephemeral.nonce),
            key: Hex32(ephemeral.public),
            evidence,
        })?;
        let giver = Giver { ephemeral, peer: key.0, hello: hello.to_owned(), challenge: challenge.clone() };
        Ok((giver, challenge))
    }

    /// Judges the third message and seals `payload`, made of what is seen and granted then, for the one who sent it. `seen` is
    /// what this node has seen so far, `now` what the clock says, in seconds since 1970.
    pub fn give(
        self,
        request: &str,
        judge: Judge<'_>,
        seen: Seen,
        now: u64,
        payload: &dyn Fn(&Seen, Purpose) -> Zeroizing<Vec<u8>>,
    ) -> Result<Given, ExchangeError> {
        let Message::Request { evidence, documents } = read(request)? else { return unexpected() };
        let peer = judge.facts(&evidence)?;
        let roots = judge.roots(&documents.roots)?;
        let root = roots.present();
        let seen = roots.seen(seen.anchored(u64::from(judge.own.guest_svn)));
        let release = approve(&documents.manifest, &roots, "new")?;
        let standing = blessing::accept(root, root, documents.blessing.as_bytes(), &seen, now)
            .map_err(|refusal| HandOverError::Release(Box::new(refusal)))?;
        let channel = Channel { old: &self.ephemeral.public, new: &self.peer };
        let (nonce, asked) = (self.ephemeral.nonce, documents.purpose);
        let grant = decide(judge.own, &peer, channel, nonce, &release, &standing, asked)?;
        let seen = *standing.seen();
        let key = self.ephemeral.agree(self.peer, &[&self.hello, &self.challenge, request])?;
        let mut sealed = payload(&seen, grant.purpose);
        if sealed.len() > MAX_PAYLOAD {
            return Err(ExchangeError::Cryptography);
        }
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        key.seal_in_place_append_tag(nonce, Aad::empty(), &mut *sealed)
            .map_err(|_| ExchangeError::Cryptography)?;
        let message = write(&Message::Secret { sealed: hex::encode(&*sealed) })?;
        Ok(Given { grant, seen, message })
    }
}
