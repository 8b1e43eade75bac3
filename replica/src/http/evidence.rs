//! Attestation evidence. Who makes it is asked over a Unix socket, with frames of a 32-bit little-endian length
//! and that many bytes of JSON: `{"nonce":"<64 hex>","spki":"<base64 DER>"}`, answered by
//! `{"evidence":{…}}` or `{"error":"…"}`. The answer goes to the client as it is: it is for the client to judge.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::App;
use super::error::Refusal;

/// Longest answer, in bytes.
const MAX_ANSWER: u32 = 256 << 10;
/// The security processor is slow, but not slower than this.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// `GET /evidence?nonce=<64 hex>`
pub(super) async fn evidence(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let nonce = query.as_deref().and_then(|query| query.strip_prefix("nonce=")).ok_or(Refusal::Nonce)?;
    if nonce.len() != 64 || !nonce.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(Refusal::Nonce);
    }
    let (Some(socket), Some(spki)) = (&app.evidence_socket, &app.tls_spki) else {
        return Err(Refusal::NoEvidence);
    };
    let _place = app.evidence_places.try_acquire().map_err(|_| Refusal::EvidenceBusy)?;
    let question = serde_json::json!({ "nonce": nonce.to_lowercase(), "spki": BASE64_STANDARD.encode(spki) });
    let answer = timeout(ANSWER_TIME, ask(socket, question.to_string().as_bytes()))
        .await
        .map_err(|_| Refusal::EvidenceProvider("it took too long".into()))?
        .map_err(|error| Refusal::EvidenceProvider(error.to_string()))?;

    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    enum Answer<'a> {
        #[serde(borrow)]
        Evidence(#[expect(dead_code, reason = "passed on as it came")] &'a RawValue),
        Error(String),
    }
    let status = match serde_json::from_slice(&answer) {
        Ok(Answer::Evidence(_)) => StatusCode::OK,
        Ok(Answer::Error(why)) => {
            tracing::warn!("the evidence provider refused: {why}");
            StatusCode::BAD_GATEWAY
        }
        Err(error) => {
            return Err(Refusal::EvidenceProvider(format!("its answer is not of the protocol: {error}")));
        }
    };
    Ok((status, [(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

async fn ask(socket: &Path, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    // A question is far shorter than 4 GiB.
    stream.write_all(&(question.len() as u32).to_le_bytes()).await?;
    stream.write_all(question).await?;
    let length = stream.read_u32_le().await?;
    if length > MAX_ANSWER {
        return Err(std::io::Error::other(format!("it announced an answer of {length} bytes")));
    }
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
