//! What a client is told when its request is not answered.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use candid::Principal;

use crate::authentication::AuthenticationError;
use crate::envelope::EnvelopeError;
use crate::evidence::EvidenceError;
use crate::executor::Unavailable;
use crate::read_state::Denied;

/// Why a request is refused; each has its HTTP status.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the content type must be application/cbor")]
    ContentType,
    #[error("the request body did not arrive whole, or is longer than allowed")]
    Body,
    #[error("the request body did not arrive in time; try again, with less at a time")]
    Slow,
    #[error("the id in the URL is no principal: {0}")]
    UrlId(String),
    #[error("subnet {0} is not here; this replica is in subnet {1}")]
    OtherSubnet(Principal, Principal),
    #[error(
        "the URL names canister {url}, but the effective canister id of this request is {effective}; send it there"
    )]
    EffectiveCanister { url: Principal, effective: Principal },
    #[error("the method {method:?} of {canister} is not for the subnet's URL; send it to the canister's own")]
    NotForSubnet { canister: Principal, method: String },
    #[error(transparent)]
    Authentication(AuthenticationError),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("nonce must be 64 hexadecimal digits: /evidence?nonce=…")]
    Nonce,
    #[error("this replica offers no attestation evidence: it has no provider, or no TLS key to bind it to")]
    NoEvidence,
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Authentication(AuthenticationError::Envelope(EnvelopeError::TooLong(_))) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::Denied(_) => StatusCode::FORBIDDEN,
            Self::OtherSubnet(..) | Self::NoEvidence => StatusCode::NOT_FOUND,
            Self::Unavailable(_) | Self::Evidence(EvidenceError::Busy) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Evidence(_) => StatusCode::BAD_GATEWAY,
            Self::Body
            | Self::UrlId(_)
            | Self::EffectiveCanister { .. }
            | Self::NotForSubnet { .. }
            | Self::Authentication(_)
            | Self::Nonce => StatusCode::BAD_REQUEST,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status(), format!("{self}\n")).into_response();
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, 1.into());
        }
        response
    }
}
