//! Attestation evidence for a client's nonce.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::App;
use super::error::Refusal;
use crate::evidence::Answer;

/// `GET /evidence?nonce=<64 hex>`
pub(super) async fn evidence(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let nonce = query.as_deref().and_then(|query| query.strip_prefix("nonce=")).ok_or(Refusal::Nonce)?;
    if nonce.len() != 64 || !nonce.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(Refusal::Nonce);
    }
    let provider = app.evidence.as_ref().ok_or(Refusal::NoEvidence)?;
    let (status, answer) = match provider.for_nonce(nonce).await? {
        Answer::Evidence(answer) => (StatusCode::OK, answer),
        Answer::Error(answer) => (StatusCode::BAD_GATEWAY, answer),
    };
    Ok((status, [(header::CONTENT_TYPE, "application/json")], answer).into_response())
}
