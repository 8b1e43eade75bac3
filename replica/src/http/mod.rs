//! The HTTP interface (Interface Specification, "HTTPS Interface").

mod error;
mod evidence;
mod invoke;
mod state;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use candid::Principal;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::certified_state::CertifiedState;
use crate::clock::Clock;
use crate::encoding::cbor;
use crate::envelope::{EnvelopeError, MAX_BODY};
use crate::evidence::Provider;
use crate::executor::Executor;
use crate::keys::NodeKey;
use crate::metrics::Metrics;
use error::Refusal;

/// A request body must arrive within this time, waiting for a place to put it included.
const BODY_TIME: Duration = Duration::from_secs(30);

/// What requests are answered from.
pub struct App {
    /// Takes calls and queries.
    pub executor: Executor,
    /// The committed state.
    pub certified: Arc<CertifiedState>,
    /// Signs query responses.
    pub node_key: NodeKey,
    /// Id of this node.
    pub node_id: Principal,
    /// Id of the subnet.
    pub subnet_id: Principal,
    /// Public key of the root of trust, DER.
    pub root_key_der: Vec<u8>,
    /// The time.
    pub clock: Clock,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Provider of evidence for the TLS key, if there is one and a key.
    pub evidence: Option<Arc<Provider>>,
    /// Places for request bodies in memory.
    pub bodies: Semaphore,
    /// How long a synchronous call waits for its answer.
    pub call_wait: Duration,
}

/// All endpoints.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(state::about))
        .route("/api/v2/status", get(state::status))
        .route("/_/metrics", get(state::metrics))
        .route("/evidence", get(evidence::evidence))
        .route("/api/v2/canister/{id}/call", post(invoke::call_async))
        .route("/api/v3/canister/{id}/call", post(invoke::call))
        .route("/api/v4/canister/{id}/call", post(invoke::call))
        .route("/api/v4/subnet/{id}/call", post(invoke::call_subnet))
        .route("/api/v2/canister/{id}/query", post(invoke::query))
        .route("/api/v3/canister/{id}/query", post(invoke::query))
        .route("/api/v3/subnet/{id}/query", post(invoke::query_subnet))
        .route("/api/v2/canister/{id}/read_state", post(state::read_canister))
        .route("/api/v3/canister/{id}/read_state", post(state::read_canister))
        .route("/api/v2/subnet/{id}/read_state", post(state::read_subnet))
        .route("/api/v3/subnet/{id}/read_state", post(state::read_subnet))
        .layer(from_fn_with_state(app.clone(), around))
        .with_state(app)
}

/// Around each request: answers what browsers ask before they let a page call another origin, lets every page
/// read the answers (they are public or certified, and no cookie counts here), and counts refusals.
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let mut response = if request.method() == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        next.run(request).await
    };
    if response.status().is_client_error() || response.status().is_server_error() {
        Metrics::count(&app.metrics.refused);
    }
    let headers = response.headers_mut();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "accept, cache-control, content-type, if-none-match, range, x-requested-with",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "7200"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Takes a request's body into memory and checks it, in one of a limited number of places.
async fn checked<T>(
    app: &App,
    request: Request,
    check: impl FnOnce(&[u8], u64) -> Result<T, crate::authentication::AuthenticationError>,
) -> Result<T, Refusal> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    if kind.is_none_or(|kind| kind != "application/cbor") {
        return Err(Refusal::ContentType);
    }
    if let Some(length) = length(&request).filter(|length| *length > MAX_BODY) {
        return Err(Refusal::Authentication(EnvelopeError::TooLong(length).into()));
    }
    let take = async {
        let place = app.bodies.acquire().await.map_err(|_| Refusal::Slow)?;
        // One byte more, so that the check sees that it is too long.
        let body = to_bytes(request.into_body(), MAX_BODY + 1).await.map_err(|_| Refusal::Body)?;
        Ok::<_, Refusal>((place, body))
    };
    let (_place, body) = timeout(BODY_TIME, take).await.map_err(|_| Refusal::Slow)??;
    check(&body, (app.clock)()).map_err(Refusal::Authentication)
}

fn length(request: &Request) -> Option<usize> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// An answer in CBOR.
fn cbor_response(value: &impl serde::Serialize) -> Response {
    ([(header::CONTENT_TYPE, "application/cbor")], Body::from(cbor(value))).into_response()
}

/// A principal in the URL.
fn principal(text: &str) -> Result<Principal, Refusal> {
    Principal::from_text(text).map_err(|error| Refusal::UrlId(error.to_string()))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
