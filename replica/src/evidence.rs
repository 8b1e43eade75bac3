//! Attestation evidence. Who makes it is asked over a Unix socket, with frames of a 32-bit little-endian length and
//! that many bytes of JSON. What the answers mean is for clients to judge.
//!
//! | question | answer |
//! |---|---|
//! | `{"nonce":"<64 hex>","spki":"<base64 DER>"}` | `{"evidence":{…}}`, passed on to a client as it is |
//! | `{"spki":"<base64 DER>"}` | `{"extension":{"oid":"1.3.…","value":"<base64 DER>","issued_unix_s":…,"renew_after_s":…}}`, for the TLS certificate |
//!
//! Either may be answered by `{"error":"…"}`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::tls::{Extension, TlsError, TlsIdentity};

/// Longest answer, in bytes.
const MAX_ANSWER: u32 = 256 << 10;
/// The security processor is slow, but not slower than this.
const ANSWER_TIME: Duration = Duration::from_secs(20);
/// Questions of clients at a time.
const PLACES: usize = 4;
/// Pause after an extension could not be had, and the shortest between two.
const PAUSE: Duration = Duration::from_secs(5);

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// All places are taken.
    #[error("too many ask for evidence at a time; try again in a second")]
    Busy,
    /// The socket.
    #[error("the evidence provider did not answer: {0}; try again, or look at the guest's log")]
    Provider(#[from] io::Error),
    /// It took too long.
    #[error("the evidence provider did not answer within {} s; try again", ANSWER_TIME.as_secs())]
    Slow,
    /// Something else than an answer.
    #[error("the evidence provider did not answer in its protocol: {0}; look at the guest's log")]
    Protocol(String),
    /// It has its reasons.
    #[error("the evidence provider refused: {0}")]
    Refused(String),
    /// The certificate cannot hold it.
    #[error(transparent)]
    Certificate(#[from] TlsError),
}

/// The provider, for one TLS key.
pub struct Provider {
    socket: PathBuf,
    /// SubjectPublicKeyInfo of the TLS key, base64 of DER.
    spki: String,
    places: Semaphore,
}

/// What comes from the provider to a client's question.
pub enum Answer {
    /// Evidence.
    Evidence(Vec<u8>),
    /// A refusal in words.
    Error(Vec<u8>),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Response<'a> {
    #[serde(borrow)]
    Evidence(#[expect(dead_code, reason = "passed on as it came")] &'a RawValue),
    Extension(WireExtension),
    Error(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireExtension {
    oid: String,
    value: String,
    issued_unix_s: u64,
    renew_after_s: u64,
}

impl Provider {
    /// The provider at this socket, asked for this key.
    pub fn new(socket: PathBuf, spki: &[u8]) -> Self {
        Self { socket, spki: BASE64_STANDARD.encode(spki), places: Semaphore::new(PLACES) }
    }

    /// Evidence for a client's nonce, which must be 64 hexadecimal digits.
    pub async fn for_nonce(&self, nonce: &str) -> Result<Answer, EvidenceError> {
        let _place = self.places.try_acquire().map_err(|_| EvidenceError::Busy)?;
        let answer = self.ask(&json!({ "nonce": nonce.to_lowercase(), "spki": self.spki })).await?;
        match parse(&answer)? {
            Response::Evidence(_) => Ok(Answer::Evidence(answer)),
            Response::Error(why) => {
                tracing::warn!("the evidence provider refused: {why}");
                Ok(Answer::Error(answer))
            }
            Response::Extension(_) => Err(EvidenceError::Protocol("an extension was not asked for".into())),
        }
    }

    /// Puts evidence into the certificate; the time after which it wants to be renewed.
    pub async fn certify(&self, identity: &TlsIdentity) -> Result<Duration, EvidenceError> {
        let answer = self.ask(&json!({ "spki": self.spki })).await?;
        let malformed = |what: &str| EvidenceError::Protocol(format!("{what} of the extension is malformed"));
        match parse(&answer)? {
            Response::Extension(WireExtension { oid, value, issued_unix_s, renew_after_s }) => {
                let oid = oid.split('.').map(str::parse).collect::<Result<_, _>>();
                let oid = oid.map_err(|_| malformed("the object identifier"))?;
                let value = BASE64_STANDARD.decode(value).map_err(|_| malformed("the value"))?;
                identity.show(&Extension { oid, value, issued_unix_s })?;
                Ok(Duration::from_secs(renew_after_s))
            }
            Response::Error(why) => Err(EvidenceError::Refused(why)),
            Response::Evidence(_) => Err(EvidenceError::Protocol("no extension in it".into())),
        }
    }

    /// Keeps the evidence in the certificate fresh, for as long as it is polled. `next` is when it is due.
    pub async fn keep_certified(&self, identity: &TlsIdentity, mut next: Duration) {
        loop {
            sleep(next.max(PAUSE)).await;
            next = self.certify_or_warn(identity).await;
        }
    }

    /// [`Provider::certify`], where a failure is for the log: clients can still ask with a nonce, and the provider
    /// may answer the next time.
    pub async fn certify_or_warn(&self, identity: &TlsIdentity) -> Duration {
        self.certify(identity).await.unwrap_or_else(|error| {
            tracing::warn!("the TLS certificate has no new evidence: {error}");
            PAUSE
        })
    }

    async fn ask(&self, question: &serde_json::Value) -> Result<Vec<u8>, EvidenceError> {
        let question = question.to_string();
        match timeout(ANSWER_TIME, self.exchange(question.as_bytes())).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(EvidenceError::Slow),
        }
    }

    async fn exchange(&self, question: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        // A question is far shorter than 4 GiB.
        stream.write_all(&(question.len() as u32).to_le_bytes()).await?;
        stream.write_all(question).await?;
        let length = stream.read_u32_le().await?;
        if length > MAX_ANSWER {
            return Err(io::Error::other(format!("it announced an answer of {length} bytes")));
        }
        let mut answer = vec![0; length as usize];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

fn parse(answer: &[u8]) -> Result<Response<'_>, EvidenceError> {
    serde_json::from_slice(answer).map_err(|error| EvidenceError::Protocol(error.to_string()))
}
