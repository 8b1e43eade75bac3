//! The state tree and the replica's own status.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_bytes::Bytes;

use super::error::Refusal;
use super::invoke::own_subnet;
use super::{App, cbor_response, checked, principal};
use crate::authentication;
use crate::metrics::Metrics;
use crate::read_state::Endpoint;

/// Parts of the state tree that concern a canister.
pub(super) async fn read_canister(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    read(&app, Endpoint::Canister(principal(&id)?), request).await
}

/// Parts of the state tree that concern the subnet.
pub(super) async fn read_subnet(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    read(&app, Endpoint::Subnet(own_subnet(&app, &id)?), request).await
}

async fn read(app: &App, endpoint: Endpoint, request: Request) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct Read<'a> {
        certificate: &'a Bytes,
    }
    Metrics::count(&app.metrics.read_states);
    let request = checked(app, request, authentication::read_state).await?;
    let certificate = app.certified.read(&request, endpoint, (app.clock)())?;
    Ok(cbor_response(&Read { certificate: Bytes::new(&certificate) }))
}

/// The replica's status.
pub(super) async fn status(State(app): State<Arc<App>>) -> Response {
    #[derive(Serialize)]
    struct Status<'a> {
        impl_version: &'static str,
        replica_health_status: &'static str,
        root_key: &'a Bytes,
    }
    cbor_response(&Status {
        impl_version: concat!("redoubt-", env!("CARGO_PKG_VERSION")),
        replica_health_status: "healthy",
        root_key: Bytes::new(&app.root_key_der),
    })
}

/// Counters for Prometheus.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render()).into_response()
}

/// What this is, for people.
pub(super) async fn about(State(app): State<Arc<App>>) -> String {
    format!(
        "Redoubt replica {}\nsubnet {}\nnode   {}\n\n\
         This is the Internet Computer's interface: point an agent or the icp command here.\n\
         /api/v2/status  status and root key (CBOR)\n\
         /evidence?nonce=…  attestation evidence for a nonce of 64 hexadecimal digits (JSON)\n\
         /_/metrics  counters (Prometheus)\n",
        env!("CARGO_PKG_VERSION"),
        app.subnet_id,
        app.node_id,
    )
}
