//! The way to the TPM, for anybody who can reach the operators' port: whoever wants to verify a host needs no key of it.
//!
//! | path | takes | gives |
//! |---|---|---|
//! | `GET /v1/attestation/keys` | | [`measured_boot::evidence::Keys`] |
//! | `POST /v1/attestation/evidence` | [`Request`] | [`measured_boot::evidence::Evidence`] |

use super::{
    Tpm, TpmError,
    attest::{self, AttestError},
};
use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use measured_boot::evidence::Request;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::timeout};

/// Longest request, in bytes.
const MAX_REQUEST: usize = 8 << 10;
/// A TPM does one thing at a time, some of them slowly; who waits longer is told to come back.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where evidence comes from.
#[derive(Clone)]
pub struct Machine {
    tpm: Arc<dyn Fn() -> Result<Box<dyn Tpm>, TpmError> + Send + Sync>,
    log: Arc<dyn Fn() -> Result<Vec<u8>, AttestError> + Send + Sync>,
    turn: Arc<Semaphore>,
}

impl Machine {
    /// This one's.
    pub fn own() -> Self {
        Self::of(super::open, attest::event_log)
    }

    /// Another TPM and log.
    pub fn of(
        tpm: impl Fn() -> Result<Box<dyn Tpm>, TpmError> + Send + Sync + 'static,
        log: impl Fn() -> Result<Vec<u8>, AttestError> + Send + Sync + 'static,
    ) -> Self {
        Self { tpm: Arc::new(tpm), log: Arc::new(log), turn: Arc::new(Semaphore::new(1)) }
    }

    /// Asks the TPM, which blocks, in its turn.
    async fn ask<T: serde::Serialize + Send + 'static>(
        self,
        ask: impl FnOnce(&mut dyn Tpm, &Self) -> Result<T, AttestError> + Send + 'static,
    ) -> Response {
        let Ok(Ok(turn)) = timeout(PATIENCE, self.turn.clone().acquire_owned()).await else {
            return error(StatusCode::SERVICE_UNAVAILABLE, "tpm-busy", "others are being served; try again");
        };
        let answer = tokio::task::spawn_blocking(move || {
            let answer = (self.tpm)().map_err(AttestError::from).and_then(|mut tpm| ask(tpm.as_mut(), &self));
            drop(turn);
            answer
        });
        match answer.await {
            Ok(Ok(answer)) => Json(answer).into_response(),
            Ok(Err(refusal)) => {
                tracing::warn!(code = refusal.code(), "a request for evidence fails: {refusal}");
                let status = match refusal {
                    AttestError::Version(_) => StatusCode::BAD_REQUEST,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                };
                error(status, refusal.code(), &refusal.to_string())
            }
            Err(_) => {
                error(StatusCode::INTERNAL_SERVER_ERROR, "tpm-failed", "the request broke off; try again")
            }
        }
    }
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({ "error": { "code": code, "message": message } }))).into_response()
}

/// The routes, on a port with this TLS key.
pub fn routes(tls_key_sha256: [u8; 32], machine: Machine) -> Router {
    let keys = machine.clone();
    Router::new()
        .route("/v1/attestation/keys", get(|| keys.ask(|tpm, _| Ok(attest::keys(tpm)?))))
        .route(
            "/v1/attestation/evidence",
            post(move |Json(request): Json<Request>| {
                machine.ask(move |tpm, own| attest::evidence(tpm, &request, &tls_key_sha256, || (own.log)()))
            }),
        )
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
}
